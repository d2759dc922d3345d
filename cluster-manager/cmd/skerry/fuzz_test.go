package main

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"skerry.internal/messages"
)

// FuzzFile holds for a job's file of any content: the error is short, and what is taken is a deploy that is sent, and read again, as it is.
func FuzzFile(f *testing.F) {
	f.Fuzz(func(t *testing.T, content []byte) {
		cmd, warning, err := parseFile(content)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		if cmd.Command != messages.Deploy || strings.Contains(warning, "\n") {
			t.Errorf("got %q, warning %q", cmd.Command, warning)
		}
		if cmd.Validate() != nil {
			return // said when it is whole
		}
		again, warning, err := parseFile(messages.Encode(&cmd))
		if err != nil || warning != "" || !reflect.DeepEqual(again.Job.WithDefaults(), cmd.Job.WithDefaults()) {
			t.Errorf("sent %+v, read %+v, %q, %v", cmd, again, warning, err)
		}
	})
}

// FuzzBroker holds for a --broker of any text: it is refused, or it can be dialled, and means the same when it is given again.
func FuzzBroker(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		u, err := parseBroker(text)
		if err != nil {
			return
		}
		again, err := parseBroker(u.String())
		if u.Hostname() == "" || u.Port() == "" || err != nil || again.String() != u.String() {
			t.Errorf("%q is %q, and that %v, %v", text, u, again, err)
		}
	})
}

// FuzzPort holds for a --port of any text: it is refused, or says what it says, in one form.
func FuzzPort(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		ports, err := parsePorts([]string{text})
		if err != nil {
			return
		}
		again, err := parsePorts([]string{portText(ports[0])})
		if err != nil || !slices.Equal(again, ports) {
			t.Errorf("%q is %+v, and %q is %+v, %v", text, ports, portText(ports[0]), again, err)
		}
	})
}

// portText is a port as --port has it.
func portText(p messages.Port) string {
	name := ""
	if p.Name != "" {
		name = p.Name + "="
	}
	return fmt.Sprintf("%s%d:%d/%s", name, p.Host, p.Container, p.Protocol)
}
