package e2e

import (
	"bytes"
	"maps"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.internal/messages"
)

// party is who speaks or hears on a topic.
type party int

const (
	theClient party = iota
	theNode
	theManager
)

// said is what a kind of topic carries, and from whom to whom.
type said struct {
	by, to  party
	payload any
}

// number stands in payloads for what makes each its own: the request id of a command, which a manager answers once, or the rev or seq that shall
// be higher than the last.
const number = 1_000_000

var lastNumber atomic.Int64

// numbered gives every payload a number that none has had.
func numbered(payloads [][]byte) [][]byte {
	for i, p := range payloads {
		payloads[i] = bytes.ReplaceAll(p, strconv.AppendInt(nil, number, 10), strconv.AppendInt(nil, number+lastNumber.Add(1), 10))
	}
	return payloads
}

const (
	hostileRequest = "hostile-1000000"
	somebodysKey   = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
)

// theNetwork is a network of which a node has one block.
func theNetwork(rev uint64) messages.NetworkConfig {
	return messages.NetworkConfig{Rev: rev, Network: "10.160.0.0/12", Network6: "fd5c:ae11:9::/48", Services: "10.172.0.0/14", Blocks: []string{"10.160.0.0/26"}, Gateway: "10.160.0.1",
		Peers: []messages.Peer{{Node: "board-2", Key: somebodysKey, Prefixes: []string{"10.160.0.64/26"}, Endpoints: []string{"127.0.0.1:9"},
			Instances: []messages.PeerInstance{{Address: "10.160.0.66", Service: "10.172.0.6", Job: "shop"}}}}, Relay: &messages.Relay{URL: "http://127.0.0.1:9/relay"}, STUN: []string{"127.0.0.1:9"}}
}

