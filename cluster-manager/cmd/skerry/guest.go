package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"skerry.internal/cluster-manager/cmd/skerry/internal/view"
	"skerry.internal/messages"
)

func (a *app) guestCommand() *cobra.Command {
	return group("guest", "Let WireGuard clients into the network that are no nodes", "  skerry network guest add phone\n  skerry network guest list",
		a.guestAddCommand(), a.guestListCommand(), a.guestRemoveCommand())
}

// guest is one that is to be added.
type guest struct {
	name     string
	gateway  string
	output   string
	key      string // its public key, where the private one is elsewhere
	endpoint string
	qr       bool
	noDNS    bool

	private string // base64; "" where it is elsewhere
}

func (a *app) guestAddCommand() *cobra.Command {
	var g guest
	var w waiting
	c := &cobra.Command{Use: "add NAME", Short: "Let a WireGuard client in, and print its configuration",
		Long: `Let a stock WireGuard client into the network: a phone, a laptop, a router. Its key pair is made here, the private key is printed with the
configuration and goes nowhere else, and the manager learns the public one. On a terminal the configuration is shown as a QR code too, for the
WireGuard app of a phone. With --public-key the client keeps a private key that it has made itself.

The same NAME again gives the client a new key: the old configuration ends.`,
		Example: "  skerry network guest add phone\n  skerry network guest add laptop --output skerry.conf && sudo wg-quick up ./skerry.conf\n" +
			"  skerry network guest add office --gateway board-2 --endpoint vpn.example.org:51820",
		Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions}
	f := c.Flags()
	f.StringVar(&g.gateway, "gateway", "", "the node that lets it in (default: the manager chooses)")
	f.StringVar(&g.endpoint, "endpoint", "", "HOST:PORT by which the client reaches that node, where it is not what the node knows, such as behind a router")
	f.StringVar(&g.output, "output", "", "write the configuration into this new file, for you alone to read, and not to the terminal")
	f.StringVar(&g.key, "public-key", "", "public key of a client that keeps its private key to itself")
	f.BoolVar(&g.qr, "qr", false, "show the configuration as a QR code (default: on a terminal)")
	f.BoolVar(&g.noDNS, "no-dns", false, "leave out the network's name server: services are then reached by address only")
	f.DurationVar(&w.timeout, "timeout", time.Minute, "how long to wait for the manager's answer")
	a.completeFlag(c, "gateway", a.nodeNames)
	c.RunE = running(func(ctx context.Context, args []string) error {
		g.name = args[0]
		if !f.Changed("qr") {
			_, _, terminal := isTerminal(a.out)
			g.qr = terminal && g.output == "" && !a.json
		}
		return a.addGuest(ctx, g, w)
	})
	return c
}

func (a *app) addGuest(ctx context.Context, g guest, w waiting) error {
	if g.endpoint != "" {
		if host, port, err := net.SplitHostPort(g.endpoint); err != nil || host == "" || port == "" || strings.ContainsFunc(g.endpoint, unprintable) {
			return usagef("--endpoint %q: want HOST:PORT", g.endpoint)
		}
	}
	public := g.key
	if public == "" {
		var err error
		if g.private, public, err = keyPair(); err != nil {
			return err
		}
	}
	cmd := messages.GuestCommand{Command: messages.Add, Guest: g.name, PublicKey: public, Gateway: messages.NodeID(g.gateway), RequestID: w.requestID()}
	if err := cmd.Validate(); err != nil {
		return invalid(err)
	}
	out, done, err := g.open(a.out)
	if err != nil {
		return usagef("nothing was sent: %w", err)
	}
	var last messages.Result
	err = a.pursueWith(ctx, guestOrder(cmd.RequestID, messages.Add, messages.Encode(cmd)), w, &quietShow{app: a, last: &last})
	if err == nil && last.GuestConfig == nil {
		err = errors.New("the manager has let the guest in, but its answer holds no configuration")
	}
	if err == nil {
		err = a.printGuest(g, out, last)
	}
	return errors.Join(err, done(err == nil))
}

func guestOrder(request string, verb messages.Verb, payload []byte) order {
	return order{request: request, topic: messages.Topic{Kind: messages.GuestCommandTopic, Verb: verb}.String(), payload: payload, see: "skerry network guest list"}
}

// keyPair makes a pair of WireGuard, in base64.
func keyPair() (private, public string, err error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	raw := k.Bytes()
	raw[0] &= 248 // as wg genkey has it; the public key is the same
	raw[31] = raw[31]&127 | 64
	return base64.StdEncoding.EncodeToString(raw), base64.StdEncoding.EncodeToString(k.PublicKey().Bytes()), nil
}

