package messages

import (
	"encoding/json"
	"reflect"
	"slices"
	"time"
)

// Technology names what runs a job, such as "docker". Which ones exist is a matter of the nodes; none is unknown to the contract.
type Technology string

// Docker is the technology of a job that names none.
const Docker Technology = "docker"

// Mode says whether a job is meant to end.
type Mode string

// The modes of a job.
const (
	Service Mode = "service" // runs until deleted
	Batch   Mode = "batch"   // runs until it exits with code 0
)

// RestartPolicy says after which exits a node starts an instance again.
type RestartPolicy string

// The restart policies.
const (
	RestartAlways    RestartPolicy = "always"
	RestartOnFailure RestartPolicy = "on-failure" // exit code other than 0
	RestartNever     RestartPolicy = "never"
)

// OnReturn says which instance stays when a node that was lost comes back with one that has been replaced meanwhile.
type OnReturn string

// The choices on a node's return.
const (
	KeepNewest   OnReturn = "keep-newest"
	KeepOriginal OnReturn = "keep-original"
)

// Limits of a job; they bound what a manager and a node have to hold for it.
const (
	// MaxReplicas keeps the status of a job below MaxFromManager.
	MaxReplicas = 1000     // with reports of about 700 bytes; who publishes bounds what is longer
	maxListed   = 256      // args, ports, volumes, devices, environment entries
	maxText     = 32 << 10 // one argument or environment value, in bytes
	maxLabel    = 256      // a label's value, in bytes
	maxMemoryMB = 1 << 30
	// minMemoryMB is the least that a container starts with.
	minMemoryMB = 6
	// minCPUs is the least share of a processor that the kernel's scheduler takes: 1 ms in every 100 ms.
	minCPUs = 0.01
	// minCheck is the shortest time between two health checks, or within which one may answer: less would be a busy loop.
	minCheck = 10 * time.Millisecond
	// minBackoff is the shortest time before a restart, for the same reason.
	minBackoff = time.Millisecond
)

// Job is what a user asks for: what to run (Spec), how many times and where.
type Job struct {
	ID          ClientID    `json:"id,omitzero"`
	Name        JobName     `json:"name"`
	Replicas    *int        `json:"replicas,omitempty"` // default 1
	Mode        Mode        `json:"mode,omitempty"`     // default service
	Constraints Constraints `json:"constraints,omitzero"`
	LostAfter   Duration    `json:"lost_after,omitempty"` // default: the manager's
	OnReturn    OnReturn    `json:"on_return,omitempty"`  // default keep-newest
	Update      Update      `json:"update,omitzero"`
	Spec
}

// Spec is the part of a job that a node needs to run one instance. Two jobs with equal Specs run the same thing, so a change
// elsewhere in a job replaces no instance.
type Spec struct {
	Image       string            `json:"image,omitempty"`
	Technology  Technology        `json:"technology,omitempty"` // default docker
	Entrypoint  []string          `json:"entrypoint,omitempty"` // default: the image's
	Args        []string          `json:"args,omitempty"`       // default: the image's
	Environment map[string]string `json:"environment,omitempty"`
	Ports       []Port            `json:"ports,omitempty"`
	Volumes     []Volume          `json:"volumes,omitempty"`
	Devices     []Device          `json:"devices,omitempty"`
	Resources   Resources         `json:"resources,omitzero"`
	Restart     Restart           `json:"restart,omitzero"`
	Health      *Health           `json:"health,omitempty"`
	Stop        Stop              `json:"stop,omitzero"`
	Priority    int               `json:"priority,omitempty"` // higher starts first when a node boots; -1000 to 1000
	Network     JobNetwork        `json:"network,omitzero"`
}

// Port publishes a container's port on its node. Host 0 lets the node choose; the status of the instance says which. Name is what SRV records know it by:
// with "mqtt", _mqtt._tcp.broker.skerry.internal leads there. It is a service name as in RFC 6335, in lower case, and one port's of its protocol.
type Port struct {
	Name      string `json:"name,omitempty"`
	Host      int    `json:"host,omitempty"`
	Container int    `json:"container"`
	Protocol  string `json:"protocol,omitempty"` // tcp (default) or udp
}

// Volume mounts a directory of the node (an absolute Source) or a named volume into the container.
type Volume struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Device gives a container a device node of its board.
type Device struct {
	Host        string `json:"host"`
	Container   string `json:"container,omitempty"`   // default: Host
	Permissions string `json:"permissions,omitempty"` // letters of "rwm", default all
}

// Resources are reserved on the node and set as limits of the container. Zero means neither.
type Resources struct {
	CPUs     float64 `json:"cpus,omitempty"`      // processors, such as 0.5
	MemoryMB int     `json:"memory_mb,omitempty"` // MiB
	GPUs     int     `json:"gpus,omitempty"`
	PIDs     int     `json:"pids,omitempty"` // limit of processes; not reserved
}

