package messages

import (
	"strings"
	"testing"
)

// fuzzPayload holds for every decoder: no panic, an error of bounded length, and what is accepted is written in a form that is
// accepted again and then stays the same.
func fuzzPayload(f *testing.F, kind string) {
	build := payloadKinds()[kind]
	for _, golden := range goldens(f, kind+".*.json") {
		f.Add(golden)
	}
	for _, in := range hostile() {
		if len(in) < 1000 {
			f.Add([]byte(in))
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		v := build()
		if err := DecodeFromManager(payload, v); err != nil {
			if len(err.Error()) > 64<<10 {
				t.Fatalf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		checkStable(t, build, v)
	})
}

func FuzzDecodeHello(f *testing.F) { fuzzPayload(f, "hello") }

func FuzzDecodeNodeInfo(f *testing.F) { fuzzPayload(f, "node-info") }

func FuzzDecodeWelcome(f *testing.F) { fuzzPayload(f, "welcome") }

func FuzzDecodeRefusal(f *testing.F) { fuzzPayload(f, "refusal") }

func FuzzDecodeResult(f *testing.F) { fuzzPayload(f, "result") }

func FuzzDecodeJobStatus(f *testing.F) { fuzzPayload(f, "job-status") }

func FuzzDecodeNodeStatus(f *testing.F) { fuzzPayload(f, "node-status") }

func FuzzDecodeClusterStatus(f *testing.F) { fuzzPayload(f, "cluster-status") }

func FuzzDecodeEvent(f *testing.F) { fuzzPayload(f, "event") }

func FuzzDecodePresence(f *testing.F) { fuzzPayload(f, "presence") }

func FuzzDecodeAssignment(f *testing.F) { fuzzPayload(f, "assignment") }

func FuzzDecodeSync(f *testing.F) { fuzzPayload(f, "sync") }

func FuzzDecodeInventoryRequest(f *testing.F) { fuzzPayload(f, "inventory-request") }

// FuzzDecodeInventory holds a piece of an Inventory to the same.
func FuzzDecodeInventory(f *testing.F) { fuzzPayload(f, "inventory") }

func FuzzDecodeInstanceStatus(f *testing.F) { fuzzPayload(f, "instance-status") }

func FuzzDecodeTelemetry(f *testing.F) { fuzzPayload(f, "telemetry") }

func FuzzDecodeLogsRequest(f *testing.F) { fuzzPayload(f, "logs-request") }

func FuzzDecodeLogChunk(f *testing.F) { fuzzPayload(f, "log-chunk") }

func FuzzDecodeCommand(f *testing.F) {
	fuzzPayload(f, "command")
}

func FuzzDecodeNodeCommand(f *testing.F) { fuzzPayload(f, "node-command") }

func FuzzDecodeGuestCommand(f *testing.F) { fuzzPayload(f, "guest-command") }

func FuzzDecodeNetworkConfig(f *testing.F) { fuzzPayload(f, "network-config") }

func FuzzDecodeServiceUpdate(f *testing.F) { fuzzPayload(f, "service-update") }

func FuzzDecodeServiceEntry(f *testing.F) { fuzzPayload(f, "service-entry") }

func FuzzDecodeInterest(f *testing.F) { fuzzPayload(f, "interest") }

func FuzzDecodeEndpoints(f *testing.F) { fuzzPayload(f, "endpoints") }

func FuzzDecodeNetStatus(f *testing.F) { fuzzPayload(f, "net-status") }

func FuzzDecodeNetworkStatus(f *testing.F) { fuzzPayload(f, "network-status") }

func FuzzDecodeTraceRequest(f *testing.F) { fuzzPayload(f, "trace-request") }

func FuzzDecodeTraceAnswer(f *testing.F) { fuzzPayload(f, "trace-answer") }

// FuzzAnswerCommand holds that whatever a refused command holds, the Result that refuses it can be sent.
func FuzzAnswerCommand(f *testing.F) {
	for _, golden := range goldens(f, "client/command.*.json") {
		f.Add(golden)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := DecodeCommand(payload, Deploy)
		checkRefusal(t, &Result{RequestID: c.RequestID, Command: c.Command, Job: c.Job.Name, ID: c.Job.ID, Phase: Refused}, err)
	})
}

// FuzzAnswerNodeCommand holds the same for commands about nodes.
func FuzzAnswerNodeCommand(f *testing.F) {
	for _, golden := range goldens(f, "client/node-command.*.json") {
		f.Add(golden)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := DecodeNodeCommand(payload, Replace)
		checkRefusal(t, &Result{RequestID: c.RequestID, Command: c.Command, Node: c.Node, Phase: Refused}, err)
		if c.Node != "" && CheckName("node", string(c.Node)) != nil {
			t.Fatalf("the node is %q", c.Node)
		}
	})
}

// FuzzAnswerGuestCommand holds the same for commands about guests.
func FuzzAnswerGuestCommand(f *testing.F) {
	for _, golden := range goldens(f, "client/guest-command.*.json") {
		f.Add(golden)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := DecodeGuestCommand(payload, Add)
		checkRefusal(t, &Result{RequestID: c.RequestID, Command: c.Command, Guest: c.Guest, Phase: Refused}, err)
		if c.Guest != "" && CheckName("guest", c.Guest) != nil {
			t.Fatalf("the guest is %q", c.Guest)
		}
	})
}

// checkRefusal holds that a Result with what was found in a payload has a topic and can be read, whatever was wrong there.
func checkRefusal(t *testing.T, r *Result, wrong error) {
	t.Helper()
	if r.RequestID != "" {
		topic := Topic{Kind: ResultTopic, Request: r.RequestID}
		if got, err := ParseTopic(topic.String()); got != topic || err != nil {
			t.Fatalf("%q: %v", topic, err)
		}
	}
	if wrong != nil {
		r.Message = wrong.Error()
	}
	if err := Decode(Encode(r), new(Result)); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseTopic(f *testing.F) {
	for _, s := range []string{"control/deploy", "control/node/replace", "control/results/c7f1", "nodes/n1/logs/web.0.2", "nodes/n1/control/sync", "jobs/web/status",
		"events/node-lost", "cluster/status", "nodes//status", "nodes/n1/net/answers/t1", "control/guest/add", "network/services/web", "network/status", "nodes/+/#", "$SYS/x", "\xff/\x00", strings.Repeat("/", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		topic, err := ParseTopic(s)
		switch {
		case err != nil && topic != (Topic{}):
			t.Fatalf("%q: an error and %+v", s, topic)
		case err == nil && (topic.String() != s || topic.Kind == UnknownTopic):
			t.Fatalf("%q: got %q", s, topic)
		case err == nil && strings.ContainsAny(s, "+#\x00"):
			t.Fatalf("%q can not be published to", s)
		}
	})
}
