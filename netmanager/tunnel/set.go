package tunnel

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/wireguard-go/device"

	"skerry.internal/netmanager/tunnel/bind"
)

// Set makes the peers be these. It may be called again at any time: only differences are applied, unchanged peers keep their sessions.
// Nothing is touched when one of the peers is wrong.
func (d *Device) Set(peers []Peer) error {
	want, err := d.check(peers)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.applyLocked(want)
}

// check returns the peers by key, or everything that is wrong with them.
func (d *Device) check(peers []Peer) (map[Key]Peer, error) {
	var problems []error
	want := make(map[Key]Peer, len(peers))
	owner := map[netip.Prefix]Key{}
	own := d.cfg.PrivateKey.Public()
	for _, p := range peers {
		if p.Key.IsZero() || p.Key == own {
			problems = append(problems, fmt.Errorf("peer %s: not another node's key", p.Key))
		}
		if _, twice := want[p.Key]; twice {
			problems = append(problems, fmt.Errorf("peer %s: twice", p.Key))
		}
		if p.Keepalive < 0 || p.Keepalive > 65535*time.Second {
			problems = append(problems, fmt.Errorf("peer %s: keepalive %v", p.Key, p.Keepalive))
		}
		p.Prefixes = slices.Clone(p.Prefixes)
		for i, prefix := range p.Prefixes {
			if !prefix.IsValid() || prefix.Addr().Is4In6() {
				problems = append(problems, fmt.Errorf("peer %s: prefix %v", p.Key, prefix))
				continue
			}
			prefix = prefix.Masked()
			p.Prefixes[i] = prefix
			if other, taken := owner[prefix]; taken {
				problems = append(problems, fmt.Errorf("peer %s: prefix %v is of peer %s", p.Key, prefix, other))
			}
			owner[prefix] = p.Key
		}
		p.Endpoints = slices.Clone(p.Endpoints)
		want[p.Key] = p
	}
	return want, errors.Join(problems...)
}

// applyLocked makes WireGuard and the bind know these peers. d.mu is held.
func (d *Device) applyLocked(want map[Key]Peer) error {
	configs := make([]bind.PeerConfig, 0, len(want))
	for _, p := range want {
		configs = append(configs, bind.PeerConfig{Key: p.Key, Endpoints: p.Endpoints})
	}
	if err := d.bind.Set(configs); err != nil {
		return err
	}
	if d.wg != nil {
		for key := range d.peers {
			if _, stays := want[key]; !stays {
				d.wg.RemovePeer(device.NoisePublicKey(key))
			}
		}
		if err := d.tell(want); err != nil {
			return err
		}
	}
	d.peers = want
	d.routes.Store(newRoutes(want))
	return nil
}

// tell gives WireGuard what is new or different.
func (d *Device) tell(want map[Key]Peer) error {
	var text strings.Builder
	for key, p := range want {
		old, known := d.peers[key]
		if known && old.PresharedKey == p.PresharedKey && old.Keepalive == p.Keepalive {
			continue
		}
		fmt.Fprintf(&text, "public_key=%s\n", hex.EncodeToString(key[:]))
		fmt.Fprintf(&text, "preshared_key=%s\n", hex.EncodeToString(p.PresharedKey[:]))
		fmt.Fprintf(&text, "persistent_keepalive_interval=%d\n", int(p.Keepalive/time.Second))
		if !known {
			fmt.Fprintf(&text, "endpoint=%s\n", key)
		}
	}
	if text.Len() > 0 {
		if err := d.wg.IpcSet(text.String()); err != nil {
			return fmt.Errorf("set peers: %w", err)
		}
	}
	// Who gains a prefix goes first, so that one that moves is somebody's at every moment.
	keys := slices.SortedFunc(maps.Keys(want), func(a, b Key) int { return gained(d.peers[b], want[b]) - gained(d.peers[a], want[a]) })
	for _, key := range keys {
		if p, ok := d.wg.LookupActivePeer(device.NoisePublicKey(key)); ok {
			p.SetAllowedIPs(want[key].Prefixes)
		}
	}
	return nil
}

// gained is 1 if the peer has a prefix that it did not have, else 0.
func gained(old, now Peer) int {
	for _, prefix := range now.Prefixes {
		if !slices.Contains(old.Prefixes, prefix) {
			return 1
		}
	}
	return 0
}

// routes finds the peer behind an address. It does not change.
type routes struct {
	bits4, bits6 []int // lengths of prefixes, longest first
	peers        map[netip.Prefix]Key
}

func newRoutes(peers map[Key]Peer) *routes {
	r := &routes{peers: map[netip.Prefix]Key{}}
	for key, p := range peers {
		for _, prefix := range p.Prefixes {
			r.peers[prefix] = key
			if bits := prefix.Bits(); prefix.Addr().Is4() {
				r.bits4 = append(r.bits4, bits)
			} else {
				r.bits6 = append(r.bits6, bits)
			}
		}
	}
	for _, bits := range []*[]int{&r.bits4, &r.bits6} {
		slices.SortFunc(*bits, func(a, b int) int { return b - a })
		*bits = slices.Compact(*bits)
	}
	return r
}

func (r *routes) find(a netip.Addr) (Key, bool) {
	bits := r.bits6
	if a.Is4() {
		bits = r.bits4
	}
	for _, n := range bits {
		prefix, err := a.Prefix(n)
		if err != nil {
			return Key{}, false
		}
		if key, ok := r.peers[prefix]; ok {
			return key, true
		}
	}
	return Key{}, false
}
