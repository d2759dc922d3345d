package messages

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// refusal is one change to a valid payload and a part of the error that it must lead to.
type refusal[T any] struct {
	why    string
	change func(*T)
}

func checkRefusals[T any](t *testing.T, sample func() T, refusals []refusal[T]) {
	t.Helper()
	good := sample()
	v, ok := any(&good).(validator)
	if !ok {
		t.Fatalf("%T is no payload", good)
	}
	if err := v.Validate(); err != nil {
		t.Errorf("the sample itself: %v", err)
	}
	for _, r := range refusals {
		bad := sample()
		r.change(&bad)
		wantError(t, r.why, any(&bad).(validator).Validate(), r.why)
	}
}

func TestCommandValidate(t *testing.T) {
	deploy := func() Command {
		return Command{Command: Deploy, Job: sampleJob(), Cluster: []string{"lab"}, Worker: []NodeID{"n1"}, RequestID: "r"}
	}
	checkRefusals(t, deploy, []refusal[Command]{
		{`verb "stop"`, func(c *Command) { c.Command = "stop" }},
		{"request_id: longer", func(c *Command) { c.RequestID = strings.Repeat("x", 65) }},
		{`request_id "a/b"`, func(c *Command) { c.RequestID = "a/b" }},
		{`worker "N"`, func(c *Command) { c.Worker = []NodeID{"N"} }},
		{"worker: 10001", func(c *Command) { c.Worker = make([]NodeID, maxNodes+1) }},
		{`from "+"`, func(c *Command) { c.From = []NodeID{"+"} }},
		{`cluster "#"`, func(c *Command) { c.Cluster = []string{"#"} }},
		{"job.image: missing", func(c *Command) { c.Job.Image = "" }},
	})
	n := 3
	checkRefusals(t, func() Command { return Command{Command: Replicate, Job: Job{Name: "web", Replicas: &n}} }, []refusal[Command]{
		{"job.replicas: missing", func(c *Command) { c.Job.Replicas = nil }},
		{"job.name", func(c *Command) { c.Job.Name = "" }},
		{"job.replicas: 1001", func(c *Command) { big := 1001; c.Job.Replicas = &big }},
	})
	checkRefusals(t, func() Command { return Command{Command: Move, Job: Job{Name: "web"}, From: []NodeID{"n1"}} }, []refusal[Command]{
		{"move: name the nodes", func(c *Command) { c.From = nil }},
		{"job.name", func(c *Command) { c.Job.Name = "a/b" }},
	})
	checkRefusals(t, func() Command { return Command{Command: Delete, Job: Job{Name: "web"}} }, []refusal[Command]{
		{"job.name", func(c *Command) { c.Job.Name = "" }},
	})
}

func TestNodeCommandValidate(t *testing.T) {
	for _, v := range NodeVerbs() {
		checkRefusals(t, func() NodeCommand {
			return NodeCommand{Command: v, Node: "n1", Cluster: []string{"lab"}, RequestID: "r"}
		},
			[]refusal[NodeCommand]{
				{`verb "deploy": want replace or remove`, func(c *NodeCommand) { c.Command = Deploy }},
				{`verb ""`, func(c *NodeCommand) { c.Command = "" }},
				{"node: name missing", func(c *NodeCommand) { c.Node = "" }},
				{`node "+"`, func(c *NodeCommand) { c.Node = "+" }},
				{`cluster "#"`, func(c *NodeCommand) { c.Cluster = []string{"#"} }},
				{"request_id: longer", func(c *NodeCommand) { c.RequestID = strings.Repeat("x", 65) }},
			})
	}
}

