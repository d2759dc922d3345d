// Package engine wires the parts of a node engine together: the store, the drivers, the instances, telemetry and the session with the
// manager. It decides nothing about workloads itself, and its end stops none of them.
package engine

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/driver/docker"
	"skerry.internal/node-engine/internal/instance"
	"skerry.internal/node-engine/internal/overlay"
	"skerry.internal/node-engine/internal/session"
	"skerry.internal/node-engine/internal/store"
	"skerry.internal/node-engine/internal/telemetry"
)

// Engine is one node of a cluster.
type Engine struct {
	cfg       Config
	log       *slog.Logger
	store     *store.Store
	who       *identity
	drivers   map[messages.Technology]driver.Driver
	instances *instance.Set
	sampler   *telemetry.Sampler
	session   *session.Session
	offers    *offers
	parts     *parts
	overlay   *overlay.Member
	restarts  map[messages.InstanceID]int // of the sample being taken
}

// New checks the configuration, opens the data directory and reads what it holds. It starts nothing and asks nobody.
func New(cfg Config, log *slog.Logger) (*Engine, error) {
	return open(cfg, log, func(who *identity, network driver.Network) (map[messages.Technology]driver.Driver, error) {
		reserve, err := cfg.imageReserve()
		if err != nil {
			return nil, err
		}
		d, err := docker.New(docker.Config{Node: who.Workloads, Cluster: who.Cluster, Host: cfg.DockerHost,
			Credentials: cfg.DockerCredentials, Network: network, Reserve: reserve, Pulled: filepath.Join(cfg.Data, "images.json")}, log)
		return map[messages.Technology]driver.Driver{messages.Docker: d}, err
	})
}

// makeDrivers makes the drivers of a node; a workload carries the identity's name for it. The network is nil where the operator wants none.
type makeDrivers func(*identity, driver.Network) (map[messages.Technology]driver.Driver, error)

// runDir is where the overlay keeps what survives the process but no reboot.
const runDir = "/run/skerry"

func open(cfg Config, log *slog.Logger, drivers makeDrivers) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	st, err := store.Open(cfg.Data, log)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, log: log, store: st}
	if err := e.build(drivers); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// build makes the parts in the order in which they need one another.
func (e *Engine) build(drivers makeDrivers) (err error) {
	if e.who, err = readIdentity(e.store, e.cfg.Name, e.log); err != nil {
		return err
	}
	key, err := e.store.Identity()
	if err != nil {
		return err
	}
	roots, err := e.cfg.roots()
	if err != nil {
		return err
	}
	network, err := e.buildOverlay(key, roots)
	if err != nil {
		return err
	}
	if e.drivers, err = drivers(e.who, network); err != nil {
		return err
	}
	if e.offers, err = newOffers(e.drivers, e.store, e.log); err != nil {
		return err
	}
	e.parts = &parts{look: func(ctx context.Context) (telemetry.Attached, bool) { return e.sampler.Attached(ctx) }}
	boot, outbox := bootID(), session.NewOutbox()
	e.instances, err = instance.New(instance.Config{Drivers: e.drivers, Store: e.store,
		Report: outbox.Put, BootID: boot}, e.log)
	if err != nil {
		return err
	}
	e.sampler, err = telemetry.New(telemetry.Config{Disk: e.workloadDisk(), Usage: e.usage, Reserved: e.instances.Reserved,
		Restarts: func(id messages.InstanceID) int { return e.restarts[id] }}, e.log)
	if err != nil {
		return err
	}
	e.session, err = session.New(session.Config{Manager: e.cfg.Manager, Roots: roots, Key: key, Token: e.cfg.Token, BootID: boot,
		Info: e.info, Accepted: e.accepted, Telemetry: e.telemetry, Logs: e.logs, Overlay: e.overlay}, e.instances, outbox, e.log)
	return err
}

// buildOverlay makes the node's part in the cluster's network and returns what drivers join workloads with; nil: none.
func (e *Engine) buildOverlay(key ed25519.PrivateKey, roots *x509.CertPool) (driver.Network, error) {
	manager, err := session.ManagerURL(e.cfg.Manager)
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("node key without a public half")
	}
	off := e.cfg.Overlay == overlayOff
	e.overlay, err = overlay.New(overlay.Config{Node: e.who.name, Seed: public, Off: off, Port: e.cfg.OverlayPort,
		Store: e.store, Manager: manager, Roots: roots, RunDir: runDir}, e.log)
	if err != nil || off {
		return nil, err
	}
	return e.overlay, nil
}

