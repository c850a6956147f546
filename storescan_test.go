package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// scanned is the answer to a scan in the form of all, with NULL for what is not there.
func (s *store) scanned(t *testing.T, query string, columns int) string {
	t.Helper()
	rows, err := s.scan(t.Context(), query)
	if err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	defer rows.close()
	var lines []string
	for rows.next() {
		var line []string
		for i := range columns {
			text := string(rows.text(i))
			if rows.null(i) {
				text = "NULL"
			}
			line = append(line, text)
		}
		lines = append(lines, strings.Join(line, "|"))
	}
	if rows.err != nil {
		t.Fatalf("%v in %s", rows.err, query)
	}
	return strings.Join(lines, "\n")
}

func TestScanReadsWhatQueriesRead(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	long := strings.Repeat("é\\", 9000) // goes on in other pages
	st.sql(t, fmt.Sprintf(`INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, status_at, summary) VALUES
		(1, 1, 'c1', 'one', '', 'running', -5, NULL, '{}'), (2, 1, 'c2', 'two', 'x', 'exited', 9223372036854775807, 0, '%s')`, long))
	for range 2 * idleScans { // with a new connection, and with the one that was kept
		const query = "SELECT name, image, coalesce(status_at, 'NULL'), created_at, summary FROM containers ORDER BY id"
		if got, want := st.scanned(t, strings.Replace(query, "coalesce(status_at, 'NULL')", "status_at", 1), 5), st.all(t, query); got != want || !strings.Contains(got, long) {
			t.Errorf("scan: %.80q, want %.80q", got, want)
		}
	}
	rows, err := st.scan(t.Context(), "SELECT created_at FROM containers WHERE name = 'two'")
	if err != nil || !rows.next() || rows.int(0) != 9223372036854775807 || rows.next() {
		t.Errorf("one number is not read as it is: %v", err)
	}
	rows.close()
}

// A list sees the rows of one moment, and every commit of before.
func TestScanIsOfOneMoment(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	count := st.all(t, "SELECT count(*) FROM nodes")
	rows, err := st.scan(t.Context(), "SELECT id FROM nodes")
	if err != nil || !rows.next() {
		t.Fatal(err)
	}
	st.sql(t, "INSERT INTO nodes (address) VALUES ('tcp://10.9.9.9:2375')")
	n := 1
	for rows.next() {
		n++
	}
	rows.close()
	if fmt.Sprint(n) != count {
		t.Errorf("%d rows, want the %s of when it began", n, count)
	}
	if got, want := st.scanned(t, "SELECT count(*) FROM nodes", 1), st.all(t, "SELECT count(*) FROM nodes"); got != want {
		t.Errorf("%s rows after a commit, want %s", got, want)
	}
}

func TestScanTellsWhatSQLiteSays(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	_, err := st.scan(t.Context(), "SELECT id FROM nowhere")
	if sqliteCode(err) != sqlite3.SQLITE_ERROR || !strings.Contains(err.Error(), "no such table: nowhere") || !isStoreFault(err) {
		t.Errorf("a table that is not there: %v", err)
	}
	rows, err := st.scan(t.Context(), "INSERT INTO nodes (address) VALUES ('tcp://10.9.9.9:2375')")
	if err != nil {
		t.Fatal(err)
	}
	if rows.next() || sqliteCode(rows.err) != sqlite3.SQLITE_READONLY {
		t.Errorf("a write by a scan: %v", rows.err)
	}
	rows.close()
	ctx, cancel := context.WithCancel(t.Context())
	rows, err = st.scan(ctx, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.close()
	cancel()
	for rows.next() {
	}
	if !errors.Is(rows.err, context.Canceled) {
		t.Errorf("after its client left: %v", rows.err)
	}
}

// The WAL is folded into the file when the last connection is closed, so none may stay open.
func TestNoScanStaysOpenWhenTheStoreIsClosed(t *testing.T) {
	t.Parallel()
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "swarmlite.db"))
	if err != nil {
		t.Fatal(err)
	}
	st.scanned(t, "SELECT id FROM nodes", 1)
	late, err := st.scan(t.Context(), "SELECT id FROM manager")
	if err != nil || !late.next() {
		t.Fatal(err)
	}
	st.close()
	late.close()
	if _, err := os.Lstat(st.path + "-wal"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the WAL is there: %v", err)
	}
}

func TestScanFindsDamage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	if err := os.WriteFile(path, soundFile(t, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	root, err := strconv.Atoi(st.all(t, "SELECT rootpage FROM sqlite_schema WHERE name = 'containers'"))
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4096), int64(root-1)*4096)
	}
	if err != nil {
		t.Fatal(err)
	}
	rows, err := st.scan(t.Context(), "SELECT summary FROM containers")
	if err != nil {
		t.Fatal(err)
	}
	for rows.next() {
	}
	rows.close()
	if !isDamage(rows.err) {
		t.Errorf("a page of zeros: %v", rows.err)
	}
	select {
	case <-st.failed:
	default:
		t.Error("the store goes on after a scan has found damage")
	}
	f.Close() // not before: SQLite's locks of this process go with it
}

func TestShownIDsReplacesNetworkIDsOnly(t *testing.T) {
	t.Parallel()
	l := &containerLister{}
	ids := []builtinID{{"aaaa", "bbbb"}, {"cc", "dd"}}
	for in, want := range map[string]string{
		`{"Labels":{"net":"aaaa"},"N":{"bridge":{"NetworkID":"aaaa","EndpointID":"aaaa"},"host":{"NetworkID":"cc"}}}`: `{"Labels":{"net":"aaaa"},"N":{"bridge":{"NetworkID":"bbbb","EndpointID":"aaaa"},"host":{"NetworkID":"dd"}}}`,
		`{"NetworkID":"aaaa1"}`: `{"NetworkID":"aaaa1"}`,
		`{"NetworkID":"aaaa`:    `{"NetworkID":"aaaa`,
		`{"NetworkID":"`:        `{"NetworkID":"`,
		`{"MyNetworkID":"cc"}`:  `{"MyNetworkID":"cc"}`,
		`NetworkID":"cc"`:       `NetworkID":"cc"`,
		`{}`:                    `{}`,
	} {
		for range 2 { // the room of the entry before is used again
			if got := string(l.shownIDs([]byte(in), ids)); got != want {
				t.Errorf("shownIDs(%s) = %s, want %s", in, got, want)
			}
		}
	}
}

// The cache of a list stays for the scans that come soon after, and no longer.
func TestScanGivesItsCacheBack(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	c, err := openScan(st.path)
	if err != nil {
		t.Fatal(err)
	}
	scans := &scanConns{} // not the store's, which are looked after each second
	defer scans.close()
	if rc := c.exec("SELECT name FROM nodes"); rc != sqlite3.SQLITE_OK {
		t.Fatal(c.error(rc))
	}
	cached := func() int {
		sqlite3.Xsqlite3_db_status(c.tls, c.db, sqlite3.SQLITE_DBSTATUS_CACHE_USED, c.out, c.out+4, 0)
		return int(binary.NativeEndian.Uint32(libc.GoBytes(c.out, 4)))
	}
	full := cached()
	c.used = true
	scans.put(c)
	scans.giveBack()
	if got := cached(); got != full {
		t.Errorf("a cache that was just used has %d bytes, want the %d from before", got, full)
	}
	scans.giveBack()
	if got := cached(); got >= full {
		t.Errorf("a cache that nobody uses has %d bytes, want less than the %d from before", got, full)
	}
	if again := scans.take(); again != c {
		t.Error("the connection itself is not kept")
	} else {
		scans.put(c)
	}
}
