package dns

import (
	"cmp"
	"context"
	"encoding/binary"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Job is what the names of one job stand for.
type Job struct {
	Name              string
	RoundRobin        netip.Addr // of the plain name
	RoundRobin6       netip.Addr
	Closest, Closest6 netip.Addr // an invalid address: no such name
	Instances         []Instance
	Ports             []Port
}

// Instance is one ordinal of a job.
type Instance struct {
	Ordinal           int
	Service, Service6 netip.Addr // its instance address: 0.web
	Address, Address6 netip.Addr // of its interface, where it is known; asked for by address only
}

// Port is a port that a job listens on.
type Port struct {
	Name     string // as in _http._tcp; may be empty
	Protocol string // tcp or udp
	Number   uint16 // not 0
}

// Table is an immutable snapshot of all names. A lookup costs the same in a table of one job and of 100,000.
type Table struct {
	jobs   []Job
	byName map[string]uint32
	byAddr []place // by a hash of the address; a search ends at the first that is free
}

// place says where in the jobs an address stands.
type place struct {
	job  uint32 // and one; 0: free
	slot uint32 // which of its addresses, as Job.at counts them
}

// NewTable makes a Table. It takes the slices over. Of two jobs with one name, and of two names for one address, the last holds.
func NewTable(jobs []Job) *Table {
	n := 0
	for i := range jobs {
		n += jobs[i].slots()
	}
	t := &Table{jobs: jobs, byName: make(map[string]uint32, len(jobs)), byAddr: make([]place, n+n/4+1)}
	for i := range jobs {
		j := &jobs[i]
		j.Name = strings.ToLower(j.Name)
		t.byName[j.Name] = uint32(i)
		slices.SortFunc(j.Instances, func(a, b Instance) int { return cmp.Compare(a.Ordinal, b.Ordinal) })
		for slot := range j.slots() {
			if a := j.at(slot); a.IsValid() {
				*t.find(a.Unmap()) = place{uint32(i + 1), uint32(slot)}
			}
		}
	}
	return t
}

// slots returns how many addresses a job may have.
func (j *Job) slots() int { return 4 + 4*len(j.Instances) }

// at returns one of the job's addresses: those of the instances, then those of the closest one, then those of the plain name.
func (j *Job) at(slot int) netip.Addr {
	if n := slot / 4; n < len(j.Instances) {
		i := &j.Instances[n]
		return [4]netip.Addr{i.Service, i.Service6, i.Address, i.Address6}[slot%4]
	}
	return [4]netip.Addr{j.Closest, j.Closest6, j.RoundRobin, j.RoundRobin6}[slot%4]
}

// find returns the place of an address, or the free one for it.
func (t *Table) find(a netip.Addr) *place {
	raw := a.As16()
	hi, lo := bits.Mul64(binary.BigEndian.Uint64(raw[8:])^0x9e3779b97f4a7c15, binary.BigEndian.Uint64(raw[:])^0xd6e8feb86659fd93)
	for at := int((hi ^ lo) >> 32 * uint64(len(t.byAddr)) >> 32); ; at++ {
		if at == len(t.byAddr) {
			at = 0
		}
		p := &t.byAddr[at]
		if p.job == 0 {
			return p
		}
		if t.jobs[p.job-1].at(int(p.slot)).Unmap() == a {
			return p
		}
	}
}

// name returns the name of an address below the zone, "" where it has none.
func (t *Table) name(a netip.Addr) string {
	p := t.find(a)
	if p.job == 0 {
		return ""
	}
	j := &t.jobs[p.job-1]
	switch n := int(p.slot) / 4; {
	case n < len(j.Instances):
		return strconv.Itoa(j.Instances[n].Ordinal) + "." + j.Name
	case p.slot%4 < 2:
		return closest + "." + j.Name
	}
	return j.Name
}

// job returns the job of that name, nil for none.
func (t *Table) job(name string) *Job {
	if i, ok := t.byName[name]; ok {
		return &t.jobs[i]
	}
	return nil
}

func (t *Table) has(job string) bool { return t.job(job) != nil }

// closest is the label before a job's name that stands for its closest instance.
const closest = "closest"

// kind returns the addresses that a label before a job's name stands for; "" for none.
func (j *Job) kind(label string) (v4, v6 netip.Addr, ok bool) {
	switch label {
	case "":
		return j.RoundRobin, j.RoundRobin6, true
	case closest:
		return j.Closest, j.Closest6, j.Closest.IsValid() || j.Closest6.IsValid()
	}
	n, err := strconv.Atoi(label)
	if err != nil || strconv.Itoa(n) != label { // 00 is not 0
		return v4, v6, false
	}
	i, ok := slices.BinarySearchFunc(j.Instances, n, func(i Instance, n int) int { return cmp.Compare(i.Ordinal, n) })
	if !ok {
		return v4, v6, false
	}
	return j.Instances[i].Service, j.Instances[i].Service6, true
}

// port finds a port by the label _name or _number. Where a port has no name, the one that its number has everywhere will do: _http is 80.
func (j *Job) port(label, protocol string) (Port, bool) {
	name := strings.TrimPrefix(label, "_")
	number := 0
	if len(name) <= 15 && isLabel(name) { // as names of services are
		files := net.Resolver{PreferGo: true}                              // a table of its own and /etc/services, nobody is asked
		number, _ = files.LookupPort(context.Background(), protocol, name) // 0 is no port
	}
	for _, p := range j.Ports {
		if p.Protocol == protocol && (name == strings.ToLower(p.Name) && name != "" || p.Name == "" && number == int(p.Number) || name == strconv.Itoa(int(p.Number))) {
			return p, true
		}
	}
	return Port{}, false
}

// speaks says whether the job has a port of a protocol.
func (j *Job) speaks(protocol string) bool {
	return slices.ContainsFunc(j.Ports, func(p Port) bool { return p.Protocol == protocol })
}
