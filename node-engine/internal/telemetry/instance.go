package telemetry

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// usageWait bounds what a driver is given to count; a technology that is down must not hold back the rest of a sample.
const usageWait = 2 * time.Second

// maxInstances is what messages.Telemetry takes.
const maxInstances = 1 << 14

// instanceMeter turns the counters of workloads into rates.
type instanceMeter struct {
	last map[messages.InstanceID]*instanceRates
}

// instanceRates are the counters of one instance.
type instanceRates struct {
	cpu, rx, tx rate
	use         messages.InstanceUse
}

// sample returns the use of the instances between the last sample and this, in order of their names. A new instance, and one whose
// counters began anew, has rates from its second sample on.
func (m *instanceMeter) sample(now time.Time, usage []driver.Usage, restarts func(messages.InstanceID) int) []messages.InstanceUse {
	next := make(map[messages.InstanceID]*instanceRates, len(usage))
	var all []messages.InstanceUse
	for _, u := range usage[:min(len(usage), maxInstances)] {
		if next[u.Instance] != nil {
			continue // two drivers hold it; the first counts
		}
		r := m.last[u.Instance]
		if r == nil {
			r = &instanceRates{}
		}
		r.update(now, u)
		if restarts != nil {
			r.use.Restarts = restarts(u.Instance)
		}
		next[u.Instance] = r
		all = append(all, r.use)
	}
	m.last = next
	slices.SortFunc(all, func(a, b messages.InstanceUse) int { return cmp.Compare(a.Instance, b.Instance) })
	return all
}

// update takes counters down. The rates stay what they were where too little time has passed.
func (r *instanceRates) update(now time.Time, u driver.Usage) {
	r.use.Instance = u.Instance
	r.use.MemoryMB = round(float64(u.MemoryBytes)/mib, 1)
	if !r.cpu.at.IsZero() && now.Sub(r.cpu.at) < minWindow {
		return
	}
	r.use.CPUPercent = round(100*r.cpu.perSecond(now, uint64(max(u.CPU, 0)))/float64(time.Second), 1)
	r.use.RxBPS = math.Round(8 * r.rx.perSecond(now, u.RxBytes))
	r.use.TxBPS = math.Round(8 * r.tx.perSecond(now, u.TxBytes))
}

// counted is what one question to a driver gave.
type counted struct {
	usage []driver.Usage
	at    time.Time
	err   error
}

// count asks for the counters. They are held to be of the middle of the time that the answer took.
func count(ctx context.Context, usage func(context.Context) ([]driver.Usage, error)) counted {
	ctx, cancel := context.WithTimeout(ctx, usageWait)
	defer cancel()
	began := time.Now()
	all, err := usage(ctx)
	return counted{usage: all, at: began.Add(time.Since(began) / 2), err: err}
}
