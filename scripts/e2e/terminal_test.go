package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal; what is written to it was typed, what it holds was shown.
type terminal struct {
	t      *testing.T
	master *os.File
	shown  chan string
	seen   strings.Builder
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, master: master, shown: make(chan string)}
	t.Cleanup(term.hangUp)
	return term
}

// start starts cmd as the leader of a session with this terminal.
func (m *terminal) start(cmd *exec.Cmd) {
	m.t.Helper()
	raw, err := m.master.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	var number int
	var unlocked, numbered error
	if err := raw.Control(func(fd uintptr) {
		unlocked = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		number, numbered = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	}); err != nil || unlocked != nil || numbered != nil {
		m.t.Fatal(err, unlocked, numbered)
	}
	name := fmt.Sprintf("/dev/pts/%d", number)
	slave, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer slave.Close()
	if who := cmd.SysProcAttr.Credential; who != nil {
		if err := os.Chown(name, int(who.Uid), -1); err != nil {
			m.t.Fatal(err)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true
	// Where the tests themselves run under nohup, what they start would ignore hang-ups too; to be notified undoes that.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go m.read() // ends when the terminal hangs up
}

func (m *terminal) read() {
	defer close(m.shown)
	for buf := make([]byte, 4096); ; {
		n, err := m.master.Read(buf)
		if err != nil {
			return
		}
		m.shown <- string(buf[:n])
	}
}

func (m *terminal) write(text string) {
	m.t.Helper()
	if _, err := m.master.WriteString(text); err != nil {
		m.t.Fatal(err)
	}
}

func (m *terminal) text() string { return m.seen.String() }

// expect waits until the terminal has shown text.
func (m *terminal) expect(text string) {
	m.t.Helper()
	late := time.After(patience)
	for !strings.Contains(m.seen.String(), text) {
		select {
		case s, ok := <-m.shown:
			if m.seen.WriteString(s); !ok {
				m.t.Fatalf("the terminal ended without %q; it shows %q", text, m.seen.String())
			}
		case <-late:
			m.t.Fatalf("the terminal does not show %q but %q", text, m.seen.String())
		}
	}
}

// hangUp takes the terminal away, as the end of an SSH session does.
func (m *terminal) hangUp() {
	m.master.Close()
	for s := range m.shown { // let read end
		m.seen.WriteString(s)
	}
}
