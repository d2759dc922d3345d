package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// cpuSeconds returns the processor time of this process: on a machine that others use too, it tells more than the clock.
func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// bigCluster is a Core with 10,000 connected nodes and 500 jobs of 100 copies.
func bigCluster(b *testing.B) (*Core, time.Time) {
	b.Helper()
	now := time.Now()
	c := NewCore(Config{Cluster: "lab", LostAfter: 30 * time.Second}, cluster.NewState(), now, slog.New(slog.DiscardHandler))
	for i := range 10_000 {
		info := boardInfo(messages.NodeID(fmt.Sprintf("n%05d", i)))
		info.MemoryMB = 16_000
		if _, err := c.Register(info, false, now); err != nil {
			b.Fatal(err)
		}
		c.Presence(info.Name, new(int), messages.Presence{Online: true, Epoch: 1, Digest: messages.Digest(nil)}, now)
	}
	for i := range 500 {
		c.Command(order(deploy(bigJob(i)), ""), now)
		c.Advance(now)
		c.TakeMessages()
	}
	c.Publish(now)
	c.TakeMessages()
	c.State().TakeChanges()
	return c, now
}

func bigJob(i int) messages.Job {
	j := job(messages.JobName(fmt.Sprintf("job-%d", i)), "good", 100)
	j.Resources = messages.Resources{CPUs: 0.05, MemoryMB: 64}
	return j
}

// BenchmarkPlacements deploys a job of 100 copies on 10,000 nodes with 50,000 instances: command, trial, plan, placement, encoding for
// the disk, assignments, events. Statuses are published once in 50 ms and not counted.
func BenchmarkPlacements(b *testing.B) {
	c, now := bigCluster(b)
	placed, n, began := 0, 0, cpuSeconds(b)
	for b.Loop() {
		c.Command(order(deploy(bigJob(1000+n)), ""), now)
		c.Advance(now)
		c.State().TakeChanges()
		for _, m := range c.TakeMessages() {
			if m.QoS == 1 {
				placed++
			}
		}
		n++
	}
	if placed != 100*n {
		b.Fatalf("%d assignments for %d jobs", placed, n)
	}
	b.ReportMetric(float64(placed)/b.Elapsed().Seconds(), "placements/s")
	b.ReportMetric(float64(placed)/(cpuSeconds(b)-began), "placements/cpu-s")
}

// BenchmarkPlacementsFloor makes the JSON of the same assignments and does nothing else.
func BenchmarkPlacementsFloor(b *testing.B) {
	placed := 0
	for b.Loop() {
		j := bigJob(placed)
		for index := range 100 {
			messages.Encode(messages.Assignment{Instance: messages.NewInstanceID(j.Name, index, 1), Rev: 1, Run: true, Spec: &j.Spec})
			placed++
		}
	}
	b.ReportMetric(float64(placed)/b.Elapsed().Seconds(), "placements/s")
}

// BenchmarkClusterStatus counts 50,000 instances; it happens at most once a second.
func BenchmarkClusterStatus(b *testing.B) {
	c, now := bigCluster(b)
	for b.Loop() {
		c.clusterStatus(now)
	}
}

// BenchmarkStatus takes the report of one instance of a job with 100 copies, plans the job and renders nothing.
func BenchmarkStatus(b *testing.B) {
	c, now := bigCluster(b)
	j := c.State().Jobs["job-0"]
	all := j.Sorted()
	seq := uint64(0)
	for b.Loop() {
		seq++
		p := all[seq%100]
		c.Status(p.Node, messages.InstanceStatus{Instance: p.Instance, Job: p.Job, Rev: p.Rev, Seq: seq, State: messages.Running, Healthy: true}, now)
		c.Advance(now)
		c.TakeMessages()
	}
}

// BenchmarkUnplaceable plans a job none of whose 1000 copies finds one of 10,000 nodes.
func BenchmarkUnplaceable(b *testing.B) {
	c, now := bigCluster(b)
	j := job("huge", "good", 1000)
	c.Command(order(deploy(j), ""), now)
	c.Advance(now)
	for id := range c.State().Nodes {
		c.Disconnected(id, c.links[id], now)
	}
	now = now.Add(time.Hour)
	c.Advance(now)
	c.TakeMessages()
	for b.Loop() {
		c.touch("huge")
		c.Advance(now)
	}
}

// BenchmarkDurableCommands sends commands from many clients through the loop to a file on disk.
func BenchmarkDurableCommands(b *testing.B) {
	for _, clients := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("%d clients", clients), func(b *testing.B) {
			s, err := store.OpenBolt(b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			l, err := NewLoop(b.Context(), Config{Cluster: "lab", LostAfter: 30 * time.Second}, s, func(Message) {}, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			ctx, end := context.WithCancel(b.Context())
			var loop, wg sync.WaitGroup
			loop.Go(func() {
				if err := l.Run(ctx); err != nil {
					b.Error(err)
				}
			})
			if _, err := l.Register(ctx, boardInfo("a"), false); err != nil {
				b.Fatal(err)
			}
			l.Presence(ctx, "a", new(int), messages.Presence{Online: true, Epoch: 1, Digest: messages.Digest(nil)})
			var next atomic.Int64
			began := cpuSeconds(b)
			b.ResetTimer()
			for range clients {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						j := job(messages.JobName(fmt.Sprintf("job-%d", i%1000)), "good", 1)
						j.Environment = map[string]string{"N": fmt.Sprint(i)}
						if _, err := l.Command(ctx, order(deploy(j), fmt.Sprint("r", i))); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
			b.ReportMetric(float64(b.N)/(cpuSeconds(b)-began), "commands/cpu-s")
			end()
			loop.Wait()
		})
	}
}