// Restart says what a node does when an instance ends by itself.
type Restart struct {
	Policy      RestartPolicy `json:"policy,omitempty"`       // default always for a service, on-failure for batch
	MaxAttempts int           `json:"max_attempts,omitempty"` // restarts in a row before it gives up; 0 = no bound
	Backoff     Duration      `json:"backoff,omitempty"`      // before the first restart, then doubling; default 1s
	MaxBackoff  Duration      `json:"max_backoff,omitempty"`  // default 5m
}

// Health says how a node finds out whether an instance serves. Exactly one of HTTP, TCP and Exec is set.
type Health struct {
	HTTP        *HTTPCheck `json:"http,omitempty"`
	TCP         *TCPCheck  `json:"tcp,omitempty"`
	Exec        []string   `json:"exec,omitempty"`         // exit code 0 is healthy
	Interval    Duration   `json:"interval,omitempty"`     // default 5s
	Timeout     Duration   `json:"timeout,omitempty"`      // default 1s
	Retries     int        `json:"retries,omitempty"`      // failures in a row until unhealthy; default 3
	StartPeriod Duration   `json:"start_period,omitempty"` // failures in it do not count; default 10s
}

// HTTPCheck asks for Path on the container's Port; a status below 400 is healthy.
type HTTPCheck struct {
	Port int    `json:"port"`
	Path string `json:"path,omitempty"` // default /
}

// TCPCheck connects to the container's Port.
type TCPCheck struct {
	Port int `json:"port"`
}

// Constraints narrow the nodes that may take an instance.
type Constraints struct {
	Arch   []string          `json:"arch,omitempty"`   // amd64, arm64, arm-7
	Labels map[string]string `json:"labels,omitempty"` // all must be there with these values
	Kind   string            `json:"kind,omitempty"`   // any (default), core or spare
}

// Stop says how an instance is ended.
type Stop struct {
	Signal string   `json:"signal,omitempty"` // default SIGTERM
	Grace  Duration `json:"grace,omitempty"`  // until SIGKILL; default 10s
}

// Update says when a replacement counts as good during a rolling change or a move.
type Update struct {
	Stable  Duration `json:"stable,omitempty"`  // how long it must stay healthy before the old one is stopped; default 1s
	Timeout Duration `json:"timeout,omitempty"` // how long it may take to get there, pull included; default 5m
}

// CopyCount returns the number of copies asked for.
func (j Job) CopyCount() int {
	if j.Replicas == nil {
		return 1
	}
	return *j.Replicas
}

// WithDefaults returns the job with every default filled in and lists that mean the same made equal, so that two jobs ask for
// the same exactly when their encodings are equal.
func (j Job) WithDefaults() Job {
	n := j.CopyCount()
	j.Replicas = &n
	setDefault(&j.Mode, Service)
	setDefault(&j.OnReturn, KeepNewest)
	setDefault(&j.Constraints.Kind, "any")
	setDefault(&j.Update.Stable, Duration(time.Second))
	setDefault(&j.Update.Timeout, Duration(5*time.Minute))
	if j.Mode == Batch {
		setDefault(&j.Restart.Policy, RestartOnFailure)
	}
	j.Spec = j.withSpecDefaults()
	return j
}

func (s Spec) withSpecDefaults() Spec {
	setDefault(&s.Technology, Docker)
	if s.Network.Mode == "" || s.Network.Mode == Overlay {
		setDefault(&s.Network.Policy, RoundRobin)
	}
	setDefault(&s.Restart.Policy, RestartAlways)
	setDefault(&s.Restart.Backoff, Duration(time.Second))
	setDefault(&s.Restart.MaxBackoff, Duration(5*time.Minute))
	setDefault(&s.Stop.Signal, "SIGTERM")
	setDefault(&s.Stop.Grace, Duration(10*time.Second))
	s.Ports = slices.Clone(s.Ports)
	for i := range s.Ports {
		setDefault(&s.Ports[i].Protocol, "tcp")
	}
	s.Devices = slices.Clone(s.Devices)
	for i := range s.Devices {
		setDefault(&s.Devices[i].Container, s.Devices[i].Host)
		setDefault(&s.Devices[i].Permissions, "rwm")
	}
	if s.Health != nil {
		h := s.Health.withDefaults()
		s.Health = &h
	}
	return s
}

func (h Health) withDefaults() Health {
	setDefault(&h.Interval, Duration(5*time.Second))
	setDefault(&h.Timeout, Duration(time.Second))
	setDefault(&h.Retries, 3)
	setDefault(&h.StartPeriod, Duration(10*time.Second))
	if h.HTTP != nil {
		c := *h.HTTP
		setDefault(&c.Path, "/")
		h.HTTP = &c
	}
	return h
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Equal reports whether two specs, both with defaults, run the same thing.
func (s Spec) Equal(o Spec) bool {
	if reflect.DeepEqual(s, o) {
		return true
	}
	a, errA := json.Marshal(s) // an empty list and an absent one are the same
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && string(a) == string(b)
}
