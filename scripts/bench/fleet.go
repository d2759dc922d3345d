package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
)

// board is a simulated node: a real registration and a real MQTT session, and containers that exist in its word only.
type board struct {
	id   messages.NodeID
	mqtt mqtt.Client

	mu  sync.Mutex // guards seq
	seq uint64
}

// fleetTelemetry is how often simulated nodes send telemetry.
const fleetTelemetry = 5 * time.Second

// simulate starts the simulated nodes from number first to before next, which end with the bench.
func (b *bench) simulate(ctx context.Context, m *manager, first, next int, prefix string) ([]*board, error) {
	const atOnce = 100
	boards, errs := make([]*board, next-first), make([]error, next-first)
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range boards {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			boards[i], errs[i] = newBoard(ctx, m, fmt.Sprintf("%s%d", prefix, first+i), first+i)
		})
	}
	wg.Wait()
	b.closers = append(b.closers, func() {
		for _, board := range boards {
			if board != nil {
				board.mqtt.Disconnect(0)
			}
		}
	})
	return boards, errors.Join(errs...)
}

// source is an address of the loopback for the connection of the i-th node: one address has 28,000 ports.
func source(i int) net.Addr {
	const each = 20_000
	return &net.TCPAddr{IP: net.IPv4(127, 1, byte(i/each), 1)}
}

// dialer connects the i-th node. The port is chosen with the connection and not before: to find one that no connection at all has takes the kernel
// milliseconds once thousands are taken.
func dialer(i int) *net.Dialer {
	return &net.Dialer{Timeout: patience, LocalAddr: source(i), Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		})
		return errors.Join(err, failed)
	}}
}

// spareFiles is how many files bench and manager may have open beside the connections of nodes.
const spareFiles = 500

// fleetStreams tells how the fleet is connected, with a note that says so: each node by TCP, or over streams where one process may not have as
// many files.
func (b *bench) fleetStreams() (streams bool, note string, err error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return false, "", err
	}
	note = fmt.Sprintf("%d nodes", b.fleet)
	if uint64(b.fleet)+spareFiles <= limit.Max {
		return false, note, nil
	}
	return true, fmt.Sprintf("%s, streams over %d connections, since one process may have %d files", note, 2*carriers, limit.Max), nil
}

// newBoard registers a simulated node over /init, where there is a manager for that, and opens its MQTT session.
func newBoard(ctx context.Context, m *manager, name string, number int) (*board, error) {
	w := messages.Welcome{ID: messages.NodeID(name)}
	if !m.bare {
		var err error
		w, err = register(ctx, m, number, messages.NodeInfo{Name: messages.NodeID(name), Key: "key of " + name, Arch: "amd64", CPU: messages.CPUInfo{Cores: 8}, MemoryMB: 8192,
			Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}})
		if err != nil {
			return nil, fmt.Errorf("register %s: %w", name, err)
		}
	}
	n := &board{id: w.ID}
	offline := messages.Encode(messages.Presence{})
	presence := messages.Topic{Kind: messages.PresenceTopic, Node: n.id}.String()
	opts := mqtt.NewClientOptions().AddBroker("tcp://"+m.mqtt).SetClientID("node-"+string(n.id)).SetUsername(w.Username).SetPassword(w.Password).
		SetBinaryWill(presence, offline, 1, true).SetKeepAlive(30 * time.Second).SetConnectRetry(true).SetConnectRetryInterval(20 * time.Millisecond).
		SetMaxReconnectInterval(50 * time.Millisecond).SetWriteTimeout(30 * time.Second).
		SetDialer(dialer(number))
	opts.SetOnConnectHandler(func(c mqtt.Client) {
		c.Subscribe(messages.NodeControlFilter(n.id), 1, n.obey)
		c.Publish(presence, 1, true, messages.Encode(messages.Presence{Online: true, Digest: messages.Digest(nil)}))
	})
	n.mqtt = mqtt.NewClient(m.streams.carry(opts, number))
	if token := n.mqtt.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		return nil, fmt.Errorf("connect %s: %w", name, token.Error())
	}
	return n, nil
}

