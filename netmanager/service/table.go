package service

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Config is all that a Table is made from. It is not kept.
type Config struct {
	// Blocks are the prefixes of this node's own container addresses, both families: what comes out of its bridge has a source in them.
	Blocks []netip.Prefix
	// ServiceRange are the prefixes that service addresses are taken from; one of them that is in no Service is a miss.
	ServiceRange []netip.Prefix
	// Guests are the prefixes of guests whose tunnel ends at this node.
	Guests []netip.Prefix
	// Services are those that this node has an interest in, which includes those of its own instances.
	Services []*Service
	// Aliases are the container addresses of instances in other services; the instances of Services need none.
	Aliases []Alias
	// RTT returns the round-trip time to the node with that container address, 0 where it is unknown; nil: it is unknown of all.
	RTT func(netip.Addr) time.Duration
}

// Service is one job's addresses and what stands behind them. An address that is not valid is left out.
type Service struct {
	Name                    string
	RoundRobin, RoundRobin6 netip.Addr
	Closest, Closest6       netip.Addr
	Instances               []Instance
	// Allow names the jobs that may open flows to the instances, beside the job itself; nil: everybody may.
	Allow []string
}

// Instance is one running copy behind a Service.
type Instance struct {
	Ordinal           int
	Service, Service6 netip.Addr // its instance address, which it keeps through moves
	Address, Address6 netip.Addr // the address of its interface on its node
	Local             bool       // it runs on this node; known by itself where Address is in one of its blocks
	Healthy           bool
}

// Alias says which instance address stands for a container address.
type Alias struct {
	Address, Service netip.Addr // of one family
	Job              string
}

// Table is an immutable snapshot of services; Device.SetTable puts it in force.
type Table struct {
	blocks, ranges, guests []prefix
	dial                   flat // service address -> policy<<30 | index of a group or an instance
	real                   flat // container address -> index of an instance; or of an alias, after them
	groups                 []group
	instances              []instance
	aliases                []alias
	healthy, closest       picked          // those that a new flow may get
	next                   []atomic.Uint32 // a counter a group for the round robin, and one for the closest
}

// group is a service.
type group struct {
	name     string
	allow    []string
	from, to uint32 // its instances
	closed   bool   // allow is in force
}

// picked are some instances of every group.
type picked struct {
	members []uint32 // indexes of instances, group after group
	ends    []uint32 // where those of a group end
}

func (p *picked) of(group uint32) []uint32 {
	from := uint32(0)
	if group > 0 {
		from = p.ends[group-1]
	}
	return p.members[from:p.ends[group]]
}

type instance struct {
	group              uint32
	healthy, local     bool
	service4, service6 addr
	real4, real6       addr
}

type alias struct {
	service addr
	job     string
}

type prefix struct{ bits, mask addr }

// What a service address stands for: the upper two bits of what dial holds.
const (
	toRoundRobin = iota << 30
	toClosest
	toInstance
	indexBits = 1<<30 - 1
)

// NewTable returns the Table of a Config. What it costs grows with the number of services; what a lookup costs does not.
func NewTable(c Config) *Table {
	n := 0
	for i := range c.Services {
		n += len(c.Services[i].Instances)
	}
	t := &Table{
		blocks: prefixes(c.Blocks), ranges: prefixes(c.ServiceRange), guests: prefixes(c.Guests),
		dial: newFlat(4*len(c.Services) + 2*n), real: newFlat(2*n + len(c.Aliases)),
		groups: make([]group, 0, len(c.Services)), instances: make([]instance, 0, n), aliases: make([]alias, 0, len(c.Aliases)),
		next: make([]atomic.Uint32, 2*len(c.Services)),
	}
	for i := range c.Services {
		t.add(c.Services[i])
	}
	t.healthy = t.pick(func(*instance) time.Duration { return 0 })
	t.closest = t.nearest(c.RTT)
	for i := range t.next { // not from zero: tables may change more often than flows are opened
		t.next[i].Store(rand.Uint32())
	}
	for _, a := range c.Aliases {
		t.real.put(optional(a.Address), uint32(n+len(t.aliases)))
		t.aliases = append(t.aliases, alias{optional(a.Service), a.Job})
	}
	return t
}

