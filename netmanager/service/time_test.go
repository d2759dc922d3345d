package service

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestMissWaitsForATable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{})
		one.set("", client(), web())
		asked := ends{"10.160.1.20", "10.172.1.1", 4000, 80}
		for i := range heldPerFlow + 10 {
			if one.out(t, udp(asked, fmt.Sprint(i))) != nil {
				t.Fatal("a packet for an unknown service went out")
			}
		}
		other := asked
		other.sport++
		one.out(t, udp(other, "other"))
		known := ends{"10.160.1.20", "10.172.0.1", 1, 80}
		for range 3 {
			if b := one.out(t, udp(known, "")); b == nil && one.kernel() == nil {
				t.Fatal("another flow was held up")
			}
			known.sport++
		}
		if len(one.missed) != 1 || one.missed[0] != netip.MustParseAddr("10.172.1.1") {
			t.Fatalf("asked for %v, want 10.172.1.1 once", one.missed)
		}
		time.Sleep(holdTime / 2)
		one.set("", client(), web(), remote())
		for range heldPerFlow {
			expect(t, "held", one.sent(), ends{"10.160.1.20", "10.160.2.9", 4000, 80})
		}
		expect(t, "other", one.sent(), ends{"10.160.1.20", "10.160.2.9", 4001, 80})
		if b := one.sent(); b != nil {
			t.Errorf("more than %d packets of a flow were held", heldPerFlow)
		}
		if one.misses.held != 0 {
			t.Errorf("still holds %d", one.misses.held)
		}
	})
}

func TestMissIsRememberedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{})
		one.set("", client())
		asked := ends{"10.160.1.20", "10.172.1.1", 4000, 80}
		one.out(t, tcp(asked, tcpSYN, ""))
		time.Sleep(holdTime + time.Millisecond)
		synctest.Wait()
		expect(t, "unreachable", one.kernel(), ends{"10.172.1.1", "10.160.1.20", 0, 0})
		for range 3 {
			time.Sleep(time.Second)
			one.out(t, tcp(asked, tcpSYN, ""))
			expect(t, "unreachable at once", one.kernel(), ends{"10.172.1.1", "10.160.1.20", 0, 0})
		}
		if len(one.missed) != 1 {
			t.Errorf("asked %d times, want once", len(one.missed))
		}
		time.Sleep(negativeTime)
		synctest.Wait()
		one.out(t, tcp(asked, tcpSYN, ""))
		if len(one.missed) != 2 {
			t.Errorf("asked %d times, want again", len(one.missed))
		}
		one.set("", client(), remote()) // also out of the negative memory
		expect(t, "known", one.sent(), ends{"10.160.1.20", "10.160.2.9", 4000, 80})
		one.Close()
	})
}

// A service without a healthy instance holds what comes, in silence: the client tries again, and finds the one that comes.
func TestNobodyHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{})
		s := remote()
		s.Instances[0].Healthy = false
		one.set("", client(), s)
		asked := ends{"10.160.1.20", "10.172.1.1", 4000, 80}
		one.out(t, tcp(asked, tcpSYN, ""))
		time.Sleep(holdTime * 2)
		synctest.Wait()
		if b := one.kernel(); b != nil || len(one.missed) != 0 {
			t.Fatalf("got %x, asked for %v", b, one.missed)
		}
		one.out(t, tcp(asked, tcpSYN, ""))
		one.set("", client(), remote())
		expect(t, "healthy again", one.sent(), ends{"10.160.1.20", "10.160.2.9", 4000, 80})
		one.set("", client(), service("db", "10.172.1.1", "10.172.1.2"))
		asked.sport++
		one.out(t, tcp(asked, tcpSYN, ""))
		time.Sleep(holdTime * 2)
		synctest.Wait()
		if one.kernel() == nil {
			t.Error("nobody says that a service without instances is unreachable")
		}
	})
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{Flows: 8192})
		s := remote()
		s.Instances = append(s.Instances, container(1, "10.172.1.11", "10.160.3.9"))
		one.set("", s, client())
		open := func(port uint16) ends {
			e := ends{"10.160.1.20", "10.172.1.1", port, 80}
			wire := endsOf(t, one.out(t, tcp(e, tcpSYN, "")))
			one.in(t, tcp(wire.swapped(), tcpSYN|tcpACK, ""))
			return wire
		}
		first, half := open(4000), open(4001)
		one.in(t, tcp(half.swapped(), tcpFIN|tcpACK, ""))
		datagram := endsOf(t, one.out(t, udp(ends{"10.160.1.20", "10.172.1.1", 53, 53}, "")))
		churn := func() { // new flows sweep out old ones
			for i := range 6144 {
				one.out(t, echo(ends{"10.160.1.21", "10.172.1.10", uint16(i), 0}, false, ""))
			}
		}
		time.Sleep(2 * time.Minute)
		churn()
		if got := one.Flows(netip.MustParseAddr("10.160.1.20")); len(got) != 3 {
			t.Fatalf("after two minutes: %v", got)
		}
		time.Sleep(2 * time.Hour)
		churn()
		got := one.Flows(netip.MustParseAddr("10.160.1.20"))
		if len(got) != 2 || got[0].Proto != protoTCP || got[1].Proto != protoTCP {
			t.Fatalf("after two hours %v, want the connections, not %v", got, datagram)
		}
		expect(t, "idle", one.out(t, tcp(ends{"10.160.1.20", "10.172.1.1", 4000, 80}, tcpACK, "x")), first)
		expect(t, "half closed", one.out(t, tcp(ends{"10.160.1.20", "10.172.1.1", 4001, 80}, tcpACK, "x")), half)
		one.out(t, tcp(ends{"10.160.1.20", "10.172.1.1", 4001, 80}, tcpFIN|tcpACK, ""))
		time.Sleep(2 * time.Minute)
		churn()
		if got := one.Flows(netip.MustParseAddr("10.160.1.20")); len(got) != 1 {
			t.Errorf("a closed flow stays: %v", got)
		}
	})
}