// obey answers an assignment at once with what it asks for.
func (n *board) obey(_ mqtt.Client, m mqtt.Message) {
	t, err := messages.ParseTopic(m.Topic())
	if err != nil || t.Kind != messages.NodeControlTopic {
		return
	}
	var a messages.Assignment
	if json.Unmarshal(m.Payload(), &a) != nil {
		return
	}
	job, _, generation, err := a.Instance.Split()
	if err != nil {
		return
	}
	n.mu.Lock()
	n.seq++
	s := messages.InstanceStatus{Instance: a.Instance, Job: job, Generation: generation, Rev: a.Rev, Seq: n.seq, State: messages.Stopped, At: messages.At(time.Now())}
	n.mu.Unlock()
	if a.Run {
		s.State, s.Healthy = messages.Running, true
	}
	go n.mqtt.Publish(messages.Topic{Kind: messages.NodeJobTopic, Node: n.id}.String(), 1, false, messages.Encode(s))
}

// register speaks Engine.IO 4 by websocket, as few lines of it as a registration takes.
func register(ctx context.Context, m *manager, number int, info messages.NodeInfo) (messages.Welcome, error) {
	var w messages.Welcome
	ws := *websocket.DefaultDialer
	ws.NetDialContext = dialer(number).DialContext
	if m.streams != nil {
		ws.NetDialContext = func(context.Context, string, string) (net.Conn, error) { return m.streams.open(m.http, number) }
	}
	conn, resp, err := ws.DialContext(ctx, "ws://"+m.http+"/socket.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		return w, err
	}
	defer resp.Body.Close()
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return w, err
	}
	for {
		_, packet, err := conn.ReadMessage()
		if err != nil {
			return w, err
		}
		answer, done, err := reply(string(packet), info, &w)
		if err != nil || done {
			return w, err
		}
		if answer != "" {
			if err := conn.WriteMessage(websocket.TextMessage, []byte(answer)); err != nil {
				return w, err
			}
		}
	}
}

// reply returns what is to be said to a packet; done once the Welcome is there.
func reply(packet string, info messages.NodeInfo, w *messages.Welcome) (answer string, done bool, err error) {
	const event = "42" + messages.Namespace + ","
	switch {
	case strings.HasPrefix(packet, "0"):
		return "40" + messages.Namespace + ",", false, nil
	case packet == "2":
		return "3", false, nil
	case !strings.HasPrefix(packet, event):
		return "", false, nil
	}
	var args []json.RawMessage
	var name string
	if err := json.Unmarshal([]byte(packet[len(event):]), &args); err != nil || len(args) < 2 || json.Unmarshal(args[0], &name) != nil {
		return "", false, fmt.Errorf("event %q: %w", packet, err)
	}
	switch name {
	case messages.HelloEvent:
		return event + `["` + messages.NodeInfoEvent + `",` + string(messages.Encode(info)) + "]", false, nil
	case messages.WelcomeEvent:
		return "", true, json.Unmarshal(args[1], w)
	default:
		return "", false, fmt.Errorf("refused: %s", args[1])
	}
}

// telemetry is a message of the size that a real board sends.
func telemetry() []byte {
	t := messages.Telemetry{At: messages.At(time.Now()), UptimeS: 12345, CPU: messages.CPUUse{Percent: 12.5, PerCore: []float64{10, 15, 9, 14}}, Load: [3]float64{0.5, 0.4, 0.3},
		Memory: messages.MemoryUse{TotalMB: 8192, FreeMB: 4096, UsedPercent: 50}, Disk: messages.DiskUse{TotalMB: 64000, FreeMB: 32000}}
	for i := range 4 {
		t.Sensors = append(t.Sensors, messages.SensorReading{Name: fmt.Sprintf("hwmon%d temp", i), Value: 45.5, Unit: "C"})
	}
	return messages.Encode(t)
}

