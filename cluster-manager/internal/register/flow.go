package register

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"skerry.internal/cluster-manager/internal/register/eio"
	"skerry.internal/messages"
)

// greeting is what EdgeIO's manager says first.
const greeting = "please send your node info"

// maxBacklog bounds the packets that a registration takes, among them those it ignores.
const maxBacklog = 64

var (
	errGone   = errors.New("the node left")
	errSilent = errors.New("no answer to sc1 yet")
)

// link is one Engine.IO connection that carries Socket.IO packets.
type link interface {
	// Read returns the next message; an error is the end of the connection, or ctx's.
	Read(ctx context.Context) (string, error)
	// Write sends a message or lets it wait for the client.
	Write(message string) error
	// Drain waits until the client has taken what waits for it.
	Drain(ctx context.Context) error
}

// registration is one node's way through the events of /init. It belongs to one goroutine.
type registration struct {
	server   *Server
	link     link
	revision int
	origin   Origin
	nonce    string
	deadline time.Time // of the introduction
	joined   bool      // the client connected /init
	again    time.Time // when sc1 is said once more; zero: before the first time and after the second
	taken    int
	last     packet // the last word, once there is one
	refused  bool
}

// register serves one connection from its first packet to its last.
func (s *Server) register(life context.Context, l link, revision int, o Origin) {
	g := &registration{server: s, link: l, revision: revision, origin: o, nonce: eio.NewID(), deadline: time.Now().Add(s.cfg.Timeout)}
	err := g.introduce(life)
	if err == nil {
		err = g.linger(life)
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errGone) {
		s.log.Debug("registration ended", "addr", o.Remote, "err", err)
	}
}

// introduce takes the connection to its last word: welcome or refused. An error means that there was nobody to say it to.
func (g *registration) introduce(life context.Context) error {
	ctx, cancel := context.WithDeadline(life, g.deadline)
	defer cancel()
	if g.revision == eio.Revision3 { // the first generation is connected to the default namespace unasked
		if err := g.write(packet{kind: connect, namespace: "/"}); err != nil {
			return err
		}
	}
	p, err := g.nodeInfo(ctx)
	if r, ok := errors.AsType[*messages.Refusal](err); ok {
		return g.refuse(r)
	}
	switch {
	case err != nil && life.Err() == nil && ctx.Err() != nil && g.joined:
		return g.refuse(timedOut(g.server.cfg))
	case err != nil:
		return err
	}
	return g.answer(ctx, p)
}

func timedOut(cfg Config) *messages.Refusal {
	return &messages.Refusal{
		Code: messages.RefusedTimeout, Message: fmt.Sprintf("no %s within %s", messages.NodeInfoEvent, cfg.Timeout),
		Hint: "answer sc1 with cs1 as soon as it arrives",
	}
}

// nodeInfo waits for cs1 and connects the namespaces that the client asks for. A client that is silent is asked twice: python-socketio
// handles each packet in a thread of its own, and where sc1 overtakes the connection of the namespace its answer is lost.
func (g *registration) nodeInfo(ctx context.Context) (packet, error) {
	for {
		p, err := g.nextOrAgain(ctx)
		switch {
		case errors.Is(err, errSilent):
			g.again = time.Time{}
			err = g.hello()
		case errors.Is(err, errPacket) && g.joined:
			return packet{}, badPayload(err)
		case err != nil:
			return packet{}, err
		case p.kind == connect:
			err = g.connect(p)
		case p.kind == disconnect && p.namespace == messages.Namespace:
			err = errGone
		case g.isNodeInfo(p):
			return p, nil
		}
		if err != nil {
			return packet{}, err
		}
	}
}

// isNodeInfo reports whether p is a cs1, or an event that cannot be read, for the refusal of cs1 says why. Other events are ignored:
// clients may know some of later protocols.
func (g *registration) isNodeInfo(p packet) bool {
	if p.kind != event || p.namespace != messages.Namespace || !g.joined {
		return false
	}
	name, _, err := p.event()
	return err != nil || name == messages.NodeInfoEvent
}

// nextOrAgain is next, or errSilent when it is time to say sc1 once more.
func (g *registration) nextOrAgain(ctx context.Context) (packet, error) {
	if g.again.IsZero() {
		return g.next(ctx)
	}
	until, cancel := context.WithDeadline(ctx, g.again)
	defer cancel()
	p, err := g.next(until)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = errSilent
	}
	return p, err
}

func (g *registration) next(ctx context.Context) (packet, error) {
	m, err := g.link.Read(ctx)
	if err != nil {
		return packet{}, err
	}
	if g.taken++; g.taken > maxBacklog {
		return packet{}, fmt.Errorf("more than %d packets", maxBacklog)
	}
	return parsePacket(m)
}

