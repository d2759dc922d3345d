package messages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// document is what the tests read of asyncapi.yaml.
type document struct {
	AsyncAPI string            `json:"asyncapi"`
	Beyond   map[string]string `json:"x-beyond-schema"`
	Channels map[string]struct {
		Address    string                    `json:"address"`
		Event      string                    `json:"x-event"`
		Namespace  string                    `json:"x-namespace"`
		Parameters map[string]parameter      `json:"parameters"`
		Messages   map[string]map[string]any `json:"messages"`
	} `json:"channels"`
	Operations map[string]struct {
		Action   string            `json:"action"`
		Channel  map[string]string `json:"channel"`
		From     string            `json:"x-from"`
		To       string            `json:"x-to"`
		Bindings struct {
			MQTT struct {
				QoS    int  `json:"qos"`
				Retain bool `json:"retain"`
			} `json:"mqtt"`
		} `json:"bindings"`
	} `json:"operations"`
	Components struct {
		Messages map[string]struct {
			Payload  map[string]string `json:"payload"`
			Examples []struct {
				Name    string `json:"name"`
				Payload any    `json:"payload"`
			} `json:"examples"`
		} `json:"messages"`
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

type parameter struct {
	Enum []string `json:"enum"`
}

// schema is the part of a JSON Schema that can be compared with a Go type.
type schema struct {
	Ref        string            `json:"$ref"`
	Type       any               `json:"type"`
	Enum       []string          `json:"enum"`
	OpenEnum   []string          `json:"x-open-enum"`
	Required   []string          `json:"required"`
	Properties map[string]schema `json:"properties"`
	Items      *schema           `json:"items"`
	Additional *schema           `json:"additionalProperties"`
	AllOf      []schema          `json:"allOf"`
}

// load reads asyncapi.yaml twice: as the tests compare it, and as the schema compiler takes it.
func load(t testing.TB) (document, any) {
	t.Helper()
	b, err := os.ReadFile("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	b, err = json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	raw, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return d, raw
}

const schemaPath = "#/components/schemas/"

// resolve follows a reference, also one that stands in allOf beside a description.
func (d *document) resolve(s schema) schema {
	for s.Ref != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Ref, schemaPath)]
	}
	if s.Type == nil && len(s.AllOf) == 1 {
		return d.resolve(s.AllOf[0])
	}
	return s
}

// TestSchemasMatchTypes compares every struct of every payload with its schema: names, types, what is required, and enums.
func TestSchemasMatchTypes(t *testing.T) {
	d, _ := load(t)
	seen := map[reflect.Type]bool{}
	for _, build := range payloadKinds() {
		d.compare(t, reflect.TypeOf(build()).Elem(), seen)
	}
	named := map[string]bool{"Spec": true}
	for typ := range seen {
		named[typ.Name()] = true
	}
	for name, s := range d.Components.Schemas {
		if s.Type == "object" && !named[name] {
			t.Errorf("schema %s belongs to no Go type", name)
		}
	}
}

func (d *document) compare(t *testing.T, typ reflect.Type, seen map[reflect.Type]bool) {
	if seen[typ] {
		return
	}
	seen[typ] = true
	s, ok := d.Components.Schemas[typ.Name()]
	if !ok {
		t.Errorf("no schema %s", typ.Name())
		return
	}
	properties, required := maps.Clone(s.Properties), slices.Clone(s.Required)
	for _, base := range s.AllOf {
		b := d.resolve(base)
		maps.Copy(properties, b.Properties)
		if base.Ref != "" {
			required = append(required, b.Required...)
		}
	}
	for _, f := range fields(typ) {
		where := typ.Name() + "." + f.name
		p, ok := properties[f.name]
		if !ok {
			t.Errorf("%s: not in the schema", where)
			continue
		}
		delete(properties, f.name)
		if f.optional == slices.Contains(required, f.name) {
			t.Errorf("%s: optional in Go %v, required in the schema %v", where, f.optional, !f.optional)
		}
		d.compareType(t, where, f.typ, p, seen)
	}
	for name := range properties {
		t.Errorf("%s.%s: in the schema, but not in Go", typ.Name(), name)
	}
}

