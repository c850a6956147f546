package main

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// standardCluster is what every scenario of testdata/placement starts from: three
// healthy, empty nodes of 4 CPUs and 4 GiB, nothing promised beyond that.
const standardCluster = `
	UPDATE manager SET overcommit = 0;
	INSERT INTO nodes (id, name, address, engine_id, state, cpus, memory_bytes, api_version, min_api_version) VALUES
		(1, 'node-1', 'tcp://10.0.0.1:2375', 'ID-1', 'healthy', 4, 4294967296, '1.41', '1.12'),
		(2, 'node-2', 'tcp://10.0.0.2:2375', 'ID-2', 'healthy', 4, 4294967296, '1.41', '1.12'),
		(3, 'node-3', 'tcp://10.0.0.3:2375', 'ID-3', 'healthy', 4, 4294967296, '1.41', '1.12');
	INSERT INTO node_info SELECT id, '{"Runtimes":{"runc":{"path":"runc"}}}', '{}' FROM nodes`

// scenario is one file of testdata/placement, in paragraphs: a sentence that says
// what is shown; SQL that changes standardCluster (may be missing); a create as it
// comes over the wire; and what each strategy makes of it. That is a node, with its
// score if it matters ("node-2, score 150"), or the error, word for word.
type scenario struct {
	title, sql, path, body string
	want                   [][2]string // strategy, outcome
}

func readScenario(t *testing.T, file string) scenario {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	title, rest, _ := strings.Cut(strings.TrimSpace(string(data)), "\n\n")
	rows, rest, found := strings.Cut("\n"+rest, "\nPOST ")
	path, rest, _ := strings.Cut(rest, "\n")
	body, want, answered := strings.Cut(rest, "\n\n")
	if !found || !answered {
		t.Fatalf("%s: expected a title, SQL, POST /containers/create with its body, and the outcome, with blank lines between", file)
	}
	s := scenario{title: title, sql: rows, path: path, body: body}
	for _, line := range strings.Split(strings.TrimSpace(want), "\n") {
		strategyName, outcome, ok := strings.Cut(line, ": ")
		if _, known := strategies[strategyName]; !ok || !known {
			t.Fatalf("%s: %q: expected STRATEGY: OUTCOME", file, line)
		}
		s.want = append(s.want, [2]string{strategyName, outcome})
	}
	return s
}

func TestPlacement(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/placement/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 60 {
		t.Errorf("%d scenarios in testdata/placement, want at least 60", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			s := readScenario(t, file)
			for _, want := range s.want {
				if got := s.run(t, want[0]); got != want[1] {
					t.Errorf("%s\n%s: got  %s\nwant %s", s.title, want[0], got, want[1])
				}
			}
		})
	}
}

// run places the scenario's create in a new cluster and tells what came of it. The
// ledger must tell the same.
func (s scenario) run(t *testing.T, strategyName string) string {
	t.Helper()
	st := testStore(t)
	st.sql(t, standardCluster)
	st.sql(t, s.sql)
	u, err := url.Parse(s.path)
	if err != nil {
		t.Fatal(err)
	}
	version, _ := splitVersion(u.Path)
	w, _, err := readCreate([]byte(s.body), &call{version: version, query: u.Query()})
	if err != nil {
		return err.Error()
	}
	p, err := testScheduler(t, st, strategyName).place(t.Context(), w)
	var outcome, node, message string
	var score, fitting int
	if ledger := st.get(t.Context(), "SELECT outcome, node, message, coalesce(score, 0), fitting FROM placements WHERE swarm_id = ?",
		[]any{w.swarmID}, &outcome, &node, &message, &score, &fitting); ledger != nil && !errors.As(err, new(*errNameTaken)) {
		t.Errorf("no row in the ledger: %v", ledger)
	}
	if err != nil {
		if errors.As(err, new(*noNodeError)) && (outcome != "refused" || message != err.Error() || fitting != 0) {
			t.Errorf("ledger has %s %q with %d fitting, want refused %q", outcome, message, fitting, err)
		}
		return err.Error()
	}
	if outcome != "reserved" || node != p.nodeName {
		t.Errorf("ledger has %s on %s, want reserved on %s", outcome, node, p.nodeName)
	}
	if got := st.one(t, "SELECT n.name || ' ' || r.name FROM reservations r JOIN nodes n ON n.id = r.node_id WHERE r.id = ?", p.reservation); got != p.nodeName+" "+p.name {
		t.Errorf("reserved %q, want %s on %s", got, p.name, p.nodeName)
	}
	for _, want := range s.want {
		if want[0] == strategyName && strings.Contains(want[1], ", score ") {
			return p.nodeName + ", score " + strconv.Itoa(score)
		}
	}
	return p.nodeName
}

func testScheduler(t testing.TB, s *store, strategyName string, filterNames ...string) *scheduler {
	t.Helper()
	sc, err := newScheduler(slog.New(slog.DiscardHandler), s, strategyName, filterNames)
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// place has sc place a create of this name and body.
func (sc *scheduler) placeBody(ctx context.Context, t testing.TB, name, body string) (*placement, error) {
	t.Helper()
	w, _, err := readCreate([]byte(body), &call{query: url.Values{"name": {name}}})
	if err != nil {
		t.Fatal(err)
	}
	return sc.place(ctx, w)
}
