package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// mixedCluster is n nodes of many sizes and loads: no two have the same memory, some are
// down, paused, full or failed lately, one in 50 has rack=r7, and labels have few values.
func mixedCluster(t testing.TB, n int, seed uint64) *store {
	t.Helper()
	st := testStore(t)
	random := rand.New(rand.NewPCG(seed, 1))
	err := st.write(t.Context(), func(t *tx) error {
		for i := 1; i <= n; i++ {
			size := 1 << random.IntN(5)
			cpus, memory := 4*size, int64(size)<<33-int64(random.IntN(1<<24))
			state := "healthy"
			if random.IntN(50) == 0 {
				state = "unhealthy"
			}
			failures := 0
			if random.IntN(40) == 0 {
				failures = 1 + random.IntN(3)
			}
			availability := "active"
			if random.IntN(30) == 0 {
				availability = "pause"
			}
			used := random.Float64()
			if random.IntN(3) == 0 {
				used = 1
			}
			_, err := t.exec(`INSERT INTO nodes (id, name, address, engine_id, state, cpus, memory_bytes, api_version, failures, availability,
				containers, used_nano_cpus, used_memory_bytes) VALUES (?,?,?,?,?,?,?,'1.41',?,?,?,?,?)`,
				i, fmt.Sprintf("node-%d", i), fmt.Sprintf("tcp://10.%d.%d.1:2375", i/250, i%250), fmt.Sprintf("ID-%d", i), state, cpus, memory, failures, availability,
				random.IntN(30), int64(used*random.Float64()*float64(cpus)*1e9), int64(used*random.Float64()*float64(memory)))
			if err != nil {
				return err
			}
			for key, value := range map[string]string{"storage": []string{"ssd", "disk", "nvme"}[random.IntN(3)], "zone": string(rune('a' + i%5)), "rack": fmt.Sprintf("r%d", i%50)} {
				if _, err := t.exec("INSERT INTO node_labels VALUES (?,?,?,'engine')", i, key, value); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// planShapes are creates of all kinds that need no look at every node.
func planShapes(random *rand.Rand) string {
	resources := ""
	switch random.IntN(4) {
	case 0:
		resources = fmt.Sprintf(`, "HostConfig": {"NanoCpus": %d}`, 1+random.IntN(2e9))
	case 1:
		resources = fmt.Sprintf(`, "HostConfig": {"Memory": %d}`, 1<<20+random.IntN(2<<30))
	case 2:
		resources = fmt.Sprintf(`, "HostConfig": {"NanoCpus": %d, "Memory": %d}`, 1+random.IntN(2e9), 1<<20+random.IntN(2<<30))
	}
	exprs := []string{`"constraint:zone!=c"`, `"constraint:storage==/^(ssd|nvme)$/"`, `"constraint:rack==r7"`, `"constraint:zone==[ab]*", "constraint:storage==ssd"`, `"A=b"`, ""}[random.IntN(6)]
	return fmt.Sprintf(`{"Image": "busybox", "Env": [%s]%s}`, exprs, resources)
}

// TestPlanIsAsGoodAsALookAtEveryNode: on mixed clusters the fast plans choose a node of the
// same weight as an exact scan in nine of ten cases, and one that is hardly worse in the others.
func TestPlanIsAsGoodAsALookAtEveryNode(t *testing.T) {
	t.Parallel()
	for _, strategyName := range []string{"spread", "binpack"} {
		t.Run(strategyName, func(t *testing.T) {
			t.Parallel()
			same, extra, worst, all := 0, int64(0), int64(0), 0
			plans := map[string]int{}
			for seed := range uint64(3) {
				st := mixedCluster(t, 500, seed)
				sc := testScheduler(t, st, strategyName)
				random := rand.New(rand.NewPCG(seed, 2))
				for range 250 {
					w, _, err := readCreate([]byte(planShapes(random)), &call{})
					if err != nil {
						t.Fatal(err)
					}
					var fast, exact []candidate
					var plan string
					err = st.write(t.Context(), func(t *tx) error {
						q, err := sc.query(t, w, 0)
						if err != nil {
							return err
						}
						nodes, sizes, err := t.sizes()
						if err != nil {
							return err
						}
						if fast, plan, err = q.pick(t, w, nodes, sizes); err != nil {
							return err
						}
						where, args := q.where()
						exact, err = q.rank(t, w, "node_load n", args, where)
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
					plans[plan]++
					if (len(fast) > 0) != (len(exact) > 0) {
						t.Fatalf("%s finds %v, an exact scan %v, for %s", plan, fast, exact, jsonText(w.shape()))
					}
					if len(exact) == 0 {
						continue
					}
					more := fast[0].score - exact[0].score
					if strategyName == "binpack" {
						more = -more
					}
					all++
					extra += more
					worst = max(worst, more)
					if more == 0 {
						same++
					}
					if _, err := sc.place(t.Context(), w); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Logf("%d placements, %v: same weight %.1f %%, extra %.3f in the mean, %d at worst", all, plans, 100*float64(same)/float64(all), float64(extra)/float64(all), worst)
			if plans[planSizes] < all/3 || plans[planFew] == 0 {
				t.Errorf("plans %v: expected many by size and some by few", plans)
			}
			if same < all*9/10 || float64(extra) > 0.1*float64(all) || worst > 1 {
				t.Errorf("same weight in %d of %d, extra %d in all, %d at worst; want 90 %%, 0.1 in the mean, 1", same, all, extra, worst)
			}
		})
	}
}

// TestPlanTakesWhatTheRequestIsAbout: which nodes are looked at, and that the ledger says so.
func TestPlanTakesWhatTheRequestIsAbout(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	manyNodes(t, st, 1000)
	st.sql(t, `UPDATE nodes SET containers = id % 40;
		INSERT INTO node_labels SELECT id, 'rack', 'r' || (id % 500), 'engine' FROM nodes;
		INSERT INTO node_labels SELECT id, 'zone', 'z' || (id % 2), 'engine' FROM nodes;
		INSERT INTO image_names VALUES (120, 'docker.io/library/pulled:latest', 'sha256:1'), (121, 'docker.io/library/pulled:latest', 'sha256:1');
		INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (77, 'n1', 'backend', 'bridge', 'local', '', '{}');
		UPDATE nodes SET failures = 2 WHERE id = 40`)
	for _, c := range []struct{ what, body, plan, node string }{
		{"nothing", `{"Image": "busybox"}`, planSizes, "node-80"}, // node-40 failed lately
		{"memory", `{"Image": "busybox", "HostConfig": {"Memory": 1048576}}`, planSizes, ""},
		{"a common label", `{"Image": "busybox", "Env": ["constraint:zone==z1"]}`, planSizes, ""},
		{"a rare label", `{"Image": "busybox", "Env": ["constraint:rack==r7"]}`, planFew, "node-7"},
		{"a rare label by pattern", `{"Image": "busybox", "Env": ["constraint:rack==/^r(7|8)$/"]}`, planFew, "node-7"},
		{"a node by name", `{"Image": "busybox", "Env": ["constraint:node==node-41"]}`, planFew, "node-41"},
		{"a network's node", `{"Image": "busybox", "HostConfig": {"NetworkMode": "backend"}}`, planFew, "node-77"},
		{"the image, among equals", `{"Image": "pulled"}`, planSizes, "node-120"},
		{"a wish", `{"Image": "busybox", "Env": ["constraint:zone==~z1"]}`, planExact, ""},
	} {
		sc := testScheduler(t, st, "spread")
		p, err := sc.placeBody(t.Context(), t, "", c.body)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := st.one(t, fmt.Sprintf("SELECT plan FROM placements WHERE id = %d", p.id)); got != c.plan || c.node != "" && p.nodeName != c.node {
			t.Errorf("%s: plan %s, %s; want %s, %s", c.what, got, p.nodeName, c.plan, c.node)
		}
		if got := st.one(t, fmt.Sprintf("SELECT next_node <> '' AND next_node <> node AND next_score IS NOT NULL FROM placements WHERE id = %d", p.id)); got != "1" && !slices.Contains([]string{"a node by name", "a network's node"}, c.what) {
			t.Errorf("%s: the second best was not kept", c.what)
		}
		st.sql(t, "DELETE FROM reservations")
	}
	if got, want := st.one(t, "SELECT reason FROM why ORDER BY id LIMIT 1"), "spread chose node-80 among 1000 (score 200), before node-120 (score 200)"; got != want {
		t.Errorf("why says %q, want %q", got, want)
	}
	if got := st.one(t, "SELECT count(*) FROM placement_nodes"); got != "0" {
		t.Errorf("%s rows in placement_nodes, want none of a success on a thousand nodes", got)
	}
	sc := testScheduler(t, st, "spread")
	_, err := sc.placeBody(t.Context(), t, "", `{"Image": "busybox", "Env": ["constraint:rack==nowhere"]}`)
	if want := "no node fits: 1000 of 1000 fail constraint rack==nowhere"; err == nil || err.Error() != want {
		t.Errorf("a label that nobody has: %v, want %s", err, want)
	}
}

// TestCountsOfLabelsAndSizes: what triggers keep is what can be counted.
func TestCountsOfLabelsAndSizes(t *testing.T) {
	t.Parallel()
	st := mixedCluster(t, 60, 3)
	check := func(after string) {
		t.Helper()
		for table, count := range map[string]string{
			"label_values": "SELECT key, value, count(*) FROM node_labels GROUP BY key, value",
			"node_sizes":   "SELECT state, size_class, count(*) FROM nodes GROUP BY state, size_class",
		} {
			if got := st.all(t, fmt.Sprintf("SELECT * FROM (SELECT * FROM %[1]s EXCEPT %[2]s) UNION ALL SELECT * FROM (%[2]s EXCEPT SELECT * FROM %[1]s)", table, count)); got != "" {
				t.Errorf("%s after %s differs from a count: %s", table, after, got)
			}
		}
	}
	check("inserts")
	for _, change := range []string{
		"UPDATE nodes SET state = 'removed' WHERE id % 3 = 0",
		"UPDATE nodes SET cpus = cpus + 1, memory_bytes = memory_bytes * 2 WHERE id % 4 = 0",
		"UPDATE node_labels SET value = 'tape' WHERE key = 'storage' AND node_id % 2",
		"INSERT OR REPLACE INTO node_labels SELECT id, 'storage', 'disk', 'operator' FROM nodes",
		"DELETE FROM node_labels WHERE key = 'zone' AND value = 'a'",
		"DELETE FROM nodes WHERE id < 20",
	} {
		err := st.write(t.Context(), func(t *tx) error {
			_, err := t.exec(change)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		check(change)
	}
}
