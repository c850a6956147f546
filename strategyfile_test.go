package main

import (
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// strategyOf writes a strategy file and returns a scheduler that goes by it.
func strategyOf(t testing.TB, s *store, text string) (*scheduler, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mine.sql")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sc, err := newScheduler(slog.New(slog.DiscardHandler), s, path, nil)
	if err == nil && !strings.Contains(text, "RECURSIVE") {
		sc.file.limit = time.Minute // only the endless one is about the limit
	}
	return sc, err
}

func TestStrategyFileThatIsWrongStopsTheStartAndNamesTheLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, want string }{
		{"a column that is not there", "SELECT n.name AS node,\n  -- n.pric\n  n.pric AS score\nFROM node_load n", "line 3: no such column: n.pric"},
		{"a table that is not there", "SELECT name AS node, 1 AS score\nFROM\nnode_laod", "line 3: no such table: node_laod"},
		{"a function that is not there", "SELECT name AS node,\nscoer(id) AS score FROM node_load", "line 2: no such function: scoer"},
		{"a word where none can be", "SELECT name AS node, 'FRO' AS x,\n1 AS score\nFRO node_load", `line 3: near "FRO": syntax error`},
		{"an end too early", "SELECT name AS node,\n1 AS score FROM node_load WHERE (\n\n", "line 2: incomplete input"},
		{"two statements", "SELECT name AS node, 1 AS score FROM node_load;\n-- more\nDELETE FROM nodes", "line 3: expected one SELECT, found more behind it"},
		{"no SELECT", "DELETE FROM nodes", "expected one SELECT that gives node and score"},
		{"other columns", "SELECT name, 1 AS score FROM node_load", "expected columns node and score, got name, score"},
		{"a change behind WITH", "WITH x AS (SELECT 1)\nDELETE FROM nodes", "expected one SELECT that only reads"},
		{"nothing", "-- later", "expected one SELECT that gives node and score"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if _, err := strategyOf(t, nil, c.text); err == nil || !strings.HasSuffix(err.Error(), "mine.sql: "+c.want) {
				t.Errorf("strategy %q: %v, want %s", c.text, err, c.want)
			}
		})
	}
	_, err := swarmlite(t, "-strategy", "/nowhere/mine.sql")
	if want := "-strategy /nowhere/mine.sql: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("start with no such file: %v, want %s", err, want)
	}
}

// A host that has just come up is busy: that must not keep the manager from starting.
func TestStrategyFileIsCheckedWithPatience(t *testing.T) {
	t.Parallel()
	f := newStrategyFile("mine.sql", "SELECT name AS node, 1 AS score FROM node_load")
	f.limit = time.Nanosecond
	if err := f.check(t.Context()); err != nil {
		t.Errorf("check on a machine that has no time for a create: %v", err)
	}
}

// A file comes from somewhere, and does no more than rank wherever that is.
func TestStrategyFileCanOnlyRead(t *testing.T) {
	t.Parallel()
	made := filepath.Join(t.TempDir(), "made")
	const ranks = "SELECT name AS node, 1 AS score FROM node_load"
	const oneSelect, reads = "expected one SELECT that gives node and score", "expected one SELECT that only reads"
	for name, c := range map[string]struct{ text, want string }{
		"another file":                        {"ATTACH DATABASE '" + made + "' AS x", oneSelect},
		"another file behind a name":          {ranks + " AS [it's]; ATTACH DATABASE '" + made + "' AS x; --'", "line 1: expected one SELECT, found more behind it"},
		"another file behind a comment":       {ranks + " /* '*/; ATTACH DATABASE '" + made + "' AS x", "line 1: expected one SELECT, found more behind it"},
		"a pragma":                            {"PRAGMA query_only = 0", oneSelect},
		"a pragma behind a SELECT":            {ranks + ";PRAGMA writable_schema = 1", "line 1: expected one SELECT, found more behind it"},
		"a pragma as a table":                 {"SELECT 1 AS node, query_only AS score FROM pragma_query_only", reads},
		"a copy":                              {"VACUUM INTO '" + made + "'", oneSelect},
		"a function that writes":              {"SELECT writefile('" + made + "', 'x') AS node, 1 AS score FROM node_load", "line 1: no such function: writefile"},
		"a library":                           {"SELECT name AS node, load_extension('" + made + "') AS score FROM node_load", "not authorized to use function: load_extension"},
		"a table of one's own":                {"WITH x AS (SELECT 1) INSERT INTO nodes (address) VALUES ('x') RETURNING id AS node, 1 AS score", reads},
		"an end that is none, and no end":     {ranks + " WHERE name <> 'it", `unrecognized token: "'it"`},
		"more than a file of its kind may be": {"SELECT 1 AS node, '" + strings.Repeat("x", maxStrategyBytes) + "' AS score", "bytes long, at most 65536 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := strategyOf(t, nil, c.text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("strategy %.200q: %v, want %s", c.text, err, c.want)
			}
			if _, err := os.Lstat(made); err == nil {
				t.Errorf("strategy %.200q made a file", c.text)
			}
		})
	}
	// What the look at the text were to miss is not compiled.
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := readOnly(conn); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"ATTACH DATABASE '" + made + "' AS x", "PRAGMA query_only", "CREATE TEMP TABLE t (a)", "SELECT 1; ATTACH DATABASE '" + made + "' AS y", "BEGIN"} {
		rows, err := conn.QueryContext(t.Context(), text)
		if err == nil {
			for rows.Next() || rows.NextResultSet() {
			}
			err = rows.Err()
			rows.Close()
		}
		if err == nil {
			t.Errorf("%s is compiled", text)
		}
	}
}

