package tunnel

import (
	"bytes"
	"context"
	"time"

	"github.com/tailscale/wireguard-go/device"
)

// WireGuard repeats a handshake after 5 s and doubts a session after 15 s, which is long for a stream that waits. Two things can be known
// earlier: that a handshake was sent when there was no way to the peer yet, and that the peer holds a session which we, restarted, do not.
// Only the side without a session begins anew, for two handshakes that cross in flight undo one another.
const (
	healEvery = 50 * time.Millisecond
	patience  = 250 * time.Millisecond // for the answer to a handshake
	healAgain = time.Second
)

// session is the state of WireGuard's session with a peer.
type session struct {
	state device.PeerSessionState
	since time.Time
}

// event is what the bind saw of a peer.
type event struct {
	key   Key
	stale bool // it holds a session that we do not; else: it can be reached
}

// noteSession is called by WireGuard, under locks of its own.
func (d *Device) noteSession(key device.NoisePublicKey, state device.PeerSessionState) {
	d.sessionMu.Lock()
	defer d.sessionMu.Unlock()
	if state == device.PeerSessionNone {
		delete(d.sessions, Key(key))
		return
	}
	d.sessions[Key(key)] = session{state: state, since: time.Now()}
}

func (d *Device) sessionWith(key Key) session {
	d.sessionMu.Lock()
	defer d.sessionMu.Unlock()
	return d.sessions[key]
}

func (d *Device) hasSession(key Key) bool {
	return d.sessionWith(key).state == device.PeerSessionEstablished
}

// heal begins handshakes where WireGuard would wait, until ctx ends.
func (d *Device) heal(ctx context.Context, wg *device.Device) {
	tick := time.NewTicker(healEvery)
	defer tick.Stop()
	own := d.cfg.PrivateKey.Public()
	wounds := map[Key]wound{}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-d.events:
			w, known := wounds[e.key]
			if !known {
				w.due = time.Now()
				if !e.stale && bytes.Compare(own[:], e.key[:]) > 0 {
					w.due = w.due.Add(patience) // the other one may be doing this very thing
				}
			}
			w.stale = w.stale || e.stale
			wounds[e.key] = w
		case <-tick.C:
		}
		for key, w := range wounds {
			if d.treat(wg, key, &w) {
				delete(wounds, key)
			} else {
				wounds[key] = w
			}
		}
	}
}

// wound is a session that may have to be begun anew.
type wound struct {
	due   time.Time
	stale bool
	done  bool // and when due, forgotten
}

// treat begins a handshake if that is due, and says whether there is nothing more to do.
func (d *Device) treat(wg *device.Device, key Key, w *wound) bool {
	now := time.Now()
	s := d.sessionWith(key)
	if s.state == device.PeerSessionEstablished {
		return true
	}
	if now.Before(w.due) || (s.state == device.PeerSessionHandshake && !w.done && now.Sub(s.since) < patience) {
		return false
	}
	if w.done || (!w.stale && s.state != device.PeerSessionHandshake) {
		return true
	}
	p, ok := wg.LookupActivePeer(device.NoisePublicKey(key))
	if !ok {
		return true
	}
	if !d.bind.Renounce(key) {
		return false
	}
	if d.hasSession(key) { // since a moment
		return true
	}
	p.ExpireCurrentKeypairs() // also lets a handshake follow another at once
	d.log.Debug("handshake begun anew", "peer", key.String(), "stale", w.stale)
	_ = p.SendHandshakeInitiation(false) // WireGuard repeats it
	w.done, w.due = true, now.Add(healAgain)
	return false
}
