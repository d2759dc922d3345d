package docker

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// BenchmarkStart measures a deploy of a present image (Prepare and Start) against the same container made by Docker's bare create and start,
// one after the other in the same run. ratio is the quotient of the sums; the removals are not measured.
func BenchmarkStart(b *testing.B) {
	l := newLab(b)
	ctx := context.Background()
	if _, err := l.Info(ctx); err != nil {
		b.Fatal(err)
	}
	spec := l.spec("web.0.0", "sleep")
	p, err := l.plan(ctx, l.cli, spec)
	if err != nil {
		b.Fatal(err)
	}
	var floor, ours time.Duration
	for b.Loop() {
		begun := time.Now()
		made, err := l.cli.ContainerCreate(ctx, p.cfg, p.host, nil, nil, p.name)
		if err == nil {
			err = l.cli.ContainerStart(ctx, made.ID, container.StartOptions{})
		}
		if err != nil {
			b.Fatal(err)
		}
		floor += time.Since(begun)
		if err := remove(ctx, l.cli, made.ID); err != nil {
			b.Fatal(err)
		}
		begun = time.Now()
		if err := l.Prepare(ctx, spec, nil); err != nil {
			b.Fatal(err)
		}
		l.start(spec)
		ours += time.Since(begun)
		if err := l.Stop(ctx, spec.Instance, messages.Stop{Signal: "SIGKILL"}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(floor.Milliseconds())/float64(b.N), "floor-ms/op")
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ours-ms/op")
	b.ReportMetric(float64(ours)/float64(floor), "ratio")
}

// BenchmarkStartOnTheOverlay measures by how much a deploy grows for being on the overlay, with its sandbox taken from the pool, against
// the same deploy on Docker's bridge in the same run. The veth pair of the test's network costs six programs where the real one makes no
// process, so what the attachment takes is reported beside and not counted.
func BenchmarkStartOnTheOverlay(b *testing.B) {
	plain := newLab(b)
	network := &timed{Network: newLAN(b)}
	over := &lab{Driver: newDriver(b, Config{Node: plain.cfg.Node, Network: network}), t: b, cli: plain.cli, ref: plain.ref}
	watching(b, over.Driver)
	one := func(l *lab, id messages.InstanceID) time.Duration {
		spec := l.spec(id, "sleep")
		begun := time.Now()
		if err := l.Prepare(context.Background(), spec, nil); err != nil {
			b.Fatal(err)
		}
		l.start(spec)
		took := time.Since(begun)
		if err := l.Stop(context.Background(), id, messages.Stop{Signal: "SIGKILL"}); err != nil {
			b.Fatal(err)
		}
		return took
	}
	var bridge, overlay time.Duration
	for b.Loop() {
		eventually(b, "the pool is full", func() bool { return over.boxes.missing() == 0 })
		bridge += one(plain, "web.0.0")
		overlay += one(over, "web.1.0")
	}
	overlay -= network.took
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(b.N) }
	b.ReportMetric(ms(bridge), "bridge-ms/op")
	b.ReportMetric(ms(overlay), "overlay-ms/op")
	b.ReportMetric(ms(network.took), "attach-ms/op")
	b.ReportMetric(ms(overlay-bridge), "more-ms/op")
}

// timed adds up what attaching takes.
type timed struct {
	driver.Network
	mu   sync.Mutex
	took time.Duration
}

func (n *timed) Attach(ctx context.Context, a driver.Attachment) (driver.Attached, error) {
	begun := time.Now()
	got, err := n.Network.Attach(ctx, a)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.took += time.Since(begun)
	return got, err
}
