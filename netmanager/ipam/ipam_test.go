package ipam

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func testPlan(t testing.TB, v4 string) Plan {
	t.Helper()
	p, err := NewPlan(netip.MustParsePrefix(v4), netip.MustParsePrefix("fd5c:ae11:9::/48"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlan(t *testing.T) {
	p := testPlan(t, "10.160.0.0/12")
	if got := p.Services().String(); got != "10.172.0.0/14" {
		t.Errorf("services: got %s", got)
	}
	for in, want := range map[string]string{"10.160.0.0": "fd5c:ae11:9::", "10.160.0.1": "fd5c:ae11:9::1", "10.172.0.2": "fd5c:ae11:9::c:2",
		"10.175.255.255": "fd5c:ae11:9::f:ffff"} {
		a := netip.MustParseAddr(in)
		got := p.Map(a)
		if got.String() != want || p.Unmap(got) != a {
			t.Errorf("%s: got %s and back %s, want %s", in, got, p.Unmap(got), want)
		}
	}
	for _, in := range []string{"10.159.255.255", "10.176.0.0", "fd5c:ae11:9::1", "::ffff:10.160.0.1"} {
		if got := p.Map(netip.MustParseAddr(in)); got.IsValid() {
			t.Errorf("%s is mapped to %s", in, got)
		}
	}
	for _, in := range []string{"fd5c:ae11:9::10:0", "fd5c:ae11:9:1::1", "fd5c:ae11:8::1", "10.160.0.1", "fd5c:ae11:9:0:1::1"} {
		if got := p.Unmap(netip.MustParseAddr(in)); got.IsValid() {
			t.Errorf("%s comes from %s", in, got)
		}
	}
	if got := p.MapPrefix(netip.MustParsePrefix("10.160.0.64/26")).String(); got != "fd5c:ae11:9::40/122" {
		t.Errorf("a block: got %s", got)
	}
	if got := p.MapPrefix(netip.MustParsePrefix("10.160.1.1/32")).String(); got != "fd5c:ae11:9::101/128" {
		t.Errorf("a guest: got %s", got)
	}
	if got := p.MapPrefix(netip.MustParsePrefix("10.160.0.0/8")); got.IsValid() {
		t.Errorf("a wider prefix: got %s", got)
	}
}

func TestPlanRefused(t *testing.T) {
	good4, good6 := "10.160.0.0/12", "fd5c:ae11:9::/48"
	for _, c := range [][2]string{{"10.160.0.1/12", good6}, {"10.0.0.0/7", good6}, {"10.0.0.0/25", good6}, {"fd00::/48", good6}, {good4, "fd5c::1/48"},
		{good4, "fd5c:ae11:9::/97"}, {good4, "10.0.0.0/8"}, {good4, "::ffff:0:0/96"}} {
		v4, _ := netip.ParsePrefix(c[0])
		v6, _ := netip.ParsePrefix(c[1])
		if _, err := NewPlan(v4, v6); err == nil {
			t.Errorf("%v passed", c)
		}
	}
	if _, err := NewPlan(netip.Prefix{}, netip.Prefix{}); err == nil {
		t.Error("no network passed")
	}
}

func TestBlock(t *testing.T) {
	b, err := BlockOf(netip.MustParsePrefix("10.160.0.64/26"))
	if err != nil || b.Gateway().String() != "10.160.0.65" {
		t.Fatalf("got %s, %v", b.Gateway(), err)
	}
	used := map[netip.Addr]bool{}
	has := func(a netip.Addr) bool { return used[a] }
	var last netip.Addr
	for i := range Size {
		a, ok := b.Next(last, has)
		if want := number(base(b.Prefix()) + 2 + uint32(i)); !ok || a != want {
			t.Fatalf("%d: got %s, %v, want %s", i, a, ok, want)
		}
		used[a], last = true, a
	}
	if a, ok := b.Next(last, has); ok {
		t.Errorf("a full block gives %s", a)
	}
	for _, freed := range []string{"10.160.0.66", "10.160.0.100", "10.160.0.126"} {
		a := netip.MustParseAddr(freed)
		delete(used, a)
		if got, ok := b.Next(last, has); !ok || got != a {
			t.Errorf("got %s, %v, want %s", got, ok, a)
		}
		used[a] = true
	}
	if used[netip.MustParseAddr("10.160.0.127")] || used[b.Gateway()] || used[b.Prefix().Addr()] {
		t.Error("an address that is not a container's was given")
	}
	if got, ok := b.Next(netip.MustParseAddr("192.0.2.1"), func(netip.Addr) bool { return false }); !ok || got.String() != "10.160.0.66" {
		t.Errorf("after a foreign address: got %s", got)
	}
	for _, p := range []string{"10.160.0.0/25", "10.160.0.1/26", "fd00::/26"} {
		if _, err := BlockOf(netip.MustParsePrefix(p)); err == nil {
			t.Errorf("%s passed", p)
		}
	}
}

// TestNodesComeAndGo holds that what 1,000 nodes had is there again after they are gone.
func TestNodesComeAndGo(t *testing.T) {
	table := NewTable(testPlan(t, "10.160.0.0/12"))
	if err := table.TakeBlock("first", netip.MustParsePrefix("10.160.0.0/26")); err != nil {
		t.Fatal(err)
	}
	blocks, addresses := table.Free()
	for round := range 20 { // more than there are blocks: every one is used again
		leased := map[netip.Prefix]bool{}
		for i := range 1000 {
			p, err := table.Block(fmt.Sprintf("n%d", i))
			if err != nil || leased[p] || table.plan.Services().Overlaps(p) || !table.plan.V4.Overlaps(p) {
				t.Fatalf("round %d: got %s, %v", round, p, err)
			}
			leased[p] = true
		}
		for p := range leased {
			table.ReturnBlock(p)
			table.ReturnBlock(p)
		}
	}
	if b, a := table.Free(); b != blocks || a != addresses {
		t.Errorf("got %d and %d, want %d and %d", b, a, blocks, addresses)
	}
	if owner, ok := table.Owner(netip.MustParseAddr("10.160.0.63")); owner != "first" || !ok {
		t.Errorf("got %q", owner)
	}
	if l, _ := table.Leased(); l != 1 {
		t.Errorf("%d blocks are still leased", l)
	}
}

func TestExhausted(t *testing.T) {
	table := NewTable(testPlan(t, "192.168.0.0/24"))
	for i := range 3 {
		if p, err := table.Block("n"); err != nil || p.String() != fmt.Sprintf("192.168.0.%d/26", i*64) {
			t.Fatalf("got %s, %v", p, err)
		}
	}
	if _, err := table.Block("n"); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
	seen := map[netip.Addr]bool{}
	for range 64 {
		a, err := table.Address("web")
		if err != nil || seen[a] || !table.plan.Services().Contains(a) {
			t.Fatalf("got %s, %v", a, err)
		}
		seen[a] = true
	}
	if _, err := table.Address("web"); !errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
	table.ReturnAddress(netip.MustParseAddr("192.168.0.200"))
	if a, err := table.Address("web"); err != nil || a.String() != "192.168.0.200" {
		t.Errorf("got %s, %v", a, err)
	}
	for _, a := range []string{"192.168.0.10", "10.0.0.1", "fd00::1"} {
		table.ReturnAddress(netip.MustParseAddr(a)) // does no harm
		if err := table.TakeAddress("x", netip.MustParseAddr(a)); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: got %v", a, err)
		}
	}
	if err := table.TakeBlock("x", netip.MustParsePrefix("192.168.0.192/26")); !errors.Is(err, ErrForeign) {
		t.Errorf("a block of service addresses: got %v", err)
	}
	if err := table.TakeBlock("x", netip.MustParsePrefix("192.168.0.0/26")); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v", err)
	}
	if err := table.TakeBlock("n", netip.MustParsePrefix("192.168.0.0/26")); err != nil {
		t.Errorf("taken again: %v", err)
	}
}

// TestFreedRests holds that what was just given back is not leased at once.
func TestFreedRests(t *testing.T) {
	table := NewTable(testPlan(t, "10.160.0.0/12"))
	first, err := table.Address("web")
	if err != nil {
		t.Fatal(err)
	}
	table.ReturnAddress(first)
	for range 1000 {
		a, err := table.Address("other")
		if err != nil || a == first {
			t.Fatalf("got %s, %v", a, err)
		}
	}
}

// TestTableAgainstModel draws calls and compares with a plain map; a copy that is restored from the leases leases the same.
func TestTableAgainstModel(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		table := NewTable(testPlan(t, "10.0.0.0/20"))
		model := map[netip.Addr]string{}
		for range 3000 {
			owner := fmt.Sprintf("job-%d", r.IntN(50))
			switch {
			case r.IntN(3) > 0 || len(model) == 0:
				a, err := table.Address(owner)
				if (err != nil) != (len(model) == 1024) {
					t.Fatalf("seed %d: %d leased: %v", seed, len(model), err)
				}
				if err != nil {
					continue
				}
				if _, taken := model[a]; taken {
					t.Fatalf("seed %d: %s is leased twice", seed, a)
				}
				model[a] = owner
			default:
				keys := slices.SortedFunc(maps.Keys(model), netip.Addr.Compare)
				a := keys[r.IntN(len(keys))]
				table.ReturnAddress(a)
				delete(model, a)
			}
		}
		restored := NewTable(table.plan)
		for a, want := range model {
			if got, ok := table.Owner(a); !ok || got != want {
				t.Fatalf("seed %d: %s is %q's, want %q", seed, a, got, want)
			}
			if err := restored.TakeAddress(want, a); err != nil {
				t.Fatal(err)
			}
		}
		if _, n := table.Leased(); n != len(model) {
			t.Fatalf("seed %d: %d leased, want %d", seed, n, len(model))
		}
		for range 1024 - len(model) {
			a, err := restored.Address("new")
			if _, taken := model[a]; err != nil || taken {
				t.Fatalf("seed %d: restored: got %s, %v", seed, a, err)
			}
		}
	}
}

func BenchmarkAddress(b *testing.B) {
	table := NewTable(testPlan(b, "10.160.0.0/12"))
	for range 250_000 {
		if _, err := table.Address("x"); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		a, err := table.Address("x")
		if err != nil {
			b.Fatal(err)
		}
		table.ReturnAddress(a)
	}
}
