package e2e

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
	"skerry.internal/netmanager/relay"
)

func publicKey(key ed25519.PrivateKey) string {
	return base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
}

func drain(r io.Reader) { _, _ = io.Copy(io.Discard, r) }

// mqttPacket frames a body.
func mqttPacket(first byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)
}

func mqttText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// connectPacket makes a CONNECT of MQTT 3.1.1 (4) or 5.
func connectPacket(version byte, id, user, password string) []byte {
	flags := byte(2)
	if user != "" {
		flags |= 0xc0
	}
	body := append(mqttText(nil, "MQTT"), version, flags, 0, 60)
	if version == 5 {
		body = append(body, 0)
	}
	body = mqttText(body, id)
	if user != "" {
		body = mqttText(mqttText(body, user), password)
	}
	return mqttPacket(0x10, body)
}

func publishPacket(topic string, qos byte, payload []byte) []byte {
	body := mqttText(nil, topic)
	if qos > 0 {
		body = append(body, 0, 1)
	}
	return mqttPacket(0x30|qos<<1, append(body, payload...))
}

// strangePackets returns every packet type with flags and bodies that are wrong for most of them: empty, one that is cut, one that is
// longer than it says, strings beyond the end, and lengths that no packet has.
func strangePackets() [][]byte {
	noise := make([]byte, 64)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	bodies := [][]byte{nil, {0}, {0, 1}, {0, 1, 0}, {0, 1, 0xff, 0xff, 'a'}, {0, 1, 0, 3, 'a', '/', '#', 7}, {0, 1, 0, 0}, {0xff, 0xff}, {0, 1, 0x26, 0, 0xff, 0xff},
		append([]byte{0, 0}, noise...), bytes.Repeat([]byte{0, 1, '#', 0}, 5000), noise}
	var all [][]byte
	for kind := range 16 {
		for _, flags := range []byte{0, 2, 15} {
			first := byte(kind)<<4 | flags
			for _, body := range bodies {
				all = append(all, mqttPacket(first, body))
			}
			all = append(all, []byte{first}, []byte{first, 0xff, 0xff, 0xff, 0x7f}, []byte{first, 0xff, 0xff, 0xff, 0xff, 0xff}, []byte{first, 10, 0, 1})
		}
	}
	for _, version := range []byte{0, 3, 4, 5, 6, 255} {
		whole := connectPacket(version, strings.Repeat("x", 300), "node-x", "\xff")
		all = append(all, whole, whole[:len(whole)/2], append(bytes.Clone(whole), whole...), bytes.ReplaceAll(whole, []byte("MQTT"), []byte("\xff\xfe\x00T")))
	}
	return all
}

// openings are what a connection may have said before.
func openings() [][]byte {
	return [][]byte{nil, connectPacket(4, "", "", ""), connectPacket(5, "", "", "")}
}

// each calls f for every item, many at once. f may end its goroutine, as Fatal does.
func each[T any](items []T, atOnce int, f func(T)) {
	places := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for _, item := range items {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			f(item)
		})
	}
	wg.Wait()
}

