//go:build linux

package link

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// wholeTries bounds how often a list is asked for. One try takes less than a millisecond, and Docker makes some links a second.
const wholeTries = 50

// Whole asks the kernel for a list until nothing was changed meanwhile, by Docker for another container as a rule: what it gives then may lack a part.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range wholeTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
