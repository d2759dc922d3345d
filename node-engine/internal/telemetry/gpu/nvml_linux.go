//go:build linux && cgo && (amd64 || arm64)

package gpu

import (
	"log/slog"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// openNVIDIA loads NVIDIA's library, nil where that is not possible.
func openNVIDIA(log *slog.Logger) library {
	return openNVML(nvml.New(), log)
}

// nvmlLibrary is NVIDIA's library after an Init that succeeded. Nothing may call into it otherwise: a function that is not there ends
// the process when it is called. For the same reason it is asked for each function that an old driver may lack.
type nvmlLibrary struct {
	lib    nvml.Interface
	driver string
}

// openNVML begins the use of the library, nil where it can't be used.
func openNVML(lib nvml.Interface, log *slog.Logger) library {
	if ret := lib.Init(); ret != nvml.SUCCESS {
		// A number: the text would have to come from the library.
		log.Warn("nvidia's library is of no use, its cards are known by sysfs only", "err", int(ret))
		return nil
	}
	n := &nvmlLibrary{lib: lib}
	if n.has("nvmlSystemGetDriverVersion") {
		if version, ret := lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
			n.driver = sysfs.Clean(version)
		}
	}
	return n
}

// has reports whether the library has a function.
func (n *nvmlLibrary) has(function string) bool {
	return n.lib.Extensions().LookupSymbol(function) == nil
}

// devices implements library.
func (n *nvmlLibrary) devices() []device {
	if !n.has("nvmlDeviceGetCount_v2") || !n.has("nvmlDeviceGetHandleByIndex_v2") {
		return nil
	}
	count, ret := n.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var all []device
	for i := range min(count, maxDevices) {
		handle, ret := n.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // lost, or not ours to see
		}
		all = append(all, &nvmlDevice{
			device: handle, driver: n.driver,
			name: n.has("nvmlDeviceGetName"), memory: n.has("nvmlDeviceGetMemoryInfo"), load: n.has("nvmlDeviceGetUtilizationRates"),
			temperature: n.has("nvmlDeviceGetTemperature"), power: n.has("nvmlDeviceGetPowerUsage"),
		})
	}
	return all
}

// close implements library.
func (n *nvmlLibrary) close() {
	_ = n.lib.Shutdown() // what it says changes nothing: nothing is called afterwards
}

// nvmlDevice is one card of NVIDIA's, and which functions the library has for it.
type nvmlDevice struct {
	device                                 nvml.Device
	driver                                 string
	name, memory, load, temperature, power bool
}

// info implements device.
func (d *nvmlDevice) info() messages.GPUInfo {
	info := messages.GPUInfo{Vendor: "NVIDIA", Driver: d.driver}
	if d.name {
		if name, ret := d.device.GetName(); ret == nvml.SUCCESS {
			info.Model = sysfs.Clean(name)
		}
	}
	if d.memory {
		if memory, ret := d.device.GetMemoryInfo(); ret == nvml.SUCCESS {
			info.MemoryMB = int(memory.Total / mib)
		}
	}
	return info
}

// use implements device.
func (d *nvmlDevice) use() (messages.GPUUse, bool) {
	var use messages.GPUUse
	var any bool
	if d.load {
		if load, ret := d.device.GetUtilizationRates(); ret == nvml.SUCCESS {
			use.Percent, any = min(float64(load.Gpu), 100), true
		}
	}
	if d.memory {
		if memory, ret := d.device.GetMemoryInfo(); ret == nvml.SUCCESS {
			use.MemoryUsedMB, any = int64(memory.Used/mib), true
		}
	}
	if d.temperature {
		if celsius, ret := d.device.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
			use.Temperature, any = float64(celsius), true
		}
	}
	if d.power {
		if milli, ret := d.device.GetPowerUsage(); ret == nvml.SUCCESS {
			use.PowerW, any = float64(milli)/1e3, true
		}
	}
	return use, any
}
