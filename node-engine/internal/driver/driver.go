// Package driver is the seam between the life of an instance and what runs workloads of one technology. It holds the interface,
// what crosses it and the errors that callers branch on; it knows no broker, no disk and no technology. docker/ is the real
// implementation, fake/ one for tests, drivertest/ the suite that every implementation passes.
package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	"skerry.internal/messages"
)

// Errors that callers branch on with errors.Is. Every other error of a driver is a failure of the attempt, with its text as reason.
var (
	// ErrNotFound says that the driver holds no workload of this instance.
	ErrNotFound = errors.New("workload not found")
	// ErrUnavailable says that the technology itself does not answer (dockerd is down): the caller waits and repeats; no attempt is used up.
	ErrUnavailable = errors.New("driver unavailable")
	// ErrImageNotFound says that no registry in reach has the image, or not for these credentials.
	ErrImageNotFound = errors.New("image not found")
	// ErrImageArch says that the image does not run on this node's processor.
	ErrImageArch = errors.New("image is for another architecture")
	// ErrPortInUse says that a host port of the spec is taken on this node.
	ErrPortInUse = errors.New("host port in use")
	// ErrInvalid says that this spec can never start on this node as it is (a device is missing, no GPU runtime, a bad signal):
	// repeating it is useless.
	ErrInvalid = errors.New("cannot run here")
)

// Spec is what shall run: one instance and its resolved spec.
type Spec struct {
	Instance messages.InstanceID
	messages.Spec
}

// Hash is equal for specs that make the same workload. What does not reach the workload itself does not count: restart policy, health
// check, grace and priority are their owner's business, policy and allow of the network are the overlay's, and a change of them replaces nothing.
func (s Spec) Hash() string {
	made := messages.Job{Spec: s.Spec}.WithDefaults().Spec
	made.Restart, made.Health, made.Priority, made.Stop.Grace = messages.Restart{}, nil, 0, 0
	made.Network = messages.JobNetwork{Mode: made.Network.Mode}
	sum := sha256.Sum256(messages.Encode(made))
	return hex.EncodeToString(sum[:12])
}

// Workload is what a driver holds for an instance.
type Workload struct {
	Instance  messages.InstanceID
	ID        string // the technology's own name for it; stays equal over restarts of the workload
	ImageID   string
	Running   bool
	Exit      *Exit // how it ended; nil while it runs or where it has never run
	Address   netip.Addr
	Network   messages.NetworkMode
	Names     []string        // by which others find it on the overlay
	Ports     []messages.Port // as published, host ports filled in
	StartedAt time.Time
}

// Exit says how a workload ended.
type Exit struct {
	Code int
	OOM  bool // the kernel ended it for want of memory
	// Interrupted says that it did not end by itself, whatever its code: the technology told it to, at its own end or by somebody's hand, or
	// ended together with it.
	Interrupted bool
	At          time.Time
}

// Driver runs the workloads of one technology on one node. All methods may be called concurrently and may be repeated.
type Driver interface {
	// Prepare brings the image and checks that it runs here. It is cheap where nothing is to be done. progress, which may be nil,
	// is called at most some times a second.
	Prepare(ctx context.Context, spec Spec, progress func(messages.Progress)) error
	// Start makes the workload run: it is created where there is none, started where it is not running, and left alone where
	// it runs. One of another spec (by Hash) is stopped, removed and made anew. When Start returns nil the workload has been
	// started; it may have ended since. A Start that fails, or whose ctx ends, leaves nothing new behind.
	Start(ctx context.Context, spec Spec) (Workload, error)
	// Stop ends the workload with its signal and grace and removes what is left of it. ErrNotFound where there was none.
	Stop(ctx context.Context, id messages.InstanceID, stop messages.Stop) error
	// List returns the workloads of this node, running or not.
	List(ctx context.Context) ([]Workload, error)
	// Watch calls changed with every workload that has started or ended, from some moment before it calls ready until ctx ends (it
	// returns nil) or the technology goes away (ErrUnavailable). Who watches lists again after ready: there is no backlog.
	Watch(ctx context.Context, ready func(), changed func(Workload)) error
	// Exec runs a program inside the workload and returns its exit code. It ends with ctx. A deadline that passes because the technology is slow,
	// and not the program, is ErrUnavailable too.
	Exec(ctx context.Context, id messages.InstanceID, argv []string) (int, error)
}

// Meter is what a Driver may offer beside: what its workloads use.
type Meter interface {
	// Usage returns counters of every running workload.
	Usage(ctx context.Context) ([]Usage, error)
}

// Usage holds the counters of one workload since its start. Rates are the caller's business.
type Usage struct {
	Instance    messages.InstanceID
	CPU         time.Duration // processor time used
	MemoryBytes uint64        // without the page cache that can be dropped
	RxBytes     uint64
	TxBytes     uint64
}

// Logger is what a Driver may offer beside: the output of its workloads.
type Logger interface {
	// Logs calls write with pieces of the workload's output, oldest first, until its end or, where req.Follow, until ctx ends.
	// An error of write ends it.
	Logs(ctx context.Context, req messages.LogsRequest, write func(stream, text string) error) error
}
