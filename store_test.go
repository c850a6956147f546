package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testStore is a new state database that is closed when the test ends.
func testStore(t testing.TB) *store {
	t.Helper()
	s, err := openStore(t.Context(), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "swarmlite.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// sql runs statements in one write transaction.
func (s *store) sql(t testing.TB, statements string) {
	t.Helper()
	err := s.write(t.Context(), func(t *tx) error {
		_, err := t.conn.ExecContext(t.ctx, statements)
		return err
	})
	if err != nil {
		t.Fatalf("%v in %s", err, statements)
	}
}

// all is the answer to a query as text: rows are lines, columns are separated by "|".
func (s *store) all(t testing.TB, query string, args ...any) string {
	t.Helper()
	rows, err := s.ro.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		values, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		var line []string
		for _, v := range values {
			if v == nil {
				v = "NULL"
			}
			line = append(line, fmt.Sprint(v))
		}
		lines = append(lines, strings.Join(line, "|"))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// one is all for a query whose answer is one row.
func (s *store) one(t testing.TB, query string, args ...any) string {
	t.Helper()
	got := s.all(t, query, args...)
	if got == "" || strings.Contains(got, "\n") {
		t.Fatalf("%s = %q, want one row", query, got)
	}
	return got
}

func TestStorePragmas(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "1", "foreign_keys": "1", "busy_timeout": "200", "wal_autocheckpoint": "0", "journal_size_limit": "8388608", "temp_store": "2"} {
		var got string
		err := st.write(t.Context(), func(t *tx) error { return t.get("PRAGMA "+pragma, nil, &got) })
		if err != nil || got != want {
			t.Errorf("writer's %s = %s, %v, want %s", pragma, got, err, want)
		}
	}
	// Pragmas hold per connection: all that the pool may open are asked.
	var conns []*sql.Conn
	for range 8 {
		c, err := st.ro.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		for pragma, want := range map[string]string{"journal_mode": "wal", "query_only": "1", "foreign_keys": "1", "busy_timeout": "5000"} {
			var got string
			if err := c.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("reader's %s = %s, %v, want %s", pragma, got, err, want)
			}
		}
	}
	if _, err := conns[0].ExecContext(t.Context(), "DELETE FROM manager"); storeError(err).Error() != "state database: read-only" {
		t.Errorf("a write on a reader: %v, want a refusal", err)
	}
	for _, c := range conns {
		c.Close()
	}
}

// TestSQLiteHasNoWALBug: before 3.51.3 two connections on one WAL could corrupt it,
// and 3.53.3 has a bug in the journal's rollback (S31).
func TestSQLiteHasNoWALBug(t *testing.T) {
	t.Parallel()
	version := testStore(t).one(t, "SELECT sqlite_version()")
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); err != nil {
		t.Fatal(err)
	}
	if number := major*1_000_000 + minor*1000 + patch; number < 3_051_003 || number == 3_053_003 {
		t.Errorf("SQLite %s, want at least 3.51.3 and not 3.53.3", version)
	}
}

// together has n writes wait behind one that holds the writer, so that they share a commit.
func (s *store) together(t *testing.T, n int, fn func(int, *tx) error) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- s.write(t.Context(), func(*tx) error { close(held); <-release; return nil })
	}()
	<-held
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = s.write(t.Context(), func(t *tx) error { return fn(i, t) }) })
	}
	eventually(t, 20*time.Second, func() error {
		if len(s.writes) < n {
			return fmt.Errorf("%d of %d writes are waiting", len(s.writes), n)
		}
		return nil
	})
	close(release)
	wg.Wait()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	return errs
}

func put(t *tx, name string) error {
	_, err := t.exec("INSERT INTO pulls (name, node_id, until_at) VALUES (?, 1, 0)", name)
	return err
}

