package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
)

// smallDisk mounts a file system that is soon full.
func smallDisk(t *testing.T, at, size string) {
	t.Helper()
	needRoot(t)
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skipf("cannot mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
}

// fill takes all the room that is left.
func fill(t *testing.T, dir string) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	left := 1 << 30 // more than any small disk of these tests has
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; left -= size {
			if left < 0 {
				t.Fatalf("%s is no small disk", dir)
			}
			_, err = f.Write(make([]byte, size))
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// On a full disk a manager refuses what it cannot keep, and goes on; when there is room again it takes commands again.
func TestManagerOnAFullDisk(t *testing.T) {
	l := emptyLab(t)
	smallDisk(t, filepath.Join(l.dir, "manager"), "384k")
	l.startManager()
	l.follow()
	a := l.node("a")
	l.do(deployCommand(app("web", 1, nil)))
	before := l.lives(a)
	release := fill(t, filepath.Join(l.dir, "manager"))
	big := app("big", 1, map[string]string{"TEXT": strings.Repeat("x", 30<<10), "MORE": strings.Repeat("y", 30<<10)})
	var refused messages.Result
	l.eventually("a refusal for want of room", func() bool { // the file may have a free page or two
		big.Environment["N"] += "n"
		refused = l.first(l.send(deployCommand(big)))
		return refused.Phase == messages.Refused
	})
	if refused.Code != messages.Unavailable || refused.Message == "" {
		t.Errorf("got %s %q, want unavailable", refused.Code, refused.Message)
	}
	t.Log(refused.Message)
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after %v", before, after)
	}
	release()
	l.eventually("a command is taken again", func() bool { return l.first(l.send(deployCommand(big))).Phase == messages.Accepted })
	unhurt(t, l.manager)
	l.kill(l.manager)
	l.startManager()
	l.waitJob("big", "is known to the next manager", func(s messages.JobStatus) bool { return s.Spec.Environment["N"] == big.Environment["N"] })
}

// On a full disk an engine goes on with what it has, and stops what it is told to; when there is room again it takes up what it could not.
func TestEngineOnAFullDisk(t *testing.T) {
	l := newLab(t)
	data := filepath.Join(l.dir, "a")
	smallDisk(t, data, "256k")
	a := l.node("a")
	l.do(deployCommand(app("web", 1, nil)))
	before := l.lives(a)
	l.do(deployCommand(app("gone", 1, nil)))
	release := fill(t, data)
	request := l.send(deployCommand(app("late", 1, nil)))
	l.logLine(l.nodes[a], 0, "order not applied")
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "gone"}})
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after %v", before, after)
	}
	release()
	if r := l.last(request); r.Phase != messages.Done {
		t.Errorf("after there was room: %s %s %q", r.Phase, r.Code, r.Message)
	}
	unhurt(t, l.nodes[a])
	l.kill(l.nodes[a])
	l.node("a")
	l.waitJob("late", "is up", func(s messages.JobStatus) bool { return s.State == messages.JobRunning })
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after a crash %v", before, after)
	}
}

