package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestE2EImages(t *testing.T) {
	w := newTwin(t)
	t.Run("commit", w.testCommit)
	t.Run("images", w.testImageList)
	t.Run("pull", w.testPull)
}

// testCommit: the image that is made on one node runs on any.
func (w *twin) testCommit(t *testing.T) {
	w.ok(t, "run", "--name", "base", "busybox", "sh", "-c", "echo committed >/file")
	node := w.docker(t, "inspect", "-f", "{{.Node.Name}}", "base")
	id := w.ok(t, "commit", "-m", "why", "-a", "who", "-c", `CMD ["cat", "/file"]`, "-c", "ENV X=y", "-c", "LABEL made=here", "base", "mine:1")
	for _, e := range w.engines {
		if got := e.docker(t, "images", "-q", "--no-trunc", "mine:1"); (got == id) != (e.name == node) {
			t.Errorf("the image is on %s as %q, want it on %s alone", e.name, got, node)
		}
	}
	for _, e := range w.engines {
		if got := w.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, "mine:1"); got != "committed" {
			t.Errorf("the committed image on %s says %q", e.name, got)
		}
		if got := e.docker(t, "images", "-q", "--no-trunc", "mine:1"); got != id {
			t.Errorf("the image on %s after a run is %q, want %s", e.name, got, id)
		}
	}
	w.ok(t, "run", "--rm", "mine:1")
	if got := w.docker(t, "run", "--rm", id[:19], "sh", "-c", "echo $X"); got != "y" {
		t.Errorf("docker run of a short ID: %q, want y", got)
	}
	w.ok(t, "commit", "base") // without a name
	w.same(t, "commit", "nosuch", "x:1")
	w.same(t, "commit", "base", "UPPER:1")
	w.ok(t, "history", "--format", "{{.CreatedBy}} {{.Comment}}", "mine:1")
	w.ok(t, "image", "inspect", "-f", "{{.Comment}} {{.Author}} {{.Config.Cmd}} {{.Config.Env}} {{.Os}} {{.RepoTags}} {{len .RootFS.Layers}}", "mine:1")
	w.ok(t, "rm", "base")
}

func (w *twin) testImageList(t *testing.T) {
	const names = "{{.Repository}}:{{.Tag}}"
	for _, args := range [][]string{
		{}, {"-a"}, {"-q"}, {"--digests"}, {"--no-trunc"}, {"--format", "{{json .}}"}, {"busybox"}, {"mine"}, {"mine:1"}, {"mine:2"}, {"b*"}, {"--filter", "dangling=true"},
		{"--filter", "dangling=false", "--format", names}, {"--filter", "before=mine:1", "--format", names}, {"--filter", "since=busybox", "--format", names},
		{"--filter", "reference=m*:1", "--format", names}, {"--filter", "label=made", "--format", names}, {"--filter", "label=made=here", "--format", names},
		{"--filter", "label=made=there"}, {"--filter", "bogus=1"}, {"--filter", "dangling=x"},
	} {
		w.same(t, append([]string{"images"}, args...)...)
	}
	if r := w.ask(t, "images", "--filter", "since=nosuch"); r.exit != 1 || !strings.Contains(r.stderr, "No such image: nosuch") {
		t.Errorf("docker images --filter since=nosuch: %v", r)
	}
	if got := w.docker(t, "images", "--filter", "node=node-1", "--filter", "reference=busybox", "--format", names); got != "busybox:latest" {
		t.Errorf("docker images --filter node=node-1: %q", got)
	}
	for _, path := range []string{"/images/json", "/images/json?all=1", "/images/mine:1/json", "/images/mine:1/history"} {
		_, ours := apiCall(t, "GET", w.addr, path)
		_, theirs := apiCall(t, "GET", w.alone.addr, path)
		sameShape(t, path, ours, theirs, ".Config.Labels.com.docker.swarm.", ".ContainerConfig.Labels.com.docker.swarm.", "[].Labels.com.docker.swarm.")
	}
}

// testPull: docker run pulls what nobody has, once, to the node that was picked.
func (w *twin) testPull(t *testing.T) {
	image := labRegistry(t) + "/busybox"
	// Without the layer, so that there is progress to show.
	if ids := strings.Fields(w.engines[2].docker(t, "images", "-aq")); len(ids) > 0 {
		w.engines[2].docker(t, append([]string{"rmi", "-f"}, slices.Compact(ids)...)...)
	}
	r := w.ask(t, "run", "--rm", "-e", "constraint:node==node-3", image, "echo", "pulled")
	for _, want := range []string{"Unable to find image '" + image + ":latest' locally", "latest: Pulling from busybox", ": Pulling fs layer", ": Pull complete", "Digest: sha256:", "Status: Downloaded newer image for " + image + ":latest"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("docker run of an image that nobody has lacks %q: %v", want, r)
		}
	}
	if r.stdout != "pulled\n" || r.exit != 0 {
		t.Errorf("docker run of an image that nobody has: %v", r)
	}
	has := func(e *labEngine) bool { return e.docker(t, "images", "-q", image) != "" }
	for i, e := range w.engines {
		if got := has(e); got != (i == 2) {
			t.Errorf("%s has the pulled image: %v, want it on node-3 alone", e.name, got)
		}
	}
	// No registry is needed any more.
	lab(t, "registry", "stop")
	began := time.Now()
	r = w.ask(t, "run", "--rm", "-e", "constraint:node==node-1", image, "echo", "copied")
	if r.stdout != "copied\n" || r.stderr != "" || r.exit != 0 {
		t.Errorf("docker run of an image that another node has, after %v: %v", time.Since(began), r)
	}
	if !has(w.engines[0]) || has(w.engines[1]) {
		t.Error("the image was not copied to node-1 alone")
	}
	if r := w.ask(t, "pull", image); r.exit != 1 || r.stderr == "" {
		t.Errorf("docker pull asks the registry always, but with no registry there: %v", r)
	}
	lab(t, "registry", "start")
	for _, args := range [][]string{
		{"pull", image}, {"pull", "-q", image}, {"pull", image + ":nosuch"}, {"pull", image + "nosuch"}, {"pull", "Bad Name"}, {"pull", "-a", image},
		{"run", "--rm", image + ":nosuch"}, {"run", "--rm", "--pull", "never", image + ":nosuch"}, {"run", "--rm", "--pull", "always", image, "echo", "always"},
		{"images", "--digests", image}, {"create", "--name", "x", image}, {"rm", "x"},
	} {
		w.sameWith(t, nil, func(s string) string {
			// One side may have the image already.
			s = strings.Replace(s, "Downloaded newer image for", "Image is up to date for", 1)
			var kept []string
			for _, line := range strings.Split(s, "\n") {
				if !strings.Contains(line, ": Pull complete") && !strings.Contains(line, ": Pulling fs layer") && !strings.Contains(line, ": Already exists") &&
					!strings.Contains(line, ": Download") && !strings.Contains(line, ": Verifying") {
					kept = append(kept, line)
				}
			}
			return strings.Join(kept, "\n")
		}, args...)
	}
	digest := w.docker(t, "images", "--digests", "--format", "{{.Digest}}", image)
	if got := w.docker(t, "run", "--rm", image+"@"+digest, "echo", "by digest"); got != "by digest" {
		t.Errorf("docker run by digest: %q", got)
	}
	if got := w.sql(t, "SELECT count(*) FROM reservations"); got != "0" {
		t.Errorf("reservations left: %s", got)
	}
	w.ok(t, "tag", image, fmt.Sprintf("%s:again", image))
}