// WithRTT returns the table with other round-trip times, and is cheap; see Config.RTT.
func (t *Table) WithRTT(rtt func(netip.Addr) time.Duration) *Table {
	other := *t
	other.closest = t.nearest(rtt)
	return &other
}

// add takes up one service.
func (t *Table) add(s *Service) {
	id, from := uint32(len(t.groups)), uint32(len(t.instances))
	for _, in := range s.Instances {
		at := uint32(len(t.instances))
		entry := instance{group: id, healthy: in.Healthy, service4: optional(in.Service), service6: optional(in.Service6),
			real4: optional(in.Address), real6: optional(in.Address6)}
		entry.local = in.Local || within(t.blocks, entry.real4)
		t.instances = append(t.instances, entry)
		t.real.put(entry.real4, at)
		t.real.put(entry.real6, at)
	}
	for _, healthy := range []bool{true, false} { // while an ordinal moves it is there twice: the healthy one has the address
		for at := from; at < uint32(len(t.instances)); at++ {
			if in := &t.instances[at]; in.healthy == healthy {
				t.dial.put(in.service4, toInstance|at)
				t.dial.put(in.service6, toInstance|at)
			}
		}
	}
	t.groups = append(t.groups, group{name: s.Name, from: from, to: uint32(len(t.instances)), allow: s.Allow, closed: s.Allow != nil})
	for _, a := range []netip.Addr{s.RoundRobin, s.RoundRobin6} {
		t.dial.put(optional(a), toRoundRobin|id)
	}
	for _, a := range []netip.Addr{s.Closest, s.Closest6} {
		t.dial.put(optional(a), toClosest|id)
	}
}

// pick returns the healthy instances of every group that are as near as the nearest of them.
func (t *Table) pick(distance func(*instance) time.Duration) picked {
	p := picked{make([]uint32, 0, len(t.instances)), make([]uint32, 0, len(t.groups))}
	for i := range t.groups {
		start, best := len(p.members), time.Duration(math.MaxInt64)
		for at := t.groups[i].from; at < t.groups[i].to; at++ {
			in := &t.instances[at]
			if !in.healthy {
				continue
			}
			d := distance(in)
			if d < best {
				p.members, best = p.members[:start], d
			}
			if d == best {
				p.members = append(p.members, at)
			}
		}
		p.ends = append(p.ends, uint32(len(p.members)))
	}
	return p
}

// nearest picks by distance: this node, then by round-trip time, then those of which it is unknown.
func (t *Table) nearest(rtt func(netip.Addr) time.Duration) picked {
	return t.pick(func(in *instance) time.Duration {
		if in.local {
			return 0
		}
		if rtt != nil {
			if d := rtt(in.real4.netip()); d > 0 {
				return d
			}
		}
		return time.Hour
	})
}

func optional(a netip.Addr) addr {
	if !a.IsValid() {
		return addr{}
	}
	return addrOf(a)
}

func prefixes(list []netip.Prefix) []prefix {
	var out []prefix
	for _, p := range list {
		if !p.IsValid() {
			continue
		}
		bits := p.Bits()
		if p.Addr().Is4() {
			bits += 96
		}
		mask := addr{^uint64(0), ^uint64(0)}
		if bits < 64 {
			mask = addr{^uint64(0) << (64 - bits), 0}
		} else {
			mask.lo <<= 128 - bits
		}
		a := addrOf(p.Addr())
		out = append(out, prefix{addr{a.hi & mask.hi, a.lo & mask.lo}, mask})
	}
	return out
}

func within(list []prefix, a addr) bool {
	for i := range list {
		if p := &list[i]; a.hi&p.mask.hi == p.bits.hi && a.lo&p.mask.lo == p.bits.lo {
			return true
		}
	}
	return false
}