// contract is a valid payload of every kind of topic.
func contract() map[messages.Kind]said {
	now := messages.At(time.Now())
	spec := app("web", 1, nil).WithDefaults().Spec
	run := messages.Assignment{Instance: "web.0.0", Rev: 1, Run: true, Spec: &spec}
	status := messages.InstanceStatus{Instance: "fake.0.0", Job: "fake", Rev: 1, Attempt: 1, Seq: number, State: messages.Running, Healthy: true, Reason: "r", Address: "1.2.3.4",
		Ports: []messages.Port{{Host: 1, Container: 1, Protocol: "tcp"}}, Progress: &messages.Progress{DoneBytes: 1}, StartedAt: now, ImageID: "i", Workload: "w", At: now}
	report := messages.InstanceReport{Node: "x", Run: true, InstanceStatus: status}
	guest := messages.Guest{Guest: "phone", PublicKey: somebodysKey, Address: "10.160.1.1", Address6: "fd5c:ae11:9::101", Gateway: "x", Since: now}
	entry := messages.ServiceEntry{Job: "web", RoundRobin: "10.172.0.0", Closest: "10.172.0.1", Policy: messages.Closest, Allow: []messages.JobName{"shop"}, Ports: []messages.Port{{Container: 80, Protocol: "tcp"}},
		Instances: []messages.ServiceInstance{{Service: "10.172.0.2", Address: "10.160.0.2", Node: "x", Healthy: true}}}
	use := messages.OverlayUse{Peers: []messages.PeerUse{{Node: "y", Path: messages.Direct, Endpoint: "127.0.0.1:9", RTTMS: 1, MTU: 1420}}, Flows: []messages.FlowUse{{From: "shop", Service: "web", Node: "y", Flows: 1}}}
	job := app("hostile", 1, map[string]string{"A": "b"})
	// Whatever one spoilt field lets through: there is no such node, and none of the size.
	job.Constraints = messages.Constraints{Labels: map[string]string{"there": "is none"}}
	job.Resources = messages.Resources{CPUs: 1000, MemoryMB: 1 << 20}
	job.Volumes = []messages.Volume{{Source: "/dev/shm", Target: "/data", ReadOnly: true}}
	job.Devices = []messages.Device{{Host: "/dev/null"}}
	job.Args, job.ID = []string{"x"}, messages.NumberID(7)
	return map[messages.Kind]said{
		messages.CommandTopic:          {theClient, theManager, messages.Command{Job: job, Cluster: []string{"lab"}, RequestID: hostileRequest}},
		messages.NodeCommandTopic:      {theClient, theManager, messages.NodeCommand{Node: "nobody", Cluster: []string{"lab"}, RequestID: hostileRequest}},
		messages.GuestCommandTopic:     {theClient, theManager, messages.GuestCommand{Guest: "nobody", PublicKey: somebodysKey, Gateway: "nobody", Cluster: []string{"lab"}, RequestID: hostileRequest}},
		messages.LogsRequestTopic:      {theClient, theNode, messages.LogsRequest{Instance: "other.0.0", RequestID: hostileRequest, Tail: 3, Follow: true}},
		messages.TraceRequestTopic:     {theClient, theNode, messages.TraceRequest{RequestID: hostileRequest, Kind: messages.TraceResolve, Instance: "web.0.0", Name: "web.skerry.internal", Count: 2}},
		messages.NodeControlTopic:      {theManager, theNode, run},
		messages.SyncTopic:             {theManager, theNode, messages.Sync{Rev: 1, Assignments: []messages.Assignment{run}}},
		messages.InventoryRequestTopic: {theManager, theNode, messages.InventoryRequest{}},
		messages.NetConfigTopic:        {theManager, theNode, theNetwork(number)},
		messages.NetServicesTopic: {theManager, theNode, messages.ServiceUpdate{Rev: number, Full: true, More: true, Services: []messages.ServiceEntry{entry}, Gone: []messages.JobName{"old"},
			Unknown: []string{"nobody", "10.172.3.4"}}},
		messages.PresenceTopic:  {theNode, theManager, messages.Presence{Online: true, BootID: "b", Epoch: 1, Rev: 1, Digest: "d"}},
		messages.NodeJobTopic:   {theNode, theManager, status},
		messages.InventoryTopic: {theNode, theManager, messages.Inventory{Last: true, Assignments: []messages.Assignment{run}}},
		messages.InformationTopic: {theNode, theManager, messages.Telemetry{At: now, CPU: messages.CPUUse{PerCore: []float64{1}}, Overlay: &use, GPUs: []messages.GPUUse{{Index: 0}},
			Sensors: []messages.SensorReading{{Name: "roof", Value: 1, Unit: "C"}}, Instances: []messages.InstanceUse{{Instance: "web.0.0"}}}},
		messages.NetInterestTopic:  {theNode, theManager, messages.Interest{Names: []messages.JobName{"web", "nobody"}, Addresses: []string{"10.172.0.2"}, Full: true}},
		messages.NetEndpointsTopic: {theNode, theManager, messages.Endpoints{PublicKey: somebodysKey, Endpoints: []string{"127.0.0.1:9"}, NAT: "cone", Reason: "r"}},
		messages.NetStatusTopic:    {theNode, theClient, messages.NetStatus{State: messages.OverlayUp, NAT: "cone", Dropped: map[string]int64{"denied": 3}, At: now, OverlayUse: use}},
		messages.LogsTopic:         {theNode, theClient, messages.LogChunk{RequestID: "r", Instance: "web.0.0", Stream: "stdout", Text: "t"}},
		messages.TraceAnswerTopic: {theNode, theClient, messages.TraceAnswer{RequestID: "r", Kind: messages.TracePing, Name: "web.skerry.internal", Addresses: []string{"10.172.0.0"}, Service: "web", Policy: messages.Closest,
			Healthy: 1, Instance: "web.0.0", Address: "10.160.0.2", Node: "y", Path: messages.Direct, Endpoint: "127.0.0.1:9", RTTMS: 1, MTU: 1420, At: now}},
		messages.ResultTopic: {theManager, theClient, messages.Result{RequestID: "r", Command: messages.Deploy, Job: "web", Phase: messages.Accepted, Rev: 1, At: now,
			Instances: []messages.InstanceReport{report}, Nodes: []messages.Passed{{Node: "x", Code: messages.NoCapacity, Reason: "r"}}}},
		messages.JobStatusTopic: {theManager, theClient, messages.JobStatus{Job: "web", State: messages.JobDegraded, Reason: "r", Image: "i", Replicas: 2, Running: 1, Instances: []messages.InstanceReport{report},
			Waiting: []messages.WaitingCopy{{Ordinal: 1, Code: messages.NoCapacity, Nodes: []messages.Passed{{Node: "x"}}}}, Spec: &job, Worker: []messages.NodeID{"x"}, At: now}},
		messages.NodeStatusTopic: {theManager, theClient, messages.NodeStatus{Node: "x", Kind: messages.Core, State: messages.NodeOnline, Since: now, Addresses: []string{"a"}, Labels: map[string]string{"a": "b"},
			Technologies: []messages.TechnologyInfo{{Name: messages.Docker, Runtimes: []string{"r"}}}, GPUs: []messages.GPUInfo{{Vendor: "v"}}, Sensors: []messages.SensorInfo{{Kind: "k"}}, Instances: []messages.InstanceID{"web.0.0"}, At: now,
			Overlay: &messages.OverlayStatus{State: messages.OverlayUp, Blocks: []string{"10.160.0.0/26"}, Endpoints: []string{"127.0.0.1:9"}}}},
		messages.ClusterTopic: {theManager, theClient, messages.ClusterStatus{Cluster: "lab", StartedAt: now, Nodes: map[string]int{"online": 1}, Jobs: map[string]int{"running": 1}, Instances: map[string]int{"running": 1}, At: now}},
		messages.EventTopic:   {theManager, theClient, messages.Event{Kind: messages.InstanceState, At: now, Node: "x", Job: "web", Instance: "web.0.0", State: messages.Running, Message: "m"}},
		messages.NetworkTopic: {theManager, theClient, messages.NetworkStatus{Network: "10.160.0.0/12", Network6: "fd5c:ae11:9::/48", Services: "10.172.0.0/14", Blocks: 1, Free: 1, Addresses: 1, Guests: []messages.Guest{guest}, At: now}},
		messages.ServiceTopic: {theManager, theClient, entry},
	}
}

