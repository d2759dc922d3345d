package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"skerry.internal/messages"
)

// maxInbox is the most bytes of payload that wait to be applied: some 10,000 ordinary assignments. Over it the session ends, and
// the sync after the next one repairs what was dropped.
const maxInbox = 8 << 20

var errInbox = errors.New("more control messages came than could be applied")

// order is one decoded control message; at most one of its fields is set.
type order struct {
	assignment *messages.Assignment
	sync       *messages.Sync
	logs       *messages.LogsRequest
	inventory  *messages.InventoryRequest
	network    *messages.NetworkConfig
	services   *messages.ServiceUpdate
	trace      *messages.TraceRequest
}

// inbox is the ordered queue between the MQTT reader, which must never wait, and what applies the orders.
type inbox struct {
	node messages.NodeID
	bad  *rejects
	news chan struct{} // capacity 1: "look again"

	mu     sync.Mutex // guards what follows
	queue  []sized
	bytes  int
	failed bool
}

type sized struct {
	order
	bytes int
}

func newInbox(node messages.NodeID, bad *rejects) *inbox {
	return &inbox{node: node, bad: bad, news: make(chan struct{}, 1)}
}

// receive decodes one message and queues it. It is called by the MQTT reader.
func (i *inbox) receive(topic string, payload []byte) {
	o, err := decodeOrder(i.node, topic, payload)
	if err != nil {
		i.bad.add(topic, err)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bytes+len(payload) > maxInbox {
		i.failed = true
	} else {
		i.queue = append(i.queue, sized{o, len(payload)})
		i.bytes += len(payload)
	}
	select {
	case i.news <- struct{}{}:
	default:
	}
}

// next waits for the next order. It fails for good once an order had to be dropped.
func (i *inbox) next(ctx context.Context) (order, error) {
	for {
		o, ok, err := i.take()
		if ok || err != nil {
			return o, err
		}
		select {
		case <-i.news:
		case <-ctx.Done():
			return order{}, ctx.Err()
		}
	}
}

func (i *inbox) take() (order, bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.failed {
		return order{}, false, errInbox
	}
	if len(i.queue) == 0 {
		return order{}, false, nil
	}
	o := i.queue[0]
	i.queue = i.queue[1:]
	i.bytes -= o.bytes
	return o.order, true, nil
}

// decodeOrder reads one control message of node, whatever topic and payload hold.
func decodeOrder(node messages.NodeID, topic string, payload []byte) (order, error) {
	t, err := messages.ParseTopic(topic)
	if err != nil {
		return order{}, err
	}
	if t.Node != node {
		return order{}, fmt.Errorf("meant for node %s", t.Node)
	}
	switch t.Kind {
	case messages.NodeControlTopic:
		a := new(messages.Assignment)
		if err := messages.DecodeFromManager(payload, a); err != nil {
			return order{}, err
		}
		if want := t.Verb == messages.Deploy; a.Run != want {
			return order{}, fmt.Errorf("run is %t, on this topic it must be %t", a.Run, want)
		}
		return order{assignment: a}, nil
	case messages.SyncTopic:
		s := new(messages.Sync)
		return order{sync: s}, messages.DecodeFromManager(payload, s)
	case messages.InventoryRequestTopic:
		r := new(messages.InventoryRequest)
		return order{inventory: r}, messages.DecodeFromManager(payload, r)
	case messages.LogsRequestTopic:
		r := new(messages.LogsRequest)
		return order{logs: r}, messages.Decode(payload, r)
	case messages.NetConfigTopic:
		if len(payload) == 0 {
			return order{}, nil // the retained one was taken away, which asks for nothing
		}
		c := new(messages.NetworkConfig)
		return order{network: c}, messages.DecodeFromManager(payload, c)
	case messages.NetServicesTopic:
		u := new(messages.ServiceUpdate)
		return order{services: u}, messages.DecodeFromManager(payload, u)
	case messages.TraceRequestTopic:
		r := new(messages.TraceRequest)
		return order{trace: r}, messages.Decode(payload, r)
	default:
		return order{}, errors.New("not a control topic")
	}
}

// rejects counts the control messages that were dropped and says so in the log, at most once a minute for a topic.
type rejects struct {
	log *slog.Logger

	mu    sync.Mutex // guards what follows
	total uint64
	said  map[string]time.Time // bounded by maxSaid
}

// maxSaid bounds what is remembered of topics that only a faulty broker can send.
const maxSaid = 32

func (r *rejects) add(topic string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	now := time.Now()
	last, known := r.said[topic]
	if known && now.Sub(last) < time.Minute {
		return
	}
	if !known && len(r.said) >= maxSaid {
		r.forgetLocked(now)
		if len(r.said) >= maxSaid {
			return
		}
	}
	r.said[topic] = now
	r.log.Warn("control message refused", "topic", clip(topic), "total", r.total, "err", clip(err.Error()))
}

func (r *rejects) forgetLocked(now time.Time) {
	for topic, at := range r.said {
		if now.Sub(at) >= time.Minute {
			delete(r.said, topic)
		}
	}
}
