package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compile returns the schemas of all payloads by the kinds that the golden files have.
func compile(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	_, raw := load(t)
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	if err := c.AddResource("file:///asyncapi.json", raw); err != nil {
		t.Fatal(err)
	}
	out := map[string]*jsonschema.Schema{}
	for kind, build := range payloadKinds() {
		s, err := c.Compile("file:///asyncapi.json" + schemaPath + reflect.TypeOf(build()).Elem().Name())
		if err != nil {
			t.Fatal(err)
		}
		out[kind] = s
	}
	return out
}

// fits reports what a schema has against a payload.
func fits(s *jsonschema.Schema, payload []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

func TestGoldensFitSchemas(t *testing.T) {
	schemas := compile(t)
	for _, pattern := range []string{"*.json", "client/*.json"} {
		for file, b := range goldens(t, pattern) {
			if err := fits(schemas[kindOf(file)], b); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

// beyond says which documented rule explains that Go refuses what the schema lets through. Empty: none.
func beyond(path, value string, err error) string {
	text := err.Error()
	for _, rule := range []struct{ part, name string }{
		{"listed twice", "listed-twice"}, {"differ from its name", "instance-parts"}, {"want a time", "times"}, {"want at most", "spans"},
		{"want at least 10ms", "spans"}, {"want at least 1ms", "spans"}, {"128 bytes", "client-id"},
		{"want an IP", "addresses"}, {"want a prefix", "addresses"}, {"does not go with", "network"}, {"without network", "network"},
	} {
		if strings.Contains(text, rule.part) {
			return rule.name
		}
	}
	if _, isNumber := errors.AsType[*json.UnmarshalTypeError](json.Unmarshal([]byte(value), new(int64))); isNumber && value[0] != '"' {
		return "whole-numbers"
	}
	if strings.HasPrefix(value, `"é`) {
		return "bytes"
	}
	return ""
}

// TestSchemasRefuseWhatGoRefuses puts wrong values into every field of every golden: what Go refuses, the schema refuses too,
// or the document says so under x-beyond-schema.
func TestSchemasRefuseWhatGoRefuses(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine alone: nothing for the race detector")
	}
	d, _ := load(t)
	schemas, done, used := compile(t), map[string]bool{}, map[string]bool{"size": true}
	values := append(wrongValues(), "1.0", "1e2", "70000", "0.001", `"A"`, `"a/b"`, `"lost"`, `"2026-13-02T15:04:05Z"`, `"1ns"`, `"99999h"`,
		`["A"]`, `["a","a"]`, `{"A":"x"}`, `{"a=b":"x"}`, strings.Repeat("1", 200), `"`+strings.Repeat("é", 100)+`"`, `"`+strings.Repeat("é", 3000)+`"`,
		`[{"container":1,"host":5},{"container":2,"host":5}]`, `[{"instance":"web.0.0"},{"instance":"web.0.0"}]`, "[{}]",
		`[{"source":"x","target":"y"}]`, `[{"host":"x"}]`, `{"http":{"port":1},"tcp":{"port":1}}`, `"999.1.1.1"`, `["999.1.1.1"]`)
	refused := 0
	files := goldens(t, "*.json")
	for _, file := range slices.Sorted(maps.Keys(files)) { // in order: assignments and commands, which Go checks whole, come first
		kind := kindOf(file)
		mutate(t, files[file], values, onceByType(done, payloadKinds()[kind]()), func(m mutation) {
			err := DecodeFromManager(m.payload, payloadKinds()[kind]())
			if err == nil {
				return
			}
			refused++
			if fits(schemas[kind], m.payload) != nil {
				return
			}
			rule := beyond(m.path, m.value, err)
			if _, ok := d.Beyond[rule]; !ok {
				t.Errorf("%s: %s = %s: the schema passes what Go refuses: %v", kind, m.path, clip(m.value), err)
			}
			used[rule] = true
		})
	}
	for rule := range d.Beyond {
		if !used[rule] {
			t.Errorf("x-beyond-schema: %s was never needed", rule)
		}
	}
	if refused < 3000 {
		t.Errorf("only %d mutations were refused", refused)
	}
}

// onceByType reports true for the first time that a field of a struct is asked for, wherever that struct stands.
func onceByType(done map[string]bool, v any) func(path string) bool {
	return func(path string) bool {
		owner := reflect.TypeOf(v).Elem()
		if i := strings.LastIndexByte(path, '.'); i >= 0 {
			owner, _ = fieldType(owner, path[:i])
		}
		key := fmt.Sprint(owner, path[strings.LastIndexByte(path, '.')+1:])
		first := !done[key]
		done[key] = true
		return first
	}
}
