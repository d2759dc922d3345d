package register

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"skerry.internal/messages"
)

func TestParsePacket(t *testing.T) {
	for in, want := range map[string]packet{
		"0":                     {kind: connect, namespace: "/"},
		`0{"token":"x"}`:        {kind: connect, namespace: "/", data: `{"token":"x"}`},
		"0/init":                {kind: connect, namespace: "/init"},
		"0/init,":               {kind: connect, namespace: "/init"},
		"0/init?token=1,":       {kind: connect, namespace: "/init"},
		`0/init,{"a":"b,c"}`:    {kind: connect, namespace: "/init", data: `{"a":"b,c"}`},
		"1/init,":               {kind: disconnect, namespace: "/init"},
		`2["cs1",{}]`:           {kind: event, namespace: "/", data: `["cs1",{}]`},
		`2/init,12["cs1",{}]`:   {kind: event, namespace: "/init", ackID: "12", data: `["cs1",{}]`},
		`3/init,0[]`:            {kind: ack, namespace: "/init", ackID: "0", data: "[]"},
		`23-/init,["x"]`:        {kind: event, namespace: "/", ackID: "3", data: `-/init,["x"]`},
		`4/other,{"message":1}`: {kind: connectError, namespace: "/other", data: `{"message":1}`},
	} {
		if got, err := parsePacket(in); err != nil || got != want {
			t.Errorf("%s: got %+v %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5-", `51-/init,["x"]`, "61-", "x", "2/init,1234567890123456789[]"} {
		if got, err := parsePacket(in); !errors.Is(err, errPacket) {
			t.Errorf("%q: got %+v %v, want an error", in, got, err)
		}
	}
}

func TestASCIIKeepsJSON(t *testing.T) {
	for _, s := range []string{"plain", "Prozeßor™ 𝛼", "\u2028\uffff", `"quoted\\"`} {
		b, _ := json.Marshal(s)
		var back string
		if err := json.Unmarshal([]byte(ascii(string(b))), &back); err != nil || back != s {
			t.Errorf("%q came back as %q: %v", s, back, err)
		}
	}
}

// FuzzParsePacket wants what was parsed to render to a packet that parses alike, and an event never to panic.
func FuzzParsePacket(f *testing.F) {
	for _, s := range []string{"0/init,{}", `2/init,7["cs1",{"name":"a"}]`, `59999999-/init,["x"]`, "4/a?b,\"é\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePacket(s)
		if err != nil {
			return
		}
		_, _, _ = p.event()
		for _, allow := range []bool{true, false} {
			in, err := decodeIntroduction(p, allow)
			if err == nil && (in.legacy && (!allow || messages.CheckName("name", string(in.info.Name)) != nil) || !in.legacy && in.info.Validate() != nil) {
				t.Errorf("%q: taken: %+v", s, in)
			}
			if err != nil {
				if _, ok := errors.AsType[*messages.Refusal](err); !ok {
					t.Errorf("%q: %v is no refusal", s, err)
				}
			}
		}
		again, err := parsePacket(p.String())
		if err != nil || again.kind != p.kind || again.namespace != p.namespace || again.ackID != p.ackID || again.data != ascii(p.data) {
			t.Errorf("%q: got %+v, want %+v (%v)", s, again, p, err)
		}
	})
}

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{"Board_7.lan": "board-7", "-x-": "x", "": "", "ß": "", "ok": "ok"} {
		if got := label(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	var w warnings
	now := time.Now()
	if !w.due("10.0.0.1:1", now) || w.due("10.0.0.1:2", now.Add(time.Second)) || !w.due("10.0.0.2:1", now) || !w.due("10.0.0.1:3", now.Add(warnEvery)) {
		t.Error("want one warning a minute for each host")
	}
	for i := range 5 * maxWarned {
		w.due(time.Duration(i).String(), now)
	}
	if len(w) > maxWarned {
		t.Errorf("%d senders remembered", len(w))
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	for _, cfg := range []Config{{}, {Cluster: "lab"}, {Cluster: "No", Admit: nil}, {Cluster: "lab", Timeout: -1}} {
		if _, err := New(cfg, nil); err == nil {
			t.Errorf("%+v: want an error", cfg)
		}
	}
}
