package main

import (
	"bytes"
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

func TestTagMeansInTheClusterWhatWasSetLast(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	for _, e := range fakes {
		e.addImage("app:1", "old")
	}
	f := newImageFleet(t, fakes...)
	f.must(200, "POST", "/images/load", bytes.NewReader(fakeImageTar(t, "new", "app:1")))
	now := f.inspectID("app:1")
	var has, lacks *fakeEngine
	for _, e := range fakes {
		if imageOf(e, "app:1") == now {
			has = e
		} else {
			lacks = e
		}
	}
	if has == nil || lacks == nil {
		t.Fatalf("after a load of app:1 the cluster has %s, the engines %s, %s and %s", now, imageOf(fakes[0], "app:1"), imageOf(fakes[1], "app:1"), imageOf(fakes[2], "app:1"))
	}

	// Where the tag names the old image, the right one comes before the create.
	if status, answer := f.create("app:1", lacks.name); status != 201 {
		t.Fatalf("create on %s = %d %s", lacks.name, status, answer)
	}
	if got := imageOf(lacks, "app:1"); got != now {
		t.Errorf("app:1 on %s after a create there is %s, want %s", lacks.name, got, now)
	}
	if n := lacks.count("POST", "/images/load"); n != 1 {
		t.Errorf("%d loads on %s, want 1", n, lacks.name)
	}
	if status, _ := f.create("app:1", lacks.name); status != 201 || lacks.count("POST", "/images/load") != 1 {
		t.Errorf("the second create = %d after %d loads, want 201 after 1", status, lacks.count("POST", "/images/load"))
	}

	// What another engine does by itself sets nothing.
	fakes[0].addImage("app:1", "behind our back")
	f.readImages(t.Context(), f.healthyEngines()...)
	if got := f.inspectID("app:1"); got != now {
		t.Errorf("app:1 after a change behind our back is %s, want %s", got, now)
	}
}

func TestInspectAsksTheNodeThatSetTheTagWhileItLives(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	for _, e := range fakes {
		e.addImage("app:1", "old "+e.name)
	}
	f.readImages(t.Context(), f.healthyEngines()...)
	f.must(200, "POST", "/images/load", bytes.NewReader(fakeImageTar(t, "new", "app:1")))
	now := f.inspectID("app:1")
	setter := fakes[slices.IndexFunc(fakes, func(e *fakeEngine) bool { return imageOf(e, "app:1") == now })]
	for _, e := range fakes {
		e.forget()
	}
	for _, path := range []string{"/images/app:1/json", "/images/app:1/history", "/images/app:1/get", "/images/get?names=app:1"} {
		f.must(200, "GET", path, nil)
	}
	f.must(200, "POST", "/images/app/push?tag=1", nil, "X-Registry-Auth", "e30=")
	for _, e := range fakes {
		if n := e.count("", "^/images/(app.*/|get$)"); n > 0 != (e == setter) {
			t.Errorf("%s was asked %d times, and %s set the tag", e.name, n, setter.name)
		}
	}
	setter.stop()
	eventually(t, 20*time.Second, func() error {
		if f.alive(f.nodeID(setter.name)) {
			return fmt.Errorf("%s is healthy", setter.name)
		}
		return nil
	})
	if got := f.inspectID("app:1"); got == now {
		t.Errorf("app:1 is %s, which only a dead node has", got)
	}
}

func TestPullLandsWhereTheCreateFoundItMissing(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	secret := "c2VjcmV0LXRva2Vu"
	for _, node := range []string{"node-2", "node-3"} {
		image := "registry.test/" + node
		status, answer := f.create(image, node)
		if status != 404 || !strings.Contains(answer, "No such image: "+image+":latest") {
			t.Fatalf("create = %d %s, want 404 No such image: %s:latest", status, answer, image)
		}
		f.must(200, "POST", "/images/create?fromImage="+image+"&tag=latest", nil, "X-Registry-Auth", secret)
		if imageOf(f.node(node), image) == "" {
			t.Errorf("%s was not pulled on %s", image, node)
		}
	}
	asked := 0
	for _, e := range fakes {
		for _, r := range e.requests() {
			if strings.HasSuffix(r.path, "/images/create") {
				asked++
				if got := r.header.Get("X-Registry-Auth"); got != secret {
					t.Errorf("the engine got the credentials %q, want %q", got, secret)
				}
			}
		}
	}
	if asked != 2 {
		t.Errorf("%d pulls reached engines, want 2", asked)
	}
	if strings.Contains(f.log.String(), secret) {
		t.Error("the log holds credentials")
	}
	for _, table := range []string{"image_tags", "pulls", "placements"} {
		rows, err := f.store.strings(t.Context(), "SELECT * FROM (SELECT json_array(name) FROM "+table+")")
		if err != nil || strings.Contains(fmt.Sprint(rows), secret) {
			t.Errorf("%s holds %v (%v)", table, rows, err)
		}
	}
}

func TestPullAgainGoesWhereTheImageIs(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	fakes[2].addImage("app:1", "")
	fakes[2].addContainer("one", "busybox", true, nil)
	f := newImageFleet(t, fakes...)
	got := f.must(200, "POST", "/images/create?fromImage=app&tag=1", nil)
	if !strings.Contains(got, "Image is up to date for app:1") {
		t.Errorf("pull of an image that node-3 has = %s, want it up to date", got)
	}
}

func TestPullByDigestThenCreateMeetOnOneNode(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	digest := "sha256:" + strings.Repeat("ab", 32)
	f.must(200, "POST", "/images/create?fromImage=app&tag="+digest, nil)
	for range 4 {
		status, answer, _ := f.call("POST", "/containers/create", strings.NewReader(`{"Image":"app@`+digest+`"}`), "Content-Type", "application/json")
		if status != 201 {
			t.Fatalf("create by a digest that was just pulled = %d %s, want 201", status, answer)
		}
	}
	// Where a constraint sends it elsewhere, only a pull helps.
	for _, e := range fakes {
		if imageOf(e, "app@"+digest) != "" {
			continue
		}
		if status, answer := f.create("app@"+digest, e.name); status != 404 || !strings.Contains(answer, "No such image: app@"+digest) {
			t.Errorf("create by a digest that %s lacks = %d %s, want 404", e.name, status, answer)
		}
		break
	}
}

func TestFailedPullSetsNoTag(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	f.pullOn("node-1", "app:1")
	want := f.inspectID("app:1")
	fakes[1].addImage("app:1", "stale")
	f.readImages(t.Context(), f.healthyEngines()...)
	fakes[1].override("POST", "/images/create", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"status":"Pulling from library/app","id":"1"}`)
		fmt.Fprintln(w, `{"errorDetail":{"message":"unauthorized"},"error":"unauthorized"}`)
	})
	f.pullOn("node-2", "app:1")
	if got := f.inspectID("app:1"); got != want {
		t.Errorf("after a pull that failed app:1 is %s, want %s as before", got, want)
	}
}

func TestUnknownImageIsAnsweredInTheEnginesWords(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, threeFakes(t)...)
	for _, row := range []struct{ method, path string }{
		{"GET", "/images/nosuch/json"}, {"GET", "/images/nosuch/history"}, {"GET", "/images/nosuch/get"},
		{"GET", "/images/get?names=nosuch&names=busybox"}, {"DELETE", "/images/nosuch"}, {"POST", "/images/nosuch/tag?repo=x"},
		{"GET", "/images/reg.test:5000/a/b/nosuch:2/json"},
	} {
		status, answer, _ := f.call(row.method, row.path, nil)
		if status != 404 || !strings.Contains(strings.ToLower(answer), "no such image: ") {
			t.Errorf("%s %s = %d %s, want an engine's 404", row.method, row.path, status, answer)
		}
	}
}

func TestTagReachesEveryNodeThatHasTheImage(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	fakes[1].addImage("web:2", "something else")
	f.must(201, "POST", "/images/busybox/tag?repo=web&tag=2", nil)
	want := imageOf(fakes[0], "busybox:latest")
	for _, e := range fakes {
		if got := imageOf(e, "web:2"); got != want {
			t.Errorf("web:2 on %s is %s, want %s", e.name, got, want)
		}
	}
	if got := f.inspectID("web:2"); got != want {
		t.Errorf("web:2 = %s, want %s", got, want)
	}
}

func TestCommitAndImportSetTheirTag(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	for _, e := range fakes {
		e.addImage("made:1", "old")
	}
	fakes[2].addContainer("web", "busybox", true, nil)
	f := newImageFleet(t, fakes...)
	var made struct{ Id string }
	if err := json.Unmarshal([]byte(f.must(201, "POST", "/commit?container=web&repo=made&tag=1", nil)), &made); err != nil {
		t.Fatal(err)
	}
	if got := f.inspectID("made:1"); got != made.Id {
		t.Errorf("made:1 after a commit = %s, want %s", got, made.Id)
	}
	answer := f.must(200, "POST", "/images/create?fromSrc=-&repo=made&tag=1", strings.NewReader("a tar"))
	var line progressLine
	if err := json.Unmarshal([]byte(answer), &line); err != nil {
		t.Fatal(err)
	}
	if got := f.inspectID("made:1"); got != line.Status {
		t.Errorf("made:1 after an import = %s, want %s", got, line.Status)
	}
}

func TestCallsThatAnyEngineAnswers(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	for _, e := range fakes {
		e.override("GET", "^/(images/search|distribution/.*/json)$", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `["%s"]`, r.URL.Path[strings.Index(r.URL.Path[1:], "/")+1:])
		})
	}
	if got := f.must(200, "GET", "/images/search?term=redis", nil); got != `["/images/search"]` {
		t.Errorf("search = %s", got)
	}
	if got := f.must(200, "GET", "/distribution/reg.test:5000/a/b:1/json", nil); got != `["/distribution/reg.test:5000/a/b:1/json"]` {
		t.Errorf("distribution = %s", got)
	}
	f.must(200, "POST", "/auth", strings.NewReader(`{"username":"u","password":"p4ssw0rd"}`), "Content-Type", "application/json")
	if strings.Contains(f.log.String(), "p4ssw0rd") {
		t.Error("the log holds a password")
	}
	for _, e := range fakes[:2] {
		e.hang(true)
	}
	// The first that answers does.
	eventually(t, 20*time.Second, func() error {
		if status, answer, _ := f.call("GET", "/images/search?term=redis", nil); status != 200 {
			return fmt.Errorf("search while two of three hang = %d %s", status, answer)
		}
		return nil
	})
}

func TestUntaggedImageIsShownByIDInContainerList(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	id := fakes[0].addImage("app:1", "")
	fakes[0].addContainer("web", "app:1", true, nil)
	f := newImageFleet(t, fakes...)
	f.must(200, "DELETE", "/images/app:1?force=1", nil)
	var list []struct{ Image string }
	if err := json.Unmarshal([]byte(f.must(200, "GET", "/containers/json", nil)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Image != id {
		t.Errorf("containers after the untag: %+v, want the image as %s", list, id)
	}
}

func TestFilterNodeIsNotSentToEngines(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	for _, e := range fakes {
		e.mu.Lock()
		e.keepImage(fakeImageConfig("dangling "+e.name, nil), "")
		e.mu.Unlock()
	}
	f := newImageFleet(t, fakes...)
	got := f.must(200, "POST", "/images/prune?filters="+url.QueryEscape(`{"node":{"node-2":true},"dangling":{"true":true}}`), nil)
	if strings.Count(got, "Deleted") != 2 { // the key ImagesDeleted, and one image
		t.Errorf("prune on node-2 = %s, want one image", got)
	}
	if n := fakes[0].count("POST", "/images/prune") + fakes[2].count("POST", "/images/prune"); n != 0 {
		t.Errorf("other nodes were asked to prune %d times", n)
	}
	if got := f.must(400, "POST", "/images/prune?filters="+url.QueryEscape(`{"bogus":["x"]}`), nil); !strings.Contains(got, "nvalid filter 'bogus'") {
		t.Errorf("prune with an unknown filter = %s", got)
	}
}

func TestPruneMergesAndNamesTheNodesLeftOut(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	for _, e := range fakes {
		e.override("POST", "/images/prune", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"ImagesDeleted":[{"Deleted":"sha256:aa"},{"Untagged":"x:%s"}],"SpaceReclaimed":100}`, e.name)
		})
	}
	f := newImageFleet(t, fakes...)
	fakes[2].stop()
	eventually(t, 20*time.Second, func() error {
		if len(f.healthyEngines()) != 2 {
			return fmt.Errorf("%d nodes are healthy", len(f.healthyEngines()))
		}
		return nil
	})
	status, body, _ := f.call("POST", "/images/prune", nil)
	want := `{"ImagesDeleted":[{"Deleted":"sha256:aa"},{"Untagged":"x:node-1"},{"Untagged":"x:node-2"}],"SpaceReclaimed":200,"Warnings":["left out: node node-3 is not healthy`
	if status != 200 || !strings.HasPrefix(body, want) {
		t.Errorf("prune = %d %s, want %s…", status, body, want)
	}
}

