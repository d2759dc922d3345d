package service

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A file of flows has memory only where there are flows, also when it is made anew and when the next process takes it up.
func TestFlowMemoryHasHoles(t *testing.T) {
	fd, err := unix.MemfdCreate("flows", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	size := MemorySize(0)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	memory, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(memory) }) // the nodes are closed before
	const flows = 100
	for range 2 {
		one := newNode(t, 1, Options{Memory: memory})
		one.set("", remote(), client())
		for port := range uint16(flows) {
			one.out(t, tcp(ends{"10.160.1.20", "10.172.1.1", 4000 + port, 80}, tcpSYN, ""))
		}
		if got := one.Stats().Flows; got != flows {
			t.Errorf("%d flows, want %d", got, flows)
		}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	if got, most := stat.Blocks*512, int64(flows*2*unix.Getpagesize()); got > most {
		t.Errorf("%d flows take %d bytes of %d, want %d at most", flows, got, size, most)
	}
}

// Where there is no more memory for the file, new flows take the place of old ones, and nothing touches what is not there: that would kill the process.
func TestFlowMemoryIsFull(t *testing.T) {
	fd, err := unix.MemfdCreate("flows", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	there := memoryHeader + backedAtOnce*flowSize // the first slots of the first shard
	if err := unix.Ftruncate(fd, int64(there)); err != nil {
		t.Fatal(err)
	}
	memory, err := unix.Mmap(fd, 0, MemorySize(0), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	back := func(offset, length int) error {
		if offset+length > there {
			return unix.ENOSPC
		}
		return nil
	}
	for range 2 {
		one := newNode(t, 1, Options{Memory: memory, Back: back})
		one.set("", remote(), client())
		for port := range uint16(160 * shards) {
			one.out(t, tcp(ends{"10.160.1.20", "10.172.1.1", 4000 + port, 80}, tcpSYN, ""))
		}
		if got := one.Stats(); got.Flows != backedAtOnce || got.Evicted == 0 || got.Unavailable == 0 {
			t.Errorf("got %d flows, %d evicted, %d refused, want %d and some of both", got.Flows, got.Evicted, got.Unavailable, backedAtOnce)
		}
	}
}
