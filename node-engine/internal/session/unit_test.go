package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"skerry.internal/messages"
	"skerry.internal/messages/trust"
)

func TestBackoffGrowsWithinItsBounds(t *testing.T) {
	b := backoff{min: 200 * time.Millisecond, max: 30 * time.Second, jitter: jitter}
	want := b.min
	for range 20 {
		if got := b.next(); got < want/2 || got > want {
			t.Fatalf("got %s, want from %s to %s", got, want/2, want)
		}
		want = min(2*want, b.max)
	}
	b.reset()
	if got := b.next(); got > b.min {
		t.Errorf("after a reset: got %s, want at most %s", got, b.min)
	}
}

// A manager that is restarted every ten seconds is found at once each time; one that hangs up after a moment is called ever more rarely.
func TestBackoffAfterSessions(t *testing.T) {
	for session, most := range map[time.Duration]time.Duration{10 * time.Second: 200 * time.Millisecond, time.Second: 30 * time.Second, 0: 30 * time.Second} {
		b := backoff{min: 200 * time.Millisecond, max: 30 * time.Second, jitter: func(d time.Duration) time.Duration { return d }}
		var got time.Duration
		for range 20 {
			b.after(session, defaultPace().lasted)
			got = b.next()
		}
		if got != most {
			t.Errorf("sessions of %s: got waits of %s, want %s", session, got, most)
		}
	}
}

// A manager that took long to come back, and went again some seconds later, is looked for again soon.
func TestBackoffAfterAShortSession(t *testing.T) {
	for session, want := range map[time.Duration]time.Duration{2 * time.Second: 2 * time.Second, 9 * time.Second: 2 * time.Second, 16 * time.Second: 200 * time.Millisecond} {
		b := backoff{min: 200 * time.Millisecond, max: 30 * time.Second, jitter: func(d time.Duration) time.Duration { return d }}
		for range 8 {
			b.next()
		}
		b.after(session, defaultPace().lasted)
		if got := b.next(); got != want {
			t.Errorf("after %s: got %s, want %s", session, got, want)
		}
	}
}

func TestBackoffStaysWithinTheLease(t *testing.T) {
	for lease, most := range map[time.Duration]time.Duration{
		0: 3750 * time.Millisecond, 30 * time.Second: 3750 * time.Millisecond, time.Hour: 30 * time.Second, time.Millisecond: 200 * time.Millisecond,
	} {
		b := backoff{min: 200 * time.Millisecond, jitter: func(d time.Duration) time.Duration { return d }}
		b.within(lease, 30*time.Second)
		var got time.Duration
		for range 20 {
			got = b.next()
		}
		if got != most {
			t.Errorf("lease %s: got waits of up to %s, want %s", lease, got, most)
		}
	}
}

func TestBrokerURL(t *testing.T) {
	for in, want := range map[string]string{
		"tcp://:1883":           "tcp://manager:1883",
		"tcp://0.0.0.0:1884":    "tcp://manager:1884",
		"tcp://[::]:1884":       "tcp://manager:1884",
		"mqtt://10.0.0.7":       "mqtt://10.0.0.7:1883",
		"ssl://broker.example":  "tls://broker.example:8883",
		"tls://[fe80::1]:9":     "tls://[fe80::1]:9",
		"tcp://user:pw@b:1":     "tcp://b:1",
		"http://b:1":            "",
		"":                      "",
		"tcp://b:port":          "",
		"tcp://" + "\x00" + ":": "",
	} {
		u, err := brokerURL(in, "manager")
		got := ""
		if err == nil {
			got = u.String()
		}
		if got != want {
			t.Errorf("%q: got %q (%v), want %q", in, got, err, want)
		}
	}
	w := messages.Welcome{Brokers: []string{"http://x", "tcp://:1"}}
	if urls, err := brokerURLs(&w, "m"); err != nil || len(urls) != 1 {
		t.Errorf("one good broker of two: got %v, %v", urls, err)
	}
	w.Brokers = w.Brokers[:1]
	if _, err := brokerURLs(&w, "m"); err == nil {
		t.Error("no usable broker: got no error")
	}
}

func TestManagerURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://m": "http://m:10100", "https://m:7": "https://m:7", "http://[::1]": "http://[::1]:10100",
		"m:10100": "", "tcp://m:1": "", "http://": "", "": "", "http://:10100": "",
	} {
		u, err := ManagerURL(in)
		got := ""
		if err == nil {
			got = u.String()
		}
		if got != want {
			t.Errorf("%q: got %q (%v), want %q", in, got, err, want)
		}
	}
}

func TestClockSkewStaysWithoutAChangeOfTheClock(t *testing.T) {
	start := time.Now()
	a := admission{at: start, skew: time.Hour}
	if got := a.clockSkew(start.Add(time.Minute)); got != time.Hour {
		t.Errorf("clock left alone: got %s, want 1h", got)
	}
}

func TestCutKeepsCharactersWhole(t *testing.T) {
	text := strings.Repeat("aé€😀", 50)
	for n := 4; n < 40; n++ {
		rest := text
		for len(rest) > 0 {
			k := cut(rest, n)
			if k <= 0 || k > n || !utf8.ValidString(rest[:k]) {
				t.Fatalf("cut at %d of %q gives %d", n, rest[:min(len(rest), 8)], k)
			}
			rest = rest[k:]
		}
	}
	if got := cut(strings.Repeat("\x80", 100), 10); got != 10 {
		t.Errorf("no character at all: got %d, want 10", got)
	}
}

func TestNotable(t *testing.T) {
	base := messages.Telemetry{CPU: messages.CPUUse{Percent: 10}, Disk: messages.DiskUse{TotalMB: 1000, FreeMB: 500},
		Instances: []messages.InstanceUse{{Instance: "a.0.1", MemoryMB: 50}}, GPUs: []messages.GPUUse{{Percent: 1}},
		Sensors: []messages.SensorReading{{Name: "s", Value: 20}}}
	for name, c := range map[string]struct {
		change func(*messages.Telemetry)
		want   bool
	}{
		"nothing":         {func(*messages.Telemetry) {}, false},
		"noise":           {func(t *messages.Telemetry) { t.CPU.Percent += 4; t.Temperature += 2; t.Network.RxBPS = 9e4 }, false},
		"uptime and load": {func(t *messages.Telemetry) { t.UptimeS += 5; t.Load[0] = 3 }, false},
		"processor":       {func(t *messages.Telemetry) { t.CPU.Percent += 6 }, true},
		"disk":            {func(t *messages.Telemetry) { t.Disk.FreeMB -= 11 }, true},
		"network":         {func(t *messages.Telemetry) { t.Network.TxBPS = 3e5 }, true},
		"free":            {func(t *messages.Telemetry) { t.Free.CPUs = 1 }, true},
		"new instance":    {func(t *messages.Telemetry) { t.Instances = append(t.Instances, messages.InstanceUse{}) }, true},
		"restart": {func(t *messages.Telemetry) {
			t.Instances = []messages.InstanceUse{{Instance: "a.0.1", Restarts: 1, MemoryMB: 50}}
		}, true},
		"graphics":          {func(t *messages.Telemetry) { t.GPUs = []messages.GPUUse{{Percent: 20}} }, true},
		"sensor":            {func(t *messages.Telemetry) { t.Sensors = []messages.SensorReading{{Name: "s", Value: 22}} }, true},
		"sensor a bit":      {func(t *messages.Telemetry) { t.Sensors = []messages.SensorReading{{Name: "s", Value: 20.5}} }, false},
		"clock":             {func(t *messages.Telemetry) { t.ClockSkewMS = -500 }, true},
		"instance's memory": {func(t *messages.Telemetry) { t.Instances = []messages.InstanceUse{{Instance: "a.0.1", MemoryMB: 60}} }, true},
	} {
		b := base
		c.change(&b)
		if got := notable(&base, &b); got != c.want {
			t.Errorf("%s: got %t, want %t", name, got, c.want)
		}
	}
}

func status(id messages.InstanceID, seq uint64, state messages.State) messages.InstanceStatus {
	job, _, generation, _ := id.Split()
	return messages.InstanceStatus{Instance: id, Job: job, Generation: generation, Seq: seq, State: state}
}

