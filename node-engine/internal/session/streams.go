package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"skerry.internal/messages"
)

const (
	// maxStreams is how many requests for log output are served at once.
	maxStreams = 8
	// maxChunk is the most text of one chunk in bytes; with every byte escaped it stays below messages.MaxPayload.
	maxChunk = 32 << 10
)

// streams serves the requests for log output of one session. A stream ends with the output, with the session, or when a following
// reader has not renewed its request (sent it again with the same request_id) for ten minutes. A reader who has gone is so
// noticed even though MQTT does not tell.
type streams struct {
	session *Session
	wire    *wire
	node    messages.NodeID

	mu   sync.Mutex // guards open streams
	ends map[string]*time.Timer
}

func (s *Session) newStreams(w *wire, node messages.NodeID) *streams {
	return &streams{session: s, wire: w, node: node, ends: make(map[string]*time.Timer)}
}

// open starts a stream in g or renews the one of the same request.
func (s *streams) open(ctx context.Context, req messages.LogsRequest, g *errgroup.Group) {
	follow := s.session.pace.follow
	s.mu.Lock()
	defer s.mu.Unlock()
	if timer, ok := s.ends[req.RequestID]; ok {
		timer.Reset(follow)
		return
	}
	if len(s.ends) >= maxStreams {
		g.Go(func() error { return s.refuse(ctx, req) })
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s.ends[req.RequestID] = time.AfterFunc(follow, func() { cancel(fmt.Errorf("the request was not renewed within %s", follow)) })
	g.Go(func() error {
		defer cancel(nil)
		defer s.forget(req.RequestID)
		return s.run(ctx, req)
	})
}

func (s *streams) forget(request string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends[request].Stop()
	delete(s.ends, request)
}

func (s *streams) refuse(ctx context.Context, req messages.LogsRequest) error {
	return s.send(ctx, messages.LogChunk{RequestID: req.RequestID, Instance: req.Instance, Last: true,
		Error: fmt.Sprintf("this node already serves %d requests for output", maxStreams)})
}

// run serves one request. Only a failure of the session is returned; all else is told to whoever asked.
func (s *streams) run(ctx context.Context, req messages.LogsRequest) error {
	chunk := messages.LogChunk{RequestID: req.RequestID, Instance: req.Instance}
	var broken error
	err := errors.New("this node cannot read the output of its instances")
	if s.session.cfg.Logs != nil {
		err = s.session.cfg.Logs(ctx, req, func(stream, text string) error {
			for len(text) > 0 && broken == nil {
				n := cut(text, maxChunk)
				chunk.Stream, chunk.Text = stream, text[:n]
				broken = s.send(ctx, chunk)
				chunk.N++
				text = text[n:]
			}
			return broken
		})
	}
	if broken != nil && ctx.Err() == nil {
		return broken
	}
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		err = errors.New("the node engine ends its session")
	} else if cause != nil {
		err = cause
	}
	last := messages.LogChunk{RequestID: req.RequestID, Instance: req.Instance, N: chunk.N, Last: true}
	if err != nil {
		last.Error = err.Error()
	}
	goodbye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTime)
	defer cancel()
	return s.send(goodbye, last)
}

func (s *streams) send(ctx context.Context, chunk messages.LogChunk) error {
	t := messages.Topic{Kind: messages.LogsTopic, Node: s.node, Instance: chunk.Instance}
	return s.wire.publish(ctx, t.String(), 0, false, &chunk)
}

// cut returns how much of text goes into a chunk of at most n bytes without splitting a character.
func cut(text string, n int) int {
	if len(text) <= n {
		return len(text)
	}
	for back := range utf8.UTFMax {
		if utf8.RuneStart(text[n-back]) {
			return n - back
		}
	}
	return n
}
