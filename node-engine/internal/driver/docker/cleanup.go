package docker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

// Images are removed so that Docker's disk keeps a reserve: those that this driver has pulled itself and that no container uses, the one
// that was used longest ago first. An image that was here before, that somebody else pulled, or that bears a further name is not touched.

// Reserve is how much of Docker's disk is to stay free. The zero Reserve asks for nothing: no image is removed.
type Reserve struct {
	bytes   int64
	percent int64
}

// ParseReserve reads "10%", "2GiB", "500MiB" or "0".
func ParseReserve(text string) (Reserve, error) {
	bad := fmt.Errorf("image reserve %q: want a share of the disk such as 10%%, or a size such as 500MiB or 2GiB, or 0 for none", text)
	units := []struct {
		suffix string
		shift  int
	}{{"%", -1}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"", 0}}
	for _, u := range units {
		digits, found := strings.CutSuffix(text, u.suffix)
		if !found {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		switch {
		case err != nil || n < 0, u.suffix == "" && n != 0, u.suffix == "%" && n > 90, u.shift > 0 && n > math.MaxInt64>>u.shift:
			return Reserve{}, bad
		case u.suffix == "%":
			return Reserve{percent: n}, nil
		default:
			return Reserve{bytes: n << u.shift}, nil
		}
	}
	return Reserve{}, bad
}

// String returns what ParseReserve reads.
func (r Reserve) String() string {
	if r.percent > 0 {
		return fmt.Sprintf("%d%%", r.percent)
	}
	return fmt.Sprintf("%dMiB", r.bytes>>20)
}

// of returns the reserve of a disk in bytes.
func (r Reserve) of(total int64) int64 { return max(r.bytes, total/100*r.percent) }

const (
	// tendEvery is how often the disk is looked at; one call to the kernel.
	tendEvery = time.Minute
	// idleFor is how long ago an image was used last that may be removed: a deploy that waits for a port is not to pull again.
	idleFor = 10 * time.Minute
)

// cleaner removes images.
type cleaner struct {
	reserve Reserve
	shelf   *shelf
	disk    func(dir string) (free, total int64, ok bool)
	idle    time.Duration
	turn    sync.Mutex // one at a time: two would free twice as much
}

func newCleaner(reserve Reserve, file string, log *slog.Logger) *cleaner {
	return &cleaner{reserve: reserve, shelf: openShelf(file, log), disk: diskOf, idle: idleFor}
}

// diskOf returns the bytes of the disk that dir is on.
func diskOf(dir string) (free, total int64, ok bool) {
	var fs syscall.Statfs_t
	if dir == "" || syscall.Statfs(dir, &fs) != nil {
		return 0, 0, false
	}
	return int64(fs.Bavail) * int64(fs.Bsize), int64(fs.Blocks) * int64(fs.Bsize), true //nolint:unconvert // Bsize is an int32 on arm
}

// lacking returns how many bytes are missing for the reserve and need more; 0 where there is enough or the disk cannot be seen.
func (c *cleaner) lacking(root string, need int64) int64 {
	free, total, ok := c.disk(root)
	if !ok || (c.reserve == Reserve{}) {
		return 0
	}
	return max(0, c.reserve.of(total)+need-free)
}

// tend keeps the reserve free until ctx ends.
func (d *Driver) tend(ctx context.Context, cli *client.Client) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		if err := d.makeRoom(ctx, cli, 0); err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "images not removed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// makeRoom removes images until need bytes are free beside the reserve, or none is left that may be removed.
func (d *Driver) makeRoom(ctx context.Context, cli *client.Client, need int64) error {
	f, err := d.known(ctx, cli)
	if err != nil || d.cleaner.lacking(f.root, need) == 0 {
		return err
	}
	d.cleaner.turn.Lock()
	defer d.cleaner.turn.Unlock()
	unused, err := d.unused(ctx, cli)
	if err != nil {
		return err
	}
	for _, ref := range unused {
		if d.cleaner.lacking(f.root, need) == 0 {
			return nil
		}
		d.removeImage(ctx, cli, f.root, ref)
	}
	return nil
}

// unused returns the images that were pulled by us and are nobody's now, the one that was used longest ago first.
func (d *Driver) unused(ctx context.Context, cli *client.Client) ([]string, error) {
	held := d.cleaner.shelf.all()
	if len(held) == 0 {
		return nil, nil
	}
	containers, err := cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, failure("list containers", err)
	}
	inUse := map[string]bool{}
	for _, c := range containers {
		inUse[c.ImageID], inUse[c.Image] = true, true
	}
	var refs []string
	for ref, p := range held {
		if !inUse[p.ID] && !inUse[ref] && time.Since(p.Used) >= d.cleaner.idle {
			refs = append(refs, ref)
		}
	}
	slices.SortFunc(refs, func(a, b string) int {
		return cmp.Or(held[a].Used.Compare(held[b].Used), cmp.Compare(a, b))
	})
	return refs, nil
}

// removeImage removes one image, unless it is not the one any more that was pulled. Docker itself refuses where a container came to use it.
func (d *Driver) removeImage(ctx context.Context, cli *client.Client, root, ref string) {
	before, _, _ := d.cleaner.disk(root)
	img, err := cli.ImageInspect(ctx, ref)
	held := d.cleaner.shelf.all()[ref]
	switch {
	case cerrdefs.IsNotFound(err), err == nil && (img.ID != held.ID || len(img.RepoTags)+len(img.RepoDigests) > 2 || len(img.RepoTags) > 1):
		d.cleaner.shelf.forget(ref) // somebody has removed it, pulled it anew or named it: it is theirs
		return
	case err == nil:
		_, err = cli.ImageRemove(ctx, ref, image.RemoveOptions{PruneChildren: true})
	}
	if err != nil && !cerrdefs.IsNotFound(err) {
		d.log.WarnContext(ctx, "image not removed", "image", ref, "err", err)
		return
	}
	d.cleaner.shelf.forget(ref)
	after, _, _ := d.cleaner.disk(root)
	d.log.InfoContext(ctx, "image removed to keep room on the disk", "image", ref, "freed_mb", (after-before)>>20, "free_mb", after>>20,
		"reserve", d.cleaner.reserve.String())
}

// brought notes that this driver has pulled an image that was not here.
func (d *Driver) brought(ctx context.Context, cli *client.Client, ref string) {
	img, err := cli.ImageInspect(ctx, ref)
	if err == nil {
		err = d.cleaner.shelf.add(ref, img.ID, time.Now())
	}
	if err != nil { // it is never removed then
		d.log.WarnContext(ctx, "pulled image not noted", "image", ref, "err", err)
	}
}
