package telemetry

import (
	"context"
	"math"
	"path"
	"slices"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/mem"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

const mib = 1 << 20

// minWindow is the shortest time that a rate is computed over. The kernel counts processor time in hundredths of a second: over less
// the percentage is noise.
const minWindow = 200 * time.Millisecond

// cpuMeter turns the kernel's counters of processor time into percentages.
type cpuMeter struct {
	at    time.Time
	times map[string]cpuTime
	use   messages.CPUUse
}

// cpuTime is what one core has counted, in seconds.
type cpuTime struct {
	busy, idle, waiting float64
}

// sample returns the use of the processors between the last sample and this. It is zero at the first, and the last one again where
// too little time has passed.
func (m *cpuMeter) sample(now time.Time, cores []cpu.TimesStat) messages.CPUUse {
	if len(cores) == 0 || !m.at.IsZero() && now.Sub(m.at) < minWindow {
		return m.copied()
	}
	times := make(map[string]cpuTime, len(cores))
	use := messages.CPUUse{PerCore: make([]float64, len(cores))}
	var busy, idle float64
	for i, c := range cores {
		t := cpuTime{busy: c.User + c.Nice + c.System + c.Irq + c.Softirq + c.Steal, idle: c.Idle, waiting: c.Iowait}
		times[c.CPU] = t
		last, ok := m.times[c.CPU]
		if !ok {
			continue // a core that was not there
		}
		// Each for itself: the time of waiting for a disk may count backwards.
		b, d := max(t.busy-last.busy, 0), max(t.idle-last.idle, 0)+max(t.waiting-last.waiting, 0)
		use.PerCore[i] = percent(b, b+d)
		busy, idle = busy+b, idle+d
	}
	use.Percent = percent(busy, busy+idle)
	m.at, m.times, m.use = now, times, use
	return m.copied()
}

// copied returns the last use for somebody else to keep.
func (m *cpuMeter) copied() messages.CPUUse {
	return messages.CPUUse{Percent: m.use.Percent, PerCore: slices.Clone(m.use.PerCore)}
}

// percent returns part of whole in percent with one decimal, 0 where there is no whole.
func percent(part, whole float64) float64 {
	if whole <= 0 || part <= 0 {
		return 0
	}
	return round(min(100*part/whole, 100), 1)
}

// round cuts a value to some decimals: more would be noise, and bytes on the uplink.
func round(v float64, decimals int) float64 {
	unit := math.Pow10(decimals)
	return math.Round(v*unit) / unit
}

// rate is a counter that grows and when it was last read.
type rate struct {
	value uint64
	at    time.Time
}

// perSecond returns by how much the counter grew each second since the last call; 0 at the first one and after a counter that began anew.
func (r *rate) perSecond(now time.Time, value uint64) float64 {
	last := *r
	*r = rate{value: value, at: now}
	elapsed := now.Sub(last.at).Seconds()
	if last.at.IsZero() || elapsed <= 0 || value < last.value {
		return 0
	}
	return float64(value-last.value) / elapsed
}

// netMeter measures the traffic of the real interfaces.
type netMeter struct {
	tree   sysfs.Tree
	at     time.Time
	listed time.Time
	rates  map[string]*netRates
	use    messages.NetworkUse
}

// netRates are the counters of one interface.
type netRates struct {
	rx, tx rate
}

// sample returns the traffic between the last sample and this. It reads the counters of the real interfaces one by one: all of them
// at once would have the kernel add up those of every container's.
func (m *netMeter) sample(now time.Time) messages.NetworkUse {
	if !m.at.IsZero() && now.Sub(m.at) < minWindow {
		return m.use
	}
	m.at = now
	m.list(now)
	var use messages.NetworkUse
	for name, r := range m.rates {
		dir := path.Join(netClass, name, "statistics")
		rx, errRx := m.tree.Uint(dir + "/rx_bytes")
		tx, errTx := m.tree.Uint(dir + "/tx_bytes")
		if errRx != nil || errTx != nil {
			delete(m.rates, name) // unplugged
			continue
		}
		use.RxBPS += 8 * r.rx.perSecond(now, rx)
		use.TxBPS += 8 * r.tx.perSecond(now, tx)
	}
	use.RxBPS, use.TxBPS = math.Round(use.RxBPS), math.Round(use.TxBPS)
	m.use = use
	return use
}

// list looks for interfaces that came, once a minute.
func (m *netMeter) list(now time.Time) {
	if !m.listed.IsZero() && now.Sub(m.listed) < time.Minute {
		return
	}
	m.listed = now
	if m.rates == nil {
		m.rates = map[string]*netRates{}
	}
	for _, name := range m.tree.List(netClass) {
		if m.rates[name] == nil && carriesTraffic(m.tree, name) {
			m.rates[name] = &netRates{}
		}
	}
}

// memory returns the use of memory and of swap. Used is what is not available, so that both figures say the same.
func memory(ctx context.Context) (messages.MemoryUse, messages.MemoryUse) {
	vm, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return messages.MemoryUse{}, messages.MemoryUse{}
	}
	return memoryUse(vm.Total, vm.Available), memoryUse(vm.SwapTotal, vm.SwapFree)
}

// memoryUse returns the message's form of two numbers of bytes.
func memoryUse(total, free uint64) messages.MemoryUse {
	free = min(free, total)
	return messages.MemoryUse{
		TotalMB: int64(total / mib), FreeMB: int64(free / mib), UsedPercent: percent(float64(total-free), float64(total)),
	}
}