// CleanUp takes away what the part in the cluster's network of the node with this data has left on this machine. Its workloads on the
// overlay have no network then, until an engine runs on the data again. One that runs is left alone: the error says so.
func CleanUp(data string, log *slog.Logger) error {
	if err := store.Exists(data); err != nil {
		return fmt.Errorf("clean up: %s is not the data of a node: %w", data, err)
	}
	st, err := store.Open(data, log)
	if err != nil {
		return err
	}
	defer st.Close() //nolint:errcheck // nothing is lost with it
	key, err := st.Identity()
	if err != nil {
		return err
	}
	seed, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return errors.New("node key without a public half")
	}
	found, err := overlay.CleanUp(st, seed, runDir)
	if err == nil && !found {
		log.Info("nothing to clean up: this node has had no part in a network", "data", data)
	}
	return err
}

// bootID tells one boot of the board from another.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // a kernel without it: a reboot looks like a restart of the engine
	}
	return strings.TrimSpace(string(b))
}

// workloadDisk returns a directory on the disk that fills up with images and containers.
func (e *Engine) workloadDisk() string {
	const dockers = "/var/lib/docker"
	if _, err := os.Stat(dockers); err == nil {
		return dockers
	}
	return e.cfg.Data
}

// Run keeps the node's instances as they shall be and its manager informed, until ctx ends. The workloads go on without it. An Engine
// runs once.
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	e.log.Info("node engine runs", "node_id", e.who.name(), "version", e.cfg.Version, "data", e.cfg.Data, "manager", e.cfg.Manager)
	g.Go(func() error { return e.overlay.Run(ctx) })   // what starts on the overlay waits for it
	g.Go(func() error { return e.instances.Run(ctx) }) // needs no manager: first
	g.Go(func() error { return e.session.Run(ctx) })
	g.Go(func() error { return e.offers.watch(ctx, e.session.Refresh) })
	g.Go(func() error { return e.parts.watch(ctx, partsAgain, e.session.Refresh) })
	err := g.Wait()
	e.log.Info("node engine ends; its workloads go on", "node_id", e.who.name())
	return errors.Join(err, e.close())
}

// close gives back what New took.
func (e *Engine) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if e.sampler != nil {
		e.sampler.Close(ctx)
	}
	var errs []error
	for name, d := range e.drivers {
		if c, ok := d.(interface{ Close() error }); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("close driver %s: %w", name, err))
			}
		}
	}
	return errors.Join(append(errs, e.store.Close())...)
}

// info introduces the node as it is now.
func (e *Engine) info(ctx context.Context) messages.NodeInfo {
	n := e.sampler.Facts(ctx)
	e.parts.tell(telemetry.Attached{GPUs: n.GPUs, Sensors: n.Sensors})
	n.Name = e.who.name()
	n.Version = e.cfg.Version
	n.Labels = e.cfg.Labels
	n.Technologies = e.offers.ask(ctx)
	n.Overlay = e.overlay.Info()
	return n
}

// accepted takes over the name that the manager has for this node, which is another than asked for where its key was known before.
func (e *Engine) accepted(w messages.Welcome) {
	if err := e.who.accept(w, e.store); err != nil {
		e.log.Error("name not kept: after a restart the node asks for its first name again", "node_id", w.ID, "err", err)
	}
}

func (e *Engine) telemetry(ctx context.Context) messages.Telemetry {
	e.restarts = e.instances.Restarts()
	t := e.sampler.Sample(ctx)
	t.Overlay = e.overlay.Use()
	return t
}

// usage asks every driver that counts.
func (e *Engine) usage(ctx context.Context) ([]driver.Usage, error) {
	var all []driver.Usage
	var errs []error
	for _, d := range e.drivers {
		if meter, ok := d.(driver.Meter); ok {
			usage, err := meter.Usage(ctx)
			all, errs = append(all, usage...), append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// logs asks the drivers for the output until one has the instance.
func (e *Engine) logs(ctx context.Context, req messages.LogsRequest, write func(stream, text string) error) error {
	for _, d := range e.drivers {
		logger, ok := d.(driver.Logger)
		if !ok {
			continue
		}
		if err := logger.Logs(ctx, req, write); !errors.Is(err, driver.ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("instance %s: no output is kept on this node", req.Instance)
}
