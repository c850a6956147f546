package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
)

// fleetOf is SQL for a random cluster: hardware, labels, states, what runs there.
func fleetOf(rng *rand.Rand) string {
	var b strings.Builder
	b.WriteString("UPDATE manager SET overcommit = " + pick(rng, "0", "0.05", "1") + ";")
	for id := 1; id <= 2+rng.IntN(9); id++ {
		fmt.Fprintf(&b, "INSERT INTO nodes (id, name, address, engine_id, state, availability, cpus, memory_bytes, failures, slots, api_version) VALUES (%d, 'node-%[1]d', 'tcp://10.0.0.%[1]d:2375', 'ID-%[1]d', '%s', '%s', %s, %s << 30, %s, %s, '%s');",
			id, pick(rng, "healthy", "healthy", "healthy", "healthy", "unhealthy"), pick(rng, "active", "active", "active", "pause"), pick(rng, "2", "4", "7", "16"), pick(rng, "2", "3", "8", "64"),
			pick(rng, "0", "0", "0", "1"), pick(rng, "NULL", "NULL", "3"), pick(rng, "1.41", "1.41", "1.51"))
		fmt.Fprintf(&b, "INSERT INTO node_info VALUES (%d, '{}', '{}');", id)
		fmt.Fprintf(&b, "INSERT INTO node_labels VALUES (%d, 'zone', '%s', 'engine'), (%[1]d, 'disk', '%s', 'operator');", id, pick(rng, "a", "b", "c"), pick(rng, "ssd", "hdd"))
		if rng.IntN(3) == 0 {
			fmt.Fprintf(&b, "INSERT INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (%d, 'data', 'local', 'local', '2026-01-%02[1]d', '{}');", id)
		}
		if rng.IntN(2) == 0 {
			fmt.Fprintf(&b, "INSERT INTO image_names VALUES (%d, 'docker.io/library/nginx:latest', 'sha256:aa');", id)
		}
		for i := range rng.IntN(5) {
			row := id*10 + i
			fmt.Fprintf(&b, "INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, nano_cpus, memory_bytes, summary) VALUES (%d, %d, '%064x', 'c-%[1]d', 'nginx', 'running', 1, %[4]s, %[5]s << 20, '{}');",
				row, id, row, pick(rng, "0", "500000000", "1000000000"), pick(rng, "0", "128", "700"))
			fmt.Fprintf(&b, "INSERT INTO container_labels VALUES (%d, 'tier', '%s');", row, pick(rng, "front", "back"))
			if rng.IntN(3) == 0 {
				fmt.Fprintf(&b, "INSERT INTO ports (node_id, container, host_ip, host_port, last_port, protocol) VALUES (%d, %d, '', %[3]s, %[3]s, 'tcp');", id, row, pick(rng, "80", "8080"))
			}
		}
	}
	return b.String()
}

func pick(rng *rand.Rand, from ...string) string { return from[rng.IntN(len(from))] }

// requestOf is a random command line of docker create, without a name.
func requestOf(rng *rand.Rand) []string {
	var args []string
	for _, flag := range [][]string{
		{"-m", pick(rng, "64m", "1g", "3g", "100g")},
		{"--cpus", pick(rng, "0.5", "1", "3", "20")},
		{"--memory-reservation", pick(rng, "32m", "2g")},
		{"-p", pick(rng, "80:80", "8080:80/tcp", "80:80/udp", "127.0.0.1:80-81:80-81")},
		{"-e", "constraint:zone==" + pick(rng, "a", "~a", "/[ab]/", "z", "*")},
		{"-e", "constraint:disk!=" + pick(rng, "hdd", "~ssd", "s*")},
		{"-e", "affinity:tier==" + pick(rng, "front", "~front", "nothing")},
		{"-e", "affinity:container!=" + pick(rng, "c-11", "~c-2*", "c-*")},
		{"-e", "affinity:image==" + pick(rng, "nginx", "~redis")},
		{"-e", "whitelist:node==" + pick(rng, "node-1|node-2", "node-3")},
		{"-v", pick(rng, "data:/data", "new:/data", "/data")},
		{"--link", pick(rng, "c-10:db", "nothing:db")},
		{"-l", "com.docker.compose.project=" + pick(rng, "shop", "blog")},
	} {
		if rng.IntN(5) == 0 {
			args = append(args, flag...)
		}
	}
	return append(args, pick(rng, "nginx", "busybox"))
}

// TestExplainAgreesWithCreate: what explain says of a command line is what becomes of
// the create that docker makes of it, node or refusal, on random clusters that fill up.
func TestExplainAgreesWithCreate(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1))
			st := testStore(t)
			st.sql(t, fleetOf(rng)+`UPDATE manager SET group_by = '["com.docker.compose.project"]'`)
			strategyName := pick(rng, "spread", "binpack")
			sc := testScheduler(t, st, strategyName)
			if err := st.begin(t.Context(), managerRow{strategy: strategyName, overcommit: 0.05, groupBy: defaultGroupLabels}); err != nil {
				t.Fatal(err)
			}
			st.sql(t, "UPDATE nodes SET state = 'healthy' WHERE id % 4 <> 0")
			fit := 0
			for i := range 25 {
				args := requestOf(rng)
				var flags createFlags
				if err := flags.parse(args, nil); err != nil {
					t.Fatal(args, err)
				}
				version := apiVersion(1041 + 10*rng.IntN(2))
				var x *explanation
				explained, _, err := readCreate([]byte(jsonText(flags.body)), &call{version: version, query: flags.query})
				if err != nil {
					t.Fatal(args, err)
				}
				db, err := openReader(t.Context(), st.path)
				if err != nil {
					t.Fatal(err)
				}
				err = readTx(t.Context(), db, func(t *tx) error {
					sc, err := t.managersScheduler()
					if err == nil {
						x, err = sc.explain(t, explained)
					}
					return err
				})
				db.Close()
				if err != nil {
					t.Fatal(args, err)
				}
				created, _, err := readCreate([]byte(jsonText(flags.body)), &call{version: version, query: url.Values{"name": {fmt.Sprint("new-", i)}}})
				if err != nil {
					t.Fatal(args, err)
				}
				p, err := sc.place(t.Context(), created)
				switch none := new(noNodeError); {
				case err == nil && p.nodeName == x.Node:
					fit++
				case err == nil:
					t.Errorf("%q: explain said %q (%s), create went to %s", args, x.Node, x.Message, p.nodeName)
				case !errors.As(err, &none):
					t.Fatal(args, err)
				case x.Node != "" || x.Message != none.full():
					t.Errorf("%q: explain said %q (%s), create was refused: %s", args, x.Node, x.Message, none.full())
				}
			}
			if fit == 0 || fit == 25 {
				t.Errorf("%d of 25 random requests fit: this cluster shows nothing", fit)
			}
		})
	}
}
