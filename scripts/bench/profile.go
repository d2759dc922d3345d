package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// profileSpan is how long a processor profile is taken.
const profileSpan = 10 * time.Second

// profile takes a profile of a daemon where the command line asks for profiles: its processor time over profileSpan, or what is in its heap.
// The profile and its flame graph are left in the folder; kind is "profile" or "heap".
func (b *bench) profile(ctx context.Context, d *daemon, kind, name string) error {
	if b.profiles == "" {
		return nil
	}
	line, err := d.line(ctx, "profiles are served")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%v/debug/pprof/%s?seconds=%d", line["addr"], kind, int(profileSpan.Seconds()))
	index := "cpu"
	if kind == "heap" {
		url, index = fmt.Sprintf("http://%v/debug/pprof/heap?gc=1", line["addr"]), "inuse_space"
		// What the runtime holds beside the heap: stacks, spans, what it has not given back.
		if _, err := b.fetch(ctx, fmt.Sprintf("http://%v/debug/pprof/heap?debug=1", line["addr"]), name+".txt"); err != nil {
			return err
		}
	}
	path, err := b.fetch(ctx, url, name+".pb.gz")
	if err != nil {
		return err
	}
	raw, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-raw", "-sample_index="+index, path).Output()
	if err != nil {
		return fmt.Errorf("go tool pprof: %w", err)
	}
	graph, err := flameGraph(name, raw)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.log, "   %s and its flame graph are in %s\n", name, b.profiles)
	return os.WriteFile(filepath.Join(b.profiles, name+".svg"), graph, 0o600)
}

// fetch writes what is at url into a file of the folder of profiles.
func (b *bench) fetch(ctx context.Context, url, name string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err != nil {
		return "", fmt.Errorf("profile %s: %w", name, err)
	}
	path := filepath.Join(b.profiles, name)
	return path, os.WriteFile(path, body, 0o600)
}

// frame is a function in a flame graph, with the sum of the samples that went through it by this way.
type frame struct {
	name     string
	value    int64
	children []*frame
}

func (f *frame) child(name string) *frame {
	for _, c := range f.children {
		if c.name == name {
			return c
		}
	}
	c := &frame{name: name}
	f.children = append(f.children, c)
	return c
}

// stackSample is one stack, the innermost location first, with its value of the last kind that the profile holds.
type stackSample struct {
	value     int64
	locations []string
}

// flameGraph renders what `go tool pprof -raw` prints.
func flameGraph(title string, raw []byte) ([]byte, error) {
	samples, functions := readRaw(raw)
	root := &frame{name: title}
	for _, s := range samples {
		root.value += s.value
		at := root
		for _, location := range slices.Backward(s.locations) {
			for _, name := range slices.Backward(functions[location]) { // several where functions were inlined, innermost first
				at = at.child(name)
				at.value += s.value
			}
		}
	}
	if root.value == 0 {
		return nil, fmt.Errorf("%s: no samples", title)
	}
	return drawFlames(root), nil
}

func readRaw(raw []byte) ([]stackSample, map[string][]string) {
	var samples []stackSample
	functions := map[string][]string{}
	section, location := "", ""
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		text := lines.Text()
		fields := strings.Fields(text)
		switch {
		case text == "Samples:" || text == "Locations" || text == "Mappings":
			section = text
		case section == "Samples:":
			if s, ok := readSample(text); ok {
				samples = append(samples, s)
			}
		case section == "Locations" && len(fields) > 3 && strings.HasSuffix(fields[0], ":"):
			location = strings.TrimSuffix(fields[0], ":")
			functions[location] = append(functions[location], fields[3])
		case section == "Locations" && len(fields) > 1 && location != "":
			functions[location] = append(functions[location], fields[0])
		}
	}
	return samples, functions
}

// readSample reads a line such as "1 10000000: 4 7 9"; others tell of labels.
func readSample(text string) (stackSample, bool) {
	values, stack, ok := strings.Cut(text, ":")
	fields := strings.Fields(values)
	if !ok || len(fields) == 0 {
		return stackSample{}, false
	}
	var s stackSample
	for _, f := range fields {
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return stackSample{}, false
		}
		s.value = v
	}
	s.locations = strings.Fields(stack)
	return s, len(s.locations) > 0
}
