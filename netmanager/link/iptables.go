//go:build linux

package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The firewall on a kernel without nf_tables: the same walls by the iptables programs, in chains of our own that are written as a whole. The
// clamping of segment sizes is not in it, and neither are redirects kept in. Nothing is marked for the routing, so containers of this node reach
// one another by service addresses and published ports, and not by their own addresses.

// programTimeout bounds one call of iptables, which waits for others who hold its lock.
const programTimeout = 20 * time.Second

// errNoPrograms says that there is no other way to set a firewall either.
var errNoPrograms = fmt.Errorf("%w: the kernel has no nf_tables and there is no iptables program", errNoWall)

// programs are the save and restore of one family, the ones for the older tables where a distribution has both.
func programs(v4 bool) (save, restore string, err error) {
	base := "ip6tables"
	if v4 {
		base = "iptables"
	}
	for _, name := range []string{base + "-legacy", base} {
		save, err1 := exec.LookPath(name + "-save")
		restore, err2 := exec.LookPath(name + "-restore")
		if err1 == nil && err2 == nil {
			return save, restore, nil
		}
	}
	return "", "", errNoPrograms
}

// run runs a program, in the calling thread's namespace.
func run(input, name string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, arguments...) //nolint:gosec // one of programs
	cmd.Stdin = strings.NewReader(input)
	var output, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &problem
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(problem.Bytes()))
		if ctx.Err() == nil && cmd.ProcessState != nil && cmd.ProcessState.ExitCode() != resourceProblem {
			err = fmt.Errorf("%w: %w", errNoWall, err)
		}
		return "", err
	}
	return output.String(), nil
}

// resourceProblem is how the programs end when others hold their lock for too long, or memory is short: neither says what the kernel can.
const resourceProblem = 4

// chainPrefix begins the names of the engine's chains.
func chainPrefix(name string) string { return "SK-" + name + "-" }

// jumps lead from the kernel's chains to ours, by table.
func jumps(name string) map[string][][2]string {
	p := chainPrefix(name)
	local := "-m addrtype --dst-type LOCAL "
	return map[string][][2]string{
		"raw":    {{"PREROUTING", "-j " + p + "GUARD"}},
		"nat":    {{"PREROUTING", local + "-j " + p + "PUB"}, {"OUTPUT", local + "-j " + p + "PUB"}, {"POSTROUTING", "-j " + p + "MASQ"}},
		"filter": {{"FORWARD", "-j " + p + "FWD"}},
	}
}

func (s *setting) setIptables(v4 bool) error {
	if len(ofFamily(s.Addresses, v4)) == 0 {
		return nil
	}
	save, restore, err := programs(v4)
	if err != nil {
		return err
	}
	present, err := run("", save)
	if err != nil {
		return fmt.Errorf("list firewall: %w", err)
	}
	want := s.chains(v4)
	sum := sha256.Sum256([]byte(want["raw"] + want["nat"] + want["filter"]))
	mark := chainPrefix(s.Name) + hex.EncodeToString(sum[:4])
	if script := iptablesScript(s.Name, present, want, mark); script != "" {
		s.changed = true
		if _, err := run(script, restore, "--noflush"); err != nil {
			return fmt.Errorf("write firewall: %w", err)
		}
	}
	return nil
}

// iptablesScript is what makes the tables that are present into those that are wanted: nothing when the mark, a chain named by a digest of the
// rules, is there, and all jumps are.
func iptablesScript(name, present string, want map[string]string, mark string) string {
	var script strings.Builder
	marked := strings.Contains(present, "\n:"+mark+" ")
	for _, table := range []string{"raw", "nat", "filter"} {
		var lines strings.Builder
		if !marked {
			for _, chain := range chainNames(want[table]) {
				fmt.Fprintf(&lines, ":%s - [0:0]\n", chain)
			}
			lines.WriteString(want[table])
		}
		there := tableOf(present, table)
		for _, jump := range jumps(name)[table] {
			if !slices.Contains(there, "-A "+jump[0]+" "+jump[1]) {
				fmt.Fprintf(&lines, "-I %s 1 %s\n", jump[0], jump[1])
			}
		}
		if table == "filter" && !marked {
			for _, old := range ownChains(there, name) {
				if isMark.MatchString(strings.TrimPrefix(old, chainPrefix(name))) {
					fmt.Fprintf(&lines, "-X %s\n", old)
				}
			}
			fmt.Fprintf(&lines, ":%s - [0:0]\n", mark)
		}
		if lines.Len() > 0 {
			fmt.Fprintf(&script, "*%s\n%sCOMMIT\n", table, lines.String())
		}
	}
	return script.String()
}

