package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// postJSON sends body to the API at base and returns the status and the answer.
func postJSON(t *testing.T, url, body string) (int, string) {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestNodeUpdateSetsAvailabilityAndLabels(t *testing.T) {
	t.Parallel()
	one := newFakeEngine(t, func(e *fakeEngine) { e.name, e.labels = "one", []string{"zone=a", "containerslots=5"} })
	two := newFakeEngine(t, func(e *fakeEngine) { e.name = "two" })
	c, base := testCluster(t, one, two)
	create := func(name, constraint string) (int, string) {
		t.Helper()
		return postJSON(t, base+"/containers/create?name="+name, fmt.Sprintf(`{"Image":"busybox","Env":[%s]}`, constraint))
	}
	update := func(node, spec string, version int) (int, string) {
		t.Helper()
		return postJSON(t, fmt.Sprintf("%s/nodes/%s/update?version=%d", base, node, version), spec)
	}
	if status, answer := update("one", `{"Availability":"pause","Role":"worker","Labels":{"zone":"b","gpu":"yes","containerslots":"0"}}`, 1); status != 200 {
		t.Fatalf("docker node update = %d %s, want 200", status, answer)
	}
	if status, answer := create("c1", `"constraint:zone==b"`); status != 503 || !strings.Contains(answer, "paused or draining") {
		t.Errorf("create on a paused node = %d %s, want 503 that says so", status, answer)
	}
	if status, answer := update("one", `{"Availability":"active","Labels":{}}`, 1); status != 409 {
		t.Errorf("update with an old version = %d %s, want 409", status, answer)
	}
	if status, answer := update("one", `{"Availability":"active","Labels":{"gpu":"yes","containerslots":"0"}}`, 2); status != 200 {
		t.Fatalf("docker node update = %d %s, want 200", status, answer)
	}
	if status, answer := create("c2", `"constraint:gpu==yes"`); status != 503 || !strings.Contains(answer, "no container slot left") {
		t.Errorf("create on a node whose operator set containerslots=0 = %d %s, want 503", status, answer)
	}
	if status, answer := update("one", `{"Availability":"active","Labels":{"gpu":"yes"}}`, 3); status != 200 {
		t.Fatalf("docker node update = %d %s, want 200", status, answer)
	}
	for _, constraint := range []string{`"constraint:gpu==yes"`, `"constraint:zone==a"`} {
		if status, answer := create("", constraint); status != 201 {
			t.Errorf("create with %s = %d %s, want 201: the engine's own label is seen again", constraint, status, answer)
		}
	}
	var shown string
	err := c.store.get(t.Context(), "SELECT group_concat(key || '=' || value || ' ' || source, ', ') FROM (SELECT l.* FROM node_labels l JOIN nodes n ON n.id = l.node_id WHERE n.name = 'one' AND l.source <> 'automatic' ORDER BY key)", nil, &shown)
	if want := "containerslots=5 engine, gpu=yes operator, zone=a engine"; err != nil || shown != want {
		t.Errorf("labels of the node = %q, %v, want %q", shown, err, want)
	}
	for _, bad := range []string{`{"Availability":"gone"}`, `{"Availability":"active","Role":"manager"}`,
		`{"Availability":"active","Labels":{"ostype":"plan9"}}`, `{`} {
		if status, answer := update("one", bad, 4); status != 400 {
			t.Errorf("update with %s = %d %s, want 400", bad, status, answer)
		}
	}
	if status, answer := update("nowhere", `{"Availability":"active"}`, 1); status != 404 {
		t.Errorf("update of an unknown node = %d %s, want 404", status, answer)
	}
}

func TestWhatTheOperatorSetOutlivesAnEngineRestart(t *testing.T) {
	t.Parallel()
	one := newFakeEngine(t, func(e *fakeEngine) { e.name = "one" })
	c, base := testCluster(t, one)
	if status, answer := postJSON(t, base+"/nodes/one/update?version=1", `{"Availability":"drain","Labels":{"rack":"7"}}`); status != 200 {
		t.Fatalf("docker node update = %d %s, want 200", status, answer)
	}
	one.stop()
	eventually(t, 20*time.Second, func() error {
		var state string
		err := c.store.get(t.Context(), "SELECT state FROM nodes", nil, &state)
		if err == nil && state != "unhealthy" {
			err = fmt.Errorf("node is %s while its engine is stopped", state)
		}
		return err
	})
	one.restart()
	eventually(t, 20*time.Second, func() error {
		var availability, rack, state string
		var events int
		err := c.store.get(t.Context(), `SELECT availability, state, (SELECT value FROM node_labels WHERE node_id = nodes.id AND key = 'rack'),
			(SELECT count(*) FROM events WHERE action IN ('engine_connect', 'engine_reconnect')) FROM nodes`, nil, &availability, &state, &rack, &events)
		if err != nil {
			return err
		}
		if state != "healthy" || events < 2 {
			return fmt.Errorf("node is %s after %d connects", state, events)
		}
		if availability != "drain" || rack != "7" {
			t.Errorf("after the engine's restart: availability %s, label rack=%s, want drain, 7", availability, rack)
		}
		return nil
	})
}
