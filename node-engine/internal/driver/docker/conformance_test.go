package docker

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/drivertest"
)

func TestConformance(t *testing.T) {
	conformance(t, func(*testing.T) driver.Network { return nil })
}

// On the overlay a workload is two containers; nothing of that is to be seen at the seam.
func TestConformanceOnTheOverlay(t *testing.T) {
	conformance(t, func(t *testing.T) driver.Network { return newLAN(t) })
}

func conformance(t *testing.T, network func(*testing.T) driver.Network) {
	cli := bare(t)
	ref := helperImage(t, cli)
	drivertest.Run(t, func(t *testing.T) drivertest.Harness {
		overlay := network(t)
		empty := httptest.NewServer(registry.New(registry.WithBlobHandler(registry.NewInMemoryBlobHandler())))
		t.Cleanup(empty.Close)
		way := newWire(t)
		node := newNode(t, cli)
		d := newDriver(t, Config{Node: node, Host: way.host(), Network: overlay})
		return drivertest.Harness{
			Driver: d,
			Again:  func() driver.Driver { return newDriver(t, Config{Node: node, Network: overlay}) },
			Spec: func(id messages.InstanceID, p drivertest.Program) driver.Spec {
				return driver.Spec{Instance: id, Spec: messages.Spec{Image: ref, Args: actions(p)}}
			},
			Absent: func(id messages.InstanceID) driver.Spec {
				host := strings.TrimPrefix(empty.URL, "http://")
				return driver.Spec{Instance: id, Spec: messages.Spec{Image: host + "/nobody/has:this"}}
			},
			Kill: func(id messages.InstanceID) {
				if err := cli.ContainerKill(t.Context(), d.containerName(id), "SIGKILL"); err != nil {
					t.Error(err)
				}
			},
			Succeed: []string{"/helper", "exit=0"},
			Fail:    []string{"/helper", "exit=7"},
			Hang:    []string{"/helper", "sleep"},
			Down:    way.cut,
			Dials:   true,
		}
	})
}

// actions are what the helper does for a program of the suite.
func actions(p drivertest.Program) []string {
	var a []string
	if p.Stubborn {
		a = append(a, "stubborn")
	}
	if p.Listen != 0 {
		a = append(a, fmt.Sprintf("listen=%d", p.Listen))
	}
	if p.Print != "" && (p.Exit || p.Stubborn || p.Listen != 0) {
		a = append(a, "print="+p.Print) // else the helper itself says when it listens for its signal
	}
	if p.Exit {
		return append(a, fmt.Sprintf("exit=%d", p.Code))
	}
	return append(a, "sleep")
}