// What costs too much is passed over for spread, and the next create finds all in order.
func TestStrategyFileCannotEatTheManager(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"a value of 1 GB":     {"SELECT name AS node, length(hex(zeroblob(1000000000))) AS score FROM node_load", "string or blob too big"},
		"random ones":         {"SELECT name AS node, length(randomblob(1000000000)) AS score FROM node_load", "string or blob too big"},
		"one that grows":      {"SELECT name AS node, length(replace(hex(zeroblob(1000000)), '0', hex(zeroblob(1000000)))) AS score FROM node_load", "string or blob too big"},
		"rows without end":    {"WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE EXISTS (SELECT 1 FROM node_load)) SELECT x AS node, 1 AS score FROM c", "took over 100 ms"},
		"everything by all":   {"SELECT a.name AS node, count(*) AS score FROM node_load a, (WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE EXISTS (SELECT 1 FROM node_load) LIMIT 1000000) SELECT x FROM c) b, (WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE EXISTS (SELECT 1 FROM node_load) LIMIT 1000000) SELECT x FROM c) d GROUP BY 1", "took over 100 ms"},
		"nodes there are not": {"WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE EXISTS (SELECT 1 FROM node_load) LIMIT 2000) SELECT x AS node, -x AS score FROM c", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testStore(t)
			s.sql(t, standardCluster)
			var log strings.Builder
			sc, err := strategyOf(t, s, c.text)
			if err != nil {
				t.Fatal(err)
			}
			if sc.file.limit = time.Minute; strings.Contains(c.want, "100 ms") {
				sc.file.limit = rankTime
			}
			sc.log = slog.New(slog.NewTextHandler(&log, nil))
			if _, err := sc.placeBody(t.Context(), t, "web", "{}"); err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				if got := s.one(t, "SELECT node || ' ' || strategy FROM placements"); got != "node-3 mine.sql" || log.Len() > 0 {
					t.Errorf("placed by %s, want node-3 mine.sql: %s", got, &log)
				}
				return
			}
			if got := s.one(t, "SELECT strategy FROM placements"); got != "spread" || !strings.Contains(log.String(), c.want) {
				t.Errorf("placed by %s, log %s, want spread and %q", got, &log, c.want)
			}
			if got := s.one(t, "SELECT length(hex(zeroblob(5000000)))"); got != "10000000" {
				t.Errorf("others' values are cut as well: %s", got)
			}
		})
	}
}

