package telemetry

import (
	"fmt"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// core returns counters that grew by these seconds.
func core(name string, user, idle, iowait float64) cpu.TimesStat {
	return cpu.TimesStat{CPU: name, User: user, Idle: idle, Iowait: iowait, Guest: user}
}

func TestCPUMeter(t *testing.T) {
	start := time.Now()
	var m cpuMeter
	for _, step := range []struct {
		name  string
		after time.Duration
		cores []cpu.TimesStat
		want  string
	}{
		{"the first is nothing, whatever was counted since boot", 0, []cpu.TimesStat{core("cpu0", 1e6, 10, 0), core("cpu1", 5, 1e6, 0)}, "0 [0 0]"},
		{"too soon", 100 * time.Millisecond, []cpu.TimesStat{core("cpu0", 1e6+1, 10, 0), core("cpu1", 5, 1e6, 0)}, "0 [0 0]"},
		{"one core busy", 5 * time.Second, []cpu.TimesStat{core("cpu0", 1e6+5, 10, 0), core("cpu1", 5, 1e6+4, 1)}, "50 [100 0]"},
		{"again too soon", 5100 * time.Millisecond, []cpu.TimesStat{core("cpu0", 0, 0, 0), core("cpu1", 0, 0, 0)}, "50 [100 0]"},
		{"waiting counts backwards", 10 * time.Second, []cpu.TimesStat{core("cpu0", 1e6+6, 14, 0), core("cpu1", 7.5, 1e6+6.5, 0)}, "35 [20 50]"},
		{"a core comes", 15 * time.Second, []cpu.TimesStat{core("cpu0", 1e6+6, 19, 0), core("cpu1", 12.5, 1e6+6.5, 0), core("cpu2", 99, 1, 1)}, "50 [0 100 0]"},
		{"a core goes", 20 * time.Second, []cpu.TimesStat{core("cpu1", 12.5, 1e6+11.5, 0)}, "0 [0]"},
		{"nothing counted", 25 * time.Second, []cpu.TimesStat{core("cpu1", 12.5, 1e6+11.5, 0)}, "0 [0]"},
		{"nothing to be read", 30 * time.Second, nil, "0 [0]"},
	} {
		got := m.sample(start.Add(step.after), step.cores)
		if text := fmt.Sprintf("%v %v", got.Percent, got.PerCore); text != step.want {
			t.Errorf("%s: got %s, want %s", step.name, text, step.want)
		}
	}
}

func TestCPUMeterGivesCopies(t *testing.T) {
	var m cpuMeter
	now := time.Now()
	m.sample(now, []cpu.TimesStat{core("cpu0", 0, 0, 0)})
	m.sample(now.Add(time.Second), []cpu.TimesStat{core("cpu0", 1, 0, 0)}).PerCore[0] = -1
	if got := m.sample(now.Add(time.Second), nil); got.PerCore[0] != 100 {
		t.Errorf("got %v, want the 100 percent that nobody else can change", got.PerCore)
	}
}

func TestRate(t *testing.T) {
	now := time.Now()
	var r rate
	for i, step := range []struct {
		after time.Duration
		value uint64
		want  float64
	}{{0, 1 << 60, 0}, {2 * time.Second, 1<<60 + 1000, 500}, {2 * time.Second, 1<<60 + 5000, 0}, {3 * time.Second, 10, 0}, {4 * time.Second, 20, 10}, {5 * time.Second, math.MaxUint64, float64(math.MaxUint64)}} {
		if got := r.perSecond(now.Add(step.after), step.value); got != step.want {
			t.Errorf("%d: got %v, want %v", i, got, step.want)
		}
	}
}

// links returns a made tree with one interface of each kind that boards have.
func links(t *testing.T) sysfs.Tree {
	files := map[string]string{
		"/sys/class/net/bonding_masters": "",
		netClass + "/br0/bridge/x":       "", netClass + "/br0/brif/eth0/x": "", // a host's own bridge
		netClass + "/docker0/bridge/x": "", netClass + "/docker0/brif/veth1/x": "",
		netClass + "/eth0/device/x": "", netClass + "/wlan0/device/x": "",
	}
	// Each with the number of the one that it is bound to.
	for name, bound := range map[string]string{"eth0": "2", "pair0": "40", "eth1": "41", "vlan7": "2", "odd0": "2"} {
		files[netClass+"/"+name+"/ifindex"], files[netClass+"/"+name+"/iflink"] = "2\n", bound+"\n"
		files[netClass+"/"+name+"/uevent"] = "INTERFACE=" + name + "\n"
	}
	files[netClass+"/vlan7/ifindex"], files[netClass+"/vlan7/uevent"] = "9\n", "DEVTYPE=vlan\nINTERFACE=vlan7\n"
	delete(files, netClass+"/odd0/ifindex")
	for i, name := range []string{"lo", "eth0", "wlan0", "br0", "docker0", "veth1", "ppp0", "eth0.7", "skerry0", "tailscale0", "ifb0"} {
		files[path2(name, "rx_bytes")] = fmt.Sprintln(i * 1000)
		files[path2(name, "tx_bytes")] = fmt.Sprintln(i * 10)
	}
	return sysfstest.Make(t, files)
}

// path2 returns the file of a counter.
func path2(name, counter string) string { return netClass + "/" + name + "/statistics/" + counter }

func TestWhichInterfacesCount(t *testing.T) {
	tree := links(t)
	var traffic, addressed []string
	for _, name := range tree.List(netClass) {
		if carriesTraffic(tree, name) {
			traffic = append(traffic, name)
		}
		if hasAddress(tree, name) {
			addressed = append(addressed, name)
		}
	}
	if got, want := strings.Join(traffic, " "), "eth0 eth1 ppp0 wlan0"; got != want {
		t.Errorf("traffic: got %s, want %s", got, want)
	}
	if got, want := strings.Join(addressed, " "), "bonding_masters br0 eth0 eth0.7 eth1 odd0 ppp0 tailscale0 vlan7 wlan0"; got != want {
		t.Errorf("addresses: got %s, want %s", got, want)
	}
}

func TestNetMeter(t *testing.T) {
	tree, now := links(t), time.Now()
	m := netMeter{tree: tree}
	step := func(name string, after time.Duration, want messages.NetworkUse) {
		t.Helper()
		if got := m.sample(now.Add(after)); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	step("first", 0, messages.NetworkUse{})
	sysfstest.Write(t, tree, path2("eth0", "rx_bytes"), "6000")
	sysfstest.Write(t, tree, path2("wlan0", "tx_bytes"), "1020")
	sysfstest.Write(t, tree, path2("veth1", "rx_bytes"), "99999999")
	sysfstest.Write(t, tree, path2("br0", "rx_bytes"), "99999999")
	step("too soon", 100*time.Millisecond, messages.NetworkUse{})
	step("5 s", 5*time.Second, messages.NetworkUse{RxBPS: 8000, TxBPS: 1600})
	sysfstest.Write(t, tree, path2("eth0", "rx_bytes"), "7") // its driver was loaded anew
	sysfstest.Write(t, tree, path2("wlan0", "rx_bytes"), "damaged")
	sysfstest.Write(t, tree, netClass+"/wwan0/device/x", "")
	sysfstest.Write(t, tree, path2("wwan0", "rx_bytes"), "500")
	sysfstest.Write(t, tree, path2("wwan0", "tx_bytes"), "500")
	step("counters began anew", 10*time.Second, messages.NetworkUse{})
	sysfstest.Write(t, tree, path2("eth0", "rx_bytes"), "5007")
	step("and went on", 15*time.Second, messages.NetworkUse{RxBPS: 8000})
	step("a modem is found", 61*time.Second, messages.NetworkUse{})
	sysfstest.Write(t, tree, path2("wwan0", "tx_bytes"), "1500")
	step("and used", 62*time.Second, messages.NetworkUse{TxBPS: 8000})
}

// addr is an address as the system gives them.
type addr string

func (a addr) Network() string { return "ip+net" }
func (a addr) String() string  { return string(a) }

func TestGlobalAddresses(t *testing.T) {
	list := []net.Addr{addr("192.168.1.7/24"), addr("169.254.9.9/16"), addr("127.0.0.1/8"), addr("fe80::1/64"), addr("fd00::7/64"), addr("2001:db8::7/64"), addr("::ffff:10.0.0.1/120"), addr("damaged")}
	if got, want := fmt.Sprint(global(list)), "[192.168.1.7 fd00::7 2001:db8::7 10.0.0.1]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestInstanceMeter(t *testing.T) {
	now := time.Now()
	restarts := func(id messages.InstanceID) int { return len(id) }
	var m instanceMeter
	for _, step := range []struct {
		name  string
		after time.Duration
		usage []driver.Usage
		want  string
	}{
		{"first", 0, []driver.Usage{
			{Instance: "web.0.1", CPU: time.Hour, MemoryBytes: 3 << 19, RxBytes: 1000},
			{Instance: "db.0.1", CPU: time.Hour, MemoryBytes: 1 << 30}}, "[{db.0.1 0 1024 0 0 6} {web.0.1 0 1.5 0 0 7}]"},
		{"two cores busy", 5 * time.Second, []driver.Usage{
			{Instance: "web.0.1", CPU: time.Hour + 10*time.Second, MemoryBytes: 1 << 20, RxBytes: 6000, TxBytes: 500},
			{Instance: "web.0.1", CPU: time.Hour}}, "[{web.0.1 200 1 8000 800 7}]"},
		{"the same answer again", 5 * time.Second, []driver.Usage{{Instance: "web.0.1"}}, "[{web.0.1 200 0 8000 800 7}]"},
		{"began anew", 10 * time.Second, []driver.Usage{{Instance: "web.0.1", CPU: time.Second}}, "[{web.0.1 0 0 0 0 7}]"},
		{"negative", 15 * time.Second, []driver.Usage{{Instance: "web.0.1", CPU: -1}}, "[{web.0.1 0 0 0 0 7}]"},
		{"gone", 20 * time.Second, nil, "[]"},
	} {
		if got := fmt.Sprint(m.sample(now.Add(step.after), step.usage, restarts)); got != step.want {
			t.Errorf("%s: got %s, want %s", step.name, got, step.want)
		}
	}
	if len(m.last) != 0 {
		t.Errorf("%d instances are remembered that are gone", len(m.last))
	}
}

func TestRoundingAndPercent(t *testing.T) {
	for _, tt := range []struct{ part, whole, want float64 }{{1, 3, 33.3}, {0, 0, 0}, {5, 0, 0}, {-1, 5, 0}, {7, 5, 100}} {
		if got := percent(tt.part, tt.whole); got != tt.want {
			t.Errorf("percent(%v, %v): got %v, want %v", tt.part, tt.whole, got, tt.want)
		}
	}
	if got := memoryUse(1<<30, 1<<31); got != (messages.MemoryUse{TotalMB: 1024, FreeMB: 1024}) {
		t.Errorf("more free than there is: got %+v", got)
	}
}
