//go:build linux

package link

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// A list that somebody changed is asked for again, not for ever; another error is returned at once.
func TestWhole(t *testing.T) {
	other := errors.New("other")
	for _, c := range []struct {
		name      string
		interrupt int // the first so many
		then      error
		want      error
		asked     int
	}{
		{"at once", 0, nil, nil, 1},
		{"changed twice", 2, nil, nil, 3},
		{"changed twice, then no more", 2, other, other, 3},
		{"changed always", 1000, nil, netlink.ErrDumpInterrupted, wholeTries},
	} {
		asked := 0
		got, err := Whole(func() ([]int, error) {
			if asked++; asked <= c.interrupt {
				return nil, netlink.ErrDumpInterrupted
			}
			return []int{asked}, c.then
		})
		if !errors.Is(err, c.want) || asked != c.asked || c.want == nil && (len(got) != 1 || got[0] != asked) {
			t.Errorf("%s: got %v, %v after %d", c.name, got, err, asked)
		}
	}
}
