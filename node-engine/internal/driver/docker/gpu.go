package docker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"skerry.internal/node-engine/internal/driver"
)

// checkGPUs asks for the runtime that GPUs need. Docker itself takes the container and fails at its start, with words that name no cause.
func (d *Driver) checkGPUs(ctx context.Context, cli *client.Client, spec driver.Spec) error {
	if spec.Resources.GPUs == 0 {
		return nil
	}
	f, err := d.ask(ctx, cli) // not from memory: somebody may just have installed it
	if err != nil {
		return err
	}
	if slices.Contains(f.runtimes, "nvidia") {
		return nil
	}
	return fmt.Errorf("%w: %d GPUs are asked for, but Docker on this node has no nvidia runtime: install nvidia-container-toolkit",
		driver.ErrInvalid, spec.Resources.GPUs)
}

// takeGPUs gives the container that is about to be made graphics processors that no other one has: the free ones with the lowest numbers. Docker
// itself, asked for a number of them, gives everybody the first ones. The caller holds d.gpus until the container exists, from when on others see
// them taken.
func (d *Driver) takeGPUs(ctx context.Context, cli *client.Client, p plan, count int) error {
	taken, err := d.takenGPUs(ctx, cli, p.name)
	if err != nil {
		return err
	}
	var ids []string
	for n := 0; len(ids) < count; n++ {
		if id := strconv.Itoa(n); !taken[id] {
			ids = append(ids, id)
		}
	}
	p.cfg.Labels[LabelGPUs] = strings.Join(ids, ",")
	p.host.DeviceRequests = []container.DeviceRequest{{Driver: "nvidia", DeviceIDs: ids, Capabilities: [][]string{{"gpu"}}}}
	return nil
}

// takenGPUs returns the graphics processors of the containers that run or are about to, of all engines on this Docker, but for the container of the
// given name. One that has ended has none: when it is started again they may be somebody else's.
func (d *Driver) takenGPUs(ctx context.Context, cli *client.Client, but string) (map[string]bool, error) {
	all, err := cli.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", LabelGPUs))})
	if err != nil {
		return nil, failure("list who has graphics processors", err)
	}
	taken := map[string]bool{}
	for _, c := range all {
		if ended := []string{container.StateExited, container.StateDead, container.StateRemoving}; slices.Contains(ended, c.State) || slices.Contains(c.Names, "/"+but) {
			continue
		}
		for id := range strings.SplitSeq(c.Labels[LabelGPUs], ",") {
			taken[id] = true
		}
	}
	return taken, nil
}

// lostGPUs says whether a container that has ended cannot be started as it is, because another one has its graphics processors now.
func (d *Driver) lostGPUs(ctx context.Context, cli *client.Client, c container.InspectResponse) (bool, error) {
	ids, has := c.Config.Labels[LabelGPUs]
	if !has {
		return false, nil
	}
	taken, err := d.takenGPUs(ctx, cli, strings.TrimPrefix(c.Name, "/"))
	return slices.ContainsFunc(strings.Split(ids, ","), func(id string) bool { return taken[id] }), err
}
