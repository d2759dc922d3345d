package service

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// What is counted, in the order of the fields of Stats.
const (
	countOut = iota
	countIn
	countLocal
	countMalformed
	countSpoofed
	countStray
	countDenied
	countMissed
	countUnavailable
	countFragments
	countTooBig
	countLost
	counts
)

// tally is what one batch adds to the counters.
type tally [counts]uint64

type counters [counts]atomic.Uint64

func (c *counters) add(n *tally) {
	for i, v := range n {
		if v != 0 {
			c[i].Add(v)
		}
	}
}

// Stats counts packets since Wrap, and flows.
type Stats struct {
	Out         uint64 // to the tunnel
	In          uint64 // from the tunnel
	Local       uint64 // handed back into the TUN because their instance runs here
	Malformed   uint64 // dropped because they are no good
	Spoofed     uint64 // dropped for their source
	Stray       uint64 // dropped because their destination is none of this node's, or no unicast
	Denied      uint64 // dropped because allow does not name their source
	Missed      uint64 // dropped because their service address is unknown
	Unavailable uint64 // dropped because no instance can serve them
	Fragments   uint64 // dropped because their first did not come before them
	TooBig      uint64 // dropped because the path's MTU is smaller
	Lost        uint64 // dropped for want of room in a queue

	Flows   int    // remembered now
	Opened  uint64 // flows ever
	Evicted uint64 // flows that had to make room
}

// Stats returns the counters.
func (d *Device) Stats() Stats {
	c := &d.counters
	s := Stats{Out: c[countOut].Load(), In: c[countIn].Load(), Local: c[countLocal].Load(), Malformed: c[countMalformed].Load(),
		Spoofed: c[countSpoofed].Load(), Stray: c[countStray].Load(), Denied: c[countDenied].Load(), Missed: c[countMissed].Load(),
		Unavailable: c[countUnavailable].Load(), Fragments: c[countFragments].Load(), TooBig: c[countTooBig].Load(), Lost: c[countLost].Load(),
		Opened: d.flows.opened.Load(), Evicted: d.flows.forced.Load()}
	for i := range d.flows.shard {
		sh := &d.flows.shard[i]
		sh.mu.Lock()
		s.Flows += sh.fresh - len(sh.free)
		sh.mu.Unlock()
	}
	return s
}

// Flow is one flow as Flows reports it.
type Flow struct {
	Proto    uint8          // 6 TCP, 17 UDP, 1 and 58 ICMP echo, where a port is the id
	Local    netip.AddrPort // the container on this node
	Dialled  netip.AddrPort // the peer as the container sees it: the service address that a client dialled, the instance address of a server's client
	Instance netip.AddrPort // the peer's container address
	Server   bool           // the local end did not begin it
	Closed   bool
	Out, In  uint64 // packets
	// Bytes from and to the container since Traffic was last called, IP headers among them; of a packet in fragments only those of the first.
	Sent, Received uint64
	Idle           time.Duration // since the last packet, to the second
}

// Flows returns the flows of one address of this node, or all when it is not valid. There are none after Close.
func (d *Device) Flows(local netip.Addr) []Flow {
	return d.list(optional(local), func(*flow) {})
}

// Traffic returns all flows and begins to count their bytes anew. What a flow carried that has been forgotten since is not in it.
func (d *Device) Traffic() []Flow {
	return d.list(addr{}, func(f *flow) { f.sent, f.received = 0, 0 })
}

// list reports the flows of one address, or of all, and calls then for each of them.
func (d *Device) list(want addr, then func(*flow)) []Flow {
	d.looking.RLock()
	defer d.looking.RUnlock()
	select {
	case <-d.closed:
		return nil
	default:
	}
	var list []Flow
	now := d.now()
	for i := range d.flows.shard {
		s := &d.flows.shard[i]
		s.mu.Lock()
		for j := range s.slots[:s.fresh] {
			if f := &s.slots[j]; f.used != 0 && !f.expired(now) && (want == addr{} || f.local == want) {
				list = append(list, f.report(now))
				then(f)
			}
		}
		s.mu.Unlock()
	}
	return list
}

func (f *flow) report(now uint32) Flow {
	return Flow{Proto: f.proto, Local: netip.AddrPortFrom(f.local.netip(), f.lport), Dialled: netip.AddrPortFrom(f.seen.netip(), f.sport),
		Instance: netip.AddrPortFrom(f.real.netip(), f.realPort), Server: f.state&served != 0, Closed: f.closed(now),
		Out: f.out, In: f.in, Sent: f.sent, Received: f.received, Idle: time.Duration(now-f.last()) * time.Second}
}
