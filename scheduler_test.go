package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
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
	w, _, err := readCreate([]byte(s.body), &call{version: looseVersion(version), query: u.Query()})
	if err != nil {
		return err.Error()
	}
	sc := testScheduler(t, st, strategyName)
	sc.cores = st.one(t, "SELECT cpu_shares FROM manager") == "cores"
	p, err := sc.place(t.Context(), w)
	var outcome, node, message string
	var score, fitting int
	if ledger := st.get(t.Context(), "SELECT outcome, node, message, coalesce(score, 0), fitting FROM placements WHERE swarm_id = ?",
		[]any{w.swarmID}, &outcome, &node, &message, &score, &fitting); ledger != nil && !errors.As(err, new(*errNameTaken)) {
		t.Errorf("no row in the ledger: %v", ledger)
	}
	if err != nil {
		var none *noNodeError
		if errors.As(err, &none) && (outcome != "refused" || message != none.full() || fitting != 0) {
			t.Errorf("ledger has %s %q with %d fitting, want refused %q", outcome, message, fitting, none.full())
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

// --- the ledger --------------------------------------------------------------

func TestPlaceExplainsItself(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	st.sql(t, `INSERT INTO node_labels VALUES (1, 'storage', 'ssd', 'engine'), (2, 'storage', 'ssd', 'engine');
		UPDATE nodes SET state = 'unhealthy' WHERE id = 2`)
	sc := testScheduler(t, st, "spread")
	if _, err := sc.placeBody(t.Context(), t, "web", `{"Image": "busybox", "Env": ["constraint:storage==ssd", "TOKEN=secret"],
		"HostConfig": {"Memory": 1073741824, "NanoCpus": 2000000000, "Binds": ["data:/data"], "PortBindings": {"80/tcp": [{"HostPort": "80"}]}}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := sc.placeBody(t.Context(), t, "big", `{"Image": "busybox", "HostConfig": {"Memory": 8589934592}}`); err == nil {
		t.Error("8 GiB were placed on nodes of 4")
	}
	if _, err := sc.placeBody(t.Context(), t, "any", `{"Image": "busybox"}`); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ query, want string }{
		{"SELECT name, outcome, node, reason FROM why", "any|reserved|node-3|spread chose node-3 of 2 that fit among 3 (score 200); 1 is not healthy\n" +
			"big|refused||no node fits: 2 of 3 have less than 8GiB of memory free, 1 is not healthy (node-1, node-3; node-2); the largest node that qualifies is node-1 with 4GiB of memory in all\n" +
			"web|reserved|node-1|spread chose node-1, the only one of 3 that fits (score 75); 1 fails constraint storage==ssd, 1 is not healthy"},
		{"SELECT node, refused_by, score FROM placement_nodes WHERE placement_id = 1 ORDER BY node", "node-1||75\nnode-2|is not healthy|NULL\nnode-3|fails constraint storage==ssd|NULL"},
		{"SELECT filter, clause, refused FROM placement_filters WHERE placement_id = 2 ORDER BY 3 DESC", "resources|have less than 8GiB of memory free|2\nhealth|is not healthy|1"},
		{"SELECT request FROM placements WHERE id = 1", `{"constraints":["storage==ssd"],"memory_bytes":1073741824,"nano_cpus":2000000000,"ports":["80/tcp"],"volumes":["data"]}`},
		{"SELECT count(*) FROM placements WHERE decide_us > 0", "3"},
		{"SELECT host_ip, host_port, last_port, protocol FROM ports", "|80|80|tcp"},
	} {
		if got := st.all(t, tt.query); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.query, got, tt.want)
		}
	}
	if dump := st.all(t, "SELECT * FROM placements"); strings.Contains(dump, "secret") {
		t.Errorf("an environment value is in the ledger: %s", dump)
	}
}

func TestPlaceOnManyNodesKeepsTheLedgerShort(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	manyNodes(t, st, 300)
	sc := testScheduler(t, st, "spread")
	if _, err := sc.placeBody(t.Context(), t, "web", `{"Image": "busybox", "HostConfig": {"Memory": 1073741824}}`); err != nil {
		t.Fatal(err)
	}
	if _, err := sc.placeBody(t.Context(), t, "none", `{"Image": "busybox", "Env": ["constraint:storage==tape"]}`); err == nil {
		t.Error("placed against its constraint")
	}
	for _, tt := range []struct{ query, want string }{
		{"SELECT name, score, fitting, reason FROM why JOIN placements USING (id, name) ORDER BY id",
			"web|125|NULL|spread chose node-1 among 300 (score 125), before node-2 (score 125)\nnone|NULL|0|no node fits: 300 of 300 fail constraint storage==tape"},
		{"SELECT placement_id, count(*) FROM placement_nodes GROUP BY 1", "2|50"},
		{"SELECT clause, refused FROM placement_filters", "fail constraint storage==tape|300"},
	} {
		if got := st.all(t, tt.query); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.query, got, tt.want)
		}
	}
}

// manyNodes adds nodes like those of standardCluster, up to n.
func manyNodes(t testing.TB, st *store, n int) {
	t.Helper()
	st.sql(t, fmt.Sprintf(`WITH RECURSIVE k (i) AS (SELECT 4 UNION ALL SELECT i + 1 FROM k WHERE i < %d)
		INSERT INTO nodes (id, name, address, engine_id, state, cpus, memory_bytes, api_version)
		SELECT i, 'node-' || i, 'tcp://10.0.' || (i / 256) || '.' || (i %% 256) || ':2375', 'ID-' || i, 'healthy', 4, 4294967296, '1.41' FROM k`, n))
}

func TestStrategyRandomCanBeRepeated(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "random")
	for range 60 {
		if _, err := sc.placeBody(t.Context(), t, "", `{"Image": "busybox"}`); err != nil {
			t.Fatal(err)
		}
	}
	if got := st.one(t, "SELECT count(DISTINCT node) FROM placements"); got != "3" {
		t.Errorf("60 placements are on %s nodes, want 3", got)
	}
	if got := st.one(t, "SELECT count(*) FROM placements p WHERE node_id = (SELECT id FROM nodes ORDER BY shuffle(p.seed, id) LIMIT 1)"); got != "60" {
		t.Errorf("the ledger's seed gives the same node again for %s of 60", got)
	}
}

func TestSchedulerUsesOnlyTheFiltersItIsGiven(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	w := `{"Image": "busybox", "Env": ["constraint:storage==tape"], "HostConfig": {"Memory": 8589934592}}`
	for filter, want := range map[string]string{
		"health":     "",
		"constraint": "no node fits: 3 of 3 fail constraint storage==tape",
		"resources":  "no node fits: 3 of 3 have less than 8GiB of memory free",
	} {
		got := ""
		if _, err := testScheduler(t, st, "spread", filter).placeBody(t.Context(), t, "", w); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("place with filter %s alone = %q, want %q", filter, got, want)
		}
	}
}

func TestSchedulerRefusesUnknownNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ strategy, filter, want string }{
		{"fastest", "health", `strategy "fastest": expected spread, binpack or random, or a file that ends in .sql`},
		{"spread", "healthy", `filter "healthy": expected one of health, availability, `},
	} {
		if _, err := newScheduler(nil, nil, tt.strategy, []string{tt.filter}); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("newScheduler(%s, %s) = %v, want %s", tt.strategy, tt.filter, err, tt.want)
		}
	}
}

func TestPlaceLeavesOutNodesThatDidNotAnswer(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "spread")
	w := &workload{kind: "container", swarmID: "s"}
	for _, want := range []string{"node-1", "node-2", "node-3"} {
		p, err := sc.place(t.Context(), w)
		if err != nil || p.nodeName != want {
			t.Fatalf("place without %v = %v, %v, want %s", w.exclude, p, err, want)
		}
		if err := st.release(t.Context(), p, "moved", "no answer to a ping", 0); err != nil {
			t.Fatal(err)
		}
		w.exclude = append(w.exclude, p.node)
	}
	if _, err := sc.place(t.Context(), w); err == nil || err.Error() != "no node fits: 3 of 3 did not answer" {
		t.Errorf("place without %v = %v, want a refusal", w.exclude, err)
	}
	if got := st.all(t, "SELECT outcome, node FROM placements ORDER BY id"); got != "moved|node-1\nmoved|node-2\nmoved|node-3\nrefused|" {
		t.Errorf("ledger: %s", got)
	}
	if got := st.all(t, overcommitted); got != "" {
		t.Errorf("after release: %s", got)
	}
}

func TestPlaceOfNetworksAndVolumesTakesNoRoom(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	st.sql(t, "UPDATE nodes SET slots = 0 WHERE id = 1") // slots are for containers
	sc := testScheduler(t, st, "spread")
	for _, kind := range []string{"network", "volume"} {
		p, err := sc.place(t.Context(), &workload{kind: kind, name: "front", swarmID: kind})
		if err != nil || p.reservation == 0 {
			t.Errorf("place %s = %v, %v", kind, p, err)
		}
	}
	if got := st.all(t, "SELECT kind, outcome, score FROM placements"); got != "network|reserved|200\nvolume|reserved|200" {
		t.Errorf("kind|outcome|score = %s", got)
	}
	if got := st.one(t, "SELECT sum(containers) FROM nodes"); got != "0" {
		t.Errorf("%s containers are counted for networks and volumes", got)
	}
	if _, err := sc.placeBody(t.Context(), t, "front", `{"Image": "busybox"}`); err != nil {
		t.Errorf("a container named as a network and a volume are: %v", err)
	}
}

func TestConstraintsSeeWhatAnEngineSaysOfItself(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	ids, err := st.setNodes(t.Context(), linesOf("tcp://10.0.0.1:2375", "tcp://10.0.0.2:2375"))
	if err != nil {
		t.Fatal(err)
	}
	for id, addr := range ids {
		name := "host-" + strings.Split(addr.address, ".")[3][:1]
		facts := &nodeFacts{info: engineInfo{ID: "ID-" + name, Name: name, NCPU: 2, MemTotal: 1 << 30, Driver: "overlay2", KernelVersion: "6.1.0",
			OperatingSystem: "Debian GNU/Linux 12", OSType: "linux", Architecture: "x86_64",
			Labels: []string{"storage=" + name, "ostype=fake", "node=fake", "nonsense", "containerslots=7"}}, api: 1041, min: 1012,
			rawInfo: []byte(`{"ID":"x"}`), rawVer: []byte(`{"Version":"x"}`)}
		up, err := st.nodeUp(t.Context(), id, facts)
		if err != nil {
			t.Fatal(err)
		}
		if len(up.warnings) != 3 {
			t.Errorf("warnings %q, want one each for ostype, node and nonsense", up.warnings)
		}
		if err := st.nodeHealthy(t.Context(), id, "ID-"+name, false); err != nil {
			t.Fatal(err)
		}
	}
	st.sql(t, "UPDATE node_labels SET source = 'operator', value = 'mine' WHERE key = 'storage' AND value = 'host-2'")
	sc := testScheduler(t, st, "spread")
	for constraint, want := range map[string]string{
		"storage==host-1": "host-1", "storage==mine": "host-2", "node==host-2": "host-2", "node==ID-host-1": "host-1",
		"storagedriver==overlay2": "any", "kernelversion==6.1*": "any", "operatingsystem==/Debian/": "any", "ostype==linux": "any", "architecture==x86_64": "any",
		"ostype==fake": "", "node==fake": "", "containerslots==7": "any", "storage==host-2": "",
	} {
		p, err := sc.placeBody(t.Context(), t, "", `{"Image": "busybox", "Env": ["constraint:`+constraint+`"]}`)
		switch {
		case err != nil && want != "", err == nil && want == "":
			t.Errorf("place with constraint %s: %v, want %q", constraint, err, want)
		case err == nil && want != "any" && p.nodeName != want:
			t.Errorf("place with constraint %s = %s, want %s", constraint, p.nodeName, want)
		}
	}
	if got := st.one(t, "SELECT group_concat(DISTINCT slots) FROM nodes"); got != "7" {
		t.Errorf("slots %s, want 7", got)
	}
	if got := st.all(t, "SELECT DISTINCT info, version FROM node_info"); got != `{"ID":"x"}|{"Version":"x"}` {
		t.Errorf("info|version as they are kept: %s", got)
	}
	// A node that comes back with other labels keeps what the operator set.
	for id, addr := range ids {
		if strings.Contains(addr.address, "10.0.0.2") {
			if _, err := st.nodeUp(t.Context(), id, &nodeFacts{info: engineInfo{ID: "ID-host-2", Name: "host-2", Labels: []string{"storage=tape"}}}); err != nil {
				t.Fatal(err)
			}
			if got := st.one(t, "SELECT value, source FROM node_labels WHERE key = 'storage' AND node_id = ?", id); got != "mine|operator" {
				t.Errorf("label %s after the node came back, want the operator's", got)
			}
		}
	}
}

// --- properties --------------------------------------------------------------

// overcommitted lists what must never be, whatever was placed: nodes that promise
// more than they have, names that are used twice, ports and devices that are promised
// twice, and sums that are not what the rows add up to.
const overcommitted = `
	SELECT 'room' AS what, name FROM node_load WHERE used_memory_bytes > memory_bytes OR used_nano_cpus > nano_cpus OR containers > slots
	UNION ALL SELECT 'name', name FROM (SELECT name FROM containers UNION ALL SELECT name FROM reservations WHERE kind = 'container') GROUP BY name HAVING count(*) > 1
	UNION ALL SELECT 'port', node_id || ':' || host_port FROM ports WHERE last_port = host_port GROUP BY node_id, host_ip, host_port, protocol HAVING count(*) > 1
	UNION ALL SELECT 'resource', node_id || ' ' || name FROM resource_load WHERE used > amount
	UNION ALL SELECT 'device', node_id || ' ' || device FROM resources_held WHERE device <> '' GROUP BY node_id, name, device HAVING count(*) > 1
	UNION ALL SELECT 'sums', name FROM nodes n WHERE (containers, used_nano_cpus, used_memory_bytes) <> (
		SELECT count(*), coalesce(sum(nano_cpus), 0), coalesce(sum(memory_bytes), 0) FROM (
			SELECT nano_cpus, memory_bytes FROM containers WHERE node_id = n.id AND counted
			UNION ALL SELECT nano_cpus, memory_bytes FROM reservations WHERE node_id = n.id AND kind = 'container'))`

// atOnce runs f(0) to f(n-1), each in a goroutine of its own, and waits for all.
func atOnce(n int, f func(int)) {
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-begin
			f(i)
		})
	}
	close(begin)
	wg.Wait()
}

func TestPlaceAtOnceFillsTheClusterToTheLastPlace(t *testing.T) {
	t.Parallel()
	for _, strategyName := range []string{"spread", "binpack", "random"} {
		t.Run(strategyName, func(t *testing.T) {
			t.Parallel()
			st := testStore(t)
			st.sql(t, standardCluster)
			// Room for 40, 60 and 50: by memory, by CPUs, and by slots.
			st.sql(t, `UPDATE nodes SET memory_bytes = 40 * 67108864 WHERE id = 1; UPDATE nodes SET cpus = 6 WHERE id = 2; UPDATE nodes SET slots = 50, cpus = 64 WHERE id = 3`)
			sc := testScheduler(t, st, strategyName)
			var placed, refused atomic.Int32
			atOnce(200, func(i int) {
				_, err := sc.placeBody(t.Context(), t, "web-"+strconv.Itoa(i), `{"Image": "busybox", "HostConfig": {"Memory": 67108864, "NanoCpus": 100000000}}`)
				switch {
				case err == nil:
					placed.Add(1)
				case errors.As(err, new(*noNodeError)):
					refused.Add(1)
				default:
					t.Errorf("place: %v", err)
				}
			})
			if placed.Load() != 150 || refused.Load() != 50 {
				t.Errorf("%d placed, %d refused, want 150 and 50", placed.Load(), refused.Load())
			}
			if got := st.all(t, overcommitted); got != "" {
				t.Errorf("overcommitted: %s", got)
			}
			if got := st.one(t, "SELECT count(*), sum(outcome = 'reserved'), sum(outcome = 'refused') FROM placements"); got != "200|150|50" {
				t.Errorf("ledger has %s, want 200|150|50", got)
			}
		})
	}
}

func TestPlaceAtOnceGivesANameOnce(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "spread")
	var placed, taken atomic.Int32
	atOnce(200, func(i int) {
		_, err := sc.placeBody(t.Context(), t, "web-"+strconv.Itoa(i%40), `{"Image": "busybox"}`)
		switch {
		case err == nil:
			placed.Add(1)
		case errors.As(err, new(*errNameTaken)):
			taken.Add(1)
		default:
			t.Errorf("place: %v", err)
		}
	})
	if placed.Load() != 40 || taken.Load() != 160 {
		t.Errorf("%d placed, %d times taken, want 40 and 160", placed.Load(), taken.Load())
	}
	if got := st.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted: %s", got)
	}
}

func TestPlaceAtOnceFindsNamesForThoseWithout(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "random")
	var names sync.Map
	atOnce(200, func(int) {
		p, err := sc.placeBody(t.Context(), t, "", `{"Image": "busybox"}`)
		if err != nil {
			t.Errorf("place: %v", err)
			return
		}
		if _, twice := names.LoadOrStore(p.name, true); twice || p.name == "" {
			t.Errorf("name %q was given twice, or is none", p.name)
		}
	})
	if got := st.one(t, "SELECT count(DISTINCT name) FROM reservations"); got != "200" {
		t.Errorf("%s names reserved, want 200", got)
	}
}

func TestPlaceAtOnceKeepsFirstUsersOfAVolumeTogether(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "spread")
	atOnce(60, func(i int) {
		volume := "vol-" + strconv.Itoa(i%6)
		bodies := []string{`{"Image": "busybox", "HostConfig": {"Binds": ["` + volume + `:/data"]}}`,
			`{"Image": "busybox", "HostConfig": {"Mounts": [{"Type": "volume", "Source": "` + volume + `", "Target": "/data"}]}}`}
		if _, err := sc.placeBody(t.Context(), t, "", bodies[i/6%2]); err != nil {
			t.Errorf("place: %v", err)
		}
	})
	if got := st.all(t, "SELECT j.value, count(DISTINCT node_id), count(*) FROM reservations, json_each(volumes) j GROUP BY 1 ORDER BY 1"); got !=
		"vol-0|1|10\nvol-1|1|10\nvol-2|1|10\nvol-3|1|10\nvol-4|1|10\nvol-5|1|10" {
		t.Errorf("volume|nodes|users:\n%s\nwant one node for the ten users of each", got)
	}
	if got := st.one(t, "SELECT count(DISTINCT node_id) FROM reservations"); got != "3" {
		t.Errorf("the volumes are on %s nodes, want 3", got)
	}
}

func TestPlaceAtOnceGivesAPortOncePerNode(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "spread")
	var placed atomic.Int32
	atOnce(60, func(i int) {
		// Three nodes, each with 8080 once and two of 9000-9001.
		port := []string{"8080", "9000-9001"}[i%2]
		if _, err := sc.placeBody(t.Context(), t, "", `{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "`+port+`"}]}}}`); err == nil {
			placed.Add(1)
		}
	})
	if placed.Load() != 9 {
		t.Errorf("%d placed, want 3 with port 8080 and 6 with one of two", placed.Load())
	}
	if got := st.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted: %s", got)
	}
}

// TestCreateAtOnceOverHTTP sends 200 creates for 160 names to a cluster that has
// room for just these.
func TestCreateAtOnceOverHTTP(t *testing.T) {
	t.Parallel()
	var engines []*fakeEngine
	for range 5 {
		engines = append(engines, newFakeEngine(t, func(e *fakeEngine) { e.memory = 32 << 28 }))
	}
	c, url := testCluster(t, engines...)
	var statuses sync.Map
	atOnce(200, func(i int) {
		resp, err := http.Post(url+"/v1.41/containers/create?name=web-"+strconv.Itoa(i%160), "application/json",
			strings.NewReader(`{"Image": "busybox", "HostConfig": {"Memory": 268435456}}`))
		if err != nil {
			t.Errorf("create: %v", err)
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if n, _ := statuses.LoadOrStore(resp.StatusCode, new(atomic.Int32)); n.(*atomic.Int32).Add(1) == 1 && resp.StatusCode == http.StatusServiceUnavailable {
			t.Errorf("refused: %s", body)
		}
	})
	got := map[any]int32{}
	statuses.Range(func(k, v any) bool { got[k] = v.(*atomic.Int32).Load(); return true })
	if got[http.StatusCreated] != 160 || got[http.StatusConflict] != 40 || len(got) != 2 {
		t.Errorf("statuses %v, want 160 × 201 and 40 × 409", got)
	}
	names := map[string]bool{}
	for _, e := range engines {
		for _, name := range e.containerNames() {
			if names[name] {
				t.Errorf("%s is on two engines", name)
			}
			names[name] = true
		}
		if n := len(e.containerNames()); n != 32 {
			t.Errorf("%s has %d containers, want 32", e.name, n)
		}
	}
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT (SELECT count(*) FROM containers WHERE counted), (SELECT count(*) FROM reservations), (SELECT count(*) FROM placements WHERE outcome = 'created')"); got != "160|0|160" {
			return fmt.Errorf("containers|reservations|created = %s, want 160|0|160", got)
		}
		return nil
	})
	if got := c.store.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted: %s", got)
	}
}

// testCluster is the manager without its command line: a cluster over these
// engines, all healthy, and its endpoint's address.
func testCluster(t testing.TB, engines ...*fakeEngine) (*cluster, string) {
	t.Helper()
	var addresses []string
	for _, e := range engines {
		addresses = append(addresses, "tcp://"+e.addr())
	}
	return testClusterAt(t, addresses)
}

// testClusterAt is testCluster for engines at these addresses.
func testClusterAt(t testing.TB, addresses []string) (*cluster, string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	st := testStore(t)
	if err := st.begin(t.Context(), managerRow{version: "test", strategy: "spread"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ns := newNodes(log, st, nil)
	t.Cleanup(func() { cancel(); ns.wait() })
	if err := ns.set(ctx, linesOf(addresses...)); err != nil {
		t.Fatal(err)
	}
	c := &cluster{log: log, store: st, nodes: ns, scheduler: testScheduler(t, st, "spread"), names: "plain", infoNodes: 50, base: ctx}
	server := httptest.NewServer(newAPI(c, log, "test", nil))
	t.Cleanup(server.Close)
	eventually(t, time.Minute, func() error {
		if got := st.all(t, "SELECT count(*) FROM nodes WHERE state = 'healthy'"); got != strconv.Itoa(len(addresses)) {
			return fmt.Errorf("%s of %d nodes are healthy", got, len(addresses))
		}
		return nil
	})
	return c, server.URL
}