// say opens a connection, says something, hears for a moment what comes, and leaves without a word.
func (h *hostile) say(addr string, parts ...[]byte) {
	if h.secured != nil && addr == h.mqtt {
		addr = h.mqtts
	}
	conn, err := net.DialTimeout("tcp", addr, soon)
	if err == nil && h.secured != nil {
		conn, err = h.handshake(conn, addr)
	}
	if err != nil {
		h.t.Errorf("dial %s: %v", addr, err)
		return
	}
	defer conn.Close()
	for _, part := range parts {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write(part); err != nil {
			return // it has been closed, as it may be
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	drain(conn)
}

func (h *hostile) packets() {
	for _, opening := range openings() {
		each(strangePackets(), 16, func(packet []byte) { h.say(h.mqtt, opening, packet, mqttPacket(0xc0, nil)) })
	}
	// Some broken packets in a row on one connection, and a good one in pieces.
	var row []byte
	for _, p := range strangePackets() {
		row = append(row, p...)
	}
	h.say(h.mqtt, row)
	h.say(h.mqtt, connectPacket(4, "", "", ""), row)
	whole := connectPacket(5, "pieces", "", "")
	pieces := make([][]byte, len(whole))
	for i := range whole {
		pieces[i] = whole[i : i+1]
	}
	h.say(h.mqtt, pieces...)
}

func (h *hostile) webSocket() {
	url := "ws://" + h.lab.http + "/mqtt"
	dialer := websocket.Dialer{Subprotocols: []string{"mqtt"}, HandshakeTimeout: soon}
	for _, opening := range openings() {
		each(strangePackets(), 16, func(packet []byte) {
			ws, _, err := dialer.Dial(url, nil)
			if err != nil {
				h.t.Error(err)
				return
			}
			defer ws.Close()
			kind := websocket.BinaryMessage
			if rand.N(10) == 0 {
				kind = websocket.TextMessage
			}
			_ = ws.WriteMessage(websocket.BinaryMessage, opening)
			_ = ws.WriteMessage(kind, packet)
			_ = ws.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			_, _, _ = ws.ReadMessage()
		})
	}
	// Frames that are no WebSocket's: reserved bits, a length of 2^63, no mask, a control frame that is too long, garbage.
	upgrade := "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
	for _, frame := range [][]byte{{0xf2, 0x80}, {0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0x82, 0x05, 1, 2, 3, 4, 5}, {0x89, 0xfe, 0xff, 0xff}, {0x83, 0x80}, {0x80, 0x80, 0, 0, 0, 0}, {0x82}} {
		h.say(h.lab.http, []byte(upgrade), frame)
		h.say(h.lab.http, []byte(strings.Replace(upgrade, "/mqtt", "/socket.io/?EIO=4&transport=websocket", 1)), frame)
	}
	for _, bad := range []string{"Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 99", "Upgrade: nothing", "Sec-WebSocket-Protocol: chat"} {
		name, _, _ := strings.Cut(bad, ":")
		h.say(h.lab.http, []byte(replaceHeader(upgrade, name, bad)))
	}
}

func replaceHeader(request, name, line string) string {
	var b strings.Builder
	for l := range strings.Lines(request) {
		if strings.HasPrefix(l, name+":") {
			l = line + "\r\n"
		}
		b.WriteString(l)
	}
	return b.String()
}

func (h *hostile) http() {
	long := strings.Repeat("x", 1<<20)
	texts := []string{
		"\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /" + long + " HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nX: " + long + "\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + long,
		"POST /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + long, "GET http://[::1]:namedport/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + long[:500],
		strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 5000),
	}
	for range 50 {
		texts = append(texts, string(noise(4096)))
	}
	each(texts, 8, func(text string) { h.say(h.lab.http, []byte(text)) })
}

// slowHeaders begins 300 requests that send a byte now and then, for as long as they are let.
func (h *hostile) slowHeaders() {
	var wg sync.WaitGroup
	for range 300 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", h.lab.http)
			if err != nil {
				h.t.Error(err)
				return
			}
			defer conn.Close()
			gone := make(chan struct{})
			go func() { defer close(gone); drain(conn) }()
			_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n")
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for late := time.After(20 * time.Second); ; {
				select {
				case <-gone:
					return
				case <-late:
					h.t.Error("a request whose header does not end is let go on for 20 s")
					conn.Close()
					<-gone
					return
				case <-tick.C:
					_, _ = io.WriteString(conn, "X")
				}
			}
		})
	}
	wg.Wait()
}

func (h *hostile) registrations() {
	deep := strings.Repeat("[", 50_000)
	packets := []string{"", "0", "1", "2", "3", "4", "5", "6", "7", "40", "41", "42", "43", "44", "45", "450-", "4599999999-/init,[]", "451-/init,[\"cs1\",{\"_placeholder\":true,\"num\":0}]", "40/init,", "40/init," + deep,
		"42/init,[\"cs1\"", "42/init,[\"cs1\"]", "42/init,[" + deep, "42/init," + deep, "42/init,[\"cs1\"," + deep, "42/init,[1,2,3]", "42/other,[\"cs1\",{}]", "42/init,18446744073709551616[\"cs1\",{}]", "b" + deep, "\xff\xfe",
		"42/init,[\"" + strings.Repeat("x", 1<<20) + "\"]", "4", strings.Repeat("2probe", 100)}
	info := messages.NodeInfo{Name: h.id("liar"), Key: "k", Proof: "p", Protocol: 1, Arch: "amd64", CPU: messages.CPUInfo{Cores: 1, Model: "m"}, Addresses: []string{"a"}, Labels: map[string]string{"a": "b"},
		GPUs: []messages.GPUInfo{{Vendor: "v"}}, Sensors: []messages.SensorInfo{{Kind: "k"}}, Technologies: []messages.TechnologyInfo{{Name: "docker", Runtimes: []string{"r"}}}, Clock: messages.At(time.Now())}
	for _, payload := range spoil(info) {
		packets = append(packets, `42/init,["cs1",`+string(payload)+`]`)
	}
	for _, eio := range []string{"3", "4"} {
		hello := "40/init,"
		if eio == "3" {
			hello = "0/init,"
		}
		each(packets, 16, func(packet string) {
			h.introduce(eio, hello, packet)
			if rand.N(4) == 0 {
				h.introduce(eio, packet, packet)
			}
		})
	}
	for _, query := range []string{"", "EIO=4", "EIO=5&transport=polling", "EIO=4&transport=x", "EIO=4&transport=polling&j=0", "EIO=4&transport=polling&sid=x", "EIO=%ff&transport=%00", "EIO=4&EIO=3&transport=websocket"} {
		for _, method := range []string{"GET", "POST", "PUT", "OPTIONS"} {
			h.say(h.lab.http, fmt.Appendf(nil, "%s /socket.io/?%s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n4\xff\x1e", method, query))
		}
	}
	h.polling(packets)
}

