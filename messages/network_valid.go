package messages

import (
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
)

// validate reports all that is wrong with how a job is connected, and what of the job does not go with it.
func (n JobNetwork) validate(s *Spec) error {
	var p problems
	p.add(oneOf("job.network.mode", n.Mode, Overlay, HostNetwork, NoNetwork, BridgeNetwork),
		oneOf("job.network.policy", n.Policy, RoundRobin, Closest))
	if len(n.Allow) > maxListed {
		p.add(fmt.Errorf("job.network.allow: %d names, at most %d", len(n.Allow), maxListed))
	}
	for _, name := range n.Allow[:min(len(n.Allow), maxListed)] {
		p.add(CheckName("job.network.allow", string(name)))
	}
	if n.Mode != "" && n.Mode != Overlay && n.Allow != nil {
		p.add(fmt.Errorf("job.network.allow: does not go with mode %s, which has no service address", clip(string(n.Mode))))
	}
	if n.Mode != HostNetwork && n.Mode != NoNetwork {
		return p.err()
	}
	if len(s.Ports) > 0 {
		p.add(fmt.Errorf("job.ports: does not go with network mode %s: %s", n.Mode, map[NetworkMode]string{
			HostNetwork: "the program's ports are the node's already", NoNetwork: "there is nothing to publish"}[n.Mode]))
	}
	if h := s.Health; n.Mode == NoNetwork && h != nil && (h.HTTP != nil || h.TCP != nil) {
		p.add(errors.New("job.health: http and tcp does not go with network mode none: use exec"))
	}
	return p.err()
}

// CheckKey reports whether s is a public key of WireGuard in the one spelling that it has, and one that a secret can be shared with: the few
// points of small order, zero among them, are nobody's.
func CheckKey(field, s string) error {
	if err := checkKeyText(field, s); err != nil {
		return err
	}
	b, _ := base64.StdEncoding.DecodeString(s)
	public, err := ecdh.X25519().NewPublicKey(b)
	if err != nil {
		return fmt.Errorf("%s %q: %w", field, s, err)
	}
	// Every private key shares zero with such a point, and no other point does.
	anybodys, err := ecdh.X25519().NewPrivateKey(make([]byte, 32))
	if err != nil {
		return err
	}
	if _, err := anybodys.ECDH(public); err != nil {
		return fmt.Errorf("%s %q: no secret can be shared with it", field, s)
	}
	return nil
}

// checkKeyText is CheckKey of the spelling alone.
func checkKeyText(field, s string) error {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 32 || base64.StdEncoding.EncodeToString(b) != s {
		return fmt.Errorf("%s %q: want a public key of WireGuard, 44 characters of base64", field, clip(s))
	}
	return nil
}

// checkOptional is check for a text that may be absent.
func checkOptional(field, s string, check func(field, s string) error) error {
	if s == "" {
		return nil
	}
	return check(field, s)
}

// checkAll checks every one of a list of texts that has a most number of entries.
func checkAll(field string, texts []string, most int, check func(field, s string) error) error {
	if len(texts) > most {
		return fmt.Errorf("%s: %d entries, at most %d", field, len(texts), most)
	}
	for _, s := range texts {
		if err := check(field, s); err != nil {
			return err
		}
	}
	return nil
}

// checkEndpoint wants an address that packets can be sent to.
func checkEndpoint(field, s string) error {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
		return fmt.Errorf("%s %q: want an IP address and a port, such as 192.0.2.1:51820", field, clip(s))
	}
	return nil
}

func checkAddress4(field, s string) error {
	if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
		return fmt.Errorf("%s %q: want an IPv4 address", field, clip(s))
	}
	return nil
}

func checkPrefix(field, s string) error {
	if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() {
		return fmt.Errorf("%s %q: want a prefix of IP addresses, such as 10.160.0.0/26", field, clip(s))
	}
	return nil
}

// checkReason bounds a sentence.
func checkReason(field, s string) error {
	if len(s) > 4096 {
		return fmt.Errorf("%s: %d bytes, at most 4096", field, len(s))
	}
	return nil
}

// validate reports all that is wrong with what a node says of its tunnel when it registers.
func (o *OverlayInfo) validate() error {
	if o == nil {
		return nil
	}
	var p problems
	p.add(checkOptional("overlay.public_key", o.PublicKey, CheckKey), checkReason("overlay.reason", o.Reason),
		checkAll("overlay.endpoints", o.Endpoints, MaxEndpoints, checkEndpoint), checkAll("overlay.blocks", o.Blocks, MaxOwnBlocks, checkPrefix))
	return p.err()
}

// Validate reports all that is wrong with the endpoints.
func (e *Endpoints) Validate() error {
	var p problems
	p.add(checkOptional("public_key", e.PublicKey, CheckKey), checkReason("reason", e.Reason),
		checkAll("endpoints", e.Endpoints, MaxEndpoints, checkEndpoint), checkNAT(e.NAT))
	return p.err()
}

