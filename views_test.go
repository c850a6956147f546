package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// missing ends a test that needs what is not here: under -short it is left out, else it
// fails, so that make test never skips in silence.
func missing(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs " + what + ", left out by -short")
	}
	t.Fatal("needs " + what + " (go test -short leaves this test out)")
}

// shell asks the database with the real sqlite3 program, read-only, as a person does.
func (s *store) shell(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		missing(t, "the sqlite3 shell: apt-get install sqlite3")
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("sqlite3", append([]string{"-readonly", s.path}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stderr.Len() > 0 {
		t.Fatalf("sqlite3 %q: %v\n%s", args, err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// TestSchemaReadsAsDocumentation: what a person sees with .schema is what we wrote,
// every table, view and trigger with its explanation inside, where .schema keeps it.
func TestSchemaReadsAsDocumentation(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	shown := st.shell(t, ".schema")
	statements := regexp.MustCompile(`(?m)^CREATE `).FindAllStringIndex(schema, -1)
	if len(statements) < 40 {
		t.Fatalf("%d statements in schema.sql", len(statements))
	}
	for i, at := range statements {
		end := len(schema)
		if i+1 < len(statements) {
			end = statements[i+1][0]
		}
		statement := strings.TrimSuffix(strings.TrimSpace(schema[at[0]:end]), ";")
		if !strings.Contains(shown, statement) {
			t.Errorf(".schema does not show, as it was written:\n%s", statement)
		}
		words := strings.Fields(statement)
		kind, name := words[1], words[2]
		if kind == "UNIQUE" {
			kind, name = words[2], words[3]
		}
		switch kind {
		case "INDEX": // its name says what it is for: containers_by_node
			if !strings.Contains(name, "_by_") && name != "events_once" {
				t.Errorf("index %s: expected a name such as containers_by_node", name)
			}
		case "TABLE":
			if _, body, _ := strings.Cut(statement, "("); !strings.HasPrefix(strings.TrimSpace(body), "/*") {
				t.Errorf("table %s does not begin with what a row is", name)
			}
			if !strings.Contains(statement, ") STRICT") {
				t.Errorf("table %s is not STRICT", name)
			}
		case "VIEW", "TRIGGER":
			if !strings.Contains(statement, "/*") {
				t.Errorf("%s %s has no comment", kind, name)
			}
		default:
			t.Errorf("%s: expected a table, an index, a view or a trigger", statement)
		}
	}
	if got := st.shell(t, "SELECT group_concat(name) FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND NOT strict AND name NOT LIKE 'sqlite_%'"); got != "" {
		t.Errorf("tables that are not strict: %s", got)
	}
	if got := st.shell(t, "PRAGMA integrity_check"); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
	if got := st.shell(t, "PRAGMA foreign_key_check"); got != "" {
		t.Errorf("foreign_key_check: %s", got)
	}
}

// TestViewsAnswerAPersonsFirstQuestions, in the shell, while the manager writes.
func TestViewsAnswerAPersonsFirstQuestions(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+`;
		UPDATE manager SET overcommit = 0.05;
		UPDATE nodes SET ip = '10.9.8.7', engine_version = '20.10.24' WHERE id = 1;
		UPDATE nodes SET state = 'unhealthy', state_at = 1000000000, step = 'ping', error = 'no answer in time' WHERE id = 2;
		UPDATE nodes SET availability = 'drain', clock_skew_ms = -2500, error = 'bad answer: 1 of 2 images' WHERE id = 3;
		INSERT INTO nodes (id, name, address, state, state_at) VALUES (4, 'gone', 'tcp://10.0.0.4:2375', 'removed', 0), (5, 'node-4', 'tcp://10.0.0.5:2375', 'pending', 1000000000);
		INSERT INTO node_labels VALUES (1, 'storage', 'ssd', 'engine'), (1, 'rack', '7', 'operator'), (1, 'ostype', 'linux', 'automatic');
		INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, nano_cpus, memory_bytes, summary) VALUES
			(1, 1, '0123456789abcdef', 'web', 'nginx', 'running', 1000000000, 1500000000, 1073741824, '{}'),
			(2, 2, '123456789abcdef0', 'db', 'postgres', 'running', 1000000001, 0, 0, '{}'),
			(3, 3, '23456789abcdef01', 'db', 'postgres', 'running', 1000000002, 5000000000, 0, '{}'),
			(4, 3, '3456789abcdef012', '', 'x', 'dead', 1, 0, 0, '{}'), (5, 1, '456789abcdef0123', '', 'x', 'dead', 1, 0, 0, '{}');
		UPDATE containers SET age = (created_at << 28) | id;
		UPDATE containers SET stays = 'it has no reschedule policy' WHERE id = 3;
		INSERT INTO node_resources VALUES (1, 'gpu', 4, '[]');
		INSERT INTO resources (node_id, container, name, amount, device) VALUES (1, 1, 'gpu', 1, '');
		INSERT INTO ports (node_id, container, host_ip, host_port, last_port, protocol) VALUES (1, 1, '', 8080, 8080, 'tcp'), (1, 1, '127.0.0.1', 53, 53, 'udp');
		INSERT INTO placements (id, at, name, image, strategy, nodes, fitting, node_id, node, score, outcome, message) VALUES
			(1, 1000000000, 'web', 'nginx', 'spread', 3, 1, 1, 'node-1', 62, 'created', ''), (2, 1000000001, 'db', 'postgres', 'spread', 3, 2, 2, 'node-2', 200, 'failed', 'No such image: postgres:latest'),
			(3, 1000000002, 'db', 'postgres', 'spread', 3, 2, 2, 'node-2', 200, 'moved', ''), (4, 1000000003, 'db', 'postgres', 'spread', 3, 1, 2, 'node-2', 200, 'unknown', 'no answer'),
			(5, 1000000004, 'big', 'x', 'binpack', 3, 0, NULL, '', NULL, 'refused', 'no node fits: 3 of 3 are paused or draining');
		UPDATE placements SET container_id = '0123456789abcdef' WHERE id = 1;
		INSERT INTO placement_filters VALUES (1, 'constraint', 'fail constraint storage==ssd', 2), (5, 'availability', 'are paused or draining', 3);
		INSERT INTO placement_looks VALUES (1, '[["node-1","tcp://10.0.0.1:2375","",62],["node-2","tcp://10.0.0.2:2375","fails constraint storage==ssd",null]]');
		INSERT INTO reservations (node_id, placement_id, swarm_id, name, image, nano_cpus, memory_bytes, made_at) VALUES (2, 4, 's4', 'db-2', 'postgres', 0, 0, 1000000003)`)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the manager at work
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				st.sql(t, fmt.Sprintf("INSERT OR REPLACE INTO execs (exec_id, node_id, container_id) VALUES ('e%d', 1, 'c')", i%100))
			}
		}
	})
	for _, tt := range []struct{ query, want string }{
		{"SELECT * FROM cluster", `node-1|healthy|active|2|1.50 / 4.20|1024 / 4301 MiB|gpu 1 / 4|rack=7, storage=ssd|20.10.24|tcp://10.0.0.1:2375|
node-2|unhealthy|active|2|0.00 / 4.20|0 / 4301 MiB||||tcp://10.0.0.2:2375|ping: no answer in time
node-3|healthy|drain|2|5.00 / 4.20|0 / 4301 MiB||||tcp://10.0.0.3:2375|bad answer: 1 of 2 images
node-4|pending|active|0|0.00 / 0.00|0 / 0 MiB||||tcp://10.0.0.5:2375|`},
		{"SELECT * FROM ps", `23456789abcd|db|postgres|node-3|running||5.0|0|2001-09-09 01:46:42|
123456789abc|db|postgres|node-2|running|unhealthy|0.0|0|2001-09-09 01:46:41|
0123456789ab|web|nginx|node-1|running||1.5|1024|2001-09-09 01:46:40|10.9.8.7:8080/tcp, 127.0.0.1:53/udp
456789abcdef||x|node-1|dead||0.0|0|1970-01-01 00:00:01|
3456789abcde||x|node-3|dead||0.0|0|1970-01-01 00:00:01|`},
		{"SELECT id, name, outcome, reason FROM why", `5|big|refused|no node fits: 3 of 3 are paused or draining
4|db|unknown|node-2 was asked and has not answered: no answer
3|db|moved|node-2 was chosen and did not answer, so another node was asked
2|db|failed|node-2 was chosen and its engine refused: No such image: postgres:latest
1|web|created|spread chose node-1, the only one of 3 that fits (score 62); 2 fail constraint storage==ssd`},
		{"SELECT * FROM placement_nodes", "1|node-1|tcp://10.0.0.1:2375||62\n1|node-2|tcp://10.0.0.2:2375|fails constraint storage==ssd|"},
		{"SELECT name, image, node, since, until FROM ran WHERE '2001-09-09 01:46:41' BETWEEN since AND until ORDER BY name, node", `db|postgres|node-2|2001-09-09 01:46:41|now
web|nginx|node-1|2001-09-09 01:46:40|now`},
		{"SELECT * FROM drain", "node-3|drain|healthy||x|dead|\nnode-3|drain|healthy|db|postgres|running|it has no reschedule policy"},
		{"SELECT * FROM trouble", `node unhealthy|node-2|tcp://10.0.0.2:2375 since 2001-09-09 01:46:40: ping: no answer in time
node pending|node-4|tcp://10.0.0.5:2375 since 2001-09-09 01:46:40
bad answer|node-3|bad answer: 1 of 2 images
clock|node-3|engine is -2.5 s off the manager
name used twice|node-2, node-3|db
overcommitted|node-3|5.00 of 4.20 CPUs, 0 of 4301 MiB
left on a drained node|node-3|db: it has no reschedule policy
create without answer|node-2|db-2 since 2001-09-09 01:46:43`},
		{"SELECT id, containers, nano_cpus, used_nano_cpus, memory_bytes, used_memory_bytes FROM node_load", `1|2|4200000000|1500000000|4509715660|1073741824
2|2|4200000000|0|4509715660|0
3|2|4200000000|5000000000|4509715660|0
5|0|0|0|0|0`},
	} {
		if got := st.shell(t, tt.query); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.query, got, tt.want)
		}
	}
	close(stop)
	wg.Wait()
	if views := st.shell(t, "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE type = 'view' ORDER BY 1)"); views != "cluster,drain,node_load,placement_nodes,ps,ran,resource_load,resources_held,trouble,why" {
		t.Errorf("views %s: a new one wants a case above", views)
	}
	if err := st.write(t.Context(), func(t *tx) error { return put(t, "after") }); err != nil {
		t.Errorf("a write after the shell has looked: %v", err)
	}
}

func TestTroubleIsEmptyWhenAllIsWell(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	if got := st.shell(t, "SELECT * FROM trouble"); got != "" {
		t.Errorf("trouble: %s", got)
	}
	if _, err := testScheduler(t, st, "spread").placeBody(t.Context(), t, "web", `{"Image": "busybox", "HostConfig": {"Memory": 4294967296}}`); err != nil {
		t.Fatal(err)
	}
	if got := st.shell(t, "SELECT * FROM trouble"); got != "" {
		t.Errorf("trouble on a node that is full: %s", got)
	}
}

// TestShellCannotChangeWhatItReads: -readonly is a promise the manual relies on.
func TestShellCannotChangeWhatItReads(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	st.shell(t, "SELECT 1")
	out, err := exec.Command("sqlite3", "-readonly", st.path, "DELETE FROM nodes").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "readonly") {
		t.Errorf("DELETE in a read-only shell = %v, %s", err, out)
	}
	if got := st.one(t, "SELECT count(*) FROM nodes"); got != "1" {
		t.Errorf("%s nodes, want 1", got)
	}
}
