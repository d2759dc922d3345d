package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.internal/messages"
)

// background is a skerry in this process that goes on.
type background struct {
	out, err buffer
	end      context.CancelCauseFunc
	ended    chan int
}

func (c *testCluster) background(t *testing.T, args ...string) *background {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	b := &background{end: cancel, ended: make(chan int, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { b.ended <- run(ctx, args, streams{out: &b.out, err: &b.err}, c.getenv) })
	t.Cleanup(func() {
		cancel(nil)
		wg.Wait()
	})
	return b
}

// says waits until the output holds a text.
func (b *background) says(t *testing.T, text string) {
	t.Helper()
	until(t, text, func() bool { return strings.Contains(b.out.String(), text) || strings.Contains(b.err.String(), text) })
}

// interrupt ends it as Ctrl-C does.
func (b *background) interrupt(t *testing.T) {
	t.Helper()
	b.end(&stopped{syscall.SIGINT})
	if code := <-b.ended; code != 130 {
		t.Errorf("interrupted: got exit code %d, want 130\n%s", code, b.err.String())
	}
}

// relay stands between skerry and the broker, so that a test can cut the link.
type relay struct {
	net.Listener
	to string

	mu    sync.Mutex // guards what follows
	conns []net.Conn
	deaf  bool // new connections are closed at once
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.join(c, &wg)
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut(true)
		wg.Wait()
	})
	return r
}

func (r *relay) join(c net.Conn, wg *sync.WaitGroup) {
	r.mu.Lock()
	defer r.mu.Unlock()
	up, err := net.Dial("tcp", r.to)
	if err != nil || r.deaf {
		c.Close()
		return
	}
	r.conns = append(r.conns, c, up)
	for _, pair := range [][2]net.Conn{{c, up}, {up, c}} {
		wg.Go(func() {
			io.Copy(pair[0], pair[1])
			pair[0].Close()
		})
	}
}

