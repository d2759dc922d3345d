package session

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"skerry.internal/messages"
)

// maxUnacked is how many statuses are on their way at once; more would only fill the broker's queue.
const maxUnacked = 32

// maxStretch is how many intervals pass at most between two telemetry messages.
const maxStretch = 6

// apply carries out the orders, one after the other as they came. An order that cannot be applied leaves a digest that differs
// from the manager's; the presence, published again after a while, makes it send the whole set.
func (s *Session) apply(ctx context.Context, w *wire, node messages.NodeID, in *inbox, g *errgroup.Group) error {
	streams, traces := s.newStreams(w, node), make(chan struct{}, maxTraces)
	retry := make(chan struct{}, 1)
	g.Go(func() error { return s.askAgain(ctx, w, node, retry) })
	for {
		o, err := in.next(ctx)
		if err != nil {
			return err
		}
		switch {
		case o.assignment != nil:
			err = s.instances.Assign(*o.assignment)
		case o.sync != nil:
			err = s.instances.Sync(*o.sync)
			s.outbox.Again(s.instances.Statuses())
		case o.inventory != nil:
			if err := s.tellHoldings(ctx, w, node); err != nil {
				return err
			}
		case o.logs != nil:
			streams.open(ctx, *o.logs, g)
		case o.network != nil && s.cfg.Overlay != nil:
			s.cfg.Overlay.Configure(*o.network)
		case o.services != nil && s.cfg.Overlay != nil:
			s.cfg.Overlay.Update(*o.services)
		case o.trace != nil:
			s.trace(ctx, w, node, *o.trace, g, traces)
		}
		if err != nil {
			s.log.Error("order not applied", "node_id", node, "err", err)
			select {
			case retry <- struct{}{}:
			default:
			}
		}
	}
}

// tellHoldings answers a manager that does not know what the node was told before.
func (s *Session) tellHoldings(ctx context.Context, w *wire, node messages.NodeID) error {
	to := topic(node, messages.InventoryTopic)
	for _, piece := range messages.Inventories(s.instances.Assignments()) {
		if err := w.publish(ctx, to, 1, false, piece); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) askAgain(ctx context.Context, w *wire, node messages.NodeID, retry <-chan struct{}) error {
	for {
		select {
		case <-retry:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(s.pace.again):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := w.publish(ctx, topic(node, messages.PresenceTopic), 1, true, s.presence(true)); err != nil {
			return err
		}
	}
}

// sendStatuses publishes what the outbox holds, in order, with up to maxUnacked on their way.
func (s *Session) sendStatuses(ctx context.Context, w *wire, node messages.NodeID) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxUnacked)
	to := topic(node, messages.NodeJobTopic)
	for {
		status, err := s.outbox.next(ctx)
		if err != nil {
			break // ctx has ended, by itself or because a publish did not get through
		}
		receipt := w.Publish(to, 1, false, messages.Encode(&status))
		g.Go(func() error {
			if err := w.await(ctx, receipt); err != nil {
				return fmt.Errorf("publish status of %s: %w", status.Instance, err)
			}
			s.instances.Acked(status.Instance, status.Seq)
			s.outbox.acked(status.Instance, status.Seq)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// sendTelemetry measures once an interval and publishes what has changed notably since the last message, or every maxStretch-th
// measurement. The interval is that of the newest registration.
func (s *Session) sendTelemetry(ctx context.Context, w *wire, node messages.NodeID) error {
	if s.cfg.Telemetry == nil {
		return nil
	}
	var last messages.Telemetry
	to := topic(node, messages.InformationTopic)
	for skipped := maxStretch; ; skipped++ {
		t := s.cfg.Telemetry(ctx)
		a := s.admission.Load()
		t.At = messages.At(time.Now())
		t.ClockSkewMS = a.clockSkew(time.Now()).Milliseconds()
		if skipped >= maxStretch-1 || notable(&last, &t) {
			if err := w.publish(ctx, to, 0, false, &t); err != nil {
				return err
			}
			last, skipped = t, -1
		}
		select {
		case <-time.After(a.interval()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// notable reports whether b differs from a by more than noise: processors by 5 points of percent, memory and swap by 2, the disk
// by 1 % of its size, temperatures by 3 degrees, the network by half and 100 kbit/s, a graphics processor by 10 points or 5 % of
// memory, the clock by 100 ms, or at all in what is free for placement and in which instances run and how often they started.
func notable(a, b *messages.Telemetry) bool {
	return moved(a.CPU.Percent, b.CPU.Percent, 5) ||
		moved(a.Memory.UsedPercent, b.Memory.UsedPercent, 2) || moved(a.Swap.UsedPercent, b.Swap.UsedPercent, 2) ||
		moved(float64(a.Disk.FreeMB), float64(b.Disk.FreeMB), float64(b.Disk.TotalMB)/100) ||
		moved(a.Temperature, b.Temperature, 3) || moved(float64(a.ClockSkewMS), float64(b.ClockSkewMS), 100) ||
		rateMoved(a.Network.RxBPS, b.Network.RxBPS) || rateMoved(a.Network.TxBPS, b.Network.TxBPS) ||
		a.Free != b.Free ||
		!slices.EqualFunc(a.GPUs, b.GPUs, sameGPU) || !slices.EqualFunc(a.Sensors, b.Sensors, sameSensor) ||
		!slices.EqualFunc(a.Instances, b.Instances, sameInstance)
}

func moved(a, b, by float64) bool { return math.Abs(a-b) > by }

func rateMoved(a, b float64) bool { return moved(a, b, max(100_000, max(a, b)/2)) }

func sameGPU(a, b messages.GPUUse) bool {
	return a.Index == b.Index && !moved(a.Percent, b.Percent, 10) && !moved(a.Temperature, b.Temperature, 3) &&
		!moved(float64(a.MemoryUsedMB), float64(b.MemoryUsedMB), float64(max(a.MemoryUsedMB, b.MemoryUsedMB, 20))/20)
}

func sameSensor(a, b messages.SensorReading) bool {
	return a.Name == b.Name && !moved(a.Value, b.Value, max(math.Abs(a.Value), math.Abs(b.Value))/20)
}

func sameInstance(a, b messages.InstanceUse) bool {
	return a.Instance == b.Instance && a.Restarts == b.Restarts && !moved(a.CPUPercent, b.CPUPercent, 10) &&
		!moved(a.MemoryMB, b.MemoryMB, max(a.MemoryMB, b.MemoryMB, 20)/20)
}
