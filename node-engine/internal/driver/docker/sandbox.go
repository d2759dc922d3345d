package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// A workload on the overlay is two containers. The sandbox holds the network namespace: it gets its interface while nothing else runs in
// it, and keeps it while the workload's own container, which joins it, ends and begins again.
//
//	made ─► warm ─► of an instance: attached ─► the workload starts ─┐
//	                     ▲   (its end, its next attempt, the engine's restart, a reboot: started and attached again)
//	                     └───────────────────────────────────────────┘
//	                 ─► removed with the instance
//
// Whose a sandbox is, the workload's container says by its network mode, so there is nothing to store: a sandbox that no container
// names is a warm one, or left over.

// roleSandbox is the value of LabelRole on a sandbox.
const roleSandbox = "sandbox"

// sandbox is a container that holds a network namespace.
type sandbox struct {
	name      string
	id        string
	pid       int
	namespace string // what the kernel calls it
	hostname  string
	hosts     string // the files that whoever joins it sees as /etc/hosts and /etc/resolv.conf
	resolv    string
}

// alive reports whether the sandbox still holds the namespace that it was made with.
func (b sandbox) alive() bool { return b.id != "" && namespaceOf(b.pid) == b.namespace }

func (b sandbox) path() string { return fmt.Sprintf("/proc/%d/ns/net", b.pid) }

// namespaceOf names the network namespace of a process; empty where there is no such process.
func namespaceOf(pid int) string {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return ""
	}
	return name
}

// untouched reports whether the namespace of a process holds nothing but its loopback.
func untouched(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return false
	}
	return strings.Count(string(b), ":") == 1 && strings.Contains(string(b), "lo:")
}

// errNoSandbox says that a container's sandbox is gone or not the one that it runs in.
var errNoSandbox = errors.New("its sandbox is gone")

// ofSandbox returns the sandbox that an inspected container is; errNoSandbox where it is none of this node or does not run.
func (d *Driver) ofSandbox(c container.InspectResponse) (sandbox, error) {
	if !d.isSandbox(c) || !c.State.Running {
		return sandbox{}, errNoSandbox
	}
	b := sandbox{name: strings.TrimPrefix(c.Name, "/"), id: c.ID, pid: c.State.Pid, hostname: c.Config.Hostname, hosts: c.HostsPath,
		resolv: c.ResolvConfPath}
	if b.namespace = namespaceOf(b.pid); b.namespace == "" {
		return sandbox{}, fmt.Errorf("%w: its process is not to be seen: the overlay needs Docker on this very machine", errNoSandbox)
	}
	return b, nil
}

func (d *Driver) isSandbox(c container.InspectResponse) bool {
	return c.ContainerJSONBase != nil && c.State != nil && c.Config != nil &&
		c.Config.Labels[LabelNode] == string(d.cfg.Node) && c.Config.Labels[LabelRole] == roleSandbox
}

// sandboxOf is the id of the sandbox that a container joins; empty where it is in none.
func sandboxOf(c container.InspectResponse) string {
	if c.ContainerJSONBase == nil || c.HostConfig == nil {
		return ""
	}
	return c.HostConfig.NetworkMode.ConnectedContainer()
}

// makeSandbox makes one and starts it. It is held until somebody joins it or it is given back.
func (d *Driver) makeSandbox(ctx context.Context, cli *client.Client) (sandbox, error) {
	settled, cancel := settle(ctx)
	defer cancel()
	name := "skerry-" + string(d.cfg.Node) + ".sandbox-" + strings.ToLower(rand.Text()[:12]) // an instance's has two dots more
	d.boxes.hold(name)
	id, err := d.createSandbox(settled, cli, name)
	if err != nil {
		d.boxes.release(name)
		return sandbox{}, failure("make sandbox", err)
	}
	b, err := d.startSandbox(settled, cli, id)
	if err != nil || ctx.Err() != nil {
		d.undo(settled, cli, id)
		d.boxes.release(name)
		return sandbox{}, errors.Join(err, ctx.Err())
	}
	return b, nil
}

func (d *Driver) createSandbox(ctx context.Context, cli *client.Client, name string) (string, error) {
	ref, content, err := sandboxImage(d.cfg.Arch)
	if err != nil {
		return "", err
	}
	made, err := cli.ContainerCreate(ctx, d.sandboxConfig(ref), sandboxHost(), nil, nil, name)
	if cerrdefs.IsNotFound(err) {
		if err := d.importSandbox(ctx, cli, ref, content); err != nil {
			return "", err
		}
		made, err = cli.ContainerCreate(ctx, d.sandboxConfig(ref), sandboxHost(), nil, nil, name)
	}
	return made.ID, err
}