func TestDecodeNodeCommand(t *testing.T) {
	c, err := DecodeNodeCommand([]byte(`{"command":"remove","node":"n1","request_id":"r"}`), Remove)
	if err != nil || c.Command != Remove || c.Node != "n1" || c.RequestID != "r" {
		t.Errorf("got %+v, %v", c, err)
	}
	for in, want := range map[string]NodeCommand{
		`{"command":"remove","node":"n1","request_id":"r1"}`:     {RequestID: "r1", Node: "n1"},
		`{"command":7,"node":"n1","request_id":"r2"}`:            {RequestID: "r2", Node: "n1"},
		`{"command":"replace","node":"N","request_id":"r3"}`:     {RequestID: "r3"},
		`{"command":"replace","node":7,"request_id":"r4"}`:       {RequestID: "r4"},
		`{"command":"replace","node":"n1","request_id":"#"}`:     {Node: "n1"},
		`{"command":"replace","node":"n1","request_id":[1]}`:     {Node: "n1"},
		`{"command":"replace","node":"n1","cluster":"lab"}`:      {Node: "n1"},
		`{"command":"replace","request_id":"r5"}`:                {RequestID: "r5"},
		`{"command":"replace","node":"n1"`:                       {},
		`{"command":"replace","node":"n1","x":"` + "\xff" + `"}`: {},
		`{"a":"` + strings.Repeat("x", MaxPayload):               {},
		``: {},
	} {
		want.Command = Replace
		got, err := DecodeNodeCommand([]byte(in), Replace)
		if err == nil || got.RequestID != want.RequestID || got.Node != want.Node || got.Command != want.Command || got.Cluster != nil {
			t.Errorf("%s: got %+v, %v, want %+v", clip(in), got, err, want)
		}
	}
	wantError(t, "another topic", func() error {
		_, err := DecodeNodeCommand([]byte(`{"command":"remove","node":"n1"}`), Replace)
		return err
	}(),
		`command "remove" came on control/node/replace`)
}

func TestDecodeCommand(t *testing.T) {
	c, err := DecodeCommand([]byte(`{"command":"delete","job":{"name":"web"}}`), Delete)
	if err != nil || c.Job.Name != "web" {
		t.Errorf("got %+v, %v", c, err)
	}
	for in, want := range map[string]Command{
		`{"command":"delete","job":{"name":"web","id":7},"request_id":"r1"}`:          {RequestID: "r1", Job: Job{Name: "web", ID: NumberID(7)}},
		`{"job":{"name":"web","replicas":"two","id":"x"},"request_id":"r2"}`:          {RequestID: "r2", Job: Job{Name: "web", ID: stringID("x")}},
		`{"command":7,"job":{"restart":{"backoff":1},"name":"web"},"request_id":"r"}`: {RequestID: "r", Job: Job{Name: "web"}},
		`{"job":7,"request_id":"r3"}`:                                                 {RequestID: "r3"},
		`{"job":{"name":7,"id":{}}}`:                                                  {},
		`{"job":{"name":"a/b"},"request_id":"#"}`:                                     {},
		`{"request_id":["r"],"job":null}`:                                             {},
		`{"request_id":"r4"`:                                                          {},
		`{"request_id":"r5"}` + "\xff":                                                {},
		`{"a":"` + strings.Repeat("x", MaxPayload):                                    {},
		``:     {},
		`null`: {},
	} {
		want.Command = Deploy
		got, err := DecodeCommand([]byte(in), Deploy)
		if err == nil || string(Encode(got)) != string(Encode(want)) {
			t.Errorf("%s: got %s, %v, want %s", clip(in), Encode(got), err, Encode(want))
		}
	}
}

func TestVerbsAndCodes(t *testing.T) {
	for _, v := range Verbs() {
		if err := v.Validate(); err != nil {
			t.Error(err)
		}
	}
	codes := Codes()
	if sorted := slices.Compact(slices.Sorted(slices.Values(codes))); len(sorted) != len(codes) {
		t.Errorf("a code is listed twice: %v", codes)
	}
}

