package engine

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skerry.internal/messages"
	"skerry.internal/messages/trust/trusttest"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/fake"
	"skerry.internal/node-engine/internal/session/sessiontest"
	"skerry.internal/node-engine/internal/store"
)

// board is a machine on which engines are started and ended: its disk and what runs on it outlive them.
type board struct {
	driver driver.Driver
	cfg    Config
}

func newBoard(t *testing.T, manager string) *board {
	return &board{driver: new(fake.Driver), cfg: Config{Manager: manager, Name: "n1", Data: t.TempDir(), Version: "v1",
		Labels: map[string]string{"site": "roof"}}}
}

func (b *board) open(t *testing.T) *Engine {
	t.Helper()
	e, err := open(b.cfg, slog.New(slog.NewTextHandler(t.Output(), nil)), func(*identity, driver.Network) (map[messages.Technology]driver.Driver, error) {
		return map[messages.Technology]driver.Driver{messages.Docker: b.driver}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// start runs an engine and returns what ends it.
func (b *board) start(t *testing.T) (*Engine, func()) {
	t.Helper()
	e := b.open(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: got %v, want nil", err)
		}
	})
	t.Cleanup(end)
	return e, end
}

func (b *board) running(t *testing.T, id messages.InstanceID) bool {
	t.Helper()
	list, err := b.driver.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range list {
		if w.Instance == id && w.Running {
			return true
		}
	}
	return false
}

func TestEngineRunsWhatItIsToldAndGoesOnWithoutItsManager(t *testing.T) {
	broker := sessiontest.NewBroker(t)
	manager := sessiontest.NewManager(t, "", sessiontest.Welcomed(broker.URL()))
	client := sessiontest.NewClient(t, broker.Addr())
	b := newBoard(t, manager.URL)
	_, end := b.start(t)
	info := <-manager.Infos
	if info.Name != "n1" || info.Version != "v1" || info.Labels["site"] != "roof" || info.Arch == "" || info.CPU.Cores == 0 ||
		len(info.Technologies) != 1 || info.Technologies[0].Name != messages.Docker {
		t.Errorf("node info: got %+v", info)
	}
	online := func() bool {
		var p messages.Presence
		return sessiontest.Find(client, "nodes/n1/presence", &p, func(p *messages.Presence) bool { return p.Online })
	}
	sessiontest.Eventually(t, "it is online", online)
	client.Say(t, "nodes/n1/control/deploy", messages.Assignment{Instance: "web.0.1", Rev: 1, Epoch: 1, Run: true,
		Spec: &messages.Spec{Image: "i", Technology: messages.Docker}})
	sessiontest.Eventually(t, "it is reported as running", func() bool {
		var s messages.InstanceStatus
		return sessiontest.Find(client, "nodes/n1/job", &s, func(s *messages.InstanceStatus) bool { return s.State == messages.Running })
	})
	sessiontest.Eventually(t, "telemetry comes", func() bool { return client.Number("nodes/n1/information") > 0 })
	end()
	if !b.running(t, "web.0.1") {
		t.Fatal("the end of the engine stopped the workload")
	}
	// The board is switched off and on again, with neither manager nor broker.
	manager.Close()
	broker.Kill()
	b.driver = new(fake.Driver)
	_, end = b.start(t)
	sessiontest.Eventually(t, "the instance is back without a manager", func() bool { return b.running(t, "web.0.1") })
	end()
}

func TestTheNameStaysWithTheData(t *testing.T) {
	broker := sessiontest.NewBroker(t)
	renamed := func(info messages.NodeInfo) (string, any) {
		info.Name = "known-before"
		return sessiontest.Welcomed(broker.URL())(info)
	}
	manager := sessiontest.NewManager(t, "", renamed)
	b := newBoard(t, manager.URL)
	e, end := b.start(t)
	first := <-manager.Infos
	sessiontest.Eventually(t, "it is admitted", func() bool { return e.who.name() == "known-before" })
	end()
	if first.Name != "n1" {
		t.Errorf("first name: got %s, want n1", first.Name)
	}
	b.cfg.Name = "another"
	e, end = b.start(t)
	again := <-manager.Infos
	end()
	if again.Name != "known-before" || again.Key != first.Key {
		t.Errorf("after a restart: got name %s, want the one that the manager gave, and the same key", again.Name)
	}
	if e.who.Workloads != "n1" {
		t.Errorf("workloads carry %s, want n1 as from the beginning", e.who.Workloads)
	}
}

func TestANameThatWasNeverAcceptedMayBeChosenAgain(t *testing.T) {
	b := newBoard(t, "http://127.0.0.1:1")
	e := b.open(t)
	if err := e.close(); err != nil {
		t.Fatal(err)
	}
	b.cfg.Name = "second"
	e = b.open(t)
	if got := e.who.name(); got != "second" {
		t.Errorf("got %s, want second", got)
	}
	if _, err := open(b.cfg, slog.New(slog.DiscardHandler), nil); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second engine on the same data: got %v, want %v", err, store.ErrLocked)
	}
	if err := e.close(); err != nil {
		t.Fatal(err)
	}
}

