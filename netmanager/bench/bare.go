//go:build linux

package main

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"

	"skerry.internal/netmanager/labtest"
	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tun"
	"skerry.internal/netmanager/tunnel"
)

// bareEnv is set for the processes that are nothing but wireguard-go; its value is the device's configuration.
const bareEnv = "SKERRY_BENCH_BARE"

// bareChild is wireguard-go as its own program has it, if this is such a process; it does not return then.
func bareChild() {
	uapi := os.Getenv(bareEnv)
	if uapi == "" {
		return
	}
	dev, err := tun.Open("wg0", 1420)
	if err == nil {
		d := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
		if err = d.IpcSet(uapi); err == nil {
			err = d.Up()
		}
		if err == nil {
			fmt.Println("up")
			<-d.Wait()
		}
	}
	fmt.Fprintln(os.Stderr, "bare:", err)
	os.Exit(1)
}

// barePath is two containers routed through bare wireguard-go on both hosts.
func barePath(b *tb) *path {
	one, two := hosts(b, "wg")
	client, server := container(b, one, "wgc", "203.0.113"), container(b, two, "wgs", "192.0.2")
	var keys [2]tunnel.Key
	for i := range keys {
		var err error
		if keys[i], err = tunnel.GenerateKey(); err != nil {
			b.Fatal(err)
		}
	}
	var pids []int
	for i, end := range []struct {
		h             *nettest.Host
		other, subnet string
	}{{one, "198.51.100.2", "192.0.2.0/24"}, {two, "198.51.100.1", "203.0.113.0/24"}} {
		public := keys[1-i].Public()
		uapi := fmt.Sprintf("private_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s:51820\nallowed_ip=%s\n",
			hex.EncodeToString(keys[i][:]), hex.EncodeToString(public[:]), end.other, end.subnet)
		pids = append(pids, startBare(b, end.h, uapi))
		end.h.Run("ip", "link", "set", "wg0", "up")
		end.h.Run("ip", "route", "add", end.subnet, "dev", "wg0")
	}
	p := newPath("bare wireguard-go", "tailscale/wireguard-go, routed, no service address", client, server, netip.MustParseAddr("192.0.2.2"))
	p.usage = func() labtest.Usage {
		var sum labtest.Usage
		for _, pid := range pids {
			u := usageOf(pid)
			sum.CPU += u.CPU
			sum.MaxMB = max(sum.MaxMB, u.MaxMB)
		}
		return sum
	}
	return p
}

func startBare(b *tb, h *nettest.Host, uapi string) int {
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), bareEnv+"="+uapi)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 3)); err != nil {
		b.Fatalf("bare wireguard-go: %v", err)
	}
	return cmd.Process.Pid
}

// usageOf reads what a process has used.
func usageOf(pid int) labtest.Usage {
	var u labtest.Usage
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		if _, rest, ok := strings.Cut(string(stat), ") "); ok {
			fields := strings.Fields(rest)
			user, _ := strconv.ParseFloat(fields[11], 64)
			system, _ := strconv.ParseFloat(fields[12], 64)
			u.CPU = (user + system) * (10 * time.Millisecond).Seconds() // USER_HZ is 100 everywhere
		}
	}
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		for line := range strings.Lines(string(status)) {
			if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, _ := strconv.ParseFloat(strings.Fields(kb)[0], 64)
				u.MaxMB = n / 1024
			}
		}
	}
	return u
}
