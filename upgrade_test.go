package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// releasedSchemas are the schemas of releases, by their numbers.
func releasedSchemas(t testing.TB) map[int]string {
	t.Helper()
	files, err := filepath.Glob("testdata/schemas/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("no schemas of releases: %v", err)
	}
	schemas := map[int]string{}
	for _, f := range files {
		version, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f), ".sql"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		schemas[version] = string(data)
	}
	return schemas
}

func TestSchemaOfAReleaseNeverChanges(t *testing.T) {
	t.Parallel()
	for version, text := range releasedSchemas(t) {
		if version > schemaVersion {
			t.Errorf("testdata/schemas/%d.sql is of a release, and schemaVersion in store.go is %d", version, schemaVersion)
		}
		if version == schemaVersion && text != schema {
			t.Errorf("schema.sql is not what testdata/schemas/%d.sql says was released: set schemaVersion in store.go to %d", version, version+1)
		}
	}
	if _, ok := releasedSchemas(t)[schemaVersion-1]; !ok {
		t.Errorf("testdata/schemas/%d.sql is not there: copy schema.sql of that release", schemaVersion-1)
	}
}

// oldRows is what a manager of an older schema has left: a row in every table.
const oldRows = `
	INSERT INTO manager (id, cluster_id, strategy) VALUES (1, 'the-cluster', 'binpack');
	INSERT INTO nodes (id, address, engine_id, name, state, availability, spec_version, added_at, cpus, memory_bytes, confirmed, containers, used_nano_cpus, used_memory_bytes)
	VALUES (7, 'tcp://10.0.0.1:2375', 'ID1', 'one', 'healthy', 'drain', 5, 1000, 4, 8000, 1, 0, 0, 0), (8, 'tcp://10.0.0.2:2375', 'ID2', 'two', 'healthy', 'pause', 2, 2000, 2, 4000, 1, 0, 0, 0);
	INSERT INTO node_info VALUES (7, '{}', '{}');
	INSERT INTO node_labels VALUES (7, 'gpu', 'yes', 'operator'), (7, 'zone', 'a', 'engine');
	INSERT INTO placements (id, name, strategy, nodes, node_id, node, outcome, container_id, message) VALUES
		(1, 'web', 'binpack', 2, 7, 'one', 'created', 'c1', ''), (2, 'db', 'binpack', 2, 7, 'one', 'unknown', '', 'lost'), (3, 'no', 'binpack', 2, NULL, '', 'refused', '', 'no node fits');
	INSERT INTO placement_filters VALUES (3, 'constraint', 'fail constraint a==b', 2);
	INSERT INTO placement_looks VALUES (1, '[["one","10.0.0.1:2375","",3]]');
	INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, swarm_id, counted, inspected, nano_cpus, memory_bytes, summary)
	VALUES (11, 7, 'c1', 'web', 'busybox', 'running', 1000, 's1', 1, 1, 500, 600, '{"Id":"c1"}');
	INSERT INTO container_labels VALUES (11, 'app', 'shop');
	INSERT INTO reservations (id, node_id, placement_id, swarm_id, name, image, nano_cpus, memory_bytes, state) VALUES (21, 7, 2, 's2', 'db', 'busybox', 30, 40, 'unknown');
	INSERT INTO ports (id, node_id, container, reservation, host_ip, host_port, last_port, protocol) VALUES (1, 7, 11, NULL, '', 80, 80, 'tcp'), (2, 7, NULL, 21, '', 81, 81, 'tcp');
	INSERT INTO mounts VALUES (11, 'volume', 'data', '/v', '/data');
	INSERT INTO container_networks VALUES (11, 'bridge', 'n1');
	INSERT INTO images (node_id, image_id, created_at, summary) VALUES (7, 'sha256:1', 1000, '{}');
	INSERT INTO image_names VALUES (7, 'docker.io/library/busybox:latest', 'sha256:1');
	INSERT INTO image_copies VALUES (7, 'sha256:1', 'sha256:2');
	INSERT INTO image_tags (name, image_id, node_id) VALUES ('docker.io/library/busybox:latest', 'sha256:1', 7);
	INSERT INTO builders (client, node_id) VALUES ('10.0.0.9', 8);
	INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (7, 'n1', 'bridge', 'bridge', 'local', '', '{}');
	INSERT INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (7, 'data', 'local', 'local', '', '{}');
	INSERT INTO execs (exec_id, node_id, container_id) VALUES ('e1', 7, 'c1');
	INSERT INTO events (id, at_nano, node_id, node, time_nano, type, action, actor, body)
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ROWS) SELECT i, i, 7, 'one', i, 'container', 'start', 'c1', '{"n":"' || hex(randomblob(50)) || '"}' FROM n;
`

