package relay

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"testing"
	"testing/iotest"
)

func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 31})
	f.Add([]byte{255, 255, 1})
	f.Add(appendFrame(appendFrame(nil, Key{1}, []byte("packet")), Key{}, nil))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := reader{from: iotest.HalfReader(bytes.NewReader(stream))}
		var again []byte
		for {
			key, packet, err := r.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errFrame) {
					t.Fatalf("got %v", err)
				}
				break
			}
			again = appendFrame(again, key, packet)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Fatal("the frames read are not what the stream began with")
		}
		if len(r.buf) > readLarge {
			t.Fatalf("buffer of %d bytes", len(r.buf))
		}
	})
}

func FuzzSTUN(f *testing.F) {
	f.Add(BindingRequest(Transaction{1}))
	f.Add(bindingResponse(Transaction{2}, netip.MustParseAddrPort("192.0.2.1:7000")))
	f.Add(bindingResponse(Transaction{3}, netip.MustParseAddrPort("[2001:db8::1]:7000")))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseBindingRequest(b)
		tx, seen, err := ParseBindingResponse(b)
		if err != nil {
			return
		}
		gotTx, got, err := ParseBindingResponse(bindingResponse(tx, seen))
		if err != nil || gotTx != tx || got != seen {
			t.Fatalf("got %v %v, %v, want %v %v", gotTx, got, err, tx, seen)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	private := Key{8, 31: 64}
	node := Key{16, 31: 64}
	good, err := answer(node, private.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(make([]byte, answerSize))
	f.Fuzz(func(t *testing.T, given []byte) {
		got, err := verify(private, given)
		if err == nil && (!bytes.Equal(given, good) || got != node.Public()) {
			t.Fatalf("%x passed as %s", given, got)
		}
	})
}
