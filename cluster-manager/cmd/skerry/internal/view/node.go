package view

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"skerry.internal/messages"
)

// Nodes lists nodes, core and spare.
func (s Style) Nodes(nodes []messages.NodeStatus) string {
	rows := make([][]string, 0, len(nodes))
	for _, n := range nodes {
		cpus, memory := "-", "-"
		if n.CPU.Cores > 0 {
			cpus = strconv.Itoa(n.CPU.Cores)
		}
		if n.MemoryMB > 0 {
			memory = megabytes(int64(n.MemoryMB))
		}
		rows = append(rows, []string{string(n.Node), n.Kind, s.state(string(n.State)), orDash(n.Arch), cpus, memory, orDash(reserved(n.Reserved)),
			strconv.Itoa(len(n.Instances)), orDash(n.Version), s.Age(n.Since)})
	}
	return s.grid([]string{"name", "kind", "state", "arch", "cpus", "memory", "reserved", "instances", "version", "since"}, rows)
}

func reserved(r messages.Resources) string {
	var parts []string
	if r.CPUs > 0 {
		parts = append(parts, number(r.CPUs)+" cpus")
	}
	if r.MemoryMB > 0 {
		parts = append(parts, megabytes(int64(r.MemoryMB)))
	}
	if r.GPUs > 0 {
		parts = append(parts, fmt.Sprintf("%d gpus", r.GPUs))
	}
	return strings.Join(parts, ", ")
}

// Node shows all that is known of a node. t is nil where no telemetry has come.
func (s Style) Node(n messages.NodeStatus, t *messages.Telemetry) string {
	cpu := ""
	if n.CPU.Cores > 0 {
		cpu = strings.TrimSuffix(fmt.Sprintf("%d × %s", n.CPU.Cores, n.CPU.Model), " × ")
	}
	facts := [][2]string{{"node", string(n.Node)}, {"kind", n.Kind}, {"state", s.state(string(n.State))}, {"since", s.when(n.Since)}, {"version", n.Version},
		{"arch", n.Arch}, {"system", joined(" ", n.OS, n.Kernel)}, {"addresses", strings.Join(n.Addresses, "\n")}, {"cpu", cpu},
		{"memory", orNone(int64(n.MemoryMB))}, {"disk", orNone(int64(n.DiskMB))}, {"reserved", reserved(n.Reserved)}, {"labels", labels(n.Labels)},
		{"technologies", technologies(n.Technologies)}, {"gpus", gpus(n.GPUs)}, {"sensors", sensors(n.Sensors)}, {"overlay", overlay(n.Overlay)}, {"clock", skew(n.ClockSkewMS)},
		{"key", n.Key}, {"instances", instances(n.Instances)}}
	out := s.facts(facts)
	if t != nil {
		out += "\n" + s.Telemetry(*t)
	}
	return out
}

func joined(sep string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), sep)
}

func orNone(mb int64) string {
	if mb == 0 {
		return ""
	}
	return megabytes(mb)
}

func labels(l map[string]string) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(l)) {
		lines = append(lines, k+"="+l[k])
	}
	return strings.Join(lines, "\n")
}

