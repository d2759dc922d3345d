package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/messages"
)

// outsider is a client that nobody here wrote: Debian's mosquitto_pub and mosquitto_sub.
type outsider struct {
	*lab
	version string // of MQTT, as mosquitto names it
	heard   *lines
}

// lines collects what a process prints.
type lines struct {
	mu  sync.Mutex // guards all
	all []string
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	for {
		line, err := l.buf.ReadString('\n')
		if err != nil {
			l.buf.WriteString(line)
			return len(b), nil
		}
		l.all = append(l.all, strings.TrimSpace(line))
	}
}

func (l *lines) copy() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// listen subscribes with mosquitto_sub and waits until the broker has the subscription.
func (o *outsider) listen(topic string) *lines {
	o.t.Helper()
	host, port, _ := net.SplitHostPort(o.mqtt)
	out, debug := &lines{}, &lines{}
	cmd := exec.Command("stdbuf", "-oL", "mosquitto_sub", "-V", o.version, "-h", host, "-p", port, "-q", "1", "-t", topic, "-t", "cluster/status", "-v")
	cmd.Stdout, cmd.Stderr = out, debug
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	o.eventually("mosquitto_sub hears", func() bool { return len(out.copy()) > 0 }) // the retained cluster/status
	return out
}

// publish gives a command as a person would type it.
func (o *outsider) publish(verb, payload string) {
	o.t.Helper()
	host, port, _ := net.SplitHostPort(o.mqtt)
	out, err := exec.Command("mosquitto_pub", "-V", o.version, "-h", host, "-p", port, "-q", "1", "-t", "control/"+verb, "-m", payload).CombinedOutput()
	if err != nil {
		o.t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
}

// result waits for the Result of a request in this phase, as mosquitto_sub printed it.
func (o *outsider) result(request string, phase messages.Phase) messages.Result {
	o.t.Helper()
	var r messages.Result
	o.eventually(fmt.Sprintf("%s of %s at mosquitto_sub", phase, request), func() bool {
		for _, line := range o.heard.copy() {
			topic, payload, _ := strings.Cut(line, " ")
			if topic == "control/results/"+request && json.Unmarshal([]byte(payload), &r) == nil && r.Phase == phase {
				return true
			}
		}
		return false
	})
	return r
}

// Every verb, said and heard by mosquitto's own clients.
func TestVerbsByMosquitto(t *testing.T) {
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			l := newLab(t)
			a, b := l.node("a"), l.node("b")
			o := &outsider{lab: l, version: version}
			o.heard = o.listen("control/results/+")
			web := `"name":"web","image":"` + testImage + `","ports":[{"container":8080}],"health":{"http":{"port":8080,"path":"/healthz"},"interval":"200ms"}`

			o.publish("deploy", `{"command":"deploy","job":{`+web+`,"id":7,"replicas":2},"cluster":["lab"],"request_id":"one"}`)
			first := o.result("one", messages.Accepted)
			o.result("one", messages.Done)
			before := l.containers(a, b)
			if len(before) != 2 || first.ID.String() != "7" {
				t.Fatalf("after deploy: containers %v, id %s", before, first.ID)
			}

			o.publish("deploy", `{"command":"deploy","job":{`+web+`,"id":7,"replicas":2},"request_id":"same"}`)
			if again := o.result("same", messages.Done); again.Rev != first.Rev || !maps.Equal(before, l.containers(a, b)) {
				t.Errorf("an equal deploy changed something: rev %d to %d", first.Rev, again.Rev)
			}

			o.publish("replicate", `{"command":"replicate","job":{"name":"web","replicas":3},"request_id":"three"}`)
			o.result("three", messages.Accepted)
			o.result("three", messages.Done)
			if now := l.containers(a, b); len(now) != 3 || now["web.0.0"] != before["web.0.0"] {
				t.Errorf("after replicate: %v", now)
			}

			o.publish("move", fmt.Sprintf(`{"command":"move","job":{"name":"web"},"from":[%q],"worker":[%q],"request_id":"go"}`, a, b))
			o.result("go", messages.Accepted)
			o.result("go", messages.Done)
			if on := l.containers(a); len(on) != 0 || len(l.containers(b)) != 3 {
				t.Errorf("after move: %v still on %s", on, a)
			}

			o.publish("delete", `{"command":"delete","job":{"name":"web"},"request_id":"gone"}`)
			o.result("gone", messages.Accepted)
			o.result("gone", messages.Done)
			if left := l.containers(a, b); len(left) != 0 {
				t.Errorf("after delete: %v", left)
			}

			o.publish("delete", `{"command":"delete","job":{"name":"web"},"request_id":"none"}`)
			if r := o.result("none", messages.Refused); r.Code != messages.UnknownJob {
				t.Errorf("delete of nothing: %+v", r)
			}
		})
	}
}