func (d *document) compareType(t *testing.T, where string, typ reflect.Type, s schema, seen map[reflect.Type]bool) {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	s = d.resolve(s)
	want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer",
		reflect.Uint64: "integer", reflect.Float64: "number", reflect.Slice: "array", reflect.Array: "array", reflect.Map: "object",
		reflect.Struct: "object"}[typ.Kind()]
	switch typ {
	case reflect.TypeFor[Time](), reflect.TypeFor[Duration]():
		want = "string"
	case reflect.TypeFor[ClientID]():
		want = "[number string]"
	}
	if got := fmt.Sprint(s.Type); got != want {
		t.Errorf("%s: the schema says %s, Go %s", where, got, want)
		return
	}
	d.compareWords(t, where, typ, s)
	switch {
	case typ.Kind() == reflect.Slice || typ.Kind() == reflect.Array:
		d.compareType(t, where+"[]", typ.Elem(), *s.Items, seen)
	case typ.Kind() == reflect.Map:
		d.compareType(t, where+"{}", typ.Elem(), *s.Additional, seen)
	case isObject(typ):
		d.compare(t, typ, seen)
	}
}

// words are the enumerations of the contract: by type, and where the type is a plain string, by field.
func words() map[string][]string {
	text := func(list any) []string {
		var out []string
		for _, w := range reflect.ValueOf(list).Seq2() {
			out = append(out, w.String())
		}
		return out
	}
	return map[string][]string{
		"Verb": text(Verbs()), "Code": text(Codes()), "Phase": text([]Phase{Accepted, Refused, Done, Failed}),
		"Mode":          {"", string(Service), string(Batch)},
		"RestartPolicy": {"", string(RestartAlways), string(RestartOnFailure), string(RestartNever)},
		"OnReturn":      {"", string(KeepNewest), string(KeepOriginal)},
		"State":         text([]State{Pending, Preparing, Starting, Running, Stopped, ExitedState, FailedState, Lost, UnknownStatus}),
		"JobState":      text([]JobState{JobPending, JobRolling, JobRunning, JobDegraded, JobFailed, JobDone, JobDeleting, JobHeld}),
		"NodeState":     text([]NodeState{NodeExpected, NodeOnline, NodeAway, NodeLost}),
		"RefusalCode": text([]RefusalCode{RefusedPayload, RefusedName, RefusedToken, RefusedProof, RefusedLegacy, RefusedProtocol,
			RefusedTimeout, RefusedBusy}),
		"NodeCommand.command": text(NodeVerbs()), "Result.command": text(slices.Concat(Verbs(), NodeVerbs(), []Verb{Add})),
		"GuestCommand.command": text(GuestVerbs()),
		"NetworkMode":          {"", string(Overlay), string(HostNetwork), string(NoNetwork), string(BridgeNetwork)},
		"Policy":               {"", string(RoundRobin), string(Closest)},
		"TraceKind":            text([]TraceKind{TraceResolve, TracePath, TracePing}),
		"PathState":            text([]PathState{Direct, Relayed, NoPath}),
		"OverlayState":         text([]OverlayState{OverlayUp, OverlayOff, OverlayRefused}),
		"InstanceStatus.state": text([]State{Pending, Preparing, Starting, Running, Stopped, ExitedState, FailedState}),
		"Port.protocol":        {"", "tcp", "udp"}, "Constraints.kind": {"", "any", Core, Spare}, "LogChunk.stream": {"", "stdout", "stderr"},
		"Welcome.kind": {Core, Spare}, "NodeStatus.kind": {Core, Spare},
		"SensorInfo.kind": {"hwmon", "thermal", "w1", "iio", "usb", "serial", "video"},
		"Event.kind": {NodeJoined, NodeOnlineEv, NodeAwayEv, NodeLostEv, NodeRemovedEv, JobDeployed, JobChanged, JobReverted, JobFound, JobDeleted, InstancePlaced,
			InstanceState, InstanceLost, InstanceGone},
	}
}

func (d *document) compareWords(t *testing.T, where string, typ reflect.Type, s schema) {
	want, ok := words()[where]
	if !ok {
		want = words()[typ.Name()]
	}
	if got := append(s.Enum, s.OpenEnum...); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("%s: the schema lists %q, Go %q", where, got, want)
	}
}

