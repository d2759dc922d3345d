package dns

import (
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"
)

// ttl is how long an answer about the zone may be kept, in seconds. Addresses last as long as their job, so that this bounds only how long a
// deleted or a new job may go unnoticed.
const ttl = 5

// zone answers for the jobs' domain and for the addresses of the overlay.
type zone struct {
	apex     string // with the dot at its end
	depth    int    // labels of it
	networks []netip.Prefix
	self     []netip.Addr
	serial   *atomic.Uint32
}

func newZone(apex string, networks []netip.Prefix, listen []netip.AddrPort) zone {
	z := zone{apex: strings.ToLower(wire.Fqdn(strings.TrimSpace(apex))), networks: networks, serial: &atomic.Uint32{}}
	z.depth = wire.CountLabel(z.apex)
	z.serial.Store(uint32(time.Now().Unix()))
	for _, l := range listen {
		z.self = append(z.self, l.Addr())
	}
	return z
}

// answer is what the zone says to a question.
type answer struct {
	rcode   int
	records []wire.RR
	extra   []wire.RR
	soa     string // the zone to name when there are no records
	job     string // the job of the table that was asked about
	miss    string // the job that the table does not hold
}

// look answers a question from a table; ours is false where it is not about the zone.
func (z zone) look(q wire.Question, t *Table) (a answer, ours bool) {
	if wire.IsSubDomain(z.apex, q.Name) {
		return z.forward(q, t), true
	}
	if strings.HasSuffix(strings.ToLower(q.Name), ".arpa.") {
		return z.reverse(q, t)
	}
	return answer{}, false
}

// forward answers for a name.
func (z zone) forward(q wire.Question, t *Table) answer {
	labels := wire.SplitDomainName(strings.ToLower(q.Name))
	labels = labels[:len(labels)-z.depth]
	if len(labels) == 0 {
		return z.top(q)
	}
	name := labels[len(labels)-1]
	job := t.job(name)
	switch {
	case job == nil && isLabel(name):
		return answer{miss: name, rcode: wire.RcodeNameError, soa: z.apex}
	case job == nil:
		return answer{rcode: wire.RcodeNameError, soa: z.apex}
	}
	return z.job(q, job, labels[:len(labels)-1])
}

// top answers for the domain itself: it is its own name server, and that is this node.
func (z zone) top(q wire.Question) answer {
	var a answer
	switch q.Qtype {
	case wire.TypeSOA:
		a.records = []wire.RR{z.start(q.Name)}
	case wire.TypeNS:
		a.records = []wire.RR{&wire.NS{Hdr: header(q.Name, wire.TypeNS), Ns: z.apex}}
	default:
		for _, s := range z.self {
			a.records = append(a.records, addresses(q.Name, q.Qtype, s)...)
		}
	}
	if len(a.records) == 0 {
		a.soa = z.apex
	}
	return a
}

// job answers for a name of one job; labels are those before the job's own.
func (z zone) job(q wire.Question, j *Job, labels []string) answer {
	a := answer{soa: z.apex, job: j.Name}
	var service []string // _http and _tcp, or _tcp
	for len(labels) > 0 && strings.HasPrefix(labels[0], "_") {
		service, labels = append(service, labels[0]), labels[1:]
	}
	kind := strings.Join(labels, ".")
	v4, v6, ok := j.kind(kind)
	if !ok {
		a.rcode = wire.RcodeNameError
		return a
	}
	target := j.Name + "." + z.apex
	if kind != "" {
		target = kind + "." + target
	}
	switch {
	case len(service) == 0:
		a.records = addresses(q.Name, q.Qtype, v4, v6)
	case len(service) == 1 && j.speaks(strings.TrimPrefix(service[0], "_")): // nothing there, but names below it
	case len(service) == 2:
		p, found := j.port(service[0], strings.TrimPrefix(service[1], "_"))
		if !found {
			a.rcode = wire.RcodeNameError
			return a
		}
		if q.Qtype == wire.TypeSRV || q.Qtype == wire.TypeANY {
			a.records = []wire.RR{&wire.SRV{Hdr: header(q.Name, wire.TypeSRV), Port: p.Number, Target: target}}
			a.extra = addresses(target, wire.TypeANY, v4, v6)
		}
	default:
		a.rcode = wire.RcodeNameError
	}
	return a
}

