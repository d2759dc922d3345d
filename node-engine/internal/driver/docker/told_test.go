package docker

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
)

// saga makes the events of one container, a second apart: a signal's number is a kill.
func saga(id string, what ...string) (past []events.Message) {
	for i, w := range what {
		e := events.Message{Action: events.Action(w), Actor: events.Actor{ID: id, Attributes: map[string]string{}}, TimeNano: int64(i+1) * 1e9}
		if w[0] < 'a' {
			e.Action, e.Actor.Attributes["signal"] = events.ActionKill, w
		}
		past = append(past, e)
	}
	return past
}

// filled are so many events of others, from the given second on.
func filled(from int64) (past []events.Message) {
	for range remembered {
		past = append(past, events.Message{Action: events.ActionExecCreate, Actor: events.Actor{ID: "other"}, TimeNano: from * 1e9})
	}
	return past
}

// Whether an end was the program's own.
func TestInterrupted(t *testing.T) {
	for _, c := range []struct {
		name, stopSignal string
		past             []events.Message
		want             bool
	}{
		{"by itself", "", saga("c", "start", "die"), false},
		{"docker stop", "", saga("c", "start", "15", "die", "stop"), true},
		{"docker kill", "", saga("c", "start", "9", "die"), true},
		{"its own signal", "SIGUSR1", saga("c", "start", "10", "die", "stop"), true},
		{"its own signal by number", "37", saga("c", "start", "37", "die", "stop"), true},
		{"systemd's", "SIGRTMIN+3", saga("c", "start", "37", "die", "stop"), true},
		{"told to read its configuration, later by itself", "", saga("c", "start", "1", "die"), false},
		{"and told to end", "", saga("c", "start", "1", "15", "1", "die"), true},
		{"the life before was ended", "", saga("c", "start", "15", "die", "stop", "start", "die", "destroy"), false},
		{"somebody else", "", append(saga("d", "start", "15", "die"), saga("c", "die")...), false},
		{"before this dockerd", "", nil, true},
		{"before this dockerd, which has seen much since", "", filled(40), true},
		{"longer ago than is remembered", "", filled(60), false},
	} {
		if got := interrupted(c.past, "c", c.stopSignal, time.Unix(50, 0)); got != c.want {
			t.Errorf("%s: got %t", c.name, got)
		}
	}
}
