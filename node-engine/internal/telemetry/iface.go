package telemetry

import (
	"errors"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"skerry.internal/node-engine/internal/telemetry/sysfs"
)

const netClass = "/sys/class/net"

// maxAddresses is what a node introduces itself with at most; messages.NodeInfo takes 256.
const maxAddresses = 64

// carriesTraffic reports whether an interface is a way off the board: hardware, or a modem's line. In a container's own namespace the
// way is one end of a veth pair with the name of hardware. Bridges, VLANs and tunnels carry what a real interface has counted.
func carriesTraffic(tree sysfs.Tree, name string) bool {
	if tree.Exists(path.Join(netClass, name, "device")) {
		return true
	}
	return !isBridge(tree, name) && namedHardware(name) && !strings.Contains(name, ".") // eth0.7 is a VLAN
}

// namedHardware reports whether the name is one that systems give to hardware.
func namedHardware(name string) bool {
	return slices.ContainsFunc([]string{"eth", "en", "wl", "ww", "ppp", "usb"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// hasAddress reports whether the addresses of an interface are the board's: not those of the networks that containers and the
// overlay have inside it. A bridge counts where hardware is in it, as the board's address is the bridge's then.
func hasAddress(tree sysfs.Tree, name string) bool {
	if !isBridge(tree, name) {
		return !isVirtual(tree, name)
	}
	return slices.ContainsFunc(tree.List(path.Join(netClass, name, "brif")), func(port string) bool {
		return tree.Exists(path.Join(netClass, port, "device"))
	})
}

// isBridge reports whether an interface is a bridge.
func isBridge(tree sysfs.Tree, name string) bool {
	return tree.Exists(path.Join(netClass, name, "bridge"))
}

// isVirtual reports whether an interface exists for containers or tests only, by its nature or its name.
func isVirtual(tree sysfs.Tree, name string) bool {
	return isBridge(tree, name) || isPair(tree, name) && !namedHardware(name) || slices.ContainsFunc([]string{
		"lo", "docker", "veth", "br-", "virbr", "vnet", "cni", "cali", "flannel", "lxc", "ifb", "dummy", "kube-", "skerry",
	}, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// isPair reports whether an interface is one end of a veth pair: it is bound to another one, and unlike a VLAN of no type.
func isPair(tree sysfs.Tree, name string) bool {
	dir := path.Join(netClass, name)
	index, errIndex := tree.Uint(dir + "/ifindex")
	peer, errPeer := tree.Uint(dir + "/iflink")
	kind, errKind := tree.Text(dir + "/uevent")
	return errors.Join(errIndex, errPeer, errKind) == nil && index != peer &&
		!strings.Contains(kind, "DEVTYPE=") && !tree.Exists(dir+"/device")
}

// addresses returns the addresses by which others may reach the board.
func addresses(tree sysfs.Tree) []string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var all []string
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || !hasAddress(tree, i.Name) {
			continue
		}
		list, err := i.Addrs()
		if err != nil {
			continue // it went away
		}
		all = append(all, global(list)...)
	}
	return all[:min(len(all), maxAddresses)]
}

// global returns those of the addresses that are valid beyond their link.
func global(list []net.Addr) []string {
	var all []string
	for _, a := range list {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		if addr := prefix.Addr().Unmap(); addr.IsGlobalUnicast() {
			all = append(all, addr.String())
		}
	}
	return all
}
