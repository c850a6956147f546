package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dockerfile writes a build context whose image says word, and returns its directory.
func dockerfile(t *testing.T, word string) string {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("FROM busybox:latest\nRUN echo %s > /word\nCMD [\"cat\", \"/word\"]\n", word)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dockerBuild builds with the command at path. kit chooses BuildKit over the classic builder.
func dockerBuild(t *testing.T, path, host string, kit bool, args ...string) string {
	t.Helper()
	cmd := dockerCommand(t, host, append([]string{"build"}, args...)...)
	cmd.Path = path
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
	if kit {
		cmd.Env[len(cmd.Env)-1] = "DOCKER_BUILDKIT=1"
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s build %s (BuildKit: %t): %v\n%s", path, strings.Join(args, " "), kit, err, out)
	}
	return string(out)
}

// dockerWithBuildKit finds a docker command of the versions (before 23) that speak
// BuildKit by themselves, over POST /build and /session; "" if there is none.
func dockerWithBuildKit(t *testing.T) string {
	t.Helper()
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, "docker")
		out, err := exec.Command(path, "--version").Output()
		fields := strings.Fields(string(out))
		if err != nil || len(fields) < 3 {
			continue
		}
		major, _, _ := strings.Cut(fields[2], ".")
		if n, err := strconv.Atoi(major); err == nil && n < 23 {
			return path
		}
	}
	return ""
}

// nodeImages is what a tag names on each engine itself.
func nodeImages(t *testing.T, engines []*labEngine, tag string) []string {
	t.Helper()
	var ids []string
	for _, e := range engines {
		ids = append(ids, e.docker(t, "images", "-q", "--no-trunc", tag))
	}
	return ids
}

func TestE2EImageBuiltASecondAgoRunsOnEveryNode(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	first, err := exec.LookPath("docker")
	if err != nil {
		t.Fatal(err)
	}
	builders := []struct {
		name, path string
		kit        bool
	}{{"the classic builder", first, false}}
	if path := dockerWithBuildKit(t); path != "" {
		builders = append(builders, struct {
			name, path string
			kit        bool
		}{"BuildKit of docker 20.10", path, true})
	} else {
		t.Log("NOT RUN: BuildKit of docker 20.10: no docker command before version 23 in PATH")
	}
	for i, b := range builders {
		tag := fmt.Sprint("app:", i)
		for _, word := range []string{"one", "two"} { // the second moves the tag
			word = fmt.Sprint(word, i)
			dockerBuild(t, b.path, m.addr, b.kit, "-t", tag, dockerfile(t, word))
			for _, e := range engines {
				if got := m.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, tag); got != word {
					t.Errorf("%s: run on %s says %q, want %q, which was built just now", b.name, e.name, got, word)
				}
			}
		}
		ids := nodeImages(t, engines, tag)
		if want := m.docker(t, "images", "-q", "--no-trunc", tag); len(slices.Compact(ids)) != 1 || ids[0] != want {
			t.Errorf("%s: %s is %q on the nodes and %s in the cluster, want one", b.name, tag, ids, want)
		}
		node := engines[i].name
		dockerBuild(t, b.path, m.addr, b.kit, "-t", fmt.Sprint("steered:", i), "--build-arg", "constraint:node=="+node, dockerfile(t, "steered"))
		for _, e := range engines {
			if has := e.docker(t, "images", "-q", fmt.Sprint("steered:", i)) != ""; has != (e.name == node) {
				t.Errorf("%s with a constraint to %s: the image is on %s: %t", b.name, node, e.name, has)
			}
		}
	}
	if got := m.sql(t, "SELECT count(DISTINCT node_id) FROM builders WHERE client LIKE 'address %'"); got != "1" {
		t.Errorf("this client's builds are remembered on %s nodes, want 1", got)
	}
}

