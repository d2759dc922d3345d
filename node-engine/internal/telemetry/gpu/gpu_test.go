package gpu

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// The trees here are made: the machines that run the tests have no graphics processor.

// none is for trees in which NVIDIA's library must not be loaded.
func none(t *testing.T) func() library {
	return func() library {
		t.Error("nvidia's library was asked for")
		return nil
	}
}

// sameInfo and sameUse compare the only processor of a Set.
func sameInfo(t *testing.T, s *Set, want messages.GPUInfo) {
	t.Helper()
	if got := s.Info(); len(got) != 1 || got[0] != want {
		t.Errorf("info: got %+v, want %+v", got, want)
	}
}

func sameUse(t *testing.T, s *Set, want messages.GPUUse) {
	t.Helper()
	if got := s.Use(); len(got) != 1 || got[0] != want {
		t.Errorf("use: got %+v, want %+v", got, want)
	}
}

func TestNoProcessor(t *testing.T) {
	s := open(sysfstest.Make(t, map[string]string{
		"/sys/class/drm/card0/device/vendor": "0x1a03\n", // a server's management chip
		"/sys/class/drm/card1/device/vendor": "0x1af4\n", // virtio
		"/sys/class/drm/version":             "drm 1.1.0\n",
	}), none(t))
	if s.Len() != 0 || s.Info() != nil || s.Use() != nil {
		t.Errorf("got %+v, want nothing", s.Info())
	}
	s.Close()
}

func TestAMD(t *testing.T) {
	const card = "/sys/class/drm/card1"
	tree := sysfstest.Make(t, map[string]string{
		card + "/device/vendor":                      "0x1002\n",
		card + "/device/device":                      "0x73bf\n",
		card + "/device/product_name":                "Radeon Pro W6800\n",
		card + "/device/gpu_busy_percent":            "37\n",
		card + "/device/mem_info_vram_total":         "34342961152\n",
		card + "/device/mem_info_vram_used":          "1610612736\n",
		card + "/device/hwmon/hwmon3/temp1_input":    "51000\n",
		card + "/device/hwmon/hwmon3/power1_average": "42500000\n",
		"/sys/class/drm/card1-DP-1/device/vendor":    "0x1002\n",
		"/sys/class/drm/renderD128/device/vendor":    "0x1002\n",
	})
	sysfstest.Link(t, tree, card+"/device/driver", "../../../bus/pci/drivers/amdgpu")
	s := open(tree, none(t))
	sameInfo(t, s, messages.GPUInfo{Vendor: "AMD", Model: "Radeon Pro W6800", MemoryMB: 32752, Driver: "amdgpu"})
	sameUse(t, s, messages.GPUUse{Percent: 37, MemoryUsedMB: 1536, Temperature: 51, PowerW: 42.5})

	sysfstest.Write(t, tree, card+"/device/gpu_busy_percent", "n/a\n")
	sysfstest.Write(t, tree, card+"/device/hwmon/hwmon3/power1_average", "")
	sameUse(t, s, messages.GPUUse{MemoryUsedMB: 1536, Temperature: 51})
}

func TestIntelByItsSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = "/sys/class/drm/card0/gt/gt0/rc6_residency_ms"
		tree := sysfstest.Make(t, map[string]string{
			"/sys/class/drm/card0/device/vendor": "0x8086\n",
			"/sys/class/drm/card0/device/device": "0x46a6\n",
			idle:                                 "100000\n",
		})
		s := open(tree, none(t))
		sameInfo(t, s, messages.GPUInfo{Vendor: "Intel", Model: "Intel 46a6"})
		if got := s.Use(); got != nil {
			t.Errorf("first use: got %+v, want nothing: there is no time to compare with", got)
		}
		for _, step := range []struct {
			counter, percent float64
		}{{104000, 20}, {104000, 100}, {109000, 0}, {120000, 0}} {
			time.Sleep(5 * time.Second)
			sysfstest.Write(t, tree, idle, fmt.Sprintln(step.counter))
			got := s.Use()
			if len(got) != 1 || got[0].Percent < step.percent-0.01 || got[0].Percent > step.percent+0.01 {
				t.Errorf("counter %v: got %+v, want %v percent", step.counter, got, step.percent)
			}
		}
		sysfstest.Write(t, tree, idle, "5\n") // the driver was loaded anew
		time.Sleep(5 * time.Second)
		if got := s.Use(); got != nil {
			t.Errorf("a counter that went back: got %+v, want nothing", got)
		}
	})
}

