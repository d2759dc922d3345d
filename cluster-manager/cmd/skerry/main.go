// Command skerry is the operator's command: it looks at a cluster and commands it, as any MQTT client with an operator's right can.
// There is nothing that it does by another way than the topics of package messages. README.md beside it says how it is used.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "dev"

func main() {
	os.Exit(runUntilSignal())
}

// runUntilSignal ends the command by its context at the first signal; a second one ends the process at once.
func runUntilSignal() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	// Not SIGHUP: to ask for it would undo nohup.
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals)
		if number, ok := s.(syscall.Signal); ok {
			cancel(&stopped{number})
		}
	}()
	return run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Getenv)
}

// streams are where a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run is the program without the process around it. It returns the exit code.
func run(ctx context.Context, args []string, std streams, getenv func(string) string) int {
	root := newRoot(&app{streams: std, getenv: getenv})
	root.SetArgs(args)
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	err := root.ExecuteContext(ctx)
	if text := explain(err); text != "" {
		fmt.Fprintln(std.err, "skerry:", text)
	}
	return exitCode(err)
}
