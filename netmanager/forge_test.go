//go:build linux

package netmanager_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// malformed returns packets that are wrong in every way that we know of, and some by chance.
func malformed(src, dst netip.Addr) []kind {
	f := forge{src, dst, rand.New(rand.NewPCG(1, 2))} //nolint:gosec // the same packets every time
	if src.Is6() {
		return append(f.common(), f.wrong6()...)
	}
	return append(f.common(), f.wrong4()...)
}

func udpHeader(length int, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, 4000)
	b = binary.BigEndian.AppendUint16(b, 80)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	return append(append(b, 0, 0), data...)
}

func tcpHeader(offset, flags byte) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b, 4000)
	binary.BigEndian.PutUint16(b[2:], 80)
	b[12], b[13] = offset<<4, flags
	return b
}

const data = "0123456789abcdef"

func (f forge) udp() packet { return f.make(unix.IPPROTO_UDP, udpHeader(8+len(data), data)) }

func (f forge) icmp() byte {
	if f.src.Is6() {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}

// header is how long the IP header is that make puts before a body.
func (f forge) header() int {
	if f.src.Is6() {
		return ip6Header
	}
	return ipHeader
}

// common is what goes wrong in both families: above the IP header, and in its version and addresses.
func (f forge) common() []kind {
	var cut, version, transport, protocols, types, addresses, chance kind
	cut.name = "a header cut short"
	for n := 1; n <= f.header(); n++ {
		cut.packets = append(cut.packets, f.udp().cut(n))
	}
	version.name = "a version that is none"
	for v := range byte(16) {
		version.packets = append(version.packets, f.udp().with(func(b []byte) { b[0] = v<<4 | b[0]&15 }))
	}
	transport.name = "a transport header cut short or of a wrong length"
	for n := range 20 {
		transport.packets = append(transport.packets, f.make(unix.IPPROTO_TCP, tcpHeader(5, 2)[:n]))
	}
	for n := range 8 {
		transport.packets = append(transport.packets, f.make(unix.IPPROTO_UDP, udpHeader(8, "")[:n]), f.make(f.icmp(), make([]byte, n)))
	}
	for _, offset := range []byte{0, 4, 7, 15} {
		transport.packets = append(transport.packets, f.make(unix.IPPROTO_TCP, tcpHeader(offset, 2)))
	}
	for _, flags := range []byte{0, 0x3f, 0xff} {
		transport.packets = append(transport.packets, f.make(unix.IPPROTO_TCP, tcpHeader(6, flags)))
	}
	for _, length := range []int{0, 7, 9 + len(data), 0xffff} {
		transport.packets = append(transport.packets, f.make(unix.IPPROTO_UDP, udpHeader(length, data)))
	}
	transport.packets = append(transport.packets, f.udp().with(func(b []byte) { b[f.header()+6] ^= 0xff }))
	protocols.name, types.name = "every protocol", "every type of ICMP"
	for n := range 256 {
		protocols.packets = append(protocols.packets, f.make(byte(n), []byte(data)))
		types.packets = append(types.packets, f.make(f.icmp(), append([]byte{byte(n), 0, 0, 0, 0, 0, 0, 0}, data...)))
	}
	addresses.name = "a source that is none"
	sources := []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "10.175.255.255", "198.51.100.2"}
	if f.src.Is6() {
		sources = []string{"::", "::1", "ff02::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:10.160.0.2", "fe80::1", "2001:db8::1"}
	}
	for _, a := range append(sources, f.dst.String()) {
		from, to := f, f
		from.src, to.dst = netip.MustParseAddr(a), netip.MustParseAddr(a)
		for _, other := range []forge{from, to} {
			addresses.packets = append(addresses.packets, other.udp(), other.make(unix.IPPROTO_TCP, tcpHeader(5, 2)), other.make(f.icmp(), make([]byte, 8)))
		}
	}
	chance.name = "bytes by chance"
	for range 300 {
		chance.packets = append(chance.packets, f.udp().with(func(b []byte) {
			for range 1 + f.random.IntN(4) {
				b[f.random.IntN(len(b))] = byte(f.random.Uint32())
			}
		}))
	}
	return []kind{cut, version, transport, protocols, types, addresses, chance, f.errors()}
}

// errors is ICMP errors about packets that nobody sent or that are none.
func (f forge) errors() kind {
	mirror := forge{f.dst, f.src, f.random}
	quotes := [][]byte{nil, {0}, []byte(data), make([]byte, 28), make([]byte, 48), make([]byte, 500)}
	for _, by := range []forge{f, mirror} {
		whole := by.udp().b
		quotes = append(quotes, whole, whole[:f.header()], whole[:f.header()+7], whole[:f.header()+8], by.make(unix.IPPROTO_TCP, tcpHeader(5, 16)).b,
			by.make(unix.IPPROTO_TCP, tcpHeader(5, 16)).b[:f.header()+8], by.make(f.icmp(), []byte{3, 3, 0, 0, 0, 0, 0, 0}).b, by.make(132, []byte(data)).b,
			by.udp().with(func(b []byte) { b[0] = b[0]&0xf0 | 15 }).b, by.udp().with(func(b []byte) { b[0] &= 0xf0 }).b, by.udp().with(func(b []byte) { b[0] ^= 0x20 }).b,
			by.udp().with(func(b []byte) { b[6], b[7] = 0x1f, 0xff }).b)
	}
	list := []byte{3, 4, 5, 11, 12}
	if f.src.Is6() {
		list = []byte{1, 2, 3, 4, 100, 127}
	}
	k := kind{name: "an ICMP error about nonsense"}
	for _, t := range list {
		for _, code := range []byte{0, 4} {
			for _, mtu := range []uint32{0, 0xffffffff} {
				for _, quote := range quotes {
					k.packets = append(k.packets, f.make(f.icmp(), append(binary.BigEndian.AppendUint32([]byte{t, code, 0, 0}, mtu), quote...)))
				}
			}
		}
	}
	return k
}

