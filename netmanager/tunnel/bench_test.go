package tunnel

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"

	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tun"
)

// runBare is the library as its own program has it.
func runBare(ctx context.Context, dev tun.Device, uapi string) error {
	d := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	if err := d.IpcSet(uapi); err != nil {
		return err
	}
	if err := d.Up(); err != nil {
		return err
	}
	go func() { // answers that it is there
		_ = json.NewDecoder(os.Stdin).Decode(new(order))
		_ = json.NewEncoder(os.Stdout).Encode(report{})
	}()
	<-ctx.Done()
	return nil
}

// BenchmarkAgainstBare compares TCP throughput and memory with the library's own bind and defaults, turn by turn in one run.
func BenchmarkAgainstBare(b *testing.B) {
	const turns, turn = 5, time.Second
	var hosts [2][2]*nettest.Host // kind, end
	var nodes [2][2]*node
	keys := []Key{newKey(b), newKey(b)}
	for kind := range hosts {
		for i := range 2 {
			hosts[kind][i] = nettest.NewHost(b, fmt.Sprintf("%d%d", kind, i))
		}
		nettest.Cable(b,
			nettest.End{Host: hosts[kind][0], Interface: "eth0", Addresses: []string{"192.0.2.1/24"}},
			nettest.End{Host: hosts[kind][1], Interface: "eth0", Addresses: []string{"192.0.2.2/24"}})
		for i := range 2 {
			cfg := nodeConfig{Name: fmt.Sprint(i), Key: keys[i], Port: nodePort, Address: overlay(i + 1)}
			if kind == 1 {
				public := keys[1-i].Public()
				cfg.Bare = fmt.Sprintf("private_key=%s\nlisten_port=7000\npublic_key=%s\nendpoint=192.0.2.%d:7000\nallowed_ip=10.160.0.%d/32\n",
					hex.EncodeToString(keys[i][:]), hex.EncodeToString(public[:]), 2-i, 2-i)
			}
			nodes[kind][i] = startNode(b, hosts[kind][i], cfg)
		}
	}
	nodes[0][0].set(nodes[0][1].peer(endpoint("192.0.2.2:7000")))
	nodes[0][1].set(nodes[0][0].peer(endpoint("192.0.2.1:7000")))
	var streams [2]net.Conn
	for kind := range hosts {
		streams[kind] = sink(b, hosts[kind][0], hosts[kind][1])
	}
	var moved [2]float64
	for b.Loop() {
		var rates [2][]float64
		for range turns {
			for kind, c := range streams {
				rate := push(b, c, turn)
				rates[kind] = append(rates[kind], rate)
				moved[kind] += rate * turn.Seconds() / 8 * 1e9
			}
		}
		for _, r := range rates {
			slices.Sort(r)
		}
		ours, bare := rates[0][turns/2], rates[1][turns/2]
		b.ReportMetric(ours, "ours-Gbit/s")
		b.ReportMetric(bare, "bare-Gbit/s")
		b.ReportMetric(ours/bare, "ratio")
	}
	for kind, name := range []string{"ours", "bare"} {
		cpu, _ := used(b, nodes[kind][0])
		more, megabytes := used(b, nodes[kind][1])
		b.ReportMetric((cpu+more).Seconds()/(moved[kind]/1e9), name+"-cpu-s/GB")
		b.ReportMetric(megabytes, name+"-MB")
	}
	b.ReportMetric(0, "ns/op")
}

// sink opens a stream whose far end throws away what comes.
func sink(b *testing.B, from, to *nettest.Host) net.Conn {
	b.Helper()
	l := to.Listen("tcp", inner)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	c := dialEcho(b, from, inner)
	_ = c.SetDeadline(time.Time{})
	return c
}

// push writes for a while and returns Gbit/s.
func push(b *testing.B, c net.Conn, d time.Duration) float64 {
	b.Helper()
	chunk := make([]byte, 1<<18)
	began, n := time.Now(), 0
	for time.Since(began) < d {
		m, err := c.Write(chunk)
		if err != nil {
			b.Fatal(err)
		}
		n += m
	}
	return float64(n) * 8 / time.Since(began).Seconds() / 1e9
}

// used ends a node and returns the processor time and the most memory, in MB, that it took.
func used(b *testing.B, n *node) (cpu time.Duration, megabytes float64) {
	b.Helper()
	n.end(syscall.SIGTERM)
	state := n.cmd.ProcessState
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		b.Fatal("no usage")
	}
	return state.UserTime() + state.SystemTime(), float64(usage.Maxrss) / 1024
}
