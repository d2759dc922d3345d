package e2e

import (
	"bufio"
	"cmp"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.internal/messages"
)

const (
	soakJobs    = 10 // that exist at once
	soakPending = 8  // commands that are not done yet: a machine that is too slow for the rate has fewer, not a queue
	// requestMemory is how long a manager remembers a command: until then its state grows.
	requestMemory = 10 * time.Minute
	quietPoints   = 8
)

// soak is a cluster under a steady stream of commands.
type soak struct {
	*lab
	rng     *rand.Rand
	parts   []part
	start   time.Time
	sent    int
	refused int
	jobs    map[messages.JobName]string // those that exist, each with the request that is not done; "" where none is
	specs   map[messages.JobName]messages.Job
	next    int
	samples []sample // every few seconds
	quiet   []sample // with nothing deployed and nothing under way
}

// part is a process that is looked at.
type part struct {
	name, debug, data string
	pid               int
}

// sample is what was measured at one moment, by part and figure.
type sample struct {
	at     time.Duration
	values map[string]float64
}

// The figures of a part, with how much more than at first there may be in the end: a share of it, and so much.
var figures = []struct {
	name  string
	share float64
	plus  float64
}{
	{"goroutines", 0, 8}, {"descriptors", 0, 8}, {"threads", 0.5, 8}, {"heap MB", 0.25, 1}, {"RSS MB", 0.3, 12}, {"store MB", 0.25, 0.5},
	{"containers", 0, 4}, // of dockerd: sandboxes that are kept ready come and go
}

// Deploys, moves, changes and deletes without an end, at a steady rate, against the real Docker engine, with few things at once: nothing grows.
// SKERRY_SOAK says for how long (an hour by make soak), SKERRY_SOAK_RATE how many commands a second. Growth is looked for between quiet points,
// at which all jobs have been deleted; a short run only shows that all of this works.
func TestSoak(t *testing.T) {
	dir, inside := world(t)
	if !inside {
		return
	}
	lasts, err := time.ParseDuration(cmp.Or(os.Getenv("SKERRY_SOAK"), "12s"))
	if err != nil {
		t.Fatal(err)
	}
	engine := dockerd(t, dir)
	t.Cleanup(func() { _ = engine.Process.Kill(); _ = engine.Wait() })
	s := &soak{rng: rand.New(rand.NewPCG(1, 2)), jobs: map[messages.JobName]string{}, specs: map[messages.JobName]messages.Job{}, start: time.Now()}
	s.lab = newLab(t, "--debug", "127.0.0.1:6060")
	s.parts = []part{{"manager", "127.0.0.1:6060", filepath.Join(s.dir, "manager"), s.manager.cmd.Process.Pid}, {name: "dockerd", pid: engine.Process.Pid}}
	for i, name := range []string{"a", "b"} {
		debug := fmt.Sprintf("127.0.0.1:%d", 6061+i)
		id := s.node(name, append(networkOf(name), "--debug", debug)...)
		s.parts = append(s.parts, part{name, debug, filepath.Join(s.dir, name), s.nodes[id].cmd.Process.Pid})
	}
	pause := time.Second / time.Duration(numberOf("SKERRY_SOAK_RATE", 5))
	s.run(lasts, pause)
	s.report(lasts)
}

// run sends commands for so long, and pauses at the quiet points.
func (s *soak) run(lasts, pause time.Duration) {
	every := max(lasts/200, 2*time.Second)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	s.start = time.Now()
	looked, rested := s.start, s.start
	for time.Since(s.start) < lasts {
		<-tick.C
		s.settleDone()
		s.step()
		if time.Since(looked) > every {
			looked = time.Now()
			s.samples = append(s.samples, s.look(false))
			s.progress()
		}
		if time.Since(rested) > lasts/quietPoints {
			s.rest()
			rested = time.Now()
		}
	}
	s.rest()
}

// settleDone takes note of the commands that are done.
func (s *soak) settleDone() {
	for name, request := range s.jobs {
		all := s.resultsOf(request)
		if request == "" || len(all) == 0 || !all[len(all)-1].Last() {
			continue
		}
		switch r := all[len(all)-1]; {
		case r.Phase == messages.Refused:
			s.refused++
			if r.Command == messages.Deploy {
				s.t.Errorf("deploy refused: %s %s", r.Code, r.Message)
			}
		case r.Phase == messages.Failed && r.Code != messages.Superseded:
			s.t.Errorf("%s %s failed: %s %s", r.Command, name, r.Code, r.Message)
		case r.Command == messages.Delete:
			delete(s.jobs, name)
			delete(s.specs, name)
			continue
		}
		s.jobs[name] = ""
		s.forget(request)
	}
}