// The Result also comes to MQTT 5's Response Topic, with its Correlation Data.
func TestResponseTopic(t *testing.T) {
	l := newLab(t)
	o := &outsider{lab: l, version: "mqttv5"}
	host, port, _ := net.SplitHostPort(l.mqtt)
	sub := exec.Command("stdbuf", "-oL", "mosquitto_sub", "-V", "mqttv5", "-h", host, "-p", port, "-t", "my/answers", "-t", "cluster/status", "-F", "%t %D %p")
	got := &lines{}
	sub.Stdout = got
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Process.Kill(); _ = sub.Wait() })
	o.eventually("mosquitto_sub hears", func() bool { return len(got.copy()) > 0 })
	out, err := exec.Command("mosquitto_pub", "-V", "mqttv5", "-h", host, "-p", port, "-q", "1", "-t", "control/delete", "-D", "publish", "response-topic", "my/answers",
		"-D", "publish", "correlation-data", "tag-1", "-m", `{"command":"delete","job":{"name":"web"}}`).CombinedOutput()
	if err != nil {
		t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
	o.eventually("the answer with its correlation data", func() bool {
		return slices.ContainsFunc(got.copy(), func(line string) bool {
			return strings.HasPrefix(line, "my/answers") && strings.Contains(line, "tag-1") && strings.Contains(line, `"code":"unknown_job"`)
		})
	})
}

// A changed environment, then a changed image, replaces the copies one at a time, the new one healthy before the old one is stopped.
func TestRollingChange(t *testing.T) {
	l := newLab(t)
	a, b := l.node("a"), l.node("b")
	other := testImage + "-b"
	if err := importImage(program(""), "app", other, "LABEL release=2"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.docker("rmi", other) })
	l.do(deployCommand(app("web", 3, map[string]string{"MODE": "one"})))
	two := app("web", 3, map[string]string{"MODE": "two"})
	l.roll(two, 1)
	two.Image = other
	l.roll(two, 2)
	if image := l.docker("inspect", "-f", "{{.Config.Image}}", slices.Collect(maps.Values(l.containers(a, b)))[0]); image != other {
		t.Errorf("runs %s, want %s", image, other)
	}
	l.do(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
}

// roll changes a job of three copies and looks at every status on the way: never fewer than three are healthy, and at most one more
// shall run.
func (l *lab) roll(j messages.Job, generation int) {
	l.t.Helper()
	l.mu.Lock()
	l.history = nil
	l.mu.Unlock()
	l.do(deployCommand(j))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.history {
		wanted := 0 // one that is being stopped may still serve
		for _, i := range s.Instances {
			if i.Run {
				wanted++
			}
		}
		if s.Healthy < 3 || wanted > 4 {
			l.t.Errorf("during the change %d of %d are healthy, %d shall run", s.Healthy, len(s.Instances), wanted)
		}
	}
	for _, i := range l.jobs[j.Name].Instances {
		if i.Generation != generation {
			l.t.Errorf("%s was not replaced", i.Instance)
		}
	}
}

// A change that is not healthy goes back by itself.
func TestBadChangeGoesBack(t *testing.T) {
	l := newLab(t)
	a := l.node("a")
	l.do(deployCommand(app("web", 2, nil)))
	before := l.containers(a)
	sick := app("web", 2, map[string]string{"SICK": "1"})
	sick.Update.Timeout = messages.Duration(8 * time.Second)
	sick.Health.StartPeriod = messages.Duration(time.Second)
	r := l.last(l.send(deployCommand(sick)))
	// The time ends while it runs, or while it is started once more, where containers take long.
	if r.Phase != messages.Failed || (r.Code != messages.Unhealthy && r.Code != messages.Timeout) || !strings.Contains(r.Message, "503") {
		t.Errorf("got %s %s %q, want failed unhealthy, or timeout, with the reason", r.Phase, r.Code, r.Message)
	}
	l.waitJob("web", "is as before", func(s messages.JobStatus) bool { return s.State == messages.JobRunning && len(s.Instances) == 2 })
	if after := l.containers(a); !maps.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// requester keeps asking whichever copy is up, as a client with a list of addresses does, and counts the instants without one.
type requester struct {
	l      *lab
	job    messages.JobName
	asked  int
	failed []string
}

func (r *requester) run(stop <-chan struct{}) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		select {
		case <-stop:
			return
		default:
		}
		r.asked++
		if err := r.once(client); err != nil {
			r.failed = append(r.failed, err.Error())
		}
	}
}

