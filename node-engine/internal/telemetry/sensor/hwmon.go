package sensor

import (
	"fmt"
	"path"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// findThermal returns the kernel's thermal zones.
func findThermal(tree sysfs.Tree) []Sensor {
	const class = "/sys/class/thermal"
	var found []Sensor
	for _, zone := range tree.List(class) {
		file := path.Join(class, zone, "temp")
		if !strings.HasPrefix(zone, "thermal_zone") || !tree.Exists(file) {
			continue
		}
		name := tree.Name(path.Join(class, zone, "type"))
		if name == "" {
			name = zone
		}
		found = append(found, Sensor{
			SensorInfo: messages.SensorInfo{Kind: Thermal, Path: file, Name: name}, Unit: "C", read: scaled(file, 1e-3),
		})
	}
	return found
}

// findHwmon returns the channels of the kernel's hardware monitors.
func findHwmon(tree sysfs.Tree) []Sensor {
	const class = "/sys/class/hwmon"
	var found []Sensor
	for _, chip := range tree.List(class) {
		dir := path.Join(class, chip)
		// The kernel shows every thermal zone as a chip too; once is enough.
		if strings.HasPrefix(tree.Target(path.Join(dir, "device")), "thermal_zone") {
			continue
		}
		found = append(found, findChannels(tree, dir, chip)...)
	}
	return found
}

// findChannels returns the channels of one chip. Old drivers have theirs one folder deeper, in device.
func findChannels(tree sysfs.Tree, dir, chip string) []Sensor {
	for _, dir := range []string{dir, path.Join(dir, "device")} {
		name := tree.Name(path.Join(dir, "name"))
		if name == "" {
			name = chip
		}
		var found []Sensor
		files := tree.List(dir)
		for _, file := range files {
			if s, ok := channel(tree, dir, name, file); ok {
				found = append(found, s)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// channel returns the sensor behind a file such as temp1_input, false where the file is none.
func channel(tree sysfs.Tree, dir, chip, file string) (Sensor, bool) {
	base, attribute, _ := strings.Cut(file, "_")
	unit, factor := hwmonUnit(strings.TrimRight(base, "0123456789"))
	input := attribute == "input" || attribute == "average" && !tree.Exists(path.Join(dir, base+"_input"))
	if unit == "" || !input {
		return Sensor{}, false
	}
	name := tree.Name(path.Join(dir, base+"_label"))
	if name == "" {
		name = base
	}
	file = path.Join(dir, file)
	s := Sensor{SensorInfo: messages.SensorInfo{Kind: Hwmon, Path: file, Name: chip + "/" + name}, Unit: unit, read: scaled(file, factor)}
	if fault := path.Join(dir, base+"_fault"); tree.Exists(fault) {
		s.read = unlessFault(fault, s.read)
	}
	return s, true
}

// hwmonUnit returns the unit of a kind of channel and what the kernel's number is multiplied with to be in it.
func hwmonUnit(kind string) (string, float64) {
	switch kind {
	case "temp":
		return "C", 1e-3
	case "fan":
		return "rpm", 1
	case "in":
		return "V", 1e-3
	case "curr":
		return "A", 1e-3
	case "power":
		return "W", 1e-6
	case "humidity":
		return "%", 1e-3
	}
	return "", 0
}

// unlessFault returns read guarded by the chip's own word on whether the sensor is there.
func unlessFault(fault string, read func(sysfs.Tree) (float64, error)) func(sysfs.Tree) (float64, error) {
	return func(tree sysfs.Tree) (float64, error) {
		if v, err := tree.Float(fault); err == nil && v != 0 {
			return 0, fmt.Errorf("%s: the sensor is broken or not connected", fault)
		}
		return read(tree)
	}
}

// findOneWire returns the devices on 1-wire buses; the thermometers among them have a value.
func findOneWire(tree sysfs.Tree) []Sensor {
	const bus = "/sys/bus/w1/devices"
	var found []Sensor
	for _, id := range tree.List(bus) {
		if strings.HasPrefix(id, "w1_bus_master") {
			continue
		}
		s := Sensor{SensorInfo: messages.SensorInfo{Kind: OneWire, Path: path.Join(bus, id), Name: sysfs.Clean(id)}}
		switch temperature, slave := path.Join(bus, id, "temperature"), path.Join(bus, id, "w1_slave"); {
		case tree.Exists(temperature):
			s.Path, s.Unit, s.slow, s.read = temperature, "C", true, scaled(temperature, 1e-3)
		case tree.Exists(slave):
			s.Path, s.Unit, s.slow, s.read = slave, "C", true, func(tree sysfs.Tree) (float64, error) { return readSlave(tree, slave) }
		}
		found = append(found, s)
	}
	return found
}

// readSlave reads the two lines of w1_slave, of which the first ends in YES where the checksum is right:
//
//	72 01 4b 46 7f ff 0e 10 57 : crc=57 YES
//	72 01 4b 46 7f ff 0e 10 57 t=23125
func readSlave(tree sysfs.Tree, file string) (float64, error) {
	text, err := tree.Text(file)
	if err != nil {
		return 0, err
	}
	check, value, _ := strings.Cut(text, "\n")
	_, value, ok := strings.Cut(value, "t=")
	if !ok || !strings.HasSuffix(strings.TrimSpace(check), "YES") {
		return 0, fmt.Errorf("%s: the checksum is wrong", file)
	}
	var milli int
	if _, err := fmt.Sscanf(value, "%d", &milli); err != nil {
		return 0, fmt.Errorf("%s: %q is no temperature", file, sysfs.Clean(value))
	}
	return float64(milli) / 1000, nil
}