// forget keeps the client that follows everything from growing itself.
func (s *soak) forget(request string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.results, request)
	s.history = nil
}

// step sends one command, where not too many are under way.
func (s *soak) step() {
	var free []messages.JobName
	for name, request := range s.jobs {
		if request == "" {
			free = append(free, name)
		}
	}
	slices.Sort(free)
	if len(s.jobs)-len(free) >= soakPending {
		return
	}
	if len(s.jobs) < soakJobs && (len(free) == 0 || s.rng.IntN(2) == 0) {
		s.next++
		name := messages.JobName(fmt.Sprintf("soak-%d", s.next))
		s.jobs[name] = s.command(messages.Deploy, s.job(name))
		return
	}
	if len(free) == 0 {
		return
	}
	name := free[s.rng.IntN(len(free))]
	switch s.rng.IntN(9) {
	case 0:
		s.jobs[name] = s.command(messages.Move, messages.Job{Name: name})
	case 1:
		j := s.specs[name]
		j.Replicas = new(1 + s.rng.IntN(2))
		s.specs[name] = j
		s.jobs[name] = s.command(messages.Replicate, messages.Job{Name: name, Replicas: j.Replicas})
	case 2:
		s.jobs[name] = s.command(messages.Deploy, s.job(name))
	case 3, 4, 5: // what is there already, as who keeps jobs in files deploys them now and then
		s.jobs[name] = s.command(messages.Deploy, s.specs[name])
	default:
		s.jobs[name] = s.command(messages.Delete, messages.Job{Name: name})
	}
}

// job is a small job that is up and gone soon: mostly on the node's own network, with which Docker starts a container in less than half of the time, so
// that the rate can be had; on the one for containers, with a published port and a health check; or on none.
func (s *soak) job(name messages.JobName) messages.Job {
	j := app(name, 1, map[string]string{"N": strconv.Itoa(s.sent)})
	j.Update.Stable = messages.Duration(50 * time.Millisecond)
	switch s.next % 12 {
	case 1:
	case 2:
		j.Network.Mode, j.Ports, j.Health = messages.NoNetwork, nil, nil
	default:
		j.Network.Mode, j.Ports, j.Health = messages.HostNetwork, nil, nil
	}
	s.specs[name] = j
	return j
}

func (s *soak) command(verb messages.Verb, j messages.Job) string {
	s.sent++
	cmd := messages.Command{Command: verb, Job: j}
	if verb == messages.Move {
		cmd.Worker = []messages.NodeID{s.id([]string{"a", "b"}[s.rng.IntN(2)])}
	}
	return s.send(cmd)
}

// rest deletes all jobs, waits until nothing is left, and takes a sample.
func (s *soak) rest() {
	s.t.Helper()
	s.eventually("all jobs are gone", func() bool {
		s.settleDone()
		for name, request := range s.jobs {
			if request == "" {
				s.jobs[name] = s.command(messages.Delete, messages.Job{Name: name})
			}
		}
		return len(s.jobs) == 0
	})
	if left := s.docker("ps", "-a", "--filter", "label=skerry.instance", "--format", "{{.Names}}"); left != "" {
		s.t.Errorf("all jobs are deleted, and there is: %s", left)
	}
	<-time.After(time.Second) // connections and streams that are being closed
	s.quiet = append(s.quiet, s.look(true))
	s.progress()
}

