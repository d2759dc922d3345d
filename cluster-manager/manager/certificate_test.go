package manager

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/cluster-manager/internal/register"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
	"skerry.internal/messages/trust"
	"skerry.internal/messages/trust/trusttest"
	"skerry.internal/netmanager/relay"
)

// secured is a manager with TLS and an overlay.
type secured struct {
	*served
	ca    *trusttest.Authority
	trust *tls.Config
	log   *bytes.Buffer // read it once the manager has ended
}

func serveSecured(t *testing.T) secured {
	t.Helper()
	cfg := testConfig(t)
	cfg.Network, cfg.Network6 = netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")
	cfg.MQTTS, cfg.TLSCert, cfg.TLSKey = "127.0.0.1:0", filepath.Join(cfg.Data, "cert.pem"), filepath.Join(cfg.Data, "key.pem")
	v := secured{ca: trusttest.New(t), log: new(bytes.Buffer)}
	v.ca.Write(t, cfg.TLSCert, cfg.TLSKey, nil)
	v.trust = trust.Config(v.ca.Roots(t), "")
	m, err := newManager(t.Context(), cfg, new(store.Memory), slog.New(slog.NewTextHandler(v.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	v.served = run(t, m)
	return v
}

// handshake returns which certificate a listener shows.
func (v secured) handshake(addr string) string {
	v.t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, v.trust)
	if err != nil {
		v.t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func (v secured) eventually(what string, ok func() bool) {
	v.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			v.t.Fatalf("never: %s", what)
		}
	}
}

// With a certificate everything but the plain MQTT of this host is TLS, and nodes are sent there.
func TestEverythingOverTLS(t *testing.T) {
	v := serveSecured(t)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: v.trust.Clone(), ForceAttemptHTTP2: true}}
	resp, err := client.Get("https://" + v.HTTPAddr() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 { // HTTP/2 would leave the relay without its Upgrade
		t.Errorf("healthz: got %s by %s", resp.Status, resp.Proto)
	}
	if resp, err = http.Get("http://" + v.HTTPAddr() + "/healthz"); err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "HTTP request to an HTTPS server") {
		t.Errorf("without TLS: got %s %q", resp.Status, body)
	}
	w, err := v.admit(t.Context(), messages.NodeInfo{Name: "a", Key: "k", CPU: messages.CPUInfo{Cores: 1}, MemoryMB: 1000}, register.Origin{Proved: true})
	if err != nil || fmt.Sprint(w.Brokers) != "[tls://"+v.MQTTSAddr()+"]" {
		t.Errorf("brokers: got %v, %v", w.Brokers, err)
	}
	if url := v.network().Relay; url != "https://"+v.HTTPAddr()+relay.Path {
		t.Errorf("relay: got %s", url)
	}
	for _, url := range []string{"ssl://" + v.MQTTSAddr(), "wss://" + v.HTTPAddr() + "/mqtt", "tcp://" + v.MQTTAddr()} {
		c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(url).SetClientID("node-a").SetUsername(w.Username).SetPassword(w.Password).SetTLSConfig(v.trust).SetAutoReconnect(false))
		if token := c.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
			t.Errorf("%s: %v", url, token.Error())
		}
		c.Disconnect(0)
	}
	old := v.trust.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
	for _, addr := range []string{v.HTTPAddr(), v.MQTTSAddr()} {
		if conn, err := tls.Dial("tcp", addr, old); err == nil {
			conn.Close()
			t.Errorf("%s speaks TLS 1.1", addr)
		}
	}
}

func TestRelayCarriesOverTLS(t *testing.T) {
	v := serveSecured(t)
	_, keyA := v.joinNet("a")
	_, keyB := v.joinNet("b")
	got := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	dial := func(key relay.Key) *relay.Client {
		c, err := relay.NewClient(relay.ClientConfig{URL: v.network().Relay, PrivateKey: key, TLS: v.trust}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			_ = c.Run(ctx, func(_ relay.Key, packet []byte) {
				select {
				case got <- string(packet):
				default:
				}
			})
		})
		return c
	}
	a, b := dial(keyA), dial(keyB)
	v.eventually("both are connected", func() bool { return a.Connected() && b.Connected() })
	v.eventually("a packet arrives", func() bool { a.Send(keyB.Public(), []byte("sealed")); return len(got) > 0 })
	if p := <-got; p != "sealed" {
		t.Errorf("got %q", p)
	}
}

// A client that does not finish its handshake has the time that others have for their first words, and holds nobody up.
func TestHandshakesThatNeverEnd(t *testing.T) {
	t.Parallel()
	v := serveSecured(t)
	var open []net.Conn
	for i := range 100 {
		addr := []string{v.HTTPAddr(), v.MQTTSAddr()}[i%2]
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%4 < 2 { // the beginning of a ClientHello
			_, _ = conn.Write([]byte{22, 3, 1, 0, 200, 1})
		}
		open = append(open, conn)
	}
	v.handshake(v.HTTPAddr())
	v.handshake(v.MQTTSAddr())
	for _, conn := range open {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); err != nil && os.IsTimeout(err) {
			t.Fatalf("%s leaves a handshake open", conn.RemoteAddr())
		}
	}
}

// A pair that was renewed on disk is shown without a restart. One that is damaged is not, and is said once.
func TestCertificateIsRenewed(t *testing.T) {
	v := serveSecured(t)
	first := v.handshake(v.HTTPAddr())
	v.ca.Write(t, v.cfg.TLSCert, v.cfg.TLSKey, nil)
	v.eventually("the HTTP server shows the new one", func() bool { return v.handshake(v.HTTPAddr()) != first })
	second := v.handshake(v.MQTTSAddr())
	if second == first {
		t.Error("MQTT shows the old one")
	}
	look := func() string {
		v.cert.mu.Lock()
		v.cert.looked = time.Time{}
		v.cert.mu.Unlock()
		return v.handshake(v.MQTTSAddr())
	}
	if err := os.WriteFile(v.cfg.TLSCert, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := look(); got != second {
			t.Errorf("damaged: got %s, want %s", got, second)
		}
	}
	if err := os.Remove(v.cfg.TLSKey); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := look(); got != second {
			t.Errorf("removed: got %s, want %s", got, second)
		}
	}
	v.ca.Write(t, v.cfg.TLSCert, v.cfg.TLSKey, nil)
	if got := look(); got == second {
		t.Error("not taken up after it was mended")
	}
	if err := v.end(); err != nil {
		t.Fatal(err)
	}
	if bad, good := strings.Count(v.log.String(), "of no use"), strings.Count(v.log.String(), "taken up"); bad != 2 || good != 2 {
		t.Errorf("said %d times that a pair is of no use and %d times that one was taken up, want 2 and 2:\n%s", bad, good, v.log)
	}
}

func TestCertificateOfNoUse(t *testing.T) {
	ca, dir := trusttest.New(t), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca.Write(t, in("cert"), in("key"), nil)
	ca.Write(t, in("other"), in("other-key"), nil)
	for _, c := range [][3]string{{"cert", "other-key", "does not match"}, {"nothing", "key", "no such file"}, {"cert", "nothing", "no such file"}, {"key", "cert", "PEM"}} {
		cfg := testConfig(t)
		cfg.TLSCert, cfg.TLSKey, cfg.MQTTS = in(c[0]), in(c[1]), "127.0.0.1:0"
		_, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c[2]) || !strings.Contains(err.Error(), "want a certificate and the private key") || !strings.Contains(err.Error(), "--tls-cert "+in(c[0])) {
			t.Errorf("%v: got %v", c, err)
		}
	}
}
