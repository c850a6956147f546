package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestHistoryFlag(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, want string }{
		{"30d/5000", "30d/5000"},
		{"36h/0", "36h0m0s/0"},
		{"7d", "7d/1000000"},
		{"/20", "90d/20"},
		{"0/0", "0d/0"},
	} {
		h := history{90 * day, 1_000_000}
		if err := h.Set(c.text); err != nil || h.String() != c.want {
			t.Errorf("-history %s = %s, %v, want %s", c.text, h.String(), err, c.want)
		}
	}
	for _, text := range []string{"soon", "-1d", "1d/-5", "1d/many", "1.5d", "99999999d", "1d/1/1"} {
		if err := new(history).Set(text); !errors.Is(err, errHistory) {
			t.Errorf("-history %s: %v, want a refusal", text, err)
		}
	}
	if _, err := swarmlite(t, "-history", "soon"); err == nil || !strings.Contains(err.Error(), "-history: "+errHistory.Error()) {
		t.Errorf("-history soon: %v", err)
	}
}

// oldPlacements are 400 rows, one an hour, with children: the newest is an hour old.
// Row 7 is of a container that is still there, row 8 of a create under way.
const oldPlacements = `
	WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 400)
	INSERT INTO placements (id, at, name, strategy, nodes, outcome, container_id)
	SELECT i, strftime('%s','now') - 3600 * (401 - i), 'web-' || i, 'spread', 3, 'created', 'c' || i FROM k;
	INSERT INTO placement_filters SELECT id, 'health', 'is not healthy', 1 FROM placements;
	INSERT INTO placement_looks SELECT id, '[["node-1","tcp://10.0.0.1:2375","",1]]' FROM placements;
	INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES (1, 1, 'c7', 'web-7', '', 'running', 1, '{}');
	INSERT INTO reservations (node_id, placement_id, swarm_id, name, image, nano_cpus, memory_bytes) VALUES (1, 8, 's', 'web-8', '', 0, 0)`

func TestHistoryIsTrimmedByAgeAndSize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		h    history
		want string // oldest but for 7 and 8, count
	}{
		{history{10*time.Hour + 30*time.Minute, 0}, "391|12"},
		{history{0, 50}, "351|52"},
		{history{100 * time.Hour, 50}, "351|52"},
		{history{10*time.Hour + 30*time.Minute, 50}, "391|12"},
		{history{0, 0}, "9|400"},
		{history{1000 * time.Hour, 1000}, "9|400"},
	} {
		t.Run(c.h.String(), func(t *testing.T) {
			t.Parallel()
			st := testStore(t)
			st.sql(t, standardCluster+";"+oldPlacements)
			if _, err := st.trimLedger(t.Context(), placementsBeyond(c.h)); err != nil {
				t.Fatal(err)
			}
			for _, table := range []string{"placements", "placement_filters", "placement_looks"} {
				id := map[bool]string{true: "id", false: "placement_id"}[table == "placements"]
				if got := st.one(t, fmt.Sprintf("SELECT min(iif(%[1]s > 8, %[1]s, NULL)), count(*) FROM %[2]s", id, table)); got != c.want {
					t.Errorf("%s: %s, want %s", table, got, c.want)
				}
			}
			if got := st.one(t, "SELECT count(*) FROM placements WHERE id IN (7, 8)"); got != "2" {
				t.Errorf("%s of two rows that are in use are left", got)
			}
		})
	}
}

func TestTrimmerKeepsBothLedgersAndEndsWithTheManager(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+";"+oldPlacements+`;
		WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 2500)
		INSERT INTO events (id, at_nano, node_id, time_nano, type, action, actor, body) SELECT i, i, 1, i, 'container', 'start', 'c', '{}' FROM k;
		INSERT INTO events (id, at_nano, node_id, time_nano, type, action, actor, body) VALUES (102400, 1, 1, 1, 'container', 'die', 'c', '{}')`)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		st.trim(t.Context(), slog.New(slog.DiscardHandler), history{10*time.Hour + 30*time.Minute, 0})
	}()
	eventually(t, 20*time.Second, func() error {
		if got := st.one(t, "SELECT (SELECT count(*) FROM placements), (SELECT min(id) FROM events), (SELECT count(*) FROM events)"); got != "12|2401|101" {
			return fmt.Errorf("placements|oldest event|events = %s, want 12|2401|101", got)
		}
		return nil
	})
	t.Cleanup(func() { // the test's context has ended
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the trimmer runs on after the manager has stopped")
		}
	})
}

