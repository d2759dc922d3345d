package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		h := &Host{resolv: filepath.Join(dir, "resolv.conf"), systemd: filepath.Join(dir, "systemd.conf")}
		write := func(path, text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		check := func(want ...string) {
			t.Helper()
			var got []string
			for _, u := range h.Upstreams() {
				got = append(got, u.String())
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		check("127.0.0.1:53") // no file: as the C library has it
		write(h.resolv, "# nameserver 1.1.1.1\nsearch lan\nnameserver 192.168.1.1 \n nameserver\tfe80::1%eth0\nnameserver x\nnameserver 192.168.1.1\nnameserver 0.0.0.0\nnameserver\n")
		check("127.0.0.1:53")
		time.Sleep(lookAgain)
		check("192.168.1.1:53", "[fe80::1%eth0]:53")
		write(h.systemd, "nameserver 10.0.0.1\nnameserver 2001:db8::1\n")
		write(h.resolv, "nameserver 127.0.0.53\noptions edns0 trust-ad\n")
		time.Sleep(lookAgain)
		check("127.0.0.53:53", "10.0.0.1:53", "[2001:db8::1]:53")
		write(h.systemd, "nameserver 10.0.0.2\n")
		time.Sleep(lookAgain)
		check("127.0.0.53:53", "10.0.0.2:53")
	})
}

func TestLimiter(t *testing.T) {
	l := newLimiter(3, 2)
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for _, want := range []struct {
		client netip.Addr
		ok     bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {c, false}} {
		if got := l.take(want.client); got != want.ok {
			t.Errorf("%s: got %t, want %t", want.client, got, want.ok)
		}
	}
	l.give(a)
	l.give(a)
	l.give(b)
	if len(l.by) != 0 || l.total != 0 {
		t.Errorf("%d of %d clients are left", l.total, len(l.by))
	}
}
