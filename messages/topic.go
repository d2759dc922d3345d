package messages

import (
	"fmt"
	"strings"
)

// Kind says which row of the contract's table of topics a topic belongs to.
type Kind int

// The kinds of topic. The direction is written M for manager, N for node and C for client.
const (
	UnknownTopic          Kind = iota
	CommandTopic               // C → M  control/<verb>: Command
	NodeCommandTopic           // C → M  control/node/<verb>: NodeCommand
	ResultTopic                // M → C  control/results/<request_id>: Result
	JobStatusTopic             // M → C  jobs/<job>/status: JobStatus, retained
	NodeStatusTopic            // M → C  nodes/<node>/status: NodeStatus, retained
	ClusterTopic               // M → C  cluster/status: ClusterStatus, retained
	EventTopic                 // M → C  events/<kind>: Event
	PresenceTopic              // N → M  nodes/<node>/presence: Presence, retained, also the last will
	NodeControlTopic           // M → N  nodes/<node>/control/<deploy|delete>: Assignment
	SyncTopic                  // M → N  nodes/<node>/control/sync: Sync
	InventoryRequestTopic      // M → N  nodes/<node>/control/inventory: InventoryRequest
	InventoryTopic             // N → M  nodes/<node>/inventory: Inventory
	LogsRequestTopic           // C → N  nodes/<node>/control/logs: LogsRequest
	NodeJobTopic               // N → M  nodes/<node>/job: InstanceStatus
	InformationTopic           // N → M  nodes/<node>/information: Telemetry
	NetConfigTopic             // M → N  nodes/<node>/net/config: NetworkConfig, retained
	NetServicesTopic           // M → N  nodes/<node>/net/services: ServiceUpdate
	NetInterestTopic           // N → M  nodes/<node>/net/interest: Interest
	NetEndpointsTopic          // N → M  nodes/<node>/net/endpoints: Endpoints
	NetStatusTopic             // N → C  nodes/<node>/net/status: NetStatus, retained
	TraceRequestTopic          // C → N  nodes/<node>/control/trace: TraceRequest
	TraceAnswerTopic           // N → C  nodes/<node>/net/answers/<request_id>: TraceAnswer
	GuestCommandTopic          // C → M  control/guest/<verb>: GuestCommand
	NetworkTopic               // M → C  network/status: NetworkStatus, retained
	ServiceTopic               // M → C  network/services/<job>: ServiceEntry, retained
	LogsTopic                  // N → C  nodes/<node>/logs/<instance>: LogChunk
)

// Topic is a parsed topic. Only the fields that its Kind uses are set.
type Topic struct {
	Kind     Kind
	Verb     Verb       // CommandTopic, NodeCommandTopic, GuestCommandTopic, NodeControlTopic
	Request  string     // ResultTopic, TraceAnswerTopic
	Job      JobName    // JobStatusTopic, ServiceTopic
	Node     NodeID     // every nodes/… topic
	Instance InstanceID // LogsTopic
	Event    string     // EventTopic
}

// String builds the topic; ParseTopic is its inverse. A Topic of unknown kind yields the empty string.
func (t Topic) String() string {
	switch t.Kind {
	case CommandTopic:
		return "control/" + string(t.Verb)
	case NodeCommandTopic:
		return "control/node/" + string(t.Verb)
	case GuestCommandTopic:
		return "control/guest/" + string(t.Verb)
	case NetworkTopic:
		return "network/status"
	case ServiceTopic:
		return "network/services/" + string(t.Job)
	case ResultTopic:
		return "control/results/" + t.Request
	case JobStatusTopic:
		return "jobs/" + string(t.Job) + "/status"
	case ClusterTopic:
		return "cluster/status"
	case EventTopic:
		return "events/" + t.Event
	}
	if suffix := t.nodeSuffix(); suffix != "" {
		return "nodes/" + string(t.Node) + "/" + suffix
	}
	return ""
}

func (t Topic) nodeSuffix() string {
	switch t.Kind {
	case NodeStatusTopic:
		return "status"
	case PresenceTopic:
		return "presence"
	case NodeControlTopic:
		return "control/" + string(t.Verb)
	case SyncTopic:
		return "control/sync"
	case InventoryRequestTopic:
		return "control/inventory"
	case LogsRequestTopic:
		return "control/logs"
	case NodeJobTopic:
		return "job"
	case InventoryTopic:
		return "inventory"
	case InformationTopic:
		return "information"
	case NetConfigTopic:
		return "net/config"
	case NetEndpointsTopic:
		return "net/endpoints"
	case NetServicesTopic:
		return "net/services"
	case NetInterestTopic:
		return "net/interest"
	case NetStatusTopic:
		return "net/status"
	case TraceRequestTopic:
		return "control/trace"
	case TraceAnswerTopic:
		return "net/answers/" + t.Request
	case LogsTopic:
		return "logs/" + string(t.Instance)
	default:
		return ""
	}
}

