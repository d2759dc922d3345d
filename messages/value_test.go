package messages

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestTime(t *testing.T) {
	for in, want := range map[string]string{
		`"2026-01-02T15:04:05.123Z"`:        `"2026-01-02T15:04:05.123Z"`,
		`"2026-01-02T15:04:05Z"`:            `"2026-01-02T15:04:05.000Z"`,
		`"2026-01-02T15:04:05.999999999Z"`:  `"2026-01-02T15:04:05.999Z"`,
		`"2026-01-02T17:04:05.5+02:00"`:     `"2026-01-02T15:04:05.500Z"`,
		`"1970-01-01T00:00:00Z"`:            `"1970-01-01T00:00:00.000Z"`,
		`"9999-12-31T23:59:59.999Z"`:        `"9999-12-31T23:59:59.999Z"`,
		`"0001-01-01T00:00:00Z"`:            `""`,
		`""`:                                `""`,
		`null`:                              `""`,
		`"2026-01-02T15:04:05.000000001Z"`:  `"2026-01-02T15:04:05.000Z"`,
		`"0000-01-01T00:00:00.001Z"`:        `"0000-01-01T00:00:00.001Z"`,
		`"2026\u002d01-02T15:04:05.123Z"`:   `"2026-01-02T15:04:05.123Z"`,
		`"2026-01-02T15:04:05.1239999999Z"`: `"2026-01-02T15:04:05.123Z"`,
	} {
		var got Time
		if err := json.Unmarshal([]byte(in), &got); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if s := string(Encode(got)); s != want {
			t.Errorf("%s: got %s, want %s", in, s, want)
		}
	}
	for _, in := range []string{`1`, `true`, `{}`, `[]`, `"x"`, `"2026-01-02"`, `"2026-01-02 15:04:05Z"`, `"2026-01-02T15:04:05"`,
		`"2026-13-02T15:04:05Z"`, `"2026-01-02T15:04:05,5Z"`, `"2026-01-02T5:04:05Z"`, `"9999-12-31T23:59:59-01:00"`,
		`"0000-01-01T00:00:00+01:00"`, `"10000-01-01T00:00:00Z"`, `" 2026-01-02T15:04:05Z"`} {
		var got Time
		if err := json.Unmarshal([]byte(in), &got); err == nil {
			t.Errorf("%s passed as %v", in, got)
		}
	}
}

