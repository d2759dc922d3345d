package cluster

import (
	"fmt"
	"testing"

	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// The names of deleted jobs are remembered within a bound and over a restart, and no generation of one is used twice.
func TestFloors(t *testing.T) {
	disk := new(store.Memory)
	st := NewState()
	save := func() {
		t.Helper()
		if err := disk.Commit(t.Context(), st.TakeChanges()); err != nil {
			t.Fatal(err)
		}
	}
	used := map[messages.JobName]int{}
	life := func(name messages.JobName) {
		t.Helper()
		j := &Job{Spec: messages.Job{Name: name}, Floor: st.Floor(name)}
		st.NextRev()
		st.PutJob(j)
		g := j.NextGeneration(0)
		if last, ok := used[name]; ok && g <= last {
			t.Fatalf("%s begins at generation %d, %d was used", name, g, last)
		}
		used[name] = g
		st.DropJob(j)
	}
	life("web")
	life("web")
	for i := range 3 * maxFloors {
		life(messages.JobName(fmt.Sprintf("j-%d", i)))
	}
	for _, name := range []messages.JobName{"web", "j-1", "j-9000"} {
		life(name)
	}
	save()
	again, damaged, err := Load(t.Context(), disk)
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	st = again
	for _, name := range []messages.JobName{"web", "j-1", "j-9000", "j-12000"} {
		life(name)
	}
	if len(st.Floors) > maxFloors {
		t.Errorf("%d names are remembered", len(st.Floors))
	}
	for _, value := range []string{"?", `{"generation":-1}`} {
		if err := st.loadFloor("web", []byte(value)); err == nil {
			t.Errorf("%s is taken", value)
		}
	}
	if err := st.loadFloor("No Name", []byte(`{"generation":7}`)); err == nil || st.Floor("No Name") == 7 {
		t.Errorf("a floor under no name: %v, and it counts: %d", err, st.Floor("No Name"))
	}
}
