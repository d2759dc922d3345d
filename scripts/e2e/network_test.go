package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager/nettest"
)

// newNetworkLab starts a manager and nodes, each on a host of its own in a network namespace, all on one segment. The containers are the real
// Docker engine's.
func newNetworkLab(t *testing.T, nodes ...string) *lab {
	t.Helper()
	l := newHosts(t, nodes...)
	for _, name := range nodes {
		l.networkNode(name)
	}
	return l
}

// newHosts starts a manager on the first of some hosts.
func newHosts(t *testing.T, others ...string) *lab {
	t.Helper()
	l := emptyHosts(t, others...)
	l.startManager()
	l.follow()
	return l
}

// emptyHosts returns some hosts, the manager's and others, on which nothing runs yet.
func emptyHosts(t *testing.T, others ...string) *lab {
	t.Helper()
	l := emptyLab(t)
	l.hosts = map[string]*nettest.Host{}
	var ends []nettest.End
	for i, name := range append([]string{"manager"}, others...) {
		l.hosts[name] = nettest.NewHost(t, name)
		ends = append(ends, nettest.End{Host: l.hosts[name], Interface: "eth0", Addresses: []string{fmt.Sprintf("198.51.100.%d/24", i+1)}})
	}
	nettest.Switch(t, "segment", ends...)
	l.http, l.mqtt = "198.51.100.1:10100", "0.0.0.0:1883"
	return l
}

// networkNode starts a node and waits until it is part of the network.
func (l *lab) networkNode(name string, flags ...string) messages.NodeID {
	l.t.Helper()
	id := l.node(name, flags...)
	l.eventually(string(id)+" in the network", func() bool {
		s, ok := l.nodeStatus(id)
		return ok && s.Overlay != nil && s.Overlay.State == messages.OverlayUp
	})
	return id
}

// serve deploys the test's workload on a node and waits until it is healthy.
func (l *lab) serve(name messages.JobName, replicas int, nodes ...messages.NodeID) messages.JobStatus {
	l.t.Helper()
	l.do(deployCommand(app(name, replicas, nil), nodes...))
	return l.waitJob(name, "healthy", func(s messages.JobStatus) bool { return s.Healthy == replicas })
}

// asked is what a container saw.
type asked struct {
	Failed int            `json:"failed"`
	Seen   map[string]int `json:"seen"`
	Took   []int64        `json:"took_us"`
}

// ask lets a container of the job fetch a URL so many times.
func (l *lab) ask(job messages.JobName, url string, times int) asked {
	l.t.Helper()
	a, err := l.tryAsk(job, url, times)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

func (l *lab) tryAsk(job messages.JobName, target string, times int) (asked, error) {
	return l.askBy(job, url.Values{"url": {target}, "times": {strconv.Itoa(times)}})
}

// askBy lets a container of the job do what the values say: see the workload's get.
func (l *lab) askBy(job messages.JobName, how url.Values) (asked, error) { return l.askOf(job, 0, how) }

// askOf has one of the job's copies do it.
func (l *lab) askOf(job messages.JobName, copy int, how url.Values) (asked, error) {
	var a asked
	s, _ := l.job(job)
	if len(s.Instances) <= copy {
		return a, fmt.Errorf("%s has %d instances", job, len(s.Instances))
	}
	i := s.Instances[copy]
	resp, err := l.client4(i.Node).Get(fmt.Sprintf("http://%s:8080/get?%s", i.Address, how.Encode()))
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// client4 speaks HTTP from the host of a node.
func (l *lab) client4(id messages.NodeID) *http.Client {
	host := l.hosts[strings.TrimPrefix(string(id), l.prefix)]
	return &http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return host.Dial(ctx, network, address)
	}}}
}

