package messages

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sameGolden returns the golden file with the same JSON value as text.
func sameGolden(t *testing.T, text string) string {
	t.Helper()
	var want any
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		t.Errorf("%v: %s", err, text)
		return ""
	}
	for _, pattern := range []string{"client/*.json", "*.json"} {
		for file, b := range goldens(t, pattern) {
			var got any
			if err := json.Unmarshal(b, &got); err == nil && reflect.DeepEqual(got, want) {
				return file
			}
		}
	}
	t.Errorf("no golden file holds %s", text)
	return ""
}

// TestReadmeExamples holds that every payload on the page is a golden file, decodes, fits its schema, and stands on its topic.
func TestReadmeExamples(t *testing.T) {
	page, schemas := readme(t), compile(t)
	check := func(payload string) validator {
		file := sameGolden(t, payload)
		if file == "" {
			return nil
		}
		v := payloadKinds()[kindOf(file)]()
		if err := Decode([]byte(payload), v); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if err := fits(schemas[kindOf(file)], []byte(payload)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		return v
	}
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(page, -1)
	for _, m := range blocks {
		check(m[1])
	}
	published := regexp.MustCompile(`-t '?([^\s']+)'? -m '([^']*)'`).FindAllStringSubmatch(page, -1)
	for _, m := range published {
		topic, err := ParseTopic(m[1])
		v := check(m[2])
		c, isCommand := v.(*Command)
		n, isNode := v.(*NodeCommand)
		g, isGuest := v.(*GuestCommand)
		_, isTrace := v.(*TraceRequest)
		if isGuest != (topic.Kind == GuestCommandTopic) || isTrace != (topic.Kind == TraceRequestTopic) || (isGuest && g.Command != topic.Verb) {
			t.Errorf("%s does not go to %s", m[2], m[1])
		}
		_, isLogs := v.(*LogsRequest)
		if err != nil || isNode != (topic.Kind == NodeCommandTopic) || (isNode && n.Command != topic.Verb) {
			t.Errorf("%s does not go to %s: %v", m[2], m[1], err)
		}
		if isCommand != (topic.Kind == CommandTopic) || isLogs != (topic.Kind == LogsRequestTopic) || (isCommand && c.Command != topic.Verb) {
			t.Errorf("%s does not go to %s: %v", m[2], m[1], err)
		}
	}
	if len(blocks) < 3 || len(published) < 9 || strings.Count(page, " -m ") != len(published) {
		t.Errorf("found %d blocks and %d commands", len(blocks), len(published))
	}
}

// TestReadmeIsWhole holds that the page names every topic with its QoS and retained, every word, and every field of a job.
func TestReadmeIsWhole(t *testing.T) {
	page := readme(t)
	for kind, r := range rows() {
		topic := strings.NewReplacer("{", "<", "}", ">").Replace(r.parameters)
		topic = strings.ReplaceAll(topic, "<verb>", map[Kind]string{NodeCommandTopic: "replace", GuestCommandTopic: "add", CommandTopic: "deploy", NodeControlTopic: "deploy"}[kind])
		retained := map[bool]string{true: "yes", false: "no"}[r.retain]
		direction := strings.ToUpper(r.from[:1]) + " → " + strings.ToUpper(r.to[:1])
		line := regexp.MustCompile("(?m)^\\| `" + regexp.QuoteMeta(topic) + "`.*\\| " + direction + " \\|.*\\| " +
			string(rune('0'+r.qos)) + " \\| " + retained + " \\|$")
		if !line.MatchString(page) {
			t.Errorf("kind %d: no line for %s, %s, QoS %d, retained %s", kind, topic, direction, r.qos, retained)
		}
	}
	for _, list := range []string{"Code", "RefusalCode"} {
		for _, w := range words()[list] {
			if !strings.Contains(page, "\n| `"+w+"` |") {
				t.Errorf("no line for the code %s", w)
			}
		}
	}
	for _, list := range []string{"Result.command", "Phase", "State", "JobState", "NodeState", "Event.kind", "NetworkMode", "Policy", "TraceKind", "PathState", "OverlayState", "Mode", "RestartPolicy", "OnReturn"} {
		for _, w := range words()[list] {
			if !strings.Contains(page, w) {
				t.Errorf("%s %s is not on the page", list, w)
			}
		}
	}
	for _, v := range []any{Job{}, Command{}, NodeCommand{}, GuestCommand{}, Telemetry{}, Interest{}, Endpoints{}, NetworkConfig{}, ServiceUpdate{}, ServiceEntry{}, NetStatus{}, TraceRequest{}, TraceAnswer{}} {
		for _, f := range fields(reflect.TypeOf(v)) {
			if !strings.Contains(page, "`"+f.name) && !strings.Contains(page, "`job."+f.name) {
				t.Errorf("%T.%s is not on the page", v, f.name)
			}
		}
	}
}