// look measures every part; collect has them collect their garbage before.
func (s *soak) look(collect bool) sample {
	now := sample{at: time.Since(s.start), values: map[string]float64{"jobs": float64(len(s.jobs)), "commands": float64(s.sent)}}
	for _, p := range s.parts {
		set := func(figure string, v float64) { now.values[p.name+" "+figure] = v }
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
		set("descriptors", float64(len(fds)))
		set("threads", s.status(p.pid, "Threads:"))
		set("RSS MB", s.status(p.pid, "VmRSS:")/1024)
		if p.name == "dockerd" {
			set("containers", float64(len(strings.Fields(s.docker("ps", "-aq")))))
		}
		if p.data != "" {
			set("store MB", size(p.data))
		}
		if p.debug != "" {
			set("goroutines", s.profile("http://"+p.debug+"/debug/pprof/goroutine?debug=1", "goroutine profile: total "))
			if collect {
				set("heap MB", s.profile("http://"+p.debug+"/debug/pprof/heap?debug=1&gc=1", "# HeapAlloc = ")/(1<<20))
			}
		}
	}
	return now
}

// status is a number of a process's status.
func (s *soak) status(pid int, name string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), name)
	n, _ := strconv.ParseFloat(strings.Fields(rest + " 0")[0], 64)
	return n
}

// profile is the number behind a text in a profile.
func (s *soak) profile(url, name string) float64 {
	resp, err := http.Get(url) //nolint:noctx // of a process that lives as long as the test
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name); ok {
			n, _ := strconv.ParseFloat(v, 64)
			return n
		}
	}
	s.t.Fatalf("no %q in %s", name, url)
	return 0
}

// size is how much a directory holds.
func size(dir string) (mb float64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil {
				mb += float64(info.Size()) / (1 << 20)
			}
		}
		return nil
	})
	return mb
}

// progress prints a line of how it stands.
func (s *soak) progress() {
	all := append(slices.Clone(s.samples), s.quiet...)
	now := slices.MaxFunc(all, func(a, b sample) int { return cmp.Compare(a.at, b.at) })
	var line strings.Builder
	fmt.Fprintf(&line, "%s: %d commands (%.1f/s), %d jobs", now.at.Round(time.Second), s.sent, float64(s.sent)/now.at.Seconds(), len(s.jobs))
	for _, p := range s.parts {
		v := func(figure string) float64 { return now.values[p.name+" "+figure] }
		fmt.Fprintf(&line, " | %s %.1f MB %.0f fd", p.name, v("RSS MB"), v("descriptors"))
		if p.debug != "" {
			fmt.Fprintf(&line, " %.0f go %.2f MB stored", v("goroutines"), v("store MB"))
		}
	}
	s.t.Log(line.String())
}

// report draws the figures, and fails where one has grown from the first quiet points to the last.
func (s *soak) report(lasts time.Duration) {
	s.t.Helper()
	s.t.Logf("%d commands in %s, %d of them refused", s.sent, time.Since(s.start).Round(time.Second), s.refused)
	first := slices.IndexFunc(s.quiet, func(q sample) bool { return lasts < 2*requestMemory || q.at > requestMemory })
	points := s.quiet[max(first, 0):]
	for _, p := range s.parts {
		for _, f := range figures {
			name := p.name + " " + f.name
			was, is, some := trend(points, name)
			if !some {
				continue
			}
			limit := was*(1+f.share) + f.plus
			s.t.Logf("%-20s %8.2f → %8.2f  %s", name, was, is, sparkline(points, name))
			if ours := p.name != "dockerd" || f.name == "containers"; ours && lasts >= time.Minute && is > limit { // Docker's own growth is not ours to mend
				s.t.Errorf("%s has grown from %.2f to %.2f, want at most %.2f", name, was, is, limit)
			}
		}
	}
	if os.Getenv("SKERRY_SOAK") != "" {
		path, err := plot(s.parts, s.samples, s.quiet)
		s.t.Logf("drawn: %s %v", path, err)
		for _, p := range s.parts[:1] {
			out, _ := exec.Command("curl", "-fsS", "http://"+p.debug+"/debug/pprof/goroutine?debug=1").Output()
			_ = os.WriteFile(filepath.Join(filepath.Dir(path), p.name+"-goroutines.txt"), out, 0o600)
		}
	}
}

// trend is the least of the first and of the last third of the points: what is always there.
func trend(points []sample, name string) (first, last float64, some bool) {
	third := max(len(points)/3, 1)
	least := func(part []sample) (least float64) {
		for i, q := range part {
			v, ok := q.values[name]
			some = some || ok
			if i == 0 || v < least {
				least = v
			}
		}
		return least
	}
	if len(points) == 0 {
		return 0, 0, false
	}
	return least(points[:third]), least(points[len(points)-third:]), some
}
