// Package docker runs workloads as containers of a Docker engine, 20.10 or newer. It holds no state of its own that matters: what
// runs is asked of the engine, so that a restarted node engine finds its containers again. It knows nothing of messaging, disks or
// restart policies, and touches no container that does not carry its node's label.
//
// A container is named skerry-<node>.<instance>. A node's name holds no dot, so the first one ends it and two nodes that share one
// Docker engine cannot mean the same container.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// The labels of a container.
const (
	LabelNode     = "skerry.node"
	LabelJob      = "skerry.job"
	LabelInstance = "skerry.instance"
	LabelCluster  = "skerry.cluster"
	LabelSpec     = "skerry.spec"  // driver.Spec.Hash of what the container was made from
	LabelRole     = "skerry.role"  // "sandbox" on what holds the network of an instance; none on its own container
	LabelPorts    = "skerry.ports" // the ports that it asks for, where it is on the overlay
	LabelGPUs     = "skerry.gpus"  // the numbers of the graphics processors that it has, such as 0,2
)

// Config says which containers are this driver's and how they are made.
type Config struct {
	Node    messages.NodeID // whose containers these are
	Cluster string          // goes onto a label; may be empty

	Host string // such as unix:///var/run/docker.sock; default: DOCKER_HOST, then Docker's own default

	// LogMaxSize and LogMaxFiles bound what Docker keeps of a container's output. Defaults: 10m and 3.
	LogMaxSize  string
	LogMaxFiles int

	// Credentials is the path of a docker config.json whose "auths" are used for pulls; empty: none. It is read at each pull.
	Credentials string
	// MinFree is how many bytes must be free on Docker's disk before a pull begins. Default: 256 MiB.
	MinFree int64
	// Reserve is how much of Docker's disk is kept free by removing images that this driver has pulled and nobody uses, and Pulled the
	// file that remembers which these are; empty: only until the end of the program.
	Reserve Reserve
	Pulled  string
	// Arch is the processor that images must be for: amd64, arm64 or arm. Default: this program's own.
	Arch string
	// NoInit leaves out Docker's small init process, see Driver.wantsInit.
	NoInit bool

	// Network is the node's overlay; nil: there is none, and containers have the network that Docker gives them.
	Network driver.Network
	// Warm is how many sandboxes are kept ready, so that a deploy on the overlay does not wait for one. Default: 2; less than 0: none.
	Warm int
}

// Validate reports all that is wrong with the configuration.
func (c *Config) Validate() error {
	errs := []error{messages.CheckName("node", string(c.Node))}
	if c.LogMaxFiles < 0 || c.MinFree < 0 {
		errs = append(errs, errors.New("log_max_files, min_free: want 0 (the default) or more"))
	}
	if !slices.Contains([]string{"", "amd64", "arm64", "arm"}, c.Arch) {
		errs = append(errs, fmt.Errorf("arch %q: want amd64, arm64 or arm", c.Arch))
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Host == "" {
		c.Host = os.Getenv(client.EnvOverrideHost)
	}
	if c.Host == "" {
		c.Host = client.DefaultDockerHost
	}
	if c.LogMaxSize == "" {
		c.LogMaxSize = "10m"
	}
	if c.LogMaxFiles == 0 {
		c.LogMaxFiles = 3
	}
	if c.MinFree == 0 {
		c.MinFree = 256 << 20
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	if c.Warm == 0 {
		c.Warm = 2
	}
}

// Driver is a driver.Driver over one Docker engine, for the containers of one node.
type Driver struct {
	cfg   Config
	log   *slog.Logger
	boxes *boxes
	// cleaner removes images that nobody uses.
	cleaner *cleaner
	limits  limits

	importing sync.Mutex // held while the image of sandboxes is handed to Docker
	gpus      sync.Mutex // held while a container gets graphics processors

	mu      sync.Mutex      // guards what follows; never held during a call to Docker
	cli     *client.Client  // nil until the first call, and after the engine went away
	facts   *facts          // what the engine behind cli can do; nil until asked
	ownInit map[string]bool // by image: it begins with an init of its own
}

// limits are how long a silence may last until it means something. Tests shorten them.
type limits struct {
	pulse time.Duration // between two questions whether the engine still answers, and for each answer: it may keep its socket and do nothing
	pull  time.Duration // without a word of a pull: another one that has all the lanes may hold it up for a while
	kill  time.Duration // from SIGKILL to the end: a process that waits for a device in the kernel has none
}

func defaultLimits() limits {
	return limits{pulse: 30 * time.Second, pull: 10 * time.Minute, kill: time.Minute}
}

var (
	_ driver.Driver = (*Driver)(nil)
	_ driver.Meter  = (*Driver)(nil)
	_ driver.Logger = (*Driver)(nil)
)

// New checks the configuration; it does not need the engine to be there yet.
func New(cfg Config, log *slog.Logger) (*Driver, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, log: log.With("driver", "docker"), boxes: newBoxes(cfg.Warm), ownInit: map[string]bool{},
		cleaner: newCleaner(cfg.Reserve, cfg.Pulled, log), limits: defaultLimits()}
	cli, err := d.newClient()
	if err != nil {
		return nil, fmt.Errorf("docker host %s: %w", cfg.Host, err)
	}
	return d, cli.Close()
}

// Close gives back idle connections. It ends no container.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cli == nil {
		return nil
	}
	return d.cli.Close()
}