func TestOutboxKeepsTheNewestUntilItIsAcknowledged(t *testing.T) {
	o := NewOutbox()
	o.Put(status("a.0.1", 1, messages.Preparing))
	o.Put(status("b.0.1", 1, messages.Preparing))
	o.Put(status("a.0.1", 3, messages.ExitedState))
	o.Put(status("a.0.1", 2, messages.Running)) // late
	first, _ := o.take()
	if first.Instance != "a.0.1" || first.Seq != 3 {
		t.Fatalf("got %s seq %d, want a.0.1 seq 3", first.Instance, first.Seq)
	}
	if second, _ := o.take(); second.Instance != "b.0.1" {
		t.Fatalf("got %s, want b.0.1", second.Instance)
	}
	if _, ok := o.take(); ok {
		t.Fatal("a third status waits")
	}
	o.acked("b.0.1", 1)
	o.Again(nil) // a's last was never acknowledged
	again, ok := o.take()
	if !ok || again.Seq != 3 {
		t.Fatalf("after a lost session: got %v %t, want seq 3 of a", again, ok)
	}
	if _, ok := o.take(); ok {
		t.Fatal("an acknowledged status came again by itself")
	}
	o.acked("a.0.1", 2) // an older acknowledgement says nothing
	o.Again([]messages.InstanceStatus{status("a.0.1", 2, messages.Running), status("b.0.1", 1, messages.Preparing)})
	seqs := map[messages.InstanceID]uint64{}
	for s, ok := o.take(); ok; s, ok = o.take() {
		seqs[s.Instance] = s.Seq
	}
	if len(seqs) != 2 || seqs["a.0.1"] != 3 || seqs["b.0.1"] != 1 {
		t.Errorf("got %v, want a at 3 and b at 1", seqs)
	}
}

func TestOutboxWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox()
		got := make(chan uint64, 1)
		go func() {
			s, _ := o.next(t.Context())
			got <- s.Seq
		}()
		synctest.Wait()
		o.Put(status("a.0.1", 7, messages.Running))
		if seq := <-got; seq != 7 {
			t.Errorf("got seq %d, want 7", seq)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := o.next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("ended: got %v, want context.Canceled", err)
		}
	})
}

var quiet = slog.New(slog.DiscardHandler)

func testInbox() *inbox {
	return newInbox("n1", &rejects{log: quiet, said: map[string]time.Time{}})
}

// hostile holds what no node may act on, by topic and payload.
var hostile = [][2]string{
	{"nodes/n1/control/deploy", ``},
	{"nodes/n1/control/deploy", `null`},
	{"nodes/n1/control/deploy", `[]`},
	{"nodes/n1/control/deploy", "{\"instance\":\"a.0.1\xff\"}"},
	{"nodes/n1/control/deploy", `{"instance":"a.0.1","run":true}`},
	{"nodes/n1/control/deploy", `{"instance":"../../x","run":true,"spec":{"image":"i","technology":"docker"}}`},
	{"nodes/n1/control/deploy", `{"instance":"a.0.1","run":false}`},
	{"nodes/n1/control/delete", `{"instance":"a.0.1","run":true,"spec":{"image":"i","technology":"docker"}}`},
	{"nodes/n1/control/deploy", `{"instance":"a.0.1","rev":-1}`},
	{"nodes/n1/control/sync", `{"assignments":[{"instance":"a.0.1"},{"instance":"a.0.1"}]}`},
	{"nodes/n1/control/sync", strings.Repeat("[", 100_000)},
	{"nodes/n1/control/sync", `{"x":"` + strings.Repeat("a", messages.MaxFromManager) + `"}`},
	{"nodes/n1/control/logs", `{"instance":"a.0.1"}`},
	{"nodes/n1/control/logs", `{"instance":"a.0.1","request_id":"a/b"}`},
	{"nodes/n2/control/sync", `{}`},
	{"nodes/n1/control/unheard-of", `{}`},
	{"nodes/n1/presence", `{}`},
	{"", `{}`},
	{strings.Repeat("/", 60_000), `{}`},
}

