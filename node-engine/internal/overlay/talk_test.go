package overlay

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager/service"
	"skerry.internal/netmanager/tunnel"
)

func itoa(n int) string { return strconv.Itoa(n) }

// listener is a manager that hears what a member says.
type listener struct {
	mu        sync.Mutex
	endpoints []messages.Endpoints
	interests []messages.Interest
	statuses  []messages.NetStatus
}

func (l *listener) say(_ messages.Kind, payload any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch p := payload.(type) {
	case *messages.Endpoints:
		l.endpoints = append(l.endpoints, *p)
	case *messages.Interest:
		l.interests = append(l.interests, *p)
	case *messages.NetStatus:
		l.statuses = append(l.statuses, *p)
	}
	return nil
}

// asked reports whether something of the kind was said.
func (l *listener) asked(is func(messages.Interest) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.interests, is)
}

func (l *listener) numbers() (endpoints, interests, statuses int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.endpoints), len(l.interests), len(l.statuses)
}

// listen lets the member talk until the test or end ends it.
func listen(t *testing.T, m *Member) (*listener, func()) {
	t.Helper()
	l := &listener{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	m.Begin()
	wg.Go(func() { m.Talk(ctx, l.say) })
	end := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(end)
	return l, end
}

func TestTalk(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	l, end := listen(t, m)
	eventually(t, "all is asked for at first", func() bool { return l.asked(func(i messages.Interest) bool { return i.Full }) })
	m.Configure(config(1))
	eventually(t, "its endpoints are said", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return slices.ContainsFunc(l.endpoints, func(e messages.Endpoints) bool { return len(e.Endpoints) == 1 && e.PublicKey == m.public })
	})
	m.Update(messages.ServiceUpdate{Rev: 5, Full: true})
	b.net.static.OnNameMiss("web")
	b.net.static.OnNameMiss("not/a/name")
	b.net.static.OnMiss(netip.MustParseAddr("fd5c:ae11:9::c:9"))
	eventually(t, "a miss is asked for", func() bool {
		return l.asked(func(i messages.Interest) bool {
			return len(i.Names) == 1 && i.Names[0] == "web" && len(i.Addresses) == 1 && !i.Full
		})
	})
	db := web("10.160.0.130", true)
	db.Job, db.Instances[0].Service = "db", i64(t, m)
	m.Update(messages.ServiceUpdate{Rev: 6, Base: 5, Services: []messages.ServiceEntry{db}, Unknown: []string{"web", "10.172.0.200"}})
	eventually(t, "what is known by its name is asked for by that", func() bool {
		return l.asked(func(i messages.Interest) bool {
			return len(i.Names) == 1 && i.Names[0] == "db" && len(i.Addresses) == 0
		})
	})
	b.net.mu.Lock()
	unknown := slices.Clone(b.net.unknown)
	b.net.mu.Unlock()
	if !slices.Equal(unknown, []string{"web"}) {
		t.Errorf("unknown: got %v", unknown)
	}
	// Nothing is said again while nothing changes.
	eventually(t, "the status is said", func() bool { _, _, n := l.numbers(); return n > 0 })
	time.Sleep(20 * time.Millisecond)
	e1, i1, s1 := l.numbers()
	time.Sleep(50 * time.Millisecond)
	if e2, i2, s2 := l.numbers(); e1 != e2 || i1 != i2 || s1 != s2 {
		t.Errorf("got %d, %d, %d after %d, %d, %d though nothing has changed", e2, i2, s2, e1, i1, s1)
	}
	m.Update(messages.ServiceUpdate{Rev: 9, Base: 8})
	full := func(i messages.Interest) bool { return i.Full && len(i.Names) == 1 }
	eventually(t, "a gap is noticed", func() bool { return l.asked(full) })
	end()
	again, _ := listen(t, m)
	eventually(t, "a new session begins with all", func() bool { return again.asked(full) })
}

