package e2e

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
	"skerry.internal/messages/trust"
)

const (
	// tripFloor is the p99 that a well-behaved client is granted whatever it had before: a machine that others use too adds tens of milliseconds. A
	// stall that this test looks for (a lock held during a write, a queue behind a slow reader) takes seconds. What it is on a quiet machine is
	// measured by make bench.
	tripFloor = 100 * time.Millisecond
	// managerMemory bounds what a manager under all of these attacks ever held, in KiB: 10,000 connections of HTTP and MQTT at some
	// 10 KiB each, a slow consumer's 8 MiB, and as much again for the garbage collector.
	managerMemory = 256 << 10
	halfOpen      = 10_000
)

// witness is a well-behaved client: it asks for what is refused and waits for the answer, which every part of the manager but the disk has a hand
// in. It is a process of its own that never waits for a processor, and the manager goes before its attackers there: they would be other machines',
// and what counts is what the manager makes of them.
type witness struct {
	l     *lab
	trips chan time.Duration
}

// witnessAt names the URL of the broker for a process that is a witness and nothing else, witnessCA the file of the broker's authority where it has TLS.
const (
	witnessAt = "SKERRY_TEST_WITNESS"
	witnessCA = "SKERRY_TEST_WITNESS_CA"
)

// attackedFirst is the priority of the manager; attackers have 0.
const attackedFirst = -10

func newWitness(l *lab, broker, ca string) *witness {
	l.t.Helper()
	w := &witness{l: l, trips: make(chan time.Duration, 1<<20)}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", l.manager.cmd.Process.Pid))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, task := range tasks { // threads that come later have it from these
		if id, err := strconv.Atoi(filepath.Base(task)); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, id, attackedFirst) // it may have ended
		}
	}
	cmd := exec.Command("sh", "-c", `chrt -f 1 true 2>/dev/null && exec chrt -f 1 "$0"; exec "$0"`, os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), witnessAt+"="+broker, witnessCA+"="+ca), l.t.Output()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	read := make(chan struct{})
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	go func() {
		defer close(read)
		defer close(w.trips)
		for s := bufio.NewScanner(out); s.Scan(); {
			if ns, err := strconv.ParseInt(s.Text(), 10, 64); err == nil {
				w.trips <- time.Duration(ns)
			}
		}
	}()
	return w
}

// bearWitness is the process of a witness: it prints how long each of its trips took, in ns, until it is killed.
func bearWitness(broker, ca string) error {
	answers := make(chan string, 16)
	opts := mqtt.NewClientOptions().AddBroker(broker).SetClientID("witness").SetAutoReconnect(false)
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return err
		}
		roots, err := trust.Roots(pem)
		if err != nil {
			return err
		}
		opts.SetTLSConfig(&tls.Config{RootCAs: roots})
	}
	c := mqtt.NewClient(opts)
	if t := c.Connect(); t.Wait() && t.Error() != nil {
		return t.Error()
	}
	if t := c.Subscribe("control/results/+", 1, func(_ mqtt.Client, m mqtt.Message) {
		if id := strings.TrimPrefix(m.Topic(), "control/results/"); strings.HasPrefix(id, "witness") {
			answers <- id
		}
	}); t.Wait() && t.Error() != nil {
		return t.Error()
	}
	for n := 0; ; n++ {
		id := fmt.Sprintf("witness%d", n)
		start := time.Now()
		c.Publish("control/delete", 1, false, `{"command":"delete","job":{"name":"no-such-job"},"request_id":"`+id+`"}`)
		for late, got := time.After(soon), ""; got != id; {
			select {
			case got = <-answers:
			case <-late:
				return fmt.Errorf("%s was not answered within %s", id, soon)
			}
		}
		fmt.Println(time.Since(start).Nanoseconds())
		time.Sleep(2 * time.Millisecond) // it is a client, and no load
	}
}

