package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// listCluster is a cluster of rows without engines: on node-1 and node-2, the
// newest first, sick, done, web, api, db, old.
func listCluster(t testing.TB) *cluster {
	t.Helper()
	st := testStore(t)
	st.sql(t, standardCluster+"; DELETE FROM nodes WHERE id = 3; UPDATE nodes SET ip = '10.9.8.' || id")
	made := func(id string, at int, name string, more map[string]any) json.RawMessage {
		more["Created"] = at
		return entry(id+strings.Repeat("0", 64-len(id)), name, more)
	}
	network := func(name, id string) map[string]any {
		return map[string]any{"Networks": map[string]any{name: map[string]string{"NetworkID": id}}}
	}
	lists1 := []json.RawMessage{
		made("abc1", 1006, "sick", map[string]any{"Status": "Up 5 minutes (unhealthy)", "Image": "mysql:8", "ImageID": "sha256:cc"}),
		made("c0ffee", 1004, "web", map[string]any{"Image": "nginx:1", "ImageID": "sha256:bb", "Labels": map[string]string{"tier": "front", "x": ""}, "Names": []string{"/proxy/alias", "/web"},
			"Ports":           []any{map[string]any{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, map[string]any{"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, map[string]any{"PrivatePort": 443, "Type": "tcp"}},
			"NetworkSettings": network("front", "f00d"), "HostConfig": map[string]any{"NetworkMode": "front", "Annotations": map[string]string{"a": "b"}}, "Health": map[string]any{"Status": "none"},
			"ImageManifestDescriptor": map[string]any{"digest": "x"}, "NewInVersion9": 18446744073709551615.0}),
		made("abc2", 1003, "api", map[string]any{"State": "paused", "Status": "Up 2 hours (Paused)", "Labels": map[string]string{"tier": "back"}, "Image": "sha256:bb", "ImageID": "sha256:bb"}),
	}
	lists2 := []json.RawMessage{
		made("d00d", 1005, "done", map[string]any{"State": "exited", "Status": "Exited (5) 3 minutes ago"}),
		made("dab", 1002, "db", map[string]any{"Status": "Up Less than a second (health: starting)", "Mounts": []any{
			map[string]string{"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data", "Destination": "/data"}, map[string]string{"Type": "bind", "Source": "/etc", "Destination": "/host/etc"}},
			"Ports": []any{map[string]any{"IP": "127.0.0.1", "PrivatePort": 53, "PublicPort": 5353, "Type": "udp"}}, "NetworkSettings": network("back", "beef")}),
		made("0ld", 1001, "old", map[string]any{"State": "created", "Status": "Created"}),
	}
	for node, list := range map[int64][]json.RawMessage{1: lists1, 2: lists2} {
		images := []json.RawMessage{[]byte(`{"Id":"sha256:aa","RepoTags":["busybox:latest"]}`), []byte(`{"Id":"sha256:bb","ParentId":"sha256:aa","RepoTags":["nginx:1"]}`)}
		if _, err := st.putLists(t.Context(), node, lists{containers: list, images: images}, 0); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	return &cluster{log: log, store: st, nodes: newNodes(log, st, nil), infoNodes: 50, names: "plain", base: t.Context()}
}

// ask sends a request to the cluster's endpoint.
func (c *cluster) ask(t testing.TB, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	newAPI(c, c.log, "test", nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// psNames lists containers and returns their plain names, in order.
func (c *cluster) psNames(t testing.TB, query string) string {
	t.Helper()
	w := c.ask(t, "/containers/json?"+query)
	var list []struct{ Names []string }
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil {
		t.Fatalf("%s: %d %s", query, w.Code, w.Body)
	}
	var names []string
	for _, e := range list {
		names = append(names, plainName(e.Names))
	}
	return strings.Join(names, " ")
}

// encodings are the two ways in which clients write filters.
func encodings(t testing.TB, filters map[string][]string) map[string]string {
	t.Helper()
	asSets := map[string]map[string]bool{}
	for k, values := range filters {
		asSets[k] = map[string]bool{}
		for _, v := range values {
			asSets[k][v] = true
		}
	}
	return map[string]string{"lists": "filters=" + url.QueryEscape(jsonText(filters)), "sets": "filters=" + url.QueryEscape(jsonText(asSets))}
}

func TestContainerListFilters(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	const all = "sick done web api db old"
	for _, tt := range []struct {
		name    string
		filters map[string][]string
		want    string // with all=1
		up      string // without, "" if it is the same
	}{
		{"none", nil, all, "sick web api db"},
		{"a name matches anywhere", map[string][]string{"name": {"d"}}, "done db old", "db"},
		{"a name may be anchored", map[string][]string{"name": {"^d"}}, "done db", "db"},
		{"a name may have its slash", map[string][]string{"name": {"/web"}}, "web", ""},
		{"a name with slash may be anchored", map[string][]string{"name": {"^/web$"}}, "web", ""},
		{"an alias is no name", map[string][]string{"name": {"alias"}}, "", ""},
		{"names are alternatives", map[string][]string{"name": {"^web$", "^api$"}}, "web api", ""},
		{"an empty name is any", map[string][]string{"name": {""}}, all, "sick web api db"},
		{"a name that is no pattern", map[string][]string{"name": {"(("}}, "", ""},
		{"an ID", map[string][]string{"id": {"c0ffee" + strings.Repeat("0", 58)}}, "web", ""},
		{"a prefix of an ID", map[string][]string{"id": {"c0f"}}, "web", ""},
		{"a part of an ID is none", map[string][]string{"id": {"0ffee"}}, "", ""},
		{"a prefix that two have is none", map[string][]string{"id": {"abc"}}, "", ""},
		{"IDs are alternatives", map[string][]string{"id": {"abc1", "abc2"}}, "sick api", ""},
		{"wildcards of SQL are no ID", map[string][]string{"id": {"%", "_", "c%"}}, "", ""},
		{"a label", map[string][]string{"label": {"tier"}}, "web api", ""},
		{"a label with its value", map[string][]string{"label": {"tier=back"}}, "api", ""},
		{"labels are conditions", map[string][]string{"label": {"tier", "x"}}, "web", ""},
		{"a label with an empty value", map[string][]string{"label": {"x="}}, "web", ""},
		{"a label that nobody has", map[string][]string{"label": {"none"}}, "", ""},
		{"our label of the node", map[string][]string{"label": {"com.docker.swarm.node=node-2"}}, "done db old", "db"},
		{"status", map[string][]string{"status": {"exited"}}, "done", "done"},
		{"statuses are alternatives", map[string][]string{"status": {"created", "paused"}}, "api old", "api old"},
		{"exit codes", map[string][]string{"exited": {"5"}}, "done", " "},
		{"an exit code that none has", map[string][]string{"exited": {"0"}}, "", ""},
		{"health", map[string][]string{"health": {"unhealthy"}}, "sick", ""},
		{"healths are alternatives", map[string][]string{"health": {"starting", "unhealthy"}}, "sick db", ""},
		{"no health", map[string][]string{"health": {"none"}}, "done web api old", "web api"},
		{"ancestor by name", map[string][]string{"ancestor": {"nginx:1"}}, "web api", ""},
		{"ancestor by the image's ID", map[string][]string{"ancestor": {"sha256:bb"}}, "web api", ""},
		{"ancestor by a short ID", map[string][]string{"ancestor": {"bb"}}, "web api", ""},
		{"ancestor of what was built from it", map[string][]string{"ancestor": {"busybox"}}, "done web api db old", "web api db"},
		{"ancestor that is unknown", map[string][]string{"ancestor": {"none"}}, "", ""},
		{"ancestor that the name says and the ID does not", map[string][]string{"ancestor": {"mysql:8"}}, "", ""},
		{"before", map[string][]string{"before": {"web"}}, "api db old", "api db"},
		{"since", map[string][]string{"since": {"web"}}, "sick done", "sick"},
		{"before and since", map[string][]string{"before": {"sick"}, "since": {"api"}}, "done web", "web"},
		{"publish", map[string][]string{"publish": {"8080"}}, "web", ""},
		{"publish of a range", map[string][]string{"publish": {"8000-9000/tcp"}}, "web", ""},
		{"publish with a protocol", map[string][]string{"publish": {"5353/udp"}}, "db", ""},
		{"publish of another protocol", map[string][]string{"publish": {"5353"}}, "", ""},
		{"publish of a port inside", map[string][]string{"publish": {"80"}}, "", ""},
		{"expose", map[string][]string{"expose": {"443"}}, "web", ""},
		{"expose of a published port", map[string][]string{"expose": {"80/tcp"}}, "web", ""},
		{"publish or expose", map[string][]string{"publish": {"5353/udp"}, "expose": {"443"}}, "web db", ""},
		{"a volume", map[string][]string{"volume": {"data"}}, "db", ""},
		{"where a volume is mounted", map[string][]string{"volume": {"/data"}}, "db", ""},
		{"a path of the host", map[string][]string{"volume": {"/etc"}}, "db", ""},
		{"where a volume lies on its host is none", map[string][]string{"volume": {"/var/lib/docker/volumes/data/_data"}}, "", ""},
		{"a part of a volume's name is none", map[string][]string{"volume": {"dat"}}, "", ""},
		{"a network", map[string][]string{"network": {"front"}}, "web", ""},
		{"networks by ID are alternatives", map[string][]string{"network": {"f00d", "be"}}, "web db", ""},
		{"a part of a network's name is none", map[string][]string{"network": {"fro"}}, "", ""},
		{"a node", map[string][]string{"node": {"node-1"}}, "sick web api", ""},
		{"a node that is unknown", map[string][]string{"node": {"node-9"}}, "", ""},
		{"tasks", map[string][]string{"is-task": {"true"}}, "", ""},
		{"no tasks", map[string][]string{"is-task": {"false"}}, all, "sick web api db"},
		{"isolation means nothing here", map[string][]string{"isolation": {"default"}}, all, "sick web api db"},
		{"keys are conditions", map[string][]string{"name": {"d"}, "status": {"running"}}, "db", ""},
	} {
		up := tt.up
		if up == "" {
			up = tt.want
		}
		for encoding, query := range encodings(t, tt.filters) {
			if got := c.psNames(t, "all=1&"+query); got != tt.want {
				t.Errorf("%s, as %s: %q, want %q", tt.name, encoding, got, tt.want)
			}
			if got := c.psNames(t, query); got != strings.TrimSpace(up) {
				t.Errorf("%s, as %s, without all: %q, want %q", tt.name, encoding, got, up)
			}
		}
	}
}

func TestContainerListLimitCountsWhatIsShown(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	for query, want := range map[string]string{
		"limit=1": "sick", "limit=2": "sick done", "limit=2&all=1": "sick done", "limit=100": "sick done web api db old", "limit=0": "sick web api db", "limit=-1": "sick web api db",
		"limit=2&filters=" + url.QueryEscape(`{"name":["b"]}`): "web db", "all=0": "sick web api db", "all=false": "sick web api db", "all=yes": "sick done web api db old",
		// Parameters of their own before API 1.24; engines of today look at the filters only.
		"since=web": "sick web api db", "before=nosuch": "sick web api db",
	} {
		if got := c.psNames(t, query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

func TestContainerListRefusesWhatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	for query, want := range map[string]string{
		`{"bogus":["1"]}`:       "invalid filter 'bogus'",
		`{"bogus":{"1":true}}`:  "invalid filter 'bogus'",
		`{"Name":["web"]}`:      "invalid filter 'Name'",
		`{"status":["asleep"]}`: "invalid filter 'status=asleep': invalid value for state (asleep): must be one of created, running, paused, restarting, removing, exited, dead",
		`{"health":["fine"]}`:   "invalid filter 'health=fine': invalid value for health (fine): must be one of none, starting, healthy, unhealthy",
		`{"exited":["x"]}`:      `invalid filter 'exited=x': strconv.Atoi: parsing "x": invalid syntax`,
		`{"is-task":["x"]}`:     "invalid filter 'is-task=[x]'",
		`{"publish":["x/tcp"]}`: "error while looking up for publish x/tcp: invalid start port 'x': invalid syntax",
		`{"expose":["80:80"]}`:  "filter for 'expose' should not contain ':': 80:80",
		`{"publish":["9-8"]}`:   "error while looking up for publish 9-8: invalid port range: 9-8",
		`{"publish":["70000"]}`: "error while looking up for publish 70000: invalid start port '70000': value out of range (0–65535)",
		`nope`:                  "invalid filter",
		`{"name":1}`:            "invalid filter",
		`["name"]`:              "invalid filter",
		`{"name":["` + strings.Repeat(`a","`, maxFilters) + `a"]}`: "invalid filters: over 256 values",
	} {
		w := c.ask(t, "/containers/json?all=1&filters="+url.QueryEscape(query))
		var answer struct{ Message string }
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusBadRequest || answer.Message != want {
			t.Errorf("filters=%.40s: %d %q, want 400 %q", query, w.Code, answer.Message, want)
		}
	}
	for query, want := range map[string]int{"limit=x": http.StatusBadRequest, "filters=" + url.QueryEscape(`{"since":["nosuch"]}`): http.StatusNotFound} {
		if w := c.ask(t, "/containers/json?"+query); w.Code != want {
			t.Errorf("%s: %d %s, want %d", query, w.Code, w.Body, want)
		}
	}
}

func TestContainerListNames(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	for form, want := range map[string]string{
		"plain": `[["/sick"],["/proxy/alias","/web"],["/api"],["/db"]]`,
		"both":  `[["/sick","/node-1/sick"],["/proxy/alias","/web","/node-1/web"],["/api","/node-1/api"],["/db","/node-2/db"]]`,
		"node":  `[["/node-1/sick"],["/node-1/web"],["/node-1/api"],["/node-2/db"]]`,
	} {
		c.names = form
		var list []struct{ Names []string }
		if err := json.Unmarshal(c.ask(t, "/containers/json").Body.Bytes(), &list); err != nil {
			t.Fatal(err)
		}
		names := [][]string{}
		for _, e := range list {
			names = append(names, e.Names)
		}
		if got := jsonText(names); got != want {
			t.Errorf("-names=%s: %s, want %s", form, got, want)
		}
		// The filter sees real names only.
		for _, filter := range []string{"node-1", "^/node", "/web"} {
			got := []string{}
			if err := json.Unmarshal(c.ask(t, "/containers/json?filters="+url.QueryEscape(jsonText(map[string][]string{"name": {filter}}))).Body.Bytes(), &list); err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				got = append(got, e.Names...)
			}
			if found := len(got) > 0; found != (filter == "/web") {
				t.Errorf("-names=%s with filter name=%s shows %q", form, filter, got)
			}
		}
	}
}

// TestContainerListCutsFieldsByVersion: entries are kept as the newest engine gives
// them, and an older client gets the fields that its version has.
func TestContainerListCutsFieldsByVersion(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	c.nodes.fleet.Store(&fleetVersions{1024, 1056, 1056})
	for version, want := range map[string][4]bool{ // Health, ImageManifestDescriptor, HostConfig.Annotations, and one that nobody knows
		"": {true, true, true, true}, "/v1.56": {true, true, true, true}, "/v1.52": {true, true, true, true}, "/v1.51": {false, true, true, true}, "/v1.48": {false, true, true, true},
		"/v1.47": {false, false, true, true}, "/v1.46": {false, false, true, true}, "/v1.45": {false, false, false, true}, "/v1.24": {false, false, false, true},
	} {
		w := c.ask(t, version+"/containers/json?filters="+url.QueryEscape(`{"name":["web"]}`))
		var list []map[string]json.RawMessage
		if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != 1 {
			t.Fatalf("%s: %v %s", version, err, w.Body)
		}
		var host map[string]json.RawMessage
		if err := json.Unmarshal(list[0]["HostConfig"], &host); err != nil {
			t.Fatal(err)
		}
		got := [4]bool{list[0]["Health"] != nil, list[0]["ImageManifestDescriptor"] != nil, host["Annotations"] != nil, list[0]["NewInVersion9"] != nil}
		if got != want || string(host["NetworkMode"]) != `"front"` {
			t.Errorf("%s: %v with HostConfig %s, want %v", version, got, list[0]["HostConfig"], want)
		}
	}
	// A field of a wrong shape is nobody's to cut.
	c.store.sql(t, `UPDATE containers SET summary = json_set(summary, '$.HostConfig', 'Annotations')`)
	if w := c.ask(t, "/v1.24/containers/json"); w.Code != http.StatusOK || !json.Valid(w.Body.Bytes()) {
		t.Errorf("with a HostConfig that is a string: %d %s", w.Code, w.Body)
	}
}

func TestContainerListTellsStatusAndPorts(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	c.store.sql(t, `UPDATE containers SET status_at = strftime('%s','now') - 7200 WHERE name IN ('web', 'done'); UPDATE nodes SET state = 'unhealthy' WHERE id = 2`)
	var list []struct {
		Names  []string
		Status string
		Ports  []map[string]any
		Labels map[string]string
	}
	if err := json.Unmarshal(c.ask(t, "/containers/json?all=1").Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprint(plainName(e.Names), ": ", e.Status, " on ", e.Labels[nodeLabel], " ", len(e.Ports)))
	}
	want := []string{"sick: Up 5 minutes (unhealthy) on node-1 0", "done: Host Down on node-2 0", "web: Up 2 hours on node-1 2", "api: Up 2 hours (Paused) on node-1 0",
		"db: Host Down on node-2 1", "old: Host Down on node-2 0"}
	if !slices.Equal(got, want) {
		t.Errorf("list:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if ip := list[2].Ports[0]["IP"]; ip != "10.9.8.1" {
		t.Errorf("port published on every address is shown at %v, want 10.9.8.1", ip)
	}
}

// TestContainerListOrdersAsAnEngine: the newest first, and of one second the one that
// was made last.
func TestContainerListOrdersAsAnEngine(t *testing.T) {
	t.Parallel()
	c := listCluster(t)
	st := c.store
	var list []json.RawMessage
	for i := range 5 {
		list = append(list, entry(fmt.Sprint("e", 5-i), fmt.Sprint("n", 5-i), map[string]any{"Created": 2000}))
	}
	if _, err := st.putLists(t.Context(), 1, lists{containers: list}, 99); err != nil {
		t.Fatal(err)
	}
	filter := func(f string) string {
		return c.psNames(t, "all=1&filters="+url.QueryEscape(f))
	}
	for query, want := range map[string]string{`{"name":["^n"]}`: "n5 n4 n3 n2 n1", `{"since":["n3"]}`: "n5 n4", `{"before":["n3"],"name":["^n"]}`: "n2 n1"} {
		if got := filter(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// The rows lie in the order of lists, whatever an engine tells of when they were made, and
// one that was made at another second than its create has told goes to its place.
func TestContainersLieInTheOrderOfLists(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	made := func(id string, created int64) json.RawMessage {
		return entry(id, id, map[string]any{"Created": created})
	}
	const order = "SELECT group_concat(name, ' ') FROM (SELECT name FROM containers ORDER BY age DESC)"
	first := []json.RawMessage{made("c1", 1000), made("c2", 3000), made("c3", 2000), made("c4", 2000), made("c5", -5), made("c6", math.MaxInt64)}
	st.list(t, first...)
	if got, want := st.one(t, order), "c6 c2 c3 c4 c1 c5"; got != want {
		t.Errorf("order of rows %s, want %s", got, want)
	}
	first[0] = made("c1", 2500)
	st.list(t, first...)
	if got, want := st.one(t, order), "c6 c2 c1 c3 c4 c5"; got != want {
		t.Errorf("order of rows %s, want %s", got, want)
	}
	if got := st.one(t, "SELECT count(*) FROM containers WHERE name <> 'c5' AND name <> 'c6' AND age <> (created_at << 28) + id"); got != "0" {
		t.Errorf("%s rows are not where their second and id say", got)
	}
}
