// Command cluster-manager decides which node of a cluster runs what. It holds an MQTT broker, by which clients command it and nodes hear it,
// and an HTTP server at which nodes register.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"skerry.internal/cluster-manager/manager"
	"skerry.internal/messages"
)

// version is set by the build.
var version = "dev"

func main() {
	// Not SIGHUP: to ask for it would undo nohup.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "cluster-manager:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster-manager:", err)
		os.Exit(1)
	}
}

// errUsage wraps what is wrong with the command line.
var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) error {
	cfg, showVersion, err := parse(args, getenv, stderr)
	if err != nil {
		return err
	}
	if showVersion {
		fmt.Fprintln(stderr, "cluster-manager", version)
		return nil
	}
	runAhead(getenv)
	limitMemory(getenv)
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	return debugging(ctx, cfg.Debug, log, func(ctx context.Context) error {
		m, err := manager.New(ctx, cfg, log)
		if err != nil {
			return err
		}
		return m.Run(ctx)
	})
}

// parse reads the flags; the default of each is its SKERRY_… variable where that is set.
func parse(args []string, getenv func(string) string, stderr io.Writer) (manager.Config, bool, error) {
	cfg := manager.Config{Version: version}
	fs := flag.NewFlagSet("cluster-manager", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "cluster-manager decides which node of a cluster runs what. Every flag has a variable: --lost-after is SKERRY_LOST_AFTER.")
		fs.PrintDefaults()
	}
	fs.StringVar(&cfg.Cluster, "cluster", "lab", "name of the cluster")
	fs.StringVar(&cfg.HTTP, "http", ":10100", "address of the HTTP server, at which nodes register")
	fs.StringVar(&cfg.MQTT, "mqtt", "127.0.0.1:1883", "address of the MQTT broker; :1883 is open to other hosts")
	fs.StringVar(&cfg.Data, "data", "/var/lib/skerry/manager", "directory of the manager's state")
	core := fs.String("core", "", "nodes that are expected always, separated by commas")
	fs.DurationVar(&cfg.LostAfter, "lost-after", 30*time.Second, "how long a node may be away until its instances are replaced")
	fs.DurationVar(&cfg.TelemetryInterval, "telemetry-interval", 5*time.Second, "how often nodes send telemetry")
	fs.BoolVar(&cfg.Insecure, "insecure", false, "let clients of other hosts command without a name; for a lab only")
	fs.BoolVar(&cfg.AllowLegacy, "allow-legacy-nodes", false, "let EdgeIO's engines register")
	network := fs.String("network", "10.160.0.0/12", "IPv4 addresses of the overlay, of which nodes, instances and services get theirs")
	network6 := fs.String("network6", "fd5c:ae11:9::/48", "IPv6 addresses beside them")
	stun := fs.String("stun", "", "one or two UDP addresses, separated by a comma, at which nodes learn how others see them (default: those of --http and the next port)")
	noOverlay := fs.Bool("no-overlay", false, "have no overlay: containers get their technology's own network")
	fs.StringVar(&cfg.TLSCert, "tls-cert", "", "PEM file with the certificate of this manager and its chain: --http then speaks HTTPS, and --mqtts is served")
	fs.StringVar(&cfg.TLSKey, "tls-key", "", "PEM file with its private key")
	fs.StringVar(&cfg.MQTTS, "mqtts", "", "address of MQTT over TLS (default with --tls-cert: :8883)")
	fs.StringVar(&cfg.Debug, "debug", "", "address of the loopback at which Go's profiles are served; empty: nowhere")
	showVersion := fs.Bool("version", false, "print the version and end")
	if err := fromEnvironment(fs, getenv); err != nil {
		return cfg, false, err
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return cfg, false, err
		}
		return cfg, false, fmt.Errorf("%w: %w", errUsage, err)
	}
	if fs.NArg() > 0 {
		return cfg, false, fmt.Errorf("%w: %q is not a flag; see --help", errUsage, fs.Arg(0))
	}
	for id := range strings.SplitSeq(*core, ",") {
		if id = strings.TrimSpace(id); id != "" {
			cfg.Core = append(cfg.Core, messages.NodeID(id))
		}
	}
	for addr := range strings.SplitSeq(*stun, ",") {
		if addr = strings.TrimSpace(addr); addr != "" {
			cfg.STUN = append(cfg.STUN, addr)
		}
	}
	if *showVersion {
		return cfg, true, nil
	}
	if cfg.TLSCert != "" && cfg.MQTTS == "" {
		cfg.MQTTS = ":8883"
	}
	if !*noOverlay {
		var err4, err6 error
		cfg.Network, err4 = netip.ParsePrefix(*network)
		cfg.Network6, err6 = netip.ParsePrefix(*network6)
		if err := errors.Join(err4, err6); err != nil {
			return cfg, false, fmt.Errorf("%w: --network, --network6: %w", errUsage, err)
		}
	}
	if err := cfg.Validate(); err != nil {
		return cfg, false, fmt.Errorf("%w: %w", errUsage, err)
	}
	return cfg, false, nil
}

// fromEnvironment sets every flag whose variable is set: --lost-after is SKERRY_LOST_AFTER.
func fromEnvironment(fs *flag.FlagSet, getenv func(string) string) error {
	var errs []error
	fs.VisitAll(func(f *flag.Flag) {
		name := "SKERRY_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := getenv(name); v != "" && f.Name != "version" {
			if err := fs.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%w: %s: %w", errUsage, name, err))
			}
		}
	})
	return errors.Join(errs...)
}
