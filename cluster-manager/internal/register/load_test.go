package register

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestLoad registers 2,000 nodes by websocket, half of each generation.
func TestLoad(t *testing.T) {
	const nodes, workers = 2000, 100
	b := serve(t, Config{MaxPending: nodes})
	key := newKey(t)
	began := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < nodes; i += workers {
				if err := registerOnce(b, 3+i%2, fmt.Sprintf("n-%d", i), key); err != nil {
					t.Errorf("node %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if st := b.Stats(); st.Welcomed != nodes || st.Refused != 0 {
		t.Errorf("got %+v", st)
	}
	if took > time.Minute {
		t.Errorf("took %v", took)
	}
	t.Logf("%d registrations in %v, %.0f a second", nodes, took, nodes/took.Seconds())
}

// registerOnce registers by websocket from a goroutine that is not the test's.
func registerOnce(b *bench, eio int, name string, key ed25519.PrivateKey) error {
	ws, err := openWebsocket(b, eio)
	if err != nil {
		return err
	}
	defer ws.Close()
	if err := ws.WriteMessage(1, []byte("40/init,")); err != nil {
		return err
	}
	hello, err := readPacket(ws, `42/init,["sc1",`)
	if err != nil {
		return err
	}
	h, err := parseHello(hello)
	if err != nil {
		return err
	}
	if err := ws.WriteMessage(1, []byte(`42/init,["cs1",`+info(name, h, key)+`]`)); err != nil {
		return err
	}
	_, err = readPacket(ws, `42/init,["sc2",{"id":"`+name+`"`)
	return err
}

func BenchmarkRegister(b *testing.B) {
	for _, eio := range revisions {
		b.Run(fmt.Sprintf("eio%d", eio), func(b *testing.B) {
			s := serve(b, Config{MaxPending: 1 << 20})
			key := newKey(b)
			b.ResetTimer()
			for b.Loop() {
				if err := registerOnce(s, eio, "a", key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdle reports what an idle connection costs the manager. This side holds a bare socket of each, which counts too.
func BenchmarkIdle(b *testing.B) {
	const conns = 1000
	for _, eio := range revisions {
		b.Run(fmt.Sprintf("eio%d", eio), func(b *testing.B) {
			for b.Loop() {
				measureIdle(b, eio, conns)
			}
		})
	}
}

func measureIdle(b *testing.B, eio, conns int) {
	b.Helper()
	s := serve(b, Config{MaxPending: conns, Timeout: time.Minute})
	before := inUse()
	open := make([]net.Conn, conns)
	for i := range open {
		open[i] = handshake(b, s, eio)
	}
	b.ReportMetric(float64(inUse()-before)/float64(conns), "B/conn")
	for _, c := range open {
		c.Close()
	}
	waitFor(b, "connections to end", func() bool { return s.Stats().Pending == 0 })
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
