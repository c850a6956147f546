package main

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestF07AnotherHostBehindAnAddressIsANodeOfItsOwn(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a"), func(e *fakeEngine) { e.id = "OLD" }), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	f.available(t, "b", "pause")
	plain := f.make(t, "plain", sleepBody)
	f.make(t, "web", movableBody)
	f.nodes.settle(t.Context())
	a.override("POST", "^/containers/create$", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if status, answer := f.call(t, "POST", "/containers/create?name=open", sleepBody); status != http.StatusBadGateway {
		t.Fatalf("create without an answer = %d %s", status, answer)
	}
	f.available(t, "b", "active")
	f.store.sql(t, "INSERT INTO node_labels VALUES ((SELECT id FROM nodes WHERE name = 'a'), 'rack', '7', 'operator')")
	a.stop()
	a.wipe()
	a.id = "NEW"
	a.addImage("busybox:latest", "")
	began := time.Now()
	a.restart()
	f.awaitStates(t, "a=healthy a-lost=unhealthy b=healthy")
	faultTook(t, 7, "the new host is a node of its own, the old one shown as lost", time.Since(began), time.Minute)
	if got := f.rows(t, "SELECT n.name, n.engine_id, n.source, c.name FROM nodes n LEFT JOIN containers c ON c.node_id = n.id WHERE n.name LIKE 'a%' ORDER BY n.name, c.name"); got !=
		"a|NEW||<nil>\na-lost|OLD|lost|plain\na-lost|OLD|lost|web" {
		t.Errorf("nodes and containers:\n%s", got)
	}
	if got := f.rows(t, "SELECT n.name FROM node_labels l JOIN nodes n ON n.id = l.node_id WHERE key = 'rack' ORDER BY n.name"); got != "a\na-lost" {
		t.Errorf("the operator's label is on %q", got)
	}
	if got := f.listed(t); got["plain"] != "Host Down" || got["web"] != "Host Down" || len(got) != 2 {
		t.Errorf("listed: %v", got)
	}
	if status, answer := f.call(t, "GET", "/containers/"+plain+"/json", ""); status != http.StatusServiceUnavailable || message(answer) != "node a-lost is lost: another host answers at its address" {
		t.Errorf("inspect of a container that was lost = %d %s", status, answer)
	}
	if !strings.Contains(f.logged(), "another host answers at this address, the node is lost") {
		t.Errorf("the operator is not told:\n%s", f.logged())
	}
	if got := f.rows(t, "SELECT count(*) FROM reservations"); got != "0" {
		t.Errorf("%s reservations of the lost node are left", got)
	}
	a.heal()
	f.available(t, "b", "pause")
	f.make(t, "open", sleepBody) // its name is free
	f.available(t, "b", "active")
	if !slices.Contains(a.containerNames(), "open") {
		t.Error("the new host takes no containers")
	}
	f.startMover(t, 0, false)
	f.awaitRows(t, "1|running", "SELECT n.name <> 'a-lost', c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'web'")
	sums := f.rows(t, `SELECT n.name FROM nodes n WHERE n.state <> 'removed' AND n.containers <> (SELECT count(*) FROM containers c WHERE c.node_id = n.id AND c.counted)`)
	if sums != "" {
		t.Errorf("the sums of %s are wrong", sums)
	}
	// The same over a restart of the manager, and until it is taken out.
	if stray, err := f.store.strayNodes(t.Context(), linesOf(addresses(a, b)...)); err != nil || len(stray) != 0 {
		t.Errorf("nodes that a start would take out: %v %v", stray, err)
	}
	if status, answer := f.call(t, "DELETE", "/nodes/a-lost?force=1", ""); status != http.StatusOK {
		t.Errorf("rm of the lost node = %d %s", status, answer)
	}
	f.awaitStates(t, "a=healthy b=healthy")
	f.oracle(t)
}

func TestALostHostThatAnswersElsewhereIsNotLostAnyMore(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a"), func(e *fakeEngine) { e.id = "OLD" }), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	f.available(t, "b", "pause")
	f.make(t, "plain", sleepBody)
	a.stop()
	a.id = "NEW"
	a.restart()
	f.awaitStates(t, "a=healthy a-lost=unhealthy b=healthy")
	a.stop() // and back again: one host swapped for another
	a.id = "OLD"
	a.restart()
	eventually(t, 15*time.Second, func() error {
		got := f.rows(t, "SELECT n.engine_id, n.state, c.name FROM nodes n LEFT JOIN containers c ON c.node_id = n.id WHERE n.state <> 'removed' AND n.name LIKE 'a%' ORDER BY n.engine_id, c.name")
		if got != "NEW|unhealthy|plain\nOLD|healthy|plain" { // the simulated host has both IDs' containers
			return errors.New(got)
		}
		return nil
	})
}
