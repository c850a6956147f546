package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSimulateCountsHowManyMoreFit(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, standardCluster+`; UPDATE nodes SET slots = 2 WHERE id = 3; INSERT INTO node_labels VALUES (1, 'disk', 'ssd', 'engine');
		UPDATE node_info SET info = '{"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu","Value":3}}]}' WHERE node_id = 1; INSERT INTO node_resources VALUES (1, 'gpu', 3, '[]')`)
	got, err := swarmlite(t, "simulate", "-db", path, "-fill", "-m", "1g", "--name", "web", "nginx", "-fill")
	want := `spread, overcommit 0: 10 more fit, then no node fits: 2 of 3 have less than 1GiB of memory free, 1 has no container slot left (node-1, node-2; node-3); the most free is on node-1: 0B of memory

NODE     PLACED   CONTAINERS   CPUS          MEMORY        LOAD   PEAK
node-1   4        4 (was 0)    0.00 / 4.00   4GiB / 4GiB   100%   100%
node-2   4        4 (was 0)    0.00 / 4.00   4GiB / 4GiB   100%   100%
node-3   2        2 (was 0)    0.00 / 4.00   2GiB / 4GiB   50%    50%

spread of load: 50% to 100%, 2 to 4 containers a node
`
	if err != nil || got != want {
		t.Errorf("simulate -fill: %v\n%s\nwant\n%s", err, got, want)
	}
	for _, c := range []struct {
		flags string
		want  string
	}{
		{"-overcommit 1 -fill -m 1g", "18 more fit"},
		{"-without node-3 -without node-2 --fill -m 1g", "4 more fit"},
		{"-add cpus=8,memory=32g -fill -m 1g", "42 more fit"},
		{"-add like=node-1,count=2 -fill -m 1g -e constraint:disk==ssd", "12 more fit"},
		{"-add cpus=1,memory=2g,label=disk=nvme,label=containerslots=1 -fill -m 1g -e constraint:disk==nvme", "1 more fit"},
		{"-fill --gpus 1", "3 more fit"},
		{"-add like=node-1 -fill --gpus 1", "6 more fit"},
		{"-add cpus=8,memory=32g -fill --gpus 1", "3 more fit"},
		{"-add cpus=8,memory=32g,label=resource.gpu=2 -fill --gpus 1", "5 more fit"},
		{"-filter health -filter resources -fill -m 1g", "12 more fit"},
		{"-fill -p 80:80", "3 more fit"},
		{"-without node-3 -fill", "1 more fit, then any number: it asks for nothing that runs out"},
		{"-without node-3 -fill -m 1t", "0 more fit, then no node fits: 2 of 2 have less than 1TiB"},
		{"-fill -e constraint:node==node-3", "2 more fit, then no node fits: "},
		{"-fill -m 1t", "0 more fit, then no node fits: 3 of 3 have less than 1TiB of memory free; the largest node that qualifies is node-1 with 4GiB of memory in all"},
	} {
		got, err := swarmlite(t, append(append([]string{"simulate", "-db=" + path}, strings.Fields(c.flags)...), "nginx")...)
		if err != nil || !strings.Contains(got, ": "+c.want) {
			t.Errorf("simulate %s: %v\n%s\nwant %s", c.flags, err, got, c.want)
		}
	}
}

func TestSimulatePlacesAFileOfRequests(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, standardCluster+"; INSERT INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (2, 'data', 'local', 'local', '', '{}')")
	file := filepath.Join(t.TempDir(), "requests")
	requests := `# three ways to write a request
{"Name": "web", "Image": "nginx", "HostConfig": {"Memory": 1073741824}}
docker run -d --name db -v node-2/data:/data -e 'constraint:node!=/node-[13]/' "postgres:17"

-m 100g big
--name web nginx
`
	if err := os.WriteFile(file, []byte(requests), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := swarmlite(t, "simulate", "-db", path, "-requests", file)
	want := `NAME   IMAGE         NODE      BECAUSE
web    nginx         node-1    
db     postgres:17   node-2    
       big           refused   no node fits: 3 of 3 have less than 100GiB of memory free; the largest node that qualifies is node-1 with 4GiB of memory in all
web    nginx         refused   Conflict. The container name "/web" is already in use by container "0000000000000000000000000000000000000000000000000000000000000001" on node node-1. You have to remove (or rename) that container to be able to reuse that name.

spread, overcommit 0: of 4 requests 2 fit, 2 refused
`
	if err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("simulate -requests: %v\n%s\nwant\n%s", err, got, want)
	}
	var x simulation
	got, err = swarmlite(t, "simulate", "-db", path, "--json", "-requests", file)
	if e := json.Unmarshal([]byte(got), &x); e != nil || err != nil || x.Placed != 2 || x.RefusedNow != 2 || len(x.Requests) != 4 || x.Requests[0].Now != "node-1" || len(x.Nodes) != 3 || x.Nodes[0].Containers != 1 {
		t.Errorf("simulate -json: %v, %v\n%s", e, err, got)
	}
}

