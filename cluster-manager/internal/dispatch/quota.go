package dispatch

import "time"

const (
	// quotaMost lines of one kind are logged in quotaEvery: a client that is refused in a loop, or a thousand nodes that come back at once,
	// would otherwise push everything else out of the log.
	quotaMost  = 60
	quotaEvery = time.Minute
)

// quota bounds how often one kind of line is logged. The zero quota is ready.
type quota struct {
	since time.Time
	count int
}

// due reports whether to log a line now, and how many were left out in the time before.
func (q *quota) due(now time.Time) (unsaid int, ok bool) {
	if now.Sub(q.since) >= quotaEvery {
		unsaid = max(0, q.count-quotaMost)
		q.since, q.count = now, 0
	}
	q.count++
	return unsaid, q.count <= quotaMost
}

// logRefusal logs that a command was refused, within the quota. keys say of what it was.
func (c *Core) logRefusal(r *refusal, keys ...any) {
	if unsaid, ok := c.refusals.due(c.now); ok {
		c.log.With(keys...).Warn("command refused", "code", string(r.code), "err", r.message, "unsaid", unsaid)
	}
}
