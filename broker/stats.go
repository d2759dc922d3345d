package broker

import (
	"strconv"
	"sync/atomic"
	"time"
)

// counters are counted where things happen; Stats is their copy.
type counters struct {
	in, out, dropped, refused, withheld    atomic.Uint64
	bytesIn, bytesOut                      atomic.Uint64
	slowConsumers, panics, rejected        atomic.Uint64
	connectTimeouts, acceptErrors, crowded atomic.Uint64
	retained, hasty                        atomic.Int64
}

// Stats are figures since New, except for the first five, which are of this moment.
type Stats struct {
	Clients       int // admitted and connected
	Sessions      int // of clients that are away
	Pending       int // connections that are not admitted yet
	Retained      int // messages
	Subscriptions int

	MessagesIn  uint64 // publishes by clients, wills not counted
	MessagesOut uint64 // deliveries written to clients
	BytesIn     uint64 // inside TLS
	BytesOut    uint64

	Dropped         uint64 // deliveries that were lost, and publishes of QoS 0 that OnPublish failed for
	Refused         uint64 // publishes acknowledged and not taken
	Withheld        uint64 // deliveries that Allow did not let through
	SlowConsumers   uint64 // clients closed because they did not read
	Rejected        uint64 // logins that were not admitted
	ConnectTimeouts uint64 // connections closed without a complete CONNECT
	Crowded         uint64 // connections that found MaxPending waiting: each cost one its place
	AcceptErrors    uint64
	Panics          uint64 // recovered on a connection's goroutine
}

// Stats returns the broker's figures.
func (b *Broker) Stats() Stats {
	c := &b.counters
	b.mu.RLock()
	online, all := b.online, len(b.sessions)
	b.mu.RUnlock()
	return Stats{
		Clients: online, Sessions: max(0, all-online), Pending: int(b.pending.Load()), Retained: int(c.retained.Load()),
		Subscriptions: int(atomic.LoadInt64(&b.core.Info.Subscriptions)),
		MessagesIn:    c.in.Load(), MessagesOut: c.out.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Dropped: c.dropped.Load(), Refused: c.refused.Load(), Withheld: c.withheld.Load(),
		SlowConsumers: c.slowConsumers.Load(), Rejected: c.rejected.Load(), ConnectTimeouts: c.connectTimeouts.Load(),
		Crowded: c.crowded.Load(), AcceptErrors: c.acceptErrors.Load(), Panics: c.panics.Load(),
	}
}

// sys publishes figures under $SYS/broker/, retained, and only those that changed.
type sys struct {
	b     *Broker
	began time.Time
	next  time.Time
	last  map[string]string
}

func newSys(b *Broker) *sys { return &sys{b: b, began: time.Now(), last: map[string]string{}} }

func (y *sys) publish(now time.Time) {
	if y.b.cfg.SysInterval < 0 || now.Before(y.next) {
		return
	}
	y.next = now.Add(y.b.cfg.SysInterval)
	st := y.b.Stats()
	u := func(n uint64) string { return strconv.FormatUint(n, 10) }
	for topic, value := range map[string]string{
		"uptime":                  strconv.Itoa(int(now.Sub(y.began) / time.Second)),
		"clients/connected":       strconv.Itoa(st.Clients),
		"clients/away":            strconv.Itoa(st.Sessions),
		"clients/slow":            u(st.SlowConsumers),
		"clients/rejected":        u(st.Rejected),
		"subscriptions":           strconv.Itoa(st.Subscriptions),
		"retained":                strconv.Itoa(st.Retained),
		"messages/received":       u(st.MessagesIn),
		"messages/sent":           u(st.MessagesOut),
		"messages/dropped":        u(st.Dropped),
		"messages/refused":        u(st.Refused),
		"load/bytes/received":     u(st.BytesIn),
		"load/bytes/sent":         u(st.BytesOut),
		"system/panics/recovered": u(st.Panics),
	} {
		if y.last[topic] == value {
			continue
		}
		// Only a full store of retained messages refuses this; the next turn tries again.
		if y.b.Publish(Message{Topic: "$SYS/broker/" + topic, Payload: []byte(value), Retain: true}) == nil {
			y.last[topic] = value
		}
	}
}
