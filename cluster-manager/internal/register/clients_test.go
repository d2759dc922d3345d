package register

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

var transports = []struct {
	name  string
	list  []string
	final string // "" where it depends on who is faster
}{
	{"websocket", []string{"websocket"}, "websocket"},
	{"polling", []string{"polling"}, "polling"},
	{"polling then upgrade", []string{"polling", "websocket"}, ""},
}

// TestClientsRegister takes every client over every transport through the whole table, in both forms of cs1.
func TestClientsRegister(t *testing.T) {
	for _, c := range clients(t) {
		for _, tr := range transports {
			for _, text := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/text=%v", c.name, tr.name, text), func(t *testing.T) {
					t.Parallel()
					b := serve(t, Config{})
					r := c.run(t, options{URL: b.url, Transports: tr.list, Text: text})[0]
					checkWelcomed(t, b, r, text)
					if tr.final != "" && r.Transport != tr.final {
						t.Errorf("transport %q, want %q", r.Transport, tr.final)
					}
					if got := b.admissions("node-0"); len(got) == 1 && got[0].origin.Proved == (c.name == "python-socketio") {
						t.Errorf("proved: %v", got[0].origin.Proved)
					}
				})
			}
		}
	}
}

func checkWelcomed(t *testing.T, b *bench, r result, text bool) {
	t.Helper()
	if r.Error != "" || r.Event != messages.WelcomeEvent {
		t.Fatalf("got %+v", r)
	}
	if want := map[bool]string{false: "object", true: "string"}[text]; r.Form != want {
		t.Errorf("sc2 is a %s, want %s", r.Form, want)
	}
	name := messages.NodeID(fmt.Sprintf("node-%d", r.I))
	var w messages.Welcome
	if err := json.Unmarshal(r.Answer, &w); err != nil || w.ID != name || w.Username != "ü" || w.Validate() != nil {
		t.Errorf("welcome %s: %v", r.Answer, err)
	}
	if r.Hello.HelloEdge != greeting || r.Hello.Cluster != "lab" || r.Hello.Protocol != messages.Protocol || len(r.Hello.Nonce) != 22 {
		t.Errorf("hello: %+v", r.Hello)
	}
	// A client's threads may see sc1 before its own connect; then it is asked again.
	order := slices.Compact(slices.DeleteFunc(slices.Clone(r.Order), func(s string) bool { return s != "sc1" && s != "sc2" }))
	if want := []string{"sc1", "sc2"}; !slices.Equal(order, want) || !slices.Contains(r.Order, "connect") {
		t.Errorf("order %v, want connect and %v", r.Order, want)
	}
	got := b.admissions(name)
	if len(got) != 1 || got[0].info.CPU.Model != "Prozeßor™ 𝛼" {
		t.Fatalf("admitted %+v", got)
	}
	if o := got[0].origin; !strings.HasPrefix(o.Remote, "127.0.0.1:") || o.Legacy {
		t.Errorf("origin %+v", o)
	}
}

// TestClientsUpgradeFirst sends cs1 over the websocket that a connection was upgraded to.
func TestClientsUpgradeFirst(t *testing.T) {
	for _, lib := range []string{"client2", "client4"} {
		t.Run(lib, func(t *testing.T) {
			t.Parallel()
			b := serve(t, Config{})
			for _, r := range runNode(t, lib, options{URL: b.url, Transports: []string{"polling", "websocket"}, Upgraded: true, Count: 50}) {
				checkWelcomed(t, b, r, false)
				if r.Transport != "websocket" {
					t.Errorf("transport %q", r.Transport)
				}
			}
		})
	}
}

// TestClientsStay leaves the end to the manager: it disconnects the namespace, so that no client comes back by itself.
func TestClientsStay(t *testing.T) {
	for _, c := range clients(t) {
		for _, tr := range transports {
			t.Run(c.name+"/"+tr.name, func(t *testing.T) {
				t.Parallel()
				b := serve(t, Config{})
				r := c.run(t, options{URL: b.url, Transports: tr.list, Stay: true})[0]
				checkWelcomed(t, b, r, false)
				if !slices.Contains(r.Order, "disconnect") || r.Reason != "" && r.Reason != "io server disconnect" {
					t.Errorf("got %+v", r)
				}
			})
		}
	}
}

