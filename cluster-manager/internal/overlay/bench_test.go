package overlay

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/messages"
	"skerry.internal/netmanager/ipam"
)

// large returns the state of a cluster of nodes and jobs, each job with two instances, each node interested in ten jobs.
func large(b testing.TB, nodes, jobs int) (*cluster.State, Config) {
	b.Helper()
	plan, err := ipam.NewPlan(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd5c:ae11:9::/48"))
	if err != nil {
		b.Fatal(err)
	}
	st := cluster.NewState()
	node := func(i int) messages.NodeID { return messages.NodeID(fmt.Sprintf("n%d", i%nodes)) }
	job := func(i int) messages.JobName { return messages.JobName(fmt.Sprintf("j%d", i%jobs)) }
	for i := range nodes {
		st.PutNode(&cluster.Node{ID: node(i), Online: true, Info: messages.NodeInfo{Name: node(i), Overlay: &messages.OverlayInfo{PublicKey: keyOf(i)}}})
		var names []messages.JobName
		for k := range 10 {
			names = append(names, job(i*10+k))
		}
		st.PutInterest(node(i), names)
	}
	cfg := Config{Plan: plan}
	New(cfg, st, func(*cluster.Placement) bool { return false }, slog.New(slog.DiscardHandler)) // leases blocks
	for i := range jobs {
		j := &cluster.Job{Spec: messages.Job{Name: job(i), Spec: messages.Spec{Image: "x"}}, Ordinals: []int{0, 1}}
		st.PutJob(j)
		for o := range 2 {
			n := st.Nodes[node(i*2+o)]
			id := messages.NewInstanceID(job(i), o, 0)
			address := n.Blocks[0].Addr().Next().Next().String()
			st.PutPlacement(&cluster.Placement{Instance: id, Job: job(i), Ordinal: o, Node: n.ID, Run: true, Address: address,
				Observed: &messages.InstanceStatus{Instance: id, State: messages.Running, Healthy: true, Address: address}})
		}
	}
	st.TakeChanges()
	return st, cfg
}

// BenchmarkHealth is what one instance costs that is unhealthy and healthy again: whom it matters to, not how many nodes and services there are.
func BenchmarkHealth(b *testing.B) {
	for _, size := range [][2]int{{100, 1000}, {1000, 10_000}, {10_000, 100_000}} {
		b.Run(fmt.Sprintf("%dnodes-%dservices", size[0], size[1]), func(b *testing.B) {
			st, cfg := large(b, size[0], size[1])
			n := New(cfg, st, func(*cluster.Placement) bool { return false }, slog.New(slog.DiscardHandler))
			now := time.Unix(1_800_000_000, 0)
			for id := range st.Nodes {
				n.stream(id).full = true
				n.updates[id] = true
			}
			n.Flush(now)
			p := st.Jobs["j5"].Placements["j5.0.0"]
			sent := 0
			for b.Loop() {
				p.Observed.Healthy = !p.Observed.Healthy
				n.Touch("j5")
				for _, o := range n.Flush(now) {
					if !o.Retain {
						sent++
					}
				}
			}
			b.ReportMetric(float64(sent)/float64(b.N), "updates/op")
		})
	}
}

// BenchmarkStart is what a manager does at its start, until every node's configuration and every job's table are retained.
func BenchmarkStart(b *testing.B) {
	st, cfg := large(b, 10_000, 100_000)
	for b.Loop() {
		n := New(cfg, st, func(*cluster.Placement) bool { return false }, slog.New(slog.DiscardHandler))
		bytes := 0
		for _, o := range n.Flush(time.Unix(1_800_000_000, 0)) {
			bytes += len(o.Payload)
		}
		b.ReportMetric(float64(bytes)/(1<<20), "MiB")
	}
}
