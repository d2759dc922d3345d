package overlay

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"skerry.internal/messages"
)

// updateBytes is how large an update grows before the rest goes into a further one.
const updateBytes = 512 << 10

// Interest takes what a node says over a connection that it is interested in, and owes it an answer.
func (n *Network) Interest(id messages.NodeID, link any, i messages.Interest) {
	first := n.streams[id] == nil || n.streams[id].link != link
	s := n.stream(id)
	s.full, s.link = s.full || i.Full || first, link
	s.answer = true
	s.unknown = nil
	n.updates[id] = true
	names := slices.Clone(i.Names)
	for _, text := range i.Addresses {
		if job, ok := n.jobAt(text); ok {
			names = append(names, job)
		} else {
			s.unknown = append(s.unknown, text)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, name := range names {
		if n.entries[name] == nil && !n.touched[name] {
			s.unknown = append(s.unknown, string(name))
		}
	}
	n.setInterest(id, names)
}

// jobAt returns the job that a service address belongs to.
func (n *Network) jobAt(text string) (messages.JobName, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil || n.leases == nil {
		return "", false
	}
	owner, _ := n.leases.Owner(a)
	name, isJob := strings.CutPrefix(owner, jobOwner(""))
	return messages.JobName(name), isJob
}

// stream returns what a node has been told, made where it has been told nothing.
func (n *Network) stream(id messages.NodeID) *stream {
	s := n.streams[id]
	if s == nil {
		s = &stream{sent: map[messages.JobName]*messages.ServiceEntry{}, pending: map[messages.JobName]bool{}}
		n.streams[id] = s
	}
	return s
}

// Connected says that a node has this connection now. What it is told of services waits until it says over this one what it is interested in.
func (n *Network) Connected(id messages.NodeID, link any) {
	if s := n.streams[id]; s != nil && s.link != link {
		delete(n.streams, id)
	}
}

// Disconnected says that a node has none any more.
func (n *Network) Disconnected(id messages.NodeID) { delete(n.streams, id) }

// setInterest changes what a node is interested in to the given names, ascending.
func (n *Network) setInterest(id messages.NodeID, names []messages.JobName) {
	old := n.st.Interests[id]
	if slices.Equal(old, names) {
		return
	}
	for _, name := range old {
		if _, still := slices.BinarySearch(names, name); !still {
			delete(n.asked[name], id)
			if len(n.asked[name]) == 0 {
				delete(n.asked, name)
			}
			n.owe(id, name)
			for host := range n.hosts[name] {
				n.pair(id, host, -1)
			}
		}
	}
	for _, name := range names {
		if _, was := slices.BinarySearch(old, name); !was {
			n.ask(id, name)
		}
	}
	n.st.PutInterest(id, names)
}

// ask notes that a node is interested in a job.
func (n *Network) ask(id messages.NodeID, name messages.JobName) {
	if n.asked[name] == nil {
		n.asked[name] = map[messages.NodeID]bool{}
	}
	n.asked[name][id] = true
	n.owe(id, name)
	for host := range n.hosts[name] {
		n.pair(id, host, 1)
	}
}

// update tells a node what it is owed.
func (n *Network) update(id messages.NodeID) {
	s := n.streams[id]
	if s == nil {
		return
	}
	if s.full {
		clear(s.sent)
		clear(s.pending)
		for _, name := range n.st.Interests[id] {
			s.pending[name] = true
		}
		for name := range n.hostedBy(id) {
			s.pending[name] = true
		}
	}
	u := messages.ServiceUpdate{Full: s.full, Unknown: s.unknown}
	size := 0
	owed := s.full || s.answer
	for _, name := range slices.Sorted(maps.Keys(s.pending)) {
		e := n.entries[name]
		switch {
		case e != nil && n.hears(id, name):
			if s.sent[name] == e {
				continue
			}
			s.sent[name] = e
			u.Services = append(u.Services, *e)
			size += 200 + 120*len(e.Instances)
		case s.sent[name] != nil:
			delete(s.sent, name)
			u.Gone = append(u.Gone, name)
		default:
			continue
		}
		owed = true
		if size > updateBytes {
			u.More = true
			n.send(id, s, u)
			u, size = messages.ServiceUpdate{}, 0
		}
	}
	clear(s.pending)
	s.full, s.answer, s.unknown = false, false, nil
	if owed {
		n.send(id, s, u)
	}
}

// send gives an update its numbers.
func (n *Network) send(id messages.NodeID, s *stream, u messages.ServiceUpdate) {
	u.Base = s.rev
	if u.Full {
		u.Base = 0
	}
	s.rev++
	u.Rev = s.rev
	n.say(messages.Topic{Kind: messages.NetServicesTopic, Node: id}, messages.Encode(u), false)
}

// hostedBy returns the jobs of which a node has instances.
func (n *Network) hostedBy(id messages.NodeID) map[messages.JobName]bool {
	names := map[messages.JobName]bool{}
	if node := n.st.Nodes[id]; node != nil {
		for instance := range node.Instances {
			if job, _, _, err := instance.Split(); err == nil && n.hosts[job][id] {
				names[job] = true
			}
		}
	}
	return names
}
