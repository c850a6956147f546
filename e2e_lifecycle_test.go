package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestE2ELifecycle(t *testing.T) {
	w := newTwin(t)
	state := func(t *testing.T, name, want string) {
		t.Helper()
		// No waiting: a list shows what a command that has returned has done.
		if got := w.ok(t, "ps", "-a", "--filter", "name=^"+name+"$", "--format", "{{.State}}"); got != want {
			t.Errorf("state of %s: %q, want %q", name, got, want)
		}
	}
	t.Run("create and start", func(t *testing.T) {
		w.ok(t, "create", "--name", "one", "-e", "A=b", "busybox", "sh", "-c", "echo $A; echo err >&2; exit 4")
		state(t, "one", "created")
		if r := w.same(t, "start", "-a", "one"); r.exit != 4 || r.stdout != "b\n" || r.stderr != "err\n" {
			t.Errorf("docker start -a: %v, want b, err and exit code 4", r)
		}
		state(t, "one", "exited")
		w.ok(t, "start", "one")
		if got := w.ok(t, "wait", "one"); got != "4" {
			t.Errorf("docker wait: %s, want 4", got)
		}
		state(t, "one", "exited")
		w.ok(t, "create", "-i", "--name", "asks", "busybox", "cat")
		r := w.sameWith(t, []byte("fed\n"), nil, "start", "-a", "-i", "asks")
		if r.exit != 0 || r.stdout != "fed\n" {
			t.Errorf("docker start -ai: %v, want what it was fed", r)
		}
		w.same(t, "start", "nosuch", "one")
		w.same(t, "create", "--name", "one", "busybox")
		w.same(t, "create", "--name", "x", "-m", "1", "busybox")
		w.same(t, "create", "--name", "x", "--network", "container:nosuch", "--pid", "container:nosuch", "busybox")
		w.ok(t, "rm", "-f", "one", "asks", "x")
		w.removed(t)
	})
	w.ok(t, "run", "-d", "--name", "web", "-m", "100m", "--cpus", "1", "busybox", "sh", "-c", `trap "exit 9" TERM; trap : USR1; while :; do sleep 0.05; done`)
	state(t, "web", "running")
	t.Run("stop, start, restart, kill", func(t *testing.T) {
		w.ok(t, "stop", "web")
		state(t, "web", "exited")
		if got := w.ok(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web"); got != "exited 9" {
			t.Errorf("after docker stop: %s, want exited 9", got)
		}
		w.same(t, "stop", "web") // again: nothing to do
		w.same(t, "kill", "web")
		w.ok(t, "start", "web")
		w.same(t, "start", "web")
		state(t, "web", "running")
		w.ok(t, "restart", "-t", "5", "web")
		state(t, "web", "running")
		w.ok(t, "kill", "-s", "USR1", "web")
		state(t, "web", "running")
		w.same(t, "kill", "-s", "NOSUCH", "web")
		w.ok(t, "kill", "web")
		state(t, "web", "exited")
		w.ok(t, "start", "web")
		for _, command := range []string{"stop", "start", "restart", "pause", "unpause", "wait", "kill", "rm"} {
			w.same(t, command, "nosuch")
		}
		w.same(t, "rm", "-f", "nosuch")
	})
	t.Run("pause", func(t *testing.T) {
		w.ok(t, "pause", "web")
		state(t, "web", "paused")
		w.same(t, "pause", "web")
		w.same(t, "exec", "web", "true")
		w.ok(t, "unpause", "web")
		state(t, "web", "running")
		w.same(t, "unpause", "web")
	})
	t.Run("wait", func(t *testing.T) {
		w.ok(t, "run", "-d", "--name", "short", "busybox", "sh", "-c", "sleep 0.5; exit 3")
		if got := w.ok(t, "wait", "short"); got != "3" {
			t.Errorf("docker wait: %s, want 3", got)
		}
		waiting := dockerCommand(t, w.addr, "wait", "web")
		out := startDocker(t, waiting)
		w.ok(t, "stop", "web")
		if err := waiting.Wait(); err != nil || out.String() != "9\n" {
			t.Errorf("docker wait of a container that is stopped: %v, %q, want 9", err, out)
		}
		w.ok(t, "start", "web")
		w.ok(t, "rm", "short")
	})
	t.Run("rename", func(t *testing.T) {
		w.ok(t, "rename", "web", "site")
		state(t, "site", "running")
		w.same(t, "start", "web")
		w.ok(t, "run", "-d", "--name", "web", "busybox", "sleep", "1000") // the name is free
		node, other := w.docker(t, "inspect", "-f", "{{.Node.Name}}", "site"), w.docker(t, "inspect", "-f", "{{.Node.Name}}", "web")
		if node == other {
			t.Fatalf("both containers are on %s", node)
		}
		if r := w.same(t, "rename", "site", "web"); r.exit != 1 || !strings.Contains(r.stderr, "on node "+other) {
			t.Errorf("docker rename to a name that a container on another node has: %v, want a conflict with %s", r, other)
		}
		resp, body := apiCall(t, "POST", w.addr, "/containers/site/rename?name=web")
		if resp.StatusCode != http.StatusConflict {
			t.Errorf("rename to a taken name: %s %s, want 409", resp.Status, body)
		}
		w.same(t, "rename", "site", "site")
		w.same(t, "rename", "site", "no/slash")
		w.same(t, "rename", "nosuch", "other")
		state(t, "site", "running")
		w.ok(t, "rm", "-f", "web")
	})
	t.Run("update", func(t *testing.T) {
		reserved := func(want string) {
			t.Helper()
			eventually(t, 20*time.Second, func() error {
				if got := w.sql(t, "SELECT nano_cpus, memory_bytes FROM containers WHERE name = 'site'"); got != want {
					return fmt.Errorf("reserved: %s, want %s", got, want)
				}
				return nil
			})
		}
		reserved("1000000000|104857600")
		w.ok(t, "update", "-m", "200m", "--memory-swap", "-1", "--cpus", "0.5", "site")
		reserved("500000000|209715200")
		w.ok(t, "update", "--memory-reservation", "50m", "--restart", "always", "site")
		reserved("500000000|52428800")
		w.ok(t, "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.MemoryReservation}} {{json .HostConfig.RestartPolicy}}", "site")
		node := w.docker(t, "inspect", "-f", "{{.Node.Name}}", "site")
		if got := strings.Join(nodeLines(w.docker(t, "info"), node), "\n"); !strings.Contains(got, "Reserved CPUs: 0.5 / ") || !strings.Contains(got, "Reserved Memory: 50MiB / ") {
			t.Errorf("docker info after an update:\n%s", got)
		}
		w.same(t, "update", "-m", "1", "site")
		w.same(t, "update", "-m", "100m", "nosuch")
		reserved("500000000|52428800")
	})
	t.Run("rm", func(t *testing.T) {
		w.same(t, "rm", "site")
		state(t, "site", "running")
		w.ok(t, "run", "--name", "hasvolumes", "-v", "/anon", "-v", "kept:/named", "busybox", "true")
		w.ok(t, "rm", "-v", "hasvolumes")
		if got := w.ok(t, "volume", "ls", "-q"); got != "kept" {
			t.Errorf("volumes after docker rm -v: %q, want kept", got)
		}
		w.same(t, "rm", "-f", "site", "nosuch")
		w.removed(t)
		// The name, the room and the port are free at once.
		for range 3 {
			w.docker(t, "run", "-d", "--name", "again", "-p", "8090:80", "-e", "constraint:node==node-1", "busybox", "sleep", "1000")
			w.docker(t, "rm", "-f", "again")
		}
		w.removed(t)
	})
}