func TestSimulateRefusals(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, standardCluster)
	for _, c := range []struct {
		args, file, want string
	}{
		{"-requests FILE", "nginx\n--memroy 1g nginx", "simulate: FILE line 2: unknown flag: --memroy"},
		{"-requests FILE", `{"Image": 5}`, "simulate: FILE line 1: "},
		{"-requests FILE", "-e constraint:a=b nginx", `simulate: FILE line 1: constraint "a=b": expected == or !=`},
		{"-requests FILE", `-e "constraint nginx`, "simulate: FILE line 1: invalid command line string"},
		{"-requests /nowhere/at/all", "", "simulate: -requests /nowhere/at/all: no such file or directory"},
		{"-without node-9", "", "simulate: -without: node node-9 not found"},
		{"-add cpus=8", "", "invalid value \"cpus=8\" for flag -add: expected cpus and memory, or like=NODE"},
		{"-add cpus=8,memory=much", "", "memory=much: expected a number, as in cpus=8,memory=32g,count=2"},
		{"-add disk=8", "", `key "disk": expected cpus, memory, label, like or count`},
		{"-add like=node-9", "", "simulate: -add: node node-9 not found, which the new one is to be like"},
		{"-overcommit much", "", "expected a ratio such as 0.05"},
		{"-since yesterday", "", "expected an age such as 90d or 36h"},
		{"-strategy fastest", "", `simulate: -strategy "fastest": expected spread, binpack`},
		{"-filter healthy", "", `simulate: -filter "healthy": expected one of health, `},
		{"-fill -m 1g", "", "simulate: expected an image behind the flags"},
		{"-fill --memroy 1g nginx", "", "simulate: unknown flag: --memroy"},
		{"nginx", "", `simulate: unexpected "nginx": docker run flags and an image come with -fill`},
	} {
		file := filepath.Join(t.TempDir(), "requests")
		if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		args := strings.Fields(strings.ReplaceAll(c.args, "FILE", file))
		_, err := swarmlite(t, append([]string{"simulate", "-db", path}, args...)...)
		if want := strings.ReplaceAll(c.want, "FILE", file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("simulate %s: %v\nwant %s", c.args, err, want)
		}
	}
}

