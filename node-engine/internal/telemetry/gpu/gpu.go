// Package gpu finds a board's graphics processors and measures their use: NVIDIA's through NVIDIA's library, those of Jetson boards,
// of AMD and of Intel through sysfs.
//
// Decided: NVIDIA's library (cgo) exists in builds for linux with cgo on amd64 and arm64 only, and is loaded only where the kernel
// shows an NVIDIA card. Jetson boards have no usable one and are read by sysfs alone. The graphics of servers and virtual
// machines (ASPEED, Matrox, virtio) are not counted: nothing can compute on them.
//
// What is read may block in a driver: callers bound it. A Set is for one goroutine at a time.
package gpu

import (
	"log/slog"
	"path"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// maxDevices is how many processors of one board are looked at; messages.NodeInfo takes no more.
const maxDevices = 64

// device is one graphics processor.
type device interface {
	info() messages.GPUInfo
	// use returns what could be measured, false where nothing could.
	use() (messages.GPUUse, bool)
}

// library is the seam to NVIDIA's library, opened.
type library interface {
	devices() []device
	close()
}

// Set is the graphics processors of a board, in an order that stays equal from one Open to the next.
type Set struct {
	devices []device
	nvidia  library // nil where it is not in use
}

// Open finds the graphics processors of the board whose files tree shows.
func Open(tree sysfs.Tree, log *slog.Logger) *Set {
	return open(tree, func() library { return openNVIDIA(log) })
}

// open is Open with NVIDIA's library to be opened by load, which gives nil where there is none.
func open(tree sysfs.Tree, load func() library) *Set {
	s := &Set{}
	if jetson := findJetson(tree); len(jetson) > 0 {
		s.devices = jetson
		return s
	}
	if hasNVIDIA(tree) {
		s.nvidia = load()
	}
	if s.nvidia != nil {
		s.devices = s.nvidia.devices()
	}
	s.devices = append(s.devices, findCards(tree, s.nvidia != nil)...)
	s.devices = s.devices[:min(len(s.devices), maxDevices)]
	return s
}

// Info describes the processors.
func (s *Set) Info() []messages.GPUInfo {
	var all []messages.GPUInfo
	for _, d := range s.devices {
		all = append(all, d.info())
	}
	return all
}

// Use measures the processors. One that gives nothing is left out; Index says which each is, in the order of Info.
func (s *Set) Use() []messages.GPUUse {
	var all []messages.GPUUse
	for i, d := range s.devices {
		if use, ok := d.use(); ok {
			use.Index = i
			all = append(all, use)
		}
	}
	return all
}

// Len returns how many processors there are.
func (s *Set) Len() int {
	return len(s.devices)
}

// Close gives NVIDIA's library back. The Set is of no use afterwards.
func (s *Set) Close() {
	if s.nvidia != nil {
		s.nvidia.close()
	}
	s.devices, s.nvidia = nil, nil
}

// hasNVIDIA reports whether the kernel shows an NVIDIA card, with a driver or without.
func hasNVIDIA(tree sysfs.Tree) bool {
	if tree.Exists("/proc/driver/nvidia/version") || tree.Exists("/dev/nvidiactl") || tree.Exists("/dev/dxg") {
		return true
	}
	const bus = "/sys/bus/pci/devices"
	for _, d := range tree.List(bus) {
		dir := path.Join(bus, d)
		if tree.Name(dir+"/vendor") == nvidiaVendor && strings.HasPrefix(tree.Name(dir+"/class"), "0x03") {
			return true
		}
	}
	return false
}
