package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
)

// onLAN is a lab whose workloads are on the overlay.
type onLAN struct {
	*lab
	net *lan
}

func newOnLAN(t *testing.T) *onLAN {
	t.Helper()
	l, network := newLab(t), newLAN(t)
	o := &onLAN{lab: l, net: network}
	l.Driver = o.again(0)
	return o
}

// again is a driver as an engine holds after its restart.
func (o *onLAN) again(warm int) *Driver {
	return newDriver(o.t, Config{Node: o.node(), Network: o.net, Warm: warm})
}

func (o *onLAN) node() messages.NodeID { return o.cfg.Node }

// watching runs Watch of a driver until the test or end ends it.
func watching(t testing.TB, d *Driver) (seen <-chan driver.Workload, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	all, ready := make(chan driver.Workload, 1000), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { d.Watch(ctx, func() { close(ready) }, func(w driver.Workload) { all <- w }) })
	end = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(end)
	<-ready
	return all, end
}

// boxesOf returns the sandboxes of the node by their state.
func (o *onLAN) boxesOf() map[string][]string {
	o.t.Helper()
	f := filters.NewArgs(filters.Arg("label", LabelNode+"="+string(o.node())), filters.Arg("label", LabelRole+"="+roleSandbox))
	all, err := o.cli.ContainerList(context.Background(), container.ListOptions{All: true, Filters: f})
	if err != nil {
		o.t.Fatal(err)
	}
	by := map[string][]string{}
	for _, c := range all {
		by[c.State] = append(by[c.State], c.ID)
	}
	return by
}

func (o *onLAN) number(state string) int { return len(o.boxesOf()[state]) }