// What ran where: a container's end is when it was removed, or had stopped for good;
// a node that comes back has its containers again.
func TestRanTellsFromWhenToWhen(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+`;
		INSERT INTO placements (id, at, kind, name, image, strategy, nodes, node_id, node, outcome, container_id) VALUES
			(1, 1000000000, 'container', 'web', 'nginx', 'spread', 3, 1, 'node-1', 'created', 'aa'), (2, 1000000100, 'container', 'job', 'ci', 'spread', 3, 2, 'node-2', 'created', 'bb'),
			(3, 1000000200, 'container', 'db', 'postgres', 'spread', 3, 2, 'node-2', 'created', 'cc'), (4, 1000000200, 'container', 'big', 'x', 'spread', 3, NULL, '', 'refused', ''),
			(5, 1000000300, 'network', 'front', '', 'spread', 3, 1, 'node-1', 'created', ''), (6, 1000000300, 'volume', 'data', '', 'spread', 3, 1, 'node-1', 'created', '');
		INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (1, 'n1', 'front', 'bridge', 'local', '', '{}');
		INSERT INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (1, 'data', 'local', 'local', '', '{}');
		INSERT INTO containers (id, node_id, container_id, name, image, state, status_at, created_at, summary) VALUES
			(1, 1, 'aa', 'web', 'nginx', 'running', NULL, 1000000000, '{}'), (2, 2, 'bb', 'job', 'ci', 'exited', 1000003700, 1000000100, '{}'),
			(3, 2, 'cc', 'db', 'postgres', 'running', NULL, 1000000200, '{}'), (4, 3, 'dd', 'theirs', 'x', 'running', NULL, 1000000000, '{}')`)
	ran := func(what, want string) {
		t.Helper()
		if got := st.all(t, "SELECT name, node, since, until FROM ran ORDER BY id"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
		}
	}
	ran("all there", `web|node-1|2001-09-09 01:46:40|now
job|node-2|2001-09-09 01:48:20|2001-09-09 02:48:20
db|node-2|2001-09-09 01:50:00|now
theirs|node-3|2001-09-09 01:46:40|now`)
	if got := st.all(t, "SELECT name FROM ran WHERE '2001-09-09 03:00' BETWEEN since AND until ORDER BY name"); got != "db\ntheirs\nweb" {
		t.Errorf("at three: %q, want db, theirs and web", got)
	}
	// The stopped one is removed: it ends when it stopped. Another is removed while it runs.
	st.sql(t, "DELETE FROM containers WHERE container_id IN ('aa', 'bb'); UPDATE placements SET ended_at = 1000007200 WHERE id = 1 AND ended_at > 1000007200")
	ran("two removed", `web|node-1|2001-09-09 01:46:40|2001-09-09 03:46:40
job|node-2|2001-09-09 01:48:20|2001-09-09 02:48:20
db|node-2|2001-09-09 01:50:00|now
theirs|node-3|2001-09-09 01:46:40|now`)
	if _, err := st.removeNode(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if got := st.one(t, "SELECT ended_at > 1000000200 FROM placements WHERE name = 'db'"); got != "1" {
		t.Errorf("placement of a container whose node was taken out has not ended: %s", got)
	}
	st.sql(t, "INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES (5, 3, 'cc', 'db', 'postgres', 'running', 1000000200, '{}')")
	if got := st.one(t, "SELECT until FROM ran WHERE name = 'db'"); got != "now" {
		t.Errorf("db is back and ran until %s, want now", got)
	}
	// Its node was lost and it was made anew elsewhere: the old one is there, and is not what runs.
	st.sql(t, "INSERT INTO moves (why, name, image, swarm_id, container_id, running, from_id, from_node, from_engine, copy_name, step, outcome, ended_at) VALUES ('node failure', 'db', '', '', 'cc', 1, 3, 'node-3', '', '', 'done', 'moved', 1000010800)")
	if got := st.one(t, "SELECT until FROM ran WHERE name = 'db'"); got != "2001-09-09 04:46:40" {
		t.Errorf("db was moved and ran until %s", got)
	}
	st.sql(t, "DELETE FROM networks WHERE name = 'front'; DELETE FROM volumes WHERE name = 'data'")
	if got := st.one(t, "SELECT count(*) FROM placements WHERE kind <> 'container' AND ended_at > 1000000300"); got != "2" {
		t.Errorf("%s placements of a network and a volume have ended, want 2", got)
	}
}

