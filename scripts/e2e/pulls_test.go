package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"skerry.internal/messages"
)

// faulty is a registry in this process whose blobs come as the test wants them. Its images hold random bytes, so that Docker has
// none of their layers.
type faulty struct {
	*lab
	host string

	mu     sync.Mutex // guards what follows
	serve  func(w http.ResponseWriter, r *http.Request, next http.Handler)
	ranges []string // of the requests for blobs that ask for a part
}

func newFaulty(l *lab) *faulty {
	f := &faulty{lab: l}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		serve := f.serve
		f.mu.Unlock()
		if serve == nil {
			inner.ServeHTTP(w, r)
			return
		}
		serve(w, r, inner)
	}))
	l.t.Cleanup(server.Close)
	f.host = server.Listener.Addr().String()
	return f
}

func (f *faulty) set(serve func(http.ResponseWriter, *http.Request, http.Handler)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serve = serve
}

// push puts an image of the workload with so many random bytes into the registry, and takes it from Docker at the end.
func (f *faulty) push(repo string, size int, change func(*v1.ConfigFile)) string {
	f.t.Helper()
	program, err := os.ReadFile(program("app"))
	if err != nil {
		f.t.Fatal(err)
	}
	layers := [][]byte{layerTar(f.t, "app", program), layerTar(f.t, "data", noise(size))}
	img := empty.Image
	for _, content := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
		if err != nil {
			f.t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			f.t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		f.t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Entrypoint = "linux", "amd64", []string{"/app"}
	if change != nil {
		change(config)
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		f.t.Fatal(err)
	}
	ref := f.host + "/" + repo + ":1"
	tag, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(tag, img)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if f.here(ref) {
			f.docker("rmi", "-f", ref)
		}
	})
	return ref
}

func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b
}

func layerTar(t *testing.T, file string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: file, Mode: 0o755, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// here reports whether Docker has the image.
func (f *faulty) here(ref string) bool { return f.docker("images", "-q", ref) != "" }

func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

// cut is a response that ends the connection after so many bytes, and says each time what it still may.
type cut struct {
	http.ResponseWriter
	left  int
	pause time.Duration // after each 64 KiB
	r     *http.Request
}

func (c *cut) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n := min(len(b)-done, 64<<10)
		if n > c.left {
			panic(http.ErrAbortHandler) // as a link that breaks
		}
		c.left -= n
		m, err := c.ResponseWriter.Write(b[done : done+n])
		done += m
		if err != nil {
			return done, err
		}
		if c.pause > 0 {
			c.ResponseWriter.(http.Flusher).Flush()
			select {
			case <-time.After(c.pause):
			case <-c.r.Context().Done():
				return done, c.r.Context().Err()
			}
		}
	}
	return done, nil
}

// slowly serves blobs at the pace of 64 KiB a pause.
func (f *faulty) slowly(pause time.Duration) {
	f.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isBlob(r) {
			w = &cut{ResponseWriter: w, left: 1 << 30, pause: pause, r: r}
		}
		next.ServeHTTP(w, r)
	})
}

// pulled is a job of an image that is tried twice at most.
func pulled(name messages.JobName, image string) messages.Job {
	j := app(name, 1, nil)
	j.Image = image
	j.Restart = messages.Restart{MaxAttempts: 1, Backoff: messages.Duration(100 * time.Millisecond)}
	return j
}

// A slow pull says in the job's status how far it is.
func TestSlowPullSaysHowFarItIs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.node("a")
	f := newFaulty(l)
	const size = 4 << 20
	ref := f.push("slow", size, nil)
	f.slowly(50 * time.Millisecond) // 64 pieces: some 3 s
	l.do(deployCommand(pulled("web", ref)))
	l.mu.Lock()
	defer l.mu.Unlock()
	var seen []int64
	for _, s := range l.history {
		for _, i := range s.Instances {
			if p := i.Progress; p != nil && i.State == messages.Preparing && (len(seen) == 0 || p.DoneBytes != seen[len(seen)-1]) {
				seen = append(seen, p.DoneBytes)
				if p.DoneBytes > p.TotalBytes || (len(seen) > 1 && p.DoneBytes < seen[len(seen)-2]) || p.TotalBytes > size+16<<20 {
					t.Errorf("progress %+v after %v", *p, seen)
				}
			}
		}
	}
	if len(seen) < 3 || seen[len(seen)-1] < size/2 {
		t.Errorf("got progress %v, want it to grow in three steps or more", seen)
	}
	t.Logf("progress %v", seen)
	if i := l.jobs["web"].Instances[0]; i.Progress != nil || i.Attempt != 0 {
		t.Errorf("it runs with progress %v, attempt %d", i.Progress, i.Attempt)
	}
}

