package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Three engines joined in Docker's own Swarm mode: one manager, two workers. A fourth
// is in no swarm.
func TestE2ESwarmNetworkSpansNodes(t *testing.T) {
	t.Parallel()
	names := []string{"swarm-m", "swarm-w1", "swarm-w2", "swarm-none"}
	engines := make([]*labEngine, len(names))
	var addrs []string
	for i, name := range names {
		engines[i] = labStart(t, name)
		addrs = append(addrs, engines[i].addr)
	}
	manager := engines[0]
	host, _, _ := strings.Cut(manager.addr, ":")
	m := startManager(t, append([]string{"-reschedule-after", "2s"}, addrs...)...)
	if r := runCommand(dockerCommand(t, m.addr, "network", "create", "-d", "overlay", "early"), nil); r.exit == 0 || !strings.Contains(r.stderr, "This node is not a swarm manager") {
		t.Errorf("overlay without a swarm: %v", r)
	}
	manager.docker(t, "swarm", "init", "--advertise-addr", host)
	token := manager.docker(t, "swarm", "join-token", "-q", "worker")
	for _, e := range engines[1:3] {
		e.docker(t, "swarm", "join", "--token", token, host+":2377")
	}
	eventually(t, 30*time.Second, func() error {
		if got := m.sql(t, "SELECT count(DISTINCT docker_swarm), count(*), sum(swarm_manager) FROM nodes WHERE docker_swarm <> ''"); got != "1|3|1" {
			return fmt.Errorf("swarms|members|managers: %s", got)
		}
		return nil
	})
	m.docker(t, "network", "create", "-d", "overlay", "--attachable", "over")
	m.docker(t, "run", "-d", "--name", "web", "--network", "over", "-e", "constraint:node==swarm-w1", "busybox", "httpd", "-f", "-h", "/etc")
	m.docker(t, "run", "-d", "--name", "client", "--network", "over", "-e", "constraint:node==swarm-w2", "busybox", "sleep", "1000")
	// The nodes of a swarm tell each other of names and addresses as they come.
	reaches := func(from string, command ...string) (got string) {
		t.Helper()
		eventually(t, time.Minute, func() error {
			r := runCommand(dockerCommand(t, m.addr, append([]string{"exec", from}, command...)...), nil)
			if got = r.stdout; r.exit != 0 {
				return fmt.Errorf("%s: %v: %v", from, command, r)
			}
			return nil
		})
		return got
	}
	reaches("client", "ping", "-c1", "-W5", "web")
	if got := reaches("client", "wget", "-qO-", "http://web/passwd"); !strings.Contains(got, "root:") {
		t.Errorf("page over the overlay network: %q", got)
	}
	if got := m.docker(t, "ps", "--format", `{{.Names}} {{.Label "com.docker.swarm.node"}}`); got != "client swarm-w2\nweb swarm-w1" {
		t.Errorf("ps: %s", got)
	}
	// Without a constraint they spread over the swarm, never beyond it.
	for i := range 3 {
		m.docker(t, "run", "-d", "--name", fmt.Sprint("any", i), "--network", "over", "busybox", "sleep", "1000")
	}
	if got := m.docker(t, "ps", "-q", "--filter", "node=swarm-none"); got != "" {
		t.Errorf("containers outside the swarm: %s", got)
	}
	if r := runCommand(dockerCommand(t, m.addr, "run", "--rm", "--network", "over", "-e", "constraint:node==swarm-none", "busybox", "true"), nil); r.exit != 125 || !strings.Contains(r.stderr, "no node fits") {
		t.Errorf("run outside the swarm: %v", r)
	}
	eventually(t, 20*time.Second, func() error {
		var inspected []struct {
			Scope      string
			Containers map[string]struct{ Name string }
			Peers      []struct{ IP string }
		}
		if err := json.Unmarshal([]byte(m.docker(t, "network", "inspect", "over")), &inspected); err != nil {
			return err
		}
		var members []string
		for _, c := range inspected[0].Containers {
			if !strings.HasSuffix(c.Name, "-endpoint") {
				members = append(members, c.Name)
			}
		}
		if slices.Sort(members); strings.Join(members, " ") != "any0 any1 any2 client web" || len(inspected[0].Peers) != 3 || inspected[0].Scope != "swarm" {
			return fmt.Errorf("inspect: %s of %+v", members, inspected)
		}
		return nil
	})
	if got := m.docker(t, "network", "ls", "--filter", "name=over", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"); got != "over overlay swarm" {
		t.Errorf("ls: %q, want it once", got)
	}
	m.docker(t, "run", "-d", "--name", "late", "-e", "constraint:node==swarm-w1", "busybox", "sleep", "1000")
	m.docker(t, "network", "connect", "over", "late")
	reaches("late", "ping", "-c1", "-W5", "client")
	m.movesOverOverlay(t, engines[1:3])
	if r := runCommand(dockerCommand(t, m.addr, "network", "rm", "over"), nil); r.exit == 0 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("rm of a network in use: %v", r)
	}
	m.docker(t, append([]string{"rm", "-f"}, strings.Fields(m.docker(t, "ps", "-aq"))...)...)
	if got := m.docker(t, "network", "ls", "-q", "--filter", "name=over"); got == "" {
		t.Error("a network that no node uses is not listed any more")
	}
	m.docker(t, "network", "inspect", "over")
	eventually(t, time.Minute, func() error { // the swarm's manager hears a little later that its tasks have ended
		r := runCommand(dockerCommand(t, m.addr, "network", "rm", "over"), nil)
		if r.exit != 0 && !strings.Contains(r.stderr, "in use") {
			t.Fatalf("rm of the network: %v", r)
		}
		if r.exit != 0 {
			return fmt.Errorf("rm of the network: %v", r)
		}
		return nil
	})
	if got := m.docker(t, "network", "ls", "-q", "--filter", "name=over"); got != "" {
		t.Error("a network that was removed is still listed")
	}
}

