package broker_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	paho "github.com/eclipse/paho.mqtt.golang"
	"skerry.internal/broker"
)

func Example() {
	b, err := broker.New(broker.Config{
		Listeners:    []broker.Listener{{Addr: "127.0.0.1:0"}},
		Authenticate: func(l broker.Login) (broker.Client, error) { return broker.Client{Role: "guest"}, nil },
		Allow: func(c broker.Client, a broker.Access, topic string) bool {
			return a != broker.Publish || strings.HasPrefix(topic, "in/"+c.ID)
		},
		OnPublish: func(c broker.Client, m broker.Message) error {
			fmt.Printf("%s says %s\n", c.ID, m.Payload)
			return nil // only now the client gets its PUBACK
		},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	if err := b.Publish(broker.Message{Topic: "news", Payload: []byte("fresh"), Retain: true}); err != nil {
		panic(err)
	}

	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + b.Addrs()[0].String()).SetClientID("board-1"))
	c.Connect().Wait()
	heard := make(chan string, 1)
	c.Subscribe("news", 1, func(_ paho.Client, m paho.Message) { heard <- string(m.Payload()) }).Wait()
	fmt.Println("news:", <-heard)
	c.Publish("in/board-1", 1, false, "hello").Wait()
	cancel()
	fmt.Println("ended:", <-ended)
	// Output:
	// news: fresh
	// board-1 says hello
	// ended: <nil>
}
