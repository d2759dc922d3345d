package register

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"skerry.internal/messages"
)

// raw is a websocket on which a test says what no client would.
type raw struct {
	t  testing.TB
	ws *websocket.Conn
}

func dial(t testing.TB, b *bench, eio int) raw {
	t.Helper()
	ws, err := openWebsocket(b, eio)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return raw{t, ws}
}

func openWebsocket(b *bench, eio int) (*websocket.Conn, error) {
	address := fmt.Sprintf("ws%s/socket.io/?EIO=%d&transport=websocket", strings.TrimPrefix(b.url, "http"), eio)
	ws, _, err := websocket.DefaultDialer.Dial(address, nil)
	return ws, err
}

// readPacket reads until a packet with the prefix comes, and returns it.
func readPacket(ws *websocket.Conn, prefix string) (string, error) {
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return "", fmt.Errorf("want %q: %w", prefix, err)
		}
		if strings.HasPrefix(string(b), prefix) {
			return string(b), nil
		}
	}
}

func parseHello(packet string) (messages.Hello, error) {
	var args []json.RawMessage
	var h messages.Hello
	if err := json.Unmarshal([]byte(strings.TrimPrefix(packet, "42/init,")), &args); err != nil {
		return h, err
	}
	return h, json.Unmarshal(args[1], &h)
}

func (r raw) send(packets ...string) {
	r.t.Helper()
	for _, p := range packets {
		if err := r.ws.WriteMessage(websocket.TextMessage, []byte(p)); err != nil {
			r.t.Fatalf("send %.40q: %v", p, err)
		}
	}
}

func (r raw) want(prefix string) string {
	r.t.Helper()
	packet, err := readPacket(r.ws, prefix)
	if err != nil {
		r.t.Fatal(err)
	}
	return packet
}

// wantEnd reads until the manager ends the connection.
func (r raw) wantEnd() {
	r.t.Helper()
	_ = r.ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		_, _, err := r.ws.ReadMessage()
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			r.t.Fatal("the connection goes on")
		}
		if err != nil {
			return
		}
	}
}

// joined connects /init and returns the Hello.
func (r raw) joined() messages.Hello {
	r.t.Helper()
	r.send("40/init,")
	r.want("40/init,")
	h, err := parseHello(r.want(`42/init,["sc1",`))
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r raw) wantRefused(code messages.RefusalCode) {
	r.t.Helper()
	if got := r.want("42/init,"); !strings.Contains(got, `["refused",{"code":"`+string(code)) {
		r.t.Errorf("got %.300s, want %s", got, code)
	}
	r.want("41/init,")
}

func info(name string, h messages.Hello, key ed25519.PrivateKey) string {
	n := messages.NodeInfo{
		Name: messages.NodeID(name), Key: base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)),
		Proof: messages.Prove(key, h), Protocol: messages.Protocol, Arch: "amd64",
	}
	return string(messages.Encode(n))
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request sends one HTTP request and returns status and body.
func request(t testing.TB, method, address, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// openPolling opens a polling connection of revision 4 and returns the address that continues it.
func openPolling(t testing.TB, b *bench) string {
	t.Helper()
	address := b.url + "/socket.io/?EIO=4&transport=polling"
	status, body := request(t, http.MethodGet, address, "")
	first, _, _ := strings.Cut(body, "\x1e")
	var open struct{ SID string }
	if err := json.Unmarshal([]byte(strings.TrimPrefix(first, "0")), &open); err != nil || status != http.StatusOK {
		t.Fatalf("handshake: %d %s %v", status, body, err)
	}
	return address + "&sid=" + open.SID
}

// handshake opens a websocket with next to no memory on this side.
func handshake(t testing.TB, b *bench, eio int) net.Conn {
	t.Helper()
	address := strings.TrimPrefix(b.url, "http://")
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET /socket.io/?EIO=%d&transport=websocket HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", eio, address)
	line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	if err != nil || !bytes.Contains([]byte(line), []byte("101")) {
		t.Fatalf("handshake: %q %v", line, err)
	}
	return c
}
