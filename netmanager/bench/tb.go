//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
)

// tb is what the laboratory wants of a test, for a program: what is to be undone at the end, and a way out.
type tb struct {
	testing.TB // never called; it makes the type one of testing's
	name       string
	ctx        context.Context //nolint:containedctx // testing.TB has it so
	cleanup    []func()
}

// failure is what Fatal panics with.
type failure struct{ error }

func newTB(ctx context.Context, name string) *tb { return &tb{name: name, ctx: ctx} }

// end undoes all that was made, the last first, and returns what Fatal said.
func (b *tb) end(caught any) error {
	for _, f := range slices.Backward(b.cleanup) {
		f()
	}
	switch f := caught.(type) {
	case nil:
		return b.ctx.Err()
	case failure:
		return f.error
	default:
		panic(caught)
	}
}

func (b *tb) Helper()                  {}
func (b *tb) Name() string             { return b.name }
func (b *tb) Context() context.Context { return b.ctx }
func (b *tb) Cleanup(f func())         { b.cleanup = append(b.cleanup, f) }
func (b *tb) Failed() bool             { return false }
func (b *tb) Log(args ...any)          { fmt.Fprintln(os.Stderr, args...) }
func (b *tb) Logf(f string, args ...any) {
	fmt.Fprintf(os.Stderr, f+"\n", args...)
}

// Fatal gives up.
func (b *tb) Fatal(args ...any) { panic(failure{errors.New(fmt.Sprint(args...))}) }

// Fatalf gives up.
func (b *tb) Fatalf(f string, args ...any) { panic(failure{fmt.Errorf(f, args...)}) }

// Skip gives up: nothing is left out here.
func (b *tb) Skip(args ...any) { b.Fatal(args...) }

// Error gives up at once too.
func (b *tb) Error(args ...any) { b.Fatal(args...) }

// Errorf gives up at once too.
func (b *tb) Errorf(f string, args ...any) { b.Fatalf(f, args...) }

// TempDir returns a directory that goes with the end.
func (b *tb) TempDir() string {
	dir, err := os.MkdirTemp("", "skerry-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var _ testing.TB = (*tb)(nil)

// machine says in one line where this was measured.
func machine() string {
	return fmt.Sprintf("%d cores, %s, %s", runtime.NumCPU(), runtime.GOARCH, kernel())
}
