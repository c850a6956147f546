package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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
	s, err := openStore(ctx, slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "swarmlite.db"))
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
	f := &imageFleet{cluster: &cluster{log: log, store: s, nodes: ns, scheduler: sched, infoNodes: 50, names: "plain", base: ctx}, t: t, engines: engines, log: logged}
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
	if err := ns.set(ctx, linesOf(addrs...)); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(newAPI(f.cluster, log, "test", nil))
	t.Cleanup(server.Close)
	f.url = server.URL
	eventually(t, 20*time.Second, func() error {
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