// introduce begins a registration over a websocket and says what it should not.
func (h *hostile) introduce(eio string, packets ...string) {
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+h.lab.http+"/socket.io/?transport=websocket&EIO="+eio, nil)
	if err != nil {
		if resp == nil || resp.StatusCode != http.StatusServiceUnavailable { // a full house is an answer
			h.t.Error(err)
		}
		return
	}
	defer ws.Close()
	for i, p := range packets {
		kind := websocket.TextMessage
		if i > 0 && rand.N(10) == 0 {
			kind = websocket.BinaryMessage
		}
		_ = ws.WriteMessage(kind, []byte(p))
	}
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			return
		}
	}
}

// polling says the same over Engine.IO's other transport.
// relayAndReflector sends what is no greeting, no frame and no question to what is there for the nodes' tunnels.
func (h *hostile) relayAndReflector() {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		conn, err := net.Dial("udp", h.lab.http) // the reflector has the port of the HTTP server
		if err != nil {
			h.t.Error(err)
			return
		}
		defer conn.Close()
		question := []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
		for range 50_000 {
			b := slices.Clone(question[:rand.N(len(question)+1)])
			switch rand.N(3) {
			case 0: // cut, or whole
			case 1:
				b = append(b, noise(rand.N(1400))...)
			case 2:
				b = noise(rand.N(1400))
			}
			_, _ = conn.Write(b) // where nobody listens that is said by the next one
		}
	})
	upgrade := []byte("GET " + relay.Path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + relay.Protocol + "\r\n\r\n")
	each(make([]struct{}, 1000), 16, func(struct{}) {
		h.say(h.lab.http, upgrade, noise(rand.N(300)), noise(rand.N(2)*rand.N(70_000)))
	})
}

func (h *hostile) polling(packets []string) {
	// Not for long: who has not fetched the refusal of one packet waits for the next to be taken until its registration ends.
	client := &http.Client{Timeout: 200 * time.Millisecond, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	url := "http://" + h.lab.http + "/socket.io/?EIO=4&transport=polling"
	var some []string // of every kind
	for i := 0; i < len(packets); i += max(1, len(packets)/200) {
		some = append(some, packets[i])
	}
	each(some, 16, func(packet string) {
		resp, err := client.Get(url)
		if err != nil {
			return // a busy machine
		}
		body, _ := bufio.NewReader(resp.Body).ReadString(0)
		resp.Body.Close()
		_, sid, _ := strings.Cut(body, `"sid":"`)
		sid, _, _ = strings.Cut(sid, `"`)
		for _, text := range []string{"40/init,\x1e" + packet, packet} {
			resp, err := client.Post(url+"&sid="+sid, "text/plain", strings.NewReader(text))
			if err != nil {
				continue // closed in the middle of what is too much
			}
			drain(resp.Body)
			resp.Body.Close()
		}
	})
}

// halfOpen opens connections that say nothing, half of them to each port, and looks that new clients are served meanwhile.
func (h *hostile) halfOpen() {
	var limit unix.Rlimit // which raiseFiles has made as high as may be
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		h.t.Error(err)
		return
	}
	n := min(halfOpen, int(min(limit.Cur, 1<<20))-500)
	if n < halfOpen {
		h.t.Errorf("%d connections cannot be opened, only %d: the hard limit of descriptors is %d here, and has to be %d", halfOpen, n, limit.Cur, halfOpen+500)
	}
	conns := make(chan net.Conn, n)
	each(make([]struct{}, n/2), 16, func(struct{}) {
		for _, addr := range []string{h.mqtt, h.lab.http} {
			conn, err := net.DialTimeout("tcp", addr, soon)
			if err != nil {
				h.t.Error(err)
				return
			}
			conns <- conn
		}
	})
	h.t.Logf("%d half-open connections, of which the manager holds %d", len(conns), openFiles(h.t, h.manager))
	start := time.Now()
	resp, err := (&http.Client{Timeout: soon}).Get("http://" + h.lab.http + "/healthz")
	if err != nil {
		h.t.Error(err)
	} else {
		resp.Body.Close()
	}
	c := dial(h.lab, "newcomer", nil)
	c.Disconnect(0)
	h.t.Logf("a new client is served after %s", time.Since(start))
	close(conns)
	for conn := range conns {
		conn.Close()
	}
}

func newKey() ed25519.PrivateKey {
	_, key, _ := ed25519.GenerateKey(nil) // never fails
	return key
}