// dial connects a client that does not come back.
func dial(l *lab, id string, set func(*mqtt.ClientOptions)) mqtt.Client {
	l.t.Helper()
	opts := mqtt.NewClientOptions().AddBroker("tcp://" + l.mqtt).SetClientID(id).SetAutoReconnect(false).SetWriteTimeout(10 * time.Second)
	if set != nil {
		set(opts)
	}
	c := mqtt.NewClient(opts)
	var err error
	l.eventually(id+" is connected", func() bool {
		token := c.Connect()
		token.Wait()
		err = token.Error()
		return err == nil
	})
	l.t.Cleanup(func() { c.Disconnect(0) })
	return c
}

// during measures until attack has ended, and 500 times at least.
func (w *witness) during(attack func()) (p50, p99 time.Duration) {
	w.l.t.Helper()
	for len(w.trips) > 0 { // of before
		<-w.trips
	}
	over := make(chan struct{})
	go func() { defer close(over); attack() }()
	defer func() { <-over }()
	var all []time.Duration
	for d := range w.trips {
		all = append(all, d)
		select {
		case <-over:
			if len(all) >= 500 {
				slices.Sort(all)
				return all[len(all)/2], all[len(all)*99/100]
			}
		default:
		}
	}
	w.l.t.Fatal("the witness got no answer any more")
	return 0, 0
}

// trip is during, told to whoever reads the test's output, and returns the p99.
func (w *witness) trip(name string, beside func()) time.Duration {
	w.l.t.Helper()
	start := time.Now()
	p50, p99 := w.during(beside)
	w.l.t.Logf("%s, %s: p50 %s, p99 %s, memory %d MiB at most so far", name, time.Since(start).Round(100*time.Millisecond), p50, p99, peakKiB(w.l.t, w.l.manager)>>10)
	w.l.t.Attr("p99_ms", fmt.Sprintf("%.3f %s", float64(p99)/1e6, name)) // make bench reads it
	return p99
}

// spin is what attackers cost that share the machine and send nothing: their processors.
func spin() {
	var wg sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	for range runtime.NumCPU() {
		wg.Go(func() {
			for time.Now().Before(end) {
			}
		})
	}
	wg.Wait()
}

// Whatever anybody sends to a manager, it does not crash, serves the others, and holds no more memory than stated.
func TestHostileClients(t *testing.T) {
	l := newLab(t)
	raiseFiles(t, l.manager)
	a := l.node("a")
	l.do(deployCommand(app("web", 1, nil)))
	before := l.lives(a)
	w := newWitness(l, "tcp://"+l.mqtt, "")
	w.during(func() {}) // warm
	w.trip("nobody", func() {})
	limit := max(3*w.trip("busy processors", spin), tripFloor)
	h := &hostile{lab: l}
	for _, attack := range []struct {
		name string
		run  func()
	}{
		{"payloads as an operator", h.operator}, {"payloads as a node", h.node}, {"packets over tcp", h.packets}, {"packets over websocket", h.webSocket},
		{"http, registrations, slow headers", func() {
			var wg sync.WaitGroup
			wg.Go(h.slowHeaders) // takes the ten seconds that a header may
			h.http()
			h.registrations()
			wg.Wait()
		}}, {"the relay and the reflector", h.relayAndReflector}, {"10,000 half-open connections", h.halfOpen}, {"subscribers that never read", h.neverReads},
		{"two clients that publish as fast as they can", h.flood},
	} {
		if p99 := w.trip(attack.name, attack.run); p99 > limit {
			t.Errorf("%s: p99 of the others is %s, at most %s", attack.name, p99, limit)
		}
	}
	unhurt(t, l.manager)
	unhurt(t, l.nodes[a])
	if peak := peakKiB(t, l.manager); peak > managerMemory {
		t.Errorf("the manager held %d KiB, at most %d", peak, managerMemory)
	}
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after %v", before, after)
	}
	l.eventually("the connections are given back", func() bool { return openFiles(t, l.manager) < 100 })
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
}