func checkNAT(s string) error { return checkOptional("nat", s, CheckName) }

// Validate reports all that is wrong with the interest.
func (i *Interest) Validate() error {
	var p problems
	p.add(checkNames("names", i.Names, MaxInterest), checkAll("addresses", i.Addresses, MaxInterest, checkAddress4))
	return p.err()
}

func checkNames(field string, names []JobName, most int) error {
	if len(names) > most {
		return fmt.Errorf("%s: %d names, at most %d", field, len(names), most)
	}
	for _, n := range names {
		if err := CheckName(field, string(n)); err != nil {
			return err
		}
	}
	return nil
}

// Validate reports all that is wrong with the configuration.
func (c *NetworkConfig) Validate() error {
	var p problems
	p.add(checkOptional("network", c.Network, checkPrefix), checkOptional("network6", c.Network6, checkPrefix),
		checkOptional("services", c.Services, checkPrefix), checkAll("blocks", c.Blocks, maxServices, checkPrefix),
		checkOptional("gateway", c.Gateway, checkAddress4), checkReason("reason", c.Reason))
	if len(c.Blocks) > 0 && (c.Network == "" || c.Network6 == "" || c.Gateway == "") {
		p.add(errors.New("blocks: given without network, network6 or gateway"))
	}
	if len(c.Peers) > maxPeers {
		p.add(fmt.Errorf("peers: %d, at most %d", len(c.Peers), maxPeers))
	}
	for i := range c.Peers[:min(len(c.Peers), maxPeers)] {
		p.add(c.Peers[i].validate())
	}
	return p.err()
}

// validate leaves a key that is nobody's to the node: it does without that peer, and not without all of them.
func (q *Peer) validate() error {
	var p problems
	p.add(checkOptional("peers.node", string(q.Node), CheckName), checkOptional("peers.guest", q.Guest, CheckName), checkKeyText("peers.key", q.Key),
		checkAll("peers.prefixes", q.Prefixes, maxServices, checkPrefix), checkAll("peers.endpoints", q.Endpoints, MaxEndpoints, checkEndpoint))
	for _, i := range q.Instances {
		p.add(checkAddress4("peers.instances.address", i.Address), checkAddress4("peers.instances.service", i.Service),
			CheckName("peers.instances.job", string(i.Job)))
	}
	return p.err()
}

// Validate reports all that is wrong with the update.
func (u *ServiceUpdate) Validate() error {
	var p problems
	if len(u.Services) > maxServices {
		p.add(fmt.Errorf("services: %d, at most %d", len(u.Services), maxServices))
	}
	for i := range u.Services[:min(len(u.Services), maxServices)] {
		p.add(u.Services[i].validate("services."))
	}
	p.add(checkNames("gone", u.Gone, maxServices))
	return p.err()
}

// Validate reports all that is wrong with the service.
func (s *ServiceEntry) Validate() error { return s.validate("") }

func (s *ServiceEntry) validate(where string) error {
	var p problems
	p.add(CheckName(where+"job", string(s.Job)), checkAddress4(where+"round_robin", s.RoundRobin), checkAddress4(where+"closest", s.Closest),
		oneOf(where+"policy", s.Policy, RoundRobin, Closest), checkNames(where+"allow", s.Allow, maxListed))
	for i, port := range s.Ports {
		if !port.valid() {
			p.add(fmt.Errorf("%sports[%d]: want container 1 to 65535, host 0 to 65535, protocol tcp or udp", where, i))
		}
	}
	if len(s.Instances) > MaxReplicas {
		p.add(fmt.Errorf("%sinstances: %d, at most %d", where, len(s.Instances), MaxReplicas))
	}
	for _, i := range s.Instances[:min(len(s.Instances), MaxReplicas)] {
		if i.Ordinal < 0 || i.Ordinal > maxNumber || i.Generation < 0 || i.Generation > maxNumber {
			p.add(fmt.Errorf("%sinstances: want an ordinal and a generation of 0 to %d", where, maxNumber))
		}
		p.add(checkAddress4(where+"instances.service", i.Service), checkOptional(where+"instances.address", i.Address, checkAddress4),
			checkOptional(where+"instances.node", string(i.Node), CheckName))
	}
	return p.err()
}

// Validate reports whether the status can be understood.
func (s *NetworkStatus) Validate() error {
	return errors.Join(checkOptional("network", s.Network, checkPrefix), checkOptional("network6", s.Network6, checkPrefix))
}

// Validate reports whether the status can be understood.
func (s *NetStatus) Validate() error {
	return errors.Join(s.validate(), checkReason("reason", s.Reason), checkReason("no_names", s.NoNames), checkReason("no_ipv6", s.NoIPv6), checkNAT(s.NAT))
}

func (u *OverlayUse) validate() error {
	if u != nil && (len(u.Peers) > maxPeers || len(u.Flows) > maxFlows) {
		return fmt.Errorf("peers or flows: too many, at most %d and %d", maxPeers, maxFlows)
	}
	return nil
}