// BenchmarkHistory is what a long history costs: a start (the database's part of it),
// docker ps, and a placement, with the ledgers empty, with a million rows in each of
// them, and while these are trimmed.
func BenchmarkHistory(b *testing.B) {
	for _, rows := range []int{0, 1_000_000} {
		st := benchNodes(b, 30)
		for node := range int64(30) {
			var list []json.RawMessage
			for i := range 100 {
				list = append(list, entry(fmt.Sprintf("%032x%032x", node, i), fmt.Sprintf("web-%d-%d", node, i), nil))
			}
			if _, err := st.putLists(b.Context(), node+1, lists{containers: list}, 0); err != nil {
				b.Fatal(err)
			}
		}
		st.sql(b, fmt.Sprintf(`
			WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < %[1]d)
			INSERT INTO placements (at, name, image, request, strategy, nodes, fitting, node_id, node, score, outcome, container_id, ended_at)
			SELECT strftime('%%s', 'now') - (%[1]d - i) * 16, 'web-' || i, 'busybox', '{"memory_bytes":67108864}', 'spread', 30, 30, i %% 30 + 1, 'node-' || (i %% 30 + 1), 200, 'created', printf('%%064x', i), 1 FROM k WHERE %[1]d > 0;
			INSERT INTO placement_looks SELECT id, json_array(json_array(node, 'tcp://' || node, '', 200)) FROM placements;
			WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < %[1]d)
			INSERT INTO events (at_nano, node_id, node, time_nano, type, action, actor, body)
			SELECT (strftime('%%s', 'now') - (%[1]d - i)) * 1000000000, i %% 30 + 1, 'node-1', i, 'container', 'start', printf('%%064x', i), '{"Type":"container","Action":"start"}' FROM k WHERE %[1]d > 0`, rows))
		run := func(name string, f func(b *testing.B)) { b.Run(fmt.Sprintf("rows=%d/%s", rows, name), f) }
		path := filepath.Join(b.TempDir(), "copy.db")
		if _, err := st.ro.ExecContext(b.Context(), "PRAGMA query_only = 0; VACUUM INTO ?", path); err != nil {
			b.Fatal(err)
		}
		log := slog.New(slog.DiscardHandler)
		run("start", func(b *testing.B) {
			for b.Loop() {
				again, err := openStore(b.Context(), log, path)
				if err != nil {
					b.Fatal(err)
				}
				if err := again.begin(b.Context(), managerRow{strategy: "spread"}); err != nil {
					b.Fatal(err)
				}
				again.close()
			}
		})
		again, err := openStore(b.Context(), log, path)
		if err != nil {
			b.Fatal(err)
		}
		again.sql(b, "UPDATE nodes SET state = 'healthy'")
		run("ps", func(b *testing.B) {
			c := &cluster{store: again, nodes: newNodes(nil, again, nil), infoNodes: 50, names: "plain"}
			req, err := http.NewRequest(http.MethodGet, "/containers/json?all=1", nil)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := containerList(c, &nowhere{header: http.Header{}}, req, &call{version: 1041, query: req.URL.Query()}); err != nil {
					b.Fatal(err)
				}
			}
		})
		sc := testScheduler(b, again, "spread")
		place := func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				if _, err := sc.placeBody(b.Context(), b, "", `{"Image": "busybox"}`); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "us-p99")
		}
		run("place", place)
		ctx, stop := context.WithCancel(b.Context())
		trimmed := make(chan struct{})
		go func() {
			defer close(trimmed)
			again.trim(ctx, log, history{day, 1000})
		}()
		run("place-while-trimmed", place)
		b.Logf("rows=%d: %s placements and %s events are left", rows, again.one(b, "SELECT count(*) FROM placements"), again.one(b, "SELECT count(*) FROM events"))
		stop()
		<-trimmed
		again.close()
	}
}

// What is known of the nodes' lists goes on while there is nothing to trim.
func TestTrimmingNothingIsNoChange(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	before := st.version().commits
	if n, err := st.trimLedger(t.Context(), trimEvents); n != 0 || err != nil {
		t.Fatalf("trimLedger = %d, %v, want nothing to trim", n, err)
	}
	if now := st.version().commits; now != before {
		t.Errorf("%d commits count after nothing was trimmed, want %d", now, before)
	}
}
