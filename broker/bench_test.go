package broker

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Both benchmarks alternate between the stock server and ours in one run and report the ratio of the two rates: times of
// different runs are not comparable on a shared machine.

// compare runs work against both servers in turn and reports ours over stock.
func compare(b *testing.B, rounds int, work func(addr string, round int) (operations int, took time.Duration)) {
	stockAddr := stock(b, nil)
	_, addr := start(b, open())
	var rate [2]float64
	b.ResetTimer()
	for range b.N {
		var ops [2]int
		var took [2]time.Duration
		for r := range rounds {
			for i, a := range []string{stockAddr, addr} {
				n, d := work(a, r)
				ops[i], took[i] = ops[i]+n, took[i]+d
			}
		}
		for i := range rate {
			rate[i] += float64(ops[i]) / took[i].Seconds() / float64(b.N)
		}
	}
	b.ReportMetric(rate[0], "stock/s")
	b.ReportMetric(rate[1], "ours/s")
	b.ReportMetric(rate[1]/rate[0], "ours/stock")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkPubacked measures publishes that are acknowledged: from 8 clients with 50 under way each.
func BenchmarkPubacked(b *testing.B) {
	const publishers, window, batches = 8, 50, 60
	compare(b, 3, func(addr string, _ int) (int, time.Duration) {
		var clients []*client
		for p := range publishers {
			clients = append(clients, login(b, addr, 4, fmt.Sprint("p", p)))
		}
		began := time.Now()
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() { publishBatches(c, window, batches) })
		}
		wg.Wait()
		took := time.Since(began)
		for _, c := range clients {
			c.Close()
		}
		return publishers * window * batches, took
	})
}

func publishBatches(c *client, window, batches int) {
	acks := make([]byte, 4*window)
	for range batches {
		var out []byte
		for range window {
			out = append(out, encode(c.message("bench/topic", "a payload of some bytes", 1, false))...)
		}
		c.raw(out...)
		if _, err := io.ReadFull(c.r, acks); err != nil {
			c.t.Error(err)
			return
		}
	}
}

// BenchmarkPing measures the way there and back of one publish at a time.
func BenchmarkPing(b *testing.B) {
	compare(b, 3, func(addr string, _ int) (int, time.Duration) {
		c := login(b, addr, 4, "ping")
		defer c.Close()
		began := time.Now()
		publishBatches(c, 1, 5000)
		return 5000, time.Since(began)
	})
}

// BenchmarkFanOut measures deliveries of QoS 0 from one client to 200.
func BenchmarkFanOut(b *testing.B) {
	const subscribers, messages = 200, 400
	compare(b, 3, func(addr string, round int) (int, time.Duration) {
		topic := fmt.Sprint("fan/", round)
		pub := login(b, addr, 4, "pub")
		frame := len(encode(pub.message(topic, "a payload of some bytes", 0, false)))
		var subs []*client
		for s := range subscribers {
			c := login(b, addr, 4, fmt.Sprint("s", s))
			c.subscribe(topic, 0)
			subs = append(subs, c)
		}
		one := encode(pub.message(topic, "a payload of some bytes", 0, false))
		began := time.Now()
		var wg sync.WaitGroup
		for _, c := range subs {
			wg.Go(func() {
				if _, err := io.CopyN(io.Discard, c.r, int64(frame*messages)); err != nil {
					b.Error(err)
				}
			})
		}
		pub.raw(bytes.Repeat(one, messages)...)
		wg.Wait()
		took := time.Since(began)
		for _, c := range append(subs, pub) {
			c.raw(packets.Disconnect<<4, 0)
			c.Close()
		}
		return subscribers * messages, took
	})
}
