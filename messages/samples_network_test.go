package messages

const sampleTunnelKey = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="

func sampleService() ServiceEntry {
	return ServiceEntry{Job: "web", RoundRobin: "10.172.0.0", Closest: "10.172.0.1", Policy: Closest, Allow: []JobName{"shop"},
		Ports: []Port{{Name: "http", Host: 8080, Container: 80, Protocol: "tcp"}}, Instances: []ServiceInstance{
			{Ordinal: 0, Generation: 2, Service: "10.172.0.2", Address: "10.160.0.2", Node: "board-1", Healthy: true},
			{Ordinal: 1, Service: "10.172.0.3"}}}
}

func sampleGuest() Guest {
	return Guest{Guest: "phone", PublicKey: "9nEUL5AaBNy1jK4zF3pGZOyH9GqzFLUdHrAvxP4hBmY=", Address: "10.160.1.1", Address6: "fd5c:ae11:9::101",
		Gateway: "board-1", Since: sampleTime(0)}
}

func sampleUse() OverlayUse {
	return OverlayUse{Peers: []PeerUse{{Node: "board-2", Path: Direct, Endpoint: "192.168.1.21:51820", RTTMS: 0.75, RxBPS: 120000, TxBPS: 90000, MTU: 1420,
		HandshakeS: 40}, {Guest: "phone", Path: Relayed, RxBPS: 800, TxBPS: 400}},
		Flows: []FlowUse{{From: "shop", Service: "web", Node: "board-2", Flows: 12, RxBPS: 110000, TxBPS: 80000}, {Service: "web", Flows: 1}}}
}

// networkSamples are those of the golden files that speak of the network.
func networkSamples() map[string]any {
	use := sampleUse()
	config := GuestConfig{Guest: sampleGuest(), GatewayKey: sampleTunnelKey, Endpoints: []string{"192.168.1.20:51820"},
		Allowed: []string{"10.160.0.0/12", "fd5c:ae11:9::/48"}, DNS: []string{"10.160.0.1", "fd5c:ae11:9::1"}}
	return map[string]any{
		"network-config.full": NetworkConfig{Rev: 41, Network: "10.160.0.0/12", Network6: "fd5c:ae11:9::/48", Services: "10.172.0.0/14",
			Blocks: []string{"10.160.0.0/26"}, Gateway: "10.160.0.1", Peers: []Peer{{Node: "board-2", Key: sampleTunnelKey,
				Prefixes: []string{"10.160.0.64/26"}, Endpoints: []string{"192.168.1.21:51820", "[2001:db8::21]:51820"}, RelayOnly: true,
				Instances: []PeerInstance{{Address: "10.160.0.66", Service: "10.172.0.6", Job: "shop"}}},
				{Guest: "phone", Key: sampleGuest().PublicKey, Prefixes: []string{"10.160.1.1/32"}}},
			Relay: &Relay{URL: "http://:10100/relay"}, STUN: []string{":10100", ":10101"}},
		"network-config.off": NetworkConfig{Rev: 42, Reason: "the manager runs without an overlay"},
		"service-update.full": ServiceUpdate{Rev: 7, Full: true, More: true, Services: []ServiceEntry{sampleService()}, Gone: []JobName{"old"},
			Unknown: []string{"nobody", "10.172.3.4"}},
		"service-update.none":  ServiceUpdate{Rev: 8, Base: 7},
		"service-entry.full":   sampleService(),
		"service-entry.closed": ServiceEntry{Job: "db", RoundRobin: "10.172.0.8", Closest: "10.172.0.9", Policy: RoundRobin, Allow: []JobName{}},
		"interest.full":        Interest{Names: []JobName{"web", "nobody"}, Addresses: []string{"10.172.0.2"}, Full: true},
		"interest.none":        Interest{},
		"endpoints.full":       Endpoints{PublicKey: sampleTunnelKey, Endpoints: []string{"192.168.1.20:51820", "203.0.113.5:41000"}, NAT: "symmetric", RelayOnly: true},
		"endpoints.off":        Endpoints{Reason: "no /dev/net/tun: load the kernel's module tun"},
		"net-status.full": NetStatus{State: OverlayUp, NoNames: "listen 10.160.0.1:53: address already in use", NoIPv6: "the kernel has none", NAT: "cone", Dropped: map[string]int64{"denied": 3}, At: sampleTime(10),
			OverlayUse: use},
		"net-status.off": NetStatus{State: OverlayOff, Reason: "no /dev/net/tun: load the kernel's module tun", At: sampleTime(10)},
		"network-status.full": NetworkStatus{Network: "10.160.0.0/12", Network6: "fd5c:ae11:9::/48", Services: "10.172.0.0/14", Blocks: 3, Free: 12285,
			Addresses: 8, Guests: []Guest{sampleGuest()}, At: sampleTime(9)},
		"network-status.off":  NetworkStatus{At: sampleTime(9)},
		"trace-request.full":  TraceRequest{RequestID: "t1", Kind: TracePing, Instance: "shop.0.0", Name: "web.skerry.internal", Count: 3},
		"trace-answer.lookup": TraceAnswer{RequestID: "t1", Kind: TraceResolve, Last: true, Name: "web.skerry.internal", Addresses: []string{"10.172.0.0", "fd5c:ae11:9::c:0"}, Service: "web", Policy: RoundRobin, Healthy: 2, At: sampleTime(9)},
		"trace-answer.path": TraceAnswer{RequestID: "t1", Kind: TracePath, N: 1, Name: "web.skerry.internal", Service: "web", Policy: Closest, Healthy: 2, Instance: "web.0.2",
			Address: "10.160.0.66", Node: "board-2", Local: true, Path: Direct, Endpoint: "192.168.1.21:51820", RTTMS: 0.81, Again: true, MTU: 1420, At: sampleTime(9)},
		"trace-answer.lost": TraceAnswer{RequestID: "t1", Kind: TracePing, N: 2, Last: true, Lost: true, Error: "no reply within 2s", At: sampleTime(9)},
		"result.guest": Result{RequestID: "g1", Command: Add, Guest: "phone", Phase: Done, Message: "phone may join by board-1", GuestConfig: &config,
			Rev: 43, At: sampleTime(9)},
	}
}