// Containers on two nodes reach one another by name, with what is published, and see who answers in turn.
func TestServiceByName(t *testing.T) {
	t.Parallel()
	l := newNetworkLab(t, "a", "b")
	web := l.serve("web", 2, l.id("a"), l.id("b"))
	l.serve("client", 1, l.id("a"))
	got := l.ask("client", "http://web.skerry.internal:8080/", 20)
	if got.Failed > 0 || len(got.Seen) != 2 {
		t.Errorf("round robin: got %v, want both instances", got)
	}
	for answer, n := range got.Seen {
		if n != 10 {
			t.Errorf("round robin: %s answered %d times of 20", answer, n)
		}
	}
	got = l.ask("client", "http://closest.web.skerry.internal:8080/", 6)
	if len(got.Seen) != 1 || !strings.Contains(fmt.Sprint(got.Seen), string(l.id("a"))) {
		t.Errorf("closest: got %v, want that of node a", got)
	}
	for _, i := range web.Instances {
		name := strings.Split(string(i.Instance), ".")[1] + ".web.skerry.internal"
		got = l.ask("client", "http://"+name+":8080/", 3)
		if len(got.Seen) != 1 || !strings.Contains(fmt.Sprint(got.Seen), string(i.Instance)) {
			t.Errorf("%s: got %v, want %s", name, got, i.Instance)
		}
		if i.Address == "" || !slices.Contains(i.Names, name) {
			t.Errorf("%s: address %q, names %v in its status", i.Instance, i.Address, i.Names)
		}
	}
	l.published(web)

	// Who fails its check gets no request until it passes again.
	sick := func(is string, healthy int) {
		t.Helper()
		l.ask("client", "http://0.web.skerry.internal:8080/sick?is="+is, 1)
		l.waitJob("web", "as healthy as it is", func(s messages.JobStatus) bool { return s.Healthy == healthy })
		l.eventually("the services to follow", func() bool { return len(l.ask("client", "http://web.skerry.internal:8080/", 4).Seen) == healthy })
		got := l.ask("client", "http://web.skerry.internal:8080/", 20)
		if who := fmt.Sprint(got.Seen); got.Failed > 0 || len(got.Seen) != healthy || strings.Contains(who, "web.0.0") != (is == "") {
			t.Errorf("with %d that are healthy: got %v", healthy, got)
		}
	}
	sick("yes", 1)
	sick("", 2)

	near := app("near", 2, nil)
	near.Network.Policy = messages.Closest
	l.do(deployCommand(near, l.id("a"), l.id("b")))
	if got = l.ask("client", "http://near.skerry.internal:8080/", 6); got.Failed > 0 || len(got.Seen) != 1 || !strings.Contains(fmt.Sprint(got.Seen), string(l.id("a"))) {
		t.Errorf("policy closest: got %v, want that of node a", got)
	}
	closed := app("closed", 1, nil)
	closed.Network.Allow = []messages.JobName{"client"}
	l.do(deployCommand(closed, l.id("b")))
	l.serve("stranger", 2, l.id("a"), l.id("b"))
	if got = l.ask("client", "http://closed.skerry.internal:8080/", 4); got.Failed > 0 {
		t.Errorf("who is allowed: got %v", got)
	}
	for copy := range 2 { // on another node, and on the same
		got, err := l.askOf("stranger", copy, url.Values{"url": {"http://closed.skerry.internal:8080/"}, "times": {"4"}})
		if err != nil || got.Failed != 4 {
			t.Errorf("copy %d of who is not: got %v, %v", copy, got, err)
		}
	}
}

// published asks each instance by the port that its node publishes, from the node itself and from another host.
func (l *lab) published(s messages.JobStatus) {
	l.t.Helper()
	for _, i := range s.Instances {
		if len(i.Ports) == 0 || i.Ports[0].Host == 0 {
			l.t.Errorf("%s: no port is published: %v", i.Instance, i.Ports)
			continue
		}
		host := strings.TrimPrefix(string(i.Node), l.prefix)
		address := map[string]string{"a": "198.51.100.2", "b": "198.51.100.3"}[host]
		for from, target := range map[messages.NodeID]string{i.Node: "127.0.0.1", l.id("manager"): address} {
			resp, err := l.client4(from).Get(fmt.Sprintf("http://%s:%d/", target, i.Ports[0].Host))
			if err != nil {
				l.t.Errorf("%s by its published port from %s: %v", i.Instance, from, err)
				continue
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(body), string(i.Instance)) {
				l.t.Errorf("port %d of %s: got %q", i.Ports[0].Host, i.Node, body)
			}
		}
	}
}