func TestAt(t *testing.T) {
	if !At(time.Time{}).IsZero() || !At(time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() ||
		!At(time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		t.Error("a time that cannot be written is not zero")
	}
	now := time.Now()
	var got Time
	if err := json.Unmarshal(Encode(At(now)), &got); err != nil || got != At(now) {
		t.Errorf("got %v, %v, want %v", got, err, At(now))
	}
	if s := string(Encode(Time{time.Date(20_000, 1, 1, 0, 0, 0, 0, time.UTC)})); s != `""` {
		t.Errorf("got %s", s)
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]string{`"30s"`: `"30s"`, `"90s"`: `"1m30s"`, `"5m"`: `"5m0s"`, `"1.5h"`: `"1h30m0s"`, `"0"`: `"0s"`, `""`: `"0s"`,
		`null`: `"0s"`, `"-1s"`: `"-1s"`, `"10ms"`: `"10ms"`, `"2562047h47m16.854775807s"`: `"2562047h47m16.854775807s"`} {
		var got Duration
		if err := json.Unmarshal([]byte(in), &got); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if s := string(Encode(got)); s != want {
			t.Errorf("%s: got %s, want %s", in, s, want)
		}
	}
	for _, in := range []string{`30`, `1.5`, `true`, `{}`, `["1s"]`, `"30"`, `"s"`, `"1 s"`, `"1d"`, `"9999999999h"`, `"1s "`} {
		var got Duration
		if err := json.Unmarshal([]byte(in), &got); err == nil {
			t.Errorf("%s passed as %v", in, got)
		}
	}
	if Duration(time.Second).Std() != time.Second {
		t.Error("Std differs")
	}
}

func TestClientID(t *testing.T) {
	for in, want := range map[string]string{`7`: `7`, `-7`: `-7`, `1e5`: `1e5`, `1.50`: `1.50`, `12345678901234567890123`: `12345678901234567890123`,
		`"a"`: `"a"`, `""`: `""`, `"a<b>&c"`: `"a<b>&c"`, `"\u003c\u0041\/"`: `"<A/"`, `"é"`: `"é"`, `"a\"b"`: `"a\"b"`,
		`"` + strings.Repeat("<", 128) + `"`: `"` + strings.Repeat("<", 128) + `"`, strings.Repeat("1", 128): strings.Repeat("1", 128)} {
		var got, again ClientID
		if err := json.Unmarshal([]byte(in), &got); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if s := string(Encode(got)); s != want || got.IsZero() || got.String() != want {
			t.Errorf("%s: got %s, want %s", in, s, want)
		}
		// json.Marshal escapes what Encode does not; a store may use either.
		b, err := json.Marshal(got)
		if err != nil || json.Unmarshal(b, &again) != nil || again != got {
			t.Errorf("%s: got %s back as %s, %v", in, got, again, err)
		}
	}
	for _, in := range []string{`true`, `{}`, `[]`, `[1]`, strings.Repeat("1", 129), `"` + strings.Repeat("x", 129) + `"`} {
		var got ClientID
		if err := json.Unmarshal([]byte(in), &got); err == nil {
			t.Errorf("%s passed as %s", clip(in), got)
		}
	}
	var none ClientID
	if err := json.Unmarshal([]byte("null"), &none); err != nil || !none.IsZero() || string(Encode(none)) != "null" {
		t.Errorf("null: got %q, %v", none, err)
	}
	if NumberID(-3).String() != "-3" {
		t.Error(NumberID(-3))
	}
}

func TestTelemetryOfWhatCannotBeMeasured(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	in := Telemetry{CPU: CPUUse{Percent: nan, PerCore: []float64{inf, 3}}, Load: [3]float64{nan, 1, inf}, Temperature: inf, FreeCores: nan,
		GPUs: []GPUUse{{Percent: nan, PowerW: inf}}, Sensors: []SensorReading{{Name: "a", Value: nan}, {Name: "b", Value: 1}},
		Instances: []InstanceUse{{Instance: "web.0.0", CPUPercent: nan, MemoryMB: 2}}, Memory: MemoryUse{UsedPercent: nan},
		Swap: MemoryUse{UsedPercent: inf}, Network: NetworkUse{RxBPS: inf, TxBPS: nan}, Free: Free{CPUs: nan}}
	var out Telemetry
	if err := Decode(Encode(&in), &out); err != nil {
		t.Fatal(err)
	}
	if out.CPU.PerCore[1] != 3 || out.Load != [3]float64{0, 1, 0} || len(out.Sensors) != 1 || out.Sensors[0].Name != "b" ||
		out.Instances[0].MemoryMB != 2 {
		t.Errorf("got %+v", out)
	}
	if !math.IsInf(in.CPU.PerCore[0], 1) || len(in.Sensors) != 2 || in.Sensors[0].Name != "a" {
		t.Errorf("encoding changed the telemetry: %+v", in)
	}
}

func TestEmptyListsAreWritten(t *testing.T) {
	for want, v := range map[string]any{`"instances":[]`: JobStatus{}, `"assignments":[]`: &Sync{}, `"last":false,"assignments":[]`: Inventory{}, `"technologies":[]`: NodeInfo{},
		`"brokers":[]`: Welcome{}, `"nodes":{},"jobs":{},"instances":{}`: ClusterStatus{}} {
		if got := string(Encode(v)); !strings.Contains(got, want) {
			t.Errorf("got %s, want %s in it", got, want)
		}
	}
}

func TestEncodePanicsForWhatIsNoPayload(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Encode(make(chan int))
}

// An assignment with its spec rendered before is the same.
func TestEncodeRun(t *testing.T) {
	for _, a := range []Assignment{sampleAssignment(), {Instance: "a.0.0", Run: true, Spec: &Spec{}}} {
		if got, want := string(EncodeRun(a, Encode(a.Spec))), string(Encode(a)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
