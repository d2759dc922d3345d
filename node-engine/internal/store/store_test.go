package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/store"
)

func open(t *testing.T, dir string) (*store.Store, *bytes.Buffer) {
	t.Helper()
	var logged bytes.Buffer
	s, err := store.Open(dir, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, &logged
}

func record(id messages.InstanceID, rev uint64) store.Record {
	job, _, generation, err := id.Split()
	if err != nil {
		panic(err)
	}
	code := 3
	return store.Record{
		Assignment: messages.Assignment{Instance: id, Rev: rev, Epoch: 1, Run: true, Spec: &messages.Spec{Image: "a", Technology: "docker"}},
		Status: messages.InstanceStatus{Instance: id, Job: job, Generation: generation, Rev: rev, Seq: 7, State: messages.Running,
			ExitCode: &code, At: messages.At(time.Now())},
		SeqBound: 64, Failures: 2, BootID: "b1",
	}
}

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	want := []store.Record{record("api.0.0", 4), record("web.1.2", 9)}
	for _, r := range want {
		if err := s.Save(record(r.Assignment.Instance, 1)); err != nil { // replaced by the next
			t.Fatal(err)
		}
		if err := s.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Save(record("gone.0.0", 1)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is no error
		if err := s.Delete("gone.0.0"); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s, _ = open(t, dir)
	got, damaged, err := s.Load()
	if err != nil || len(damaged) != 0 {
		t.Fatalf("got damaged %v, err %v", damaged, err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b messages.Time) bool { return a.Equal(b.Time) })); d != "" {
		t.Errorf("want -, got +:\n%s", d)
	}
}

func TestDamagedRecordsArePutAside(t *testing.T) {
	valid := func(t *testing.T, dir string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, "instances", "good.0.0"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	cases := map[string]func(t *testing.T, dir, path string) error{
		"empty":           func(_ *testing.T, _, path string) error { return os.WriteFile(path, nil, 0o600) },
		"text":            func(_ *testing.T, _, path string) error { return os.WriteFile(path, []byte("no record at all"), 0o600) },
		"zeroes":          func(_ *testing.T, _, path string) error { return os.WriteFile(path, make([]byte, 4096), 0o600) },
		"other instance":  func(t *testing.T, dir, path string) error { return os.WriteFile(path, valid(t, dir), 0o600) },
		"a folder":        func(_ *testing.T, _, path string) error { return os.Mkdir(path, 0o700) },
		"a pipe":          func(_ *testing.T, _, path string) error { return syscall.Mkfifo(path, 0o600) },
		"a dangling link": func(_ *testing.T, _, path string) error { return os.Symlink("nowhere", path) },
		"cut": func(t *testing.T, dir, path string) error {
			b := valid(t, dir)
			return os.WriteFile(path, b[:len(b)/2], 0o600)
		},
		"one bit": func(t *testing.T, dir, path string) error {
			b := bytes.ReplaceAll(valid(t, dir), []byte("good.0.0"), []byte("hurt.0.0"))
			b[bytes.IndexByte(b, ':')+20] ^= 1
			return os.WriteFile(path, b, 0o600)
		},
		"huge": func(_ *testing.T, _, path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(path, 1<<40)
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, logged := open(t, dir)
			if err := s.Save(record("good.0.0", 1)); err != nil {
				t.Fatal(err)
			}
			if err := spoil(t, dir, filepath.Join(dir, "instances", "hurt.0.0")); err != nil {
				t.Fatal(err)
			}
			got, damaged, err := s.Load()
			if err != nil || len(got) != 1 || got[0].Assignment.Instance != "good.0.0" {
				t.Errorf("got %d records, err %v, want the good one", len(got), err)
			}
			if len(damaged) != 1 || damaged[0] != "hurt.0.0" {
				t.Errorf("got damaged %v, want hurt.0.0", damaged)
			}
			if _, err := os.Lstat(filepath.Join(dir, "damaged", "hurt.0.0")); err != nil {
				t.Errorf("not put aside: %v", err)
			}
			if !strings.Contains(logged.String(), "level=WARN") {
				t.Errorf("got log %q, want a warning", logged)
			}
			if _, damaged, _ := s.Load(); len(damaged) != 0 {
				t.Errorf("still in its place: %v", damaged)
			}
		})
	}
}

func TestForeignNamesAreRefused(t *testing.T) {
	s, _ := open(t, t.TempDir())
	if err := s.Save(store.Record{Assignment: messages.Assignment{Instance: "../../etc/passwd"}}); err == nil {
		t.Error("saved a record outside its folder")
	}
	if err := s.Delete("../lock"); err == nil {
		t.Error("deleted a file outside its folder")
	}
	if err := s.Put("../lock", 1); err == nil {
		t.Error("put a value outside its folder")
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if err := s.Save(record("web.0.0", 1)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	left := filepath.Join(dir, "instances", ".tmp-web.0.0-123")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, logged := open(t, dir)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("leftover is still there: %v", err)
	}
	if got, _, err := s.Load(); err != nil || len(got) != 1 || logged.Len() > 0 {
		t.Errorf("got %d records, err %v, log %q", len(got), err, logged)
	}
}

func TestSecondStoreIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	_, err := store.Open(dir, slog.New(slog.DiscardHandler))
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want ErrLocked with the directory", err)
	}
	s.Close()
	again, err := store.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	again.Close()
}

