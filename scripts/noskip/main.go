// Command noskip reads the output of `go test -json`, shows it as `go test` would, and fails where a test was skipped: what make
// test needs is installed, so a skip hides something. It runs nothing itself and must not change what passes.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
		os.Exit(1)
	}
}

// event is one line of `go test -json`; `go doc test2json` describes it.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output and build-fail
	Test       string
	Output     string
}

// tally is what has been read so far.
type tally struct {
	held    map[string][]string // output of tests that have not ended yet, by package and test
	passed  int
	failed  []string
	skipped []string
}

func run(in io.Reader, out io.Writer) error {
	t := tally{held: map[string][]string{}}
	lines := bufio.NewReader(in) // not a Scanner: a line of test output may be long
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			t.take(line, out)
		}
		if err == io.EOF {
			return t.verdict()
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

// take shows what belongs to a package or to a test that failed or was skipped. What else a passing test said is dropped.
func (t *tally) take(line string, out io.Writer) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil {
		fmt.Fprint(out, line)
		return
	}
	name := strings.TrimSpace(e.Package + " " + e.Test)
	switch {
	case e.Action == "build-output" || (e.Action == "output" && e.Test == ""):
		if e.Output != "PASS\n" {
			fmt.Fprint(out, e.Output)
		}
	case e.Action == "output":
		t.held[name] = append(t.held[name], e.Output)
	case e.Action == "build-fail":
		t.failed = append(t.failed, e.ImportPath)
	case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
		t.end(e, name, out)
	}
}

func (t *tally) end(e event, name string, out io.Writer) {
	held := t.held[name]
	delete(t.held, name)
	switch {
	case e.Action == "pass":
		if e.Test != "" {
			t.passed++
		}
		return
	case e.Action == "fail":
		t.failed = append(t.failed, name)
	case e.Test == "": // a package without tests
		return
	default:
		t.skipped = append(t.skipped, name)
	}
	fmt.Fprint(out, strings.Join(held, ""))
}

func (t *tally) verdict() error {
	switch {
	case len(t.failed) > 0:
		return fmt.Errorf("%d failed:\n  %s", len(t.failed), strings.Join(t.failed, "\n  "))
	case len(t.skipped) > 0:
		return fmt.Errorf("%d skipped, which counts as failed here:\n  %s", len(t.skipped), strings.Join(t.skipped, "\n  "))
	case t.passed == 0:
		return fmt.Errorf("no test ran")
	}
	return nil
}
