package messages

import (
	"reflect"
	"strings"
)

// field is one property of a payload as package json sees it.
type field struct {
	name     string
	typ      reflect.Type
	optional bool // left out where it is empty
}

// fields lists the properties of a struct, those of embedded structs included.
func fields(t reflect.Type) []field {
	var out []field
	for f := range t.Fields() {
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case tag == "-" || (!f.IsExported() && !f.Anonymous):
		case f.Anonymous && tag == "":
			out = append(out, fields(f.Type)...)
		default:
			out = append(out, field{tag, f.Type, strings.Contains(options, "omit")})
		}
	}
	return out
}

// isObject reports whether t is written as an object with known properties.
func isObject(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[Time]() && t != reflect.TypeFor[ClientID]()
}

// fieldPaths lists the path of every property of a payload; lists and maps add no level.
func fieldPaths(v any) []string {
	var out []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if !isObject(t) {
			return
		}
		for _, f := range fields(t) {
			out = append(out, prefix+f.name)
			walk(prefix+f.name+".", f.typ)
		}
	}
	walk("", reflect.TypeOf(v))
	return out
}

// collectPaths notes the path of every property in a decoded JSON value; lists add no level.
func collectPaths(prefix string, v any, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			into[prefix+name] = true
			collectPaths(prefix+name+".", value, into)
		}
	case []any:
		for _, value := range v {
			collectPaths(prefix, value, into)
		}
	}
}