// unhurt reports a program that has ended or survived a panic.
func unhurt(t *testing.T, p *process) {
	t.Helper()
	select {
	case <-p.ended:
		t.Errorf("%s has ended: %s", p.cmd.Path, p.cmd.ProcessState)
	default:
	}
	text, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte("panic")) || bytes.Contains(line, []byte("goroutine ")) {
			t.Errorf("%s: %.400s", p.cmd.Path, line)
		}
	}
}

// raiseFiles lets a program have as many descriptors as may be.
func raiseFiles(t *testing.T, p *process) {
	t.Helper()
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	own.Cur = own.Max
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &own, nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
}

// peakKiB returns the most memory that a program ever held.
func peakKiB(t *testing.T, p *process) int {
	t.Helper()
	return statusKiB(t, p, "VmHWM:")
}

func statusKiB(t *testing.T, p *process, field string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", field)
	return 0
}

func openFiles(t *testing.T, p *process) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// hostile is somebody who means harm, or knows no better.
type hostile struct {
	*lab
	// secured is what it speaks with where TLS is spoken; then that is MQTT at mqtts.
	secured *tls.Config
	mqtts   string
}

// wrong are values that no field has.
var wrong = []any{nil, true, -1, 1.5, 1e308, "", "x y/#\x00", strings.Repeat("long", 10_000), []any{}, []any{[]any{nil}}, map[string]any{},
	map[string]any{"x": map[string]any{}}}

// spoil returns payloads that go wrong where a valid one does not: no JSON, JSON of another shape, every field of another type.
func spoil(valid any) [][]byte {
	b := messages.Encode(valid)
	out := [][]byte{
		nil, {0}, []byte("null"), []byte("[]"), []byte("{}"), []byte("0"), []byte(`""`), []byte("{"), {0xff, 0xfe}, []byte("\xef\xbb\xbf{}"),
		bytes.Repeat([]byte("["), 100_000), bytes.Repeat([]byte(`{"job":`), 30_000), bytes.Repeat([]byte{0}, 200_000),
		append([]byte(`{"x":`), append(bytes.Repeat([]byte("[{\"\":"), 20_000), b...)...),
		append(bytes.Clone(b), b...), bytes.ReplaceAll(b, []byte(`":"`), []byte("\":\"\xff\xc0")), bytes.ReplaceAll(b, []byte(`":"`), []byte(`":"\ud800`)),
		append(bytes.Repeat([]byte(" "), messages.MaxPayload), b...),
		[]byte(`{"x":"` + strings.Repeat("y", messages.MaxFromManager) + `"}`),
		[]byte(`{"seq":1e999,"rev":-1,"job":{"replicas":1e99},"at":"never"}`),
	}
	for i := range 16 {
		out = append(out, b[:len(b)*i/16])
	}
	var root any
	if err := json.Unmarshal(b, &root); err != nil {
		panic(err)
	}
	replaceEach(root, func(any) {}, func() { out = append(out, messages.Encode(root)) })
	return out
}

// replaceEach puts every wrong value in the place of v and of everything in it, one at a time.
func replaceEach(v any, put func(any), emit func()) {
	for _, bad := range wrong {
		put(bad)
		emit()
	}
	put(v)
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			replaceEach(v[k], func(x any) { v[k] = x }, emit)
		}
	case []any:
		for i := range v {
			replaceEach(v[i], func(x any) { v[i] = x }, emit)
		}
	}
}

// publishAll publishes every payload to every topic, and connects again where that costs it its connection.
func (h *hostile) publishAll(id string, topics []string, payloads [][]byte, set func(*mqtt.ClientOptions)) {
	c := dial(h.lab, id, set)
	for _, topic := range topics {
		for i, payload := range payloads {
			if !c.IsConnectionOpen() {
				c = dial(h.lab, id, set)
			}
			token := c.Publish(topic, byte(i%3), i%5 == 0, payload)
			if i%64 == 0 {
				token.WaitTimeout(time.Second)
			}
		}
		if token := c.Subscribe("$SYS/end", 0, nil); !token.WaitTimeout(soon) && c.IsConnectionOpen() {
			h.t.Errorf("%s: the broker does not answer after payloads to %s", id, topic)
		}
	}
	c.Disconnect(0)
}

