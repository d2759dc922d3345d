package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// newSampler returns a Sampler that is closed with the test.
func newSampler(t testing.TB, cfg Config) *Sampler {
	t.Helper()
	if cfg.Disk == "" {
		cfg.Disk = t.TempDir()
	}
	s, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Close(ctx)
	})
	return s
}

// jetson returns a made tree of a board with what the machines that run the tests do not have: a processor for graphics and sensors.
func jetson(t testing.TB) sysfs.Tree {
	return sysfstest.Make(t, map[string]string{
		"/proc/stat":                            "cpu  40 0 0 360 0 0 0 0 0 0\ncpu0 10 0 0 90 0 0 0 0 0 0\ncpu1 10 0 0 90 0 0 0 0 0 0\ncpu2 10 0 0 90 0 0 0 0 0 0\ncpu3 10 0 0 90 0 0 0 0 0 0\nintr 1\n",
		"/proc/meminfo":                         "MemTotal:        4055836 kB\nMemFree:          500000 kB\nMemAvailable:    3041280 kB\nSwapTotal:       2097152 kB\nSwapFree:        1048576 kB\n",
		"/proc/loadavg":                         "0.50 0.25 0.10 1/200 999\n",
		"/proc/cpuinfo":                         "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nprocessor\t: 1\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
		"/proc/sys/kernel/random/boot_id":       "2a4c3b7e-9d0c-4a5f-8f64-5d1f2f8f3f11\n",
		"/proc/device-tree/model":               "NVIDIA Jetson Nano\x00",
		"/etc/os-release":                       "NAME=\"Ubuntu\"\nPRETTY_NAME=\"Ubuntu 18.04.6 LTS\"\n",
		"/sys/devices/57000000.gpu/load":        "250\n",
		"/sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
		"/sys/class/thermal/thermal_zone0/temp": "41250\n",
		"/sys/class/thermal/thermal_zone1/type": "PMIC-Die\n",
		"/sys/class/thermal/thermal_zone1/temp": "100000\n",
		"/dev/video0":                           "",
		"/sys/class/video4linux/video0/name":    "imx219\n",
	})
}

func TestSampleOfAMadeBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its time stands still while files are read
		tree := jetson(t)
		s := newSampler(t, Config{
			Root:     tree.Path(""),
			Reserved: func() messages.Resources { return messages.Resources{CPUs: 1.5, MemoryMB: 1000, GPUs: 1} },
		})
		got := s.Sample(t.Context())
		if got.At.IsZero() || got.UptimeS <= 0 || got.Disk.TotalMB <= 0 {
			t.Errorf("at, uptime or disk are missing: %+v", got)
		}
		got.At, got.UptimeS, got.Disk = messages.Time{}, 0, messages.DiskUse{}
		text, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		want := `{"at":"","clock_skew_ms":0,"uptime_s":0,"cpu":{"percent":0,"per_core":[0,0,0,0]},"load":[0.5,0.25,0.1],` +
			`"memory":{"total_mb":3960,"free_mb":2970,"used_percent":25},"swap":{"total_mb":2048,"free_mb":1024,"used_percent":50},` +
			`"disk":{"total_mb":0,"free_mb":0},"network":{"rx_bps":0,"tx_bps":0},"temperature_c":41.3,` +
			`"gpus":[{"index":0,"percent":25,"memory_used_mb":0}],` +
			`"sensors":[{"name":"CPU-therm","value":41.25,"unit":"C"},{"name":"PMIC-Die","value":100,"unit":"C"}],` +
			`"free":{"cpus":2.5,"memory_mb":2960,"gpus":0},"free_cores":4,"memory_free_in_MB":2970}`
		if !sameJSON(t, text, want) {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
	})
}

// sameJSON compares whatever the order of fields.
func sameJSON(t *testing.T, got []byte, want string) bool {
	t.Helper()
	var a, b any
	if err := errors.Join(json.Unmarshal(got, &a), json.Unmarshal([]byte(want), &b)); err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}

