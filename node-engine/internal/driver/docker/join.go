package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// errNoOverlay says that this node has no overlay for a workload that insists on one.
var errNoOverlay = errors.New("no overlay on this node")

// onOverlay reports whether a new container of this spec belongs on the overlay: where it asks for that, and where it does not say and
// the node has one.
func (d *Driver) onOverlay(ctx context.Context, id messages.InstanceID, mode messages.NetworkMode) (bool, error) {
	if mode != "" && mode != messages.Overlay {
		return false, nil
	}
	err := errNoOverlay
	if d.cfg.Network != nil {
		err = d.cfg.Network.Ready(ctx)
	}
	if err == nil || ctx.Err() != nil {
		return err == nil, ctx.Err()
	}
	if mode == messages.Overlay {
		return false, fmt.Errorf("it asks for the overlay: %w", err)
	}
	if errors.Is(err, driver.ErrNetworkDown) { // where there never is one it has been said
		d.log.WarnContext(ctx, "workload gets Docker's own network until its next start", "instance_id", id, "err", err)
	}
	return false, nil
}

// warmSandbox takes one from the pool; false where it is empty.
func (d *Driver) warmSandbox(ctx context.Context, cli *client.Client) (sandbox, bool) {
	b, ok, dead := d.boxes.take()
	for _, gone := range dead {
		d.undo(ctx, cli, gone.id)
	}
	return b, ok
}

// giveBack returns a sandbox that nobody has joined.
func (d *Driver) giveBack(ctx context.Context, cli *client.Client, b sandbox) {
	if !b.alive() || !d.boxes.keep(b) {
		d.boxes.release(b.name)
		settled, cancel := settle(ctx)
		defer cancel()
		d.undo(settled, cli, b.id)
	}
}

// join attaches a sandbox for an instance. From then on it is that instance's; one that it had before is removed.
func (d *Driver) join(ctx context.Context, cli *client.Client, b sandbox, a driver.Attachment) (joined, error) {
	a.Namespace = b.path()
	got, err := d.cfg.Network.Attach(ctx, a)
	if err != nil {
		return joined{}, fmt.Errorf("attach %s: %w", a.Instance, err)
	}
	j := joined{b, got}
	if before := d.boxes.own(a.Instance, j); before.id != "" && before.id != b.id {
		d.undo(ctx, cli, before.id)
	}
	if err := writeNames(j); err != nil {
		d.log.WarnContext(ctx, "names not written into a container: it asks the node's own servers", "instance_id", a.Instance, "err", err)
	}
	return j, nil
}

// leave takes an instance off the overlay for good.
func (d *Driver) leave(ctx context.Context, cli *client.Client, id messages.InstanceID, box string) error {
	j, ok := d.boxes.disown(id)
	if ok { // so that nobody takes it into the pool meanwhile
		d.boxes.hold(j.name)
		defer d.boxes.release(j.name)
	}
	var errs []error
	if d.cfg.Network != nil {
		errs = append(errs, d.cfg.Network.Detach(ctx, id))
	}
	for _, gone := range slices.Compact([]string{box, j.id}) {
		if gone != "" {
			errs = append(errs, d.removeSandbox(ctx, cli, gone))
		}
	}
	return errors.Join(errs...)
}

// removeSandbox removes a sandbox and nothing else: what a container names as its network may be anything.
func (d *Driver) removeSandbox(ctx context.Context, cli *client.Client, id string) error {
	c, err := complete(cli.ContainerInspect(ctx, id))
	switch {
	case cerrdefs.IsNotFound(err):
		return nil
	case err != nil:
		return failure("inspect sandbox", err)
	case !d.isSandbox(c):
		return nil
	}
	return failure("remove sandbox", endSandbox(ctx, cli, c))
}

// endSandbox removes a sandbox, and what a crash of dockerd may have left of it.
func endSandbox(ctx context.Context, cli *client.Client, c container.InspectResponse) error {
	if !c.State.Running {
		endLeftovers(c.ID)
	}
	return remove(ctx, cli, c.ID)
}

// rejoin makes the sandbox of a container that does not run ready for its next start. errNoSandbox says that it cannot be had again.
func (d *Driver) rejoin(ctx context.Context, cli *client.Client, spec driver.Spec, c container.InspectResponse) (joined, error) {
	box, err := complete(cli.ContainerInspect(ctx, sandboxOf(c)))
	switch {
	case cerrdefs.IsNotFound(err) || (err == nil && !d.isSandbox(box)):
		return joined{}, errNoSandbox
	case err != nil:
		return joined{}, failure("inspect sandbox", err)
	}
	settled, cancel := settle(ctx)
	defer cancel()
	b, err := d.ofSandbox(box)
	if errors.Is(err, errNoSandbox) { // after a reboot, or the end of dockerd
		b, err = d.startSandbox(settled, cli, box.ID)
		if stuck(err) {
			err = errNoSandbox
		}
	}
	if err != nil {
		return joined{}, err
	}
	return d.join(settled, cli, b, driver.Attachment{Instance: spec.Instance, Ports: spec.Ports})
}

// writeNames tells whoever joins the sandbox where names are answered, and what its own name means. Docker has made both files; they are
// written in place, because what is mounted into a container is the file and not its name. They are not synced: with each start of the sandbox, and so
// after a power cut, Docker makes both anew and they are written again.
func writeNames(j joined) error {
	var errs []error
	if j.DNS.IsValid() {
		old, err := os.ReadFile(j.resolv)
		if err == nil {
			err = overwrite(j.resolv, resolver(string(old), j.DNS.String(), j.Search))
		}
		errs = append(errs, err)
	}
	old, err := os.ReadFile(j.hosts)
	if err == nil {
		err = overwrite(j.hosts, hostsFile(string(old), j))
	}
	return errors.Join(append(errs, err)...)
}

// overwrite gives a file that is there another content. It is cut last, and not emptied first: a full disk, which has room for what is there already, would
// leave a container without a line of it.
func overwrite(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Close())
}

// resolver is a resolv.conf that asks server, and looks for names in search before where old, the host's, does.
func resolver(old, server, search string) string {
	domains := []string{search}
	var rest strings.Builder
	for line := range strings.Lines(old) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "nameserver" || strings.HasPrefix(words[0], "#") || strings.HasPrefix(words[0], ";"):
		case words[0] == "search" || words[0] == "domain":
			domains = append(domains, words[1:]...)
		default:
			rest.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	var all strings.Builder
	all.WriteString("nameserver " + server + "\n")
	seen := map[string]bool{"": true, ".": true}
	domains = slices.DeleteFunc(domains, func(s string) bool { before := seen[s]; seen[s] = true; return before })
	if len(domains) > 0 {
		all.WriteString("search " + strings.Join(domains, " ") + "\n")
	}
	return all.String() + rest.String()
}

// hostsMark ends the lines of a hosts file that are ours.
const hostsMark = "# skerry"

// hostsFile is a hosts file in which the container's own name has its addresses: programs ask for that.
func hostsFile(old string, j joined) string {
	var all strings.Builder
	for line := range strings.Lines(old) {
		if !strings.HasSuffix(strings.TrimSpace(line), hostsMark) {
			all.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	if j.Address.IsValid() {
		all.WriteString(j.Address.String() + "\t" + j.hostname + "\t" + hostsMark + "\n")
	}
	if j.Address6.IsValid() {
		all.WriteString(j.Address6.String() + "\t" + j.hostname + "\t" + hostsMark + "\n")
	}
	return all.String()
}