// What a network that is up lacks is said in one line, and that it has it again.
func TestWhatIsMissingIsSaid(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	l, _ := listen(t, m)
	m.Configure(config(1))
	said := func(noNames, noIPv6 string) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			n := len(l.statuses)
			return n > 0 && l.statuses[n-1].State == messages.OverlayUp && l.statuses[n-1].NoNames == noNames && l.statuses[n-1].NoIPv6 == noIPv6
		}
	}
	lacks := func(noNames, noIPv6 string) {
		b.net.mu.Lock()
		defer b.net.mu.Unlock()
		b.net.noNames, b.net.noIPv6 = noNames, noIPv6
	}
	eventually(t, "nothing is missing", said("", ""))
	lacks("port 53 is taken", "")
	eventually(t, "there are no names", said("port 53 is taken", ""))
	lacks("", "no firewall:\nno module\n"+strings.Repeat("x", 1<<13))
	eventually(t, "there is no IPv6", said("", ("no firewall: no module " + strings.Repeat("x", 1<<13))[:maxSentence]))
	lacks("", "")
	eventually(t, "nothing is missing any more", said("", ""))
}

// i64 is the address that was missed, in IPv4.
func i64(t *testing.T, m *Member) string {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.asked.addresses) != 1 {
		t.Fatalf("got %v", m.asked.addresses)
	}
	return m.asked.addresses[0].String()
}

func TestUse(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	if m.Use() != nil {
		t.Error("figures of a network that is not there")
	}
	m.Configure(config(1))
	m.Update(messages.ServiceUpdate{Rev: 1, Full: true, Services: []messages.ServiceEntry{web("10.160.0.131", true)}})
	if _, err := m.Attach(t.Context(), attachment("shop.0.0")); err != nil {
		t.Fatal(err)
	}
	var key tunnel.Key
	if err := key.UnmarshalText([]byte(keyA)); err != nil {
		t.Fatal(err)
	}
	b.net.mu.Lock()
	b.net.stats.Peers = []tunnel.PeerStats{{Key: key, Way: tunnel.Direct, Endpoint: netip.MustParseAddrPort("192.0.2.2:51820"), RTT: 1500 * time.Microsecond, Rx: 1000, Tx: 1000, PathMTU: 1500, MTU: 1440}}
	flow := service.Flow{Proto: 6, Local: netip.MustParseAddrPort("10.160.0.66:4000"), Dialled: netip.MustParseAddrPort("10.172.0.1:80"),
		Instance: netip.MustParseAddrPort("10.160.0.131:80")}
	here := flow
	here.Instance = netip.MustParseAddrPort("10.160.0.67:80")
	theirs := flow
	theirs.Server = true
	b.net.flows = []service.Flow{flow, flow, here, theirs}
	b.net.mu.Unlock()
	m.at = time.Time{}
	use := m.Use()
	if len(use.Peers) != 1 || use.Peers[0].Node != "n2" || use.Peers[0].Path != messages.Direct || use.Peers[0].RTTMS != 1.5 || use.Peers[0].MTU != 1440 {
		t.Errorf("peers: got %+v", use.Peers)
	}
	want := []messages.FlowUse{{From: "shop", Service: "web", Node: "n2", Flows: 2}, {From: "shop", Service: "web", Node: "n1", Flows: 1}}
	if !slices.Equal(use.Flows, want) {
		t.Errorf("flows: got %+v, want %+v", use.Flows, want)
	}
	b.net.mu.Lock()
	b.net.stats.Peers[0].Rx += 125000 // a million bits in ten seconds
	flow.Sent, flow.Received = 25000, 100000
	ended, silent := flow, flow
	ended.Closed, silent.Closed = true, true
	silent.Sent, silent.Received = 0, 0
	b.net.flows = []service.Flow{flow, ended, silent}
	b.net.mu.Unlock()
	m.at = time.Now().Add(-10 * time.Second)
	use = m.Use()
	about := func(what string, got, want float64) {
		if got < 0.9*want || got > 1.1*want {
			t.Errorf("%s: %v bits/s, want about %v", what, got, want)
		}
	}
	about("from the peer", use.Peers[0].RxBPS, 100_000)
	if len(use.Flows) != 1 || use.Flows[0].Flows != 1 {
		t.Fatalf("flows with a rate: %+v", use.Flows)
	}
	about("to the instances", use.Flows[0].TxBPS, 40_000)
	about("from the instances", use.Flows[0].RxBPS, 160_000)
}

