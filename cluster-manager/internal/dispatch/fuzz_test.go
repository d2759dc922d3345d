package dispatch

import (
	"bytes"
	"log/slog"
	"testing"

	"skerry.internal/cluster-manager/internal/cluster"
	"skerry.internal/cluster-manager/internal/store"
	"skerry.internal/messages"
)

// FuzzStart holds for a record of any content beside good ones: a manager starts with it, on a network too, and goes on with what it is there for. What
// nodes are told to run then, and of the network, is valid (the world looks at each message).
func FuzzStart(f *testing.F) {
	buckets := store.Buckets()
	f.Add(byte(0), "web", []byte(`{"spec":{"name":"web","image":"good"},"hash":"h","rev":3,"ordinals":[0,1],"generations":null,"addresses":{"round_robin":"10.172.0.0","closest":"10.172.0.1"}}`))
	f.Add(byte(0), "new", []byte(`{"spec":{"name":"new","image":"good"},"ordinals":[0,536870912],"generations":{"0":536870912},"floor":536870912}`))
	f.Add(byte(0), "new", []byte(`{"spec":{"name":"new","image":"good"},"ordinals":[0],"generations":{"0":9223372036854775807}}`))
	f.Add(byte(3), "result\x00id", []byte(`{"result":{"request_id":"x","command":"deploy","job":"web","phase":"accepted"},"at":"2300-01-01T00:00:00Z"}`))
	f.Add(byte(6), "rev", []byte("18446744073709551615"))
	f.Add(byte(7), "*", []byte(`{"generation":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, bucket byte, key string, value []byte) {
		w := newNetWorld(t, "n1", "n2")
		w.send(deploy(job("web", "good", 2)))
		w.settle()
		c := store.Change{Bucket: buckets[int(bucket)%len(buckets)], Key: key, Value: append([]byte{}, value...)}
		if err := w.store.Commit(t.Context(), []store.Change{c}); err != nil {
			t.Fatal(err)
		}
		st, _, err := cluster.Load(t.Context(), w.store)
		if err != nil {
			t.Fatal(err)
		}
		w.core = NewCore(w.cfg, st, w.now, slog.New(slog.DiscardHandler))
		err = w.store.Load(t.Context(), func(b store.Bucket, k string, v []byte) error {
			if b == store.Requests {
				_ = w.core.RestoreRequest(k, v) // it says so, and goes on
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range w.nodes {
			n.online = false
		}
		w.settle()
		for id := range w.nodes {
			w.connect(id)
		}
		w.settle()
		if !bytes.Contains(value, []byte("later")) { // it may have been taken
			w.send(deploy(job("later", "good", 1)))
			w.settle()
			if s := w.jobs["later"]; s == nil || s.Running != 1 {
				t.Errorf("a new job does not run: %+v", s)
			}
		}
		w.send(messages.Command{Command: messages.Delete, Job: messages.Job{Name: "web"}})
		w.settle()
	})
}
