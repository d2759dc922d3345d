//go:build linux

package link

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The firewall of one engine is one table in each family, written whole in one transaction. The families have a table each because a table
// for both (inet) can translate addresses only from Linux 5.2 on.

// ruleset is what one family's table shall hold.
type ruleset struct {
	table  *nftables.Table
	sets   []set
	chains []chain
}

type set struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	kind     nftables.ChainType
	rules    [][]expr.Any
}

// Names of the sets.
const (
	setBlocks   = "blocks"
	setGateways = "gateways"
	setPorts    = "ports"
)

// tableName is that of the engine's tables.
func tableName(name string) string { return "skerry_" + name }

// rulesetOf says what the firewall does, in one family.
func (s *setting) rulesetOf(v4 bool) *ruleset {
	f := family{v4: v4, bridge: Bridge(s.Name), tun: TUN(s.Name), overlay: ofFamily(s.Overlay, v4)[0].Masked().String()}
	r := &ruleset{table: &nftables.Table{Name: tableName(s.Name), Family: nftables.TableFamilyIPv6}}
	if v4 {
		r.table.Family = nftables.TableFamilyIPv4
	}
	r.sets = f.sets(r.table, ofFamily(s.Addresses, v4), s.Ports)
	translate := f.translate(len(r.sets[2].elements) > 0)
	r.chains = []chain{
		{"guard", nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, nftables.ChainTypeFilter, f.guard()},
		{"publish", nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, nftables.ChainTypeNAT, translate},
		{"direct", nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest + 1, nftables.ChainTypeFilter, f.direct()},
		{"publish_local", nftables.ChainHookOutput, *nftables.ChainPriorityNATDest, nftables.ChainTypeNAT, translate},
		{"forward", nftables.ChainHookForward, *nftables.ChainPriorityFilter, nftables.ChainTypeFilter, f.forward(s.quiet(v4))},
		{"output", nftables.ChainHookOutput, *nftables.ChainPriorityFilter, nftables.ChainTypeFilter, f.output()},
		{"masquerade", nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, nftables.ChainTypeNAT, f.masquerade()},
	}
	return r
}

// family writes rules for IPv4 or IPv6.
type family struct {
	v4          bool
	bridge, tun string
	overlay     string // as a prefix
}

func (f family) sets(table *nftables.Table, addresses []netip.Prefix, ports []Port) []set {
	address := nftables.TypeIP6Addr
	if f.v4 {
		address = nftables.TypeIPAddr
	}
	blocks := set{set: &nftables.Set{Table: table, ID: 1, Name: setBlocks, Interval: true, KeyType: address}}
	gateways := set{set: &nftables.Set{Table: table, ID: 2, Name: setGateways, KeyType: address}}
	published := set{set: &nftables.Set{Table: table, ID: 3, Name: setPorts, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(address, nftables.TypeInetService)}}
	for _, a := range addresses {
		blocks.elements = append(blocks.elements, nftables.SetElement{Key: a.Masked().Addr().AsSlice()},
			nftables.SetElement{Key: after(a), IntervalEnd: true})
		gateways.elements = append(gateways.elements, nftables.SetElement{Key: a.Addr().AsSlice()})
	}
	for _, p := range ports {
		if p.Target.Addr().Is4() != f.v4 {
			continue
		}
		// Each part is padded to four bytes.
		key := append([]byte{p.Protocol.number(), 0, 0, 0}, binary.BigEndian.AppendUint16(nil, p.HostPort)...)
		value := binary.BigEndian.AppendUint16(p.Target.Addr().AsSlice(), p.Target.Port())
		published.elements = append(published.elements, nftables.SetElement{Key: append(key, 0, 0), Val: append(value, 0, 0)})
	}
	return []set{blocks, gateways, published}
}

// after is the first address behind a prefix, as bytes.
func after(p netip.Prefix) []byte {
	last := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	for i := range slices.Backward(last) {
		if last[i]++; last[i] != 0 {
			break
		}
	}
	return last
}

// guard lets nobody in the bridge use a source that is not of this node's blocks, and nobody outside the overlay one of any node's (another
// engine of this host gets them by its tunnel); and keeps containers from 127.0.0.0/8 of the host, which route_localnet on the bridge would open.
func (f family) guard() [][]expr.Any {
	rules := [][]expr.Any{}
	outside := join(engineNot(), f.iifNot("lo"), f.source(f.overlay), drop())
	if f.v4 {
		rules = append(rules,
			join(f.iif(f.bridge), f.destination("127.0.0.0/8"), drop()),
			join(f.iif(f.bridge), f.sourceIn(setBlocks, true), drop()))
	} else {
		rules = append(rules,
			join(f.iif(f.bridge), f.source("fe80::/10"), returns()), // neighbours
			join(f.iif(f.bridge), f.source("::/128"), returns()),    // who has not got an address yet
			join(f.iif(f.bridge), f.sourceIn(setBlocks, true), drop()))
	}
	return append(rules, outside)
}

// translate publishes: for the addresses of this node only. Names stay with our own server: a job on port 53 does not take the gateways' away.
func (f family) translate(any bool) [][]expr.Any {
	if !any {
		return nil
	}
	addressLength := uint32(16)
	if f.v4 {
		addressLength = 4
	}
	port := func(register uint32) expr.Any {
		return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	}
	names := join(f.destinationIn(setGateways), []expr.Any{
		port(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, namePort}}}, returns())
	publish := []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(unix.RTN_LOCAL)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		port(unix.NFT_REG32_01),
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: setPorts, SetID: 3},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.protocol()), RegAddrMin: 1,
			RegProtoMin: unix.NFT_REG32_00 + addressLength/4, Specified: true},
	}
	if f.v4 {
		return [][]expr.Any{names, publish}
	}
	// The answer for ::1 would come in by the bridge, where the kernel drops it when bridges call the firewall. Left alone, a connection to
	// ::1 is refused at once, and whoever asked for localhost goes on to 127.0.0.1.
	return [][]expr.Any{join(f.destination("::1/128"), returns()), names, publish}
}

