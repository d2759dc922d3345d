// Package sensor finds what is attached to a board and reads what can be read: hwmon chips, thermal zones, 1-wire, industrial I/O, USB
// devices, serial ports and cameras.
//
// Scan says what is there; a Reader gives values. What a board's sensors do to a program is why the Reader is more than a loop: a
// 1-wire thermometer takes 750 ms, a chip behind a bad cable answers EIO, and one whose bus hangs never answers, in a system call
// that nothing can cut short. So the Reader walks the sensors in two lanes, each a goroutine:
//
//	fast lane   every Read waits for it, 100 ms at most; a sensor that takes longer than 20 ms moves to the slow lane
//	slow lane   no Read waits for it; its sensors give the value of their last reading
//
// A lane that hangs in one sensor is left to it and a new walk passes that sensor by, until the reading returns. A value whose
// latest reading went wrong, or hangs, is left out: no value is better than an old one that looks new.
//
// The package decides nothing and reports nothing by itself. It never writes to a device and never opens one in /dev.
package sensor

import (
	"fmt"
	"slices"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// The kinds of sensor, as messages.SensorInfo names them.
const (
	Hwmon   = "hwmon"
	Thermal = "thermal"
	OneWire = "w1"
	IIO     = "iio"
	USB     = "usb"
	Serial  = "serial"
	Video   = "video"
)

// maxSensors bounds what one board reports: its introduction and each telemetry stay far below the 256 KiB of a message.
const maxSensors = 512

// Sensor is one thing attached to a board.
type Sensor struct {
	messages.SensorInfo
	Unit string
	// read gets the value from the kernel; nil for what has none, such as a camera.
	read func(sysfs.Tree) (float64, error)
	slow bool // known to be slow, before it was ever read
}

// Scan returns what is attached to the board, at most 512, each name only once. It reads names, never values.
func Scan(tree sysfs.Tree) []Sensor {
	var all []Sensor
	for _, find := range []func(sysfs.Tree) []Sensor{findThermal, findHwmon, findOneWire, findIIO, findSerial, findVideo, findUSB} {
		all = append(all, find(tree)...)
	}
	all = all[:min(len(all), maxSensors)]
	distinguish(all)
	return all
}

// distinguish numbers the sensors that share a name, in the order in which they were found.
func distinguish(all []Sensor) {
	seen := make(map[string]bool, len(all))
	for i := range all {
		name := all[i].Name
		for n := 2; seen[all[i].Name]; n++ {
			all[i].Name = fmt.Sprintf("%s #%d", name, n)
		}
		seen[all[i].Name] = true
	}
}

// Reading is one value of a sensor.
type Reading struct {
	Kind string
	messages.SensorReading
}

// Hottest returns the temperature of the processor in °C: the hottest of the sensors that name it, else of the thermal zones. Zero
// says that nothing tells.
func Hottest(readings []Reading) float64 {
	var processor, zone float64
	for _, r := range readings {
		if r.Unit != "C" || r.Value < -50 || r.Value > 150 {
			continue
		}
		switch name := strings.ToLower(r.Name); {
		case namesProcessor(r.Kind, name):
			processor = max(processor, r.Value)
		// The PMIC of Jetson boards says 100 °C whatever its temperature.
		case r.Kind == Thermal && !strings.Contains(name, "pmic"):
			zone = max(zone, r.Value)
		}
	}
	if processor != 0 {
		return processor
	}
	return zone
}

// namesProcessor reports whether a sensor of this name, in lower case, measures the processor.
func namesProcessor(kind, name string) bool {
	if kind != Thermal && kind != Hwmon {
		return false
	}
	return slices.ContainsFunc([]string{"cpu", "soc", "x86_pkg", "coretemp", "k10temp", "zenpower"}, func(part string) bool {
		return strings.Contains(name, part)
	})
}

// scaled returns a reading of the number at path, multiplied.
func scaled(path string, factor float64) func(sysfs.Tree) (float64, error) {
	return func(tree sysfs.Tree) (float64, error) {
		v, err := tree.Float(path)
		return v * factor, err
	}
}
