package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

	"skerry.internal/messages"
)

// The first arguments by which bench starts itself as a floor.
const (
	bareMode = "serve-broker" // the MQTT library's broker, and nothing of ours
	restMode = "serve-rest"   // a program that has an MQTT session and listens to Docker's events, and does nothing
)

// bareManager starts the MQTT library's broker where a manager would be: nodes need no registration, nobody answers commands, nothing is kept.
func (b *bench) bareManager(ctx context.Context, flags ...string) (*manager, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := b.newManager(self)
	m.mode, m.args, m.bare = []string{bareMode}, flags, true
	return m, b.restart(ctx, m)
}

// bareFleet starts the MQTT library's broker for the fleet, whose connections come as those to the manager do.
func (b *bench) bareFleet(ctx context.Context, streams bool) (*manager, error) {
	if !streams {
		return b.bareManager(ctx)
	}
	m, err := b.bareManager(ctx, "--streams")
	if err != nil {
		return nil, err
	}
	return m, b.openStreams(ctx, m, m.mqtt)
}

// serveBare is the process of a bareManager. It takes the flags that every manager is started with.
func serveBare(ctx context.Context, args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench "+bareMode, flag.ContinueOnError)
	fs.SetOutput(stderr)
	addr := fs.String("mqtt", "", "address of the MQTT broker")
	overStreams := fs.Bool("streams", false, "connections are streams of others")
	for _, ignored := range []string{"cluster", "http", "data", "debug"} {
		fs.String(ignored, "", "not used")
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	listen := func(ctx context.Context, network, addr string) (net.Listener, error) {
		var lc net.ListenConfig
		return lc.Listen(ctx, network, addr)
	}
	if *overStreams {
		listen = listenStreams
	}
	l, err := listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	server := broker.New(&broker.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := server.AddHook(new(auth.AllowHook), nil); err != nil {
		return err
	}
	if err := server.AddListener(listeners.NewNet("mqtt", l)); err != nil {
		return err
	}
	if err := server.Serve(); err != nil {
		return err
	}
	slog.New(slog.NewJSONHandler(stderr, nil)).Info("listening", "http", "127.0.0.1:0", "mqtt", l.Addr().String())
	<-ctx.Done()
	return server.Close()
}

// restingProgram starts the floor of an idle node engine beside a manager.
func (b *bench) restingProgram(ctx context.Context, m *manager) (*daemon, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d, err := b.start(self, restMode, "--mqtt", m.mqtt)
	if err != nil {
		return nil, err
	}
	_, err = d.line(ctx, "at rest")
	return d, err
}

// serveRest is the process of a restingProgram: a session with the keep-alive of a node's, one subscription, and Docker's stream of events.
func serveRest(ctx context.Context, args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench "+restMode, flag.ContinueOnError)
	fs.SetOutput(stderr)
	addr := fs.String("mqtt", "", "address of the MQTT broker")
	fs.String("debug", "", "not used")
	if err := fs.Parse(args); err != nil {
		return err
	}
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + *addr).SetKeepAlive(30 * time.Second))
	if token := c.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		return fmt.Errorf("connect: %w", token.Error())
	}
	defer c.Disconnect(0)
	if token := c.Subscribe(messages.AllJobsFilter, 1, func(mqtt.Client, mqtt.Message) {}); !token.WaitTimeout(patience) || token.Error() != nil {
		return fmt.Errorf("subscribe: %w", token.Error())
	}
	ended := make(chan error, 1)
	go func() { ended <- newDocker().events(ctx) }()
	slog.New(slog.NewJSONHandler(stderr, nil)).Info("at rest")
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

// placeBare sends an assignment for each of the copies that placeMany asks for to the nodes in turn, as a manager that has nothing to decide and
// nothing to keep would, and returns the instances a second until all are said to run.
func placeBare(ctx context.Context, c *client, boards []*board, n, round int) (float64, error) {
	const copies = 5
	tokens := make([]mqtt.Token, 0, copies*n)
	ids := make([]messages.InstanceID, 0, copies*n)
	start := time.Now()
	for i := range n {
		for index := range copies {
			j := job(messages.JobName(fmt.Sprintf("bare-%d-%d", round, i)), copies)
			id := messages.NewInstanceID(j.Name, index, 1)
			payload, err := json.Marshal(messages.Assignment{Instance: id, Rev: 1, Run: true, Spec: &j.Spec})
			if err != nil {
				return 0, err
			}
			if at := len(tokens) - commandsAtOnce; at >= 0 {
				if t := tokens[at]; !t.WaitTimeout(patience) || t.Error() != nil {
					return 0, fmt.Errorf("publish: %w", t.Error())
				}
			}
			to := boards[len(tokens)%len(boards)].id
			topic := messages.Topic{Kind: messages.NodeControlTopic, Node: to, Verb: messages.Deploy}.String()
			tokens, ids = append(tokens, c.mqtt.Publish(topic, 1, false, payload)), append(ids, id)
		}
	}
	for _, id := range ids {
		if err := eventually(ctx, string(id)+" running", func() bool { _, ok := c.upSince(id); return ok }); err != nil {
			return 0, err
		}
	}
	return float64(len(ids)) / time.Since(start).Seconds(), nil
}