// few are enough payloads where nobody is to hear them.
const few = 60

// operator speaks as a client without a name may: to the manager and to the engine of a real node. Whatever else it says, nobody hears.
func (h *hostile) operator() {
	a := h.id("a")
	for kind, s := range contract() {
		for _, topic := range topicsOf(kind, a) {
			payloads := hostileOn(kind, topic)
			if s.by != theClient {
				payloads = append([][]byte{messages.Encode(s.payload)}, payloads[:few]...)
			}
			h.publishAll("hostile-operator", []string{topic}, payloads, nil)
		}
	}
	others := []string{"$SYS/broker/x", "no/topic", "control", "control/x", "control/node", "control/node/x", "control/guest/x", "nodes/" + strings.Repeat("x", 1000) + "/job"}
	h.publishAll("hostile-operator", others, hostileOn(messages.CommandTopic, "control/deploy")[:few], nil)
	// Each has its own answer, where it can be read; what is refused for another reason than its bytes has been looked up, or sought a node.
	for _, why := range []string{"deploy bad_payload", "deploy no_node_matches", "delete unknown_job", "move unknown_node", "replicate unknown_job", "replace unknown_node", "remove unknown_node", "add no_node_matches", "remove unknown_guest"} {
		h.eventually("hostile commands answered with "+why, func() bool { return h.answers()[why] > 5 })
	}
	h.t.Logf("answers: %v", h.answers())
}

// answers counts the first answers to hostile commands, by verb and code.
func (h *hostile) answers() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	counts := map[string]int{}
	for id, results := range h.results {
		if strings.HasPrefix(id, "hostile-") {
			counts[string(results[0].Command)+" "+string(results[0].Code)]++
		}
	}
	return counts
}

// node speaks with the password of a node that has registered in good order and has something to run.
func (h *hostile) node() {
	id := h.id("bad")
	key := newKey()
	welcome, err := h.register(messages.NodeInfo{Name: id, Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}, CPU: messages.CPUInfo{Cores: 4}, MemoryMB: 4096}, key)
	if err != nil {
		h.t.Error(err)
		return
	}
	set := func(o *mqtt.ClientOptions) {
		o.SetUsername(welcome.Username).SetPassword(welcome.Password).SetBinaryWill("nodes/"+string(id)+"/presence", []byte("\xff not json"), 1, true)
	}
	client := "node-" + string(id)
	c := dial(h.lab, client, set)
	for _, kind := range []messages.Kind{messages.PresenceTopic, messages.InventoryTopic} {
		topic := messages.Topic{Kind: kind, Node: id}
		p := any(messages.Inventory{Last: true})
		if kind == messages.PresenceTopic {
			p = messages.Presence{Online: true, BootID: "b", Epoch: welcome.Epoch}
		}
		c.Publish(topic.String(), 1, kind == messages.PresenceTopic, messages.Encode(p)).WaitTimeout(soon)
	}
	fake := app("fake", 1, nil)
	fake.Resources.MemoryMB = 2048
	request := h.send(deployCommand(fake, id))
	h.instance("fake", "is placed on the node", func(i messages.InstanceReport) bool { return i.Node == id })
	c.Disconnect(0)
	for kind, s := range contract() {
		for _, topic := range topicsOf(kind, id) {
			payloads := hostileOn(kind, topic)
			if s.by != theNode {
				payloads = payloads[:few]
			}
			h.publishAll(client, []string{topic}, payloads, set)
		}
	}
	for kind, s := range contract() {
		if s.by == theNode {
			topics := topicsOf(kind, h.id("a"))
			h.publishAll(client, topics, append([][]byte{messages.Encode(s.payload)}, hostileOn(kind, topics[0])[:few]...), set)
		}
	}
	h.t.Logf("%s: %v", request, h.resultsOf(request))
}

