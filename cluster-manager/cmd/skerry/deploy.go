package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"skerry.internal/messages"
)

// quick is what the flags of job deploy say of a job, where it comes from no file.
type quick struct {
	image, technology, mode string
	replicas, memory, gpus  int
	cpus                    float64
	ports, env, arch        []string
	labels                  []string
}

// quickFlags are the flags that do not go with a file.
func quickFlags() []string {
	return []string{"image", "technology", "mode", "replicas", "memory", "gpus", "cpus", "port", "env", "arch", "label"}
}

func (a *app) deployCommand() *cobra.Command {
	var file string
	var q quick
	var cluster, worker []string
	var w waiting
	c := &cobra.Command{
		Use:   "deploy {-f FILE | NAME --image IMAGE} [-- ARGUMENT…]",
		Short: "Deploy a job, or change it to what is given",
		Long: `Deploy a job, or change it to what is given; an equal job changes nothing.

FILE holds a job in JSON, or a whole command ({"command":"deploy","job":{…},"worker":[…]}); - is standard input. A request_id in it
is not used, so that a file that was changed can be deployed again at once: say --request-id to repeat a request.
Without a file, NAME and --image are enough; what stands after -- are the arguments of the program in the container.`,
		Example: `  skerry job deploy -f job.json
  skerry job deploy web --image nginx:1.27 --replicas 2 --port 8080:80 --memory 64 --worker board-1,board-2
  skerry job deploy pinger --image busybox:1.36 --env TARGET=10.0.0.1 -- sh -c 'ping $TARGET'`,
	}
	c.RunE = running(func(ctx context.Context, args []string) error {
		cmd, err := a.deployed(c, file, q, args)
		if err != nil {
			return err
		}
		if len(cluster) > 0 {
			cmd.Cluster = cluster
		}
		if len(worker) > 0 {
			cmd.Worker = nodeIDs(worker)
		}
		return a.command(ctx, cmd, w)
	})
	f := c.Flags()
	f.StringVarP(&file, "file", "f", "", "file with a job or a deploy command in JSON; - for standard input")
	f.StringVar(&q.image, "image", "", "what to run")
	f.StringVar(&q.technology, "technology", "", "what runs it (default docker)")
	f.StringVar(&q.mode, "mode", "", "service, or batch for a job that ends")
	f.IntVar(&q.replicas, "replicas", 1, "number of copies")
	f.StringArrayVar(&q.ports, "port", nil, "publish a port: HOST:CONTAINER, or CONTAINER for a host port that the node chooses; /udp behind it for UDP, NAME= before it for a name of its own")
	f.StringArrayVar(&q.env, "env", nil, "variable of the program: NAME=VALUE")
	f.Float64Var(&q.cpus, "cpus", 0, "processors to reserve, such as 0.5")
	f.IntVar(&q.memory, "memory", 0, "memory to reserve, in MiB")
	f.IntVar(&q.gpus, "gpus", 0, "GPUs to reserve")
	f.StringSliceVar(&q.arch, "arch", nil, "only on nodes of these processors: amd64, arm64, arm-7")
	f.StringArrayVar(&q.labels, "label", nil, "only on nodes with this label: NAME=VALUE")
	f.StringSliceVar(&cluster, "cluster", nil, "only if the cluster has one of these names")
	f.StringSliceVar(&worker, "worker", nil, "only on these nodes")
	addWaiting(c, &w)
	a.completeFlag(c, "worker", a.nodeNames)
	return c
}

// addWaiting adds the flags of every command that is followed.
func addWaiting(c *cobra.Command, w *waiting) {
	c.Flags().BoolVar(&w.none, "no-wait", false, "end as soon as the command is accepted")
	c.Flags().DurationVar(&w.timeout, "timeout", 10*time.Minute, "how long to wait for the end; the command goes on after it")
	c.Flags().StringVar(&w.request, "request-id", "", "name the request; the same name within ten minutes only asks how it ended")
}

func nodeIDs(names []string) []messages.NodeID {
	ids := make([]messages.NodeID, 0, len(names))
	for _, n := range names {
		ids = append(ids, messages.NodeID(n))
	}
	return ids
}

// deployed puts the command together from a file or from flags.
func (a *app) deployed(c *cobra.Command, file string, q quick, args []string) (messages.Command, error) {
	if file == "" {
		if dash := c.ArgsLenAtDash(); len(args) > 1 && dash != 1 {
			return messages.Command{}, usagef("one name, please: arguments of the program go after --, flags of skerry before it")
		}
		return q.command(args)
	}
	if len(args) > 0 {
		return messages.Command{}, usagef("a name or arguments do not go with --file: the file holds them")
	}
	for _, name := range quickFlags() {
		if c.Flags().Changed(name) {
			return messages.Command{}, usagef("--%s does not go with --file: write it into the file", name)
		}
	}
	b, err := a.readFile(file)
	if err != nil {
		return messages.Command{}, usagef("--file: %w", err)
	}
	cmd, warning, err := parseFile(b)
	if err != nil {
		return messages.Command{}, usagef("--file %s: %w", file, err)
	}
	if warning != "" {
		fmt.Fprintf(a.err, "skerry: warning: %s: %s\n", file, warning)
	}
	return cmd, nil
}

