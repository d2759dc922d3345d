package messages

import (
	"math"
	"slices"
)

// The payloads here are completed before they are written: a list or map that is always there is written as empty and never as
// null, which readers in other languages would have to test for, and a number that JSON cannot write is not an error.

// EncodeRun is Encode of an assignment that shall run, given its spec as Encode has rendered it: of many assignments of one job the
// spec is most of the work.
func EncodeRun(a Assignment, spec []byte) []byte {
	a.Spec = nil
	return Splice(Encode(a), "spec", spec)
}

// Splice adds a field to a JSON object that holds at least one, as the last one.
func Splice(object []byte, field string, value []byte) []byte {
	whole := make([]byte, 0, len(object)+len(field)+len(value)+4)
	whole = append(whole, object[:len(object)-1]...)
	whole = append(whole, `,"`+field+`":`...)
	return append(append(whole, value...), '}')
}

// MarshalJSON writes the status with its list of instances, also where it is empty.
func (s JobStatus) MarshalJSON() ([]byte, error) {
	type plain JobStatus
	s.Instances = list(s.Instances)
	return Encode(plain(s)), nil
}

// MarshalJSON writes the sync with its list of assignments, also where it is empty.
func (s Sync) MarshalJSON() ([]byte, error) {
	type plain Sync
	s.Assignments = list(s.Assignments)
	return Encode(plain(s)), nil
}

// MarshalJSON writes the piece with its list of assignments, also where it is empty.
func (i Inventory) MarshalJSON() ([]byte, error) {
	type plain Inventory
	i.Assignments = list(i.Assignments)
	return Encode(plain(i)), nil
}

// MarshalJSON writes the introduction with its list of technologies, also where it is empty.
func (n NodeInfo) MarshalJSON() ([]byte, error) {
	type plain NodeInfo
	n.Technologies = list(n.Technologies)
	return Encode(plain(n)), nil
}

// MarshalJSON writes the welcome with its list of brokers, also where it is empty.
func (w Welcome) MarshalJSON() ([]byte, error) {
	type plain Welcome
	w.Brokers = list(w.Brokers)
	return Encode(plain(w)), nil
}

// MarshalJSON writes the status with all of its counts, also where they are empty.
func (s ClusterStatus) MarshalJSON() ([]byte, error) {
	type plain ClusterStatus
	for _, counts := range []*map[string]int{&s.Nodes, &s.Jobs, &s.Instances} {
		if *counts == nil {
			*counts = map[string]int{}
		}
	}
	return Encode(plain(s)), nil
}

// MarshalJSON writes the telemetry without what could not be measured: a reading of a sensor that is not a finite number is
// left out, any other such number is written as 0.
func (t Telemetry) MarshalJSON() ([]byte, error) {
	type plain Telemetry
	t.CPU.PerCore = slices.Clone(t.CPU.PerCore)
	t.GPUs = slices.Clone(t.GPUs)
	t.Instances = slices.Clone(t.Instances)
	t.Sensors = slices.DeleteFunc(slices.Clone(t.Sensors), func(s SensorReading) bool { return !finite(s.Value) })
	zeroUnlessFinite(&t.CPU.Percent, &t.Load[0], &t.Load[1], &t.Load[2], &t.Memory.UsedPercent, &t.Swap.UsedPercent,
		&t.Network.RxBPS, &t.Network.TxBPS, &t.Temperature, &t.Free.CPUs, &t.FreeCores)
	for i := range t.CPU.PerCore {
		zeroUnlessFinite(&t.CPU.PerCore[i])
	}
	for i := range t.GPUs {
		g := &t.GPUs[i]
		zeroUnlessFinite(&g.Percent, &g.Temperature, &g.PowerW)
	}
	for i := range t.Instances {
		u := &t.Instances[i]
		zeroUnlessFinite(&u.CPUPercent, &u.MemoryMB, &u.RxBPS, &u.TxBPS)
	}
	if t.Overlay != nil {
		u := t.Overlay.finite()
		t.Overlay = &u
	}
	return Encode(plain(t)), nil
}

func zeroUnlessFinite(numbers ...*float64) {
	for _, n := range numbers {
		if !finite(*n) {
			*n = 0
		}
	}
}

func finite(n float64) bool { return !math.IsNaN(n) && !math.IsInf(n, 0) }

// list returns s, or an empty list where there is none.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