// What a workload finds is there before its first instruction: the interface, who answers names, and its own name.
func TestNetworkIsThereFromTheBeginning(t *testing.T) {
	o := newOnLAN(t)
	w := o.start(o.spec("web.0.0", "read=/proc/net/dev", "read=/proc/net/if_inet6", "read=/etc/resolv.conf", "read=/etc/hosts", "env", "exit=0"))
	box := sandboxOf(o.raw("web.0.0"))[:12]
	out := o.output("web.0.0")
	for _, want := range []string{"eth0:", "00000000000000000000000000000001", "nameserver 198.18.0.1\nsearch skerry.internal",
		w.Address.String() + "\t" + box, "HOSTNAME=" + box} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestSandboxOutlivesTheWorkload(t *testing.T) {
	o := newOnLAN(t)
	spec := o.spec("web.0.0", "sleep")
	first := o.start(spec)
	for range 2 {
		box := sandboxOf(o.raw("web.0.0"))
		if err := o.cli.ContainerKill(t.Context(), first.ID, "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		o.ended("web.0.0")
		again := o.start(spec)
		if again.Address != first.Address || again.ID != first.ID || sandboxOf(o.raw("web.0.0")) != box {
			t.Errorf("got %+v in %s, want %+v in %s", again, sandboxOf(o.raw("web.0.0")), first, box)
		}
	}
	// A changed spec is another container, at the same address.
	changed := o.start(o.spec("web.0.0", "print=changed", "sleep"))
	if changed.ID == first.ID || changed.Address != first.Address {
		t.Errorf("changed: got %+v after %+v", changed, first)
	}
	if got := o.boxesOf(); len(got["running"]) != 1 || len(got) != 1 {
		t.Errorf("got sandboxes %v, want one that runs", got)
	}
	if err := o.Stop(t.Context(), "web.0.0", messages.Stop{}); err != nil {
		t.Fatal(err)
	}
	if got, attached := o.boxesOf(), o.net.Attached(); len(got) != 0 || len(attached) != 0 {
		t.Errorf("left behind: sandboxes %v, attached %v", got, attached)
	}
}

// An engine that begins anew takes up what runs as it is, and so after a reboot.
func TestSandboxIsTakenUp(t *testing.T) {
	o := newOnLAN(t)
	spec := o.spec("web.0.0", "sleep")
	spec.Ports = []messages.Port{{Container: 80}}
	first := o.start(spec)
	box := sandboxOf(o.raw("web.0.0"))
	o.Driver = o.again(-1)
	_, end := watching(t, o.Driver)
	all, err := o.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Address != first.Address || all[0].Ports[0] != first.Ports[0] || !all[0].Running {
		t.Fatalf("got %+v, %v, want %+v", all, err, first)
	}
	if again := o.start(spec); !again.StartedAt.Equal(first.StartedAt) || o.number("running") != 1 {
		t.Errorf("got %+v, want %+v left alone", again, first)
	}
	end()
	for _, id := range []string{first.ID, box} {
		if err := o.cli.ContainerKill(t.Context(), id, "SIGKILL"); err != nil {
			t.Fatal(err)
		}
	}
	o.ended("web.0.0")
	o.Driver = o.again(-1)
	rebooted := o.start(spec)
	if rebooted.ID != first.ID || rebooted.Address != first.Address || sandboxOf(o.raw("web.0.0")) != box || !rebooted.Running {
		t.Errorf("after a reboot: got %+v, want %+v", rebooted, first)
	}
	if namespaceOf(o.raw("web.0.0").State.Pid) != o.net.wires["web.0.0"].namespace {
		t.Error("after a reboot: it does not run where it is attached")
	}
}

// Somebody stops a sandbox, or restarts it, with the engine there or not: the workload counts as interrupted, and its start mends it.
func TestSandboxEndedByAnother(t *testing.T) {
	o := newOnLAN(t)
	o.Driver = o.again(-1) // a machine that takes long gets sandboxes to keep ready meanwhile
	spec := o.spec("web.0.0", "sleep")
	first := o.start(spec)
	seen, end := watching(t, o.Driver)
	now := 1
	if err := o.cli.ContainerStop(t.Context(), sandboxOf(o.raw("web.0.0")), container.StopOptions{Timeout: &now}); err != nil {
		t.Fatal(err)
	}
	interrupted := func() driver.Workload {
		for {
			select {
			case w := <-seen:
				if !w.Running {
					return w
				}
			case <-time.After(patience):
				t.Fatal("nothing said of it")
			}
		}
	}
	if w := interrupted(); w.Instance != "web.0.0" || w.ID != first.ID || w.Exit != nil || !w.StartedAt.Equal(first.StartedAt) {
		t.Errorf("got %+v, want an end that nobody caused", w)
	}
	second := o.start(spec)
	if second.ID == first.ID || second.Address != first.Address || !second.Running {
		t.Errorf("got %+v, want a new container at the address of %+v", second, first)
	}
	end()
	if err := o.cli.ContainerRestart(t.Context(), sandboxOf(o.raw("web.0.0")), container.StopOptions{Timeout: &now}); err != nil {
		t.Fatal(err)
	}
	o.Driver = o.again(-1)
	if all, err := o.List(t.Context()); err != nil || len(all) != 1 || all[0].Running || all[0].Exit != nil {
		t.Errorf("behind the engine's back: got %+v, %v", all, err)
	}
	if third := o.start(spec); third.ID == second.ID || third.Address != first.Address {
		t.Errorf("got %+v, want a new container at the address of %+v", third, first)
	}
	if got := o.boxesOf(); len(got) != 1 || len(got["running"]) != 1 {
		t.Errorf("got sandboxes %v, want one that runs", got)
	}
}

func TestWarmSandboxes(t *testing.T) {
	o := newOnLAN(t)
	_, end := watching(t, o.Driver)
	eventually(t, "two are kept ready", func() bool { return o.number("running") == 2 && o.boxes.missing() == 0 })
	spec := o.spec("web.0.0", "sleep")
	ready := o.boxesOf()["running"]
	o.start(spec)
	if used := sandboxOf(o.raw("web.0.0")); used != ready[0] && used != ready[1] {
		t.Errorf("%s was made for it, though %v were ready", used, ready)
	}
	eventually(t, "the pool is filled again", func() bool { return o.number("running") == 3 && o.boxes.missing() == 0 })
	if err := o.cli.ContainerKill(t.Context(), o.boxes.warm[0].id, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one that ended is replaced", func() bool { return o.number("running") == 3 && o.boxes.missing() == 0 })
	end()

	before := o.boxesOf()["running"]
	d := o.again(0)
	_, end = watching(t, d)
	eventually(t, "they are taken over", func() bool { return d.boxes.missing() == 0 })
	eventually(t, "the dead one is removed", func() bool { return o.number("exited") == 0 })
	if after := o.boxesOf()["running"]; strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("got %v after a restart, want %v", after, before)
	}
	end()
	_, end = watching(t, o.again(1))
	eventually(t, "surplus ones are removed", func() bool { return o.number("running") == 2 })
	end()
	_, end = watching(t, newDriver(t, Config{Node: o.node()}))
	eventually(t, "without an overlay there are none", func() bool { return o.number("running") == 1 })
	end()
}

// Whenever an engine was killed, the next one leaves no sandbox, interface or address that belongs to nobody.
func TestLeftoversOfAKilledEngine(t *testing.T) {
	o := newOnLAN(t)
	ctx := t.Context()
	if _, err := o.createSandbox(ctx, o.cli, "skerry-"+string(o.node())+".sandbox-unstarted"); err != nil {
		t.Fatal(err)
	}
	// Killed after the attachment of an instance whose container had been removed.
	b, err := o.makeSandbox(ctx, o.cli)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.join(ctx, o.cli, b, driver.Attachment{Instance: "gone.0.0"}); err != nil {
		t.Fatal(err)
	}
	// Killed between making a container and its attachment.
	made := o.spec("made.0.0", "sleep")
	p, err := o.plan(ctx, o.cli, made)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = o.makeSandbox(ctx, o.cli); err != nil {
		t.Fatal(err)
	}
	p.host.NetworkMode = container.NetworkMode("container:" + b.id)
	if _, err := o.create(ctx, o.cli, made, p); err != nil {
		t.Fatal(err)
	}
	// Killed in the middle of a start that made a sandbox.
	if _, err = o.makeSandbox(ctx, o.cli); err != nil {
		t.Fatal(err)
	}
	o.Driver = o.again(-1)
	watching(t, o.Driver)
	eventually(t, "only that of the container is left", func() bool {
		got := o.boxesOf()
		return len(got) == 1 && len(got["running"]) == 1 && got["running"][0] == b.id && len(o.net.Attached()) == 0
	})
	if w := o.start(made); w.Address != o.net.wires["made.0.0"].Address || sandboxOf(o.raw("made.0.0")) != b.id {
		t.Errorf("got %+v", w)
	}
	if err := o.Stop(ctx, "made.0.0", messages.Stop{}); err != nil || o.number("running") != 0 {
		t.Errorf("stop: %v, left %v", err, o.boxesOf())
	}
}

func TestFailedStartLeavesNoSandbox(t *testing.T) {
	o := newOnLAN(t)
	o.Driver = newDriver(t, Config{Node: o.node(), Network: o.net, NoInit: true})
	nothing := func(what string) {
		t.Helper()
		if got, attached := o.boxesOf(), o.net.Attached(); len(got) != 0 || len(attached) != 0 {
			t.Errorf("%s: left sandboxes %v, attached %v", what, got, attached)
		}
	}
	bad := o.spec("web.0.0")
	bad.Entrypoint = []string{"/no/such"}
	if _, err := o.Start(t.Context(), bad); err == nil {
		t.Error("no such program: got no error")
	}
	nothing("no such program")
	taken := o.spec("web.0.0", "sleep")
	taken.Ports = []messages.Port{{Host: 1, Container: 80}, {Host: 1, Container: 81}}
	if _, err := o.Start(t.Context(), taken); !errors.Is(err, driver.ErrPortInUse) {
		t.Errorf("port taken: got %v", err)
	}
	nothing("port taken")
	o.start(o.spec("web.0.0", "sleep"))
	if err := o.cli.ContainerRemove(t.Context(), o.containerName("web.0.0"), container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := o.Stop(t.Context(), "web.0.0", messages.Stop{}); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("removed by hand: got %v", err)
	}
	nothing("removed by hand")
}

// Where there is no overlay a container has Docker's network, and what is on an overlay that is there no more is made anew.
func TestWithoutAnOverlay(t *testing.T) {
	o := newOnLAN(t)
	why := errors.New("no TUN device")
	o.net.off.Store(&why)
	spec := o.spec("web.0.0", "sleep")
	spec.Ports = []messages.Port{{Container: 80}}
	plain := o.start(spec)
	if sandboxOf(o.raw("web.0.0")) != "" || !plain.Address.IsValid() || len(plain.Ports) != 1 {
		t.Errorf("got %+v, want Docker's network", plain)
	}
	o.net.off.Store(nil)
	if again := o.start(spec); again.ID != plain.ID {
		t.Error("what runs was made anew when the overlay came")
	}
	on := o.start(o.spec("web.1.0", "sleep"))
	o.Driver = newDriver(t, Config{Node: o.node()})
	all, err := o.List(t.Context())
	if err != nil || len(all) != 2 || !all[0].Running || all[1].Running || all[1].Exit != nil {
		t.Errorf("got %+v, %v, want the one on the overlay to be interrupted", all, err)
	}
	if off := o.start(o.spec("web.1.0", "sleep")); off.ID == on.ID || sandboxOf(o.raw("web.1.0")) != "" || o.number("running") != 0 {
		t.Errorf("got %+v, want a container with Docker's network and no sandbox", off)
	}
}

// A workload that an engine finds running before its network is up is attached once it is, and its watcher hears where it is then.
func TestNetworkThatComesLate(t *testing.T) {
	o := newOnLAN(t)
	first := o.start(o.spec("web.0.0", "sleep"))
	o.Driver = o.again(-1)
	seen, _ := watching(t, o.Driver)
	down := fmt.Errorf("%w: a test", driver.ErrNetworkDown)
	o.net.off.Store(&down)
	if all, err := o.List(t.Context()); err != nil || len(all) != 1 || !all[0].Running || all[0].Network != messages.Overlay || all[0].Address.IsValid() {
		t.Fatalf("got %+v, %v, want it without an address", all, err)
	}
	o.net.off.Store(nil)
	select {
	case w := <-seen:
		if !w.Running || w.Address != first.Address || w.ID != first.ID {
			t.Errorf("got %+v, want %+v", w, first)
		}
	case <-time.After(patience):
		t.Error("nothing was said")
	}
}

func TestTrafficOfASandbox(t *testing.T) {
	o := newOnLAN(t)
	o.start(o.spec("web.0.0", "listen=80", "sleep"))
	eventually(t, "it answers", func() bool {
		conn, err := dialHello(o.net.wires["web.0.0"].Address)
		return err == nil && conn
	})
	all, err := o.Usage(t.Context())
	if err != nil || len(all) != 1 || all[0].RxBytes == 0 || all[0].TxBytes == 0 {
		t.Errorf("got %+v, %v", all, err)
	}
}

func TestNamesFiles(t *testing.T) {
	j := joined{sandbox{hostname: "abc"}, driver.Attached{Address: netip.MustParseAddr("10.0.0.2"), Address6: netip.MustParseAddr("fd00::2")}}
	hosts := hostsFile("127.0.0.1\tlocalhost", j)
	if want := "127.0.0.1\tlocalhost\n10.0.0.2\tabc\t# skerry\nfd00::2\tabc\t# skerry\n"; hosts != want || hostsFile(hosts, j) != want {
		t.Errorf("got %q, again %q, want %q", hosts, hostsFile(hosts, j), want)
	}
	for old, want := range map[string]string{
		"": "nameserver 10.0.0.1\nsearch skerry.internal\n",
		"# made by x\nnameserver 1.1.1.1\nsearch lan skerry.internal\noptions edns0\n": "nameserver 10.0.0.1\nsearch skerry.internal lan\noptions edns0\n",
		"domain lan\nsearch .\n": "nameserver 10.0.0.1\nsearch skerry.internal lan\n",
	} {
		got := resolver(old, "10.0.0.1", "skerry.internal")
		if got != want || resolver(got, "10.0.0.1", "skerry.internal") != want {
			t.Errorf("%q: got %q", old, got)
		}
	}
	if got := resolver("search lan\n", "10.0.0.1", ""); got != "nameserver 10.0.0.1\nsearch lan\n" {
		t.Errorf("no domain of its own: got %q", got)
	}
}

func TestNetworkModes(t *testing.T) {
	o := newOnLAN(t)
	for i, mode := range []messages.NetworkMode{messages.HostNetwork, messages.NoNetwork, messages.BridgeNetwork, messages.Overlay, ""} {
		spec := o.spec(messages.NewInstanceID("web", i, 0), "sleep")
		spec.Network.Mode = mode
		w := o.start(spec)
		want := mode
		if mode == "" {
			want = messages.Overlay
		}
		if got := o.raw(spec.Instance).HostConfig.NetworkMode; w.Network != want || got.IsContainer() != (want == messages.Overlay) ||
			w.Address.IsValid() != (want == messages.BridgeNetwork || want == messages.Overlay) {
			t.Errorf("mode %q: got %q with %+v", mode, got, w)
		}
	}
	why := errors.New("no TUN device")
	o.net.off.Store(&why)
	spec := o.spec("web.9.0", "sleep")
	spec.Network.Mode = messages.Overlay
	if _, err := o.Start(t.Context(), spec); !errors.Is(err, why) {
		t.Errorf("an overlay that is not there: got %v", err)
	}
	changed := o.spec("web.4.0", "sleep")
	changed.Network.Policy, changed.Network.Allow = messages.Closest, []messages.JobName{}
	if changed.Hash() != o.spec("web.4.0", "sleep").Hash() {
		t.Error("a policy replaces the workload")
	}
}