func TestResultValidate(t *testing.T) {
	checkRefusals(t, func() Result { return Result{Phase: Accepted} }, []refusal[Result]{
		{`phase "x"`, func(r *Result) { r.Phase = "x" }},
		{`phase ""`, func(r *Result) { r.Phase = "" }},
	})
	for phase, last := range map[Phase]bool{Accepted: false, Refused: true, Done: true, Failed: true} {
		if r := (Result{Phase: phase}); r.Last() != last {
			t.Errorf("%s: got %v", phase, r.Last())
		}
	}
}

func TestInstanceStatusValidate(t *testing.T) {
	checkRefusals(t, sampleStatus, []refusal[InstanceStatus]{
		{"want <job>", func(s *InstanceStatus) { s.Instance = "web" }},
		{"differ from its name", func(s *InstanceStatus) { s.Job = "other" }},
		{"differ from its name", func(s *InstanceStatus) { s.Generation = 3 }},
		{`state "lost"`, func(s *InstanceStatus) { s.State = Lost }},
		{`state "unknown"`, func(s *InstanceStatus) { s.State = UnknownStatus }},
		{`state ""`, func(s *InstanceStatus) { s.State = "" }},
		{"attempt: -1", func(s *InstanceStatus) { s.Attempt = -1 }},
		{"too long", func(s *InstanceStatus) { s.Reason = strings.Repeat("x", 4097) }},
		{"too long", func(s *InstanceStatus) { s.Ports = make([]Port, maxListed+1) }},
		{"ports[0]", func(s *InstanceStatus) { s.Ports = []Port{{Container: 70000}} }},
		{"progress", func(s *InstanceStatus) { s.Progress = &Progress{DoneBytes: -1} }},
	})
}

func TestStates(t *testing.T) {
	order := []State{Pending, Preparing, Starting, Running, Stopped}
	for i, s := range order {
		if s.Rank() != i || s.Terminal() != (s == Stopped) {
			t.Errorf("%s: rank %d, terminal %v", s, s.Rank(), s.Terminal())
		}
	}
	for _, s := range []State{ExitedState, FailedState} {
		if s.Rank() != Stopped.Rank() || !s.Terminal() {
			t.Errorf("%s: rank %d", s, s.Rank())
		}
	}
	for _, s := range []State{Lost, UnknownStatus, "", "x"} {
		if s.Rank() != -1 || s.Terminal() {
			t.Errorf("%s: rank %d", s, s.Rank())
		}
	}
}

func TestAssignmentValidate(t *testing.T) {
	checkRefusals(t, sampleAssignment, []refusal[Assignment]{
		{"want <job>", func(a *Assignment) { a.Instance = "" }},
		{"spec is missing", func(a *Assignment) { a.Spec = nil }},
		{"without image", func(a *Assignment) { a.Spec.Image = "" }},
		{"or technology", func(a *Assignment) { a.Spec.Technology = "" }},
		{"job.priority", func(a *Assignment) { a.Spec.Priority = 5000 }},
	})
	if err := (&Assignment{Instance: "web.0.0"}).Validate(); err != nil {
		t.Errorf("a stop needs no spec: %v", err)
	}
}

func TestAssignmentNewer(t *testing.T) {
	at := func(epoch, rev uint64) *Assignment { return &Assignment{Epoch: epoch, Rev: rev} }
	for _, c := range []struct {
		a, b *Assignment
		want bool
	}{
		{at(1, 1), at(1, 1), false}, {at(1, 2), at(1, 1), true}, {at(1, 1), at(1, 2), false}, {at(2, 1), at(1, 9), true},
		{at(1, 9), at(2, 1), false}, {at(0, 0), at(0, 0), false}, {at(1<<63, 0), at(1, 1<<63), true},
	} {
		if got := c.a.Newer(c.b); got != c.want {
			t.Errorf("(%d,%d) newer than (%d,%d): got %v", c.a.Epoch, c.a.Rev, c.b.Epoch, c.b.Rev, got)
		}
	}
}

