package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"skerry.internal/messages"
)

func TestListsAreComplete(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	if r := c.skerry(t, "job", "list", "--json"); r.out != "[]\n" {
		t.Errorf("without jobs: got %q", r.out)
	}
	const jobs = 300
	payloads := make([][]byte, jobs)
	for i := range jobs {
		payloads[i] = messages.Encode(messages.Command{Command: messages.Deploy, Job: messages.Job{Name: messages.JobName(fmt.Sprintf("job-%03d", i)),
			Spec: messages.Spec{Image: "silent", Environment: map[string]string{"PAD": strings.Repeat("x", 4096)}}}})
	}
	deploy(t, c, payloads)
	count := func() int {
		r := c.skerry(t, "job", "list", "--json")
		var list []messages.JobStatus
		if err := json.Unmarshal([]byte(r.out), &list); err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	until(t, "the last status, which follows its acknowledgement", func() bool { return count() == jobs })
	for range 15 { // each is a race between the retained messages and the end of them
		if n := count(); n != jobs {
			t.Fatalf("got %d jobs, want %d", n, jobs)
		}
	}
	c.skerry(t, "node", "list").want(t, 0, "core-1   core   expected", "")
	c.skerry(t, "node", "list").want(t, 0, "board-1  spare  online", "")
}

// deploy publishes commands and waits for their acknowledgements alone.
func deploy(t *testing.T, c *testCluster, payloads [][]byte) {
	t.Helper()
	a, err := newAddress("tcp://"+c.m.MQTTAddr(), "", "", tlsFiles{}, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	l, err := dial(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var tokens []mqtt.Token
	for _, p := range payloads {
		tokens = append(tokens, l.client.Publish("control/deploy", 1, false, p))
	}
	for _, token := range tokens {
		if err := l.wait(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLifeOfAJob(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	newBoard(t, c, "board-2")
	r := c.skerry(t, "job", "deploy", "web", "--image", "nginx:1.27", "--replicas", "2", "--port", "http=8080:80", "--port", "53/udp", "--env", "MODE=edge", "--memory", "64", "--", "serve", "-v")
	r.want(t, 0, "deploy of web accepted (rev ", "")
	r.want(t, 0, "running, healthy", "")
	r.want(t, 0, "deploy of web done: 2 of 2 copies run\n", "")
	var j messages.JobStatus
	r = c.skerry(t, "job", "status", "web", "--json")
	if err := messages.DecodeFromManager([]byte(r.out), &j); err != nil {
		t.Fatal(err)
	}
	s := j.Spec
	if j.State != messages.JobRunning || s.Ports[0] != (messages.Port{Name: "http", Host: 8080, Container: 80, Protocol: "tcp"}) || s.Ports[1].Name != "" || s.Environment["MODE"] != "edge" || s.Resources.MemoryMB != 64 || fmt.Sprint(s.Args) != "[serve -v]" {
		t.Errorf("got %s", r.out)
	}
	c.skerry(t, "job", "status", "web").want(t, 0, "web.0.0   board-1  running  yes      0        172.17.0.2  http=8080:80/tcp 0:53/udp", "")
	c.skerry(t, "job", "list").want(t, 0, "web   running  2/2      2        nginx:1.27", "")
	c.skerry(t, "node", "status", "board-1").want(t, 0, "site=roof", "")
	c.skerry(t, "job", "replicate", "web", "1").want(t, 0, "replicate of web done: 1 of 1 copies run", "")
	c.skerry(t, "job", "move", "web", "--from", "board-1", "--to", "board-2").want(t, 0, "move of web done", "")
	c.skerry(t, "job", "delete", "web").want(t, 0, "delete of web done: the job and its instances are gone", "")
	c.skerry(t, "job", "status", "web").want(t, 1, "", "there is no job web")
	c.skerry(t, "job", "delete", "web").want(t, 1, "", "delete of web refused (unknown_job)")
}

func TestFailuresSayWhy(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	r := c.skerry(t, "job", "deploy", "big", "--image", "x", "--memory", "9999")
	r.want(t, 1, "", "deploy of big refused (no_capacity)")
	r.want(t, 1, "", "NODE     CODE             REASON")
	r.want(t, 1, "", "board-1  no_capacity")
	c.skerry(t, "job", "deploy", "gone", "--image", "missing").want(t, 1, "accepted", "deploy of gone failed (image_not_found)")
	r = c.skerry(t, "job", "deploy", "loop", "--image", "crash")
	r.want(t, 1, "attempt ", "deploy of loop failed (exited)")
	r.want(t, 1, "", "exited with code 3")
	r = c.skerry(t, "job", "deploy", "big", "--image", "x", "--memory", "9999", "--json")
	var refused messages.Result
	if err := json.Unmarshal([]byte(r.out), &refused); err != nil || refused.Phase != messages.Refused || refused.Code != messages.NoCapacity || r.code != 1 {
		t.Errorf("got %d %s, %v", r.code, r.out, err)
	}
	c.skerry(t, "job", "deploy", "far", "--image", "x", "--cluster", "elsewhere").want(t, 1, "", "wrong_cluster")
	c.skerry(t, "job", "deploy", "web", "--image", "x", "--username", "viewer").want(t, 1, "", "not_allowed")
}

func TestWrongUsage(t *testing.T) {
	c := newCluster(t)
	for line, why := range map[string]string{
		"jobs":                                 "unknown command",
		"job bogus":                            "unknown command",
		"job status":                           "accepts 1 arg",
		"job status Web":                       "lower-case",
		"job list --bogus":                     "unknown flag",
		"job deploy":                           "want --file",
		"job deploy web":                       "--image is missing",
		"job deploy web extra --image x":       "go after --",
		"job deploy -- web --image x":          "go after --",
		"job deploy Web --image x":             "nothing was sent",
		"job deploy web --image x --port 80:x": "want HOST:CONTAINER",
		"job deploy web --image x --port =80":  "want HOST:CONTAINER",
		"job deploy web --image x --port W=80": "name 1 to 15 of a-z",
		"job deploy web --image x --env MODE":  "want NAME=VALUE",
		"job deploy web --image x --cpus lots": "invalid argument",
		"job deploy -f /nowhere":               "no such file",
		"job deploy web -f /dev/null":          "do not go with --file",
		"job deploy -f /dev/null --memory 1":   "write it into the file",
		"job replicate web many":               "not a number",
		"job replicate web -- -1":              "job.replicas",
		"job move web":                         "name the nodes to leave",
		"job delete web --timeout 0s":          "more than 0",
		"node replace":                         "accepts 1 arg",
		"node replace a b":                     "accepts 1 arg",
		"node replace Board":                   "nothing was sent",
		"node replace a --timeout 0s":          "more than 0",
		"node remove":                          "requires at least 1 arg",
		"node remove a Board":                  "nothing was sent",
		"node remove a b --request-id r":       "one name",
		"node list --broker http://x":          "no scheme of MQTT",
		"node list --password-file /dev/null":  "needs --username",
		"node list --ca-file /dev/null":        "no certificate",
		"job delete web --request-id a/b":      "request_id",
		"job logs web.0.0 --tail -1":           "0 or more",
		"node list --connect-timeout 0s":       "more than 0",
	} {
		r := c.skerry(t, strings.Fields(line)...)
		if r.code != exitUsage || !strings.Contains(r.err, why) || r.out != "" {
			t.Errorf("%s: got %d %q %q, want %d and %q", line, r.code, r.out, r.err, exitUsage, why)
		}
	}
	for name, line := range map[string]string{"SKERRY_CONNECT_TIMEOUT": "node list", "SKERRY_JOB_DEPLOY_TIMEOUT": "job deploy web --image a"} {
		env := func(asked string) string { return map[string]string{name: "soon"}[asked] }
		var out, errs buffer
		if code := run(t.Context(), strings.Fields(line), streams{out: &out, err: &errs}, env); code != exitUsage || !strings.Contains(errs.String(), name+`="soon"`) {
			t.Errorf("%s: got %d %s", name, code, errs.String())
		}
	}
}

func TestDeployFiles(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	newBoard(t, c, "board-2")
	for name, content := range map[string]string{
		"job":     `{"name":"web","image":"x","id":7}`,
		"command": `{"command":"deploy","job":{"name":"web","image":"x","id":7},"worker":["board-2"],"request_id":"same"}`,
		"bare":    `{"job":{"name":"web","image":"x","id":7}}`,
	} {
		file := filepath.Join(t.TempDir(), name+".json")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a request id in the file must not turn the second into a repeat
			c.skerry(t, "job", "deploy", "-f", file).want(t, 0, "done", "")
		}
		r := c.skerryWith(t.Context(), content, "job", "deploy", "-f", "-", "--worker", "board-1")
		r.want(t, 0, "done", "")
		c.skerry(t, "job", "status", "web", "--json").want(t, 0, `"worker":["board-1"]`, "")
		c.skerry(t, "job", "delete", "web").want(t, 0, "done", "")
	}
	for content, why := range map[string]string{
		`{"command":"delete","job":{"name":"web"}}`: "want a job, or a command of deploy",
		`{"name":"web","image":"x","ports":5}`:      "ports",
		`{"name":"web"}`:                            "image",
		`[1]`:                                       "want a JSON object",
		`{"name":`:                                  "",
		strings.Repeat(" ", messages.MaxPayload+1): "more than the",
	} {
		c.skerryWith(t.Context(), content, "job", "deploy", "-f", "-").want(t, exitUsage, "", why)
	}
	r := c.skerryWith(t.Context(), `{"name":"web","image":"x","replicsa":2}`, "job", "deploy", "-f", "-")
	r.want(t, 0, "done", `unknown field "replicsa" is not sent`)
}

func TestJSONOfACommand(t *testing.T) {
	c := newCluster(t)
	newBoard(t, c, "board-1")
	r := c.skerry(t, "job", "deploy", "web", "--image", "x", "--json")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	var phases []messages.Phase
	for _, l := range lines {
		var res messages.Result
		if err := json.Unmarshal([]byte(l), &res); err != nil {
			t.Fatal(err)
		}
		phases = append(phases, res.Phase)
	}
	if fmt.Sprint(phases) != "[accepted done]" || r.code != 0 || r.err != "" {
		t.Errorf("got %v %d %q", phases, r.code, r.err)
	}
	r = c.skerry(t, "job", "deploy", "slow", "--image", "gated", "--no-wait", "--json")
	if r.code != 0 || strings.Count(r.out, "\n") != 1 || !strings.Contains(r.out, `"phase":"accepted"`) {
		t.Errorf("--no-wait: got %d %s", r.code, r.out)
	}
}

func TestTimeoutAndInterruptLeaveTheCommandAlone(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	c.skerry(t, "job", "deploy", "slow", "--image", "gated", "--timeout", "300ms").want(t, 1, "accepted", "not done within 300ms; the command goes on in the cluster")
	ctx, cancel := context.WithCancelCause(t.Context())
	var out, errs buffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"job", "deploy", "slow", "--image", "gated", "--replicas", "1"}, streams{out: &out, err: &errs}, c.getenv)
	}()
	until(t, "the pull to be shown", func() bool { return strings.Contains(out.String(), "preparing") })
	cancel(&stopped{syscall.SIGINT})
	if code := <-ended; code != 130 || !strings.Contains(errs.String(), "interrupted; the command goes on in the cluster") {
		t.Errorf("got %d %s", code, errs.String())
	}
	close(b.step)
	until(t, "the job to run", func() bool { return strings.Contains(c.skerry(t, "job", "status", "slow").out, "running  yes") })
}

func TestProgressLines(t *testing.T) {
	c := newCluster(t)
	b := newBoard(t, c, "board-1")
	var out, errs buffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(t.Context(), []string{"job", "deploy", "slow", "--image", "gated"}, streams{out: &out, err: &errs}, c.getenv)
	}()
	for _, l := range []string{"pulled 0 B of 40.0 MB (0 %)", "pulled 10.0 MB of 40.0 MB (25 %)", "(50 %)", "(75 %)", "(100 %)"} {
		until(t, l, func() bool {
			return strings.Contains(out.String(), "slow.0.0  board-1  preparing  pulled ") && strings.Contains(out.String(), l)
		})
		b.step <- struct{}{}
	}
	if code := <-ended; code != 0 || !strings.Contains(out.String(), "slow.0.0  board-1  running, healthy\n") {
		t.Errorf("got %d\n%s%s", code, out.String(), errs.String())
	}
}

func TestNoBroker(t *testing.T) {
	var out, errs buffer
	args := []string{"node", "list", "--broker", "tcp://127.0.0.1:1"}
	code := run(t.Context(), args, streams{out: &out, err: &errs}, func(string) string { return "" })
	if code != exitUnreachable || !strings.Contains(errs.String(), "connection refused") || !strings.Contains(errs.String(), "check --broker") {
		t.Errorf("got %d %s", code, errs.String())
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{{nil, 0}, {errors.New("cobra's"), 2}, {asFailure(errors.New("x")), 1}, {asFailure(fmt.Errorf("x: %w", errLost)), 3}, {usagef("x"), 2},
		{asFailure(fmt.Errorf("x: %w", usagef("y"))), 2}} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.err, got, tt.want)
		}
	}
}
