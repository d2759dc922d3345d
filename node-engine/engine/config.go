package engine

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"skerry.internal/messages"
	"skerry.internal/messages/trust"
	"skerry.internal/node-engine/internal/driver/docker"
	"skerry.internal/node-engine/internal/session"
)

// Config is what an operator decides about a node engine.
type Config struct {
	Manager string // URL of the cluster manager, such as http://manager:10100 or https://manager:10100
	// ManagerCA is a PEM file with the authority of which the manager's certificate is; empty: those of the system.
	ManagerCA string
	Name      string            // of the node, before a manager has admitted it; default: the host's, made into a DNS label
	Data      string            // directory of what survives a restart; default: DefaultData()
	Labels    map[string]string // what a job's constraints may ask for
	Token     string            // to join a cluster that asks for one
	Version   string            // of this program

	Overlay     string // auto (the default): the cluster's network where this machine can have it; off: none
	OverlayPort int    // UDP port of the tunnels; 0: one is chosen and kept

	DockerHost        string // such as unix:///var/run/docker.sock; default: DOCKER_HOST, then Docker's own default
	DockerCredentials string // path of a docker config.json for pulls; empty: none
	// ImageReserve is how much of Docker's disk is kept free by removing images that the engine has pulled and nobody uses: "10%",
	// "2GiB", "0" for none; default: 10%.
	ImageReserve string
}

// The values of Config.Overlay.
const (
	overlayAuto = "auto"
	overlayOff  = "off"
)

// Validate reports all that is wrong with the configuration.
func (c *Config) Validate() error {
	_, err := session.ManagerURL(c.Manager)
	errs := []error{err}
	if c.Manager == "" {
		errs = []error{errors.New("manager: missing, want its URL, such as http://manager:10100")}
	}
	if c.ManagerCA != "" && !strings.HasPrefix(c.Manager, "https://") {
		errs = append(errs, fmt.Errorf("manager-ca: is for a manager at https://, and manager is %q", c.Manager))
	}
	if _, err := c.roots(); err != nil {
		errs = append(errs, err)
	}
	if c.Name != "" {
		errs = append(errs, messages.CheckName("name", c.Name))
	}
	if c.Data == "" {
		errs = append(errs, errors.New("data: missing, want a directory"))
	}
	if c.Overlay != "" && c.Overlay != overlayAuto && c.Overlay != overlayOff {
		errs = append(errs, fmt.Errorf("overlay %q: want auto or off", c.Overlay))
	}
	if c.OverlayPort < 0 || c.OverlayPort > 65535 {
		errs = append(errs, fmt.Errorf("overlay port %d: want 1 to 65535, or 0 for one that is chosen", c.OverlayPort))
	}
	if _, err := c.imageReserve(); err != nil {
		errs = append(errs, err)
	}
	for k, v := range c.Labels {
		errs = append(errs, messages.CheckName("label", k))
		if len(v) > 256 {
			errs = append(errs, fmt.Errorf("label %q: value over 256 bytes", k))
		}
	}
	return errors.Join(errs...)
}

// roots returns the authorities of which the manager's certificate is; nil: those of the system.
func (c *Config) roots() (*x509.CertPool, error) {
	if c.ManagerCA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(c.ManagerCA)
	if err != nil {
		return nil, fmt.Errorf("manager-ca: %w", err)
	}
	roots, err := trust.Roots(pem)
	if err != nil {
		return nil, fmt.Errorf("manager-ca %s: %w", c.ManagerCA, err)
	}
	return roots, nil
}

func (c *Config) imageReserve() (docker.Reserve, error) {
	return docker.ParseReserve(cmp.Or(c.ImageReserve, "10%"))
}

// DefaultData returns where a node's data are when nothing else is said.
func DefaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/skerry/node"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "" // Validate asks for a directory then
	}
	return filepath.Join(home, ".local", "share", "skerry", "node")
}

// nodeName makes a DNS label of a host name: its first part, with what no name may hold left out.
func nodeName(host string) messages.NodeID {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	clean := strings.Map(func(r rune) rune {
		switch {
		case (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') || r == '-':
			return r
		case r == '_' || r == ' ':
			return '-'
		default:
			return -1
		}
	}, host)
	clean = strings.Trim(clean[:min(len(clean), 63)], "-")
	return messages.NodeID(cmp.Or(clean, "node"))
}