func (in *instance) real(v6 bool) addr {
	if v6 {
		return in.real6
	}
	return in.real4
}

// choose returns the container address for a new flow to a destination. It is no service's when known is false; none can serve it now when the
// address returned is the zero one.
func (t *Table) choose(dst addr) (chosen addr, known bool) {
	ref, ok := t.dial.get(dst)
	if !ok {
		return addr{}, false
	}
	v6, id := !dst.is4(), ref&indexBits
	list, counter := []uint32(nil), 2*id
	switch ref &^ indexBits {
	case toInstance:
		return t.instances[id].real(v6), true
	case toRoundRobin:
		list = t.healthy.of(id)
	case toClosest:
		list, counter = t.closest.of(id), 2*id+1
	}
	if len(list) == 0 {
		return addr{}, true
	}
	n := uint32(0)
	if len(list) > 1 {
		n = t.next[counter].Add(1) % uint32(len(list))
	}
	return t.instances[list[n]].real(v6), true
}

// standing says how a choice of before looks in this table.
type standing uint8

const (
	stands  standing = iota // or nothing is known
	avoided                 // not for new flows
	gone
)

// check says whether dst may still lead to chosen.
func (t *Table) check(dst, chosen addr) standing {
	ref, ok := t.dial.get(dst)
	if !ok {
		return stands
	}
	at, ok := t.real.get(chosen)
	if !ok || int(at) >= len(t.instances) {
		return gone
	}
	in := &t.instances[at]
	switch id := ref & indexBits; {
	case ref&^indexBits == toInstance && id != at, ref&^indexBits != toInstance && in.group != id:
		return gone
	case ref&^indexBits != toInstance && !in.healthy:
		return avoided
	}
	return stands
}

// several says that a new flow to dst may get one of two instances or more.
func (t *Table) several(dst addr) bool {
	ref, ok := t.dial.get(dst)
	switch id := ref & indexBits; {
	case !ok:
		return false
	case ref&^indexBits == toRoundRobin:
		return len(t.healthy.of(id)) > 1
	case ref&^indexBits == toClosest:
		return len(t.closest.of(id)) > 1
	}
	return false
}

// empty says that dst is a service without any instance.
func (t *Table) empty(dst addr) bool {
	ref, ok := t.dial.get(dst)
	return ok && ref&^indexBits != toInstance && t.groups[ref&indexBits].from == t.groups[ref&indexBits].to
}

// ready says that a new flow to dst gets an instance.
func (t *Table) ready(dst addr) bool {
	ref, ok := t.dial.get(dst)
	if !ok {
		return false
	}
	switch id := ref & indexBits; ref &^ indexBits {
	case toRoundRobin, toClosest:
		return len(t.healthy.of(id)) > 0
	default:
		return t.instances[id].real(!dst.is4()) != addr{}
	}
}

// alias returns the instance address that stands for a container address.
func (t *Table) alias(real addr) (addr, bool) {
	at, ok := t.real.get(real)
	if !ok {
		return addr{}, false
	}
	var a addr
	switch n := len(t.instances); {
	case int(at) >= n:
		a = t.aliases[int(at)-n].service
	case real.is4():
		a = t.instances[at].service4
	default:
		a = t.instances[at].service6
	}
	return a, a != addr{}
}

// job returns the name of the job that a container address belongs to, "" when that is not known.
func (t *Table) job(real addr) string {
	at, ok := t.real.get(real)
	switch n := len(t.instances); {
	case !ok:
		return ""
	case int(at) >= n:
		return t.aliases[int(at)-n].job
	default:
		return t.groups[t.instances[at].group].name
	}
}

// allowed says whether src may open a flow to the container address dst.
func (t *Table) allowed(src, dst addr) bool {
	at, ok := t.real.get(dst)
	if !ok || int(at) >= len(t.instances) {
		return true
	}
	g := &t.groups[t.instances[at].group]
	if !g.closed {
		return true
	}
	job := t.job(src)
	return job != "" && (job == g.name || slices.Contains(g.allow, job))
}
