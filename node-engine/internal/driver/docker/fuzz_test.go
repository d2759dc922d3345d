package docker

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/registry"

	"skerry.internal/messages"
)

var quiet = slog.New(slog.DiscardHandler)

// FuzzShelf holds for a file of any content: what it says can be used, and what is noted on top of it is found again.
func FuzzShelf(f *testing.F) {
	for _, s := range []string{"", "{}", "null", "[]", `{"a:1":{"id":"sha256:x","used":"2026-01-02T15:04:05Z"}}`, `{"a:1":null,"":{}}`, `{"a:1":{"id":7}}`, `{"a:1":{"used":"never"}}`, "\xff"} {
		f.Add([]byte(s))
	}
	file := filepath.Join(f.TempDir(), "images") // each worker is a process
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1_000_000, 0)
		s := openShelf(file, quiet)
		for ref := range s.all() {
			s.used(ref, now)
		}
		if err := s.add("new:1", "sha256:x", now); err != nil {
			t.Fatal(err)
		}
		if again := openShelf(file, quiet).all(); again["new:1"].ID != "sha256:x" || len(again) != len(s.all()) {
			t.Fatalf("%d images were noted, %d are found", len(s.all()), len(again))
		}
		for ref := range s.all() {
			s.forget(ref)
		}
		if left := openShelf(file, quiet).all(); len(left) > 0 {
			t.Fatalf("%v are left", left)
		}
	})
}

// FuzzCredentials holds for a file of any content: the errors are short and do not quote what may be a password, the same file means the same
// each time, and what is sent can be read by Docker.
func FuzzCredentials(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"auths":null}`, `{"auths":{"registry.lan":{"auth":"dXNlcjpwYXNzd29yZA=="}}}`, `{"auths":{"https://registry.lan/v1/":{"auth":"dTpw"},"registry.lan":{"auth":"dXNlcjpw"}}}`,
		`{"auths":{"registry.lan":{"identitytoken":"t"}}}`, `{"auths":{"registry.lan":{"auth":"!"}}}`, `{"auths":{"registry.lan":7}}`, `{"auths":{"":{}}}`} {
		f.Add([]byte(s), "registry.lan")
	}
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`), "docker.io")
	f.Fuzz(func(t *testing.T, raw []byte, domain string) {
		auth, err := findCredentials(raw, domain)
		if strings.Contains(domain, "://") {
			return // of no image
		}
		for range 3 {
			if again, _ := findCredentials(raw, domain); again != auth {
				t.Fatalf("once %q and once %q", auth, again)
			}
		}
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Fatalf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		if auth == "" {
			return
		}
		if c, err := registry.DecodeAuthConfig(auth); err != nil || registryOf(c.ServerAddress) != domain || !strings.Contains(string(raw), ":") {
			t.Fatalf("%q: %+v, %v", auth, c, err)
		}
	})
}

// FuzzTally holds for a report of a pull with any content: what is told of its progress is such as a status may say.
func FuzzTally(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"id":"a","status":"Downloading","progressDetail":{"current":1,"total":2}}{"id":"a","status":"Download complete"}`,
		`{"id":"a","status":"Downloading","progressDetail":{"current":-5,"total":-10}}`, `{"id":"a","status":"Downloading","progressDetail":{"current":9223372036854775807,"total":1}}`,
		`{"id":"a","status":"Pull complete"}{"id":"a","status":"Downloading"}`, `{"error":"no"}`, `{"id":7}`} {
		f.Add([]byte(s + `{"id":"b","status":"Downloading","progressDetail":{"current":9223372036854775807,"total":9223372036854775807}}`))
	}
	f.Fuzz(func(t *testing.T, report []byte) {
		told := tally{layers: map[string]layer{}, progress: func(p messages.Progress) {
			s := messages.InstanceStatus{Instance: "web.0.0", Job: "web", State: messages.Preparing, Progress: &p}
			if err := s.Validate(); err != nil || p.DoneBytes > p.TotalBytes {
				t.Errorf("%d of %d bytes: %v", p.DoneBytes, p.TotalBytes, err)
			}
		}}
		_ = told.follow(bytes.NewReader(report)) // any text may be the error
		told.tell(true)
	})
}

// FuzzReserve holds for a reserve of any text: it is refused, or it is a size that can be, and is written in a form that means the same.
func FuzzReserve(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseReserve(text)
		if err != nil {
			return
		}
		if r.bytes < 0 || r.of(1<<40) < 0 || r.of(1<<62) < 0 {
			t.Errorf("%q is %d of a large disk", text, r.of(1<<62))
		}
		if again, err := ParseReserve(r.String()); err != nil || again != r {
			t.Errorf("%q is %s, and that %+v, %v", text, r, again, err)
		}
	})
}