func TestSyncValidate(t *testing.T) {
	sample := func() Sync { return Sync{Assignments: []Assignment{sampleAssignment(), {Instance: "web.0.0"}}} }
	checkRefusals(t, sample, []refusal[Sync]{
		{"listed twice", func(s *Sync) { s.Assignments[1].Instance = s.Assignments[0].Instance }},
		{"spec is missing", func(s *Sync) { s.Assignments[0].Spec = nil }},
		{"and 84 more", func(s *Sync) { s.Assignments = make([]Assignment, 100) }},
	})
}

func TestDigest(t *testing.T) {
	var set []Assignment
	for i := range 50 {
		set = append(set, Assignment{Instance: NewInstanceID("web", i, 0), Rev: uint64(i), Epoch: 1, Run: true})
	}
	want := Digest(set)
	if len(want) != 16 {
		t.Errorf("got %q", want)
	}
	slices.Reverse(set)
	if got := Digest(set); got != want {
		t.Error("the order changes the digest")
	}
	if got := Digest(append(slices.Clone(set), Assignment{Instance: "x.0.0"})); got != want {
		t.Error("what shall not run changes the digest")
	}
	withSpec := slices.Clone(set)
	withSpec[0].Spec = &Spec{}
	if Digest(withSpec) != want {
		t.Error("the spec changes the digest; its rev stands for it")
	}
	seen := map[string]bool{want: true, Digest(nil): true}
	for name, change := range map[string]func(*Assignment){"rev": func(a *Assignment) { a.Rev++ }, "epoch": func(a *Assignment) { a.Epoch++ },
		"instance": func(a *Assignment) { a.Instance = "web.0.9" }, "run": func(a *Assignment) { a.Run = false }} {
		changed := slices.Clone(set)
		change(&changed[7])
		if d := Digest(changed); seen[d] {
			t.Errorf("%s: the digest does not show the change", name)
		} else {
			seen[d] = true
		}
	}
	if Digest(nil) != Digest([]Assignment{}) {
		t.Error("nothing differs from nothing")
	}
}

func TestHelloValidate(t *testing.T) {
	checkRefusals(t, func() Hello { return Hello{Cluster: "lab", Protocol: 1} }, []refusal[Hello]{
		{"update it", func(h *Hello) { h.Protocol = Protocol + 1 }},
		{"cluster", func(h *Hello) { h.Cluster = "a\nb" }},
	})
}

func TestNodeInfoValidate(t *testing.T) {
	many := map[string]string{}
	for i := range maxListed + 1 {
		many["l"+strconv.Itoa(i)] = ""
	}
	long := strings.Repeat("x", maxInfoText+1)
	checkRefusals(t, sampleInfo, []refusal[NodeInfo]{
		{"name: name missing", func(n *NodeInfo) { n.Name = "" }},
		{`name "Board.lan"`, func(n *NodeInfo) { n.Name = "Board.lan" }},
		{"key: want", func(n *NodeInfo) { n.Key = "" }},
		{"key: want", func(n *NodeInfo) { n.Key = strings.Repeat("x", 1025) }},
		{"update the manager first", func(n *NodeInfo) { n.Protocol = Protocol + 1 }},
		{"protocol", func(n *NodeInfo) { n.Protocol = -1 }},
		{"arch", func(n *NodeInfo) { n.Arch = "arm/v7" }},
		{"cpu.cores", func(n *NodeInfo) { n.CPU.Cores = -1 }},
		{"memory_mb", func(n *NodeInfo) { n.MemoryMB = -1 }},
		{"disk_mb", func(n *NodeInfo) { n.DiskMB = -1 }},
		{"too many", func(n *NodeInfo) { n.Technologies = make([]TechnologyInfo, 33) }},
		{"too many", func(n *NodeInfo) { n.Labels = many }},
		{`labels "A"`, func(n *NodeInfo) { n.Labels = map[string]string{"A": ""} }},
		{`labels "a": value`, func(n *NodeInfo) { n.Labels = map[string]string{"a": strings.Repeat("x", 257)} }},
		{"technologies", func(n *NodeInfo) { n.Technologies = []TechnologyInfo{{Name: "a b"}} }},
		{"a text has 513 bytes", func(n *NodeInfo) { n.Kernel = long }},
		{"a text has 513 bytes", func(n *NodeInfo) { n.Addresses = []string{"192.0.2.1", long} }},
		{"a text has 513 bytes", func(n *NodeInfo) { n.GPUs = []GPUInfo{{Driver: long}} }},
		{"a text has 513 bytes", func(n *NodeInfo) { n.Technologies = []TechnologyInfo{{Name: Docker, Runtimes: []string{long}}} }},
		{"and all have", func(n *NodeInfo) { n.Sensors = slices.Repeat([]SensorInfo{{Path: long[1:]}}, 257) }},
		{"csr, token, proof", func(n *NodeInfo) { n.CSR = strings.Repeat("x", 4097) }},
	})
}

