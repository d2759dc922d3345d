package engine

import (
	"context"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry"
)

// What is plugged in after the registration is news, once; what cannot be read at the moment is not.
func TestPartsThatComeAndGoAreNews(t *testing.T) {
	camera := telemetry.Attached{Sensors: []messages.SensorInfo{{Kind: "video", Path: "/dev/video0"}}}
	var now telemetry.Attached
	whole := true
	p := &parts{look: func(context.Context) (telemetry.Attached, bool) { return now, whole }}
	check := func(what string, want bool) {
		t.Helper()
		if got := p.changed(t.Context()); got != want {
			t.Errorf("%s: news %t, want %t", what, got, want)
		}
	}
	now = camera
	check("before the registration", false)
	p.tell(telemetry.Attached{})
	whole = false
	check("half read", false)
	whole = true
	check("a camera came", true)
	p.tell(camera)
	check("told", false)
	now = telemetry.Attached{}
	check("it is gone", true)

	ctx, cancel := context.WithCancel(t.Context())
	ended, news := make(chan error), make(chan struct{}, 1)
	go func() {
		ended <- p.watch(ctx, time.Millisecond, func() {
			select {
			case news <- struct{}{}:
			default:
			}
		})
	}()
	<-news
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