func technologies(list []messages.TechnologyInfo) string {
	var lines []string
	for _, t := range list {
		line := joined(" ", string(t.Name), t.Version)
		if len(t.Runtimes) > 0 {
			line += " (" + strings.Join(t.Runtimes, ", ") + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func gpus(list []messages.GPUInfo) string {
	var lines []string
	for i, g := range list {
		driver := ""
		if g.Driver != "" {
			driver = "driver " + g.Driver
		}
		lines = append(lines, fmt.Sprintf("%d: %s", i, joined(", ", joined(" ", g.Vendor, g.Model), orNone(int64(g.MemoryMB)), driver)))
	}
	return strings.Join(lines, "\n")
}

func sensors(list []messages.SensorInfo) string {
	var lines []string
	for _, x := range list {
		lines = append(lines, joined("  ", x.Kind, x.Path, x.Name))
	}
	return strings.Join(lines, "\n")
}

func overlay(o *messages.OverlayStatus) string {
	if o == nil {
		return ""
	}
	return joined(": ", string(o.State), o.Reason)
}

func skew(ms int64) string {
	if ms == 0 {
		return ""
	}
	return fmt.Sprintf("%+d ms beside the manager's", ms)
}

func instances(ids []messages.InstanceID) string {
	if len(ids) == 0 {
		return "none"
	}
	var lines []string
	for _, id := range ids {
		lines = append(lines, string(id))
	}
	return strings.Join(lines, "\n")
}

// Telemetry shows what a node has measured.
func (s Style) Telemetry(t messages.Telemetry) string {
	temperature := ""
	if t.Temperature != 0 {
		temperature = fmt.Sprintf("%.1f °C", t.Temperature)
	}
	facts := [][2]string{{"measured", s.when(t.At)}, {"up", fmt.Sprintf("%dd %02dh %02dm", t.UptimeS/86400, t.UptimeS/3600%24, t.UptimeS/60%60)},
		{"cpu", fmt.Sprintf("%.1f %%, load %.2f %.2f %.2f", t.CPU.Percent, t.Load[0], t.Load[1], t.Load[2])},
		{"memory", fmt.Sprintf("%.1f %% used, %s of %s free", t.Memory.UsedPercent, megabytes(t.Memory.FreeMB), megabytes(t.Memory.TotalMB))},
		{"swap", swap(t.Swap)}, {"disk", fmt.Sprintf("%s of %s free", megabytes(t.Disk.FreeMB), megabytes(t.Disk.TotalMB))},
		{"network", fmt.Sprintf("%s in, %s out", rate(t.Network.RxBPS), rate(t.Network.TxBPS))}, {"temperature", temperature},
		{"gpus", gpuUse(t.GPUs)}, {"sensors", readings(t.Sensors)},
		{"not reserved", fmt.Sprintf("%s cpus, %s, %d gpus", number(t.Free.CPUs), megabytes(t.Free.MemoryMB), t.Free.GPUs)}}
	out := s.facts(facts)
	if len(t.Instances) == 0 {
		return out
	}
	var rows [][]string
	for _, i := range t.Instances {
		rows = append(rows, []string{string(i.Instance), fmt.Sprintf("%.1f %%", i.CPUPercent), fmt.Sprintf("%.1f MiB", i.MemoryMB), rate(i.RxBPS), rate(i.TxBPS),
			strconv.Itoa(i.Restarts)})
	}
	return out + "\n" + s.grid([]string{"instance", "cpu", "memory", "in", "out", "restarts"}, rows)
}

func swap(m messages.MemoryUse) string {
	if m.TotalMB == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f %% used of %s", m.UsedPercent, megabytes(m.TotalMB))
}

func gpuUse(list []messages.GPUUse) string {
	var lines []string
	for _, g := range list {
		lines = append(lines, fmt.Sprintf("%d: %.0f %%, %s in use, %.0f °C, %.0f W", g.Index, g.Percent, megabytes(g.MemoryUsedMB), g.Temperature, g.PowerW))
	}
	return strings.Join(lines, "\n")
}

func readings(list []messages.SensorReading) string {
	var lines []string
	for _, r := range list {
		lines = append(lines, fmt.Sprintf("%s %s %s", r.Name, number(r.Value), r.Unit))
	}
	return strings.Join(lines, "\n")
}

// rate writes bits per second.
func rate(bps float64) string {
	switch {
	case bps < 1e3:
		return fmt.Sprintf("%.0f bit/s", bps)
	case bps < 1e6:
		return fmt.Sprintf("%.1f kbit/s", bps/1e3)
	case bps < 1e9:
		return fmt.Sprintf("%.1f Mbit/s", bps/1e6)
	default:
		return fmt.Sprintf("%.1f Gbit/s", bps/1e9)
	}
}
