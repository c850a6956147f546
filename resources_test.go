package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestDemandsOfACreate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, host, label, want string }{
		{"a number", `[{"Count": 2, "Capabilities": [["gpu"]]}]`, "", "gpu=2#1"},
		{"all", `[{"Count": -1, "Capabilities": [["gpu"]]}]`, "", "gpu=-1#1"},
		{"by ID", `[{"DeviceIDs": ["GPU-a", "GPU-b", "GPU-a"], "Capabilities": [["gpu"]]}]`, "", "gpu=2[GPU-a GPU-b]#1"},
		{"other capabilities beside", `[{"Count": 1, "Capabilities": [["nvidia", "compute"], ["utility", "gpu"]]}]`, "", "gpu=1#1"},
		{"another capability", `[{"Count": 1, "Capabilities": [["tpu"]]}]`, "", "tpu=1#1"},
		{"CDI", `[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}]`, "", "gpu=1[1]#1"},
		{"all by CDI", `[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]`, "", "gpu=-1#1"},
		{"CDI devices of several classes in one request, as docker sends them", `[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1", "amd.com/fpga=all", "nvidia.com/gpu=0"]}]`, "", "gpu=2[1 0]#1 fpga=-1#1"},
		{"none", `[{"Count": 0, "Capabilities": [["gpu"]]}, {"Count": 1}]`, "", ""},
		{"two requests add up, those by ID first", `[{"Count": 1, "Capabilities": [["gpu"]]}, {"DeviceIDs": ["7"], "Capabilities": [["gpu"]]}]`, "", "gpu=1[7]#2 gpu=1#1"},
		{"all holds the others", `[{"Count": 1, "Capabilities": [["gpu"]]}, {"Count": -1, "Capabilities": [["gpu"]]}, {"Count": 2, "Capabilities": [["gpu"]]}]`, "", "gpu=-1#2"},
		{"the label", `[]`, " gpu = 2, FPGA=1", "gpu=2 fpga=1"},
		{"the label comes before requests for the same", `[{"Count": -1, "Capabilities": [["gpu"]]}, {"Count": 1, "Capabilities": [["tpu"]]}]`, "gpu=0", "gpu=0 tpu=1#2"},
		{"other spellings", `[{"count": 1, "capabilities": [["gpu"]]}]`, "", "gpu=1#1"},
	} {
		var h hostConfig
		if err := json.Unmarshal([]byte(`{"DeviceRequests": `+tt.host+`}`), &h); err != nil {
			t.Fatal(err)
		}
		list, err := h.demands(map[string]string{resourcesLabel: tt.label})
		var words []string
		for _, d := range list {
			word := fmt.Sprint(d.Name, "=", d.Amount)
			if d.IDs != nil {
				word += fmt.Sprint(d.IDs)
			}
			if d.Device > 0 {
				word += fmt.Sprint("#", d.Device)
			}
			words = append(words, word)
		}
		if got := strings.Join(words, " "); got != tt.want || err != nil {
			t.Errorf("%s: demands(%s, %q) = %s, %v, want %s", tt.name, tt.host, tt.label, got, err, tt.want)
		}
	}
}

func TestDemandsThatDoNotParseAreRefused(t *testing.T) {
	t.Parallel()
	const expected = `: expected NAME=NUMBER, with commas between, such as gpu=2,fpga=1`
	for text, want := range map[string]string{
		"gpu": expected, "gpu=": expected, "=2": expected, "gpu=two": expected, "gpu=-1": expected, "gpu=1.5": expected, "gpu=2,": expected,
		"g p=1": expected, "gpu=1;fpga=1": expected, "gpu=99999999": expected, "gpu=1,GPU=1": ": each name may be there once, and 64 in all",
	} {
		_, _, err := readCreate([]byte(`{"Image": "busybox", "Labels": {"`+resourcesLabel+`": "`+text+`"}}`), &call{})
		if want = fmt.Sprintf("label %s %q%s", resourcesLabel, text, want); err == nil || err.Error() != want || statusOf(err) != http.StatusBadRequest {
			t.Errorf("create with %s = %v, want 400 %s", text, err, want)
		}
	}
}

func TestADeviceRequestIsBounded(t *testing.T) {
	t.Parallel()
	ids := []string{}
	for i := range maxDevices + 1 {
		ids = append(ids, fmt.Sprint("nvidia.com/gpu=", i))
	}
	body := `{"Image": "busybox", "HostConfig": {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ` + jsonText(ids) + `}]}}`
	if _, _, err := readCreate([]byte(body), &call{}); err == nil || statusOf(err) != http.StatusBadRequest || err.Error() != "device request for 1025 devices, at most 1024 are allowed" {
		t.Errorf("create with 1025 devices = %v", err)
	}
}

