package schedule

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"skerry.internal/messages"
)

// obstacle is what speaks against a node, in the order in which it is looked for.
type obstacle int

const (
	nothing obstacle = iota
	excluded
	offline
	otherKind
	otherLabel
	otherArch
	noTechnology
	noOverlay
	noGPU
	noCPU
	noMemory
	portTaken
)

// against returns the first obstacle. It makes no words: most calls are followed by another node.
func (e *entry) against(w *Want) obstacle {
	if len(w.Not) > 0 {
		if _, not := w.Not[e.ID]; not {
			return excluded
		}
	}
	if !e.Online {
		return offline
	}
	if o := e.mismatch(w); o != nothing {
		return o
	}
	for i := range e.Info.Technologies {
		if e.Info.Technologies[i].Name == w.Spec.Technology {
			if e.lacksOverlay(w) {
				return noOverlay
			}
			return e.full(w)
		}
	}
	return noTechnology
}

// lacksOverlay reports whether the instance insists on an overlay that the node is not part of.
func (e *entry) lacksOverlay(w *Want) bool {
	return w.Spec.Network.Mode == messages.Overlay && e.NoOverlay != ""
}

// mismatch returns what speaks against the node whatever runs on it.
func (e *entry) mismatch(w *Want) obstacle {
	if k := w.Constraints.Kind; k != "" && k != "any" && k != e.Kind {
		return otherKind
	}
	for key, want := range w.Constraints.Labels {
		if got, has := e.Info.Labels[key]; !has || got != want {
			return otherLabel
		}
	}
	if a := w.Constraints.Arch; len(a) > 0 && !slices.Contains(a, e.Info.Arch) {
		return otherArch
	}
	return nothing
}

// full returns what the node lacks.
func (e *entry) full(w *Want) obstacle {
	need, used := &w.Spec.Resources, e.used(w)
	switch {
	case need.GPUs > 0 && need.GPUs > e.gpus(w.Spec.Technology)-used.GPUs:
		return noGPU
	case need.CPUs > float64(e.Info.CPU.Cores)-used.CPUs+1e-9 && need.CPUs > 0: // sums of fractions drift
		return noCPU
	case need.MemoryMB > e.Info.MemoryMB-used.MemoryMB && need.MemoryMB > 0:
		return noMemory
	}
	if _, _, taken := e.taken(w); taken {
		return portTaken
	}
	return nothing
}

// gpus returns how many graphics processors containers can be given: NVIDIA's, where the technology has NVIDIA's runtime. All others are described
// and measured, and nobody knows how to hand them out.
func (e *entry) gpus(technology messages.Technology) (n int) {
	if !slices.ContainsFunc(e.Info.Technologies, func(t messages.TechnologyInfo) bool {
		return t.Name == technology && slices.Contains(t.Runtimes, "nvidia")
	}) {
		return 0
	}
	for _, g := range e.Info.GPUs {
		if strings.EqualFold(g.Vendor, "nvidia") {
			n++
		}
	}
	return n
}

// used returns what of the node is reserved from the point of view of w.
func (e *entry) used(w *Want) messages.Resources {
	used := e.reserved
	if w.Patient {
		add(&used, e.leaving, -1)
	}
	return used
}

// taken returns the first port of the host that w wants and another one holds.
func (e *entry) taken(w *Want) (messages.Port, messages.InstanceID, bool) {
	for _, p := range w.Spec.Ports {
		key, fixed := hostPort(p)
		if !fixed {
			continue
		}
		for _, holder := range e.claims[key] {
			if holder != w.Instance && (!w.Patient || !e.instances[holder].leaving) {
				return key, holder, true
			}
		}
	}
	return messages.Port{}, "", false
}

