package docker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/docker/docker/api/types/container"

	"skerry.internal/messages"
)

// maxPiece is the most bytes that one piece of output has.
const maxPiece = 16 << 10

// Logs hands out the output of the container of the instance.
func (d *Driver) Logs(ctx context.Context, req messages.LogsRequest, write func(stream, text string) error) error {
	cli, err := d.api(ctx)
	if err != nil {
		return err
	}
	c, err := d.inspect(ctx, cli, req.Instance)
	if err != nil {
		return err
	}
	opts := container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: req.Follow, Tail: "all"}
	if req.Tail > 0 {
		opts.Tail = strconv.Itoa(req.Tail)
	}
	if !req.Since.IsZero() {
		opts.Since = req.Since.Format(time.RFC3339Nano)
	}
	body, err := cli.ContainerLogs(ctx, c.ID, opts)
	if err == nil {
		defer body.Close()
		err = demultiplex(body, write)
	}
	if req.Follow && ctx.Err() != nil {
		return nil //nolint:nilerr // who follows ends it by its ctx
	}
	return failure("logs of "+string(req.Instance), err)
}

// demultiplex reads Docker's frames: a byte for the stream, three empty ones, a length, then that many bytes. They are not held whole,
// whatever the length says.
func demultiplex(r io.Reader, write func(stream, text string) error) error {
	outputs := map[byte]*pieces{
		1: {stream: "stdout", write: write},
		2: {stream: "stderr", write: write},
	}
	for {
		var head [8]byte
		_, err := io.ReadFull(r, head[:])
		if errors.Is(err, io.EOF) {
			return errors.Join(outputs[1].flush(), outputs[2].flush())
		}
		if err != nil {
			return err
		}
		out := outputs[head[0]]
		if out == nil {
			return fmt.Errorf("stream %d of a container's output is unknown", head[0])
		}
		if err := copyFrame(out, r, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			return err
		}
	}
}

func copyFrame(out *pieces, r io.Reader, n int64) error {
	copied, err := io.CopyN(out, r, n)
	if errors.Is(err, io.EOF) && copied < n {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	return out.settle()
}

// pieces cuts a stream of bytes into pieces of valid UTF-8. A character that is split between two frames is put together again.
type pieces struct {
	stream string
	write  func(stream, text string) error
	held   []byte
}

// Write hands out full pieces.
func (p *pieces) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		take := min(len(b), maxPiece-len(p.held))
		p.held = append(p.held, b[:take]...)
		b = b[take:]
		if len(p.held) < maxPiece {
			break
		}
		if err := p.settle(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// settle hands out what is held, but for the beginning of a character at its end.
func (p *pieces) settle() error {
	whole := len(p.held) - unfinished(p.held)
	if whole == 0 {
		return nil
	}
	text := valid(p.held[:whole])
	p.held = append(p.held[:0], p.held[whole:]...)
	return p.write(p.stream, text)
}

// flush hands out the rest.
func (p *pieces) flush() error {
	if len(p.held) == 0 {
		return nil
	}
	text := valid(p.held)
	p.held = nil
	return p.write(p.stream, text)
}

// valid replaces what is not UTF-8, byte by byte and with a byte, so that no piece grows over its bound.
func valid(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var s strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			s.WriteByte('?')
		} else {
			s.Write(b[:n])
		}
		b = b[n:]
	}
	return s.String()
}

// unfinished counts the bytes at the end of b that begin a character without ending it.
func unfinished(b []byte) int {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}
