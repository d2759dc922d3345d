package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
)

// The load of measureCommands: so many clients, each with one command under way at a time, for so long.
const (
	commandClients = 200
	commandTime    = 3 * time.Second
)

// measureCommands takes how many commands a second many clients get acknowledged, each PUBACK after an fsync, beside the fsyncs a
// second that the same disk does one after another.
func measureCommands(ctx context.Context, b *bench) ([]figure, error) {
	m, err := b.manager(ctx)
	if err != nil {
		return nil, err
	}
	var clients []mqtt.Client
	for range commandClients {
		c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + m.mqtt).SetWriteTimeout(10 * time.Second))
		if token := c.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
			return nil, fmt.Errorf("connect: %w", token.Error())
		}
		b.closers = append(b.closers, func() { c.Disconnect(0) })
		clients = append(clients, c)
	}
	var own, floor []float64
	for range max(b.runs/2, 5) {
		own = append(own, commandRate(ctx, clients))
		rate, err := fsyncRate(b.dir)
		if err != nil {
			return nil, err
		}
		floor = append(floor, rate)
	}
	f := of("commands acknowledged, durable", "/s", "≥ 5,000", own).over("fsyncs one after another", own, floor)
	f.Note = fmt.Sprintf("%d clients, one command under way each", commandClients)
	return []figure{f}, nil
}

func commandRate(ctx context.Context, clients []mqtt.Client) float64 {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var wg sync.WaitGroup
	counts := make([]int, len(clients))
	start := time.Now()
	for i, c := range clients {
		wg.Go(func() {
			zero := 0
			j := job(messages.JobName(fmt.Sprintf("c%d", i)), zero) // of no copies: what is measured is the command, not a placement
			for n := 0; ctx.Err() == nil; n++ {
				j.Priority = n % 1000 // each is a change
				token := c.Publish("control/deploy", 1, false, messages.Encode(deploy(j)))
				if token.WaitTimeout(patience) && token.Error() == nil {
					counts[i]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return float64(sum) / time.Since(start).Seconds()
}

// fsyncRate appends a record of the size of a command to a file and syncs it, for a second.
func fsyncRate(dir string) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	record := make([]byte, 1024)
	n := 0
	start := time.Now()
	for ; time.Since(start) < time.Second; n++ {
		if _, err := f.Write(record); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
