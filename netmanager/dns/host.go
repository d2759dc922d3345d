package dns

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	port = 53
	// lookAgain is how old the knowledge of the host's files may be.
	lookAgain = 2 * time.Second
	// maxFile bounds what is read of a configuration.
	maxFile = 1 << 20
)

// Host knows the name servers of this host as its files name them, and notices when the files change.
type Host struct {
	resolv  string // /etc/resolv.conf
	systemd string // what systemd-resolved itself asks

	mu      sync.Mutex // guards what follows
	looked  time.Time
	stamps  [2]stamp
	servers []netip.AddrPort
}

// stamp tells whether a file is still the same.
type stamp struct {
	modified time.Time
	size     int64
}

// NewHost returns the name servers of this host, as /etc/resolv.conf names them at any time.
func NewHost() *Host {
	return &Host{resolv: "/etc/resolv.conf", systemd: "/run/systemd/resolve/resolv.conf"}
}

// Upstreams returns the name servers. The files are looked at when they may have changed; nobody watches them while nobody asks.
//
// The stub of systemd-resolved comes first where it is named, since it alone knows which domains go to a VPN; the servers behind it follow, for when
// it is down.
func (h *Host) Upstreams() []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.servers != nil && now.Sub(h.looked) < lookAgain {
		return h.servers
	}
	h.looked = now
	stamps := [2]stamp{stampOf(h.resolv), stampOf(h.systemd)}
	if h.servers != nil && stamps == h.stamps {
		return h.servers
	}
	h.stamps = stamps
	servers := readServers(h.resolv)
	if slices.ContainsFunc(servers, isStub) {
		servers = append(servers, readServers(h.systemd)...)
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)} // as the C library has it
	}
	h.servers = servers
	return servers
}

func isStub(a netip.AddrPort) bool {
	return a.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

func readServers(path string) []netip.AddrPort {
	raw, err := os.ReadFile(path)
	if err != nil || len(raw) > maxFile {
		return nil
	}
	return parseResolv(raw)
}

// parseResolv reads the servers of a resolv.conf(5), each once; what it does not understand it passes over, as the C library does.
func parseResolv(raw []byte) []netip.AddrPort {
	var out []netip.AddrPort
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if s := netip.AddrPortFrom(a.Unmap(), port); err == nil && !a.IsUnspecified() && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
