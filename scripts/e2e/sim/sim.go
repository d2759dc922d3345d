// Package sim lets one manager and a few nodes live through a bad few minutes in virtual time: the real reconcile, schedule, lease, dispatch,
// session and instance code on a network, a disk and workloads in memory, with lost, late, repeated and reordered messages, crashes at
// every step, nodes that are cut off and technologies that are slow or fail. Then everything heals, and what is desired must be what runs.
//
// One seed is one story. A single goroutine decides what happens next and lets everybody come to rest (synctest.Wait) before the
// next thing happens; what several goroutines say at the same moment is put in a fixed order before anybody hears it. So the same seed
// tells the same story, line by line, which a test holds. Not fixed, and not told: ports, ids and keys.
//
// It must not know how the parts work inside: it sees what a network, a disk and a container engine would see.
package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
)

// weather says what befalls a story.
type weather int

const (
	// gentle: connections break, the manager and engines crash, but nothing that a running workload or its users would notice.
	gentle weather = 0
	// rough: nodes are cut off, lose power or their disk, technologies and workloads fail. The network is as MQTT over TCP is.
	rough weather = 1
	// harsh: rough, and messages to and from nodes are reordered and repeated at will, which no broker does (ours lets a new connection of a
	// node in when all of the old one is over) but the protocol bears.
	harsh weather = 2

	weathers = 3
)

func (w weather) String() string {
	return map[weather]string{gentle: "gentle", rough: "rough", harsh: "harsh"}[w]
}

const (
	lostAfter = 30 * time.Second
	// keepAlive is that of a session; a broker waits half as long again.
	keepAlive   = 15 * time.Second
	brokerWaits = keepAlive * 3 / 2
	chaosTime   = 3 * time.Minute
	// healTime is longer than everything that waits: update.timeout, lost_after, restarts, reconnects, one after the other.
	healTime = 6 * time.Minute
	// restTime is how long before the end nothing may be said any more.
	restTime = 45 * time.Second
)

// Outcome is how a story ended.
type Outcome struct {
	Story      []string
	Violations []string
}

// Sim is the world of one story.
type Sim struct {
	seed    uint64
	weather weather
	bug     Bug
	rng     *rand.Rand
	log     *slog.Logger
	began   time.Time
	healing bool
	over    bool

	nodes  []*node
	mgr    *manager
	disk   *disk
	client *client
	rules  *rules
	asks   sync.WaitGroup // calls of the manager that may block

	events timeline
	order  int
	wake   chan struct{} // capacity 1: somebody has said something

	mu   sync.Mutex // guards said
	said []saying

	outcome Outcome
}

// saying is something that a goroutine of a part has said; the story goes on with do, in a fixed order.
type saying struct {
	at  time.Time
	key string
	do  func()
}

// Run plays the story of a seed in the directory dir. It is called in a bubble of testing/synctest.
func Run(seed uint64, bug Bug, dir string, log *slog.Logger) Outcome {
	s := begin(seed, weather(seed%weathers), bug, dir, log)
	s.plague()
	s.client.plan()
	s.advance(chaosTime)
	s.heal()
	s.advance(healTime - restTime)
	s.rules.rest()
	s.advance(restTime)
	s.rules.final()
	s.end()
	return s.outcome
}

// begin makes the world of a story, with a manager and a few nodes that know one another.
func begin(seed uint64, w weather, bug Bug, dir string, log *slog.Logger) *Sim {
	s := &Sim{seed: seed, weather: w, bug: bug, rng: rand.New(rand.NewPCG(seed, 1)), log: log, began: time.Now(), wake: make(chan struct{}, 1)}
	s.rules = newRules(s)
	s.disk = &disk{sim: s}
	s.client = newClient(s)
	s.tell("seed %d, %s weather", seed, s.weather)
	s.bootManager()
	for i := range 2 + s.rng.IntN(3) {
		n := newNode(s, messages.NodeID(rune('a'+i)), filepath.Join(dir, fmt.Sprint(i)))
		s.nodes = append(s.nodes, n)
		n.boot()
	}
	s.advance(5 * time.Second)
	return s
}