// open returns where the configuration goes, and what is to be called in the end. The file is made before anything is sent: where it cannot be,
// nobody is let in with a key that is lost.
func (g *guest) open(stdout io.Writer) (io.Writer, func(good bool) error, error) {
	if g.output == "" {
		return stdout, func(bool) error { return nil }, nil
	}
	f, err := os.OpenFile(g.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return f, func(good bool) error {
		if good {
			return f.Close()
		}
		return errors.Join(f.Close(), os.Remove(g.output))
	}, nil
}

// printGuest writes what the client needs.
func (a *app) printGuest(g guest, out io.Writer, r messages.Result) error {
	text, err := g.config(*r.GuestConfig)
	if err != nil {
		return err
	}
	if a.json {
		private, raw := g.private, messages.Encode(r.GuestConfig)
		return line(out, messages.Encode(struct {
			GuestConfig json.RawMessage `json:"guest_config"`
			PrivateKey  string          `json:"private_key,omitempty"`
			Config      string          `json:"config"`
		}{raw, private, text}))
	}
	fmt.Fprintln(a.err, "skerry:", view.Sentence(r))
	if len(r.GuestConfig.Endpoints) == 0 && g.endpoint == "" {
		fmt.Fprintf(a.err, "skerry: %s knows no address at which it is reached from outside: give one by --endpoint HOST:PORT\n", r.GuestConfig.Gateway)
	}
	if g.output != "" {
		fmt.Fprintf(a.err, "skerry: the configuration is in %s\n", g.output)
	}
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	if !g.qr {
		return nil
	}
	_, _, terminal := isTerminal(a.out)
	code, err := view.QR(text, terminal)
	if err == nil {
		_, err = io.WriteString(a.out, "\n"+code)
	}
	return err
}

// config writes the file of wg-quick(8), which is also what the apps read from a QR code. What comes from the manager cannot break out of its line.
func (g *guest) config(c messages.GuestConfig) (string, error) {
	endpoint := g.endpoint
	if endpoint == "" && len(c.Endpoints) > 0 {
		endpoint = c.Endpoints[0]
	}
	lines := [][2]string{{"[Interface]", ""}, {"PrivateKey", g.private}, {"Address", strings.Join([]string{c.Address + "/32", c.Address6 + "/128"}, ", ")}}
	if g.private == "" {
		lines[1][1] = "(the private key of this client)"
	}
	if !g.noDNS && len(c.DNS) > 0 {
		lines = append(lines, [2]string{"DNS", strings.Join(append(c.DNS, messages.Zone), ", ")})
	}
	lines = append(lines, [2]string{"[Peer]", ""}, [2]string{"PublicKey", c.GatewayKey}, [2]string{"AllowedIPs", strings.Join(c.Allowed, ", ")})
	if endpoint != "" {
		lines = append(lines, [2]string{"Endpoint", endpoint})
	}
	lines = append(lines, [2]string{"PersistentKeepalive", "25"}) // so that a service can answer a client behind NAT that has been silent
	var b strings.Builder
	for _, l := range lines {
		if strings.ContainsFunc(l[1], unprintable) {
			return "", fmt.Errorf("the manager's answer cannot be used: %q is no %s", l[1], l[0])
		}
		if strings.HasPrefix(l[0], "[") {
			fmt.Fprintln(&b, l[0])
			continue
		}
		fmt.Fprintf(&b, "%s = %s\n", l[0], l[1])
	}
	return b.String(), nil
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// quietShow keeps the last Result for what follows, and says nothing but what went wrong.
type quietShow struct {
	app  *app
	last *messages.Result
}

func (s *quietShow) result(r messages.Result, _ []byte) {
	if r.Last() {
		*s.last = r
	}
}
func (s *quietShow) status(messages.JobStatus)       {}
func (s *quietShow) note(text string)                { fmt.Fprintln(s.app.err, "skerry:", text) }
func (s *quietShow) tick()                           {}
func (s *quietShow) failed(r messages.Result) string { return view.Sentence(r) }
func (s *quietShow) close()                          {}

func (a *app) guestListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the guests", Example: "  skerry network guest list\n  skerry network guest list --json",
		Args: cobra.NoArgs, RunE: running(func(ctx context.Context, _ []string) error {
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.listGuests(s) }, networkTopic(), messages.AllNodesFilter, messages.AllNetStatusFilter)
		})}
}

func (a *app) listGuests(s *snapshot) error {
	n, err := s.network()
	if err != nil {
		return err
	}
	if n == nil || n.Network == "" {
		return errors.New("the manager has no network")
	}
	if a.json {
		raws := make([][]byte, len(n.Guests))
		for i, g := range n.Guests {
			raws[i] = messages.Encode(g)
		}
		return jsonArray(a.out, raws)
	}
	if len(n.Guests) == 0 {
		_, err := fmt.Fprintln(a.err, "no guests; let one in with skerry network guest add NAME")
		return err
	}
	nodes, err := s.netNodes(nil)
	seen := map[string]messages.PeerUse{}
	for _, node := range nodes {
		if node.Measured == nil {
			continue
		}
		for _, p := range node.Measured.Peers {
			if p.Guest != "" {
				seen[p.Guest] = p
			}
		}
	}
	fmt.Fprint(a.out, a.style().Guests(n.Guests, seen))
	return err
}

func (a *app) guestRemoveCommand() *cobra.Command {
	var w waiting
	c := &cobra.Command{Use: "remove NAME...", Aliases: []string{"rm"}, Short: "End what guests may do, and give their addresses back",
		Example: "  skerry network guest remove phone", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeAll(a.guestNames),
		RunE: running(func(ctx context.Context, args []string) error {
			return a.orderEach(ctx, args, w, func(name, request string) (order, error) {
				cmd := messages.GuestCommand{Command: messages.Remove, Guest: name, RequestID: request}
				return guestOrder(request, messages.Remove, messages.Encode(cmd)), cmd.Validate()
			})
		})}
	addWaiting(c, &w)
	return c
}

func (a *app) guestNames(ctx context.Context) []string {
	return a.names(ctx, networkTopic(), func(_ messages.Topic, raw []byte) []string {
		var n messages.NetworkStatus
		if messages.DecodeFromManager(raw, &n) != nil {
			return nil
		}
		var names []string
		for _, g := range n.Guests {
			names = append(names, g.Guest)
		}
		return names
	})
}
