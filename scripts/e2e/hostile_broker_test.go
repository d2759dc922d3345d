package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// takenIn bounds what an operator's command reads of a frame that is none, in bytes: what the kernel keeps of a connection on both sides, and a little. What
// it has not read it does not hold.
const takenIn = 32 << 20

// falseAnswer is what comes from a broker that is none: after so many subscriptions that it grants, or in place of admitting anybody where grants is -1.
type falseAnswer struct {
	name    string
	grants  int
	says    func(id []byte) []byte // to the SUBSCRIBE of this packet id
	forever bool
}

// falseBroker returns the address of one, and how many bytes its clients took.
func falseBroker(t *testing.T, a falseAnswer) (addr string, taken *atomic.Int64) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken = new(atomic.Int64)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); a.serve(conn, taken) })
		}
	})
	return l.Addr().String(), taken
}

func (a falseAnswer) serve(conn net.Conn, taken *atomic.Int64) {
	in := bufio.NewReader(conn)
	for granted := 0; ; {
		kind, err := in.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(in)
		body := make([]byte, n)
		if _, short := io.ReadFull(in, body); err != nil || short != nil {
			return
		}
		switch {
		case kind>>4 == 1 && a.grants >= 0:
			_, _ = conn.Write(mqttPacket(0x20, []byte{0, 0}))
		case kind>>4 == 8 && granted < a.grants:
			granted++
			_, _ = conn.Write(mqttPacket(0x90, append(body[:2:2], 1)))
		case kind>>4 == 1 || kind>>4 == 8:
			for again := true; again; again = a.forever && err == nil {
				var n int
				n, err = conn.Write(a.says(body[:2]))
				taken.Add(int64(n))
			}
		}
	}
}

// Whatever stands in a broker's place, each of the operator's commands ends at once, says why, and takes little of it.
func TestHostileBrokerToSkerry(t *testing.T) {
	t.Parallel()
	l := &lab{t: t, dir: t.TempDir()}
	l.buildSkerry()
	run := func(a falseAnswer, line string, most int64, want string) {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		addr, taken := falseBroker(t, a)
		cmd := exec.CommandContext(ctx, filepath.Join(l.dir, "skerry"), append(strings.Fields(line), "--broker", "tcp://"+addr)...)
		out, err := cmd.CombinedOutput()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || (exit.ExitCode() != 1 && exit.ExitCode() != 3) || !bytes.Contains(out, []byte(want)) {
			t.Errorf("%s, %s: %v: got %.2000s, want %q", a.name, line, err, out, want)
		}
		if n := taken.Load(); n > most {
			t.Errorf("%s, %s: took %d bytes, at most %d", a.name, line, n, most)
		}
	}
	zeros := make([]byte, 1<<20)
	huge := falseAnswer{"a frame of 256 MiB", 0, func([]byte) []byte { return append([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}, zeros...) }, true}
	many := falseAnswer{"an answer to many filters", 0, func(id []byte) []byte { return mqttPacket(0x90, append(id[:2:2], make([]byte, 100)...)) }, false}
	const why = "the broker does not speak MQTT as it should"
	each([]string{"job list", "job status x", "job deploy x --image i", "job move x --to a", "job replicate x 2", "job delete x", "job logs x.0.0", "node list", "node status x", "node status x --telemetry", "node replace x", "node remove x",
		"network status", "network services", "network resolve x", "network trace a b", "network ping a b", "network guest add x --public-key " + somebodysKey, "network guest list", "network guest remove x", "events"}, 4, func(line string) {
		run(many, line, takenIn, why)
	})
	for _, line := range []string{"job logs x.0.0", "events"} { // those that come back after a loss
		run(huge, line, takenIn, why)
	}
	frames := []falseAnswer{huge, {"no CONNACK", -1, func([]byte) []byte { return append([]byte{0x20, 0xff, 0xff, 0xff, 0x7f}, zeros...) }, true}}
	for _, p := range [][]byte{mqttPacket(0x40, nil), mqttPacket(0x34, []byte("\x00\x01a\x00\x01")), mqttPacket(0x62, []byte{0, 1}), mqttPacket(0x10, nil), {0}, {0xf0, 0}, {0x90, 0xff, 0xff, 0xff, 0xff, 1}} {
		frames = append(frames, falseAnswer{fmt.Sprintf("the frame % x", p), 1, func([]byte) []byte { return p }, false})
	}
	each(frames, 4, func(a falseAnswer) { run(a, "job list", takenIn, why) })

	// Of what may be sent there is no end either: statuses of one job after the other, once both subscriptions are granted.
	var n atomic.Int64
	endless := func(id []byte) []byte {
		return append(mqttPacket(0x90, append(id[:2:2], 1)), publishPacket(fmt.Sprintf("jobs/x%d/status", n.Add(1)), 0, zeros)...)
	}
	const statuses = 256 << 20 // as many again may be on their way while these are looked at
	run(falseAnswer{"statuses without end", 1, endless, true}, "job list --connect-timeout 30s", 2*statuses+takenIn, "more than 256 MiB")
}
