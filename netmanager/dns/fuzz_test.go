package dns

import (
	"bytes"
	"testing"

	wire "github.com/miekg/dns"
)

// FuzzPacket throws packets at the server: whatever comes is answered under its number, or not at all, and never harms.
func FuzzPacket(f *testing.F) {
	for _, name := range []string{"web.skerry.internal.", "_http._tcp.0.web.skerry.internal.", "1.0.172.10.in-addr.arpa.", "3.0.0.0.c.0.0.0.ip6.arpa.", "example.com.", "."} {
		packet, err := new(wire.Msg).SetQuestion(name, wire.TypeANY).SetEdns0(1232, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet, true)
	}
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), false)
	s := unplugged(nil)
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		before := bytes.Clone(packet)
		reply, later := s.begin(packet, tcp)
		if !bytes.Equal(packet, before) {
			t.Fatal("the packet was changed")
		}
		if later != nil {
			reply = later.answer(t.Context())
		}
		if reply == nil {
			return
		}
		if !bytes.Equal(reply[:2], packet[:2]) || reply[2]&0x80 == 0 {
			t.Errorf("%x is no answer to %x", reply, packet)
		}
		if m := new(wire.Msg); m.Unpack(reply) != nil {
			t.Errorf("%x cannot be read", reply)
		} else if !tcp && len(reply) > max(plainSize, mostByUDP) {
			t.Errorf("%d bytes by UDP", len(reply))
		}
	})
}

// FuzzReply throws packets at what looks at an upstream's answers, and files at what reads the host's configuration.
func FuzzReply(f *testing.F) {
	query, err := new(wire.Msg).SetQuestion("example.com.", wire.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	reply := bytes.Clone(query)
	reply[2] |= 0x80
	f.Add(reply, query)
	f.Add(reply[:headerSize], query)
	f.Add([]byte("nameserver 127.0.0.53\n"), []byte("nameserver fe80::1%eth0"))
	f.Fuzz(func(t *testing.T, reply, query []byte) {
		if answers(reply, query) && !bytes.Equal(reply[:2], query[:2]) {
			t.Errorf("%x passes for the answer to %x", reply, query)
		}
		for _, s := range parseResolv(reply) {
			if !s.IsValid() || s.Port() != port {
				t.Errorf("%s from %q", s, reply)
			}
		}
	})
}
