package service

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
)

// Whatever the seed, ports that are taken one after the other, or every second one as Linux does, and neighbouring addresses come to all shards alike.
func TestShardsShare(t *testing.T) {
	one := addrOf(netip.MustParseAddr("10.160.1.20"))
	six := addrOf(netip.MustParseAddr("fd5c:ae11:9::1:20"))
	const count = 40 * shards
	for name, base := range map[string]func(t *flows, i int) uint64{
		"ports":           func(t *flows, i int) uint64 { return t.base(one, uint16(4000+i), 80, protoTCP) },
		"every second":    func(t *flows, i int) uint64 { return t.base(one, uint16(4000+2*i), 80, protoTCP) },
		"ports over IPv6": func(t *flows, i int) uint64 { return t.base(six, uint16(4000+i), 80, protoUDP) },
		"of servers":      func(t *flows, i int) uint64 { return t.base(one, 8080, uint16(32768+i), protoTCP) },
		"containers":      func(t *flows, i int) uint64 { return t.base(addr{0, one.lo + uint64(i)}, 4000, 80, protoTCP) },
	} {
		for range 300 {
			table := &flows{seed: randomSeed()}
			load := map[*shard]int{}
			for i := range count {
				load[table.of(base(table, i))]++
			}
			counts := slices.Sorted(maps.Values(load))
			least, most := counts[0], counts[len(counts)-1]
			if len(load) < shards || least < 8 || most > 90 { // 40 and five times their deviation, and more
				t.Errorf("%s, seed %x: %d shards have flows, one %d and another one %d, want some %d each", name, table.seed, len(load), least, most, count/shards)
				break
			}
		}
	}
}
