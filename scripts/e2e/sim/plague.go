package sim

import (
	"testing/synctest"
	"time"
)

// synctestWait lets everybody else come to rest.
func synctestWait() { synctest.Wait() }

// most returns the longest that something takes: short where users are not to notice.
func (s *Sim) most(gentleMost, otherwise time.Duration) time.Duration {
	if s.weather == gentle {
		return gentleMost
	}
	return otherwise
}

// plague spreads faults over the story.
func (s *Sim) plague() {
	for t := 5 * time.Second; t < chaosTime; t += s.between(500*time.Millisecond, 12*time.Second) {
		s.after(t, s.strike)
	}
}

// strike is one fault.
func (s *Sim) strike() {
	if s.healing {
		return
	}
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	switch s.rng.IntN(12) {
	case 0, 1:
		if n.conn != nil {
			n.conn.shake(s.weather == gentle)
		}
	case 2, 3:
		n.cut(s.between(time.Second, s.most(8*time.Second, 70*time.Second)))
	case 4:
		n.crash()
	case 5, 6:
		n.arm()
	case 7:
		n.restart()
	case 8:
		s.mgr.kill()
	case 9, 10:
		s.mgr.points.Store(1 + s.rng.Int64N(20))
	case 11:
		s.fillDisk()
	}
	if s.weather != gentle && s.chance(2) {
		s.strikeHard(s.nodes[s.rng.IntN(len(s.nodes))])
	}
}

func (s *Sim) fillDisk() {
	s.tell("the manager's disk is full")
	s.disk.full.Store(true)
	s.after(s.between(500*time.Millisecond, 8*time.Second), func() { s.disk.full.Store(false) })
}

// strikeHard is a fault that workloads notice.
func (s *Sim) strikeHard(n *node) {
	switch s.rng.IntN(10) {
	case 0, 1:
		n.powerCut(keepsAll)
	case 2:
		n.powerCut(losesAll)
	case 3:
		n.powerCut(losesData)
	case 4:
		n.damage()
	case 5, 6:
		n.outage(s.between(500*time.Millisecond, 40*time.Second))
	case 7:
		s.tell("the technology of %s fails now and then", n.id)
		n.flaky.Store(true)
		s.after(s.between(5*time.Second, 40*time.Second), func() { n.flaky.Store(false) })
	default:
		n.accident()
	}
}

// heal ends every fault; who is cut off comes back in its time. In bad weather one node of several may be gone for good.
func (s *Sim) heal() {
	s.healing = true
	s.tell("everything heals")
	s.disk.full.Store(false)
	s.mgr.points.Store(0)
	if s.weather != gentle && len(s.nodes) > 2 && s.chance(2) {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		s.tell("but %s is gone for good", n.id)
		n.powerCut(keepsAll)
		n.gone = true
	}
	for _, n := range s.nodes {
		n.flaky.Store(false)
		if n.life != nil {
			n.life.armed.Store(false)
		}
		if n.down {
			n.down = false
			n.driver.Down(false)
		}
	}
}
