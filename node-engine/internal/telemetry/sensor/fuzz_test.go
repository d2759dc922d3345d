package sensor

import (
	"math"
	"strings"
	"testing"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// FuzzBoard holds for a board whose kernel and drivers say anything: what a file holds is a number or an error, names are names, and all of it can be
// sent. value and factor stand in the files with numbers, text in those with words.
func FuzzBoard(f *testing.F) {
	const zone, hwmon, iio = "/sys/class/thermal/thermal_zone0/", "/sys/class/hwmon/hwmon1/", "/sys/bus/iio/devices/iio:device0/"
	tree := sysfstest.Make(f, nil) // each worker is a process
	f.Fuzz(func(t *testing.T, value, factor, text string) {
		numbers := []string{zone + "temp", hwmon + "temp1_input", iio + "in_pressure_input", iio + "in_temp_raw"}
		for _, file := range numbers {
			sysfstest.Write(t, tree, file, value)
		}
		for _, file := range []string{hwmon + "temp1_fault", iio + "in_temp_scale", iio + "in_temp_offset"} {
			sysfstest.Write(t, tree, file, factor)
		}
		for _, file := range []string{zone + "type", hwmon + "name", hwmon + "temp1_label", iio + "name", "/sys/bus/w1/devices/28-1/w1_slave"} {
			sysfstest.Write(t, tree, file, text)
		}
		for _, file := range numbers {
			if v, err := tree.Float(file); err == nil && (math.IsNaN(v) || math.IsInf(v, 0)) {
				t.Errorf("%q is taken for %v", value, v)
			}
		}
		var told messages.Telemetry
		all := Scan(tree)
		for _, s := range all {
			chip, _, _ := strings.Cut(s.Name, "/") // a channel of it behind
			if chip, _, _ = strings.Cut(chip, " #"); sysfs.Clean(chip) != strings.TrimSpace(chip) {
				t.Errorf("%q is no name", s.Name)
			}
			if v, err := s.read(tree); err == nil {
				told.Sensors = append(told.Sensors, messages.SensorReading{Name: s.Name, Value: v, Unit: s.Unit})
			}
		}
		messages.Encode(told) // panics of what cannot be sent
		if len(all) != 5 {
			t.Errorf("%d sensors, want 5", len(all))
		}
	})
}
