package telemetry

import (
	"context"
	"runtime"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/host"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sensor"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// scanWait bounds the search for sensors in Facts: a registration has 10 s for everything.
const scanWait = time.Second

// Facts returns the fields of a NodeInfo that describe the board: architecture, system, boot, addresses, processors, memory, disk,
// graphics processors and sensors. The others are left for the caller. What can't be found out is left empty.
func (s *Sampler) Facts(ctx context.Context) messages.NodeInfo {
	ctx = s.env(ctx)
	memory, _ := memory(ctx)
	attached, _ := s.Attached(ctx)
	return messages.NodeInfo{
		Arch:      arch(runtime.GOARCH),
		OS:        system(s.tree),
		Kernel:    kernel(ctx),
		BootID:    s.tree.Name("/proc/sys/kernel/random/boot_id"),
		Addresses: addresses(s.tree),
		CPU:       processor(ctx, s.tree),
		MemoryMB:  int(memory.TotalMB),
		DiskMB:    int(s.diskUse(ctx).TotalMB),
		GPUs:      attached.GPUs,
		Sensors:   attached.Sensors,
	}
}

// Attached is what may come to a running board and leave it again.
type Attached struct {
	GPUs    []messages.GPUInfo
	Sensors []messages.SensorInfo
}

// Attached returns what is attached to the board now. False says that not all of it could be found out.
func (s *Sampler) Attached(ctx context.Context) (Attached, bool) {
	sensors, scanned := s.found.get(ctx, scanWait, s.scan)
	g, answered := s.lookAtGPUs(ctx, openWait)
	return Attached{GPUs: g.info, Sensors: sensors}, scanned && answered
}

// scan returns what is attached to the board.
func (s *Sampler) scan() []messages.SensorInfo {
	var all []messages.SensorInfo
	for _, found := range sensor.Scan(s.tree) {
		all = append(all, found.SensorInfo)
	}
	return all
}

// arch returns the messages' name of an architecture that Go knows as goarch. Our programs for 32-bit ARM are built for version 7.
func arch(goarch string) string {
	if goarch == "arm" {
		return "arm-7"
	}
	return goarch
}

// system returns the operating system's name for people. gopsutil has none of that kind, and would start a program to look.
func system(tree sysfs.Tree) string {
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := tree.Text(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return sysfs.Clean(strings.Trim(name, `"'`))
			}
		}
	}
	return runtime.GOOS
}

// kernel returns the version of the kernel.
func kernel(ctx context.Context) string {
	version, err := host.KernelVersionWithContext(ctx)
	if err != nil {
		return ""
	}
	return sysfs.Clean(version)
}

// processor describes the processors. Where the kernel does not name them, as on some ARM boards, the board is named.
func processor(ctx context.Context, tree sysfs.Tree) messages.CPUInfo {
	info := messages.CPUInfo{Cores: runtime.NumCPU()}
	if n, err := cpu.CountsWithContext(ctx, true); err == nil && n > 0 {
		info.Cores = n
	}
	if all, err := cpu.InfoWithContext(ctx); err == nil && len(all) > 0 {
		info.Model = sysfs.Clean(all[0].ModelName)
	}
	if info.Model == "" {
		info.Model = tree.Name("/proc/device-tree/model")
	}
	return info
}
