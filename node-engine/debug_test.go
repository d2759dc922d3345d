package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// addrs hands over the address that is logged.
type addrs struct {
	slog.Handler
	found chan string
}

func (a addrs) Enabled(context.Context, slog.Level) bool { return true }

func (a addrs) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(at slog.Attr) bool { a.found <- at.Value.String(); return false })
	return nil
}

// Profiles are served while the program runs, on the loopback alone, and not at all unless they are asked for.
func TestDebugging(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":6060", "127.0.0.1", "192.0.2.1:1", "localhost:0"} {
		err := debugging(t.Context(), addr, slog.New(slog.DiscardHandler), func(context.Context) error { t.Error("it ran"); return nil })
		if err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: got %v", addr, err)
		}
	}
	ran := false
	if err := debugging(t.Context(), "", nil, func(context.Context) error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("without an address: ran %t, %v", ran, err)
	}
	h := addrs{slog.DiscardHandler, make(chan string, 1)}
	var url string
	err := debugging(t.Context(), "127.0.0.1:0", slog.New(h), func(ctx context.Context) error {
		url = "http://" + <-h.found + "/debug/pprof/goroutine?debug=1"
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if !strings.HasPrefix(string(text), "goroutine profile: total ") {
			t.Errorf("got %.100q", text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if resp, err := http.Get(url); err == nil { //nolint:noctx // it is to be refused
		resp.Body.Close()
		t.Error("still served")
	}
}
