package messages

// NetworkMode says how an instance is connected.
type NetworkMode string

// The modes of an instance's network. A job that names none gets the overlay where its node can, and the bridge where it cannot.
const (
	Overlay       NetworkMode = "overlay" // an address of its own in the cluster's network
	HostNetwork   NetworkMode = "host"    // the node's own network
	NoNetwork     NetworkMode = "none"
	BridgeNetwork NetworkMode = "bridge" // the technology's own: published ports and the way out, no service address
)

// Policy says which instance a flow to the address of a job's service goes to, where the name of the job is looked up.
type Policy string

// The policies.
const (
	RoundRobin Policy = "round-robin"
	Closest    Policy = "closest" // this node first, then by measured round-trip time
)

// JobNetwork is how a job's instances are connected.
type JobNetwork struct {
	Mode NetworkMode `json:"mode,omitempty"` // default: overlay where the node can, bridge where it cannot
	// Policy holds for the plain name of the job; its other names say by themselves what they mean.
	Policy Policy `json:"policy,omitempty"` // default round-robin
	// Allow names the jobs whose instances may open connections to this one's. Absent: all, and guests; an empty list: none.
	Allow []JobName `json:"allow,omitzero"`
}

// Zone is the domain of the names of services: web.skerry.internal, closest.web.skerry.internal, 0.web.skerry.internal.
const Zone = "skerry.internal"

// Limits of what the network's messages hold; they bound what a manager and a node keep for one another.
const (
	MaxEndpoints = 16   // of one node or guest: its interfaces and what a reflector saw
	MaxOwnBlocks = 16   // that a node says it has
	MaxInterest  = 4096 // names, and as many addresses, that one node asks for
	maxPeers     = 1 << 14
	maxServices  = 1 << 14 // in one message; more come in further ones
	maxFlows     = 1024    // that a node tells of: the busiest
	maxTries     = 1000    // of one ping
)

// OverlayInfo says how other nodes reach this node's tunnel. Reason, where not empty, says why it has none.
type OverlayInfo struct {
	PublicKey string   `json:"public_key"`          // of WireGuard, standard base64
	Endpoints []string `json:"endpoints,omitempty"` // address:port, the best first
	Reason    string   `json:"reason,omitempty"`
	Blocks    []string `json:"blocks,omitempty"` // that it has; a manager that has lost its state gives it the same again
}

// Endpoints is what a node says of its tunnel whenever it changes, and after each connect.
type Endpoints struct {
	PublicKey string   `json:"public_key"` // empty: no tunnel
	Endpoints []string `json:"endpoints"`
	NAT       string   `json:"nat,omitempty"`        // none, cone, symmetric or blocked, as far as it is known
	RelayOnly bool     `json:"relay_only,omitempty"` // no datagram gets through: peers need not try
	Reason    string   `json:"reason,omitempty"`     // why there is no tunnel, or, beside a key, why it cannot be used now
}

// Interest is the whole set of services that a node wants to hear of, besides those that its own instances belong to, which it is told
// of in any case. The manager answers with a ServiceUpdate and keeps the node up to date until the next Interest.
type Interest struct {
	Names     []JobName `json:"names"`
	Addresses []string  `json:"addresses,omitempty"` // service addresses (IPv4) of which the node does not know whose they are
	// Full asks for everything anew: after a connect, and where an update does not follow the one before.
	Full bool `json:"full,omitempty"`
}

// NetworkConfig is the network of a node, retained at nodes/<node>/net/config. IPv6 is a mapping of IPv4 and is not repeated: an address
// with offset o from Network is Network6 with o in its last 32 bits.
type NetworkConfig struct {
	Rev      uint64   `json:"rev"` // of the manager; the higher one holds
	Network  string   `json:"network,omitempty"`
	Network6 string   `json:"network6,omitempty"`
	Services string   `json:"services,omitempty"` // the part of Network that holds service addresses
	Blocks   []string `json:"blocks"`             // of this node; none: no overlay here, and Reason says why
	Gateway  string   `json:"gateway,omitempty"`  // of this node: its bridge and its DNS
	Peers    []Peer   `json:"peers"`
	Relay    *Relay   `json:"relay,omitempty"`
	STUN     []string `json:"stun,omitempty"` // host:port; no host: the manager's that was dialled
	Reason   string   `json:"reason,omitempty"`
}

// Peer is another node, or a guest of this one.
type Peer struct {
	Node      NodeID         `json:"node,omitempty"`
	Guest     string         `json:"guest,omitempty"`
	Key       string         `json:"key"`
	Prefixes  []string       `json:"prefixes"` // IPv4 only; the IPv6 ones follow from them
	Endpoints []string       `json:"endpoints,omitempty"`
	RelayOnly bool           `json:"relay_only,omitempty"`
	Instances []PeerInstance `json:"instances,omitempty"` // which run there
}

