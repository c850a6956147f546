package main

import (
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// soundFile is a folded, closed database with rows of every kind, and what it holds.
func soundFile(t testing.TB, events int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	st.sql(t, "PRAGMA foreign_keys = 0; DELETE FROM manager; "+strings.Replace(oldRows, "ROWS", fmt.Sprint(events), 1))
	st.close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// damaged opens a file with this content, which a manager had before, as it is after the
// cure. The log says whether there was one.
func damaged(t testing.TB, content []byte) (st *store, path, logged string, took time.Duration) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "swarmlite.db")
	for file, data := range map[string][]byte{path: content, path + ".lock": nil} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, logs := testLog()
	began := time.Now()
	st, err := openStore(t.Context(), log, path)
	if err != nil {
		t.Fatalf("openStore of a damaged file: %v", err)
	}
	took = time.Since(began)
	t.Cleanup(st.close)
	logs.mu.Lock()
	defer logs.mu.Unlock()
	return st, path, logs.text.String(), took
}

// F59: a damaged file is set aside, and what can be read of it is kept.
func TestF59DamagedAtStart(t *testing.T) {
	t.Parallel()
	sound := soundFile(t, 2000)
	st, _, logged, _ := damaged(t, sound)
	if logged != "" || st.one(t, "SELECT count(*) FROM containers") != "1" {
		t.Fatalf("a sound file: %s", logged)
	}
	root := func(table string) int { // where a table begins
		var page int
		fmt.Sscan(st.one(t, "SELECT rootpage FROM sqlite_schema WHERE name = ?", table), &page)
		return (page - 1) * 4096
	}
	change := func(do func(data []byte) []byte) []byte { return do(append([]byte(nil), sound...)) }
	var slowest time.Duration
	for _, tt := range []struct {
		name    string
		content []byte
		lost    string // words of the log
		kept    bool   // the operator's settings
	}{
		{"cut behind the tables' first pages", change(func(d []byte) []byte { return d[:len(d)*3/4/4096*4096] }), "events", true},
		{"cut after the header", change(func(d []byte) []byte { return d[:100] }), "everything", false},
		{"cut in the list of tables", change(func(d []byte) []byte { return d[:8192] }), "everything", false},
		{"the header overwritten", change(func(d []byte) []byte { copy(d, "no database any more"); return d }), "everything", false},
		{"random bytes", change(func(d []byte) []byte {
			random := mrand.New(mrand.NewPCG(1, 2))
			for i := range d {
				d[i] = byte(random.Uint32())
			}
			return d
		}), "everything", false},
		{"the events overwritten", change(func(d []byte) []byte { clear(d[root("events") : root("events")+4096]); return d }), "events", true},
		{"the containers overwritten, which engines tell again", change(func(d []byte) []byte { clear(d[root("containers") : root("containers")+4096]); return d }), "nothing", true},
		{"the manager overwritten", change(func(d []byte) []byte { clear(d[root("manager") : root("manager")+4096]); return d }), "manager", true},
		{"the nodes overwritten, that others refer to", change(func(d []byte) []byte { clear(d[root("nodes") : root("nodes")+4096]); return d }), "nodes", false},
	} {
		st, path, logged, took := damaged(t, tt.content)
		slowest = max(slowest, took)
		aside, _ := filepath.Glob(path + ".corrupt-*")
		if len(aside) != 1 {
			t.Errorf("%s: set aside: %q, want one file", tt.name, aside)
			continue
		}
		if data, err := os.ReadFile(aside[0]); err != nil || string(data) != string(tt.content) {
			t.Errorf("%s: what was set aside is not what was there: %v", tt.name, err)
		}
		if !strings.Contains(logged, "level=ERROR") || !strings.Contains(logged, aside[0]) || !strings.Contains(logged[strings.LastIndex(logged, "lost="):], tt.lost) {
			t.Errorf("%s: log %s, want an error with the file's name and lost=%s", tt.name, logged, tt.lost)
		}
		want := "tcp://10.0.0.1:2375|drain|yes"
		if !tt.kept {
			want = ""
		}
		if got := st.all(t, "SELECT address, availability, value FROM nodes n JOIN node_labels l ON l.node_id = n.id AND l.source = 'operator'"); got != want {
			t.Errorf("%s: what the operator set is %q, want %q", tt.name, got, want)
		}
		for query, want := range map[string]string{
			"SELECT length(cluster_id) > 5 FROM manager":                                     "1",
			"SELECT sum(containers) + sum(used_memory_bytes) FROM nodes":                     map[bool]string{true: "0", false: "NULL"}[tt.kept],
			"SELECT (SELECT count(*) FROM containers) + (SELECT count(*) FROM reservations)": "0",
			"SELECT * FROM pragma_integrity_check":                                           "ok",
			"SELECT count(*) FROM pragma_foreign_key_check":                                  "0",
		} {
			if got := st.one(t, query); got != want {
				t.Errorf("%s: %s = %s, want %s", tt.name, query, got, want)
			}
		}
		if tt.lost == "nothing" && st.one(t, "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM placements)") != "2000|3" {
			t.Errorf("%s: the ledgers are not whole", tt.name)
		}
	}
	faultTook(t, 59, "9 kinds of damage set aside and rebuilt, the slowest", slowest, 5*time.Second)
}

// F59: whatever bytes are flipped, the manager starts.
func TestF59FlippedBytes(t *testing.T) {
	t.Parallel()
	sound := soundFile(t, 100)
	rounds, seed := 15, uint64(0) // the same bits every time
	if allFaults() {
		rounds, seed = 1000, uint64(time.Now().UnixNano())
	}
	random := mrand.New(mrand.NewPCG(seed, 3))
	found := 0
	for range rounds {
		content := append([]byte(nil), sound...)
		var flips []string
		for range 1 + random.IntN(20) {
			at, bit := 100+random.IntN(len(content)-100), byte(1)<<random.IntN(8)
			content[at] ^= bit
			flips = append(flips, fmt.Sprintf("%d^%d", at, bit))
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "swarmlite.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
		if err != nil {
			t.Fatalf("openStore with flipped bits %v: %v", flips, err)
		}
		if err := st.write(t.Context(), func(t *tx) error {
			_, err := t.exec("INSERT INTO nodes (address) VALUES ('tcp://10.9.9.9:2375')")
			return err
		}); err != nil {
			t.Errorf("a write after flipped bits %v: %v", flips, err)
		}
		st.close()
		if aside, _ := filepath.Glob(path + ".corrupt-*"); len(aside) > 0 {
			found++
		}
		os.RemoveAll(dir)
	}
	t.Logf("%d of %d files were found damaged", found, rounds)
}

// A file that nobody had before may be anybody's: it is not touched.
func TestADamagedHeaderWithoutALockFileIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "letter.txt")
	if err := os.WriteFile(path, []byte(strings.Repeat("Dear reader ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, filepath.Dir(path))
	if st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path); err == nil {
		st.close()
		t.Error("openStore of a text succeeds")
	}
	if after := snapshot(t, filepath.Dir(path)); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}
