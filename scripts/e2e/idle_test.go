package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

// quiet is how long nothing may be written: 30 s, or ten minutes where SKERRY_TEST_LONG is set, as it is in CI.
func quiet() time.Duration {
	if os.Getenv("SKERRY_TEST_LONG") != "" {
		return 10 * time.Minute
	}
	return 30 * time.Second
}

// writes is what a program has written: bytes on their way to a disk, and when each of its files was changed.
type writes struct {
	bytes string
	files map[string]time.Time
}

// written reads what a program has written so far; its log counts among the bytes.
func written(t *testing.T, p *process, data string) writes {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	w := writes{files: map[string]time.Time{}}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			w.bytes = strings.TrimSpace(n)
		}
	}
	err = filepath.Walk(data, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			w.files[path] = info.ModTime()
		}
		return err
	})
	if err != nil || w.bytes == "" || len(w.files) < 2 {
		t.Fatalf("%v, %q, %d files in %s", err, w.bytes, len(w.files), data)
	}
	return w
}

func (w writes) equal(o writes) bool { return w.bytes == o.bytes && maps.Equal(w.files, o.files) }

// A cluster in which nothing happens writes nothing to any disk, and says nothing in its logs: flash cards wear out. Its job has a
// health check, its node is part of the network and sends telemetry, and a client looks on all the while.
func TestIdleProgramsWriteNothing(t *testing.T) {
	t.Parallel()
	l := emptyHosts(t, "a")
	l.flags = append(l.flags, "--telemetry-interval", "500ms")
	l.startManager()
	l.follow()
	a := l.networkNode("a")
	// Without a request id: one that is forgotten after ten minutes is a change on disk.
	web := app("web", 1, nil)
	web.Health.Timeout, web.Health.Retries = messages.Duration(10*time.Second), 10 // whatever else the machine does meanwhile
	token := l.client.Publish("control/deploy", 1, false, messages.Encode(deployCommand(web)))
	if token.Wait(); token.Error() != nil {
		t.Fatal(token.Error())
	}
	l.waitJob("web", "is up", func(s messages.JobStatus) bool { return s.State == messages.JobRunning })
	type program struct {
		*process
		data string
	}
	programs := map[string]program{"manager": {l.manager, filepath.Join(l.dir, "manager")}, "engine": {l.nodes[a], filepath.Join(l.dir, "a")}}
	look := func() map[string]writes {
		all := map[string]writes{}
		for name, p := range programs {
			all[name] = written(t, p.process, p.data)
		}
		return all
	}
	settled, since := look(), time.Now()
	l.eventually("three seconds without a write", func() bool {
		if now := look(); !maps.EqualFunc(now, settled, writes.equal) {
			settled, since = now, time.Now()
		}
		return time.Since(since) > 3*time.Second
	})
	<-time.After(quiet()) // what is tested is that nothing happens
	for name, now := range look() {
		was := settled[name]
		if now.bytes != was.bytes {
			t.Errorf("the idle %s wrote: %s bytes before, %s after %s", name, was.bytes, now.bytes, quiet())
		}
		for path, at := range now.files {
			if !was.files[path].Equal(at) {
				t.Errorf("the idle %s changed %s", name, path)
			}
		}
		if len(now.files) != len(was.files) {
			t.Errorf("the idle %s has %d files, had %d", name, len(now.files), len(was.files))
		}
	}
	// That the figures can change at all: a deploy changes them.
	l.do(deployCommand(app("web", 1, map[string]string{"MODE": "new"})))
	for name, now := range look() {
		if now.equal(settled[name]) {
			t.Errorf("the %s has taken up a change without writing: %s bytes", name, now.bytes)
		}
	}
}