// chatter sends every board's telemetry once each interval, spread evenly, until ctx ends.
func chatter(ctx context.Context, boards []*board) {
	payload := telemetry()
	const slices = 100
	tick := time.NewTicker(fleetTelemetry / slices)
	defer tick.Stop()
	for at := 0; ; at = (at + 1) % slices {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for i := at; i < len(boards); i += slices {
			boards[i].mqtt.Publish(messages.Topic{Kind: messages.InformationTopic, Node: boards[i].id}.String(), 0, false, payload)
		}
	}
}

// fleetSamples are what a fleet is measured by.
type fleetSamples struct {
	joined     []float64 // nodes a second
	cores, rss []float64 // of the manager, while the nodes send telemetry; MB
	placed     []float64 // instances a second
}

// measureFleet registers many nodes, lets them talk, and places jobs on them; before that the same nodes at the MQTT library's broker alone.
func measureFleet(ctx context.Context, b *bench) ([]figure, error) {
	overStreams, note, err := b.fleetStreams()
	if err != nil {
		return nil, err
	}
	floor, err := b.fleetFloor(ctx, overStreams)
	if err != nil {
		return nil, err
	}
	start := b.manager
	if overStreams {
		start = func(ctx context.Context, _ ...string) (*manager, error) { return b.streamManager(ctx) }
	}
	m, err := start(ctx)
	if err != nil {
		return nil, err
	}
	own, err := b.liveFleet(ctx, m, func(c *client, _ []*board) ([]float64, error) { return b.placeRounds(ctx, m, c) })
	if err != nil {
		return nil, err
	}
	const bare = "the MQTT library's broker alone"
	figures := []figure{
		of("nodes registered and online", "/s", "", own.joined).over("connected to "+bare, own.joined, floor.joined),
		of("manager with telemetry every 5 s", "cores", "≤ 1 at 10,000", own.cores).over(bare, own.cores, floor.cores),
		of("manager with telemetry every 5 s, memory", "MB", "", own.rss).over(bare, own.rss, floor.rss),
		of("instances placed and reported running", "/s", "", own.placed).over("as many assignments and answers through "+bare, own.placed, floor.placed),
	}
	for i := range figures {
		figures[i].Note = note
	}
	return figures, nil
}

// fleetFloor takes the fleet's samples at the MQTT library's broker, and ends all that.
func (b *bench) fleetFloor(ctx context.Context, overStreams bool) (fleetSamples, error) {
	defer b.end()
	m, err := b.bareFleet(ctx, overStreams)
	if err != nil {
		return fleetSamples{}, err
	}
	return b.liveFleet(ctx, m, func(c *client, boards []*board) (placed []float64, err error) {
		for round := range 5 {
			rate, err := placeBare(ctx, c, boards, b.fleet/10, round)
			if err != nil {
				return nil, err
			}
			placed = append(placed, rate)
		}
		return placed, nil
	})
}

// liveFleet has the fleet join, send telemetry, and take what place gives it.
func (b *bench) liveFleet(ctx context.Context, m *manager, place func(*client, []*board) ([]float64, error)) (s fleetSamples, err error) {
	c, err := b.connect(m)
	if err != nil {
		return s, err
	}
	boards, joined, err := b.joins(ctx, m, c)
	if err != nil {
		return s, err
	}
	talk, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { chatter(talk, boards) })
	if !m.bare {
		if err := errors.Join(b.profile(ctx, m.daemon, "profile", "manager-telemetry"), b.profile(ctx, m.daemon, "heap", "manager-heap")); err != nil {
			return s, err
		}
	}
	s.joined = joined
	if s.cores, s.rss, err = m.watch(ctx, 5, 2*fleetTelemetry); err != nil {
		return s, err
	}
	fmt.Fprintf(b.log, "   with telemetry: %s cores, %s MB\n", number(median(s.cores)), number(median(s.rss)))
	s.placed, err = place(c, boards)
	return s, err
}