// TestClientsRefused wants every client to read why, over every transport.
func TestClientsRefused(t *testing.T) {
	taken := &messages.Refusal{Code: messages.RefusedName, Message: "böard-1 is somebody else's", Hint: "skerry node replace board-1"}
	cases := []struct {
		name  string
		info  any
		admit error
		want  messages.RefusalCode
	}{
		{"by the owner", nil, taken, messages.RefusedName},
		{"inner error", nil, errors.New("disk on fire"), messages.RefusedBusy},
		{"wrong type", map[string]any{"name": 7, "key": "k"}, nil, messages.RefusedPayload},
		{"no object", []string{"x"}, nil, messages.RefusedPayload},
		{"legacy", map[string]any{"host": "board"}, nil, messages.RefusedLegacy},
		{"newer", map[string]any{"name": "a", "key": "k", "protocol": 2}, nil, messages.RefusedProtocol},
	}
	for _, c := range clients(t) {
		for i, tc := range cases {
			tr := transports[i%len(transports)]
			t.Run(c.name+"/"+tc.name+"/"+tr.name, func(t *testing.T) {
				t.Parallel()
				b := serve(t, Config{Admit: func(_ context.Context, info messages.NodeInfo, _ Origin) (messages.Welcome, error) {
					return welcome(info), tc.admit
				}})
				r := c.run(t, options{URL: b.url, Transports: tr.list, Info: tc.info})[0]
				got := r.refusal(t)
				if got.Code != tc.want || strings.Contains(got.Message, "fire") || got.Hint == "" {
					t.Errorf("got %+v, want %s", got, tc.want)
				}
				if tc.want == messages.RefusedName && got != *taken {
					t.Errorf("got %+v, want %+v", got, *taken)
				}
				if !slices.Contains(r.Order, "disconnect") {
					t.Errorf("not disconnected: %+v", r)
				}
			})
		}
	}
}

// TestClientsLegacy admits EdgeIO's engines where that is asked for.
func TestClientsLegacy(t *testing.T) {
	for _, c := range clients(t) {
		for _, h := range []any{"Board_7.lan", map[string]any{"hostname": "Board_7", "kernelArch": "armv7l"}} {
			t.Run(fmt.Sprintf("%s/%T", c.name, h), func(t *testing.T) {
				t.Parallel()
				b := serve(t, Config{AllowLegacy: true})
				r := c.run(t, options{URL: b.url, Transports: []string{"websocket"}, Text: true, Info: map[string]any{"host": h, "cpu": []int{1}}})[0]
				if want := `{"id":"board-7","MQTT_BROKER_PORT":"1883","SUBNETWORK":""}`; compact(t, r.Answer) != want || r.Form != "string" {
					t.Errorf("got %+v, want %s", r, want)
				}
				if got := b.admissions("board-7"); len(got) != 1 || !got[0].origin.Legacy || got[0].origin.Proved {
					t.Errorf("admitted %+v", got)
				}
			})
		}
	}
}

// compact undoes a client's own spacing.
func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var v struct {
		ID   string `json:"id"`
		Port string `json:"MQTT_BROKER_PORT"`
		Sub  string `json:"SUBNETWORK"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	b, _ := json.Marshal(v)
	return string(b)
}

// TestClientsTimeout refuses a node that joins and then says nothing.
func TestClientsTimeout(t *testing.T) {
	for _, lib := range []string{"client2", "client4"} {
		for _, tr := range transports {
			t.Run(lib+"/"+tr.name, func(t *testing.T) {
				t.Parallel()
				b := serve(t, Config{Timeout: time.Second})
				r := runNode(t, lib, options{URL: b.url, Transports: tr.list, Silent: true})[0]
				if got := r.refusal(t); got.Code != messages.RefusedTimeout {
					t.Errorf("got %+v", got)
				}
			})
		}
	}
}

// TestClientsWrongNamespace wants an error that the client understands, not silence.
func TestClientsWrongNamespace(t *testing.T) {
	for _, lib := range []string{"client2", "client4"} {
		t.Run(lib, func(t *testing.T) {
			t.Parallel()
			b := serve(t, Config{})
			r := runNode(t, lib, options{URL: b.url, Namespace: "/other", Transports: []string{"websocket"}})[0]
			if r.Error != "Invalid namespace" {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// TestClientsInParallel loses none of 400 at once over any transport, or of 40 with -short.
func TestClientsInParallel(t *testing.T) {
	for _, c := range clients(t) {
		count := 400
		if testing.Short() {
			count = 40
		}
		if c.name == "python-socketio" {
			count = min(count, 60) // some four threads each
		}
		for _, tr := range transports {
			t.Run(c.name+"/"+tr.name, func(t *testing.T) {
				b := serve(t, Config{Timeout: 30 * time.Second})
				for _, r := range c.run(t, options{URL: b.url, Transports: tr.list, Count: count}) {
					checkWelcomed(t, b, r, false)
				}
				if st := b.Stats(); st.Welcomed != uint64(count) || st.Refused != 0 {
					t.Errorf("got %+v", st)
				}
			})
		}
	}
}