// reverse answers for the name of an address; ours is false where that is not in the overlay.
func (z zone) reverse(q wire.Question, t *Table) (a answer, ours bool) {
	prefix, ok := parseReverse(q.Name)
	if !ok {
		return answer{}, false
	}
	for _, n := range z.networks {
		apex := reverseApex(n, prefix.Addr())
		if !n.Contains(prefix.Addr()) || n.Addr().Is4() != prefix.Addr().Is4() || prefix.Bits() < apexBits(n) {
			continue
		}
		a = answer{soa: apex}
		switch {
		case prefix.IsSingleIP():
			name := t.name(prefix.Addr())
			if name == "" {
				a.rcode = wire.RcodeNameError
			} else if q.Qtype == wire.TypePTR || q.Qtype == wire.TypeANY {
				a.records = []wire.RR{&wire.PTR{Hdr: header(q.Name, wire.TypePTR), Ptr: name + "." + z.apex}}
			}
		case prefix.Bits() == apexBits(n) && q.Qtype == wire.TypeSOA:
			a.records = []wire.RR{z.start(apex)}
		case prefix.Bits() == apexBits(n) && q.Qtype == wire.TypeNS:
			a.records = []wire.RR{&wire.NS{Hdr: header(q.Name, wire.TypeNS), Ns: z.apex}}
		}
		return a, true
	}
	return answer{}, false
}

// start is the record that begins a zone, and that a negative answer carries.
func (z zone) start(name string) *wire.SOA {
	return &wire.SOA{Hdr: header(name, wire.TypeSOA), Ns: z.apex, Mbox: "hostmaster." + z.apex, Serial: z.serial.Load(),
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl}
}

func header(name string, kind uint16) wire.RR_Header {
	return wire.RR_Header{Name: name, Rrtype: kind, Class: wire.ClassINET, Ttl: ttl}
}

// addresses returns the records of one type for the valid ones among some addresses.
func addresses(name string, kind uint16, all ...netip.Addr) []wire.RR {
	var out []wire.RR
	for _, a := range all {
		switch {
		case a.Is4() && (kind == wire.TypeA || kind == wire.TypeANY):
			out = append(out, &wire.A{Hdr: header(name, wire.TypeA), A: a.AsSlice()})
		case a.Is6() && (kind == wire.TypeAAAA || kind == wire.TypeANY):
			out = append(out, &wire.AAAA{Hdr: header(name, wire.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

// isLabel says whether a label can be the name of a job, so that random bytes ask nobody.
func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// parseReverse reads 4.3.2.1.in-addr.arpa and the like; fewer labels are a shorter prefix.
func parseReverse(name string) (netip.Prefix, bool) {
	labels := wire.SplitDomainName(strings.ToLower(name))
	if len(labels) < 2 || labels[len(labels)-1] != "arpa" {
		return netip.Prefix{}, false
	}
	family, labels := labels[len(labels)-2], labels[:len(labels)-2]
	base, size, bits := 10, 4, 8
	switch {
	case family == "ip6":
		base, size, bits = 16, 32, 4
	case family != "in-addr":
		return netip.Prefix{}, false
	}
	if len(labels) > size {
		return netip.Prefix{}, false
	}
	raw := make([]byte, size*bits/8)
	for i := range labels {
		digit := labels[len(labels)-1-i]
		v, err := strconv.ParseUint(digit, base, bits)
		if err != nil || digit != strconv.FormatUint(v, base) {
			return netip.Prefix{}, false
		}
		at := i * bits
		raw[at/8] |= byte(v) << (8 - bits - at%8)
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(addr, len(labels)*bits), ok
}

// apexBits is the length of the reverse zones of a network: names are cut at whole labels only.
func apexBits(n netip.Prefix) int {
	step := 8
	if n.Addr().Is6() {
		step = 4
	}
	return (n.Bits() + step - 1) / step * step
}

// reverseApex is the name of the reverse zone that holds an address of a network.
func reverseApex(n netip.Prefix, a netip.Addr) string {
	full, err := wire.ReverseAddr(a.String())
	if err != nil {
		return "."
	}
	step := 8
	if n.Addr().Is6() {
		step = 4
	}
	drop := (a.BitLen() - apexBits(n)) / step
	off := 0
	for range drop {
		next, end := wire.NextLabel(full, off)
		if end {
			break
		}
		off = next
	}
	return full[off:]
}
