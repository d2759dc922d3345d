package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/messages"
)

// A Docker disk without room for an image, before the pull or in the midst of it, fails that job alone and says why; once there is room the job
// runs.
func TestPullOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir, inside := world(t)
	if !inside {
		return
	}
	root := filepath.Join(dir, "docker")
	smallDisk(t, root, "600m")
	engine := dockerd(t, dir)
	t.Cleanup(func() { _ = engine.Process.Kill(); _ = engine.Wait() })
	l := newLab(t)
	a := l.node("a")
	l.do(deployCommand(app("web", 1, nil)))
	before := l.lives(a)
	f := newFaulty(l)
	const size = 32 << 20
	ref := f.push("big", size, nil)

	fails := func(name messages.JobName, why string, during func()) {
		t.Helper()
		j := pulled(name, ref)
		j.Restart.Backoff = messages.Duration(2 * time.Second) // in which the reason of the first attempt is there to be read
		request := l.send(deployCommand(j))
		during()
		l.instance(name, "says: "+why, func(i messages.InstanceReport) bool { return strings.Contains(i.Reason, why) })
		r := l.last(request)
		i := l.instance(name, "has failed", func(i messages.InstanceReport) bool { return i.State == messages.FailedState })
		t.Logf("%s: %s", name, i.Reason)
		if r.Phase != messages.Failed || r.Code != i.Code || i.Code != messages.DriverFailed {
			t.Errorf("%s: Result %s %s %q, status %s", name, r.Phase, r.Code, r.Message, i.Code)
		}
		for _, text := range []string{r.Message, i.Reason} {
			if !strings.Contains(text, "not enough space on the node's disk") || !strings.Contains(text, ref) {
				t.Errorf("%s: it does not say what is missing: %q", name, text)
			}
		}
		if f.here(ref) {
			t.Errorf("%s: the image is there", name)
		}
	}
	release := fill(t, root)
	fails("before", "want at least 256 MiB", func() {})
	release()

	halfWay := make(chan struct{})
	goOn := make(chan struct{})
	var once sync.Once
	f.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isBlob(r) {
			w = &halting{ResponseWriter: w, left: size / 2, halt: func() {
				once.Do(func() { close(halfWay) })
				<-goOn
			}}
		}
		next.ServeHTTP(w, r)
	})
	fails("midst", "no space left on device", func() {
		<-halfWay
		release = fill(t, root)
		close(goOn)
	})
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("what ran: before %v, after %v", before, after)
	}
	release()

	for _, name := range []messages.JobName{"before", "midst"} {
		l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: name}})
	}
	l.do(deployCommand(pulled("late", ref)))
	if after := l.lives(a); after["web.0.0"] != before["web.0.0"] {
		t.Errorf("what ran: before %v, after %v", before, after)
	}
	unhurt(t, l.nodes[a])
	if left, err := os.ReadDir(filepath.Join(root, "tmp")); err == nil && len(left) > 0 {
		t.Errorf("left of the pulls: %v", left)
	}
	imagesGo(f, a, root, ref)
}

// imagesGo holds on a disk that falls below the engine's reserve: of the images that the engine has pulled the one goes that was used longest ago,
// no more than is needed, and none that a container uses.
func imagesGo(f *faulty, node messages.NodeID, root, used string) {
	t := f.t
	const size, reserve = 16 << 20, 200 << 20
	old, young := f.push("old", size, nil), f.push("young", size, nil)
	for name, ref := range map[messages.JobName]string{"old": old, "young": young} {
		f.do(deployCommand(pulled(name, ref)))
		f.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: name}})
	}
	before := f.lives(node)
	f.end(f.nodes[node])
	noted := filepath.Join(f.dir, "a", "images.json") // and when they were used last
	content, err := os.ReadFile(noted)
	var images map[string]map[string]any
	if err == nil {
		err = json.Unmarshal(content, &images)
	}
	if err != nil || images[old] == nil || images[young] == nil || images[used] == nil {
		t.Fatalf("%s: %v: %s", noted, err, content)
	}
	now := time.Now()
	images[used]["used"], images[old]["used"], images[young]["used"] = now.Add(-4*time.Hour), now.Add(-3*time.Hour), now.Add(-2*time.Hour)
	if content, err = json.Marshal(images); err == nil {
		err = os.WriteFile(noted, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(root, &disk); err != nil {
		t.Fatal(err)
	}
	ballast, err := os.Create(filepath.Join(root, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	// What lacks for the reserve is half an image.
	if err := unix.Fallocate(int(ballast.Fd()), 0, 0, int64(disk.Bavail)*disk.Bsize-reserve+size/2); err != nil {
		t.Fatal(err)
	}
	f.node("a", "--image-reserve", strconv.Itoa(reserve>>20)+"MiB")
	f.eventually("an image to go", func() bool { return !f.here(old) })
	said := f.logLine(f.nodes[node], 0, "image removed to keep room on the disk")
	if err := unix.Statfs(root, &disk); err != nil {
		t.Fatal(err)
	}
	if free := int64(disk.Bavail) * disk.Bsize; said["image"] != old || free < reserve || !f.here(young) || !f.here(used) {
		t.Errorf("%d bytes are free of %d; said: %v; there: young %v, used %v", free, reserve, said, f.here(young), f.here(used))
	}
	if after := f.lives(node); after["web.0.0"] != before["web.0.0"] || after["late.0.0"] != before["late.0.0"] {
		t.Errorf("what ran: before %v, after %v", before, after)
	}
}

// halting is a response that calls halt once so many bytes of it are written.
type halting struct {
	http.ResponseWriter
	left int
	halt func()
}

func (h *halting) Write(b []byte) (int, error) {
	if h.left > 0 && h.left <= len(b) {
		h.ResponseWriter.(http.Flusher).Flush()
		h.halt()
	}
	h.left -= len(b)
	return h.ResponseWriter.Write(b)
}
