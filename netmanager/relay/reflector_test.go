package relay

import (
	"context"
	"crypto/rand"
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestReflectorTellsTheSender(t *testing.T) {
	r, err := NewReflector(ReflectorConfig{Addrs: []string{"127.0.0.1:0", "[::1]:0"}}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = r.Run(ctx) })
	for _, addr := range r.Addrs() {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		for _, noise := range [][]byte{{}, {0}, make([]byte, 19), make([]byte, 20), make([]byte, 1400)} {
			_, _ = c.Write(noise)
		}
		var tx Transaction
		_, _ = rand.Read(tx[:])
		request := BindingRequest(tx)
		_, _ = c.Write(request)
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		gotTx, seen, err := ParseBindingResponse(buf[:n])
		if want := c.LocalAddr().(*net.UDPAddr).AddrPort(); err != nil || gotTx != tx || seen != want {
			t.Errorf("got %v %v, %v, want %v %v", gotTx, seen, err, tx, want)
		}
		if n > len(request)+32 {
			t.Errorf("got %d bytes for a question of %d", n, len(request))
		}
	}
}

func TestReflectorLimitsEachSender(t *testing.T) {
	r := &Reflector{}
	r.seed = maphash.MakeSeed()
	now := time.Now()
	flooder := netip.MustParseAddr("192.0.2.1")
	n := 0
	for range 1000 {
		if r.allow(flooder, now) {
			n++
		}
	}
	if n != answersBurst {
		t.Errorf("got %d answers at once, want %d", n, answersBurst)
	}
	if !r.allow(flooder, now.Add(time.Second)) {
		t.Error("no answer a second later")
	}
	free := 0
	for i := range 250 {
		if r.allow(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), now) {
			free++
		}
	}
	if free < 240 { // some share the flooder's place by chance
		t.Errorf("got answers for %d of 250 others", free)
	}
}
