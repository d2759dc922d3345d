package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// hostile are payloads that every decoder has to survive.
func hostile() map[string]string {
	deep := 200_000
	return map[string]string{
		"empty": "", "blank": " \n", "null": "null", "number": "7", "text": `"{}"`, "list": "[]", "list of objects": "[{}]", "open": "{",
		"half": `{"a":`, "two": "{}{}", "trailing": "{}x", "comma": `{"a":1,}`, "comment": "{} // x", "byte order mark": "\xef\xbb\xbf{}",
		"invalid utf-8": "{\"a\":\"\xff\xfe\"}", "invalid utf-8 outside": "\xff{}", "nul": "{}\x00", "single quotes": "{'a':1}",
		"deep list":   `{"a":` + strings.Repeat("[", deep/2) + strings.Repeat("]", deep/2) + "}",
		"deep object": strings.Repeat(`{"a":`, deep/5) + "1" + strings.Repeat("}", deep/5),
		"deep known":  `{"job":` + strings.Repeat(`{"job":`, 20_000) + "1" + strings.Repeat("}", 20_001),
		"NaN":         `{"a":NaN}`, "hex": `{"a":0x1}`, "leading zero": `{"a":01}`, "infinite": `{"a":Infinity}`,
	}
}

func TestHostileBytes(t *testing.T) {
	for kind, build := range payloadKinds() {
		for name, in := range hostile() {
			if err := Decode([]byte(in), build()); err == nil {
				t.Errorf("%s: %s passed", kind, name)
			} else if len(err.Error()) > 1024 {
				t.Errorf("%s: %s: the error has %d bytes", kind, name, len(err.Error()))
			}
		}
	}
}

func TestTooLarge(t *testing.T) {
	event := func(n int) []byte {
		b := Encode(Event{Kind: "x"})
		return append(b, bytes.Repeat([]byte(" "), n-len(b))...)
	}
	for _, c := range []struct {
		decode func([]byte, validator) error
		limit  int
	}{{Decode, MaxPayload}, {DecodeFromManager, MaxFromManager}} {
		if err := c.decode(event(c.limit), new(Event)); err != nil {
			t.Errorf("%d bytes: %v", c.limit, err)
		}
		if err := c.decode(event(c.limit+1), new(Event)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes: got %v", c.limit+1, err)
		}
	}
}

// wrongValues are values of every type, and of every size that a type does not take.
func wrongValues() []string {
	return []string{"null", "true", `"x"`, `""`, "{}", "[]", "[[]]", `[{}]`, "[null]", `{"a":{}}`, `{"":null}`, "0", "-1", "1.5", "1e400", "-1e400",
		"99999999999999999999999999999999", "-99999999999999999999", `"\u0000"`, `"\ud800"`, `"` + strings.Repeat("x", 5000) + `"`,
		`"2026-01-02T15:04:05Z"`, `"1s"`, `"-1s"`, `["x"]`, `[1]`}
}

// TestEveryFieldTakesOnlyItsType puts every wrong value into every field of every golden: no panic, no long error, and what is
// of another type than the field is refused with the field's name.
func TestEveryFieldTakesOnlyItsType(t *testing.T) {
	tried, refused := 0, 0
	done := map[string]bool{}
	for file, golden := range goldens(t, "*.json") {
		build := payloadKinds()[kindOf(file)]
		mutate(t, golden, wrongValues(), once(done, kindOf(file)), func(m mutation) {
			tried++
			v := build()
			err := DecodeFromManager(m.payload, v)
			typ, name := fieldType(reflect.TypeOf(build()), m.path)
			want := typeFits(typ, m.value)
			switch {
			case err == nil && !want:
				t.Errorf("%s: %s = %s passed", file, m.path, clip(m.value))
			case err == nil:
				checkStable(t, build, v)
			case len(err.Error()) > 2048:
				t.Errorf("%s: %s = %s: the error has %d bytes", file, m.path, clip(m.value), len(err.Error()))
			case !want && !strings.Contains(err.Error(), name):
				t.Errorf("%s: %s = %s: the error names no field: %v", file, m.path, clip(m.value), err)
			}
			if err != nil {
				refused++
			}
		})
	}
	if tried < 5000 || refused < tried/2 {
		t.Errorf("only %d mutations, %d of them refused", tried, refused)
	}
}

// checkStable holds that what was decoded is written in a form that is read back as the same.
func checkStable(t testing.TB, build func() validator, v any) {
	t.Helper()
	once := Encode(v)
	again := build()
	if err := json.Unmarshal(once, again); err != nil {
		t.Fatalf("%T does not read what it wrote: %v\n%s", v, err, once)
	}
	if err := again.Validate(); err != nil {
		t.Fatalf("%T refuses what it wrote: %v\n%s", v, err, once)
	}
	if twice := Encode(again); !bytes.Equal(once, twice) {
		t.Fatalf("%T is not stable:\n%s\n%s", v, once, twice)
	}
}

// mutation is a payload with one value replaced.
type mutation struct {
	path    string // levels of properties with dots; lists add none
	value   string
	payload []byte
}

