package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

func (a *app) eventsCommand() *cobra.Command {
	return &cobra.Command{Use: "events", Short: "Show what happens, as it happens", Example: "  skerry events\n  skerry events --json", Args: cobra.NoArgs,
		Long: "Show what happens, as it happens, until interrupted. Events are for people: one may be missed where the connection breaks.",
		RunE: running(func(ctx context.Context, _ []string) error {
			return a.stay(ctx, "events may have been missed", func(ctx context.Context, l *link, _ bool) error { return a.events(ctx, l) })
		})}
}

// stay holds a connection until the context ends, and makes another where it breaks. The first one has to succeed.
func (a *app) stay(ctx context.Context, missed string, use func(ctx context.Context, l *link, again bool) error) error {
	pause := 200 * time.Millisecond
	for again := false; ; again = true {
		began := time.Now()
		err := a.stayOnce(ctx, again, use)
		lost := errors.Is(err, errLost) || (again && exitCode(err) == exitUnreachable)
		if ctx.Err() != nil {
			return interrupted(ctx, "")
		}
		if !lost {
			return err
		}
		if time.Since(began) > retryMost {
			pause = 200 * time.Millisecond
		}
		if pause == 200*time.Millisecond {
			fmt.Fprintf(a.err, "skerry: %v; connecting again, %s\n", err, missed)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return interrupted(ctx, "")
		}
		pause = min(2*pause, retryMost)
	}
}

func (a *app) stayOnce(ctx context.Context, again bool, use func(context.Context, *link, bool) error) error {
	l, err := dial(ctx, a.address)
	if err != nil {
		return err
	}
	defer l.close()
	return use(ctx, l, again)
}

func (a *app) events(ctx context.Context, l *link) error {
	if err := l.subscribe(ctx, messages.AllEvents); err != nil {
		return err
	}
	return l.each(ctx, nil, func(m message) (bool, error) { return false, a.printEvent(m) })
}

// each hands on what comes in until f says that it was the last, and calls tick's function in between.
func (l *link) each(ctx context.Context, tick func() error, f func(message) (last bool, err error)) error {
	clock := time.NewTicker(time.Second)
	defer clock.Stop()
	for {
		for _, m := range l.take() {
			if last, err := f(m); last || err != nil {
				return err
			}
		}
		select {
		case <-l.news:
		case <-clock.C:
			if tick == nil {
				continue
			}
			if err := tick(); err != nil {
				return err
			}
		case <-l.lost:
			return l.err()
		case <-ctx.Done():
			return interrupted(ctx, "")
		}
	}
}

func (a *app) printEvent(m message) error {
	var e messages.Event
	if err := messages.DecodeFromManager(m.payload, &e); err != nil {
		fmt.Fprintf(a.err, "skerry: an event cannot be understood: %s: %v\n", m.topic, err)
		return nil
	}
	if a.json {
		return line(a.out, m.payload)
	}
	_, err := fmt.Fprintln(a.out, a.style().Event(e))
	return err
}
