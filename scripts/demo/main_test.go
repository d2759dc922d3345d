package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestHandler(t *testing.T) {
	h := handler("web.0.1", "board-1")
	for _, c := range []struct {
		path, want string
		code       int
	}{
		{"/", "hello from web.0.1 on board-1, answer 1\n", http.StatusOK},
		{"/", "hello from web.0.1 on board-1, answer 2\n", http.StatusOK},
		{"/healthz", "ok\n", http.StatusOK},
		{"/other", "404 page not found\n", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.path, nil))
		if w.Code != c.code || w.Body.String() != c.want {
			t.Errorf("%s: got %d %q, want %d %q", c.path, w.Code, w.Body, c.code, c.want)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- run(ctx, "127.0.0.1:0") }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRunSaysThatItsPortIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := run(t.Context(), taken.Addr().String()); err == nil {
		t.Error("got no error")
	}
}