// A process that is killed right after its first lookup has written nothing of it. The flow outlives it in memory; what it was begun to is asked for with the
// first word of the next session, so that the manager does not take the instance's node from the peers, and once only.
func TestFlowsOutliveWhatIsKnown(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	m.Configure(config(1))
	m.Update(messages.ServiceUpdate{Rev: 1, Full: true})
	eventually(t, "it is up", func() bool { return m.Use() != nil })
	v6 := func(text string) netip.AddrPort {
		return netip.AddrPortFrom(m.ground.plan.Map(netip.MustParseAddr(text)), 80)
	}
	flow := service.Flow{Proto: 6, Local: v6("10.160.0.66"), Dialled: v6("10.172.0.1"), Instance: v6("10.160.0.131")}
	theirs, ended, direct := flow, flow, flow
	theirs.Server, theirs.Dialled = true, netip.MustParseAddrPort("10.172.0.77:80")
	ended.Closed, ended.Dialled = true, netip.MustParseAddrPort("10.172.0.78:80")
	direct.Dialled = netip.MustParseAddrPort("10.160.0.131:80")
	b.net.mu.Lock()
	b.net.flows = []service.Flow{flow, flow, theirs, ended, direct}
	b.net.mu.Unlock()
	later := func() {
		m.measuring.Lock()
		defer m.measuring.Unlock()
		m.at = time.Time{}
	}
	asks := func(i messages.Interest) bool { return slices.Equal(i.Addresses, []string{"10.172.0.1"}) }
	for range 2 {
		l, end := listen(t, m)
		eventually(t, "it is asked for", func() bool { return l.asked(asks) })
		if l.mu.Lock(); !asks(l.interests[0]) || !l.interests[0].Full {
			t.Errorf("asked for %+v at first", l.interests[0])
		}
		l.mu.Unlock()
		m.Update(messages.ServiceUpdate{Rev: 2, Full: true, Unknown: []string{"10.172.0.1"}})
		eventually(t, "it is forgotten", func() bool { return l.asked(func(i messages.Interest) bool { return len(i.Addresses) == 0 }) })
		later()
		m.Use()
		_, said, _ := l.numbers()
		m.says.give()
		time.Sleep(20 * time.Millisecond)
		if _, now, _ := l.numbers(); now != said {
			t.Errorf("%d interests after %d: what nobody bears is asked for again", now, said)
		}
		end()
	}
	nothing := func(l *listener) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			i := l.interests[len(l.interests)-1]
			return len(i.Addresses)+len(i.Names) == 0
		}
	}
	l, end := listen(t, m)
	eventually(t, "it is asked for", func() bool { return l.asked(asks) })
	b.net.mu.Lock()
	b.net.flows = nil
	b.net.mu.Unlock()
	later()
	eventually(t, "it is forgotten with its last flow", nothing(l))
	end()
	b.net.mu.Lock()
	b.net.flows = []service.Flow{flow}
	b.net.mu.Unlock()
	l, _ = listen(t, m)
	eventually(t, "it is asked for", func() bool { return l.asked(asks) })
	m.Update(messages.ServiceUpdate{Rev: 3, Full: true, Services: []messages.ServiceEntry{web("10.160.0.131", true)}})
	eventually(t, "it is known by its name", func() bool {
		return l.asked(func(i messages.Interest) bool {
			return slices.Equal(i.Names, []messages.JobName{"web"}) && len(i.Addresses) == 0
		})
	})
}

// A session that begins before the network of the last run is up says nothing of what is in use until it is.
func TestFirstWordWaitsForTheNetwork(t *testing.T) {
	b := newBoard(t)
	m, end := b.start()
	m.Configure(config(1))
	eventually(t, "it is up", func() bool { return m.Use() != nil })
	end()
	b.net.mu.Lock()
	b.net.flows = []service.Flow{{Proto: 6, Local: netip.MustParseAddrPort("10.160.0.66:4000"), Dialled: netip.MustParseAddrPort("10.172.0.1:80"),
		Instance: netip.MustParseAddrPort("10.160.0.131:80")}}
	b.net.mu.Unlock()
	m = b.open()
	l, _ := listen(t, m)
	eventually(t, "its endpoints are said", func() bool { n, _, _ := l.numbers(); return n > 0 })
	b.run(m)
	eventually(t, "it asks", func() bool { _, n, _ := l.numbers(); return n > 0 })
	l.mu.Lock()
	defer l.mu.Unlock()
	if first := l.interests[0]; !first.Full || !slices.Equal(first.Addresses, []string{"10.172.0.1"}) {
		t.Errorf("asked for %+v at first", first)
	}
}

