package sensor

import (
	"path"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// findIIO returns the channels of the industrial I/O devices.
func findIIO(tree sysfs.Tree) []Sensor {
	const bus = "/sys/bus/iio/devices"
	var found []Sensor
	for _, device := range tree.List(bus) {
		dir := path.Join(bus, device)
		if !strings.HasPrefix(device, "iio:device") {
			continue // a trigger
		}
		name := tree.Name(path.Join(dir, "name"))
		if name == "" {
			name = device
		}
		for _, file := range tree.List(dir) {
			if s, ok := iioChannel(tree, dir, name, file); ok {
				found = append(found, s)
			}
		}
	}
	return found
}

// iioChannel returns the sensor behind a file such as in_voltage0_raw or in_temp_input, false where the file is none.
func iioChannel(tree sysfs.Tree, dir, device, file string) (Sensor, bool) {
	base, processed := strings.CutSuffix(file, "_input")
	if !processed {
		var raw bool
		if base, raw = strings.CutSuffix(file, "_raw"); !raw || tree.Exists(path.Join(dir, base+"_input")) {
			return Sensor{}, false
		}
	}
	channel, in := strings.CutPrefix(base, "in_")
	if !in || channel == "" {
		return Sensor{}, false
	}
	kind := channel[:len(channel)-len(strings.TrimLeft(channel, "abcdefghijklmnopqrstuvwxyz"))]
	info := messages.SensorInfo{Kind: IIO, Path: path.Join(dir, file), Name: device + "/" + sysfs.Clean(channel)}
	unit, factor := iioUnit(kind)
	if processed {
		return Sensor{SensorInfo: info, Unit: unit, read: scaled(info.Path, factor)}, true
	}
	scale := shared(tree, dir, base, "_scale")
	if scale == "" {
		unit, factor = "", 1 // a count of something
	}
	return Sensor{SensorInfo: info, Unit: unit, read: raw(info.Path, scale, shared(tree, dir, base, "_offset"), factor)}, true
}

// shared returns the file with a channel's scale or offset: its own, or the one that it shares with the others of its kind
// (in_accel_x_scale, in_accel_scale; in_voltage3_scale, in_voltage_scale), "" where there is none.
func shared(tree sysfs.Tree, dir, base, attribute string) string {
	candidates := []string{base}
	if i := strings.LastIndexByte(base, '_'); i > len("in_") {
		candidates = append(candidates, base[:i])
	}
	candidates = append(candidates, strings.TrimRight(candidates[len(candidates)-1], "0123456789"))
	for _, c := range candidates {
		if file := path.Join(dir, c+attribute); tree.Exists(file) {
			return file
		}
	}
	return ""
}

// raw returns the reading of a channel by the kernel's formula: (raw + offset) * scale. Scale and offset are read with each value, as
// they change with a device's settings.
func raw(file, scale, offset string, factor float64) func(sysfs.Tree) (float64, error) {
	return func(tree sysfs.Tree) (float64, error) {
		value, err := tree.Float(file)
		if err != nil {
			return 0, err
		}
		if offset != "" {
			o, err := tree.Float(offset)
			if err != nil {
				return 0, err
			}
			value += o
		}
		if scale != "" {
			s, err := tree.Float(scale)
			if err != nil {
				return 0, err
			}
			value *= s
		}
		return value * factor, nil
	}
}

// iioUnit returns the unit of a kind of channel and what the kernel's scaled number is multiplied with to be in it.
func iioUnit(kind string) (string, float64) {
	switch kind {
	case "temp":
		return "C", 1e-3
	case "voltage", "altvoltage":
		return "V", 1e-3
	case "current", "altcurrent":
		return "A", 1e-3
	case "power":
		return "W", 1e-3
	case "pressure":
		return "Pa", 1e3
	case "humidityrelative":
		return "%", 1e-3
	}
	return iioPlainUnit(kind), 1
}

// iioPlainUnit returns the unit of a kind of channel whose scaled number is in it already, "" for what has none.
func iioPlainUnit(kind string) string {
	switch kind {
	case "illuminance":
		return "lx"
	case "accel":
		return "m/s2"
	case "anglvel":
		return "rad/s"
	case "magn":
		return "G"
	case "angl", "incli", "rot":
		return "rad"
	case "concentration":
		return "%"
	case "distance":
		return "m"
	case "resistance":
		return "ohm"
	case "capacitance":
		return "nF"
	case "electricalconductivity":
		return "S/m"
	case "energy":
		return "J"
	case "velocity":
		return "m/s"
	}
	return ""
}