// TestWordsAreAllListed reads the constants from the source, so that a new word without an entry in words is noticed.
func TestWordsAreAllListed(t *testing.T) {
	typed := regexp.MustCompile(`(?m)^\t\w+ +(Verb|Code|Phase|Mode|RestartPolicy|OnReturn|State|JobState|NodeState|RefusalCode|NetworkMode|Policy|TraceKind|PathState|OverlayState) += "([^"]+)"`)
	events := regexp.MustCompile(`(?m)^\t\w+ += "((?:node|job|instance)-[a-z]+)"`)
	found := 0
	for _, file := range []string{"command.go", "guest_command.go", "instance.go", "job.go", "network.go", "node.go", "node_command.go", "status.go", "trace.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range typed.FindAllStringSubmatch(string(b), -1) {
			found++
			list := m[1]
			if list == "Verb" {
				list = "Result.command" // which echoes every verb
			}
			if !slices.Contains(words()[list], m[2]) {
				t.Errorf("%s %q is not listed", m[1], m[2])
			}
		}
		for _, m := range events.FindAllStringSubmatch(string(b), -1) {
			found++
			if !slices.Contains(words()["Event.kind"], m[1]) {
				t.Errorf("event %q is not listed", m[1])
			}
		}
	}
	if found < 60 {
		t.Errorf("only %d words found in the source", found)
	}
}

// row is one line of the contract's table of topics.
type row struct {
	topic      Topic
	message    string
	from, to   string
	qos        int
	retain     bool
	parameters string // as the address of the channel has them
}

func rows() map[Kind]row {
	return map[Kind]row{
		CommandTopic:          {Topic{Verb: "{verb}"}, "Command", "client", "manager", 1, false, "control/{verb}"},
		NodeCommandTopic:      {Topic{Verb: "{verb}"}, "NodeCommand", "client", "manager", 1, false, "control/node/{verb}"},
		ResultTopic:           {Topic{Request: "{request_id}"}, "Result", "manager", "client", 1, false, "control/results/{request_id}"},
		JobStatusTopic:        {Topic{Job: "{job}"}, "JobStatus", "manager", "client", 1, true, "jobs/{job}/status"},
		NodeStatusTopic:       {Topic{}, "NodeStatus", "manager", "client", 1, true, "nodes/{node}/status"},
		ClusterTopic:          {Topic{}, "ClusterStatus", "manager", "client", 1, true, "cluster/status"},
		EventTopic:            {Topic{Event: "{kind}"}, "Event", "manager", "client", 0, false, "events/{kind}"},
		PresenceTopic:         {Topic{}, "Presence", "node", "manager", 1, true, "nodes/{node}/presence"},
		NodeControlTopic:      {Topic{Verb: "{verb}"}, "Assignment", "manager", "node", 1, false, "nodes/{node}/control/{verb}"},
		SyncTopic:             {Topic{}, "Sync", "manager", "node", 1, false, "nodes/{node}/control/sync"},
		InventoryRequestTopic: {Topic{}, "InventoryRequest", "manager", "node", 1, false, "nodes/{node}/control/inventory"},
		InventoryTopic:        {Topic{}, "Inventory", "node", "manager", 1, false, "nodes/{node}/inventory"},
		LogsRequestTopic:      {Topic{}, "LogsRequest", "client", "node", 1, false, "nodes/{node}/control/logs"},
		NodeJobTopic:          {Topic{}, "InstanceStatus", "node", "manager", 1, false, "nodes/{node}/job"},
		InformationTopic:      {Topic{}, "Telemetry", "node", "manager", 0, false, "nodes/{node}/information"},
		NetConfigTopic:        {Topic{}, "NetworkConfig", "manager", "node", 1, true, "nodes/{node}/net/config"},
		NetServicesTopic:      {Topic{}, "ServiceUpdate", "manager", "node", 1, false, "nodes/{node}/net/services"},
		NetInterestTopic:      {Topic{}, "Interest", "node", "manager", 1, false, "nodes/{node}/net/interest"},
		NetEndpointsTopic:     {Topic{}, "Endpoints", "node", "manager", 1, false, "nodes/{node}/net/endpoints"},
		NetStatusTopic:        {Topic{}, "NetStatus", "node", "client", 0, true, "nodes/{node}/net/status"},
		TraceRequestTopic:     {Topic{}, "TraceRequest", "client", "node", 1, false, "nodes/{node}/control/trace"},
		TraceAnswerTopic:      {Topic{Request: "{request_id}"}, "TraceAnswer", "node", "client", 0, false, "nodes/{node}/net/answers/{request_id}"},
		GuestCommandTopic:     {Topic{Verb: "{verb}"}, "GuestCommand", "client", "manager", 1, false, "control/guest/{verb}"},
		NetworkTopic:          {Topic{}, "NetworkStatus", "manager", "client", 1, true, "network/status"},
		ServiceTopic:          {Topic{Job: "{job}"}, "ServiceEntry", "manager", "client", 1, true, "network/services/{job}"},
		LogsTopic:             {Topic{Instance: "{instance}"}, "LogChunk", "node", "client", 0, false, "nodes/{node}/logs/{instance}"},
	}
}

