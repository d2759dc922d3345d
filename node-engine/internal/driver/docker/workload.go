package docker

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/nat"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// atOnce bounds the calls that one List or Usage has under way: enough to hide the latency of a call, few enough for a small board.
const atOnce = 4

// List returns the containers of this node, running or not.
func (d *Driver) List(ctx context.Context) ([]driver.Workload, error) {
	cli, err := d.api(ctx)
	if err != nil {
		return nil, err
	}
	found, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: d.mine()})
	if err != nil {
		return nil, failure("list containers", err)
	}
	found = slices.DeleteFunc(found, func(c container.Summary) bool { return c.Labels[LabelRole] == roleSandbox })
	all, looked, ends := make([]driver.Workload, len(found)), make([]container.InspectResponse, len(found)), make([]*driver.Exit, len(found))
	err = parallel(len(found), func(i int) error {
		c, err := complete(cli.ContainerInspect(ctx, found[i].ID))
		if cerrdefs.IsNotFound(err) { // gone since it was listed
			return nil
		}
		if err != nil {
			return failure("inspect "+found[i].ID, err)
		}
		if c.State.Status != container.StateRemoving {
			all[i], looked[i] = d.look(ctx, cli, c), c
			ends[i] = all[i].Exit
		}
		return nil
	})
	if err == nil {
		err = d.judge(ctx, cli, looked, ends)
	}
	all = slices.DeleteFunc(all, func(w driver.Workload) bool { return w.Instance.Validate() != nil })
	slices.SortFunc(all, func(a, b driver.Workload) int { return cmp.Compare(a.Instance, b.Instance) })
	return all, err
}

// mine selects the containers of this node.
func (d *Driver) mine() filters.Args {
	return filters.NewArgs(filters.Arg("label", LabelNode+"="+string(d.cfg.Node)))
}