func TestE2EImagesAreAsOnOneEngine(t *testing.T) {
	w := newTwin(t)
	w.same(t, "images")
	w.same(t, "images", "-a", "--no-trunc", "--digests")
	w.same(t, "history", "busybox")
	w.same(t, "history", "--no-trunc", "-q", "busybox")
	w.same(t, "image", "inspect", "nosuch")
	w.same(t, "tag", "busybox", "mine/tool:v1")
	w.same(t, "tag", "busybox", "mine/tool:v2")
	w.same(t, "tag", "nosuch", "x")
	w.same(t, "tag", "busybox", "UPPER")
	w.sameSorted(t, "images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
	for _, filter := range []string{"reference=mine/*", "reference=*/tool:v1", "dangling=true", "dangling=false", "label=x", "before=busybox", "since=mine/tool:v1", "bogus=1", "dangling=x"} {
		w.sameSorted(t, "images", "--filter", filter, "--format", "{{.Repository}}:{{.Tag}}")
	}
	w.sameSorted(t, "images", "mine/tool")
	w.same(t, "inspect", "--type", "image", "-f", "{{.Id}} {{.Os}} {{.Config.Cmd}}", "mine/tool:v1")

	// What a container uses is not removed, wherever it is.
	id := strings.TrimPrefix(w.docker(t, "images", "-q", "--no-trunc", "busybox"), "sha256:")
	w.same(t, "run", "-d", "--name", "user", "mine/tool:v1", "sleep", "1000")
	w.same(t, "rmi", "nosuch")
	w.same(t, "rmi", id)
	w.same(t, "rmi", "-f", id)
	w.same(t, "rmi", "mine/tool:v2")
	w.same(t, "rmi", "mine/tool:v1")
	w.same(t, "rmi", "busybox:latest")
	w.same(t, "ps", "--format", "{{.Names}} {{.Image}}")
	w.same(t, "rmi", "-f", "busybox:latest")
	w.same(t, "ps", "--format", "{{.Names}} {{.Image}}")
	w.same(t, "rm", "-f", "user")
	w.sameSorted(t, "image", "prune", "-f")
	w.same(t, "images", "-a")
	if got := nodeImages(t, w.engines, "busybox"); strings.Join(got, "") != "" {
		t.Errorf("busybox on the nodes after the last rmi: %q", got)
	}
}

func TestE2ESaveLoadImport(t *testing.T) {
	w := newTwin(t)
	dir := t.TempDir()
	// Two images, each on a node of its own.
	for i, word := range []string{"one", "two"} {
		dockerBuild(t, mustLookPath(t, "docker"), w.engines[i].addr, false, "-t", word+":1", dockerfile(t, word))
	}
	eventually(t, 20*time.Second, func() error {
		if n := len(strings.Fields(w.docker(t, "images", "-q", "--filter", "reference=*:1"))); n != 2 {
			return fmt.Errorf("%d of 2 images are listed", n)
		}
		return nil
	})
	both := filepath.Join(dir, "both.tar")
	w.docker(t, "save", "-o", both, "one:1", "two:1")
	fresh := w.alone
	loaded := fresh.docker(t, "load", "-i", both)
	for _, word := range []string{"one", "two"} {
		if !strings.Contains(loaded, "Loaded image: "+word+":1") {
			t.Errorf("load of what was saved from two nodes says %q", loaded)
		}
		if got := fresh.docker(t, "run", "--rm", word+":1"); got != word {
			t.Errorf("the saved %s:1 says %q", word, got)
		}
		w.docker(t, "rmi", word+":1")
	}
	w.same(t, "load", "-i", both)
	for _, word := range []string{"one", "two"} {
		for _, e := range w.engines {
			if got := w.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, word+":1"); got != word {
				t.Errorf("%s:1, loaded through the cluster, says %q on %s", word, got, e.name)
			}
		}
	}
	w.same(t, "save", "-o", filepath.Join(dir, "no.tar"), "nosuch")

	// An import is usable everywhere, too.
	w.docker(t, "create", "--name", "source", "busybox")
	rootfs := filepath.Join(dir, "rootfs.tar")
	w.docker(t, "export", "-o", rootfs, "source")
	w.docker(t, "import", "-c", `CMD ["echo", "imported"]`, rootfs, "imported:1")
	for _, e := range w.engines {
		if got := w.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, "imported:1"); got != "imported" {
			t.Errorf("the imported image says %q on %s", got, e.name)
		}
	}
	// And what a container was made into.
	w.docker(t, "run", "--name", "changed", "busybox", "sh", "-c", "echo committed > /word")
	w.docker(t, "commit", "-c", `CMD ["cat", "/word"]`, "changed", "committed:1")
	for _, e := range w.engines {
		if got := w.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, "committed:1"); got != "committed" {
			t.Errorf("the committed image says %q on %s", got, e.name)
		}
	}
	// By ID: the copy keeps its tag, or a prune would take it.
	id := w.docker(t, "images", "-q", "--no-trunc", "one:1")
	w.docker(t, "rmi", "two:1")
	for _, e := range w.engines {
		e.docker(t, "rmi", "-f", "one:1")
	}
	w.docker(t, "load", "-q", "-i", both)
	for _, e := range w.engines {
		if got := w.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, id); got != "one" {
			t.Errorf("%s says %q on %s", id, got, e.name)
		}
	}
	if got := nodeImages(t, w.engines, "one:1"); !slices.Equal(got, []string{id, id, id}) {
		t.Errorf("one:1 on the nodes is %q, want %s on each", got, id)
	}
}

func mustLookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestE2ERegistryIsAskedOnceForAnImage(t *testing.T) {
	engines := labEngines(t)
	registry := labRegistry(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	image := registry + "/busybox"
	for _, e := range engines {
		e.docker(t, "rmi", "-f", "busybox:latest")
	}
	out, stderr, exit := dockerCLI(t, m.addr, "run", "--rm", image, "echo", "first")
	if exit != 0 || strings.TrimSpace(out) != "first" || !strings.Contains(stderr, "Pull complete") || !strings.Contains(stderr, "Status: Downloaded newer image for "+image+":latest") {
		t.Fatalf("run of an image that nobody has: exit code %d\n%s%s", exit, out, stderr)
	}
	m.docker(t, "tag", image, registry+"/mine:v1")
	if got := m.docker(t, "push", registry+"/mine:v1"); !strings.Contains(got, "v1: digest: sha256:") {
		t.Errorf("push says %s", got)
	}
	if got := m.docker(t, "pull", image); !strings.Contains(got, "Image is up to date for "+image+":latest") {
		t.Errorf("an explicit pull of what is there says %s", got)
	}
	digest := registry + "/mine@" + m.docker(t, "inspect", "-f", `{{range .RepoDigests}}{{.}} {{end}}`, registry+"/mine:v1")
	digest = registry + "/mine@sha256:" + strings.Fields(digest[strings.Index(digest, "/mine@sha256:")+len("/mine@sha256:"):])[0]
	m.docker(t, "rmi", registry+"/mine:v1")
	if got := m.docker(t, "run", "--rm", digest, "echo", "by digest"); got != "by digest" {
		t.Errorf("run by digest says %q", got)
	}
	if _, body := apiCall(t, "GET", m.addr, "/distribution/"+image+"/json"); !strings.Contains(body, "sha256:") {
		t.Errorf("distribution says %s", body)
	}
	lab(t, "registry", "stop")
	for _, e := range engines {
		if got := m.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, image, "echo", e.name); got != e.name {
			t.Errorf("run on %s without a registry says %q", e.name, got)
		}
	}
	if _, stderr, exit := dockerCLI(t, m.addr, "pull", image); exit == 0 {
		t.Errorf("an explicit pull did not ask the registry, which is down: %s", stderr)
	}
}

func TestE2EEveryNodePulls(t *testing.T) {
	engines := labEngines(t)
	registry := labRegistry(t)
	m := startManager(t, "-images", "every-node", engines[0].addr, engines[1].addr, engines[2].addr)
	out := m.docker(t, "pull", registry+"/busybox")
	for _, e := range engines {
		if !strings.Contains(out, e.name+": Pulling "+registry+"/busybox:latest... : downloaded") {
			t.Errorf("pull says nothing of %s:\n%s", e.name, out)
		}
		if e.docker(t, "images", "-q", registry+"/busybox") == "" {
			t.Errorf("%s has not pulled", e.name)
		}
	}
	if _, stderr, exit := dockerCLI(t, m.addr, "pull", registry+"/nosuch"); exit == 0 || !strings.Contains(stderr, "not found") {
		t.Errorf("pull of what the registry lacks: exit code %d, %s", exit, stderr)
	}
	image := lab(t, "image")
	for _, e := range engines {
		e.docker(t, "rmi", "-f", "busybox:latest")
	}
	if out := m.docker(t, "load", "-i", image); strings.Count(out, "Loaded image: busybox:latest") != 1 {
		t.Errorf("load says %s", out)
	}
	for _, e := range engines {
		if e.docker(t, "images", "-q", "busybox:latest") == "" {
			t.Errorf("%s has not loaded", e.name)
		}
	}
}