// An instance that is gone from the table and does not answer any more: its client is told instead of left waiting for a quarter of an hour.
func TestGoneInstanceIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{})
		one.set("", remote(), client())
		e := ends{"10.160.1.20", "10.172.1.1", 4000, 80}
		wire := endsOf(t, one.out(t, tcp(e, tcpSYN, "")))
		one.in(t, tcp(wire.swapped(), tcpSYN|tcpACK, ""))
		s := remote()
		s.Instances = []Instance{container(0, "10.172.1.10", "10.160.3.9")}
		one.set("", s, client())
		for range 30 { // as long as it answers, it goes on
			expect(t, "goes on", one.out(t, tcp(e, tcpACK, "x")), wire)
			if one.in(t, tcp(wire.swapped(), tcpACK, "y")) == nil {
				t.Fatal("the answer is lost")
			}
			time.Sleep(time.Second)
		}
		for range patience {
			expect(t, "sent again", one.out(t, tcp(e, tcpACK, "x")), wire)
			time.Sleep(time.Second)
		}
		if one.out(t, tcp(e, tcpACK, "x")) != nil {
			t.Fatal("still sent")
		}
		b := one.kernel()
		expect(t, "reset", b, e.swapped())
		if p := read(t, b); p.flags != tcpRST {
			t.Errorf("flags %x, want RST", p.flags)
		}
		wire.dst = "10.160.3.9"
		expect(t, "again", one.out(t, tcp(e, tcpSYN, "")), wire)
	})
}

func TestRoomIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{Flows: 4096})
		one.set("", remote(), client())
		keep := ends{"10.160.1.20", "10.172.1.1", 9, 80}
		one.in(t, tcp(endsOf(t, one.out(t, tcp(keep, tcpSYN, ""))).swapped(), tcpSYN|tcpACK, ""))
		time.Sleep(time.Minute)
		for i := range 20000 { // a flood of SYN that nobody answers
			one.out(t, tcp(ends{"10.160.1.21", "10.172.1.1", uint16(1000 + i), 80}, tcpSYN, ""))
		}
		if s := one.Stats(); s.Flows > 4096 || s.Evicted == 0 {
			t.Errorf("%d flows, %d evicted", s.Flows, s.Evicted)
		}
		if len(one.Flows(netip.MustParseAddr("10.160.1.20"))) != 1 {
			t.Error("a flood pushed out a connection in use")
		}
	})
}

