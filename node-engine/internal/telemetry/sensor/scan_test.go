package sensor

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// board returns a made tree with at least one sensor of each kind. There is no real one on the machines that run the tests.
func board(t testing.TB) sysfs.Tree {
	const (
		hwmon = "/sys/class/hwmon/"
		iio   = "/sys/bus/iio/devices/iio:device0/"
		usb   = "/sys/bus/usb/devices/"
	)
	tree := sysfstest.Make(t, map[string]string{
		"/sys/class/thermal/thermal_zone0/type":    "cpu-thermal\n",
		"/sys/class/thermal/thermal_zone0/temp":    "48312\n",
		"/sys/class/thermal/thermal_zone1/type":    "PMIC-Die\n",
		"/sys/class/thermal/thermal_zone1/temp":    "100000\n",
		"/sys/class/thermal/cooling_device0/type":  "pwm-fan\n",
		hwmon + "hwmon0/name":                      "cpu_thermal\n", // the zone's double
		hwmon + "hwmon0/temp1_input":               "48312\n",
		hwmon + "hwmon1/name":                      "nct6775\n",
		hwmon + "hwmon1/fan1_input":                "1260\n",
		hwmon + "hwmon1/fan2_input":                "0\n",
		hwmon + "hwmon1/fan2_fault":                "1\n",
		hwmon + "hwmon1/in0_input":                 "1104\n",
		hwmon + "hwmon1/in0_label":                 "Vcore\n",
		hwmon + "hwmon1/in0_max":                   "1744\n",
		hwmon + "hwmon1/pwm1":                      "128\n",
		hwmon + "hwmon2/name":                      "ina3221\n",
		hwmon + "hwmon2/curr1_input":               "440\n",
		hwmon + "hwmon2/power1_average":            "2300000\n",
		hwmon + "hwmon3/name":                      "sht3x\n",
		hwmon + "hwmon3/temp1_input":               "-5250\n",
		hwmon + "hwmon3/humidity1_input":           "61000\n",
		hwmon + "hwmon4/device/name":               "w83781d\n", // an old driver's place
		hwmon + "hwmon4/device/temp1_input":        "30000\n",
		"/sys/bus/w1/devices/28-01191ed2/w1_slave": "72 01 4b 46 7f ff 0e 10 57 : crc=57 YES\n72 01 4b 46 7f ff 0e 10 57 t=23125\n",
		"/sys/bus/w1/devices/28-01191ed3/w1_slave": "72 01 4b 46 7f ff 0e 10 57 : crc=58 NO\n72 01 4b 46 7f ff 0e 10 57 t=23125\n",
		"/sys/bus/w1/devices/28-0a0a/temperature":  "-1062\n",
		"/sys/bus/w1/devices/29-00/rw":             "",
		"/sys/bus/w1/devices/w1_bus_master1/x":     "",
		iio + "name":                               "bme280\n",
		iio + "in_pressure_input":                  "98.712500000\n",
		iio + "in_temp_raw":                        "2950\n",
		iio + "in_temp_offset":                     "50\n",
		iio + "in_temp_scale":                      "8.0\n",
		iio + "in_voltage3_raw":                    "1000\n",
		iio + "in_voltage4_raw":                    "1000\n",
		iio + "in_voltage4_scale":                  "2\n",
		iio + "in_voltage_scale":                   "0.5\n",
		iio + "in_accel_x_raw":                     "-100\n",
		iio + "in_accel_scale":                     "0.01\n",
		iio + "in_proximity_raw":                   "77\n",
		iio + "in_humidityrelative_input":          "45500\n",
		iio + "in_illuminance_input":               "320\n",
		iio + "out_voltage0_raw":                   "1\n",
		"/sys/bus/iio/devices/trigger0/name":       "t\n",
		usb + "usb1/bDeviceClass":                  "09\n",
		usb + "usb1/busnum":                        "1\n",
		usb + "usb1/devnum":                        "1\n",
		usb + "1-1/bDeviceClass":                   "00\n",
		usb + "1-1/busnum":                         "1\n",
		usb + "1-1/devnum":                         "4\n",
		usb + "1-1/manufacturer":                   "Google Inc.\n",
		usb + "1-1/product":                        "Edge TPU\n",
		usb + "1-1:1.0/busnum":                     "1\n",
		usb + "1-2/bDeviceClass":                   "ff\n",
		usb + "1-2/busnum":                         "1\n",
		usb + "1-2/devnum":                         "12\n",
		usb + "1-2/idVendor":                       "10c4\n",
		usb + "1-2/idProduct":                      "ea60\n",
		"/dev/ttyUSB0":                             "",
		"/dev/ttyACM1":                             "",
		"/dev/ttyAMA0":                             "",
		"/dev/ttyUSBx":                             "",
		"/dev/tty1":                                "",
		"/dev/video0":                              "",
		"/dev/video10":                             "",
		"/sys/class/video4linux/video0/name":       "UVC Camera\n",
	})
	sysfstest.Link(t, tree, hwmon+"hwmon0/device", "../../thermal/thermal_zone0")
	sysfstest.Link(t, tree, "/dev/serial/by-id/usb-Silicon_Labs_CP2102-if00", "../../ttyUSB0")
	return tree
}

