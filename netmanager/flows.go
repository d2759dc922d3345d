package netmanager

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/service"
)

// flowMemoryLocked returns memory that outlives the process, for the flows: a connection through a service address goes on after a restart only
// if the choice of its instance is still known. It lies in a file system in memory, so that it costs no disk anything and a reboot clears it. It is
// mapped once and stays so while the process lives: who asks for flows may do so when their plane has ended. Without it where it cannot be had.
func (n *Network) flowMemoryLocked() flowMemory {
	if n.flows.mapped == nil && n.static.RunDir != "" {
		var err error
		if n.flows, err = openFlows(n.static.RunDir, n.static.Name); err != nil {
			n.log.Warn("flows are not kept over a restart", "err", err)
		}
	}
	return n.flows
}

// flowMemory is a file in memory. It has holes where there are no flows yet.
type flowMemory struct {
	mapped []byte
	file   *os.File
}

// back puts memory behind a part of it: where the file system is full, that is an error here, and a signal for who touches the hole.
func (m flowMemory) back(offset, length int) error {
	err := unix.Fallocate(int(m.file.Fd()), 0, int64(offset), int64(length))
	if errors.Is(err, unix.EOPNOTSUPP) { // nobody knows then
		return nil
	}
	return err
}

// openFlows maps the file of that network, anew where it has another size.
func openFlows(dir, name string) (m flowMemory, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return m, fmt.Errorf("flows: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, name+".flows"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return m, fmt.Errorf("flows: %w", err)
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	size := service.MemorySize(0)
	if info, err := file.Stat(); err != nil || info.Size() != int64(size) {
		if err := errors.Join(err, file.Truncate(0), file.Truncate(int64(size))); err != nil {
			return m, fmt.Errorf("flows: %w", err)
		}
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return m, fmt.Errorf("map flows: %w", err)
	}
	return flowMemory{mapped, file}, nil
}