func (d *Driver) newClient() (*client.Client, error) {
	// More idle connections than the client's own two: a burst of deploys would dial anew for every call.
	transport := &http.Transport{MaxIdleConns: 8, MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second}
	cli, err := client.NewClientWithOpts(
		client.WithHTTPClient(&http.Client{Transport: transport, CheckRedirect: client.CheckRedirect}),
		client.WithTLSClientConfigFromEnv(),
		client.WithHost(d.cfg.Host),
		client.WithAPIVersionNegotiation(),
	)
	if dial := transport.DialContext; dial != nil {
		transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err == nil && ctx.Value(tie{}) != nil {
				context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		}
	}
	return cli, err
}

// tie marks a context that ends the connection that is dialled with it.
type tie struct{}

// tied returns a context for a call that takes its connection over. The client lets such a call know its context only until it has dialled: without
// this it would wait for as long as an engine that stands still.
func tied(ctx context.Context) context.Context { return context.WithValue(ctx, tie{}, true) }

// api returns a client that has agreed with the engine on a version of its API. After the engine went away it agrees anew: it may
// come back as another version, and Docker 29 refuses what Docker 20.10 speaks.
func (d *Driver) api(ctx context.Context) (*client.Client, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	cli := d.cli
	d.mu.Unlock()
	if cli != nil {
		return cli, nil
	}
	cli, err := d.newClient()
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, d.limits.pulse)
	defer cancel()
	ping, err := cli.Ping(short)
	if err != nil {
		d.closeIdle(cli)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: docker at %s: %s", driver.ErrUnavailable, d.cfg.Host, plain(err))
	}
	cli.NegotiateAPIVersionPing(ping)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cli != nil { // another call was faster
		d.closeIdle(cli)
		return d.cli, nil
	}
	d.cli = cli
	return cli, nil
}

// forget drops a client whose engine went away, and what was known of that engine.
func (d *Driver) forget(cli *client.Client) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cli == cli {
		d.cli, d.facts = nil, nil
		d.closeIdle(cli)
	}
}

// closeIdle gives back the idle connections of a client that is no longer used; calls that are under way end by themselves.
func (d *Driver) closeIdle(cli *client.Client) {
	if err := cli.Close(); err != nil {
		d.log.Debug("close docker client", "err", err)
	}
}

// facts is what one engine can do.
type facts struct {
	version  string
	runtimes []string
	root     string // where it keeps images; on this machine only where Docker is
	hasInit  bool
}