// isMark tells marks from chains with rules.
var isMark = regexp.MustCompile(`^[0-9a-f]{8}$`)

// chainNames are the chains that rules are added to, each once.
func chainNames(rules string) []string {
	var names []string
	for line := range strings.Lines(rules) {
		if words := strings.Fields(line); len(words) > 1 && !slices.Contains(names, words[1]) {
			names = append(names, words[1])
		}
	}
	return names
}

// tableOf returns the lines of one table of what iptables-save wrote.
func tableOf(saved, table string) []string {
	_, rest, found := strings.Cut(saved, "*"+table+"\n")
	if !found {
		return nil
	}
	rest, _, _ = strings.Cut(rest, "\nCOMMIT")
	return strings.Split(rest, "\n")
}

// ownChains are the engine's in a table.
func ownChains(lines []string, name string) []string {
	var names []string
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, ":"+chainPrefix(name)); ok {
			short, _, _ := strings.Cut(rest, " ")
			names = append(names, chainPrefix(name)+short)
		}
	}
	return names
}

// chains are the rules of ruleset.go in the other language, by table.
func (s *setting) chains(v4 bool) map[string]string {
	b, t, p := Bridge(s.Name), TUN(s.Name), chainPrefix(s.Name)
	var raw, nat, filter strings.Builder
	guard := func(format string, a ...any) { fmt.Fprintf(&raw, "-A "+p+"GUARD "+format+"\n", a...) }
	publish := func(format string, a ...any) { fmt.Fprintf(&nat, "-A "+p+"PUB "+format+"\n", a...) }
	masq := func(format string, a ...any) { fmt.Fprintf(&nat, "-A "+p+"MASQ "+format+"\n", a...) }
	forward := func(format string, a ...any) { fmt.Fprintf(&filter, "-A "+p+"FWD "+format+"\n", a...) }
	var blocks []netip.Prefix
	for _, a := range ofFamily(s.Addresses, v4) {
		blocks = append(blocks, a.Masked())
	}

	if v4 {
		guard("-d 127.0.0.0/8 -i %s -j DROP", b)
		masq("-s 127.0.0.0/8 -o %s -j MASQUERADE", b)
	} else {
		publish("-d ::1/128 -j RETURN")
		guard("-s fe80::/10 -i %s -j RETURN", b)
		guard("-s ::/128 -i %s -j RETURN", b)
	}
	for _, block := range blocks {
		guard("-s %s -i %s -j RETURN", block, b)
	}
	guard("-i %s -j DROP", b)
	for _, trusted := range append(s.engineLinks(), t, "lo") {
		guard("-i %s -j RETURN", trusted)
	}
	guard("-s %s -j DROP", ofFamily(s.Overlay, v4)[0].Masked())
	for _, block := range blocks {
		masq("-s %s -o %s -m conntrack --ctstate DNAT -j MASQUERADE", block, b)
	}
	for _, inner := range []string{b, t, "lo"} {
		masq("-o %s -j RETURN", inner)
	}
	for _, block := range blocks {
		masq("-s %s -j MASQUERADE", block)
	}
	s.chainPublish(v4, publish)
	forward("-i %s -o %s -m conntrack ! --ctstate DNAT -j DROP", b, b)
	forward("-i %s -j ACCEPT", b)
	forward("-i %s -o %s -j ACCEPT", t, b)
	forward("-i %s -o %s -j ACCEPT", t, t)
	forward("-i %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", t)
	forward("-i %s -j DROP", t)
	for _, out := range []string{b, t} {
		forward("-o %s -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT", out)
		forward("-o %s -j DROP", out)
	}
	for _, quiet := range s.quiet(v4) {
		forward("-i %s -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j DROP", quiet)
	}
	return map[string]string{"raw": raw.String(), "nat": nat.String(), "filter": filter.String()}
}

