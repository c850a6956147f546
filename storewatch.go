package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const (
	watchEvery = time.Second // how often the files are looked at, and the WAL folded while there are writes
	bigLog     = 8 << 20     // bytes of a WAL that the writer has to help with
	hugeLog    = 256 << 20   // bytes of a WAL that an operator should know of
	checkEvery = time.Hour   // how often the whole file is read, to find damage before it matters
	firstCheck = time.Minute // after the start, of a file that was too large to be read then
)

// storeFailure is why the store cannot go on: the program ends with it, and whoever
// starts it again gets a database that is whole.
type storeFailure struct{ path, what string }

func (f *storeFailure) Error() string { return "state database " + f.path + ": " + f.what }

// fail ends the store's work: nothing is written from now on, and the program is told.
func (s *store) fail(what string) {
	if s.failure.CompareAndSwap(nil, &storeFailure{s.path, what}) {
		close(s.failed)
	}
}

// broken is the store's failure, if there was one, for whoever wants to write.
func (s *store) broken() error {
	if f := s.failure.Load(); f != nil {
		return &storeFault{errorf(503, "state database: %s", f.what)}
	}
	return nil
}

// note looks at an error from SQLite for damage. A file that is damaged is left at the
// first sign: what is read or written further can only make it worse.
func (s *store) note(err error) {
	if isDamage(err) {
		s.foundDamage(sqliteWords(err))
	}
}

func (s *store) foundDamage(words string) {
	if err := emptyFile(s.path + damageMark); err != nil && !errors.Is(err, fs.ErrExist) {
		s.log.Warn("damage not marked", "db", s.path, "err", err)
	}
	s.fail("damaged (" + words + "); start swarmlite again: the file is set aside then, and made anew")
}

// watch looks after the files until the writer has ended: it folds the WAL, and finds
// out when they are deleted, replaced or damaged.
func (s *store) watch(ctx context.Context, files [2]fs.FileInfo) {
	defer close(s.watched)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	db, err := sql.Open("sqlite", dsn(s.path, "mode=rw&_pragma=wal_autocheckpoint(0)"))
	if err != nil {
		return // cannot be: the driver is the one that open has used
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		first := checkEvery
		if files[0].Size() > maxChecked {
			first = firstCheck
		}
		s.checkNowAndThen(ctx, first)
	}()
	defer func() { cancel(); <-checked }()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	huge := false
	for {
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
		if what := s.changed(files); what != "" {
			s.rescue(ctx, what, files)
			return
		}
		var version int64
		if db.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version) == nil {
			s.others.Store(version)
		}
		s.scans.giveBack()
		size := s.fold(ctx, db)
		if (size > hugeLog) != huge {
			huge = size > hugeLog
			if huge {
				s.log.Warn("state database: the write-ahead log is over 256 MiB: some program reads the file and does not end; it is folded when that ends",
					"file", s.path+"-wal", "MiB", size>>20)
			} else {
				s.log.Info("state database: the write-ahead log is folded again", "file", s.path+"-wal", "MiB", size>>20)
			}
		}
	}
}

// fold copies the WAL into the file, beside the writer: a passive checkpoint waits for
// nobody and keeps nobody waiting. (Before SQLite 3.51.3 two connections at once on a
// WAL could corrupt it; a test asserts our version.) Under a steady stream of writes it
// never gets to the end, and only a WAL that was folded to the end is begun anew: then
// the writer folds the little that is left. fold returns the size of the WAL.
func (s *store) fold(ctx context.Context, db *sql.DB) (size int64) {
	log, err := os.Lstat(s.path + "-wal")
	if err == nil {
		size = log.Size()
	}
	select {
	case <-s.wrote:
	default:
		if size <= bigLog {
			return size
		}
	}
	db.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)") // the next one finds what this one leaves
	if size > bigLog {
		select {
		case s.ops <- func(t *tx) { t.exec("PRAGMA wal_checkpoint(PASSIVE)") }:
		default:
		}
	}
	return size
}

// stateFiles are the database and its WAL as they are now.
func stateFiles(path string) (files [2]fs.FileInfo, err error) {
	for i, suffix := range []string{"", "-wal"} {
		if files[i], err = os.Lstat(path + suffix); err != nil {
			return files, plain(err)
		}
	}
	return files, nil
}

// changed tells what has become of the files that are open: "" if they are where they were.
func (s *store) changed(files [2]fs.FileInfo) string {
	for i, suffix := range []string{"", "-wal"} {
		now, err := os.Lstat(s.path + suffix)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return s.path + suffix + " was deleted"
		case err == nil && !os.SameFile(now, files[i]):
			return s.path + suffix + " was replaced by another file"
		}
	}
	return ""
}

// rescue ends the store after its files were deleted or replaced. Nothing is lost: they
// are still open, so what they hold is written to a new file first.
func (s *store) rescue(ctx context.Context, what string, files [2]fs.FileInfo) {
	what += " while swarmlite was running; "
	now, err := os.Lstat(s.path)
	if err == nil && os.SameFile(now, files[0]) {
		s.fail(what + "the state is folded into the database: start swarmlite again")
		return
	}
	there := err == nil
	to := s.path + ".rescued-" + timeSuffix()
	done := make(chan error, 1)
	select {
	case s.ops <- func(t *tx) { done <- vacuumInto(ctx, t.conn, to) }:
	case <-s.done:
		return
	}
	if err := <-done; err != nil {
		s.fail(fmt.Sprintf("%sits state cannot be written to %s: %v; start swarmlite again, it asks the engines", what, to, storeReason(err)))
		return
	}
	if there {
		s.fail(what + "its state is in " + to + ": put the file that you want in place and start swarmlite again")
		return
	}
	s.rescued = to
	s.fail(what + "its state is written there again: start swarmlite again")
}

// checkNowAndThen reads the whole database for damage, on a connection of its own.
func (s *store) checkNowAndThen(ctx context.Context, first time.Duration) {
	db, err := sql.Open("sqlite", dsn(s.path, "mode=ro"))
	if err != nil {
		return
	}
	defer db.Close()
	db.SetMaxIdleConns(0) // nothing is kept from one hour to the next
	timer := time.NewTimer(first)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.done:
			return
		case <-ctx.Done():
			return
		}
		s.check(ctx, db)
		timer.Reset(checkEvery)
	}
}

// check is one reading.
func (s *store) check(ctx context.Context, db *sql.DB) {
	var words string
	err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&words)
	switch {
	case ctx.Err() != nil:
	case isDamage(err):
		s.note(err)
	case err != nil:
		s.log.Warn("state database not checked", "db", s.path, "err", storeReason(err))
	case words != "ok":
		s.foundDamage(words)
	}
}
