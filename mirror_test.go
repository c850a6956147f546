package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	units "github.com/docker/go-units"
)

// testNode is a store with one healthy node, node-1, whose published ports are
// shown with 10.9.8.7.
func testNode(t testing.TB) *store {
	t.Helper()
	st := testStore(t)
	st.sql(t, standardCluster+"; DELETE FROM nodes WHERE id > 1; UPDATE nodes SET ip = '10.9.8.7'")
	return st
}

// entry is a container's list entry; more replaces or adds keys.
func entry(id, name string, more map[string]any) json.RawMessage {
	e := map[string]any{"Id": id, "Names": []string{"/" + name}, "Image": "busybox", "ImageID": "sha256:aa", "Command": "sleep", "Created": 1000,
		"Ports": []any{}, "Labels": map[string]string{}, "State": "running", "Status": "Up 5 minutes",
		"HostConfig": map[string]any{"NetworkMode": "default"}, "NetworkSettings": map[string]any{"Networks": map[string]any{}}, "Mounts": []any{}}
	for k, v := range more {
		e[k] = v
	}
	return json.RawMessage(jsonText(e))
}

// list applies a list of containers, as if it had been asked for just now.
func (s *store) list(t testing.TB, containers ...json.RawMessage) (look []string) {
	t.Helper()
	before, err := s.newestContainer(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	look, err = s.putLists(t.Context(), 1, lists{containers: containers}, before.id)
	if err != nil {
		t.Fatal(err)
	}
	return look
}

func TestListMakesRowsChangesThemAndTakesThemAway(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	// The newest first, as engines list.
	st.list(t, entry("c3", "c", nil), entry("c2", "b", nil), entry("c1", "a", map[string]any{
		"Names":           []string{"/x/alias", "/a"},
		"Labels":          map[string]string{"tier": "db", "com.docker.swarm.id": "s1"},
		"Mounts":          []any{map[string]any{"Type": "volume", "Name": "data", "Source": "/v", "Destination": "/data"}, map[string]any{"Type": "bind", "Source": "/etc", "Destination": "/e"}},
		"NetworkSettings": map[string]any{"Networks": map[string]any{"bridge": map[string]string{"NetworkID": "n1"}}},
		"Ports":           []any{map[string]any{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, map[string]any{"PrivatePort": 443, "Type": "tcp"}}}))
	for _, tt := range []struct{ query, want string }{
		{"SELECT id, container_id, name, image, image_id, state, created_at, swarm_id, counted, inspected FROM containers ORDER BY id",
			"1|c1|a|busybox|sha256:aa|running|1000|s1|1|0\n2|c2|b|busybox|sha256:aa|running|1000||1|0\n3|c3|c|busybox|sha256:aa|running|1000||1|0"},
		{"SELECT * FROM container_labels ORDER BY key", "1|com.docker.swarm.id|s1\n1|tier|db"},
		{"SELECT * FROM mounts ORDER BY destination", "1|volume|data|/v|/data\n1|bind||/etc|/e"},
		{"SELECT * FROM container_networks", "1|bridge|n1"},
		{"SELECT container, host_ip, host_port, last_port, protocol FROM ports", "1||8080|8080|tcp"},
		{"SELECT containers FROM nodes", "3"},
	} {
		if got := st.all(t, tt.query); got != tt.want {
			t.Errorf("after the first list: %s:\n%s\nwant\n%s", tt.query, got, tt.want)
		}
	}
	st.list(t, entry("c4", "d", nil), entry("c2", "renamed", map[string]any{"State": "exited", "Status": "Exited (1) 2 hours ago"}),
		entry("c1", "a", map[string]any{"Labels": map[string]string{"tier": "web"}}))
	for _, tt := range []struct{ query, want string }{
		{"SELECT id, name, state, counted, status_head || '…' || status_tail FROM containers ORDER BY id",
			"1|a|running|1|Up …\n2|renamed|exited|0|Exited (1) … ago\n4|d|running|1|Up …"},
		{"SELECT * FROM container_labels", "1|tier|web"},
		{"SELECT (SELECT count(*) FROM mounts), (SELECT count(*) FROM container_networks), (SELECT count(*) FROM ports)", "0|0|0"},
		{"SELECT containers FROM nodes", "2"},
	} {
		if got := st.all(t, tt.query); got != tt.want {
			t.Errorf("after the second list: %s:\n%s\nwant\n%s", tt.query, got, tt.want)
		}
	}
	st.list(t)
	if got := st.one(t, "SELECT (SELECT count(*) FROM containers), containers FROM nodes"); got != "0|0" {
		t.Errorf("after an empty list: rows|counted = %s", got)
	}
}

func TestListKeepsRowsThatAreNewerThanItself(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	st.list(t, entry("c1", "a", nil))
	before, err := st.newestContainer(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	// While the list is on its way a create is answered.
	sc := testScheduler(t, st, "spread")
	p, err := sc.placeBody(t.Context(), t, "new", `{"Image": "busybox"}`)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.created(t.Context(), p, &containerRow{id: "c2", name: "new", image: "busybox", state: "created", counted: true, summary: []byte("{}")}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := st.putLists(t.Context(), 1, lists{}, before.id); err != nil {
		t.Fatal(err)
	}
	if got := st.all(t, "SELECT name FROM containers"); got != "new" {
		t.Errorf("rows after an old list: %q, want new", got)
	}
	st.list(t)
	if got := st.all(t, "SELECT name FROM containers"); got != "" {
		t.Errorf("rows after the next list: %q, want none", got)
	}
}

func TestListSkipsItemsOfAWrongShapeAndDeletesNothingThen(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	good := lists{
		containers: []json.RawMessage{entry("c1", "a", nil), entry("c2", "b", nil)},
		images:     []json.RawMessage{[]byte(`{"Id":"sha256:aa","RepoTags":["busybox:latest"]}`), []byte(`{"Id":"sha256:bb","RepoTags":["redis:7"]}`)},
		networks:   []json.RawMessage{[]byte(`{"Id":"n1","Name":"front","Scope":"local"}`), []byte(`{"Id":"n2","Name":"back","Scope":"local"}`)},
		volumes:    []json.RawMessage{[]byte(`{"Name":"data","Scope":"local"}`), []byte(`{"Name":"logs","Scope":"local"}`)},
	}
	if _, err := st.putLists(t.Context(), 1, good, 0); err != nil {
		t.Fatal(err)
	}
	const rows = "SELECT (SELECT count(*) FROM containers), (SELECT count(*) FROM images), (SELECT count(*) FROM image_names), (SELECT count(*) FROM networks), (SELECT count(*) FROM volumes)"
	if got := st.one(t, rows); got != "2|2|2|2|2" {
		t.Fatalf("rows %s, want 2 of each", got)
	}
	huge := json.RawMessage(`{"Id":"x","Name":"x","Labels":{"a":"` + strings.Repeat("x", maxSummary) + `"}}`)
	for name, bad := range map[string]json.RawMessage{
		"a number": []byte("7"), "null": []byte("null"), "an array": []byte("[]"), "no ID": []byte("{}"), "an ID of a wrong type": []byte(`{"Id":7,"Name":7}`),
		"an endless ID": []byte(`{"Id":"` + strings.Repeat("a", 1000) + `","Name":"` + strings.Repeat("a", 1000) + `"}`),
		"a huge item":   huge, "deep nesting": []byte(strings.Repeat("[", 20000) + strings.Repeat("]", 20000)),
	} {
		l := lists{
			containers: []json.RawMessage{bad, entry("c1", "renamed", nil)},
			images:     []json.RawMessage{bad, []byte(`{"Id":"sha256:aa","RepoTags":["busybox:1"]}`)},
			networks:   []json.RawMessage{[]byte(`{"Id":"n1","Name":"renamed","Scope":"local"}`), bad},
			volumes:    []json.RawMessage{[]byte(`{"Name":"data","Scope":"global"}`), bad},
		}
		if _, err := st.putLists(t.Context(), 1, l, 99); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := st.one(t, rows); got != "2|2|2|2|2" {
			t.Errorf("%s: rows %s, want 2 of each: nothing may go on the ground of a partial list", name, got)
		}
		want := "bad answer: wrong shape of 1 of 2 containers, 1 of 2 images, 1 of 2 networks, 1 of 2 volumes in the list"
		if got := st.one(t, "SELECT error, (SELECT detail FROM trouble) FROM nodes"); got != want+"|"+want {
			t.Errorf("%s: node's error is %s, want %s", name, got, want)
		}
	}
	if got := st.one(t, "SELECT (SELECT name FROM containers WHERE container_id = 'c1'), (SELECT name FROM image_names WHERE image_id = 'sha256:aa'), (SELECT name FROM networks WHERE network_id = 'n1'), (SELECT scope FROM volumes WHERE name = 'data')"); got !=
		"renamed|docker.io/library/busybox:1|renamed|global" {
		t.Errorf("the good items beside the bad: %s", got)
	}
	good.containers, good.images, good.networks, good.volumes = good.containers[:1], good.images[:1], good.networks[:1], good.volumes[:1]
	if _, err := st.putLists(t.Context(), 1, good, 99); err != nil {
		t.Fatal(err)
	}
	if got := st.one(t, rows+", (SELECT error FROM nodes)"); got != "1|1|1|1|1|" {
		t.Errorf("rows|error after a good list: %s, want 1 of each and no error", got)
	}
}

func TestListThatFailsDeletesNothing(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	for i := range 20 {
		e.addContainer(fmt.Sprint("web-", i), "busybox", true, nil)
	}
	c, _ := testCluster(t, e)
	const rows = "SELECT (SELECT count(*) FROM containers), (SELECT count(*) FROM images), (SELECT count(*) FROM networks)"
	want := c.store.one(t, rows)
	if !strings.HasPrefix(want, "20|") {
		t.Fatalf("rows %s, want 20 containers", want)
	}
	eventually(t, 20*time.Second, func() error { // the first reads are done
		if got := c.store.one(t, "SELECT count(*) FROM containers WHERE inspected"); got != "20" {
			return fmt.Errorf("%s of 20 containers are inspected", got)
		}
		return nil
	})
	c.nodes.settle(t.Context())
	e.mute(true)
	for _, name := range e.containerNames() {
		e.removeContainer(name)
	}
	engine := c.nodes.all()[0]
	for _, path := range []string{"/containers/json", "/images/json", "/networks", "/volumes"} {
		for name, breaks := range map[string]func() func(){
			"500":             func() func() { return e.fail("GET", path, http.StatusInternalServerError, `{"message":"no"}`) },
			"cut off":         func() func() { return e.cutAfter(path, 1) },
			"no answer":       func() func() { return e.dropAnswer(path) },
			"not JSON":        func() func() { return e.fail("GET", path, http.StatusOK, "<html>") },
			"another shape":   func() func() { return e.fail("GET", path, http.StatusOK, `"none"`) },
			"half of an item": func() func() { return e.fail("GET", path, http.StatusOK, `[{"Id":"c1"},{"Id`) },
		} {
			undo := breaks()
			if err := c.nodes.list(t.Context(), engine); err == nil {
				t.Errorf("%s %s: list succeeded", path, name)
			}
			undo()
			if got := c.store.one(t, rows); got != want {
				t.Errorf("%s %s: rows %s, want %s", path, name, got, want)
			}
		}
	}
}

func TestF56ListThatIsEmptyAllOfASuddenIsAskedForTwice(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	e.addContainer("web", "busybox", true, nil)
	c, _ := testCluster(t, e)
	// An engine that is still loading says it has nothing.
	var asked atomic.Int32
	e.override("GET", "^/containers/json$", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("filters") == "" && asked.Add(1) == 1 {
			fmt.Fprint(w, "[]")
			return
		}
		fmt.Fprintf(w, "[%s]", entry("c1", "web", nil))
	})
	if err := c.nodes.list(t.Context(), c.nodes.all()[0]); err != nil {
		t.Fatal(err)
	}
	if got := c.store.one(t, "SELECT count(*) FROM containers WHERE name = 'web'"); got != "1" || asked.Load() != 2 {
		t.Errorf("%s rows after an empty list and a full one, asked %d times, want 1 row of 2", got, asked.Load())
	}
	faultHeld(t, 56, "an empty list is asked for twice, no row goes")
}

func TestListOfOneNodeLeavesAnothersRows(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	same := []json.RawMessage{entry("c1", "a", nil)}
	for _, node := range []int64{1, 2} {
		if _, err := st.putLists(t.Context(), node, lists{containers: same}, 99); err != nil {
			t.Fatal(err)
		}
	}
	if got := st.all(t, "SELECT what, node, detail FROM trouble"); got != "name used twice|node-1, node-2|a\nid used twice|node-1, node-2|c1" {
		t.Errorf("trouble: %s", got)
	}
	if _, err := st.putLists(t.Context(), 2, lists{containers: []json.RawMessage{entry("c1", "stolen", nil)}}, 99); err != nil {
		t.Fatal(err)
	}
	if _, err := st.putLists(t.Context(), 2, lists{}, 99); err != nil {
		t.Fatal(err)
	}
	if got := st.all(t, "SELECT node_id, name FROM containers"); got != "1|a" {
		t.Errorf("rows %s, want node-1's as they were", got)
	}
}

func TestF70ListBoundsHostileText(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	long := strings.Repeat("é", maxText)
	raw := []byte(jsonText(map[string]any{"Id": "c1", "Names": []string{"/" + long}, "Image": long, "ImageID": long, "Status": long, "State": "running",
		"Labels":          map[string]string{long + "1": long, long + "2": "", "com.docker.swarm.id": long, "esc": "\x1b[31m\u2028<script>'); DROP TABLE nodes; --", "nul": "a\x00b"},
		"Mounts":          []any{map[string]string{"Type": long, "Name": long, "Source": long, "Destination": long}},
		"NetworkSettings": map[string]any{"Networks": map[string]any{long + "1": map[string]string{"NetworkID": long}, long + "2": nil}},
		"Ports":           []any{map[string]any{"IP": "evil", "PrivatePort": 1, "PublicPort": 65535, "Type": "tcp"}}}))
	// What JSON text may hold and UTF-8 may not.
	raw = append(raw[:len(raw)-1], []byte(",\"Command\":\"\xff\xfe\\ud800\",\"bad\xff\":1,\"Created\":-9223372036854775808}")...)
	st.list(t, raw)
	if got := st.one(t, "SELECT error, (SELECT count(*) FROM containers) FROM nodes"); got != "|1" {
		t.Fatalf("error|rows = %s, want the container without its excess", got)
	}
	for _, column := range []string{"name FROM containers", "image FROM containers", "image_id FROM containers", "status_head FROM containers", "swarm_id FROM containers",
		"key FROM container_labels", "value FROM container_labels", "name FROM mounts", "source FROM mounts", "name FROM container_networks", "network_id FROM container_networks"} {
		for _, text := range strings.Split(st.all(t, "SELECT "+column), "\n") {
			if len(text) > maxText+3 || !utf8.ValidString(text) {
				t.Errorf("%s: %d bytes, valid %v", column, len(text), utf8.ValidString(text))
			}
		}
	}
	summary := st.one(t, "SELECT summary FROM containers")
	if !utf8.ValidString(summary) || !json.Valid([]byte(summary)) {
		t.Error("the stored entry is not valid")
	}
	if got := st.one(t, "SELECT value FROM container_labels WHERE key = 'esc'"); got != "\x1b[31m\u2028<script>'); DROP TABLE nodes; --" {
		t.Errorf("label %q", got)
	}
	faultHeld(t, 70, "labels of 64 KiB and more, escapes, HTML and bad UTF-8 are bounded and valid in the database")
}

func TestContainerRowReadsStatesAndNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		more  map[string]any
		state string
		count bool
		plain string
	}{
		{"running", nil, "running", true, "a"},
		{"created takes room", map[string]any{"State": "created", "Status": "Created"}, "created", true, "a"},
		{"paused takes room", map[string]any{"State": "paused", "Status": "Up 5 minutes (Paused)"}, "paused", true, "a"},
		{"restarting takes room", map[string]any{"State": "restarting", "Status": "Restarting (1) 5 seconds ago"}, "restarting", true, "a"},
		{"exited takes none", map[string]any{"State": "exited", "Status": "Exited (0) 5 seconds ago"}, "exited", false, "a"},
		{"dead takes none", map[string]any{"State": "dead", "Status": "Dead", "Names": nil}, "dead", false, ""},
		{"removing takes none", map[string]any{"State": "removing", "Status": "Removal In Progress"}, "removing", false, "a"},
		{"a state of a newer engine", map[string]any{"State": "dreaming", "Status": "Dreaming"}, "unknown", false, "a"},
		{"no state, up", map[string]any{"State": "", "Status": "Up 3 weeks"}, "running", true, "a"},
		{"no state, paused", map[string]any{"State": "", "Status": "Up 3 weeks (Paused)"}, "paused", true, "a"},
		{"no state, exited", map[string]any{"State": "", "Status": "Exited (137) 3 weeks ago"}, "exited", false, "a"},
		{"no state, created", map[string]any{"State": "", "Status": "Created"}, "created", true, "a"},
		{"nothing said", map[string]any{"State": "", "Status": ""}, "unknown", false, "a"},
		{"aliases first", map[string]any{"Names": []string{"/x/a", "/y/b", "/real"}}, "running", true, "real"},
		{"aliases only", map[string]any{"Names": []string{"/x/a"}}, "running", true, ""},
	} {
		n := &nodeFace{name: "node-1", now: time.Now()}
		r, err := n.container(entry("c1", "a", tt.more))
		if err != nil || r.state != tt.state || r.counted != tt.count || r.name != tt.plain {
			t.Errorf("%s: %+v, %v, want state %s, counted %v, name %q", tt.name, r, err, tt.state, tt.count, tt.plain)
		}
		n.countStopped = true
		if r, err := n.container(entry("c1", "a", tt.more)); err != nil || !r.counted {
			t.Errorf("%s: with -count-stopped it is not counted, %v", tt.name, err)
		}
	}
}

func TestContainerRowShowsNodeAndReachablePorts(t *testing.T) {
	t.Parallel()
	ports := func(list ...string) json.RawMessage { return json.RawMessage("[" + strings.Join(list, ",") + "]") }
	for _, tt := range []struct {
		name, ip   string
		ports      json.RawMessage
		want       string
		held       string
		moreLabels map[string]string
	}{
		{name: "every address becomes the node's, once", ip: "10.9.8.7",
			ports: ports(`{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}`, `{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}`),
			want:  `[{"IP":"10.9.8.7","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]`, held: "[8080/tcp 8080/tcp]"},
		{name: "one address stays", ip: "10.9.8.7", ports: ports(`{"IP":"127.0.0.1","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}`),
			want: `[{"IP":"127.0.0.1","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]`, held: "[127.0.0.1:8080/tcp]"},
		{name: "TCP and UDP stay two", ip: "10.9.8.7", ports: ports(`{"IP":"0.0.0.0","PrivatePort":53,"PublicPort":53,"Type":"tcp"}`, `{"IP":"0.0.0.0","PrivatePort":53,"PublicPort":53,"Type":"udp"}`),
			want: `[{"IP":"10.9.8.7","PrivatePort":53,"PublicPort":53,"Type":"tcp"},{"IP":"10.9.8.7","PrivatePort":53,"PublicPort":53,"Type":"udp"}]`, held: "[53/tcp 53/udp]"},
		{name: "what is only exposed stays", ip: "10.9.8.7", ports: ports(`{"PrivatePort":80,"Type":"tcp"}`), want: `[{"PrivatePort":80,"Type":"tcp"}]`, held: "[]"},
		{name: "a local socket has no address to show", ip: "", ports: ports(`{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}`),
			want: `[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]`, held: "[8080/tcp]"},
		{name: "an engine's label of ours is not believed", ip: "", ports: ports(), want: `[]`, held: "[]", moreLabels: map[string]string{nodeLabel: "node-9"}},
		{name: "keys of newer engines stay", ip: "10.9.8.7", ports: ports(`{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp","New":18446744073709551616}`),
			want: `[{"IP":"10.9.8.7","PrivatePort":80,"PublicPort":8080,"Type":"tcp","New":18446744073709551616}]`, held: "[8080/tcp]"},
	} {
		n := &nodeFace{name: "node-1", ip: tt.ip, now: time.Now()}
		labels := map[string]string{"a": "b"}
		for k, v := range tt.moreLabels {
			labels[k] = v
		}
		r, err := n.container(entry("c1", "a", map[string]any{"Ports": tt.ports, "Labels": labels}))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var shown struct {
			Ports  json.RawMessage
			Labels map[string]string
			Status *string
		}
		if err := json.Unmarshal(r.summary, &shown); err != nil {
			t.Fatal(err)
		}
		if string(shown.Ports) != tt.want || fmt.Sprint(shown.Labels) != "map[a:b com.docker.swarm.node:node-1]" || shown.Status != nil {
			t.Errorf("%s: ports %s, labels %v, want %s, and no Status", tt.name, shown.Ports, shown.Labels, tt.want)
		}
		if got := fmt.Sprint(heldPorts(r.state, r.ports)); got != tt.held {
			t.Errorf("%s: holds %s, want %s", tt.name, got, tt.held)
		}
	}
}

// TestStatusWordsAreToldAnew takes the words of engines apart and puts them
// together again: at once they are the same, an hour later an hour more.
func TestStatusWordsAreToldAnew(t *testing.T) {
	t.Parallel()
	now := time.Unix(2_000_000_000, 0)
	ages := []time.Duration{0, 999 * time.Millisecond, time.Second, 2 * time.Second, 45 * time.Second, 59 * time.Second, time.Minute, 2 * time.Minute, 46 * time.Minute,
		59 * time.Minute, time.Hour, 90 * time.Minute, 2 * time.Hour, 47 * time.Hour, 48 * time.Hour, 13 * 24 * time.Hour, 14 * 24 * time.Hour,
		60 * 24 * time.Hour, 61 * 24 * time.Hour, 364 * 24 * time.Hour, 730 * 24 * time.Hour, 4000 * 24 * time.Hour}
	shapes := []string{"Up %s", "Up %s (healthy)", "Up %s (unhealthy)", "Up %s (health: starting)", "Up %s (Paused)", "Exited (0) %s ago", "Exited (137) %s ago",
		"Exited (-1) %s ago", "Restarting (1) %s ago"}
	for _, age := range ages {
		for _, shape := range shapes {
			words := fmt.Sprintf(shape, units.HumanDuration(age))
			s := splitStatus(words)
			if !s.timed {
				t.Errorf("splitStatus(%q) found no time", words)
				continue
			}
			at := now.Add(-s.age).Unix()
			if got := statusText(s.head, &at, s.tail, now); got != words {
				t.Errorf("statusText(splitStatus(%q)) = %q", words, got)
			}
			later := fmt.Sprintf(shape, units.HumanDuration(s.age+time.Hour))
			if got := statusText(s.head, &at, s.tail, now.Add(time.Hour)); got != later {
				t.Errorf("%q an hour later = %q, want %q", words, got, later)
			}
			if s.exact() != (age < time.Minute) {
				t.Errorf("splitStatus(%q).exact() = %v", words, s.exact())
			}
		}
	}
	for _, words := range []string{"", "Created", "Dead", "Removal In Progress", "Up", "Up soon", "Up 5 fortnights", "Exited (0)", "Exited () 5 minutes ago", "Host Down", "up 5 minutes"} {
		s := splitStatus(words)
		if s.timed || statusText(s.head, nil, s.tail, now) != words {
			t.Errorf("splitStatus(%q) = %+v, want the words as they are", words, s)
		}
	}
	future := now.Add(time.Minute).Unix()
	if got := statusText("Up ", &future, "", now); got != "Up Less than a second" {
		t.Errorf("a start in the future: %q, want Up Less than a second", got)
	}
}

// TestListAsksForAnInspectOnlyWhenItMust: what a container reserves is in its inspect
// only, as is the exact time behind "Up 2 hours".
func TestListAsksForAnInspectOnlyWhenItMust(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	up := func(words string) json.RawMessage { return entry("c1", "a", map[string]any{"Status": "Up " + words}) }
	if look := st.list(t, up("2 hours")); len(look) != 1 {
		t.Errorf("a new container: look at %v, want c1", look)
	}
	in := &inspected{HostConfig: hostConfig{Memory: 1 << 20, NanoCpus: 5e8}}
	in.State.StartedAt = time.Now().Add(-150 * time.Minute)
	if err := st.write(t.Context(), func(t *tx) error { return t.putInspected(1, "c1", in) }); err != nil {
		t.Fatal(err)
	}
	if got := st.one(t, "SELECT inspected, nano_cpus, memory_bytes, (SELECT used_nano_cpus || '|' || used_memory_bytes FROM nodes) FROM containers"); got != "1|500000000|1048576|500000000|1048576" {
		t.Errorf("inspected|cpus|memory|node's = %s", got)
	}
	if look := st.list(t, up("2 hours")); len(look) != 0 {
		t.Errorf("the same words: look at %v, want nothing", look)
	}
	// It was restarted while nobody saw: the words do not fit the time.
	if look := st.list(t, up("5 minutes")); len(look) != 1 {
		t.Errorf("words that the row cannot explain: look at %v, want c1", look)
	}
	if err := st.write(t.Context(), func(t *tx) error { return t.putInspected(1, "c1", in) }); err != nil {
		t.Fatal(err)
	}
	if look := st.list(t, up("3 seconds")); len(look) != 0 {
		t.Errorf("words that are exact: look at %v, want nothing", look)
	}
	if at := st.one(t, "SELECT strftime('%s','now') - status_at BETWEEN 2 AND 5 FROM containers"); at != "1" {
		t.Error("the time behind Up 3 seconds is not three seconds ago")
	}
}

// TestCreateThatAnEventShowsBeforeItsAnswerCountsOnce: an engine's event, and the
// read that follows it, may be faster than the answer to the create.
func TestCreateThatAnEventShowsBeforeItsAnswerCountsOnce(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	st.sql(t, "UPDATE nodes SET slots = 2")
	sc := testScheduler(t, st, "spread")
	const body = `{"Image": "busybox", "HostConfig": {"Memory": 2147483648, "PortBindings": {"80/tcp": [{"HostPort": "8000-8001"}]}}}`
	p, err := sc.placeBody(t.Context(), t, "a", body)
	if err != nil {
		t.Fatal(err)
	}
	const load = "SELECT containers, used_memory_bytes, (SELECT count(*) FROM ports) FROM nodes"
	id := st.one(t, "SELECT swarm_id FROM reservations")
	seen := entry("c1", "a", map[string]any{"State": "created", "Status": "Created", "Labels": map[string]string{swarmIDLabel: id}})
	st.list(t, seen)
	if got := st.one(t, load); got != "1|2147483648|1" {
		t.Errorf("containers|memory|ports before the answer: %s, want 1|2147483648|1", got)
	}
	in := &inspected{HostConfig: hostConfig{Memory: 2 << 30, PortBindings: map[string][]portBinding{"80/tcp": {{HostPort: "8000-8001"}}}}}
	if err := st.write(t.Context(), func(t *tx) error { return t.putInspected(1, "c1", in) }); err != nil {
		t.Fatal(err)
	}
	first := &containerRow{id: "c1", name: "a", image: "busybox", state: "created", counted: true, summary: []byte("{}")}
	if err := st.created(t.Context(), p, first, 0); err != nil {
		t.Fatal(err)
	}
	if got := st.one(t, load); got != "1|2147483648|1" {
		t.Errorf("containers|memory|ports after the answer: %s, want 1|2147483648|1", got)
	}
	if _, err := sc.placeBody(t.Context(), t, "b", body); err != nil {
		t.Errorf("there is room for a second one, but: %v", err)
	}
	st.list(t, seen)
	if got := st.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted: %s", got)
	}
}

