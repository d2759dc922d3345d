//go:build linux

// Package link_test sends packets through what link sets: hosts on a cable, containers attached to the bridge.
package link_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"skerry.internal/netmanager/link"
)

// TestNoWallForIPv6: a host that has IPv6 but no firewall for it gets a network of IPv4 alone, and does not become a router for IPv6.
func TestNoWallForIPv6(t *testing.T) {
	for name, with := range map[string]func(link.Config) link.Config{"nf_tables": link.OldIPv6, "iptables": link.OldKernel} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, false)
			s.ipv4Only = true
			programs := t.TempDir()
			for _, program := range []string{"iptables-save", "iptables-restore"} {
				path, err := exec.LookPath(program)
				if err != nil {
					t.Skip(err)
				}
				if err := os.Symlink(path, filepath.Join(programs, program)); err != nil {
					t.Fatal(err)
				}
			}
			for _, program := range []string{"ip", "sysctl"} { // the test's own
				if path, err := exec.LookPath(program); err == nil {
					if err := os.Symlink(path, filepath.Join(programs, program)); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Setenv("PATH", programs)
			for range 2 {
				s.node.Do(func() {
					noIPv6, err := link.Set(with(s.config))
					if err != nil {
						t.Fatal(err)
					}
					if noIPv6 == nil || !strings.Contains(noIPv6.Error(), "no firewall") {
						t.Errorf("got %v for why there is no IPv6", noIPv6)
					}
				})
			}
			s.set(with(s.config))
			serve(t, s.web, ":80")
			serve(t, s.server, ":8080")
			s.wants(s.client, "192.0.2.1:8080", "web to 192.0.2.2")
			s.wants(s.other, "192.0.2.3:8080", "server to 192.0.2.1")
			s.refuses(s.client, "[2001:db8::1]:8080")
			if links := s.node.Run("ip", "-6", "address", "show", "dev", "labb"); strings.Contains(links, "inet6") {
				t.Errorf("the bridge has IPv6: %s", links)
			}
			s.node.Do(func() {
				if forwards, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding"); err != nil || string(forwards) != "0\n" {
					t.Errorf("IPv6 is forwarded: %s, %v", forwards, err)
				}
			})
		})
	}
}
