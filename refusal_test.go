package main

import (
	"net/http"
	"testing"
)

func TestRefusalTellsWhatCouldBeHad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, rows, body, want string }{
		{"more memory than any node has", "", `{"HostConfig":{"Memory":1099511627776}}`,
			"no node fits: 3 of 3 have less than 1TiB of memory free; the largest node that qualifies is node-1 with 4GiB of memory in all"},
		{"more memory than is free", "UPDATE nodes SET used_memory_bytes = id * 1073741824", `{"HostConfig":{"Memory":4294967296}}`,
			"no node fits: 3 of 3 have less than 4GiB of memory free; the most free is on node-1: 3GiB of memory"},
		{"more of both", "UPDATE nodes SET used_nano_cpus = 3000000000 WHERE id < 3; UPDATE nodes SET cpus = 1 WHERE id = 3", `{"HostConfig":{"NanoCpus":2000000000,"Memory":8589934592}}`,
			"no node fits: 3 of 3 have less than 2 CPUs free; the most free is on node-1: 1 CPU; the largest node that qualifies is node-1 with 4GiB of memory in all"},
		{"the largest node is not the one that qualifies", "UPDATE nodes SET memory_bytes = 8589934592 WHERE id = 3", `{"Env":["constraint:node==node-2"],"HostConfig":{"Memory":8589934592}}`,
			"no node fits: 2 of 3 fail constraint node==node-2, 1 has less than 8GiB of memory free (node-1, node-3; node-2); the largest node that qualifies is node-2 with 4GiB of memory in all"},
		{"no node qualifies at all", "", `{"Env":["constraint:node==node-9"],"HostConfig":{"Memory":8589934592}}`,
			"no node fits: 3 of 3 fail constraint node==node-9"},
		{"many nodes are not named", `INSERT INTO nodes (address, name, state) VALUES ('a', 'a', 'healthy'), ('b', 'b', 'pending'), ('c', 'c', 'pending'), ('d', 'd', 'pending')`,
			`{"Env":["constraint:node==node-9"]}`, "no node fits: 4 of 7 fail constraint node==node-9, 3 are not healthy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := testStore(t)
			s.sql(t, standardCluster+";"+c.rows)
			_, err := testScheduler(t, s, "spread").placeBody(t.Context(), t, "web", c.body)
			if err = asRefusal(err); statusOf(err) != http.StatusServiceUnavailable || err.Error() != c.want {
				t.Errorf("place(%s) = %v, want %s", c.body, err, c.want)
			}
		})
	}
}