func TestProof(t *testing.T) {
	const nonce = "bm9uY2U="
	n := sampleInfo()
	if !n.Proved("lab", nonce) {
		t.Fatal("the sample is not proved")
	}
	if n.Proved("other", nonce) || n.Proved("lab", "other") || n.Proved("lab", "") {
		t.Error("a proof for another cluster or nonce passes")
	}
	raw, err := base64.StdEncoding.DecodeString(n.Key)
	if err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(raw)
	other[0] ^= 1
	last := strings.Index("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", n.Key[42:43])
	respelt := n.Key[:42] + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[last+1:last+2] + "="
	for name, change := range map[string]func(*NodeInfo){
		"no proof": func(n *NodeInfo) { n.Proof = "" }, "no key": func(n *NodeInfo) { n.Key = "" },
		"short key":             func(n *NodeInfo) { n.Key = base64.StdEncoding.EncodeToString(raw[:31]) },
		"long key":              func(n *NodeInfo) { n.Key = base64.StdEncoding.EncodeToString(append(slices.Clone(raw), 0)) },
		"other key":             func(n *NodeInfo) { n.Key = base64.StdEncoding.EncodeToString(other) },
		"no base64":             func(n *NodeInfo) { n.Key = "!" },
		"no base64 in proof":    func(n *NodeInfo) { n.Proof = "!" },
		"half a proof":          func(n *NodeInfo) { n.Proof = n.Proof[:40] },
		"key over two lines":    func(n *NodeInfo) { n.Key = n.Key[:10] + "\n" + n.Key[10:] },
		"key in other spelling": func(n *NodeInfo) { n.Key = respelt },
	} {
		bad := sampleInfo()
		change(&bad)
		if bad.Proved("lab", nonce) {
			t.Errorf("%s: proved", name)
		}
	}
}

func TestWelcomeAndRefusalValidate(t *testing.T) {
	checkRefusals(t, sampleWelcome, []refusal[Welcome]{
		{"id: name missing", func(w *Welcome) { w.ID = "" }},
		{"cluster", func(w *Welcome) { w.Cluster = "" }},
		{"brokers: none", func(w *Welcome) { w.Brokers = nil }},
		{"lease", func(w *Welcome) { w.Lease = -1 }},
		{"telemetry_interval", func(w *Welcome) { w.TelemetryInterval = Duration(25 * time.Hour) }},
	})
	checkRefusals(t, func() LegacyWelcome { return LegacyWelcome{ID: "a"} }, []refusal[LegacyWelcome]{{"id", func(w *LegacyWelcome) { w.ID = "" }}})
	checkRefusals(t, func() Refusal { return Refusal{Code: RefusedToken} }, []refusal[Refusal]{{"code", func(r *Refusal) { r.Code = "" }}})
	for want, r := range map[string]Refusal{"no (bad_token)": {Code: RefusedToken, Message: "no"},
		"no (bad_token): ask": {Code: RefusedToken, Message: "no", Hint: "ask"}} {
		if r.Error() != want {
			t.Errorf("got %q, want %q", r.Error(), want)
		}
	}
}

