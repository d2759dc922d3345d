package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// State is all that a manager knows. It is not safe for concurrent use.
type State struct {
	Rev   uint64
	Jobs  map[messages.JobName]*Job
	Nodes map[messages.NodeID]*Node
	// Interests holds the services that nodes want to hear of, by name and ascending.
	Interests map[messages.NodeID][]messages.JobName
	Guests    map[string]*Guest
	// Floors holds, for the names of jobs that are gone, which generations they have used.
	Floors map[messages.JobName]Floor
	common int // the floor of names that are not in Floors

	// changes is what is to be made durable, each key once; at finds them. A record is encoded when the changes are taken: a job that
	// changes a thousand times in a batch is written once.
	changes []change
	at      map[recordID]int
	revSaid uint64 // the rev that the store holds or will hold with changes
}

type recordID struct {
	bucket store.Bucket
	key    string
}

// change is what becomes of one record: a value, what it is encoded from, or neither to delete it.
type change struct {
	recordID
	value []byte
	from  any
}

// NewState returns an empty State.
func NewState() *State {
	return &State{Jobs: map[messages.JobName]*Job{}, Nodes: map[messages.NodeID]*Node{}, Interests: map[messages.NodeID][]messages.JobName{},
		Guests: map[string]*Guest{}, Floors: map[messages.JobName]Floor{}, at: map[recordID]int{}}
}

// revKey is the key of the rev in the bucket Meta.
const revKey = "rev"