func TestSupplyOfANode(t *testing.T) {
	t.Parallel()
	for label, want := range map[string]string{
		"resource.gpu=4": "gpu 4 []", "resource.GPU= 2 ": "gpu 2 []", "resource.nvidia-gpu=1": "gpu 1 []", "resource.gpu=0,1": "gpu 2 [0 1]",
		"resource.gpu=GPU-aa, GPU-bb": "gpu 2 [GPU-aa GPU-bb]", "resource.fpga=0": "fpga 0 []", "resource.example.com=1": "example.com 1 []",
		"resource.gpu=": "", "resource.=1": "", "resource.gpu=-1": "", "resource.gpu=0,0": "", "resource.gpu=a,,b": "", "resource.a b=1": "",
	} {
		key, value, _ := strings.Cut(label, "=")
		name, s, err := parseSupply(key, value)
		got := ""
		if err == nil {
			got = fmt.Sprint(name, " ", s.amount, " ", s.devices)
		}
		if got != want {
			t.Errorf("parseSupply(%s) = %s, %v, want %s", label, got, err, want)
		}
	}
	for info, want := range map[string]string{
		`{"GenericResources": [{"NamedResourceSpec": {"Kind": "NVIDIA-GPU", "Value": "GPU-a"}}, {"NamedResourceSpec": {"Kind": "gpu", "Value": "GPU-b"}},
			{"DiscreteResourceSpec": {"Kind": "SSD", "Value": 3}}]}`: "gpu 2 [GPU-a GPU-b], ssd 3 []",
		`{"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}, {"Source": "cdi", "ID": "nvidia.com/gpu=1"},
			{"Source": "cdi", "ID": "nvidia.com/gpu=GPU-a"}, {"Source": "cdi", "ID": "nvidia.com/gpu=all"}, {"ID": "nonsense"}]}`: "gpu 2 [0 1]",
		`{"DiscoveredDevices": [{"ID": "amd.com/gpu=0"}, {"ID": "nvidia.com/gpu=0"}, {"ID": "vendor.com/nic=eth7"}]}`:                      "gpu 2 [], nic 1 [eth7]",
		`{"DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}], "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 8}}]}`: "gpu 8 []",
		`{"GenericResources": null}`: "",
	} {
		var r engineResources
		if err := json.Unmarshal([]byte(info), &r); err != nil {
			t.Fatal(err)
		}
		var words []string
		for name, s := range r.supplies() {
			words = append(words, fmt.Sprint(name, " ", s.amount, " ", s.devices))
		}
		slices.Sort(words)
		if got := strings.Join(words, ", "); got != want {
			t.Errorf("supplies of %s = %s, want %s", info, got, want)
		}
	}
}

