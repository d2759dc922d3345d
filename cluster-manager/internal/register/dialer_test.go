package register

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/googollee/go-socket.io/engineio"
	"github.com/googollee/go-socket.io/engineio/transport"
	"github.com/googollee/go-socket.io/engineio/transport/polling"
	"github.com/googollee/go-socket.io/engineio/transport/websocket"
	"github.com/googollee/go-socket.io/parser"

	"skerry.internal/messages"
)

// TestMain silences the library's client side, which complains in the background about polls that the end of a test cuts off.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// TestDialer registers 400 at once with googollee's own client side, as a node engine does.
func TestDialer(t *testing.T) {
	poll := &polling.Transport{Client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 800}, Timeout: time.Minute}}
	for _, tr := range []transport.Transport{websocket.Default, poll} {
		t.Run(tr.Name(), func(t *testing.T) {
			b := serve(t, Config{Timeout: 30 * time.Second})
			key := newKey(t)
			var wg sync.WaitGroup
			for i := range 400 {
				wg.Go(func() {
					if err := dialerRegisters(b, tr, fmt.Sprintf("n-%d", i), key); err != nil {
						t.Errorf("node %d: %v", i, err)
					}
				})
			}
			wg.Wait()
			if st := b.Stats(); st.Welcomed != 400 || st.Refused != 0 {
				t.Errorf("got %+v", st)
			}
		})
	}
}

func dialerRegisters(b *bench, tr transport.Transport, name string, key ed25519.PrivateKey) error {
	dialer := engineio.Dialer{Transports: []transport.Transport{tr}}
	c, err := dialer.Dial(b.url+"/socket.io/", nil)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer c.Close()
	send, receive := parser.NewEncoder(c), parser.NewDecoder(c)
	if err := send.Encode(parser.Header{Type: parser.Connect, Namespace: messages.Namespace}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	raw, err := nextEvent(receive, messages.HelloEvent)
	if err != nil {
		return err
	}
	var h messages.Hello
	if err := json.Unmarshal(raw, &h); err != nil {
		return err
	}
	header := parser.Header{Type: parser.Event, Namespace: messages.Namespace}
	if err := send.Encode(header, []any{messages.NodeInfoEvent, json.RawMessage(info(name, h, key))}); err != nil {
		return fmt.Errorf("cs1: %w", err)
	}
	raw, err = nextEvent(receive, messages.WelcomeEvent)
	if err != nil {
		return err
	}
	var w messages.Welcome
	if err := json.Unmarshal(raw, &w); err != nil || w.ID != messages.NodeID(name) {
		return fmt.Errorf("welcome %s: %w", raw, err)
	}
	return nil
}

// nextEvent returns the argument of the next event of that name.
func nextEvent(d *parser.Decoder, name string) (json.RawMessage, error) {
	for {
		var h parser.Header
		var event string
		if err := d.DecodeHeader(&h, &event); err != nil {
			return nil, fmt.Errorf("want %s: %w", name, err)
		}
		if h.Type != parser.Event || event != name {
			if err := d.DiscardLast(); err != nil {
				return nil, fmt.Errorf("want %s: %w", name, err)
			}
			continue
		}
		args, err := d.DecodeArgs([]reflect.Type{reflect.TypeFor[json.RawMessage]()})
		if err != nil {
			return nil, fmt.Errorf("want %s: %w", name, err)
		}
		return args[0].Interface().(json.RawMessage), nil
	}
}