// Requests by the service's name from a third node all succeed while the job is moved and then changed copy by copy.
func TestMoveByServiceName(t *testing.T) {
	t.Parallel()
	l := newNetworkLab(t, "a", "b", "c")
	l.serve("web", 2, l.id("a"))
	l.serve("client", 2, l.id("c"))
	before, _ := l.job("web")
	type target struct {
		name             string
		says             string // how each answer begins
		requests, failed atomic.Int64
		problems         sync.Map
	}
	targets := []*target{{name: "web.skerry.internal", says: "web."}, {name: "0.web.skerry.internal", says: "web.0."}}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for copy, to := range targets { // each has a copy of the client of its own
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := l.askOf("client", copy, url.Values{"url": {"http://" + to.name + ":8080/"}, "times": {"50"}})
				if err != nil {
					t.Error(err)
					return
				}
				to.requests.Add(50)
				to.failed.Add(int64(got.Failed))
				for answer := range got.Seen {
					if !strings.HasPrefix(answer, to.says) {
						to.problems.Store(answer, true)
					}
				}
			}
		})
	}
	during := func(what string, cmd messages.Command) { // there have to be requests while it happens
		begun := []int64{targets[0].requests.Load(), targets[1].requests.Load()}
		l.do(cmd)
		for i, to := range targets {
			n := to.requests.Load() - begun[i]
			t.Logf("%d requests to %s during the %s", n, to.name, what)
			if n == 0 {
				t.Errorf("%d requests to %s during the %s: nothing is shown", n, to.name, what)
			}
		}
	}
	enough := func() bool { return targets[0].requests.Load()+targets[1].requests.Load() >= 10_000 || t.Failed() }
	from, to := l.id("a"), l.id("b")
	for round := 1; round == 1 || !enough(); round++ {
		during("move", messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{from}, Worker: []messages.NodeID{to}})
		if round == 1 {
			after, _ := l.job("web")
			for i := range before.Instances {
				if before.Instances[i].Address == after.Instances[i].Address {
					t.Errorf("%s and %s have one address: nothing was moved", before.Instances[i].Instance, after.Instances[i].Instance)
				}
			}
		}
		during("rolling change", deployCommand(app("web", 2, map[string]string{"MODE": strconv.Itoa(round)}), to))
		from, to = to, from
	}
	close(stop)
	wg.Wait()
	for _, to := range targets {
		if to.failed.Load() > 0 {
			t.Errorf("%d of %d requests to %s failed", to.failed.Load(), to.requests.Load(), to.name)
		}
		to.problems.Range(func(k, _ any) bool { t.Errorf("%s answered %q", to.name, k); return true })
	}
}

// A TCP stream between containers goes on over kill -9 and restart of an engine and of the manager, and of both nodes' view of the network
// nothing is lost.
func TestStreamOverRestarts(t *testing.T) {
	t.Parallel()
	l := newNetworkLab(t, "a", "b")
	web := l.serve("web", 1, l.id("b"))
	l.serve("client", 1, l.id("a"))
	conn := l.dialInside("client", "web.skerry.internal:8080")
	defer conn.Close()
	request := func() {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(soon))
		if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil || !strings.Contains(string(buf[:n]), "web.0.0") {
			t.Fatalf("the stream: %q %v", buf[:n], err)
		}
	}
	request()
	silence := chatter(t, l.dialInside("client", "web.skerry.internal:8080"))
	containers := l.containers(l.id("a"), l.id("b"))
	for _, name := range []string{"a", "b"} {
		l.kill(l.nodes[l.id(name)])
		l.networkNode(name)
		request()
	}
	l.kill(l.manager)
	request()
	l.startManager()
	l.networkNodeAgain("a", "b")
	request()
	silence()
	if now := l.containers(l.id("a"), l.id("b")); fmt.Sprint(now) != fmt.Sprint(containers) {
		t.Errorf("containers were %v, are %v", containers, now)
	}
	after := l.waitJob("web", "running", func(s messages.JobStatus) bool { return s.Healthy == 1 })
	if after.Instances[0].Address != web.Instances[0].Address {
		t.Errorf("the address was %s, is %s", web.Instances[0].Address, after.Instances[0].Address)
	}
}

// chatter sends requests over a connection all the time, whether or not they are answered just then, and returns what ends it: all have to be
// answered by then.
func chatter(t *testing.T, conn net.Conn) (silence func()) {
	t.Helper()
	stop, said, heard := make(chan struct{}), make(chan int, 1), make(chan int, 1)
	go func() {
		answered := 0
		defer func() { heard <- answered }()
		for answers := bufio.NewReader(conn); ; answered++ {
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				return // the end, after the last request
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}()
	go func() {
		sent := 0
		defer func() { said <- sent }()
		for last := false; !last; sent++ {
			how := ""
			select {
			case <-stop:
				last, how = true, "Connection: close\r\n"
			case <-time.After(5 * time.Millisecond):
			}
			if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: web\r\n"+how+"\r\n"); err != nil {
				t.Errorf("after %d requests: %v", sent, err)
				return
			}
		}
	}()
	return func() {
		t.Helper()
		defer conn.Close()
		close(stop)
		_ = conn.SetDeadline(time.Now().Add(soon))
		if sent, answered := <-said, <-heard; answered != sent {
			t.Errorf("%d requests were sent, %d answered", sent, answered)
		} else {
			t.Logf("%d requests were sent and answered", sent)
		}
	}
}

