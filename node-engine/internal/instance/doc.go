// Package instance makes the desired assignments of one node true and keeps them so, by itself: it needs its store and its drivers,
// no manager. It must not know how assignments come or where statuses go, what a technology does, or what a job is.
//
// Each instance has one runner, a goroutine that holds the newest assignment and takes one step after the other towards it. A
// step makes at most one call to the driver. A newer assignment that changes what shall run cuts a step short: a delete overtakes a pull.
//
//	             ┌──────────────── next attempt ────────────────┐
//	             ▼                                              │
//	pending ─► preparing ─► starting ─► running ─► (ended, unhealthy, error) ─► exited | failed
//	   └───────────┴────────────┴──────────┴─────► stopped ─► (acknowledged: forgotten)
//
// Within an attempt the state only moves forward, and (attempt, state) only grows. Every status has the next seq. What is decided here:
//
//   - An attempt is a life of the workload; the policy's count is of failures in a row. Where the technology or the board was restarted,
//     the next attempt counts as no failure, whatever code its workloads ended with: a clean shutdown ends a server with 0.
//   - Failures are forgotten once a workload has run for a minute and, where it has a health check, was healthy.
//   - Restart policies speak of ends: a start that fails is repeated under any of them. An image that is not found is given up after
//     3 tries in a row, a port in use after max_attempts (5 where that is unbounded), any other error after max_attempts (3 under
//     never); a pull that came further begins the count anew. A wrong architecture or a spec that cannot run here is final at once.
//   - Unhealthy is a failed attempt: the workload is ended and the policy decides. Under never it is left as it is.
//   - A terminal instance stays so for any newer assignment with the same workload (a takeover must not run a batch again) and keeps
//     its container, for its logs. An assignment with another workload replaces it as the next attempt.
//   - A stop is never cut short; a start is given a few seconds to end by itself, so that it leaves nothing half made behind.
//   - A record goes to disk before its effect where its loss could undo it: an assignment, a new attempt, a terminal state. Running
//     and health go after their report. The rest is not written. After a restart of the engine an instance that was on its way up begins
//     a new attempt, because how far the old one had been reported is not known.
//   - Seq is reserved on disk in steps. After a restart the held status takes the bound as its seq, which nothing published has reached.
//   - A workload without an assignment is stopped and removed, but not while its record is known to be damaged, or where no record was there
//     at the start: a data directory that is new or lost says nothing about what runs. Then the next sync decides.
package instance
