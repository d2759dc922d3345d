// Package ipam divides the addresses of the network and leases them: blocks to nodes, single addresses to services. It is pure: no system, no
// clock, no disk; the same calls in the same order give the same leases, and whoever owns a Table keeps what it has leased.
//
//	network   10.160.0.0/12
//	          ├── blocks of /26 for nodes and guests    the first three quarters
//	          └── service addresses                     the last quarter
//	network6  fd5c:ae11:9::/48: the offset of an IPv4 address in its network is the last 32 bits of the IPv6 address beside it
//
// In a block the second address is the node's own (its bridge, its DNS); containers have those behind it, up to the last but one.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// BlockBits is the length of the prefix of a block: 61 containers and the node's bridge.
const BlockBits = 26

// The sizes that a network may have. Smaller ones hold no block in each quarter, larger ones are no private addresses.
const (
	minBits = 8
	maxBits = BlockBits - 2
	// most6 leaves 32 bits for the offset.
	most6 = 96
)

// Plan is how the addresses of a network are divided.
type Plan struct {
	V4, V6 netip.Prefix
}

// NewPlan checks the prefixes of a network.
func NewPlan(v4, v6 netip.Prefix) (Plan, error) {
	var errs []error
	if !v4.IsValid() || !v4.Addr().Is4() || v4.Bits() < minBits || v4.Bits() > maxBits || v4 != v4.Masked() {
		errs = append(errs, fmt.Errorf("network %s: want an IPv4 prefix of /%d to /%d without further bits, such as 10.160.0.0/12", v4, minBits, maxBits))
	}
	if !v6.IsValid() || !v6.Addr().Is6() || v6.Addr().Is4In6() || v6.Bits() > most6 || v6 != v6.Masked() {
		errs = append(errs, fmt.Errorf("network %s: want an IPv6 prefix of at most /%d without further bits, such as fd5c:ae11:9::/48", v6, most6))
	}
	return Plan{V4: v4, V6: v6}, errors.Join(errs...)
}

// Services returns the part of the network that holds service addresses: its last quarter.
func (p Plan) Services() netip.Prefix {
	return netip.PrefixFrom(number(base(p.V4)+3*p.quarter()), p.V4.Bits()+2)
}

// quarter returns the number of addresses in one quarter of the network.
func (p Plan) quarter() uint32 { return 1 << (32 - p.V4.Bits() - 2) }

// Map returns the IPv6 address beside an IPv4 address of the network, and the invalid address for any other.
func (p Plan) Map(a netip.Addr) netip.Addr {
	if !a.Is4() || !p.V4.Contains(a) {
		return netip.Addr{}
	}
	b := p.V6.Addr().As16()
	binary.BigEndian.PutUint32(b[12:], word(a)-base(p.V4))
	return netip.AddrFrom16(b)
}

// MapPrefix returns the IPv6 prefix beside an IPv4 prefix of the network, and the invalid prefix for any other.
func (p Plan) MapPrefix(x netip.Prefix) netip.Prefix {
	a := p.Map(x.Addr())
	if !a.IsValid() || x.Bits() < p.V4.Bits() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, 96+x.Bits())
}

// Unmap returns the IPv4 address beside an IPv6 address of the network, and the invalid address for any other.
func (p Plan) Unmap(a netip.Addr) netip.Addr {
	if !p.V6.IsValid() || !p.V6.Contains(a) {
		return netip.Addr{}
	}
	b := a.As16()
	v4 := number(base(p.V4) + binary.BigEndian.Uint32(b[12:]))
	if !p.V4.Contains(v4) || p.Map(v4) != a {
		return netip.Addr{}
	}
	return v4
}

func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func base(p netip.Prefix) uint32 { return word(p.Addr()) }

func number(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
