package docker

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf8"
)

func frame(stream byte, text string) []byte {
	b := append([]byte{stream, 0, 0, 0}, binary.BigEndian.AppendUint32(nil, uint32(len(text)))...)
	return append(b, text...)
}

func TestDemultiplex(t *testing.T) {
	long := strings.Repeat("€", 30000) // 3 bytes each: 16 KiB is no multiple of it
	tests := []struct {
		name     string
		in       []byte
		out, err string // what goes to stdout and stderr together, and part of the error
		wantErr  string
	}{
		{"both", append(frame(1, "a"), frame(2, "b")...), "a", "b", ""},
		{"split character", bytes.Join([][]byte{frame(1, "x\xe2\x82"), frame(2, "-"), frame(1, "\xac")}, nil), "x€", "-", ""},
		{"long", frame(1, long), long, "", ""},
		{"no UTF-8", frame(1, "a\xff\xfeb"), "a??b", "", ""},
		{"unfinished at the end", frame(1, "a\xe2\x82"), "a??", "", ""},
		{"empty frame", frame(1, ""), "", "", ""},
		{"unknown stream", frame(9, "a"), "", "", "unknown"},
		{"cut in a frame", frame(1, "abc")[:9], "", "", "unexpected EOF"},
		{"cut in a head", []byte{1, 0}, "", "", "unexpected EOF"},
		{"a length that lies", append([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, "abc"...), "", "", "unexpected EOF"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]string{}
			err := demultiplex(bytes.NewReader(test.in), func(stream, text string) error {
				if text == "" || len(text) > maxPiece || !utf8.ValidString(text) {
					t.Errorf("bad piece of %d bytes", len(text))
				}
				got[stream] += text
				return nil
			})
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Errorf("got error %v, want %q", err, test.wantErr)
				}
				return
			}
			if err != nil || got["stdout"] != test.out || got["stderr"] != test.err {
				t.Errorf("got %d and %d bytes, %v", len(got["stdout"]), len(got["stderr"]), err)
			}
		})
	}
}

func FuzzDemultiplex(f *testing.F) {
	f.Add(append(frame(1, "aß"), frame(2, "\xff")...))
	f.Fuzz(func(t *testing.T, in []byte) {
		_ = demultiplex(bytes.NewReader(in), func(_, text string) error {
			if len(text) > maxPiece || !utf8.ValidString(text) {
				t.Errorf("bad piece %q", text)
			}
			return nil
		})
	})
}
