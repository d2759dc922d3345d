package eio

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

const octets = "application/octet-stream"

func TestDecodePayload(t *testing.T) {
	for _, tc := range []struct {
		name        string
		revision    int
		contentType string
		body        string
		want        []string
	}{
		{"4", Revision4, "text/plain", "4a\x1e2\x1e4ß", []string{"4a", "2", "4ß"}},
		{"3", Revision3, "text/plain;charset=UTF-8", "2:4a1:2", []string{"4a", "2"}},
		{"3, JavaScript's length", Revision3, "", "4:4ß𝛼1:2", []string{"4ß𝛼", "2"}},
		{"3, Python's length", Revision3, "", "3:4ß𝛼1:2", []string{"4ß𝛼", "2"}},
		{"3, Go's length", Revision3, "", "7:4ß𝛼", []string{"4ß𝛼"}},
		{"3, colons", Revision3, "", "4:4:1:1:2", []string{"4:1:", "2"}},
		{"3, binary framing", Revision3, octets, "\x00\x01\x02\xff4abcdefghijk\x00\x01\xff2", []string{"4abcdefghijk", "2"}},
	} {
		got, err := decodePayload(tc.revision, tc.contentType, []byte(tc.body))
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q %v, want %q", tc.name, got, err, tc.want)
		}
	}
}

func TestDecodePayloadRefuses(t *testing.T) {
	for _, body := range []string{"", "\x1e", "4\x1e", "\xff", strings.Repeat("3\x1e", maxPackets) + "3"} {
		if got, err := decodePayload(Revision4, "", []byte(body)); err == nil {
			t.Errorf("4: %.40q gave %.10q", body, got)
		}
	}
	for _, body := range []string{"", "4", "0:", "-1:4", "+1:4", "5:4", "99999999999999:4", "1_0:4123456789", "1:4x", "\xff", strings.Repeat("1:3", maxPackets+1)} {
		if got, err := decodePayload(Revision3, "", []byte(body)); err == nil {
			t.Errorf("3: %.40q gave %.10q", body, got)
		}
	}
	for _, body := range []string{"\x00", "\x00\xff", "\x00\x00\xff", "\x01\x01\xff4", "\x00\x0a\xff4", "\x00\x09\xff4", "\x00\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\xff4"} {
		if got, err := decodePayload(Revision3, octets, []byte(body)); err == nil {
			t.Errorf("3 binary: %q gave %q", body, got)
		}
	}
}

// FuzzDecodePayload wants packets that are part of the body, and what we write to be read as we wrote it.
func FuzzDecodePayload(f *testing.F) {
	for _, s := range []string{"4a\x1e2", "2:4a1:2", "4:4ß𝛼1:2", "\x00\x02\xff4a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, revision := range []int{Revision3, Revision4} {
			for _, contentType := range []string{"text/plain", octets} {
				packets, err := decodePayload(revision, contentType, body)
				if err != nil {
					continue
				}
				checkPackets(t, revision, body, packets)
			}
		}
	})
}

func checkPackets(t *testing.T, revision int, body []byte, packets []string) {
	t.Helper()
	size, plain := 0, true
	for _, p := range packets {
		size += len(p)
		plain = plain && !strings.ContainsFunc(p, func(r rune) bool { return r > 127 || revision == Revision4 && r == 0x1e })
		if p == "" || !bytes.Contains(body, []byte(p)) {
			t.Errorf("packet %q of %q", p, body)
		}
	}
	if size > len(body) || len(packets) == 0 || len(packets) > maxPackets {
		t.Errorf("%d packets of %d bytes in %d", len(packets), size, len(body))
	}
	if !plain {
		return
	}
	again, err := decodePayload(revision, "", []byte(encodePayload(revision, packets)))
	if err != nil || !slices.Equal(again, packets) {
		t.Errorf("got %q %v, want %q", again, err, packets)
	}
}
