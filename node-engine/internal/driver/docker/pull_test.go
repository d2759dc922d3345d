package docker

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// shop is a registry on loopback whose answers a test can change.
type shop struct {
	host   string
	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request, next http.Handler) // nil: as a registry does
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		answer := s.answer
		s.mu.Unlock()
		if answer == nil {
			next.ServeHTTP(w, r)
			return
		}
		answer(w, r, next)
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	s.host = strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *shop) set(answer func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// testImage is an image of some layers of random bytes for one platform.
func testImage(t *testing.T, size int64, arch, variant string) v1.Image {
	t.Helper()
	img, err := random.Image(size, 3)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = "linux", arch, variant
	img, err = mutate.ConfigFile(mutate.MediaType(img, types.DockerManifestSchema2), file)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (s *shop) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref := s.host + "/" + repo + ":1"
	tag, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(tag, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (s *shop) pushIndex(t *testing.T, repo string, arch, variant string) string {
	t.Helper()
	ref := s.host + "/" + repo + ":1"
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList), mutate.IndexAddendum{
		Add:        testImage(t, 100, arch, variant),
		Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch, Variant: variant}},
	})
	tag, err := name.ParseReference(ref)
	if err == nil {
		err = remote.WriteIndex(tag, index)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// puller is a driver, and whether an image is there.
type puller struct {
	*lab
}

func newPuller(t *testing.T, cfg Config) puller {
	t.Helper()
	cli := bare(t)
	cfg.Node = newNode(t, cli)
	return puller{&lab{Driver: newDriver(t, cfg), t: t, cli: cli}}
}

func (p puller) prepare(ctx context.Context, ref string, progress func(messages.Progress)) error {
	cleanImage(p.t, p.cli, ref)
	return p.Prepare(ctx, driver.Spec{Instance: "web.0.0", Spec: messages.Spec{Image: ref}}, progress)
}

func (p puller) has(ref string) bool {
	_, err := p.cli.ImageInspect(context.Background(), ref)
	return err == nil
}

func TestPull(t *testing.T) {
	p, s := newPuller(t, Config{}), newShop(t)
	ref := s.push(t, "good", testImage(t, 3<<20, p.cfg.Arch, ""))
	// Slowly, so that there is progress to report.
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w = slowly{w}
		}
		next.ServeHTTP(w, r)
	})
	var told []messages.Progress
	begun := time.Now()
	if err := p.prepare(t.Context(), ref, func(m messages.Progress) { told = append(told, m) }); err != nil {
		t.Fatal(err)
	}
	if !p.has(ref) {
		t.Error("no image")
	}
	if len(told) < 2 || float64(len(told)) > time.Since(begun).Seconds()*4+3 {
		t.Errorf("told %d times in %v", len(told), time.Since(begun))
	}
	last := told[len(told)-1]
	if last.DoneBytes != last.TotalBytes || last.TotalBytes < 3*3<<20 {
		t.Errorf("last told %+v, want all of three layers of 3 MiB", last)
	}
	for i := 1; i < len(told); i++ {
		if told[i].DoneBytes < told[i-1].DoneBytes {
			t.Errorf("progress goes back: %+v", told)
		}
	}
	// It is here now: nobody is asked.
	s.set(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { t.Error("the registry was asked again") })
	if err := p.prepare(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
}

// slowly writes a little at a time.
type slowly struct{ http.ResponseWriter }

func (s slowly) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, err := s.ResponseWriter.Write(b[done:min(done+64<<10, len(b))])
		done += n
		if err != nil {
			return done, err
		}
		time.Sleep(5 * time.Millisecond) // what is tested is a slow registry
	}
	return len(b), nil
}

func TestPullRefused(t *testing.T) {
	s := newShop(t)
	other, platform := "arm64", "linux/amd64"
	p := newPuller(t, Config{Arch: "amd64"})
	tests := []struct {
		name, ref string
		want      error
		words     []string
	}{
		{"no such repository", s.host + "/none:1", driver.ErrImageNotFound, []string{"check the name", s.host}},
		{"no such tag", strings.TrimSuffix(s.push(t, "some", testImage(t, 100, "amd64", "")), "1") + "2", driver.ErrImageNotFound, []string{"check the name"}},
		{"other processor", s.push(t, "other", testImage(t, 100, other, "")), driver.ErrImageArch, []string{"linux/arm64", platform}},
		{"list without this processor", s.pushIndex(t, "list", "arm", "v7"), driver.ErrImageArch, []string{platform}},
		{"no name", s.host + "/Not//a:name", driver.ErrInvalid, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := p.Prepare(t.Context(), driver.Spec{Instance: "web.0.0", Spec: messages.Spec{Image: test.ref}}, nil)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			for _, w := range append(test.words, test.ref) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not name %q", err, w)
				}
			}
			if p.has(test.ref) {
				t.Error("a useless image was kept")
			}
		})
	}
}

