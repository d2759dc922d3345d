package docker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/nat"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// plan is what a container is created from.
type plan struct {
	name    string
	hash    string
	overlay bool // it joins a sandbox, which host does not name yet
	cfg     *container.Config
	host    *container.HostConfig
}

// plan turns a spec into what Docker is asked for. What can be known to be impossible without asking is ErrInvalid here.
func (d *Driver) plan(ctx context.Context, cli *client.Client, spec driver.Spec) (plan, error) {
	job, ordinal, _, err := spec.Instance.Split()
	if err != nil {
		return plan{}, fmt.Errorf("%w: %w", driver.ErrInvalid, err)
	}
	if err := d.checkGPUs(ctx, cli, spec); err != nil {
		return plan{}, err
	}
	wantsInit, err := d.wantsInit(ctx, cli, spec)
	if err != nil {
		return plan{}, err
	}
	p := plan{name: d.containerName(spec.Instance), hash: spec.Hash()}
	if p.overlay, err = d.onOverlay(ctx, spec.Instance, spec.Network.Mode); err != nil {
		return plan{}, err
	}
	p.cfg = &container.Config{
		Image:      spec.Image,
		Entrypoint: spec.Entrypoint,
		Cmd:        spec.Args,
		Env:        d.environment(spec, job, ordinal),
		Labels:     d.labels(spec.Instance, job, p.hash),
		StopSignal: spec.Stop.Signal,
		// What Docker itself stops, when it is restarted or the board shut down, has its grace too.
		StopTimeout: new(int(math.Ceil(cmp.Or(spec.Stop.Grace.Std(), defaultGrace).Seconds()))),
	}
	p.host = &container.HostConfig{
		Mounts:        mounts(spec.Volumes),
		Resources:     resources(spec),
		LogConfig:     d.logConfig(),
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled}, // restarts are the node engine's business
		Init:          &wantsInit,
	}
	switch mode := spec.Network.Mode; {
	case p.overlay:
		p.cfg.Labels[LabelPorts] = portsLabel(spec.Ports)
	case mode == messages.HostNetwork, mode == messages.NoNetwork:
		p.host.NetworkMode = container.NetworkMode(mode) // Docker calls them the same
	default:
		p.cfg.ExposedPorts, p.host.PortBindings = portMaps(spec.Ports)
	}
	return p, nil
}

func (d *Driver) logConfig() container.LogConfig {
	return container.LogConfig{Type: "json-file", Config: map[string]string{
		"max-size": d.cfg.LogMaxSize, "max-file": strconv.Itoa(d.cfg.LogMaxFiles),
	}}
}

func (d *Driver) labels(id messages.InstanceID, job messages.JobName, hash string) map[string]string {
	l := map[string]string{
		LabelNode: string(d.cfg.Node), LabelJob: string(job), LabelInstance: string(id), LabelSpec: hash,
	}
	if d.cfg.Cluster != "" {
		l[LabelCluster] = d.cfg.Cluster
	}
	return l
}

// environment returns the spec's variables, and ours last so that they win.
func (d *Driver) environment(spec driver.Spec, job messages.JobName, ordinal int) []string {
	var env []string
	for _, k := range slices.Sorted(maps.Keys(spec.Environment)) {
		env = append(env, k+"="+spec.Environment[k])
	}
	return append(env, "SKERRY_INSTANCE="+string(spec.Instance), "SKERRY_JOB="+string(job),
		"SKERRY_NODE="+string(d.cfg.Node), "SKERRY_ORDINAL="+strconv.Itoa(ordinal))
}

func portMaps(ports []messages.Port) (nat.PortSet, nat.PortMap) {
	exposed, bindings := nat.PortSet{}, nat.PortMap{}
	for _, p := range ports {
		protocol := p.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		port := nat.Port(strconv.Itoa(p.Container) + "/" + protocol)
		var host string // empty: Docker chooses
		if p.Host != 0 {
			host = strconv.Itoa(p.Host)
		}
		exposed[port] = struct{}{}
		bindings[port] = append(bindings[port], nat.PortBinding{HostPort: host})
	}
	return exposed, bindings
}

// mounts uses Docker's mounts, not its older binds: they refuse a source that does not exist where binds make an empty directory of root's.
func mounts(volumes []messages.Volume) []mount.Mount {
	var all []mount.Mount
	for _, v := range volumes {
		m := mount.Mount{Type: mount.TypeVolume, Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
		if path.IsAbs(v.Source) {
			m.Type = mount.TypeBind
		}
		all = append(all, m)
	}
	return all
}

func resources(spec driver.Spec) container.Resources {
	r := container.Resources{
		NanoCPUs: int64(spec.Resources.CPUs * 1e9),
		Memory:   int64(spec.Resources.MemoryMB) << 20,
		// Equal to Memory: no swap. A board's swap is on its SD card, and a limit that swaps is no limit.
		MemorySwap: int64(spec.Resources.MemoryMB) << 20,
	}
	if n := int64(spec.Resources.PIDs); n > 0 {
		r.PidsLimit = &n
	}
	for _, dev := range spec.Devices {
		m := container.DeviceMapping{PathOnHost: dev.Host, PathInContainer: dev.Container, CgroupPermissions: dev.Permissions}
		if m.PathInContainer == "" {
			m.PathInContainer = m.PathOnHost
		}
		if m.CgroupPermissions == "" {
			m.CgroupPermissions = "rwm"
		}
		r.Devices = append(r.Devices, m)
	}
	return r
}

// wantsInit decides whether Docker's small init is process 1 of the container. It is where Docker has it: the kernel ignores the
// default action of a signal for process 1, so without it every program that has no handler for SIGTERM (a shell script, most Python)
// costs its whole grace at each stop and move, and dead children are never collected. It is not where the image or the spec begins
// with an init of its own, because s6-overlay and systemd refuse to run behind another one. Its price: a program that the image does not
// have is no failed start but an exit with code 127.
func (d *Driver) wantsInit(ctx context.Context, cli *client.Client, spec driver.Spec) (bool, error) {
	if d.cfg.NoInit {
		return false, nil
	}
	f, err := d.known(ctx, cli)
	if err != nil || !f.hasInit {
		return false, err
	}
	if len(spec.Entrypoint) > 0 {
		return !isInit(spec.Entrypoint), nil
	}
	d.mu.Lock()
	own, seen := d.ownInit[spec.Image]
	d.mu.Unlock()
	if !seen { // nobody has called Prepare in this process
		if err := d.checkImage(ctx, cli, spec.Image); err != nil {
			return false, err
		}
		d.mu.Lock()
		own = d.ownInit[spec.Image]
		d.mu.Unlock()
	}
	return !own, nil
}

// portConflict names the port of the spec that Docker could not publish; false where an error is about something else. Docker has
// no code for it, only these words, since its first versions.
func portConflict(spec driver.Spec, text string) (string, bool) {
	if !strings.Contains(text, "port is already allocated") && !strings.Contains(text, "address already in use") {
		return "", false
	}
	var fixed []string
	for _, p := range spec.Ports {
		if p.Host == 0 {
			continue
		}
		host := strconv.Itoa(p.Host)
		if _, after, ok := strings.Cut(text, ":"+host); ok && (after == "" || after[0] < '0' || after[0] > '9') {
			return host, true
		}
		fixed = append(fixed, host)
	}
	return strings.Join(fixed, " or "), true
}
