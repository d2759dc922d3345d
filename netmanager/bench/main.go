//go:build linux

// Command bench measures the overlay beside its floors, in turn in one run: the raw link, the kernel's VXLAN (plain), and bare wireguard-go, all
// between the same two hosts in network namespaces of this machine, and then what a packet takes in the package service. `make bench-network` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"skerry.internal/netmanager/labtest"
)

func main() {
	labtest.Child()
	bareChild()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options say what to measure.
type options struct {
	rounds  int
	seconds int
	only    string
	readme  string
}

func run(ctx context.Context, args []string) (err error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often each path is measured, in turn")
	flags.IntVar(&o.seconds, "seconds", 3, "how long one measurement of a stream takes")
	flags.StringVar(&o.only, "only", "", "measure only the paths whose name holds this")
	flags.StringVar(&o.readme, "readme", "", "put the table between the markers of this file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b := newTB(ctx, "bench")
	defer func() {
		if failed := b.end(recover()); failed != nil {
			err = failed
		}
	}()
	paths := allPaths(b)
	var measured []*path
	for _, p := range paths {
		if strings.Contains(p.name, o.only) {
			measured = append(measured, p)
		}
	}
	for round := range o.rounds {
		for _, p := range measured {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, o.rounds, p.name)
			p.measure(b, time.Duration(o.seconds)*time.Second)
		}
	}
	table := render(measured)
	if o.only == "" {
		packets, err := measureService(ctx, o.rounds)
		if err != nil {
			return err
		}
		table += packets.render()
	}
	fmt.Print(table)
	if o.readme == "" {
		return nil
	}
	return insert(o.readme, table)
}
