package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// pruned is the answer to any prune.
type pruned struct {
	ContainersDeleted, NetworksDeleted, VolumesDeleted, Warnings []string
	SpaceReclaimed                                               int64
}

func TestPrunesAskEveryNodeAndMerge(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	for i, e := range engines {
		e.addContainer(fmt.Sprint("idle", i), "busybox", true, nil)
		e.exitContainer(fmt.Sprint("idle", i), 0)
		e.addContainerBody(fmt.Sprint("user", i), []byte(fmt.Sprintf(`{"Image":"busybox","HostConfig":{"NetworkMode":"used%d","Binds":["used%d:/d"]}}`, i, i)), false)
		e.makeNetwork(t, fmt.Sprintf(`{"Name":"free%d"}`, i))
		e.makeNetwork(t, fmt.Sprintf(`{"Name":"used%d"}`, i))
		e.startContainer(fmt.Sprint("user", i))
		e.putVolume(fmt.Sprint("free", i), time.Hour)
	}
	names := func(kind string) string {
		t.Helper()
		switch kind {
		case "containers":
			var list []struct{ Names []string }
			api.into("GET", "/v1.41/containers/json?all=1", "", &list)
			var names []string
			for _, l := range list {
				names = append(names, l.Names[0][1:])
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		case "networks":
			return networkNames(api.networks(`{"type":["custom"]}`))
		}
		return volumeNames(api.volumes("{}"))
	}
	eventually(t, 20*time.Second, func() error {
		if got := names("volumes") + names("networks") + names("containers"); len(strings.Fields(got)) != 16 {
			return fmt.Errorf("known before the prunes: %s", got)
		}
		return nil
	})
	for _, tt := range []struct{ kind, filters, left string }{
		{"networks", `{"node":["n2"]}`, "free0 free2 used0 used1 used2"},
		{"containers", "{}", "user0 user1 user2"},
		{"networks", "{}", "used0 used1 used2"},
		{"volumes", "{}", "used0 used1 used2"},
	} {
		var got pruned
		api.into("POST", "/v1.41/"+tt.kind+"/prune?filters="+url.QueryEscape(tt.filters), "", &got)
		if n := len(got.ContainersDeleted) + len(got.NetworksDeleted) + len(got.VolumesDeleted); n == 0 || n > 3 || got.Warnings != nil {
			t.Errorf("prune of %s with %s: %+v", tt.kind, tt.filters, got)
		}
		if left := names(tt.kind); left != tt.left {
			t.Errorf("%s listed after the prune with %s: %s, want %s", tt.kind, tt.filters, left, tt.left)
		}
	}
	for _, kind := range []string{"containers", "networks", "volumes"} {
		api.want("POST", "/v1.41/"+kind+"/prune?filters="+url.QueryEscape(`{"bogus":["x"]}`), "", 400, "")
		api.want("POST", "/v1.41/"+kind+"/prune?filters=xx", "", 400, "")
	}
}

func TestPruneAndDFNameTheNodesLeftOut(t *testing.T) {
	t.Parallel()
	engines, c, api := threeNodes(t)
	engines[1].stop()
	engines[2].fail("POST", "^/networks/prune$", 409, `{"message":"a prune operation is already running"}`)
	engines[2].fail("GET", "^/system/df$", 500, `{"message":"disk on fire"}`)
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT state FROM nodes WHERE name = 'n2'"); got != "unhealthy" {
			return fmt.Errorf("n2 is %s", got)
		}
		return nil
	})
	var got pruned
	api.into("POST", "/v1.41/networks/prune", "", &got)
	if len(got.Warnings) != 2 || !strings.HasPrefix(got.Warnings[0], "left out: node n2 is not healthy") || got.Warnings[1] != "left out: n3: a prune operation is already running" {
		t.Errorf("warnings of a prune: %q", got.Warnings)
	}
	got = pruned{}
	api.into("GET", "/v1.41/system/df", "", &got)
	if len(got.Warnings) != 2 || got.Warnings[1] != "left out: n3: disk on fire" {
		t.Errorf("warnings of df: %q", got.Warnings)
	}
	engines[0].fail("POST", "^/networks/prune$", 409, `{"message":"a prune operation is already running"}`)
	api.want("POST", "/v1.41/networks/prune", "", 409, "a prune operation is already running")
}

