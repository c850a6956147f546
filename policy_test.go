package main

import (
	"net/http"
	"strings"
	"testing"
)

func TestReschedulePoliciesAreRefusedInClassicsWords(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	for body, want := range map[string]string{
		`{"Image":"busybox","Env":["reschedule:always"]}`:                                                       `invalid reschedule policy: "always", expected on-node-failure or off`,
		`{"Image":"busybox","Env":["reschedule:"]}`:                                                             `invalid reschedule policy: "", expected on-node-failure or off`,
		`{"Image":"busybox","Env":["reschedule:on-node-failure","reschedule:off"]}`:                             "too many reschedule policies: on-node-failure, off",
		`{"Image":"busybox","Labels":{"com.docker.swarm.reschedule-policies":"[\"off\",\"on-node-failure\"]"}}`: "too many reschedule policies: off, on-node-failure",
	} {
		if status, answer := f.call(t, "POST", "/containers/create", body); status != http.StatusBadRequest || message(answer) != want {
			t.Errorf("create %s = %d %s, want 400 %s", body, status, answer, want)
		}
	}
	if status, answer := f.call(t, "POST", "/containers/create?name=web", `{"Image":"busybox","Env":["A=1","reschedule:off"]}`); status != http.StatusCreated {
		t.Errorf("create with policy off = %d %s", status, answer)
	}
	if got := f.rows(t, "SELECT count(*) FROM create_bodies"); got != "0" {
		t.Errorf("%s bodies are kept of a container that stays where it is", got)
	}
}

func TestACreateBodyIsKeptAsLongAsItsContainer(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	const body = `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["TOKEN=secret","reschedule:on-node-failure"],"Unheard":{"of":1.50}}`
	status, answer := f.call(t, "POST", "/v1.41/containers/create?name=web&platform=linux%2Famd64", body)
	if status != http.StatusCreated {
		t.Fatalf("create = %d %s", status, answer)
	}
	if got := f.rows(t, "SELECT b.query, b.version, b.stale, c.name FROM create_bodies b JOIN containers c ON c.swarm_id = b.key"); got != "platform=linux%2Famd64|1.41|0|web" {
		t.Errorf("kept body = %q", got)
	}
	kept := f.rows(t, "SELECT body FROM create_bodies")
	if kept != string(e.createBody("web")) || !strings.Contains(kept, `"Unheard":{"of":1.50}`) || !strings.Contains(kept, "TOKEN=secret") || strings.Contains(kept, "reschedule:") {
		t.Errorf("kept body %s, the engine got %s", kept, e.createBody("web"))
	}
	f.call(t, "POST", "/containers/web/update", `{"Memory":67108864}`)
	f.nodes.settle(t.Context())
	if got := f.rows(t, "SELECT stale FROM create_bodies"); got != "1" {
		t.Errorf("stale = %s after an update, want 1", got)
	}
	if status, answer := f.call(t, "DELETE", "/containers/web?force=1", ""); status != http.StatusNoContent {
		t.Errorf("rm = %d %s", status, answer)
	}
	if got := f.rows(t, "SELECT count(*) FROM create_bodies"); got != "0" {
		t.Errorf("%s bodies are left after rm", got)
	}
	e.fail("POST", "^/containers/create$", http.StatusInternalServerError, "")
	f.call(t, "POST", "/containers/create?name=web", body)
	if got := f.rows(t, "SELECT count(*) FROM create_bodies"); got != "0" {
		t.Errorf("%s bodies are left after a create that failed", got)
	}
}
