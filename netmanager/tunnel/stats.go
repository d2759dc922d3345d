package tunnel

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.internal/netmanager/tunnel/bind"
)

// Way is how packets get to a peer.
type Way string

// The ways.
const (
	None    Way = "none"    // nothing works yet
	Direct  Way = "direct"  // over UDP
	Relayed Way = "relayed" // through the relay
)

// NAT is what kind of address translation is between this node and the reflectors.
type NAT = bind.NAT

// PeerStats is what is known of the path to one peer.
type PeerStats struct {
	Key       Key
	Way       Way
	Endpoint  netip.AddrPort // where it is, when direct
	RTT       time.Duration  // 0: not measured
	PathMTU   int            // of IP packets on the underlay, when direct; 0: not known
	MTU       int            // of packets through the tunnel, as Device.MTU; 0: the path is no limit
	Rx, Tx    uint64         // bytes
	Handshake time.Time      // the last one; zero: none
}

// Stats is what is known of the device.
type Stats struct {
	NAT     NAT
	Relay   bool        // the relay's stream is open
	Peers   []PeerStats // by key
	Ignored uint64      // datagrams that were nothing of ours
}

// Stats returns what is known of the device and its peers.
func (d *Device) Stats() Stats {
	s := Stats{
		NAT: d.bind.NAT(), Ignored: d.bind.Ignored(),
		Relay: d.cfg.Relay != nil && d.cfg.Relay.Connected(),
	}
	counters := d.counters()
	for _, key := range d.bind.Keys() {
		path := d.bind.Path(key)
		p := counters[key]
		p.Key, p.RTT, p.Endpoint, p.PathMTU, p.MTU, p.Way = key, path.RTT, path.Addr, path.MTU, inside(path.Limit), None
		switch {
		case path.Direct:
			p.Way = Direct
		case path.Relayed:
			p.Way = Relayed
		}
		s.Peers = append(s.Peers, p)
	}
	slices.SortFunc(s.Peers, func(a, b PeerStats) int { return slices.Compare(a.Key[:], b.Key[:]) })
	return s
}

// counters reads what WireGuard counts. It tells that in its text protocol only.
func (d *Device) counters() map[Key]PeerStats {
	d.mu.Lock()
	wg := d.wg
	d.mu.Unlock()
	if wg == nil {
		return nil
	}
	text, err := wg.IpcGet()
	if err != nil {
		return nil
	}
	return parseCounters(text)
}

func parseCounters(text string) map[Key]PeerStats {
	found := map[Key]PeerStats{}
	var key Key
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		p := found[key]
		switch name {
		case "public_key":
			raw, err := hex.DecodeString(value)
			if err != nil || len(raw) != len(key) {
				return found
			}
			key = Key(raw)
			continue
		case "last_handshake_time_sec":
			if n != 0 {
				p.Handshake = time.Unix(n, 0)
			}
		case "last_handshake_time_nsec":
			if !p.Handshake.IsZero() {
				p.Handshake = p.Handshake.Add(time.Duration(n))
			}
		case "rx_bytes":
			p.Rx = uint64(n)
		case "tx_bytes":
			p.Tx = uint64(n)
		default:
			continue
		}
		found[key] = p
	}
	return found
}
