package main

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// write is one function waiting for its turn in the writer's next transaction.
type write struct {
	fn    func(*tx) error
	done  chan error
	since time.Time
	wait  time.Duration // that it may spend on waiting for company
}

// How long writes wait for others to share a commit with: half of what a commit costs is
// the pages, most of them the same for one create and for eight.
const (
	waitOfCreate = 500 * time.Microsecond // while other creates are under way
	waitOfEvents = time.Millisecond
	waitOfReads  = 2 * time.Millisecond // what was read again: lists wait for it, nobody else
)

// tx is a running write transaction. Its statements stay prepared between transactions.
type tx struct {
	ctx       context.Context
	conn      *sql.Conn
	stmts     map[string]*sql.Stmt
	newEvents bool
	idle      bool     // said by what runs: it has changed nothing
	changed   bool     // something of the batch has
	metrics   *metrics // nil: nobody counts
}

func (t *tx) prepare(query string) (*sql.Stmt, error) {
	if st, ok := t.stmts[query]; ok {
		return st, nil
	}
	st, err := t.conn.PrepareContext(t.ctx, query)
	if err != nil {
		return nil, err
	}
	// The shapes of placement queries are many but not endless; a flood of odd ones starts afresh.
	if len(t.stmts) >= 500 {
		t.forget()
	}
	t.stmts[query] = st
	return st, nil
}

func (t *tx) forget() {
	for q, st := range t.stmts {
		st.Close()
		delete(t.stmts, q)
	}
}

func (t *tx) exec(query string, args ...any) (sql.Result, error) {
	st, err := t.prepare(query)
	if err != nil {
		return nil, err
	}
	return st.ExecContext(t.ctx, args...)
}

func (t *tx) query(query string, args ...any) (*sql.Rows, error) {
	st, err := t.prepare(query)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(t.ctx, args...)
}

// get scans the only row of a query into dest, or returns errNotFound.
func (t *tx) get(query string, args []any, dest ...any) error {
	st, err := t.prepare(query)
	if err != nil {
		return err
	}
	return oneRow(st.QueryRowContext(t.ctx, args...).Scan(dest...))
}

// ids reads a column of integers.
func (t *tx) ids(query string, args ...any) ([]int64, error) {
	rows, err := t.query(query, args...)
	return column[int64](rows, err)
}

// strings reads a column of texts.
func (t *tx) strings(query string, args ...any) ([]string, error) {
	rows, err := t.query(query, args...)
	return column[string](rows, err)
}

// mostlyIdle runs fn, which mostly finds that all is as it should be. If so this counts as
// no change: see storeVersion.
func (t *tx) mostlyIdle(fn func() error) error {
	before := t.changes()
	err := fn()
	t.idle = err == nil && before >= 0 && t.changes() == before
	return err
}

// changes goes up with each row that is changed.
func (t *tx) changes() (n int64) {
	if t.get("SELECT total_changes()", nil, &n) != nil {
		return -1
	}
	return n
}

// write runs fn in a write transaction and returns when it is committed, or fn
// has refused and nothing of it is kept. fn must not wait for anything but SQL.
// A client that leaves does not undo a write that waits its turn.
func (s *store) write(ctx context.Context, fn func(*tx) error) error {
	return s.writeWithin(ctx, 0, fn)
}

// writeWithin is write for what can wait: it shares the commit of what comes in the time given.
func (s *store) writeWithin(ctx context.Context, wait time.Duration, fn func(*tx) error) error {
	return s.await(ctx, &write{fn: fn, done: make(chan error, 1), since: time.Now(), wait: wait})
}

// eventWait is how long the events of an engine wait for company: not at all while somebody
// waits for them.
func (s *store) eventWait() time.Duration {
	if s.followers.Load() > 0 {
		return 0
	}
	return waitOfEvents
}

// createWait is how long the writes of a create wait for company: not at all when it is alone.
func (s *store) createWait() time.Duration {
	if s.creates.Load() > 1 {
		return waitOfCreate
	}
	return 0
}

func (s *store) await(ctx context.Context, w *write) error {
	select {
	case s.writes <- w:
	case <-s.stop:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-w.done:
		return err
	case <-s.done:
		select {
		case err := <-w.done:
			return err
		default:
			return errClosed
		}
	}
}

