package eio

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// separator stands between the packets of a payload in revision 4.
const separator = "\x1e"

var errPayload = errors.New("malformed payload")

// encodePayload joins packets to the body of a poll's answer. The packets are ASCII, so that a length in bytes is also one in
// characters.
func encodePayload(revision int, packets []string) string {
	if revision == Revision4 {
		return strings.Join(packets, separator)
	}
	var b strings.Builder
	for _, p := range packets {
		b.WriteString(strconv.Itoa(len(p)))
		b.WriteByte(':')
		b.WriteString(p)
	}
	return b.String()
}

// decodePayload takes the body of a POST apart.
func decodePayload(revision int, contentType string, body []byte) ([]string, error) {
	if len(body) == 0 {
		return nil, errPayload
	}
	if revision == Revision4 {
		return split(body)
	}
	if media, _, _ := mime.ParseMediaType(contentType); media == "application/octet-stream" {
		return decodeBinary(body)
	}
	return decodeText(body)
}

func split(body []byte) ([]string, error) {
	if !utf8.Valid(body) {
		return nil, fmt.Errorf("%w: not UTF-8", errPayload)
	}
	if bytes.Count(body, []byte(separator)) >= maxPackets {
		return nil, errFlood
	}
	packets := strings.Split(string(body), separator)
	if slices.Contains(packets, "") {
		return nil, fmt.Errorf("%w: empty packet", errPayload)
	}
	return packets, nil
}

// decodeText reads revision 3's "<length>:<packet>". A length counts UTF-16 units in JavaScript, code points in Python and bytes in
// Go, so the first of these that fits the whole body is taken. That can be wrong only for several packets in one body with
// characters beyond ASCII, and Go's client sends the binary form.
func decodeText(body []byte) ([]string, error) {
	if !utf8.Valid(body) {
		return nil, fmt.Errorf("%w: not UTF-8", errPayload)
	}
	var err error
	for _, units := range []func(rune, int) int{utf16Units, codePoints, byteCount} {
		var packets []string
		if packets, err = cut(string(body), units); err == nil || errors.Is(err, errFlood) {
			return packets, err
		}
	}
	return nil, err
}

func utf16Units(r rune, _ int) int {
	if r > 0xffff {
		return 2
	}
	return 1
}

func codePoints(rune, int) int { return 1 }

func byteCount(_ rune, size int) int { return size }

func cut(body string, units func(r rune, size int) int) ([]string, error) {
	var packets []string
	for body != "" {
		digits, _, found := strings.Cut(body[:min(len(body), 12)], ":")
		length, err := strconv.ParseUint(digits, 10, 31)
		if !found || err != nil || length == 0 || !digitsOnly(digits) {
			return nil, fmt.Errorf("%w: no length", errPayload)
		}
		rest := body[len(digits)+1:]
		size, err := measure(rest, int(length), units)
		if err != nil {
			return nil, err
		}
		if packets = append(packets, rest[:size]); len(packets) > maxPackets {
			return nil, errFlood
		}
		body = rest[size:]
	}
	return packets, nil
}

// digitsOnly tells what ParseUint does not: a sign or an underscore is no length.
func digitsOnly(s string) bool { return strings.Trim(s, "0123456789") == "" }

// measure returns how many bytes of s make the given number of units.
func measure(s string, length int, units func(r rune, size int) int) (int, error) {
	size := 0
	for length > 0 {
		r, n := utf8.DecodeRuneInString(s[size:])
		if n == 0 {
			return 0, fmt.Errorf("%w: shorter than its length", errPayload)
		}
		size += n
		length -= units(r, n)
	}
	if length < 0 {
		return 0, fmt.Errorf("%w: a length cuts a character", errPayload)
	}
	return size, nil
}

// decodeBinary reads revision 3's other form: 0 for text, the digits of the length as bytes 0 to 9, 0xff, the packet.
func decodeBinary(body []byte) ([]string, error) {
	var packets []string
	for len(body) > 0 {
		end := bytes.IndexByte(body[:min(len(body), 12)], 0xff)
		if body[0] != 0 || end < 2 {
			return nil, errPayload
		}
		length := 0
		for _, d := range body[1:end] {
			if d > 9 {
				return nil, errPayload
			}
			length = length*10 + int(d)
		}
		if length == 0 || length > len(body)-end-1 || !utf8.Valid(body[end+1:end+1+length]) {
			return nil, errPayload
		}
		if packets = append(packets, string(body[end+1:end+1+length])); len(packets) > maxPackets {
			return nil, errFlood
		}
		body = body[end+1+length:]
	}
	return packets, nil
}
