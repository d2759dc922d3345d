package session

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/session/sessiontest"
)

func TestRegistrationIsProvedAndWelcomed(t *testing.T) {
	m := sessiontest.NewManager(t, "", sessiontest.Welcomed("tcp://:1883", "tls://0.0.0.0:8883"))
	var accepted messages.Welcome
	n := newNode(t, m.URL, func(c *Config) { c.Accepted = func(w messages.Welcome) { accepted = w } })
	a, err := n.register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info := <-m.Infos
	if !info.Proved("lab", "n0") || info.Token != "t0" || info.BootID != "boot-1" || info.Protocol != 1 || info.Epoch != 7 || info.CPU.Cores != 2 {
		t.Errorf("node info: got %+v", info)
	}
	if accepted.ID != "n1" || a.ID != "n1" || a.brokers[0].Host != "127.0.0.1:1883" || a.brokers[1].String() != "tls://127.0.0.1:8883" {
		t.Errorf("welcome: got %+v, brokers %v", accepted, a.brokers)
	}
	if skew := a.clockSkew(time.Now()); skew < 59*time.Minute || skew > 61*time.Minute {
		t.Errorf("clock skew: got %s, want about 1h", skew)
	}
}

func TestRefusalIsAnErrorWithItsHint(t *testing.T) {
	m := sessiontest.NewManager(t, "", func(messages.NodeInfo) (string, any) {
		return messages.RefusedEvent, &messages.Refusal{Code: messages.RefusedName, Message: "taken", Hint: "skerry node replace n1"}
	})
	_, err := newNode(t, m.URL, nil).register(t.Context())
	r, ok := errors.AsType[*messages.Refusal](err)
	if !ok || r.Code != messages.RefusedName || !lasting(err) || !strings.Contains(err.Error(), "skerry node replace n1") {
		t.Errorf("got %v", err)
	}
}

// rawManager is an Engine.IO server that says open and then the frames, whatever the node says.
func rawManager(t *testing.T, open string, frames ...string) string {
	t.Helper()
	done := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for _, f := range append([]string{open}, frames...) {
			kind := websocket.TextMessage
			if strings.HasPrefix(f, "\x04") {
				kind = websocket.BinaryMessage
			}
			if c.WriteMessage(kind, []byte(f)) != nil {
				return
			}
		}
		<-done
	}))
	t.Cleanup(func() { close(done); s.Close() })
	return s.URL
}

const goodOpen = `0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":60000}`

func TestRegistrationRefusesGarbage(t *testing.T) {
	hello := `42/init,["sc1",{"cluster":"lab","protocol":1,"nonce":"n"}]`
	for name, frames := range map[string][]string{
		"not JSON":                  {"42/init,["},
		"no name":                   {"42/init,[]"},
		"a number for a name":       {"42/init,[1,{}]"},
		"an object":                 {"42/init,{}"},
		"no argument":               {`42/init,["sc1"]`},
		"a string":                  {`42/init,["sc1","x"]`},
		"a newer protocol":          {`42/init,["sc1",{"cluster":"lab","protocol":99}]`},
		"no cluster":                {`42/init,["sc1",{"protocol":1}]`},
		"another event":             {`42/init,["sc2",{}]`},
		"attachments without end":   {`451844674407370955161-/init,["sc1",{}]`},
		"a binary frame":            {"\x04\x01\x02"},
		"an empty frame":            {""},
		"an empty packet":           {"4"},
		"an unknown packet":         {"49"},
		"an error":                  {`44/init,"not here"`},
		"a disconnect":              {"41/init"},
		"a close":                   {"1"},
		"an oversize event":         {`42/init,["sc1",{"x":"` + strings.Repeat("x", 2<<20) + `"}]`},
		"events of others, no end":  append(make([]string, 0), strings.Split(strings.Repeat(`42["x",{"y":"`+strings.Repeat("z", 1000)+"\"}]\n", 400), "\n")...),
		"a bad welcome":             {hello, `42/init,["sc2",{"id":"../x","cluster":"lab","brokers":["tcp://:1"]}]`},
		"a welcome without brokers": {hello, `42/init,["sc2",{"id":"n1","cluster":"lab"}]`},
		"brokers of another kind":   {hello, `42/init,["sc2",{"id":"n1","cluster":"lab","brokers":["gopher://x"]}]`},
		"a refusal without a code":  {hello, `42/init,["refused",{}]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, rawManager(t, goodOpen, frames...), nil)
			start := time.Now()
			if _, err := n.register(t.Context()); err == nil {
				t.Error("got no error")
			} else if time.Since(start) > 5*time.Second {
				t.Errorf("took %s: %v", time.Since(start), err)
			}
		})
	}
}

func TestRegistrationRefusesWhatIsNoManager(t *testing.T) {
	for name, url := range map[string]string{
		"a bad opening": rawManager(t, "hello"),
		"open is JSON":  rawManager(t, `0[1,2]`),
		"not open":      rawManager(t, "6"),
	} {
		if _, err := newNode(t, url, nil).register(t.Context()); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if _, err := newNode(t, other.URL, nil).register(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a web server: got %v, want its status", err)
	}
}

func TestRegistrationAcceptsHelloBeforeItsNamespaceAndNoiseBetween(t *testing.T) {
	url := rawManager(t, goodOpen, `42/init,["sc1",{"cluster":"lab","protocol":1,"nonce":"n"}]`, "40", "40/init,", "3", `42["x"]`,
		`42/init?a=b,17["sc2",{"id":"n1","cluster":"lab","brokers":["tcp://:1"],"later":1}]`)
	if a, err := newNode(t, url, nil).register(t.Context()); err != nil || a.ID != "n1" {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestRegistrationAcceptsASecondHello(t *testing.T) {
	hello := `42/init,["sc1",{"cluster":"lab","protocol":1,"nonce":"n"}]`
	url := rawManager(t, goodOpen, "40/init,", hello, hello, `42/init,["sc2",{"id":"n1","cluster":"lab","brokers":["tcp://:1"]}]`)
	if a, err := newNode(t, url, nil).register(t.Context()); err != nil || a.ID != "n1" {
		t.Errorf("got %+v, %v", a, err)
	}
}

// silentListener accepts connections and says nothing.
func silentListener(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

func TestSilenceEndsWithTheDeadlineOrTheContext(t *testing.T) {
	for name, url := range map[string]string{"no handshake": silentListener(t), "no open": rawManager(t, "3"), "no hello": rawManager(t, goodOpen)} {
		n := newNode(t, url, nil)
		n.pace.register = 100 * time.Millisecond
		if _, err := n.register(t.Context()); err == nil || (name != "no open" && !strings.Contains(err.Error(), "not finished within 100ms")) {
			t.Errorf("%s: got %v", name, err)
		}
		n.pace.register = time.Minute
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := n.register(ctx); err == nil || time.Since(start) > 5*time.Second {
			t.Errorf("%s, context ended: got %v after %s", name, err, time.Since(start))
		}
	}
}
