//go:build linux

package labtest

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"syscall"

	"skerry.internal/netmanager"
	"skerry.internal/netmanager/service"
)

// childEnv is set for the processes that are nodes.
const childEnv = "SKERRY_LABTEST_NODE"

// request is one call of a node's Network.
type request struct {
	Start   *netmanager.Static
	Set     *netmanager.Config
	Attach  *netmanager.Attachment
	Detach  string
	Status  bool
	Flows   bool
	CleanUp bool
}

type answer struct {
	Err    string
	Status netmanager.Status
	Flows  []service.Flow
	Usage  Usage
	Missed []netip.Addr
}

// Usage is what a node's process has used since its start.
type Usage struct {
	CPU   float64 // seconds of processor time
	MaxMB float64 // the most resident memory
}

// Child is the node's process, if this is one; it does not return then.
func Child() {
	if os.Getenv(childEnv) == "" {
		return
	}
	debug.SetGCPercent(25) // as the node engine has it
	c := child{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	err := c.serve(gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout))
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "labtest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type child struct {
	log    *slog.Logger
	static netmanager.Static
	n      *netmanager.Network

	mu     sync.Mutex // guards what follows
	missed []netip.Addr
}

// serve answers requests until the input ends.
func (c *child) serve(in *gob.Decoder, out *gob.Encoder) error {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return err
		}
		if r.Start != nil {
			if err := c.start(ctx, &wg, *r.Start); err != nil {
				return err
			}
		}
		a := answer{}
		if err := c.do(ctx, r, &a); err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func (c *child) start(ctx context.Context, wg *sync.WaitGroup, static netmanager.Static) (err error) {
	static.OnMiss = func(a netip.Addr) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.missed = append(c.missed, a)
	}
	c.static = static
	if c.n, err = netmanager.New(static, c.log); err != nil {
		return err
	}
	wg.Go(func() {
		if err := c.n.Run(ctx); err != nil {
			c.log.Error("network ended", "err", err)
		}
	})
	return nil
}

func (c *child) do(ctx context.Context, r request, a *answer) error {
	switch {
	case r.Set != nil:
		return c.n.Set(ctx, *r.Set)
	case r.Attach != nil:
		return c.n.Attach(ctx, *r.Attach)
	case r.Detach != "":
		return c.n.Detach(r.Detach)
	case r.CleanUp:
		return netmanager.CleanUp(c.static.Name, c.static.StateDir)
	case r.Flows:
		a.Flows = c.n.Flows(netip.Addr{})
	case r.Status:
		a.Status = c.n.Status()
		a.Usage = usage()
		c.mu.Lock()
		a.Missed = c.missed
		c.mu.Unlock()
	}
	return nil
}

func usage() Usage {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return Usage{}
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return Usage{CPU: seconds(r.Utime) + seconds(r.Stime), MaxMB: float64(r.Maxrss) / 1024}
}
