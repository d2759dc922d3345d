package dispatch

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

// A client that is refused in a loop does not fill the log, and the log says how much it left out.
func TestRefusalsAreLoggedWithinAQuota(t *testing.T) {
	w := newWorld(t, "a")
	var out bytes.Buffer
	w.core.log = slog.New(slog.NewTextHandler(&out, nil))
	unknown := messages.Command{Command: messages.Move, Job: messages.Job{Name: "nothing"}, From: []messages.NodeID{"a"}}
	for range 1000 {
		w.core.Command(Incoming{MayCommand: true, Command: unknown}, w.now)
	}
	if n := strings.Count(out.String(), "command refused"); n != quotaMost {
		t.Errorf("%d lines, want %d", n, quotaMost)
	}
	w.now = w.now.Add(quotaEvery + time.Second)
	w.core.Command(Incoming{MayCommand: true, Command: unknown}, w.now)
	if !strings.Contains(out.String(), "unsaid=940") {
		t.Error("does not say how many lines were left out")
	}
}