func TestScanAndReadEveryKind(t *testing.T) {
	tree := board(t)
	var lines []string
	for _, s := range Scan(tree) {
		line := s.Kind + " " + s.Path + " " + s.Name
		if s.read != nil {
			v, err := s.read(tree)
			line += fmt.Sprintf(" = %.4f %s", v, s.Unit)
			if err != nil {
				line, _, _ = strings.Cut(line, " =")
				line += " = error"
			}
		}
		lines = append(lines, line)
	}
	want := []string{
		"thermal /sys/class/thermal/thermal_zone0/temp cpu-thermal = 48.3120 C",
		"thermal /sys/class/thermal/thermal_zone1/temp PMIC-Die = 100.0000 C",
		"hwmon /sys/class/hwmon/hwmon1/fan1_input nct6775/fan1 = 1260.0000 rpm",
		"hwmon /sys/class/hwmon/hwmon1/fan2_input nct6775/fan2 = error",
		"hwmon /sys/class/hwmon/hwmon1/in0_input nct6775/Vcore = 1.1040 V",
		"hwmon /sys/class/hwmon/hwmon2/curr1_input ina3221/curr1 = 0.4400 A",
		"hwmon /sys/class/hwmon/hwmon2/power1_average ina3221/power1 = 2.3000 W",
		"hwmon /sys/class/hwmon/hwmon3/humidity1_input sht3x/humidity1 = 61.0000 %",
		"hwmon /sys/class/hwmon/hwmon3/temp1_input sht3x/temp1 = -5.2500 C",
		"hwmon /sys/class/hwmon/hwmon4/device/temp1_input w83781d/temp1 = 30.0000 C",
		"w1 /sys/bus/w1/devices/28-01191ed2/w1_slave 28-01191ed2 = 23.1250 C",
		"w1 /sys/bus/w1/devices/28-01191ed3/w1_slave 28-01191ed3 = error",
		"w1 /sys/bus/w1/devices/28-0a0a/temperature 28-0a0a = -1.0620 C",
		"w1 /sys/bus/w1/devices/29-00 29-00",
		"iio /sys/bus/iio/devices/iio:device0/in_accel_x_raw bme280/accel_x = -1.0000 m/s2",
		"iio /sys/bus/iio/devices/iio:device0/in_humidityrelative_input bme280/humidityrelative = 45.5000 %",
		"iio /sys/bus/iio/devices/iio:device0/in_illuminance_input bme280/illuminance = 320.0000 lx",
		"iio /sys/bus/iio/devices/iio:device0/in_pressure_input bme280/pressure = 98712.5000 Pa",
		"iio /sys/bus/iio/devices/iio:device0/in_proximity_raw bme280/proximity = 77.0000 ",
		"iio /sys/bus/iio/devices/iio:device0/in_temp_raw bme280/temp = 24.0000 C",
		"iio /sys/bus/iio/devices/iio:device0/in_voltage3_raw bme280/voltage3 = 0.5000 V",
		"iio /sys/bus/iio/devices/iio:device0/in_voltage4_raw bme280/voltage4 = 2.0000 V",
		"serial /dev/ttyACM1 ttyACM1",
		"serial /dev/ttyAMA0 ttyAMA0",
		"serial /dev/serial/by-id/usb-Silicon_Labs_CP2102-if00 usb-Silicon_Labs_CP2102-if00",
		"video /dev/video0 UVC Camera",
		"video /dev/video10 video10",
		"usb /dev/bus/usb/001/004 Google Inc. Edge TPU",
		"usb /dev/bus/usb/001/012 10c4:ea60",
	}
	if got, want := strings.Join(lines, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestScanOfNothing(t *testing.T) {
	if got := Scan(sysfstest.Make(t, nil)); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

func TestScanIsBoundedAndNamesAreDistinct(t *testing.T) {
	files := map[string]string{}
	for i := range 600 {
		files[fmt.Sprintf("/sys/class/thermal/thermal_zone%d/type", i)] = "acpitz\n"
		files[fmt.Sprintf("/sys/class/thermal/thermal_zone%d/temp", i)] = "20000\n"
	}
	all := Scan(sysfstest.Make(t, files))
	if len(all) != 512 {
		t.Errorf("got %d sensors, want 512", len(all))
	}
	names := map[string]bool{}
	for _, s := range all {
		names[s.Name] = true
	}
	if len(names) != len(all) || !names["acpitz"] || !names["acpitz #2"] {
		t.Errorf("got %d names for %d sensors", len(names), len(all))
	}
}

func TestReadingsOfDamagedFiles(t *testing.T) {
	for _, text := range []string{"", "\n", "NaN\n", "Inf\n", "1e999\n", "abc\n", "t=\n", "YES\nt=x", "YES", strings.Repeat("9", 9000)} {
		tree := sysfstest.Make(t, map[string]string{
			"/sys/class/thermal/thermal_zone0/temp":          text,
			"/sys/bus/w1/devices/28-1/w1_slave":              text,
			"/sys/bus/iio/devices/iio:device0/in_temp_raw":   "1",
			"/sys/bus/iio/devices/iio:device0/in_temp_scale": text,
		})
		all := Scan(tree)
		if len(all) != 3 {
			t.Fatalf("%q: found %d sensors, want 3", text, len(all))
		}
		for _, s := range all {
			if v, err := s.read(tree); err == nil || math.IsNaN(v) {
				t.Errorf("%s of %q: got %v, want an error", s.Kind, text, v)
			}
		}
	}
}

func TestHottest(t *testing.T) {
	reading := func(kind, name, unit string, value float64) Reading {
		r := Reading{Kind: kind}
		r.Name, r.Unit, r.Value = name, unit, value
		return r
	}
	zones := []Reading{reading(Thermal, "acpitz", "C", 40), reading(Thermal, "iwlwifi_1", "C", 52), reading(Thermal, "PMIC-Die", "C", 100)}
	for name, tt := range map[string]struct {
		in   []Reading
		want float64
	}{
		"nothing":             {nil, 0},
		"zones alone":         {zones, 52},
		"zone of a processor": {append(zones, reading(Thermal, "cpu-thermal", "C", 45)), 45},
		"hottest core":        {append(zones, reading(Hwmon, "coretemp/Core 0", "C", 61), reading(Hwmon, "coretemp/Core 1", "C", 63)), 63},
		"implausible":         {[]Reading{reading(Thermal, "CPU-therm", "C", -256), reading(Thermal, "soc", "C", 6553)}, 0},
		"not a temperature":   {[]Reading{reading(Hwmon, "nct/CPU fan", "rpm", 90)}, 0},
		"outdoors":            {[]Reading{reading(OneWire, "28-1", "C", 70), reading(Hwmon, "nvme/Composite", "C", 70)}, 0},
	} {
		if got := Hottest(tt.in); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
}
