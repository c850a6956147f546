package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// F69: a node is taken out of the file while it has containers.
func TestF69ANodeThatIsTakenOutKeepsItsContainers(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	id := a.addContainer("left", "busybox", true, nil)
	a.addContainer("stopped", "busybox", false, nil)
	b.addContainer("stays", "busybox", true, nil)
	f := newFront(t, a, b)
	f.oracle(t)
	events := f.watchEvents(t, `?filters={"type":["container"]}`)
	a.forget()
	began := time.Now()
	if err := f.nodes.set(f.base, linesOf(addresses(b)...)); err != nil {
		t.Fatal(err)
	}
	f.awaitListed(t, 20*time.Second, "stays")
	faultTook(t, 69, "not listed any more", time.Since(began), 10*time.Second)
	if status, answer := f.call(t, "POST", "/containers/"+id+"/stop", ""); status != http.StatusNotFound {
		t.Errorf("stop of a container there = %d %s, want 404", status, answer)
	}
	for i := range 4 {
		f.make(t, fmt.Sprint("new", i), sleepBody)
	}
	if got := a.containerNames(); !slices.Equal(got, []string{"left", "stopped"}) || a.statusOf("left") != "running" {
		t.Errorf("the engine has %q, left is %s, want it untouched", got, a.statusOf("left"))
	}
	for _, r := range a.requests() {
		if r.method != "GET" && r.method != "HEAD" {
			t.Errorf("%s %s reached the engine", r.method, r.path)
		}
	}
	if !strings.Contains(f.logged(), "containers_left=2") {
		t.Error("the log does not say how many containers are left")
	}
	for range 8 { // create and start of the new ones
		if ev := within(t, events, 20*time.Second); ev.Action == "destroy" || ev.Action == "die" {
			t.Errorf("watchers were told %s of %s", ev.Action, ev.Actor.Attributes["name"])
		}
	}
	f.fakes = []*fakeEngine{b}
	f.oracle(t)
	if err := f.nodes.set(f.base, linesOf(addresses(a, b)...)); err != nil {
		t.Fatal(err)
	}
	f.fakes = []*fakeEngine{a, b}
	f.awaitListed(t, 20*time.Second, "left", "stopped", "stays", "new0", "new1", "new2", "new3")
	f.oracle(t)
}

// F70: an engine tells of things that are another's, and writes to our terminals.
func TestF70AHostileEngine(t *testing.T) {
	t.Parallel()
	const escape = "evil\x1b[2J\nlevel=ERROR msg=forged <script>alert(1)</script>/x"
	good := newFakeEngine(t, hostNamed("good"))
	bad := newFakeEngine(t, func(e *fakeEngine) {
		e.name, e.labels = escape, []string{"zone=\x1b]0;owned\x07", "x=" + strings.Repeat("y", 1<<20)}
	})
	id := good.addContainer("web", "busybox", true, nil)
	f := newFront(t, good, bad)
	f.oracle(t)
	name := f.rows(t, "SELECT name FROM nodes WHERE name <> 'good'")
	if strings.ContainsFunc(name, unicode.IsControl) || strings.ContainsAny(name, "/ ") {
		t.Errorf("the node's name is %q", name)
	}
	for _, action := range []string{"destroy", "die", "rename", "update"} {
		bad.emit(fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q,"Attributes":{"name":"web"}},"time":1,"timeNano":%d}`, action, id, time.Now().UnixNano()))
	}
	// A container that claims to be the other's, down to the ID of its create.
	bad.sameID(bad.addContainer("web", "busybox", true, map[string]string{"com.docker.swarm.id": "x", "com.docker.swarm.node": "good"}), id)
	bad.exitContainer("web", 1)
	eventually(t, 20*time.Second, func() error {
		if got := f.rows(t, "SELECT count(*) FROM containers"); got != "2" {
			return errors.New(got)
		}
		return nil
	})
	status, answer := f.call(t, "GET", "/containers/good/web/json", "")
	var in struct{ State struct{ Running bool } }
	if json.Unmarshal([]byte(answer), &in); status != http.StatusOK || !in.State.Running {
		t.Errorf("good/web = %d %s, want it running as before", status, answer)
	}
	// What it refuses with reaches the client as it is; what we keep and log of it is one line.
	bad.fail("GET", "^/info$", http.StatusInternalServerError, `{"message":"`+"\\u001b[31mforged\\nlevel=ERROR"+`"}`)
	bad.stop()
	bad.restart()
	eventually(t, 20*time.Second, func() error {
		if got := f.rows(t, "SELECT state || ' ' || error FROM nodes WHERE name <> 'good'"); !strings.Contains(got, "unhealthy") || !strings.Contains(got, "forged") {
			return errors.New(got)
		}
		return nil
	})
	for what, text := range map[string]string{
		"trouble": f.rows(t, "SELECT what || node || detail FROM trouble WHERE what LIKE 'node%'"),
		"cluster": f.rows(t, "SELECT name || error FROM nodes"),
		"the log": strings.ReplaceAll(f.logged(), "\n", ""),
	} {
		if strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), unicode.IsControl) {
			t.Errorf("%s holds control bytes: %q", what, text)
		}
	}
	for line := range strings.Lines(f.logged()) {
		if strings.HasPrefix(line, "level=ERROR msg=forged") {
			t.Errorf("a log line is forged: %s", line)
		}
	}
	faultHeld(t, 70, "events and IDs of another's change nothing of its; names, errors and log lines are printable, one line each")
}
