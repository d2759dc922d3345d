package gpu

import (
	"path"
	"strconv"
	"strings"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

// The PCI numbers of those who make processors that can compute.
const (
	amdVendor    = "0x1002"
	intelVendor  = "0x8086"
	nvidiaVendor = "0x10de"
)

const mib = 1 << 20

// card is a graphics card as the kernel's own drivers show it.
type card struct {
	tree     sysfs.Tree
	describe messages.GPUInfo
	dir      string // of the device
	hwmon    string // "" where it has none
	idle     string // Intel's counter of milliseconds asleep, "" where it has none
	asleep   counter
}

// counter is the last reading of a counter.
type counter struct {
	value uint64
	at    time.Time
}

// findCards returns the cards of the kernel's drivers; those of NVIDIA only where its library has not named them already.
func findCards(tree sysfs.Tree, withoutNVIDIA bool) []device {
	const class = "/sys/class/drm"
	var found []device
	for _, name := range tree.List(class) {
		number, ok := strings.CutPrefix(name, "card")
		if _, err := strconv.Atoi(number); !ok || err != nil {
			continue // card0-HDMI-A-1 is a plug, renderD128 the same card again
		}
		dir := path.Join(class, name, "device")
		vendor := vendorName(tree.Name(dir + "/vendor"))
		if vendor == "" || vendor == "NVIDIA" && withoutNVIDIA {
			continue
		}
		found = append(found, newCard(tree, path.Join(class, name), vendor))
	}
	return found
}

// vendorName returns the name behind a PCI number, "" for who is not counted.
func vendorName(number string) string {
	switch number {
	case amdVendor:
		return "AMD"
	case intelVendor:
		return "Intel"
	case nvidiaVendor:
		return "NVIDIA"
	}
	return ""
}

// newCard looks up once what does not change.
func newCard(tree sysfs.Tree, node, vendor string) *card {
	c := &card{tree: tree, dir: path.Join(node, "device")}
	c.describe = messages.GPUInfo{Vendor: vendor, Model: tree.Name(c.dir + "/product_name"), Driver: tree.Target(c.dir + "/driver")}
	if c.describe.Model == "" {
		c.describe.Model = vendor + " " + strings.TrimPrefix(tree.Name(c.dir+"/device"), "0x")
	}
	if total, err := tree.Uint(c.dir + "/mem_info_vram_total"); err == nil {
		c.describe.MemoryMB = int(min(total/mib, 1<<30))
	}
	if chips := tree.List(c.dir + "/hwmon"); len(chips) > 0 {
		c.hwmon = path.Join(c.dir, "hwmon", chips[0])
	}
	for _, file := range []string{"/gt/gt0/rc6_residency_ms", "/power/rc6_residency_ms"} {
		if c.idle == "" && tree.Exists(node+file) {
			c.idle = node + file
		}
	}
	return c
}

// info implements device.
func (c *card) info() messages.GPUInfo { return c.describe }

// use implements device.
func (c *card) use() (messages.GPUUse, bool) {
	var use messages.GPUUse
	var any bool
	set := func(dst *float64, value float64, ok bool) {
		if ok {
			*dst, any = value, true
		}
	}
	busy, err := c.tree.Float(c.dir + "/gpu_busy_percent")
	set(&use.Percent, min(max(busy, 0), 100), err == nil)
	if err != nil && c.idle != "" {
		awake, ok := c.awake(time.Now())
		set(&use.Percent, awake, ok)
	}
	if used, err := c.tree.Uint(c.dir + "/mem_info_vram_used"); err == nil {
		use.MemoryUsedMB, any = int64(used/mib), true
	}
	if c.hwmon != "" {
		milli, err := c.tree.Float(c.hwmon + "/temp1_input")
		set(&use.Temperature, milli/1e3, err == nil)
		micro, err := firstOf(c.tree, c.hwmon+"/power1_average", c.hwmon+"/power1_input")
		set(&use.PowerW, micro/1e6, err == nil)
	}
	return use, any
}

// awake returns the percentage of the time since the last call in which an Intel processor was not asleep. Its sysfs has no other
// figure of use; this one is near it, as the processor sleeps as soon as it has nothing to do. False says that it can't be told yet.
func (c *card) awake(now time.Time) (float64, bool) {
	ms, err := c.tree.Uint(c.idle)
	last := c.asleep
	if err != nil {
		c.asleep = counter{}
		return 0, false
	}
	c.asleep = counter{value: ms, at: now}
	elapsed := now.Sub(last.at)
	if last.at.IsZero() || elapsed <= 0 || ms < last.value {
		return 0, false
	}
	asleep := time.Duration(min(ms-last.value, 1<<40)) * time.Millisecond
	return min(max(100*(1-asleep.Seconds()/elapsed.Seconds()), 0), 100), true
}

// firstOf returns the number in the first of the files that has one.
func firstOf(tree sysfs.Tree, files ...string) (float64, error) {
	var value float64
	var err error
	for _, f := range files {
		if value, err = tree.Float(f); err == nil {
			return value, nil
		}
	}
	return 0, err
}
