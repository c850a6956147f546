package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Compose brings up testdata/clients/compose.yaml: a database with a health
// check, a job that waits for it, a web server that waits for the job, and workers.

func clientComposeOfDebian(t *testing.T) {
	testCompose(t, composeClient{program: needProgram(t, "docker-compose", "docker-compose")})
}

// clientComposeOfToday is the newest Compose that builds with this Go.
func clientComposeOfToday(t *testing.T) {
	testCompose(t, composeClient{program: needTool(t, "docker-compose"), flags: []string{"--progress", "plain"}, today: true})
}

// composeClient is one Compose program at work on the project demo.
type composeClient struct {
	program string
	flags   []string
	today   bool // has what Compose 1 lacks
	app     string
	file    string
}

// layerLine is progress of a pull: how often it is told varies.
var layerLine = regexp.MustCompile(`(?m)^.*\b[0-9a-f]{12}\b.*(Pull|Download|Verif|Extract|Wait|exists).*\n`)

func (c composeClient) run(args ...string) clientRun {
	flags := append(slices.Clone(c.flags), "-p", "demo", "-f", c.file)
	return clientRun{
		program: c.program,
		args:    append(flags, args...),
		env:     []string{"APP=" + c.app, "COMPOSE_HTTP_TIMEOUT=60", "DOCKER_BUILDKIT=0", "COMPOSE_DOCKER_CLI_BUILD=0"},
		change:  func(s string) string { return sortedLines(layerLine.ReplaceAllString(s, "")) },
	}
}

func testCompose(t *testing.T, c composeClient) {
	w := newTwin(t)
	registry := labRegistry(t)
	c.app = registry + "/app"
	c.file = needFile(t, "testdata/clients/compose.yaml", "it belongs to this project")
	pushVersion(t, registry, "app", "latest", "1")
	pushVersion(t, registry, "app", "next", "3")

	// do runs one command, and compares also what it has done.
	do := func(args ...string) string {
		t.Helper()
		out := w.clientOK(t, c.run(args...))
		if changes := []string{"up", "down", "run", "restart", "pause", "unpause", "stop", "start", "kill", "rm"}; slices.Contains(changes, args[0]) {
			w.sameContainers(t)
		}
		return out
	}
	fails := func(exit int, args ...string) {
		t.Helper()
		if r := w.sameClient(t, c.run(args...)); r.exit != exit {
			t.Errorf("%s: %v, want exit code %d", strings.Join(args, " "), r, exit)
		}
	}
	has := func(out, want string) {
		t.Helper()
		if !strings.Contains(out, want) {
			t.Fatalf("%q lacks %q", out, want)
		}
	}

	do("up", "-d")
	w.onOneNode(t)
	has(do("ps"), "(healthy)")
	for _, host := range []string{w.addr, w.alone.addr} { // what is last to be said
		eventually(t, 20*time.Second, func() error {
			if id := dockerOK(t, host, "ps", "-q", "--filter", "label=com.docker.compose.service=worker"); dockerOK(t, host, "logs", id) != "row" {
				return fmt.Errorf("the worker on %s has not found the web server", host)
			}
			return nil
		})
	}
	do("logs", "--no-color", "--no-log-prefix", "db")
	do("logs", "--no-color")
	w.sameThings(t)
	has(do("exec", "-T", "web", "sh", "-c", "hostname; echo $COLOUR; wget -qO- http://www/"), "webserver\nblue\nrow\n")
	do("exec", "-T", "db", "sh", "-c", "echo kept >/data/kept; hostname -i")
	fails(3, "exec", "-T", "web", "sh", "-c", "echo bad >&2; exit 3")
	has(do("run", "--rm", "-T", "--no-deps", "worker", "wget", "-qO-", "http://webserver/"), "row")
	fails(4, "run", "--rm", "-T", "--no-deps", "worker", "sh", "-c", "exit 4")
	do("port", "web", "80")
	do("top", "web")

	do("up", "-d", "--scale", "worker=3")
	w.onOneNode(t)
	do("restart", "web")
	do("pause", "worker")
	do("unpause", "worker")
	do("stop", "web")
	do("start", "web")
	do("kill", "-s", "KILL", "db")
	do("up", "-d", "--scale", "worker=2")

	// A new image under the same name, then one under another name.
	before := w.containerIDs(t)
	pushVersion(t, registry, "app", "latest", "2")
	do("pull", "-q")
	do("up", "-d")
	w.imageVersion(t, "2")
	for _, id := range w.containerIDs(t) {
		if slices.Contains(before, id) {
			t.Errorf("container %s was kept though its image has changed", id)
		}
	}
	c.app += ":next"
	do("up", "-d")
	w.imageVersion(t, "3")
	w.onOneNode(t)
	has(do("exec", "-T", "db", "cat", "/data/kept"), "kept")
	before = w.containerIDs(t)
	do("up", "-d", "--no-recreate")
	if after := w.containerIDs(t); !slices.Equal(before, after) {
		t.Errorf("up with nothing to do: containers %v, were %v", after, before)
	}
	if c.today {
		do("images")
		do("ls")
		do("cp", "web:/www/index.html", filepath.Join(t.TempDir(), "page"))
		do("up", "-d", "--wait", "--force-recreate", "web")
	}
	do("rm", "-sf", "worker")
	do("down", "-v", "--remove-orphans")
	w.sameThings(t)
	for _, args := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q", "--filter", "type=custom"}} {
		if left := w.docker(t, args...); left != "" {
			t.Errorf("docker %s after down -v: %s", strings.Join(args, " "), left)
		}
	}
}

