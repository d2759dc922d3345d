package instance

import (
	"errors"
	"fmt"
	"testing"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// A reason says a thing once: what the driver has said goes before what is known of every error of its kind.
func TestReasonsSayItOnce(t *testing.T) {
	for want, err := range map[string]error{
		"image a:1: image not found: docker.io does not have it": &stepError{"prepare", fmt.Errorf("image a:1: %w: docker.io does not have it", driver.ErrImageNotFound)},
		"image a:1 was not found: check its name and tag, and that this node may pull it": &stepError{"prepare",
			fmt.Errorf("pull: %w", driver.ErrImageNotFound)},
		"free the port, or choose another or none: host port in use: port 80/tcp is taken": &stepError{"start",
			fmt.Errorf("start web.0.0: %w: port 80/tcp is taken", driver.ErrPortInUse)},
		"cannot run here: no such device": &stepError{"start", fmt.Errorf("start web.0.0: %w: no such device", driver.ErrInvalid)},
		"OCI runtime create failed":       &stepError{"start", errors.New("start web.0.0: OCI runtime create failed")},
		"create web.0.0: no room":         &stepError{"start", errors.New("create web.0.0: no room")},
		"start":                           &stepError{"start", errors.New("start")},
		"boom":                            errors.New("boom"),
	} {
		if got := refused(err, &messages.Spec{Image: "a:1"}).reason; got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}