// An image of another processor that is on the node already, by whatever way, is refused without asking anybody.
func TestOtherProcessorPresent(t *testing.T) {
	cli := bare(t)
	ref := helperImage(t, cli)
	other := map[string]string{"amd64": "arm64", "arm64": "amd64", "arm": "amd64"}
	d := newDriver(t, Config{Node: newNode(t, cli), Arch: other[newDriver(t, Config{Node: "a"}).cfg.Arch]})
	err := d.Prepare(t.Context(), driver.Spec{Instance: "web.0.0", Spec: messages.Spec{Image: ref}}, nil)
	if !errors.Is(err, driver.ErrImageArch) {
		t.Errorf("got %v", err)
	}
}

func TestPullWithCredentials(t *testing.T) {
	s := newShop(t)
	ref := s.push(t, "private", testImage(t, 1000, newDriver(t, Config{Node: "a"}).cfg.Arch, ""))
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if user, password, _ := r.BasicAuth(); user != "fisher" || password != "s3:cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		next.ServeHTTP(w, r)
	})
	file := filepath.Join(t.TempDir(), "config.json")
	write := func(user string) {
		auth := base64.StdEncoding.EncodeToString([]byte(user))
		if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths":{"%s":{"auth":"%s"}},"credsStore":"x"}`, s.host, auth), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newPuller(t, Config{Credentials: file})
	if err := p.prepare(t.Context(), ref, nil); !errors.Is(err, driver.ErrImageNotFound) || !strings.Contains(err.Error(), file) {
		t.Errorf("without credentials: got %v, want advice naming %s", err, file)
	}
	write("fisher:wrong")
	if err := p.prepare(t.Context(), ref, nil); !errors.Is(err, driver.ErrImageNotFound) {
		t.Errorf("with wrong ones: got %v", err)
	}
	write("fisher:s3:cret")
	if err := p.prepare(t.Context(), ref, nil); err != nil || !p.has(ref) {
		t.Errorf("with credentials: got %v", err)
	}
}

func TestFindCredentials(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("u:p"))
	for _, test := range []struct {
		file, domain string
		found, bad   bool
	}{
		{`{"auths":{"a.example":{"auth":"` + auth + `"}}}`, "a.example", true, false},
		{`{"auths":{"https://index.docker.io/v1/":{"auth":"` + auth + `"}}}`, "docker.io", true, false},
		{`{"auths":{"a.example":{"auth":"` + auth + `"}}}`, "b.example", false, false},
		{`{}`, "a.example", false, false},
		{`{"auths":{"a.example":{"auth":"%%secret"}}}`, "a.example", false, true},
		{`secret`, "a.example", false, true},
	} {
		got, err := findCredentials([]byte(test.file), test.domain)
		if (got != "") != test.found || (err != nil) != test.bad {
			t.Errorf("%s for %s: got %q, %v", test.file, test.domain, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("error %q quotes the file", err)
		}
	}
}

// A pull that is given up stops at the registry too and leaves nothing.
func TestPullCancelled(t *testing.T) {
	p, s := newPuller(t, Config{}), newShop(t)
	ref := s.push(t, "endless", testImage(t, 4<<20, p.cfg.Arch, ""))
	ctx, cancel := context.WithCancel(t.Context())
	var hanging atomic.Int32
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		hanging.Add(1)
		defer hanging.Add(-1)
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		if rec.Body.Len() < 1<<20 { // the configuration: let it pass
			w.Write(rec.Body.Bytes())
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		w.Write(rec.Body.Next(1 << 20))
		w.(http.Flusher).Flush()
		cancel() // in the middle of a layer
		// It goes on in drops, for longer than the test's patience: Docker sees at a read that nobody wants it any more.
		for range time.Tick(20 * time.Millisecond) {
			if _, err := w.Write(rec.Body.Next(1 << 10)); err != nil || r.Context().Err() != nil || rec.Body.Len() == 0 {
				return
			}
			w.(http.Flusher).Flush()
		}
	})
	err := p.prepare(ctx, ref, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	eventually(t, "Docker has hung up on the registry", func() bool { return hanging.Load() == 0 })
	if p.has(ref) {
		t.Error("an image was left")
	}
}