func TestFactsOfAMadeBoard(t *testing.T) {
	got := newSampler(t, Config{Root: jetson(t).Path("")}).Facts(t.Context())
	if got.OS != "Ubuntu 18.04.6 LTS" || got.BootID != "2a4c3b7e-9d0c-4a5f-8f64-5d1f2f8f3f11" || got.MemoryMB != 3960 {
		t.Errorf("os, boot or memory: got %+v", got)
	}
	if got.CPU != (messages.CPUInfo{Model: "ARMv8 Processor rev 1 (v8l)", Cores: 2}) {
		t.Errorf("cpu: got %+v", got.CPU)
	}
	if len(got.GPUs) != 1 || got.GPUs[0] != (messages.GPUInfo{Vendor: "NVIDIA", Model: "NVIDIA Jetson Nano", Driver: "tegra"}) {
		t.Errorf("gpus: got %+v", got.GPUs)
	}
	want := []messages.SensorInfo{
		{Kind: "thermal", Path: "/sys/class/thermal/thermal_zone0/temp", Name: "CPU-therm"},
		{Kind: "thermal", Path: "/sys/class/thermal/thermal_zone1/temp", Name: "PMIC-Die"},
		{Kind: "video", Path: "/dev/video0", Name: "imx219"},
	}
	if len(got.Sensors) != len(want) {
		t.Fatalf("sensors: got %+v, want %+v", got.Sensors, want)
	}
	for i := range want {
		if got.Sensors[i] != want[i] {
			t.Errorf("sensor %d: got %+v, want %+v", i, got.Sensors[i], want[i])
		}
	}
}

func TestAnEmptyBoardHasNoFigures(t *testing.T) {
	s := newSampler(t, Config{Root: t.TempDir(), Disk: "/no/such/directory"})
	got := s.Sample(t.Context())
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if got.Disk.TotalMB != 0 || got.Memory.TotalMB != 0 || got.GPUs != nil || got.Sensors != nil || got.Temperature != 0 {
		t.Errorf("got %+v, want no figures", got)
	}
	if facts := s.Facts(t.Context()); facts.OS != runtime.GOOS || facts.CPU.Cores < 1 {
		t.Errorf("facts: got %+v", facts)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a Config without a disk was taken")
	}
}

// TestThisMachinesFacts compares with what the kernel says elsewhere.
func TestThisMachinesFacts(t *testing.T) {
	got := newSampler(t, Config{}).Facts(t.Context())
	tree := sysfs.At("/")
	if want := tree.Name("/proc/sys/kernel/osrelease"); got.Kernel != want || want == "" {
		t.Errorf("kernel: got %q, want %q", got.Kernel, want)
	}
	if want := tree.Name("/proc/sys/kernel/random/boot_id"); got.BootID != want || len(want) != 36 {
		t.Errorf("boot: got %q, want %q", got.BootID, want)
	}
	if got.Arch != arch(runtime.GOARCH) || got.OS == "" || got.MemoryMB < 64 || got.DiskMB < 1 || got.CPU.Cores < 1 {
		t.Errorf("implausible: %+v", got)
	}
	for _, a := range got.Addresses {
		if addr, err := netip.ParseAddr(a); err != nil || !addr.IsGlobalUnicast() || strings.HasPrefix(a, "172.17.0.") {
			t.Errorf("address %q: %v", a, err)
		}
	}
	got.Name, got.Key = "board", "k"
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

func TestArch(t *testing.T) {
	for in, want := range map[string]string{"arm": "arm-7", "arm64": "arm64", "amd64": "amd64"} {
		if got := arch(in); got != want {
			t.Errorf("arch(%s): got %s, want %s", in, got, want)
		}
	}
}

// TestThisMachine burns one core and sees it.
func TestThisMachine(t *testing.T) {
	s := newSampler(t, Config{})
	check := func(got messages.Telemetry) {
		t.Helper()
		if got.UptimeS < 1 || got.Memory.TotalMB < 64 || got.Memory.FreeMB > got.Memory.TotalMB || got.Disk.TotalMB < 1 {
			t.Errorf("implausible: %+v", got)
		}
		if len(got.CPU.PerCore) < runtime.NumCPU() || got.CPU.Percent < 0 || got.CPU.Percent > 100 {
			t.Errorf("implausible: %+v", got.CPU)
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Error(err)
		}
	}
	check(s.Sample(t.Context()))
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil { //nolint:revive // to burn is the purpose
		}
	})
	wg.Wait()
	busy := s.Sample(t.Context())
	check(busy)
	// One of the cores was ours for a second, or others kept it from us: busy it was either way.
	least := 60 / float64(len(busy.CPU.PerCore))
	if busy.CPU.Percent < least {
		t.Errorf("one core of %d burnt: got %+v, want %v percent at least", len(busy.CPU.PerCore), busy.CPU, least)
	}
	if want := float64(len(busy.CPU.PerCore)) * (100 - busy.CPU.Percent) / 100; busy.FreeCores > want+0.01 || busy.FreeCores < want-0.01 {
		t.Errorf("free cores: got %v, want %v", busy.FreeCores, want)
	}
}

func TestUsageOfInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := newSampler(t, Config{
			Root: t.TempDir(),
			Usage: func(context.Context) ([]driver.Usage, error) {
				ran := time.Since(began)
				return []driver.Usage{{Instance: "web.0.1", CPU: ran / 4, MemoryBytes: 64 << 20, TxBytes: uint64(ran / time.Millisecond)}}, nil
			},
			Restarts: func(messages.InstanceID) int { return 3 },
		})
		for i, want := range []messages.InstanceUse{
			{Instance: "web.0.1", MemoryMB: 64, Restarts: 3},
			{Instance: "web.0.1", MemoryMB: 64, Restarts: 3, CPUPercent: 25, TxBPS: 8000},
		} {
			got := s.Sample(t.Context()).Instances
			if len(got) != 1 || got[0] != want {
				t.Errorf("%d: got %+v, want %+v", i, got, want)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

func TestDriverThatHangsOrFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error)
		var logged bytes.Buffer
		s, err := New(Config{Root: t.TempDir(), Disk: t.TempDir(), Usage: func(context.Context) ([]driver.Usage, error) {
			return []driver.Usage{{Instance: "web.0.1"}}, <-answer // pays no heed to its context
		}}, slog.New(slog.NewTextHandler(&logged, nil)))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			began := time.Now()
			if got := s.Sample(t.Context()); got.Instances != nil || got.UptimeS == 0 {
				t.Errorf("while it hangs: got %+v, want all but the instances", got)
			}
			if took := time.Since(began); took > usageWait {
				t.Errorf("a sample took %v, want %v at most", took, usageWait)
			}
		}
		answer <- driver.ErrUnavailable
		synctest.Wait()
		go func() { answer <- driver.ErrUnavailable }()
		if got := s.Sample(t.Context()).Instances; got != nil {
			t.Errorf("unavailable: got %+v", got)
		}
		if n := strings.Count(logged.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings for one outage:\n%s", n, logged.String())
		}
		go func() { answer <- nil }()
		if got := s.Sample(t.Context()).Instances; len(got) != 1 {
			t.Errorf("back again: got %+v", got)
		}
		s.Close(t.Context())
	})
}

func TestSamplesAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its time stands still while files are read
		s := newSampler(t, Config{Root: jetson(t).Path("")})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 10 {
					if got := s.Sample(t.Context()); len(got.Sensors) != 2 {
						t.Errorf("got %d sensors, want 2", len(got.Sensors))
					}
					s.Facts(t.Context())
				}
			})
		}
		wg.Wait()
	})
}

// TestSampleIsCheap holds the bound of an idle node: 0.2 percent of a core, with a sample every 5 s, is 10 ms of processor time.
func TestSampleIsCheap(t *testing.T) {
	s := newSampler(t, Config{})
	s.Sample(t.Context())
	const samples = 50
	before := used(t)
	for range samples {
		s.Sample(t.Context())
	}
	each := (used(t) - before) / samples
	t.Logf("a sample takes %v of processor time", each)
	if each > 10*time.Millisecond {
		t.Errorf("a sample takes %v of processor time, want 10ms at most", each)
	}
}

// used returns the processor time of this process.
func used(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func BenchmarkSample(b *testing.B) {
	s := newSampler(b, Config{Disk: os.TempDir()})
	for b.Loop() {
		s.Sample(b.Context())
	}
}

func BenchmarkSampleOfABoard(b *testing.B) {
	s := newSampler(b, Config{Root: jetson(b).Path(""), Disk: os.TempDir()})
	for b.Loop() {
		s.Sample(b.Context())
	}
}
