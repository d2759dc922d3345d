//go:build linux && cgo && (amd64 || arm64)

package gpu

import (
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"skerry.internal/messages"
)

// The library is NVIDIA's own double of it here, which panics in every function that a test does not give it: as the real one, which
// ends the process.

// extensions says which functions the library has: all but the missing.
func extensions(missing ...string) *mock.ExtendedInterface {
	return &mock.ExtendedInterface{LookupSymbolFunc: func(name string) error {
		if slices.Contains(missing, name) {
			return errors.New("undefined symbol")
		}
		return nil
	}}
}

// loaded returns a library with the given devices after an Init that succeeds.
func loaded(ext nvml.ExtendedInterface, devices ...nvml.Device) *mock.Interface {
	return &mock.Interface{
		InitFunc:                   func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:               func() nvml.Return { return nvml.SUCCESS },
		ExtensionsFunc:             func() nvml.ExtendedInterface { return ext },
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return "550.54.15", nvml.SUCCESS },
		DeviceGetCountFunc:         func() (int, nvml.Return) { return len(devices), nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) {
			if devices[i] == nil {
				return nil, nvml.ERROR_GPU_IS_LOST
			}
			return devices[i], nvml.SUCCESS
		},
	}
}

// a100 returns a card whose functions all give ret.
func a100(ret nvml.Return) *mock.Device {
	return &mock.Device{
		GetNameFunc:             func() (string, nvml.Return) { return "NVIDIA A100-SXM4-40GB", ret },
		GetMemoryInfoFunc:       func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 40 << 30, Used: 3 << 30}, ret },
		GetUtilizationRatesFunc: func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 63, Memory: 7}, ret },
		GetTemperatureFunc:      func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 54, ret },
		GetPowerUsageFunc:       func() (uint32, nvml.Return) { return 231500, ret },
	}
}

func TestNVMLIsNotCalledAfterAFailedInit(t *testing.T) {
	for _, ret := range []nvml.Return{nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIB_RM_VERSION_MISMATCH} {
		lib := &mock.Interface{InitFunc: func() nvml.Return { return ret }}
		if got := openNVML(lib, slog.New(slog.DiscardHandler)); got != nil {
			t.Errorf("Init said %d: got %v, want no library", ret, got)
		}
	}
}

// TestNVMLWithoutADriver loads the real library, or finds that there is none and survives it.
func TestNVMLWithoutADriver(t *testing.T) {
	lib := openNVIDIA(slog.New(slog.DiscardHandler))
	if lib == nil {
		return
	}
	for _, d := range lib.devices() {
		if d.info().Vendor != "NVIDIA" {
			t.Errorf("got %+v", d.info())
		}
	}
	lib.close()
}

func TestNVMLCards(t *testing.T) {
	lib := loaded(extensions(), a100(nvml.SUCCESS), nil, a100(nvml.ERROR_NOT_SUPPORTED))
	n := openNVML(lib, slog.New(slog.DiscardHandler))
	cards := n.devices()
	if len(cards) != 2 {
		t.Fatalf("got %d cards, want the two that are not lost", len(cards))
	}
	if got, want := cards[0].info(), (messages.GPUInfo{Vendor: "NVIDIA", Model: "NVIDIA A100-SXM4-40GB", MemoryMB: 40960, Driver: "550.54.15"}); got != want {
		t.Errorf("info: got %+v, want %+v", got, want)
	}
	use, ok := cards[0].use()
	if want := (messages.GPUUse{Percent: 63, MemoryUsedMB: 3072, Temperature: 54, PowerW: 231.5}); !ok || use != want {
		t.Errorf("use: got %+v, %v, want %+v", use, ok, want)
	}
	if use, ok := cards[1].use(); ok {
		t.Errorf("a card that supports nothing: got %+v, want it left out", use)
	}
	n.close()
	if len(lib.ShutdownCalls()) != 1 {
		t.Error("the library was not given back")
	}
}

func TestNVMLOfAnOldDriver(t *testing.T) {
	old := extensions("nvmlSystemGetDriverVersion", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo",
		"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage")
	lib := loaded(old, &mock.Device{GetTemperatureFunc: func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 40, nvml.SUCCESS }})
	lib.SystemGetDriverVersionFunc = nil
	cards := openNVML(lib, slog.New(slog.DiscardHandler)).devices()
	if len(cards) != 1 || cards[0].info() != (messages.GPUInfo{Vendor: "NVIDIA"}) {
		t.Fatalf("got %v", cards)
	}
	if use, ok := cards[0].use(); !ok || use != (messages.GPUUse{Temperature: 40}) {
		t.Errorf("use: got %+v, %v", use, ok)
	}
	lib = loaded(extensions("nvmlDeviceGetCount_v2"))
	lib.DeviceGetCountFunc = nil
	if got := openNVML(lib, slog.New(slog.DiscardHandler)).devices(); got != nil {
		t.Errorf("no way to count: got %v", got)
	}
}
