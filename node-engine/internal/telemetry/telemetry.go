// Package telemetry measures a node: what the board is (Facts) and what it and its instances use (Sample). It says nothing about
// whether the node is alive and sends nothing.
//
// Decided:
//   - Rates come from own deltas of the kernel's counters. A first sample has rates of 0, never a guess, and samples closer together
//     than 200 ms repeat the last rates.
//   - gopsutil reads processors, memory, load, disk and host. Its other calls are not used: its percentages keep state for the whole
//     process, its traffic counters and sensors read far more than is needed, and its platform information may start a program.
//   - What may block (a driver's counters, a GPU's library, a network disk, a sensor) is read by a goroutine of its own. A sample
//     waits a bounded time for it and then gives the value before; one that hangs is left out. So a sample takes 5 s at worst.
//   - Numbers are rounded: what is below the noise would only cost uplink.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v3/common"
	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/disk"
	"github.com/shirou/gopsutil/v3/host"
	"github.com/shirou/gopsutil/v3/load"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/telemetry/gpu"
	"skerry.internal/node-engine/internal/telemetry/sensor"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

const (
	shortWait = 100 * time.Millisecond // for what answers at once where it is in order
	diskWait  = 500 * time.Millisecond // for a disk, which a network may bring
	openWait  = 2 * time.Second        // for NVIDIA's library, which may have to wake a card up
)

// Config says what a Sampler measures.
type Config struct {
	// Root is where /proc, /sys, /dev and /etc are; "" and "/" are the machine's own.
	Root string
	// Disk is a directory on the disk that holds the workloads.
	Disk string
	// Usage gives the counters of the running instances; nil where there are none. See driver.Meter.
	Usage func(context.Context) ([]driver.Usage, error)
	// Reserved gives the sum of what the node's Assignments reserve; nil where that is nothing.
	Reserved func() messages.Resources
	// Restarts gives how often an instance was started again; nil where that is not known.
	Restarts func(messages.InstanceID) int
}

// Validate reports all that is wrong with the configuration.
func (c *Config) Validate() error {
	if c.Disk == "" {
		return errors.New("telemetry: disk: want a directory on the disk that holds the workloads")
	}
	return nil
}

// Sampler measures a node. It may be used by several goroutines; they get one sample after the other.
type Sampler struct {
	cfg     Config
	log     *slog.Logger
	tree    sysfs.Tree
	sensors *sensor.Reader
	gpus    latest[gpus]
	disk    latest[messages.DiskUse]
	counts  latest[counted]
	found   latest[[]messages.SensorInfo]

	mu        sync.Mutex // guards what follows: one sample at a time
	cpu       cpuMeter
	net       netMeter
	instances instanceMeter
	board     *gpu.Set // touched by the readings of gpus only, which are one at a time
	asked     bool     // gpus was read before
	noCounts  bool     // the last question for counters went wrong
}

// gpus is what one look at the graphics processors gave.
type gpus struct {
	info []messages.GPUInfo
	use  []messages.GPUUse
}

// New returns a Sampler. It takes the first readings of what rates are computed from; everything that may block is left to Sample.
func New(cfg Config, log *slog.Logger) (*Sampler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tree := sysfs.At(cfg.Root)
	s := &Sampler{cfg: cfg, log: log, tree: tree, sensors: sensor.NewReader(tree, log), net: netMeter{tree: tree}}
	now := time.Now()
	s.cpu.sample(now, s.cores(s.env(context.Background())))
	s.net.sample(now)
	return s, nil
}

