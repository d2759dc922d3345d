package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
	"skerry.internal/messages/trust/trusttest"
)

// secure gives the lab's manager a certificate for the address that it listens at, and returns what nodes are to be told.
func (l *lab) secure() (ca *trusttest.Authority, flags []string) {
	l.t.Helper()
	host, _, err := net.SplitHostPort(l.http)
	if err != nil {
		l.t.Fatal(err)
	}
	ca = trusttest.New(l.t)
	cert, key := filepath.Join(l.dir, "cert.pem"), filepath.Join(l.dir, "key.pem")
	ca.Write(l.t, cert, key, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP(host)} })
	l.flags = append(l.flags, "--tls-cert", cert, "--tls-key", key, "--mqtts", net.JoinHostPort(host, "0"))
	l.startManager()
	l.follow()
	return ca, []string{"--manager", "https://" + l.http, "--manager-ca", ca.File}
}

// A node registers, takes a job and reports it over TLS alone, and mosquitto's own client reads it there. A node that does not know the
// authority says what to do.
func TestClusterOverTLS(t *testing.T) {
	t.Parallel()
	l := emptyLab(t)
	ca, flags := l.secure()
	a := l.node("a", flags...)
	l.do(deployCommand(app("web", 1, nil), a))
	l.waitJob("web", "healthy", func(s messages.JobStatus) bool { return s.Healthy == 1 })

	host, port, err := net.SplitHostPort(l.logLine(l.manager, 0, "listening")["mqtts"].(string))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	//nolint:misspell // Debian's broker is called so
	out, err := exec.CommandContext(ctx, "mosquitto_sub", "-h", host, "-p", port, "--cafile", ca.File, "-t", "jobs/web/status", "-C", "1").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"job":"web"`) {
		t.Errorf("mosquitto_sub: %v: %s", err, out) //nolint:misspell // as above
	}

	b := l.startNode("b", append(flags, "--manager-ca", trusttest.New(t).File)...)
	said := fmt.Sprint(l.logLine(l.nodes[b], 0, "not in session")["err"])
	if want := "of no authority that is trusted here: name the file of the right one by --manager-ca"; !strings.Contains(said, want) {
		t.Errorf("got %q, want it to say %q", said, want)
	}
	if s, there := l.nodeStatus(b); there {
		t.Errorf("it is known all the same: %+v", s)
	}
}

// Two nodes between which no datagram gets through reach one another by the relay on the manager's HTTPS port.
func TestServiceOverRelayWithTLS(t *testing.T) {
	t.Parallel()
	l := emptyHosts(t, "a", "b")
	_, flags := l.secure()
	for _, name := range []string{"a", "b"} {
		l.hosts[name].Run("iptables", "-A", "INPUT", "-i", "eth0", "-p", "udp", "-j", "DROP")
		l.networkNode(name, flags...)
	}
	l.serve("web", 1, l.id("b"))
	l.serve("client", 1, l.id("a"))
	l.eventually("an answer by name", func() bool {
		got, err := l.tryAsk("client", "http://web.skerry.internal:8080/", 10)
		return err == nil && got.Failed == 0
	})
	said := make(chan messages.NetStatus, 100)
	token := l.client.Subscribe(messages.Topic{Kind: messages.NetStatusTopic, Node: l.id("a")}.String(), 1, func(_ mqtt.Client, m mqtt.Message) {
		var s messages.NetStatus
		if json.Unmarshal(m.Payload(), &s) == nil {
			select {
			case said <- s:
			default:
			}
		}
	})
	if !token.WaitTimeout(soon) || token.Error() != nil {
		t.Fatalf("subscribe: %v", token.Error())
	}
	for deadline := time.After(soon); ; {
		select {
		case s := <-said:
			if slices.ContainsFunc(s.Peers, func(p messages.PeerUse) bool { return p.Node == l.id("b") && p.Path == messages.Relayed }) {
				return
			}
		case <-deadline:
			t.Fatal("b is never said to be relayed")
		}
	}
}
