package service

import (
	"io"
	"testing"
	"time"

	"skerry.internal/netmanager/nettest"
)

// BenchmarkKernel is one TCP stream between containers through real TUN devices and a tunnel that only copies: what the data path itself costs. The
// time on a processor is that of this process, both nodes and both ends of the stream.
func BenchmarkKernel(b *testing.B) {
	for _, c := range []struct{ name, dialled string }{{"another node", "10.172.0.11:80"}, {"this node", "10.172.0.10:80"}, {"no service", "10.160.2.2:80"}} {
		b.Run(c.name, func(b *testing.B) { benchKernel(b, c.dialled) })
	}
}

func benchKernel(b *testing.B, dialled string) {
	one, two := newBoard(b, 1, 2, Options{}), newBoard(b, 2, 1, Options{})
	s := service("web", "10.172.0.1", "10.172.0.2", container(0, "10.172.0.10", "10.160.1.3"), container(1, "10.172.0.11", "10.160.2.2"))
	one.node.set("", s, client())
	two.node.set("", s, client())
	connect(b, one, two)
	for _, h := range []*nettest.Host{one.containers[1], two.containers[0]} {
		listener := h.Listen("tcp", ":80")
		defer listener.Close()
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}()
	}
	conn, err := one.containers[0].Dial(b.Context(), "tcp", dialled)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	const chunk = 1 << 20
	data := make([]byte, chunk)
	b.SetBytes(chunk)
	cpu := startCPU()
	for b.Loop() {
		if _, err := conn.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(startCPU()-cpu)/float64(b.N)/float64(time.Millisecond), "cpu-ms/MiB")
	b.ReportMetric(float64(b.N)*chunk*8/b.Elapsed().Seconds()/1e9, "Gbit/s")
}
