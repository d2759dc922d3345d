package session

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"skerry.internal/messages"
)

// Overlay is the node's part in the cluster's network, as far as the session concerns it. All methods may be called concurrently.
type Overlay interface {
	// Begin says that a session begins. The manager may be another, or one that has lost its state: its first word holds.
	Begin()
	// Configure and Update take what the manager says, in the order in which it came. They do not wait for it to be in force.
	Configure(c messages.NetworkConfig)
	Update(u messages.ServiceUpdate)
	// Talk hands say all that a manager is to hear, then whatever of it changes, until ctx ends or say fails.
	Talk(ctx context.Context, say func(kind messages.Kind, payload any) error) error
	// Trace answers a question about the network until its last answer, the end of ctx or an error of answer.
	Trace(ctx context.Context, req messages.TraceRequest, answer func(*messages.TraceAnswer) error) error
}

// maxTraces is how many questions about the network are answered at once.
const maxTraces = 8

// hearNetwork subscribes to what concerns the overlay.
func (s *Session) hearNetwork(ctx context.Context, w *wire, node messages.NodeID) error {
	if s.cfg.Overlay == nil {
		return nil
	}
	s.cfg.Overlay.Begin()
	for _, kind := range []messages.Kind{messages.NetConfigTopic, messages.NetServicesTopic} {
		if err := w.subscribe(ctx, topic(node, kind)); err != nil {
			return err
		}
	}
	return nil
}

// talk publishes what the overlay has to say.
func (s *Session) talk(ctx context.Context, w *wire, node messages.NodeID) error {
	if s.cfg.Overlay == nil {
		return nil
	}
	return s.cfg.Overlay.Talk(ctx, func(kind messages.Kind, payload any) error {
		qos, retained := byte(1), false
		if kind == messages.NetStatusTopic {
			qos, retained = 0, true // for people, and the next one comes soon
		}
		return w.publish(ctx, topic(node, kind), qos, retained, payload)
	})
}

// trace answers one question in g. free is a place for each that may be answered at once.
func (s *Session) trace(ctx context.Context, w *wire, node messages.NodeID, req messages.TraceRequest, g *errgroup.Group, free chan struct{}) {
	to := messages.Topic{Kind: messages.TraceAnswerTopic, Node: node, Request: req.RequestID}.String()
	refusal := messages.TraceAnswer{RequestID: req.RequestID, Kind: req.Kind, Last: true}
	select {
	case free <- struct{}{}:
	default:
		refusal.Error = fmt.Sprintf("this node already answers %d questions about the network", maxTraces)
		g.Go(func() error { return w.publish(ctx, to, 0, false, &refusal) })
		return
	}
	g.Go(func() error {
		defer func() { <-free }()
		if s.cfg.Overlay == nil {
			refusal.Error = "this node has no overlay"
			return w.publish(ctx, to, 0, false, &refusal)
		}
		return s.cfg.Overlay.Trace(ctx, req, func(a *messages.TraceAnswer) error { return w.publish(ctx, to, 0, false, a) })
	})
}