// Close waits for readings that are under way, as long as ctx lives: one that hangs in the kernel can't be called back, and is left.
// The Sampler is of no use afterwards.
func (s *Sampler) Close(ctx context.Context) {
	s.sensors.Close(ctx)
	done := make(chan struct{})
	go func() { // outlives Close only where a reading outlives ctx
		defer close(done)
		s.gpus.wg.Wait()
		s.disk.wg.Wait()
		s.counts.wg.Wait()
		s.found.wg.Wait()
		if s.board != nil {
			s.board.Close()
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Sample measures the node now. The clock's skew is not known here and left to the caller.
func (s *Sampler) Sample(ctx context.Context) messages.Telemetry {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx = s.env(ctx)
	t := messages.Telemetry{At: messages.At(time.Now())}
	s.host(ctx, &t)
	s.attached(ctx, &t)
	s.workloads(ctx, &t)
	s.free(&t)
	return t
}

// env tells gopsutil where the files are, by ctx rather than by the environment of the process.
func (s *Sampler) env(ctx context.Context) context.Context {
	return context.WithValue(ctx, common.EnvKey, common.EnvMap{
		common.HostProcEnvKey: s.tree.Path("/proc"), common.HostSysEnvKey: s.tree.Path("/sys"), common.HostEtcEnvKey: s.tree.Path("/etc"),
	})
}

// cores returns the counters of each core, none where they can't be read.
func (s *Sampler) cores(ctx context.Context) []cpu.TimesStat {
	times, err := cpu.TimesWithContext(ctx, true)
	if err != nil {
		return nil
	}
	return times
}

// host fills in what the board itself uses.
func (s *Sampler) host(ctx context.Context, t *messages.Telemetry) {
	now := time.Now()
	t.CPU = s.cpu.sample(now, s.cores(ctx))
	t.Network = s.net.sample(now)
	t.Memory, t.Swap = memory(ctx)
	t.Disk = s.diskUse(ctx)
	if up, err := host.UptimeWithContext(ctx); err == nil {
		t.UptimeS = int64(up)
	}
	if avg, err := load.AvgWithContext(ctx); err == nil {
		t.Load = [3]float64{avg.Load1, avg.Load5, avg.Load15}
	}
}

// diskUse returns the use of the disk; the last one where it does not answer.
func (s *Sampler) diskUse(ctx context.Context) messages.DiskUse {
	use, _ := s.disk.get(ctx, diskWait, func() messages.DiskUse {
		u, err := disk.UsageWithContext(ctx, s.cfg.Disk)
		if err != nil {
			s.log.Debug("disk has no figures", "err", fmt.Errorf("%s: %w", s.cfg.Disk, err))
			return messages.DiskUse{}
		}
		return messages.DiskUse{TotalMB: int64(u.Total / mib), FreeMB: int64(u.Free / mib)}
	})
	return use
}

// attached fills in what sensors and graphics processors say.
func (s *Sampler) attached(ctx context.Context, t *messages.Telemetry) {
	readings := s.sensors.Read(ctx)
	t.Temperature = round(sensor.Hottest(readings), 1)
	for _, r := range readings {
		r.Value = round(r.Value, 3)
		t.Sensors = append(t.Sensors, r.SensorReading)
	}
	wait := shortWait
	if !s.asked {
		s.asked, wait = true, openWait
	}
	g, _ := s.lookAtGPUs(ctx, wait)
	t.GPUs = g.use
}

// lookAtGPUs describes and measures the graphics processors; the first time it finds them. False says that they do not answer.
func (s *Sampler) lookAtGPUs(ctx context.Context, wait time.Duration) (gpus, bool) {
	return s.gpus.get(ctx, wait, func() gpus {
		if s.board == nil {
			s.board = gpu.Open(s.tree, s.log)
		}
		return gpus{info: s.board.Info(), use: s.board.Use()}
	})
}

// workloads fills in what the instances use.
func (s *Sampler) workloads(ctx context.Context, t *messages.Telemetry) {
	if s.cfg.Usage == nil {
		return
	}
	c, ok := s.counts.get(ctx, usageWait, func() counted { return count(ctx, s.cfg.Usage) })
	if !ok {
		c.err = errors.New("no answer in time")
	}
	if c.err != nil && !s.noCounts && ctx.Err() == nil {
		s.log.Warn("telemetry goes without the instances: their counters can't be read", "err", c.err)
	}
	s.noCounts = c.err != nil
	if c.err == nil {
		t.Instances = s.instances.sample(c.at, c.usage, s.cfg.Restarts)
	}
}

// free fills in what is left, beside what is reserved and, for EdgeIO, beside what is in use.
func (s *Sampler) free(t *messages.Telemetry) {
	cores := float64(len(t.CPU.PerCore))
	if cores == 0 {
		cores = float64(runtime.NumCPU())
	}
	t.FreeCores = round(cores*(100-t.CPU.Percent)/100, 2)
	t.FreeMemory = t.Memory.FreeMB
	var reserved messages.Resources
	if s.cfg.Reserved != nil {
		reserved = s.cfg.Reserved()
	}
	t.Free = messages.Free{
		CPUs:     round(max(cores-reserved.CPUs, 0), 3),
		MemoryMB: max(t.Memory.TotalMB-int64(reserved.MemoryMB), 0),
		GPUs:     max(s.gpuCount()-reserved.GPUs, 0),
	}
}

// gpuCount returns how many graphics processors were found that containers can be given, which are NVIDIA's; also while they do not answer.
func (s *Sampler) gpuCount() (n int) {
	s.gpus.mu.Lock()
	defer s.gpus.mu.Unlock()
	for _, g := range s.gpus.value.info {
		if strings.EqualFold(g.Vendor, "nvidia") {
			n++
		}
	}
	return n
}
