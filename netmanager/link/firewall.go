//go:build linux

package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// maxElements is how many elements go into one message, whose attributes can be 64 KiB long.
const maxElements = 500

// errNoWall says that the kernel and its programs can set no firewall for a family.
var errNoWall = errors.New("no firewall for it can be set")

// setWalls decides what of the host has to change and sets the firewall, for one family after the other. A kernel whose firewall knows IPv4
// alone gets a network of IPv4 alone.
func (s *setting) setWalls() error {
	links, err := s.hostLinks()
	if err != nil {
		return err
	}
	s.record.use(s.Name)
	if err := s.noteIPv4(links); err != nil {
		return err
	}
	if err := s.setFirewall(true); err != nil {
		return err
	}
	before := *s.record
	s.noteIPv6(links)
	err = s.setFirewall(false)
	if errors.Is(err, errNoWall) {
		*s.record = before
		s.leaveOutIPv6(err)
		return nil
	}
	return err
}

// setFirewall writes the engine's table of one family where it is not what it shall be.
func (s *setting) setFirewall(v4 bool) error {
	if s.oldKernel[v4] {
		return s.setIptables(v4)
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return s.setIptables(v4) // the kernel has no nfnetlink
	}
	defer func() { _ = conn.CloseLasting() }()
	present, err := conn.ListChainsOfTableFamily(nftables.TableFamilyUnspecified)
	if unsupported(err) {
		return s.setIptables(v4)
	}
	if err != nil {
		return fmt.Errorf("list firewall: %w", err)
	}
	changed := false
	if len(ofFamily(s.Addresses, v4)) == 0 {
		changed = deleteTable(conn, present, tableName(s.Name), v4)
	} else {
		want := s.rulesetOf(v4)
		digest, err := want.digest()
		if err != nil {
			return err
		}
		if changed = !want.holds(conn, present, digest); changed {
			if err := want.write(conn, digest); err != nil {
				return err
			}
		}
	}
	if changed {
		err = conn.Flush()
		if unsupported(err) || errors.Is(err, unix.ENOENT) { // the family or an expression is missing; nothing was written
			return s.setIptables(v4)
		}
		if err != nil {
			return fmt.Errorf("write firewall: %w", err)
		}
		s.changed = true
	}
	s.marks[v4] = true
	return nil
}

// unsupported says whether something was refused because the kernel has no nf_tables, or not for that family: nfnetlink calls an unknown part of
// it invalid.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT)
}

// digest stands for everything in the ruleset.
func (r *ruleset) digest() (string, error) {
	sum := sha256.New()
	for _, s := range r.sets {
		fmt.Fprintf(sum, "set %s %v\n", s.set.Name, s.set.IsMap)
		for _, e := range s.elements {
			fmt.Fprintf(sum, "%x %x %v\n", e.Key, e.Val, e.IntervalEnd)
		}
	}
	for _, c := range r.chains {
		fmt.Fprintf(sum, "chain %s %d %d %s\n", c.name, *c.hook, c.priority, c.kind)
		for _, rule := range c.rules {
			if err := digestRule(sum, r.table.Family, rule); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

func digestRule(sum hash.Hash, family nftables.TableFamily, rule []expr.Any) error {
	for _, e := range rule {
		wire, err := expr.Marshal(byte(family), e)
		if err != nil {
			return fmt.Errorf("firewall rule: %w", err)
		}
		_, _ = sum.Write(wire)
	}
	fmt.Fprintln(sum)
	return nil
}

// holds says whether the kernel has the ruleset: the first rule of the first chain carries its digest, and no rule is missing or added.
func (r *ruleset) holds(conn *nftables.Conn, present []*nftables.Chain, digest string) bool {
	ours := slices.DeleteFunc(slices.Clone(present), func(c *nftables.Chain) bool {
		return c.Table.Name != r.table.Name || c.Table.Family != r.table.Family
	})
	if len(ours) != len(r.chains) {
		return false
	}
	for i, want := range r.chains {
		rules, err := conn.GetRules(r.table, &nftables.Chain{Name: want.name})
		if err != nil || len(rules) != len(want.rules) {
			return false
		}
		if i > 0 {
			continue
		}
		if got, _ := userdata.GetString(rules[0].UserData, userdata.TypeComment); got != digest {
			return false
		}
	}
	return true
}

// write adds to the transaction that the table be replaced.
func (r *ruleset) write(conn *nftables.Conn, digest string) error {
	conn.AddTable(r.table) // so that it can be deleted
	conn.DelTable(r.table)
	conn.AddTable(r.table)
	for _, s := range r.sets {
		if err := conn.AddSet(s.set, nil); err != nil {
			return fmt.Errorf("firewall set %s: %w", s.set.Name, err)
		}
		for elements := range slices.Chunk(s.elements, maxElements) {
			if err := conn.SetAddElements(s.set, elements); err != nil {
				return fmt.Errorf("firewall set %s: %w", s.set.Name, err)
			}
		}
	}
	for _, c := range r.chains {
		added := conn.AddChain(&nftables.Chain{Name: c.name, Table: r.table, Type: c.kind, Hooknum: c.hook, Priority: &c.priority})
		for _, rule := range c.rules {
			var comment []byte
			if digest != "" {
				comment, digest = userdata.AppendString(nil, userdata.TypeComment, digest), ""
			}
			conn.AddRule(&nftables.Rule{Table: r.table, Chain: added, Exprs: rule, UserData: comment})
		}
	}
	return nil
}

// deleteTable adds to the transaction that the engine's table goes, and says whether there is one.
func deleteTable(conn *nftables.Conn, present []*nftables.Chain, name string, v4 bool) bool {
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv6}
	if v4 {
		table.Family = nftables.TableFamilyIPv4
	}
	found := slices.ContainsFunc(present, func(c *nftables.Chain) bool { return c.Table.Name == table.Name && c.Table.Family == table.Family })
	if found {
		conn.DelTable(table)
	}
	return found
}

// removeFirewall takes the engine's tables away, and its rules among those of others.
func removeFirewall(name string) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return removeIptables(name)
	}
	defer func() { _ = conn.CloseLasting() }()
	present, err := conn.ListChainsOfTableFamily(nftables.TableFamilyUnspecified)
	if unsupported(err) {
		return removeIptables(name)
	}
	if err != nil {
		return fmt.Errorf("list firewall: %w", err)
	}
	changed := deleteTable(conn, present, tableName(name), true)
	changed = deleteTable(conn, present, tableName(name), false) || changed
	if changed {
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("remove firewall: %w", err)
		}
	}
	return errors.Join(leaveOthers(conn, present, name), removeIptables(name))
}