// A client of API 1.42 and later means anonymous volumes only. An older engine would
// take the named ones as well: it must not be asked.
func TestVolumePruneSparesNamedVolumesOfOldEngines(t *testing.T) {
	t.Parallel()
	older, newer := named(t, "n1"), named(t, "n2", func(e *fakeEngine) { e.apiVersion, e.serverVersion = "1.51", "28.2.2" })
	older.putVolume("precious", time.Hour)
	newer.putVolume("dear", time.Hour)
	_, addr := testCluster(t, older, newer)
	api := apiClient{t, addr}
	var got pruned
	api.into("POST", "/v1.51/volumes/prune", "", &got)
	if len(got.VolumesDeleted) != 0 || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "n1: its engine (API 1.41) would remove named volumes as well") {
		t.Errorf("prune of API 1.51: %+v", got)
	}
	if older.volumeNames() != "precious" || newer.volumeNames() != "dear" || older.count("POST", "/volumes/prune") != 0 {
		t.Errorf("volumes after it: %q and %q", older.volumeNames(), newer.volumeNames())
	}
	got = pruned{}
	api.into("POST", "/v1.51/volumes/prune?filters="+url.QueryEscape(`{"all":["true"]}`), "", &got)
	slices.Sort(got.VolumesDeleted)
	if strings.Join(got.VolumesDeleted, " ") != "dear precious" || got.Warnings != nil {
		t.Errorf("prune of all: %+v", got)
	}
	older.putVolume("precious", time.Hour)
	got = pruned{}
	api.into("POST", "/v1.41/volumes/prune", "", &got)
	if strings.Join(got.VolumesDeleted, " ") != "precious" {
		t.Errorf("prune of API 1.41, which means all: %+v", got)
	}
}

func TestSystemDFCountsAnImageOncePerNode(t *testing.T) {
	t.Parallel()
	engines, c, api := threeNodes(t)
	for i, e := range engines {
		e.addContainer(fmt.Sprint("web", i), "busybox", true, nil)
		e.putVolume("data", time.Duration(i)*time.Hour)
	}
	eventually(t, 20*time.Second, func() error {
		if got := c.store.all(t, "SELECT count(*) FROM volumes"); got != "3" {
			return fmt.Errorf("%s volumes are known", got)
		}
		return nil
	})
	var df struct {
		LayersSize                              int64
		Images, Containers, Volumes, BuildCache []struct{ Name string }
		BuilderSize                             *int64
		Warnings                                []string
	}
	api.into("GET", "/v1.41/system/df", "", &df)
	if df.LayersSize != 3*1984172 || len(df.Images) != 3 || len(df.Containers) != 3 || df.BuildCache != nil || df.BuilderSize == nil || df.Warnings != nil {
		t.Errorf("df: %+v", df)
	}
	var names []string
	for _, v := range df.Volumes {
		names = append(names, v.Name)
	}
	if slices.Sort(names); strings.Join(names, " ") != "data n1/data n2/data" {
		t.Errorf("volumes of df: %v, want them named as lists name them", names)
	}
}

