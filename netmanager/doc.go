// Package netmanager is one encrypted IP network over many nodes. It knows packets, links and addresses; it knows no jobs, no topics, no
// JSON and no container engine. Its rooms: tun and service (the data path), tunnel and relay (between nodes), link and attach (the
// kernel's side), ipam and dns (addresses and names).
package netmanager
