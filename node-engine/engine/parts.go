package engine

import (
	"context"
	"reflect"
	"sync"
	"time"

	"skerry.internal/node-engine/internal/telemetry"
)

// partsAgain is how often the engine looks what is attached to the board.
const partsAgain = 30 * time.Second

// parts notices when a camera, a serial adapter or a sensor is plugged in or pulled out, or when a graphics card answers that did not at the
// registration: the manager knows them from the registration alone, and places jobs by it.
type parts struct {
	look func(ctx context.Context) (telemetry.Attached, bool) // false: not all of it could be found out

	mu   sync.Mutex          // guards told
	told *telemetry.Attached // what the manager was told; nil until the first registration
}

// tell remembers what a registration says.
func (p *parts) tell(a telemetry.Attached) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = &a
}

// changed reports whether the board has other parts than the manager was told.
func (p *parts) changed(ctx context.Context) bool {
	now, whole := p.look(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	return whole && p.told != nil && !reflect.DeepEqual(now, *p.told)
}

// watch calls news when the parts have changed, until ctx ends.
func (p *parts) watch(ctx context.Context, every time.Duration, news func()) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if p.changed(ctx) {
			news()
		}
	}
}
