package overlay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"skerry.internal/messages"
)

// sound returns of what an earlier run has kept that in which check finds nothing wrong, and says how much else there was. It is believed no more than
// what comes over the wire: a checksum does not tell of another version's mistake, nor of files of two different moments. One bad entry would cost the whole
// network, which takes a configuration whole or not at all.
func sound[T any](log *slog.Logger, what string, all []T, check func(T) error) (good []T) {
	var first error
	for _, v := range all {
		if err := check(v); err == nil {
			good = append(good, v)
		} else if first == nil {
			first = fmt.Errorf("%s: %w", what, err)
		}
	}
	if first != nil {
		log.Warn("stored entries left out", "count", len(all)-len(good), "err", first)
	}
	return good
}

// leases returns what checks leases one after the other: also that no two have the same.
func (g ground) leases() func(lease) error {
	instances, addresses, ports := map[messages.InstanceID]bool{}, map[netip.Addr]bool{g.gateway: true}, map[number]bool{}
	return func(l lease) error {
		job, _, generation, err := l.Instance.Split()
		if err != nil {
			return err
		}
		// It is told of in this form.
		told := messages.InstanceStatus{Instance: l.Instance, Job: job, Generation: generation, State: messages.Running, Ports: l.Ports}
		if err := told.Validate(); err != nil {
			return err
		}
		if !l.Address.Is4() || addresses[l.Address] || instances[l.Instance] {
			return fmt.Errorf("%s: address %s is none, or somebody else's, or a second one", l.Instance, l.Address)
		}
		own := map[number]bool{}
		for _, p := range l.Ports {
			n := number{p.Protocol, p.Host}
			if p.Protocol == "" || p.Host == 0 || ports[n] || own[n] {
				return fmt.Errorf("%s: host port %d/%s is none, or taken already", l.Instance, p.Host, p.Protocol)
			}
			own[n] = true
		}
		for n := range own {
			ports[n] = true
		}
		instances[l.Instance], addresses[l.Address] = true, true
		return nil
	}
}

// entry checks a service, also that it is of this network where there is one.
func (g ground) entry(s messages.ServiceEntry) error {
	if err := s.Validate(); err != nil || !g.plan.V4.IsValid() {
		return err
	}
	services := g.plan.Services()
	for _, a := range addressesOf(s) {
		if !services.Contains(a) {
			return fmt.Errorf("%s: %s is no service address of %s", s.Job, a, g.plan.V4)
		}
	}
	for _, i := range s.Instances {
		if a, _ := g.address(i.Address); a.IsValid() && !g.plan.V4.Contains(a) {
			return fmt.Errorf("%s: %s is not of %s", s.Job, a, g.plan.V4)
		}
	}
	return nil
}

// names returns what checks the names that are asked for one after the other.
func names() func(messages.JobName) error {
	seen := map[messages.JobName]bool{}
	return func(n messages.JobName) error {
		if seen[n] || len(seen) >= messages.MaxInterest {
			return errors.New("asked for twice, or one too many")
		}
		err := messages.CheckName("job", string(n))
		if err == nil {
			seen[n] = true
		}
		return err
	}
}
