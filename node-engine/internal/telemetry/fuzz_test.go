package telemetry

import (
	"testing"

	"skerry.internal/node-engine/internal/telemetry/sysfs"
	"skerry.internal/node-engine/internal/telemetry/sysfs/sysfstest"
)

// FuzzSystem holds for an os-release of any content: the system has a name that is fit for one.
func FuzzSystem(f *testing.F) {
	tree := sysfstest.Make(f, nil) // each worker is a process
	f.Fuzz(func(t *testing.T, text string) {
		sysfstest.Write(t, tree, "/etc/os-release", text)
		if name := system(tree); sysfs.Clean(name) != name {
			t.Errorf("%q is no name", name)
		}
	})
}
