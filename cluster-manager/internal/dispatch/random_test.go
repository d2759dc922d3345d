package dispatch

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"skerry.internal/messages"
)

// stories is how many are played: a third of all with -short. A story is one goroutine's, so more of them tell the race detector nothing.
func stories(all uint64) uint64 {
	if testing.Short() {
		return all / 3
	}
	return all
}

// Random commands, lost nodes, crashes of the manager and failing images, in random order; then everything heals. What is desired must
// then be what runs: nothing twice, nothing forgotten, every command answered.
func TestRandomStories(t *testing.T) {
	for seed := range stories(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := &story{world: newWorld(t, "a", "b", "c"), rng: rand.New(rand.NewPCG(seed, 0))}
			for range 60 {
				s.step()
			}
			s.heal()
		})
	}
}

type story struct {
	*world
	rng      *rand.Rand
	accepted []messages.Result
	told     []string
}

func (s *story) say(format string, args ...any) {
	s.told = append(s.told, fmt.Sprintf(format, args...))
}

func (s *story) jobName() messages.JobName {
	return []messages.JobName{"web", "db", "cam"}[s.rng.IntN(3)]
}

func (s *story) node() messages.NodeID { return []messages.NodeID{"a", "b", "c"}[s.rng.IntN(3)] }

func (s *story) step() {
	defer s.settle()
	switch n := s.rng.IntN(22); {
	case n < 5:
		images := []string{"good", "better", "good", "better", "sick", "missing", "crashes", "slow"}
		j := job(s.jobName(), images[s.rng.IntN(len(images))], s.rng.IntN(4))
		if s.rng.IntN(3) == 0 {
			j = withPort(j, 8080+s.rng.IntN(2))
		}
		if s.rng.IntN(3) == 0 {
			j.OnReturn = messages.KeepOriginal
		}
		s.order(deploy(j))
	case n < 6:
		s.order(messages.Command{Command: messages.Delete, Job: messages.Job{Name: s.jobName()}})
	case n < 8:
		s.order(messages.Command{Command: messages.Move, Job: messages.Job{Name: s.jobName()}, From: []messages.NodeID{s.node()}})
	case n < 10:
		count := s.rng.IntN(4)
		s.order(messages.Command{Command: messages.Replicate, Job: messages.Job{Name: s.jobName(), Replicas: &count}})
	case n < 11:
		s.order(messages.Command{Command: messages.Delete, Job: messages.Job{Name: s.jobName()}, Worker: []messages.NodeID{s.node()}})
	case n < 15:
		s.toggle(s.node())
	case n < 16:
		s.say("manager crashes")
		s.boot()
		for _, id := range []messages.NodeID{"a", "b", "c"} {
			if s.rng.IntN(2) == 0 {
				s.come(id)
			}
		}
	case n < 17:
		s.orderNode(messages.Replace, s.node())
	case n < 18:
		s.orderNode(messages.Remove, s.node())
	default:
		d := time.Duration(s.rng.IntN(60_000)) * time.Millisecond
		s.say("%s go by", d)
		s.pass(d)
	}
}

func (s *story) toggle(id messages.NodeID) {
	if s.nodes[id].online {
		s.say("%s goes", id)
		s.disconnect(id)
		return
	}
	s.come(id)
}

// come brings a board online. One whose name was given away or removed has to register; what comes may be another board then.
func (s *story) come(id messages.NodeID) {
	if n := s.core.State().Nodes[id]; n != nil && n.Info.Key != "" {
		s.say("%s comes", id)
		s.connect(id)
		return
	}
	another := s.rng.IntN(2) == 0
	s.say("%s comes and registers, as another board: %v", id, another)
	s.rejoin(id, another)
}

func (s *story) orderNode(verb messages.Verb, id messages.NodeID) {
	r := s.sendNode(verb, id)
	s.say("%s %s %s: %s %s %s", r.RequestID, verb, id, r.Phase, r.Code, r.Message)
	if r.Phase == messages.Accepted {
		s.accepted = append(s.accepted, r)
	}
}

func (s *story) order(cmd messages.Command) {
	r := s.send(cmd)
	s.say("%s %s %+v %v: %s %s %s", r.RequestID, cmd.Command, cmd.Job.Name, cmd.Job.Image, r.Phase, r.Code, r.Message)
	if r.Phase == messages.Accepted {
		s.accepted = append(s.accepted, r)
	}
}

// heal brings every node back and lets enough time go by for everything to end.
func (s *story) heal() {
	defer func() {
		if s.t.Failed() {
			for _, line := range s.told {
				s.t.Log(line)
			}
		}
	}()
	for _, id := range []messages.NodeID{"a", "b", "c"} {
		if !s.nodes[id].online {
			s.come(id)
		}
	}
	s.settle()
	s.pass(time.Hour)
	s.consistent()
	for _, r := range s.accepted {
		if s.last(r) == nil {
			s.t.Errorf("%s %s of %s has no last Result", r.RequestID, r.Command, r.Job)
		}
	}
}

// consistent checks that the nodes run what the manager wants, once.
func (s *story) consistent() {
	s.t.Helper()
	st := s.core.State()
	for name, j := range st.Jobs {
		count := map[int]int{}
		for _, p := range j.Sorted() {
			if !p.Run || p.After != "" {
				s.t.Errorf("%s is left over (run %v, after %q)", p.Instance, p.Run, p.After)
			}
			count[p.Ordinal]++
			if held, ok := s.nodes[p.Node].holds[p.Instance]; !ok || !held.Run {
				s.t.Errorf("%s is forgotten by %s", p.Instance, p.Node)
			}
		}
		for _, o := range j.Ordinals {
			if count[o] == 0 && j.Waiting[o] == nil {
				s.t.Errorf("copy %d of %s is neither placed nor said to wait", o, name)
			}
			if count[o] > 1 && fate[j.Spec.Image].Healthy {
				s.t.Errorf("copy %d of %s runs %d times", o, name, count[o])
			}
		}
	}
	for _, id := range []messages.NodeID{"a", "b", "c"} {
		for instance, a := range s.nodes[id].holds {
			if p := st.Placement(instance); p == nil || p.Node != id || !p.Run || p.Rev != a.Rev {
				s.t.Errorf("%s runs on %s though nobody wants it there", instance, id)
			}
		}
		held := s.core.table.Reserved(id)
		if held.MemoryMB != 0 {
			s.t.Errorf("%s has memory reserved that nobody asked for: %v", id, held)
		}
	}
	if names := slices.Collect(func(yield func(string) bool) {
		for n := range s.core.requests {
			yield(n)
		}
	}); len(names) > 0 {
		s.t.Errorf("requests are remembered for ever: %v", names)
	}
}

// The same, but nothing heals: nodes stay away, and one may be deaf. Every command that was accepted is answered all the same.
func TestEveryCommandIsAnswered(t *testing.T) {
	for seed := range stories(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := &story{world: newWorld(t, "a", "b", "c"), rng: rand.New(rand.NewPCG(seed, 7))}
			for i := range 50 {
				s.step()
				if i == 25 && seed%3 == 0 {
					id := s.node()
					s.say("%s is deaf from now on", id)
					s.mute(id)
				}
			}
			s.pass(3 * time.Hour)
			for _, r := range s.accepted {
				if s.last(r) == nil {
					t.Errorf("%s %s of %s has no last Result", r.RequestID, r.Command, r.Job)
				}
			}
			if t.Failed() {
				for _, line := range s.told {
					t.Log(line)
				}
			}
		})
	}
}
