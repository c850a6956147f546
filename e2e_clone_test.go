package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A virtual machine that is cloned with its containers: until its engine has an ID of its own
// it is shown as a duplicate, and then its containers have IDs that are there twice.
func TestF17F19ARealHostIsCloned(t *testing.T) {
	t.Parallel()
	original, clone := labStart(t, "original"), labStart(t, "clone")
	original.docker(t, "run", "-d", "--name", "web", "--restart", "always", "--stop-signal", "KILL", "busybox", "sleep", "1000")
	id := original.docker(t, "inspect", "-f", "{{.Id}}", "web")
	original.stop(t)
	clone.stop(t)
	dir := func(e *labEngine, parts ...string) string {
		return filepath.Join(append([]string{labUp.dir, "lab", "engines", e.name}, parts...)...)
	}
	for _, part := range []string{"data", "etc"} {
		if err := os.RemoveAll(dir(clone, part)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-a", dir(original, part), dir(clone, part)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v %s", err, out)
		}
	}
	original.restart(t)
	clone.restart(t)
	m := newManager(t, managerBinary(t, "-race"), original.addr, clone.addr)
	began := time.Now()
	m.start(t)
	eventually(t, time.Minute, func() error {
		if r := runCommand(dockerCommand(t, m.addr, "version"), nil); r.exit != 0 {
			return fmt.Errorf("%v", r)
		}
		if got := m.sql(t, "SELECT group_concat(state) FROM (SELECT state FROM nodes ORDER BY state)"); got != "duplicate,healthy" {
			return fmt.Errorf("states: %s", got)
		}
		return nil
	})
	faultTook(t, 19, "real engines: the second is shown as duplicate", time.Since(began), 5*time.Second)
	if got := m.docker(t, "info"); !strings.Contains(got, "duplicate ID "+original.docker(t, "info", "-f", "{{.ID}}")) {
		t.Errorf("info says nothing of the duplicate: %s", got)
	}
	if got := m.docker(t, "ps", "-a", "--format", "{{.Names}}"); got != "web" {
		t.Errorf("ps: %q, want what the first of the two has", got)
	}

	// The cure that is told.
	clone.stop(t)
	if err := os.Remove(dir(clone, "etc", "key.json")); err != nil {
		t.Fatal(err)
	}
	clone.restart(t)
	eventually(t, time.Minute, func() error {
		got := strings.Split(m.docker(t, "ps", "--no-trunc", "--format", `{{.ID}} {{.Names}} {{.Label "com.docker.swarm.node"}}`), "\n")
		if slices.Sort(got); !slices.Equal(got, []string{id + " web clone", id + " web original"}) {
			return fmt.Errorf("ps: %s\nnodes: %s", got, m.sql(t, "SELECT name, state, step, error FROM nodes"))
		}
		return nil
	})
	for _, ref := range []string{id, id[:12], "web"} {
		r := runCommand(dockerCommand(t, m.addr, "stop", ref), nil)
		if r.exit == 0 || !strings.Contains(r.stderr, "original/web") || !strings.Contains(r.stderr, "clone/web") {
			t.Errorf("stop %.12s: %v, want both named", ref, r)
		}
	}
	for _, e := range []*labEngine{original, clone} {
		if got := m.docker(t, "inspect", "-f", "{{.Node.Name}} {{.State.Status}}", e.name+"/web"); got != e.name+" running" {
			t.Errorf("%s/web: %s", e.name, got)
		}
	}
	m.docker(t, "rm", "-f", "clone/web")
	if got := m.docker(t, "ps", "--format", "{{.Names}}"); got != "web" {
		t.Errorf("ps after the clone's container was removed: %s", got)
	}
	if got := original.docker(t, "ps", "-q"); got == "" {
		t.Error("the original's container went with the clone's")
	}
	faultHeld(t, 17, "real engines: by ID 400 that lists both, node/name works")
}
