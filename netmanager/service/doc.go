// Package service is the overlay's data path between the kernel's TUN device and the tunnel: on the way out it turns service addresses into
// instances, on the way in it turns them back. It makes no system call of its own, and what is in a packet can never make it panic.
//
// A flow is what ties the two ways together. Its local end is a container of this node; the other end has two faces, the one that the
// container sees and the one that is on the wire:
//
//	      container                         flow                            tunnel
//	local:port -> seen:port     out: destination becomes real      local:port' -> real:port
//	seen:port  -> local:port    in:  source becomes seen           real:port -> local:port'
//
// A client's flow is made on the way out: seen is the address that it dialled, real the instance that the policy chose. A server's flow is made on
// the way in: real is the client's container address, seen the instance address that stands for it. A packet whose instance runs on this
// node goes through both, out and in, and back into the TUN; so replies take the same way. The port differs from port' only where two flows
// would be one on the wire.
//
// The choice is made once per flow and kept, in memory that may outlive the process (Options.Memory). Tables are immutable snapshots; a flow
// looks at a new one once. Per packet: one parse, one lookup under the lock of one of 64 shards, an incremental checksum.
package service