func TestJetsons(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  messages.GPUUse
	}{
		"nano, old driver of the rails": {map[string]string{
			"/sys/devices/57000000.gpu/load":                                     "428\n",
			"/sys/class/thermal/thermal_zone2/type":                              "GPU-therm\n",
			"/sys/class/thermal/thermal_zone2/temp":                              "31500\n",
			"/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0":       "POM_5V_IN\n",
			"/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input":   "2143\n",
			"/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_1":       "POM_5V_GPU\n",
			"/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input":   "122\n",
			"/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_voltage1_input": "5000\n",
		}, messages.GPUUse{Percent: 42.8, Temperature: 31.5, PowerW: 0.122}},
		"orin, rails by hwmon": {map[string]string{
			"/sys/devices/platform/bus@0/17000000.gpu/load": "1000\n",
			"/sys/class/thermal/thermal_zone0/type":         "cpu-thermal\n",
			"/sys/class/thermal/thermal_zone1/type":         "gpu-thermal\n",
			"/sys/class/thermal/thermal_zone1/temp":         "48000\n",
			"/sys/class/hwmon/hwmon4/name":                  "ina3221\n",
			"/sys/class/hwmon/hwmon4/in1_label":             "VDD_IN\n",
			"/sys/class/hwmon/hwmon4/in2_label":             "VDD_CPU_GPU_CV\n",
			"/sys/class/hwmon/hwmon4/in2_input":             "5000\n",
			"/sys/class/hwmon/hwmon4/curr2_input":           "320\n",
		}, messages.GPUUse{Percent: 100, Temperature: 48, PowerW: 1.6}},
		"xavier, load alone": {map[string]string{"/sys/devices/gpu.0/load": "0\n"}, messages.GPUUse{}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.files["/proc/device-tree/model"] = "NVIDIA Jetson\x00"
			tt.files["/dev/nvidiactl"] = "" // JetPack has one; the library behind it is of no use
			s := open(sysfstest.Make(t, tt.files), none(t))
			sameInfo(t, s, messages.GPUInfo{Vendor: "NVIDIA", Model: "NVIDIA Jetson", Driver: "tegra"})
			sameUse(t, s, tt.want)
		})
	}
}

// fake is NVIDIA's library with one card.
type fake struct{ closed bool }

func (f *fake) devices() []device            { return []device{f} }
func (f *fake) close()                       { f.closed = true }
func (f *fake) info() messages.GPUInfo       { return messages.GPUInfo{Vendor: "NVIDIA", Model: "T4"} }
func (f *fake) use() (messages.GPUUse, bool) { return messages.GPUUse{Percent: 5}, true }

// mixed returns a board with a card of NVIDIA's and one of AMD's that gives nothing but its presence until told.
func mixed(t *testing.T) sysfs.Tree {
	return sysfstest.Make(t, map[string]string{
		"/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
		"/sys/bus/pci/devices/0000:01:00.0/class":  "0x030200\n",
		"/sys/class/drm/card0/device/vendor":       "0x1002\n",
		"/sys/class/drm/card0/device/device":       "0x1681\n",
		"/sys/class/drm/card1/device/vendor":       "0x10de\n",
		"/sys/class/drm/card1/device/device":       "0x1eb8\n",
	})
}

func TestNVIDIAIsNotCountedTwice(t *testing.T) {
	f := &fake{}
	tree := mixed(t)
	s := open(tree, func() library { return f })
	if got := fmt.Sprint(s.Info()); got != "[{NVIDIA T4 0 } {AMD AMD 1681 0 }]" {
		t.Errorf("info: got %s", got)
	}
	if got := s.Use(); len(got) != 1 || got[0].Index != 0 || got[0].Percent != 5 {
		t.Errorf("use: got %+v, want the one that says something", got)
	}
	sysfstest.Write(t, tree, "/sys/class/drm/card0/device/gpu_busy_percent", "250\n")
	if got := s.Use(); len(got) != 2 || got[1].Index != 1 || got[1].Percent != 100 {
		t.Errorf("use: got %+v, want both, and no more than 100 percent", got)
	}
	s.Close()
	if !f.closed || s.Len() != 0 {
		t.Error("Close did not give the library back")
	}
}

func TestNVIDIAWithoutItsLibrary(t *testing.T) {
	s := open(mixed(t), func() library { return nil })
	if got := fmt.Sprint(s.Info()); got != "[{AMD AMD 1681 0 } {NVIDIA NVIDIA 1eb8 0 }]" {
		t.Errorf("info: got %s, want both by sysfs", got)
	}
	if got := s.Use(); got != nil {
		t.Errorf("use: got %+v, want nothing", got)
	}
	s.Close()
}

// TestThisMachine opens whatever there is, with the real library where one is found.
func TestThisMachine(t *testing.T) {
	s := Open(sysfs.At("/"), slog.New(slog.DiscardHandler))
	if got := s.Info(); len(got) != s.Len() {
		t.Errorf("%d processors described of %d", len(got), s.Len())
	}
	for _, u := range s.Use() {
		if u.Percent < 0 || u.Percent > 100 || u.Index >= s.Len() {
			t.Errorf("implausible: %+v", u)
		}
	}
	s.Close()
}
