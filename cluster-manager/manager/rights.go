package manager

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"strings"
	"sync"

	"skerry.internal/broker"
	"skerry.internal/messages"
)

// The roles of a client of the broker.
const (
	roleNode     = "node"     // says and hears what is under nodes/<id>/
	roleOperator = "operator" // commands, and reads everything but other users' Results
	roleViewer   = "viewer"   // reads the same
)

// nodeClient begins the MQTT client id of every node; no other client may take such an id, or it could end a node's session.
const nodeClient = "node-"

// viewerName is the user name by which a client gives up the right to command.
const viewerName = "viewer"

// maxOwned bounds how many requests are known with who made them, in some 40 bytes each. Of earlier ones anybody who may read may hear a late Result.
const maxOwned = 20_000

// rights decides who may say and hear what.
type rights struct {
	insecure bool

	seed   maphash.Seed
	mu     sync.Mutex        // guards what follows
	owners map[uint64]string // the user who may hear what is sent to a topic of Results, by the topic's hash
	older  map[uint64]string // the ones before, see ownLocked
}

func newRights(insecure bool) *rights {
	return &rights{insecure: insecure, seed: maphash.MakeSeed(), owners: map[uint64]string{}}
}

// ownResults notes who may hear the Results of a command. It refuses one that would be answered where another user listens: that one would take
// the answer for its own. Who may not command is answered, and owns nothing.
func (r *rights) ownResults(c broker.Client, requestID, responseTopic string) error {
	var topics []string
	if requestID != "" {
		topics = append(topics, messages.Topic{Kind: messages.ResultTopic, Request: requestID}.String())
	}
	if responseTopic != "" {
		topics = append(topics, responseTopic)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, topic := range topics {
		if owner := r.ownerLocked(topic); owner != nil && *owner != c.Username {
			return fmt.Errorf("%s is where another user's Results go: take another request id or Response Topic", topic)
		}
	}
	for _, topic := range topics {
		if c.Role == roleOperator {
			r.ownLocked(topic, c.Username)
		}
	}
	return nil
}

// ownLocked notes whose a topic is. The first user keeps it until maxOwned others and more have come after.
func (r *rights) ownLocked(topic, user string) {
	if r.ownerLocked(topic) != nil {
		return
	}
	if len(r.owners) >= maxOwned {
		r.older, r.owners = r.owners, map[uint64]string{}
	}
	r.owners[maphash.String(r.seed, topic)] = user
}

func (r *rights) ownerLocked(topic string) *string {
	key := maphash.String(r.seed, topic)
	for _, owners := range []map[uint64]string{r.owners, r.older} {
		if user, known := owners[key]; known {
			return &user
		}
	}
	return nil
}

// mayHear reports whether the user may read what is sent to a topic of Results: its own, or one that nobody has named yet.
func (r *rights) mayHear(topic, user string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	owner := r.ownerLocked(topic)
	return owner == nil || *owner == user
}

// link is the identity of one connection of a node: that of an old connection that ends late is another one.
type link struct{ _ byte }

// authenticate admits a client of the broker. A node shows the password of its Welcome. Everybody else is a client without a name,
// trusted because it runs on this host, or everywhere where the manager is insecure.
func (m *Manager) authenticate(l broker.Login) (broker.Client, error) {
	if id, isNode := strings.CutPrefix(l.ClientID, nodeClient); isNode {
		if l.Username != id || !m.loop.Admits(m.handling, messages.NodeID(id), l.Password) {
			return broker.Client{}, errors.New("not the password that this node was given: register at /init")
		}
		return broker.Client{Role: roleNode, Username: id, Value: new(link)}, nil
	}
	if !m.cfg.Insecure && !fromThisHost(l.Remote) {
		return broker.Client{}, errors.New("clients without a certificate are admitted from this host only (the manager runs without --insecure)")
	}
	if len(l.Username) > maxName {
		return broker.Client{}, fmt.Errorf("a user name of %d bytes: want at most %d", len(l.Username), maxName)
	}
	if l.Username == viewerName {
		return broker.Client{Role: roleViewer}, nil
	}
	return broker.Client{Role: roleOperator}, nil
}

func fromThisHost(a net.Addr) bool {
	if a == nil {
		return false
	}
	host, _, err := net.SplitHostPort(a.String())
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// allow decides about one topic or filter.
func (r *rights) allow(c broker.Client, a broker.Access, topic string) bool {
	switch {
	case c.Role == roleNode && a == broker.Subscribe:
		return topic == messages.NodeFilter(messages.NodeID(c.Username)) || strings.HasPrefix(topic, "nodes/"+c.Username+"/")
	case c.Role == roleNode:
		t, err := messages.ParseTopic(topic)
		return err == nil && t.Node == messages.NodeID(c.Username) && nodeMay(a, t.Kind)
	case a == broker.Subscribe:
		return true // each delivery is looked at by itself
	case a == broker.Publish:
		t, err := messages.ParseTopic(topic)
		// A viewer's command goes as far as the one who can answer that it may not.
		return err == nil && clientMay(c, t.Kind)
	default:
		return r.mayRead(c, topic)
	}
}

// clientMay says what an operator or viewer publishes.
func clientMay(c broker.Client, k messages.Kind) bool {
	switch k {
	case messages.CommandTopic, messages.NodeCommandTopic, messages.GuestCommandTopic:
		return true
	case messages.LogsRequestTopic, messages.TraceRequestTopic:
		return c.Role == roleOperator
	default:
		return false
	}
}

// nodeMay says in which direction a node uses a topic of its own.
func nodeMay(a broker.Access, k messages.Kind) bool {
	switch k {
	case messages.PresenceTopic, messages.NodeJobTopic, messages.InventoryTopic, messages.InformationTopic, messages.NetEndpointsTopic, messages.LogsTopic,
		messages.NetInterestTopic, messages.NetStatusTopic, messages.TraceAnswerTopic:
		return a == broker.Publish
	case messages.NodeControlTopic, messages.SyncTopic, messages.InventoryRequestTopic, messages.LogsRequestTopic, messages.NetConfigTopic,
		messages.NetServicesTopic, messages.TraceRequestTopic:
		return a == broker.Deliver
	default:
		return false
	}
}

// mayRead says what an operator or viewer is sent: all but commands and assignments, which hold other people's secrets, and the
// Results of other users.
func (r *rights) mayRead(c broker.Client, topic string) bool {
	if strings.HasPrefix(topic, "$SYS/") {
		return c.Role == roleOperator
	}
	t, err := messages.ParseTopic(topic)
	if err != nil {
		return privateTopic(topic) && r.mayHear(topic, c.Username) // a client's own Response Topic
	}
	switch t.Kind {
	case messages.CommandTopic, messages.NodeCommandTopic, messages.GuestCommandTopic, messages.NodeControlTopic, messages.SyncTopic,
		messages.InventoryRequestTopic, messages.InventoryTopic, messages.LogsRequestTopic, messages.TraceRequestTopic, messages.NetConfigTopic, messages.NetServicesTopic, messages.NetInterestTopic:
		return false
	case messages.ResultTopic:
		return r.mayHear(topic, c.Username)
	default:
		return true
	}
}

// privateTopic reports whether a topic is outside of the contract, so that the manager may answer there: with the manager's right
// a client could otherwise have it speak to nodes.
func privateTopic(topic string) bool {
	first, _, _ := strings.Cut(topic, "/")
	switch first {
	case "control", "nodes", "jobs", "cluster", "events", "network":
		return false
	}
	return topic != "" && topic[0] != '$' && !strings.ContainsAny(topic, "+#\x00")
}

// maxName bounds user names and Response Topics, and maxCorrelation the correlation data of a request, in bytes: they are kept for many requests.
const (
	maxName        = 256
	maxCorrelation = 1 << 10
)

// responseTopic checks where an MQTT 5 client wants its Results, and what shall come with them.
func responseTopic(msg broker.Message) error {
	topic := msg.ResponseTopic
	if len(topic) > maxName || len(msg.CorrelationData) > maxCorrelation {
		return fmt.Errorf("a response topic of %d bytes with correlation data of %d: want at most %d and %d", len(topic), len(msg.CorrelationData), maxName, maxCorrelation)
	}
	if topic == "" || privateTopic(topic) {
		return nil
	}
	if t, err := messages.ParseTopic(topic); err == nil && t.Kind == messages.ResultTopic {
		return nil
	}
	return fmt.Errorf("response topic %q: want control/results/<id> or a topic outside of control, nodes, jobs, cluster, events and network", topic)
}
