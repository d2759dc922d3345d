//nolint:misspell // mosquitto is the name of a program
package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// The tests of this file speak with clients that others have written.

// authority is a CA of the test's own, with a certificate for the broker and one for a client.
type authority struct {
	pool           *x509.CertPool
	server, client tls.Certificate
	caFile         string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(serial int64, name string) tls.Certificate {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, own.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}
	}
	a := authority{pool: x509.NewCertPool(), server: issue(2, "broker"), client: issue(3, "node-1")}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(parsed)
	a.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(a.caFile, pemOf(der), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// pahoClient connects a paho client to url.
func pahoClient(t *testing.T, url string, change func(*paho.ClientOptions)) paho.Client {
	t.Helper()
	o := paho.NewClientOptions().AddBroker(url).SetConnectTimeout(patience).SetAutoReconnect(false).SetOrderMatters(false)
	if change != nil {
		change(o)
	}
	c := paho.NewClient(o)
	done(t, c.Connect())
	t.Cleanup(func() { c.Disconnect(0) })
	return c
}

func done(t *testing.T, token paho.Token) {
	t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("no success: %v", token.Error())
	}
}

func TestPahoOverEveryTransport(t *testing.T) {
	ca := newAuthority(t)
	cfg := open()
	server := &tls.Config{Certificates: []tls.Certificate{ca.server}, ClientCAs: ca.pool, ClientAuth: tls.VerifyClientCertIfGiven}
	cfg.Listeners = append(cfg.Listeners, Listener{Addr: "127.0.0.1:0", TLS: server})
	logins := make(chan Login, 10)
	cfg.Authenticate = func(l Login) (Client, error) { logins <- l; return Client{}, nil }
	b, _ := start(t, cfg)
	plain := httptest.NewServer(b.WebSocket(nil))
	defer plain.Close()
	secure := httptest.NewUnstartedServer(b.WebSocket(nil))
	secure.TLS = server.Clone()
	secure.StartTLS()
	defer secure.Close()
	for _, c := range []struct{ listener, url, peer string }{
		{"tcp", "tcp://" + b.Addrs()[0].String(), ""},
		{"tls", "ssl://" + b.Addrs()[1].String(), "node-1"},
		{"ws", "ws" + strings.TrimPrefix(plain.URL, "http") + "/mqtt", ""},
		{"ws", "ws" + strings.TrimPrefix(secure.URL, "http") + "/mqtt", "node-1"},
	} {
		t.Run(c.url[:3], func(t *testing.T) {
			client := pahoClient(t, c.url, func(o *paho.ClientOptions) {
				o.SetTLSConfig(&tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.client}})
			})
			l := <-logins
			if l.Listener != c.listener || (l.TLS != nil) != (c.peer != "") {
				t.Errorf("login %+v", l)
			}
			if c.peer != "" && (len(l.TLS.PeerCertificates) == 0 || l.TLS.PeerCertificates[0].Subject.CommonName != c.peer) {
				t.Errorf("the client's certificate was not seen: %+v", l.TLS)
			}
			got := make(chan paho.Message, 10)
			done(t, client.Subscribe("t/#", 1, func(_ paho.Client, m paho.Message) { got <- m }))
			large := bytes.Repeat([]byte("x"), 900<<10)
			for qos, payload := range [][]byte{[]byte("zero"), large, []byte("two")} {
				done(t, client.Publish("t/1", byte(qos), false, payload))
				if m := <-got; !bytes.Equal(m.Payload(), payload) {
					t.Errorf("QoS %d: %d bytes", qos, len(m.Payload()))
				}
			}
		})
	}
	if st := b.Stats(); st.Panics+st.SlowConsumers+st.Dropped != 0 {
		t.Errorf("%+v", st)
	}
}

func TestPahoComesBackByItself(t *testing.T) {
	b, addr := start(t, open())
	var connects atomic.Int32
	got := make(chan string, 10)
	c := pahoClient(t, "tcp://"+addr, func(o *paho.ClientOptions) {
		o.SetClientID("node").SetAutoReconnect(true).SetMaxReconnectInterval(50 * time.Millisecond)
		o.SetOnConnectHandler(func(c paho.Client) {
			c.Subscribe("t", 1, func(_ paho.Client, m paho.Message) { got <- string(m.Payload()) }).WaitTimeout(patience)
			connects.Add(1)
		})
	})
	for i := int32(1); i <= 3; i++ {
		eventually(t, "connected", func() bool { return connects.Load() == i && c.IsConnectionOpen() })
		if err := b.Publish(Message{Topic: "t", Payload: fmt.Append(nil, i), QoS: 1}); err != nil {
			t.Fatal(err)
		}
		if m := <-got; m != fmt.Sprint(i) {
			t.Errorf("got %s, want %d", m, i)
		}
		b.Disconnect("node")
	}
}

func TestTLSWithoutTheRightCertificate(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	cfg := open()
	cfg.Listeners = []Listener{{Addr: "127.0.0.1:0", TLS: &tls.Config{
		Certificates: []tls.Certificate{ca.server}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}}}
	cfg.ConnectTimeout = 300 * time.Millisecond
	b, addr := start(t, cfg)
	for name, conf := range map[string]*tls.Config{
		"none":  {RootCAs: ca.pool},
		"other": {RootCAs: ca.pool, Certificates: []tls.Certificate{other.client}},
	} {
		conn, err := tls.Dial("tcp", addr, conf)
		if err != nil {
			continue
		}
		_, _ = conn.Write(encode(connect(4, name)))
		if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
			t.Errorf("%s: answered", name)
		}
		conn.Close()
	}
	silent := dial(t, addr) // no handshake at all
	silent.wantClosed()
	eventually(t, "nobody is left", func() bool { st := b.Stats(); return st.Clients == 0 && st.Pending == 0 && st.ConnectTimeouts == 1 })
}