func TestStoppedContainersHoldPortsOnlyIfTheyCount(t *testing.T) {
	t.Parallel()
	port := []any{map[string]any{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}}
	exited := entry("c1", "a", map[string]any{"State": "exited", "Status": "Exited (0) 5 seconds ago"})
	for countStopped, want := range map[int]string{0: "0|0", 1: "1|1"} {
		st := testNode(t)
		st.sql(t, fmt.Sprint("UPDATE manager SET count_stopped = ", countStopped))
		st.list(t, entry("c1", "a", map[string]any{"Ports": port}))
		st.list(t, exited)
		if got := st.one(t, "SELECT containers, (SELECT count(*) FROM ports WHERE host_port = 8080) FROM nodes"); got != want {
			t.Errorf("-count-stopped %d: containers|ports = %s, want %s", countStopped, got, want)
		}
		// One that was stopped before we came tells its ports in its inspect only.
		st.list(t)
		st.list(t, exited)
		in := &inspected{HostConfig: hostConfig{PortBindings: map[string][]portBinding{"80/tcp": {{HostPort: "8080"}}}}}
		if err := st.write(t.Context(), func(t *tx) error { return t.putInspected(1, "c1", in) }); err != nil {
			t.Fatal(err)
		}
		if got := st.one(t, "SELECT containers, (SELECT count(*) FROM ports WHERE host_port = 8080) FROM nodes"); got != want {
			t.Errorf("-count-stopped %d, seen stopped: containers|ports = %s, want %s", countStopped, got, want)
		}
	}
}

