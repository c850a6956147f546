package main

import (
	"encoding/json"
	"testing"
)

// A list that is passed over must be one that would have changed nothing.
func TestListThatIsKnownIsPassedOverOnlyIfNothingDiffers(t *testing.T) {
	t.Parallel()
	web := entry("c1", "web", map[string]any{"Labels": map[string]string{"tier": "web"}, "Status": "Up 5 minutes (healthy)"})
	job := entry("c2", "job", map[string]any{"State": "exited", "Status": "Exited (0) 2 hours ago"})
	made := entry("c3", "made", map[string]any{"State": "created", "Status": "Created"})
	webWith := func(key string, value any) json.RawMessage {
		more := map[string]any{"Labels": map[string]string{"tier": "web"}, "Status": "Up 5 minutes (healthy)"}
		more[key] = value
		return entry("c1", "web", more)
	}
	all := []json.RawMessage{web, job, made}
	for _, c := range []struct {
		name   string
		change string // of a row, by somebody else
		list   []json.RawMessage
		known  bool
	}{
		{"the same list", "", all, true},
		{"in another order", "", []json.RawMessage{made, web, job}, true},
		{"time that goes on", "UPDATE containers SET status_at = status_at - 60 WHERE name = 'web'",
			[]json.RawMessage{webWith("Status", "Up 6 minutes (healthy)"), job, made}, true},
		{"time that did not go on", "UPDATE containers SET status_at = status_at - 600 WHERE name = 'web'", all, false},
		{"a restart", "", []json.RawMessage{webWith("Status", "Up 2 seconds (healthy)"), job, made}, false},
		{"another health", "", []json.RawMessage{webWith("Status", "Up 5 minutes (unhealthy)"), job, made}, false},
		{"a Status with an escape", "", []json.RawMessage{json.RawMessage(`{"Id":"c1","Status":"Up \u0035 minutes"}`), job, made}, false},
		{"another label", "", []json.RawMessage{webWith("Labels", map[string]string{"tier": "db"}), job, made}, false},
		{"another state", "", []json.RawMessage{webWith("State", "paused"), job, made}, false},
		{"one less", "", []json.RawMessage{web, job}, false},
		{"none", "", nil, false},
		{"one more", "", append([]json.RawMessage{entry("c4", "new", nil)}, all...), false},
		{"one twice instead of another", "", []json.RawMessage{web, web, made}, false},
		{"one of a wrong shape", "", []json.RawMessage{json.RawMessage(`{"Id": 7`), job, made}, false},
		{"another name in the row", "UPDATE containers SET name = 'shop' WHERE name = 'web'", all, false},
		{"another state in the row", "UPDATE containers SET state = 'paused' WHERE name = 'web'", all, false},
		{"another summary", "UPDATE containers SET summary = replace(summary, 'tier', 'tear') WHERE name = 'web'", all, false},
		{"other words in the row", "UPDATE containers SET status_tail = '' WHERE name = 'web'", all, false},
		{"a row that does not count", "UPDATE containers SET counted = 0 WHERE name = 'web'", all, false},
		{"a row whose reservations are not known", "UPDATE containers SET inspected = 0 WHERE name = 'web'", all, false},
		{"a row that is gone", "DELETE FROM containers WHERE name = 'job'", all, false},
		{"a row that is new", `INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary, inspected)
			VALUES (9, 1, 'c9', 'new', 'busybox', 'running', 1, '{}', 1)`, all, false},
		{"a node of another name", "UPDATE nodes SET name = 'other'", all, false},
		{"a node of another address", "UPDATE nodes SET ip = '10.9.9.9'", all, false},
		{"stopped ones count", "UPDATE manager SET count_stopped = 1", all, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := testNode(t)
			var known knownList
			if _, err := st.putLists(t.Context(), 1, lists{containers: all, known: &known}, 0); err != nil {
				t.Fatal(err)
			}
			st.sql(t, "UPDATE containers SET inspected = 1")
			if c.change != "" {
				st.sql(t, c.change)
			}
			before, err := st.newestContainer(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := st.listsKnown(t.Context(), &before.face, &known, c.list); err != nil || got != c.known {
				t.Errorf("listsKnown after %q = %v, %v, want %v", c.change, got, err, c.known)
			}
		})
	}
}

func TestListWithAnItemOfAWrongShapeIsNotKnown(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	var known knownList
	list := []json.RawMessage{entry("c1", "a", nil), json.RawMessage(`{"Id": 7}`)}
	if _, err := st.putLists(t.Context(), 1, lists{containers: list, known: &known}, 0); err != nil {
		t.Fatal(err)
	}
	if known.rows != nil {
		t.Errorf("a list with an item of a wrong shape is known: %v", known.rows)
	}
}
