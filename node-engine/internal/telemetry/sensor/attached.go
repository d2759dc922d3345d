package sensor

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// findUSB returns the USB devices. Their path is the one that a container is given.
func findUSB(tree sysfs.Tree) []Sensor {
	const bus = "/sys/bus/usb/devices"
	var found []Sensor
	for _, device := range tree.List(bus) {
		dir := path.Join(bus, device)
		// "1-1:1.0" is a part of "1-1"; class 09 is a hub, the roots among them.
		if strings.ContainsRune(device, ':') || tree.Name(path.Join(dir, "bDeviceClass")) == "09" {
			continue
		}
		busnum, errBus := tree.Uint(path.Join(dir, "busnum"))
		devnum, errDev := tree.Uint(path.Join(dir, "devnum"))
		if errBus != nil || errDev != nil {
			continue
		}
		found = append(found, Sensor{SensorInfo: messages.SensorInfo{
			Kind: USB, Path: fmt.Sprintf("/dev/bus/usb/%03d/%03d", busnum, devnum), Name: usbName(tree, dir),
		}})
	}
	return found
}

// usbName returns what a USB device says of itself, else its numbers.
func usbName(tree sysfs.Tree, dir string) string {
	vendor, product := tree.Name(path.Join(dir, "manufacturer")), tree.Name(path.Join(dir, "product"))
	if name := sysfs.Clean(strings.TrimSpace(vendor + " " + product)); name != "" {
		return name
	}
	return tree.Name(path.Join(dir, "idVendor")) + ":" + tree.Name(path.Join(dir, "idProduct"))
}

// findSerial returns the serial ports that something can be plugged into, by the path that survives replugging where there is one.
func findSerial(tree sysfs.Tree) []Sensor {
	const byID = "/dev/serial/by-id"
	stable := map[string]string{} // tty → its name in byID
	for _, id := range tree.List(byID) {
		stable[tree.Target(path.Join(byID, id))] = id
	}
	var found []Sensor
	for _, tty := range tree.List("/dev") {
		if !numbered(tty, "ttyUSB") && !numbered(tty, "ttyACM") && !numbered(tty, "ttyAMA") {
			continue
		}
		info := messages.SensorInfo{Kind: Serial, Path: path.Join("/dev", tty), Name: tty}
		if id, ok := stable[tty]; ok {
			info.Path, info.Name = path.Join(byID, id), sysfs.Clean(id)
		}
		found = append(found, Sensor{SensorInfo: info})
	}
	return found
}

// findVideo returns the cameras and other devices for pictures.
func findVideo(tree sysfs.Tree) []Sensor {
	var found []Sensor
	for _, device := range tree.List("/dev") {
		if !numbered(device, "video") {
			continue
		}
		name := tree.Name(path.Join("/sys/class/video4linux", device, "name"))
		if name == "" {
			name = device
		}
		found = append(found, Sensor{SensorInfo: messages.SensorInfo{Kind: Video, Path: path.Join("/dev", device), Name: name}})
	}
	return found
}

// numbered reports whether name is prefix and a number.
func numbered(name, prefix string) bool {
	number, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return false
	}
	_, err := strconv.ParseUint(number, 10, 16)
	return err == nil
}
