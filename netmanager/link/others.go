//go:build linux

package link

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Firewalls of others judge what we let through too, and one that drops has the last word: Docker sets the policy of FORWARD to drop, and an
// administrator's may drop what comes in. So what concerns our bridge and TUN device is let through there: in DOCKER-USER, which Docker keeps for
// its users, else in FORWARD where its policy is to drop; and questions for names in INPUT where its policy is to drop. What may come in to containers is
// decided by our own table. Only tables in the form of iptables are looked at; those of a firewall program with a language of its own
// (firewalld) are its administrator's.

const (
	othersTable   = "filter"
	othersForward = "FORWARD"
	othersUser    = "DOCKER-USER"
	othersInput   = "INPUT"
)

// pass is one rule that lets something of ours through a chain, in both languages.
type pass struct {
	chain string
	rule  []expr.Any
	text  string // as iptables-save writes it
}

func passes(name string) []pass {
	of := func(key expr.MetaKey, link string, more ...expr.Any) []expr.Any {
		// Written as iptables writes it, so that it shows it.
		return slices.Concat([]expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(link), 0)}},
			more, []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}})
	}
	var all []pass
	for _, link := range []string{Bridge(name), TUN(name)} {
		all = append(all,
			pass{othersForward, of(expr.MetaKeyIIFNAME, link), "-i " + link + " -j ACCEPT"},
			pass{othersForward, of(expr.MetaKeyOIFNAME, link), "-o " + link + " -j ACCEPT"})
	}
	for _, protocol := range []Protocol{TCP, UDP} {
		names := append(l4(protocol.number()), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, namePort}})
		all = append(all, pass{othersInput, of(expr.MetaKeyIIFNAME, Bridge(name), names...),
			fmt.Sprintf("-i %s -p %s -m %s --dport %d -j ACCEPT", Bridge(name), protocol, protocol, namePort)})
	}
	return all
}

// namePort is where containers ask for names, at the gateway.
const namePort = 53

// passOthers lets our traffic through the chains of others, in nf_tables and in the older tables beside it.
func (s *setting) passOthers() error {
	if s.oldKernel[true] {
		return s.passLegacy()
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return s.passLegacy() // as setFirewall found
	}
	defer func() { _ = conn.CloseLasting() }()
	present, err := conn.ListChainsOfTableFamily(nftables.TableFamilyUnspecified)
	if unsupported(err) {
		return s.passLegacy()
	}
	if err != nil {
		return fmt.Errorf("list firewall: %w", err)
	}
	changed := false
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		for _, p := range passes(s.Name) {
			chain := dropping(present, family, p.chain)
			if chain == nil {
				continue
			}
			rules, err := conn.GetRules(chain.Table, chain)
			if err != nil {
				return fmt.Errorf("rules of %s: %w", chain.Name, err)
			}
			if !slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return samePass(family, r.Exprs, p.rule) }) {
				conn.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: p.rule})
				changed = true
			}
		}
	}
	if changed {
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("let the overlay pass other firewalls: %w", err)
		}
	}
	return s.passLegacy()
}

// dropping is the chain into which rules for a chain of the kernel's go; nil when none are needed.
func dropping(present []*nftables.Chain, family nftables.TableFamily, name string) *nftables.Chain {
	chain := othersChain(present, family, name)
	if chain == nil || chain.Hooknum == nil {
		return nil
	}
	if user := othersChain(present, family, othersUser); name == othersForward && user != nil {
		return user
	}
	if chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop {
		return chain
	}
	return nil
}

func othersChain(present []*nftables.Chain, family nftables.TableFamily, name string) *nftables.Chain {
	i := slices.IndexFunc(present, func(c *nftables.Chain) bool {
		return c.Table.Family == family && c.Table.Name == othersTable && c.Name == name
	})
	if i < 0 {
		return nil
	}
	return present[i]
}

// samePass compares a rule, whose counter has counted, with one of passes.
func samePass(family nftables.TableFamily, rule, want []expr.Any) bool {
	return slices.EqualFunc(rule, want, func(a, b expr.Any) bool {
		if _, counter := b.(*expr.Counter); counter {
			_, counter = a.(*expr.Counter)
			return counter
		}
		wireA, errA := expr.Marshal(byte(family), a)
		wireB, errB := expr.Marshal(byte(family), b)
		return errA == nil && errB == nil && bytes.Equal(wireA, wireB)
	})
}

// leaveOthers takes our rules out of the chains of others, wherever they were put when the chains were different.
func leaveOthers(conn *nftables.Conn, present []*nftables.Chain, name string) error {
	changed := false
	var errs []error
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		for _, chainName := range []string{othersForward, othersUser, othersInput} {
			chain := othersChain(present, family, chainName)
			if chain == nil {
				continue
			}
			rules, err := conn.GetRules(chain.Table, chain)
			if err != nil {
				errs = append(errs, fmt.Errorf("rules of %s: %w", chainName, err))
			}
			for _, rule := range rules {
				if slices.ContainsFunc(passes(name), func(p pass) bool { return samePass(family, rule.Exprs, p.rule) }) {
					errs = append(errs, conn.DelRule(rule))
					changed = true
				}
			}
		}
	}
	if changed {
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) { // somebody else flushed them meanwhile
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
