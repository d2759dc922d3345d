package gpu

import (
	"path"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// jetson is the graphics processor inside an NVIDIA Jetson's chip. It has no memory of its own.
type jetson struct {
	tree     sysfs.Tree
	describe messages.GPUInfo
	load     string // in thousandths
	zone     string // of the temperature, "" where there is none
	rail     rail
}

// rail is the power supply of the processor, measured by an INA3221 on the board: as power, or as voltage and current.
type rail struct {
	milliwatts           string
	millivolts, milliamp string
}

// findJetson returns the processor of a Jetson board, none on other boards.
func findJetson(tree sysfs.Tree) []device {
	load := jetsonLoad(tree)
	if load == "" {
		return nil
	}
	model := tree.Name("/proc/device-tree/model")
	if model == "" {
		model = "Tegra"
	}
	return []device{&jetson{
		tree: tree, load: load, zone: jetsonZone(tree), rail: jetsonRail(tree),
		describe: messages.GPUInfo{Vendor: "NVIDIA", Model: model, Driver: "tegra"},
	}}
}

// jetsonLoad returns the file with the processor's load. Its place differs with board and release: /sys/devices/gpu.0,
// /sys/devices/57000000.gpu, /sys/devices/platform/17000000.ga10b, /sys/devices/platform/bus@0/17000000.gpu.
func jetsonLoad(tree sysfs.Tree) string {
	for _, dir := range []string{"/sys/devices", "/sys/devices/platform", "/sys/devices/platform/bus@0", "/sys/devices/platform/host1x"} {
		for _, name := range tree.List(dir) {
			if file := path.Join(dir, name, "load"); isTegra(name) && tree.Exists(file) {
				return file
			}
		}
	}
	return ""
}

// isTegra reports whether a device's name is the one of a Tegra's graphics processor.
func isTegra(name string) bool {
	if name == "gpu.0" {
		return true
	}
	_, kind, _ := strings.Cut(name, ".")
	switch kind {
	case "gpu", "gm20b", "gp10b", "gv11b", "ga10b":
		return true
	}
	return false
}

// jetsonZone returns the file with the processor's temperature.
func jetsonZone(tree sysfs.Tree) string {
	const class = "/sys/class/thermal"
	for _, zone := range tree.List(class) {
		dir := path.Join(class, zone)
		if strings.Contains(strings.ToLower(tree.Name(dir+"/type")), "gpu") && tree.Exists(dir+"/temp") {
			return dir + "/temp"
		}
	}
	return ""
}

// jetsonRail returns the supply whose label names the processor, as hwmon shows it, else as the older driver did.
func jetsonRail(tree sysfs.Tree) rail {
	const class, old = "/sys/class/hwmon", "/sys/bus/i2c/drivers/ina3221x"
	for _, chip := range tree.List(class) {
		dir := path.Join(class, chip)
		if n := gpuChannel(tree, dir, "in", "_label"); tree.Name(dir+"/name") == "ina3221" && n != "" {
			return rail{millivolts: dir + "/in" + n + "_input", milliamp: dir + "/curr" + n + "_input"}
		}
	}
	for _, chip := range tree.List(old) {
		for _, name := range tree.List(path.Join(old, chip)) {
			dir := path.Join(old, chip, name)
			if n := gpuChannel(tree, dir, "rail_name_", ""); n != "" {
				return rail{milliwatts: dir + "/in_power" + n + "_input"}
			}
		}
	}
	return rail{}
}

// gpuChannel returns the number of the channel in dir whose label names the graphics processor, "" where none does.
func gpuChannel(tree sysfs.Tree, dir, prefix, suffix string) string {
	for _, n := range []string{"0", "1", "2", "3"} {
		if strings.Contains(strings.ToUpper(tree.Name(path.Join(dir, prefix+n+suffix))), "GPU") {
			return n
		}
	}
	return ""
}

// info implements device.
func (j *jetson) info() messages.GPUInfo { return j.describe }

// use implements device.
func (j *jetson) use() (messages.GPUUse, bool) {
	load, err := j.tree.Float(j.load)
	use := messages.GPUUse{Percent: min(max(load/10, 0), 100), PowerW: j.rail.watts(j.tree)}
	if j.zone != "" {
		if milli, err := j.tree.Float(j.zone); err == nil {
			use.Temperature = milli / 1e3
		}
	}
	return use, err == nil || use.Temperature != 0 || use.PowerW != 0
}

// watts returns what the rail gives, 0 where it can't be told.
func (r rail) watts(tree sysfs.Tree) float64 {
	if r.milliwatts != "" {
		milli, err := tree.Float(r.milliwatts)
		if err != nil {
			return 0
		}
		return milli / 1e3
	}
	if r.millivolts == "" {
		return 0
	}
	volts, errV := tree.Float(r.millivolts)
	amps, errA := tree.Float(r.milliamp)
	if errV != nil || errA != nil {
		return 0
	}
	return volts * amps / 1e6
}
