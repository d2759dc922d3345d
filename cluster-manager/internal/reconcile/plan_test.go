package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
)

var now = time.Unix(1_800_000_000, 0)

// scene is a job with its placements, made by adding to it. Each node is named by one letter; x is not allowed, o lacks the overlay that the job insists on, z is lost, y is away but not
// lost yet, all others are connected.
type scene struct {
	job *cluster.Job
}

func jobOf(ordinals ...int) *scene {
	spec := messages.Job{Name: "web", Spec: messages.Spec{Image: "x"}}.WithDefaults()
	n := len(ordinals)
	spec.Replicas = &n
	return &scene{&cluster.Job{Spec: spec, Hash: "new", Rev: 10, Ordinals: ordinals, Placements: map[messages.InstanceID]*cluster.Placement{},
		Waiting: map[int]*cluster.Waiting{}}}
}

// on adds a placement of the job as it is, that runs and is healthy for long, unless changed.
func (s *scene) on(node messages.NodeID, ordinal, generation int, change ...func(*cluster.Placement)) *scene {
	p := &cluster.Placement{Instance: messages.NewInstanceID("web", ordinal, generation), Job: "web", Ordinal: ordinal, Generation: generation, Node: node,
		Rev: uint64(20 + generation), Hash: "new", Spec: s.job.Spec.Spec, Run: true, Cause: cluster.ByDeploy, AwaitedSince: now.Add(-time.Hour), HealthySince: now.Add(-time.Hour),
		Observed: &messages.InstanceStatus{State: messages.Running, Healthy: true}}
	for _, f := range change {
		f(p)
	}
	s.job.Placements[p.Instance] = p
	return s
}

func (s *scene) with(change func(*cluster.Job)) *scene {
	change(s.job)
	return s
}

func old(p *cluster.Placement)      { p.Hash = "old" }
func stopping(p *cluster.Placement) { p.Run, p.StoppingSince = false, now.Add(-time.Second) }
func stopped(p *cluster.Placement) {
	stopping(p)
	p.Observed = &messages.InstanceStatus{State: messages.Stopped}
}
func fresh(p *cluster.Placement) {
	p.Observed, p.AwaitedSince, p.HealthySince = nil, now, time.Time{}
}
func justUp(p *cluster.Placement) { p.HealthySince = now.Add(-time.Millisecond) }
func sick(p *cluster.Placement) {
	p.Observed, p.HealthySince = &messages.InstanceStatus{State: messages.Running, Reason: "http: 500"}, time.Time{}
}
func sickFresh(p *cluster.Placement) { sick(p); p.AwaitedSince = now }
func notBegun(p *cluster.Placement) {
	p.Observed, p.HealthySince = &messages.InstanceStatus{State: messages.Pending, Reason: "the node's overlay is not up"}, time.Time{}
}
func failedHere(p *cluster.Placement) {
	p.Observed, p.HealthySince = &messages.InstanceStatus{State: messages.FailedState, Code: messages.ImageNotFound, Reason: "no such image"}, time.Time{}
}
func crashing(n int) func(*cluster.Placement) {
	return func(p *cluster.Placement) {
		p.Observed = &messages.InstanceStatus{State: messages.Pending, Attempt: n, Reason: "exited with code 1"}
		p.AwaitedSince, p.HealthySince = now, time.Time{}
	}
}
func finished(p *cluster.Placement) {
	p.Finished, p.Observed = true, &messages.InstanceStatus{State: messages.ExitedState}
}
func by(c cluster.Cause) func(*cluster.Placement) { return func(p *cluster.Placement) { p.Cause = c } }
func after(id messages.InstanceID) func(*cluster.Placement) {
	return func(p *cluster.Placement) { fresh(p); p.After = id }
}
func rolling(j *cluster.Job) {
	j.Previous = &cluster.Previous{Rev: 15, Hash: "old", Ordinals: j.Ordinals}
}
func laterChange(j *cluster.Job)  { rolling(j); j.Previous.Rev = 99 }
func deleting(j *cluster.Job)     { j.Deleting = true }
func keepOriginal(j *cluster.Job) { j.Spec.OnReturn = messages.KeepOriginal }
func reverted(j *cluster.Job)     { j.Reverted = "it was bad" }