// Load reads the desired state. Records that cannot be read are put aside in the bucket Damaged with the next commit and
// returned as errors, so that one bad record never keeps a manager from starting.
func Load(ctx context.Context, s store.Store) (*State, []error, error) {
	st := NewState()
	var damaged []error
	unsure := false // what was damaged may be of what runs somewhere
	var placements []*Placement
	err := s.Load(ctx, func(b store.Bucket, key string, value []byte) error {
		if err := st.loadRecord(b, key, value, &placements); err != nil {
			damaged = append(damaged, fmt.Errorf("%s %q: %w", b, key, err))
			unsure = unsure || b != store.Guests && b != store.Interests
			st.note(change{recordID: recordID{store.Damaged, string(b) + "/" + key}, value: value})
			st.note(change{recordID: recordID{b, key}})
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for _, p := range placements {
		if st.Jobs[p.Job] == nil {
			damaged = append(damaged, fmt.Errorf("placement %q: its job is not there", p.Instance))
			unsure = true
			st.note(change{recordID: recordID{store.Placements, string(p.Instance)}})
			continue
		}
		st.link(p)
	}
	st.revSaid = st.Rev
	if unsure { // nobody knows which node holds more than is known
		for _, n := range st.Nodes {
			n.Agreed = false
			st.PutNode(n)
		}
	}
	return st, damaged, nil
}

func (st *State) loadRecord(b store.Bucket, key string, value []byte, placements *[]*Placement) error {
	switch b {
	case store.Jobs:
		j := &Job{}
		if err := json.Unmarshal(value, j); err != nil {
			return err
		}
		if err := j.check(key); err != nil {
			return err
		}
		st.addJob(j)
	case store.Placements:
		p := &Placement{}
		if err := json.Unmarshal(value, p); err != nil {
			return err
		}
		if err := p.check(key); err != nil {
			return err
		}
		*placements = append(*placements, p)
		st.Rev = max(st.Rev, p.Rev)
	case store.Nodes:
		n := &Node{Instances: map[messages.InstanceID]bool{}}
		if err := json.Unmarshal(value, n); err != nil {
			return err
		}
		if err := errors.Join(messages.CheckName("node", key), named(string(n.ID), key)); err != nil {
			return err
		}
		n.Instances = st.node(n.ID).Instances
		st.Nodes[n.ID] = n
	case store.Interests:
		var names []messages.JobName
		errs := []error{messages.CheckName("node", key), json.Unmarshal(value, &names)}
		for _, name := range names {
			errs = append(errs, messages.CheckName("job", string(name)))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		st.Interests[messages.NodeID(key)] = names
	case store.Guests:
		g := &Guest{}
		if err := json.Unmarshal(value, g); err != nil {
			return err
		}
		if err := errors.Join(messages.CheckName("guest", key), named(g.Name, key), messages.CheckKey("public_key", g.PublicKey)); err != nil {
			return err
		}
		st.Guests[key] = g
	case store.Floors:
		return st.loadFloor(key, value)
	case store.Meta:
		if key != revKey {
			return nil
		}
		rev, err := strconv.ParseUint(string(value), 10, 64)
		if err = cmp.Or(err, checkRev(rev)); err != nil {
			return err
		}
		st.Rev = max(st.Rev, rev)
	}
	return nil
}

// named refuses a record under a key that is not its name.
func named(name, key string) error {
	if name != key {
		return fmt.Errorf("it is named %q", name)
	}
	return nil
}

// check reports what in a loaded job later code relies on and does not hold.
func (j *Job) check(key string) error {
	errs := []error{j.Spec.Validate(), named(string(j.Spec.Name), key), checkOrdinals(j.Ordinals), checkRev(j.Rev), checkNumber("floor", j.Floor)}
	if j.Previous != nil {
		errs = append(errs, j.Previous.Spec.Validate(), checkOrdinals(j.Previous.Ordinals), checkRev(j.Previous.Rev))
	}
	for ordinal, next := range j.Generations {
		errs = append(errs, checkNumber("ordinal", ordinal), checkNumber("generation", next))
	}
	return errors.Join(errs...)
}

// What a loaded record may say. Later numbers are counted up from these, and have to be names of instances and revs still.
const (
	maxNumber = 1 << 29
	maxRev    = 1 << 62
)

func checkNumber(what string, n int) error {
	if n < 0 || n > maxNumber {
		return fmt.Errorf("%s %d: want 0 to %d", what, n, maxNumber)
	}
	return nil
}

func checkRev(rev uint64) error {
	if rev > maxRev {
		return fmt.Errorf("rev %d: want at most %d", rev, uint64(maxRev))
	}
	return nil
}

func checkOrdinals(ordinals []int) error {
	for i, o := range ordinals {
		if o < 0 || o > maxNumber || (i > 0 && o <= ordinals[i-1]) || i >= messages.MaxReplicas {
			return fmt.Errorf("ordinals: want at most %d, ascending from 0", messages.MaxReplicas)
		}
	}
	return nil
}

// check reports what in a loaded placement later code relies on and does not hold.
func (p *Placement) check(key string) error {
	job, ordinal, generation, err := p.Instance.Split()
	if err != nil {
		return err
	}
	if p.Job != job || p.Ordinal != ordinal || p.Generation != generation {
		err = errors.New("its job, ordinal or generation differ from its name")
	}
	return errors.Join(err, named(string(p.Instance), key), messages.CheckName("node", string(p.Node)), p.Spec.Validate(), checkRev(p.Rev), checkNumber("generation", generation))
}

func (st *State) addJob(j *Job) {
	j.Placements = map[messages.InstanceID]*Placement{}
	j.Waiting = map[int]*Waiting{}
	st.Jobs[j.Spec.Name] = j
	st.Rev = max(st.Rev, j.Rev)
}

// link puts a placement into the indexes. One that is abandoned is not among those of a node.
func (st *State) link(p *Placement) {
	st.Jobs[p.Job].Placements[p.Instance] = p
	if p.Abandoned {
		st.unlink(p)
		return
	}
	st.node(p.Node).Instances[p.Instance] = true
}

// unlink takes a placement out of its node's.
func (st *State) unlink(p *Placement) {
	if n := st.Nodes[p.Node]; n != nil {
		delete(n.Instances, p.Instance)
	}
}

// node returns a node, made where a record names one that is not there (its own record was damaged).
func (st *State) node(id messages.NodeID) *Node {
	n := st.Nodes[id]
	if n == nil {
		n = &Node{ID: id, Kind: messages.Spare, Instances: map[messages.InstanceID]bool{}}
		st.Nodes[id] = n
	}
	return n
}

// NextRev takes the next rev.
func (st *State) NextRev() uint64 {
	st.Rev++
	return st.Rev
}

// PutJob adds or changes a job.
func (st *State) PutJob(j *Job) {
	if st.Jobs[j.Spec.Name] != j {
		st.addJob(j)
	}
	st.record(store.Jobs, string(j.Spec.Name), j)
}

// DropJob forgets a job and what was placed for it.
func (st *State) DropJob(j *Job) {
	for _, p := range j.Sorted() {
		st.DropPlacement(p)
	}
	delete(st.Jobs, j.Spec.Name)
	st.raiseFloor(j)
	st.note(change{recordID: recordID{store.Jobs, string(j.Spec.Name)}})
}

// PutPlacement adds or changes a placement.
func (st *State) PutPlacement(p *Placement) {
	st.link(p)
	st.record(store.Placements, string(p.Instance), p)
}

// DropPlacement forgets a placement.
func (st *State) DropPlacement(p *Placement) {
	delete(st.Jobs[p.Job].Placements, p.Instance)
	st.unlink(p)
	st.note(change{recordID: recordID{store.Placements, string(p.Instance)}})
}

// PutNode adds or changes a node.
func (st *State) PutNode(n *Node) {
	if n.Instances == nil {
		n.Instances = map[messages.InstanceID]bool{}
	}
	st.Nodes[n.ID] = n
	st.record(store.Nodes, string(n.ID), n)
}

// DropNode forgets a node. Its placements are abandoned before.
func (st *State) DropNode(n *Node) {
	delete(st.Nodes, n.ID)
	st.note(change{recordID: recordID{store.Nodes, string(n.ID)}})
}

// PutInterest changes the services that a node wants to hear of, given ascending; none forgets the node's interest.
func (st *State) PutInterest(id messages.NodeID, names []messages.JobName) {
	if len(names) == 0 {
		if _, known := st.Interests[id]; known {
			delete(st.Interests, id)
			st.note(change{recordID: recordID{store.Interests, string(id)}})
		}
		return
	}
	st.Interests[id] = names
	st.record(store.Interests, string(id), names)
}

// PutGuest adds or changes a guest.
func (st *State) PutGuest(g *Guest) {
	st.Guests[g.Name] = g
	st.record(store.Guests, g.Name, g)
}

// DropGuest forgets a guest.
func (st *State) DropGuest(g *Guest) {
	delete(st.Guests, g.Name)
	st.note(change{recordID: recordID{store.Guests, g.Name}})
}

// ExpectNode adds a core node that may never have been seen, or says of a known one whether it is core. Nothing is recorded: the
// configuration says it anew at each start.
func (st *State) ExpectNode(id messages.NodeID, kind string) {
	st.node(id).Kind = kind
}

// PutRequest remembers the first Result of a request; an empty result forgets it.
func (st *State) PutRequest(key string, result []byte) {
	st.note(change{recordID: recordID{store.Requests, key}, value: result})
}

func (st *State) record(b store.Bucket, key string, v any) {
	st.note(change{recordID: recordID{b, key}, from: v})
}

// note takes up a change in place of an earlier one of the same record.
func (st *State) note(c change) {
	if i, known := st.at[c.recordID]; known {
		st.changes[i] = c
		return
	}
	st.at[c.recordID] = len(st.changes)
	st.changes = append(st.changes, c)
}

// TakeChanges returns what is to be made durable since the last call, each record at most once.
func (st *State) TakeChanges() []store.Change {
	if st.Rev != st.revSaid {
		st.note(change{recordID: recordID{store.Meta, revKey}, value: strconv.AppendUint(nil, st.Rev, 10)})
		st.revSaid = st.Rev
	}
	if len(st.changes) == 0 {
		return nil
	}
	all := make([]store.Change, 0, len(st.changes))
	var specs SpecText
	for _, c := range st.changes {
		if p, ok := c.from.(*Placement); ok {
			c.value = specs.encode(p)
		} else if c.from != nil {
			c.value = encode(c.from)
		}
		all = append(all, store.Change{Bucket: c.bucket, Key: c.key, Value: c.value})
	}
	st.changes = nil
	if len(st.at) > smallBatch {
		st.at = map[recordID]int{}
	}
	clear(st.at)
	return all
}

// smallBatch is up to how many changes the index of a batch is used again: to clear one costs by what it ever held.
const smallBatch = 1024

// SpecText renders the specs of placements. It keeps the last one: the copies of a job are placed and changed together, and the spec is most of
// what is written of each. The zero SpecText is ready.
type SpecText struct {
	hash    string
	network messages.JobNetwork // a part of it is not in the hash
	json    []byte
}

// Of returns the spec of a placement in JSON.
func (s *SpecText) Of(p *Placement) []byte {
	n := p.Spec.Network
	if s.json == nil || s.hash != p.Hash || s.network.Policy != n.Policy || (s.network.Allow == nil) != (n.Allow == nil) || !slices.Equal(s.network.Allow, n.Allow) {
		s.hash, s.network, s.json = p.Hash, n, messages.Encode(&p.Spec)
	}
	return s.json
}

// encode renders a placement.
func (s *SpecText) encode(p *Placement) []byte {
	type plain Placement
	return messages.Splice(encode(struct {
		*plain
		Spec *messages.Spec `json:"spec,omitempty"` // stands before the other of that name, and is left out
	}{plain: (*plain)(p)}), "spec", s.Of(p))
}

func encode(v any) []byte {
	value, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("cluster: marshal %T: %v", v, err)) // our own types
	}
	return value
}

// Placement returns the placement of an instance, nil where there is none.
func (st *State) Placement(id messages.InstanceID) *Placement {
	job, _, _, err := id.Split()
	if err != nil || st.Jobs[job] == nil {
		return nil
	}
	return st.Jobs[job].Placements[id]
}

// PlacedOn returns the placements of a node, by name.
func (st *State) PlacedOn(id messages.NodeID) []*Placement {
	n := st.Nodes[id]
	if n == nil {
		return nil
	}
	var all []*Placement
	for _, instance := range slices.Sorted(maps.Keys(n.Instances)) {
		if p := st.Placement(instance); p != nil {
			all = append(all, p)
		}
	}
	return all
}

// Assignments returns what a node shall hold. Those that wait for another instance to go are not among them.
func (st *State) Assignments(id messages.NodeID) []messages.Assignment {
	n := st.Nodes[id]
	all := []messages.Assignment{}
	for _, p := range st.PlacedOn(id) {
		if p.After == "" || !p.Run {
			all = append(all, p.Assignment(n.Epoch))
		}
	}
	return all
}

// keepNetwork carries over what a node said last of its tunnel and its interest: it says that once.
func (st *State) keepNetwork(n, old *Node, interest []messages.JobName) {
	if old.Info.Overlay != nil && old.Info.Key == n.Info.Key {
		n.Info.Overlay, n.NAT, n.RelayOnly = old.Info.Overlay, old.NAT, old.RelayOnly
		st.PutNode(n)
	}
	if !slices.Equal(st.Interests[n.ID], interest) {
		st.PutInterest(n.ID, interest)
	}
}

// KeepObserved carries what nodes reported over into a State that was loaded again, so that a commit that failed loses
// nothing that is known.
func (st *State) KeepObserved(from *State, now time.Time) {
	for id, n := range st.Nodes {
		if old := from.Nodes[id]; old != nil {
			n.Online, n.Since, n.BootID, n.ClockSkewMS = old.Online, old.Since, old.BootID, old.ClockSkewMS
			n.Agreed = n.Agreed && old.Agreed
			if old.Epoch > n.Epoch { // the node has heard of an epoch that it would not listen below
				n.Epoch = old.Epoch
				st.PutNode(n)
			}
			if n.Unmet && !old.Unmet {
				n.Unmet = false
				st.PutNode(n)
			}
			st.keepNetwork(n, old, from.Interests[id])
		}
	}
	for _, j := range st.Jobs {
		for id, p := range j.Placements {
			p.AwaitedSince, p.StoppingSince = now, now
			if old := from.Placement(id); old != nil {
				if p.Forgiven != old.Forgiven {
					st.PutPlacement(p)
				}
				p.Observed, p.Complaint, p.HealthySince = old.Observed, old.Complaint, old.HealthySince
				p.AwaitedSince, p.Forgiven, p.Failure = old.AwaitedSince, old.Forgiven, old.Failure
			}
		}
	}
}
