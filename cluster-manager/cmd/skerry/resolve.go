package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"skerry.internal/cluster-manager/cmd/skerry/internal/view"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

func (a *app) resolveCommand() *cobra.Command {
	var from string
	c := &cobra.Command{Use: "resolve NAME", Short: "Show what a name or address of the network stands for",
		Long: `Show what a name of the network stands for now: its addresses, and the instances that it leads to. NAME is web, closest.web or 0.web, with or
without ` + messages.Zone + ` behind it, or an address: of a service, of an instance or of a container. With --from a node is asked for what it knows, from
the point of view of an instance there.`,
		Example: "  skerry network resolve web\n  skerry network resolve 0.web." + messages.Zone + "\n  skerry network resolve 10.172.0.1\n  skerry network resolve web --from shop.0",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeFirst(a.serviceNames),
		RunE: running(func(ctx context.Context, args []string) error {
			if from != "" {
				return a.ask(ctx, from, messages.TraceRequest{Kind: messages.TraceResolve, Name: args[0]}, a.printTrace)
			}
			return a.read(ctx, func(_ *link, s *snapshot) error { return a.resolve(s, args[0]) }, messages.AllServicesFilter, networkTopic())
		})}
	c.Flags().StringVar(&from, "from", "", "ask the node of this instance, or this node, for what it knows")
	a.completeFlag(c, "from", a.vantageNames)
	return c
}

func (a *app) resolve(s *snapshot, name string) error {
	services, err := decodeAll[messages.ServiceEntry](s.raws(messages.ServiceTopic))
	if err != nil {
		return err
	}
	plan, err := s.plan()
	if err != nil {
		return err
	}
	r, err := resolveName(name, services, plan)
	if err != nil {
		return err
	}
	if a.json {
		return line(a.out, messages.Encode(r))
	}
	_, err = fmt.Fprint(a.out, a.style().Resolved(r))
	return err
}

// plan returns how the addresses of the network are divided; the zero one where there is no network.
func (s *snapshot) plan() (ipam.Plan, error) {
	n, err := s.network()
	if err != nil || n == nil || n.Network == "" {
		return ipam.Plan{}, err
	}
	v4, err4 := netip.ParsePrefix(n.Network)
	v6, err6 := netip.ParsePrefix(n.Network6)
	if err := errors.Join(err4, err6); err != nil {
		return ipam.Plan{}, fmt.Errorf("the status of the network cannot be understood: %w", err)
	}
	return ipam.NewPlan(v4, v6)
}

// The words for what a name may stand for.
const (
	roundRobin  = string(messages.RoundRobin)
	closest     = string(messages.Closest)
	oneInstance = "instance"
)

// resolveName finds what a name or an address stands for.
func resolveName(name string, services []messages.ServiceEntry, plan ipam.Plan) (view.Resolution, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if address, err := netip.ParseAddr(name); err == nil {
		return resolveAddress(address, services, plan)
	}
	labels := strings.Split(strings.TrimSuffix(name, "."+messages.Zone), ".")
	job := labels[len(labels)-1]
	if err := messages.CheckName("job", job); err != nil || len(labels) > 2 {
		return view.Resolution{}, usagef("%s is no name of the network: want web, closest.web or 0.web", name)
	}
	i := slices.IndexFunc(services, func(e messages.ServiceEntry) bool { return string(e.Job) == job })
	if i < 0 {
		return view.Resolution{}, fmt.Errorf("%s is no service of the network; skerry network services shows those there are", job)
	}
	e := services[i]
	if len(labels) == 1 {
		if e.Policy == messages.Closest {
			return resolution(e, closest, e.Closest, "", plan), nil
		}
		return resolution(e, roundRobin, e.RoundRobin, "", plan), nil
	}
	if labels[0] == closest {
		return resolution(e, closest, e.Closest, closest, plan), nil
	}
	for _, x := range e.Instances {
		if strconv.Itoa(x.Ordinal) == labels[0] {
			return resolution(e, oneInstance, x.Service, labels[0], plan), nil
		}
	}
	return view.Resolution{}, fmt.Errorf("%s has no copy %s; skerry network services %s shows those there are", job, labels[0], job)
}

// resolveAddress finds whose address it is.
func resolveAddress(address netip.Addr, services []messages.ServiceEntry, plan ipam.Plan) (view.Resolution, error) {
	wanted := address.Unmap().String()
	if v4 := plan.Unmap(address); v4.IsValid() {
		wanted = v4.String()
	}
	for _, e := range services {
		switch wanted {
		case e.RoundRobin:
			return resolution(e, roundRobin, e.RoundRobin, "", plan), nil
		case e.Closest:
			return resolution(e, closest, e.Closest, closest, plan), nil
		}
		for _, x := range e.Instances {
			if x.Service == wanted || x.Address == wanted {
				return resolution(e, oneInstance, x.Service, strconv.Itoa(x.Ordinal), plan), nil
			}
		}
	}
	return view.Resolution{}, fmt.Errorf("%s is the address of no service and no instance", address)
}

// resolution describes the name with this label before the job's.
func resolution(e messages.ServiceEntry, policy, address, label string, plan ipam.Plan) view.Resolution {
	r := view.Resolution{Name: string(e.Job) + "." + messages.Zone, Job: e.Job, Policy: policy, Addresses: []string{address}, Instances: view.Standings(e)}
	if label != "" {
		r.Name = label + "." + r.Name
	}
	if policy == oneInstance {
		r.Instances = slices.DeleteFunc(r.Instances, func(x view.Standing) bool { return strconv.Itoa(x.Ordinal) != label })
	}
	if v4, err := netip.ParseAddr(address); err == nil {
		if v6 := plan.Map(v4); v6.IsValid() {
			r.Addresses = append(r.Addresses, v6.String())
		}
	}
	return r
}
