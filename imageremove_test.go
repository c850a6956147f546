package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// removedWords are the answer to a rmi as a person reads it: U name, D id.
func removedWords(t *testing.T, answer string) string {
	t.Helper()
	var items []struct{ Untagged, Deleted string }
	if err := json.Unmarshal([]byte(answer), &items); err != nil {
		t.Fatalf("answer %s: %v", answer, err)
	}
	words := []string{}
	for _, i := range items {
		if i.Untagged != "" {
			words = append(words, "U "+i.Untagged)
		} else {
			words = append(words, "D "+shortID(i.Deleted))
		}
	}
	return strings.Join(words, ", ")
}

// TestRemoveIsJudgedOnAllNodes: each row is refused, or done, as by one engine that
// had all the containers and all the tags.
func TestRemoveIsJudgedOnAllNodes(t *testing.T) {
	t.Parallel()
	const id = "<id>"
	for name, row := range map[string]struct {
		images     []string // node:tag
		containers []string // node:state
		remove     string   // with its query; <id> stands for the image's
		status     int
		want       string   // message; or what was removed. <c> stands for a container
		left       []string // node:tag
	}{
		"an unused image goes from every node": {
			images: []string{"1:app:1", "2:app:1", "3:app:1"}, remove: "app:1", status: 200, want: "U app:1, D <id>"},
		"one of two tags goes, on every node": {
			images: []string{"1:app:1", "1:app:2", "2:app:1"}, remove: "app:1", status: 200, want: "U app:1", left: []string{"1:app:2"}},
		"the last tag of an image in use on another node is refused": {
			images: []string{"1:app:1", "2:app:1"}, containers: []string{"2:exited"}, remove: "app:1", status: 409,
			want: `conflict: unable to remove repository reference "app:1" (must force) - container <c> is using its referenced image <id>`,
			left: []string{"1:app:1", "2:app:1"}},
		"its name is repeated as the client wrote it": {
			images: []string{"1:app:latest"}, containers: []string{"1:running"}, remove: "docker.io/library/app", status: 409,
			want: `conflict: unable to remove repository reference "docker.io/library/app" (must force) - container <c> is using its referenced image <id>`,
			left: []string{"1:app:latest"}},
		"force takes the last tag off an image in use, which stays": {
			images: []string{"1:app:1", "2:app:1"}, containers: []string{"2:running"}, remove: "app:1?force=1", status: 200, want: "U app:1"},
		"one of two tags goes though the node of the container has only that one": {
			images: []string{"1:app:1", "1:app:2", "2:app:1"}, containers: []string{"2:exited"}, remove: "app:1", status: 200, want: "U app:1",
			left: []string{"1:app:2", "2:app:2"}},
		"by ID with one tag": {
			images: []string{"1:app:1", "2:app:1"}, remove: id, status: 200, want: "U app:1, D <id>"},
		"by ID with tags of one node each is refused": {
			images: []string{"1:app:1", "2:app:2"}, remove: id, status: 409,
			want: "conflict: unable to delete <id> (must be forced) - image is referenced in multiple repositories",
			left: []string{"1:app:1", "2:app:2"}},
		"by ID with several tags and force": {
			images: []string{"1:app:1", "2:app:2"}, remove: id + "?force=1", status: 200, want: "U app:1, U app:2, D <id>"},
		"by ID in use by a stopped container": {
			images: []string{"1:app:1", "2:app:1"}, containers: []string{"2:exited"}, remove: id, status: 409,
			want: "conflict: unable to delete <id> (must be forced) - image is being used by stopped container <c>",
			left: []string{"1:app:1", "2:app:1"}},
		"by ID in use by a running container, even with force": {
			images: []string{"1:app:1", "2:app:1"}, containers: []string{"2:running"}, remove: id + "?force=1", status: 409,
			want: "conflict: unable to delete <id> (cannot be forced) - image is being used by running container <c>",
			left: []string{"1:app:1", "2:app:1"}},
		"by ID, a running container is told before several tags": {
			images: []string{"1:app:1", "2:app:2"}, containers: []string{"2:running"}, remove: id, status: 409,
			want: "conflict: unable to delete <id> (cannot be forced) - image is being used by running container <c>",
			left: []string{"1:app:1", "2:app:2"}},
		"by ID, several tags are told before a stopped container": {
			images: []string{"1:app:1", "2:app:2"}, containers: []string{"2:exited"}, remove: id, status: 409,
			want: "conflict: unable to delete <id> (must be forced) - image is referenced in multiple repositories",
			left: []string{"1:app:1", "2:app:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fakes := threeFakes(t)
			at := func(s string) (*fakeEngine, string) {
				node, rest, _ := strings.Cut(s, ":")
				return fakes[node[0]-'1'], rest
			}
			var image, container string
			for _, s := range row.images {
				e, tag := at(s)
				image = e.addImage(tag, "content")
			}
			for _, s := range row.containers {
				e, state := at(s)
				container = e.addContainer("user", image, state == "running", nil)
				if state == "exited" {
					e.startContainer("user")
					e.exitContainer("user", 0)
				}
			}
			f := newImageFleet(t, fakes...)
			words := strings.NewReplacer(id, shortID(image), "<c>", container[:min(12, len(container))])
			status, answer, _ := f.call("DELETE", "/images/"+strings.ReplaceAll(row.remove, id, image), nil)
			got := answer
			if status == 200 {
				got = removedWords(t, answer)
			} else {
				var m struct{ Message string }
				if err := json.Unmarshal([]byte(answer), &m); err != nil {
					t.Fatalf("answer %s: %v", answer, err)
				}
				got = m.Message
			}
			if want := words.Replace(row.want); status != row.status || got != want {
				t.Errorf("DELETE %s = %d %s, want %d %s", row.remove, status, got, row.status, want)
			}
			var left []string
			for i, e := range fakes {
				for _, tag := range e.imageTags() {
					if tag != "busybox:latest" {
						left = append(left, fmt.Sprint(i+1, ":", tag))
					}
				}
			}
			slices.Sort(row.left)
			if !slices.Equal(left, row.left) {
				t.Errorf("tags on the engines afterwards: %q, want %q", left, row.left)
			}
		})
	}
}