// Of a mixed fleet, what an old engine says is given the shape that a new client asks for.
func TestSystemDFOfNewClientsAddsUpOldEngines(t *testing.T) {
	t.Parallel()
	older, newer := named(t, "n1"), named(t, "n2", func(e *fakeEngine) { e.apiVersion, e.serverVersion = "1.52", "29.0.0" })
	newer.override("GET", "^/system/df$", jsonAnswer(`{"ImageUsage":{"ActiveCount":1,"TotalCount":2,"TotalSize":500,"Reclaimable":100,"Items":[{"Id":"new"}]},
		"ContainerUsage":{"ActiveCount":1,"TotalCount":1,"TotalSize":7,"Reclaimable":0}}`))
	older.override("GET", "^/system/df$", jsonAnswer(`{"LayersSize":1000,"BuilderSize":0,
		"Images":[{"Id":"a","Containers":1,"Size":600,"SharedSize":100},{"Id":"b","Containers":0,"Size":500,"SharedSize":100}],
		"Containers":[{"State":"running","SizeRw":10},{"State":"exited","SizeRw":5}],
		"Volumes":[{"Name":"v","UsageData":{"RefCount":1,"Size":20}},{"Name":"w","UsageData":{"RefCount":0,"Size":30}},{"Name":"x","UsageData":{"RefCount":0,"Size":-1}}],
		"BuildCache":[{"InUse":true,"Shared":false,"Size":3},{"InUse":false,"Shared":false,"Size":4},{"InUse":false,"Shared":true,"Size":100}]}`))
	_, addr := testCluster(t, older, newer)
	api := apiClient{t, addr}
	for _, tt := range []struct{ path, want string }{
		{"/v1.52/system/df?verbose=1", `{"BuildCacheUsage":{"ActiveCount":1,"Items":[{"InUse":true,"Shared":false,"Size":3},{"InUse":false,"Shared":false,"Size":4},{"InUse":false,"Shared":true,"Size":100}],"Reclaimable":4,"TotalCount":3,"TotalSize":7},` +
			`"ContainerUsage":{"ActiveCount":2,"Items":[{"SizeRw":10,"State":"running"},{"SizeRw":5,"State":"exited"}],"Reclaimable":5,"TotalCount":3,"TotalSize":22},` +
			`"ImageUsage":{"ActiveCount":2,"Items":[{"Containers":1,"Id":"a","SharedSize":100,"Size":600},{"Containers":0,"Id":"b","SharedSize":100,"Size":500},{"Id":"new"}],"Reclaimable":600,"TotalCount":4,"TotalSize":1500},` +
			`"VolumeUsage":{"ActiveCount":1,"Items":[{"Name":"v","UsageData":{"RefCount":1,"Size":20}},{"Name":"w","UsageData":{"RefCount":0,"Size":30}},{"Name":"x","UsageData":{"RefCount":0,"Size":-1}}],"Reclaimable":30,"TotalCount":3,"TotalSize":50}}`},
	} {
		var got map[string]any
		api.into("GET", tt.path, "", &got)
		if text := jsonText(got); text != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.path, text, tt.want)
		}
	}
	var both map[string]json.RawMessage
	api.into("GET", "/v1.52/system/df", "", &both)
	if string(both["LayersSize"]) != "1000" || both["ImageUsage"] == nil || both["Images"] == nil {
		t.Errorf("df without verbose has %v, want old keys and new", both)
	}
}

func TestAnswersAreAddedUp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, a, b, want string }{
		{"numbers are added", `{"n":1}`, `{"n":9007199254740993}`, `{"n":9007199254740994}`},
		{"lists are joined", `{"l":[1]}`, `{"l":[2,3]}`, `{"l":[1,2,3]}`},
		{"null gives way", `{"l":null,"n":4}`, `{"l":["x"],"n":null}`, `{"l":["x"],"n":4}`},
		{"null of both stays", `{"l":null}`, `{"l":null}`, `{"l":null}`},
		{"objects are merged", `{"o":{"n":1,"l":[]}}`, `{"o":{"n":2,"new":true}}`, `{"o":{"n":3,"l":[],"new":true}}`},
		{"of words the first stands", `{"s":"a","b":true}`, `{"s":"b","b":false}`, `{"s":"a","b":true}`},
		{"what only one says is kept", `{}`, `{"x":{"y":1}}`, `{"x":{"y":1}}`},
		{"what does not match stays", `{"n":1.5,"m":[1]}`, `{"n":1.5,"m":{"x":1}}`, `{"n":1.5,"m":[1]}`},
	} {
		a, errA := parseObject([]byte(tt.a))
		b, errB := parseObject([]byte(tt.b))
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := string(mergeAnswers([]object{a, b}).bytes()); got != tt.want {
			t.Errorf("%s: %s and %s give %s, want %s", tt.name, tt.a, tt.b, got, tt.want)
		}
	}
}

func TestPluginsOfAllNodesAreListedOnce(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	engines[0].override("GET", "^/plugins$", jsonAnswer(`[{"Id":"1","Name":"sshfs:latest","Enabled":true}]`))
	engines[1].override("GET", "^/plugins$", jsonAnswer(`[{"Id":"2","Name":"sshfs:latest","Enabled":true},{"Id":"3","Name":"rexray:latest","Enabled":false}]`))
	engines[2].fail("GET", "^/plugins$", 500, `{"message":"no"}`)
	var list []struct{ Id, Name string }
	api.into("GET", "/v1.41/plugins", "", &list)
	if len(list) != 2 || list[0].Id != "1" || list[1].Name != "rexray:latest" {
		t.Errorf("plugins: %+v", list)
	}
}

// jsonAnswer answers 200 with this body.
func jsonAnswer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, body)
	}
}