// The ledger tells what came of pulls, loads and builds, as it does of containers.
func TestLedgerTellsWhatCameOfImagesAndBuilds(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, newFakeEngine(t, hostNamed("a")))
	last := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if got := f.store.one(t, "SELECT kind || ' ' || outcome || ': ' || reason FROM why LIMIT 1"); !strings.HasPrefix(got, want) {
				return fmt.Errorf("why = %q, want %q", got, want)
			}
			return nil
		})
	}
	f.must(200, "POST", "/images/create?fromImage=app&tag=1", nil)
	last("image created: spread chose a, the only one of 1 that fits")
	f.call("POST", "/images/create?fromImage=nosuch&tag=1", nil)
	last("image failed: a was chosen and its engine refused: pull access denied for nosuch")
	undo := f.engines[0].override("POST", "^/images/load$", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, `{"stream":"half of it"}`)
		fmt.Fprintln(w, `{"errorDetail":{"message":"unexpected EOF"},"error":"unexpected EOF"}`)
	})
	f.call("POST", "/images/load", strings.NewReader("no tar"))
	last("image failed: a was chosen and its engine refused: unexpected EOF")
	undo()
	f.engines[0].cutAfter("^/images/create", 20)
	if resp, err := http.Post(f.url+"/images/create?fromImage=cut&tag=1", "", nil); err == nil { // it may break off before the header, or behind it
		resp.Body.Close()
	}
	last("image unknown: a was asked and has not answered: ")
	f.engines[0].heal()
	f.must(200, "POST", "/build?t=b:1", strings.NewReader("a context"), "Content-Type", "application/x-tar")
	last("build created: random chose a")
	other := newImageFleet(t, newFakeEngine(t, hostNamed("a")))
	other.upgrade("/grpc").Close()
	if got := other.store.one(t, "SELECT kind || ' ' || outcome FROM why LIMIT 1"); got != "build created" {
		t.Errorf("after a BuildKit stream: %s, want build created", got)
	}
	// Of one that was under way when the manager stopped nobody knows.
	f.store.sql(t, "INSERT INTO placements (kind, name, strategy, nodes, node, outcome) VALUES ('image', 'x', 'spread', 1, 'a', 'reserved')")
	if err := f.store.begin(t.Context(), managerRow{strategy: "spread"}); err != nil {
		t.Fatal(err)
	}
	last("image unknown: a was asked and has not answered: the manager stopped")
	if got := f.store.one(t, "SELECT count(*) FROM placements WHERE outcome = 'reserved'"); got != "0" {
		t.Errorf("%s rows are still reserved", got)
	}
}