// spoilRecords damages records in files that are whole: what is no JSON, what is of another kind or another's, numbers that are too large. Both programs
// start with them, say which they put aside, and all jobs go on.
func (l *lab) spoilRecords(a messages.NodeID) {
	l.t.Helper()
	l.do(deployCommand(app("db", 1, nil)))
	before := l.lives(a)
	l.crashManager()
	l.kill(l.nodes[a])
	db, err := bolt.Open(filepath.Join(l.dir, "manager", "state.db"), 0o600, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		record := func(bucket, key string) []byte { return bytes.Clone(tx.Bucket([]byte(bucket)).Get([]byte(key))) }
		var errs []error
		for _, r := range []struct {
			bucket, key string
			value       []byte
		}{
			{"jobs", "torn", []byte(`{"spec":`)},
			{"jobs", "other", record("jobs", "web")},
			{"jobs", "db", record("nodes", string(a))},
			{"placements", "web.7.0", record("placements", "web.0.0")},
			{"placements", "web.0.1", fmt.Appendf(nil, `{"instance":"web.0.1","job":"web","generation":1,"node":%q,"rev":%d}`, a, uint64(math.MaxUint64))},
			{"nodes", "huge", []byte(`{"id":"huge","epoch":1e400}`)},
			{"interests", string(a), []byte(`["No Name"]`)},
			{"floors", "gone", []byte(`{"generation":-1}`)},
			{"meta", "rev", []byte("99999999999999999999")},
		} {
			errs = append(errs, tx.Bucket([]byte(r.bucket)).Put([]byte(r.key), r.value))
		}
		return errors.Join(errs...)
	})
	if err = errors.Join(err, db.Close()); err != nil {
		l.t.Fatal(err)
	}
	data := filepath.Join(l.dir, "a")
	own, err := os.ReadFile(filepath.Join(data, "instances", "web.0.0"))
	if err != nil {
		l.t.Fatal(err)
	}
	sealed := func(body string) []byte { // the last line is the checksum of the others
		return fmt.Appendf(nil, "%s\ncrc32c %08x\n", body, crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli)))
	}
	for name, content := range map[string][]byte{"instances/other.0.0": own, "instances/web.0.0": sealed(`{"seq_bound":1e30}`), "values/tenure": sealed("[]")} {
		if err := os.WriteFile(filepath.Join(data, name), content, 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	l.startManager()
	l.node("a")
	l.eventually("the node is back", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
	l.do(deployCommand(app("next", 1, nil)))
	l.waitJob("web", "is up", func(s messages.JobStatus) bool { return s.State == messages.JobRunning && s.Healthy == 1 })
	l.waitJob("db", "is found and held", func(s messages.JobStatus) bool { return s.State == messages.JobHeld && s.Healthy == 1 })
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] || after["db.0.0"] != before["db.0.0"] || len(after) != 3 {
		l.t.Errorf("before %v, after %v", before, after)
	}
	l.saysDamaged(l.manager, "damaged record put aside", "err", `jobs "torn"`, `jobs "other"`, `jobs "db"`, `placement "db.0.0"`, `placements "web.7.0"`,
		`placements "web.0.1"`, `nodes "huge"`, `interests "`+string(a)+`"`, `floors "gone"`, `meta "rev"`)
	l.saysDamaged(l.nodes[a], "damaged file put aside", "file", data+"/instances/other.0.0", data+"/instances/web.0.0", data+"/values/tenure")
	for _, p := range []*process{l.manager, l.nodes[a]} {
		unhurt(l.t, p)
	}
}

// saysDamaged checks that a program has put these aside and nothing else.
func (l *lab) saysDamaged(p *process, msg, key string, want ...string) {
	l.t.Helper()
	text, err := os.ReadFile(p.log)
	if err != nil {
		l.t.Error(err)
	}
	var got []string
	for line := range bytes.Lines(text) {
		var e map[string]any
		if json.Unmarshal(line, &e) == nil && e["msg"] == msg {
			got = append(got, fmt.Sprint(e[key]))
		}
	}
	slices.Sort(got)
	got = slices.Compact(got) // web.0.0 was put aside before, too
	slices.Sort(want)
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		l.t.Errorf("put aside:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A damaged file is put aside, and said; the program runs, and its workloads with it.
func TestDamagedFiles(t *testing.T) {
	l := newLab(t)
	a := l.node("a")
	l.do(deployCommand(app("web", 1, nil)))
	before := l.lives(a)
	spoilFile := func(path string) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.Repeat([]byte{0xa5}, len(content)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.end(l.nodes[a])
	spoilFile(filepath.Join(l.dir, "a", "instances", "web.0.0"))
	l.node("a")
	l.logLine(l.nodes[a], 0, "damaged file put aside")
	if _, err := os.Stat(filepath.Join(l.dir, "a", "damaged", "web.0.0")); err != nil {
		t.Error(err)
	}
	l.waitJob("web", "is up", func(s messages.JobStatus) bool { return s.State == messages.JobRunning && s.Healthy == 1 })
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after the engine's record was damaged %v", before, after)
	}
	l.eventually("the engine has its record again", func() bool { // or nobody knows of web any more
		_, err := os.Stat(filepath.Join(l.dir, "a", "instances", "web.0.0"))
		return err == nil
	})
	l.spoilRecords(a)
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after single records were damaged %v", before, after)
	}
	l.crashManager()
	spoilFile(filepath.Join(l.dir, "manager", "state.db"))
	l.startManager()
	l.logLine(l.manager, 0, "state file damaged, put aside; starting with none")
	if aside, _ := filepath.Glob(filepath.Join(l.dir, "manager", "state.db.damaged-*")); len(aside) != 1 {
		t.Errorf("put aside: %v", aside)
	}
	l.eventually("the node is back", func() bool { s, _ := l.nodeStatus(a); return s.State == messages.NodeOnline })
	l.waitJob("web", "is found and held", func(s messages.JobStatus) bool { return s.State == messages.JobHeld && s.Healthy == 1 })
	l.do(deployCommand(app("next", 1, nil)))
	l.do(deployCommand(app("web", 1, nil))) // takes it over
	l.waitJob("web", "is up", func(s messages.JobStatus) bool { return s.State == messages.JobRunning && s.Reason == "" })
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("before %v, after the manager's state was damaged %v", before, after)
	}
}