func TestRemoveOfATagTakesItOffEveryNodeWhateverItNames(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	stopped, running, unused := fakes[0].addImage("app:1", "old"), fakes[1].addImage("app:1", "old"), fakes[2].addImage("app:1", "older")
	fakes[0].addContainer("stopped", "app:1", false, nil)
	fakes[1].addContainer("running", "app:1", true, nil)
	f.nodes.settle(t.Context())
	fakes = append(fakes, newFakeEngine(t, func(e *fakeEngine) { e.name = "node-4" }))
	fakes[3].addImage("app:1", "new")
	f = newImageFleet(t, fakes...)
	if err := f.store.tagsSet(t.Context(), f.nodeID("node-4"), []string{imageName("app:1")}); err != nil {
		t.Fatal(err)
	}
	now := f.inspectID("app:1")
	got := removedWords(t, f.must(200, "DELETE", "/images/app:1", nil))
	if want := "U app:1, D " + shortID(now); got != want {
		t.Errorf("rmi = %s, want %s: images that had lost the name long ago are not part of it", got, want)
	}
	for i, want := range []string{stopped, running} {
		if imageOf(fakes[i], want) == "" {
			t.Errorf("%s lost the image of its container", fakes[i].name)
		}
	}
	if imageOf(fakes[2], unused) != "" {
		t.Errorf("node-3 keeps an image that nothing names or uses")
	}
	for _, e := range fakes {
		if slices.Contains(e.imageTags(), "app:1") {
			t.Errorf("%s still has app:1", e.name)
		}
	}
	f.must(404, "GET", "/images/app:1/json", nil)
}

func TestRemoveNamesTheNodesThatKeepTheImage(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	for _, e := range fakes {
		e.addImage("app:1", "")
	}
	f := newImageFleet(t, fakes...)
	fakes[2].stop()
	eventually(t, 20*time.Second, func() error {
		if f.alive(f.nodeID("node-3")) {
			return fmt.Errorf("node-3 is healthy")
		}
		return nil
	})
	status, answer, header := f.call("DELETE", "/images/app:1", nil)
	if got := header.Get("Warning"); status != 200 || !strings.Contains(got, "node-3") {
		t.Errorf("rmi = %d %s with the warning %q, want 200 and node-3 named", status, answer, got)
	}
	status, answer, _ = f.call("DELETE", "/images/app:1", nil)
	if status != 503 || !strings.Contains(answer, "node-3") {
		t.Errorf("rmi of what only a dead node has = %d %s, want 503 that names it", status, answer)
	}
}

func TestRemoveByTheRulesOfContainerdsStore(t *testing.T) {
	t.Parallel()
	a := newFakeEngine(t, containerdStore, func(e *fakeEngine) { e.name = "a" })
	b := newFakeEngine(t, containerdStore, func(e *fakeEngine) { e.name = "b" })
	id := a.addImage("app:1", "")
	b.addImage("app:1", "")
	user := b.addContainer("user", "app:1", false, nil)
	f := newImageFleet(t, a, b)
	want := fmt.Sprintf("conflict: unable to delete app:1 (must be forced) - container %s is using its referenced image %s", user[:12], shortID(id))
	if status, answer, _ := f.call("DELETE", "/images/app:1", nil); status != 409 || !strings.Contains(answer, want) {
		t.Errorf("rmi = %d %s, want 409 %s", status, answer, want)
	}
}
