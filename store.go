package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
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

	writeBatch = 64                     // waiting writes that share one commit
	openLists  = 32                     // nodes whose lists are taken apart for it, or wait so: they are large
	busyWait   = 5 * time.Second        // how long a write waits for a lock held by a sqlite3 shell
	lockTry    = 200 * time.Millisecond // how long SQLite itself waits for it, before others may join the wait
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
	done   chan struct{}  // closed when the writer has ended
	wrote  chan struct{}  // something was committed: the WAL wants folding
	ops    chan func(*tx) // for the writer's connection, outside a transaction
	lists  chan struct{}  // places for nodes' lists that are taken apart, or wait for the writer

	watched chan struct{} // closed when watch has ended
	failure atomic.Pointer[storeFailure]
	failed  chan struct{} // closed when there is a failure
	rescued string        // a copy of a database whose file was lost; read after watch has ended

	prepared sync.Map // SQL text → *sql.Stmt on ro
	scans    scanConns

	metrics *metrics

	creates atomic.Int32 // under way
	commits atomic.Int64 // of the writer
	others  atomic.Int64 // goes up with those of other programs too, within watchEvery

	room bell // rings when room may have come free

	followers atomic.Int32 // clients that wait for events

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
		path: path, log: log, lock: lock, metrics: newMetrics(),
		writes: make(chan *write, writeBatch), stop: make(chan struct{}), done: make(chan struct{}),
		wrote: make(chan struct{}, 1), ops: make(chan func(*tx), 1), watched: make(chan struct{}), lists: make(chan struct{}, openLists),
		failed: make(chan struct{}), eventsCh: make(chan struct{}),
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
	// mode=rw: a file that is deleted meanwhile is not made anew, empty.
	common := "mode=rw&_pragma=foreign_keys(1)&_pragma=temp_store(2)"
	var err error
	// wal_autocheckpoint(0): a checkpoint in the middle of a create costs it 10 to 20 ms
	// and more; watch makes them on a connection of its own.
	s.rw, err = sql.Open("sqlite", dsn(s.path, fmt.Sprintf("%s&_pragma=busy_timeout(%d)&_pragma=journal_mode(wal)&_pragma=synchronous(normal)"+
		"&_pragma=wal_autocheckpoint(0)&_pragma=recursive_triggers(1)&_pragma=journal_size_limit(%d)&_pragma=cache_size(-8000)", common, lockTry.Milliseconds(), bigLog)))
	if err != nil {
		return err
	}
	s.rw.SetMaxOpenConns(1)
	conn, err := s.rw.Conn(ctx)
	if err == nil {
		err = conn.QueryRowContext(ctx, "SELECT 1 FROM manager").Scan(new(int))
	}
	var files [2]fs.FileInfo
	if err == nil {
		files, err = stateFiles(s.path)
	}
	if err == nil {
		// Small caches: the system has the file in its own, and a page of 4 KiB takes 8 here.
		s.ro, err = sql.Open("sqlite", dsn(s.path, fmt.Sprintf("%s&_pragma=busy_timeout(%d)&_pragma=query_only(1)&_pragma=cache_size(-500)", common, busyWait.Milliseconds())))
	}
	if err != nil {
		s.rw.Close()
		return err
	}
	s.ro.SetMaxOpenConns(8)
	s.ro.SetMaxIdleConns(8) // a new connection reads the schema and prepares all it is asked
	go s.writer(context.WithoutCancel(ctx), conn)
	go s.watch(context.WithoutCancel(ctx), files)
	return nil
}

// close ends the writer after the writes that already wait, folds the WAL into
// the file and gives up the lock.
func (s *store) close() {
	close(s.stop)
	<-s.done
	<-s.watched
	s.prepared.Range(func(_, st any) bool { st.(*sql.Stmt).Close(); return true })
	s.ro.Close()
	s.scans.close()
	s.rw.Close()
	if s.rescued != "" {
		s.putBack()
	}
	s.lock.Close()
}

// storeError turns what SQLite says into the words a client gets: creates and
// other writes that need the database answer 503, reads and relays go on.
func storeError(err error) error {
	if sqliteCode(err) == 0 {
		return err
	}
	return &storeFault{errorf(503, "state database: %s", storeWords(err))}
}

// storeFault is an error that says nothing of engines: the database cannot be
// read or written just now.
type storeFault struct{ error }

func (f *storeFault) Unwrap() error { return f.error }

// isStoreFault tells whether the database, and nothing else, is the cause.
func isStoreFault(err error) bool { return sqliteCode(err) != 0 || errors.As(err, new(*storeFault)) }

// storeReason is err with what SQLite says in a person's words.
func storeReason(err error) error {
	var se sqliteError
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
		s.note(err)
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
	err = oneRow(st.QueryRowContext(ctx, args...).Scan(dest...))
	s.note(err)
	return err
}

// ids reads a column of integers.
func (s *store) ids(ctx context.Context, query string, args ...any) ([]int64, error) {
	rows, err := s.query(ctx, query, args...)
	return column[int64](rows, err)
}

// strings reads a column of texts.
func (s *store) strings(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := s.query(ctx, query, args...)
	return column[string](rows, err)
}

// column reads rows of one column.
func column[T any](rows *sql.Rows, err error) (list []T, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// storeVersion is the same only as long as nothing is committed.
type storeVersion struct{ commits, others int64 }

// version is that of the rows: read before them, it is not newer than they are.
func (s *store) version() storeVersion { return storeVersion{s.commits.Load(), s.others.Load()} }

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
