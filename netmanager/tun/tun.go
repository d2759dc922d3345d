// Package tun opens the network device through which the overlay's packets come and go. The device is persistent: it outlives the process
// that opened it, with its addresses and routes, and the next one takes it up again. Packets come in batches with segmentation offload,
// as github.com/tailscale/wireguard-go/tun does it; its types are named here so that the other rooms need not import it.
package tun

import (
	"errors"

	"github.com/tailscale/wireguard-go/tun"
)

// Device is a network device whose packets come in batches.
type Device = tun.Device

// MultiQueueDevice is a Device with more than one queue.
type MultiQueueDevice = tun.MultiQueueDevice

// Queue is what packets are read from.
type Queue = tun.Queue

// ReadPacket says where in a slab a packet lies.
type ReadPacket = tun.ReadPacket

// Event is what a device reports about itself.
type Event = tun.Event

// EventUp is what a device reports through Events when it can be used.
const EventUp = tun.EventUp

// Spacing is how many bytes Read leaves free before, between and after packets.
const Spacing = tun.ReadPacketSpacing

// ErrTooManySegments comes from Read with packets that are good: those that did not fit were dropped.
var ErrTooManySegments = tun.ErrTooManySegments

// ErrInUse says that another process holds the device.
var ErrInUse = errors.New("in use by another process")

// QueuesOf returns the read queues of a device, at least one.
func QueuesOf(dev Device) []Queue { return tun.QueuesOf(dev) }

// WriteToOf returns the write function of a device that keeps the packets of one flow in order.
func WriteToOf(dev Device) func(flow int, bufs [][]byte, offset int) (int, error) {
	return tun.WriteToOf(dev)
}