// The flows of a process that was killed are taken up by the next one; what makes no sense is not.
func TestFlowsOutliveTheProcess(t *testing.T) {
	memory := make([]byte, MemorySize(1000))
	old := newNode(t, 1, Options{Flows: 1000, Memory: memory})
	s := remote()
	for i := range 7 {
		s.Instances = append(s.Instances, container(i+1, fmt.Sprintf("10.172.1.%d", 11+i), fmt.Sprintf("10.160.%d.9", 3+i)))
	}
	old.set("", s, client())
	want := map[ends]ends{}
	for i := range 200 {
		e := ends{"10.160.1.20", "10.172.1.1", uint16(4000 + i), 80}
		want[e] = endsOf(t, old.out(t, tcp(e, tcpSYN, "")))
	}
	now := old.now()
	broken := old.flows.shard[3].slots[0]
	broken.used, broken.local = 1, addr{1, 2}
	if slot, _ := old.flows.room(&old.flows.shard[3], now); slot != nil {
		*slot = broken
	}
	*old.flows.shard[4].mark = 1<<16 - 1 // more than there are

	one := newNode(t, 1, Options{Flows: 1000, Memory: memory})
	if got := one.Stats().Flows; got != 200 {
		t.Errorf("took up %d flows, want 200", got)
	}
	for e, wire := range want { // even before there is a table
		expect(t, "after the restart", one.out(t, tcp(e, tcpACK, "x")), wire)
	}
	one.set("", s, client())
	for e, wire := range want {
		expect(t, "with a table", one.out(t, tcp(e, tcpACK, "x")), wire)
		expect(t, "answer", one.in(t, tcp(wire.swapped(), tcpACK, "")), e.swapped())
	}
	for _, size := range []int{1, 1000, 4000} { // other sizes begin anew and disturb nothing
		newNode(t, 1, Options{Flows: size, Memory: memory})
	}
}

// One sender gets no more answers than its share, and the others theirs.
func TestAnswersAreShared(t *testing.T) {
	var a answers
	sender := func(i int) addr { return addrOf(netip.AddrFrom4([4]byte{10, 160, 1, byte(i)})) }
	got := map[int]int{}
	for i := range 8 {
		for range 3 * answersEach {
			if a.take(sender(i), 1) {
				got[i]++
			}
		}
	}
	if got[0] != answersEach || got[1] != answersEach || got[7] != 0 {
		t.Errorf("got %v, want %d each until %d are given", got, answersEach, answersMost)
	}
	if !a.take(sender(0), 2) {
		t.Error("nothing in the next second")
	}
}

// One container that asks for whatever comes to its mind leaves room for another: for addresses, and for packets that wait.
func TestMissesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newNode(t, 1, Options{})
		one.set("", client())
		for i := range 2 * missesMost {
			wild := ends{"10.160.1.21", fmt.Sprintf("10.173.%d.%d", i/250, i%250), 4000, 80}
			one.out(t, udp(wild, "x"))
			one.out(t, udp(wild, "y"))
		}
		other := ends{"10.160.1.20", "10.172.1.1", 4000, 80}
		one.out(t, udp(other, "x"))
		if len(one.missed) != missesEach+1 || one.missed[missesEach].String() != other.dst {
			t.Fatalf("asked for %d, want %d and %s", len(one.missed), missesEach, other.dst)
		}
		one.set("", client(), remote())
		expect(t, "held", one.sent(), ends{"10.160.1.20", "10.160.2.9", 4000, 80})
		// When all the room is taken by addresses that nobody bears, they make way.
		for i := range missesMost/missesEach + 1 {
			for j := range missesEach {
				one.out(t, udp(ends{fmt.Sprintf("10.160.1.%d", 30+i), fmt.Sprintf("10.174.%d.%d", i, j%250), uint16(4000 + j), 80}, "x"))
			}
			time.Sleep(holdTime + time.Millisecond)
			synctest.Wait()
		}
		asked := len(one.missed)
		one.out(t, udp(ends{"10.160.1.20", "10.172.1.77", 4000, 80}, "x"))
		if len(one.missed) != asked+1 {
			t.Error("an unknown address is not asked for")
		}
		time.Sleep(2 * negativeTime)
		synctest.Wait()
		if len(one.misses.of) != 0 || one.misses.held != 0 {
			t.Errorf("still counted: %v, %d", one.misses.of, one.misses.held)
		}
		one.Close()
	})
}

// A packet that was judged by a table that is over by now does not wait for the next one.
func TestMissAfterTheTable(t *testing.T) {
	one := newNode(t, 1, Options{})
	one.set("", client(), remote())
	b := udp(ends{"10.160.1.20", "10.172.1.1", 4000, 80}, "x")
	var p packet
	if !p.parse(b) {
		t.Fatal("no packet")
	}
	var n tally
	one.hold(&p, false, &n)
	expect(t, "sent", one.sent(), ends{"10.160.1.20", "10.160.2.9", 4000, 80})
	if len(one.missed) != 0 {
		t.Errorf("asked for %v", one.missed)
	}
	// An instance without an address of the family cannot serve it, however often that is tried.
	plain := remote()
	plain.Instances[0].Address6 = netip.Addr{}
	one.set("", client(), plain)
	if one.out(t, udp(ends{six("10.160.1.20"), six("10.172.1.1"), 4000, 80}, "x")) != nil || one.sent() != nil {
		t.Error("it went somewhere")
	}
}