// joins registers the fleet in equal parts, and returns the nodes a second of each until all of it is online.
func (b *bench) joins(ctx context.Context, m *manager, c *client) (all []*board, rates []float64, err error) {
	const parts, prefix = 5, "sim-"
	for part := range parts {
		first, next := part*b.fleet/parts, (part+1)*b.fleet/parts
		start := time.Now()
		boards, err := b.simulate(ctx, m, first, next, prefix)
		if err != nil {
			return nil, nil, err
		}
		if err := eventually(ctx, "every node online", func() bool { return c.count() == next }); err != nil {
			return nil, nil, err
		}
		rate := float64(next-first) / time.Since(start).Seconds()
		all, rates = append(all, boards...), append(rates, rate)
		fmt.Fprintf(b.log, "   %d nodes are online, %s/s\n", next, number(rate))
	}
	return all, rates, nil
}

// watch takes the processor time and memory of a daemon over some spans.
func (d *daemon) watch(ctx context.Context, spans int, span time.Duration) (cores, rss []float64, err error) {
	all, err := watchAll(ctx, spans, span, d)
	if err != nil {
		return nil, nil, err
	}
	return all[0].cores, all[0].rss, nil
}

// watched is what a daemon has used in each span.
type watched struct {
	cores, rss []float64 // rss in MB, at the end of the span
	written    []float64 // bytes an hour
	uplink     []float64 // kbit/s over TCP, without headers
	helpers    []float64 // processes that it has started and that run, at the end of the span
}

// watchAll watches daemons over the same spans.
func watchAll(ctx context.Context, spans int, span time.Duration, daemons ...*daemon) ([]watched, error) {
	all := make([]watched, len(daemons))
	before := make([]usage, len(daemons))
	for i, d := range daemons {
		var err error
		if before[i], err = d.usage(ctx); err != nil {
			return nil, err
		}
	}
	for range spans {
		start := time.Now()
		select {
		case <-time.After(span):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		took := time.Since(start)
		for i, d := range daemons {
			now, err := d.usage(ctx)
			if err != nil {
				return nil, err
			}
			w := &all[i]
			w.cores = append(w.cores, (now.cpu-before[i].cpu).Seconds()/took.Seconds())
			w.rss = append(w.rss, now.rssMB)
			w.written = append(w.written, (now.written-before[i].written)/took.Hours())
			w.uplink = append(w.uplink, 8*(now.sent-before[i].sent)/took.Seconds()/1000)
			w.helpers = append(w.helpers, float64(now.children))
			before[i] = now
		}
	}
	return all, nil
}

// placeRounds places and deletes as many jobs as there are nodes to ten, some times over.
func (b *bench) placeRounds(ctx context.Context, m *manager, c *client) ([]float64, error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var profiled error
	wg.Go(func() { profiled = b.profile(ctx, m.daemon, "profile", "manager-placing") })
	var placed []float64
	for round := range 5 {
		rate, err := placeMany(ctx, c, b.fleet/10, round)
		if err != nil {
			return nil, err
		}
		placed = append(placed, rate)
		fmt.Fprintf(b.log, "   instances placed: %s/s\n", number(rate))
		if err := deleteMany(ctx, c, b.fleet/10, round); err != nil {
			return nil, err
		}
	}
	wg.Wait()
	return placed, profiled
}

// deleteMany deletes what placeMany has deployed.
func deleteMany(ctx context.Context, c *client, n, round int) error {
	cmds := make([]messages.Command, n)
	for i := range cmds {
		cmds[i] = messages.Command{Command: messages.Delete, Job: messages.Job{Name: messages.JobName(fmt.Sprintf("fleet-%d", i))}, RequestID: fmt.Sprintf("gone-%d-%d", round, i)}
	}
	return c.doAll(ctx, cmds)
}

// placeMany deploys n jobs of five copies and returns the instances a second until all of them run.
func placeMany(ctx context.Context, c *client, n, round int) (float64, error) {
	start := time.Now()
	cmds := make([]messages.Command, n)
	for i := range cmds {
		j := job(messages.JobName(fmt.Sprintf("fleet-%d", i)), 5)
		j.Health = &messages.Health{Exec: []string{"simulated"}} // else each deploy would be proved by a second of running
		cmds[i] = deploy(j)
		cmds[i].RequestID = fmt.Sprintf("fleet-%d-%d", round, i)
	}
	if err := c.doAll(ctx, cmds); err != nil {
		return 0, err
	}
	return float64(5*n) / time.Since(start).Seconds(), nil
}
