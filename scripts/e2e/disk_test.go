package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"golang.org/x/sys/unix"

	"skerry.internal/messages"
)

// How many points the data directories are frozen at, and the most writes from one to the next: each gives two directories to start from, one as a
// crash of the program leaves it, and one as a power cut may.
//
// SKERRY_DISK_SEED decides how many writes lie between two points and what of a mixture is old and what new. It does not decide what those writes are,
// nor how much of the next one is made until the signal has stopped the program: its goroutines, its clients and the disk are real.
//
// What this proves: whatever write is under way, the program starts from what is there, and what was acknowledged is in it. What it
// does not prove: that fsync reaches the medium. A power cut is imitated by two states that lie close together: what the first
// holds is on the disk, and of the blocks that differ in the second any may be. For the manager's file that holds while no commit
// has ended between the two, which its pages say; else the second is taken as it is.
const (
	managerFreezes = 65
	managerWrites  = 20
	engineFreezes  = 35
	engineWrites   = 20
)

// diskSeed returns the seed of a test, which it prints.
func diskSeed(t *testing.T) uint64 {
	seed := numberOf("SKERRY_DISK_SEED", int(rand.Uint32()))
	t.Logf("SKERRY_DISK_SEED=%d", seed)
	return uint64(seed)
}

// frozen is a directory to start from, with what must be in it.
type frozen struct {
	dir        string
	acked      map[string]int // by key: the newest that was acknowledged before
	sent       map[string]int // and the newest that may be in it
	torn       bool           // a mixture
	everything map[string][]byte
}

// stop freezes a program and waits until none of its threads runs.
func stop(t *testing.T, p *process) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "every thread to stand still", func() bool {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		for _, path := range stats {
			text, err := os.ReadFile(path)
			if err == nil && !strings.HasPrefix(string(text[strings.LastIndexByte(string(text), ')')+1:]), " T") {
				return false
			}
		}
		return len(stats) > 0
	})
}

func resume(t *testing.T, p *process) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// read returns the content of every file below dir by its name from there.
func read(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// diskWrites tells of what is written to some folders: content, and names that come and go. Equal ones that follow one another faster than they are
// counted are one.
type diskWrites struct{ f *os.File }

func watchWrites(t *testing.T, dirs ...string) diskWrites {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { f.Close() })
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE); err != nil {
			t.Fatalf("watch %s: %v", dir, err)
		}
	}
	return diskWrites{f}
}

// await returns once n more writes have been made.
func (w diskWrites) await(t *testing.T, n int) {
	t.Helper()
	_ = w.f.SetReadDeadline(time.Now().Add(time.Minute))
	var events [4096]byte
	for n > 0 {
		size, err := w.f.Read(events[:])
		if err != nil {
			t.Fatalf("%d writes to come: %v", n, err)
		}
		for at := 0; at < size; n-- {
			const length = 12 // where an event says how long its name is
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[at+length:]))
		}
	}
}

