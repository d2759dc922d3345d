package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// The part of STUN (RFC 8489) that tells an address: a binding request without attributes and its response. By hand, for a library brings
// DTLS and TURN with it.
const (
	stunRequest  = 0x0001
	stunResponse = 0x0101
	stunCookie   = 0x2112a442
	stunMapped   = 0x0020 // XOR-MAPPED-ADDRESS
	stunHead     = 20
)

// Transaction names one binding request.
type Transaction [12]byte

var errSTUN = errors.New("not a binding message")

// BindingRequest returns the datagram that asks a reflector.
func BindingRequest(tx Transaction) []byte { return stunHeader(stunRequest, 0, tx) }

func stunHeader(kind uint16, length int, tx Transaction) []byte {
	b := make([]byte, 0, stunHead+length)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = binary.BigEndian.AppendUint32(b, stunCookie)
	return append(b, tx[:]...)
}

func parseSTUN(b []byte, kind uint16) (tx Transaction, attributes []byte, err error) {
	if len(b) < stunHead || binary.BigEndian.Uint16(b) != kind || binary.BigEndian.Uint32(b[4:]) != stunCookie ||
		int(binary.BigEndian.Uint16(b[2:])) != len(b)-stunHead {
		return tx, nil, errSTUN
	}
	copy(tx[:], b[8:stunHead])
	return tx, b[stunHead:], nil
}

// parseBindingRequest returns the transaction of a request. Attributes are not looked at.
func parseBindingRequest(b []byte) (Transaction, error) {
	tx, _, err := parseSTUN(b, stunRequest)
	return tx, err
}

// bindingResponse returns the datagram that tells an address. It is 12 bytes larger than the smallest request for IPv4, 24 for IPv6.
func bindingResponse(tx Transaction, seen netip.AddrPort) []byte {
	raw, family := seen.Addr().Unmap().AsSlice(), byte(1)
	if len(raw) == 16 {
		family = 2
	}
	b := stunHeader(stunResponse, 4+4+len(raw), tx)
	b = binary.BigEndian.AppendUint16(b, stunMapped)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(raw)))
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, seen.Port()^uint16(stunCookie>>16))
	pad := xorPad(tx)
	for i, c := range raw {
		b = append(b, c^pad[i])
	}
	return b
}

// xorPad is what addresses are mixed with, so that NATs that rewrite addresses in payloads do not find them.
func xorPad(tx Transaction) []byte {
	return append(binary.BigEndian.AppendUint32(nil, stunCookie), tx[:]...)
}

// ParseBindingResponse returns the address in a response.
func ParseBindingResponse(b []byte) (Transaction, netip.AddrPort, error) {
	tx, attributes, err := parseSTUN(b, stunResponse)
	if err != nil {
		return tx, netip.AddrPort{}, err
	}
	for len(attributes) >= 4 {
		kind, size := binary.BigEndian.Uint16(attributes), int(binary.BigEndian.Uint16(attributes[2:]))
		value := attributes[4:]
		if size > len(value) {
			break
		}
		if kind == stunMapped {
			seen, err := parseMapped(value[:size], tx)
			return tx, seen, err
		}
		attributes = value[min((size+3)&^3, len(value)):]
	}
	return tx, netip.AddrPort{}, errSTUN
}

func parseMapped(value []byte, tx Transaction) (netip.AddrPort, error) {
	if len(value) != 8 && len(value) != 20 || (len(value) == 8) != (value[1] == 1) {
		return netip.AddrPort{}, errSTUN
	}
	raw := make([]byte, len(value)-4)
	pad := xorPad(tx)
	for i := range raw {
		raw[i] = value[4+i] ^ pad[i]
	}
	ip, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(value[2:])^uint16(stunCookie>>16)), nil
}