// connect answers a CONNECT. The default namespace is tolerated, because some clients connect it first.
func (g *registration) connect(p packet) error {
	switch {
	case p.namespace == "/" && g.revision == eio.Revision3:
		return nil // is connected already
	case p.namespace == "/":
		return g.write(packet{kind: connect, namespace: "/", data: newSID()})
	case p.namespace != messages.Namespace:
		return g.write(packet{kind: connectError, namespace: p.namespace, data: invalidNamespace(g.revision)})
	case g.joined:
		return nil
	}
	g.joined = true
	reply := packet{kind: connect, namespace: messages.Namespace}
	if g.revision == eio.Revision4 {
		reply.data = newSID()
	}
	if err := g.write(reply); err != nil {
		return err
	}
	g.again = time.Now().Add(g.server.cfg.Timeout / 3)
	return g.hello()
}

// hello asks for cs1.
func (g *registration) hello() error {
	hello := messages.Hello{HelloEdge: greeting, Cluster: g.server.cfg.Cluster, Protocol: messages.Protocol, Nonce: g.nonce}
	return g.write(newEvent(messages.Namespace, messages.HelloEvent, messages.Encode(hello)))
}

// newSID names the client within a namespace; nothing here asks for that name again.
func newSID() string { return `{"sid":"` + eio.NewID() + `"}` }

func invalidNamespace(revision int) string {
	if revision == eio.Revision3 {
		return `"Invalid namespace"`
	}
	return `{"message":"Invalid namespace"}`
}

func (g *registration) write(p packet) error { return g.link.Write(p.String()) }

// acknowledge answers a client that asked for an ack.
func (g *registration) acknowledge(p packet) error {
	if p.ackID == "" {
		return nil
	}
	return g.write(packet{kind: ack, namespace: p.namespace, ackID: p.ackID, data: "[]"})
}

// answer decodes cs1, has it decided, and says the last word.
func (g *registration) answer(ctx context.Context, p packet) error {
	if err := g.acknowledge(p); err != nil {
		return err
	}
	in, err := decodeIntroduction(p, g.server.cfg.AllowLegacy)
	if err != nil {
		return g.refuse(asRefusal(err))
	}
	g.origin.Legacy = in.legacy
	g.origin.Proved = in.info.Proved(g.server.cfg.Cluster, g.nonce)
	welcome, err := g.server.cfg.Admit(ctx, in.info, g.origin)
	if err != nil {
		return g.refuse(asRefusal(err))
	}
	g.server.count(func(st *Stats) { st.Welcomed++ })
	g.server.log.Info("node admitted", "node_id", welcome.ID, "addr", g.origin.Remote)
	g.last = newEvent(messages.Namespace, messages.WelcomeEvent, in.welcome(welcome))
	return g.write(g.last)
}

// asRefusal makes sure that a node never hears of our inner errors more than that there was one.
func asRefusal(err error) *messages.Refusal {
	if r, ok := errors.AsType[*messages.Refusal](err); ok {
		return r
	}
	return &messages.Refusal{Code: messages.RefusedBusy, Message: "the manager cannot admit anybody now", Hint: "try again in a while"}
}

func (g *registration) refuse(r *messages.Refusal) error {
	g.refused = true
	g.server.count(func(st *Stats) { st.Refused++ })
	g.server.warn(g.origin.Remote, r)
	g.last = newEvent(messages.Namespace, messages.RefusedEvent, messages.Encode(r))
	if err := g.write(g.last); err != nil {
		return err
	}
	return g.write(packet{kind: disconnect, namespace: messages.Namespace})
}

// delivered waits until a polling client has fetched the last word. A client in the middle of its time gets all of it: seen on a
// loaded machine, where the poll came four seconds after the welcome.
func (g *registration) delivered(life context.Context) error {
	until := g.deadline
	if soonest := time.Now().Add(Linger); until.Before(soonest) {
		until = soonest
	}
	ctx, cancel := context.WithDeadline(life, until)
	defer cancel()
	return g.link.Drain(ctx)
}

// linger gives the client the time to leave by itself.
func (g *registration) linger(life context.Context) error {
	if err := g.delivered(life); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(life, Linger)
	defer cancel()
	for {
		p, err := g.next(ctx)
		switch {
		case err != nil && ctx.Err() != nil && life.Err() == nil:
			return g.dismiss(life)
		case errors.Is(err, errPacket), g.refused && err == nil:
			continue
		case err != nil:
			return err
		case p.kind == disconnect && p.namespace == messages.Namespace:
			return errGone
		case !g.isNodeInfo(p):
			continue
		}
		if err := errors.Join(g.acknowledge(p), g.write(g.last)); err != nil {
			return err
		}
	}
}

// dismiss tells a client that stayed that it is not expected to: without that it would take the end for a lost connection, come
// back and register again.
func (g *registration) dismiss(life context.Context) error {
	if g.refused {
		return nil // was told
	}
	if err := g.write(packet{kind: disconnect, namespace: messages.Namespace}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(life, Linger)
	defer cancel()
	if err := g.link.Drain(ctx); err != nil {
		return err
	}
	for {
		if _, err := g.next(ctx); err != nil && !errors.Is(err, errPacket) {
			return err
		}
	}
}

// quoted returns JSON as a JSON string that holds it.
func quoted(payload []byte) []byte {
	b, _ := json.Marshal(string(payload)) // a string always marshals
	return b
}
