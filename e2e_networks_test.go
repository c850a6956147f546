package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// everyDocker are the docker commands of this machine: the one in PATH, and the
// distribution's if that is another.
func everyDocker(t *testing.T) []string {
	t.Helper()
	first, err := exec.LookPath("docker")
	if err != nil {
		t.Fatal(err)
	}
	list := []string{first}
	if target, err := filepath.EvalSymlinks("/usr/bin/docker"); err == nil && target != first {
		list = append(list, target)
	}
	return list
}

// with runs another docker command on the cluster; it must succeed.
func (m *manager) with(t *testing.T, docker string, args ...string) string {
	t.Helper()
	cmd := dockerCommand(t, m.addr, args...)
	cmd.Path = docker
	r := runCommand(cmd, nil)
	if r.exit != 0 {
		t.Fatalf("%s %s: %v", docker, strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.stdout)
}

func TestE2ENetworks(t *testing.T) {
	w := newTwin(t)
	w.ok(t, "network", "create", "--label", "a=b", "--label", "com.docker.compose.project=p", "--subnet", "10.77.0.0/16", "demo")
	w.same(t, "network", "create", "demo")
	w.same(t, "network", "create", "bridge")
	w.same(t, "network", "create", "-d", "nosuch", "other")
	w.same(t, "network", "create", "-d", "overlay", "other")
	w.same(t, "network", "create", "--subnet", "garbage", "other")
	w.ok(t, "network", "create", "--internal", "--attachable", "--label", "com.docker.compose.project=p", "-d", "bridge", "-o", "com.docker.network.bridge.name=br-inner", "inner")
	w.same(t, "network", "ls")
	w.same(t, "network", "ls", "--no-trunc", "--format", "{{json .}}")
	for _, filter := range []string{"name=dem", "driver=bridge", "label=a=b", "type=custom", "type=builtin", "scope=local", "scope=swarm", "bogus=x", "type=x", "dangling=x"} {
		w.same(t, "network", "ls", "--filter", filter, "--format", "{{.Name}} {{.Driver}} {{.Scope}}")
	}
	w.same(t, "network", "inspect", "demo")
	w.same(t, "network", "inspect", "inner", "nosuch")

	// Containers meet on the network's node and reach each other by name.
	w.ok(t, "run", "-d", "--name", "web", "--network", "demo", "--network-alias", "www", "busybox", "httpd", "-f", "-h", "/etc")
	for _, name := range []string{"web", "www"} {
		if got := w.ok(t, "run", "--rm", "--network", "demo", "busybox", "wget", "-qO-", "http://"+name+"/passwd"); !strings.Contains(got, "root:") {
			t.Errorf("page of %s: %q", name, got)
		}
	}
	w.ok(t, "run", "--rm", "--network", "demo", "busybox", "sh", "-c", "ping -c1 -W2 web >/dev/null && nslookup web 127.0.0.11 >/dev/null && echo reached")
	w.ok(t, "run", "--rm", "--network", "container:web", "busybox", "wget", "-qO-", "http://127.0.0.1/passwd")
	w.ok(t, "network", "connect", "--alias", "side", "inner", "web")
	w.same(t, "network", "connect", "inner", "web")
	w.same(t, "network", "connect", "inner", "nosuch")
	w.same(t, "network", "connect", "nosuch", "web")
	w.ok(t, "run", "--rm", "--network", "inner", "busybox", "wget", "-qO-", "http://side/passwd")
	w.ok(t, "network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}", "demo")
	w.ok(t, "ps", "--filter", "network=inner", "--format", "{{.Names}}")
	w.same(t, "network", "rm", "demo")
	w.ok(t, "network", "disconnect", "inner", "web")
	w.same(t, "network", "disconnect", "inner", "web")
	if got := w.docker(t, "ps", "--filter", "network=inner", "-q"); got != "" {
		t.Errorf("ps shows %s in a network that it has just left", got)
	}
	w.ok(t, "network", "prune", "-f")
	w.ok(t, "network", "ls", "--filter", "type=custom", "--format", "{{.Name}}")
	w.ok(t, "rm", "-f", "web")
	w.ok(t, "network", "rm", "demo")
	w.same(t, "network", "rm", "demo")
	w.same(t, "network", "rm", "bridge")
	w.same(t, "run", "--rm", "--network", "nosuch", "busybox", "true")
	w.ok(t, "network", "ls", "--format", "{{.Name}}")

	t.Run("a container that cannot go to its network's node is told why", func(t *testing.T) {
		w.docker(t, "network", "create", "--label", `com.docker.swarm.constraints=["storage==disk"]`, "tied")
		r := w.ask(t, "run", "--rm", "--network", "tied", "-e", "constraint:storage==ssd", "busybox", "true")
		if want := "network tied is on node-2, which fails constraint storage==ssd: put the constraint on the network (label com.docker.swarm.constraints)"; r.exit != 125 || !strings.Contains(r.stderr, want) {
			t.Errorf("run: %v, want %s", r, want)
		}
		w.docker(t, "network", "rm", "tied")
	})
	t.Run("equal names made behind our back", func(t *testing.T) {
		for _, e := range w.engines[:2] {
			e.docker(t, "network", "create", "twice")
		}
		eventually(t, 20*time.Second, func() error {
			if got := w.docker(t, "network", "ls", "--filter", "name=twice", "--format", `{{.Label "com.docker.swarm.node"}}`); len(strings.Fields(got)) != 2 {
				return fmt.Errorf("listed on %q", got)
			}
			return nil
		})
		if r := w.ask(t, "network", "rm", "twice"); r.exit == 0 || !strings.Contains(r.stderr, "use node-1/twice or node-2/twice") {
			t.Errorf("rm: %v", r)
		}
		w.docker(t, "run", "--rm", "--network", "node-2/twice", "-e", "affinity:container!=x", "busybox", "true")
		w.docker(t, "network", "rm", "node-1/twice", "node-2/twice")
	})
}

func TestE2EVolumes(t *testing.T) {
	w := newTwin(t)
	w.ok(t, "volume", "create", "--label", "a=b", "data")
	w.ok(t, "volume", "create", "data")
	w.ok(t, "volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "fast")
	w.same(t, "volume", "create", "-d", "nosuch", "other")
	w.same(t, "volume", "create", "bad name")
	w.same(t, "volume", "ls")
	w.same(t, "volume", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}} {{.Label \"a\"}} {{.Links}} {{.Size}}")
	for _, filter := range []string{"name=dat", "driver=local", "label=a=b", "dangling=true", "dangling=false", "bogus=x"} {
		w.same(t, "volume", "ls", "-q", "--filter", filter)
	}
	w.ok(t, "volume", "inspect", "-f", "{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}} {{.Options}}", "data", "fast")
	w.same(t, "volume", "inspect", "-f", "{{.Name}}", "nosuch", "data")

	// Whoever mounts it sees what others wrote: all go to its node.
	w.ok(t, "run", "--rm", "-v", "data:/d", "busybox", "sh", "-c", "echo hello >/d/greeting")
	for range 3 {
		if got := w.ok(t, "run", "--rm", "--mount", "type=volume,src=data,dst=/d,readonly", "busybox", "cat", "/d/greeting"); got != "hello" {
			t.Errorf("greeting: %q", got)
		}
	}
	w.ok(t, "run", "-d", "--name", "keeper", "-v", "data:/d", "-v", "/scratch", "-v", "born:/b", "busybox", "sleep", "1000")
	w.ok(t, "run", "--rm", "--volumes-from", "keeper", "busybox", "cat", "/d/greeting")
	w.ok(t, "run", "--rm", "--volumes-from", "keeper:ro", "busybox", "ls", "/b", "/scratch")
	w.ok(t, "run", "--rm", "-v", "born:/b", "busybox", "touch", "/b/x")
	w.ok(t, "volume", "ls", "-q", "--filter", "dangling=false", "--filter", "name=^(data|born)$")
	w.same(t, "volume", "rm", "data")
	w.same(t, "volume", "rm", "-f", "data")
	w.same(t, "volume", "rm", "nosuch")
	w.same(t, "volume", "rm", "-f", "nosuch")
	w.ok(t, "rm", "-fv", "keeper")
	w.ok(t, "volume", "rm", "data", "fast")
	w.ok(t, "volume", "ls", "-q")
	w.ok(t, "volume", "prune", "-f")
	w.ok(t, "volume", "ls", "-q")

	t.Run("equal names made behind our back", func(t *testing.T) {
		for _, e := range w.engines {
			e.docker(t, "run", "--rm", "-v", "same:/d", "busybox", "sh", "-c", "hostname >/d/f; echo "+e.name+" >/d/node")
		}
		eventually(t, 20*time.Second, func() error {
			if got := w.docker(t, "volume", "ls", "-q", "--filter", "name=same"); len(strings.Fields(got)) != 3 || !strings.Contains(got, "node-3/same") {
				return fmt.Errorf("listed as %q", got)
			}
			return nil
		})
		for _, node := range []string{"node-2", "node-3"} {
			if got := w.docker(t, "run", "--rm", "-v", node+"/same:/d", "busybox", "cat", "/d/node"); got != node {
				t.Errorf("%s/same is of %s", node, got)
			}
		}
		if r := w.ask(t, "volume", "rm", "same"); r.exit == 0 || !strings.Contains(r.stderr, "volume same is on 3 nodes: use ") {
			t.Errorf("rm: %v", r)
		}
		w.docker(t, "volume", "rm", "node-1/same", "node-2/same", "node-3/same")
	})
}

func TestE2ENodesAsDockerNodeShowsThem(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	m.docker(t, "run", "-d", "--name", "web", "-e", "constraint:storage==disk", "busybox", "sleep", "1000")
	for _, docker := range everyDocker(t) {
		if got := m.with(t, docker, "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} [{{.ManagerStatus}}] {{.EngineVersion}}"); got !=
			"node-1 Ready Active [] 20.10.24+dfsg1\nnode-2 Ready Active [] 20.10.24+dfsg1\nnode-3 Ready Active [] 20.10.24+dfsg1" && !strings.HasPrefix(got, "node-1 Ready Active [] ") {
			t.Errorf("%s node ls: %s", docker, got)
		}
		if got := m.with(t, docker, "node", "ls", "--filter", "label=storage=ssd", "--format", "{{.Hostname}}"); got != "node-1\nnode-3" {
			t.Errorf("%s node ls by engine label: %s", docker, got)
		}
		if got := m.with(t, docker, "node", "inspect", "-f", "{{.Description.Hostname}} {{.Description.Engine.Labels.zone}} {{.Status.State}} {{.Spec.Availability}}", "node-3"); got != "node-3 b ready active" {
			t.Errorf("%s node inspect: %s", docker, got)
		}
		if got := m.with(t, docker, "node", "inspect", "--pretty", "node-1"); !strings.Contains(got, "storage=ssd") || !strings.Contains(got, "overlay") {
			t.Errorf("%s node inspect --pretty: %s", docker, got)
		}
		if got := m.with(t, docker, "node", "ps", "--format", "{{.Name}} {{.Image}} {{.Node}} {{.DesiredState}}", "node-2"); got != "web.1 busybox node-2 Running" {
			t.Errorf("%s node ps: %s", docker, got)
		}
	}
	engines[0].pause(t)
	eventually(t, 60*time.Second, func() error {
		if got := m.docker(t, "node", "ls", "--filter", "name=node-1", "--format", "{{.Status}}"); got != "Down" {
			return fmt.Errorf("a node that hangs is %s", got)
		}
		return nil
	})
}

func TestE2ESystemDFAndPrune(t *testing.T) {
	w := newTwin(t)
	w.ok(t, "run", "--name", "done", "busybox", "true")
	w.ok(t, "run", "-d", "--name", "web", "-v", "data:/d", "busybox", "sleep", "1000")
	w.ok(t, "system", "df", "--format", "{{if ne .Type \"Images\"}}{{.Type}} {{.TotalCount}} {{.Active}}{{end}}")
	if got := w.docker(t, "system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"); !strings.HasPrefix(got, "Images 3 ") {
		t.Errorf("system df: %s, want an image counted on each of three nodes", got)
	}
	for _, docker := range everyDocker(t) {
		if got := w.with(t, docker, "system", "df", "-v"); !strings.Contains(got, "web") || !strings.Contains(got, "data") {
			t.Errorf("%s system df -v: %s", docker, got)
		}
	}
	w.ok(t, "container", "prune", "-f", "--filter", "label=none")
	w.ok(t, "container", "prune", "-f")
	w.ok(t, "ps", "-a", "--format", "{{.Names}}")
	w.ok(t, "run", "--name", "done", "busybox", "true")
	w.ok(t, "rm", "done")
	w.ok(t, "plugin", "ls")
}

func TestE2EProjectsLandWhole(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	label := func(project string) string { return "com.docker.compose.project=" + project }
	for _, p := range []string{"shop", "blog", "wiki"} {
		m.docker(t, "network", "create", "--label", label(p), p+"_default")
		m.docker(t, "volume", "create", "--label", label(p), p+"_data")
		m.docker(t, "run", "-d", "--name", p+"-web", "--label", label(p), "--network", p+"_default", "-v", p+"_data:/d", "busybox", "httpd", "-f", "-h", "/etc")
		m.docker(t, "run", "-d", "--name", p+"-cron", "--label", label(p), "busybox", "sleep", "1000") // shares nothing
		m.docker(t, "run", "--rm", "--label", label(p), "--network", p+"_default", "-v", p+"_data:/d", "busybox", "wget", "-qO/d/page", "http://"+p+"-web/passwd")
	}
	got := m.docker(t, "ps", "--format", `{{.Label "com.docker.swarm.node"}} {{.Label "com.docker.compose.project"}}`)
	lines := strings.Fields(strings.ReplaceAll(got, "\n", " "))
	where := map[string]map[string]bool{}
	for i := 0; i+1 < len(lines); i += 2 {
		if where[lines[i+1]] == nil {
			where[lines[i+1]] = map[string]bool{}
		}
		where[lines[i+1]][lines[i]] = true
	}
	nodes := map[string]bool{}
	for project, on := range where {
		if len(on) != 1 {
			t.Errorf("project %s is on %v", project, on)
		}
		for n := range on {
			nodes[n] = true
		}
	}
	if len(where) != 3 || len(nodes) != 3 {
		t.Errorf("projects are on %v, want each whole on its own node", where)
	}
}