// movesOverOverlay moves a container from worker to worker, by a drain and by a lost engine:
// it keeps its network, its name and its alias there, and those who know it by them find it.
func (m *manager) movesOverOverlay(t *testing.T, workers []*labEngine) {
	t.Helper()
	m.docker(t, "run", "-d", "--name", "asker", "--network", "over", "-e", "constraint:node==swarm-m", "busybox", "sleep", "1000")
	m.docker(t, "run", "-d", "--name", "site", "--network", "over", "--network-alias", "shop", "--stop-signal", "KILL", "-e", "reschedule:on-node-failure",
		"-e", "constraint:node==swarm-w*", "busybox", "sh", "-c", "hostname >/id; exec httpd -f -h /")
	before := ""
	found := func(how string) (node string) {
		t.Helper()
		eventually(t, 90*time.Second, func() error {
			node = m.docker(t, "ps", "--filter", "name=^site$", "--filter", "status=running", "--format", `{{.Label "com.docker.swarm.node"}}`)
			if node == "" || node == before && how != "back" {
				return fmt.Errorf("%s: site is on %q; moves: %s; it stays: %s", how, node,
					m.sql(t, "SELECT name, step, outcome, error FROM moves"), m.sql(t, "SELECT stays FROM containers WHERE name = 'site'"))
			}
			id := m.docker(t, "inspect", "-f", "{{.Config.Hostname}}", "site")
			for _, name := range []string{"site", "shop"} {
				r := runCommand(dockerCommand(t, m.addr, "exec", "asker", "sh", "-c", "ping -c1 -W5 "+name+" >/dev/null && wget -qO- http://"+name+"/id"), nil)
				if r.exit != 0 || strings.TrimSpace(r.stdout) != id {
					return fmt.Errorf("%s: %s answers %v, want %s", how, name, r, id)
				}
			}
			return nil
		})
		return node
	}
	before = found("made")
	m.docker(t, "node", "update", "--availability", "drain", before)
	after := found("drained")
	m.docker(t, "node", "update", "--availability", "active", before)
	before = after
	lost := workers[slices.IndexFunc(workers, func(e *labEngine) bool { return e.name == before })]
	lost.unplug(t) // what it runs runs on
	found("lost")
	if got := m.sql(t, "SELECT group_concat(why || ' ' || outcome, ', ') FROM moves WHERE name = 'site'"); got != "drain moved, node failure moved" {
		t.Errorf("moves: %s", got)
	}
	lost.plug(t)
	eventually(t, 90*time.Second, func() error {
		if got := m.docker(t, "ps", "-a", "--filter", "name=site", "--filter", "node="+before, "--format", "{{.Names}} {{.State}}"); !strings.HasPrefix(got, "site-old-") || !strings.HasSuffix(got, " exited") {
			return fmt.Errorf("on the node that is back: %q; %s", got, m.sql(t, "SELECT state, step, error FROM nodes WHERE name = '"+before+"'"))
		}
		return nil
	})
	found("back")
}
