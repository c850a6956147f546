package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// addresses are those of engines, as the nodes of a cluster are named.
func addresses(engines ...*fakeEngine) (list []string) {
	for _, e := range engines {
		list = append(list, "tcp://"+e.addr())
	}
	return list
}

// awaitStates waits until the nodes that are not removed are in these states.
func (f *front) awaitStates(t testing.TB, want string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		if got := f.rows(t, "SELECT group_concat(name || '=' || state, ' ') FROM (SELECT * FROM nodes WHERE state <> 'removed' ORDER BY name)"); got != want {
			return fmt.Errorf("nodes are %q, want %q", got, want)
		}
		return nil
	})
}

func TestANodeThatIsRemovedStaysAwayUntilItIsNamedAnew(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	a.addContainer("web", "busybox", true, nil)
	eventually(t, 20*time.Second, func() error {
		if f.rows(t, "SELECT name FROM containers") != "web" {
			return errors.New("web is not known yet")
		}
		return nil
	})
	status, answer := f.call(t, "DELETE", "/nodes/a", "")
	if status != http.StatusConflict || message(answer) != "node a has 1 container: remove what is on it or drain the node first, or use --force, which leaves it on the host" {
		t.Errorf("rm of a node with a container = %d %s", status, answer)
	}
	f.awaitStates(t, "a=healthy b=healthy")
	if status, answer := f.call(t, "DELETE", "/nodes/a?force=1", ""); status != http.StatusOK {
		t.Fatalf("rm by force = %d %s", status, answer)
	}
	if got := a.containerNames(); len(got) != 1 {
		t.Errorf("containers on the host after rm: %q, want them untouched", got)
	}
	if status, _ := f.call(t, "GET", "/nodes/a", ""); status != http.StatusNotFound {
		t.Errorf("inspect of a removed node = %d, want 404", status)
	}
	if got := f.rows(t, "SELECT count(*) FROM containers"); got != "0" {
		t.Errorf("%s containers are listed, want none", got)
	}
	// The same names again, as a reload or a start gives them: it stays away.
	if err := f.nodes.set(f.base, linesOf(addresses(a, b)...)); err != nil {
		t.Fatal(err)
	}
	f.awaitStates(t, "b=healthy")
	// Taken off the list and put on it again: it is back, with all it has.
	for _, list := range [][]string{addresses(b), addresses(a, b)} {
		if err := f.nodes.set(f.base, linesOf(list...)); err != nil {
			t.Fatal(err)
		}
	}
	f.awaitStates(t, "a=healthy b=healthy")
	eventually(t, 20*time.Second, func() error {
		if f.rows(t, "SELECT name FROM containers") != "web" {
			return errors.New("web is not known again")
		}
		return nil
	})
	if got := f.rows(t, "SELECT group_concat(action, ' ') FROM (SELECT action FROM events WHERE type = 'swarm' AND node = 'a' ORDER BY id)"); got !=
		"engine_connect engine_disconnect engine_connect" {
		t.Errorf("events of a = %q", got)
	}
	if status, answer := f.call(t, "DELETE", "/nodes/b", ""); status != http.StatusOK {
		t.Errorf("rm of an empty node = %d %s", status, answer)
	}
}

func TestNodeEventsTellWhatHappensToNodes(t *testing.T) {
	t.Parallel()
	a := newFakeEngine(t, hostNamed("a"))
	f := newFront(t, a)
	a.stop()
	f.awaitStates(t, "a=unhealthy")
	a.restart()
	f.awaitStates(t, "a=healthy")
	for i, availability := range []string{"drain", "drain", "active"} {
		if status, answer := f.call(t, "POST", fmt.Sprintf("/nodes/a/update?version=%d", i+1), `{"Availability":"`+availability+`"}`); status != http.StatusOK {
			t.Fatalf("update = %d %s", status, answer)
		}
	}
	for filters, want := range map[string]string{
		`{"type":["swarm"]}`:                                           "engine_connect engine_disconnect engine_reconnect drain active",
		`{"event":["engine_reconnect","drain"]}`:                       "engine_reconnect drain",
		`{"type":["swarm"],"node":["b"]}`:                              "",
		`{"type":["swarm"],"label":["node.name=a"],"event":["drain"]}`: "drain",
	} {
		_, answer := f.call(t, "GET", fmt.Sprintf("/events?since=1&until=%d&filters=%s", time.Now().Unix()+1, strings.ReplaceAll(filters, `"`, "%22")), "")
		var got []string
		for _, line := range strings.Split(strings.TrimSpace(answer), "\n") {
			if _, rest, ok := strings.Cut(line, `"Action":"`); ok {
				action, _, _ := strings.Cut(rest, `"`)
				got = append(got, action)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("events with %s: %q, want %q", filters, strings.Join(got, " "), want)
		}
	}
}
