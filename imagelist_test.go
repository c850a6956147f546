package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// shownImages are the names in an image list, sorted; an image without one is its short ID.
func (f *imageFleet) shownImages(query string) []string {
	f.t.Helper()
	var list []struct {
		Id                    string
		RepoTags, RepoDigests []string
	}
	if err := json.Unmarshal([]byte(f.must(200, "GET", "/v1.41/images/json?"+query, nil)), &list); err != nil {
		f.t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		switch {
		case len(i.RepoTags) == 0:
			names = append(names, i.RepoDigests...)
		case i.RepoTags[0] == "<none>:<none>":
			names = append(names, shortID(i.Id))
		default:
			names = append(names, i.RepoTags...)
		}
	}
	slices.Sort(names)
	return names
}

func TestImageListMergesAndFilters(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	fakes[0].addImage("app:1", "one")
	fakes[1].addImage("app:2", "one") // the same image, another tag
	fakes[2].addImage("reg.test/team/tool:v1", "")
	fakes[2].mu.Lock()
	fakes[2].keepImage(fakeImageConfig("labelled", map[string]string{"tier": "web"}), "labelled:1")
	loose := fakes[2].keepImage(fakeImageConfig("loose", nil), "").id
	digest := "dig@sha256:" + strings.Repeat("cd", 32)
	fakes[2].putImage(digest, "", "")
	fakes[2].mu.Unlock()
	f := newImageFleet(t, fakes...)
	all := []string{"app:1", "app:2", "busybox:latest", digest, "labelled:1", "reg.test/team/tool:v1", shortID(loose)}
	slices.Sort(all)
	for filters, want := range map[string][]string{
		``:                                          all,
		`{"dangling":{"true":true}}`:                {digest, shortID(loose)},
		`{"dangling":["false"]}`:                    slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == shortID(loose) }),
		`{"reference":{"app":true}}`:                {"app:1", "app:2"},
		`{"reference":{"app:2":true}}`:              {"app:2"},
		`{"reference":{"*/*/tool":true}}`:           {"reg.test/team/tool:v1"},
		`{"reference":{"a*":true,"labelled":true}}`: {"app:1", "app:2", "labelled:1"},
		`{"label":{"tier=web":true}}`:               {"labelled:1"},
		`{"label":{"tier":true,"other":true}}`:      nil,
		`{"node":{"node-2":true}}`:                  {"app:2", "busybox:latest"},
		`{"until":{"2001-01-01":true}}`:             nil,
	} {
		if got := f.shownImages("filters=" + url.QueryEscape(filters)); !slices.Equal(got, want) {
			t.Errorf("images with filters %s = %q, want %q", filters, got, want)
		}
	}
	var one []struct{ RepoTags []string }
	if err := json.Unmarshal([]byte(f.must(200, "GET", "/images/json?filters="+url.QueryEscape(`{"reference":["app"]}`), nil)), &one); err != nil || len(one) != 1 || len(one[0].RepoTags) != 2 {
		t.Errorf("one image with two tags is listed as %+v (%v)", one, err)
	}
	for filters, want := range map[string]string{
		`{"bogus":["x"]}`:          "invalid filter 'bogus'",
		`{"dangling":["perhaps"]}`: "invalid filter 'dangling=[perhaps]'",
		`{"before":["nosuch"]}`:    "No such image: nosuch:latest",
		`{"reference":["["]}`:      "invalid filter 'reference=['",
		`{`:                        "invalid filter",
	} {
		status, answer, _ := f.call("GET", "/images/json?filters="+url.QueryEscape(filters), nil)
		if status < 400 || status >= 500 || !strings.Contains(answer, want) {
			t.Errorf("images with filters %s = %d %s, want 4xx %s", filters, status, answer, want)
		}
	}
}

func TestImageListShowsATagOnce(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	for _, e := range fakes {
		e.addImage("app:1", "old")
	}
	f.readImages(t.Context(), f.healthyEngines()...)
	f.must(200, "POST", "/images/load", bytes.NewReader(fakeImageTar(t, "new", "app:1")))
	old := shortID(fakes[0].addImage("aside:1", "old"))
	fakes[0].removeImage("aside:1")
	want := []string{"app:1", "busybox:latest", old}
	slices.Sort(want)
	if got := f.shownImages(""); !slices.Equal(got, want) {
		t.Errorf("images = %q, want %q: the old image has lost its name, as on one engine", got, want)
	}
}

// listedShape is what differs in list entries between versions.
type listedShape struct {
	VirtualSize *int64
	Containers  int64
	RepoTags    []string
}

func TestImageListIsCutForOldClients(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, containerdStore, func(e *fakeEngine) { e.name, e.apiVersion = "new", "1.56" })
	e.addContainer("user", "busybox", true, nil)
	e.mu.Lock()
	e.keepImage(fakeImageConfig("loose", nil), "")
	e.mu.Unlock()
	f := newImageFleet(t, e)
	for version, want := range map[string]string{
		"1.41": "VirtualSize=true Containers=-1 none=true",
		"1.43": "VirtualSize=true Containers=-1 none=false",
		"1.44": "VirtualSize=false Containers=-1 none=false",
		"1.51": "VirtualSize=false Containers=1 none=false",
	} {
		var list []listedShape
		if err := json.Unmarshal([]byte(f.must(200, "GET", "/v"+version+"/images/json", nil)), &list); err != nil {
			t.Fatal(err)
		}
		none := slices.ContainsFunc(list, func(i listedShape) bool { return slices.Contains(i.RepoTags, "<none>:<none>") })
		i := slices.IndexFunc(list, func(i listedShape) bool { return slices.Contains(i.RepoTags, "busybox:latest") })
		got := fmt.Sprintf("VirtualSize=%t Containers=%d none=%t", list[i].VirtualSize != nil, list[i].Containers, none)
		if got != want {
			t.Errorf("images for API %s: %s, want %s", version, got, want)
		}
	}
	// What 1.41 has dropped is not there for clients that name no version either.
	for version, want := range map[string]int{"/v1.40": 0, "/v1.41": 2, "": 2} {
		var list []listedShape
		if err := json.Unmarshal([]byte(f.must(200, "GET", version+"/images/json?filter=nosuch", nil)), &list); err != nil || len(list) != want {
			t.Errorf("GET %s/images/json?filter=nosuch lists %d images (%v), want %d", version, len(list), err, want)
		}
	}
	// What rows do not hold is asked of the engines.
	f.must(200, "GET", "/v1.51/images/json?manifests=1", nil)
	if n := e.count("GET", "^/images/json$"); n == 0 || !slices.ContainsFunc(e.requests(), func(r fakeRequest) bool { return strings.Contains(r.rawQuery, "manifests=1") }) {
		t.Errorf("a list with manifests did not reach the engine")
	}
}