func (d *Driver) startSandbox(ctx context.Context, cli *client.Client, id string) (sandbox, error) {
	if err := cli.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return sandbox{}, failure("start sandbox", err)
	}
	c, err := complete(cli.ContainerInspect(ctx, id))
	if err != nil {
		return sandbox{}, failure("inspect sandbox", err)
	}
	b, err := d.ofSandbox(c)
	if err != nil {
		return sandbox{}, fmt.Errorf("start sandbox: %w", err)
	}
	return b, nil
}

func (d *Driver) sandboxConfig(ref string) *container.Config {
	labels := map[string]string{LabelNode: string(d.cfg.Node), LabelRole: roleSandbox}
	if d.cfg.Cluster != "" {
		labels[LabelCluster] = d.cfg.Cluster
	}
	return &container.Config{Image: ref, Labels: labels, StopSignal: "SIGKILL"} // it has nothing to say at its end
}

// sandboxHost gives a sandbox nothing: no network of Docker's, no rights, nothing to write to, no log.
func sandboxHost() *container.HostConfig {
	h := &container.HostConfig{
		NetworkMode:    "none",
		IpcMode:        "none",
		ReadonlyRootfs: true,
		CapDrop:        []string{"ALL"},
		SecurityOpt:    []string{"no-new-privileges"},
		LogConfig:      container.LogConfig{Type: "none"},
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil { // Docker switches it off in a namespace that it has no addresses for
		h.Sysctls = map[string]string{"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "0"}
	}
	return h
}

// sandboxImage returns the name of the image of sandboxes and its one layer. The name holds a hash, so that another version is another image.
func sandboxImage(arch string) (ref string, content []byte, err error) {
	program, err := pause(arch)
	if err != nil {
		return "", nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	head := &tar.Header{Name: "pause", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}
	if err := w.WriteHeader(head); err != nil {
		return "", nil, err
	}
	if _, err := w.Write(program); err != nil {
		return "", nil, err
	}
	if err := w.Close(); err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256(append([]byte(arch), b.Bytes()...))
	return "skerry-sandbox:" + arch + "-" + hex.EncodeToString(sum[:6]), b.Bytes(), nil
}

// importSandbox hands the image to Docker. No registry is asked.
func (d *Driver) importSandbox(ctx context.Context, cli *client.Client, ref string, content []byte) error {
	d.importing.Lock() // two at once would leave one without a name behind
	defer d.importing.Unlock()
	if _, err := cli.ImageInspect(ctx, ref); err == nil {
		return nil
	}
	out, err := cli.ImageImport(ctx, image.ImportSource{Source: bytes.NewReader(content), SourceName: "-"}, ref,
		image.ImportOptions{Message: "Skerry's sandbox", Changes: []string{`ENTRYPOINT ["/pause"]`}, Platform: d.platform()})
	if err != nil {
		return fmt.Errorf("import %s: %w", ref, err)
	}
	defer out.Close()
	report := tally{layers: map[string]layer{}}
	if err := report.follow(io.LimitReader(out, 1<<20)); err != nil {
		return fmt.Errorf("import %s: %w", ref, err)
	}
	return nil
}

// portsLabel holds the ports of a workload on the overlay, of which Docker knows nothing.
func portsLabel(ports []messages.Port) string { return string(messages.Encode(ports)) }

func portsOf(c container.InspectResponse) []messages.Port {
	var ports []messages.Port
	if err := json.Unmarshal([]byte(c.Config.Labels[LabelPorts]), &ports); err != nil || len(ports) > maxPorts {
		return nil // made by hand, or without any
	}
	return slices.DeleteFunc(ports, func(p messages.Port) bool { return !can(p) })
}

// adopt returns the sandbox of a container and what it is attached as, attached again where this process has not done it yet.
// errNoSandbox says that the container has to be made anew.
func (d *Driver) adopt(ctx context.Context, cli *client.Client, c container.InspectResponse) (joined, error) {
	id := messages.InstanceID(c.Config.Labels[LabelInstance])
	want := sandboxOf(c)
	if j, ok := d.boxes.of(id); ok && j.id == want && j.alive() {
		return j, d.inside(c, j.sandbox)
	}
	box, err := complete(cli.ContainerInspect(ctx, want))
	if cerrdefs.IsNotFound(err) {
		return joined{}, errNoSandbox
	}
	if err != nil {
		return joined{}, failure("inspect sandbox", err)
	}
	b, err := d.ofSandbox(box)
	if err == nil {
		err = d.inside(c, b)
	}
	if err != nil {
		return joined{}, err
	}
	return d.join(ctx, cli, b, driver.Attachment{Instance: id, Ports: portsOf(c)})
}

// inside reports by errNoSandbox that a container runs in another namespace than its sandbox's, which was started again behind its back.
func (d *Driver) inside(c container.InspectResponse, b sandbox) error {
	if !c.State.Running {
		return nil
	}
	if now := namespaceOf(c.State.Pid); now != "" && now != b.namespace { // without a process it has ended since it was looked at
		return errNoSandbox
	}
	return nil
}
