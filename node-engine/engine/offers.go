package engine

import (
	"cmp"
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"skerry.internal/messages"
	"skerry.internal/node-engine/internal/driver"
	"skerry.internal/node-engine/internal/store"
)

const (
	askWait  = 3 * time.Second  // for one technology to answer; a registration has 10 s for everything
	askSoon  = 2 * time.Second  // between questions to a technology that has not answered yet
	askLater = 30 * time.Second // the same, once that has gone on for a minute
	askAgain = 5 * time.Minute  // between questions to one that has: its version and runtimes change with an upgrade
	soonFor  = time.Minute
	// believed is how long a technology is offered that answered an earlier engine on this data and not yet this one: longer than dockerd takes
	// to begin on a board that boots. Then it has been taken away.
	believed = 5 * time.Minute
)

// offersValue is the name of the stored offers.
const offersValue = "technologies"

// informer is what a driver offers that knows its technology's version.
type informer interface {
	Info(ctx context.Context) (messages.TechnologyInfo, error)
}

// offers knows which technologies answer on this node. One that has answered stays offered: while it is down its instances say so,
// and to take the offer back would have them placed elsewhere at every restart of dockerd. The end of the engine changes nothing about
// that: what has answered is in the store, and the next engine offers it as it was, for as long as believed says, while it does not answer.
type offers struct {
	drivers map[messages.Technology]driver.Driver
	store   *store.Store
	log     *slog.Logger

	mu       sync.Mutex // guards what follows
	known    map[messages.Technology]messages.TechnologyInfo
	answered map[messages.Technology]bool // this engine
	stored   []messages.TechnologyInfo    // what the store has
	told     []messages.TechnologyInfo    // nil until the first registration
}

func newOffers(drivers map[messages.Technology]driver.Driver, st *store.Store, log *slog.Logger) (*offers, error) {
	o := &offers{drivers: drivers, store: st, log: log, known: make(map[messages.Technology]messages.TechnologyInfo),
		answered: make(map[messages.Technology]bool)}
	found, err := st.Get(offersValue, &o.stored)
	if err != nil || !found {
		o.stored = nil // what is damaged may have been read in part
		return o, err
	}
	for _, info := range o.stored {
		if drivers[info.Name] != nil {
			o.known[info.Name] = info
		}
	}
	return o, nil
}

// ask returns what answers now, or has before, and remembers it as told to the manager.
func (o *offers) ask(ctx context.Context) []messages.TechnologyInfo {
	o.look(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = o.listLocked()
	return append([]messages.TechnologyInfo{}, o.told...)
}

// look asks every technology.
func (o *offers) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for name, d := range o.drivers {
		wg.Go(func() {
			info := messages.TechnologyInfo{Name: name}
			if i, ok := d.(informer); ok {
				var err error
				if info, err = i.Info(ctx); err != nil {
					return
				}
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			o.known[name], o.answered[name] = info, true
			o.keepLocked()
		})
	}
}

// keepLocked stores what is known where that is news. A card that is full is tried again with the next answer.
func (o *offers) keepLocked() {
	list := o.listLocked()
	if reflect.DeepEqual(list, o.stored) {
		return
	}
	if err := o.store.Put(offersValue, list); err != nil {
		o.log.Warn("technologies not kept: an engine that starts while one is down does not offer it", "err", err)
		return
	}
	o.stored = list
}

// doubt takes back the offers that this engine has no answer for.
func (o *offers) doubt() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for name := range o.known {
		if !o.answered[name] {
			delete(o.known, name)
		}
	}
	o.keepLocked()
}

func (o *offers) listLocked() []messages.TechnologyInfo {
	list := make([]messages.TechnologyInfo, 0, len(o.known))
	for _, info := range o.known {
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b messages.TechnologyInfo) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// changed reports whether the manager has to be told of something that it was not told at the registration, and how many technologies have
// not answered yet.
func (o *offers) changed() (news bool, missing int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.listLocked()
	return o.told != nil && !reflect.DeepEqual(list, o.told), len(o.drivers) - len(o.answered)
}

// watch calls news when a technology begins to answer or changes, or is not believed to come back, until ctx ends.
func (o *offers) watch(ctx context.Context, news func()) error {
	start, said := time.Now(), false
	for {
		o.look(ctx)
		if time.Since(start) > believed {
			o.doubt()
		}
		changed, missing := o.changed()
		if changed {
			news()
		}
		if missing > 0 && !said && ctx.Err() == nil {
			o.log.Warn("a technology does not answer; it is asked again until it does", "missing", missing)
			said = true
		}
		wait := askAgain
		if missing > 0 {
			wait = askSoon
			if time.Since(start) > soonFor {
				wait = askLater
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}
