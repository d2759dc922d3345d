package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.internal/cluster-manager/manager"
	"skerry.internal/messages"
)

// asProgram makes the test binary be the program, so that signals and exit codes can be seen.
const asProgram = "CLUSTER_MANAGER_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func noEnvironment(string) string { return "" }

func TestFlagsAndVariables(t *testing.T) {
	defaults := manager.Config{Cluster: "lab", HTTP: ":10100", MQTT: "127.0.0.1:1883", Data: "/var/lib/skerry/manager", LostAfter: 30 * time.Second,
		TelemetryInterval: 5 * time.Second, Version: version, Network: netip.MustParsePrefix("10.160.0.0/12"), Network6: netip.MustParsePrefix("fd5c:ae11:9::/48")}
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		want func(*manager.Config)
	}{
		{"defaults", nil, nil, func(*manager.Config) {}},
		{"flags", []string{"--cluster", "roof", "--http", ":1", "--mqtt", ":2", "--data", "d", "--core", "a, b,,c", "--lost-after", "1m", "--telemetry-interval", "1s", "--insecure", "--allow-legacy-nodes",
			"--network", "192.168.0.0/16", "--network6", "fd00::/64"},
			nil, func(c *manager.Config) {
				*c = manager.Config{Cluster: "roof", HTTP: ":1", MQTT: ":2", Data: "d", Core: []messages.NodeID{"a", "b", "c"}, LostAfter: time.Minute,
					TelemetryInterval: time.Second, Insecure: true, AllowLegacy: true, Version: version, Network: netip.MustParsePrefix("192.168.0.0/16"), Network6: netip.MustParsePrefix("fd00::/64")}
			}},
		{"variables", nil, map[string]string{"SKERRY_CLUSTER": "roof", "SKERRY_LOST_AFTER": "1m", "SKERRY_INSECURE": "true", "SKERRY_CORE": "a", "SKERRY_ALLOW_LEGACY_NODES": "1", "SKERRY_VERSION": "true"},
			func(c *manager.Config) {
				c.Cluster, c.LostAfter, c.Insecure, c.Core, c.AllowLegacy = "roof", time.Minute, true, []messages.NodeID{"a"}, true
			}},
		{"no overlay", []string{"--no-overlay", "--network", "no matter"}, nil, func(c *manager.Config) { c.Network, c.Network6 = netip.Prefix{}, netip.Prefix{} }},
		{"TLS", []string{"--tls-cert", "c", "--tls-key", "k"}, nil, func(c *manager.Config) { c.TLSCert, c.TLSKey, c.MQTTS = "c", "k", ":8883" }},
		{"TLS by variables", nil, map[string]string{"SKERRY_TLS_CERT": "c", "SKERRY_TLS_KEY": "k", "SKERRY_MQTTS": ":1"},
			func(c *manager.Config) { c.TLSCert, c.TLSKey, c.MQTTS = "c", "k", ":1" }},
		{"a flag wins", []string{"--cluster", "cellar"}, map[string]string{"SKERRY_CLUSTER": "roof"}, func(c *manager.Config) { c.Cluster = "cellar" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, show, err := parse(c.args, func(k string) string { return c.env[k] }, io.Discard)
			want := defaults
			c.want(&want)
			if err != nil || show || !slices.Equal(got.Core, want.Core) {
				t.Fatalf("got %+v %v %v, want %+v", got, show, err, want)
			}
			got.Core, want.Core = nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestWrongUsage(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		says string
	}{
		"flag":     {[]string{"--nonsense"}, nil, "nonsense"},
		"value":    {[]string{"--lost-after", "soon"}, nil, "lost-after"},
		"argument": {[]string{"start"}, nil, "start"},
		"network":  {[]string{"--network", "10.0.0.0"}, nil, "--network"},
		"no key":   {[]string{"--tls-cert", "c"}, nil, "--tls-key: want both"},
		"no cert":  {[]string{"--tls-key", "k"}, nil, "--tls-cert"},
		"no TLS":   {[]string{"--mqtts", ":8883"}, nil, "--mqtts: needs --tls-cert and --tls-key"},
		"variable": {nil, map[string]string{"SKERRY_LOST_AFTER": "soon"}, "SKERRY_LOST_AFTER"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), c.args, func(k string) string { return c.env[k] }, io.Discard)
			if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a usage error that names %s", err, c.says)
			}
		})
	}
	if err := run(t.Context(), []string{"--help"}, noEnvironment, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, noEnvironment, &out); err != nil || out.String() != "cluster-manager "+version+"\n" {
		t.Errorf("version: %q %v", out.String(), err)
	}
	if err := run(t.Context(), []string{"--cluster", "Not A Name"}, noEnvironment, io.Discard); err == nil || !strings.Contains(err.Error(), "--cluster") {
		t.Errorf("bad configuration: %v", err)
	}
}

// program is the program as a process.
type program struct {
	*exec.Cmd
	t    *testing.T
	http string
	mqtt string
}

// start runs the program on free ports and waits until it says that it listens.
func start(t *testing.T, dir string, args ...string) *program {
	t.Helper()
	p := &program{t: t, Cmd: exec.Command(os.Args[0], append([]string{"--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--data", dir}, args...)...)}
	p.Env = append(os.Environ(), asProgram+"=1")
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		var line struct{ Msg, HTTP, MQTT string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "listening" {
			p.http, p.mqtt = line.HTTP, line.MQTT
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return p
		}
	}
	t.Fatal("it never listened")
	return nil
}

// A signal ends the program with code 0, and it can be started again on the same directory at once; so it can after a kill.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt, os.Kill} {
		p := start(t, dir)
		for _, addr := range []string{p.http, p.mqtt} {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close() // still open when the signal comes
		}
		if err := p.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		err := p.Wait()
		if s != os.Kill && err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for args, want := range map[string]int{"--help": 0, "--version": 0, "--nonsense": 2, "--cluster=Not_A_Name": 2, "--mqtt=nonsense": 2} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], args)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s: exit code %d, want %d: %s", args, got, want, out)
		}
	}
}

// FuzzParse holds for flags of any content: they are refused as such, or make a configuration that a manager takes.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, core, network, network6, stun, lost string) {
		args := []string{"--core", core, "--network", network, "--network6", network6, "--stun", stun}
		cfg, show, err := parse(args, func(k string) string { return map[string]string{"SKERRY_LOST_AFTER": lost}[k] }, io.Discard)
		if err != nil {
			if !errors.Is(err, errUsage) {
				t.Errorf("%v is no usage", err)
			}
			return
		}
		if err := cfg.Validate(); show || err != nil {
			t.Errorf("taken, and then: %v", err)
		}
		if !cfg.Network.Addr().Is4() || cfg.Network != cfg.Network.Masked() || cfg.LostAfter <= 0 {
			t.Errorf("got %s, %s", cfg.Network, cfg.LostAfter)
		}
	})
}
