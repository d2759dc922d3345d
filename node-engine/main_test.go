package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	neturl "net/url"
	"strings"
	"testing"
)

func parseWith(t *testing.T, env map[string]string, args ...string) (options, string, error) {
	t.Helper()
	var out bytes.Buffer
	opts, err := parse(args, func(k string) string { return env[k] }, &out)
	return opts, out.String(), err
}

func TestFlagsOverTheEnvironment(t *testing.T) {
	env := map[string]string{"SKERRY_MANAGER": "http://env:1", "SKERRY_NAME": "from-env", "SKERRY_DATA": "/env", "SKERRY_TOKEN": "s3",
		"SKERRY_LABEL": "site=cellar, floor=1", "SKERRY_DOCKER_HOST": "unix:///env.sock", "SKERRY_LOG_LEVEL": "debug"}
	opts, out, err := parseWith(t, env, "--name", "from-flag", "--label", "site=roof", "--label", "x=a=b")
	if err != nil {
		t.Fatalf("got %v: %s", err, out)
	}
	if opts.Manager != "http://env:1" || opts.Name != "from-flag" || opts.Data != "/env" || opts.Token != "s3" ||
		opts.DockerHost != "unix:///env.sock" || opts.level != slog.LevelDebug {
		t.Errorf("got %+v", opts)
	}
	if l := opts.Labels; len(l) != 3 || l["site"] != "roof" || l["floor"] != "1" || l["x"] != "a=b" {
		t.Errorf("labels: got %v", l)
	}
	if opts.Version == "" {
		t.Error("no version")
	}
}

func TestWrongUsage(t *testing.T) {
	for name, args := range map[string][]string{
		"no manager":   {},
		"unknown flag": {"--manager", "http://m", "--nope"},
		"argument":     {"--manager", "http://m", "extra"},
		"bad label":    {"--manager", "http://m", "--label", "x"},
		"bad level":    {"--manager", "http://m", "--log-level", "loud"},
		"bad name":     {"--manager", "http://m", "--name", "A B"},
	} {
		_, out, err := parseWith(t, map[string]string{"HOME": "/h"}, args...)
		if !errors.Is(err, errUsage) || out == "" {
			t.Errorf("%s: got %v and %q, want a usage error that was printed", name, err, out)
		}
	}
	if _, out, err := parseWith(t, map[string]string{"SKERRY_LABEL": "x"}, "--manager", "http://m"); !errors.Is(err, errUsage) {
		t.Errorf("bad label in the environment: got %v and %q", err, out)
	}
	if _, out, err := parseWith(t, nil, "-h"); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out, "SKERRY_DATA") {
		t.Errorf("help: got %v and %q", err, out)
	}
}

func TestRunEndsWithItsContextAndLogsJSON(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, log bytes.Buffer
	args := []string{"--manager", "http://127.0.0.1:1", "--data", t.TempDir(), "--name", "n1", "--docker-host", "unix:///nowhere.sock"}
	if err := run(ctx, args, &out, &log); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if !strings.HasPrefix(log.String(), "{") || out.Len() != 0 {
		t.Errorf("log %q, output %q", &log, &out)
	}
	log.Reset()
	if err := run(ctx, []string{"--version"}, &out, &log); err != nil || !strings.HasPrefix(out.String(), "node-engine ") {
		t.Errorf("version: got %v and %q", err, &out)
	}
	if err := run(ctx, []string{"--manager", "http://m", "--data", "/proc/nothing"}, &out, &log); err == nil || errors.Is(err, errUsage) {
		t.Errorf("no place for data: got %v, want an error", err)
	}
}

// FuzzParse holds for an environment of any content: it is refused with a word on what is wrong, or what it says is a configuration that an engine takes.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, url, label, port, reserve string) {
		env := map[string]string{"SKERRY_MANAGER": url, "SKERRY_LABEL": label, "SKERRY_OVERLAY_PORT": port, "SKERRY_IMAGE_RESERVE": reserve, "SKERRY_DATA": "x"}
		var said strings.Builder
		opts, err := parse(nil, func(k string) string { return env[k] }, &said)
		if err != nil {
			if !errors.Is(err, errUsage) || !strings.Contains(said.String(), "node-engine:") {
				t.Errorf("%v: %q", err, said.String())
			}
			return
		}
		if err := opts.Validate(); err != nil || said.Len() > 0 || len(opts.Labels) > 1+strings.Count(label, ",") {
			t.Errorf("taken: %v, %v, %q", opts.Labels, err, said.String())
		}
		if u, err := neturl.Parse(opts.Manager); err != nil || u.Hostname() == "" {
			t.Errorf("the manager is %q", opts.Manager)
		}
	})
}
