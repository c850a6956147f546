package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed schema.sql
var schema string

const (
	// applicationID marks our files ("swml"), so that another program's database is never written to.
	applicationID = 0x73776d6c
	// schemaVersion goes up with the first change of schema.sql after a release. The schemas
	// of releases are in testdata/schemas, by this number: a test compares. A file with a
	// lower number is upgraded, so whoever changes what rows mean looks at carryOver too.
	schemaVersion = 2

	writeBatch = 64              // waiting writes that share one commit
	busyWait   = 5 * time.Second // how long a write waits for a lock held by a sqlite3 shell
)

var (
	errNotFound = errors.New("not found")
	errClosed   = errors.New("the state database is closed")
	errInUse    = errors.New("in use by another swarmlite manager; stop that one, or name another file with -db")
)

func init() {
	// shuffle(seed, id) is the order of strategy random: the same seed gives it again.
	sqlite.MustRegisterDeterministicScalarFunction("shuffle", 2, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		seed, _ := args[0].(int64)
		id, _ := args[1].(int64)
		return int64(rand.New(rand.NewPCG(uint64(seed), uint64(id))).Uint32()), nil
	})
}

// store owns the SQLite file: one writer connection and a pool of readers.
// State lives here and nowhere else; a transaction is the lock.
type store struct {
	path string
	log  *slog.Logger
	lock *os.File
	rw   *sql.DB // one connection, owned by the writer goroutine
	ro   *sql.DB

	writes chan *write
	stop   chan struct{}
	done   chan struct{} // closed when the writer has ended
	wrote  chan struct{} // something was committed: the WAL wants folding
	finish chan struct{} // the writer is to fold what is left
	folded chan struct{} // closed when the folder has ended

	prepared sync.Map // SQL text → *sql.Stmt on ro

	room bell // rings when room may have come free

	eventsMu sync.Mutex
	eventsCh chan struct{} // closed and replaced when event rows were committed
}

// bell wakes all who wait for something that happens now and then.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that is closed when the bell rings next.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// write is one function waiting for its turn in the writer's next transaction.
type write struct {
	fn   func(*tx) error
	done chan error
}

// tx is a running write transaction. Its statements stay prepared between transactions.
type tx struct {
	ctx       context.Context
	conn      *sql.Conn
	stmts     map[string]*sql.Stmt
	newEvents bool
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

func oneRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return errNotFound
	}
	return err
}

// openStore opens the database at path, making it if it is not there, and takes
// the lock that keeps a second manager away. An older one is upgraded, a damaged one
// set aside and made anew; foreign, newer and unreadable files are refused untouched.
func openStore(ctx context.Context, log *slog.Logger, path string) (*store, error) {
	found, err := checkFile(path)
	if err != nil {
		return nil, err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("state database %s: %w", path, err)
	}
	s := &store{
		path: path, log: log, lock: lock,
		writes: make(chan *write, writeBatch), stop: make(chan struct{}), done: make(chan struct{}),
		wrote: make(chan struct{}, 1), finish: make(chan struct{}, 1), folded: make(chan struct{}),
		eventsCh: make(chan struct{}),
	}
	err = settleFile(ctx, log, path, found)
	if err == nil {
		err = s.open(ctx)
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("state database %s: %w", path, storeReason(err))
	}
	return s, nil
}

// open connects the writer and the readers and starts the writer goroutine.
func (s *store) open(ctx context.Context) error {
	common := fmt.Sprintf("_pragma=busy_timeout(%d)&_pragma=foreign_keys(1)&_pragma=cache_size(-16000)&_pragma=temp_store(2)", busyWait.Milliseconds())
	var err error
	// wal_autocheckpoint(0): a checkpoint in the middle of a create costs it 10 to 20 ms
	// and more; fold makes them on a connection of its own.
	s.rw, err = sql.Open("sqlite", dsn(s.path, common+"&_pragma=journal_mode(wal)&_pragma=synchronous(normal)&_pragma=wal_autocheckpoint(0)&_pragma=recursive_triggers(1)"))
	if err != nil {
		return err
	}
	s.rw.SetMaxOpenConns(1)
	conn, err := s.rw.Conn(ctx)
	if err != nil {
		return err
	}
	if err := conn.QueryRowContext(ctx, "SELECT 1 FROM manager").Scan(new(int)); err != nil {
		conn.Close()
		return err
	}
	s.ro, err = sql.Open("sqlite", dsn(s.path, common+"&_pragma=query_only(1)"))
	if err != nil {
		return err
	}
	s.ro.SetMaxOpenConns(8)
	s.ro.SetMaxIdleConns(4)
	go s.writer(context.WithoutCancel(ctx), conn)
	go s.fold(context.WithoutCancel(ctx))
	return nil
}

const (
	foldEvery = time.Second // how often the WAL is folded into the file while there are writes
	bigLog    = 8 << 20     // bytes of a WAL that the writer has to help with
)

// fold copies the WAL into the file now and then, beside the writer: a passive
// checkpoint waits for nobody and keeps nobody waiting. (Before SQLite 3.51.3 two
// connections at once on a WAL could corrupt it; a test asserts our version.) Under a
// steady stream of writes it never gets to the end, and only a WAL that was folded to
// the end is begun anew: then the writer folds the little that is left.
func (s *store) fold(ctx context.Context) {
	defer close(s.folded)
	db, err := sql.Open("sqlite", dsn(s.path, "_pragma=wal_autocheckpoint(0)"))
	if err != nil {
		return // cannot be: the driver is the one that open has used
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	tick := time.NewTicker(foldEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
		select {
		case <-s.wrote:
			db.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)") // the next one finds what this one leaves
		default:
			continue
		}
		if log, err := os.Lstat(s.path + "-wal"); err == nil && log.Size() > bigLog {
			select {
			case s.finish <- struct{}{}:
			default:
			}
		}
	}
}