// history makes n creates through the scheduler, some of which end again, as one each
// minute from a day ago on. Returned is where the ledger says they went.
func (sc *scheduler) history(t testing.TB, rng *rand.Rand, n int) string {
	t.Helper()
	st := sc.store
	var live []string
	for i := range n {
		at := time.Now().Add(-24*time.Hour).Unix() + 60*int64(i)
		if len(live) > 0 && rng.IntN(3) == 0 {
			k := rng.IntN(len(live))
			st.sql(t, fmt.Sprintf("DELETE FROM containers WHERE container_id = '%s'; UPDATE placements SET ended_at = %d WHERE container_id = '%[1]s'", live[k], at-30))
			live = append(live[:k], live[k+1:]...)
		}
		body := fmt.Sprintf(`{"Image": "nginx", "Labels": {"tier": "%s"}, "HostConfig": {"Memory": %s, "NanoCpus": %s%s}%s}`, pick(rng, "front", "back"),
			pick(rng, "0", "134217728", "536870912"), pick(rng, "0", "250000000", "500000000"), pick(rng, "", "", `, "Binds": ["data:/data"]`), pick(rng, "", "", `, "Env": ["affinity:tier!=~front"]`))
		w, _, err := readCreate([]byte(body), &call{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := sc.place(t.Context(), w)
		if err != nil {
			st.sql(t, fmt.Sprintf("UPDATE placements SET at = %d WHERE id = (SELECT max(id) FROM placements)", at))
			continue
		}
		id := fmt.Sprintf("%063xf", i)
		if err := st.created(t.Context(), p, w.row(id, p.name, p.nodeName), 0); err != nil {
			t.Fatal(err)
		}
		st.sql(t, fmt.Sprintf("UPDATE placements SET at = %d WHERE id = %d", at, p.id))
		live = append(live, id)
	}
	return st.all(t, "SELECT id, node FROM placements ORDER BY id")
}

// A replay under what was in force comes to what the ledger says, whatever the
// strategy, and changes nothing in the manager's database.
func TestSimulateReplaysTheLedger(t *testing.T) {
	t.Parallel()
	for _, strategyName := range []string{"spread", "binpack", "random"} {
		t.Run(strategyName, func(t *testing.T) {
			t.Parallel()
			st := testStore(t)
			st.sql(t, standardCluster+"; UPDATE nodes SET memory_bytes = 2 << 30 WHERE id = 2; INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, memory_bytes, summary) VALUES (1, 1, 'theirs', 'theirs', 'x', 'running', 1, 1 << 30, '{}')")
			if err := st.begin(t.Context(), managerRow{strategy: strategyName}); err != nil {
				t.Fatal(err)
			}
			st.sql(t, "UPDATE nodes SET state = 'healthy'")
			then := testScheduler(t, st, strategyName).history(t, rand.New(rand.NewPCG(7, 7)), 120)
			loads := st.all(t, "SELECT name, containers, used_nano_cpus, used_memory_bytes FROM nodes")
			got, err := swarmlite(t, "simulate", "-db", st.path, "-json")
			var x simulation
			if e := json.Unmarshal([]byte(got), &x); e != nil || err != nil {
				t.Fatal(e, err, got)
			}
			if x.Same+x.RefusedNow != 120 || x.RefusedNow != x.RefusedThen || x.Elsewhere != 0 || x.Unreadable != 0 {
				for _, r := range x.Requests {
					if r.Then != r.Now {
						t.Errorf("%s went to %q, the replay to %q %s", r.Name, r.Then, r.Now, r.Message)
					}
				}
				t.Errorf("%d the same, %d elsewhere, %d refused, %d were", x.Same, x.Elsewhere, x.RefusedNow, x.RefusedThen)
			}
			var after []string
			for _, n := range x.Nodes {
				after = append(after, fmt.Sprintf("%s|%d|%d|%d", n.Node, n.Containers, n.UsedNanoCPUs, n.UsedMemoryBytes))
				if n.Containers != n.Before || n.Peak < n.Load {
					t.Errorf("%s: %d containers, %d before; load %f, peak %f", n.Node, n.Containers, n.Before, n.Load, n.Peak)
				}
			}
			if strings.Join(after, "\n") != loads {
				t.Errorf("nodes after the replay:\n%s\nwant\n%s", strings.Join(after, "\n"), loads)
			}
			if st.all(t, "SELECT id, node FROM placements ORDER BY id") != then || st.all(t, "SELECT name, containers, used_nano_cpus, used_memory_bytes FROM nodes") != loads {
				t.Error("the simulation has changed the manager's database")
			}
		})
	}
}

func TestSimulateReplaysUnderOtherConditions(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	sc := testScheduler(t, st, "spread")
	for i := range 6 {
		w, _, err := readCreate([]byte(`{"Image": "nginx", "HostConfig": {"Memory": 2147483648}}`), &call{query: map[string][]string{"name": {fmt.Sprint("web-", i)}}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := sc.place(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.created(t.Context(), p, w.row(fmt.Sprintf("%064x", i), p.name, ""), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sc.placeBody(t.Context(), t, "seventh", `{"Image": "nginx", "HostConfig": {"Memory": 2147483648}}`); err == nil {
		t.Fatal("a seventh fits")
	}
	st.sql(t, "INSERT INTO renames (node_id, container_id, name, old_name) VALUES (1, 'x', 'web-0', 'web-0-new')") // of a move under way
	for _, c := range []struct{ flags, want string }{
		{"", "of 7 requests 6 go where they went, 0 elsewhere, 1 refused (1 then)"},
		{"-strategy binpack", "of 7 requests 2 go where they went, 4 elsewhere, 1 refused (1 then)"},
		{"-overcommit 1", "of 7 requests 6 go where they went, 1 elsewhere, 0 refused (1 then)"},
		{"-without node-3", "of 7 requests 2 go where they went, 2 elsewhere, 3 refused (1 then)"},
		{"-add cpus=4,memory=4g,count=2", "of 7 requests 3 go where they went, 4 elsewhere, 0 refused (1 then)"},
		{"-since 1h", "of 7 requests 6 go where they went"},
	} {
		got, err := swarmlite(t, append([]string{"simulate", "-db", st.path}, strings.Fields(c.flags)...)...)
		if err != nil || !strings.Contains(got, c.want) {
			t.Errorf("simulate %s: %v\n%s\nwant %s", c.flags, err, got, c.want)
		}
	}
	st.sql(t, "UPDATE placements SET at = at - 86400")
	if got, err := swarmlite(t, "simulate", "-db", st.path, "-since", "1h"); err != nil || !strings.Contains(got, "of 0 requests") || !strings.Contains(got, "2 (was 2)") {
		t.Errorf("simulate of an hour in which nothing was placed: %v\n%s", err, got)
	}
}

// What is on a node that is left out is neither forgotten nor placed as if it had never been.
func TestSimulateTellsWhatIsTiedToANodeThatIsLeftOut(t *testing.T) {
	t.Parallel()
	st, path := clusterFile(t, standardCluster+`;
		INSERT INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (3, 'data', 'local', 'local', '2020-01-01T00:00:00Z', '{}'), (3, 'shop_data', 'local', 'local', '2020-01-01T00:00:00Z', '{}');
		INSERT INTO volume_labels (node_id, name, key, value) VALUES (3, 'shop_data', 'com.docker.compose.project', 'shop');
		INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (3, 'n1', 'front', 'bridge', 'local', '2020-01-01T00:00:00Z', '{}');
		INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES
			(1, 3, 'c1', 'theirs', 'x', 'running', 1, '{}'), (2, 3, 'c2', 'old-db', 'x', 'running', 2, '{}'), (3, 1, 'c3', 'elsewhere', 'x', 'running', 3, '{}');
		INSERT INTO mounts (container, type, source, name, destination) VALUES (2, 'volume', '', 'data', '/data');
		UPDATE manager SET group_by = '["com.docker.compose.project"]'`)
	sc := testScheduler(t, st, "spread")
	for i, c := range []struct{ name, body string }{
		{"free", `{"Image": "x", "Env": ["constraint:node==node-3"]}`},
		{"db", `{"Image": "x", "HostConfig": {"Binds": ["data:/data"]}}`},
		{"web", `{"Image": "x", "HostConfig": {"NetworkMode": "front"}}`},
		{"debug", `{"Image": "x", "HostConfig": {"PidMode": "container:theirs"}}`},
		{"side", `{"Image": "x", "HostConfig": {"NetworkMode": "container:db"}}`},
		{"shop-web-1", `{"Image": "x", "Labels": {"com.docker.compose.project": "shop"}}`},
		{"anywhere", `{"Image": "x", "HostConfig": {"Memory": 1048576}}`},
	} {
		w, _, err := readCreate([]byte(c.body), &call{query: map[string][]string{"name": {c.name}}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := sc.place(t.Context(), w)
		if err == nil {
			err = st.created(t.Context(), p, w.row(fmt.Sprintf("%064x", i), p.name, p.nodeName), 0)
		}
		if err != nil {
			t.Fatal(c.name, err)
		}
	}
	st.sql(t, "UPDATE placements SET request = json_remove(request, '$.constraints') WHERE name = 'free'")
	got, err := swarmlite(t, "simulate", "-db", path, "-without", "node-3")
	for _, want := range []string{
		"free         node-3   node-2    \n",
		"db           node-3   refused   no node fits: volume data is on node-3, which is left out\n",
		"web          node-3   refused   no node fits: network front is on node-3, which is left out\n",
		"debug        node-3   refused   no node fits: container theirs is on node-3, which is left out\n",
		"side         node-3   refused   container db is refused\n",
		"shop-web-1   node-3   refused   no node fits: group com.docker.compose.project=shop is on node-3, which is left out\n",
		"theirs       node-3   gone      left out with node-3: the ledger does not tell of it\n",
		"old-db       node-3   gone      left out with node-3: local volume data\n",
		"\nspread, overcommit 0: of 7 requests 0 go where they went, 2 elsewhere, 5 refused (0 then); 2 containers left out with their node\n",
	} {
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("simulate -without node-3: %v\n%s\nwant %q", err, got, want)
		}
	}
	var x struct {
		Requests []struct{ Name, Now, Message string }
		LeftOut  []struct{ Name, Then, Now, Message string } `json:"left_out"`
	}
	got, err = swarmlite(t, "simulate", "-db", path, "-without", "node-3", "-json")
	if e := json.Unmarshal([]byte(got), &x); e != nil || err != nil || len(x.Requests) != 7 || x.Requests[1].Message != "no node fits: volume data is on node-3, which is left out" ||
		fmt.Sprint(x.LeftOut) != "[{theirs node-3  left out with node-3: the ledger does not tell of it} {old-db node-3  left out with node-3: local volume data}]" {
		t.Errorf("simulate -without node-3 -json: %v, %v\n%s", e, err, got)
	}
	// Names on the node are free.
	file := filepath.Join(t.TempDir(), "requests")
	if err := os.WriteFile(file, []byte("--name theirs nginx\n-v data:/data nginx"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = swarmlite(t, "simulate", "-db", path, "-without", "node-3", "-requests", file)
	if err != nil || !strings.Contains(got, "\ntheirs   nginx   node-1") || !strings.Contains(got, "refused   no node fits: volume data is on node-3, which is left out\n") ||
		!strings.Contains(got, "of 2 requests 1 fit, 1 refused; 8 containers left out with their node\n") {
		t.Errorf("simulate -without node-3 -requests: %v\n%s", err, got)
	}
	got, err = swarmlite(t, "simulate", "-db", path, "-without", "node-3", "-fill", "-v", "data:/data", "nginx")
	if want := "spread, overcommit 0: 0 more fit, then no node fits: volume data is on node-3, which is left out; 8 containers left out with their node\n"; err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("simulate -without node-3 -fill: %v\n%s\nwant %s", err, got, want)
	}
}
