package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"skerry.internal/messages"
)

// waiting says how long a command is followed.
type waiting struct {
	none    bool // only until it is accepted
	timeout time.Duration
	request string // "": a new one
}

const (
	// repeatable is how long a command is sent again after a broken connection: a little less than the ten minutes for which the
	// manager knows the request and takes it for the same.
	repeatable = 9 * time.Minute
	// answerTime is how long the manager may take to answer once it has the command.
	answerTime = 20 * time.Second
	// settled is how long a job must look finished until its last Result counts as missed.
	settled = 3 * time.Second
	// retryMost bounds the wait between two attempts to connect again.
	retryMost = 5 * time.Second
)

// errTimeout is the cause of a context whose --timeout has passed.
var errTimeout = errors.New("timeout")

// order is a command about a job, a node or a guest, and where to look how it goes.
type order struct {
	request string
	topic   string // where it is published
	payload []byte
	job     messages.JobName // whose status is followed; "": none is
	see     string           // what shows how it stands
	// outcome makes the last Result from the job's status; nil: the manager repeats it with the first.
	outcome func(first messages.Result, s *messages.JobStatus) *messages.Result
}

// pursuit follows one command from its first sending to its last Result, over as many connections as that takes.
type pursuit struct {
	order
	address address
	wait    waiting
	show    shower

	sent    time.Time // first; zero: not yet
	first   *messages.Result
	last    *messages.Result
	status  *messages.JobStatus // nil: there is no such job
	changed time.Time           // of the status
	missed  bool                // the last Result may have come while nobody listened
	manager bool                // one has been seen on this broker
}

// command sends a command and follows it.
func (a *app) command(ctx context.Context, cmd messages.Command, w waiting) error {
	cmd.RequestID = w.requestID()
	if err := cmd.Validate(); err != nil {
		return invalid(err)
	}
	name := cmd.Job.Name
	return a.pursue(ctx, order{request: cmd.RequestID, topic: messages.Topic{Kind: messages.CommandTopic, Verb: cmd.Command}.String(),
		payload: messages.Encode(cmd), job: name, see: "skerry job status " + string(name),
		outcome: func(first messages.Result, s *messages.JobStatus) *messages.Result {
			r := outcome(cmd, first, s)
			if r != nil {
				r.Command, r.Job = cmd.Command, name
			}
			return r
		}}, w)
}

// requestID returns the name of the request.
func (w *waiting) requestID() string {
	return cmp.Or(w.request, "skerry-"+strings.ToLower(rand.Text()))
}

func invalid(err error) error {
	return usagef("nothing was sent: %s", strings.ReplaceAll(err.Error(), "\n", "\n  "))
}

// pursue sends what was ordered and follows it.
func (a *app) pursue(ctx context.Context, o order, w waiting) error {
	return a.pursueWith(ctx, o, w, a.shower())
}

// pursueWith is pursue with another way to tell how it goes.
func (a *app) pursueWith(ctx context.Context, o order, w waiting, show shower) error {
	if len(o.payload) > messages.MaxPayload {
		return usagef("nothing was sent: the command has %d bytes, at most %d", len(o.payload), messages.MaxPayload)
	}
	if w.timeout <= 0 {
		return usagef("--timeout %s: want more than 0", w.timeout)
	}
	p := &pursuit{address: a.address, order: o, wait: w, show: show, missed: w.request != ""}
	return p.run(ctx)
}

// run connects as often as needed until the command is over.
func (p *pursuit) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.wait.timeout, errTimeout)
	defer cancel()
	defer p.show.close()
	pause := 200 * time.Millisecond
	for {
		began := time.Now()
		err := p.session(ctx)
		switch {
		case err == nil:
			return p.verdict()
		case ctx.Err() != nil:
			return p.givenUp(ctx)
		case !p.again(err):
			return err
		}
		if time.Since(began) > retryMost {
			pause = 200 * time.Millisecond
		}
		p.missed = true
		p.show.note(fmt.Sprintf("%v; connecting again", err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return p.givenUp(ctx)
		}
		pause = min(2*pause, retryMost)
	}
}

// again reports whether another connection may help. The first one has to succeed: before it nothing is known to be right.
func (p *pursuit) again(err error) bool {
	return p.manager && (errors.Is(err, errLost) || errors.Is(err, errNoManager) || exitCode(err) == exitUnreachable)
}