// oldStore makes the file that a manager of an older schema leaves when it is killed.
// events is how many events it has seen.
func oldStore(t testing.TB, path, oldSchema string, version, events int) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "_pragma=journal_mode(wal)&_pragma=wal_autocheckpoint(0)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	rows := strings.Replace(oldRows, "ROWS", fmt.Sprint(events), 1)
	if strings.Contains(oldSchema, "\n  age ") {
		rows += fmt.Sprintf("UPDATE containers SET age = %d;", containerAge(1000, 11))
	}
	if strings.Contains(oldSchema, "TABLE placement_nodes") {
		rows = strings.Replace(rows, `placement_looks VALUES (1, '[["one","10.0.0.1:2375","",3]]')`, "placement_nodes VALUES (1, 'one', '10.0.0.1:2375', '', 3)", 1)
	}
	statements := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; BEGIN; %s; %s; COMMIT", applicationID, version, oldSchema, rows)
	if _, err := db.Exec(statements); err != nil {
		t.Fatal(err)
	}
}

// checkUpgraded compares what a store has with what oldRows has put in.
func checkUpgraded(t testing.TB, st *store, events int) {
	t.Helper()
	for query, want := range map[string]string{
		"SELECT cluster_id, strategy FROM manager":                                                              "the-cluster|binpack",
		"SELECT id, address, engine_id, name, availability, spec_version, added_at FROM nodes ORDER BY id":      "7|tcp://10.0.0.1:2375|ID1|one|drain|5|1000\n8|tcp://10.0.0.2:2375|ID2|two|pause|2|2000",
		"SELECT containers, used_nano_cpus, used_memory_bytes FROM nodes WHERE id = 7":                          "2|530|640",
		"SELECT value FROM node_labels WHERE source = 'operator'":                                               "yes",
		"SELECT id, name, outcome, message FROM placements ORDER BY id":                                         "1|web|created|\n2|db|unknown|lost\n3|no|refused|no node fits",
		"SELECT placement_id, clause, refused FROM placement_filters":                                           "3|fail constraint a==b|2",
		"SELECT placement_id, node, score FROM placement_nodes":                                                 "1|one|3",
		"SELECT name, state, inspected, nano_cpus, json_extract(summary, '$.Id') FROM containers":               "web|running|0|500|c1",
		"SELECT age FROM containers":                                                                            fmt.Sprint(containerAge(1000, 11)),
		"SELECT summary = '{\"Id\":\"c1\"}' FROM containers":                                                    "0",
		"SELECT name, state FROM reservations":                                                                  "db|unknown",
		"SELECT host_port FROM ports ORDER BY 1":                                                                "80\n81",
		"SELECT image_id FROM image_tags":                                                                       "sha256:1",
		"SELECT copy_of FROM image_copies":                                                                      "sha256:2",
		"SELECT sum(nodes) FROM node_sizes":                                                                     "2",
		"SELECT nodes FROM label_values WHERE key = 'gpu' AND value = 'yes'":                                    "1",
		"SELECT client FROM builders":                                                                           "10.0.0.9",
		"SELECT exec_id FROM execs":                                                                             "e1",
		"SELECT count(*), count(DISTINCT id) FROM events":                                                       fmt.Sprintf("%d|%d", events, events),
		"SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM networks), (SELECT count(*) FROM volumes)": "1|1|1",
		"SELECT user_version FROM pragma_user_version":                                                          fmt.Sprint(schemaVersion),
		"SELECT * FROM pragma_integrity_check":                                                                  "ok",
	} {
		if got := st.all(t, query); got != want {
			t.Errorf("after the upgrade, %s = %s, want %s", query, got, want)
		}
	}
	if got := st.all(t, `SELECT "table" FROM pragma_foreign_key_check`); got != "" {
		t.Errorf("rows refer to nothing: %s", got)
	}
}

