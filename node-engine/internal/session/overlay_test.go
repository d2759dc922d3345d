package session

import (
	"context"
	"sync"
	"testing"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/session/sessiontest"
)

// overlay remembers what it was told, and says its endpoints and then whatever is put into news.
type overlay struct {
	news chan messages.Interest

	mu      sync.Mutex
	configs []messages.NetworkConfig
	updates []messages.ServiceUpdate
}

func (o *overlay) Begin() {}

func (o *overlay) Configure(c messages.NetworkConfig) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.configs = append(o.configs, c)
}

func (o *overlay) Update(u messages.ServiceUpdate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.updates = append(o.updates, u)
}

func (o *overlay) Talk(ctx context.Context, say func(messages.Kind, any) error) error {
	if err := say(messages.NetEndpointsTopic, &messages.Endpoints{Reason: "no TUN"}); err != nil {
		return err
	}
	for {
		select {
		case i := <-o.news:
			if err := say(messages.NetInterestTopic, &i); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (o *overlay) Trace(_ context.Context, req messages.TraceRequest, answer func(*messages.TraceAnswer) error) error {
	for n := range 2 {
		if err := answer(&messages.TraceAnswer{RequestID: req.RequestID, Kind: req.Kind, N: n, Last: n == 1}); err != nil {
			return err
		}
	}
	return nil
}

func (o *overlay) got() (configs, updates int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.configs), len(o.updates)
}

func TestWhatConcernsTheOverlay(t *testing.T) {
	o := &overlay{news: make(chan messages.Interest, 1)}
	c := newCluster(t, func(cfg *Config) { cfg.Overlay = o })
	c.client.Say(t, "nodes/n1/net/services", messages.ServiceUpdate{Rev: 1}) // before it listens: not retained, so lost
	c.node.start(t)
	c.waitOnline(t)
	sessiontest.Eventually(t, "its endpoints are said", func() bool {
		var e messages.Endpoints
		return sessiontest.Find(c.client, "nodes/n1/net/endpoints", &e, func(e *messages.Endpoints) bool { return e.Reason == "no TUN" })
	})
	c.client.Say(t, "nodes/n1/net/config", messages.NetworkConfig{Rev: 4})
	c.client.Say(t, "nodes/n1/net/services", messages.ServiceUpdate{Rev: 2, Full: true})
	sessiontest.Eventually(t, "both arrive", func() bool { configs, updates := o.got(); return configs == 1 && updates == 1 })
	o.news <- messages.Interest{Names: []messages.JobName{"web"}}
	sessiontest.Eventually(t, "a change is said", func() bool {
		var i messages.Interest
		return sessiontest.Find(c.client, "nodes/n1/net/interest", &i, func(i *messages.Interest) bool { return len(i.Names) == 1 })
	})
	c.client.Say(t, "nodes/n1/control/trace", messages.TraceRequest{RequestID: "t1", Kind: messages.TracePing, Name: "web"})
	sessiontest.Eventually(t, "the last answer comes", func() bool {
		var a messages.TraceAnswer
		return sessiontest.Find(c.client, "nodes/n1/net/answers/t1", &a, func(a *messages.TraceAnswer) bool { return a.Last && a.N == 1 })
	})
}

func TestTraceWithoutAnOverlay(t *testing.T) {
	c := newCluster(t, nil)
	c.node.start(t)
	c.waitOnline(t)
	c.client.Say(t, "nodes/n1/control/trace", messages.TraceRequest{RequestID: "t1", Kind: messages.TraceResolve, Name: "web"})
	sessiontest.Eventually(t, "it says so", func() bool {
		var a messages.TraceAnswer
		return sessiontest.Find(c.client, "nodes/n1/net/answers/t1", &a, func(a *messages.TraceAnswer) bool { return a.Last && a.Error != "" })
	})
}