func TestStrategyFileRanks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, rows, text, body, want string }{
		{"the lowest score is preferred", "", "SELECT name AS node, -id AS score FROM node_load", "{}", "node-3 mine.sql -3 3"},
		{"nodes by id, fractions count", "", "SELECT id AS node, 1 + abs(id - 2) / 10.0 AS score FROM node_load", "{}", "node-2 mine.sql 1 3"},
		{"equal scores go to the node with fewest containers", "UPDATE nodes SET containers = 1 WHERE id < 3", "SELECT name AS node, 7 AS score FROM node_load", "{}", "node-3 mine.sql 7 3"},
		{"the first that passes the built-in clauses", "UPDATE nodes SET availability = 'pause' WHERE id = 3", "SELECT name AS node, -id AS score FROM node_load", "{}", "node-2 mine.sql -2 2"},
		{"soft expressions come first", "", "SELECT name AS node, -id AS score FROM node_load", `{"Env":["constraint:node==~node-1"]}`, "node-1 mine.sql -1 3"},
		{"an infinite score is the last, or the first", "", "SELECT name AS node, CASE id WHEN 1 THEN 9e999 WHEN 2 THEN 1 ELSE exp(1000) END AS score FROM node_load", "{}", "node-2 mine.sql 1 3"},
		{"a node without a score is out", "", "SELECT name AS node, CASE id WHEN 1 THEN NULL ELSE id END AS score FROM node_load", "{}", "node-2 mine.sql 2 2"},
		{"what is asked for can be used", "", "SELECT name AS node, CASE WHEN :memory_bytes > 1000 AND :image = 'nginx' AND :labels ->> 'k' = 'v' THEN -id ELSE id END AS score FROM node_load",
			`{"Image":"nginx","Labels":{"k":"v"},"HostConfig":{"Memory":2000}}`, "node-3 mine.sql -3 3"},
		{"one that takes too long is passed over for spread", "UPDATE nodes SET containers = 1 WHERE id < 3",
			"WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE (SELECT count(*) FROM node_load) > 0 LIMIT 1000000000) SELECT name AS node, (SELECT sum(x) FROM c) AS score FROM node_load", "{}", "node-3 spread 200 3"},
		{"one that fails is passed over for spread", "UPDATE nodes SET containers = 1 WHERE id < 3", "SELECT name AS node, json_extract(name, '$.x') AS score FROM node_load", "{}", "node-3 spread 200 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := testStore(t)
			s.sql(t, standardCluster+";"+c.rows)
			sc, err := strategyOf(t, s, c.text)
			if err != nil {
				t.Fatal(err)
			}
			w, _, err := readCreate([]byte(c.body), &call{})
			if err != nil {
				t.Fatal(err)
			}
			err = readTx(t.Context(), s.ro, func(t *tx) error {
				x, err := sc.explain(t, w)
				if err == nil && !strings.HasPrefix(c.want, x.Node+" "+x.Strategy+" ") {
					err = fmt.Errorf("explain chooses %s by %s (%s), want %s", x.Node, x.Strategy, x.Message, c.want)
				}
				if err == nil && strings.Contains(c.want, "spread") && !strings.Contains(x.Message, "spread would choose "+x.Node+": 3 of 3 fit; by spread, as strategy mine.sql fails: ") {
					err = errors.New(x.Message)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if _, err := sc.placeBody(t.Context(), t, "web", c.body); err != nil {
				t.Fatal(err)
			}
			if got := s.one(t, "SELECT node || ' ' || strategy || ' ' || score || ' ' || fitting FROM placements"); got != c.want {
				t.Errorf("placed %q, want %q", got, c.want)
			}
		})
	}
	s := testStore(t)
	s.sql(t, standardCluster)
	var log strings.Builder
	sc, err := strategyOf(t, s, "SELECT name AS node, json_extract(name, '$.x') AS score FROM node_load")
	if err != nil {
		t.Fatal(err)
	}
	sc.log = slog.New(slog.NewTextHandler(&log, nil))
	if _, err := sc.placeBody(t.Context(), t, "", "{}"); err != nil || !strings.Contains(log.String(), `level=WARN msg="strategy file failed, placed by spread" file=mine.sql err="malformed JSON"`) {
		t.Errorf("a file that fails: %v, log %s", err, log.String())
	}
	sc, err = strategyOf(t, s, "SELECT name AS node, 1 AS score FROM node_load WHERE id > 9")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sc.placeBody(t.Context(), t, "web", "{}"); err == nil || err.Error() != "no node fits: 3 of 3 are not ranked by mine.sql" {
		t.Errorf("a file that ranks nobody: %v", err)
	}
}

// Creates at once must each see what the one before has reserved: by fewest
// containers 30 of them on 3 nodes come out even.
func TestStrategyFileRanksAfterTheLastCommit(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	s.sql(t, standardCluster)
	sc, err := strategyOf(t, s, "SELECT name AS node, containers AS score FROM node_load")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if _, err := sc.placeBody(t.Context(), t, fmt.Sprint("web-", i), "{}"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := s.all(t, "SELECT containers FROM nodes ORDER BY id"); got != "10\n10\n10" {
		t.Errorf("containers by node: %q, want 10 each", got)
	}
}

func TestStrategyExamples(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ file, rows, want string }{
		{"cheapest.sql", "INSERT INTO node_labels VALUES (1, 'price', '0.4', 'operator'), (2, 'price', '0.096', 'operator'); UPDATE nodes SET slots = 2", "node-2 node-2 node-1 node-1 node-3"},
		{"least-recently-used.sql", "UPDATE nodes SET containers = 5 WHERE id = 1", "node-2 node-3 node-1 node-2 node-3"},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			s := testStore(t)
			s.sql(t, standardCluster+";"+c.rows)
			sc, err := newScheduler(slog.New(slog.DiscardHandler), s, filepath.Join("examples", c.file), nil)
			if err != nil {
				t.Fatal(err)
			}
			sc.file.limit = time.Minute
			var got []string
			for i := range strings.Fields(c.want) {
				p, err := sc.placeBody(t.Context(), t, fmt.Sprint("web-", i), "{}")
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, p.nodeName)
			}
			if words := strings.Join(got, " "); words != c.want {
				t.Errorf("%s placed on %s, want %s", c.file, words, c.want)
			}
		})
	}
}

func TestExplainRanksByTheManagersStrategyFile(t *testing.T) {
	t.Parallel()
	s, path := clusterFile(t, standardCluster)
	err := s.begin(t.Context(), managerRow{strategy: "mine.sql", strategySQL: "SELECT name AS node, -id AS score FROM node_load"})
	if err != nil {
		t.Fatal(err)
	}
	s.sql(t, "UPDATE nodes SET state = 'healthy'")
	eventually(t, 20*time.Second, func() error { // on a busy machine it takes over 100 ms
		if got, err := swarmlite(t, "explain", "-db", path, "nginx"); err != nil || !strings.Contains(got, "mine.sql would choose node-3: 3 of 3 fit") {
			return fmt.Errorf("explain = %w\n%s", err, got)
		}
		return nil
	})
}
