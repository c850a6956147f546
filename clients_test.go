package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestClients runs programs that were never written for a cluster: each does its work
// once against swarmlite over three real engines and once against one engine, at the
// same time, and everything it says must be the same. What may differ is in variable
// (e2e_test.go) and clientVariable, each with the reason.
//
// They share the engines, so they run one after the other, beside tests that need none.
func TestClients(t *testing.T) {
	needLab(t)
	t.Parallel()
	for _, client := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Compose of Debian", clientComposeOfDebian},
		{"Compose of today", clientComposeOfToday},
		{"buildx", clientBuildx},
		{"Go SDK", clientGoSDK},
		{"docker-py", clientDockerPy},
		{"dockerode", clientDockerode},
		{"Testcontainers for Node.js", clientTestcontainersNode},
		{"Testcontainers for Go", clientTestcontainersGo},
		{"Testcontainers crash", clientTestcontainersCrash},
	} {
		t.Run(client.name, client.test)
	}
}

// clientVariable is what differs from run to run in what these clients print.
var clientVariable = []struct {
	pattern *regexp.Regexp
	by      string
}{
	// A port that the engine chose. With -relay-ports swarmlite chooses it, below 32768.
	{regexp.MustCompile(`(<node>|0\.0\.0\.0|127\.0\.0\.1):[1-6]\d{4}\b`), "<node>:<port>"},
	{regexp.MustCompile(`\b[0-9a-f]{10}\b`), "<id>"}, // docker-py's short ID
	{regexp.MustCompile(`\b\d+(\.\d+)? ?seconds\b`), "<duration>"},
	{regexp.MustCompile(`\d+ +\d+ +\d+ +\S+ +\? +[0-9:]+`), "<pid>"}, // of ps
	{regexp.MustCompile(`-{20,}`), "<line>"},                         // as wide as a table
}

// clientRun is one run of a client program.
type clientRun struct {
	program string
	args    []string
	dir     string   // to run in
	env     []string // beside DOCKER_HOST
	change  func(string) string
}

// sameClient runs a client on the cluster and on the lone engine at once, compares all
// that it says, and returns what it said on the cluster.
func (w *twin) sameClient(t *testing.T, run clientRun) cliResult {
	t.Helper()
	var both [2]cliResult
	began := time.Now()
	var wg sync.WaitGroup
	for i, host := range []string{w.addr, w.alone.addr} {
		cmd := run.command(t, host)
		wg.Go(func() { both[i] = runCommand(cmd, nil) })
	}
	wg.Wait()
	t.Logf("%5.1fs %s %s", time.Since(began).Seconds(), filepath.Base(run.program), strings.Join(run.args, " "))
	got, want := run.normal(both[0]), run.normal(both[1])
	if got != want {
		t.Errorf("%s %s: \"-\" is one engine, \"+\" is the cluster\n%s", filepath.Base(run.program), strings.Join(run.args, " "), lineDiff(t, want, got))
	}
	return both[0]
}

// clientOK is sameClient for a run that must succeed; it returns what the client prints.
func (w *twin) clientOK(t *testing.T, run clientRun) string {
	t.Helper()
	r := w.sameClient(t, run)
	if r.exit != 0 {
		t.Fatalf("%s %s: %v", filepath.Base(run.program), strings.Join(run.args, " "), r)
	}
	return r.stdout
}

// command is the client as a user of host runs it, with none of this user's settings.
func (run clientRun) command(t *testing.T, host string) *exec.Cmd {
	t.Helper()
	cmd := dockerCommand(t, host, run.args...) // for its environment and its end
	cmd.Path, cmd.Args[0], cmd.Dir, cmd.Err = run.program, run.program, run.dir, nil
	cmd.Env = append(cmd.Env, run.env...)
	return cmd
}

func (run clientRun) normal(r cliResult) string {
	text := r.String()
	if run.change != nil {
		text = cliResult{run.change(r.stdout), run.change(r.stderr), r.exit}.String()
	}
	text = normalText(text)
	for _, v := range clientVariable {
		text = v.pattern.ReplaceAllString(text, v.by)
	}
	return text
}

// sortedLines is for output whose lines come in any order and, of concurrent work,
// any number of times.
func sortedLines(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	sort.Strings(lines)
	return strings.Join(slices.Compact(lines), "\n") + "\n"
}

func lineDiff(t *testing.T, want, got string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"want": want, "got": got} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := exec.Command("diff", "-U", "4", filepath.Join(dir, "want"), filepath.Join(dir, "got")).Output() // exit 1: they differ
	_, diff, _ := strings.Cut(string(out), "@@")
	return "@@" + diff
}

// needProgram returns the path of a program that make test installs. A test whose
// client is missing has not passed.
func needProgram(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: make test installs it (Debian package %s), go test -short leaves this test out", name, debianPackage)
	}
	return path
}

// needFile is needProgram for what is found by its path.
func needFile(t *testing.T, path, next string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: %s, go test -short leaves this test out", err, next)
	}
	return path
}

// needTool returns the path of a client that make test builds from its Go module.
func needTool(t *testing.T, name string) string {
	t.Helper()
	return needFile(t, filepath.Join("testdata/clients/tools/bin", name), "make test builds it")
}

// goBuild runs a go command in a directory; -race is for swarmlite, not for clients.
func goBuild(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // one of them runs in an empty image
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s in %s: %v\n%s", cmd, dir, err, out)
	}
}

// --- images in the lab's registry --------------------------------------------

// pushVersion puts busybox into the registry under another name, with a label that
// tells its version, so that each version is an image of its own.
func pushVersion(t *testing.T, registry, name, tag, version string) {
	t.Helper()
	r := &registryClient{t, "http://" + registry + "/v2/"}
	var manifest struct {
		SchemaVersion int              `json:"schemaVersion"`
		MediaType     string           `json:"mediaType"`
		Config        map[string]any   `json:"config"`
		Layers        []map[string]any `json:"layers"`
	}
	r.get("busybox/manifests/latest", &manifest)
	var config map[string]any
	r.get(fmt.Sprint("busybox/blobs/", manifest.Config["digest"]), &config)
	config["config"].(map[string]any)["Labels"] = map[string]string{"version": version}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	upload := r.do("POST", name+"/blobs/uploads/", "", nil).Header.Get("Location")
	r.do("PUT", upload+"&digest="+digest, "application/octet-stream", data)
	for _, layer := range manifest.Layers {
		r.do("POST", fmt.Sprintf("%s/blobs/uploads/?mount=%s&from=busybox", name, layer["digest"]), "", nil)
	}
	manifest.Config["digest"], manifest.Config["size"] = digest, len(data)
	if data, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	r.do("PUT", name+"/manifests/"+tag, manifest.MediaType, data)
}

type registryClient struct {
	t   *testing.T
	url string
}

func (r *registryClient) get(path string, into any) {
	r.t.Helper()
	resp := r.do("GET", path, "", nil)
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		r.t.Fatalf("registry: GET %s: %v", path, err)
	}
}

// do asks the registry for a path, or a whole address, and reads the answer.
func (r *registryClient) do(method, path, contentType string, body []byte) *http.Response {
	r.t.Helper()
	if !strings.HasPrefix(path, "http://") {
		path = r.url + path
	}
	req, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatalf("registry: %v", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		r.t.Fatalf("registry: %s %s: %s %s %v", method, path, resp.Status, data, err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return resp
}
