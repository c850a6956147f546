package main

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// groupedBy makes one label of a scenario's cluster a group.
const groupedBy = `UPDATE manager SET group_by = '["com.docker.compose.project"]';`

// groupCluster is three nodes with groups on, and a scheduler.
func groupCluster(t *testing.T, statements string) (*store, *scheduler) {
	t.Helper()
	st := testStore(t)
	st.sql(t, standardCluster)
	st.sql(t, groupedBy+statements)
	return st, testScheduler(t, st, "spread")
}

// thing is a network or volume of a project.
func thing(kind, name, project string) *workload {
	w := &workload{kind: kind, name: name, swarmID: kind + name, labels: map[string]string{"com.docker.compose.project": project}}
	if kind == "volume" {
		w.volumes = []string{name}
	}
	return w
}

func TestGroupMeetsOnTheNodeOfItsFirstMember(t *testing.T) {
	t.Parallel()
	st, sc := groupCluster(t, `INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES
		(1, 'i', 'ingress', 'overlay', 'swarm', '', '{}'), (1, 'g', 'docker_gwbridge', 'bridge', 'local', '', '{}')`)
	// All at once, as Compose makes them: reservations hold the group.
	var wg sync.WaitGroup
	for _, project := range []string{"shop", "blog", "wiki"} {
		for i := range 5 {
			for _, kind := range []string{"network", "volume"} {
				wg.Go(func() {
					if _, err := sc.place(t.Context(), thing(kind, fmt.Sprint(project, i), project)); err != nil {
						t.Errorf("place %s of %s: %v", kind, project, err)
					}
				})
			}
		}
	}
	wg.Wait()
	if got := st.all(t, "SELECT group_key, count(DISTINCT node_id), count(*) FROM reservations GROUP BY group_key"); got !=
		"com.docker.compose.project=blog|1|10\ncom.docker.compose.project=shop|1|10\ncom.docker.compose.project=wiki|1|10" {
		t.Errorf("group|nodes|members:\n%s", got)
	}
	if got := st.all(t, "SELECT count(DISTINCT node_id) FROM reservations"); got != "3" {
		t.Errorf("three projects are on %s nodes, want each on its own", got)
	}
	want := st.one(t, "SELECT n.name FROM reservations r JOIN nodes n ON n.id = r.node_id WHERE r.name = 'shop0' LIMIT 1")
	p, err := sc.placeBody(t.Context(), t, "web", `{"Image":"busybox","Labels":{"com.docker.compose.project":"shop"}}`)
	if err != nil || p.nodeName != want {
		t.Errorf("a container of the project = %v, %v, want %s", p, err, want)
	}
}

func TestGroupOfContainersSpillsOver(t *testing.T) {
	t.Parallel()
	st, sc := groupCluster(t, "")
	var nodes []string
	for i := range 6 {
		p, err := sc.placeBody(t.Context(), t, fmt.Sprint("job", i), `{"Image":"busybox","HostConfig":{"NanoCpus":1000000000},"Labels":{"com.docker.compose.project":"ci"}}`)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, p.nodeName)
	}
	if got := strings.Join(nodes, " "); got != "node-1 node-1 node-1 node-1 node-2 node-3" {
		t.Errorf("6 containers of 1 CPU on nodes of 4: %s, want the first node filled, then the others", got)
	}
	// What the group prefers outweighs what a member prefers.
	st.sql(t, "UPDATE nodes SET cpus = 8 WHERE id = 1; INSERT INTO node_labels VALUES (2, 'storage', 'ssd', 'engine')")
	p, err := sc.placeBody(t.Context(), t, "soft", `{"Image":"busybox","Env":["constraint:storage==~ssd"],"Labels":{"com.docker.compose.project":"ci"}}`)
	if err != nil || p.nodeName != "node-1" {
		t.Errorf("place with a soft constraint = %v, %v, want node-1", p, err)
	}
}

