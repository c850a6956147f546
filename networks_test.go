package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiClient talks to one endpoint as a program does that knows nothing of a cluster.
type apiClient struct {
	t   testing.TB
	url string
}

// do sends one request and returns the status and the body.
func (a apiClient) do(method, path, body string) (int, string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data))
}

// want sends one request that must be answered with this status and message.
func (a apiClient) want(method, path, body string, status int, message string) {
	a.t.Helper()
	got, text := a.do(method, path, body)
	var m struct{ Message string }
	json.Unmarshal([]byte(text), &m) // a body of another kind has no message
	if got != status || message != "" && m.Message != message {
		a.t.Errorf("%s %s: %d %s, want %d %s", method, path, got, text, status, message)
	}
}

// into sends one request that must succeed and decodes its answer.
func (a apiClient) into(method, path, body string, dest any) {
	a.t.Helper()
	status, text := a.do(method, path, body)
	if status >= 300 {
		a.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	if err := json.Unmarshal([]byte(text), dest); err != nil {
		a.t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
}

// networks lists name, node label and ID of what /networks shows.
func (a apiClient) networks(filters string) []shownNetwork {
	a.t.Helper()
	var list []shownNetwork
	a.into("GET", "/v1.41/networks?filters="+url.QueryEscape(filters), "", &list)
	slices.SortFunc(list, func(x, y shownNetwork) int { return strings.Compare(x.Name+x.Id, y.Name+y.Id) })
	return list
}

type shownNetwork struct {
	Name, Id, Driver, Scope string
	Labels                  map[string]string
	Containers              map[string]struct{ Name string }
	Peers                   []struct{ Name string }
}

func networkNames(list []shownNetwork) string {
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	return strings.Join(names, " ")
}

// named starts a fake engine with a host name.
func named(t testing.TB, name string, opts ...func(*fakeEngine)) *fakeEngine {
	t.Helper()
	return newFakeEngine(t, append([]func(*fakeEngine){func(e *fakeEngine) { e.name = name }}, opts...)...)
}

// threeNodes is a cluster of three simulated engines, n1 to n3.
func threeNodes(t testing.TB) ([]*fakeEngine, *cluster, apiClient) {
	t.Helper()
	engines := []*fakeEngine{named(t, "n1"), named(t, "n2"), named(t, "n3")}
	c, addr := testCluster(t, engines...)
	return engines, c, apiClient{t, addr}
}

func (e *fakeEngine) networkNames() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names []string
	for _, n := range e.networks {
		if !n.builtin {
			names = append(names, n.name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (e *fakeEngine) networkID(t testing.TB, name string) string {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.findNetwork(name)
	if n == nil {
		t.Fatalf("%s has no network %s", e.name, name)
	}
	return n.id
}

// makeNetwork makes one behind the manager's back.
func (e *fakeEngine) makeNetwork(t testing.TB, body string) {
	t.Helper()
	apiClient{t, "http://" + e.addr()}.want("POST", "/v1.41/networks/create", body, 201, "")
}

func TestNetworkIsMadeOnOneNodeAndListedAtOnce(t *testing.T) {
	t.Parallel()
	engines, c, api := threeNodes(t)
	for i := range 9 {
		name := fmt.Sprint("net", i)
		api.want("POST", "/v1.41/networks/create", `{"Name":"`+name+`","Labels":{"a":"b"},"Unheard":1}`, 201, "")
		found := api.networks(`{"name":["^` + name + `$"],"label":["a=b"]}`)
		if len(found) != 1 || found[0].Driver != "bridge" || found[0].Labels[nodeLabel] == "" {
			t.Fatalf("list after the create of %s: %+v", name, found)
		}
	}
	for _, e := range engines {
		if got := e.networkNames(); strings.Count(got, "net") != 3 {
			t.Errorf("%s has %q, want three of nine networks", e.name, got)
		}
	}
	if got := c.store.all(t, "SELECT count(*), min(outcome), max(outcome) FROM placements WHERE kind = 'network' AND outcome <> 'moved'"); got != "9|created|created" {
		t.Errorf("ledger: %s", got)
	}
	if got := c.store.all(t, "SELECT count(*) FROM reservations"); got != "0" {
		t.Errorf("%s reservations are left", got)
	}
	last := engines[0].requests()
	at := slices.IndexFunc(last, func(r fakeRequest) bool { return strings.HasSuffix(r.path, "/networks/create") })
	if at < 0 || !strings.Contains(string(last[at].body), `"Unheard":1`) {
		t.Errorf("a key that nobody has heard of did not reach the engine")
	}
}

func TestNetworkNameIsUniqueInTheCluster(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	const conflict = "network with name web already exists"
	statuses := make(chan int, 20)
	var wg sync.WaitGroup
	for range cap(statuses) {
		wg.Go(func() {
			status, _ := api.do("POST", "/v1.41/networks/create", `{"Name":"web"}`)
			statuses <- status
		})
	}
	wg.Wait()
	close(statuses)
	count := map[int]int{}
	for s := range statuses {
		count[s]++
	}
	if count[201] != 1 || count[409] != 19 {
		t.Errorf("20 creates of one name at once: %v, want one 201 and 19 409", count)
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"web","CheckDuplicate":true}`, 409, conflict)
	api.want("POST", "/v1.41/networks/create", `{"name":"web"}`, 409, conflict)
	if got := engines[0].networkNames() + engines[1].networkNames() + engines[2].networkNames(); got != "web" {
		t.Errorf("networks on the engines: %q, want web", got)
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"bridge"}`, 403, "operation is not permitted on predefined bridge network ")
	api.want("POST", "/v1.41/networks/create", `{"Name":`, 400, "")
	api.want("DELETE", "/v1.41/networks/web", "", 204, "")
	if got := networkNames(api.networks("{}")); got != "bridge host none" {
		t.Errorf("list after the rm: %s", got)
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"web"}`, 201, "")
}

func TestBuiltinNetworksAreOne(t *testing.T) {
	t.Parallel()
	engines, c, api := threeNodes(t)
	list := api.networks("{}")
	if got := networkNames(list); got != "bridge host none" {
		t.Fatalf("list: %s, want each once", got)
	}
	first := c.store.one(t, "SELECT network_id FROM networks WHERE name = 'bridge' ORDER BY node_id LIMIT 1")
	if list[0].Id != first || list[0].Labels[nodeLabel] != "" {
		t.Errorf("bridge is listed as %+v, want the first node's ID %s and no node", list[0], first)
	}
	for _, e := range engines {
		e.addContainer("on-"+e.name, "busybox", true, nil)
	}
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT count(*) FROM container_networks WHERE network_id <> ''"); got != "3" {
			return fmt.Errorf("%s containers are known with their network", got)
		}
		return nil
	})
	var n shownNetwork
	api.into("GET", "/v1.41/networks/bridge", "", &n)
	if len(n.Containers) != 3 || n.Id != first {
		t.Errorf("inspect by name: %+v, want the containers of all nodes and ID %s", n, first)
	}
	for _, e := range engines {
		id := e.networkID(t, "bridge")
		n = shownNetwork{}
		api.into("GET", "/v1.41/networks/"+id, "", &n)
		if n.Id != id || len(n.Containers) != 1 {
			t.Errorf("inspect by the ID of %s: %+v", e.name, n)
		}
		n = shownNetwork{}
		api.into("GET", "/v1.41/networks/"+e.name+"/bridge", "", &n)
		if n.Id != id {
			t.Errorf("inspect of %s/bridge: %+v", e.name, n)
		}
	}
	var containers []struct {
		NetworkSettings struct {
			Networks map[string]struct{ NetworkID string }
		}
	}
	api.into("GET", "/v1.41/containers/json?filters="+url.QueryEscape(`{"network":["`+first[:12]+`"]}`), "", &containers)
	if len(containers) != 3 {
		t.Errorf("%d containers are in the network that the list shows, want 3", len(containers))
	}
	for _, ct := range containers {
		if got := ct.NetworkSettings.Networks["bridge"].NetworkID; got != first {
			t.Errorf("container list has network ID %s, want %s, as the network list", got, first)
		}
	}
	api.want("DELETE", "/v1.41/networks/bridge", "", 403, "bridge is a pre-defined network and cannot be removed")
}

func TestNetworksOfOneNameMadeBehindOurBack(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	engines[0].makeNetwork(t, `{"Name":"twice"}`)
	engines[2].makeNetwork(t, `{"Name":"twice"}`)
	eventually(t, 20*time.Second, func() error {
		if got := networkNames(api.networks(`{"type":["custom"]}`)); got != "twice twice" {
			return fmt.Errorf("list: %s", got)
		}
		return nil
	})
	if found := api.networks(`{"name":["twice"],"node":["n3"]}`); len(found) != 1 || found[0].Labels[nodeLabel] != "n3" {
		t.Errorf("filter node: %+v", found)
	}
	api.want("GET", "/v1.41/networks/twice", "", 400, "network twice is ambiguous (2 matches found based on name)")
	api.want("DELETE", "/v1.41/networks/twice", "", 400, "network twice is ambiguous (2 matches found based on name): use n1/twice or n3/twice")
	if engines[0].networkNames() != "twice" || engines[2].networkNames() != "twice" {
		t.Error("a refused rm removed something")
	}
	var n shownNetwork
	api.into("GET", "/v1.41/networks/n3/twice", "", &n)
	if n.Id != engines[2].networkID(t, "twice") {
		t.Errorf("n3/twice is %s", n.Id)
	}
	api.into("GET", "/v1.41/networks/"+n.Id[:10], "", &n)
	api.want("DELETE", "/v1.41/networks/n3/twice", "", 204, "")
	if got := engines[0].networkNames() + "|" + engines[2].networkNames(); got != "twice|" {
		t.Errorf("after rm n3/twice: %s", got)
	}
	api.want("GET", "/v1.41/networks/twice", "", 200, "")
	// Two of one name on one node, as engines before 23 allow, can be told apart by ID only.
	engines[0].makeNetwork(t, `{"Name":"twice"}`)
	eventually(t, 20*time.Second, func() error {
		if n := len(api.networks(`{"name":["twice"]}`)); n != 2 {
			return fmt.Errorf("%d networks twice are listed", n)
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		status, text := api.do("DELETE", "/v1.41/networks/n1/twice", "")
		if status != 400 || !strings.Contains(text, "network n1/twice is ambiguous (2 matches found based on name): use ") || strings.Contains(text, " n1/twice or ") {
			return fmt.Errorf("rm n1/twice: %d %s", status, text)
		}
		return nil
	})
	for _, n := range api.networks(`{"name":["twice"]}`) {
		api.want("DELETE", "/v1.41/networks/"+n.Id, "", 204, "")
	}
	api.want("GET", "/v1.41/networks/nosuch", "", 404, "network nosuch not found")
	api.want("DELETE", "/v1.41/networks/nosuch", "", 404, "network nosuch not found")
	api.want("GET", "/v1.41/networks/twice?scope=swarm", "", 404, "network twice not found")
}

func TestNetworkListFilters(t *testing.T) {
	t.Parallel()
	e := named(t, "n1")
	e.makeNetwork(t, `{"Name":"foo1","Labels":{"a":"foo1","b":""}}`)
	e.makeNetwork(t, `{"Name":"foobar","Driver":"macvlan","Labels":{"a":"foobar"}}`)
	e.addContainerBody("in", []byte(`{"Image":"busybox","HostConfig":{"NetworkMode":"foo1"}}`), true)
	_, addr := testCluster(t, e)
	api := apiClient{t, addr}
	id := e.networkID(t, "foo1")
	for _, tt := range []struct{ filters, want string }{
		{`{"name":["foo"]}`, "foo1 foobar"},
		{`{"name":["^foo1$"]}`, "foo1"},
		{`{"name":{"oo1":true}}`, "foo1"},
		{`{"name":["foo1","none"]}`, "foo1 none"},
		{`{"id":["` + id[:8] + `"]}`, "foo1"},
		{`{"label":["a"]}`, "foo1 foobar"},
		{`{"label":["a=foo1","b"]}`, "foo1"},
		{`{"label":["a="]}`, ""},
		{`{"label":["` + nodeLabel + `=n1"]}`, "foo1 foobar"},
		{`{"driver":["bridge","host"]}`, "bridge foo1 host"},
		{`{"driver":["bri"]}`, ""},
		{`{"scope":["local"],"type":["builtin"]}`, "bridge host none"},
		{`{"scope":["swarm"]}`, ""},
		{`{"type":["custom"]}`, "foo1 foobar"},
		{`{"type":["builtin","custom"]}`, "bridge foo1 foobar host none"},
		{`{"dangling":["true"]}`, "foobar"},
		{`{"dangling":["0"]}`, "bridge foo1 host none"},
		{`{"node":["n1"],"name":["foo1"]}`, "foo1"},
		{`{"node":["n2"]}`, ""},
	} {
		if got := networkNames(api.networks(tt.filters)); got != tt.want {
			t.Errorf("networks with %s: %q, want %q", tt.filters, got, tt.want)
		}
	}
	for filters, message := range map[string]string{
		`{"bogus":["x"]}`:               "invalid filter 'bogus'",
		`{"type":["x"]}`:                "invalid filter: 'type'='x'",
		`{"dangling":["x"]}`:            `invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")`,
		`{"dangling":["true","false"]}`: `got more than one value for filter key "dangling"`,
		`{"name":`:                      "",
	} {
		api.want("GET", "/v1.41/networks?filters="+url.QueryEscape(filters), "", 400, message)
	}
}

func TestNetworkConnectGoesToTheContainersEngine(t *testing.T) {
	t.Parallel()
	engines, c, api := threeNodes(t)
	engines[1].addContainer("web", "busybox", true, nil)
	stopped := engines[1].addContainer("idle", "busybox", false, nil)
	engines[0].addContainer("far", "busybox", true, nil)
	engines[1].makeNetwork(t, `{"Name":"demo"}`)
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT count(*) FROM containers") + c.store.all(t, "SELECT count(*) FROM networks WHERE name = 'demo'"); got != "31" {
			return fmt.Errorf("containers and networks known: %s", got)
		}
		return nil
	})
	inDemo := func() string {
		t.Helper()
		var list []struct{ Names []string }
		api.into("GET", "/v1.41/containers/json?all=1&filters="+url.QueryEscape(`{"network":["demo"]}`), "", &list)
		var names []string
		for _, l := range list {
			names = append(names, l.Names[0])
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	api.want("POST", "/v1.41/networks/demo/connect", `{"Container":"web","EndpointConfig":{"Aliases":["w"]}}`, 200, "")
	api.want("POST", "/v1.41/networks/demo/connect", `{"Container":"n2/idle"}`, 200, "")
	if got := inDemo(); got != "/idle /web" {
		t.Errorf("in demo after the connects: %s, want a stopped container too", got)
	}
	var n shownNetwork
	api.into("GET", "/v1.41/networks/demo", "", &n)
	if len(n.Containers) != 1 {
		t.Errorf("inspect: %+v, want the one that runs", n)
	}
	api.want("POST", "/v1.41/networks/"+n.Id+"/disconnect", `{"Container":"`+stopped[:12]+`"}`, 200, "")
	if got := inDemo(); got != "/web" {
		t.Errorf("in demo after the disconnect: %s", got)
	}
	api.want("POST", "/v1.41/networks/demo/connect", `{"Container":"far"}`, 400,
		"network demo is on node n2, container far is on node n1, where a local network does not reach: make the network there (n1/demo)")
	api.want("POST", "/v1.41/networks/nosuch/connect", `{"Container":"web"}`, 404, "network nosuch not found")
	api.want("POST", "/v1.41/networks/demo/connect", `{"Container":"nosuch"}`, 404, "No such container: nosuch")
	api.want("POST", "/v1.41/networks/demo/disconnect", `{"Container":"nosuch","Force":true}`, 404, "No such container: nosuch")
	api.want("POST", "/v1.41/networks/demo/connect", `{}`, 400, `invalid name or ID supplied: ""`)
	// By the ID that the list shows, which is the first node's.
	api.want("POST", "/v1.41/networks/"+engines[0].networkID(t, "bridge")+"/disconnect", `{"Container":"web"}`, 200, "")
	if got := engines[1].count("POST", "/networks/bridge/disconnect"); got != 1 {
		t.Errorf("disconnect from bridge reached n2 %d times", got)
	}
}

func TestNetworkGoesWhereItsDriverIs(t *testing.T) {
	t.Parallel()
	weave := func(e *fakeEngine) {
		e.info = map[string]any{"Plugins": map[string]any{"Network": []string{"bridge", "weave:latest"}, "Volume": []string{"local"}}}
	}
	engines := []*fakeEngine{named(t, "n1"), named(t, "n2", weave), named(t, "n3")}
	c, addr := testCluster(t, engines...)
	api := apiClient{t, addr}
	// The simulated engine does not know the driver it names; that it was asked is what counts.
	api.want("POST", "/v1.41/networks/create", `{"Name":"w","Driver":"weave"}`, 404, `plugin "weave" not found`)
	if got := engines[1].count("POST", "/networks/create"); got != 1 {
		t.Errorf("n2 was asked %d times, want 1", got)
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"w","Driver":"weave","Labels":{"com.docker.swarm.constraints":"[\"node==n1\"]"}}`, 503,
		"no node fits: 2 of 3 do not have network driver weave, 1 fails constraint node==n1 (n1, n3; n2)")
	api.want("POST", "/v1.41/networks/create", `{"Name":"w","Driver":"nosuch"}`, 404, `plugin "nosuch" not found`)
	api.want("POST", "/v1.41/networks/create", `{"Name":"w","Labels":{"com.docker.swarm.constraints":"[\"node==n3\"]"}}`, 201, "")
	api.want("POST", "/v1.41/networks/create", `{"Name":"n1/v"}`, 201, "")
	api.want("POST", "/v1.41/networks/create", `{"Name":"x","Labels":{"com.docker.swarm.constraints":"[\"node=n3\"]"}}`, 400,
		`constraint "node=n3": expected == or !=`)
	if engines[2].networkNames() != "w" || engines[0].networkNames() != "v" {
		t.Errorf("networks: n1 %q, n3 %q, want v and w", engines[0].networkNames(), engines[2].networkNames())
	}
	if got := c.store.all(t, "SELECT count(*) FROM reservations"); got != "0" {
		t.Errorf("%s reservations are left", got)
	}
}

func TestNetworkCreateWithoutAnswerIsSettledByALook(t *testing.T) {
	t.Parallel()
	e := named(t, "n1")
	c, addr := testCluster(t, e)
	api := apiClient{t, addr}
	undo := e.dropAnswer("^/networks/create$")
	status, text := api.do("POST", "/v1.41/networks/create", `{"Name":"web"}`)
	undo()
	if status != http.StatusBadGateway || !strings.Contains(text, "outcome unknown") {
		t.Errorf("create whose answer was lost: %d %s", status, text)
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"web"}`, 409, "network with name web already exists")
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT (SELECT count(*) FROM reservations), outcome FROM placements LIMIT 1"); got != "0|created" {
			return fmt.Errorf("reservations|outcome: %s", got)
		}
		return nil
	})
	undo = e.override("POST", "^/networks/create$", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	api.want("POST", "/v1.41/networks/create", `{"Name":"never"}`, 502, "")
	undo()
	eventually(t, 15*time.Second, func() error {
		if got := c.store.all(t, "SELECT outcome FROM placements WHERE name = 'never'") + c.store.all(t, "SELECT count(*) FROM reservations"); got != "failed0" {
			return fmt.Errorf("outcome and reservations: %s", got)
		}
		return nil
	})
	api.want("POST", "/v1.41/networks/create", `{"Name":"never"}`, 201, "")
}

