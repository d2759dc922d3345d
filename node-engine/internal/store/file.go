package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// maxFile bounds what is read into memory: a record holds one assignment, which came in a payload of at most 1 MiB.
const maxFile = 4 << 20

var errDamaged = errors.New("damaged")

// castagnoli is the polynomial that processors have instructions for.
func sum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// seal appends the checksum as a last line, so that a person can still read the file.
func seal(body []byte) []byte {
	return fmt.Appendf(nil, "%s\ncrc32c %08x\n", body, sum(body))
}

// unseal returns what seal was given, or errDamaged.
func unseal(b []byte) ([]byte, error) {
	const tail = len("\ncrc32c 00000000\n")
	if len(b) < tail {
		return nil, fmt.Errorf("%d bytes: %w", len(b), errDamaged)
	}
	body, end := b[:len(b)-tail], b[len(b)-tail:]
	digits, ok := bytes.CutPrefix(end, []byte("\ncrc32c "))
	want, err := strconv.ParseUint(string(bytes.TrimSuffix(digits, []byte("\n"))), 16, 32)
	if !ok || err != nil || uint32(want) != sum(body) {
		return nil, fmt.Errorf("checksum differs: %w", errDamaged)
	}
	return body, nil
}

// write puts a file in its place so that after a power cut it has the old or the new content.
func write(dir, name string, body []byte) error {
	if err := place(dir, name, body, (*os.File).Sync); err != nil {
		return err
	}
	return syncDir(dir)
}

// place puts a file in its place, whole. Without a sync a power cut may leave neither the old nor the new content, but something damaged.
func place(dir, name string, body []byte, sync func(*os.File) error) error {
	temp, err := os.CreateTemp(dir, tempMark+name+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(seal(body))
	if err == nil {
		err = sync(temp)
	}
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// remove deletes a file for good; that there is none is no error.
func remove(dir, name string) error {
	err := os.Remove(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// read returns the content of a file: os.ErrNotExist where there is none, any other error where it is damaged or cannot be read.
func read(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe would block whoever opens it
		return nil, fmt.Errorf("not a regular file: %w", errDamaged)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("over %d bytes: %w", maxFile, errDamaged)
	}
	return unseal(b)
}

// passing reports whether a file could not be read for a reason that is not in what it holds: want of memory or of open files, which may be there a moment
// later, or of a right, which a person can give. Then it is no damaged one. That a card gives nothing back is damage.
func passing(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && errno != syscall.EIO && errno != syscall.EBADMSG && errno != syscall.EUCLEAN && errno != syscall.ENOENT
}

// putAside moves a file that cannot be used to damaged/. Of the same name the newest is kept, so that this stays bounded.
func (s *Store) putAside(dir, name string, cause error) {
	to := filepath.Join(s.dir, damagedDir, name)
	err := os.RemoveAll(to)
	if err == nil {
		err = os.Rename(filepath.Join(dir, name), to)
	}
	if err != nil {
		s.log.Warn("damaged file stays in its place", "file", filepath.Join(dir, name), "err", errors.Join(cause, err))
		return
	}
	s.log.Warn("damaged file put aside", "file", filepath.Join(dir, name), "err", cause)
}