// parallel calls do for 0 to n-1, some at once, and returns the first error.
func parallel(n int, do func(i int) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards next and first
		next  int
		first error
	)
	take := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= n && first == nil
	}
	for range min(atOnce, n) {
		wg.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				if err := do(i); err != nil {
					mu.Lock()
					first = cmp.Or(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

// workload is what a container means at the seam.
func workload(c container.InspectResponse) driver.Workload {
	w := driver.Workload{ID: c.ID, ImageID: c.Image}
	if c.Config != nil {
		w.Instance = messages.InstanceID(c.Config.Labels[LabelInstance])
	}
	if c.State != nil {
		w.Running = c.State.Running
		w.StartedAt = clock(c.State.StartedAt)
		w.Exit = exit(c.State)
		w.Network = networkOf(c)
	}
	if w.Running && c.NetworkSettings != nil {
		w.Address = address(c.NetworkSettings)
		w.Ports = published(c.NetworkSettings.Ports)
	}
	return w
}

// networkOf says how a container is connected.
func networkOf(c container.InspectResponse) messages.NetworkMode {
	if c.ContainerJSONBase == nil || c.HostConfig == nil {
		return ""
	}
	switch mode := c.HostConfig.NetworkMode; {
	case mode.IsContainer():
		return messages.Overlay
	case mode.IsHost():
		return messages.HostNetwork
	case mode.IsNone():
		return messages.NoNetwork
	default:
		return messages.BridgeNetwork
	}
}

// onOverlay says what Docker does not know of a container in a sandbox.
func onOverlay(w driver.Workload, j joined) driver.Workload {
	w.Address, w.Ports, w.Names = j.Address, j.Ports, j.Names
	return w
}

// describe is workload with what the overlay knows beside. errNoSandbox says that the container has no network to go on with.
func (d *Driver) describe(ctx context.Context, cli *client.Client, c container.InspectResponse) (driver.Workload, error) {
	w := workload(c)
	if !w.Running || sandboxOf(c) == "" {
		return w, nil
	}
	if d.cfg.Network == nil {
		return w, errNoSandbox
	}
	j, err := d.adopt(ctx, cli, c)
	if err != nil {
		return w, err
	}
	return onOverlay(w, j), nil
}

// look is describe for who watches: a container whose sandbox is gone is one that does not run any more and whose end nobody caused, so that
// its next start repairs it.
func (d *Driver) look(ctx context.Context, cli *client.Client, c container.InspectResponse) driver.Workload {
	w, err := d.describe(ctx, cli, c)
	switch {
	case errors.Is(err, errNoSandbox):
		d.log.WarnContext(ctx, "a container has lost its sandbox and is begun anew", "instance_id", w.Instance)
		w.Running = false
	case err != nil:
		d.log.WarnContext(ctx, "a container goes on without being attached", "instance_id", w.Instance, "err", err)
		d.boxes.part(w.Instance, true)
	}
	return w
}

// reattachEvery is the wait between tries to attach what runs.
const reattachEvery = 5 * time.Second

// reattach attaches containers that were found running while that could not be done, and hands over what they are then, until ctx ends.
func (d *Driver) reattach(ctx context.Context, cli *client.Client, attached chan<- driver.Workload) {
	for ctx.Err() == nil {
		apart := d.boxes.parted()
		if len(apart) > 0 && d.cfg.Network.Ready(ctx) == nil {
			for _, id := range apart {
				d.attachAgain(ctx, cli, id, attached)
			}
		}
		var again <-chan time.Time
		if len(d.boxes.parted()) > 0 {
			again = time.After(reattachEvery)
		}
		select {
		case <-d.boxes.lost:
		case <-again:
		case <-ctx.Done():
		}
	}
}

func (d *Driver) attachAgain(ctx context.Context, cli *client.Client, id messages.InstanceID, attached chan<- driver.Workload) {
	c, err := d.inspect(ctx, cli, id)
	if errors.Is(err, driver.ErrNotFound) || (err == nil && !c.State.Running) { // its end is an event of its own
		d.boxes.part(id, false)
	}
	if err != nil || !c.State.Running {
		return
	}
	w, err := d.describe(ctx, cli, c)
	if err != nil && !errors.Is(err, errNoSandbox) {
		d.log.DebugContext(ctx, "container not attached yet", "instance_id", id, "err", err)
		return
	}
	d.boxes.part(id, false)
	w.Running = err == nil
	select {
	case attached <- w:
	case <-ctx.Done():
	}
}

// exit says how a container ended; nil where it runs or never ran. A container whose child the kernel ended for want of memory may
// itself go on and end well later, so only a bad end counts as OOM.
func exit(s *container.State) *driver.Exit {
	at := clock(s.FinishedAt)
	if s.Running || at.IsZero() {
		return nil
	}
	return &driver.Exit{Code: s.ExitCode, OOM: s.OOMKilled && s.ExitCode != 0, At: at}
}

// clock parses Docker's times; for "never" and for nonsense it returns the zero Time.
func clock(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	return t
}

func address(n *container.NetworkSettings) netip.Addr {
	var all []netip.Addr
	for _, e := range n.Networks {
		if e == nil {
			continue
		}
		for _, s := range []string{e.IPAddress, e.GlobalIPv6Address} {
			if a, err := netip.ParseAddr(s); err == nil {
				all = append(all, a.WithZone(""))
			}
		}
	}
	if len(all) == 0 {
		return netip.Addr{}
	}
	return slices.MinFunc(all, netip.Addr.Compare) // IPv4 first
}

// maxPorts is the most that a job can ask for.
const maxPorts = 256

// can reports whether a port is one that a status may name.
func can(p messages.Port) bool {
	s := messages.InstanceStatus{Instance: "a.0.0", Job: "a", State: messages.Running, Ports: []messages.Port{p}}
	return s.Validate() == nil
}

// published returns the ports as Docker has published them, without those that no job can ask for. Docker may choose one host port for IPv4 and
// another for IPv6: IPv4's counts.
func published(m nat.PortMap) []messages.Port {
	var ports []messages.Port
	for port, bindings := range m {
		var v4, v6 []messages.Port
		for _, b := range bindings {
			host, err := strconv.Atoi(b.HostPort)
			if err != nil {
				continue
			}
			p := messages.Port{Host: host, Container: port.Int(), Protocol: port.Proto()}
			if !can(p) {
				continue
			}
			if a, err := netip.ParseAddr(b.HostIP); err == nil && a.Is6() {
				v6 = append(v6, p)
			} else {
				v4 = append(v4, p)
			}
		}
		if len(v4) == 0 {
			v4 = v6
		}
		ports = append(ports, v4...)
	}
	slices.SortFunc(ports, func(a, b messages.Port) int {
		return cmp.Or(a.Container-b.Container, cmp.Compare(a.Protocol, b.Protocol), a.Host-b.Host)
	})
	return ports[:min(len(ports), maxPorts)]
}

// running returns the containers of this node that run.
func (d *Driver) running(ctx context.Context, cli *client.Client) ([]container.Summary, error) {
	f := d.mine()
	f.Add("status", "running")
	found, err := cli.ContainerList(ctx, container.ListOptions{Filters: f})
	found = slices.DeleteFunc(found, func(c container.Summary) bool { return c.Labels[LabelRole] == roleSandbox })
	return found, failure("list containers", err)
}