// PeerInstance says whose the address of a container is.
type PeerInstance struct {
	Address string  `json:"address"`
	Service string  `json:"service"` // its instance address: what others see as its source
	Job     JobName `json:"job"`
}

// Relay is where packets go that find no direct way.
type Relay struct {
	URL string `json:"url"` // no host: the manager's that was dialled
}

// ServiceUpdate tells a node what has changed of the services that it is interested in.
type ServiceUpdate struct {
	Rev  uint64 `json:"rev"`  // counts the updates to this node
	Base uint64 `json:"base"` // the rev that this one builds on; another one at the node: it asks with Interest.Full
	// Full says that all is new: what is not in this update, and in those that follow with More, is gone.
	Full     bool           `json:"full,omitempty"`
	More     bool           `json:"more,omitempty"` // the next update belongs to this one
	Services []ServiceEntry `json:"services"`
	Gone     []JobName      `json:"gone,omitempty"`    // not there any more
	Unknown  []string       `json:"unknown,omitempty"` // names and addresses asked for that nobody bears
}

// ServiceEntry is a job as the network sees it.
type ServiceEntry struct {
	Job        JobName           `json:"job"`
	RoundRobin string            `json:"round_robin"`
	Closest    string            `json:"closest"`
	Policy     Policy            `json:"policy,omitempty"`
	Allow      []JobName         `json:"allow,omitzero"` // absent: open to all
	Ports      []Port            `json:"ports,omitempty"`
	Instances  []ServiceInstance `json:"instances"` // one of each ordinal
}

// ServiceInstance is one ordinal of a job. Its Service address stays as long as the job; what stands behind it moves.
type ServiceInstance struct {
	Ordinal    int    `json:"ordinal"`
	Generation int    `json:"generation"`
	Service    string `json:"service"`
	Address    string `json:"address,omitempty"` // of its container; empty: it runs nowhere in the overlay
	Node       NodeID `json:"node,omitempty"`
	Healthy    bool   `json:"healthy"`
}

// OverlayState says in one word whether a node is part of the network.
type OverlayState string

// The states of a node's part of the network.
const (
	OverlayUp      OverlayState = "up"
	OverlayOff     OverlayState = "off"     // the node has none, or the manager
	OverlayRefused OverlayState = "refused" // the manager does not let it in
)

// OverlayStatus is what a manager says of a node's part of the network.
type OverlayStatus struct {
	State     OverlayState `json:"state"`
	Reason    string       `json:"reason,omitempty"`
	Blocks    []string     `json:"blocks,omitempty"`
	PublicKey string       `json:"public_key,omitempty"`
	Endpoints []string     `json:"endpoints,omitempty"`
	NAT       string       `json:"nat,omitempty"`
	RelayOnly bool         `json:"relay_only,omitempty"`
	Peers     int          `json:"peers,omitempty"` // how many the node was given
}

// NetworkStatus is what a manager says of the whole network, retained at network/status.
type NetworkStatus struct {
	Network   string  `json:"network,omitempty"` // empty: there is none
	Network6  string  `json:"network6,omitempty"`
	Services  string  `json:"services,omitempty"`
	Blocks    int     `json:"blocks"`    // leased to nodes and guests
	Free      int     `json:"free"`      // blocks left
	Addresses int     `json:"addresses"` // leased to services
	Guests    []Guest `json:"guests"`
	At        Time    `json:"at"`
}

// Guest is a WireGuard client that is no node.
type Guest struct {
	Guest     string `json:"guest"`
	PublicKey string `json:"public_key"`
	Address   string `json:"address"`
	Address6  string `json:"address6"`
	Gateway   NodeID `json:"gateway"` // the node that lets it in
	Since     Time   `json:"since"`
}

// GuestConfig is what a guest's WireGuard client needs besides its own private key, which nobody else knows.
type GuestConfig struct {
	Guest
	GatewayKey string   `json:"gateway_key"`
	Endpoints  []string `json:"endpoints"` // of the gateway, the best first
	Allowed    []string `json:"allowed"`   // what goes through the tunnel
	DNS        []string `json:"dns"`
}

// PathState says how packets get to a peer.
type PathState string

// The states of the path to a peer.
const (
	Direct  PathState = "direct"
	Relayed PathState = "relayed"
	NoPath  PathState = "none" // not heard of, or not for long
)

// OverlayUse is what a node measures of the network: of its peers, and which jobs talk to which.
type OverlayUse struct {
	Peers []PeerUse `json:"peers"`
	Flows []FlowUse `json:"flows"`
}