// readFile reads a file, or standard input, of at most what a command may hold.
func (a *app) readFile(name string) ([]byte, error) {
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, messages.MaxPayload+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > messages.MaxPayload {
		return nil, fmt.Errorf("%s holds more than the %d bytes that a command may have", name, messages.MaxPayload)
	}
	return b, nil
}

// anyJSON takes what a file holds without looking at its meaning; that is done when the command is whole.
type anyJSON struct{ messages.Command }

// Validate finds nothing wrong.
func (anyJSON) Validate() error { return nil }

// anyJob does the same for a job.
type anyJob struct{ messages.Job }

// Validate finds nothing wrong.
func (anyJob) Validate() error { return nil }

// parseFile reads a job or a whole command. The warning names a field that is not known and so is not sent.
func parseFile(b []byte) (cmd messages.Command, warning string, err error) {
	var top struct {
		Job json.RawMessage `json:"job"`
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	whole := json.Unmarshal(b, &top) == nil && len(top.Job) > 0
	if whole {
		var c anyJSON
		err = messages.Decode(b, &c)
		cmd, warning = c.Command, unknownField(b, new(messages.Command))
	} else {
		var j anyJob
		err = messages.Decode(b, &j)
		cmd.Job, warning = j.Job, unknownField(b, new(messages.Job))
	}
	if err != nil {
		return cmd, "", err
	}
	switch cmd.Command {
	case "":
		cmd.Command = messages.Deploy
	case messages.Deploy:
	default:
		return cmd, "", fmt.Errorf("holds the command %q; want a job, or a command of deploy", cmd.Command)
	}
	return cmd, warning, nil
}

// unknownField returns what the decoder says of the first field that v does not have.
func unknownField(b []byte, v any) string {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && strings.Contains(err.Error(), "unknown field") {
		return strings.TrimPrefix(err.Error(), "json: ") + " is not sent; look for a misspelling"
	}
	return ""
}

// command makes the command of a job that is given by flags.
func (q quick) command(args []string) (messages.Command, error) {
	if len(args) == 0 {
		return messages.Command{}, usagef("want --file, or the name of a job and --image; see skerry job deploy --help")
	}
	if q.image == "" {
		return messages.Command{}, usagef("--image is missing: what shall %s run?", args[0])
	}
	ports, errPorts := parsePorts(q.ports)
	env, errEnv := parsePairs("--env", q.env)
	labels, errLabels := parsePairs("--label", q.labels)
	if err := errors.Join(errPorts, errEnv, errLabels); err != nil {
		return messages.Command{}, usagef("%w", err)
	}
	return messages.Command{Command: messages.Deploy, Job: messages.Job{
		Name: messages.JobName(args[0]), Replicas: &q.replicas, Mode: messages.Mode(q.mode),
		Constraints: messages.Constraints{Arch: q.arch, Labels: labels},
		Spec: messages.Spec{Image: q.image, Technology: messages.Technology(q.technology), Args: args[1:], Environment: env, Ports: ports,
			Resources: messages.Resources{CPUs: q.cpus, MemoryMB: q.memory, GPUs: q.gpus}},
	}}, nil
}

// parsePairs reads NAME=VALUE.
func parsePairs(flag string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		name, value, found := strings.Cut(s, "=")
		if !found || name == "" {
			return nil, fmt.Errorf("%s %q: want NAME=VALUE", flag, s)
		}
		out[name] = value
	}
	return out, nil
}

// parsePorts reads HOST:CONTAINER or CONTAINER, with NAME= before it and /udp or /tcp behind it.
func parsePorts(list []string) ([]messages.Port, error) {
	var out []messages.Port
	for _, s := range list {
		name, rest, named := strings.Cut(s, "=")
		if !named {
			name, rest = "", s
		}
		numbers, protocol, _ := strings.Cut(rest, "/")
		host, container, both := strings.Cut(numbers, ":")
		if !both {
			host, container = "0", numbers
		}
		h, errHost := strconv.Atoi(host)
		c, errContainer := strconv.Atoi(container)
		if errHost != nil || errContainer != nil || named && name == "" {
			return nil, fmt.Errorf("--port %q: want HOST:CONTAINER or CONTAINER, such as 8080:80, http=8080:80 or 53:53/udp", s)
		}
		out = append(out, messages.Port{Name: name, Host: h, Container: c, Protocol: protocol})
	}
	return out, nil
}
