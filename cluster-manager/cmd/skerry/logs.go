package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

const (
	// renewal is how often a request for logs is renewed: its node ends one that has not been for ten minutes.
	renewal = 3 * time.Minute
	// firstChunk is how long a node may take to send what it has kept.
	firstChunk = 20 * time.Second
)

func (a *app) logsCommand() *cobra.Command {
	var req messages.LogsRequest
	c := &cobra.Command{Use: "logs INSTANCE", Short: "Show the output of an instance",
		Long: `Show the output of an instance, such as web.0.2. A part of its name is enough where only one instance begins with it: web.0, or web for
a job with one instance. What it wrote to its standard error goes to standard error.`,
		Example: "  skerry job logs web.0.2\n  skerry job logs web --follow --tail 20", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeFirst(a.instanceNames),
		RunE: running(func(ctx context.Context, args []string) error {
			if req.Tail < 0 {
				return usagef("--tail %d: want 0 or more lines", req.Tail)
			}
			return a.logs(ctx, args[0], req)
		})}
	c.Flags().BoolVar(&req.Follow, "follow", false, "go on with what comes")
	c.Flags().IntVar(&req.Tail, "tail", 0, "only the last lines of what there is (0: all that is kept)")
	return c
}

// logReader follows the output of one instance.
type logReader struct {
	app    *app
	name   string // as given
	node   messages.NodeID
	req    messages.LogsRequest
	next   uint64    // the chunk that is expected
	heard  time.Time // when the last one came
	asked  time.Time
	begun  bool
	online bool
}

func (a *app) logs(ctx context.Context, name string, req messages.LogsRequest) error {
	req.RequestID = "skerry-" + strings.ToLower(rand.Text())
	r := &logReader{app: a, name: name, req: req}
	return a.stay(ctx, "output may be missing or come twice", r.session)
}

// session reads over one connection.
func (r *logReader) session(ctx context.Context, l *link, again bool) error {
	if !again {
		if err := r.find(ctx, l); err != nil {
			return err
		}
	}
	status := messages.Topic{Kind: messages.NodeStatusTopic, Node: r.node}.String()
	if err := l.subscribe(ctx, messages.Topic{Kind: messages.LogsTopic, Node: r.node, Instance: r.req.Instance}.String(), status); err != nil {
		return err
	}
	if err := r.ask(ctx, l, again); err != nil {
		return err
	}
	return l.each(ctx, func() error { return r.tick(ctx, l) }, func(m message) (bool, error) {
		if m.topic == status {
			return false, r.nodeChanged(ctx, l, m.payload)
		}
		return r.chunk(m)
	})
}

// find looks up the instance and its node.
func (r *logReader) find(ctx context.Context, l *link) error {
	s, err := l.retained(ctx, messages.AllJobsFilter, messages.AllNodesFilter)
	if err != nil {
		return err
	}
	if s.cluster == nil {
		return errNoManager
	}
	jobs, err := decodeAll[messages.JobStatus](s.raws(messages.JobStatusTopic))
	if err != nil {
		return err
	}
	i, err := findInstance(jobs, r.name)
	if err != nil {
		return err
	}
	r.req.Instance, r.node = i.Instance, i.Node
	var n messages.NodeStatus
	if err := messages.DecodeFromManager(s.raw[messages.Topic{Kind: messages.NodeStatusTopic, Node: i.Node}.String()], &n); err != nil {
		return fmt.Errorf("the status of %s, which has the output, cannot be read: %w", i.Node, err)
	}
	if n.State != messages.NodeOnline {
		return fmt.Errorf("%s, which has the output of %s, is %s; try again when it is online", i.Node, i.Instance, n.State)
	}
	r.online = true
	return nil
}

// findInstance returns the one instance that bears the name or begins with it.
func findInstance(jobs []messages.JobStatus, name string) (messages.InstanceReport, error) {
	var found []messages.InstanceReport
	for _, j := range jobs {
		for _, i := range j.Instances {
			if string(i.Instance) == name {
				return i, nil
			}
			if strings.HasPrefix(string(i.Instance), name+".") {
				found = append(found, i)
			}
		}
	}
	switch len(found) {
	case 0:
		return messages.InstanceReport{}, fmt.Errorf("there is no instance %s; skerry job status JOB shows those there are", name)
	case 1:
		return found[0], nil
	}
	var names []string
	for _, i := range found {
		names = append(names, string(i.Instance))
	}
	return messages.InstanceReport{}, usagef("%s is more than one instance: say which of %s", name, strings.Join(names, ", "))
}

// ask sends the request. Again, it renews the one that the node knows; where the node has forgotten it, it begins where we were.
func (r *logReader) ask(ctx context.Context, l *link, again bool) error {
	if again && r.begun {
		r.req.Since, r.req.Tail = messages.At(r.heard), 0
	}
	r.asked = time.Now()
	if r.heard.IsZero() {
		r.heard = r.asked
	}
	return l.publish(ctx, messages.Topic{Kind: messages.LogsRequestTopic, Node: r.node}.String(), messages.Encode(r.req))
}

// tick renews the request in time, and gives up on a node that does not answer.
func (r *logReader) tick(ctx context.Context, l *link) error {
	if !r.begun && !r.req.Follow && time.Since(r.asked) > firstChunk {
		return fmt.Errorf("%s has not answered for %s: see whether it is online, and whether this user may ask it", r.node, firstChunk)
	}
	if time.Since(r.asked) > renewal {
		return r.ask(ctx, l, true)
	}
	return nil
}

// nodeChanged asks again when the node has been away: its session, and so the output, ended there.
func (r *logReader) nodeChanged(ctx context.Context, l *link, raw []byte) error {
	var n messages.NodeStatus
	if len(raw) == 0 {
		return fmt.Errorf("%s has been removed from the cluster", r.node)
	}
	if err := messages.DecodeFromManager(raw, &n); err != nil {
		return fmt.Errorf("the status of %s cannot be understood: %w", r.node, err)
	}
	was := r.online
	r.online = n.State == messages.NodeOnline
	switch {
	case was && !r.online && !r.req.Follow:
		return fmt.Errorf("%s is %s; try again when it is online", r.node, n.State)
	case was && !r.online:
		fmt.Fprintf(r.app.err, "skerry: %s is %s; waiting for it\n", r.node, n.State)
	case !was && r.online:
		fmt.Fprintf(r.app.err, "skerry: %s is online again; output may be missing or come twice\n", r.node)
		return r.ask(ctx, l, true)
	}
	return nil
}

// chunk prints a piece of output.
func (r *logReader) chunk(m message) (last bool, err error) {
	var c messages.LogChunk
	if err := messages.Decode(m.payload, &c); err != nil {
		fmt.Fprintln(r.app.err, "skerry: a piece of output cannot be understood:", err)
		return false, nil
	}
	if c.RequestID != r.req.RequestID {
		return false, nil // somebody else's
	}
	if c.N > r.next {
		fmt.Fprintf(r.app.err, "skerry: %d pieces of output were lost on the way\n", c.N-r.next)
	}
	r.next, r.begun, r.heard = c.N+1, true, time.Now()
	if err := r.print(c, m.payload); err != nil {
		return false, err
	}
	if c.Last && c.Error != "" {
		return true, errors.New(c.Error)
	}
	return c.Last, nil
}

func (r *logReader) print(c messages.LogChunk, raw []byte) error {
	if r.app.json {
		return line(r.app.out, raw)
	}
	w := r.app.out
	if c.Stream == "stderr" {
		w = r.app.err
	}
	_, err := io.WriteString(w, c.Text)
	return err
}