func TestGroupWithSomethingLocalStays(t *testing.T) {
	t.Parallel()
	st, sc := groupCluster(t, `
		INSERT INTO volumes VALUES (2, 'shop_data', 'local', 'local', '2024-01-01T00:00:00Z', '{}');
		INSERT INTO volume_labels VALUES (2, 'shop_data', 'com.docker.compose.project', 'shop')`)
	p, err := sc.place(t.Context(), thing("network", "shop_default", "shop"))
	if err != nil || p.nodeName != "node-2" {
		t.Errorf("network of a project whose volume is left on node-2 = %v, %v", p, err)
	}
	st.sql(t, "UPDATE nodes SET state = 'unhealthy' WHERE id = 2")
	const want = "no node fits: group com.docker.compose.project=shop is on node-2, which is not healthy"
	if _, err := sc.place(t.Context(), thing("volume", "shop_logs", "shop")); err == nil || err.Error() != want {
		t.Errorf("volume of the project = %v, want %s", err, want)
	}
	if p, err = sc.place(t.Context(), thing("volume", "blog_logs", "blog")); err != nil || p.nodeName == "node-2" {
		t.Errorf("volume of another project = %v, %v", p, err)
	}
}

func TestContainersOfWideNetworksAreNotGrouped(t *testing.T) {
	t.Parallel()
	_, sc := groupCluster(t, `
		UPDATE nodes SET docker_swarm = 's1', swarm_manager = (id = 1);
		INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (1, 'ov', 'ov', 'overlay', 'swarm', '', '{}')`)
	seen := map[string]bool{}
	for i := range 3 {
		p, err := sc.placeBody(t.Context(), t, fmt.Sprint("web", i), `{"Image":"busybox","HostConfig":{"NetworkMode":"ov"},"Labels":{"com.docker.compose.project":"shop"}}`)
		if err != nil {
			t.Fatal(err)
		}
		seen[p.nodeName] = true
	}
	if len(seen) != 3 {
		t.Errorf("three containers of an overlay network are on %v, want all nodes", seen)
	}
	w := thing("network", "ov2", "shop")
	w.driver, w.swarm = "overlay", true
	if p, err := sc.place(t.Context(), w); err != nil || p.nodeName != "node-1" || w.group != "" {
		t.Errorf("place of an overlay network = %v, %v in group %q, want the manager and no group", p, err, w.group)
	}
}

func TestGroupIgnoresMembersOfWideNetworks(t *testing.T) {
	t.Parallel()
	_, sc := groupCluster(t, `
		INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (3, 'ov', 'ov', 'overlay', 'swarm', '', '{}');
		INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES
			(1, 3, 'c1', 'wide', 'busybox', 'running', 1, '{}'), (2, 2, 'c2', 'near', 'busybox', 'running', 2, '{}');
		INSERT INTO container_networks VALUES (1, 'ov', 'ov');
		INSERT INTO container_labels VALUES (1, 'com.docker.compose.project', 'shop'), (2, 'com.docker.compose.project', 'shop')`)
	p, err := sc.placeBody(t.Context(), t, "web", `{"Image":"busybox","Labels":{"com.docker.compose.project":"shop"}}`)
	if err != nil || p.nodeName != "node-2" {
		t.Errorf("place = %v, %v, want node-2, where the member that counts is", p, err)
	}
}

func TestGroupOfTakesTheFirstLabelThatIsThere(t *testing.T) {
	t.Parallel()
	by := []string{"a", "b"}
	for _, tt := range []struct {
		labels map[string]string
		want   string
	}{
		{map[string]string{"b": "2", "a": "1"}, "a=1"},
		{map[string]string{"b": "2", "a": ""}, "b=2"},
		{map[string]string{"c": "3"}, ""},
		{nil, ""},
	} {
		if got := groupOf(tt.labels, by); got != tt.want {
			t.Errorf("groupOf(%v) = %q, want %q", tt.labels, got, tt.want)
		}
	}
}

func TestGroupByNamesTheLabels(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, strings.Join(defaultGroupLabels, " ")},
		{[]string{"-group-by", "team", "-group-by", "job"}, "team job"},
		{[]string{"-group-by", ""}, ""},
	} {
		c, err := readConfig(tt.args, new(strings.Builder))
		if err != nil || strings.Join(c.groupBy, " ") != tt.want {
			t.Errorf("readConfig(%q) groups by %q, %v, want %q", tt.args, c.groupBy, err, tt.want)
		}
	}
}
