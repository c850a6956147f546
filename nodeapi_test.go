package main

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestNodesAreShownAsDockerNodeReadsThem(t *testing.T) {
	t.Parallel()
	ssd := named(t, "n1", func(e *fakeEngine) { e.id, e.labels, e.cpus = "AAAA:1", []string{"storage=ssd"}, 8 })
	disk := named(t, "n2", func(e *fakeEngine) { e.id, e.labels = "AABB:2", []string{"storage=disk"} })
	c, addr := testCluster(t, ssd, disk)
	api := apiClient{t, addr}
	c.store.sql(t, `INSERT INTO node_labels VALUES (1, 'rack', '7', 'operator');
		UPDATE nodes SET state = 'unhealthy', step = 'ping', error = 'no answer in time', availability = 'drain' WHERE id = 2;
		INSERT INTO nodes (address, name) VALUES ('tcp://10.9.9.9:2375', '(10.9.9.9:2375)');
		INSERT INTO nodes (address, name, state) VALUES ('tcp://10.9.9.8:2375', 'gone', 'removed')`)
	var list []swarmNode
	api.into("GET", "/v1.41/nodes", "", &list)
	if len(list) != 3 {
		t.Fatalf("%d nodes, want 3: %+v", len(list), list)
	}
	waiting, n, down := list[0], list[1], list[2]
	d := n.Description
	if n.ID != "AAAA:1" || d.Hostname != "n1" || n.Spec.Role != "worker" || n.Spec.Availability != "active" || n.Status.State != "ready" ||
		n.Status.Addr != "127.0.0.1" || d.Engine.EngineVersion != "20.10.24" || d.Resources.NanoCPUs != 8e9 || d.Resources.MemoryBytes != 8<<30 ||
		d.Platform.OS != "linux" || d.Platform.Architecture == "" || n.ManagerStatus != nil || n.CreatedAt.Year() < 2020 {
		t.Errorf("n1 is shown as %+v", n)
	}
	if d.Engine.Labels["storage"] != "ssd" || len(d.Engine.Labels) != 1 || n.Spec.Labels["rack"] != "7" || len(n.Spec.Labels) != 1 {
		t.Errorf("labels of n1: engine's %v, operator's %v", d.Engine.Labels, n.Spec.Labels)
	}
	if !slices.Contains(d.Engine.Plugins, swarmPlugin{"Network", "bridge"}) || !slices.Contains(d.Engine.Plugins, swarmPlugin{"Volume", "local"}) {
		t.Errorf("plugins of n1: %v", d.Engine.Plugins)
	}
	if down.Status.State != "down" || down.Status.Message != "ping: no answer in time" || down.Spec.Availability != "drain" {
		t.Errorf("n2 is shown as %+v", down)
	}
	if waiting.ID != "10.9.9.9:2375" || waiting.Status.State != "unknown" {
		t.Errorf("a node that has never answered is shown as %+v", waiting)
	}
	for _, ref := range []string{"AAAA:1", "n1", "AAA"} {
		var n swarmNode
		api.into("GET", "/v1.41/nodes/"+ref, "", &n)
		if n.Description.Hostname != "n1" {
			t.Errorf("node %s is %s", ref, n.Description.Hostname)
		}
	}
	api.want("GET", "/v1.41/nodes/AA", "", 400, "node AA is ambiguous (2 matches found)")
	api.want("GET", "/v1.41/nodes/gone", "", 404, "node gone not found")
	for _, tt := range []struct{ filters, want string }{
		{`{"id":["AAB"]}`, "n2"},
		{`{"name":["n"]}`, "n1 n2"},
		{`{"name":{"n2":true}}`, "n2"},
		{`{"label":["storage=ssd"]}`, "n1"},
		{`{"label":["rack"]}`, ""},
		{`{"node.label":["rack=7"]}`, "n1"},
		{`{"role":["worker"],"name":["n"]}`, "n1 n2"},
		{`{"role":["manager"]}`, ""},
		{`{"membership":["accepted"],"name":["n"]}`, "n1 n2"},
		{`{"membership":["pending"]}`, ""},
	} {
		list = nil
		api.into("GET", "/v1.41/nodes?filters="+url.QueryEscape(tt.filters), "", &list)
		var names []string
		for _, n := range list {
			names = append(names, n.Description.Hostname)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("nodes with %s: %q, want %q", tt.filters, got, tt.want)
		}
	}
	for _, filters := range []string{`{"bogus":["x"]}`, `{"role":["x"]}`, `{"membership":["x"]}`} {
		api.want("GET", "/v1.41/nodes?filters="+url.QueryEscape(filters), "", 400, "")
	}
}

func TestTasksAreTheContainersOfANode(t *testing.T) {
	t.Parallel()
	e, other := named(t, "n1"), named(t, "n2")
	e.addContainer("web", "busybox", true, map[string]string{"a": "b"})
	e.addContainer("idle", "busybox", false, nil)
	id := e.addContainer("broken", "busybox", true, nil)
	e.exitContainer("broken", 3)
	other.addContainer("far", "busybox", true, nil)
	_, addr := testCluster(t, e, other)
	api := apiClient{t, addr}
	for _, tt := range []struct{ filters, want string }{
		{`{"node":["n1"]}`, "broken failed shutdown, idle ready ready, web running running"},
		{`{"node":["n1","n2"],"desired-state":["running"]}`, "far running running, web running running"},
		{`{"node":["n1"],"desired-state":["shutdown"]}`, "broken failed shutdown"},
		{`{"node":["n1"],"name":["we"]}`, "web running running"},
		{`{"node":["n1"],"id":["` + id[:12] + `"]}`, "broken failed shutdown"},
		{`{"node":["n1"],"label":["a=b"]}`, "web running running"},
		{`{"node":["n1"],"service":["idle"]}`, "idle ready ready"},
	} {
		var list []swarmTask
		api.into("GET", "/v1.41/tasks?filters="+url.QueryEscape(tt.filters), "", &list)
		var got []string
		for _, task := range list {
			got = append(got, task.Name+" "+task.Status.State+" "+task.DesiredState)
			if task.Spec.ContainerSpec.Image != "busybox" || task.Status.ContainerStatus.ContainerID != task.ID || len(task.ID) != 64 {
				t.Errorf("task %+v", task)
			}
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != tt.want {
			t.Errorf("tasks with %s: %q, want %q", tt.filters, strings.Join(got, ", "), tt.want)
		}
	}
	api.want("GET", "/v1.41/tasks?filters="+url.QueryEscape(`{"node":["n9"]}`), "", 404, "node n9 not found")
	api.want("GET", "/v1.41/tasks?filters="+url.QueryEscape(`{"node":["n1"],"desired-state":["x"]}`), "", 400, "Invalid desired-state filter: 'x'")
	api.want("GET", "/v1.41/tasks", "", 503, "")
	api.want("GET", "/v1.41/services", "", 503, "")
}
