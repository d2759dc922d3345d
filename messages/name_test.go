package messages

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for _, s := range []string{"a", "0", "web", "a-b", "board-01", "a--b", strings.Repeat("x", 63)} {
		if err := CheckName("job", s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for s, why := range map[string]string{
		"": "missing", strings.Repeat("x", 64): "longer", "-a": "begin and end", "a-": "begin and end", "-": "begin and end",
		"Web": "lower-case", "a.b": "lower-case", "a/b": "lower-case", "a_b": "lower-case", "a b": "lower-case", "a+": "lower-case",
		"#": "lower-case", "ü": "lower-case", "a\x00": "lower-case", "\xff": "lower-case", "a\n": "lower-case",
	} {
		wantError(t, s, CheckName("job", s), why)
	}
}

// wantError holds that err says why.
func wantError(t *testing.T, what string, err error, why string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%q: got no error, want one with %q", what, why)
	case !strings.Contains(err.Error(), why):
		t.Errorf("%q: got error %q, want one with %q", what, err, why)
	}
}

func TestInstanceID(t *testing.T) {
	id := NewInstanceID("web", 3, 7)
	job, ordinal, generation, err := id.Split()
	if id != "web.3.7" || job != "web" || ordinal != 3 || generation != 7 || err != nil {
		t.Errorf("got %s: %s %d %d %v", id, job, ordinal, generation, err)
	}
	if err := NewInstanceID("web", maxNumber, maxNumber).Validate(); err != nil {
		t.Error(err)
	}
	for _, s := range []string{"", ".", "..", "web", "web.0", "web.0.0.0", "web.00.0", "web.0.01", "web.-1.0", "web.+1.0", "web.0.", ".0.0",
		"web.1073741825.0", "web.99999999999999999999.0", "Web.0.0", "web.0x1.0", "web. 0.0", "web.0.0\n", "web/x.0.0"} {
		if InstanceID(s).Validate() == nil {
			t.Errorf("%q passed", s)
		}
	}
}

func TestTopics(t *testing.T) {
	for s, want := range map[string]Topic{
		"control/deploy":               {Kind: CommandTopic, Verb: Deploy},
		"control/delete":               {Kind: CommandTopic, Verb: Delete},
		"control/move":                 {Kind: CommandTopic, Verb: Move},
		"control/replicate":            {Kind: CommandTopic, Verb: Replicate},
		"control/node/replace":         {Kind: NodeCommandTopic, Verb: Replace},
		"control/node/remove":          {Kind: NodeCommandTopic, Verb: Remove},
		"control/results/c7f1":         {Kind: ResultTopic, Request: "c7f1"},
		"jobs/web/status":              {Kind: JobStatusTopic, Job: "web"},
		"nodes/n1/status":              {Kind: NodeStatusTopic, Node: "n1"},
		"cluster/status":               {Kind: ClusterTopic},
		"events/node-lost":             {Kind: EventTopic, Event: NodeLostEv},
		"nodes/n1/presence":            {Kind: PresenceTopic, Node: "n1"},
		"nodes/n1/control/deploy":      {Kind: NodeControlTopic, Node: "n1", Verb: Deploy},
		"nodes/n1/control/delete":      {Kind: NodeControlTopic, Node: "n1", Verb: Delete},
		"nodes/n1/control/sync":        {Kind: SyncTopic, Node: "n1"},
		"nodes/n1/control/inventory":   {Kind: InventoryRequestTopic, Node: "n1"},
		"nodes/n1/inventory":           {Kind: InventoryTopic, Node: "n1"},
		"nodes/n1/control/logs":        {Kind: LogsRequestTopic, Node: "n1"},
		"nodes/n1/job":                 {Kind: NodeJobTopic, Node: "n1"},
		"nodes/n1/information":         {Kind: InformationTopic, Node: "n1"},
		"nodes/n1/net/config":          {Kind: NetConfigTopic, Node: "n1"},
		"nodes/n1/net/endpoints":       {Kind: NetEndpointsTopic, Node: "n1"},
		"nodes/n1/logs/web.0.2":        {Kind: LogsTopic, Node: "n1", Instance: "web.0.2"},
		"control/guest/add":            {Kind: GuestCommandTopic, Verb: Add},
		"control/guest/remove":         {Kind: GuestCommandTopic, Verb: Remove},
		"network/status":               {Kind: NetworkTopic},
		"network/services/web":         {Kind: ServiceTopic, Job: "web"},
		"nodes/n1/control/trace":       {Kind: TraceRequestTopic, Node: "n1"},
		"nodes/n1/net/services":        {Kind: NetServicesTopic, Node: "n1"},
		"nodes/n1/net/interest":        {Kind: NetInterestTopic, Node: "n1"},
		"nodes/n1/net/status":          {Kind: NetStatusTopic, Node: "n1"},
		"nodes/n1/net/answers/t1":      {Kind: TraceAnswerTopic, Node: "n1", Request: "t1"},
		"control/results/A-z_0.9:x":    {Kind: ResultTopic, Request: "A-z_0.9:x"},
		"nodes/control/control/deploy": {Kind: NodeControlTopic, Node: "control", Verb: Deploy},
	} {
		got, err := ParseTopic(s)
		if got != want || err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", s, got, err, want)
		}
		if want.String() != s {
			t.Errorf("got %s, want %s", want, s)
		}
	}
}

