package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Usage asks for the counters of every running container of this node, once each.
func (d *Driver) Usage(ctx context.Context) ([]driver.Usage, error) {
	cli, err := d.api(ctx)
	if err != nil {
		return nil, err
	}
	found, err := d.running(ctx, cli)
	if err != nil {
		return nil, err
	}
	all := make([]driver.Usage, len(found))
	err = parallel(len(found), func(i int) error {
		s, err := stats(ctx, cli, found[i].ID)
		if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) { // ended since it was listed
			return nil
		}
		if err != nil {
			return failure("stats of "+found[i].ID, err)
		}
		all[i] = usage(messages.InstanceID(found[i].Labels[LabelInstance]), s)
		if j, ok := d.boxes.of(all[i].Instance); ok {
			all[i].RxBytes, all[i].TxBytes = j.traffic()
		}
		return nil
	})
	return slices.DeleteFunc(all, func(u driver.Usage) bool { return u.Instance == "" }), err
}

func stats(ctx context.Context, cli *client.Client, id string) (container.StatsResponse, error) {
	var s container.StatsResponse
	r, err := cli.ContainerStatsOneShot(ctx, id)
	if err != nil {
		return s, err
	}
	defer r.Body.Close()
	err = json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&s)
	if errors.Is(err, io.EOF) || err == nil && s.Read.IsZero() { // by its version, Docker says nothing or nothing of use of one that has just ended
		return s, cerrdefs.ErrNotFound
	}
	return s, err
}

// usage takes from Docker's figures what the seam wants.
func usage(id messages.InstanceID, s container.StatsResponse) driver.Usage {
	u := driver.Usage{
		Instance:    id,
		CPU:         time.Duration(min(s.CPUStats.CPUUsage.TotalUsage, 1<<62)), //nolint:gosec // bounded
		MemoryBytes: s.MemoryStats.Usage,
	}
	cache, ok := s.MemoryStats.Stats["total_inactive_file"] // cgroup v1
	if !ok {
		cache = s.MemoryStats.Stats["inactive_file"] // cgroup v2
	}
	if cache < u.MemoryBytes {
		u.MemoryBytes -= cache
	}
	for _, n := range s.Networks {
		u.RxBytes += n.RxBytes
		u.TxBytes += n.TxBytes
	}
	return u
}

// traffic returns the bytes that went through the interface of a sandbox, of which Docker counts nothing.
func (b sandbox) traffic() (rx, tx uint64) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", b.pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(table)) {
		name, figures, ok := strings.Cut(strings.TrimSpace(line), ":")
		columns := strings.Fields(figures)
		if !ok || name == "lo" || len(columns) < 9 {
			continue
		}
		r, _ := strconv.ParseUint(columns[0], 10, 64) //nolint:errcheck // the kernel's own figures
		t, _ := strconv.ParseUint(columns[8], 10, 64) //nolint:errcheck // as above
		rx, tx = rx+r, tx+t
	}
	return rx, tx
}