func TestImagesAreKnownByTheirNames(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	put := func(images ...string) {
		t.Helper()
		var raw []json.RawMessage
		for _, im := range images {
			raw = append(raw, json.RawMessage(im))
		}
		if _, err := st.putLists(t.Context(), 1, lists{images: raw}, 0); err != nil {
			t.Fatal(err)
		}
	}
	put(`{"Id":"sha256:aa","RepoTags":["busybox:latest","localhost:5000/x/y:1"],"RepoDigests":["busybox@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"],"Size":7,"Created":5}`,
		`{"Id":"sha256:bb","RepoTags":["<none>:<none>"],"RepoDigests":["<none>@<none>"]}`, `{"Id":"sha256:cc","RepoTags":null}`)
	if got := st.all(t, "SELECT name, image_id FROM image_names ORDER BY name"); got !=
		"docker.io/library/busybox:latest|sha256:aa\ndocker.io/library/busybox@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef|sha256:aa\nlocalhost:5000/x/y:1|sha256:aa" {
		t.Errorf("names:\n%s", got)
	}
	if got := st.all(t, "SELECT image_id, dangling, size_bytes, created_at FROM images ORDER BY 1"); got != "sha256:aa|0|7|5\nsha256:bb|1|0|0\nsha256:cc|1|0|0" {
		t.Errorf("images:\n%s", got)
	}
	// A tag moves, whichever image is listed first.
	for _, order := range [][]string{
		{`{"Id":"sha256:bb","RepoTags":["busybox:latest"]}`, `{"Id":"sha256:aa","RepoTags":[]}`},
		{`{"Id":"sha256:bb","RepoTags":[]}`, `{"Id":"sha256:aa","RepoTags":["busybox:latest"]}`},
	} {
		put(order...)
		want := "docker.io/library/busybox:latest|sha256:bb"
		if strings.Contains(order[1], "busybox") {
			want = "docker.io/library/busybox:latest|sha256:aa"
		}
		if got := st.all(t, "SELECT name, image_id FROM image_names"); got != want {
			t.Errorf("after the tag has moved: %s, want %s", got, want)
		}
	}
	put()
	if got := st.one(t, "SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM image_names)"); got != "0|0" {
		t.Errorf("images|names after an empty list: %s", got)
	}
}

func TestContainersOfABurstAreReadTogether(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	marks := &f.nodes.all()[0].marks
	const burst = 40
	marks.hold()
	e.forget()
	var ids []string
	for i := range burst {
		ids = append(ids, e.addContainer(fmt.Sprint("c", i), "busybox", true, nil))
	}
	gone := e.addContainer("gone", "busybox", true, nil)
	ids = append(ids, gone)
	eventually(t, 20*time.Second, func() error {
		for _, id := range ids {
			if !marks.owes(mark{"container", id}) {
				return fmt.Errorf("no read of %s is owed", id)
			}
		}
		return nil
	})
	e.removeContainer("gone")
	marks.release()
	if _, list := f.call(t, "GET", "/containers/json", ""); strings.Count(list, `"State":"running"`) != burst || strings.Contains(list, gone) {
		t.Errorf("the list shows %d running, want %d; the one that has gone: %v", strings.Count(list, `"State":"running"`), burst, strings.Contains(list, gone))
	}
	if n := e.count("GET", "^/containers/json$"); n > burst/2 {
		t.Errorf("the engine was asked for %d lists", n)
	}
}
