// Command fuzz gives every fuzz target of the repository its time, some of them beside one another, and fails where one finds something. It
// builds one program per package, so that targets of a package are built once. What `go test -fuzz` finds it writes into the package's
// testdata/fuzz; here that is printed as well, because CI keeps no files. It must not know what is fuzzed.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

// config says how the targets are run.
type config struct {
	root, work string
	each       time.Duration
	atOnce     int
	only       *regexp.Regexp
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("fuzz", flag.ContinueOnError)
	var c config
	flags.StringVar(&c.root, "root", ".", "the repository")
	flags.StringVar(&c.work, "work", "var/fuzz", "directory for programs and for what has been found interesting")
	flags.DurationVar(&c.each, "time", time.Minute, "of each target, by the clock on the wall")
	flags.IntVar(&c.atOnce, "jobs", 8, "targets at once, with one worker each")
	only := flags.String("only", "", "pattern of targets, as package/Target")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if c.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if c.work, err = filepath.Abs(c.work); err != nil {
		return err
	}
	targets, err := find(c.root, c.only)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("no fuzz target found")
	}
	start := time.Now()
	if err := c.build(ctx, targets); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d targets, %s each, %d at once; built in %s\n", len(targets), c.each, c.atOnce, time.Since(start).Round(time.Second))
	failed := c.fuzz(ctx, targets, out)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d targets failed: %s", len(failed), len(targets), strings.Join(failed, ", "))
	}
	fmt.Fprintf(out, "%d targets found nothing in %s\n", len(targets), time.Since(start).Round(time.Second))
	return nil
}

// target is one fuzz target.
type target struct {
	dir  string // of its package
	name string
}

// String returns its package and name.
func (t target) String() string { return t.dir + "/" + t.name }

// find returns the fuzz targets below root, in order. Not by `go test -list`, which would build every test of the repository.
func find(root string, only *regexp.Regexp) ([]target, error) {
	var found []target
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "var" || (len(d.Name()) > 1 && d.Name()[0] == '.')) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Fuzz") {
				continue
			}
			if t := (target{filepath.Dir(path), f.Name.Name}); only.MatchString(t.String()) {
				found = append(found, t)
			}
		}
		return nil
	})
	slices.SortFunc(found, func(a, b target) int { return cmp.Or(cmp.Compare(a.dir, b.dir), cmp.Compare(a.name, b.name)) })
	return found, err
}

// program is where the program of a package is.
func (c config) program(dir string) string {
	return filepath.Join(c.work, strings.ReplaceAll(filepath.Clean(dir), "/", "-")+".test")
}

// build makes one program per package, with the counters that guide fuzzing.
func (c config) build(ctx context.Context, targets []target) error {
	if err := os.MkdirAll(c.work, 0o755); err != nil {
		return err
	}
	built := map[string]bool{}
	for _, t := range targets {
		if built[t.dir] {
			continue
		}
		built[t.dir] = true
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-fuzz", "Fuzz", "-o", c.program(t.dir), ".")
		cmd.Dir = t.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", t.dir, err, out)
		}
	}
	return nil
}

// fuzz runs the targets and returns those that failed.
func (c config) fuzz(ctx context.Context, targets []target, out io.Writer) (failed []string) {
	var (
		wg sync.WaitGroup
		mu sync.Mutex // guards failed and what is written to out
	)
	places := make(chan struct{}, max(c.atOnce, 1))
	for _, t := range targets {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			text, err := c.one(ctx, t)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				fmt.Fprintf(out, "ok    %-60s %s\n", t, last(text))
				return
			}
			failed = append(failed, t.String())
			fmt.Fprintf(out, "FAIL  %s: %v\n%s\n", t, err, text)
			for _, f := range reproducers(t, text) {
				fmt.Fprintln(out, f)
			}
		})
	}
	wg.Wait()
	return failed
}

// one runs a target. A run that ends by its time alone is no finding: on a busy machine the last input may be cut off by it.
func (c config) one(ctx context.Context, t target) (string, error) {
	cmd := exec.CommandContext(ctx, c.program(t.dir), "-test.run", "^$", "-test.fuzz", "^"+t.name+"$", "-test.fuzztime", c.each.String(),
		"-test.fuzzcachedir", filepath.Join(c.work, "cache", filepath.Base(c.program(t.dir))), "-test.parallel", "1",
		"-test.fuzzminimizetime", "0x") // Go would give each interesting input a minute to become smaller, of which there is one for all
	cmd.Dir = t.dir
	// Its workers end with it, also where it is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err := cmd.Run()
	if cutOff(text.String()) {
		err = nil
	}
	return text.String(), err
}

// byTime is what Go's own fuzzing says of the end of its time: no test's file and line before it, as where a test says these words, and no input named.
var byTime = regexp.MustCompile(`(?m)^--- FAIL: Fuzz\w* \([0-9.]+s\)\n    context deadline exceeded$`)

// cutOff reports whether a run failed by the end of its time and not by an input.
func cutOff(text string) bool {
	return byTime.MatchString(text)
}

// last returns the last line of progress.
func last(text string) string {
	lines := strings.Split(text, "\n")
	for _, l := range slices.Backward(lines) {
		if _, progress, ok := strings.Cut(l, "fuzz: elapsed: "); ok {
			return progress
		}
	}
	return ""
}

var written = regexp.MustCompile(`Failing input written to (\S+)`)

// reproducers returns how to repeat what was found, with the inputs.
func reproducers(t target, text string) (all []string) {
	for _, m := range written.FindAllStringSubmatch(text, -1) {
		content, err := os.ReadFile(filepath.Join(t.dir, m[1]))
		if err != nil {
			content = []byte(err.Error())
		}
		all = append(all, fmt.Sprintf("--- put this into %s and run: go test -run '^%s$/%s' ./%s\n%s", filepath.Join(t.dir, m[1]), t.name,
			filepath.Base(m[1]), t.dir, content))
	}
	return all
}
