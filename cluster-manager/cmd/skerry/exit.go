package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// The exit codes beside 0 and 128 + the number of a signal.
const (
	exitFailed      = 1 // refused, failed or not done in time
	exitUsage       = 2 // the command line or a file is wrong; nothing was sent
	exitUnreachable = 3 // no broker, or it does not let us in
)

// failure is an error with the exit code that it leads to.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usagef says what is wrong with the command line.
func usagef(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

// stopped is the cause of a context that a signal has ended.
type stopped struct{ signal syscall.Signal }

func (s *stopped) Error() string { return s.signal.String() }

// interrupted returns the error of a command that its context has ended, with what the person should know; "" for nothing.
func interrupted(ctx context.Context, note string) error {
	s, ok := errors.AsType[*stopped](context.Cause(ctx))
	if !ok {
		return &failure{exitFailed, context.Cause(ctx)}
	}
	return &failure{128 + int(s.signal), errors.New(note)}
}

// asFailure gives an error its exit code, where it has none.
func asFailure(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if errors.Is(err, errLost) {
		return &failure{exitUnreachable, err}
	}
	return &failure{exitFailed, err}
}

// exitCode returns what the process ends with. What cobra itself reports is wrong usage; all else is a failure.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return exitUsage
}

// explain returns what to print of an error, "" for nothing.
func explain(err error) string {
	if err == nil {
		return ""
	}
	if _, ok := errors.AsType[*failure](err); !ok {
		return err.Error() + "\nSee skerry --help." // cobra's own
	}
	return err.Error()
}