// What nobody here uses is not asked for any more after an hour; to look a name up and to hold a flow is to use it.
func TestInterest(t *testing.T) {
	b := newBoard(t)
	m, end := b.start()
	m.Configure(config(1))
	big := web("10.160.0.131", true) // of this node too, and too large a job for all to be peers of all
	for i := range maxMesh {
		big.Instances = append(big.Instances, messages.ServiceInstance{Ordinal: i + 1})
	}
	if _, err := m.Attach(t.Context(), attachment("web.0.0")); err != nil {
		t.Fatal(err)
	}
	m.Update(messages.ServiceUpdate{Rev: 1, Full: true, Services: []messages.ServiceEntry{big}})
	l, _ := listen(t, m)
	last := func(names ...messages.JobName) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			n := len(l.interests)
			return n > 0 && slices.Equal(l.interests[n-1].Names, names)
		}
	}
	eventually(t, "its own large job is not asked for", last())
	hours := func(n time.Duration) {
		m.asked.uses.mu.Lock()
		defer m.asked.uses.mu.Unlock()
		for job := range m.asked.uses.at {
			m.asked.uses.at[job] = time.Now().Add(-n * time.Hour)
		}
	}
	addresses := func(n int) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.interests[len(l.interests)-1].Addresses) == n
		}
	}
	b.net.static.OnMiss(netip.MustParseAddr("10.172.0.77"))
	eventually(t, "what is missed is asked for", addresses(1))
	m.mu.Lock()
	m.asked.missed[netip.MustParseAddr("10.172.0.77")] = time.Now().Add(-2 * time.Hour)
	m.mu.Unlock()
	eventually(t, "what is not missed any more is forgotten", addresses(0))
	b.net.static.OnNameMiss("other")
	b.net.static.OnNameHit("web")
	eventually(t, "what is looked up is asked for", last("other", "web"))
	hours(2)
	eventually(t, "it is forgotten", last())
	flow := service.Flow{Proto: 6, Local: netip.MustParseAddrPort("10.160.0.66:4000"), Dialled: netip.MustParseAddrPort("10.172.0.1:80"), Instance: netip.MustParseAddrPort("10.160.0.131:80")}
	b.net.mu.Lock()
	b.net.flows = []service.Flow{flow}
	b.net.mu.Unlock()
	eventually(t, "what is dialled is asked for", last("web"))
	b.net.mu.Lock()
	b.net.flows = nil
	b.net.mu.Unlock()
	m.Update(messages.ServiceUpdate{Rev: 2, Base: 1}) // the answer
	eventually(t, "it is written down", func() bool {
		var k kept
		_, err := b.store.Get(servicesValue, &k)
		return err == nil && slices.Equal(k.Names, []messages.JobName{"web"})
	})
	end()
	m, _ = b.start()
	l, _ = listen(t, m)
	eventually(t, "an engine that begins anew gives it another hour", last("web"))
	hours(2)
	eventually(t, "and no more", last())
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range messages.MaxInterest {
		m.asked.name(messages.JobName("job-" + itoa(i)))
	}
	m.asked.uses.note("job-0")
	m.asked.name("web")
	if n := len(m.asked.names); n != messages.MaxInterest || !slices.Contains(m.asked.names, "job-0") || slices.Contains(m.asked.names, "job-1") {
		t.Errorf("got %d names, want %d without the one that was not used for longest", n, messages.MaxInterest)
	}
}

