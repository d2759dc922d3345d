// Helper is what runs in the containers of the driver's tests. Its arguments are actions, done in turn.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// forever is a sleep, and no receive that nobody sends to, because Go ends a program in which nothing can happen any more.
const forever = 1 << 62

func main() {
	for _, arg := range os.Args[1:] {
		verb, value, _ := strings.Cut(arg, "=")
		if err := do(verb, value); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(99)
		}
	}
}

func do(verb, value string) error {
	switch verb {
	case "print":
		fmt.Println(value)
	case "complain":
		fmt.Fprintln(os.Stderr, value)
	case "flood":
		for range number(value) / 1000 {
			fmt.Println(strings.Repeat("äöü€", 1000))
		}
	case "exit":
		os.Exit(number(value))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "listen":
		return listen(value)
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "args":
		fmt.Println(os.Args)
	case "write":
		path, text, _ := strings.Cut(value, ":")
		return os.WriteFile(path, []byte(text), 0o644)
	case "read":
		b, err := os.ReadFile(value)
		fmt.Printf("%s\n", b)
		return err
	case "zeros":
		return zeros(value)
	case "eat":
		eat(number(value))
	case "feed": // a child that eats, while this program lives on
		cmd := exec.Command("/helper", "eat="+value)
		err := cmd.Run()
		fmt.Println("child:", err)
	case "burn":
		for {
		}
	case "pid":
		fmt.Println("pid", os.Getpid())
	case "unhandled": // the default action of every signal
		time.Sleep(forever)
	case "late": // nothing hears SIGCONT for so many milliseconds: Go handles all but a few signals from the beginning
		time.Sleep(time.Duration(number(value)) * time.Millisecond)
		wait(syscall.SIGCONT)
	case "sleep":
		wait(syscall.SIGTERM)
	case "until":
		wait(syscall.Signal(number(value)))
	}
	return nil
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// wait runs until the signal comes; where it is ignored, for ever.
func wait(s syscall.Signal) {
	if signal.Ignored(s) {
		fmt.Println("ready")
		time.Sleep(forever)
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, s)
	fmt.Println("ready")
	<-c
	fmt.Println("signal", int(s))
}

func listen(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "hello")
			c.Close()
		}
	}()
	return nil
}

// zeros reads some bytes of a device.
func zeros(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	n, err := io.CopyN(io.Discard, f, 1000)
	fmt.Println("read", n)
	return err
}

// eat takes memory and touches it.
func eat(mib int) {
	var held [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	fmt.Println("ate", len(held))
}