// A pull whose connection breaks half-way goes on where it was, and a registry that is away for a while costs an attempt only.
func TestBrokenPullGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.node("a")
	f := newFaulty(l)
	const size = 4 << 20
	ref := f.push("broken", size, nil)
	var away sync.Once
	breaks := map[string]bool{}
	f.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		first := false
		away.Do(func() { first = true })
		if first {
			panic(http.ErrAbortHandler) // nobody there
		}
		if isBlob(r) {
			f.mu.Lock()
			if part := r.Header.Get("Range"); part != "" {
				f.ranges = append(f.ranges, part)
			}
			broken := breaks[r.URL.Path]
			breaks[r.URL.Path] = true
			f.mu.Unlock()
			if !broken {
				w = &cut{ResponseWriter: w, left: size / 2, r: r}
			}
		}
		next.ServeHTTP(w, r)
	})
	j := pulled("web", ref)
	j.Restart.MaxAttempts = 5
	l.do(deployCommand(j))
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.ranges) == 0 {
		t.Error("no blob was asked for from its middle on")
	}
	t.Logf("resumed at %v", f.ranges)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.history, func(s messages.JobStatus) bool {
		return slices.ContainsFunc(s.Instances, func(i messages.InstanceReport) bool {
			return i.State == messages.Pending && i.Code == messages.DriverFailed && strings.Contains(i.Reason, ref) && strings.Contains(i.Reason, "EOF")
		})
	}) {
		t.Error("no status said why the first attempt failed")
	}
}

// What cannot be pulled is said with its reason, in the status and in the Result, and leaves no container.
func TestImpossiblePulls(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.node("a")
	f := newFaulty(l)
	foreign := f.push("foreign", 1<<10, func(c *v1.ConfigFile) { c.Architecture = "s390x" })
	damaged := f.push("damaged", 2<<20, nil)
	secret := f.push("secret", 1<<10, nil)
	f.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case isBlob(r) && strings.Contains(r.URL.Path, "/damaged/"):
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			body := rec.Body.Bytes()
			if len(body) > 1<<20 { // the layer, not the image's configuration
				body[len(body)/2] ^= 1
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body)
		case strings.Contains(r.URL.Path, "/secret/"):
			w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	})
	for _, c := range []struct {
		job   messages.JobName
		image string
		code  messages.Code
		says  []string
	}{
		{"foreign", foreign, messages.ImageWrongArch, []string{foreign, "linux/amd64"}},
		{"missing", f.host + "/foreign:no-such-tag", messages.ImageNotFound, []string{"no-such-tag", "check the name"}},
		{"damaged", damaged, messages.DriverFailed, []string{damaged, "verification failed", "sha256:"}},
		{"secret", secret, messages.ImageNotFound, []string{secret, "credentials", f.host}},
	} {
		t.Run(string(c.job), func(t *testing.T) {
			r := l.last(l.send(deployCommand(pulled(c.job, c.image))))
			if r.Phase != messages.Failed || r.Code != c.code {
				t.Errorf("got %s %s %q, want failed %s", r.Phase, r.Code, r.Message, c.code)
			}
			i := l.instance(c.job, "has failed", func(i messages.InstanceReport) bool { return i.State == messages.FailedState })
			if i.Code != c.code {
				t.Errorf("status says %s, want %s", i.Code, c.code)
			}
			for _, word := range c.says {
				if !strings.Contains(r.Message, word) || !strings.Contains(i.Reason, word) {
					t.Errorf("%q is missing in Result %q or reason %q", word, r.Message, i.Reason)
				}
			}
			t.Log(i.Reason)
			if f.here(c.image) {
				t.Errorf("image %s was left behind", c.image)
			}
		})
	}
	if left := l.docker("ps", "-aq", "--filter", "label=skerry.node="+string(a)); left != "" {
		t.Errorf("containers left: %s", left)
	}
}

// Credentials come from a docker config.json, which is read for each pull: what is put there later counts too.
func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	config := filepath.Join(l.dir, "config.json")
	l.node("a", "--docker-credentials", config)
	f := newFaulty(l)
	ref := f.push("private", 1<<10, nil)
	f.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if user, password, _ := r.BasicAuth(); user != "board" || password != "open:sesame" {
			w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	write := func(auth string) {
		text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, f.host, base64.StdEncoding.EncodeToString([]byte(auth)))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, auth := range []string{"", "board:wrong"} {
		if auth != "" {
			write(auth)
		}
		r := l.last(l.send(deployCommand(pulled("web", ref))))
		if r.Phase != messages.Failed || r.Code != messages.ImageNotFound || !strings.Contains(r.Message, config) || strings.Contains(r.Message, "wrong") {
			t.Errorf("with credentials %q: %s %s %q", auth, r.Phase, r.Code, r.Message)
		}
		l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
	}
	write("board:open:sesame")
	l.do(deployCommand(pulled("web", ref)))
}
