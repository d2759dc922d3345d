package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Bolt is a Store in one file. Every Commit is one transaction and one fsync.
type Bolt struct {
	db *bolt.DB
}

var _ Store = (*Bolt)(nil)

// lockWait is how long OpenBolt waits for a process that is just ending.
const lockWait = 2 * time.Second

// OpenBolt opens or makes the store in dir. A file that cannot be read is put aside under another name, said at error, and an
// empty store takes its place: the nodes go on with what they run, and the operator decides.
func OpenBolt(dir string, log *slog.Logger) (*Bolt, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	path := filepath.Join(dir, "state.db")
	b, err := openBolt(path)
	if err == nil {
		return b, nil
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w: end the other cluster-manager, or give this one a --data of its own", path, ErrInUse)
	}
	if !damaged(err) {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000")
	if errMove := os.Rename(path, aside); errMove != nil {
		return nil, fmt.Errorf("open %s: %w", path, errors.Join(err, errMove))
	}
	log.Error("state file damaged, put aside; starting with none", "path", aside, "err", err)
	return openBolt(path)
}

// errPanic wraps what bbolt says by panic where a page makes no sense.
var errPanic = errors.New("state file makes no sense")

func damaged(err error) bool {
	return errors.Is(err, errPanic) || errors.Is(err, bolterrors.ErrInvalid) ||
		errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch)
}

func openBolt(path string) (b *Bolt, err error) {
	var db *bolt.DB
	// The file is mapped into memory: a page beyond its end is a fault, which would end the process rather than panic.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("%w: %v", errPanic, p)
		}
		if err != nil && db != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	// The free list is written with each commit: bbolt would rebuild it in a goroutine of its own, where a damaged page ends the
	// process. For the same reason the pages are read below by ForEach and not by bbolt's Check.
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range Buckets() {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	b = &Bolt{db: db}
	// Reads every page that is in use: damage shows now rather than in the middle of work.
	return b, b.Load(context.Background(), func(Bucket, string, []byte) error { return nil })
}

// Load reads every bucket in one transaction.
func (b *Bolt) Load(ctx context.Context, each func(Bucket, string, []byte) error) error {
	return b.db.View(func(tx *bolt.Tx) error {
		for _, name := range Buckets() {
			err := tx.Bucket([]byte(name)).ForEach(func(k, v []byte) error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return each(name, string(k), append([]byte{}, v...))
			})
			if err != nil {
				return fmt.Errorf("load %s: %w", name, err)
			}
		}
		return nil
	})
}

// Commit writes all changes in one transaction.
func (b *Bolt) Commit(_ context.Context, changes []Change) error {
	err := b.db.Update(func(tx *bolt.Tx) error {
		for _, c := range changes {
			bucket := tx.Bucket([]byte(c.Bucket))
			var err error
			if c.Value == nil {
				err = bucket.Delete([]byte(c.Key))
			} else {
				err = bucket.Put([]byte(c.Key), c.Value)
			}
			if err != nil {
				return fmt.Errorf("%s %q: %w", c.Bucket, c.Key, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// Close waits for a running transaction and releases the file.
func (b *Bolt) Close() error { return b.db.Close() }