func TestWritesThatWaitShareACommit(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	for i, err := range st.together(t, 40, func(i int, t *tx) error {
		var committed int
		if err := st.get(t.ctx, "SELECT count(*) FROM pulls", nil, &committed); err != nil {
			return err
		}
		if committed != 0 {
			return fmt.Errorf("%d rows were committed before mine", committed)
		}
		return put(t, fmt.Sprint(i))
	}) {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if got := st.one(t, "SELECT count(*) FROM pulls"); got != "40" {
		t.Errorf("%s rows, want 40", got)
	}
}

func TestWriteThatFailsTakesNothingWithIt(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	mine := errors.New("mine")
	errs := st.together(t, 40, func(i int, t *tx) error {
		if err := put(t, fmt.Sprint(i)); err != nil {
			return err
		}
		switch i % 4 {
		case 1:
			return mine
		case 2:
			return put(t, fmt.Sprint(i)) // the name is taken: a constraint
		case 3:
			panic("write " + fmt.Sprint(i))
		}
		return nil
	})
	for i, err := range errs {
		switch {
		case i%4 == 0 && err != nil, i%4 == 1 && !errors.Is(err, mine), i%4 == 2 && err == nil,
			i%4 == 3 && (err == nil || !strings.Contains(err.Error(), "panic")):
			t.Errorf("write %d = %v", i, err)
		}
	}
	if got := st.one(t, "SELECT count(*), sum(name % 4 = 0) FROM pulls"); got != "10|10" {
		t.Errorf("rows|of writes that succeeded = %s, want 10|10", got)
	}
	if err := st.write(t.Context(), func(t *tx) error { return put(t, "after") }); err != nil {
		t.Errorf("the next write: %v", err)
	}
}

func TestWriteOfAClientThatLeft(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	gone, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	// It has its turn already: a create's room is not given up half-way.
	err := st.write(gone, func(t *tx) error {
		cancel()
		ran <- put(t, "a")
		return nil
	})
	if err != nil || <-ran != nil {
		t.Errorf("write of a client that left meanwhile: %v", err)
	}
	if got := st.one(t, "SELECT count(*) FROM pulls"); got != "1" {
		t.Errorf("%s rows, want 1", got)
	}
}

func TestCloseFinishesWritesAndFoldsTheLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	st.sql(t, standardCluster)
	var wrote atomic.Int32
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			switch err := st.write(t.Context(), func(t *tx) error { return put(t, fmt.Sprint(i)) }); {
			case err == nil:
				wrote.Add(1)
			case !errors.Is(err, errClosed):
				t.Errorf("write while closing: %v", err)
			}
		})
	}
	st.close()
	wg.Wait()
	if err := st.write(t.Context(), func(t *tx) error { return nil }); !errors.Is(err, errClosed) {
		t.Errorf("write after close = %v, want errClosed", err)
	}
	if files := fmt.Sprint(fileNames(t, filepath.Dir(path))); files != "[swarmlite.db swarmlite.db.lock]" {
		t.Errorf("files after close: %s, want the database and its lock", files)
	}
	st, err = openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	if got := st.one(t, "SELECT count(*) FROM pulls"); got != fmt.Sprint(wrote.Load()) {
		t.Errorf("%s rows after it was opened again, want the %d that were answered", got, wrote.Load())
	}
	if got := st.one(t, "PRAGMA integrity_check"); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
}

