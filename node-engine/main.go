// Command node-engine runs the workloads of one board for its cluster manager. README.md beside it says how it is used and how it lives.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"skerry.internal/node-engine/engine"
)

// errUsage says that the command line is wrong; what is wrong has been printed.
var errUsage = errors.New("usage")

// garbage is how much of it the heap may hold, in percent of what lives. Go's own 100 is for programs that make much of it; the engine makes little,
// and most of that is tables of the network that others replace.
const garbage = 25

// version is set by the build.
var version = "dev"

func main() {
	// Not SIGHUP: to ask for it would undo nohup.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "node-engine:", err)
		os.Exit(1)
	}
}

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opts, err := parse(args, os.Getenv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case opts.version:
		fmt.Fprintln(stdout, "node-engine", version)
		return nil
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: opts.level}))
	if opts.cleanUp {
		return engine.CleanUp(opts.Data, log)
	}
	return debugging(ctx, opts.debug, log, func(ctx context.Context) error {
		e, err := engine.New(opts.Config, log)
		if err != nil {
			return err
		}
		return e.Run(ctx)
	})
}

// options are what the command line says.
type options struct {
	engine.Config
	debug   string // where Go's profiles are served
	level   slog.Level
	cleanUp bool
	version bool
}

// parse reads the flags; each has a variable of the environment for its default. What is wrong is printed to stderr.
func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	opts := options{Config: engine.Config{Version: version}}
	set := flag.NewFlagSet("node-engine", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.Usage = func() { usage(set) }
	text := func(to *string, name, variable, def, help string) {
		if v := getenv(variable); v != "" {
			def = v
		}
		set.StringVar(to, name, def, help+" ("+variable+")")
	}
	text(&opts.Manager, "manager", "SKERRY_MANAGER", "", "`URL` of the cluster manager, such as http://manager:10100 or https://manager:10100")
	text(&opts.ManagerCA, "manager-ca", "SKERRY_MANAGER_CA", "", "PEM `file` with the authority of the manager's certificate, for https; default: those of the system")
	text(&opts.Name, "name", "SKERRY_NAME", "", "`name` of this node until its manager knows it; default: the host name")
	text(&opts.Data, "data", "SKERRY_DATA", engine.DefaultData(), "`directory` of what survives a restart")
	text(&opts.Token, "token", "SKERRY_TOKEN", "", "`token` to join a cluster that asks for one (no manager does yet); the variable hides it from ps")
	text(&opts.DockerHost, "docker-host", "SKERRY_DOCKER_HOST", "", "`URL` of the Docker engine; default: DOCKER_HOST, then Docker's default")
	text(&opts.DockerCredentials, "docker-credentials", "SKERRY_DOCKER_CREDENTIALS", "", "docker config.json `file` with the credentials for pulls")
	text(&opts.Overlay, "overlay", "SKERRY_OVERLAY", "auto", "auto: join the cluster's network where this board can; off: containers have Docker's own")
	var port string
	text(&port, "overlay-port", "SKERRY_OVERLAY_PORT", "0", "UDP `port` of the network's tunnels; 0: 51820 or another that is free, and then always that")
	text(&opts.ImageReserve, "image-reserve", "SKERRY_IMAGE_RESERVE", "10%", "`share` or size (500MiB, 2GiB, 0 for none) of Docker's disk to keep free by removing images that were pulled here and nobody uses")
	text(&opts.debug, "debug", "SKERRY_DEBUG", "", "loopback `address` at which Go's profiles are served; default: nowhere")
	var level string
	text(&level, "log-level", "SKERRY_LOG_LEVEL", "info", "debug, info, warn or error")
	labels := labelFlag{}
	set.Var(labels, "label", "`key=value` that jobs may ask for; repeatable (SKERRY_LABEL, separated by commas)")
	set.BoolVar(&opts.cleanUp, "clean-up", false, "take away what this node's part in the network has left on this machine, and end")
	set.BoolVar(&opts.version, "version", false, "print the version and end")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return opts, err
		}
		return opts, errUsage // Parse has printed it
	}
	if opts.version || opts.cleanUp {
		return opts, nil
	}
	opts.Labels = maps.Clone(labels)
	err := errors.Join(noArguments(set.Args()), readNumber("overlay-port", port, &opts.OverlayPort), opts.level.UnmarshalText([]byte(level)), moreLabels(opts.Labels, getenv("SKERRY_LABEL")),
		opts.Validate())
	if err != nil {
		fmt.Fprintf(stderr, "node-engine: %v\nnode-engine -h lists the flags\n", err)
		return opts, errUsage
	}
	return opts, nil
}

func usage(set *flag.FlagSet) {
	fmt.Fprint(set.Output(), "usage: node-engine --manager http://HOST:10100 [flags]\n\n",
		"Runs the workloads of this board for a cluster manager, in the foreground. SIGTERM ends it and stops no workload.\n",
		"Every flag has a variable of the environment, named in brackets.\n\n")
	set.PrintDefaults()
}

func noArguments(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("argument %q: there are only flags", rest[0])
	}
	return nil
}

// readNumber is for a number whose default comes as text from the environment.
func readNumber(name, text string, to *int) (err error) {
	if *to, err = strconv.Atoi(text); err != nil {
		return fmt.Errorf("%s %q: want a number", name, text)
	}
	return nil
}

// labelFlag collects --label.
type labelFlag map[string]string

// String is asked for by the flag package.
func (l labelFlag) String() string { return "" }

// Set takes one key=value.
func (l labelFlag) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("label %q: want key=value", s)
	}
	l[k] = v
	return nil
}

// moreLabels adds the labels of the environment that the command line does not name.
func moreLabels(labels map[string]string, list string) error {
	var errs []error
	for text := range strings.SplitSeq(list, ",") {
		text = strings.TrimSpace(text)
		one := labelFlag{}
		if text == "" {
			continue
		}
		errs = append(errs, one.Set(text))
		for k, v := range one {
			if _, said := labels[k]; !said {
				labels[k] = v
			}
		}
	}
	return errors.Join(errs...)
}
