package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"
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
		{"in another order", "", []json.RawMessage{made, web, job}, false},
		{"time that goes on", "UPDATE containers SET status_at = status_at - 60 WHERE name = 'web'",
			[]json.RawMessage{webWith("Status", "Up 6 minutes (healthy)"), job, made}, true},
		{"time that did not go on", "UPDATE containers SET status_at = status_at - 600 WHERE name = 'web'", all, false},
		{"a restart", "", []json.RawMessage{webWith("Status", "Up 2 seconds (healthy)"), job, made}, false},
		{"another health", "", []json.RawMessage{webWith("Status", "Up 5 minutes (unhealthy)"), job, made}, false},
		{"a Status with an escape", "", []json.RawMessage{webWith("Status", "Up 5 minutes (healthy)\""), job, made}, false},
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
			if _, err := st.putLists(t.Context(), 1, lists{containers: all, answer: listOf(all), known: &known}, 0); err != nil {
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
			known.before = before
			if got, err := st.listsKnown(t.Context(), &known, listOf(c.list)); err != nil || got != c.known {
				t.Errorf("listsKnown after %q = %v, %v, want %v", c.change, got, err, c.known)
			}
		})
	}
}

// listOf is an engine's answer that lists these.
func listOf(entries []json.RawMessage) []byte {
	var pieces [][]byte
	for _, e := range entries {
		pieces = append(pieces, e)
	}
	return slices.Concat([]byte("["), bytes.Join(pieces, []byte(",")), []byte("]\n"))
}

func TestListWithAnItemOfAWrongShapeIsNotKnown(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	var known knownList
	list := []json.RawMessage{entry("c1", "a", nil), json.RawMessage(`{"Id": 7}`)}
	if _, err := st.putLists(t.Context(), 1, lists{containers: list, answer: listOf(list), known: &known}, 0); err != nil {
		t.Fatal(err)
	}
	if known.listed {
		t.Errorf("a list with an item of a wrong shape is known: %v", known.entries)
	}
}

// What was known of a list does not outlive a change of the rows, whoever makes it.
func TestListThatIsKnownIsComparedAgainAfterACommit(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	e.override("GET", "^/containers/json$", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "[%s]", entry("c1", "web", nil))
	})
	e.addContainer("web", "busybox", true, nil)
	c, _ := testCluster(t, e)
	engine, st := c.nodes.all()[0], c.store
	var known knownList
	list := func() {
		t.Helper()
		if err := c.nodes.listLess(t.Context(), engine, unlisted{images: true, networks: true, volumes: true}, &known); err != nil {
			t.Fatal(err)
		}
	}
	const broken = "UPDATE containers SET state = 'paused'"
	healed := func() error {
		list()
		if got := st.one(t, "SELECT name || ' ' || state FROM containers"); got != "web running" {
			return fmt.Errorf("after a list the row is %s, want web running", got)
		}
		return nil
	}
	becomesKnown := func() { // what watches the engine commits something of its own now and then
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			st.sql(t, "UPDATE containers SET inspected = 1")
			if list(); !known.told {
				return errors.New("the list is not known")
			}
			return nil
		})
	}
	list()
	becomesKnown()
	for range 2 {
		st.sql(t, broken)
		if err := healed(); err != nil {
			t.Fatal(err)
		}
		becomesKnown()
	}
	db, err := sql.Open("sqlite", dsn(st.path, "mode=rw&_pragma=busy_timeout(5000)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(broken); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, healed)
}

// Images, networks and volumes that are known are not written again, but are when their
// rows have changed; and a list that changes nothing does not look like a change.
func TestWhatIsListedBesideContainersIsKnownToo(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	c, _ := testCluster(t, e)
	e.addImage("busybox", "busybox")
	if status, answer := postJSON(t, "http://"+e.addr()+"/volumes/create", `{"Name":"data"}`); status != http.StatusCreated {
		t.Fatalf("volume create = %d %s", status, answer)
	}
	engine, st := c.nodes.all()[0], c.store
	var known knownList
	list := func() {
		t.Helper()
		if err := c.nodes.listLess(t.Context(), engine, unlisted{}, &known); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 30*time.Second, func() error { // what the start reads may still change something
		before := st.version()
		list()
		list()
		if now := st.version(); now != before {
			return fmt.Errorf("version %v after two lists, before %v", now, before)
		}
		return nil
	})
	for i, kind := range []string{"images", "networks", "volumes"} {
		eventually(t, 30*time.Second, func() error {
			if list(); known.rest[i].hash == 0 || known.rest[i].version != st.version() {
				return fmt.Errorf("%s are not known: %v, version %v", kind, known.rest[i], st.version())
			}
			return nil
		})
		was := st.one(t, "SELECT count(*) FROM "+kind)
		st.sql(t, "DELETE FROM "+kind)
		list()
		if now := st.one(t, "SELECT count(*) FROM "+kind); now != was || was == "0" {
			t.Errorf("%s %s after a list, want %s", now, kind, was)
		}
		list()
	}
}

func TestStatusWordsAreThoseOfTheEntriesThemselves(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ list, words string }{
		{"[]", "[]"},
		{"[{\"Status\":\"Up 1 hour\"}]", "[Up 1 hour]"},
		{" [ { \"Id\" : \"a\", \"Status\" : \"Up\" } , {\"Status\":\"\",\"Id\":\"b\"} ]\n", "[Up ]"},
		{`[{"Labels":{"Status":"no","x":"\"Status\":\"no\""},"Health":{"Status":"healthy"},"Status":"Up"}]`, "[Up]"},
		{`[{"Status":"a"},{}]`, "[]"},
		{`[{"Status":"a"},{"Id":"b"}]`, "[]"},
		{`[{"Status":"a","Status":"b"}]`, "[]"},
		{`[{"Status":"\u0041"}]`, "[]"},
		{`[{"Status":7}]`, "[]"},
		{`{"Status":"a"}`, "[]"},
	} {
		words := []string{}
		for _, w := range statusWordsIn([]byte(tt.list)) {
			words = append(words, tt.list[w.from:w.to])
		}
		if got := fmt.Sprint(words); got != tt.words {
			t.Errorf("statusWordsIn(%s) = %q, want %s", tt.list, words, tt.words)
		}
	}
}

// A list that is known says the same only with the same bytes around the same places.
func FuzzKnownList(f *testing.F) {
	f.Add([]byte(`[{"Id":"a","Status":"Up 1 hour"},{"Id":"b","Status":""}]`), 9, byte('x'))
	f.Fuzz(func(t *testing.T, list []byte, at int, to byte) {
		words := statusWordsIn(list)
		if words == nil {
			return
		}
		var known knownList
		known.note(list, make([]uint64, len(words)))
		said, same := known.says(list)
		if !same || len(said) != len(words) {
			t.Fatalf("%q does not say what it says: %q", list, said)
		}
		for i, w := range words {
			if !bytes.Equal(said[i], list[w.from:w.to]) {
				t.Fatalf("of %q the words are %q, want %q", list, said[i], list[w.from:w.to])
			}
		}
		if at < 0 || at >= len(list) || list[at] == to || slices.ContainsFunc(words, func(w span) bool { return at >= w.from && at <= w.to }) {
			return
		}
		other := bytes.Clone(list)
		other[at] = to
		if _, same := known.says(other); same {
			t.Fatalf("%q and %q are taken for the same", list, other)
		}
	})
}
