package broker

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// fewFiles is how many files the child may open.
const fewFiles = 40

// runServer is the child process: a server with few files, until its standard input is closed.
func runServer(kind string) {
	var addr string
	switch kind {
	case "stock":
		_, addr = newStock(nil)
	case "ours":
		b, err := New(open(), slog.New(slog.DiscardHandler))
		if err != nil {
			panic(err)
		}
		go b.Run(contextUntilEOF())
		addr = b.Addrs()[0].String()
	}
	fmt.Println(addr)
	if os.Getenv("BROKER_TEST_FILES") != "" {
		limit := syscall.Rlimit{Cur: fewFiles, Max: fewFiles}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			panic(err)
		}
	}
	<-contextUntilEOF().Done()
}

// child starts the test binary as a server of that kind and returns its address, its id and what it wrote when it ended.
func child(t *testing.T, kind string, env ...string) (addr string, pid int, ended <-chan string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), "BROKER_TEST_SERVER="+kind), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil || cmd.Start() != nil {
		t.Fatal("no child", err1, err2)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	waited := make(chan struct{})
	go func() { defer close(waited); _ = cmd.Wait(); done <- stderr.String() }()
	t.Cleanup(func() { stdin.Close(); <-waited })
	return strings.TrimSpace(line), cmd.Process.Pid, done
}
