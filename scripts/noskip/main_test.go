package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const pass = `{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	for _, c := range []struct {
		name, in, shown, hidden, err string
	}{
		{"pass", pass, "ok  \tp\t0.1s\n", "chatter", ""},
		{"no tests in a package", pass + `{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}
{"Action":"skip","Package":"q"}
`, "[no test files]", "", ""},
		{"skip", `{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:1: no daemon\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
` + pass, "no daemon", "chatter", "1 skipped, which counts as failed here:\n  p TestB"},
		{"fail", `{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:1: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
` + pass, "wrong", "chatter", "1 failed:\n  p TestB"},
		{"build fails", `{"Action":"build-output","ImportPath":"p","Output":"a.go:1: undefined\n"}
{"Action":"build-fail","ImportPath":"p"}
` + pass, "undefined", "", "1 failed"},
		{"cut off", "", "", "", "no test ran"},
		{"not JSON", "go: cannot load module\n" + pass, "cannot load", "", ""},
		{"last line without end", strings.TrimSpace(pass), "ok  ", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			err := run(strings.NewReader(c.in), &out)
			if got := out.String(); !strings.Contains(got, c.shown) || (c.hidden != "" && strings.Contains(got, c.hidden)) {
				t.Errorf("shown %q, want %q and not %q", got, c.shown, c.hidden)
			}
			if (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got error %v, want %q", err, c.err)
			}
		})
	}
}