func (l *lab) networkNodeAgain(names ...string) {
	l.t.Helper()
	for _, name := range names {
		l.eventually(name+" online", func() bool {
			s, ok := l.nodeStatus(l.id(name))
			return ok && s.State == messages.NodeOnline
		})
	}
}

// dialInside connects from within a container of the job, by name.
func (l *lab) dialInside(job messages.JobName, address string) net.Conn {
	l.t.Helper()
	s, _ := l.job(job)
	i := s.Instances[0]
	inside := l.inside(i)
	gateway := l.gateway(i.Node)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		l.t.Fatal(err)
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return inside.Dial(ctx, network, net.JoinHostPort(gateway, "53"))
	}}
	found, err := r.LookupNetIP(l.t.Context(), "ip4", host)
	if err != nil {
		l.t.Fatal(err)
	}
	conn, err := inside.Dial(l.t.Context(), "tcp", net.JoinHostPort(found[0].String(), port))
	if err != nil {
		l.t.Fatal(err)
	}
	return conn
}

// inside is the network namespace of an instance's container.
func (l *lab) inside(i messages.InstanceReport) *nettest.Host {
	l.t.Helper()
	pid := l.docker("inspect", "--format", "{{.State.Pid}}", l.containers(i.Node)[i.Instance])
	return nettest.Inside(l.t, string(i.Instance), "/proc/"+pid+"/ns/net")
}

// gateway returns the address of a node's bridge: the first one of its block.
func (l *lab) gateway(id messages.NodeID) string {
	l.t.Helper()
	s, _ := l.nodeStatus(id)
	ip, _, err := net.ParseCIDR(s.Overlay.Blocks[0])
	if err != nil {
		l.t.Fatal(err)
	}
	ip = ip.To4()
	ip[3]++
	return ip.String()
}

// speeds is how long 99 of 100 requests from one node to another take at most, by the service's name: over one connection, and over a new one each,
// with the name looked up for each.
type speeds struct{ open, anew time.Duration }

// within says whether no more is taken than twice as long as the slower of two, and what is allowed beside.
func (s speeds) within(a, b speeds, allowed time.Duration) bool {
	return s.open <= 2*max(a.open, b.open)+allowed && s.anew <= 2*max(a.anew, b.anew)+allowed
}

// measure lets two clusters make requests in turn, a few at a time, so that whatever else the machine does is in the way of both.
func measure(a, b *lab) (ofA, ofB speeds) {
	a.t.Helper()
	const turns, each = 20, 10
	p99 := func(keep string) (ofA, ofB time.Duration) {
		took := map[*lab][]int64{}
		for range turns {
			for _, l := range []*lab{a, b} {
				got, err := l.askBy("client", url.Values{"url": {"http://web.skerry.internal:8080/"}, "times": {strconv.Itoa(each)}, "keep": {keep}})
				if err != nil || got.Failed > 0 {
					a.t.Fatalf("requests failed: %v, %v", got.Seen, err)
				}
				took[l] = append(took[l], got.Took...)
			}
		}
		at := turns*each*99/100 - 1
		slices.Sort(took[a])
		slices.Sort(took[b])
		return time.Duration(took[a][at]) * time.Microsecond, time.Duration(took[b][at]) * time.Microsecond
	}
	ofA.open, ofB.open = p99("yes")
	ofA.anew, ofB.anew = p99("")
	return ofA, ofB
}

// standstill is how long the manager is frozen: 20 s, or a minute where SKERRY_TEST_LONG is set, as it is in CI.
func standstill() time.Duration {
	if os.Getenv("SKERRY_TEST_LONG") != "" {
		return time.Minute
	}
	return 20 * time.Second
}