func (s *scene) input() Input {
	return Input{Job: s.job, Now: now, LostAfter: 30 * time.Second, Node: func(id messages.NodeID) Liveness {
		l := Liveness{Allowed: id != "x", Blocked: id == "o"}
		switch id {
		case "z":
			l.Away = time.Minute
		case "y":
			l.Away = 10 * time.Second
		}
		return l
	}}
}

func (a Action) text() string {
	switch a.Kind {
	case Start:
		replaces := ""
		if a.Replaces != nil {
			replaces = " for " + string(a.Replaces.Instance)
		}
		return fmt.Sprintf("start %d %s%s", a.Ordinal, a.Cause, replaces)
	case Stop:
		return fmt.Sprintf("stop %s %s", a.Placement.Instance, a.Code)
	case Forget:
		return "forget " + string(a.Placement.Instance)
	case Release:
		return "release " + string(a.Placement.Instance)
	case Revert:
		return fmt.Sprintf("revert %s %s", a.Instance, a.Code)
	case Settle:
		return "settle"
	default:
		return "drop"
	}
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name string
		s    *scene
		want string // the actions, separated by commas
		wake time.Duration
	}{
		{"nothing asked", jobOf(), "", 0},
		{"nothing there", jobOf(0, 2), "start 0 deploy, start 2 deploy", 0},
		{"nothing there after a revert", jobOf(0).with(reverted), "start 0 revert", 0},
		{"all there", jobOf(0, 1).on("a", 0, 0).on("b", 1, 0), "", 0},
		{"not reported yet", jobOf(0).on("a", 0, 0, fresh), "", 0},
		{"sick", jobOf(0).on("a", 0, 0, sick), "", 0},
		{"failed", jobOf(0).on("a", 0, 0, failedHere), "", 0},
		{"finished on a lost node", jobOf(0).on("z", 0, 0, finished), "", 0},

		{"one too many", jobOf(0).on("a", 0, 0).on("b", 1, 0), "stop web.1.0 ", 0},
		{"stopping", jobOf(0).on("a", 0, 1).on("b", 0, 0, stopping), "", 0},
		{"stopped", jobOf(0).on("a", 0, 1).on("b", 0, 0, stopped), "forget web.0.0", 0},
		{"stopping on a lost node", jobOf(0).on("a", 0, 1).on("z", 0, 0, stopping), "forget web.0.0", 0},
		{"stopping on a node that is away", jobOf().on("y", 0, 0, stopping), "", 20 * time.Second},
		{"delete", jobOf(0).with(deleting).on("a", 0, 0), "stop web.0.0 ", 0},
		{"deleted", jobOf(0).with(deleting).on("a", 0, 0, stopped), "forget web.0.0", 0},
		{"nothing left", jobOf(0).with(deleting), "drop", 0},

		{"away", jobOf(0).on("y", 0, 0), "", 20 * time.Second},
		{"lost", jobOf(0).on("z", 0, 0), "start 0 lost for web.0.0", 0},
		{"lost and out of date", jobOf(0).on("z", 0, 0, old), "start 0 lost for web.0.0", 0},
		{"several lost at once", jobOf(0, 1, 2).on("z", 0, 0).on("z", 1, 0).on("a", 2, 0), "start 0 lost for web.0.0, start 1 lost for web.1.0", 0},
		{"a stand-in is on its way", jobOf(0).on("z", 0, 0).on("b", 0, 1, by(cluster.ByLoss), fresh), "", 5 * time.Minute},
		{"a stand-in proves itself", jobOf(0).on("z", 0, 0).on("b", 0, 1, by(cluster.ByLoss), justUp), "", 999 * time.Millisecond},
		{"a stand-in is good", jobOf(0).on("z", 0, 0).on("b", 0, 1, by(cluster.ByLoss)), "stop web.0.0 ", 0},
		{"a stand-in is lost too", jobOf(0).on("z", 0, 0).on("z", 0, 1, by(cluster.ByLoss)), "stop web.0.1 timeout", 0},
		{"a stand-in fails, the first is back", jobOf(0).on("a", 0, 0).on("b", 0, 1, by(cluster.ByLoss), failedHere), "stop web.0.1 image_not_found", 0},
		{"a stand-in fails, the first is lost", jobOf(0).on("z", 0, 0).on("b", 0, 1, by(cluster.ByLoss), failedHere), "", 0},
		{"original lost, stand-in good", jobOf(0).with(keepOriginal).on("z", 0, 0).on("b", 0, 1, by(cluster.ByLoss)), "", 0},
		{"original lost, stand-in lost", jobOf(0).with(keepOriginal).on("z", 0, 0).on("z", 0, 1, by(cluster.ByLoss)), "stop web.0.1 ", 0},
		{"original back, not reported", jobOf(0).with(keepOriginal).on("a", 0, 0, fresh).on("b", 0, 1, by(cluster.ByLoss)), "", 0},
		{"original back and up", jobOf(0).with(keepOriginal).on("a", 0, 0).on("b", 0, 1, by(cluster.ByLoss)), "stop web.0.1 ", 0},
		{"original back and broken", jobOf(0).with(keepOriginal).on("a", 0, 0, failedHere).on("b", 0, 1, by(cluster.ByLoss)), "stop web.0.0 ", 0},
		{"original back and out of date", jobOf(0).with(keepOriginal).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByLoss)), "stop web.0.0 ", 0},
		{"keep-original is not about a move", jobOf(0).with(keepOriginal).on("a", 0, 0).on("b", 0, 1, by(cluster.ByMove)), "stop web.0.0 ", 0},

		{"out of date, one at a time", jobOf(0, 1).with(rolling).on("a", 0, 0, old).on("b", 1, 0, old), "start 0 change for web.0.0", 0},
		{"where it may not be", jobOf(0).on("x", 0, 0), "start 0 change for web.0.0", 0},
		{"where it cannot be started", jobOf(0).on("o", 0, 0, notBegun), "start 0 change for web.0.0", 0},
		{"where it cannot be started again", jobOf(0).on("o", 0, 0, crashing(1)), "start 0 change for web.0.0", 0},
		{"where it could not be started again, and runs", jobOf(0).on("o", 0, 0), "", 0},
		{"where it could not be started again, and is sick", jobOf(0).on("o", 0, 0, sick), "", 0},
		{"where it could not be started again, and is not reported yet", jobOf(0).on("o", 0, 0, fresh), "", 0},
		{"a replacement where it cannot be started", jobOf(0).with(rolling).on("a", 0, 0, old).on("o", 0, 1, by(cluster.ByChange), notBegun), "stop web.0.1 ", 0},
		{"moved to where it may not be any more", jobOf(0).on("x", 0, 0, by(cluster.ByMove)), "start 0 change for web.0.0", 0},
		{"the next waits for the first", jobOf(0, 1).with(rolling).on("a", 0, 1, by(cluster.ByChange), fresh).on("b", 1, 0, old), "", 5 * time.Minute},
		{"the next waits for the proof of the first", jobOf(0, 1).with(rolling).on("a", 0, 1, by(cluster.ByChange), justUp).on("b", 1, 0, old), "", 999 * time.Millisecond},
		{"the next follows", jobOf(0, 1).with(rolling).on("a", 0, 1, by(cluster.ByChange)).on("b", 1, 0, old), "start 1 change for web.1.0", 0},
		{"one that is away does not block", jobOf(0, 1).with(rolling).on("y", 0, 0, old).on("b", 1, 0, old), "start 1 change for web.1.0", 20 * time.Second},
		{"one that failed for good does not block", jobOf(0, 1).on("a", 0, 1, by(cluster.ByChange), failedHere).on("x", 1, 0), "start 1 change for web.1.0", 0},
		{"replacement good", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange)), "stop web.0.0 ", 0},
		{"replacement waits", jobOf(0).with(rolling).on("a", 0, 0, old, stopping).on("a", 0, 1, by(cluster.ByChange), after("web.0.0")), "", 0},
		{"replacement's turn", jobOf(0).with(rolling).on("a", 0, 1, by(cluster.ByChange), after("web.0.0")), "release web.0.1", 0},
		{"replacement fails", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), failedHere), "revert web.0.1 image_not_found, stop web.0.1 image_not_found", 0},
		{"replacement crashes once", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), crashing(1)), "", 5 * time.Minute},
		{"replacement crashes twice", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), crashing(2)), "revert web.0.1 exited, stop web.0.1 exited", 0},
		{"replacement not healthy yet", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), sickFresh), "", 5 * time.Minute},
		{"replacement never healthy", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), sick), "revert web.0.1 unhealthy, stop web.0.1 unhealthy", 0},
		{"replacement lost", jobOf(0).with(rolling).on("a", 0, 0, old).on("z", 0, 1, by(cluster.ByChange)), "stop web.0.1 timeout", 0},
		{"replacement away", jobOf(0).with(rolling).on("a", 0, 0, old).on("y", 0, 1, by(cluster.ByChange)), "", 20 * time.Second},
		{"stop-first fails", jobOf(0).with(rolling).on("a", 0, 1, by(cluster.ByChange), failedHere), "revert web.0.1 image_not_found, stop web.0.1 image_not_found", 0},
		{"sick since an earlier change", jobOf(0).with(laterChange).on("a", 0, 1, by(cluster.ByChange), sick), "settle", 0},
		{"changed again, the first not up", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), old, fresh), "stop web.0.1 ", 0},
		{"changed again, the first not reported and nothing else up", jobOf(0).with(rolling).on("a", 0, 0, old, sick).on("b", 0, 1, by(cluster.ByChange), old, fresh), "", 5 * time.Minute},
		{"changed again, the first not reported and lost", jobOf(0).with(rolling).on("a", 0, 0, old, sick).on("z", 0, 1, by(cluster.ByChange), old, fresh), "stop web.0.1 ", 0},
		{"changed again, the first sick and nothing else up", jobOf(0).with(rolling).on("a", 0, 0, old, sick).on("b", 0, 1, by(cluster.ByChange), old, sick), "stop web.0.1 ", 0},
		{"changed again, the first up", jobOf(0).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), old), "stop web.0.0 ", 0},
		{"two fail at once", jobOf(0, 1).with(rolling).on("a", 0, 1, by(cluster.ByChange), failedHere).on("b", 1, 1, by(cluster.ByChange), failedHere),
			"revert web.0.1 image_not_found, stop web.0.1 image_not_found, stop web.1.1 image_not_found", 0},
		{"going back fails", jobOf(0).with(reverted).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), failedHere), "", 0},
		{"finished and out of date", jobOf(0).with(rolling).on("z", 0, 0, old, finished), "start 0 change for web.0.0", 0},
		{"finished where it may not be", jobOf(0).on("x", 0, 0, finished), "", 0},
		{"a change has reached all", jobOf(0).with(rolling).on("a", 0, 1, by(cluster.ByChange)), "settle", 0},
		{"a change that only adds", jobOf(0, 1).with(rolling).on("a", 0, 0), "start 1 deploy", 0},

		{"moving", jobOf(0).on("a", 0, 0).on("b", 0, 1, by(cluster.ByMove), fresh), "", 5 * time.Minute},
		{"moved", jobOf(0).on("a", 0, 0).on("b", 0, 1, by(cluster.ByMove)), "stop web.0.0 ", 0},
		{"move fails", jobOf(0).on("a", 0, 0).on("b", 0, 1, by(cluster.ByMove), failedHere), "stop web.0.1 image_not_found", 0},
		{"move to a node that is lost", jobOf(0).on("a", 0, 0).on("z", 0, 1, by(cluster.ByMove)), "stop web.0.1 timeout", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := Plan(c.s.input())
			var got []string
			for _, a := range out.Actions {
				got = append(got, a.text())
			}
			if text := strings.Join(got, ", "); text != c.want {
				t.Errorf("got  %q\nwant %q", text, c.want)
			}
			if c.wake == 0 && !out.Wake.IsZero() || c.wake != 0 && !out.Wake.Equal(now.Add(c.wake)) {
				t.Errorf("wakes in %s, want %s", out.Wake.Sub(now), c.wake)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	overdue := func(p *cluster.Placement) { stopping(p); p.StoppingSince = now.Add(-time.Hour) }
	waiting := func(since time.Duration) func(*cluster.Job) {
		return func(j *cluster.Job) {
			j.Waiting[0] = &cluster.Waiting{Since: now.Add(-since), Code: messages.NoCapacity}
		}
	}
	move := cluster.Op{Command: messages.Move, Targets: []messages.InstanceID{"web.0.1"}}
	replaces := func(p *cluster.Placement) { p.Cause, p.Replaces = cluster.ByMove, "web.0.0" }
	given := func(p *cluster.Placement) {
		stopping(p)
		p.Failure = &cluster.Failure{Code: messages.Unhealthy, Reason: "it was sick"}
	}
	for _, c := range []struct {
		name string
		op   cluster.Op
		s    *scene
		want string
	}{
		{"none asked", cluster.Op{Command: messages.Deploy}, jobOf(), "done "},
		{"up", cluster.Op{Command: messages.Deploy}, jobOf(0).on("a", 0, 0), "done "},
		{"not up", cluster.Op{Command: messages.Deploy}, jobOf(0).on("a", 0, 0, sickFresh), " "},
		{"missing", cluster.Op{Command: messages.Deploy}, jobOf(0, 1).on("a", 0, 0), " "},
		{"failed", cluster.Op{Command: messages.Deploy}, jobOf(0).on("a", 0, 0, failedHere), "failed image_not_found"},
		{"too late", cluster.Op{Command: messages.Deploy}, jobOf(0).on("a", 0, 0, sick), "failed unhealthy"},
		{"sick since before", cluster.Op{Command: messages.Replicate, Since: now.Add(-time.Minute)}, jobOf(0).on("a", 0, 0, sick), " "},
		{"rolling", cluster.Op{Command: messages.Deploy}, jobOf(0).with(rolling).on("a", 0, 0), " "},
		{"out of date", cluster.Op{Command: messages.Deploy}, jobOf(0).on("a", 0, 0, old), " "},
		{"waits for a node", cluster.Op{Command: messages.Deploy}, jobOf(0).with(waiting(time.Minute)), " "},
		{"waits too long", cluster.Op{Command: messages.Deploy}, jobOf(0).with(waiting(time.Hour)), "failed no_capacity"},
		{"twice", cluster.Op{Command: messages.Replicate}, jobOf(0).on("a", 0, 0).on("b", 0, 1), " "},
		{"one lost with its stand-in", cluster.Op{Command: messages.Replicate}, jobOf(0).on("z", 0, 0).on("b", 0, 1), "done "},
		{"one lost without", cluster.Op{Command: messages.Replicate}, jobOf(0).on("z", 0, 0), " "},
		{"one finished on a lost node", cluster.Op{Command: messages.Deploy}, jobOf(0).on("z", 0, 0, finished), "done "},
		{"one leaves", cluster.Op{Command: messages.Replicate}, jobOf(0).on("a", 0, 0).on("b", 1, 0, stopping), " "},
		{"one never leaves", cluster.Op{Command: messages.Replicate}, jobOf(0).on("a", 0, 0).on("b", 1, 0, overdue), "failed timeout"},

		{"deleted there", cluster.Op{Command: messages.Delete}, jobOf(0).on("a", 0, 0), "done "},
		{"leaving there", cluster.Op{Command: messages.Delete}, jobOf(0).on("a", 0, 0, stopping), " "},
		{"never leaves there", cluster.Op{Command: messages.Delete}, jobOf(0).on("a", 0, 0, overdue), "failed timeout"},
		{"deleting all", cluster.Op{Command: messages.Delete}, jobOf(0).with(deleting), " "},
		{"deleting all, never leaves", cluster.Op{Command: messages.Delete}, jobOf(0).with(deleting).on("a", 0, 0, overdue), "failed timeout"},

		{"moved nothing", cluster.Op{Command: messages.Move}, jobOf(0).on("a", 0, 0), "done "},
		{"moving", move, jobOf(0).on("a", 0, 0).on("b", 0, 1, replaces, fresh), " "},
		{"moved, the old one is there", move, jobOf(0).on("a", 0, 0).on("b", 0, 1, replaces), " "},
		{"moved, the old one leaves", move, jobOf(0).on("a", 0, 0, stopping).on("b", 0, 1, replaces), " "},
		{"moved, the old one never leaves", move, jobOf(0).on("a", 0, 0, overdue).on("b", 0, 1, replaces), "failed timeout"},
		{"moved", move, jobOf(0).on("b", 0, 1, replaces), "done "},
		{"given up", move, jobOf(0).on("a", 0, 0).on("b", 0, 1, replaces, given), "failed unhealthy"},
		{"failed once the old one had gone", move, jobOf(0).on("b", 0, 1, replaces, failedHere), "failed image_not_found"},
		{"lost once the old one had gone", move, jobOf(0).on("z", 0, 1, replaces), "failed timeout"},
		{"given up once the old one was told to stop", move, jobOf(0).on("a", 0, 0, stopping).on("b", 0, 1, replaces, stopping), "failed unhealthy"},
		{"given up and gone", move, jobOf(0).on("a", 0, 0), "failed unhealthy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, out := Judge(c.s.input(), &c.op)
			if got := string(v.Phase) + " " + string(v.Code); got != c.want {
				t.Errorf("got %q (%s), want %q", got, v.Message, c.want)
			}
			if v.Phase != "" && v.Message == "" {
				t.Error("says no reason")
			}
			if old := c.s.job.Placements["web.0.0"]; strings.Contains(v.Message, "left running") && (old == nil || !old.Run) {
				t.Errorf("what does not run was left running: %s", v.Message)
			}
			if !out.Wake.IsZero() && !out.Wake.After(now) {
				t.Errorf("wakes at %s, which is over", out.Wake)
			}
		})
	}
}