// wrong4 is what goes wrong in the header of IPv4 and in its fragments.
func (f forge) wrong4() []kind {
	lengths := kind{name: "a length that is wrong"}
	for _, n := range []uint16{0, 1, 19, 20, 27, uint16(ipHeader + 7 + len(data)), uint16(ipHeader + 9 + len(data)), 0xffff} {
		lengths.packets = append(lengths.packets, f.udp().with(func(b []byte) { binary.BigEndian.PutUint16(b[2:], n) }))
	}
	for n := range byte(16) { // of the header
		lengths.packets = append(lengths.packets, f.udp().with(func(b []byte) { b[0] = 0x40 | n }))
	}
	hops := kind{name: "hops that are used up, a wrong checksum, options"}
	for n := range byte(2) {
		hops.packets = append(hops.packets, f.udp().with(func(b []byte) { b[8] = n }))
	}
	bad := f.udp()
	bad.b[10] ^= 0xff
	hops.packets = append(hops.packets, bad)
	for _, option := range []byte{0, 1, 7, 68, 130, 131, 137, 255} { // among them the record of a route, and routes that the source chose
		for _, length := range []byte{0, 1, 3, 8, 255} {
			body := append([]byte{option, length, 4, 0, 0, 0, 0, 0}, udpHeader(8+len(data), data)...)
			hops.packets = append(hops.packets, f.make(unix.IPPROTO_UDP, body).with(func(b []byte) { b[0] = 0x47 }))
		}
	}
	id := uint16(0)
	fragment := func(where uint16, proto byte, body []byte) packet {
		return f.make(proto, body).with(func(b []byte) {
			binary.BigEndian.PutUint16(b[4:], id)
			binary.BigEndian.PutUint16(b[6:], where)
		})
	}
	return []kind{lengths, hops, fragments(&id, fragment)}
}

// fragments returns those that fit together with nothing. One is made by its place in eights of bytes with the bits above it, as IPv4 has them.
func fragments(id *uint16, one func(where uint16, proto byte, body []byte) packet) kind {
	const more, reserved, whole = 0x2000, 0x8000, 0x4000
	k := kind{name: "fragments"}
	body := udpHeader(8+32, data+data)
	for _, places := range [][]uint16{
		{3, more}, {more | 3, 0}, {more, more, 3}, // the last first, the end before the first, one twice
		{more, 1}, {more, more | 2, more | 1, 4}, {more, 4, more | 2}, {more | 1, more}, // one over the other
		{more}, {7}, {more | 0x1fff}, {0x1fff}, {whole | more}, {reserved}, {0xffff}, {more, 0x1ffe}, // one alone, beyond the end of all, impossible bits
	} {
		for _, length := range []int{0, 1, 7, 8, 16, 24, 40} {
			for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, 47} {
				*id++
				for _, where := range places {
					k.packets = append(k.packets, one(where, proto, body[:length]))
				}
			}
		}
	}
	return k
}

// wrong6 is what goes wrong in the header of IPv6, in those that extend it and in fragments.
func (f forge) wrong6() []kind {
	lengths := kind{name: "a length or hops that are wrong"}
	for _, n := range []uint16{0, 1, 7, uint16(7 + len(data)), uint16(9 + len(data)), 0xffff} {
		lengths.packets = append(lengths.packets, f.udp().with(func(b []byte) { binary.BigEndian.PutUint16(b[4:], n) }))
	}
	for n := range byte(2) {
		lengths.packets = append(lengths.packets, f.udp().with(func(b []byte) { b[7] = n }))
	}
	chains := kind{name: "chains of extension headers"}
	for _, chain := range [][]byte{{0}, {0, 0}, {60, 0}, {43}, {51}, {50}, {59}, {44, 44}, {60, 60, 60, 60, 60, 60, 60}, {60, 60, 60, 60, 60, 60, 60, 60},
		{60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60}, {0, 60, 43, 44, 60}, {135}, {139}, {140}, {253}, {255}} {
		for _, length := range []byte{0, 1, 255} { // of the last one, in eights beyond the first
			for _, last := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ICMPV6, 59} {
				var body []byte
				for i := range chain {
					header := []byte{last, 0, 1, 4, 0, 0, 0, 0} // what follows, and options of padding
					if i+1 < len(chain) {
						header[0] = chain[i+1]
					} else {
						header[1] = length
					}
					body = append(body, header...)
				}
				p := f.make(chain[0], append(body, udpHeader(8+len(data), data)...))
				chains.packets = append(chains.packets, p, f.make(chain[0], body), f.make(chain[0], body[:len(body)-1]), f.make(chain[0], body[:len(body)-7]))
			}
		}
	}
	id := uint16(0)
	fragment := func(where uint16, proto byte, body []byte) packet {
		header := []byte{proto, byte(where >> 14), 0, 0, 0, 0, 0, 0} // impossible bits: those that are to be zero
		binary.BigEndian.PutUint16(header[2:], where&0x1fff<<3|where>>13&1)
		binary.BigEndian.PutUint16(header[6:], id)
		return f.make(44, append(header, body...))
	}
	return []kind{lengths, chains, fragments(&id, fragment)}
}
