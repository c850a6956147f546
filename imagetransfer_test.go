package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

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
	eventually(t, 20*time.Second, func() error {
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
	eventually(t, 20*time.Second, func() error {
		if imageOf(back, "one:1") != one || imageOf(back, "two:1") != two {
			return fmt.Errorf("the saved images are %q and %q, want %s and %s", imageOf(back, "one:1"), imageOf(back, "two:1"), one, two)
		}
		return nil
	})
}