// commaList is networks and mounts of a container: an engine tells them in any order.
var commaList = regexp.MustCompile(`\w+(,\w+)+`)

func (w *twin) sameList(t *testing.T, args ...string) {
	t.Helper()
	w.clientOK(t, clientRun{program: needProgram(t, "docker", "docker.io"), args: args, change: func(s string) string {
		return sortedLines(commaList.ReplaceAllStringFunc(s, func(list string) string {
			items := strings.Split(list, ",")
			slices.Sort(items)
			return strings.Join(items, ",")
		}))
	}})
}

// sameContainers compares the containers as the docker command shows them.
func (w *twin) sameContainers(t *testing.T) {
	t.Helper()
	w.sameList(t, "ps", "-a", "--no-trunc", "--format", `{{.Names}} {{.Image}} {{.Command}} {{.State}} {{.Ports}} {{.Networks}} {{.Mounts}} {{.Label "com.docker.compose.service"}} {{.Label "role"}}`)
}

// sameThings compares networks and volumes.
func (w *twin) sameThings(t *testing.T) {
	t.Helper()
	w.sameList(t, "network", "ls", "--format", `{{.Name}} {{.Driver}} {{.Scope}} {{.Label "com.docker.compose.project"}} {{.Label "tier"}}`)
	w.sameList(t, "volume", "ls", "--format", `{{.Name}} {{.Driver}} {{.Scope}} {{.Label "com.docker.compose.project"}} {{.Label "keep"}}`)
}

// onOneNode checks that the project is together, as its network asks for.
func (w *twin) onOneNode(t *testing.T) {
	t.Helper()
	nodes := strings.Fields(w.docker(t, "ps", "-a", "--format", `{{.Label "com.docker.swarm.node"}}`))
	slices.Sort(nodes)
	if nodes = slices.Compact(nodes); len(nodes) != 1 {
		t.Errorf("the project is on the nodes %v, want one", nodes)
	}
}

func (w *twin) containerIDs(t *testing.T) []string {
	t.Helper()
	ids := strings.Fields(w.docker(t, "ps", "-aq", "--no-trunc"))
	slices.Sort(ids)
	return ids
}

// imageVersion checks the label of the image that every container was made of.
func (w *twin) imageVersion(t *testing.T, want string) {
	t.Helper()
	args := append([]string{"inspect", "--format", "{{.Config.Labels.version}}"}, w.containerIDs(t)...)
	for _, got := range strings.Fields(w.docker(t, args...)) {
		if got != want {
			t.Errorf("a container runs version %s of the image, want %s", got, want)
		}
	}
}
