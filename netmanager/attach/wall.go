//go:build linux

package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"skerry.internal/netmanager/link"
)

// The verdicts of a classifier.
const (
	onward = 0xffffffff // TC_ACT_UNSPEC: as if it were not there
	shot   = 2          // TC_ACT_SHOT
)

// wall lets frames of the container in at the host's end that are for the gateway, and from the container's own addresses. So nothing goes past the
// host's routing to a neighbour on the bridge, broadcasts and questions for neighbours among it: both sides have each other's hardware address
// written down. It goes with the link. It says false where the kernel has no such classifier.
func wall(host *netlink.Handle, a Attachment, port netlink.Link, gatewayMAC net.HardwareAddr) (bool, error) {
	program, err := bpf.Assemble(wallOf(a, gatewayMAC))
	if err != nil {
		return false, fmt.Errorf("wall: %w", err)
	}
	if a.oldKernel {
		return false, nil
	}
	index := port.Attrs().Index
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	err = host.QdiscAdd(ingress)
	if err == nil || errors.Is(err, unix.EEXIST) {
		err = classify(index, program)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("wall of %s: %w", port.Attrs().Name, err)
	}
	return true, nil
}

// wallOf is the wall as a program that sees whole frames.
func wallOf(a Attachment, gatewayMAC net.HardwareAddr) []bpf.Instruction {
	load := func(at, size int) bpf.Instruction { return bpf.LoadAbsolute{Off: uint32(at), Size: size} }
	var program []bpf.Instruction
	same := func(at int, want []byte) {
		for len(want) > 0 {
			size, value := 2, uint32(0)
			if len(want) >= 4 {
				size, value = 4, binary.BigEndian.Uint32(want)
			} else {
				value = uint32(binary.BigEndian.Uint16(want))
			}
			program = append(program, load(at, size), bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: 1}, bpf.RetConstant{Val: shot})
			at, want = at+size, want[size:]
		}
	}
	const kind, header = 12, 14
	same(0, gatewayMAC)
	same(6, link.MAC(a.main()))
	program = append(program, load(kind, 2))
	for _, address := range a.Addresses {
		proto, source, words := uint32(unix.ETH_P_IPV6), header+8, 4
		if address.Is4() {
			proto, source, words = unix.ETH_P_IP, header+12, 1
		}
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: proto, SkipTrue: uint8(3*words + 1)})
		same(source, address.AsSlice())
		program = append(program, bpf.RetConstant{Val: onward})
	}
	return append(program, bpf.RetConstant{Val: shot})
}

// classify puts the program in the place of the one that is there. The library knows only programs of the other kind.
func classify(index int, program []bpf.RawInstruction) error {
	var ops []byte
	for _, i := range program {
		ops = binary.NativeEndian.AppendUint16(ops, i.Op)
		ops = append(ops, i.Jt, i.Jf)
		ops = binary.NativeEndian.AppendUint32(ops, i.K)
	}
	const first = 1 // priority, and handle
	request := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	request.AddData(&nl.TcMsg{Ifindex: int32(index), Handle: first, Parent: netlink.MakeHandle(0xffff, 0),
		Info: netlink.MakeHandle(first, nl.Swap16(unix.ETH_P_ALL))})
	request.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_OPS_LEN, binary.NativeEndian.AppendUint16(nil, uint16(len(program))))
	options.AddRtAttr(nl.TCA_BPF_OPS, ops)
	options.AddRtAttr(nl.TCA_BPF_FLAGS, binary.NativeEndian.AppendUint32(nil, nl.TCA_BPF_FLAG_ACT_DIRECT))
	request.AddData(options)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
