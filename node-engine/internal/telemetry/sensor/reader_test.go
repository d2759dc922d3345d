package sensor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// made returns a sensor that reads by the function.
func made(name string, read func() (float64, error)) Sensor {
	return Sensor{
		SensorInfo: messages.SensorInfo{Kind: Hwmon, Path: "/" + name, Name: name}, Unit: "C",
		read: func(sysfs.Tree) (float64, error) { return read() },
	}
}

// reader returns a Reader of made sensors.
func reader(sensors ...Sensor) *Reader {
	r := NewReader(sysfs.Tree{}, slog.New(slog.DiscardHandler))
	r.scan = func(sysfs.Tree) []Sensor { return sensors }
	return r
}

// text returns readings as "a=1 b=2".
func text(readings []Reading) string {
	var s strings.Builder
	for _, r := range readings {
		fmt.Fprintf(&s, " %s=%v", r.Name, r.Value)
	}
	return s.String()
}

func TestHangingSensorDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unhang := make(chan struct{})
		n := 0.0
		r := reader(
			made("a", func() (float64, error) { n++; return n, nil }),
			made("hangs", func() (float64, error) { <-unhang; return 7, nil }),
			made("b", func() (float64, error) { return n * 10, nil }),
		)
		began := time.Now()
		if got := text(r.Read(t.Context())); got != " a=1" {
			t.Errorf("first: got%s, want a=1", got)
		}
		if took := time.Since(began); took != fastWait {
			t.Errorf("the first took %v, want %v", took, fastWait)
		}
		for i := 2; i < 100; i++ {
			time.Sleep(10 * time.Second)
			began := time.Now()
			if got, want := text(r.Read(t.Context())), fmt.Sprintf(" a=%d b=%d", i, i*10); got != want {
				t.Fatalf("%d: got%s, want%s", i, got, want)
			}
			if took := time.Since(began); took != 0 {
				t.Fatalf("%d took %v, want no delay", i, took)
			}
		}
		close(unhang)
		synctest.Wait()
		if got := text(r.Read(t.Context())); got != " a=100 hangs=7 b=1000" {
			t.Errorf("after it answered: got%s", got)
		}
		r.Close(t.Context())
	})
}

func TestManyHangingSensorsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unhang := make(chan struct{})
		var reading atomic.Int32
		var sensors []Sensor
		for i := range 100 {
			sensors = append(sensors, made(fmt.Sprint(i), func() (float64, error) { reading.Add(1); <-unhang; return 0, nil }))
		}
		r := reader(sensors...)
		for range 200 {
			r.Read(t.Context())
			time.Sleep(10 * time.Second)
		}
		if got := reading.Load(); got < maxHanging || got > maxHanging+1 {
			t.Errorf("%d readings hang, want no more than %d", got, maxHanging+1)
		}
		close(unhang)
		r.Close(t.Context())
	})
}

func TestSlowSensorGivesItsLastValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0.0
		slow := made("w1", func() (float64, error) { n++; time.Sleep(750 * time.Millisecond); return n, nil })
		slow.slow = true
		r := reader(slow, made("fast", func() (float64, error) { return 1, nil }))
		for i := range 5 {
			want := fmt.Sprintf(" w1=%d fast=1", i)
			if i == 0 {
				want = " fast=1"
			}
			began := time.Now()
			if got := text(r.Read(t.Context())); got != want {
				t.Errorf("%d: got%s, want%s", i, got, want)
			}
			if took := time.Since(began); took != 0 {
				t.Errorf("%d took %v, want no delay", i, took)
			}
			time.Sleep(5 * time.Second)
		}
		r.Close(t.Context())
	})
}

func TestSlowOnceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := []time.Duration{0, 50 * time.Millisecond, 50 * time.Millisecond, 5 * time.Millisecond, 0, 0}
		n := 0
		r := reader(made("a", func() (float64, error) { n++; time.Sleep(took[n]); return float64(n), nil }))
		// The second and third reading are the slow lane's, so the second Read has the second's value.
		for i, want := range []string{" a=1", " a=2", " a=4", " a=5"} {
			if got := text(r.Read(t.Context())); got != want {
				t.Errorf("%d: got%s, want%s", i, got, want)
			}
			time.Sleep(5 * time.Second)
		}
		r.Close(t.Context())
	})
}

func TestBrokenSensorIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its time stands still while files are read
		var err error
		r := reader(made("a", func() (float64, error) { return 1, err }), made("b", func() (float64, error) { return 2, nil }))
		for _, step := range []struct {
			err  error
			want string
		}{{nil, " a=1 b=2"}, {errors.New("input/output error"), " b=2"}, {nil, " a=1 b=2"}} {
			err = step.err
			if got := text(r.Read(t.Context())); got != step.want {
				t.Errorf("got%s, want%s", got, step.want)
			}
		}
		r.Close(t.Context())
	})
}

func TestNewSensorsAreFoundOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := func() (float64, error) { return 1, nil }
		scans, sensors := 0, []Sensor{made("a", one)}
		r := reader()
		r.scan = func(sysfs.Tree) []Sensor { scans++; return sensors }
		r.Read(t.Context())
		sensors = append(sensors, made("b", one))
		for range 5 {
			time.Sleep(10 * time.Second)
			if got := text(r.Read(t.Context())); got != " a=1" {
				t.Errorf("within the minute: got%s, want a=1", got)
			}
		}
		time.Sleep(10 * time.Second)
		if got := text(r.Read(t.Context())); got != " a=1 b=1" || scans != 2 {
			t.Errorf("after a minute: got%s in %d scans, want a=1 b=1 in 2", got, scans)
		}
		r.Close(t.Context())
	})
}

// TestRealErrorsAndRealHangs takes the kernel's own EIO (/proc/self/mem at 0) and an open that blocks (a named pipe without a writer).
func TestRealErrorsAndRealHangs(t *testing.T) {
	const zone = "/sys/class/thermal/thermal_zone"
	tree := sysfstest.Make(t, map[string]string{zone + "0/temp": "20000", zone + "1/type": "broken", zone + "2/type": "hangs", zone + "3/temp": "30000"})
	sysfstest.Link(t, tree, zone+"1/temp", "/proc/self/mem")
	pipe := tree.Path(zone + "2/temp")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Float(zone + "1/temp"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the broken sensor gives %v, want EIO", err)
	}
	r := NewReader(tree, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for got := ""; got != " thermal_zone0=20 thermal_zone3=30"; got = text(r.Read(ctx)) {
		if ctx.Err() != nil {
			t.Fatalf("got%s, want the two that work", got)
		}
	}
	fd, err := syscall.Open(pipe, syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("nobody is waiting for the pipe: %v", err)
	}
	syscall.Close(fd)
	r.Close(ctx)
	if ctx.Err() != nil {
		t.Error("Close did not return when the reading did")
	}
}

func TestCloseGivesUpOnAHangingSensor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unhang := make(chan struct{})
		r := reader(made("a", func() (float64, error) { <-unhang; return 0, nil }))
		r.Read(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		r.Close(ctx)
		if took := time.Since(began); took != time.Second {
			t.Errorf("Close took %v, want the second that it had", took)
		}
		if got := r.Read(t.Context()); len(got) != 0 {
			t.Errorf("Read after Close: got %v", got)
		}
		close(unhang)
	})
}

func BenchmarkReadBoard(b *testing.B) {
	r := NewReader(board(b), slog.New(slog.DiscardHandler))
	for b.Loop() {
		r.Read(b.Context())
	}
	r.Close(context.Background())
}