func TestNewGivesTheDataBackWhereItFails(t *testing.T) {
	b := newBoard(t, "http://127.0.0.1:1")
	bad := errors.New("no driver")
	_, err := open(b.cfg, slog.New(slog.DiscardHandler), func(*identity, driver.Network) (map[messages.Technology]driver.Driver, error) { return nil, bad })
	if !errors.Is(err, bad) {
		t.Fatalf("got %v, want %v", err, bad)
	}
	if err := b.open(t).close(); err != nil {
		t.Fatal(err)
	}
}

// technology is a driver whose technology can be down.
type technology struct {
	fake.Driver
	mu   sync.Mutex
	info messages.TechnologyInfo // zero: down
}

func (d *technology) Info(context.Context) (messages.TechnologyInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.info.Name == "" {
		return d.info, driver.ErrUnavailable
	}
	return d.info, nil
}

func (d *technology) set(info messages.TechnologyInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info = info
}

func TestATechnologyThatComesLaterIsReported(t *testing.T) {
	broker := sessiontest.NewBroker(t)
	manager := sessiontest.NewManager(t, "", sessiontest.Welcomed(broker.URL()))
	b, tech := newBoard(t, manager.URL), new(technology)
	b.driver = tech
	b.start(t)
	if info := <-manager.Infos; len(info.Technologies) != 0 {
		t.Errorf("while it is down: got %v, want none", info.Technologies)
	}
	tech.set(messages.TechnologyInfo{Name: messages.Docker, Version: "20.10"})
	select {
	case info := <-manager.Infos:
		if len(info.Technologies) != 1 || info.Technologies[0].Version != "20.10" {
			t.Errorf("got %v, want docker 20.10", info.Technologies)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("not reported within 20s")
	}
}

func TestOffersKeepWhatOnceAnswered(t *testing.T) {
	tech := new(technology)
	o := offersOf(t, openStore(t, t.TempDir()), tech)
	tech.set(messages.TechnologyInfo{Name: messages.Docker, Version: "1"})
	if got := o.ask(t.Context()); len(got) != 1 {
		t.Fatalf("got %v", got)
	}
	tech.set(messages.TechnologyInfo{})
	if got := o.ask(t.Context()); len(got) != 1 || got[0].Version != "1" {
		t.Errorf("while it is down again: got %v, want what was known", got)
	}
	if news, _ := o.changed(); news {
		t.Error("nothing new, but said so")
	}
	tech.set(messages.TechnologyInfo{Name: messages.Docker, Version: "2"})
	o.look(t.Context())
	if news, missing := o.changed(); !news || missing != 0 {
		t.Errorf("a new version: got %t, %d missing", news, missing)
	}
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	st, err := store.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// offersOf returns what an engine that begins on this data offers.
func offersOf(t *testing.T, st *store.Store, tech *technology) *offers {
	t.Helper()
	o, err := newOffers(map[messages.Technology]driver.Driver{messages.Docker: tech}, st, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// An engine that begins while its dockerd is down offers what the one before it did: only what stays down has been taken away.
func TestOffersOutliveTheEngine(t *testing.T) {
	broker := sessiontest.NewBroker(t)
	manager := sessiontest.NewManager(t, "", sessiontest.Welcomed(broker.URL()))
	b, tech := newBoard(t, manager.URL), new(technology)
	b.driver = tech
	docker := messages.TechnologyInfo{Name: messages.Docker, Version: "20.10", Runtimes: []string{"runc"}}
	tech.set(docker)
	_, end := b.start(t)
	<-manager.Infos
	end()
	tech.set(messages.TechnologyInfo{})
	_, end = b.start(t)
	if info := <-manager.Infos; len(info.Technologies) != 1 || !reflect.DeepEqual(info.Technologies[0], docker) {
		t.Errorf("of an engine that began while it is down: got %v, want %v", info.Technologies, docker)
	}
	end()

	st := openStore(t, b.cfg.Data)
	synctest.Test(t, func(t *testing.T) {
		o := offersOf(t, st, tech)
		if got := o.ask(t.Context()); len(got) != 1 {
			t.Errorf("while it is down: got %v, want what was known", got)
		}
		begin, after := time.Now(), time.Duration(0)
		ctx, cancel := context.WithTimeout(t.Context(), 2*believed)
		defer cancel()
		if err := o.watch(ctx, func() { after = time.Since(begin); cancel() }); err != nil || after < believed || after > believed+askLater {
			t.Errorf("taken back after %s, want %s; %v", after, believed, err)
		}
		if got := o.ask(t.Context()); len(got) != 0 {
			t.Errorf("after that: got %v, want none", got)
		}
	})
	if got := offersOf(t, st, tech).ask(t.Context()); len(got) != 0 {
		t.Errorf("of the next engine: got %v, want none", got)
	}
}

func TestOffersAreNoNewsBeforeTheFirstRegistration(t *testing.T) {
	tech := new(technology)
	tech.set(messages.TechnologyInfo{Name: messages.Docker, Version: "1"})
	o := offersOf(t, openStore(t, t.TempDir()), tech)
	o.look(t.Context())
	if news, _ := o.changed(); news {
		t.Error("the registration that is to come would be done twice")
	}
}

func TestConfigValidate(t *testing.T) {
	file := trusttest.New(t).File
	if err := (&Config{Manager: "https://m", ManagerCA: file, Data: "/d"}).Validate(); err != nil {
		t.Errorf("https: got %v", err)
	}
	good := Config{Manager: "http://m", Data: "/d", Name: "n", Labels: map[string]string{"a": "b"}}
	if err := good.Validate(); err != nil {
		t.Errorf("good: got %v", err)
	}
	for name, change := range map[string]func(*Config){
		"no manager":  func(c *Config) { c.Manager = "" },
		"bad manager": func(c *Config) { c.Manager = "m:1" },
		"no such ca":  func(c *Config) { c.Manager, c.ManagerCA = "https://m", "/nowhere" },
		"no ca":       func(c *Config) { c.Manager, c.ManagerCA = "https://m", "/dev/null" },
		"ca for http": func(c *Config) { c.ManagerCA = file },
		"bad name":    func(c *Config) { c.Name = "Board_1" },
		"no data":     func(c *Config) { c.Data = "" },
		"bad label":   func(c *Config) { c.Labels = map[string]string{"A b": ""} },
		"bad overlay": func(c *Config) { c.Overlay = "on" },
		"bad port":    func(c *Config) { c.OverlayPort = 70000 },
		"long label":  func(c *Config) { c.Labels = map[string]string{"a": strings.Repeat("x", 257)} },
	} {
		c := good
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestNodeName(t *testing.T) {
	for in, want := range map[string]messages.NodeID{
		"board-1": "board-1", "Board_1.lan": "board-1", "": "node", "...": "node", "--a--": "a", "küche": "kche", "日本": "node",
		strings.Repeat("a", 62) + "-b": messages.NodeID(strings.Repeat("a", 62)),
	} {
		if got := nodeName(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		if err := messages.CheckName("node", string(nodeName(in))); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// A wrong directory is said, and nothing is made in it.
func TestCleanUpOfWhatIsNoNode(t *testing.T) {
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	dir := t.TempDir()
	if err := CleanUp(dir, log); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want an error that names %s", err, dir)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("got %v, %v, want nothing made", left, err)
	}
	st, err := store.Open(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Identity()
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	if err := CleanUp(dir, log); err != nil || !strings.Contains(logged.String(), "nothing to clean up") {
		t.Errorf("a node without a network: got %v, log %q", err, logged.String())
	}
}
