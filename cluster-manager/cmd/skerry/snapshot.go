package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"skerry.internal/messages"
)

// snapshot is what was retained at one time.
type snapshot struct {
	cluster  *messages.ClusterStatus // nil: no manager has ever spoken on this broker
	raw      map[string][]byte       // payloads by topic
	live     []message               // what was said meanwhile and is not retained
	problems []error                 // what could not be understood
	size     int                     // bytes of all that came
}

// silence is how long a broker without a manager is listened to after it has answered.
const silence = 300 * time.Millisecond

// clusterTopic is where a manager says that it is there.
func clusterTopic() string { return messages.Topic{Kind: messages.ClusterTopic}.String() }

// retained subscribes to the filters and returns all that is retained there. The subscriptions stay.
//
// A broker sends what is retained when it grants a subscription, and in one order for each client. So the subscription to the
// manager's own status, made once the others are granted, is answered after all that they brought: when its retained message
// has come, nothing of theirs is missing. Without a manager there is no such message, and nothing else to wait for.
func (l *link) retained(ctx context.Context, filters ...string) (*snapshot, error) {
	if err := l.subscribe(ctx, filters...); err != nil {
		return nil, err
	}
	s := &snapshot{raw: map[string][]byte{}}
	// What has come so far cannot be the answer to the next subscription.
	for _, m := range l.take() {
		s.add(m)
	}
	if err := l.subscribe(ctx, clusterTopic()); err != nil {
		return nil, err
	}
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	slow := time.NewTimer(l.timeout)
	defer slow.Stop()
	for {
		came := l.take()
		for _, m := range came {
			s.add(m)
			if s.size > maxQueued {
				return nil, fmt.Errorf("the broker sent more than %d MiB of statuses", maxQueued>>20)
			}
		}
		if s.cluster != nil {
			return s, nil
		}
		if len(came) > 0 {
			quiet.Reset(silence)
		}
		select {
		case <-l.news:
		case <-l.lost:
			return nil, l.err()
		case <-ctx.Done():
			return nil, interrupted(ctx, "")
		case <-slow.C:
			return nil, fmt.Errorf("%w: the statuses did not end within %s", errLost, l.timeout)
		case <-quiet.C:
			return s, nil
		}
	}
}

// add takes one message; a later one replaces an earlier one, an empty one removes it.
func (s *snapshot) add(m message) {
	s.size += len(m.topic) + len(m.payload)
	if m.topic == clusterTopic() {
		s.addCluster(m)
		return
	}
	if !m.retained {
		s.live = append(s.live, m)
	}
	if len(m.payload) == 0 {
		delete(s.raw, m.topic)
		return
	}
	s.raw[m.topic] = m.payload
}

func (s *snapshot) addCluster(m message) {
	if !m.retained {
		return // a change that came before the answer to our subscription
	}
	c := &messages.ClusterStatus{}
	if err := messages.DecodeFromManager(m.payload, c); err != nil {
		s.problems = append(s.problems, fmt.Errorf("%s: %w", m.topic, err))
	}
	s.cluster = c
}

// errNoManager says that nobody manages a cluster on this broker.
var errNoManager = errors.New("no cluster manager on this broker: it answers, but nothing is retained at cluster/status; check --broker, and that the manager runs")

// read connects, reads what is retained, and hands the link on to use while it lasts.
func (a *app) read(ctx context.Context, use func(*link, *snapshot) error, filters ...string) error {
	l, err := dial(ctx, a.address)
	if err != nil {
		return err
	}
	defer l.close()
	s, err := l.retained(ctx, filters...)
	if err != nil {
		return err
	}
	if s.cluster == nil {
		return errNoManager
	}
	return use(l, s)
}

// raws returns the payloads of one kind of topic in the order of their topics.
func (s *snapshot) raws(kind messages.Kind) [][]byte {
	var topics []string
	for topic := range s.raw {
		if t, err := messages.ParseTopic(topic); err == nil && t.Kind == kind {
			topics = append(topics, topic)
		}
	}
	slices.SortFunc(topics, strings.Compare)
	out := make([][]byte, 0, len(topics))
	for _, topic := range topics {
		out = append(out, s.raw[topic])
	}
	return out
}

// decodeAll reads every payload, and reports those that cannot be understood beside the others.
func decodeAll[T any, P interface {
	*T
	Validate() error
}](raws [][]byte) ([]T, error) {
	out := make([]T, 0, len(raws))
	var errs []error
	for _, raw := range raws {
		var v T
		if err := messages.DecodeFromManager(raw, P(&v)); err != nil {
			errs = append(errs, fmt.Errorf("a status cannot be understood: %w", err))
			continue
		}
		out = append(out, v)
	}
	return out, errors.Join(errs...)
}