// While the manager is frozen, what is known works as before and as fast, for flows that are open and for new ones, and asking for what is not known
// does not hold it up.
//
// The p99 of a few hundred requests says little on two processors that others use too: any of the programs in between may get none for tens of
// milliseconds. So another cluster, whose manager runs, makes requests in turn with this one, and what it takes counts beside what this one took before. Of
// several measurements one has to hold, for noise only adds; the time has quarters, in each of which one has to, so that a slow one cannot hide
// behind the others.
func TestManagerFrozen(t *testing.T) {
	t.Parallel()
	const (
		quarters = 4
		least    = 3                    // measurements in a quarter, however long they take
		allowed  = 5 * time.Millisecond // beside twice as long as before: a turn or two of another program on a processor
	)
	l, other := newNetworkLab(t, "a", "b"), newNetworkLab(t, "a", "b")
	for _, l := range []*lab{l, other} {
		l.serve("web", 1, l.id("b"))
		l.serve("client", 1, l.id("a"))
		l.eventually("the name is known", func() bool {
			got, err := l.tryAsk("client", "http://web.skerry.internal:8080/", 1)
			return err == nil && got.Failed == 0
		})
	}
	before, _ := measure(l, other)
	for range least - 1 {
		again, _ := measure(l, other)
		before = speeds{min(before.open, again.open), min(before.anew, again.anew)}
	}
	if err := l.manager.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.manager.cmd.Process.Signal(syscall.SIGCONT) }()
	over := make(chan struct{})
	var wg sync.WaitGroup
	names, packets := 0, 0
	wg.Go(func() { names = l.askForNobody(over) })
	wg.Go(func() { packets = l.sendToNobody(over) })
	begun := time.Now()
	for i := range quarters {
		held := false
		for n := 0; n < least && !held || time.Since(begun) < time.Duration(i+1)*standstill()/quarters; n++ {
			during, running := measure(l, other)
			t.Logf("after %v: p99 %v, before %v, where the manager runs %v", time.Since(begun).Round(time.Second), during, before, running)
			held = held || during.within(before, running, allowed)
		}
		if !held {
			t.Errorf("quarter %d: 99 of 100 requests take more than twice as long as before", i)
		}
	}
	close(over)
	wg.Wait()
	t.Logf("all the while %d requests by unknown names, and packets to %d unknown addresses", names, packets)
	if names == 0 || packets < 100 {
		t.Error("too little was asked of a manager that does not answer")
	}
}

// askForNobody has the client ask by a name that only the manager could know, over and over, and returns how often; each has to fail.
func (l *lab) askForNobody(over <-chan struct{}) (times int) {
	for {
		select {
		case <-over:
			return times
		default:
		}
		got, err := l.tryAsk("client", fmt.Sprintf("http://nobody-%d.skerry.internal:8080/", times), 1)
		if err != nil || got.Failed != 1 {
			l.t.Errorf("an unknown name: got %v, %v", got, err)
			return times
		}
		times++
	}
}

// sendToNobody sends a packet from the client to ever other service addresses, a hundred a second, of which only the manager could know whose they are.
func (l *lab) sendToNobody(over <-chan struct{}) (sent int) {
	s, _ := l.job("client")
	inside := l.inside(s.Instances[0])
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return sent
		case <-tick.C:
		}
		conn, err := inside.Dial(l.t.Context(), "udp", fmt.Sprintf("10.175.%d.%d:9", sent/250%250, sent%250+1))
		if err != nil {
			l.t.Error(err)
			return sent
		}
		if _, err := conn.Write([]byte("anybody?")); err == nil { // an error of an earlier one is none of ours
			sent++
		}
		_ = conn.Close()
	}
}

// After a reboot without a link a node brings its network up from its disk, before what starts on it.
func TestNetworkAfterReboot(t *testing.T) {
	t.Parallel()
	l := newNetworkLab(t, "a")
	l.serve("web", 1, l.id("a"))
	l.serve("client", 1, l.id("a"))
	a := l.nodes[l.id("a")]
	l.kill(a)
	l.kill(l.manager)
	ids := strings.Fields(l.docker("ps", "-q", "--filter", "label=skerry.node="+string(l.id("a"))))
	l.docker(append([]string{"kill"}, ids...)...)
	l.hosts["a"] = nettest.NewHost(t, "a") // as after a boot: nothing in the kernel, no link
	l.startNode("a")
	l.eventually("the job to answer by name without a manager", func() bool {
		got, err := l.tryAsk("client", "http://web.skerry.internal:8080/", 1)
		return err == nil && got.Failed == 0
	})
	// The program answers a moment before Docker says that its container runs.
	l.eventually("both to run", func() bool { return len(l.containers(l.id("a"))) == 2 })
	l.startManager() // so that the lab can end in good order
}
