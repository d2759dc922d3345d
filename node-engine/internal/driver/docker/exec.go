package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// Exec runs a program in the container of the instance. Its output is read and dropped. When ctx ends first, the program is ended too where
// it can be seen from here: Docker itself would let it run on, and a health check that hangs would gather processes. A deadline that passes while
// Docker has not begun the program, or does not say how it ended, is Docker's fault and no answer of the program: ErrUnavailable.
func (d *Driver) Exec(ctx context.Context, id messages.InstanceID, argv []string) (int, error) {
	code, err := d.exec(ctx, id, argv)
	if errors.Is(err, errSlow) || !errors.Is(err, context.DeadlineExceeded) {
		return code, err
	}
	return code, fmt.Errorf("%w: %w", driver.ErrUnavailable, err)
}

// errSlow says that a program was begun and did not end in time.
var errSlow = errors.New("it goes on")

func (d *Driver) exec(ctx context.Context, id messages.InstanceID, argv []string) (int, error) {
	cli, err := d.api(ctx)
	if err != nil {
		return 0, err
	}
	c, err := d.inspect(ctx, cli, id)
	if err != nil {
		return 0, err
	}
	what := "exec in " + string(id)
	if !c.State.Running {
		return 0, fmt.Errorf("%s: it does not run", what)
	}
	made, err := cli.ContainerExecCreate(ctx, c.ID, container.ExecOptions{Cmd: argv, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return 0, failure(what, err)
	}
	if err := attend(ctx, cli, made.ID); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
			if d.endExec(ctx, cli, c.ID, made.ID) {
				err = fmt.Errorf("%w: %w", errSlow, err)
			}
		}
		return 0, failure(what, err)
	}
	code, err := execCode(ctx, cli, made.ID)
	return code, failure(what, err)
}

// attend starts the program and reads its output until it ends.
func attend(ctx context.Context, cli *client.Client, execID string) error {
	conn, err := cli.ContainerExecAttach(tied(ctx), execID, container.ExecAttachOptions{})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.Copy(io.Discard, conn.Reader)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// execCode asks for the exit code. The output may end a moment before Docker has noted it.
func execCode(ctx context.Context, cli *client.Client, execID string) (int, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		e, err := cli.ContainerExecInspect(ctx, execID)
		if err != nil || !e.Running {
			return e.ExitCode, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", errSlow, ctx.Err())
		}
	}
}

// endExec kills the program of an exec, where it is a process of this machine that surely belongs to the container. It reports whether the program
// has been begun.
func (d *Driver) endExec(ctx context.Context, cli *client.Client, containerID, execID string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	e, err := cli.ContainerExecInspect(ctx, execID)
	if err != nil || e.Pid <= 0 {
		if err != nil && !cerrdefs.IsNotFound(err) {
			d.log.DebugContext(ctx, "inspect exec", "err", err)
		}
		return false
	}
	if !e.Running {
		return true
	}
	process, err := os.FindProcess(e.Pid) // holds on to this process: its number cannot become another's
	if err != nil {
		return true
	}
	defer process.Release() //nolint:errcheck // nothing to do about it
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", e.Pid))
	if err != nil || !strings.Contains(string(groups), containerID) {
		return true // Docker runs on another machine, or in another PID namespace
	}
	if err := process.Kill(); err != nil {
		d.log.DebugContext(ctx, "end exec", "container", containerID, "err", err)
	}
	return true
}