// end stops everything, so that the bubble can close.
func (s *Sim) end() {
	s.over = true
	for _, n := range s.nodes {
		n.kill()
	}
	s.mgr.kill()
	for _, n := range s.nodes {
		if n.life != nil {
			<-n.life.done
		}
	}
	<-s.mgr.done
	s.asks.Wait()
}

func (s *Sim) tell(format string, args ...any) {
	s.outcome.Story = append(s.outcome.Story, fmt.Sprintf("%8.3f  ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

func (s *Sim) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if slices.Contains(s.outcome.Violations, text) || len(s.outcome.Violations) > 20 {
		return
	}
	s.outcome.Violations = append(s.outcome.Violations, text)
	s.tell("VIOLATION: %s", text)
}

// say is called by the parts' goroutines. What is said with the same key keeps its order.
func (s *Sim) say(key string, do func()) {
	s.mu.Lock()
	s.said = append(s.said, saying{time.Now(), key, do})
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// settle lets everybody come to rest and hears what they have said.
func (s *Sim) settle() {
	for {
		synctest.Wait()
		s.mu.Lock()
		said := s.said
		s.said = nil
		s.mu.Unlock()
		if len(said) == 0 {
			return
		}
		slices.SortStableFunc(said, func(a, b saying) int {
			if c := a.at.Compare(b.at); c != 0 {
				return c
			}
			return strings.Compare(a.key, b.key)
		})
		for _, w := range said {
			w.do()
		}
	}
}

// occurrence is something that is going to happen.
type occurrence struct {
	due   time.Time
	order int
	node  *node // it crosses this node's link: not while that is cut
	do    func()
}

type timeline []*occurrence

func (t timeline) Len() int { return len(t) }
func (t timeline) Less(i, j int) bool {
	if c := t[i].due.Compare(t[j].due); c != 0 {
		return c < 0
	}
	return t[i].order < t[j].order
}
func (t timeline) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

// Push is called by package heap.
func (t *timeline) Push(x any) { *t = append(*t, x.(*occurrence)) }

// Pop is called by package heap.
func (t *timeline) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

// at has something happen at a time; n, where not nil, is the node whose link it crosses.
func (s *Sim) at(due time.Time, n *node, do func()) {
	s.order++
	heap.Push(&s.events, &occurrence{due, s.order, n, do})
}

func (s *Sim) after(d time.Duration, do func()) { s.at(time.Now().Add(d), nil, do) }

// advance lets the story go on for a while.
func (s *Sim) advance(d time.Duration) {
	for end := time.Now().Add(d); ; {
		s.settle()
		s.rules.always()
		next := end
		if len(s.events) > 0 && s.events[0].due.Before(end) {
			next = s.events[0].due
		}
		if wait := time.Until(next); wait > 0 {
			s.sleep(wait)
			continue
		}
		if next.Equal(end) {
			return
		}
		o := heap.Pop(&s.events).(*occurrence)
		if o.node != nil && o.node.cutUntil.After(time.Now()) {
			o.due = o.node.cutUntil
			heap.Push(&s.events, o)
			continue
		}
		o.do()
	}
}

// sleep waits until the time is over or somebody says something.
func (s *Sim) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.wake:
	}
}

// between returns a time between two, by the seed's chance.
func (s *Sim) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.rng.Int64N(int64(most-least)+1))
}

func (s *Sim) chance(n int) bool { return s.rng.IntN(n) == 0 }

// latency is how long a packet is under way.
func (s *Sim) latency() time.Duration {
	switch {
	case s.healing:
		return s.between(time.Millisecond, 20*time.Millisecond)
	case s.chance(8):
		return s.between(100*time.Millisecond, 3*time.Second)
	default:
		return s.between(time.Millisecond, 80*time.Millisecond)
	}
}

// fixed returns a duration that depends on nothing but the seed and the words, so that goroutines may ask in any order.
func (s *Sim) fixed(least, most time.Duration, words ...any) time.Duration {
	h := fnv.New64a()
	fmt.Fprint(h, s.seed, words)
	return least + time.Duration(rand.New(rand.NewPCG(h.Sum64(), 2)).Int64N(int64(most-least)))
}

// wipe removes what a node has on its disk, but for its key.
func wipe(dir string) error {
	for _, sub := range []string{"instances", "values"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	return nil
}
