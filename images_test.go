package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// imageFleet is a cluster in this process over simulated engines.
type imageFleet struct {
	*cluster
	t       *testing.T
	url     string
	engines []*fakeEngine
	log     *logBuffer
}

// newImageFleet starts a cluster over these engines, with the real store and the real API.
func newImageFleet(t *testing.T, engines ...*fakeEngine) *imageFleet {
	t.Helper()
	logged := &logBuffer{}
	log := slog.New(slog.NewTextHandler(logged, nil))
	ctx := t.Context()
	s, err := openStore(ctx, filepath.Join(t.TempDir(), "swarmlite.db"))
	if err != nil {
		t.Fatal(err)
	}
	sched, err := newScheduler(log, s, "spread", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.begin(ctx, managerRow{version: "test", strategy: "spread", overcommit: 0.05}); err != nil {
		t.Fatal(err)
	}
	ns := newNodes(log, s, nil)
	f := &imageFleet{cluster: &cluster{log: log, store: s, nodes: ns, scheduler: sched, names: "plain", base: ctx}, t: t, engines: engines, log: logged}
	t.Cleanup(func() { // the context of the test has ended by now
		ns.wait()
		s.close()
		if t.Failed() {
			t.Logf("log:\n%s", logged)
		}
	})
	var addrs []string
	for _, e := range engines {
		addrs = append(addrs, "tcp://"+e.addr())
	}
	if err := ns.set(ctx, addrs); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(newAPI(f.cluster, log, "test", nil))
	t.Cleanup(server.Close)
	f.url = server.URL
	eventually(t, 10*time.Second, func() error {
		if n := len(f.healthyEngines()); n != len(engines) {
			return fmt.Errorf("%d of %d nodes are healthy", n, len(engines))
		}
		return nil
	})
	return f
}

// threeFakes are three engines named node-1 to node-3 that have busybox.
func threeFakes(t *testing.T) []*fakeEngine {
	t.Helper()
	var list []*fakeEngine
	for i := range 3 {
		list = append(list, newFakeEngine(t, func(e *fakeEngine) { e.name = fmt.Sprint("node-", i+1) }))
	}
	return list
}

// containerdStore makes a fake engine one with containerd's image store.
func containerdStore(e *fakeEngine) {
	e.driver, e.apiVersion, e.minAPIVersion = "overlayfs", "1.51", "1.24"
}

// call sends a request and returns the answer, read whole. Header pairs come last.
func (f *imageFleet) call(method, path string, body io.Reader, header ...string) (int, string, http.Header) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data)), resp.Header
}

// must is call for what has to have this status; it returns the body.
func (f *imageFleet) must(status int, method, path string, body io.Reader, header ...string) string {
	f.t.Helper()
	got, text, _ := f.call(method, path, body, header...)
	if got != status {
		f.t.Fatalf("%s %s = %d %s, want %d", method, path, got, text, status)
	}
	return text
}

// create makes a container of an image on a node and returns its engine's idea of it.
func (f *imageFleet) create(image, node string) (status int, answer string) {
	f.t.Helper()
	body := fmt.Sprintf(`{"Image":%q,"Env":["constraint:node==%s"]}`, image, node)
	status, answer, _ = f.call("POST", "/containers/create", strings.NewReader(body), "Content-Type", "application/json")
	return status, answer
}

// imageOf is what a reference names on an engine itself, "" if nothing.
func imageOf(e *fakeEngine, ref string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := e.findImage(ref); i != nil {
		return i.id
	}
	return ""
}

// inspectID is the Id of an image as the cluster tells it.
func (f *imageFleet) inspectID(ref string) string {
	f.t.Helper()
	var im struct{ Id string }
	if err := json.Unmarshal([]byte(f.must(200, "GET", "/images/"+ref+"/json", nil)), &im); err != nil {
		f.t.Fatal(err)
	}
	return im.Id
}

// node finds a fake by its name.
func (f *imageFleet) node(name string) *fakeEngine {
	f.t.Helper()
	for _, e := range f.engines {
		if e.name == name {
			return e
		}
	}
	f.t.Fatalf("no engine %s", name)
	return nil
}