func TestSecondProcessIsRefused(t *testing.T) {
	if dir := os.Getenv("STORE_TEST_DIR"); dir != "" {
		_, err := store.Open(dir, slog.New(slog.DiscardHandler))
		if errors.Is(err, store.ErrLocked) {
			os.Exit(42)
		}
		os.Exit(0)
	}
	dir := t.TempDir()
	open(t, dir)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSecondProcessIsRefused$")
	cmd.Env = append(os.Environ(), "STORE_TEST_DIR="+dir)
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 42 {
		t.Errorf("got %v, want the other process refused", err)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	s, logged := open(t, dir)
	first, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "key")
	if err := os.Chmod(path, 0o644); err != nil { // as a careless copy would
		t.Fatal(err)
	}
	s.Close()
	s, _ = open(t, dir)
	second, err := s.Identity()
	if err != nil || !first.Equal(second) {
		t.Errorf("got another key or %v after a restart", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, err %v, want 0600", info.Mode(), err)
	}
	if logged.Len() > 0 {
		t.Errorf("got log %q, want none", logged)
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	none := files
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err = s.Identity()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("a key that cannot be opened now: got %v, want %v", err, syscall.EMFILE)
	}
	if again, err := s.Identity(); err != nil || !again.Equal(first) {
		t.Errorf("got another key or %v once it can be opened", err)
	}
	if err := os.WriteFile(path, []byte("spoiled"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s, logged = open(t, dir)
	third, err := s.Identity()
	if err != nil || third.Equal(first) || !strings.Contains(logged.String(), "level=WARN") {
		t.Errorf("got err %v, log %q, want a new key and a warning", err, logged)
	}
}

func TestValues(t *testing.T) {
	type tenure struct{ Epoch uint64 }
	dir := t.TempDir()
	s, logged := open(t, dir)
	var got tenure
	if ok, err := s.Get("tenure", &got); ok || err != nil {
		t.Errorf("got %v, %v from an empty store", ok, err)
	}
	for epoch := range uint64(3) {
		if err := s.Put("tenure", tenure{epoch}); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := s.Get("tenure", &got); !ok || err != nil || got.Epoch != 2 {
		t.Errorf("got %v, %v, %v", got, ok, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "values", "tenure"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.Get("tenure", &got); ok || err != nil || !strings.Contains(logged.String(), "level=WARN") {
		t.Errorf("got %v, %v, log %q from a damaged value", ok, err, logged)
	}
	// What cannot be put aside is not said to be, and what cannot be reached is not damaged.
	values := filepath.Join(dir, "values")
	err := errors.Join(os.WriteFile(filepath.Join(values, "tenure"), []byte("{}"), 0o600), os.RemoveAll(filepath.Join(dir, "damaged")),
		os.WriteFile(filepath.Join(dir, "damaged"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	logged.Reset()
	if ok, err := s.Get("tenure", &got); ok || err != nil || !strings.Contains(logged.String(), "stays in its place") || strings.Contains(logged.String(), "put aside") {
		t.Errorf("got %v, %v, log %q from a damaged value that cannot be moved", ok, err, logged)
	}
	if err := errors.Join(os.RemoveAll(values), os.Symlink(values, values)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("tenure", &got); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("got %v from a folder that cannot be entered", err)
	}
}

// A process that has used up its open files has not read anything damaged.
func TestNoFileLeftToOpen(t *testing.T) {
	s, logged := open(t, t.TempDir())
	if err := s.Put("tenure", 1); err != nil {
		t.Fatal(err)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 0 // those that are open stay open
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	var v int
	_, err := s.Get("tenure", &v)
	_, _, loadErr := s.Load()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EMFILE) || !errors.Is(loadErr, syscall.EMFILE) {
		t.Errorf("got %v and %v, want both to say that there are too many open files", err, loadErr)
	}
	if ok, err := s.Get("tenure", &v); !ok || err != nil || v != 1 {
		t.Errorf("afterwards: got %d, %v, %v, log %q", v, ok, err, logged)
	}
}

func TestReadingWritesNothing(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	if _, err := s.Identity(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Save(record("web.0.0", 1)), s.Put("tenure", 1)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	before := stamps(t, dir)
	s, _ = open(t, dir)
	var v int
	s.Load()
	s.Get("tenure", &v)
	s.Identity()
	s.Close()
	if d := cmp.Diff(before, stamps(t, dir)); d != "" {
		t.Errorf("written to:\n%s", d)
	}
}

// stamps returns when each file and folder below dir was last written.
func stamps(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			all[path] = info.ModTime().UnixNano()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// FuzzLoad feeds files of any content: a record is read whole or put aside, and nothing panics.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"assignment":{"instance":"web.0.0"}}`+"\ncrc32c 00000000\n"), false)
	f.Add([]byte("\ncrc32c 00000000\n"), false)
	for _, body := range []string{`{"assignment":{"instance":"web.0.0"}}`, `{"assignment":{"instance":"other.0.0","rev":1}}`, `{"assignment":{"instance":"web.0.0","rev":3,"epoch":1,"run":true,"spec":{"image":"x"}},"attempt":-1}`, "null", "{}", "7"} {
		f.Add([]byte(body), true)
	}
	f.Add(messages.Encode(record("web.0.0", 1)), true)
	f.Fuzz(func(t *testing.T, content []byte, whole bool) {
		if whole {
			content = sealed(content)
		}
		dir := t.TempDir()
		s, _ := open(t, dir)
		for _, name := range []string{"instances/web.0.0", "values/overlay-config"} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, damaged, err := s.Load()
		if err != nil || len(got)+len(damaged) != 1 {
			t.Errorf("got %d records, %d damaged, err %v", len(got), len(damaged), err)
		}
		for _, r := range got {
			if err := s.Save(r); err != nil {
				t.Errorf("what was read cannot be written: %v", err)
			}
			if again, _, err := s.Load(); err != nil || len(again) != 1 || string(messages.Encode(again[0])) != string(messages.Encode(r)) {
				t.Errorf("read again: %+v, %v, want %+v", again, err, r)
			}
		}
		var config messages.NetworkConfig
		if _, err := s.Get("overlay-config", &config); err != nil {
			t.Error(err)
		}
	})
}

// sealed is content as a file of the store.
func sealed(content []byte) []byte {
	return fmt.Appendf(nil, "%s\ncrc32c %08x\n", content, crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli)))
}

func BenchmarkSave(b *testing.B) {
	s, err := store.Open(b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := record("web.0.0", 1)
	for b.Loop() {
		if err := s.Save(r); err != nil {
			b.Fatal(err)
		}
	}
}