func TestListUnderWaySparesANewNetwork(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, "INSERT INTO nodes (id, name, address) VALUES (1, 'n1', 'tcp://a')")
	owed := func(k mark) bool { return k == mark{"network", "new"} || k == mark{"volume", "new"} }
	err := st.write(t.Context(), func(x *tx) error {
		for _, id := range []string{"old", "new"} {
			if _, err := x.putNetworkRow(1, json.RawMessage(`{"Id":"`+id+`","Name":"`+id+`","Scope":"local","Driver":"bridge"}`), nil); err != nil {
				return err
			}
			if _, err := x.putVolumeRow(1, json.RawMessage(`{"Name":"`+id+`","Scope":"local","Driver":"local"}`), nil); err != nil {
				return err
			}
		}
		if _, err := x.putNetworks(1, nil, owed); err != nil {
			return err
		}
		_, err := x.putVolumes(1, nil, owed)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := st.all(t, "SELECT group_concat(name) FROM networks") + " " + st.all(t, "SELECT group_concat(name) FROM volumes"); got != "new new" {
		t.Errorf("rows after a list without them: %s, want those owed a read", got)
	}
}

// inSwarm is what /info of an engine in Docker's Swarm mode says.
func inSwarm(id, cluster string, managers ...string) func(*fakeEngine) {
	return func(e *fakeEngine) {
		remote := []map[string]string{}
		for _, m := range managers {
			remote = append(remote, map[string]string{"NodeID": m, "Addr": m + ":2377"})
		}
		swarm := map[string]any{"NodeID": id, "LocalNodeState": "active", "ControlAvailable": cluster != "", "RemoteManagers": remote}
		if cluster != "" {
			swarm["Cluster"] = map[string]any{"ID": cluster}
		}
		e.info = map[string]any{"Swarm": swarm}
	}
}

// list gives an engine a network of the swarm, as it has while a container uses it.
func (e *fakeEngine) list(id, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := &fakeNetwork{id: id, name: name, driver: "overlay", scope: "swarm", created: e.now(), attachable: true}
	e.networks = append(e.networks, n)
	e.emitNow("network", "create", n.id, "", map[string]string{"name": n.name, "type": n.driver})
}

// unlist takes it away again.
func (e *fakeEngine) unlist(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := e.findNetwork(id); n != nil {
		e.dropNetwork(n)
	}
}

func TestSwarmNetworkBelongsToItsSwarm(t *testing.T) {
	t.Parallel()
	manager, worker, alone := named(t, "n1", inSwarm("m", "s1", "m")), named(t, "n2", inSwarm("w", "", "m")), named(t, "n3")
	manager.override("POST", "^/networks/create$", func(w http.ResponseWriter, r *http.Request) {
		manager.list("ov0123456789ov0123456789o", "ov")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(201)
		io.WriteString(w, `{"Id":"ov0123456789ov0123456789o","Warning":""}`)
	})
	c, addr := testCluster(t, alone, worker, manager)
	api := apiClient{t, addr}
	if got := c.store.all(t, "SELECT name, docker_swarm, swarm_manager FROM nodes ORDER BY name"); got != "n1|s1|1\nn2|s1|0\nn3||0" {
		t.Errorf("swarms: %s", got)
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"ov","Driver":"overlay","Attachable":true}`, 201, "")
	if manager.count("POST", "/networks/create") != 1 {
		t.Error("the create did not go to the manager")
	}
	api.want("POST", "/v1.41/networks/create", `{"Name":"ov","Driver":"overlay"}`, 409, "network with name ov already exists")
	for name, constraint := range map[string]string{"on-worker": "node==n2", "on-manager": "node==n1"} {
		api.want("POST", "/v1.41/containers/create?name="+name, `{"Image":"busybox","Env":["constraint:`+constraint+`"],"HostConfig":{"NetworkMode":"ov"}}`, 201, "")
	}
	api.want("POST", "/v1.41/containers/create?name=nowhere", `{"Image":"busybox","Env":["constraint:node==n3"],"HostConfig":{"NetworkMode":"ov"}}`, 503, "")
	worker.list("ov0123456789ov0123456789o", "ov")
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT count(*) FROM networks WHERE name = 'ov'"); got != "2" {
			return fmt.Errorf("%s rows of ov", got)
		}
		return nil
	})
	if got := networkNames(api.networks(`{"scope":["swarm"]}`)); got != "ov" {
		t.Errorf("list: %s, want ov once", got)
	}
	worker.startContainer("on-worker")
	manager.startContainer("on-manager")
	var n shownNetwork
	api.into("GET", "/v1.41/networks/ov", "", &n)
	if len(n.Containers) != 2 || n.Id != "ov0123456789ov0123456789o" {
		t.Errorf("inspect: %+v, want the containers of both nodes", n)
	}
	alone.addContainer("outside", "busybox", true, nil)
	eventually(t, 20*time.Second, func() error {
		status, text := api.do("POST", "/v1.41/networks/ov/connect", `{"Container":"outside"}`)
		if status != 400 || !strings.Contains(text, "is of a swarm that node n3, with container outside, is not in") {
			return fmt.Errorf("connect from outside the swarm: %d %s", status, text)
		}
		return nil
	})
	worker.removeContainer("on-worker")
	manager.removeContainer("on-manager")
	worker.unlist("ov0123456789ov0123456789o")
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT n.name FROM networks x JOIN nodes n ON n.id = x.node_id WHERE x.name = 'ov'"); got != "n1" {
			return fmt.Errorf("rows of ov on %s", got)
		}
		return nil
	})
	api.want("GET", "/v1.41/networks/ov", "", 200, "")
	api.want("DELETE", "/v1.41/networks/ov", "", 204, "")
	if manager.count("DELETE", "/networks/ov0123456789ov0123456789o") != 1 {
		t.Error("the rm did not go to the manager")
	}
	if got := networkNames(api.networks(`{"scope":["swarm"]}`)); got != "" {
		t.Errorf("list after the rm: %s", got)
	}
}

func TestSwarmNetworkOutlivesItsUseOnWorkers(t *testing.T) {
	t.Parallel()
	// Two workers of one swarm whose manager is not a node of the cluster.
	a, b := named(t, "n1", inSwarm("w1", "", "m1", "m2")), named(t, "n2", inSwarm("w2", "", "m2"))
	c, addr := testCluster(t, a, b)
	api := apiClient{t, addr}
	if got := c.store.all(t, "SELECT count(DISTINCT docker_swarm), min(docker_swarm) <> '' FROM nodes"); got != "1|1" {
		t.Errorf("swarms of the two workers: %s", c.store.all(t, "SELECT name, docker_swarm FROM nodes"))
	}
	a.list("ov0123456789ov0123456789o", "ov")
	a.addContainerBody("user", []byte(`{"Image":"busybox","HostConfig":{"NetworkMode":"ov"}}`), true)
	listed := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if got := c.store.all(t, "SELECT listed FROM networks WHERE name = 'ov'"); got != want {
				return fmt.Errorf("listed = %q, want %q", got, want)
			}
			return nil
		})
	}
	listed("1")
	a.removeContainer("user")
	a.unlist("ov0123456789ov0123456789o")
	listed("0")
	if got := networkNames(api.networks(`{"scope":["swarm"]}`)); got != "ov" {
		t.Errorf("list while nobody uses it: %q, want ov", got)
	}
	api.want("GET", "/v1.41/networks/ov", "", 200, "")
	api.want("POST", "/v1.41/containers/create?name=next", `{"Image":"busybox","Env":["constraint:node==n2"],"HostConfig":{"NetworkMode":"ov"}}`, 201, "")
	api.want("POST", "/v1.41/networks/create", `{"Name":"other","Driver":"overlay"}`, 403,
		`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	a.list("ov0123456789ov0123456789o", "ov")
	listed("1")
	a.unlist("ov0123456789ov0123456789o")
	listed("0")
	// A manager joins and does not have it: then it is gone.
	m := named(t, "n3", inSwarm("m2", "s1", "m1", "m2"))
	if err := c.nodes.set(c.base, linesOf("tcp://"+a.addr(), "tcp://"+b.addr(), "tcp://"+m.addr())); err != nil {
		t.Fatal(err)
	}
	listed("")
	if got := c.store.all(t, "SELECT DISTINCT docker_swarm FROM nodes"); got != "s1" {
		t.Errorf("swarms once a manager tells: %s", got)
	}
}

// The CLI asks for a network by name before it removes it: a second rm must be told
// about the name, however late the engine is read again.
func TestARemovedNetworkOrVolumeIsGoneWhenItsRmReturns(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	if status, answer := f.call(t, "POST", "/networks/create", `{"Name":"demo"}`); status != 201 {
		t.Fatalf("network create = %d %s", status, answer)
	}
	if status, answer := f.call(t, "POST", "/volumes/create", `{"Name":"data"}`); status != 201 {
		t.Fatalf("volume create = %d %s", status, answer)
	}
	gate := make(chan struct{})
	defer close(gate)
	e.override("GET", "^/(networks|volumes)", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-gate:
		case <-r.Context().Done():
		}
	})
	for _, path := range []string{"/networks/demo", "/volumes/data"} {
		if status, answer := f.call(t, "DELETE", path, ""); status != 204 {
			t.Errorf("DELETE %s = %d %s, want 204", path, status, answer)
		}
	}
	if got := f.rows(t, "SELECT name FROM networks WHERE name = 'demo' UNION ALL SELECT name FROM volumes"); got != "" {
		t.Errorf("rows of what was removed: %s", got)
	}
}
