package overlay

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"skerry.internal/messages"
	"skerry.internal/netmanager/link"
	"skerry.internal/netmanager/service"
	"skerry.internal/node-engine/internal/store"
)

// FuzzStored holds for stored values of any content whose checksums are right: the engine goes on, with what can be said and put in force. What is wrong
// with the leases, the services or the guests does not cost the network of the configuration.
func FuzzStored(f *testing.F) {
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(encode(config(1)), encode([]lease{{"web.0.0", netip.MustParseAddr("10.160.0.66"), []messages.Port{{Container: 80, Host: 32768, Protocol: "tcp"}}}}),
		encode(kept{[]messages.ServiceEntry{web("10.160.0.131", true)}, []messages.JobName{"web"}}), encode(map[string]string{keyB: "203.0.113.9:4711"}))
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(f.TempDir(), quiet) // each worker is a process
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	f.Fuzz(func(t *testing.T, config, leases, services, guests []byte) {
		for name, content := range map[string][]byte{configValue: config, leasesValue: leases, servicesValue: services, guestsValue: guests} {
			if st.Note(name, json.RawMessage(content)) != nil {
				return // not JSON: the store's own matter
			}
		}
		m, err := New(Config{Node: func() messages.NodeID { return "n1" }, Seed: []byte("n1"), Off: true, Store: st, Manager: &url.URL{Host: "m"}}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		entries, interest := m.table.list(), m.asked.message(m.table, nil)
		if err := (&messages.ServiceUpdate{Services: entries}).Validate(); err != nil {
			t.Errorf("services: %v", err)
		}
		if err := interest.Validate(); err != nil {
			t.Errorf("interest: %v", err)
		}
		held := map[netip.Addr]bool{m.ground.gateway: true}
		for _, l := range m.book.list() {
			if held[l.Address] {
				t.Errorf("%s has %s, as somebody else", l.Instance, l.Address)
			}
			held[l.Address] = true
		}
		for _, at := range m.guests {
			if !at.Addr().IsValid() || at.Port() == 0 {
				t.Errorf("a guest is at %s", at)
			}
		}
		if m.config == nil {
			return
		}
		bare, err := translate(m.ground, m.config, nil, nil, nil)
		if err != nil {
			t.Fatalf("taken, and not understood: %v", err)
		}
		c, err := translate(m.ground, m.config, entries, m.book.list(), m.guests)
		if err != nil || bare.Validate() == nil && c.Validate() != nil {
			t.Fatalf("it costs the network: %v, %v", err, c.Validate())
		}
		links := link.Config{Name: "lab", MTU: 1420, Overlay: []netip.Prefix{c.Network, c.Network6}, Addresses: c.Blocks}
		without := links.Validate()
		if links.Ports = c.Ports; without == nil && links.Validate() != nil {
			t.Errorf("it costs the links: %v", links.Validate())
		}
		table := service.Config{Blocks: c.Blocks, ServiceRange: []netip.Prefix{c.Services, c.Services6}, Guests: c.Guests, Aliases: c.Aliases,
			RTT: func(netip.Addr) time.Duration { return 0 }}
		for i := range c.ServiceTable {
			table.Services = append(table.Services, &c.ServiceTable[i].Service)
		}
		service.NewTable(table)
	})
}

// FuzzReply holds for packets of any content: one is the answer to at most one request, of one family, and no request is an answer.
func FuzzReply(f *testing.F) {
	f.Fuzz(func(t *testing.T, packet []byte, id uint16) {
		v4, v6 := isReply(packet, false, id), isReply(packet, true, id)
		if v4 && v6 || (v4 || v6) && (isReply(packet, v6, id+1) || isReply(packet[:7], v6, id)) {
			t.Errorf("%x is the answer to %d and to others", packet, id)
		}
		for _, v6 := range []bool{false, true} {
			b := echo(v6, id)
			if isReply(b, v6, id) {
				t.Errorf("the request %x is its own answer", b)
			}
			if b[0] -= 8; v6 {
				b[0] = 129
			}
			if !isReply(append(b, packet...), v6, id) {
				t.Errorf("%x is no answer", b)
			}
		}
	})
}