// close ends the writer after the writes that already wait, folds the WAL into
// the file and gives up the lock.
func (s *store) close() {
	close(s.stop)
	<-s.done
	<-s.folded
	s.prepared.Range(func(_, st any) bool { st.(*sql.Stmt).Close(); return true })
	s.ro.Close()
	s.rw.Close()
	s.lock.Close()
}

// write runs fn in a write transaction and returns when it is committed, or fn
// has refused and nothing of it is kept. fn must not wait for anything but SQL.
// A client that leaves does not undo a write that waits its turn.
func (s *store) write(ctx context.Context, fn func(*tx) error) error {
	w := &write{fn: fn, done: make(chan error, 1)}
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
// writeBatch, into one transaction.
func (s *store) writer(ctx context.Context, conn *sql.Conn) {
	defer close(s.done)
	defer conn.Close()
	t := &tx{ctx: ctx, conn: conn, stmts: map[string]*sql.Stmt{}}
	batch := make([]*write, 0, writeBatch)
	for {
		batch = batch[:0]
		select {
		case w := <-s.writes:
			batch = append(batch, w)
		case <-s.finish:
			t.exec("PRAGMA wal_checkpoint(PASSIVE)")
			continue
		case <-s.stop:
			for {
				select {
				case w := <-s.writes:
					s.commit(t, []*write{w})
				default:
					t.exec("PRAGMA wal_checkpoint(TRUNCATE)")
					t.forget() // SQLite deletes the WAL only with the last connection that has no statements
					return
				}
			}
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
		s.commit(t, batch)
		select {
		case s.wrote <- struct{}{}:
		default:
		}
	}
}

// commit runs a batch in one transaction, each function in a savepoint of its
// own so that one that refuses takes nothing with it.
func (s *store) commit(t *tx, batch []*write) {
	errs := make([]error, len(batch))
	t.newEvents = false
	_, err := t.exec("BEGIN IMMEDIATE")
	if err == nil {
		for i, w := range batch {
			errs[i] = t.inSavepoint(w.fn)
		}
		if _, err = t.exec("COMMIT"); err != nil {
			t.exec("ROLLBACK")
		}
	}
	if err == nil && t.newEvents {
		s.wakeEvents()
	}
	for i, w := range batch {
		if err != nil {
			errs[i] = storeError(err)
		}
		w.done <- errs[i]
	}
}

func (t *tx) inSavepoint(fn func(*tx) error) (err error) {
	if _, err := t.exec("SAVEPOINT one"); err != nil {
		return err
	}
	// A panic in a write must not take the writer with it: every later request would wait for ever.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write: panic: %v", p)
		}
		if err != nil {
			t.exec("ROLLBACK TO one")
		}
		if _, e := t.exec("RELEASE one"); err == nil {
			err = e
		}
	}()
	return fn(t)
}

// storeError turns what SQLite says into the words a client gets: creates and
// other writes that need the database answer 503, reads and relays go on.
func storeError(err error) error {
	if sqliteCode(err) == 0 {
		return err
	}
	return errorf(503, "state database: %s", storeWords(err))
}

// storeReason is err with what SQLite says in a person's words.
func storeReason(err error) error {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return err
	}
	return errors.New(strings.Replace(err.Error(), se.Error(), storeWords(se), 1))
}

// storeWords says why SQLite refuses.
func storeWords(err error) string {
	code := sqliteCode(err)
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "locked by another program"
	case sqlite3.SQLITE_FULL:
		return "disk full"
	case sqlite3.SQLITE_READONLY:
		return "read-only"
	case sqlite3.SQLITE_IOERR:
		if code == sqlite3.SQLITE_IOERR_SHMSIZE { // no room for the file in which readers and the writer meet
			return "disk full"
		}
		return "disk I/O error"
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return "damaged"
	}
	return err.Error()
}

// stmt returns query prepared for the readers; only texts fixed in the program come here.
func (s *store) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := s.prepared.Load(query); ok {
		return st.(*sql.Stmt), nil
	}
	st, err := s.ro.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if old, loaded := s.prepared.LoadOrStore(query, st); loaded {
		st.Close()
		return old.(*sql.Stmt), nil
	}
	return st, nil
}

func (s *store) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	st, err := s.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

// get scans the only row of a query into dest, or returns errNotFound.
func (s *store) get(ctx context.Context, query string, args []any, dest ...any) error {
	st, err := s.stmt(ctx, query)
	if err != nil {
		return err
	}
	return oneRow(st.QueryRowContext(ctx, args...).Scan(dest...))
}

// newEvents returns a channel that is closed when the next event rows are committed.
func (s *store) newEvents() <-chan struct{} {
	s.eventsMu.Lock()
	defer s.eventsMu.Unlock()
	return s.eventsCh
}

func (s *store) wakeEvents() {
	s.eventsMu.Lock()
	defer s.eventsMu.Unlock()
	close(s.eventsCh)
	s.eventsCh = make(chan struct{})
}