func TestHandingOutTouchesOnlyTheDeviceRequest(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"Image":"a","HostConfig":{"New":1.0,"DeviceRequests":[{"Driver":"x"},{"Count":2,"Options":{"k":"v"},"Capabilities":[["gpu"]]}]},"Z":{}}`://
		`{"Image":"a","HostConfig":{"New":1.0,"DeviceRequests":[{"Driver":"x"},{"Options":{"k":"v"},"Capabilities":[["gpu"]],"DeviceIDs":["A","B"]}]},"Z":{}}`,
		`{"hostconfig":{"devicerequests":[{},{"count":2,"deviceIds":[]}]}}`: `{"hostconfig":{"DeviceRequests":[{},{"DeviceIDs":["A","B"]}]}}`,
	} {
		got, err := handOut([]byte(body), map[int][]string{2: {"A", "B"}})
		if err != nil || string(got) != want {
			t.Errorf("handOut(%s)\n = %s, %v\nwant %s", body, got, err, want)
		}
		if same, err := handOut([]byte(body), nil); err != nil || string(same) != body {
			t.Errorf("handOut of nothing changed %s to %s, %v", body, same, err)
		}
	}
}

// gpuBody asks for n GPUs.
func gpuBody(n int) string {
	return fmt.Sprintf(`{"Image": "busybox", "HostConfig": {"DeviceRequests": [{"Count": %d, "Capabilities": [["gpu"]]}]}}`, n)
}

// devicesOf tells which devices the engine was asked for, a line for each container.
func (e *fakeEngine) devicesOf(t *testing.T) []string {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []string
	for _, c := range e.containers {
		var body struct {
			HostConfig struct{ DeviceRequests []deviceRequest }
		}
		if err := json.Unmarshal(c.body, &body); err != nil {
			t.Fatal(err)
		}
		for _, r := range body.HostConfig.DeviceRequests {
			list = append(list, fmt.Sprintf("%d%v", r.Count, r.DeviceIDs))
		}
	}
	slices.Sort(list)
	return list
}

func TestCreatesAtOnceGetEachDeviceOnce(t *testing.T) {
	t.Parallel()
	var ids []string
	for i := range 50 {
		ids = append(ids, "GPU-"+strconv.Itoa(i))
	}
	e := newFakeEngine(t, func(e *fakeEngine) { e.labels = []string{"resource.gpu=" + strings.Join(ids, ",")} })
	f := newImageFleet(t, e)
	var made, refused atomic.Int32
	atOnce(60, func(int) {
		status, answer := 0, "did not answer"
		for began := time.Now(); strings.Contains(answer, "did not answer") && time.Since(began) < time.Minute; { // the machine is busy
			status, answer, _ = f.call("POST", "/v1.41/containers/create", strings.NewReader(gpuBody(1)), "Content-Type", "application/json")
		}
		switch {
		case status == http.StatusCreated:
			made.Add(1)
		case status == http.StatusServiceUnavailable && strings.Contains(answer, `"no node fits: 1 of 1 has no gpu free"`):
			refused.Add(1)
		default:
			t.Errorf("create: %d %s", status, answer)
		}
	})
	if made.Load() != 50 || refused.Load() != 10 {
		t.Errorf("%d made, %d refused, want 50 and 10", made.Load(), refused.Load())
	}
	want := []string{}
	for _, id := range ids {
		want = append(want, "0["+id+"]")
	}
	slices.Sort(want)
	if got := e.devicesOf(t); !slices.Equal(got, want) {
		t.Errorf("the engine was asked for %v, want each device once", got)
	}
	if got := f.store.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted: %s", got)
	}
	// The rows tell the same as the engine does when they are made again.
	held := "SELECT c.container_id, r.name, r.amount, r.device FROM resources r JOIN containers c ON c.id = r.container ORDER BY 1, 4"
	before := f.store.all(t, held)
	again := newImageFleet(t, e)
	eventually(t, 20*time.Second, func() error {
		if got := again.store.all(t, held); got != before {
			return fmt.Errorf("read from the engine:\n%s\nwant\n%s", got, before)
		}
		return nil
	})
}

func TestDevicesComeFreeWithTheirContainer(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) {
		e.name, e.apiVersion = "node-1", "1.50"
		e.info = map[string]any{"DiscoveredDevices": []any{map[string]string{"Source": "cdi", "ID": "nvidia.com/gpu=0"}, map[string]string{"Source": "cdi", "ID": "nvidia.com/gpu=1"},
			map[string]string{"Source": "cdi", "ID": "nvidia.com/gpu=all"}}}
	})
	f := newImageFleet(t, e)
	create := func(name, body, want string) {
		t.Helper()
		status, answer, _ := f.call("POST", "/v1.41/containers/create?name="+name, strings.NewReader(body), "Content-Type", "application/json")
		if got := fmt.Sprint(status, " ", answer); want == "" && status != http.StatusCreated || !strings.Contains(got, want) {
			t.Errorf("create %s: %s, want %q", name, got, want)
		}
	}
	load := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if got := f.store.one(t, `SELECT "reserved resources" FROM cluster`); got != want {
				return fmt.Errorf("cluster shows %q, want %q", got, want)
			}
			return nil
		})
	}
	load("gpu 0 / 2")
	create("web-a", gpuBody(1), "")
	create("web-b", gpuBody(1), "")
	load("gpu 2 / 2")
	create("web-c", gpuBody(1), "no node fits: 1 of 1 has no gpu free")
	create("web-c", gpuBody(-1), "no node fits: 1 of 1 has gpu in use")
	create("web-c", gpuBody(3), "no node fits: 1 of 1 has less than 3 gpu free; the largest node that qualifies is node-1 with 2 gpu in all")
	create("web-c", `{"Image": "busybox", "HostConfig": {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}]}}`, "has gpu 1 in use")
	if got := fmt.Sprint(e.devicesOf(t)); got != "[0[0] 0[1]]" {
		t.Errorf("devices %s", got)
	}
	f.must(http.StatusNoContent, "POST", "/v1.41/containers/web-a/start", nil)
	f.must(http.StatusNoContent, "POST", "/v1.41/containers/web-a/stop?t=0", nil)
	load("gpu 1 / 2")
	create("web-c", gpuBody(1), "") // device 0: it is the only one that is free
	f.must(http.StatusNoContent, "DELETE", "/v1.41/containers/web-b?force=1", nil)
	load("gpu 1 / 2")
	create("web-d", gpuBody(1), "") // device 1, though the stopped a has 0
	if got := fmt.Sprint(e.devicesOf(t)); got != "[0[0] 0[0] 0[1]]" {
		t.Errorf("devices %s", got)
	}
	f.must(http.StatusNoContent, "POST", "/v1.41/containers/web-a/start", nil) // as with memory: trouble tells
	eventually(t, 20*time.Second, func() error {
		if got := f.store.all(t, "SELECT what, detail FROM trouble ORDER BY 1"); got != "device used twice|gpu 0\novercommitted|3 of 2 gpu" {
			return fmt.Errorf("trouble: %s", got)
		}
		return nil
	})
}

func TestACreateWaitsForAGPU(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) { e.labels = []string{"resource.gpu=GPU-a,GPU-b"} })
	f := newImageFleet(t, e)
	waits := func(n int) string {
		return strings.Replace(gpuBody(n), "{", `{"Labels": {"`+waitLabel+`": "5m"}, `, 1)
	}
	f.must(http.StatusCreated, "POST", "/v1.41/containers/create?name=web-1", strings.NewReader(gpuBody(2)), "Content-Type", "application/json")
	f.must(http.StatusServiceUnavailable, "POST", "/v1.41/containers/create?name=web-2", strings.NewReader(waits(3)), "Content-Type", "application/json") // there never will be
	answered := make(chan int, 1)
	go func() {
		status, _, _ := f.call("POST", "/v1.41/containers/create?name=web-2", strings.NewReader(waits(1)), "Content-Type", "application/json")
		answered <- status
	}()
	eventually(t, 20*time.Second, func() error {
		if got := f.store.all(t, "SELECT name, message FROM waiting"); got != "web-2|no node fits: 1 of 1 has no gpu free" {
			return fmt.Errorf("in line: %s", got)
		}
		return nil
	})
	f.must(http.StatusNoContent, "DELETE", "/v1.41/containers/web-1", nil)
	if got := <-answered; got != http.StatusCreated {
		t.Errorf("create that waited for a GPU: %d", got)
	}
	if got := fmt.Sprint(e.devicesOf(t)); got != "[0[GPU-a]]" {
		t.Errorf("devices %s", got)
	}
}

func TestDevicesAreHandedOutOnlyWhereTheirIDsAreKnown(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) { e.labels = []string{"resource.gpu=2"} })
	f := newImageFleet(t, e)
	f.must(http.StatusCreated, "POST", "/v1.41/containers/create", strings.NewReader(gpuBody(2)), "Content-Type", "application/json")
	if got := fmt.Sprint(e.devicesOf(t)); got != "[2[]]" {
		t.Errorf("the engine was asked for %s, want the number as it came", got)
	}
	if status, answer, _ := f.call("POST", "/v1.41/containers/create", strings.NewReader(gpuBody(1)), "Content-Type", "application/json"); status != http.StatusServiceUnavailable {
		t.Errorf("a third GPU of two: %d %s", status, answer)
	}
}

func TestGPUsAreFoundAmongManyNodes(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	manyNodes(t, st, 300)
	st.sql(t, `INSERT INTO node_resources SELECT id, 'gpu', 2, '["0","1"]' FROM nodes WHERE id % 100 = 7`)
	sc := testScheduler(t, st, "spread")
	for range 6 {
		if _, err := sc.placeBody(t.Context(), t, "", gpuBody(1)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := sc.placeBody(t.Context(), t, "", gpuBody(1))
	if want := "no node fits: 300 of 300 have no gpu free"; err == nil || err.Error() != want {
		t.Errorf("a seventh GPU of six: %v, want %s", err, want)
	}
	if got := st.all(t, "SELECT node, plan, count(*) FROM placements WHERE outcome = 'reserved' GROUP BY 1, 2 ORDER BY 1"); got != "node-107|few|2\nnode-207|few|2\nnode-7|few|2" {
		t.Errorf("node|plan|placements:\n%s", got)
	}
	if got := st.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted: %s", got)
	}
}

func TestNodeLabelsSayWhatANodeHas(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) { e.name, e.labels = "node-1", []string{"resource.fpga=lots", "resource.gpu=1"} })
	f := newImageFleet(t, e)
	update := func(label, value string) (int, string) {
		var id string
		if err := f.store.get(t.Context(), "SELECT engine_id FROM nodes", nil, &id); err != nil {
			t.Fatal(err)
		}
		version := f.store.one(t, "SELECT spec_version FROM nodes")
		status, answer, _ := f.call("POST", "/nodes/"+url.PathEscape(id)+"/update?version="+version,
			strings.NewReader(jsonText(map[string]any{"Availability": "active", "Role": "worker", "Labels": map[string]string{label: value}})))
		return status, answer
	}
	if status, answer := update("resource.gpu", "many,,"); status != http.StatusBadRequest || !strings.Contains(answer, "expected resource.NAME=NUMBER, or device IDs") {
		t.Errorf("a label that does not parse: %d %s", status, answer)
	}
	if status, answer := update("resource.gpu", "0,1,2"); status != http.StatusOK {
		t.Fatalf("update: %d %s", status, answer)
	}
	if got := f.store.all(t, "SELECT name, amount, devices FROM node_resources ORDER BY 1"); got != `fpga|1|["lots"]`+"\n"+`gpu|3|["0","1","2"]` {
		t.Errorf("resources after the operator's label:\n%s", got)
	}
	info := f.must(http.StatusOK, "GET", "/info", nil)
	if !strings.Contains(info, `["  └ Reserved Resources","fpga 0 / 1, gpu 0 / 3"]`) {
		t.Errorf("docker info does not show the resources: %s", info)
	}
}

// An engine's own label that says nothing is an engine's to have; people are told.
func TestEngineLabelsThatAreNoResourceAreTold(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"), func(e *fakeEngine) { e.labels = []string{"resource.gpu=0,0", "resource.fpga=2"} })
	f := newFront(t, e)
	const words = `label "resource.gpu=0,0": expected resource.NAME=NUMBER, or device IDs`
	trouble := func() string {
		return f.rows(t, "SELECT node, detail FROM trouble WHERE what = 'label not understood'")
	}
	if got := trouble(); !strings.HasPrefix(got, "a|"+words) {
		t.Errorf("trouble: %s, want %s", got, words)
	}
	if got := f.rows(t, "SELECT name, amount FROM node_resources"); got != "fpga|2" {
		t.Errorf("resources: %s, want the other label's", got)
	}
	e.stop()
	f.becomes(t, 20*time.Second, "unhealthy")
	e.restart()
	f.becomes(t, 20*time.Second, "healthy")
	if n := f.logs.count("engine label"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, f.logged())
	}
	var version int
	fmt.Sscan(f.rows(t, "SELECT spec_version FROM nodes"), &version)
	if status, answer := f.call(t, "POST", fmt.Sprintf("/nodes/a/update?version=%d", version), `{"Availability":"active","Labels":{"resource.gpu":"4"}}`); status != http.StatusOK {
		t.Fatalf("node update = %d %s", status, answer)
	}
	if got := trouble(); got != "" {
		t.Errorf("trouble after the operator's own label: %s", got)
	}
}

// FuzzResources reads labels of nodes and of containers, and platforms. What parses must
// be within bounds, and parse to the same again.
func FuzzResources(f *testing.F) {
	for _, s := range []string{"gpu=2,fpga=1", " GPU = 0 ,x.y-z_1=7", "GPU-1,GPU-2", "0,1", "4", "linux/arm64/v8", "nvidia.com/gpu=all", "=", ",", "\u2028=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if list, err := parseDemands(s); err == nil {
			var texts []string
			for _, d := range list {
				if resourceName(d.Name) != d.Name || d.Amount < 0 || d.Amount > maxAmount {
					t.Errorf("parseDemands(%q) = %+v", s, d)
				}
				texts = append(texts, fmt.Sprint(d.Name, "=", d.Amount))
			}
			again, err := parseDemands(strings.Join(texts, ","))
			if err != nil || jsonText(again) != jsonText(list) {
				t.Errorf("parseDemands(%q) = %+v, and from its text %+v, %v", s, list, again, err)
			}
		}
		if name, got, err := parseSupply(resourceLabel+"gpu", s); err == nil {
			if name != "gpu" || got.amount < 0 || got.amount > maxAmount || len(got.devices) > 0 && int64(len(got.devices)) != got.amount {
				t.Errorf("parseSupply(%q) = %s %+v", s, name, got)
			}
		}
		if class, device, ok := cutCDI(s); ok && (resourceName(class) != class || device == "") {
			t.Errorf("cutCDI(%q) = %q, %q", s, class, device)
		}
		if p := requestedPlatform(s); p != "" && requestedPlatform(p) != p {
			t.Errorf("requestedPlatform(%q) = %q, and of that %q", s, p, requestedPlatform(p))
		}
		for _, p := range runnable("linux", s, s) {
			if requestedPlatform(p) == "" {
				t.Errorf("runnable(%q) has %q, which is no platform", s, p)
			}
		}
	})
}