// F65: everything is carried over, and the old file is kept.
func TestF65UpgradeFromEachReleasedSchema(t *testing.T) {
	t.Parallel()
	for version, old := range releasedSchemas(t) {
		if version == schemaVersion {
			continue
		}
		path := filepath.Join(t.TempDir(), "swarmlite.db")
		oldStore(t, path, old, version, 100)
		log, logs := testLog()
		st, err := openStore(t.Context(), log, path)
		if err != nil {
			t.Fatal(err)
		}
		checkUpgraded(t, st, 100)
		// The triggers are there again.
		st.sql(t, "DELETE FROM containers; DELETE FROM reservations")
		if got := st.one(t, "SELECT containers, used_nano_cpus, used_memory_bytes FROM nodes WHERE id = 7"); got != "0|0|0" {
			t.Errorf("sums after everything has gone = %s", got)
		}
		fresh := testStore(t)
		if a, b := st.all(t, "SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2"), fresh.all(t, "SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2"); a != b {
			t.Error("an upgraded database has another schema than a new one")
		}
		st.close()
		backup := path + ".schema-" + fmt.Sprint(version)
		logs.mu.Lock()
		if said := logs.text.String(); !strings.Contains(said, "state database upgraded") || !strings.Contains(said, backup) {
			t.Errorf("log: %s, want one that names the backup %s", said, backup)
		}
		logs.mu.Unlock()
		if info, err := os.Lstat(backup); err != nil || info.Mode() != 0o600 {
			t.Errorf("backup: %v, %v, want mode 0600", info, err)
		}
		db, err := sql.Open("sqlite", dsn(backup, "mode=ro"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var got int
		if err := db.QueryRow("SELECT user_version FROM pragma_user_version, containers WHERE name = 'web'").Scan(&got); err != nil || got != version {
			t.Errorf("the backup has schema %d, %v, want %d", got, err, version)
		}
	}
}

// Builds between two releases have one number and several schemas.
func TestADatabaseOfAnUnreleasedSchemaIsUpgraded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	between := strings.Replace(schema, "  step ", "  is_new INTEGER, step ", 1)
	if between == schema {
		t.Fatal("nothing is different")
	}
	oldStore(t, path, between, schemaVersion, 10)
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	checkUpgraded(t, st, 10)
	if got := st.one(t, "SELECT count(*) FROM pragma_table_info('nodes') WHERE name = 'is_new'"); got != "0" {
		t.Error("the column of the other schema is still there")
	}
}

func TestF65UpgradeWaitsForAShellThatHasTheFileOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	oldStore(t, path, releasedSchemas(t)[1], 1, 10)
	shell, err := sql.Open("sqlite", dsn(path, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	if err := shell.QueryRow("SELECT name FROM containers").Scan(new(string)); err != nil {
		t.Fatal(err)
	}
	_, err = openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if want := "state database " + path + ": upgrade from schema 1: locked by another program; the file is as it was, the older swarmlite can run on it"; err == nil || err.Error() != want {
		t.Fatalf("openStore = %v\nwant %s", err, want)
	}
	shell.Close()
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	checkUpgraded(t, st, 10)
}

// TestOpenStoreInAProcess is no test: it is the process that others kill.
func TestOpenStoreInAProcess(t *testing.T) {
	path := os.Getenv("TEST_OPEN_STORE")
	if path == "" {
		t.Skip("it is started by other tests")
	}
	st, err := openStore(context.Background(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("opened")
	if os.Getenv("TEST_WRITE") != "" {
		writeForEver(t, st)
	}
	st.close()
}

// openInProcess starts a process that opens the store at path.
func openInProcess(t testing.TB, path string, env ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpenStoreInAProcess$")
	cmd.Env = append(append(os.Environ(), "TEST_OPEN_STORE="+path), env...)
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, stdout
}

// F65: a kill at any moment of an upgrade loses nothing.
func TestF65KillsDuringAnUpgrade(t *testing.T) {
	t.Parallel()
	kills, events := 5, 2000
	if allFaults() {
		kills, events = 100, 20_000
	}
	master := filepath.Join(t.TempDir(), "master.db")
	oldStore(t, master, releasedSchemas(t)[1], 1, events)
	old, err := os.ReadFile(master)
	if err != nil {
		t.Fatal(err)
	}
	// How long does it take, undisturbed?
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	began := time.Now()
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, stdout := openInProcess(t, path)
	io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	inside := 0
	for range kills {
		path := filepath.Join(t.TempDir(), "swarmlite.db")
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second one falls upon what the first has left
			cmd, stdout := openInProcess(t, path)
			time.AfterFunc(rand.N(whole), func() { cmd.Process.Kill() })
			io.Copy(io.Discard, stdout)
			var ended *exec.ExitError
			if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
				t.Fatal(err)
			}
		}
		if left, _ := filepath.Glob(path + "*.new*"); left != nil {
			inside++
		}
		st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
		if err != nil {
			t.Fatal(err)
		}
		checkUpgraded(t, st, events)
		st.close()
		if t.Failed() {
			return
		}
	}
	if inside == 0 && allFaults() {
		t.Error("no kill has hit an upgrade")
	}
	faultHeld(t, 65, fmt.Sprintf("%d kills twice over, %d left half a file: nothing lost", kills, inside))
}

// A table that triggers fill is counted anew by them; copied as well, it would count twice.
func TestTalliesAreTheTablesThatTriggersFill(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	filled := map[string]bool{}
	for _, m := range regexp.MustCompile(`INSERT (?:OR \w+ )?INTO (\w+)`).FindAllStringSubmatch(st.all(t, "SELECT sql FROM sqlite_schema WHERE type = 'trigger'"), -1) {
		filled[m[1]] = true
	}
	if got, want := slices.Sorted(maps.Keys(filled)), slices.Sorted(slices.Values(tallies)); !slices.Equal(got, want) {
		t.Errorf("triggers fill %q, tallies in storecarry.go names %q", got, want)
	}
}