// reason puts an obstacle into words.
func (e *entry) reason(w *Want, o obstacle) (messages.Code, string) {
	switch o {
	case nothing:
		return "", ""
	case excluded:
		return messages.NoNodeMatches, w.Not[e.ID]
	case offline:
		return messages.NoNodeMatches, "is not connected"
	case otherKind:
		return messages.NoNodeMatches, fmt.Sprintf("is a %s node, %s is asked for", e.Kind, w.Constraints.Kind)
	case otherLabel:
		return messages.NoNodeMatches, e.labelReason(w)
	case otherArch:
		return messages.NoNodeMatches, fmt.Sprintf("is %s, one of %v is asked for", cmp.Or(e.Info.Arch, "of unknown architecture"), w.Constraints.Arch)
	case noTechnology:
		return messages.NoTechnology, fmt.Sprintf("does not run %s", w.Spec.Technology)
	case noOverlay:
		return messages.NoNodeMatches, "is not part of the overlay: " + e.NoOverlay
	case portTaken:
		port, holder, _ := e.taken(w)
		return messages.PortInUse, fmt.Sprintf("host port %d/%s is reserved for %s", port.Host, port.Protocol, holder)
	default:
		return messages.NoCapacity, e.capacityReason(w, o)
	}
}

// labelReason names the first label by name that differs.
func (e *entry) labelReason(w *Want) string {
	for _, key := range slices.Sorted(maps.Keys(w.Constraints.Labels)) {
		got, has := e.Info.Labels[key]
		if !has {
			return fmt.Sprintf("has no label %s", key)
		}
		if want := w.Constraints.Labels[key]; got != want {
			return fmt.Sprintf("has label %s=%s, %s is asked for", key, got, want)
		}
	}
	return ""
}

func (e *entry) capacityReason(w *Want, o obstacle) string {
	need, used := w.Spec.Resources, e.used(w)
	switch o {
	case noGPU:
		all := e.gpus(w.Spec.Technology)
		text := fmt.Sprintf("%d of %d gpus free, %d asked for", max(all-used.GPUs, 0), all, need.GPUs)
		if others := len(e.Info.GPUs) - all; others > 0 {
			text += fmt.Sprintf("; %d more cannot be given to containers: only NVIDIA's can, with the nvidia runtime (nvidia-container-toolkit)", others)
		}
		return text
	case noCPU:
		return fmt.Sprintf("%.2f of %d cpus free, %.2f asked for", max(float64(e.Info.CPU.Cores)-used.CPUs, 0), e.Info.CPU.Cores, need.CPUs)
	default:
		return fmt.Sprintf("%d of %d MiB memory free, %d asked for", max(e.Info.MemoryMB-used.MemoryMB, 0), e.Info.MemoryMB, need.MemoryMB)
	}
}

// explain says of each node, by name, why it does not take the instance.
func (t *Table) explain(w *Want) *Refusal {
	ids := w.Worker
	if len(ids) == 0 {
		ids = slices.Sorted(maps.Keys(t.nodes))
	}
	passed := make([]messages.Passed, 0, len(ids))
	for _, id := range ids {
		p := messages.Passed{Node: id, Code: messages.UnknownNode, Reason: "no node of this name has ever registered"}
		if e := t.nodes[id]; e != nil {
			p.Code, p.Reason = e.reason(w, e.against(w))
		}
		passed = append(passed, p)
	}
	return refuse(passed)
}

// Refusal says why no node takes an instance.
type Refusal struct {
	Code  messages.Code
	Nodes []messages.Passed
}

// Error says it in one line.
func (r *Refusal) Error() string {
	if len(r.Nodes) == 0 {
		return "no node has registered yet"
	}
	first := r.Nodes[0]
	for _, p := range r.Nodes {
		if p.Code == r.Code {
			first = p
			break
		}
	}
	if len(r.Nodes) == 1 {
		return fmt.Sprintf("no node can take it: %s %s", first.Node, first.Reason)
	}
	return fmt.Sprintf("none of %d nodes can take it: %s %s, …", len(r.Nodes), first.Node, first.Reason)
}

// closeness orders codes by how far a node came through the filters.
func closeness(c messages.Code) int {
	return slices.Index([]messages.Code{messages.UnknownNode, messages.NoNodeMatches, messages.NoTechnology, messages.NoCapacity, messages.PortInUse}, c)
}

func refuse(passed []messages.Passed) *Refusal {
	r := &Refusal{Code: messages.NoNodeMatches, Nodes: passed}
	for i, p := range passed {
		if i == 0 || closeness(p.Code) > closeness(r.Code) {
			r.Code = p.Code
		}
	}
	return r
}