func TestNodeSaysValidate(t *testing.T) {
	checkRefusals(t, func() Presence { return Presence{} }, []refusal[Presence]{
		{"too long", func(p *Presence) { p.Digest = strings.Repeat("x", 65) }},
		{"too long", func(p *Presence) { p.BootID = strings.Repeat("x", 129) }},
	})
	checkRefusals(t, sampleTelemetry, []refusal[Telemetry]{
		{"too many", func(s *Telemetry) { s.Sensors = make([]SensorReading, 4097) }},
		{"cpu.percent", func(s *Telemetry) { s.CPU.Percent = -1 }},
	})
	checkRefusals(t, func() LogChunk { return LogChunk{Instance: "web.0.0"} }, []refusal[LogChunk]{
		{"stream", func(c *LogChunk) { c.Stream = "stdin" }},
		{"instance", func(c *LogChunk) { c.Instance = "" }},
	})
	checkRefusals(t, func() LogsRequest { return LogsRequest{Instance: "web.0.0", RequestID: "r"} }, []refusal[LogsRequest]{
		{"tail: -1", func(r *LogsRequest) { r.Tail = -1 }},
		{"request_id: missing", func(r *LogsRequest) { r.RequestID = "" }},
		{"request_id", func(r *LogsRequest) { r.RequestID = "+" }},
		{"instance", func(r *LogsRequest) { r.Instance = "x" }},
	})
}

func TestManagerSaysValidate(t *testing.T) {
	checkRefusals(t, sampleJobStatus, []refusal[JobStatus]{{"job", func(s *JobStatus) { s.Job = "" }}})
	checkRefusals(t, sampleNodeStatus, []refusal[NodeStatus]{{"node", func(s *NodeStatus) { s.Node = "" }}})
	checkRefusals(t, func() ClusterStatus { return ClusterStatus{Cluster: "lab"} },
		[]refusal[ClusterStatus]{{"cluster", func(s *ClusterStatus) { s.Cluster = "" }}})
	checkRefusals(t, func() Event { return Event{Kind: "x"} }, []refusal[Event]{{"kind", func(e *Event) { e.Kind = "" }}})
	checkRefusals(t, func() InstanceReport { return sampleReports()[0] },
		[]refusal[InstanceReport]{{"instance", func(r *InstanceReport) { r.Instance = "" }}})
}

// TestLimitsHold measures what the limits promise: the largest job's status fits, with reports as they are in practice.
func TestLimitsHold(t *testing.T) {
	s := sampleJobStatus()
	s.Instances = nil
	for i := range MaxReplicas {
		r := sampleReports()[0]
		r.Instance, r.Node = NewInstanceID("web", i, 2), NodeID("board-"+strconv.Itoa(i))
		s.Instances = append(s.Instances, r)
	}
	b := Encode(s)
	if len(b) > MaxFromManager {
		t.Errorf("the status of %d copies has %d bytes, more than %d", MaxReplicas, len(b), MaxFromManager)
	}
	var got JobStatus
	if err := DecodeFromManager(b, &got); err != nil {
		t.Error(err)
	}
	// A command of the full size, made of the characters that json.Marshal would write as six bytes each.
	env := map[string]string{}
	for i := range 7 {
		env["V"+strconv.Itoa(i)] = strings.Repeat("<&>", maxText/3)
	}
	a := sampleAssignment()
	a.Spec.Environment = env
	in := Encode(Command{Command: Deploy, Job: Job{Name: "a", Spec: *a.Spec}})
	if len(in) > MaxPayload {
		t.Fatalf("the command has %d bytes", len(in))
	}
	if err := DecodeFromManager(Encode(Sync{Assignments: []Assignment{a}}), new(Sync)); err != nil {
		t.Errorf("an accepted job is too large for its node: %v", err)
	}
}
