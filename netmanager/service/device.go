package service

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"skerry.internal/netmanager/tun"
)

// Options are what a Device needs beside the TUN device. All may be left zero.
type Options struct {
	// OnMiss is told of a service address that is in no table, once in five seconds. It must not block.
	OnMiss func(netip.Addr)
	// MTU returns the longest packet that the path to the node with that container address carries, 0 when it is not known. It is asked once a
	// second for a flow, with a lock held: it must neither block nor call the Device.
	MTU func(netip.Addr) int
	// Flows bounds how many flows are remembered; 0: 65536.
	Flows int
	// Memory, when not nil, is where the flows live: MemorySize bytes shared with a file, so that connections outlive the process. It may be
	// taken away once Close and every Read and Write have returned.
	Memory []byte
	// Back, when not nil, is called before a part of Memory is touched for the first time and sees to it that there is something behind it. Where it
	// returns an error there is no room for new flows but in the place of old ones. It is called with a lock held.
	Back func(offset, length int) error
}

// Device is a TUN device that has service addresses. It has one queue more than the device that it wraps: for packets that waited for a table,
// and for answers of its own.
type Device struct {
	tun.Device
	options   Options
	start     time.Time
	table     atomic.Pointer[snapshot]
	setting   sync.Mutex // guards the order of tables
	flows     flows
	fragments fragments
	misses    misses
	counters  counters
	answers   answers
	queues    []tun.Queue
	writeTo   func(flow int, bufs [][]byte, offset int) (int, error)
	injected  chan []byte
	closed    chan struct{}
	closing   sync.Once
	looking   sync.RWMutex // held while Flows looks at memory that may be gone after Close
}

var _ tun.MultiQueueDevice = (*Device)(nil)

// snapshot is the table in force, and how many were before it.
type snapshot struct {
	*Table
	rev uint32
}

// injectedMost is how many packets may wait to be read from the queue of a Device's own.
const injectedMost = 1024

// headroom is what a device may want to put before a packet that is written to it: a vnet header.
const headroom = 16

// Wrap returns dev with service addresses, and with no table yet: what belongs to no flow of before is dropped. Close closes dev as well.
func Wrap(dev tun.Device, o Options) *Device {
	d := &Device{Device: dev, options: o, start: time.Now(), writeTo: tun.WriteToOf(dev), injected: make(chan []byte, injectedMost), closed: make(chan struct{}),
		misses: misses{known: map[addr]*miss{}, of: map[addr]share{}}}
	d.flows.open(o.Memory, o.Back, o.Flows, d.now())
	d.table.Store(&snapshot{NewTable(Config{}), 1})
	for _, q := range tun.QueuesOf(dev) {
		if super, ok := q.(tun.SuperQueue); ok {
			d.queues = append(d.queues, &superQueue{super: super, d: d})
			continue
		}
		d.queues = append(d.queues, &queue{Queue: q, d: d})
	}
	d.queues = append(d.queues, own{d})
	return d
}

// SetTable puts t in force. Flows that exist go on, packets that waited for a service in it are sent.
func (d *Device) SetTable(t *Table) {
	d.setting.Lock()
	defer d.setting.Unlock()
	s := &snapshot{t, d.table.Load().rev + 1}
	d.table.Store(s)
	d.release(s)
}

// now returns the seconds since Wrap, plus one: zero means never.
func (d *Device) now() uint32 { return uint32(time.Since(d.start)/time.Second) + 1 }

// Queues returns the queues of the wrapped device and one more.
func (d *Device) Queues() []tun.Queue { return d.queues }

// Read reads from the first queue.
func (d *Device) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	return d.queues[0].Read(slab, packets)
}

// Write takes packets from the tunnel and writes those that are good.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) { return d.WriteTo(0, bufs, offset) }

// WriteTo is Write to the queue of a flow. It returns how many packets it took, dropped ones included.
func (d *Device) WriteTo(flow int, bufs [][]byte, offset int) (int, error) {
	t, now := d.table.Load(), d.now()
	var n tally
	good := 0
	for i, buf := range bufs {
		if !d.inbound(buf[min(offset, len(buf)):], t, now, &n) {
			continue
		}
		if good != i {
			bufs[good], bufs[i] = bufs[i], bufs[good] // every buffer stays in the caller's list
		}
		good++
	}
	d.counters.add(&n)
	if good == 0 {
		return len(bufs), nil
	}
	if _, err := d.writeTo(flow, bufs[:good], offset); err != nil {
		return 0, err
	}
	return len(bufs), nil
}

// inbound says whether a packet from the tunnel goes to the TUN.
func (d *Device) inbound(b []byte, t *snapshot, now uint32, n *tally) bool {
	var p packet
	if !p.parse(b) {
		n[countMalformed]++
		return false
	}
	switch d.in(&p, t, now, n, origin{}) {
	case forward:
		return true
	case denied:
		d.deny(&p)
	}
	return false
}

// Close ends every Read, and closes the wrapped device.
func (d *Device) Close() error {
	d.closing.Do(func() {
		d.looking.Lock()
		close(d.closed)
		d.looking.Unlock()
		d.misses.close()
	})
	return d.Device.Close()
}

// write puts packets with headroom before them into the TUN; what it does not take is lost, as in any network.
func (d *Device) write(bufs [][]byte) {
	if _, err := d.writeTo(0, bufs, headroom); err != nil {
		d.counters[countLost].Add(uint64(len(bufs)))
	}
}

// toTUN puts one packet into the TUN.
func (d *Device) toTUN(b []byte) {
	d.write([][]byte{append(make([]byte, headroom, headroom+len(b)), b...)})
}

// injectPieces sends a packet into the tunnel in fragments.
func (d *Device) injectPieces(b []byte) {
	slab, packets := make([]byte, 2*len(b)+2*tun.Spacing), make([]tun.ReadPacket, 64)
	packets[0] = tun.ReadPacket{Offset: tun.Spacing, Size: copy(slab[tun.Spacing:], b)}
	count := divide(slab, packets)
	if count == 0 {
		d.counters[countMalformed].Add(1)
	}
	for _, at := range packets[:count] {
		d.inject(slab[at.Offset : at.Offset+at.Size])
	}
}

// inject sends a packet into the tunnel.
func (d *Device) inject(b []byte) {
	select {
	case d.injected <- b:
	default:
		d.counters[countLost].Add(1)
	}
}
