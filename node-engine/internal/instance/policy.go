package instance

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

const (
	// settled is how long a workload runs until its earlier failures are forgotten.
	settled = time.Minute
	// The tries in a row after which a start is given up where the restart policy sets no bound.
	imageTries = 3
	portTries  = 5
	neverTries = 3
	// maxReason keeps a driver's text within what a status may carry.
	maxReason = 1000
)

// failure is why an attempt ended.
type failure struct {
	code   messages.Code
	reason string
	exit   *driver.Exit // of a workload that ended by itself
	final  bool         // repeating it is useless
}

// verdict is what follows a failure: a terminal state, or pending for the next attempt after wait.
type verdict struct {
	state  messages.State
	code   messages.Code
	reason string
	wait   time.Duration
}

// judge decides what follows f, which is the last of so many failures in a row, of which the last tries had the same code.
func judge(p messages.Restart, f failure, failures, tries int) verdict {
	if f.exit != nil && f.exit.Code == 0 && p.Policy != messages.RestartAlways {
		return verdict{state: messages.ExitedState, reason: f.reason}
	}
	if f.exit != nil && p.Policy == messages.RestartNever {
		return verdict{state: messages.FailedState, code: f.code, reason: f.reason + "; its restart policy is never"}
	}
	if f.final {
		return verdict{state: messages.FailedState, code: f.code, reason: f.reason}
	}
	if n := givesUp(p, f, failures, tries); n > 0 {
		return verdict{state: messages.FailedState, code: f.code, reason: fmt.Sprintf("gave up after %s: %s", attempts(n), f.reason)}
	}
	wait := backoff(p.Backoff.Std(), p.MaxBackoff.Std(), failures)
	return verdict{state: messages.Pending, code: f.code, wait: wait, reason: fmt.Sprintf("%s, next attempt in %s", f.reason, wait)}
}

func attempts(n int) string {
	if n == 1 {
		return "1 attempt"
	}
	return fmt.Sprintf("%d attempts", n)
}

// givesUp returns after how many attempts the failure is final, or 0 where it is not.
func givesUp(p messages.Restart, f failure, failures, tries int) int {
	if p.MaxAttempts > 0 && failures > p.MaxAttempts {
		return p.MaxAttempts
	}
	bound := 0
	switch {
	case f.code == messages.ImageNotFound:
		bound = imageTries
	case f.code == messages.PortInUse && p.MaxAttempts == 0:
		bound = portTries
	case f.code == messages.DriverFailed && p.Policy == messages.RestartNever:
		bound = neverTries
	}
	if bound > 0 && tries >= bound {
		return tries
	}
	return 0
}

// backoff doubles first with every failure after the first one, up to most.
func backoff(first, most time.Duration, failures int) time.Duration {
	d := first
	for range failures - 1 {
		if d >= most/2 {
			return max(most, first)
		}
		d *= 2
	}
	return d
}

// exited is the failure of a workload that ended by itself.
func exited(exit driver.Exit, memoryMB int) failure {
	f := failure{code: messages.Exited, exit: &exit, reason: fmt.Sprintf("exited with code %d", exit.Code)}
	switch {
	case exit.OOM && memoryMB > 0:
		f.reason = fmt.Sprintf("killed for want of memory: it used more than its %d MiB; raise resources.memory_mb", memoryMB)
	case exit.OOM:
		f.reason = "killed for want of memory: the node has no more; set resources.memory_mb or move it to a larger node"
	}
	return f
}

// refused is the failure of a call to the driver. Unavailable is none: see runner.delay.
func refused(err error, spec *messages.Spec) failure {
	switch {
	case errors.Is(err, driver.ErrImageNotFound):
		return failure{code: messages.ImageNotFound, reason: told(err, driver.ErrImageNotFound, fmt.Sprintf(
			"image %s was not found: check its name and tag, and that this node may pull it", spec.Image))}
	case errors.Is(err, driver.ErrImageArch):
		return failure{code: messages.ImageWrongArch, final: true, reason: told(err, driver.ErrImageArch, fmt.Sprintf(
			"image %s does not run on this node's processor: build it for this architecture or choose another node", spec.Image))}
	case errors.Is(err, driver.ErrPortInUse):
		return failure{code: messages.PortInUse, reason: clip("free the port, or choose another or none: " +
			told(err, driver.ErrPortInUse, "a host port is taken on this node"))}
	case errors.Is(err, driver.ErrInvalid):
		return failure{code: messages.DriverFailed, final: true, reason: clip(plain(err))}
	case errors.Is(err, errNoTechnology):
		return failure{code: messages.NoTechnology, final: true, reason: clip(fmt.Sprintf(
			"this node does not run %s: install it there, or choose a node that has it", spec.Technology))}
	default:
		return failure{code: messages.DriverFailed, reason: clip(plain(err))}
	}
}

// told returns what a driver says where it says more than which kind of error it is, else what is known of every error of this kind.
func told(err, kind error, known string) string {
	text := plain(err)
	if _, more, _ := strings.Cut(text, kind.Error()); strings.HasPrefix(more, ": ") {
		return clip(text)
	}
	return clip(known)
}

// stepError says in which step of an instance's life a driver failed. Its state says so as well: a reason leaves that out.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// plain returns what a driver says, without the step and the name of the instance, which everybody who reads a status knows.
func plain(err error) string {
	e, ok := errors.AsType[*stepError](err)
	if !ok {
		return err.Error()
	}
	text := e.err.Error()
	if rest, found := strings.CutPrefix(text, e.step+" "); found {
		if _, rest, found = strings.Cut(rest, ": "); found {
			return rest
		}
	}
	return text
}

// clip makes a driver's text fit for a status: one line, valid UTF-8, bounded.
func clip(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}