// Plan changes nothing of its input, and says the same twice.
func TestPlanIsPure(t *testing.T) {
	s := jobOf(0, 1, 2).with(rolling).on("a", 0, 0, old).on("b", 0, 1, by(cluster.ByChange), failedHere).on("z", 1, 0).on("x", 2, 0)
	before := fmt.Sprintf("%+v", s.job)
	first, second := Plan(s.input()), Plan(s.input())
	if after := fmt.Sprintf("%+v", s.job); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	if !slices.EqualFunc(first.Actions, second.Actions, func(a, b Action) bool { return a.text() == b.text() }) || first.Wake != second.Wake {
		t.Errorf("first %v, then %v", first, second)
	}
}

func BenchmarkPlan(b *testing.B) {
	s := jobOf()
	for i := range 100 {
		s.job.Ordinals = append(s.job.Ordinals, i)
		s.on("a", i, 0)
	}
	in := s.input()
	b.ReportAllocs()
	for b.Loop() {
		Plan(in)
	}
}

// Why an instance failed is said as well while it runs once more and reports no reason.
func TestLastExit(t *testing.T) {
	code := 3
	for want, o := range map[string]messages.InstanceStatus{
		"http: 500":                 {State: messages.Running, Reason: "http: 500", ExitCode: &code},
		"exited with code 3":        {State: messages.Running, ExitCode: &code},
		"killed for want of memory": {State: messages.Running, ExitCode: &code, OOM: true},
		"its node does not say why": {State: messages.Running},
	} {
		p := &cluster.Placement{Instance: "web.0.0", Node: "a", Observed: &o, AwaitedSince: now}
		o.Attempt = maxRestarts
		planner := planner{Input: jobOf(0).input()}
		if got, why := planner.failed(p, now); got != messages.Exited || !strings.HasSuffix(why, ": "+want) {
			t.Errorf("got %q %q, want %q", got, why, want)
		}
	}
}