func TestTrace(t *testing.T) {
	b := newBoard(t)
	m, _ := b.start()
	m.Configure(config(1))
	s := web("10.160.0.131", true)
	s.Policy = messages.RoundRobin
	m.Update(messages.ServiceUpdate{Rev: 1, Full: true, Services: []messages.ServiceEntry{s}})
	var got []messages.TraceAnswer
	ask := func(kind messages.TraceKind, name string, count int) {
		t.Helper()
		got = nil
		req := messages.TraceRequest{RequestID: "t", Kind: kind, Name: name, Count: count}
		if err := m.Trace(t.Context(), req, func(a *messages.TraceAnswer) error { got = append(got, *a); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"web": "10.172.0.1", "closest.web.skerry.internal": "10.172.0.2", "0.web": "10.172.0.3", "10.172.0.3": "10.172.0.3"} {
		if ask(messages.TraceResolve, name, 1); len(got) != 1 || !got[0].Last || got[0].Error != "" || got[0].Addresses[0] != want || got[0].Healthy != 1 {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	for _, name := range []string{"nobody", "7.web", "a.b.c", "10.1.1.1"} {
		if ask(messages.TraceResolve, name, 1); len(got) != 1 || !got[0].Last || got[0].Error == "" {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if !slices.Contains(m.asked.names, "nobody") || !slices.Contains(m.asked.names, "web") {
		t.Error("the manager was not asked")
	}
	for lost, want := range []messages.TraceAnswer{{RTTMS: 3}, {RTTMS: 3, Again: true}, {Lost: true, Again: true}} {
		m.ping = func(context.Context, string, netip.Addr) (time.Duration, error) {
			if lost--; lost >= 0 {
				return 0, errNoReply
			}
			return 3 * time.Millisecond, nil
		}
		if ask(messages.TracePath, "web", 1); len(got) != 1 || got[0].RTTMS != want.RTTMS || got[0].Lost != want.Lost || got[0].Again != want.Again {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	m.ping = func(context.Context, string, netip.Addr) (time.Duration, error) { return 0, errNoReply }
	if ask(messages.TracePing, "web", 1); len(got) != 1 || !got[0].Lost || got[0].Again {
		t.Errorf("a ping that is lost is not sent again: got %+v", got)
	}
}

// A ping of this machine's own loopback, from here and from a namespace.
func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatal("not root")
		}
		t.Skip("a raw socket needs root")
	}
	for _, path := range []string{"", "/proc/self/ns/net"} {
		for _, to := range []string{"127.0.0.1", "::1"} {
			if took, err := ping(t.Context(), path, netip.MustParseAddr(to)); err != nil || took <= 0 || took > pingWait {
				t.Errorf("%s from %q: got %v, %v", to, path, took, err)
			}
		}
	}
	if _, err := ping(t.Context(), "/no/such", netip.MustParseAddr("127.0.0.1")); err == nil {
		t.Error("a namespace that is not there answers")
	}
}

func TestTableUpdates(t *testing.T) {
	entry := func(job messages.JobName) messages.ServiceEntry { return messages.ServiceEntry{Job: job} }
	tb := newTable([]messages.ServiceEntry{entry("old")})
	steps := []struct {
		name string
		u    messages.ServiceUpdate
		ok   bool
		want []messages.JobName
	}{
		{"a difference before all", messages.ServiceUpdate{Rev: 4, Base: 3, Services: []messages.ServiceEntry{entry("a")}}, false, []messages.JobName{"old"}},
		{"the first part of all", messages.ServiceUpdate{Rev: 7, Full: true, More: true, Services: []messages.ServiceEntry{entry("a")}}, true, []messages.JobName{"old"}},
		{"the rest of it", messages.ServiceUpdate{Rev: 8, Base: 7, Services: []messages.ServiceEntry{entry("b")}}, true, []messages.JobName{"a", "b"}},
		{"a difference", messages.ServiceUpdate{Rev: 9, Base: 8, Services: []messages.ServiceEntry{entry("c")}, Gone: []messages.JobName{"a"}}, true, []messages.JobName{"b", "c"}},
		{"a repeat", messages.ServiceUpdate{Rev: 9, Base: 8}, false, []messages.JobName{"b", "c"}},
		{"all anew", messages.ServiceUpdate{Rev: 1, Full: true, Services: []messages.ServiceEntry{entry("d")}}, true, []messages.JobName{"d"}},
		{"of a manager that counts anew", messages.ServiceUpdate{Rev: 2, Base: 1, Gone: []messages.JobName{"d"}}, true, []messages.JobName{}},
	}
	for _, s := range steps {
		ok := tb.update(s.u)
		got := []messages.JobName{}
		for _, e := range tb.list() {
			got = append(got, e.Job)
		}
		if ok != s.ok || !slices.Equal(got, s.want) {
			t.Errorf("%s: got %v, %v, want %v, %v", s.name, ok, got, s.ok, s.want)
		}
	}
}
