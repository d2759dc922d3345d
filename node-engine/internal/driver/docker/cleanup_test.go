package docker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"

	"skerry.internal/messages"
)

func TestParseReserve(t *testing.T) {
	for text, want := range map[string]int64{"10%": 1000, "0": 0, "0%": 0, "500MiB": 500 << 20, "2GiB": 2 << 30, "90%": 9000} {
		r, err := ParseReserve(text)
		if got := r.of(10_000); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
		if again, err := ParseReserve(r.String()); err != nil || again != r {
			t.Errorf("%s: written as %s, which is read as %+v, %v", text, r, again, err)
		}
	}
	for _, text := range []string{"", "10", "-1%", "91%", "x%", "5 GiB", "1.5GiB", "9999999999GiB", "GiB", "%", "-2MiB"} {
		if r, err := ParseReserve(text); err == nil || !strings.Contains(err.Error(), "2GiB") {
			t.Errorf("%q: got %+v, %v", text, r, err)
		}
	}
}

// warehouse is a driver on a disk that is full of images of 20 MiB each, whatever they really take.
type warehouse struct {
	puller
	refs  []string // all images of the test
	total int64
}

const imageSize = 20 << 20

func newWarehouse(t *testing.T, file string) *warehouse {
	w := &warehouse{puller: newPuller(t, Config{MinFree: 1 << 20, Reserve: Reserve{bytes: 30 << 20}, Pulled: file}), total: 120 << 20}
	w.use(w.Driver)
	return w
}

// use makes d see the disk of the test.
func (w *warehouse) use(d *Driver) {
	w.Driver = d
	d.cleaner.idle = 0
	d.cleaner.disk = func(string) (free, total int64, ok bool) {
		free = w.total
		for _, ref := range w.refs {
			if w.has(ref) {
				free -= imageSize
			}
		}
		return free, w.total, true
	}
}

func (w *warehouse) push(t *testing.T, s *shop, name string) string {
	t.Helper()
	ref := s.push(t, name, testImage(t, 1<<10, w.cfg.Arch, ""))
	w.refs = append(w.refs, ref)
	cleanImage(t, w.cli, ref)
	return ref
}

