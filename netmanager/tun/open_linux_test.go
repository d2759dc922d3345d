package tun_test

import (
	"errors"
	"net"
	"os"
	"testing"

	"skerry.internal/netmanager/nettest"
	"skerry.internal/netmanager/tun"
)

// A device outlives the one who opened it, with its index; a second one cannot have it meanwhile; Remove takes it away, once and again.
func TestOpenTakesUpWhatIsThere(t *testing.T) {
	if !nettest.InNamespace(t) {
		return
	}
	open := func(mtu int) tun.Device {
		dev, err := tun.Open("skt", mtu)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
				nettest.Unable(t, err.Error())
			}
			t.Fatal(err)
		}
		return dev
	}
	index := func(mtu int) int {
		link, err := net.InterfaceByName("skt")
		if err != nil {
			t.Fatal(err)
		}
		if link.MTU != mtu {
			t.Errorf("MTU is %d, want %d", link.MTU, mtu)
		}
		return link.Index
	}
	dev := open(1420)
	if dev.BatchSize() < 2 {
		t.Error("no offload: packets come one by one")
	}
	first := index(1420)
	if _, err := tun.Open("skt", 1420); !errors.Is(err, tun.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if err := tun.Remove("skt"); !errors.Is(err, tun.ErrInUse) {
		t.Errorf("removed while in use: %v", err)
	}
	dev.Close()
	if again := index(1420); again != first {
		t.Errorf("index %d became %d", first, again)
	}
	dev = open(1280)
	if again := index(1280); again != first {
		t.Errorf("taken up as %d, want %d", again, first)
	}
	dev.Close()
	for range 2 {
		if err := tun.Remove("skt"); err != nil {
			t.Error(err)
		}
	}
	if _, err := net.InterfaceByName("skt"); err == nil {
		t.Error("still there after Remove")
	}
	if _, err := tun.Open("a-name-that-is-too-long", 1280); err == nil {
		t.Error("opened a device with a name that the kernel does not take")
	}
}
