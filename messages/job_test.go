package messages

import (
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestJobDefaults(t *testing.T) {
	got := Job{Name: "web", Spec: Spec{Image: "nginx", Ports: []Port{{Container: 80}}, Devices: []Device{{Host: "/dev/i2c-1"}},
		Health: &Health{HTTP: &HTTPCheck{Port: 80}}}}.WithDefaults()
	one := 1
	want := Job{Name: "web", Replicas: &one, Mode: Service, OnReturn: KeepNewest, Constraints: Constraints{Kind: "any"},
		Update: Update{Stable: Duration(time.Second), Timeout: Duration(5 * time.Minute)},
		Spec: Spec{Image: "nginx", Technology: Docker, Ports: []Port{{Container: 80, Protocol: "tcp"}},
			Devices: []Device{{Host: "/dev/i2c-1", Container: "/dev/i2c-1", Permissions: "rwm"}},
			Restart: Restart{Policy: RestartAlways, Backoff: Duration(time.Second), MaxBackoff: Duration(5 * time.Minute)},
			Health: &Health{HTTP: &HTTPCheck{Port: 80, Path: "/"}, Interval: Duration(5 * time.Second), Timeout: Duration(time.Second),
				Retries: 3, StartPeriod: Duration(10 * time.Second)},
			Stop:    Stop{Signal: "SIGTERM", Grace: Duration(10 * time.Second)},
			Network: JobNetwork{Policy: RoundRobin}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %s, want %s", Encode(got), Encode(want))
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	batch := Job{Mode: Batch}.WithDefaults()
	if batch.Restart.Policy != RestartOnFailure {
		t.Errorf("batch: got %s", batch.Restart.Policy)
	}
	if p := (Job{Mode: Batch, Spec: Spec{Restart: Restart{Policy: RestartNever}}}).WithDefaults().Restart.Policy; p != RestartNever {
		t.Errorf("batch with a policy: got %s", p)
	}
	none := 0
	if n := (Job{Replicas: &none}).WithDefaults().CopyCount(); n != 0 {
		t.Errorf("0 replicas became %d", n)
	}
}

func TestJobDefaultsTwiceAndApart(t *testing.T) {
	in := sampleJob()
	in.Ports[0].Protocol, in.Health.Retries, in.Devices[0].Permissions, in.Health.HTTP.Path = "", 0, "", ""
	before := string(Encode(in))
	once := in.WithDefaults()
	if after := string(Encode(in)); after != before {
		t.Errorf("WithDefaults changed its receiver: %s", after)
	}
	if twice := once.WithDefaults(); string(Encode(twice)) != string(Encode(once)) {
		t.Errorf("got %s, want %s", Encode(twice), Encode(once))
	}
	*in.Replicas = 99
	if once.CopyCount() != 2 {
		t.Error("the copy shares its count with the original")
	}
}

func TestSpecEqual(t *testing.T) {
	base := func() Spec { return sampleJob().WithDefaults().Spec }
	if !base().Equal(base()) {
		t.Error("a spec differs from itself")
	}
	for name, change := range map[string]func(*Spec){
		"image": func(s *Spec) { s.Image = "x" }, "args": func(s *Spec) { s.Args = nil }, "env": func(s *Spec) { s.Environment["MODE"] = "x" },
		"port": func(s *Spec) { s.Ports[0].Host++ }, "volume": func(s *Spec) { s.Volumes[0].ReadOnly = true },
		"device": func(s *Spec) { s.Devices[0].Permissions = "r" }, "cpus": func(s *Spec) { s.Resources.CPUs++ },
		"restart": func(s *Spec) { s.Restart.Policy = RestartNever }, "health": func(s *Spec) { s.Health.HTTP.Path = "/x" },
		"no health": func(s *Spec) { s.Health = nil }, "stop": func(s *Spec) { s.Stop.Grace++ }, "priority": func(s *Spec) { s.Priority++ },
		"technology": func(s *Spec) { s.Technology = "x" }, "entrypoint": func(s *Spec) { s.Entrypoint = nil },
	} {
		s := base()
		change(&s)
		if s.Equal(base()) || base().Equal(s) {
			t.Errorf("%s: a change is not seen", name)
		}
	}
	a, b := Spec{Image: "x", Args: []string{}, Environment: map[string]string{}, Ports: []Port{}}, Spec{Image: "x"}
	if !a.Equal(b) {
		t.Error("an empty list differs from an absent one")
	}
}

func TestJobValidate(t *testing.T) {
	for _, j := range []Job{sampleJob(), tcpJob(), execJob(), sampleJob().WithDefaults(), {Name: "a", Spec: Spec{Image: "b"}}} {
		if err := j.Validate(); err != nil {
			t.Errorf("%s: %v", Encode(j), err)
		}
	}
	long := make([]string, maxListed+1)
	env, labels := map[string]string{}, map[string]string{}
	for i := range maxListed + 1 {
		env["V"+strconv.Itoa(i)], labels["l"+strconv.Itoa(i)] = "", ""
	}
	for why, change := range map[string]func(*Job){
		"job.name: name missing":       func(j *Job) { j.Name = "" },
		`job.name "Web"`:               func(j *Job) { j.Name = "Web" },
		"job.image: missing":           func(j *Job) { j.Image = "" },
		`job.image "a b"`:              func(j *Job) { j.Image = "a b" },
		"at most 512":                  func(j *Job) { j.Image = strings.Repeat("a", 513) },
		"job.technology":               func(j *Job) { j.Technology = "Docker" },
		"job.replicas: -1":             func(j *Job) { *j.Replicas = -1 },
		"job.replicas: 1001":           func(j *Job) { *j.Replicas = MaxReplicas + 1 },
		"job.mode":                     func(j *Job) { j.Mode = "daemon" },
		"job.on_return":                func(j *Job) { j.OnReturn = "x" },
		"job.lost_after":               func(j *Job) { j.LostAfter = -1 },
		"job.update.stable":            func(j *Job) { j.Update.Stable = Duration(2 * time.Hour) },
		"job.update.timeout":           func(j *Job) { j.Update.Timeout = Duration(25 * time.Hour) },
		"job.priority: 1001":           func(j *Job) { j.Priority = 1001 },
		"job.priority: -1001":          func(j *Job) { j.Priority = -1001 },
		"job.args: 257":                func(j *Job) { j.Args = long },
		"job.args[0]":                  func(j *Job) { j.Args = []string{"a\x00"} },
		"job.entrypoint: 257":          func(j *Job) { j.Entrypoint = long },
		"job.entrypoint[1]":            func(j *Job) { j.Entrypoint = []string{"", strings.Repeat("x", maxText+1)} },
		"job.environment: 257":         func(j *Job) { j.Environment = env },
		`job.environment "": not`:      func(j *Job) { j.Environment = map[string]string{"": "x"} },
		`job.environment "A=B"`:        func(j *Job) { j.Environment = map[string]string{"A=B": "x"} },
		`job.environment "A": value`:   func(j *Job) { j.Environment = map[string]string{"A": "\x00"} },
		"job.ports: 257":               func(j *Job) { j.Ports = make([]Port, maxListed+1) },
		"job.ports[0]: want container": func(j *Job) { j.Ports = []Port{{Host: 1}} },
		"job.ports[1]: want container": func(j *Job) { j.Ports = []Port{{Container: 1}, {Container: 65536}} },
		"host 0 to 65535":              func(j *Job) { j.Ports = []Port{{Container: 1, Host: -1}} },
		"protocol tcp or udp":          func(j *Job) { j.Ports = []Port{{Container: 1, Protocol: "sctp"}} },
		"job.ports[0]: want container 1 to 65535, host 0 to 65535, protocol tcp or udp, name": func(j *Job) { j.Ports = []Port{{Container: 1, Name: "HTTP"}} },
		"name 1 to 15 of a-z":   func(j *Job) { j.Ports = []Port{{Container: 1, Name: "a-name-too-long-"}} },
		"inside, with a letter": func(j *Job) { j.Ports = []Port{{Container: 1, Name: "8080"}} },
		"single hyphens":        func(j *Job) { j.Ports = []Port{{Container: 1, Name: "a--b"}} },
		"name http is listed twice": func(j *Job) {
			j.Ports = []Port{{Container: 1, Name: "http"}, {Container: 2, Protocol: "tcp", Name: "http"}}
		},
		"host port 80 is listed twice":   func(j *Job) { j.Ports = []Port{{Container: 1, Host: 80}, {Container: 2, Host: 80, Protocol: "tcp"}} },
		"at most 256 entries each":       func(j *Job) { j.Volumes = make([]Volume, maxListed+1) },
		"job.volumes[0].target":          func(j *Job) { j.Volumes = []Volume{{Source: "/a", Target: "b"}} },
		`volumes[0].target "/a:b"`:       func(j *Job) { j.Volumes = []Volume{{Source: "/a", Target: "/a:b"}} },
		`volumes[0].source ""`:           func(j *Job) { j.Volumes = []Volume{{Target: "/a"}} },
		`volumes[0].source "./a"`:        func(j *Job) { j.Volumes = []Volume{{Source: "./a", Target: "/a"}} },
		`volumes[0].source "a"`:          func(j *Job) { j.Volumes = []Volume{{Source: "a", Target: "/a"}} },
		"job.devices[0]: want absolute":  func(j *Job) { j.Devices = []Device{{Host: "video0"}} },
		"job.devices[0].permissions":     func(j *Job) { j.Devices = []Device{{Host: "/dev/a", Permissions: "x"}} },
		"job.resources.cpus: -1":         func(j *Job) { j.Resources.CPUs = -1 },
		"job.resources.cpus: NaN":        func(j *Job) { j.Resources.CPUs = math.NaN() },
		"job.resources.cpus: 0.001":      func(j *Job) { j.Resources.CPUs = 0.001 },
		"job.resources.cpus: 4097":       func(j *Job) { j.Resources.CPUs = 4097 },
		"job.resources: memory_mb, gpus": func(j *Job) { j.Resources.GPUs = -1 },
		"pids want numbers":              func(j *Job) { j.Resources.PIDs = -1 },
		"job.resources.memory_mb: 5":     func(j *Job) { j.Resources.MemoryMB = 5 },
		"memory_mb, gpus and pids":       func(j *Job) { j.Resources.MemoryMB = -1 },
		"take at most 256":               func(j *Job) { j.Constraints.Labels = labels },
	} {
		checkJobRefused(t, why, change)
	}
}

func checkJobRefused(t *testing.T, why string, change func(*Job)) {
	t.Helper()
	j := sampleJob()
	change(&j)
	wantError(t, why, j.Validate(), why)
}

func TestJobValidateLife(t *testing.T) {
	for why, change := range map[string]func(*Job){
		"job.restart.policy":                 func(j *Job) { j.Restart.Policy = "x" },
		"job.restart.max_attempts":           func(j *Job) { j.Restart.MaxAttempts = -1 },
		"job.restart.backoff: 2h0m0s":        func(j *Job) { j.Restart.Backoff = Duration(2 * time.Hour) },
		"job.restart.backoff: 1ns":           func(j *Job) { j.Restart.Backoff = 1 },
		"job.restart.max_backoff":            func(j *Job) { j.Restart.MaxBackoff = -1 },
		"job.stop.signal":                    func(j *Job) { j.Stop.Signal = "sigterm" },
		`job.stop.signal "SIGTERM SIGTERM `:  func(j *Job) { j.Stop.Signal = "SIGTERM SIGTERM SIGTERM" },
		"job.stop.grace":                     func(j *Job) { j.Stop.Grace = Duration(2 * time.Hour) },
		"want exactly one":                   func(j *Job) { j.Health.TCP = &TCPCheck{Port: 1} },
		"job.health: want exactly one":       func(j *Job) { j.Health = &Health{} },
		"job.health.http.port":               func(j *Job) { j.Health.HTTP.Port = 0 },
		"job.health.http.path":               func(j *Job) { j.Health.HTTP.Path = "x" },
		`job.health.http.path "/ HTTP/1.1\r`: func(j *Job) { j.Health.HTTP.Path = "/ HTTP/1.1\r\nHost: x" },
		"job.health.tcp.port":                func(j *Job) { j.Health = &Health{TCP: &TCPCheck{Port: 65536}} },
		"job.health.exec[0]":                 func(j *Job) { j.Health = &Health{Exec: []string{"\x00"}} },
		"job.health.retries":                 func(j *Job) { j.Health.Retries = -1 },
		"job.health.interval: 1ns":           func(j *Job) { j.Health.Interval = 1 },
		"job.health.interval: 25h":           func(j *Job) { j.Health.Interval = Duration(25 * time.Hour) },
		"job.health.timeout: 1ms":            func(j *Job) { j.Health.Timeout = Duration(time.Millisecond) },
		"job.health.start_period":            func(j *Job) { j.Health.StartPeriod = -1 },
		"job.constraints.kind":               func(j *Job) { j.Constraints.Kind = "x" },
		"job.constraints.arch":               func(j *Job) { j.Constraints.Arch = []string{"x86_64"} },
		"job.constraints.labels":             func(j *Job) { j.Constraints.Labels = map[string]string{"A": ""} },
		`job.constraints.labels "a": value`:  func(j *Job) { j.Constraints.Labels = map[string]string{"a": strings.Repeat("x", maxLabel+1)} },
	} {
		checkJobRefused(t, why, change)
	}
}

func TestValidateReportsAllUpToABound(t *testing.T) {
	err := Job{Name: "Web", Mode: "x", Spec: Spec{Priority: 5000}}.Validate()
	for _, why := range []string{"job.name", "job.image", "job.mode", "job.priority"} {
		wantError(t, "several problems", err, why)
	}
	c := Command{Command: Deploy, Job: sampleJob(), Cluster: strings.Split(strings.Repeat("A,", 50_000), ",")}
	wantError(t, "50,000 wrong names", c.Validate(), "and 49985 more")
	if n := len(c.Validate().Error()); n > 4096 {
		t.Errorf("the error is %d bytes long", n)
	}
}
