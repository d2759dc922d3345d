package session

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/gorilla/websocket"

	"skerry.internal/messages"
)

// FuzzParsePacket holds for a packet of any content: nothing panics, and what comes of it is a part of it.
func FuzzParsePacket(f *testing.F) {
	for _, s := range []string{"", "0", "0/init", `2/init,["sc1",{"nonce":"n"}]`, `2/init?x=1,17["sc2",{}]`, `2["x"]`, "2/init,[]", "2/init,[1]", `2/init,["a",1,2]`, "4/init,\"no\"", "1/init", "2/", "2//,", "51-[]",
		"2/init,[[[[", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Fatalf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		if p.kind != b[0] || !bytes.Contains(b, []byte(p.namespace)) || !bytes.HasSuffix(b, p.data) {
			t.Fatalf("%q became %+v", b, p)
		}
		if _, arg, err := p.event(); err == nil && !bytes.Contains(b, arg) {
			t.Fatalf("%q has the argument %q", b, arg)
		}
	})
}

// FuzzRegister holds for whatever answers an engine that registers: it gives up with an error or with a Welcome that holds, and does not crash.
// Lines are frames; those that begin with a zero byte are binary.
func FuzzRegister(f *testing.F) {
	const hello = `0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":60000}`
	for _, s := range []string{"", "0", hello, hello + "\n40\n40/init", hello + "\n42/init,[\"sc1\",{\"cluster\":\"lab\",\"protocol\":1,\"nonce\":\"n\"}]\n42/init,[\"sc2\",{\"id\":\"a\",\"cluster\":\"lab\",\"brokers\":[\"tcp://127.0.0.1:1\"]}]",
		hello + "\n44/init,\"no\"", hello + "\n41/init", hello + "\n1", hello + "\n6\n3\n2probe", hello + "\n\x004x", `0{"sid":7}`, `0{"pingInterval":-1,"pingTimeout":-1}`, hello + "\n451-/init,[{\"_placeholder\":true}]", hello + "\nb4eHg="} {
		f.Add([]byte(s))
	}
	frames := make(chan []byte, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content := <-frames
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return // the answer has been written
		}
		defer ws.Close()
		for frame := range bytes.SplitSeq(content, []byte("\n")) {
			kind := websocket.TextMessage
			if rest, binary := bytes.CutPrefix(frame, []byte{0}); binary {
				kind, frame = websocket.BinaryMessage, rest
			}
			if ws.WriteMessage(kind, frame) != nil {
				return
			}
		}
	}))
	f.Cleanup(server.Close)
	manager, err := url.Parse(server.URL)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		frames <- content
		w, err := network{manager: manager}.Register(t.Context(), func(messages.Hello) *messages.NodeInfo { return &messages.NodeInfo{Name: "n"} })
		if err == nil {
			err = w.Validate()
			if err != nil {
				t.Fatalf("taken and not valid: %v", err)
			}
		}
	})
}

// FuzzBroker holds for whatever a Welcome names as a broker: it is refused in a few words, or it can be dialled, without the credentials of anybody. For
// what an operator names as the manager the same.
func FuzzBroker(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := ManagerURL(text); err == nil {
			again, err := ManagerURL(m.String())
			if err != nil || again.String() != m.String() || m.Port() == "" || m.Hostname() == "" {
				t.Errorf("%q became %q, and that %v, %v", text, m, again, err)
			}
		}
		u, err := brokerURL(text, "manager.lan")
		if err != nil {
			return
		}
		if host, _, err := net.SplitHostPort(u.Host); err != nil || host == "" || u.Port() == "" || u.User != nil || u.Scheme != "tls" && u.Scheme != "tcp" && u.Scheme != "mqtt" {
			t.Errorf("%q became %q", text, u)
		}
		again, err := brokerURL(u.String(), "elsewhere")
		if err != nil || again.Host != u.Host {
			t.Errorf("%q became %q, and that %v, %v", text, u, again, err)
		}
	})
}
