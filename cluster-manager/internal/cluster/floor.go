package cluster

import (
	"cmp"
	"encoding/json"
	"slices"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// Floor says which generations the name of a deleted job has used: those below Generation. An instance's name is never used for two lives,
// or a board that was away for long would take the second for the first.
type Floor struct {
	Generation int    `json:"generation"`
	Rev        uint64 `json:"rev"` // when the job was dropped
}

// maxFloors bounds the names that are remembered. Half of them are forgotten then, those that were dropped first, and every name begins
// above what these have used.
const maxFloors = 4096

// commonFloor is the key of the floor of all names; no job can bear it.
const commonFloor = "*"

func (st *State) loadFloor(key string, value []byte) error {
	var f Floor
	if err := json.Unmarshal(value, &f); err != nil {
		return err
	}
	if err := checkNumber("generation", f.Generation); err != nil {
		return err
	}
	if key == commonFloor {
		st.common = f.Generation
		return nil
	}
	if err := messages.CheckName("job", key); err != nil {
		return err
	}
	st.Floors[messages.JobName(key)] = f
	return nil
}

// Floor returns the least generation that a new job of this name may use.
func (st *State) Floor(name messages.JobName) int { return max(st.Floors[name].Generation, st.common) }

// raiseFloor remembers which generations a job has used that is dropped.
func (st *State) raiseFloor(j *Job) {
	f := Floor{Generation: j.nextFloor(), Rev: st.Rev}
	if f.Generation == 0 {
		return // no instance ever was
	}
	if len(st.Floors) >= maxFloors {
		st.forgetFloors()
	}
	st.Floors[j.Spec.Name] = f
	st.record(store.Floors, string(j.Spec.Name), f)
}

func (st *State) forgetFloors() {
	names := make([]messages.JobName, 0, len(st.Floors))
	for name := range st.Floors {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b messages.JobName) int {
		return cmp.Or(cmp.Compare(st.Floors[a].Rev, st.Floors[b].Rev), cmp.Compare(a, b))
	})
	for _, name := range names[:len(names)/2] {
		st.common = max(st.common, st.Floors[name].Generation)
		delete(st.Floors, name)
		st.note(change{recordID: recordID{store.Floors, string(name)}})
	}
	st.record(store.Floors, commonFloor, Floor{Generation: st.common, Rev: st.Rev})
}
