//go:build linux

package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"skerry.internal/netmanager/nettest"
)

func TestConflicts(t *testing.T) {
	overlay := []netip.Prefix{netip.MustParsePrefix("10.160.0.0/12"), netip.MustParsePrefix("fd5c:ae11:9::/48")}
	for name, test := range map[string]struct {
		setup    string // commands of ip, one a line
		used, on string // nothing: no conflict
		proposal string
	}{
		"nothing":              {setup: ""},
		"docker beside it":     {setup: "link add docker0 type bridge\naddress add 172.17.0.1/16 dev docker0"},
		"docker network in it": {setup: "link add br-1 type bridge\naddress add 10.170.0.1/16 dev br-1", used: "10.170.0.0/16", on: "br-1", proposal: "10.240.0.0/12"},
		"docker, link down": {setup: "link add br-1 type bridge\naddress add 10.160.0.1/24 dev br-1\nlink set br-1 down", used: "10.160.0.0/24", on: "br-1",
			proposal: "10.240.0.0/12"},
		"vpn around it":           {setup: "link add wg0 type bridge\nlink set wg0 up\nroute add 10.0.0.0/8 dev wg0", used: "10.0.0.0/8", on: "wg0", proposal: "172.16.0.0/12"},
		"vpn in a table":          {setup: "link add wg0 type bridge\nlink set wg0 up\nroute add 10.161.0.0/24 dev wg0 table 52", used: "10.161.0.0/24", on: "wg0", proposal: "10.240.0.0/12"},
		"point to point":          {setup: "link add ppp0 type bridge\nlink set ppp0 up\naddress add 192.0.2.1 peer 10.160.4.4/32 dev ppp0", used: "10.160.4.4/32", on: "ppp0", proposal: "10.240.0.0/12"},
		"vpn for everything":      {setup: "link add wg0 type bridge\nlink set wg0 up\nroute add 0.0.0.0/1 dev wg0\nroute add 128.0.0.0/1 dev wg0\nroute add default dev wg0"},
		"a black hole":            {setup: "route add blackhole 10.0.0.0/8"},
		"IPv6":                    {setup: "link add wg0 type bridge\nlink set wg0 up\n-6 route add fd5c:ae11::/32 dev wg0", used: "fd5c:ae11::/32", on: "wg0", proposal: "fd5c:ae12:9::/48"},
		"another engine":          {setup: "link add edgeb type bridge\nlink set edgeb alias skerry_edge\naddress add 10.160.0.65/26 dev edgeb"},
		"our own bridge":          {setup: "link add labb type bridge\naddress add 10.160.0.1/26 dev labb"},
		"everything private used": {setup: "link add vpn0 type bridge\nlink set vpn0 up\nroute add 10.0.0.0/8 dev vpn0\nroute add 172.16.0.0/12 dev vpn0\nroute add 100.64.0.0/10 dev vpn0", used: "10.0.0.0/8", on: "vpn0", proposal: "no range"},
	} {
		t.Run(name, func(t *testing.T) {
			h := nettest.NewHost(t, "node")
			for line := range strings.Lines(test.setup) {
				words := strings.Fields(line)
				for i := range words { // an alias with a space in it
					words[i] = strings.Replace(words[i], "skerry_", "skerry ", 1)
				}
				h.Run("ip", words...)
			}
			err := h.Try(func() error { return Conflicts(overlay, "lab") })
			if test.used == "" {
				if err != nil {
					t.Errorf("got %v, want no conflict", err)
				}
				return
			}
			var conflict *ConflictError
			if !errors.As(err, &conflict) {
				t.Fatalf("got %v, want a conflict", err)
			}
			if conflict.Used.String() != test.used || conflict.Link != test.on {
				t.Errorf("got %s on %s, want %s on %s", conflict.Used, conflict.Link, test.used, test.on)
			}
			if !strings.Contains(err.Error(), test.proposal) {
				t.Errorf("got %q, want %s proposed", err, test.proposal)
			}
		})
	}
}