// session follows the command over one connection. It returns nil when the command is over.
func (p *pursuit) session(ctx context.Context) error {
	l, err := dial(ctx, p.address)
	if err != nil {
		return err
	}
	defer l.close()
	filters := []string{messages.Topic{Kind: messages.ResultTopic, Request: p.request}.String()}
	if p.job != "" {
		filters = append(filters, jobTopic(string(p.job)))
	}
	s, err := l.retained(ctx, filters...)
	if err != nil {
		return err
	}
	if s.cluster == nil {
		return errNoManager
	}
	p.manager = true
	if p.job != "" {
		p.note(s.raw[jobTopic(string(p.job))])
	}
	for _, m := range s.live {
		p.receive(m)
	}
	if err := p.send(ctx, l); err != nil {
		return err
	}
	return p.follow(ctx, l)
}

// send publishes the command, again under the same request id where it may have been lost.
func (p *pursuit) send(ctx context.Context, l *link) error {
	if p.over() || (!p.sent.IsZero() && time.Since(p.sent) > repeatable) {
		return nil
	}
	if p.sent.IsZero() {
		p.sent = time.Now()
	}
	return l.publish(ctx, p.topic, p.payload)
}

// follow reads until the command is over or the connection is.
func (p *pursuit) follow(ctx context.Context, l *link) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for {
		for _, m := range l.take() {
			p.receive(m)
		}
		p.conclude(time.Now())
		if p.over() {
			return nil
		}
		if p.first == nil && time.Since(began) > answerTime {
			return fmt.Errorf("the manager has taken the command but not answered for %s; look at %s", answerTime, p.see)
		}
		select {
		case <-l.news:
		case <-tick.C:
			p.show.tick()
		case <-l.lost:
			return l.err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// over reports whether nothing more is waited for.
func (p *pursuit) over() bool { return p.last != nil || (p.wait.none && p.first != nil) }

// receive takes one message: a Result of this command, or the status of its job.
func (p *pursuit) receive(m message) {
	t, err := messages.ParseTopic(m.topic)
	if err != nil {
		return
	}
	switch t.Kind {
	case messages.JobStatusTopic:
		p.note(m.payload)
	case messages.ResultTopic:
		r := &messages.Result{}
		if err := messages.DecodeFromManager(m.payload, r); err != nil {
			p.show.note(fmt.Sprintf("a result cannot be understood: %v", err))
			return
		}
		p.result(r, m.payload)
	default:
	}
}

func (p *pursuit) result(r *messages.Result, raw []byte) {
	switch {
	case p.last != nil, p.first != nil && !r.Last():
		return // repeated
	case r.Last():
		p.last = r
	default:
		p.first = r
	}
	p.show.result(*r, raw)
	p.showStatus()
}

// note takes the status of the job; an empty one says that there is no such job.
func (p *pursuit) note(raw []byte) {
	p.changed = time.Now()
	p.status = nil
	if len(raw) > 0 {
		s := &messages.JobStatus{}
		if err := messages.DecodeFromManager(raw, s); err != nil {
			p.show.note(fmt.Sprintf("the status of the job cannot be understood: %v", err))
			return
		}
		p.status = s
	}
	p.showStatus()
}

// showStatus shows the status once it speaks of what this command asked for.
func (p *pursuit) showStatus() {
	if p.job == "" || p.first == nil || p.last != nil {
		return
	}
	if p.status == nil {
		p.show.status(messages.JobStatus{Job: p.job})
	} else if p.status.Rev >= p.first.Rev {
		p.show.status(*p.status)
	}
}

// conclude makes the last Result from the job's status where the real one may have come while nobody listened.
func (p *pursuit) conclude(now time.Time) {
	if p.outcome == nil || !p.missed || p.first == nil || p.last != nil {
		return
	}
	quiet := settled
	if p.status != nil && p.status.Spec != nil {
		quiet += p.status.Spec.Update.Stable.Std()
	}
	if now.Sub(p.changed) < quiet {
		return
	}
	r := p.outcome(*p.first, p.status)
	if r == nil {
		return
	}
	r.RequestID, r.ID, r.At = p.first.RequestID, p.first.ID, messages.At(now)
	p.result(r, messages.Encode(*r))
}

// verdict is what the command ends with.
func (p *pursuit) verdict() error {
	if p.last == nil || p.last.Phase == messages.Done {
		return nil
	}
	return &failure{exitFailed, fmt.Errorf("%s", p.show.failed(*p.last))}
}

// givenUp says what becomes of a command that is not waited for any more.
func (p *pursuit) givenUp(ctx context.Context) error {
	fate := "the command goes on in the cluster; see " + p.see
	switch {
	case p.sent.IsZero():
		fate = "nothing was sent"
	case p.first == nil:
		fate = "the manager has not answered, so it is not known whether it has taken the command; see " + p.see
	}
	if errors.Is(context.Cause(ctx), errTimeout) {
		return &failure{exitFailed, fmt.Errorf("not done within %s; %s", p.wait.timeout, fate)}
	}
	return interrupted(ctx, "interrupted; "+fate)
}