// writer is the one goroutine that writes: it takes all that waits, up to
// writeBatch, into one transaction. While another program holds the lock, writes
// wait for it together, each for busyWait.
func (s *store) writer(ctx context.Context, conn *sql.Conn) {
	defer close(s.done)
	defer conn.Close()
	t := &tx{ctx: ctx, conn: conn, stmts: map[string]*sql.Stmt{}, metrics: s.metrics}
	var batch []*write
	for stopping := false; ; {
		if len(batch) == 0 {
			select {
			case w := <-s.writes:
				batch = append(batch, w)
			case op := <-s.ops:
				op(t)
				continue
			case <-s.stop:
				stopping = true
			}
		}
		if !stopping {
			batch = s.company(batch)
		}
	fill:
		for len(batch) < writeBatch {
			select {
			case w := <-s.writes:
				batch = append(batch, w)
			default:
				break fill
			}
		}
		if stopping && len(batch) == 0 {
			t.exec("PRAGMA wal_checkpoint(TRUNCATE)")
			t.forget() // SQLite deletes the WAL only with the last connection that has no statements
			return
		}
		batch = s.commit(t, batch)
		select {
		case s.wrote <- struct{}{}:
		default:
		}
	}
}

// company waits for others as long as every write of the batch may wait.
func (s *store) company(batch []*write) []*write {
	until := slices.MinFunc(batch, func(a, b *write) int { return a.until().Compare(b.until()) }).until()
	left := time.Until(until)
	if left <= 0 {
		return batch
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	for len(batch) < writeBatch {
		select {
		case w := <-s.writes:
			batch = append(batch, w)
			if w.until().Before(until) {
				until = w.until()
				timer.Reset(time.Until(until))
			}
		case <-timer.C:
			return batch
		case <-s.stop:
			return batch
		}
	}
	return batch
}

func (w *write) until() time.Time { return w.since.Add(w.wait) }

// commit runs a batch in one transaction, each function of several in a savepoint of its
// own so that one that refuses takes nothing with it. It returns those that may wait
// on for another program's lock.
func (s *store) commit(t *tx, batch []*write) (waiting []*write) {
	errs := make([]error, len(batch))
	began := time.Now()
	t.newEvents, t.changed = false, false
	err := s.broken()
	if err == nil {
		_, err = t.exec("BEGIN IMMEDIATE")
	}
	if sqliteCode(err)&0xff == sqlite3.SQLITE_BUSY {
		for _, w := range batch {
			if time.Since(w.since) < busyWait {
				waiting = append(waiting, w)
			} else {
				w.done <- storeError(err)
			}
		}
		return waiting
	}
	switch {
	case err != nil:
	case len(batch) == 1: // with a savepoint around them all, each of its statements would pass over what all before it have changed
		if errs[0] = t.guarded(batch[0].fn); errs[0] == nil {
			_, err = t.exec("COMMIT")
		} else if _, e := t.exec("ROLLBACK"); e != nil {
			err = errs[0] // SQLite has taken it back
		}
	default:
		for i, w := range batch {
			var undone bool
			if errs[i], undone = t.inSavepoint(w.fn); undone {
				err = errs[i]
				break
			}
		}
		if err == nil {
			_, err = t.exec("COMMIT")
		}
	}
	if err != nil {
		t.exec("ROLLBACK")
	}
	if err == nil && t.changed {
		s.commits.Add(1)
	}
	if err == nil && t.newEvents {
		s.wakeEvents()
	}
	s.metrics.commit(len(batch), began)
	for i, w := range batch {
		if err != nil {
			errs[i] = storeError(err)
		}
		s.note(errs[i])
		w.done <- errs[i]
	}
	return nil
}

// inSavepoint runs fn and keeps nothing of it if it refuses. undone tells that SQLite
// has taken back the whole transaction, as it may when the disk is full.
func (t *tx) inSavepoint(fn func(*tx) error) (err error, undone bool) {
	if _, err := t.exec("SAVEPOINT one"); err != nil {
		return err, true
	}
	err = t.guarded(fn)
	if err != nil {
		_, e := t.exec("ROLLBACK TO one")
		undone = e != nil
	}
	if _, e := t.exec("RELEASE one"); err == nil {
		err, undone = e, e != nil
	}
	return err, undone
}

// guarded runs fn. A panic in a write must not take the writer with it: every later request would wait for ever.
func (t *tx) guarded(fn func(*tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write: panic: %v", p)
		}
	}()
	t.idle = false
	err = fn(t)
	t.changed = t.changed || !t.idle
	return err
}
