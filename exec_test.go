package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const execBody = `{"AttachStdout":true,"Cmd":["true"]}`

// foreignExec makes an exec that the manager has not heard of.
func foreignExec(t *testing.T, e *fakeEngine, container string) string {
	t.Helper()
	resp, err := loneClient.Post("http://"+e.addr()+"/containers/"+container+"/exec", "application/json", strings.NewReader(execBody))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var made struct{ Id string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || made.Id == "" {
		t.Fatalf("exec on %s: %s, %v", e.name, resp.Status, err)
	}
	return made.Id
}

func TestExecIsKnownBeforeItsIDIsToldAndAfterARestart(t *testing.T) {
	t.Parallel()
	a, b := named(t, "a"), named(t, "b")
	db := filepath.Join(t.TempDir(), "swarmlite.db")
	var id string
	t.Run("before", func(t *testing.T) { // its front ends with it
		f := startFront(t, db, a, b)
		f.settled(t)
		id = f.exec(t, f.make(t, "web", sleepBody), execBody)
		if got := f.rows(t, "SELECT count(*) FROM execs WHERE exec_id = ?", id); got != "1" {
			t.Fatalf("%s rows of an exec whose ID was told, want 1", got)
		}
		// A row that cannot be written: the ID is not told.
		f.store.sql(t, "CREATE TRIGGER no_execs BEFORE INSERT ON execs BEGIN SELECT raise(FAIL, 'disk full'); END")
		if status, answer := f.call(t, "POST", "/containers/web/exec", execBody); status == http.StatusCreated {
			t.Errorf("exec whose row cannot be written = %d %s, want an error", status, answer)
		}
		f.store.sql(t, "DROP TRIGGER no_execs")
	})
	f := startFront(t, db, a, b)
	if status, answer := f.call(t, "GET", "/exec/"+id+"/json", ""); status != http.StatusOK || !strings.Contains(answer, id) {
		t.Errorf("inspect of an exec of before the restart = %d %s", status, answer)
	}
	if n := a.count("GET", "/exec/"+id+"/json") + b.count("GET", "/exec/"+id+"/json"); n != 1 {
		t.Errorf("%d engines were asked about it, want the one that has it", n)
	}
}

func TestUnknownExecIsAskedOfEveryHealthyNode(t *testing.T) {
	t.Parallel()
	a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
	f := newFront(t, a, b, c)
	id := foreignExec(t, b, b.addContainer("web", "busybox", true, nil))
	c.hang(true)
	began := time.Now()
	if status, answer := f.call(t, "GET", "/exec/"+id+"/json", ""); status != http.StatusOK || !strings.Contains(answer, id) {
		t.Errorf("inspect of an exec that b has = %d %s", status, answer)
	}
	if took := time.Since(began); took > readWait/2 {
		t.Errorf("it took %v: a node that hangs was waited for", took)
	}
	c.hang(false)
	eventually(t, 30*time.Second, func() error {
		if n := len(f.healthyEngines()); n != 3 {
			return fmt.Errorf("%d of 3 nodes are healthy", n)
		}
		return nil
	})
	if status, answer := f.call(t, "POST", "/exec/"+id+"/start", `{"Detach":false}`); status != http.StatusOK {
		t.Errorf("start of an exec that b has = %d %s", status, answer)
	}
	const nosuch = "/exec/00aa11/json"
	if status, answer := f.call(t, "GET", nosuch, ""); status != http.StatusNotFound || message(answer) != "No such exec instance: 00aa11" {
		t.Errorf("inspect of what nobody has = %d %s", status, answer)
	}
	for _, e := range f.fakes {
		if e.count("GET", nosuch) == 0 {
			t.Errorf("%s was not asked", e.name)
		}
	}
	// A node that gives no answer may have it, so it is not said that nobody has.
	c.fail("GET", "^/exec/", http.StatusInternalServerError, "")
	if status, answer := f.call(t, "GET", nosuch, ""); status != http.StatusBadGateway || !strings.Contains(message(answer), "node c: ") {
		t.Errorf("inspect when c is out of order = %d %s, want 502 that names it", status, answer)
	}
}