// mosquitto runs one of mosquitto's clients and returns its output when it ends.
func mosquitto(ctx context.Context, t *testing.T, tool, addr string, args ...string) <-chan string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		if os.Getenv("SKERRY_TEST_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip("mosquitto-clients is not installed")
	}
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.CommandContext(ctx, path, append([]string{"-h", host, "-p", port}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan string, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			fmt.Fprintf(&out, "[%v]", err)
		}
		ended <- out.String()
	}()
	return ended
}

func TestMosquitto(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			b, addr := start(t, open())
			sub := mosquitto(ctx, t, "mosquitto_sub", addr, "-V", version, "-q", "2", "-t", "t/#", "-C", "4", "-F", "%t %q %r %p")
			eventually(t, "subscribed", func() bool { return b.Stats().Subscriptions == 1 })
			for qos := range 3 {
				out := <-mosquitto(ctx, t, "mosquitto_pub", addr, "-V", version, "-q", fmt.Sprint(qos), "-t", "t/1", "-m", fmt.Sprint("hello ", qos), "-r")
				if out != "" {
					t.Errorf("mosquitto_pub: %s", out)
				}
			}
			if err := b.Publish(Message{Topic: "t/2", Payload: []byte("from the owner"), QoS: 2}); err != nil {
				t.Fatal(err)
			}
			want := "t/1 0 0 hello 0\nt/1 1 0 hello 1\nt/1 2 0 hello 2\nt/2 2 0 from the owner\n"
			if out := <-sub; out != want {
				t.Errorf("mosquitto_sub:\n%s\nwant\n%s", out, want)
			}
			kept := <-mosquitto(ctx, t, "mosquitto_sub", addr, "-V", version, "-t", "t/1", "-C", "1", "-F", "%r %p")
			if kept != "1 hello 2\n" {
				t.Errorf("retained: %s", kept)
			}
		})
	}
}

func TestMosquittoRequestAndResponse(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := open()
	var b *Broker
	cfg.OnPublish = func(_ Client, m Message) error {
		if m.Topic == "command" {
			return b.Publish(Message{Topic: m.ResponseTopic, Payload: []byte("accepted"), CorrelationData: m.CorrelationData, QoS: 1})
		}
		return nil
	}
	b, addr := start(t, cfg)
	sub := mosquitto(ctx, t, "mosquitto_sub", addr, "-V", "5", "-q", "1", "-t", "answer/me", "-C", "1", "-F", "%D %p")
	eventually(t, "subscribed", func() bool { return b.Stats().Subscriptions == 1 })
	out := <-mosquitto(ctx, t, "mosquitto_pub", addr, "-V", "5", "-q", "1", "-t", "command", "-m", "{}",
		"-D", "publish", "response-topic", "answer/me", "-D", "publish", "correlation-data", "c7f1")
	if out != "" {
		t.Errorf("mosquitto_pub: %s", out)
	}
	if out := <-sub; out != "c7f1 accepted\n" {
		t.Errorf("mosquitto_sub: %q", out)
	}
}

func TestMosquittoIsToldOfARefusal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := open()
	cfg.OnPublish = func(Client, Message) error { return fmt.Errorf("%w: no such job", ErrRefused) }
	cfg.Authenticate = func(l Login) (Client, error) {
		if l.Username != "u" || string(l.Password) != "p" {
			return Client{}, fmt.Errorf("wrong password")
		}
		return Client{}, nil
	}
	_, addr := start(t, cfg)
	pub := func(args ...string) string {
		return <-mosquitto(ctx, t, "mosquitto_pub", addr, append(args, "-t", "t", "-q", "1", "-m", "x")...)
	}
	if out := pub("-V", "5", "-u", "u", "-P", "p"); !strings.Contains(out, "Not authorized") {
		t.Errorf("refused publish: %q", out)
	}
	for _, version := range []string{"mqttv311", "mqttv5"} {
		if out := pub("-V", version, "-u", "u", "-P", "x"); !strings.Contains(out, "ot authori") {
			t.Errorf("refused login with %s: %q", version, out)
		}
	}
}

func TestMosquittoOverTLSWithAWill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ca := newAuthority(t)
	cfg := open()
	cfg.Listeners = append(cfg.Listeners, Listener{Addr: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{ca.server}}})
	b, plain := start(t, cfg)
	watch := login(t, plain, 4, "watch")
	watch.subscribe("will", 1)
	dying, kill := context.WithCancel(ctx)
	ended := mosquitto(dying, t, "mosquitto_sub", b.Addrs()[1].String(), "--cafile", ca.caFile, "-t", "t",
		"--will-topic", "will", "--will-payload", "killed", "--will-qos", "1")
	eventually(t, "subscribed", func() bool { return b.Stats().Subscriptions == 2 })
	kill()
	<-ended
	watch.wantMessage("will", "killed")
}
