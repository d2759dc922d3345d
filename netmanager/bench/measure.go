//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.internal/netmanager/labtest"
)

// What is measured of a path.
const (
	stream = "Gbit/s, one TCP stream"
	cpu    = "CPU s per GB of what carries it"
	busy   = "CPU s per GB, whole machine"
	trip   = "round trip p50, µs"
	trip99 = "p99, µs"
	small  = "kpps, 64 bytes"
	large  = "kpps, 1,000 bytes"
	memory = "peak memory, MB"
)

var columns = []string{stream, busy, cpu, trip, trip99, small, large, memory}

// measure adds one sample of everything.
func (p *path) measure(b *tb, length time.Duration) {
	before, busyBefore := p.used(), busySeconds(b)
	got := p.iperf(b, length)
	p.add(stream, got.End.Received.Bits/1e9)
	if gb := got.End.Received.Bytes / 1e9; gb > 0 {
		p.add(busy, (busySeconds(b)-busyBefore)/gb)
		if p.usage != nil {
			p.add(cpu, (p.used().CPU-before.CPU)/gb)
		}
	}
	times := p.trips(b, 3000)
	p.add(trip, float64(times[len(times)/2].Nanoseconds())/1e3)
	p.add(trip99, float64(times[len(times)*99/100].Nanoseconds())/1e3)
	for what, size := range map[string]int{small: 64, large: 1000} {
		sum := p.iperf(b, length, "-u", "-b", "0", "-l", strconv.Itoa(size)).End.Sum
		p.add(what, sum.Packets*(1-sum.Lost/100)/sum.Seconds/1e3)
	}
	if p.usage != nil {
		p.add(memory, p.used().MaxMB)
	}
}

func (p *path) used() labtest.Usage {
	if p.usage == nil {
		return labtest.Usage{}
	}
	return p.usage()
}

// busySeconds returns the time for which the machine's processors have worked, the kernel's own work for packets and iperf3 included: the only
// figure that paths with and without a process of their own have in common.
func busySeconds(b *tb) float64 {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := strings.Cut(string(stat), "\n")
	sum := 0.0
	for i, field := range strings.Fields(first)[1:] { // user, nice, system, idle, iowait, irq, softirq, and times of others
		if i == 3 || i == 4 || i > 6 {
			continue
		}
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += ticks
	}
	return sum * (10 * time.Millisecond).Seconds() // USER_HZ is 100 everywhere
}

func (p *path) add(what string, value float64) { p.samples[what] = append(p.samples[what], value) }

// report is what we read of iperf3's.
type report struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bits  float64 `json:"bits_per_second"`
			Bytes float64 `json:"bytes"`
		} `json:"sum_received"`
		Sum struct {
			Packets float64 `json:"packets"`
			Lost    float64 `json:"lost_percent"`
			Seconds float64 `json:"seconds"`
		} `json:"sum"`
	} `json:"end"`
}

// iperf runs iperf3 between the two ends.
func (p *path) iperf(b *tb, length time.Duration, args ...string) report {
	server := exec.CommandContext(b.Context(), "iperf3", "-s", "-1", "--forceflush")
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := p.server.Start(server); err != nil {
		b.Fatalf("iperf3 (apt-get install iperf3): %v", err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it listens
		b.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, out)
		close(drained)
	}()
	args = append([]string{"-c", p.to.String(), "-J", "-t", strconv.Itoa(int(length.Seconds())), "--connect-timeout", "5000"}, args...)
	text, err := p.client.Output("iperf3", args...)
	_ = server.Process.Kill()
	<-drained
	_ = server.Wait()
	var r report
	if jsonErr := json.Unmarshal([]byte(text), &r); err != nil || jsonErr != nil || r.Error != "" {
		b.Fatalf("%s: iperf3 %v: %v %v %s", p.name, args, err, jsonErr, r.Error)
	}
	return r
}

// trips measures round trips of one byte over a TCP connection and returns them sorted.
func (p *path) trips(b *tb, n int) []time.Duration {
	l := p.server.Listen("tcp", ":7")
	defer func() { _ = l.Close() }()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
	}()
	conn, err := p.client.Dial(b.Context(), "tcp", netip.AddrPortFrom(p.to, 7).String())
	if err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
	}
	times := make([]time.Duration, n)
	one := []byte{1}
	for i := range times {
		began := time.Now()
		if _, err := conn.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			b.Fatal(fmt.Errorf("%s: %w", p.name, err))
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times
}