// Info says what this technology offers here.
func (d *Driver) Info(ctx context.Context) (messages.TechnologyInfo, error) {
	cli, err := d.api(ctx)
	if err != nil {
		return messages.TechnologyInfo{}, err
	}
	f, err := d.ask(ctx, cli)
	if err != nil {
		return messages.TechnologyInfo{}, err
	}
	return messages.TechnologyInfo{Name: messages.Docker, Version: f.version, Runtimes: slices.Clone(f.runtimes)}, nil
}

// ask asks the engine what it can do and keeps the answer.
func (d *Driver) ask(ctx context.Context, cli *client.Client) (*facts, error) {
	info, err := cli.Info(ctx)
	if err != nil {
		return nil, failure("docker info", err)
	}
	f := &facts{
		version: info.ServerVersion,
		root:    info.DockerRootDir,
		hasInit: info.InitCommit.ID != "N/A", // Docker's word for an init that it cannot run
	}
	for name := range info.Runtimes {
		if name != "runc" && !strings.HasPrefix(name, "io.containerd.run") {
			f.runtimes = append(f.runtimes, name)
		}
	}
	slices.Sort(f.runtimes)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.facts = f
	return f, nil
}

// known returns what the engine can do, from memory where it was asked before.
func (d *Driver) known(ctx context.Context, cli *client.Client) (*facts, error) {
	d.mu.Lock()
	f := d.facts
	d.mu.Unlock()
	if f != nil {
		return f, nil
	}
	return d.ask(ctx, cli)
}

func (d *Driver) containerName(id messages.InstanceID) string {
	return "skerry-" + string(d.cfg.Node) + "." + string(id)
}

// inspect returns the container of an instance; ErrNotFound where there is none, or none of ours.
func (d *Driver) inspect(ctx context.Context, cli *client.Client, id messages.InstanceID) (container.InspectResponse, error) {
	c, err := complete(cli.ContainerInspect(ctx, d.containerName(id)))
	if cerrdefs.IsNotFound(err) || (err == nil && !d.owns(c, id)) {
		return c, fmt.Errorf("instance %s: %w", id, driver.ErrNotFound)
	}
	return c, failure("inspect "+string(id), err)
}

// complete refuses Docker's answer about a container where it lacks a part that we rely on, or names things at a length that no status has.
func complete(c container.InspectResponse, err error) (container.InspectResponse, error) {
	if err == nil && (c.ContainerJSONBase == nil || c.State == nil || c.HostConfig == nil || c.Config == nil || len(c.ID) > maxID || len(c.Image) > maxID) {
		err = errors.New("the answer is not that of a container")
	}
	return c, err
}

// maxID is above what Docker's names for containers and images have, in bytes: 64 and 71.
const maxID = 256

func (d *Driver) owns(c container.InspectResponse, id messages.InstanceID) bool {
	return c.ContainerJSONBase != nil && c.State != nil && c.Config != nil &&
		c.Config.Labels[LabelNode] == string(d.cfg.Node) && c.Config.Labels[LabelInstance] == string(id)
}

// failure wraps an error of the client with what was tried, as ErrUnavailable where the engine does not answer.
func failure(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, driver.ErrUnavailable), !away(err):
		return fmt.Errorf("%s: %w", what, err)
	default:
		return fmt.Errorf("%s: %w: %s", what, driver.ErrUnavailable, plain(err))
	}
}

// away reports whether an error means that the engine is not there, or went away in the middle of its answer.
func away(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var netErr *net.OpError
	return client.IsErrConnectionFailed(err) || cerrdefs.IsUnavailable(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &netErr)
}

// plain is an error's text without the words that the client puts before every one of them.
func plain(err error) string {
	return strings.TrimPrefix(strings.TrimSpace(err.Error()), "Error response from daemon: ")
}

// settleTime is how long a step that has been handed to the engine may still take once its caller has given up.
const settleTime = 10 * time.Second

// settle returns a context that outlives ctx a little: a create or remove that is under way ends the same whether anybody waits for it
// or not, and only who waits knows what there is to clean up.
func settle(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(settleTime, cancel) })
	return out, func() { stop(); cancel() }
}
