package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// pull brings an image from its registry. A pull whose ctx ends is ended by Docker too, which drops what it has.
func (d *Driver) pull(ctx context.Context, cli *client.Client, named reference.Named, ref string, progress func(messages.Progress)) error {
	auth, err := d.credentials(named)
	if err != nil {
		return err
	}
	if err := d.makeRoom(ctx, cli, d.cfg.MinFree); err != nil {
		return err
	}
	room, err := d.checkRoom(ctx, cli, ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(d.limits.pull, func() {
		cancel(fmt.Errorf("nothing has come for %s: %s, or the way to it, stands still", d.limits.pull, reference.Domain(named)))
	})
	defer silence.Stop()
	stream, err := cli.ImagePull(ctx, ref, image.PullOptions{Platform: d.platform(), RegistryAuth: auth})
	if err == nil {
		defer stream.Close()
		tally := tally{layers: map[string]layer{}, progress: progress, room: room, heard: func() { silence.Reset(d.limits.pull) }}
		err = tally.follow(stream)
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause // the client's own error is but its consequence
	}
	return d.pullFailure(named, ref, err)
}

// checkRoom refuses to begin a pull on a full disk. It returns what makes room for a number of bytes, as far as
// that is possible, and tells how many are free; nil where Docker's disk is not to be seen.
func (d *Driver) checkRoom(ctx context.Context, cli *client.Client, ref string) (func(need int64) int64, error) {
	f, err := d.known(ctx, cli)
	if err != nil {
		return nil, err
	}
	n, _, ok := d.cleaner.disk(f.root)
	if !ok {
		return nil, nil
	}
	if n < d.cfg.MinFree {
		return nil, fmt.Errorf("pull %s: %w: %d MiB are free in %s, want at least %d MiB: remove images or data on the node",
			ref, errNoSpace, n>>20, f.root, d.cfg.MinFree>>20)
	}
	return func(need int64) int64 {
		if n, _, _ := d.cleaner.disk(f.root); n >= need || d.makeRoom(ctx, cli, need) != nil {
			return n
		}
		n, _, _ := d.cleaner.disk(f.root)
		return n
	}, nil
}

// errNoSpace is a failure that can pass by itself, so callers of the driver do not see it as one that they branch on.
var errNoSpace = errors.New("not enough space on the node's disk")

// pullFailure says what went wrong in words that a person can act on. Docker reports most of it as text in the stream, so text it is.
func (d *Driver) pullFailure(named reference.Named, ref string, err error) error {
	text := plain(err)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNoSpace), away(err):
		return failure("pull "+ref, err)
	case has("no matching manifest", "no match for platform", "does not match the specified platform"):
		return fmt.Errorf("image %s: %w: it has nothing for %s; build or choose one that does", ref, driver.ErrImageArch, d.platform())
	case has("no space left on device"):
		return fmt.Errorf("pull %s: %w: remove images or data on the node: %s", ref, errNoSpace, text)
	case has("unauthorized", "authentication required", "no basic auth credentials", "access denied", "is denied", "repository does not exist"):
		return fmt.Errorf("image %s: %w: %s does not have it or does not give it to this node: check the name, or %s (%s)",
			ref, driver.ErrImageNotFound, reference.Domain(named), d.adviseCredentials(named), text)
	case cerrdefs.IsNotFound(err), has("manifest unknown", "name unknown", "not found: manifest"):
		return fmt.Errorf("image %s: %w: %s does not have it: check the name and the tag (%s)",
			ref, driver.ErrImageNotFound, reference.Domain(named), text)
	default:
		return fmt.Errorf("pull %s: %w", ref, err)
	}
}

// pullMessage is one line of Docker's report of a pull.
type pullMessage struct {
	ID       string `json:"id"`
	Status   string `json:"status"`
	Error    string `json:"error"`
	Progress struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
}

type layer struct{ done, total int64 }

// tally adds up the layers of a pull.
type tally struct {
	layers   map[string]layer
	sum      layer
	progress func(messages.Progress)
	told     time.Time
	room     func(need int64) int64
	heard    func() // called with every line, where it is not nil
}

// follow reads the report to its end: Docker goes on pulling only while somebody reads, and says at the end whether it went well.
func (t *tally) follow(stream io.Reader) error {
	lines := json.NewDecoder(stream)
	for {
		var m pullMessage
		err := lines.Decode(&m)
		if t.heard != nil {
			t.heard()
		}
		switch {
		case errors.Is(err, io.EOF):
			t.tell(true)
			return nil
		case err != nil:
			return err
		case m.Error != "":
			return errors.New(m.Error)
		}
		if err := t.add(m); err != nil {
			return err
		}
	}
}

// maxLayer is above what a layer can have, in bytes; the sum of maxLayers of them is a number still.
const maxLayer = 1 << 50

func within(bytes int64) int64 { return min(max(bytes, 0), maxLayer) }

// maxLayers is above what an image can have (127); it bounds what a strange report can make us hold.
const maxLayers = 1024

func (t *tally) add(m pullMessage) error {
	l, seen := t.layers[m.ID]
	if m.ID == "" || (!seen && len(t.layers) >= maxLayers) {
		return nil
	}
	old := l
	switch m.Status {
	case "Downloading":
		done := within(m.Progress.Current)
		l = layer{done: done, total: max(within(m.Progress.Total), done)}
	case "Download complete", "Pull complete":
		l.done = l.total
	default:
		return nil
	}
	t.layers[m.ID] = l
	t.sum.done += l.done - old.done
	t.sum.total += l.total - old.total
	t.tell(false)
	if l.total > old.total && t.room != nil {
		left := t.sum.total - t.sum.done
		if room := t.room(left); room < left {
			return fmt.Errorf("%w: %d MiB are still to be downloaded, %d MiB are free", errNoSpace, left>>20, room>>20)
		}
	}
	return nil
}

// tell reports the sum, at most four times a second but for the last time.
func (t *tally) tell(last bool) {
	if t.progress == nil || (!last && time.Since(t.told) < 250*time.Millisecond) {
		return
	}
	t.told = time.Now()
	t.progress(messages.Progress{DoneBytes: t.sum.done, TotalBytes: t.sum.total})
}