// engineLinks are the bridges and TUN devices of the other engines of this host.
func (s *setting) engineLinks() []string {
	links, err := Whole(s.handle.LinkList)
	if err != nil {
		return nil // nothing more is trusted
	}
	var names []string
	for _, l := range links {
		if a := l.Attrs(); a.Group == group && a.Name != Bridge(s.Name) && a.Name != TUN(s.Name) {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *setting) chainPublish(v4 bool, publish func(string, ...any)) {
	for _, a := range ofFamily(s.Addresses, v4) {
		for _, protocol := range []Protocol{TCP, UDP} {
			publish("-d %s -p %s -m %s --dport %d -j RETURN", netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), protocol, protocol, namePort)
		}
	}
	for _, port := range s.Ports {
		if port.Target.Addr().Is4() == v4 {
			publish("-p %s -m %s --dport %d -j DNAT --to-destination %s", port.Protocol, port.Protocol, port.HostPort, port.Target)
		}
	}
}

// removeIptables takes the engine's chains away, where there can be any.
func removeIptables(name string) error {
	var errs []error
	for _, v4 := range []bool{true, false} {
		if !legacyTables(v4) {
			continue
		}
		save, restore, err := programs(v4)
		if errors.Is(err, errNoPrograms) {
			continue
		}
		present, err := run("", save)
		if err != nil {
			errs = append(errs, fmt.Errorf("list firewall: %w", err))
			continue
		}
		if script := removalScript(name, present); script != "" {
			if _, err := run(script, restore, "--noflush"); err != nil {
				errs = append(errs, fmt.Errorf("remove firewall: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

func removalScript(name, present string) string {
	var script strings.Builder
	for _, table := range []string{"raw", "nat", "filter"} {
		there := tableOf(present, table)
		var lines strings.Builder
		for _, line := range there {
			rule, ok := strings.CutPrefix(line, "-A ")
			ours := strings.Contains(rule, "-j "+chainPrefix(name)) && !strings.HasPrefix(rule, chainPrefix(name))
			if ok && (ours || isLegacyPass(rule, name)) {
				fmt.Fprintf(&lines, "-D %s\n", rule)
			}
		}
		for _, verb := range []string{"-F ", "-X "} {
			for _, chain := range ownChains(there, name) {
				fmt.Fprintf(&lines, "%s%s\n", verb, chain)
			}
		}
		if lines.Len() > 0 {
			fmt.Fprintf(&script, "*%s\n%sCOMMIT\n", table, lines.String())
		}
	}
	return script.String()
}

// legacyTables says whether the namespace has any of the older tables; to ask with the programs would make them.
func legacyTables(v4 bool) bool {
	file := "/proc/thread-self/net/ip6_tables_names"
	if v4 {
		file = "/proc/thread-self/net/ip_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && len(bytes.TrimSpace(names)) > 0
}

// isLegacyPass says whether a rule, after "-A ", is one of passes in one of the chains where they can be.
func isLegacyPass(rule, name string) bool {
	chain, text, _ := strings.Cut(rule, " ")
	return slices.ContainsFunc(passes(name), func(p pass) bool {
		return p.text == text && (chain == p.chain || chain == othersUser)
	})
}

// passLegacy is passOthers for the older tables, which judge beside nf_tables where somebody uses them.
func (s *setting) passLegacy() error {
	for _, v4 := range []bool{true, false} {
		save, restore, err := programs(v4)
		if errors.Is(err, errNoPrograms) || !legacyTables(v4) {
			continue
		}
		present, err := run("", save)
		if err != nil {
			return fmt.Errorf("list other firewalls: %w", err)
		}
		filter := tableOf(present, "filter")
		has := func(start string) bool {
			return slices.ContainsFunc(filter, func(line string) bool { return strings.HasPrefix(line, start) })
		}
		var lines strings.Builder
		for _, p := range passes(s.Name) {
			chain := p.chain
			switch {
			case chain == othersForward && s.oldKernel[v4]: // our own chain is there, in front
				continue
			case chain == othersForward && has(":"+othersUser+" "):
				chain = othersUser
			case !has(":" + chain + " DROP"):
				continue
			}
			if !slices.Contains(filter, "-A "+chain+" "+p.text) {
				fmt.Fprintf(&lines, "-I %s 1 %s\n", chain, p.text)
			}
		}
		if lines.Len() == 0 {
			continue
		}
		if _, err := run("*filter\n"+lines.String()+"COMMIT\n", restore, "--noflush"); err != nil {
			return fmt.Errorf("let the overlay pass other firewalls: %w", err)
		}
	}
	return nil
}