// forget leaves out what has been written until now.
func (w diskWrites) forget(t *testing.T) {
	t.Helper()
	raw, err := w.f.SyscallConn()
	if err == nil {
		err = errors.Join(w.f.SetReadDeadline(time.Time{}), raw.Read(func(fd uintptr) bool {
			var events [4096]byte
			for n := 1; n > 0; {
				n, _ = unix.Read(int(fd), events[:])
			}
			return true
		}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// freeze takes two states of a program's directory, one to three writes apart.
func freeze(t *testing.T, rng *rand.Rand, p *process, dir string, w diskWrites) (first, second map[string][]byte) {
	t.Helper()
	stop(t, p)
	first = read(t, dir)
	w.forget(t)
	resume(t, p)
	w.await(t, 1+rng.IntN(3))
	stop(t, p)
	second = read(t, dir)
	resume(t, p)
	return first, second
}

// committed returns the number of the last commit that a file of bbolt says it holds: the higher one of its two meta pages.
func committed(file []byte) uint64 {
	var newest uint64
	for page := range 2 {
		const size, header, txid = 4096, 16, 48
		if at := page*size + header; len(file) > at+txid+8 && binary.LittleEndian.Uint32(file[at:]) == 0xED0CDAED {
			newest = max(newest, binary.LittleEndian.Uint64(file[at+txid:]))
		}
	}
	return newest
}

// tear mixes two states of one file, block by block.
func tear(rng *rand.Rand, first, second []byte) []byte {
	mixed := append([]byte(nil), second...)
	const block = 512 // what a disk writes whole
	for at := 0; at < len(mixed); at += block {
		end := min(at+block, len(mixed))
		if rng.IntN(2) == 0 {
			clear(mixed[at:end])
			if at < len(first) {
				copy(mixed[at:end], first[at:])
			}
		}
	}
	return mixed
}

// managersMixture is the manager's directory after a power cut between two states. torn is false where it is simply the second.
func managersMixture(rng *rand.Rand, first, second map[string][]byte) (files map[string][]byte, torn bool) {
	const name = "state.db"
	if committed(first[name]) != committed(second[name]) || string(first[name]) == string(second[name]) {
		return second, false
	}
	return map[string][]byte{name: tear(rng, first[name], second[name])}, true
}

// enginesMixture is the engine's directory after a power cut: each rename has happened or not, and of a file that was not synced
// before its rename anything may be there.
func enginesMixture(rng *rand.Rand, first, second map[string][]byte) map[string][]byte {
	mixed := map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(merge(first, second))) {
		from := first
		if rng.IntN(2) == 0 {
			from = second
		}
		content, there := from[name]
		if !there {
			continue
		}
		if strings.Contains(name, ".tmp-") {
			content = append([]byte(nil), content[:rng.IntN(len(content)+1)]...)
			clear(content[rng.IntN(len(content)+1):])
		}
		mixed[name] = content
	}
	return mixed
}

func merge(a, b map[string][]byte) map[string][]byte {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// ledger notes what was sent and what was acknowledged.
type ledger struct {
	mu          sync.Mutex // guards what follows
	acked, sent map[string]int
}

func newLedger() *ledger { return &ledger{acked: map[string]int{}, sent: map[string]int{}} }

func (g *ledger) note(to func(*ledger) map[string]int, key string, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := to(g)
	m[key] = max(m[key], n)
}

func ackedOf(g *ledger) map[string]int { return g.acked }
func sentOf(g *ledger) map[string]int  { return g.sent }

func (g *ledger) copy(from func(*ledger) map[string]int) map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(from(g))
}

// deleted is what counts for a job that was deleted: more than any number that it ever had.
const deleted = 1 << 30

// commandAway publishes commands until stop: jobs that change all the time, and jobs that come and go.
func commandAway(l *lab, g *ledger, who int, over <-chan struct{}) {
	c := dial(l, fmt.Sprintf("commander%d", who), nil)
	do := func(verb messages.Verb, key string, n int) {
		j := messages.Job{Name: messages.JobName(key), Spec: messages.Spec{Image: testImage, Environment: map[string]string{"N": strconv.Itoa(n)}}}
		g.note(sentOf, key, n)
		token := c.Publish("control/"+string(verb), 1, false, messages.Encode(messages.Command{Command: verb, Job: j, RequestID: fmt.Sprintf("%s-%d", key, n)}))
		if token.Wait(); token.Error() == nil {
			g.note(ackedOf, key, n)
		}
	}
	for n := 1; ; n++ {
		select {
		case <-over:
			return
		default:
		}
		do(messages.Deploy, fmt.Sprintf("job-%d", who), n)
		if n%8 == 0 {
			gone := fmt.Sprintf("gone-%d-%d", who, n)
			do(messages.Deploy, gone, n)
			do(messages.Delete, gone, deleted)
		}
	}
}

// obedient registers a node that stops what it shall stop and never gets anything up.
func obedient(l *lab) {
	l.t.Helper()
	id := l.id("paper")
	welcome, err := l.register(messages.NodeInfo{Name: id, CPU: messages.CPUInfo{Cores: 8}, MemoryMB: 1 << 16, Technologies: []messages.TechnologyInfo{{Name: messages.Docker}}}, newKey())
	if err != nil {
		l.t.Fatal(err)
	}
	c := dial(l, "node-"+string(id), func(o *mqtt.ClientOptions) { o.SetUsername(welcome.Username).SetPassword(welcome.Password) })
	c.Subscribe(messages.NodeControlFilter(id), 1, func(_ mqtt.Client, m mqtt.Message) {
		var a messages.Assignment
		if json.Unmarshal(m.Payload(), &a) != nil || a.Run || a.Instance == "" {
			return
		}
		job, _, generation, _ := a.Instance.Split()
		s := messages.InstanceStatus{Instance: a.Instance, Job: job, Generation: generation, Rev: a.Rev, Seq: a.Rev, State: messages.Stopped, At: messages.At(time.Now())}
		c.Publish(messages.Topic{Kind: messages.NodeJobTopic, Node: id}.String(), 1, false, messages.Encode(s))
	}).Wait()
	c.Publish(messages.Topic{Kind: messages.PresenceTopic, Node: id}.String(), 1, true, messages.Encode(messages.Presence{Online: true})).Wait()
	l.eventually("the paper node is online", func() bool { s, _ := l.nodeStatus(id); return s.State == messages.NodeOnline })
}

// A manager that is stopped at any moment, by its end or by a power cut, starts from what is there with all that it acknowledged.
func TestManagerStartsFromAnyMoment(t *testing.T) {
	l := newLab(t)
	obedient(l)
	g, over := newLedger(), make(chan struct{})
	var wg sync.WaitGroup
	for who := range 3 {
		wg.Go(func() { commandAway(l, g, who, over) })
	}
	var points []frozen
	torn, seed := 0, diskSeed(t)
	w := watchWrites(t, filepath.Join(l.dir, "manager"))
	for i := range managerFreezes {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		w.await(t, 1+rng.IntN(managerWrites))
		acked := g.copy(ackedOf) // no sooner: a write that is under way was not to be acknowledged
		first, second := freeze(t, rng, l.manager, filepath.Join(l.dir, "manager"), w)
		sent := g.copy(sentOf)
		mixed, isTorn := managersMixture(rng, first, second)
		if isTorn {
			torn++
		}
		for j, files := range []map[string][]byte{first, mixed} {
			points = append(points, frozen{dir: filepath.Join(l.dir, fmt.Sprintf("point-%d-%d", i, j)), acked: acked, sent: sent, torn: j == 1 && isTorn, everything: files})
		}
	}
	close(over)
	wg.Wait()
	l.client.Disconnect(0)
	l.end(l.manager)
	acked := g.copy(ackedOf)
	if len(acked) < 10 || acked["job-0"] < 20 || torn == 0 {
		t.Fatalf("too little happened: %d jobs, %d changes of the first, %d torn", len(acked), acked["job-0"], torn)
	}
	start := time.Now()
	each(points, 3, func(p frozen) { l.startsFrom(p) })
	t.Logf("%d moments (%d of them torn) of %d jobs, the first changed %d times: all there; %s", len(points), torn, len(acked), acked["job-0"], time.Since(start))
}

// startsFrom starts a manager on a frozen directory and looks for what it must hold.
func (l *lab) startsFrom(p frozen) {
	write(l.t, p.dir, p.everything)
	other := &lab{t: l.t, dir: p.dir + "-lab", http: "127.0.0.1:0", mqtt: "127.0.0.1:0", nodes: l.nodes}
	if err := errors.Join(os.Mkdir(other.dir, 0o700), os.Rename(p.dir, filepath.Join(other.dir, "manager"))); err != nil {
		l.t.Error(err)
		return
	}
	defer os.RemoveAll(other.dir)
	other.startManager()
	defer other.end(other.manager)
	f := &follower{jobs: map[messages.JobName]messages.JobStatus{}, boards: map[messages.NodeID]messages.NodeStatus{}, results: map[string][]messages.Result{}}
	other.follower = f
	jobs := -1
	c := dial(other, "looker", nil)
	defer c.Disconnect(0)
	c.Subscribe(messages.AllJobsFilter, 1, f.hear).Wait()
	c.Subscribe("cluster/status", 1, func(_ mqtt.Client, m mqtt.Message) {
		var s messages.ClusterStatus
		if json.Unmarshal(m.Payload(), &s) == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			jobs = 0
			for _, n := range s.Jobs {
				jobs += n
			}
		}
	}).Wait()
	l.eventually("every job's status", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return jobs >= 0 && len(f.jobs) >= jobs
	})
	for key, least := range p.acked {
		s, there := f.job(messages.JobName(key))
		got := deleted
		if there && s.State != messages.JobDeleting {
			got, _ = strconv.Atoi(s.Spec.Environment["N"])
		}
		if got < least || got > p.sent[key] {
			l.t.Errorf("%s (torn: %t): %s has %d, acknowledged %d, sent %d", filepath.Base(p.dir), p.torn, key, got, least, p.sent[key])
		}
	}
	if text, _ := os.ReadFile(other.manager.log); strings.Contains(string(text), "damaged") {
		l.t.Errorf("%s (torn: %t): %s", filepath.Base(p.dir), p.torn, text)
	}
}

// noDocker is a Docker engine that is not there: the assignments alone are what is looked at.
const noDocker = "unix:///nonexistent/docker.sock"

// An engine that is stopped at any moment starts from what is there, with every assignment whose status it has sent.
func TestEngineStartsFromAnyMoment(t *testing.T) {
	l := newLab(t)
	m := newFakeManager(t)
	data := filepath.Join(l.dir, "held")
	p := l.engineOf(m, "held", data, "--docker-host", noDocker)
	l.eventually("the engine is there", func() bool { return m.online() != nil })
	over := make(chan struct{})
	var wg sync.WaitGroup
	g := newLedger()
	seed := diskSeed(t)
	wg.Go(func() { assignAway(t, rand.New(rand.NewPCG(seed, engineFreezes)), m, l.id("held"), g, over) })
	var points []frozen
	w := watchWrites(t, filepath.Join(data, "instances"), filepath.Join(data, "values"))
	for i := range engineFreezes {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		w.await(t, 1+rng.IntN(engineWrites))
		acked := map[string]int{}
		for id, rev := range m.reported() {
			acked[string(id)] = int(rev)
		}
		first, second := freeze(t, rng, p, data, w)
		sent := g.copy(sentOf)
		for j, files := range []map[string][]byte{first, enginesMixture(rng, first, second)} {
			points = append(points, frozen{dir: filepath.Join(l.dir, fmt.Sprintf("point-%d-%d", i, j)), acked: acked, sent: sent, torn: j == 1, everything: files})
		}
	}
	close(over)
	wg.Wait()
	l.end(p)
	last := points[len(points)-1]
	if len(last.acked) < 20 {
		t.Fatalf("too little happened: %d instances", len(last.acked))
	}
	each(points, 3, func(p frozen) { l.engineStartsFrom(p) })
	t.Logf("%d moments of %d instances: all there", len(points), len(last.acked))
}

// assignAway assigns new instances, and old ones anew.
func assignAway(t *testing.T, rng *rand.Rand, m *fakeManager, node messages.NodeID, g *ledger, over <-chan struct{}) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for rev := 1; ; rev++ {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		id := messages.NewInstanceID("web", rng.IntN(rev/2+1), 0)
		spec := messages.Job{Spec: messages.Spec{Image: testImage, Environment: map[string]string{"REV": strconv.Itoa(rev)}}}.WithDefaults().Spec
		g.note(sentOf, string(id), rev)
		m.assign(t, node, messages.Assignment{Instance: id, Rev: uint64(rev), Epoch: 1, Run: true, Spec: &spec})
	}
}

