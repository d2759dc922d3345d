package docker

import (
	"encoding/binary"
	"fmt"
)

// pause returns a static program that waits until it is killed, as an ELF file for a processor. It is what runs in a sandbox: made here,
// because a node has no registry to fetch it from before its first job, and of 200 bytes, because there is one for every instance.
func pause(arch string) ([]byte, error) {
	m, ok := machines[arch]
	if !ok {
		return nil, fmt.Errorf("no pause program for %s", arch)
	}
	if m.wide {
		return m.elf64(), nil
	}
	return m.elf32(), nil
}

// machine is a processor and the program for it: a system call that never returns, and a jump back to it for when it does.
type machine struct {
	wide  bool   // 64 bits
	id    uint16 // e_machine
	flags uint32 // e_flags
	code  []byte
}

var machines = map[string]machine{
	"amd64": {wide: true, id: 62, code: []byte{
		0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34 (pause)
		0x0f, 0x05, //                   syscall
		0xeb, 0xf7, //                   jmp back to the mov
	}},
	// There is no pause: ppoll of nothing, for ever.
	"arm64": {wide: true, id: 183, code: words(
		0xd2800000, // mov x0, #0 (no descriptors)
		0xd2800001, // mov x1, #0 (none of them)
		0xd2800002, // mov x2, #0 (no end)
		0xd2800003, // mov x3, #0 (no signal mask)
		0xd2800928, // mov x8, #73 (ppoll)
		0xd4000001, // svc #0
		0x17fffffa, // b back to the first
	)},
	// Instructions of 32 bits that every ARM since version 4 has; the flag says EABI version 5.
	"arm": {id: 40, flags: 0x0500_0000, code: words(
		0xe3a0701d, // mov r7, #29 (pause)
		0xef000000, // svc #0
		0xeafffffc, // b back to the mov
	)},
}

func words(list ...uint32) []byte {
	var b []byte
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// The parts of an ELF file that do not differ.
const (
	loadAt    = 0x40_0000 // above what any kernel forbids to map
	pageSize  = 0x1_0000  // the largest of these processors
	readable  = 4
	writable  = 2
	runnable  = 1
	typeLoad  = 1
	typeStack = 0x6474_e551 // PT_GNU_STACK: without it the stack may hold code
)

// elfStart is what a file begins with: the magic number, 32 (1) or 64 (2) bits, little-endian, version 1, then an executable.
func (m machine) elfStart(class byte) []byte {
	b := []byte{0x7f, 'E', 'L', 'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, m.id)
	return binary.LittleEndian.AppendUint32(b, 1)
}

func (m machine) elf64() []byte {
	const header, segment = 64, 56
	const start = header + 2*segment
	le := binary.LittleEndian
	b := le.AppendUint64(m.elfStart(2), loadAt+start) // entry
	b = le.AppendUint64(b, header)                    // where the segments are described
	b = le.AppendUint64(b, 0)                         // no sections
	b = le.AppendUint32(b, m.flags)
	for _, v := range []uint16{header, segment, 2, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	describe := func(kind, flags uint32, address, size, align uint64) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{0, address, address, size, size, align} {
			b = le.AppendUint64(b, v)
		}
	}
	describe(typeLoad, readable|runnable, loadAt, uint64(start+len(m.code)), pageSize)
	describe(typeStack, readable|writable, 0, 0, 16)
	return append(b, m.code...)
}

func (m machine) elf32() []byte {
	const header, segment = 52, 32
	const start = header + 2*segment
	le := binary.LittleEndian
	b := le.AppendUint32(m.elfStart(1), loadAt+start)
	b = le.AppendUint32(b, header)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, m.flags)
	for _, v := range []uint16{header, segment, 2, 40, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	describe := func(kind, flags, address, size, align uint32) {
		for _, v := range []uint32{kind, 0, address, address, size, size, flags, align} {
			b = le.AppendUint32(b, v)
		}
	}
	describe(typeLoad, readable|runnable, loadAt, uint32(start+len(m.code)), pageSize) //nolint:gosec // some 130
	describe(typeStack, readable|writable, 0, 0, 16)
	return append(b, m.code...)
}