// PeerUse is what a node measures of one peer.
type PeerUse struct {
	Node       NodeID    `json:"node,omitempty"`
	Guest      string    `json:"guest,omitempty"`
	Path       PathState `json:"path"`
	Endpoint   string    `json:"endpoint,omitempty"`
	RTTMS      float64   `json:"rtt_ms,omitempty"`
	RxBPS      float64   `json:"rx_bps"`
	TxBPS      float64   `json:"tx_bps"`
	MTU        int       `json:"mtu,omitempty"`         // of packets inside the tunnel
	HandshakeS int64     `json:"handshake_s,omitempty"` // since the last one
}

// FlowUse sums up the flows of this node's instances of one job, or its host, to one service.
type FlowUse struct {
	From    JobName `json:"from,omitempty"` // empty: the host, or a guest
	Service JobName `json:"service"`
	Node    NodeID  `json:"node,omitempty"` // where they go
	Flows   int     `json:"flows"`
	RxBPS   float64 `json:"rx_bps"`
	TxBPS   float64 `json:"tx_bps"`
}

// NetStatus is a node's view of the network, retained at nodes/<node>/net/status.
type NetStatus struct {
	State  OverlayState `json:"state"`
	Reason string       `json:"reason,omitempty"`
	// NoNames says why the node answers no names, NoIPv6 why its containers have no IPv6, where the network is up. Empty: they do and have.
	NoNames string `json:"no_names,omitempty"`
	NoIPv6  string `json:"no_ipv6,omitempty"`
	NAT     string `json:"nat,omitempty"`
	// Dropped counts packets since the start that nobody was to get, by reason.
	Dropped map[string]int64 `json:"dropped,omitempty"`
	At      Time             `json:"at"`
	OverlayUse
}

// MarshalJSON writes the status with its lists, also where they are empty.
func (s NetStatus) MarshalJSON() ([]byte, error) {
	type plain NetStatus
	s.OverlayUse = s.finite()
	return Encode(plain(s)), nil
}

// finite returns a copy that JSON can hold.
func (u OverlayUse) finite() OverlayUse {
	peers, flows := append([]PeerUse{}, u.Peers...), append([]FlowUse{}, u.Flows...)
	for i := range peers {
		zeroUnlessFinite(&peers[i].RTTMS, &peers[i].RxBPS, &peers[i].TxBPS)
	}
	for i := range flows {
		zeroUnlessFinite(&flows[i].RxBPS, &flows[i].TxBPS)
	}
	return OverlayUse{Peers: peers, Flows: flows}
}

// MarshalJSON writes the endpoints with their list, also where it is empty.
func (e Endpoints) MarshalJSON() ([]byte, error) {
	type plain Endpoints
	e.Endpoints = list(e.Endpoints)
	return Encode(plain(e)), nil
}

// MarshalJSON writes the interest with its list of names, also where it is empty.
func (i Interest) MarshalJSON() ([]byte, error) {
	type plain Interest
	i.Names = list(i.Names)
	return Encode(plain(i)), nil
}

// MarshalJSON writes the configuration with its lists, also where they are empty.
func (c NetworkConfig) MarshalJSON() ([]byte, error) {
	type plain NetworkConfig
	c.Blocks, c.Peers = list(c.Blocks), list(c.Peers)
	return Encode(plain(c)), nil
}

// MarshalJSON writes the peer with its list of prefixes, also where it is empty.
func (p Peer) MarshalJSON() ([]byte, error) {
	type plain Peer
	p.Prefixes = list(p.Prefixes)
	return Encode(plain(p)), nil
}

// MarshalJSON writes the update with its list of services, also where it is empty.
func (u ServiceUpdate) MarshalJSON() ([]byte, error) {
	type plain ServiceUpdate
	u.Services = list(u.Services)
	return Encode(plain(u)), nil
}

// MarshalJSON writes the service with its list of instances, also where it is empty.
func (s ServiceEntry) MarshalJSON() ([]byte, error) {
	type plain ServiceEntry
	s.Instances = list(s.Instances)
	return Encode(plain(s)), nil
}

// MarshalJSON writes the status with its list of guests, also where it is empty.
func (s NetworkStatus) MarshalJSON() ([]byte, error) {
	type plain NetworkStatus
	s.Guests = list(s.Guests)
	return Encode(plain(s)), nil
}

// MarshalJSON writes what a guest needs with its lists, also where they are empty.
func (c GuestConfig) MarshalJSON() ([]byte, error) {
	type plain GuestConfig
	c.Endpoints, c.Allowed, c.DNS = list(c.Endpoints), list(c.Allowed), list(c.DNS)
	return Encode(plain(c)), nil
}