func fileNames(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestLogIsFoldedWhileThereAreWrites: under a steady stream of writes the WAL is
// used again from its beginning, or it would grow for ever (F62).
func TestLogIsFoldedWhileThereAreWrites(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	text := strings.Repeat("x", 32<<10)
	written := int64(0)
	for began := time.Now(); ; {
		err := st.write(t.Context(), func(t *tx) error {
			_, err := t.exec("INSERT OR REPLACE INTO node_info VALUES (1, ?, '')", text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		written += int64(len(text))
		log, err := os.Lstat(st.path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		if log.Size() > 0 && written > 2*log.Size() {
			return
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("the log is %d bytes long after %d were written", log.Size(), written)
		}
	}
}

func TestStoreErrorsAreToldInPlainWords(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	fill := func() error {
		return st.write(t.Context(), func(t *tx) error {
			_, err := t.exec("INSERT OR REPLACE INTO node_info VALUES (1, ?, '')", strings.Repeat("x", 1<<20))
			return err
		})
	}
	st.sql(t, "PRAGMA max_page_count = 100")
	if err := storeError(fill()); err == nil || err.Error() != "state database: disk full" || statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("a write on a full disk = %v, want 503 state database: disk full", err)
	}
	if got := st.one(t, "SELECT count(*) FROM nodes"); got != "1" {
		t.Errorf("reads do not go on: %s", got)
	}
	st.sql(t, "PRAGMA max_page_count = 1000000")
	if err := fill(); err != nil {
		t.Errorf("a write when there is space again = %v", err)
	}
	if err := storeError(errNotFound); !errors.Is(err, errNotFound) {
		t.Errorf("storeError(errNotFound) = %v", err)
	}
}

// TestStoreLockedByAShell: a person's BEGIN EXCLUSIVE stops writes for 5 s, then they
// are refused; reads go on, and writes too when the shell lets go (F61).
func TestStoreLockedByAShell(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	shell, err := sql.Open("sqlite", dsn(st.path, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	shell.SetMaxOpenConns(1)
	if _, err := shell.Exec("BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	began := time.Now()
	go func() { failed <- st.write(t.Context(), func(t *tx) error { return put(t, "a") }) }()
	if got := st.one(t, "SELECT count(*) FROM nodes"); got != "1" {
		t.Errorf("a read while a shell holds the lock: %s", got)
	}
	err = <-failed
	if waited := time.Since(began); err == nil || err.Error() != "state database: locked by another program" || statusOf(err) != http.StatusServiceUnavailable ||
		waited < busyWait || waited > 2*busyWait {
		t.Errorf("write while a shell holds the lock = %v after %v, want 503 after %v", err, waited, busyWait)
	}
	if _, err := shell.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := st.write(t.Context(), func(t *tx) error { return put(t, "a") }); err != nil {
		t.Errorf("write when the shell has let go = %v", err)
	}
}

// TestSumsAreWhatTheRowsAddUpTo does random things to containers and reservations
// and adds the rows up again after each.
func TestSumsAreWhatTheRowsAddUpTo(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+"; INSERT INTO placements (id, name, strategy, nodes, outcome) VALUES (1, 'a', 'spread', 3, 'reserved')")
	const seed = 1
	rnd := rand.New(rand.NewPCG(seed, seed))
	statements := []string{
		"INSERT INTO containers (node_id, id, container_id, name, image, state, created_at, counted, nano_cpus, memory_bytes, summary) VALUES (%d, %[2]d, 'c%[2]d', 'n', 'i', 'running', 0, %d, %d, %d, '{}')",
		"UPDATE containers SET counted = 1 - counted WHERE id %% 3 = %d",
		"UPDATE containers SET memory_bytes = memory_bytes + %d, nano_cpus = %d WHERE id %% 5 = %d",
		"UPDATE containers SET state = 'exited', counted = 0 WHERE id %% 7 = %d",
		"UPDATE containers SET counted = %d, memory_bytes = %d WHERE id %% 2 = %d",
		"DELETE FROM containers WHERE id %% 11 = %d",
		"INSERT INTO reservations (node_id, placement_id, swarm_id, name, image, nano_cpus, memory_bytes) VALUES (%d, 1, 's%[2]d', 'r%[2]d', 'i', %[4]d, %[5]d)",
		"DELETE FROM reservations WHERE id %% 3 = %d",
		"UPDATE reservations SET state = 'unknown'",
	}
	for step := range 400 {
		s := statements[rnd.IntN(len(statements))]
		args := []any{rnd.IntN(3) + 1, step, rnd.IntN(2), rnd.IntN(1000), rnd.IntN(1000)}
		if strings.HasPrefix(s, "UPDATE containers SET counted = %d") || strings.HasPrefix(s, "UPDATE containers SET memory") {
			args = []any{rnd.IntN(2), rnd.IntN(1000), rnd.IntN(5)}
		}
		if !strings.Contains(s, "[") {
			args = args[:strings.Count(s, "%d")]
		}
		if !strings.Contains(s, "%d") {
			args = nil
		}
		s = fmt.Sprintf(s, args...)
		st.sql(t, s)
		if got := st.all(t, "SELECT * FROM ("+overcommitted+") WHERE what = 'sums'"); got != "" {
			t.Fatalf("step %d of seed %d: after %s: %s", step, seed, s, got)
		}
	}
	st.sql(t, "DELETE FROM nodes WHERE id = 1")
	if got := st.one(t, "SELECT (SELECT count(*) FROM containers WHERE node_id = 1), (SELECT count(*) FROM reservations WHERE node_id = 1)"); got != "0|0" {
		t.Errorf("rows of a node that is gone: %s", got)
	}
}