// engineStartsFrom starts an engine on a frozen directory. What it holds it says by the digest in its presence.
func (l *lab) engineStartsFrom(p frozen) {
	write(l.t, p.dir, p.everything)
	defer os.RemoveAll(p.dir)
	var held []messages.Assignment
	revs := map[string]int{}
	for name, content := range p.everything {
		var rec struct{ Assignment messages.Assignment }
		if id, ok := strings.CutPrefix(name, "instances/"); ok && !strings.HasPrefix(id, ".tmp-") {
			if err := json.NewDecoder(strings.NewReader(string(content))).Decode(&rec); err != nil {
				l.t.Errorf("%s: %s: %v", filepath.Base(p.dir), name, err)
			}
			held = append(held, rec.Assignment)
			revs[id] = int(rec.Assignment.Rev)
		}
	}
	for id, least := range p.acked {
		if got := revs[id]; got < least || got > p.sent[id] {
			l.t.Errorf("%s (torn: %t): %s has rev %d, reported %d, sent %d", filepath.Base(p.dir), p.torn, id, got, least, p.sent[id])
		}
	}
	m := newFakeManager(l.t)
	path := p.dir + ".log"
	out, err := os.Create(path)
	if err != nil {
		l.t.Error(err)
		return
	}
	defer out.Close()
	cmd := exec.Command(program("node-engine"), "--manager", m.url, "--data", p.dir, "--docker-host", noDocker)
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		l.t.Error(err)
		return
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if text, _ := os.ReadFile(path); strings.Contains(string(text), "damaged") {
			l.t.Errorf("%s (torn: %t): %s", filepath.Base(p.dir), p.torn, text)
		}
	}()
	l.eventually("the engine on "+filepath.Base(p.dir), func() bool { return m.online() != nil })
	want := messages.Digest(held)
	if len(held) == 0 {
		want = "unknown" // until a sync it does not know whether it has lost them
	}
	if got := m.online().Digest; got != want {
		l.t.Errorf("%s (torn: %t): digest %s of %d assignments, want %s", filepath.Base(p.dir), p.torn, got, len(held), want)
	}
}