func TestInboxRefusesWhatIsHostile(t *testing.T) {
	in := testInbox()
	for _, h := range hostile {
		in.receive(h[0], []byte(h[1]))
	}
	if got := in.bad.total; got != uint64(len(hostile)) {
		t.Errorf("refused %d, want %d", got, len(hostile))
	}
	if o, ok, err := in.take(); ok || err != nil {
		t.Errorf("queued all the same: %+v, %v", o, err)
	}
}

func TestInboxKeepsTheOrderAndItsBound(t *testing.T) {
	in := testInbox()
	in.receive("nodes/n1/control/delete", []byte(`{"instance":"a.0.1","rev":1}`))
	in.receive("nodes/n1/control/sync", []byte(`{"rev":2}`))
	in.receive("nodes/n1/control/logs", []byte(`{"instance":"a.0.1","request_id":"r"}`))
	for i, check := range []func(order) bool{
		func(o order) bool { return o.assignment != nil && o.assignment.Rev == 1 },
		func(o order) bool { return o.sync != nil && o.sync.Rev == 2 },
		func(o order) bool { return o.logs != nil && o.logs.RequestID == "r" },
	} {
		if o, err := in.next(t.Context()); err != nil || !check(o) {
			t.Fatalf("order %d: got %+v, %v", i, o, err)
		}
	}
	if in.bytes != 0 {
		t.Errorf("an empty inbox counts %d bytes", in.bytes)
	}
	big := []byte(`{"x":"` + strings.Repeat("a", messages.MaxFromManager-100) + `"}`)
	for range maxInbox/len(big) + 1 {
		in.receive("nodes/n1/control/sync", big)
	}
	if _, err := in.next(t.Context()); !errors.Is(err, errInbox) {
		t.Errorf("overfull: got %v, want %v", err, errInbox)
	}
}

func TestRejectsAreSaidOnceAMinuteForATopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := &rejects{log: slog.New(slog.NewTextHandler(&out, nil)), said: map[string]time.Time{}}
		lines := func() int { return strings.Count(out.String(), "\n") }
		for range 100 {
			r.add("x", io.EOF)
		}
		r.add("y", io.EOF)
		if got := lines(); got != 2 {
			t.Errorf("said %d times, want 2", got)
		}
		for i := range 1000 {
			r.add(string(rune('a'+i%26))+strings.Repeat("z", i), io.EOF)
		}
		if got := lines(); got != maxSaid || len(r.said) != maxSaid {
			t.Errorf("said %d lines and remembers %d topics, want %d", got, len(r.said), maxSaid)
		}
		time.Sleep(time.Minute)
		r.add("x", io.EOF)
		r.add("new", io.EOF)
		if got := lines(); got != maxSaid+2 {
			t.Errorf("a minute later: said %d lines, want %d", got, maxSaid+2)
		}
	})
}

func TestComplaintsAreSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		lines := func() int { return strings.Count(out.String(), "\n") }
		refused := &messages.Refusal{Code: messages.RefusedName, Message: "m", Hint: "do this"}
		var c complaints
		for range 50 {
			c.say(log, refused, time.Second)
			time.Sleep(30 * time.Second)
		}
		if lines() != 1 || !strings.Contains(out.String(), "level=ERROR") || !strings.Contains(out.String(), "do this") {
			t.Errorf("one refusal: got\n%s", &out)
		}
		out.Reset()
		for range 50 { // the network comes up, and the clock is wrong
			c.say(log, errors.New("register at x: dial: network is unreachable"), time.Second)
			c.say(log, fmt.Errorf("register at x: %w", &trust.Problem{Reason: "set the clock", Err: errors.New(time.Now().String())}), time.Second)
			c.say(log, fmt.Errorf("register at x: %w", &trust.Problem{Reason: "set the clock", Err: errors.New(time.Now().String())}), time.Second)
		}
		if n := strings.Count(out.String(), "set the clock"); n != 50 {
			t.Errorf("a certificate that is not trusted: said %d times, want once each time that it is news", n)
		}
		out.Reset()
		c.clear()
		for range 41 { // twenty minutes
			c.say(log, errors.New("register at x: dial: connection refused"), time.Second)
			time.Sleep(30 * time.Second)
		}
		if lines() != 3 {
			t.Errorf("a manager that is away for twenty minutes: got %d lines, want 3", lines())
		}
	})
}