// cut ends every connection; deaf keeps new ones away.
func (r *relay) cut(deaf bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deaf = deaf
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

func (r *relay) url() string { return "tcp://" + r.Addr().String() }

// TestResultMissedWhileAway cuts the link, lets the command end meanwhile, and wants its end to be found out afterwards.
func TestResultMissedWhileAway(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	r := newRelay(t, c.m.MQTTAddr())
	s := c.background(t, "job", "deploy", "slow", "--image", "gated", "--broker", r.url())
	s.says(t, "preparing")
	r.cut(true)
	s.says(t, "connecting again")
	close(b.step)
	until(t, "the job to run", func() bool { return strings.Contains(c.skerry(t, "job", "status", "slow").out, "running  yes") })
	// Its last Result leaves once the job has been stable; let that be past.
	until(t, "the last Result to be gone by", func() bool {
		return strings.Contains(c.skerry(t, "job", "deploy", "slow", "--image", "gated", "--no-wait").out, "accepted")
	})
	r.cut(false)
	if code := <-s.ended; code != 0 || !strings.Contains(s.out.String(), "deploy of slow done") {
		t.Errorf("got %d\n%s%s", code, s.out.String(), s.err.String())
	}
	if n := strings.Count(s.out.String(), "accepted"); n != 1 {
		t.Errorf("the first Result was shown %d times", n)
	}
}

// TestLinkThatFlaps cuts the link again and again while a command goes on.
func TestLinkThatFlaps(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	r := newRelay(t, c.m.MQTTAddr())
	s := c.background(t, "job", "deploy", "slow", "--image", "gated", "--broker", r.url())
	s.says(t, "preparing")
	for range 4 {
		r.cut(false)
		b.step <- struct{}{}
	}
	close(b.step)
	if code := <-s.ended; code != 0 || !strings.Contains(s.out.String(), "done") {
		t.Errorf("got %d\n%s%s", code, s.out.String(), s.err.String())
	}
}

func TestManagerRestartsMeanwhile(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	s := c.background(t, "job", "deploy", "slow", "--image", "gated")
	s.says(t, "preparing")
	c.restart(t)
	s.says(t, "connecting again")
	b.register(c.m.HTTPAddr())
	b.connect(c.m.MQTTAddr())
	close(b.step)
	if code := <-s.ended; code != 0 || !strings.Contains(s.out.String(), "done") {
		t.Errorf("got %d\n%s%s", code, s.out.String(), s.err.String())
	}
}

func TestRequestIDRepeats(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	args := []string{"job", "deploy", "web", "--image", "x", "--request-id", "r1"}
	c.skerry(t, args...).want(t, 0, "done", "")
	c.skerry(t, args...).want(t, 0, "deploy of web done", "") // by the job's status: the manager sends no second last Result
	c.skerry(t, "job", "deploy", "web", "--image", "y").want(t, 0, "done", "")
	c.skerry(t, args...).want(t, 1, "", "superseded")
}

func TestLogs(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	c.skerry(t, "job", "deploy", "web", "--image", "x", "--replicas", "2").want(t, 0, "done", "")
	r := c.skerry(t, "job", "logs", "web.0.0")
	if r.code != 0 || r.out != "one\ntwo\n" || r.err != "oops\n" {
		t.Errorf("got %+v", r)
	}
	c.skerry(t, "job", "logs", "web.1").want(t, 0, "two", "")
	c.skerry(t, "job", "logs", "web").want(t, exitUsage, "", "web.0.0, web.1.0")
	c.skerry(t, "job", "logs", "nothing").want(t, 1, "", "there is no instance nothing")
	r = c.skerry(t, "job", "logs", "web.0", "--json")
	var chunk messages.LogChunk
	if err := json.Unmarshal([]byte(strings.SplitN(r.out, "\n", 2)[0]), &chunk); err != nil || chunk.Text != "one\ntwo\n" {
		t.Errorf("got %s, %v", r.out, err)
	}
	link := newRelay(t, c.m.MQTTAddr())
	s := c.background(t, "job", "logs", "web.0", "--follow", "--broker", link.url())
	s.says(t, "two")
	b.step <- struct{}{}
	s.says(t, "step 0")
	link.cut(false)
	s.says(t, "connecting again")
	// The simulated node begins again for a request that it has already; a real one renews it.
	until(t, "the request to be sent again", func() bool { return strings.Count(s.out.String(), "two") == 2 })
	b.vanish()
	s.says(t, "waiting for it")
	s.interrupt(t)
	until(t, "the node to be away", func() bool { return c.skerry(t, "job", "logs", "web.0").code == 1 })
	c.skerry(t, "job", "logs", "web.0").want(t, 1, "", "which has the output of web.0.0, is ")
}

func TestEvents(t *testing.T) {
	c := newCluster(t)
	people, programs := c.background(t, "events"), c.background(t, "events", "--json")
	// Events are not retained: joins repeat until both have subscribed.
	newBoard(t, c, "board-1")
	until(t, "both to hear", func() bool {
		c.skerry(t, "job", "deploy", "web", "--image", "x")
		c.skerry(t, "job", "delete", "web")
		return strings.Contains(people.out.String(), "job-deleted") && strings.Contains(programs.out.String(), "job-deleted")
	})
	people.interrupt(t)
	programs.interrupt(t)
	if people.err.String() != "" {
		t.Errorf("an interrupt says %q, want nothing", people.err.String())
	}
	for l := range strings.Lines(programs.out.String()) {
		var e messages.Event
		if err := messages.DecodeFromManager([]byte(l), &e); err != nil {
			t.Errorf("%s: %v", l, err)
		}
	}
}

func TestCompletion(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	c.skerry(t, "job", "deploy", "web", "--image", "x", "--replicas", "2").want(t, 0, "done", "")
	for line, want := range map[string]string{
		"job status ":             "web\n",
		"job status x":            ":4\n",
		"node status b":           "board-1\n",
		"job logs web.1":          "web.1.0\n",
		"job move web --to co":    "core-1\n",
		"job move web --from a,b": "a,board-1\n",
		"node replace b":          "board-1\n",
		"node remove board-1 ":    "core-1\n:4\n",
	} {
		words := strings.Split(line, " ")
		began := time.Now()
		r := c.skerry(t, append([]string{"__complete"}, words...)...)
		if r.code != 0 || !strings.HasPrefix(r.out, want) {
			t.Errorf("%s: got %d %q, want %q", line, r.code, r.out, want)
		}
		if took := time.Since(began); took > 2*completionTime {
			t.Errorf("%s: took %s", line, took)
		}
	}
	// Without a broker a shell must not wait, nor see an error.
	r := c.skerry(t, "__complete", "--broker", "tcp://127.0.0.1:1", "job", "status", "")
	if r.code != 0 || !strings.HasPrefix(r.out, ":4") {
		t.Errorf("no broker: got %d %q", r.code, r.out)
	}
}

func TestTelemetry(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	s := c.background(t, "node", "status", "board-1", "--telemetry", "--json")
	topic := messages.Topic{Kind: messages.InformationTopic, Node: "board-1"}.String()
	payload := messages.Encode(messages.Telemetry{CPU: messages.CPUUse{Percent: 12.5}, UptimeS: 60})
	until(t, "the telemetry to be printed", func() bool {
		b.done(b.client.Publish(topic, 0, false, payload))
		return s.out.String() != ""
	})
	var got struct {
		messages.NodeStatus
		Telemetry messages.Telemetry `json:"telemetry"`
	}
	if err := json.Unmarshal([]byte(s.out.String()), &got); err != nil || got.Node != "board-1" || got.Telemetry.CPU.Percent != 12.5 {
		t.Errorf("got %s, %v", s.out.String(), err)
	}
	if code := <-s.ended; code != 0 {
		t.Errorf("got exit code %d", code)
	}
	c.skerry(t, "node", "status", "core-1", "--telemetry").want(t, 1, "expected", "no telemetry came")
	c.skerry(t, "node", "status", "nobody").want(t, 1, "", "there is no node nobody")
}

// TestBrokerWithoutManager talks to a broker on which nobody manages a cluster.
func TestBrokerWithoutManager(t *testing.T) {
	addr := bareBroker(t)
	c := newCluster(t)
	for _, line := range []string{"node list", "job list", "job status web", "job delete web", "job deploy web --image x", "job logs web"} {
		r := c.skerry(t, append(strings.Fields(line), "--broker", "tcp://"+addr)...)
		r.want(t, 1, "", "no cluster manager on this broker")
	}
}