// topicsOf are the topics of a kind, for each verb where it has some.
func topicsOf(kind messages.Kind, node messages.NodeID) (topics []string) {
	verbs := []messages.Verb{""}
	switch kind {
	case messages.CommandTopic:
		verbs = messages.Verbs()
	case messages.NodeCommandTopic:
		verbs = messages.NodeVerbs()
	case messages.GuestCommandTopic:
		verbs = messages.GuestVerbs()
	case messages.NodeControlTopic:
		verbs = []messages.Verb{messages.Deploy, messages.Delete}
	}
	for _, verb := range verbs {
		topics = append(topics, messages.Topic{Kind: kind, Verb: verb, Request: "hostile", Job: "web", Node: node, Instance: "web.0.0", Event: messages.InstanceState}.String())
	}
	return topics
}

// kinds are all that there are.
func kinds() (all []messages.Kind) {
	for k := messages.UnknownTopic + 1; topicsOf(k, "n")[0] != ""; k++ {
		all = append(all, k)
	}
	return all
}

// between are the kinds of topic from one to another.
func between(by, to party) (all []messages.Kind) {
	for k, s := range contract() {
		if s.by == by && s.to == to {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	return all
}

// validOn is a payload for a topic that holds.
func validOn(kind messages.Kind, topic string) any {
	verb := messages.Verb(path.Base(topic))
	switch c := contract()[kind].payload.(type) {
	case messages.Command:
		c.Command = verb
		if verb != messages.Deploy { // the rest of a job has no meaning there
			c.Job = messages.Job{Name: c.Job.Name, Replicas: c.Job.Replicas}
		}
		if verb == messages.Move {
			c.Worker, c.From = []messages.NodeID{"nobody"}, []messages.NodeID{"nobody-else"}
		}
		return c
	case messages.NodeCommand:
		c.Command = verb
		return c
	case messages.GuestCommand:
		if c.Command = verb; verb == messages.Remove {
			c.PublicKey, c.Gateway = "", ""
		}
		return c
	default:
		return c
	}
}

// hostileOn returns payloads for a topic that go wrong, or nearly, each with its own number.
func hostileOn(kind messages.Kind, topic string) [][]byte {
	return numbered(spoil(validOn(kind, topic)))
}

// None of the contract's topics is left out by the tests that send to each of them, and what they spoil is valid.
func TestHostileTopicsAreAll(t *testing.T) {
	all, said := kinds(), slices.Sorted(maps.Keys(contract()))
	if len(all) < 26 || !slices.Equal(all, said) {
		t.Fatalf("the contract has the kinds of topic %v, hostile payloads are for %v", all, said)
	}
	for _, kind := range all {
		for _, topic := range topicsOf(kind, "n") {
			if parsed, err := messages.ParseTopic(topic); err != nil || parsed.Kind != kind {
				t.Errorf("%s is of kind %d: %v", topic, parsed.Kind, err)
			}
			valid := validOn(kind, topic)
			into, ok := reflect.New(reflect.TypeOf(valid)).Interface().(interface{ Validate() error })
			if !ok {
				t.Fatalf("%s: %T cannot be validated", topic, valid)
			}
			if err := messages.DecodeFromManager(messages.Encode(valid), into); err != nil {
				t.Errorf("%s: %v", topic, err)
			}
		}
	}
}

// each goes on where what it calls ends its goroutine, as Fatal does.
func TestEach(t *testing.T) {
	var mu sync.Mutex
	called := 0
	each(make([]struct{}, 100), 2, func(struct{}) {
		mu.Lock()
		defer mu.Unlock()
		called++
		runtime.Goexit()
	})
	if called != 100 {
		t.Errorf("called %d times, want 100", called)
	}
}