// Docker itself repeats a download that breaks off, for nearly a minute; that it ends well then is all that is asked.
func TestPullBrokenOffOnce(t *testing.T) {
	p, s := newPuller(t, Config{}), newShop(t)
	ref := s.push(t, "broken", testImage(t, 2<<20, p.cfg.Arch, ""))
	var broken atomic.Bool
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		if rec.Body.Len() > 1<<20 && broken.CompareAndSwap(false, true) {
			w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	if err := p.prepare(t.Context(), ref, nil); err != nil || !p.has(ref) || !broken.Load() {
		t.Errorf("got %v, broken off: %v", err, broken.Load())
	}
}

// A registry that cannot serve is an ordinary failure: its caller repeats it.
func TestPullFails(t *testing.T) {
	p, s := newPuller(t, Config{}), newShop(t)
	ref := s.push(t, "failing", testImage(t, 100, p.cfg.Arch, ""))
	s.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) { w.WriteHeader(http.StatusBadGateway) })
	err := p.prepare(t.Context(), ref, nil)
	if err == nil || !ordinary(err) {
		t.Errorf("bad gateway: got %v, want an ordinary error", err)
	}
	if err := p.prepare(t.Context(), "127.0.0.1:1/x:1", nil); err == nil || !ordinary(err) {
		t.Errorf("nobody there: got %v, want an ordinary error", err)
	}
}

// ordinary reports whether err is none that callers branch on.
func ordinary(err error) bool {
	for _, e := range []error{driver.ErrImageNotFound, driver.ErrImageArch, driver.ErrInvalid, driver.ErrUnavailable, driver.ErrNotFound} {
		if errors.Is(err, e) {
			return false
		}
	}
	return true
}

func TestPullWithoutRoom(t *testing.T) {
	p, s := newPuller(t, Config{MinFree: 1 << 60}), newShop(t)
	ref := s.push(t, "big", testImage(t, 100, p.cfg.Arch, ""))
	s.set(func(http.ResponseWriter, *http.Request, http.Handler) { t.Error("the registry was asked") })
	err := p.prepare(t.Context(), ref, nil)
	if err == nil || !ordinary(err) || !strings.Contains(err.Error(), "space") || !strings.Contains(err.Error(), "/var/lib/docker") {
		t.Errorf("got %v, want an ordinary error that speaks of space", err)
	}
}

// The report of a pull is read to its end, and what it says counts.
func TestTally(t *testing.T) {
	room := func(int64) int64 { return 1000 }
	tests := []struct{ name, report, want string }{
		{"good", `{"id":"a","status":"Downloading","progressDetail":{"current":5,"total":10}}{"id":"a","status":"Download complete"}`, ""},
		{"error at the end", `{"status":"x"}{"error":"no space left on device","errorDetail":{"message":"y"}}`, "no space"},
		{"cut off", `{"status":"x"}{"sta`, "unexpected EOF"},
		{"too big", `{"id":"a","status":"Downloading","progressDetail":{"current":5,"total":2000}}`, "not enough space"},
		{"nonsense", `hello`, "invalid character"},
	}
	for _, test := range tests {
		var last messages.Progress
		y := tally{layers: map[string]layer{}, room: room, progress: func(p messages.Progress) { last = p }}
		err := y.follow(bytes.NewReader([]byte(test.report)))
		if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
		if test.name == "good" && last != (messages.Progress{DoneBytes: 10, TotalBytes: 10}) {
			t.Errorf("good: told %+v", last)
		}
	}
}

// A registry that takes a question and never answers does not hold an instance up for ever.
func TestSilentPull(t *testing.T) {
	l, s := newLab(t), newShop(t)
	s.set(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
	l.limits.pull = 200 * time.Millisecond
	spec := l.spec("web.0.0")
	spec.Image = s.host + "/silent:1"
	err := l.Prepare(t.Context(), spec, nil)
	if err == nil || !strings.Contains(err.Error(), s.host) || !strings.Contains(err.Error(), "nothing has come for 200ms") ||
		errors.Is(err, driver.ErrUnavailable) || errors.Is(err, driver.ErrImageNotFound) {
		t.Errorf("got %v, want an ordinary failure that names the registry", err)
	}
}