func TestE2EPruneAndBuildPrune(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	var want []string
	for i, e := range engines {
		dockerBuild(t, mustLookPath(t, "docker"), m.addr, false, "-q", "--build-arg", "constraint:node=="+e.name, dockerfile(t, fmt.Sprint("loose", i)))
		want = append(want, e.docker(t, "images", "-q", "--no-trunc", "--filter", "dangling=true"))
	}
	if n := len(strings.Fields(m.docker(t, "images", "-q", "--filter", "dangling=true"))); n != 3 {
		t.Errorf("%d of 3 images are listed", n)
	}
	got := m.docker(t, "image", "prune", "-f")
	for _, id := range want {
		if !strings.Contains(got, "deleted: "+id) {
			t.Errorf("prune does not name %s:\n%s", id, got)
		}
	}
	if left := m.docker(t, "images", "-q", "--filter", "dangling=true"); left != "" {
		t.Errorf("left after a prune: %s", left)
	}
	if _, body := apiCall(t, "POST", m.addr, "/build/prune?all=1"); !strings.Contains(body, `"SpaceReclaimed":`) {
		t.Errorf("build prune says %s", body)
	}
}

// zeroBytes is an endless body of n bytes.
func zeroBytes(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// peakMemory is the most memory that a manager ever had, in bytes.
func (m *manager) peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprint("/proc/", m.cmd.Process.Pid, "/status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmHWM in %s", status)
	return 0
}

// TestE2EImageStreamsTakeConstantMemory sends large bodies through the real program:
// a load of 2 GiB, a build's context, a save, and a copy from node to node.
func TestE2EImageStreamsTakeConstantMemory(t *testing.T) {
	const size, most = 512 << 20, 64 << 20
	needLab(t)
	a := newFakeEngine(t, func(e *fakeEngine) { e.name = "a" })
	b := newFakeEngine(t, func(e *fakeEngine) { e.name = "b" })
	a.addImage("big:1", "")
	for _, e := range []*fakeEngine{a, b} {
		e.override("POST", "^/(images/load|build)$", func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil || n < size {
				http.Error(w, fmt.Sprintf(`{"message":"got %d bytes (%v)"}`, n, err), 500)
				return
			}
			e.addImage("big:1", "")
			fmt.Fprintln(w, `{"stream":"Loaded image: big:1\n"}`)
		})
		e.override("GET", "^/images/get$", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, zeroBytes(size)) })
	}
	m := newManager(t, managerBinary(t), a.addr(), b.addr())
	m.start(t)
	m.ready(t)
	before := m.peakMemory(t)
	for path, size := range map[string]int64{"/images/load": 2 << 30, "/build?t=big:1": size} {
		resp, err := http.Post("http://"+m.addr+path, "application/x-tar", zeroBytes(size))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || !bytes.Contains(body, []byte("Loaded")) {
			t.Errorf("POST %s = %s %s (%v)", path, resp.Status, body, err)
		}
	}
	resp, err := http.Get("http://" + m.addr + "/images/get?names=big:1")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || n != size {
		t.Errorf("save gave %d bytes (%v), want %d", n, err, int64(size))
	}
	b.removeImage("big:1")
	resp, err = http.Post("http://"+m.addr+"/containers/create", "application/json", strings.NewReader(`{"Image":"big:1","Env":["constraint:node==b"]}`))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 201 {
		t.Errorf("create with a copy from node to node = %s %s", resp.Status, body)
	}
	if grown := m.peakMemory(t) - before; grown > most {
		t.Errorf("the manager grew by %d MiB, want at most %d", grown>>20, most>>20)
	} else {
		t.Logf("the manager grew by %d MiB, from %d", grown>>20, before>>20)
	}
}