// register introduces a node as an Engine.IO 4 client does.
func (l *lab) register(info messages.NodeInfo, key ed25519.PrivateKey) (messages.Welcome, error) {
	var w messages.Welcome
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+l.http+"/socket.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		return w, err
	}
	defer ws.Close()
	_ = ws.SetReadDeadline(time.Now().Add(soon))
	if err := ws.WriteMessage(websocket.TextMessage, []byte("40/init,")); err != nil {
		return w, err
	}
	for {
		_, packet, err := ws.ReadMessage()
		if err != nil {
			return w, err
		}
		body, _ := bytes.CutPrefix(packet, []byte("42/init,"))
		switch {
		case bytes.HasPrefix(body, []byte(`["sc1",`)):
			var hello messages.Hello
			if err := json.Unmarshal(body, &[]any{new(string), &hello}); err != nil {
				return w, err
			}
			info.Key, info.Proof, info.Protocol = publicKey(key), messages.Prove(key, hello), messages.Protocol
			err = ws.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `42/init,["cs1",%s]`, messages.Encode(info)))
		case bytes.HasPrefix(body, []byte(`["sc2",`)):
			return w, json.Unmarshal(body, &[]any{new(string), &w})
		case bytes.HasPrefix(body, []byte(`["refused",`)):
			return w, fmt.Errorf("refused: %s", body)
		}
		if err != nil {
			return w, err
		}
	}
}

// neverReads subscribes to everything and lets it lie, while a node says much.
func (h *hostile) neverReads() {
	before := openFiles(h.t, h.manager)
	for i := range 4 {
		conn, err := net.Dial("tcp", h.mqtt)
		if err != nil {
			h.t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = conn.Write(connectPacket(4, fmt.Sprintf("deaf%d", i), "", ""))
		_, _ = conn.Write(mqttPacket(0x82, []byte{0, 1, 0, 1, '#', 1}))
	}
	_, key, _ := ed25519.GenerateKey(nil)
	id := h.id("noisy")
	welcome, err := h.register(messages.NodeInfo{Name: id}, key)
	if err != nil {
		h.t.Error(err)
		return
	}
	h.burst(2*time.Second, connectPacket(4, "node-"+string(id), welcome.Username, welcome.Password), "nodes/"+string(id)+"/logs/web.0.0", 32<<10, 1)
	h.eventually("those who never read are given up", func() bool { return openFiles(h.t, h.manager) <= before })
}

func (h *hostile) flood() {
	topic := "nodes/" + string(h.id("a")) + "/control/logs" // an operator may say it, so it reaches the node
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { h.burst(3*time.Second, connectPacket(4, fmt.Sprintf("burst%d", i), "", ""), topic, 64, 0) })
	}
	wg.Wait()
}

// burst publishes as fast as the connection takes it.
func (h *hostile) burst(d time.Duration, connect []byte, topic string, size int, qos byte) {
	conn, err := net.Dial("tcp", h.mqtt)
	if err != nil {
		h.t.Error(err)
		return
	}
	heard := make(chan struct{})
	go func() { defer close(heard); drain(conn) }()
	defer func() { conn.Close(); <-heard }()
	_, _ = conn.Write(connect)
	var frames []byte
	for range 64 {
		frames = append(frames, publishPacket(topic, qos, bytes.Repeat([]byte{'x'}, size-rand.N(size/2)))...)
	}
	sent := 0
	for end := time.Now().Add(d); time.Now().Before(end); sent += 64 {
		_ = conn.SetWriteDeadline(time.Now().Add(soon))
		if _, err := conn.Write(frames); err != nil {
			h.t.Errorf("after %d messages: %v", sent, err)
			return
		}
	}
	h.t.Logf("%d messages of %d bytes at most, QoS %d", sent, size, qos)
}