// TestChannelsMatchTopics compares every kind of topic with its channel and operation: address, payload, direction, QoS, retained.
func TestChannelsMatchTopics(t *testing.T) {
	d, _ := load(t)
	byAddress := map[string]string{}
	for name, c := range d.Channels {
		byAddress[c.Address] = name
	}
	for kind := CommandTopic; kind <= LogsTopic; kind++ {
		r, ok := rows()[kind]
		if !ok {
			t.Fatalf("kind %d has no row", kind)
		}
		r.topic.Kind, r.topic.Node = kind, "{node}"
		address := r.topic.String()
		name, ok := byAddress[address]
		if !ok || address != r.parameters {
			t.Errorf("kind %d: no channel %q", kind, address)
			continue
		}
		if _, ok := d.Channels[name].Messages[r.message]; !ok || len(d.Channels[name].Messages) != 1 {
			t.Errorf("%s: want the message %s", name, r.message)
		}
		for p := range d.Channels[name].Parameters {
			address = strings.ReplaceAll(address, "{"+p+"}", "")
		}
		if strings.Contains(address, "{") {
			t.Errorf("%s: a parameter is not described", name)
		}
		o, action := d.Operations[name], "send"
		if r.to == "manager" {
			action = "receive"
		}
		if o.Channel["$ref"] != "#/channels/"+name || o.Action != action || o.From != r.from || o.To != r.to ||
			o.Bindings.MQTT.QoS != r.qos || o.Bindings.MQTT.Retain != r.retain {
			t.Errorf("%s: got %+v, want %+v", name, o, r)
		}
	}
	verbs := d.Channels["command"].Parameters["verb"].Enum
	if want := words()["Verb"]; !slices.Equal(verbs, want) {
		t.Errorf("got verbs %v, want %v", verbs, want)
	}
	if got, want := d.Channels["nodeCommand"].Parameters["verb"].Enum, words()["NodeCommand.command"]; !slices.Equal(got, want) {
		t.Errorf("got verbs of nodes %v, want %v", got, want)
	}
	if got, want := d.Channels["guestCommand"].Parameters["verb"].Enum, words()["GuestCommand.command"]; !slices.Equal(got, want) {
		t.Errorf("got verbs of guests %v, want %v", got, want)
	}
	if got := len(d.Channels); got != len(rows())+len(eventRows()) || len(d.Operations) != got {
		t.Errorf("got %d channels and %d operations", got, len(d.Operations))
	}
}

func eventRows() map[string]row {
	return map[string]row{HelloEvent: {message: "Hello", from: "manager", to: "node"}, NodeInfoEvent: {message: "NodeInfo", from: "node", to: "manager"},
		WelcomeEvent: {message: "Welcome", from: "manager", to: "node"}, RefusedEvent: {message: "Refusal", from: "manager", to: "node"}}
}

func TestChannelsMatchEvents(t *testing.T) {
	d, _ := load(t)
	found := 0
	for name, c := range d.Channels {
		if c.Event == "" {
			continue
		}
		found++
		want, o := eventRows()[c.Event], d.Operations[name]
		if _, ok := c.Messages[want.message]; !ok || c.Namespace != Namespace || c.Address != Namespace+"/"+c.Event ||
			o.From != want.from || o.To != want.to {
			t.Errorf("%s: got %+v, %+v, want %+v", name, c, o, want)
		}
	}
	if found != len(eventRows()) {
		t.Errorf("got %d events, want %d", found, len(eventRows()))
	}
}

// TestExamplesAreGoldens holds that what the document shows is what the programs write.
func TestExamplesAreGoldens(t *testing.T) {
	d, _ := load(t)
	for name, m := range d.Components.Messages {
		if m.Payload["$ref"] != schemaPath+name {
			t.Errorf("%s: got payload %v", name, m.Payload)
		}
		if len(m.Examples) == 0 {
			t.Errorf("%s: no example", name)
		}
		for _, e := range m.Examples {
			b, err := os.ReadFile("testdata/" + e.Name + ".json")
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			var golden any
			if err := json.Unmarshal(b, &golden); err != nil || !reflect.DeepEqual(golden, e.Payload) {
				t.Errorf("%s: the example %s differs from its golden file, %v", name, e.Name, err)
			}
			if got := reflect.TypeOf(payloadKinds()[kindOf(e.Name)]()).Elem().Name(); got != name {
				t.Errorf("%s: the example %s is a %s", name, e.Name, got)
			}
		}
	}
}