func TestTopicsRefused(t *testing.T) {
	for _, s := range []string{"", "/", "control", "control/", "control//deploy", "/control/deploy", "control/deploy/", "control/DEPLOY",
		"control/stop", "control/replace", "control/remove", "control/node", "control/node/", "control/node/deploy", "control/node/+",
		"control/node/replace/x", "control/node/Replace", "nodes/n1/control/replace", "control/results", "control/results/", "control/results/a/b", "control/results/+", "control/results/#",
		"control/results/ ", "control/results/ä", "control/results/" + strings.Repeat("a", 65), "jobs/web", "jobs/+/status",
		"jobs/web/status/x", "jobs//status", "jobs/Web/status", "nodes/n1", "nodes/n1/", "nodes/+/status", "nodes/n1/#", "nodes//status",
		"nodes/n1/control/move", "nodes/n1/control/replicate", "nodes/n1/control", "nodes/n1/control/deploy/x", "nodes/n1/logs",
		"nodes/n1/logs/web", "nodes/n1/logs/web.0.2/x", "nodes/n1/logs/web.00.2", "nodes/n1/net", "nodes/n1/net/config/x", "nodes/n1/net/answers", "nodes/n1/net/answers/",
		"nodes/n1/net/answers/a/b", "nodes/n1/net/answers/+", "nodes/n1/net/x", "network", "network/", "network/x", "network/services", "network/services/",
		"network/services/Web", "network/services/web/x", "network/status/x", "control/guest", "control/guest/", "control/guest/replace", "control/add", "cluster",
		"cluster/", "cluster/status/x", "cluster/x", "events", "events/", "events/a/b", "events/Node", "$SYS/broker", "\x00", "\xff/\xfe",
		strings.Repeat("a/", 200), strings.Repeat("nodes", 100)} {
		if got, err := ParseTopic(s); err == nil || got != (Topic{}) {
			t.Errorf("%q: got %+v, %v", s, got, err)
		}
	}
	if s := (Topic{}).String(); s != "" {
		t.Errorf("unknown topic: got %q", s)
	}
}

// TestTopicsInvert draws random topics, whole and damaged: what is parsed builds the same text, and what is built parses again.
func TestTopicsInvert(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"control", "deploy", "delete", "move", "results", "jobs", "nodes", "status", "cluster", "events", "presence", "sync",
		"logs", "job", "information", "net", "config", "endpoints", "web", "n1", "web.0.2", "", "+", "#", "A", "a b", "\xff", "é", "-", ".."}
	parsed := map[Kind]int{}
	known := []string{"control/move", "control/node/remove", "control/results/c7f1", "jobs/web/status", "cluster/status", "events/node-lost", "nodes/n1/status",
		"nodes/n1/presence", "nodes/n1/control/delete", "nodes/n1/control/sync", "nodes/n1/control/inventory", "nodes/n1/inventory",
		"nodes/n1/control/logs", "nodes/n1/job",
		"nodes/n1/information", "nodes/n1/net/config", "nodes/n1/net/endpoints", "nodes/n1/logs/web.0.2", "nodes/n1/net/services",
		"nodes/n1/net/interest", "nodes/n1/net/status", "nodes/n1/net/answers/t1", "nodes/n1/control/trace", "control/guest/add", "network/status",
		"network/services/web"}
	for range 100_000 {
		levels := strings.Split(known[r.IntN(len(known))], "/")
		for range r.IntN(3) {
			levels[r.IntN(len(levels))] = words[r.IntN(len(words))]
		}
		if r.IntN(8) == 0 {
			levels = append(levels, words[r.IntN(len(words))])
		}
		s := strings.Join(levels, "/")
		topic, err := ParseTopic(s)
		if err != nil {
			continue
		}
		parsed[topic.Kind]++
		again, err := ParseTopic(topic.String())
		if topic.String() != s || again != topic || err != nil {
			t.Fatalf("%q: got %q, %+v, %v", s, topic, again, err)
		}
		if strings.ContainsAny(s, "+#\x00") || slices.Contains(levels, "") {
			t.Fatalf("%q passed", s)
		}
	}
	for kind := CommandTopic; kind <= LogsTopic; kind++ {
		if parsed[kind] == 0 {
			t.Errorf("kind %d was never drawn", kind)
		}
	}
}

func TestFilters(t *testing.T) {
	if got := NodeFilter("n1"); got != "nodes/n1/#" {
		t.Error(got)
	}
	if got := NodeControlFilter("n1"); got != "nodes/n1/control/#" {
		t.Error(got)
	}
	for filter, topic := range map[string]Topic{AllJobsFilter: {Kind: JobStatusTopic, Job: "+"}, AllNodesFilter: {Kind: NodeStatusTopic, Node: "+"},
		AllEvents: {Kind: EventTopic, Event: "+"}, AllServicesFilter: {Kind: ServiceTopic, Job: "+"}, AllNetStatusFilter: {Kind: NetStatusTopic, Node: "+"}} {
		if topic.String() != filter {
			t.Errorf("got %s, want %s", topic, filter)
		}
	}
}

func TestRequestID(t *testing.T) {
	for _, s := range []string{"", "a", "c7f1", "A.b-c_d:e", strings.Repeat("x", 64)} {
		if err := checkRequestID(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"a/b", "+", "#", " ", "é", "a\x00", strings.Repeat("x", 65)} {
		if checkRequestID(s) == nil {
			t.Errorf("%q passed", s)
		}
	}
}