// ParseTopic reads a topic by its levels. The error says which level is wrong; it never panics, whatever s holds.
func ParseTopic(s string) (Topic, error) {
	if len(s) > 256 {
		return Topic{}, fmt.Errorf("topic of %d bytes: at most 256", len(s))
	}
	levels := strings.Split(s, "/")
	var t Topic
	var err error
	switch levels[0] {
	case "control":
		t, err = parseControl(levels[1:])
	case "jobs":
		t, err = parseJobs(levels[1:])
	case "nodes":
		t, err = parseNodes(levels[1:])
	case "events":
		t, err = parseEvents(levels[1:])
	case "network":
		t, err = parseNetwork(levels[1:])
	case "cluster":
		t.Kind = ClusterTopic
	}
	if err != nil {
		return Topic{}, fmt.Errorf("topic %q: %w", clip(s), err)
	}
	if t.Kind == UnknownTopic || t.String() != s {
		return Topic{}, fmt.Errorf("topic %q: not one of this contract", clip(s))
	}
	return t, nil
}

func parseControl(levels []string) (Topic, error) {
	if len(levels) == 2 && levels[0] == "results" {
		if levels[1] == "" {
			return Topic{}, fmt.Errorf("request_id missing")
		}
		return Topic{Kind: ResultTopic, Request: levels[1]}, checkRequestID(levels[1])
	}
	if len(levels) == 2 && levels[0] == "node" {
		v := Verb(levels[1])
		return Topic{Kind: NodeCommandTopic, Verb: v}, checkNodeVerb(v)
	}
	if len(levels) == 2 && levels[0] == "guest" {
		v := Verb(levels[1])
		return Topic{Kind: GuestCommandTopic, Verb: v}, checkGuestVerb(v)
	}
	if len(levels) != 1 {
		return Topic{}, nil
	}
	v := Verb(levels[0])
	return Topic{Kind: CommandTopic, Verb: v}, v.Validate()
}

func parseJobs(levels []string) (Topic, error) {
	if len(levels) != 2 {
		return Topic{}, nil
	}
	return Topic{Kind: JobStatusTopic, Job: JobName(levels[0])}, CheckName("job", levels[0])
}

func parseNetwork(levels []string) (Topic, error) {
	if len(levels) == 2 && levels[0] == "services" {
		return Topic{Kind: ServiceTopic, Job: JobName(levels[1])}, CheckName("job", levels[1])
	}
	return Topic{Kind: NetworkTopic}, nil
}

func parseEvents(levels []string) (Topic, error) {
	if len(levels) != 1 {
		return Topic{}, nil
	}
	return Topic{Kind: EventTopic, Event: levels[0]}, CheckName("event", levels[0])
}

// nodeKinds maps what stands behind nodes/<node>/ to its kind, where that is fixed text.
func nodeKind(suffix string) (Kind, Verb) {
	switch suffix {
	case "status":
		return NodeStatusTopic, ""
	case "presence":
		return PresenceTopic, ""
	case "control/deploy":
		return NodeControlTopic, Deploy
	case "control/delete":
		return NodeControlTopic, Delete
	case "control/sync":
		return SyncTopic, ""
	case "control/inventory":
		return InventoryRequestTopic, ""
	case "control/logs":
		return LogsRequestTopic, ""
	case "job":
		return NodeJobTopic, ""
	case "inventory":
		return InventoryTopic, ""
	case "information":
		return InformationTopic, ""
	case "net/config":
		return NetConfigTopic, ""
	case "net/endpoints":
		return NetEndpointsTopic, ""
	case "net/services":
		return NetServicesTopic, ""
	case "net/interest":
		return NetInterestTopic, ""
	case "net/status":
		return NetStatusTopic, ""
	case "control/trace":
		return TraceRequestTopic, ""
	}
	return UnknownTopic, ""
}

func parseNodes(levels []string) (Topic, error) {
	if len(levels) < 2 {
		return Topic{}, nil
	}
	if err := CheckName("node", levels[0]); err != nil {
		return Topic{}, err
	}
	node := NodeID(levels[0])
	if levels[1] == "logs" && len(levels) == 3 {
		id := InstanceID(levels[2])
		return Topic{Kind: LogsTopic, Node: node, Instance: id}, id.Validate()
	}
	if levels[1] == "net" && len(levels) == 4 && levels[2] == "answers" {
		if levels[3] == "" {
			return Topic{}, fmt.Errorf("request_id missing")
		}
		return Topic{Kind: TraceAnswerTopic, Node: node, Request: levels[3]}, checkRequestID(levels[3])
	}
	kind, verb := nodeKind(strings.Join(levels[1:], "/"))
	return Topic{Kind: kind, Node: node, Verb: verb}, nil
}

// NodeFilter is the subscription that covers everything a node publishes and hears.
func NodeFilter(node NodeID) string { return "nodes/" + string(node) + "/#" }

// NodeControlFilter is the subscription by which a node hears its manager.
func NodeControlFilter(node NodeID) string { return "nodes/" + string(node) + "/control/#" }

// The subscriptions of a client that follows the whole cluster.
const (
	AllJobsFilter  = "jobs/+/status"
	AllNodesFilter = "nodes/+/status"
	AllEvents      = "events/+"
	// AllServicesFilter and AllNetStatusFilter cover the network.
	AllServicesFilter  = "network/services/+"
	AllNetStatusFilter = "nodes/+/net/status"
)