func (w *warehouse) bring(t *testing.T, ref string) {
	t.Helper()
	if err := w.prepare(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
}

func (w *warehouse) here() []string {
	var all []string
	for _, ref := range w.refs {
		if w.has(ref) {
			_, name, _ := strings.Cut(strings.TrimSuffix(ref, ":1"), "/")
			all = append(all, name)
		}
	}
	return all
}

func (w *warehouse) want(t *testing.T, what string, names ...string) {
	t.Helper()
	if got := w.here(); !slices.Equal(got, names) {
		t.Fatalf("%s: the images %v are there, want %v", what, got, names)
	}
}

// Before a pull that would not fit, and when the disk falls below the reserve, images go that were pulled here and that nobody uses: the one
// used longest ago first, no more than is needed, and never one that a container uses or that is somebody else's. A new driver goes on.
func TestImagesAreRemovedToKeepTheReserve(t *testing.T) {
	file := filepath.Join(t.TempDir(), "images.json")
	w, s := newWarehouse(t, file), newShop(t)
	used, named, old, young, theirs := w.push(t, s, "used"), w.push(t, s, "named"), w.push(t, s, "old"), w.push(t, s, "young"), w.push(t, s, "theirs")
	w.total = 1 << 40
	for _, ref := range []string{used, named, old, young} {
		w.bring(t, ref)
	}
	out, err := w.cli.ImagePull(t.Context(), theirs, image.PullOptions{})
	if err == nil {
		_, err = io.Copy(io.Discard, out)
	}
	if err != nil {
		t.Fatal(err)
	}
	box, err := w.cli.ContainerCreate(t.Context(), &container.Config{Image: used, Cmd: []string{"x"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.cli.ContainerRemove(context.Background(), box.ID, container.RemoveOptions{Force: true}) })
	if err := w.cli.ImageTag(t.Context(), named, s.host+"/mine:1"); err != nil {
		t.Fatal(err)
	}
	cleanImage(t, w.cli, s.host+"/mine:1")
	w.bring(t, young) // it was used last

	w.total = 120 << 20 // 20 MiB are free, 30 shall be
	more := w.push(t, s, "more")
	w.bring(t, more)
	w.want(t, "after a pull", "used", "named", "young", "theirs", "more")

	w.Close()
	cfg := w.cfg
	w.use(newDriver(t, cfg))
	if err := w.makeRoom(t.Context(), w.cli, 1<<40); err != nil {
		t.Fatal(err)
	}
	w.want(t, "when everything shall go", "used", "named", "theirs")
	if err := w.cli.ContainerRemove(t.Context(), box.ID, container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := w.makeRoom(t.Context(), w.cli, 1<<40); err != nil {
		t.Fatal(err)
	}
	w.want(t, "once no container uses it", "named", "theirs")
	if left := w.cleaner.shelf.all(); len(left) != 0 {
		t.Errorf("still noted: %v", left)
	}
}

// What was used a moment ago stays, and so does everything where no reserve is asked for.
func TestImagesThatStay(t *testing.T) {
	w, s := newWarehouse(t, ""), newShop(t)
	ref := w.push(t, s, "fresh")
	w.bring(t, ref)
	w.cleaner.idle = time.Hour
	if err := w.makeRoom(t.Context(), w.cli, 1<<40); err != nil {
		t.Fatal(err)
	}
	w.cleaner.idle, w.cleaner.reserve = 0, Reserve{}
	if err := w.makeRoom(t.Context(), w.cli, 1<<40); err != nil {
		t.Fatal(err)
	}
	w.want(t, "used a moment ago", "fresh")
}

// The file of what was pulled is written when that changes, and not for every use; one that is damaged counts as none, and is put aside.
func TestShelf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node", "images.json")
	s := openShelf(file, quiet)
	now := time.Now().Round(0)
	if err := s.add("a", "sha256:1", now); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s.used("a", now.Add(time.Minute))
	s.used("nobody", now)
	if after, _ := os.ReadFile(file); string(after) != string(before) {
		t.Errorf("written for a use a minute later: %s", after)
	}
	s.used("a", now.Add(2*time.Hour))
	again := openShelf(file, quiet).all()
	if len(again) != 1 || !again["a"].Used.Equal(now.Add(2*time.Hour)) || again["a"].ID != "sha256:1" {
		t.Errorf("got %v", again)
	}
	s.forget("a")
	if left := openShelf(file, quiet).all(); len(left) != 0 {
		t.Errorf("got %v", left)
	}
	damaged := map[string]func() error{
		"another shape": func() error { return os.WriteFile(file, []byte(`{"a":5}`), 0o600) },
		"too long":      func() error { return os.WriteFile(file, bytes.Repeat([]byte(" "), maxShelfFile+1), 0o600) },
		"a pipe":        func() error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)) },
	}
	for what, make := range damaged {
		if err := s.add("a", "sha256:1", now); err != nil {
			t.Fatal(err)
		}
		if err := make(); err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		left := openShelf(file, slog.New(slog.NewTextHandler(&log, nil))).all()
		_, err := os.Lstat(file + ".damaged")
		if _, still := os.Lstat(file); len(left) != 0 || err != nil || still == nil || !strings.Contains(log.String(), "put aside") {
			t.Errorf("%s: %d images, put aside: %v, in its place: %v, said: %q", what, len(left), err, still, log.String())
		}
		s = openShelf(file, quiet)
	}
	if err := s.add("a", "sha256:1", now); err != nil {
		t.Fatal(err)
	}
	if err := openShelf(filepath.Join(file, "x"), quiet).add("a", "b", now); err == nil {
		t.Error("noted in a file that cannot be written")
	}
	// One that cannot be read for a while is not damaged, and nothing of it is lost.
	dir := filepath.Dir(file)
	if err := errors.Join(os.Rename(dir, dir+".away"), os.Symlink(dir, dir)); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	s = openShelf(file, slog.New(slog.NewTextHandler(&log, nil)))
	if err := s.add("b", "sha256:2", now); !errors.Is(err, syscall.ELOOP) || !strings.Contains(log.String(), "cannot be read now") {
		t.Errorf("noted: %v, said: %q", err, log.String())
	}
	if err := errors.Join(os.Remove(dir), os.Rename(dir+".away", dir), s.add("c", "sha256:3", now)); err != nil {
		t.Fatal(err)
	}
	if got := openShelf(file, quiet).all(); len(got) != 3 || got["a"].ID != "sha256:1" {
		t.Errorf("afterwards: %v", got)
	}
}

// An image that does not fit beside what is there, which Docker says in the middle of its pull, gets the room of those that nobody uses.
func TestRoomIsMadeDuringAPull(t *testing.T) {
	w, s := newWarehouse(t, ""), newShop(t)
	old := w.push(t, s, "old")
	w.bring(t, old)
	w.total = 51 << 20 // 31 MiB are free: above the reserve
	f, err := w.known(t.Context(), w.cli)
	if err != nil {
		t.Fatal(err)
	}
	room, err := w.checkRoom(t.Context(), w.cli, "next")
	if err != nil || f.root == "" {
		t.Fatal(err, f.root)
	}
	y := tally{layers: map[string]layer{}, room: room, progress: func(messages.Progress) {}}
	if err := y.follow(strings.NewReader(`{"id":"a","status":"Downloading","progressDetail":{"current":5,"total":41943040}}`)); err != nil {
		t.Error(err)
	}
	w.want(t, "during a pull")
	if err := y.follow(strings.NewReader(`{"id":"b","status":"Downloading","progressDetail":{"current":5,"total":99999999}}`)); err == nil {
		t.Error("a pull that cannot fit goes on")
	}
}
