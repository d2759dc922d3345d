package docker

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Prepare brings the image where it is not on this node, and checks that it is for this processor. Where it is here that is one call.
func (d *Driver) Prepare(ctx context.Context, spec driver.Spec, progress func(messages.Progress)) error {
	cli, err := d.api(ctx)
	if err != nil {
		return err
	}
	d.cleaner.shelf.used(spec.Image, time.Now()) // before it is looked at: one that is on its way out is brought again below
	err = d.checkImage(ctx, cli, spec.Image)
	if !cerrdefs.IsNotFound(err) {
		return err
	}
	named, err := reference.ParseNormalizedNamed(spec.Image)
	if err != nil {
		return fmt.Errorf("image %s: %w: it is not on this node and its name is not one that a registry can be asked for: %w",
			spec.Image, driver.ErrInvalid, err)
	}
	if err := d.pull(ctx, cli, named, spec.Image, progress); err != nil {
		return err
	}
	err = d.checkImage(ctx, cli, spec.Image)
	if err != nil {
		d.dropImage(ctx, cli, spec.Image)
		return err
	}
	d.brought(ctx, cli, spec.Image)
	return nil
}

// checkImage reports whether the image is here (an error of cerrdefs says that it is not) and runs here.
func (d *Driver) checkImage(ctx context.Context, cli *client.Client, ref string) error {
	img, err := cli.ImageInspect(ctx, ref)
	switch {
	case cerrdefs.IsInvalidArgument(err):
		return fmt.Errorf("image %s: %w: %s", ref, driver.ErrInvalid, plain(err))
	case err != nil:
		return failure("inspect image "+ref, err)
	case !d.runsHere(img):
		return fmt.Errorf("image %s: %w: it is for %s, this node is %s", ref, driver.ErrImageArch,
			strings.Trim(path.Join(img.Os, img.Architecture, img.Variant), "/"), d.platform())
	}
	var argv []string
	if img.Config != nil {
		argv = slices.Concat(img.Config.Entrypoint, img.Config.Cmd)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ownInit) > 1000 { // a node with more images asks again
		clear(d.ownInit)
	}
	d.ownInit[ref] = isInit(argv)
	return nil
}

// dropImage removes an image that was just brought and is of no use here.
func (d *Driver) dropImage(ctx context.Context, cli *client.Client, ref string) {
	ctx, cancel := settle(ctx)
	defer cancel()
	if _, err := cli.ImageRemove(ctx, ref, image.RemoveOptions{PruneChildren: true}); err != nil {
		d.log.WarnContext(ctx, "useless image left behind", "image", ref, "err", err)
	}
}

// platform is what registries are asked for.
func (d *Driver) platform() string {
	if d.cfg.Arch == "arm" {
		return "linux/arm/v7"
	}
	return "linux/" + d.cfg.Arch
}

// runsHere reports whether an image is for this processor. An image that does not say (an old import) gets the benefit of the doubt.
func (d *Driver) runsHere(img image.InspectResponse) bool {
	if img.Os != "" && img.Os != "linux" {
		return false
	}
	switch img.Architecture {
	case "", d.cfg.Arch:
		return d.cfg.Arch != "arm" || slices.Contains([]string{"", "v5", "v6", "v7"}, img.Variant)
	case "386":
		return d.cfg.Arch == "amd64"
	default:
		return false
	}
}

// isInit reports whether an image begins with an init of its own. Some of them (s6-overlay, systemd) refuse to run as anything but
// process 1, so they get no other init before them.
func isInit(argv []string) bool {
	inits := []string{"init", "tini", "tini-static", "docker-init", "dumb-init", "catatonit", "systemd", "s6-svscan", "s6-overlay-suexec", "my_init", "runit-init"}
	return len(argv) > 0 && slices.Contains(inits, path.Base(argv[0]))
}