// once asks the healthy copies in turn until one answers.
func (r *requester) once(client *http.Client) error {
	s, _ := r.l.job(r.job)
	var errs []string
	for _, i := range s.Instances {
		if !i.Healthy || i.State != messages.Running || len(i.Ports) == 0 {
			continue
		}
		resp, err := client.Get("http://127.0.0.1:" + strconv.Itoa(i.Ports[0].Host) + "/")
		if err != nil {
			errs = append(errs, err.Error())
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusOK && bytes.HasPrefix(body, []byte(r.job)) {
			return nil
		}
	}
	return fmt.Errorf("at %s no copy answered: %v", time.Now().Format(time.StampMilli), errs)
}

func TestMoveUnderLoad(t *testing.T) {
	l := newLab(t)
	a, b := l.node("a"), l.node("b")
	l.do(deployCommand(app("web", 1, map[string]string{"LINGER_MS": "500"})))
	r := &requester{l: l, job: "web"}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); r.run(stop) }()
	from, to := a, b
	for range 2 {
		l.do(messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{from}, Worker: []messages.NodeID{to}})
		if on := l.containers(to); len(on) != 1 {
			t.Errorf("not on %s: %v", to, on)
		}
		from, to = to, from
	}
	close(stop)
	<-ended
	if r.asked < 10 {
		t.Fatalf("only %d requests", r.asked)
	}
	if len(r.failed) > 0 {
		t.Fatalf("%d of %d requests failed, first: %s, last: %s", len(r.failed), r.asked, r.failed[0], r.failed[len(r.failed)-1])
	}
	t.Logf("%d requests during two moves, none failed", r.asked)
}

// A target that cannot take the instance leaves the old copy running and says why: where only the node finds out (the port that the
// manager counts as free is taken there), and where the manager knows at once.
func TestMoveToBadTarget(t *testing.T) {
	l := newLab(t, "--lost-after", "10m")
	a, b := l.node("a"), l.node("b")
	j := app("web", 1, nil)
	j.Ports = []messages.Port{{Host: freePort(t), Container: 8080}} // both nodes share one Docker engine, and so its ports
	j.Restart = messages.Restart{MaxAttempts: 1, Backoff: messages.Duration(100 * time.Millisecond)}
	l.do(deployCommand(j, a))
	before := l.containers(a)
	move := messages.Command{Command: messages.Move, Job: messages.Job{Name: "web"}, From: []messages.NodeID{a}, Worker: []messages.NodeID{b}}

	request := l.send(move)
	if r := l.first(request); r.Phase != messages.Accepted {
		t.Fatalf("got %s %s %q, want accepted", r.Phase, r.Code, r.Message)
	}
	if r := l.last(request); r.Phase != messages.Failed || r.Code != messages.PortInUse || !strings.Contains(r.Message, strconv.Itoa(j.Ports[0].Host)) {
		t.Errorf("got %s %s %q, want failed, port_in_use, and the port", r.Phase, r.Code, r.Message)
	}
	l.waitJob("web", "is as before", func(s messages.JobStatus) bool { return s.State == messages.JobRunning && len(s.Instances) == 1 })
	if after := l.containers(a, b); !maps.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}

	l.kill(l.nodes[b])
	l.eventually("b is away", func() bool { s, _ := l.nodeStatus(b); return s.State != messages.NodeOnline })
	refused := l.first(l.send(move))
	if refused.Phase != messages.Refused || len(refused.Nodes) != 1 || refused.Nodes[0].Node != b || refused.Nodes[0].Reason == "" {
		t.Errorf("move to a node that is away: %+v", refused)
	}
	if after := l.containers(a); !maps.Equal(before, after) {
		t.Errorf("before %v, after %v", before, after)
	}
}

// freePort returns a port of this machine that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