// once reports true for the first time that a path of a kind of payload is asked for.
func once(done map[string]bool, kind string) func(path string) bool {
	return func(path string) bool {
		first := !done[kind+" "+path]
		done[kind+" "+path] = true
		return first
	}
}

func always(string) bool { return true }

// mutate calls try for every property in golden that is wanted, with every value in its place.
func mutate(t *testing.T, golden []byte, values []string, wanted func(path string) bool, try func(mutation)) {
	t.Helper()
	var root map[string]any
	dec := json.NewDecoder(bytes.NewReader(golden))
	dec.UseNumber()
	if err := dec.Decode(&root); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(path, e)
			}
		case map[string]any:
			for _, name := range slices.Sorted(maps.Keys(v)) {
				kept := v[name]
				here := strings.TrimPrefix(path+"."+name, ".")
				if wanted(here) {
					for _, value := range values {
						v[name] = json.RawMessage(value)
						try(mutation{here, value, Encode(root)})
					}
					v[name] = kept
				}
				walk(here, kept)
			}
		}
	}
	walk("", root)
}

// fieldType finds the type and name of the property at path. A key of a map yields the type of its values and the map's name.
func fieldType(t reflect.Type, path string) (reflect.Type, string) {
	last := ""
	for name := range strings.SplitSeq(path, ".") {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() == reflect.Map {
			t = t.Elem()
			continue
		}
		all := fields(t)
		i := slices.IndexFunc(all, func(f field) bool { return f.name == name })
		t, last = all[i].typ, name
	}
	return t, last
}

// typeFits reports whether a JSON value may be of the type of a field. Null stands for an absent field.
func typeFits(t reflect.Type, value string) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	text, list, object := value[0] == '"', value[0] == '[', value[0] == '{'
	number := !text && !list && !object && value != "true" && value != "null"
	switch {
	case value == "null":
		return true
	case t == reflect.TypeFor[ClientID]():
		return text || number
	case t == reflect.TypeFor[Time](), t == reflect.TypeFor[Duration](), t.Kind() == reflect.String:
		return text
	case t.Kind() == reflect.Bool:
		return value == "true"
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Array:
		return list
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		return object
	default:
		return number
	}
}

func TestErrorsNameTheField(t *testing.T) {
	for in, want := range map[string]string{
		`{"job":{"restart":{"backoff":5}}}`:          `job.restart.backoff: want a string with a unit, such as "30s" or "1m30s", not 5`,
		`{"job":{"restart":{"backoff":"5 apples"}}}`: `job.restart.backoff: want a string with a unit, such as "30s" or "1m30s", not "5 apples"`,
		`{"job":{"replicas":"two"}}`:                 `job.replicas: want a whole number, not string`,
		`{"job":{"replicas":1.5}}`:                   `job.replicas: want a whole number, not number 1.5`,
		`{"job":{"ports":{"80":80}}}`:                `job.ports: want a list, not object`,
		`{"job":{"ports":[{"container":"80"}]}}`:     `job.ports.container: want a whole number, not string`,
		`{"job":"web"}`:                              `job: want an object, not string`,
		`{"job":{"id":[]}}`:                          `job.id: want a number or a string of at most 128 bytes, not []`,
		`{"worker":"a"}`:                             `worker: want a list, not string`,
		`{"worker":[7]}`:                             `worker: want a string, not number`,
		`{"job":{"resources":{"cpus":"1"}}}`:         `job.resources.cpus: want a number, not string`,
		`{"job":{"volumes":[{"read_only":1}]}}`:      `job.volumes.read_only: want true or false, not number`,
		`{"job":`:                                    `parse: unexpected end of JSON input`,
	} {
		if _, err := DecodeCommand([]byte(in), Deploy); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
	if err := Decode([]byte(`{"instance":"web.0.0","since":7}`), new(LogsRequest)); err == nil ||
		err.Error() != `since: want a time in RFC 3339, such as "2026-01-02T15:04:05.000Z", not 7` {
		t.Errorf("got %v", err)
	}
	if err := Decode([]byte(`{"rev":-1}`), new(Assignment)); err == nil || err.Error() != `rev: want a whole number of 0 or more, not number -1` {
		t.Errorf("got %v", err)
	}
}

// TestNamesTwice pins what the documentation says: the last of two equal names holds, and the case of a name is not looked at.
func TestNamesTwice(t *testing.T) {
	c, err := DecodeCommand([]byte(`{"command":"deploy","command":"delete","JOB":{"name":"a"},"job":{"name":"b"}}`), Delete)
	if err != nil || c.Job.Name != "b" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestNullIsAbsent(t *testing.T) {
	for file, golden := range goldens(t, "*.json") {
		build := payloadKinds()[kindOf(file)]
		mutate(t, golden, []string{"null"}, always, func(m mutation) {
			if !strings.Contains(m.path, ".") {
				var root map[string]json.RawMessage
				if err := json.Unmarshal(m.payload, &root); err != nil {
					t.Fatal(err)
				}
				delete(root, m.path)
				with, without := DecodeFromManager(m.payload, build()), DecodeFromManager(Encode(root), build())
				if (with == nil) != (without == nil) {
					t.Errorf("%s: %s null: %v, absent: %v", file, m.path, with, without)
				}
			}
		})
	}
}
