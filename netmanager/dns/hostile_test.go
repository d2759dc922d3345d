package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

const (
	// hostileMemory bounds the heap during the attacks, in bytes: the queries and connections that may wait, and what the attackers have themselves.
	hostileMemory = 64 << 20
	// answerFloor is the p99 that the witness is granted whatever it had before: it shares the processors, and the queue of one socket, with attackers.
	answerFloor = 250 * time.Millisecond
)

// hostileQueries are bytes that are no query, or one that means harm.
func hostileQueries(t *testing.T) (all [][]byte) {
	t.Helper()
	good, err := new(wire.Msg).SetQuestion("web.skerry.internal.", wire.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		all = append(all, good[:n])
	}
	head := func(questions uint16, rest string) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{0x12, 0x34, 1, 0}, questions), append(make([]byte, 6), rest...)...)
	}
	all = append(all,
		head(1, "\xc0\x0c\x00\x01\x00\x01"), head(1, "\x01a\xc0\x0e\xc0\x0c\x00\x01\x00\x01"), head(1, "\xc0\xff\x00\x01\x00\x01"), head(1, "\xff\xff"), // names that go round, or out of the packet
		head(1, string(bytes.Repeat([]byte("\x01a"), 2000))+"\x00\x00\x01\x00\x01"), head(1, "\x3f"), head(0xffff, string(bytes.Repeat(good[headerSize:], 100))), head(0, ""),
		append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 3000)...), bytes.Repeat([]byte{0xff}, 5000), bytes.Repeat(good, 200))
	for kind := range 16 { // every opcode, as a question and as an answer
		for _, bit := range []byte{0, 0x80} {
			p := bytes.Clone(good)
			p[2] = byte(kind)<<3 | bit
			all = append(all, p)
		}
	}
	for range 200 {
		noise := make([]byte, rand.N(maxQuery))
		for i := range noise {
			noise[i] = byte(rand.Uint32()) //nolint:gosec // nothing is hidden
		}
		all = append(all, noise, append(bytes.Clone(good[:headerSize]), noise...))
	}
	return all
}

// Whatever containers send to the server, another one has its answers meanwhile, memory is bounded, and connections that say nothing are let go.
func TestHostileClients(t *testing.T) {
	mute := newUpstream(t, isSilent)
	_, addr := start(t, Config{Upstreams: list(mute)})
	from := func(network, client string) *net.Dialer {
		if network == "udp" {
			return &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(client)}}
		}
		return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	}
	dial := func(network, client string) net.Conn {
		conn, err := from(network, client).DialContext(t.Context(), network, addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	queries := hostileQueries(t)
	// p99 asks by both protocols, as resolvers do, until what is done beside has ended, and 200 times at least. A datagram may be lost, and is not
	// among the times.
	p99 := func(name string, beside func()) time.Duration {
		over := make(chan struct{})
		go func() { defer close(over); beside() }()
		defer func() { <-over }()
		var took []time.Duration
		lost := 0
		for ended := false; !ended || len(took) < 200; {
			for _, network := range []string{"udp", "tcp"} {
				c := wire.Client{Net: network, Dialer: from(network, "127.53.1.1"), Timeout: time.Second}
				for try := 1; ; try++ {
					began := time.Now()
					got, _, err := c.Exchange(new(wire.Msg).SetQuestion("web.skerry.internal.", wire.TypeA), addr.String())
					if err == nil && brief(got) == "A 10.172.0.1" {
						took = append(took, time.Since(began))
						break
					}
					lost++
					if try == 5 {
						t.Fatalf("%s, by %s: got %v, %v", name, network, got, err)
					}
				}
			}
			select {
			case <-over:
				ended = true
			default:
			}
		}
		slices.Sort(took)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		t.Logf("%s: %d answers, %d lost, p99 %s, heap %d MiB", name, len(took), lost, took[len(took)*99/100], m.HeapSys>>20)
		if lost > len(took)/20 {
			t.Errorf("%s: %d of %d had to be asked again", name, lost, len(took))
		}
		if m.HeapSys > hostileMemory {
			t.Errorf("%s: the heap has %d bytes, at most %d", name, m.HeapSys, hostileMemory)
		}
		return took[len(took)*99/100]
	}
	limit := max(3*p99("nobody", func() {}), answerFloor)
	for _, attack := range []struct {
		name string
		run  func()
	}{
		{"garbage by datagrams", func() {
			conn := dial("udp", "127.53.2.1")
			for range 5 {
				for _, q := range queries {
					conn.Write(q)
				}
			}
		}},
		{"garbage by connections", func() {
			for i, q := range queries {
				conn := dial("tcp", fmt.Sprintf("127.53.3.%d", 1+i%100))
				if i%2 == 0 { // half of them framed as they should be
					conn.Write(binary.BigEndian.AppendUint16(nil, uint16(len(q))))
				}
				conn.Write(q)
				conn.Close()
			}
		}},
		{"a flood of names that others know", func() {
			conn := dial("udp", "127.53.4.1")
			for i := range 5000 {
				q, err := new(wire.Msg).SetQuestion(fmt.Sprintf("%d.example.com.", i), wire.TypeA).Pack()
				if err != nil {
					t.Error(err)
				}
				conn.Write(q)
			}
		}},
		{"connections that say little", func() {
			var wg sync.WaitGroup
			for client := range 6 { // two times what each may have, most of what all may have
				for i := range 2 * maxConnsEach {
					conn := dial("tcp", fmt.Sprintf("127.53.5.%d", 1+client))
					wg.Go(func() {
						began, tick := time.Now(), time.NewTicker(100*time.Millisecond)
						defer tick.Stop()
						gone := make(chan struct{})
						go func() { defer close(gone); conn.Read(make([]byte, 1)) }()
						for {
							select {
							case <-gone:
								return
							case <-tick.C:
								if i%2 == 0 { // the others are silent
									conn.Write([]byte{15}) // a length, and then what it is of
								}
							}
							if time.Since(began) > 4*tcpPatience {
								t.Error("a connection that asks nothing is kept")
								conn.Close()
							}
						}
					})
				}
			}
			wg.Wait()
		}},
	} {
		if got := p99(attack.name, attack.run); got > limit {
			t.Errorf("%s: p99 of the witness is %s, at most %s", attack.name, got, limit)
		}
	}
}