// direct marks what goes from one container of this node to another by a published port, or back: the routing keeps that out of the TUN device,
// where everything else between them goes. Its addresses are translated here, and only here.
func (f family) direct() [][]expr.Any {
	return [][]expr.Any{join(f.iif(f.bridge), ctTranslated(true), f.destinationIn(setBlocks), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(^uint32(directMark)), Xor: native(directMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	})}
}

// forward is the wall around the overlay: from outside only replies and published ports come in, from the tunnel nothing goes past this node, and
// containers reach one another by the TUN device alone, where it is known who may. What the host did not forward before us it does not forward
// now (quiet).
func (f family) forward(quiet []string) [][]expr.Any {
	rules := [][]expr.Any{
		join(f.iif(f.bridge), f.clampMSS()),
		join(f.oif(f.bridge), f.clampMSS()),
		join(f.iif(f.bridge), f.oif(f.bridge), ctTranslated(false), drop()),
		join(f.iif(f.bridge), accept()),
		join(f.iif(f.tun), f.oif(f.bridge), accept()),
		join(f.iif(f.tun), f.oif(f.tun), accept()), // a guest's packet to a service address
		join(f.iif(f.tun), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()),
		join(f.iif(f.tun), drop()),
	}
	for _, out := range []string{f.bridge, f.tun} {
		rules = append(rules,
			join(f.oif(out), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()),
			join(f.oif(out), ctTranslated(true), accept()),
			join(f.oif(out), drop()))
	}
	for _, name := range quiet {
		rules = append(rules, join(f.iif(name), ctState(expr.CtStateBitNEW), ctTranslated(false), drop()))
	}
	return rules
}

// output keeps the host from advising others to go around it: what comes in and goes out by the same TUN device does so on purpose.
func (f family) output() [][]expr.Any {
	protocol, redirect := byte(unix.IPPROTO_ICMPV6), byte(137)
	if f.v4 {
		protocol, redirect = unix.IPPROTO_ICMP, 5
	}
	advice := join(l4(protocol), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{redirect}}}, drop())
	return [][]expr.Any{join(f.oif(f.tun), advice), join(f.oif(f.bridge), advice)}
}

// masquerade covers what would not find its way back: the host's loopback and a container that reach a published port, and egress.
func (f family) masquerade() [][]expr.Any {
	var rules [][]expr.Any
	if f.v4 {
		rules = append(rules, join(f.oif(f.bridge), f.source("127.0.0.0/8"), masquerade()))
	}
	return append(rules,
		join(f.oif(f.bridge), f.sourceIn(setBlocks, false), ctTranslated(true), masquerade()),
		join(f.oifNot(f.bridge), f.oifNot(f.tun), f.oifNot("lo"), f.sourceIn(setBlocks, false), masquerade()))
}

// clampMSS lowers the segment size that a SYN offers to what the way out can carry.
func (f family) clampMSS() []expr.Any {
	return join(l4(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}}, // SYN and RST
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}

func (f family) protocol() byte {
	if f.v4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func (f family) iif(name string) []expr.Any    { return link(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func (f family) iifNot(name string) []expr.Any { return link(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func (f family) oif(name string) []expr.Any    { return link(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func (f family) oifNot(name string) []expr.Any { return link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

func link(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// engineNot matches what comes in by neither bridge nor TUN device of any engine.
func engineNot() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(group)}}
}

func (f family) source(prefix string) []expr.Any {
	if f.v4 {
		return address(12, prefix)
	}
	return address(8, prefix)
}

func (f family) destination(prefix string) []expr.Any {
	if f.v4 {
		return address(16, prefix)
	}
	return address(24, prefix)
}

func address(offset uint32, prefix string) []expr.Any {
	p := netip.MustParsePrefix(prefix)
	length := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: netOf(p).Mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func (f family) sourceIn(set string, invert bool) []expr.Any {
	if f.v4 {
		return member(12, 4, set, invert)
	}
	return member(8, 16, set, invert)
}

func (f family) destinationIn(set string) []expr.Any {
	if f.v4 {
		return member(16, 4, set, false)
	}
	return member(24, 16, set, false)
}

func member(offset, length uint32, set string, invert bool) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: set, SetID: map[string]uint32{setBlocks: 1, setGateways: 2}[set], Invert: invert},
	}
}

func l4(protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}}}
}

func ctState(bits uint32) []expr.Any { return ct(expr.CtKeySTATE, bits, expr.CmpOpNeq) }

// ctTranslated matches connections whose destination was translated, by us or by another; or those whose was not.
func ctTranslated(yes bool) []expr.Any {
	const destinationTranslated = 1 << 5 // IPS_DST_NAT
	if yes {
		return ct(expr.CtKeySTATUS, destinationTranslated, expr.CmpOpNeq)
	}
	return ct(expr.CtKeySTATUS, destinationTranslated, expr.CmpOpEq)
}

// ct compares some bits with 0.
func ct(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: op, Register: 1, Data: native(0)},
	}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func accept() []expr.Any     { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func returns() []expr.Any    { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }
