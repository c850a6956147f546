package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// speaking makes a fake engine one of an API version range.
func speaking(lowest, highest string) func(*fakeEngine) {
	return func(e *fakeEngine) { e.minAPIVersion, e.apiVersion = lowest, highest }
}

// lastVersion is the version that the engine's newest request for this path had.
func lastVersion(e *fakeEngine, path string) string {
	version := "not asked"
	for _, r := range e.requests() {
		if v, rest := splitVersion(r.path); rest == path {
			version = v
		}
	}
	return version
}

func TestVersionsOfAMixedFleet(t *testing.T) {
	t.Parallel()
	first := named(t, "first", speaking("1.12", "1.24"))
	old := named(t, "old", speaking("1.12", "1.41"))
	newest := named(t, "newest", speaking("1.24", "1.56"))
	f := newFront(t, first, old, newest)
	onOld := old.addContainer("on-old", "busybox", true, nil)
	onNewest := newest.addContainer("on-newest", "busybox", true, nil)
	onFirst := first.addContainer("on-first", "busybox", true, nil)
	f.awaitListed(t, 20*time.Second, "on-first", "on-old", "on-newest")

	// Every answer says what every engine speaks.
	for _, path := range []string{"/_ping", "/version", "/info", "/v1.24/containers/json", "/nosuch", "/v1.57/_ping"} {
		resp, err := loneClient.Get("http://" + f.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Api-Version"); got != "1.24" {
			t.Errorf("GET %s: Api-Version %s, want 1.24, the lowest of the engines' highest", path, got)
		}
	}
	var version struct{ APIVersion, MinAPIVersion string }
	if _, answer := f.call(t, "GET", "/version", ""); json.Unmarshal([]byte(answer), &version) != nil || version.APIVersion != "1.24" || version.MinAPIVersion != "1.24" {
		t.Errorf("GET /version = %s, want API 1.24 from 1.24 on", answer)
	}

	// A read is made at what the client speaks, brought into the engine's range.
	for _, tt := range []struct{ client, first, old, newest string }{
		{"", "1.24", "1.41", "1.56"}, {"/v1.24", "1.24", "1.24", "1.24"}, {"/v1.30", "1.24", "1.30", "1.30"},
		{"/v1.41", "1.24", "1.41", "1.41"}, {"/v1.47", "1.24", "1.41", "1.47"}, {"/v1.56", "1.24", "1.41", "1.56"},
	} {
		for e, want := range map[*fakeEngine][2]string{first: {onFirst, tt.first}, old: {onOld, tt.old}, newest: {onNewest, tt.newest}} {
			path := "/containers/" + want[0] + "/json"
			if status, answer := f.call(t, "GET", tt.client+path, ""); status != http.StatusOK {
				t.Errorf("GET %s%s = %d %s", tt.client, path, status, answer)
			}
			if got := lastVersion(e, path); got != want[1] {
				t.Errorf("a client at %q: %s was asked at %s, want %s", tt.client, e.name, got, want[1])
			}
		}
	}

	// Outside of what anybody speaks: an engine's words.
	for path, want := range map[string]string{
		"/v1.57/containers/json": "client version 1.57 is too new. Maximum supported API version is 1.56",
		"/v1.57/_ping":           "client version 1.57 is too new. Maximum supported API version is 1.56",
		"/v1.11/_ping":           "client version 1.11 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
	} {
		if status, answer := f.call(t, "GET", path, ""); status != http.StatusBadRequest || message(answer) != want {
			t.Errorf("GET %s = %d %s, want 400 %s", path, status, answer, want)
		}
	}

	// What would lose its meaning on an old engine goes to one that knows it.
	for _, name := range []string{"one", "two", "three"} {
		for _, what := range []string{"/containers/create?name=", "/volumes/create?Name=", "/networks/create?Name="} {
			path, query, _ := strings.Cut(what, "?")
			body := `{"Image":"busybox","Name":"` + name + `"}`
			status, answer := f.call(t, "POST", "/v1.47"+path+"?"+query+name, body)
			if status != http.StatusCreated {
				t.Fatalf("POST /v1.47%s = %d %s", path, status, answer)
			}
			if got := lastVersion(newest, path); got != "1.47" || old.count("POST", path) != 0 {
				t.Errorf("POST /v1.47%s: asked newest at %s and old %d times, want newest only, at 1.47", path, got, old.count("POST", path))
			}
		}
	}
	newest.stop()
	status, answer := f.call(t, "POST", "/v1.47/containers/create?name=four", sleepBody)
	if status != http.StatusServiceUnavailable || !strings.Contains(message(answer), "2 of 3 are older than API 1.47") {
		t.Errorf("create at 1.47 with old engines only = %d %s, want a refusal that says so", status, answer)
	}
	if status, answer := f.call(t, "POST", "/v1.47/containers/"+onOld+"/update", `{"CpuShares":5}`); status != http.StatusBadRequest ||
		message(answer) != "client version 1.47 is too new. Maximum supported API version is 1.41" || old.count("POST", "/containers/"+onOld+"/update") != 0 {
		t.Errorf("update at 1.47 on an old engine = %d %s, want a refusal", status, answer)
	}
	if status, answer := f.call(t, "POST", "/v1.41/containers/"+onOld+"/update", `{"CpuShares":5}`); status != http.StatusOK {
		t.Errorf("update at 1.41 = %d %s", status, answer)
	}
}

func TestVersionsThatDoNotOverlap(t *testing.T) {
	t.Parallel()
	old, newest := named(t, "old", speaking("1.12", "1.39")), named(t, "newest", speaking("1.40", "1.56"))
	f := newFront(t, old, newest)
	resp, err := loneClient.Get("http://" + f.addr + "/_ping")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Api-Version"); got != "1.40" {
		t.Errorf("Api-Version %s, want 1.40: what the newest speaks at least", got)
	}
	id := old.addContainer("on-old", "busybox", true, nil)
	f.awaitListed(t, 20*time.Second, "on-old")
	if status, answer := f.call(t, "GET", "/v1.40/containers/"+id+"/json", ""); status != http.StatusOK || lastVersion(old, "/containers/"+id+"/json") != "1.39" {
		t.Errorf("inspect at 1.40 on the old engine = %d %s, asked at %s", status, answer, lastVersion(old, "/containers/"+id+"/json"))
	}
	if got := f.rows(t, "SELECT * FROM trouble WHERE what = 'API too old'"); got != "API too old|old|speaks up to 1.39, newest from 1.40 on: no client version fits both" {
		t.Errorf("trouble = %q, want the node that is too old", got)
	}
}
