package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// stalled is how many handshakes are begun, and not ended, at each of the listeners with TLS.
const stalled = 1000

// Whatever anybody sends to the listeners with TLS, before a handshake and inside of one, a client over TLS is served, nodes join by https and memory is bounded.
func TestHostileTLS(t *testing.T) {
	l := emptyLab(t)
	ca, flags := l.secure()
	raiseFiles(t, l.manager)
	h := &hostile{lab: l, secured: &tls.Config{RootCAs: ca.Roots(t)}, mqtts: l.logLine(l.manager, 0, "listening")["mqtts"].(string)}
	w := newWitness(l, "ssl://"+h.mqtts, ca.File)
	w.during(func() {}) // warm
	w.trip("nobody", func() {})
	limit := max(3*w.trip("busy processors", spin), tripFloor)
	for _, attack := range []struct {
		name string
		run  func()
	}{
		{"handshakes that stall or go wrong", func() {
			var wg sync.WaitGroup
			wg.Go(func() { h.stall(func() { l.node("a", flags...) }) }) // takes the ten seconds that https has
			h.noHandshakes()
			h.renegotiate()
			wg.Wait()
		}},
		{"packets, registrations and http inside of TLS", func() {
			each(strangePackets(), 16, func(p []byte) { h.say(h.mqtt, connectPacket(4, "", "", ""), p, mqttPacket(0xc0, nil)) })
			h.securedRegistrations()
			h.http()
		}},
	} {
		if p99 := w.trip(attack.name, attack.run); p99 > limit {
			t.Errorf("%s: p99 of the others is %s, at most %s", attack.name, p99, limit)
		}
	}
	unhurt(t, l.manager)
	if peak := peakKiB(t, l.manager); peak > managerMemory {
		t.Errorf("the manager held %d KiB, at most %d", peak, managerMemory)
	}
	l.node("b", flags...)
	l.eventually("the connections are given back", func() bool { return openFiles(t, l.manager) < 100 })
}

// both are the addresses that are served with TLS: MQTT's and that of HTTP, with /init.
func (h *hostile) both() []string { return []string{h.mqtts, h.lab.http} }

// clientHello returns what a client begins with.
func (h *hostile) clientHello() []byte {
	near, far := net.Pipe()
	defer far.Close()
	config := h.secured.Clone()
	config.ServerName = "x"
	go func() { defer near.Close(); _ = tls.Client(near, config).Handshake() }()
	b := make([]byte, 16<<10)
	n, err := far.Read(b)
	if err != nil {
		h.t.Error(err)
	}
	return b[:n]
}

// noHandshakes sends what is no TLS, or breaks off, or goes wrong.
func (h *hostile) noHandshakes() {
	hello := h.clientHello()
	said := [][]byte{connectPacket(4, "", "", ""), []byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), nil, {0x16}, {0x16, 3, 1}, {0x80, 0x2e, 1, 3, 1},
		append([]byte{0x16, 3, 1, 0xff, 0xff}, noise(1<<16)...),                                             // a record that is too long
		bytes.Repeat([]byte{0x16, 3, 1, 0, 0}, 10_000),                                                      // records of nothing
		bytes.Repeat([]byte{0x15, 3, 1, 0, 2, 1, 0}, 10_000),                                                // warnings
		bytes.Repeat([]byte{0x14, 3, 3, 0, 1, 1}, 10_000),                                                   // changes of the cipher
		append([]byte{0x17, 3, 3, 0x10, 0}, noise(0x1000)...),                                               // data
		append(bytes.Clone(hello), hello...),                                                                // another ClientHello
		append(bytes.Clone(hello), append([]byte{0x14, 3, 3, 0, 1, 1, 0x17, 3, 3, 1, 0}, noise(256)...)...), // a Finished that is none
	}
	huge := append([]byte{0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}, make([]byte, 0x4000-4)...) // a ClientHello of 16 MiB, a record after the other
	for range 256 {
		huge = append(append(huge, 0x16, 3, 1, 0x40, 0), make([]byte, 0x4000)...)
	}
	said = append(said, huge)
	for i := range hello {
		changed := bytes.Clone(hello)
		changed[i] ^= 0xff
		said = append(said, hello[:i], changed)
	}
	plain := &hostile{lab: h.lab}
	for _, addr := range h.both() {
		each(said, 16, func(b []byte) { plain.say(addr, b) })
	}
}

// renegotiate asks for another handshake within the connection, which TLS 1.2 knows.
func (h *hostile) renegotiate() {
	for _, addr := range h.both() {
		cmd := exec.Command("openssl", "s_client", "-connect", addr, "-tls1_2")
		cmd.Stdin = strings.NewReader("R\n")
		out, err := cmd.CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("RENEGOTIATING")) || !bytes.Contains(out, []byte("unexpected message")) {
			h.t.Errorf("%s: %v: got %s", addr, err, out)
		}
	}
}

// stall begins handshakes, some with half a ClientHello and some with nothing, looks that what is to be done meanwhile can be, and waits until each has been let
// go.
func (h *hostile) stall(meanwhile func()) {
	hello := h.clientHello()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, addr := range h.both() {
		for i := range stalled {
			conn, err := net.DialTimeout("tcp", addr, soon)
			if err != nil {
				h.t.Error(err)
				return
			}
			_, _ = conn.Write(hello[:len(hello)/2*(i%2)])
			_ = conn.SetReadDeadline(time.Now().Add(soon))
			wg.Go(func() {
				defer conn.Close()
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					h.t.Errorf("%s: a handshake that stalls is kept for %s", addr, soon)
				}
			})
		}
	}
	meanwhile()
}

// securedRegistrations speaks to /init, and to MQTT, over wss.
func (h *hostile) securedRegistrations() {
	dialer := websocket.Dialer{TLSClientConfig: h.secured, HandshakeTimeout: soon}
	var packets []string
	for i := range 200 {
		packets = append(packets, string(noise(i*i)), "42/init,[\"cs1\","+strings.Repeat("[", i*100))
	}
	each(packets, 16, func(packet string) {
		ws, resp, err := dialer.Dial("wss://"+h.lab.http+"/socket.io/?transport=websocket&EIO=4", nil)
		if err != nil {
			if resp == nil || resp.StatusCode != http.StatusServiceUnavailable { // a full house is an answer
				h.t.Error(fmt.Errorf("wss: %w", err))
			}
			return
		}
		defer ws.Close()
		_ = ws.WriteMessage(websocket.TextMessage, []byte("40/init,"))
		_ = ws.WriteMessage(websocket.TextMessage, []byte(packet))
		_ = ws.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		for err == nil {
			_, _, err = ws.ReadMessage()
		}
	})
}

// handshake speaks TLS on a connection.
func (h *hostile) handshake(conn net.Conn, addr string) (net.Conn, error) {
	config := h.secured.Clone()
	config.ServerName, _, _ = net.SplitHostPort(addr)
	secured := tls.Client(conn, config)
	_ = conn.SetDeadline(time.Now().Add(soon))
	err := secured.Handshake()
	if err != nil {
		conn.Close()
	}
	return secured, err
}
