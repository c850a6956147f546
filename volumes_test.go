package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type shownVolume struct {
	Name, Driver, Scope string
	Labels              map[string]string
}

// volumes lists the volumes that pass the filters.
func (a apiClient) volumes(filters string) []shownVolume {
	a.t.Helper()
	var list struct{ Volumes []shownVolume }
	a.into("GET", "/v1.41/volumes?filters="+url.QueryEscape(filters), "", &list)
	return list.Volumes
}

func volumeNames(list []shownVolume) string {
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (e *fakeEngine) volumeNames() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names []string
	for _, v := range e.volumes {
		names = append(names, v.name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// putVolume makes one behind the manager's back, this long ago.
func (e *fakeEngine) putVolume(name string, ago time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.makeVolume(name, "local", nil, nil, false).created = e.now().Add(-ago)
}

func TestVolumeIsMadeOnOneNodeAndFoundThere(t *testing.T) {
	t.Parallel()
	engines, c, api := threeNodes(t)
	for i := range 6 {
		name := fmt.Sprint("vol", i)
		api.want("POST", "/v1.41/volumes/create", `{"Name":"`+name+`","Labels":{"a":"b"}}`, 201, "")
		found := api.volumes(`{"name":["^` + name + `$"]}`)
		if len(found) != 1 || found[0].Labels["a"] != "b" || found[0].Labels[nodeLabel] == "" {
			t.Fatalf("list after the create of %s: %+v", name, found)
		}
	}
	for _, e := range engines {
		if got := e.volumeNames(); strings.Count(got, "vol") != 2 {
			t.Errorf("%s has %q, want two of six volumes", e.name, got)
		}
	}
	// A known name is answered by the node that has it, whatever the create asks for.
	before := c.store.one(t, "SELECT node_id FROM volumes WHERE name = 'vol4'")
	for range 3 {
		api.want("POST", "/v1.41/volumes/create", `{"Name":"vol4","Labels":{"com.docker.swarm.constraints":"[\"node==n9\"]"}}`, 201, "")
	}
	if after := c.store.all(t, "SELECT node_id FROM volumes WHERE name = 'vol4'"); after != before {
		t.Errorf("vol4 is on nodes %s, want %s", after, before)
	}
	var v shownVolume
	api.into("GET", "/v1.41/volumes/vol4", "", &v)
	if v.Name != "vol4" || v.Labels["a"] != "b" {
		t.Errorf("inspect: %+v", v)
	}
	var anonymous shownVolume
	api.into("POST", "/v1.41/volumes/create", `{}`, &anonymous)
	if got := volumeNames(api.volumes(`{"name":["` + anonymous.Name + `"]}`)); len(anonymous.Name) != 64 || got != anonymous.Name {
		t.Errorf("volume without a name: %s, listed as %s", anonymous.Name, got)
	}
	api.want("DELETE", "/v1.41/volumes/vol4", "", 204, "")
	if got := volumeNames(api.volumes(`{"name":["vol4"]}`)); got != "" {
		t.Errorf("list after the rm: %s", got)
	}
	api.want("DELETE", "/v1.41/volumes/vol4", "", 404, "get vol4: no such volume")
	api.want("DELETE", "/v1.41/volumes/vol4?force=1", "", 204, "")
	api.want("GET", "/v1.41/volumes/vol4", "", 404, "get vol4: no such volume")
	api.want("POST", "/v1.41/volumes/create", `{"Name":7}`, 400, "")
	if got := c.store.all(t, "SELECT count(*) FROM reservations"); got != "0" {
		t.Errorf("%s reservations are left", got)
	}
}

// Networks and volumes take expressions in their labels, as containers do.
func TestExpressionsPlaceNetworksAndVolumes(t *testing.T) {
	t.Parallel()
	_, c, api := threeNodes(t)
	api.want("POST", "/v1.41/containers/create?name=db", `{"Image":"busybox","Env":["constraint:node==n2"]}`, 201, "")
	for i, tt := range []struct{ label, texts, node string }{
		{"constraints", `["node==n3"]`, "n3"}, {"constraints", `["node!=n1","node==/[13]/"]`, "n3"}, {"constraints", "node==n2", "n2"},
		{"whitelists", `["node==n2|n9"]`, "n2"}, {"affinities", `["container==db"]`, "n2"}, {"affinities", `["container!=db","container!=none"]`, ""},
		{"constraints", `["node==~n3"]`, "n3"},
	} {
		name := fmt.Sprint("thing", i)
		body := jsonText(map[string]any{"Name": name, "Labels": map[string]string{"com.docker.swarm." + tt.label: tt.texts}})
		for table, path := range map[string]string{"networks": "/v1.41/networks/create", "volumes": "/v1.41/volumes/create"} {
			api.want("POST", path, body, 201, "")
			got := c.store.one(t, "SELECT n.name FROM "+table+" x JOIN nodes n ON n.id = x.node_id WHERE x.name = ?", name)
			if tt.node != "" && got != tt.node || tt.node == "" && got == "n2" {
				t.Errorf("%s with %s %s is on %s, want %q", table, tt.label, tt.texts, got, tt.node)
			}
		}
	}
	api.want("POST", "/v1.41/volumes/create", `{"Name":"x","Labels":{"com.docker.swarm.constraints":"[\"zone==a\"]"}}`, 503, "no node fits: 3 of 3 fail constraint zone==a")
	api.want("POST", "/v1.41/volumes/create", `{"Name":"x","Labels":{"com.docker.swarm.constraints":"[\"zone=a\"]"}}`, 400, `constraint "zone=a": expected == or !=`)
	api.want("POST", "/v1.41/networks/create", `{"Name":"x","Labels":{"com.docker.swarm.constraints":"[\"zone==/(/\"]"}}`, 400, `constraint "zone==/(/": regular expression "(": missing closing )`)
}

func TestVolumeCreatesOfOneNameMeet(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { api.want("POST", "/v1.41/volumes/create", `{"Name":"data"}`, 201, "") })
	}
	wg.Wait()
	if got := engines[0].volumeNames() + engines[1].volumeNames() + engines[2].volumeNames(); got != "data" {
		t.Errorf("20 creates of one name made %q", got)
	}
}

func TestVolumesOfOneNameMadeBehindOurBack(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	engines[0].putVolume("data", time.Hour)
	engines[1].putVolume("data", 3*time.Hour)
	engines[2].putVolume("data", 2*time.Hour)
	eventually(t, 20*time.Second, func() error {
		if got := volumeNames(api.volumes(`{"name":["^data$"]}`)); got != "data n1/data n3/data" {
			return fmt.Errorf("list: %s", got)
		}
		return nil
	})
	if got := volumeNames(api.volumes(`{"node":["n1"]}`)) + " " + volumeNames(api.volumes(`{"node":["n2"]}`)); got != "n1/data data" {
		t.Errorf("filter node: %s", got)
	}
	api.want("GET", "/v1.41/volumes/data", "", 200, "")
	api.want("GET", "/v1.41/volumes/n3/data", "", 200, "")
	if engines[1].count("GET", "/volumes/data") == 0 || engines[2].count("GET", "/volumes/data") == 0 {
		t.Error("inspects did not reach n2, which has the oldest, and n3")
	}
	const several = "volume data is on 3 nodes: use n2/data or n3/data or n1/data"
	api.want("DELETE", "/v1.41/volumes/data", "", 400, several)
	api.want("DELETE", "/v1.41/volumes/data?force=1", "", 400, several)
	// A mount by plain name is of the oldest, by node/name of that node's.
	for bind, node := range map[string]string{"data:/d": "n2", "n3/data:/d:ro": "n3"} {
		name := "on-" + node
		api.want("POST", "/v1.41/containers/create?name="+name, `{"Image":"busybox","HostConfig":{"Binds":["`+bind+`"]}}`, 201, "")
		e := engines[slices.IndexFunc(engines, func(e *fakeEngine) bool { return e.name == node })]
		if !slices.Contains(e.containerNames(), name) {
			t.Errorf("container with %s is not on %s", bind, node)
		}
		if body := string(e.createBody(name)); !strings.Contains(body, `"data:/d`) || strings.Contains(body, "n3/") {
			t.Errorf("%s got %s", node, body)
		}
	}
	api.want("DELETE", "/v1.41/volumes/n1/data", "", 204, "")
	api.want("DELETE", "/v1.41/volumes/n2/data", "", 409, "")
	api.want("DELETE", "/v1.41/containers/on-n2", "", 204, "")
	api.want("DELETE", "/v1.41/volumes/n2/data", "", 204, "")
	if got := volumeNames(api.volumes("{}")); got != "data" {
		t.Errorf("list after rm n1/data n2/data: %s, want the one that is left by its plain name", got)
	}
	api.want("POST", "/v1.41/volumes/create", `{"Name":"n1/logs"}`, 201, "")
	if engines[0].volumeNames() != "logs" {
		t.Errorf("n1 has %q after create n1/logs", engines[0].volumeNames())
	}
}

func TestVolumeListFilters(t *testing.T) {
	t.Parallel()
	e := named(t, "n1")
	direct := apiClient{t, "http://" + e.addr()}
	direct.want("POST", "/v1.41/volumes/create", `{"Name":"foo1","Labels":{"a":"foo1","b":""}}`, 201, "")
	direct.want("POST", "/v1.41/volumes/create", `{"Name":"foobar","Labels":{"a":"foobar"}}`, 201, "")
	e.addContainerBody("user", []byte(`{"Image":"busybox","HostConfig":{"Binds":["foo1:/x"]}}`), false)
	_, addr := testCluster(t, e)
	api := apiClient{t, addr}
	for _, tt := range []struct{ filters, want string }{
		{`{"name":["foo"]}`, "foo1 foobar"},
		{`{"name":{"^foo1$":true}}`, "foo1"},
		{`{"name":["oo1","bar"]}`, "foo1 foobar"},
		{`{"label":["a=foo1","b"]}`, "foo1"},
		{`{"label":["a="]}`, ""},
		{`{"driver":["local"]}`, "foo1 foobar"},
		{`{"driver":["loc"]}`, ""},
		{`{"dangling":["true"]}`, "foobar"},
		{`{"dangling":["0"]}`, "foo1"},
		{`{"node":["n1"]}`, "foo1 foobar"},
		{`{"node":["n2"]}`, ""},
	} {
		if got := volumeNames(api.volumes(tt.filters)); got != tt.want {
			t.Errorf("volumes with %s: %q, want %q", tt.filters, got, tt.want)
		}
	}
	api.want("GET", "/v1.41/volumes?filters="+url.QueryEscape(`{"scope":["local"]}`), "", 400, "invalid filter 'scope'")
	api.want("GET", "/v1.41/volumes?filters="+url.QueryEscape(`{"dangling":["x"]}`), "", 400, "invalid filter 'dangling=[x]'")
}

func TestNodeNamesAreCutFromReferences(t *testing.T) {
	t.Parallel()
	cut := map[string]string{"n1/data": "data", "n1/net": "net", "n1/db": "db"}
	for _, tt := range []struct{ body, want string }{
		{`{"Image":"n1/data"}`, `{"Image":"n1/data"}`},
		{`{"HostConfig":{"Binds":["n1/data:/d:ro","/n1/data:/e","n1/data2:/f"]}}`, `{"HostConfig":{"Binds":["data:/d:ro","/n1/data:/e","n1/data2:/f"]}}`},
		{`{"hostconfig":{"BINDS":["n1/data:/d"],"x":1}}`, `{"hostconfig":{"BINDS":["data:/d"],"x":1}}`},
		{`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"n1/data","Target":"/d","New":{"a":1}}]}}`,
			`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"data","Target":"/d","New":{"a":1}}]}}`},
		{`{"HostConfig":{"Links":["/n1/db:db"],"VolumesFrom":["n1/db:ro"],"PidMode":"container:n1/db"}}`,
			`{"HostConfig":{"Links":["db:db"],"VolumesFrom":["db:ro"],"PidMode":"container:db"}}`},
		{`{"HostConfig":{"NetworkMode":"n1/net","Binds":null},"NetworkingConfig":{"EndpointsConfig":{"n1/net":{"Aliases":["a"]}}}}`,
			`{"HostConfig":{"NetworkMode":"net","Binds":null},"NetworkingConfig":{"EndpointsConfig":{"net":{"Aliases":["a"]}}}}`},
	} {
		o, err := parseObject([]byte(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(cutReferences(o, cut).bytes()); got != tt.want {
			t.Errorf("cutReferences(%s) = %s, want %s", tt.body, got, tt.want)
		}
	}
}

func TestVolumeOfAPluginIsEverywhere(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	st.sql(t, `INSERT INTO volumes VALUES (1, 'shared', 'rexray', 'global', '', '{"Name":"shared"}'), (2, 'shared', 'rexray', 'global', '', '{"Name":"shared"}');
		UPDATE node_info SET info = '{"Plugins":{"Volume":["local","rexray"]}}' WHERE node_id <> 1`)
	sc := testScheduler(t, st, "spread")
	p, err := sc.place(t.Context(), &workload{kind: "volume", name: "new", driver: "rexray", swarmID: "1", volumes: []string{"new"}})
	if err != nil || p.nodeName != "node-3" {
		t.Errorf("place of a volume with driver rexray = %v, %v, want node-3", p, err)
	}
	if p, err = sc.placeBody(t.Context(), t, "app", `{"Image":"busybox","HostConfig":{"Binds":["shared:/d"]}}`); err != nil || p.nodeName != "node-1" {
		t.Errorf("place of a container with a volume of global scope = %v, %v, want node-1", p, err)
	}
	if p, err = sc.placeBody(t.Context(), t, "app2", `{"Image":"busybox","HostConfig":{"Binds":["new:/d"]}}`); err != nil || p.nodeName != "node-3" {
		t.Errorf("place beside a volume that is being made = %v, %v, want node-3", p, err)
	}
}
