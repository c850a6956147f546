package main

import (
	"fmt"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestE2EList(t *testing.T) {
	w := newTwin(t)
	w.ok(t, "run", "-d", "--name", "web", "--label", "tier=front", "--label", "x", "-v", "data:/data", "-p", "8081:80", "--expose", "90/udp", "busybox", "httpd", "-f")
	w.ok(t, "run", "-d", "--name", "healthy", "--label", "tier=back", "--health-cmd", "true", "--health-interval", "1s", "busybox", "sleep", "1000")
	w.ok(t, "run", "-d", "--name", "sick", "--health-cmd", "false", "--health-interval", "1s", "--health-retries", "1", "busybox", "sleep", "1000")
	w.ok(t, "create", "--name", "never", "--label", "tier=front", "busybox", "true")
	w.same(t, "run", "--name", "failed", "busybox", "sh", "-c", "exit 5")
	w.same(t, "run", "--name", "done", "-e", "A=b", "busybox", "echo", "a rather long command line that is cut")
	w.ok(t, "run", "-d", "--name", "lonely", "--network", "none", "--tmpfs", "/t", "busybox", "sleep", "1000")
	w.ok(t, "run", "-d", "--name", "frozen", "busybox", "sleep", "1000")
	w.ok(t, "pause", "frozen")
	for _, host := range []string{w.addr, w.alone.addr} {
		eventually(t, 20*time.Second, func() error {
			got := dockerOK(t, host, "ps", "--format", "{{.Names}} {{.Status}}")
			if !strings.Contains(got, "(healthy)") || !strings.Contains(got, "(unhealthy)") {
				return fmt.Errorf("no health in\n%s", got)
			}
			return nil
		})
	}
	t.Run("ps", w.testPs)
	t.Run("ps filters", w.testPsFilters)
	t.Run("ps by node and by ID", w.testPsByNode)
	t.Run("names used twice", w.testAmbiguous)
	t.Run("the other docker command", w.testOtherClient)
	t.Run("a manager that starts without a database lists the same", func(t *testing.T) {
		fresh := startManager(t, w.engines[0].addr, w.engines[1].addr, w.engines[2].addr)
		w := &twin{fresh, w.engines, w.alone}
		w.testPsByNode(t)
		w.sameSorted(t, "ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.Status}} {{.Image}} {{.Command}} {{.Ports}}")
	})
}

func (w *twin) testPs(t *testing.T) {
	const names = "{{.Names}}"
	for _, args := range [][]string{
		{}, {"-a"}, {"-q"}, {"-aq"}, {"-l"}, {"-n", "3"}, {"-n", "100"}, {"-lq"}, {"-a", "--no-trunc"}, {"-s"}, {"-as"}, {"-a", "--format", names},
		{"-a", "--format", "table {{.Names}}\t{{.Image}}\t{{.Command}}\t{{.Status}}\t{{.State}}\t{{.RunningFor}}\t{{.Mounts}}\t{{.Networks}}\t{{.LocalVolumes}}\t{{.Size}}"},
		{"-a", "--no-trunc", "--format", "{{.Names}} {{.Command}} {{.Mounts}}"},
		{"-a", "--format", `{{.Names}} {{.Label "tier"}}`},
		{"-a", "--no-trunc", "--format", "{{json .}}"},
	} {
		w.ok(t, append([]string{"ps"}, args...)...)
	}
	if got := w.docker(t, "ps", "-a", "--format", names); got != "frozen\nlonely\ndone\nfailed\nnever\nsick\nhealthy\nweb" {
		t.Errorf("docker ps -a: %q, want the newest first", got)
	}
	for _, path := range []string{"/containers/json?all=1", "/containers/json?all=1&size=1", "/v1.24/containers/json?all=1"} {
		_, ours := apiCall(t, "GET", w.addr, path)
		_, theirs := apiCall(t, "GET", w.alone.addr, path)
		sameShape(t, path, ours, theirs, "[].Labels.com.docker.swarm.")
	}
	for _, name := range []string{"web", "never", "failed", "lonely"} {
		sameShape(t, "docker inspect "+name, w.docker(t, "inspect", name), w.alone.docker(t, "inspect", name), "[].Node.", "[].Config.Labels.com.docker.swarm.")
		if got := w.sql(t, "SELECT name FROM ps WHERE name = '"+name+"'"); got != name {
			t.Errorf("the view ps lacks %s", name)
		}
	}
	// Not all of it: a health check that runs just now is in ExecIDs.
	sameShape(t, "state of healthy", w.docker(t, "inspect", "-f", "{{json .State}}", "healthy"), w.alone.docker(t, "inspect", "-f", "{{json .State}}", "healthy"))
}

func (w *twin) testPsFilters(t *testing.T) {
	for _, filters := range []string{
		"ancestor=busybox", "ancestor=busybox:latest", "ancestor=nosuch", "before=failed", "since=failed", "before=web", "since=frozen",
		"before=nosuch", "exited=5", "exited=0", "exited=1", "exited=x", "expose=90/udp", "expose=80", "expose=80-90/udp", "publish=8081", "publish=8081/udp",
		"publish=8000-9000", "health=healthy", "health=unhealthy", "health=none", "health=starting", "label=tier", "label=tier=front", "label=x", "label=y",
		"name=web", "name=^w", "name=/web", "name=e", "name=^/web$", "name=nosuch", "name=", "network=bridge", "network=none", "network=nosuch", "volume=data",
		"volume=/data", "volume=nosuch", "status=running", "status=paused", "status=exited", "status=created", "status=restarting", "status=dead",
		"status=nosuch", "is-task=true", "is-task=false", "id=nosuch", "id=", "bogus=1",
		// values of one key are alternatives, except labels; keys are conditions
		"name=web name=done", "status=exited status=paused", "label=tier label=x", "label=tier=front label=tier=back", "name=e status=running", "exited=0 exited=5",
		"health=healthy health=unhealthy",
	} {
		args := []string{"ps", "-a", "--format", "{{.Names}} {{.State}}"}
		for f := range strings.FieldsSeq(filters) {
			args = append(args, "--filter", f)
		}
		if slices.Contains([]string{"exited=x", "before=nosuch", "status=nosuch"}, filters) {
			// Newer engines have other words for these: only the refusal is the same.
			if r := w.ask(t, args...); r.exit != 1 || r.stdout != "" {
				t.Errorf("docker ps --filter %s: %v, want a refusal", filters, r)
			}
			continue
		}
		w.same(t, args...)
	}
	for _, args := range [][]string{
		{"--filter", "status=exited"}, {"--filter", "name=e"}, {"-l", "--filter", "label=tier"}, {"-n", "1", "--filter", "before=failed"}, {"-n", "2", "--filter", "name=e"},
	} {
		w.same(t, append([]string{"ps", "--format", "{{.Names}}"}, args...)...)
	}
	// Both encodings of filters that clients use.
	for _, f := range []string{`{"name":["web"]}`, `{"name":{"web":true}}`, `{"name":{"web":false}}`, `{}`} {
		_, ours := apiCall(t, "GET", w.addr, "/containers/json?all=1&filters="+url.QueryEscape(f))
		_, theirs := apiCall(t, "GET", w.alone.addr, "/containers/json?all=1&filters="+url.QueryEscape(f))
		if got, want := strings.Count(ours, `"Id":`), strings.Count(theirs, `"Id":`); got != want {
			t.Errorf("filters=%s: %d containers, want %d", f, got, want)
		}
	}
}

func (w *twin) testPsByNode(t *testing.T) {
	total := 0
	for _, e := range w.engines {
		want := e.docker(t, "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}")
		got := w.docker(t, "ps", "-a", "--no-trunc", "--filter", "node="+e.name, "--format", "{{.ID}} {{.Names}}")
		if got != want {
			t.Errorf("docker ps --filter node=%s:\n%s\nwant\n%s", e.name, got, want)
		}
		total += len(strings.Split(got, "\n"))
		if shown := w.docker(t, "ps", "-a", "--filter", "node="+e.name, "--format", `{{.Label "com.docker.swarm.node"}}`); strings.Trim(strings.ReplaceAll(shown, e.name, ""), "\n") != "" {
			t.Errorf("label of the node on containers of %s: %s", e.name, shown)
		}
	}
	if total != 8 {
		t.Errorf("containers on the nodes: %d, want 8", total)
	}
	if got := w.docker(t, "ps", "-a", "--filter", "node=nosuch", "-q"); got != "" {
		t.Errorf("docker ps --filter node=nosuch: %s", got)
	}
	id := w.docker(t, "ps", "-q", "--no-trunc", "--filter", "name=web")
	for ref, want := range map[string]string{id: "web", id[:12]: "web", id[:8]: "web", id[1:]: "", strings.ToUpper(id): "", "": ""} {
		if got := w.docker(t, "ps", "--filter", "id="+ref, "--format", "{{.Names}}"); got != want {
			t.Errorf("docker ps --filter id=%s: %q, want %q", ref, got, want)
		}
	}
	node := w.docker(t, "inspect", "-f", "{{.Node.Name}}", id)
	for _, ref := range []string{"web", "/web", id, id[:12], node + "/web", node + "/" + id} {
		if got := w.docker(t, "container", "inspect", "-f", "{{.Id}} {{.Name}}", ref); got != id+" /web" {
			t.Errorf("docker inspect %s: %s, want %s /web", ref, got, id)
		}
	}
	w.same(t, "container", "inspect", "nosuch")
	w.same(t, "inspect", "nosuch") // looks for a container, an image, a network, a volume, a plugin
	w.same(t, "inspect", "-f", "{{.Name}}", "data", "none", "nosuch", "web")
	w.same(t, "inspect", "--type", "image", "-f", "{{.RepoTags}}", "busybox", "nosuch")
	w.same(t, "container", "inspect", "web", "nosuch", "--format", "{{.Name}}")
	w.same(t, "inspect", "-s", "--type", "container", "--format", "{{.SizeRw}} {{.SizeRootFs}}", "never")
}

// testAmbiguous: names that were made behind the manager's back.
func (w *twin) testAmbiguous(t *testing.T) {
	node := w.docker(t, "inspect", "-f", "{{.Node.Name}}", "never")
	for _, e := range w.engines {
		if e.name == node {
			continue
		}
		e.docker(t, "create", "--name", "never", "busybox", "true")
	}
	eventually(t, 20*time.Second, func() error {
		if got := w.docker(t, "ps", "-a", "--filter", "name=never", "-q"); len(strings.Fields(got)) != 3 {
			return fmt.Errorf("containers called never: %q, want 3", got)
		}
		return nil
	})
	for _, args := range [][]string{{"container", "inspect", "never"}, {"start", "never"}, {"rm", "never"}, {"logs", "never"}, {"cp", "never:/etc", "-"}} {
		r := w.ask(t, args...)
		if r.exit != 1 || !strings.Contains(r.stderr, "container never is ambiguous") {
			t.Errorf("docker %v of a name on three nodes: %v", args, r)
		}
		for _, e := range w.engines {
			if !strings.Contains(r.stderr, e.name+"/never") {
				t.Errorf("docker %v does not offer %s/never: %s", args, e.name, r.stderr)
			}
		}
	}
	if resp, body := apiCall(t, "GET", w.addr, "/containers/never/json"); resp.StatusCode != 400 {
		t.Errorf("inspect of a name on three nodes: %s %s, want 400", resp.Status, body)
	}
	if got := w.sql(t, "SELECT count(*) FROM trouble WHERE what = 'name used twice'"); got != "1" {
		t.Errorf("names used twice in the view trouble: %s, want 1", got)
	}
	for _, e := range w.engines {
		if e.name == node {
			continue
		}
		if got := w.docker(t, "rm", e.name+"/never"); got != e.name+"/never" {
			t.Errorf("docker rm %s/never: %q", e.name, got)
		}
	}
	if got := w.docker(t, "container", "inspect", "-f", "{{.Node.Name}}", "never"); got != node {
		t.Errorf("the container that is left is on %s, want %s", got, node)
	}
}

// testOtherClient runs a few commands with the docker command of the system, where
// the first in PATH is another one.
func (w *twin) testOtherClient(t *testing.T) {
	const other = "/usr/bin/docker"
	if first, err := exec.LookPath("docker"); err != nil || first == other {
		t.Skipf("only one docker command is here: %s", first)
	}
	for _, args := range [][]string{
		{"version", "--format", "{{.Server.Version}}"}, {"ps", "-a"}, {"ps", "-a", "--no-trunc", "--format", "{{json .}}"}, {"inspect", "-f", "{{.Name}} {{json .Config}}", "web"},
		{"run", "--rm", "-i", "busybox", "cat"}, {"run", "--rm", "busybox", "sh", "-c", "exit 3"}, {"run", "--rm", "nosuch"}, {"exec", "web", "id"}, {"logs", "done"}, {"cp", "web:/etc/passwd", "-"},
		{"images"}, {"port", "web"}, {"start", "-a", "never"}, {"create", "--name", "web", "busybox"}, {"top", "nosuch"}, {"stats", "--no-stream", "--format", "{{.Name}}", "web"},
	} {
		both := [2]cliResult{}
		var wg sync.WaitGroup
		for i, host := range []string{w.addr, w.alone.addr} {
			cmd := dockerCommand(t, host, args...)
			cmd.Path = other
			wg.Go(func() {
				r := runCommand(cmd, []byte("input\n"))
				both[i] = cliResult{normalText(r.stdout), normalText(r.stderr), r.exit}
			})
		}
		wg.Wait()
		// The lookup of a registry that is not there names ports of this machine.
		if args[len(args)-1] == "nosuch" {
			both[0].stderr, _, _ = strings.Cut(both[0].stderr, "read udp")
			both[1].stderr, _, _ = strings.Cut(both[1].stderr, "read udp")
		}
		if both[0] != both[1] {
			t.Errorf("%s %s\non the cluster: %v\non one engine: %v", other, strings.Join(args, " "), both[0], both[1])
		}
	}
	cmd := dockerCommand(t, w.addr, "info")
	cmd.Path = other
	if r := runCommand(cmd, nil); !strings.Contains(r.stdout, "Nodes: 3\n  node-1: ") || !strings.Contains(r.stdout, "  └ Status: Healthy") {
		t.Errorf("%s info lacks the nodes: %v", other, r)
	}
	term := dockerCommand(t, w.addr, "run", "--rm", "-it", "busybox", "sh", "-c", "read line; echo got $line; exit 5")
	term.Path = other
	x := openTerminal(t, term)
	x.press(t, "typed\n")
	if exit := x.ends(t); exit != 5 || !strings.Contains(x.screen.String(), "got typed") {
		t.Errorf("%s run -it: exit code %d, %q", other, exit, x.screen)
	}
}