// pull sets a tag on one node through the cluster, as a create there that found it missing would.
func (f *imageFleet) pullOn(node, ref string) {
	f.t.Helper()
	if err := f.store.expectPull(f.t.Context(), imageName(ref), f.nodeID(node)); err != nil {
		f.t.Fatal(err)
	}
	name, tag, _ := strings.Cut(ref, ":")
	f.must(200, "POST", "/images/create?fromImage="+name+"&tag="+tag, nil)
}

func (f *imageFleet) nodeID(name string) int64 {
	f.t.Helper()
	var id int64
	if err := f.store.get(f.t.Context(), "SELECT id FROM nodes WHERE name = ?", []any{name}, &id); err != nil {
		f.t.Fatalf("node %s: %v", name, err)
	}
	return id
}

// fakeImageTar is what "docker save" of a fake engine gives: one image with these tags.
func fakeImageTar(t *testing.T, content string, tags ...string) []byte {
	t.Helper()
	config := fakeImageConfig(content, nil)
	file := strings.TrimPrefix(fakeDigest(config), "sha256:") + ".json"
	manifest, err := json.Marshal([]fakeManifest{{Config: file, RepoTags: tags, Layers: []string{}}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range map[string][]byte{file: config, "manifest.json": manifest} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

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
	eventually(t, 10*time.Second, func() error {
		if f.alive(f.nodeID(setter.name)) {
			return fmt.Errorf("%s is healthy", setter.name)
		}
		return nil
	})
	if got := f.inspectID("app:1"); got == now {
		t.Errorf("app:1 is %s, which only a dead node has", got)
	}
}

func TestImageIsCopiedOnceForAllThatWait(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	fakes[0].addImage("app:1", "")
	f := newImageFleet(t, fakes...)
	fakes[1].delay("/images/load", 300*time.Millisecond)
	done := make(chan string, 10)
	for range cap(done) {
		go func() {
			status, answer := f.create("app:1", "node-2")
			done <- fmt.Sprint(status, " ", answer[:min(len(answer), 80)])
		}()
	}
	for range cap(done) {
		if got := <-done; !strings.HasPrefix(got, "201 ") {
			t.Errorf("create = %s, want 201", got)
		}
	}
	if n := fakes[1].count("POST", "/images/load"); n != 1 {
		t.Errorf("%d transfers for ten creates, want 1", n)
	}
	if n := fakes[1].count("POST", "/images/create") + fakes[0].count("POST", "/images/create"); n != 0 {
		t.Errorf("a registry was asked %d times", n)
	}
}

func TestTransferGoesOnWhenTheClientLeaves(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	fakes[0].addImage("app:1", "")
	f := newImageFleet(t, fakes...)
	began := make(chan struct{})
	finish := make(chan struct{})
	fakes[1].override("POST", "/images/load", func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-finish
		fakes[1].answer(w, r)
	})
	client := &http.Client{Transport: &http.Transport{}}
	gone := make(chan error, 1)
	req, err := http.NewRequest("POST", f.url+"/containers/create?name=web", strings.NewReader(`{"Image":"app:1","Env":["constraint:node==node-2"]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		_, err := client.Do(req.WithContext(ctx))
		gone <- err
	}()
	<-began
	leave()
	if err := <-gone; err == nil {
		t.Fatal("the client got an answer before the image was there")
	}
	close(finish)
	eventually(t, 5*time.Second, func() error {
		if names := fakes[1].containerNames(); !slices.Contains(names, "web") {
			return fmt.Errorf("containers on node-2: %q, want web", names)
		}
		return nil
	})
}

func TestTransferTriesTheNextNodeThatHasTheImage(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	fakes[0].addImage("app:1", "")
	fakes[1].addImage("app:1", "")
	f := newImageFleet(t, fakes...)
	fakes[0].cutAfter("/images/get", 700)
	if status, answer := f.create("app:1", "node-3"); status != 201 {
		t.Errorf("create while node-1 breaks off its copy = %d %s, want 201", status, answer)
	}
	fakes[1].removeImage("app:1")
	fakes[2].removeImage("app:1")
	f.readImages(t.Context(), f.healthyEngines()...)
	status, answer := f.create("app:1", "node-2")
	if status != 502 || !strings.Contains(answer, "copy image app:1 from node node-1 to node node-2: ") {
		t.Errorf("create when no copy can be had = %d %s, want 502 that names both nodes", status, answer)
	}
}

func TestCreateByIDKeepsToNodesThatCanHaveTheImage(t *testing.T) {
	t.Parallel()
	graph1 := newFakeEngine(t, func(e *fakeEngine) { e.name = "graph-1" })
	graph2 := newFakeEngine(t, func(e *fakeEngine) { e.name = "graph-2" })
	other := newFakeEngine(t, containerdStore, func(e *fakeEngine) { e.name, e.cpus = "other", 64 })
	id := graph1.addImage("app:1", "")
	graph1.addImage("app:2", "")
	for range 3 { // the containerd node has the most room
		graph1.addContainer("", "busybox", true, nil)
		graph2.addContainer("", "busybox", true, nil)
	}
	f := newImageFleet(t, graph1, graph2, other)
	for _, ref := range []string{id, strings.TrimPrefix(id, "sha256:"), id[7:19]} {
		if status, answer := f.create(ref, "graph-*"); status != 201 {
			t.Errorf("create of %s = %d %s, want 201", ref, status, answer)
		}
		status, answer := f.create(ref, "other")
		if want := "no node fits: 2 of 3 fail constraint node==other, 1 does not have image " + id[7:19] + ", and another kind of image store"; status != 503 || !strings.Contains(answer, want) {
			t.Errorf("create of %s on a node with another kind of image store = %d %s, want 503 %s", ref, status, answer, want)
		}
	}
	if status, answer := f.create(id, "graph-2"); status != 201 {
		t.Fatalf("create of %s on graph-2 = %d %s, want 201", id, status, answer)
	}
	if got := imageOf(graph2, "app:1"); got != id {
		t.Errorf("a copy by ID is not tagged as its source: app:1 on graph-2 is %q, want %s", got, id)
	}
	if got := imageOf(graph2, "app:2"); got != "" {
		t.Errorf("app:2 on graph-2 is %s, want nothing", got)
	}
}

func TestCopyByIDLeavesTagsThatMeanAnotherImage(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	old := fakes[0].addImage("app:1", "old")
	fakes[0].addImage("kept:1", "old")
	f.readImages(t.Context(), f.healthyEngines()...)
	f.pullOn("node-2", "app:1")
	if status, answer := f.create(old, "node-3"); status != 201 {
		t.Fatalf("create = %d %s", status, answer)
	}
	if got := imageOf(fakes[2], "app:1"); got == old {
		t.Errorf("the copy took app:1, which means another image")
	}
	if got := imageOf(fakes[2], "kept:1"); got != old {
		t.Errorf("kept:1 on node-3 is %q, want %s", got, old)
	}
}

func TestImageIsCopiedBetweenKindsOfStoreOnce(t *testing.T) {
	t.Parallel()
	graph := newFakeEngine(t, func(e *fakeEngine) { e.name = "graph" })
	other := newFakeEngine(t, containerdStore, func(e *fakeEngine) { e.name = "other" })
	f := newImageFleet(t, graph, other)
	f.pullOn("graph", "app:1")
	id := imageOf(graph, "app:1")
	for range 3 {
		if status, answer := f.create("app:1", "other"); status != 201 {
			t.Fatalf("create = %d %s", status, answer)
		}
	}
	if n := other.count("POST", "/images/load"); n != 1 {
		t.Errorf("%d transfers, want 1: the copy has another ID and is the same image", n)
	}
	if copied := imageOf(other, "app:1"); copied == id {
		t.Fatalf("both kinds gave the ID %s", id)
	}
	if got := f.inspectID("app:1"); got != id {
		t.Errorf("app:1 = %s, want the one that was pulled, %s", got, id)
	}
	if status, answer := f.create("app:1", "graph"); status != 201 || graph.count("POST", "/images/load") != 0 {
		t.Errorf("create where it was pulled = %d %s after %d transfers, want 201 after 0", status, answer, graph.count("POST", "/images/load"))
	}
	var trouble string
	if err := f.store.get(t.Context(), "SELECT node FROM trouble WHERE what = 'two kinds of image store'", nil, &trouble); err != nil || trouble != "other" {
		t.Errorf("trouble names %q (%v), want other", trouble, err)
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

func TestSaveBringsImagesToOneNode(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	one, two := fakes[0].addImage("one:1", ""), fakes[1].addImage("two:1", "")
	f := newImageFleet(t, fakes...)
	saved := f.must(200, "GET", "/images/get?names=one:1&names=two:1", nil)
	back := newFakeEngine(t)
	if _, err := newFakeClient(t, back).ImageLoad(fakeContext(t), strings.NewReader(saved)); err != nil {
		t.Fatalf("load what was saved: %v", err)
	}
	eventually(t, 5*time.Second, func() error {
		if imageOf(back, "one:1") != one || imageOf(back, "two:1") != two {
			return fmt.Errorf("the saved images are %q and %q, want %s and %s", imageOf(back, "one:1"), imageOf(back, "two:1"), one, two)
		}
		return nil
	})
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

func TestEveryNodePullsAndLoads(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	f.everyNode = true
	got := f.must(200, "POST", "/images/create?fromImage=app&tag=1", nil)
	for _, e := range fakes {
		if imageOf(e, "app:1") == "" {
			t.Errorf("%s has not pulled", e.name)
		}
		for _, want := range []string{`{"status":"Pulling app:1...","id":"` + e.name + `"}`, `{"status":"Pulling app:1... : downloaded","id":"` + e.name + `"}`} {
			if strings.Count(got, want) != 1 {
				t.Errorf("pull has %d lines %s, want 1:\n%s", strings.Count(got, want), want, got)
			}
		}
	}
	if n := strings.Count(got, "Status: Downloaded newer image for app:1"); n != 1 {
		t.Errorf("%d final lines, want 1:\n%s", n, got)
	}
	got = f.must(200, "POST", "/images/load", bytes.NewReader(fakeImageTar(t, "content", "loaded:1")))
	for _, e := range fakes {
		if imageOf(e, "loaded:1") == "" {
			t.Errorf("%s has not loaded", e.name)
		}
	}
	if n := strings.Count(got, `Loaded image: loaded:1`); n != 1 {
		t.Errorf("%d lines Loaded image, want 1:\n%s", n, got)
	}
	if got := f.must(404, "POST", "/images/create?fromImage=nosuch&tag=1", nil); !strings.Contains(got, "pull access denied") {
		t.Errorf("pull of what nobody has = %s", got)
	}
	fakes[1].fail("POST", "/images/create", 500, `{"message":"disk full"}`)
	got = f.must(200, "POST", "/images/create?fromImage=app&tag=2", nil)
	if !strings.Contains(got, `"errorDetail":{"message":"node node-2: disk full"}`) || imageOf(fakes[2], "app:2") == "" {
		t.Errorf("pull when node-2 fails = %s, want its error, and the image on the others", got)
	}
	// An engine that breaks off does not stop the body for the others.
	fakes[0].override("POST", "/images/load", func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) })
	big := fakeImageTar(t, strings.Repeat("x", 1<<20), "big:1")
	got = f.must(200, "POST", "/images/load", bytes.NewReader(big))
	if !strings.Contains(got, "node node-1: ") || imageOf(fakes[1], "big:1") == "" || imageOf(fakes[2], "big:1") == "" {
		t.Errorf("load when node-1 breaks off = %s, want its error, and the image on the others", got)
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
	got := f.must(200, "POST", "/images/prune?filters="+url.QueryEscape(`{"node":["node-2"],"dangling":{"true":true}}`), nil)
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
	eventually(t, 10*time.Second, func() error {
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
