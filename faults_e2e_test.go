package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// awaitNodes waits until the manager's nodes are in these states, as "node-1=healthy …".
func (m *manager) awaitNodes(t testing.TB, timeout time.Duration, want string) {
	t.Helper()
	eventually(t, timeout, func() error {
		if got := m.sql(t, "SELECT group_concat(name || '=' || state, ' ') FROM (SELECT * FROM nodes ORDER BY name)"); got != want {
			return fmt.Errorf("nodes are %q, want %q", got, want)
		}
		return nil
	})
}

// get asks the manager for a path: its status and how long it took.
func (m *manager) get(t testing.TB, path string) (status int, took time.Duration) {
	t.Helper()
	began := time.Now()
	resp, err := loneClient.Get("http://" + m.addr + path)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode, time.Since(began)
}

// faultCluster is a manager over engines of this test alone, with a container on each
// that is named for it.
func faultCluster(t *testing.T, names ...string) (*manager, []*labEngine) {
	t.Helper()
	engines, addrs := make([]*labEngine, len(names)), make([]string, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { engines[i] = labStart(t, name) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i, e := range engines {
		addrs[i] = e.addr
	}
	m := newManager(t, managerBinary(t), addrs...)
	m.start(t)
	m.ready(t)
	for _, e := range engines {
		m.docker(t, "run", "-d", "--name", "on-"+e.name, "-e", "constraint:node=="+e.name, "busybox", "sleep", "100000")
	}
	return m, engines
}

func openCount(t testing.TB, m *manager) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// awaitFiles waits until the manager has as many descriptors as before, give or take ten.
func (m *manager) awaitFiles(t testing.TB, before int) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if now := openCount(t, m); now > before+10 {
			return fmt.Errorf("%d descriptors, %d before", now, before)
		}
		return nil
	})
}

// A power cut, a hang, a lost disk: with real engines.
func TestF01F02F03F04F05RealEnginesFailAndComeBack(t *testing.T) {
	slowFault(t, "takes seven minutes")
	m, engines := faultCluster(t, "fail-1", "fail-2")
	a := engines[0]
	before := openCount(t, m)

	began := time.Now()
	a.kill(t)
	killed := time.Since(began) // the command itself waits until all of it is dead
	m.awaitNodes(t, 20*time.Second, "fail-1=unhealthy fail-2=healthy")
	faultTook(t, 1, fmt.Sprintf("real engine killed (that took %v): unhealthy", killed.Round(time.Millisecond)), time.Since(began), killed+2*time.Second)
	if status, took := m.get(t, "/containers/on-fail-1/json"); status != http.StatusServiceUnavailable {
		t.Errorf("inspect on the dead node = %d", status)
	} else {
		faultTook(t, 1, "503 for its container", took, time.Second)
	}
	if status, _ := m.get(t, "/containers/on-fail-2/json"); status != http.StatusOK {
		t.Errorf("inspect on the other node = %d", status)
	}
	if got := m.docker(t, "ps", "-a", "--filter", "name=on-fail-1", "--format", "{{.Status}}"); got != "Host Down" {
		t.Errorf("status on the dead node = %q", got)
	}
	a.restart(t) // returns when it answers
	began = time.Now()
	m.awaitNodes(t, 20*time.Second, "fail-1=healthy fail-2=healthy")
	faultTook(t, 2, "real engine back: healthy", time.Since(began), 6*time.Second)
	m.docker(t, "start", "on-fail-1")
	m.oracle(t, a.addr, engines[1].addr)

	a.pause(t)
	began = time.Now()
	goesOn := time.After(5 * time.Minute)
	var wg sync.WaitGroup
	var took time.Duration
	wg.Go(func() {
		status := http.StatusOK
		for status == http.StatusOK { // until the signal has got there
			status, took = m.get(t, "/containers/on-fail-1/json")
		}
		if status != http.StatusGatewayTimeout {
			t.Errorf("inspect on a stopped engine = %d, want 504", status)
		}
	})
	m.awaitNodes(t, time.Minute, "fail-1=unhealthy fail-2=healthy")
	faultTook(t, 3, "real engine stopped (SIGSTOP): unhealthy", time.Since(began), 20*time.Second)
	wg.Wait()
	faultTook(t, 3, "a read is 504", took, readWait+time.Second)
	m.docker(t, "run", "-d", "--name", "elsewhere", "busybox", "sleep", "100000")
	if got := m.docker(t, "ps", "--filter", "name=elsewhere", "--format", `{{.Label "com.docker.swarm.node"}}`); got != "fail-2" {
		t.Errorf("a container was placed on %q, want fail-2", got)
	}
	<-goesOn
	a.resume(t)
	began = time.Now()
	m.awaitNodes(t, time.Minute, "fail-1=healthy fail-2=healthy")
	faultTook(t, 4, "real engine, stopped for five minutes, goes on: healthy", time.Since(began), 10*time.Second)
	m.oracle(t, a.addr, engines[1].addr)

	// The data root is lost, the ID is not.
	a.stop(t)
	data := filepath.Join(labUp.dir, "lab", "engines", a.name, "data")
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	a.restart(t)
	began = time.Now()
	eventually(t, 30*time.Second, func() error {
		if got := m.docker(t, "ps", "-a", "--format", "{{.Names}}"); strings.Contains(got, "on-fail-1") {
			return fmt.Errorf("listed are %q", got)
		}
		return nil
	})
	faultTook(t, 5, "real engine without its data: its containers are gone from the list", time.Since(began), 10*time.Second)
	if got := m.sql(t, "SELECT count(*) FROM events WHERE action = 'destroy' AND body LIKE '%on-fail-1%'"); got != "1" {
		t.Errorf("%s destroy events, want 1", got)
	}
	a.docker(t, "load", "-q", "-i", lab(t, "image"))
	m.docker(t, "run", "-d", "--name", "on-fail-1", "busybox", "sleep", "100000") // the name is free
	m.oracle(t, a.addr, engines[1].addr)
	m.awaitFiles(t, before)
}

// A cable is taken out: packets go nowhere, both for what is asked and for what is open.
func TestF23F26F27ARealPartition(t *testing.T) {
	slowFault(t, "takes two minutes")
	m, engines := faultCluster(t, "cable-1", "cable-2")
	a := engines[0]
	before := openCount(t, m)
	m.docker(t, "run", "-d", "--name", "tied", "-i", "-e", "constraint:node==cable-1", "busybox", "cat")
	attach := dockerCommand(t, m.addr, "attach", "tied")
	in, err := attach.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	attached := make(chan error, 1)
	go func() { attached <- attach.Wait() }()
	eventually(t, 20*time.Second, func() error {
		if n := openCount(t, m); n < before+2 {
			return fmt.Errorf("%d descriptors: not attached yet", n)
		}
		return nil
	})
	began := time.Now()
	a.unplug(t)
	m.awaitNodes(t, time.Minute, "cable-1=unhealthy cable-2=healthy")
	faultTook(t, 23, "real engine without a cable: unhealthy", time.Since(began), 20*time.Second)
	within(t, attached, 2*time.Minute)
	faultTook(t, 26, "the attached client saw the end", time.Since(began), 75*time.Second)
	lab(t, "exec", a.name, "docker", "rm", "-f", "on-cable-1") // its own socket needs no cable
	lab(t, "exec", a.name, "docker", "run", "-d", "--name", "behind", "busybox", "sleep", "100000")
	a.plug(t)
	began = time.Now()
	eventually(t, time.Minute, func() error {
		got := m.docker(t, "ps", "-a", "--format", "{{.Names}}")
		if strings.Contains(got, "on-cable-1") || !strings.Contains(got, "behind") {
			return fmt.Errorf("listed are %q", got)
		}
		return nil
	})
	faultTook(t, 27, "real partition healed: the list is right", time.Since(began), 10*time.Second)
	m.oracle(t, a.addr, engines[1].addr)
	m.awaitFiles(t, before)
}

// A real engine whose disk is full: its words reach the client, nothing is tried
// elsewhere, and after three refusals the node comes last.
func TestF12AFullDisk(t *testing.T) {
	slowFault(t, "starts engines of its own")
	m, engines := faultCluster(t, "full-1", "full-2")
	a := engines[0]
	data := filepath.Join(labUp.dir, "lab", "engines", a.name, "data")
	m.docker(t, "rm", "-f", "on-full-1", "on-full-2")
	a.stop(t)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(data, 0o711), syscall.Mount("tmpfs", data, "tmpfs", 0, "size=48m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.stop(t)
		if err := syscall.Unmount(data, 0); err != nil {
			t.Errorf("unmount %s: %v", data, err)
		}
	})
	a.restart(t)
	a.docker(t, "load", "-q", "-i", lab(t, "image"))
	m.awaitNodes(t, 30*time.Second, "full-1=healthy full-2=healthy")
	for i := range 4 {
		m.docker(t, "create", "--name", fmt.Sprint("made", i), "-e", "constraint:node==full-1", "busybox", "true")
	}
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(data, "filler"), "bs=64k").CombinedOutput(); err == nil {
		t.Fatalf("the disk is not full: %s", out)
	}
	for i := range 4 {
		name := fmt.Sprint("made", i)
		_, direct, code := dockerCLI(t, a.addr, "start", name)
		if code == 0 {
			t.Fatalf("a container starts on a full disk, so nothing is shown here: the engine says %q", direct)
		}
		_, told, code := dockerCLI(t, m.addr, "start", name)
		if code == 0 || !strings.Contains(told, "no space left on device") {
			t.Errorf("start on a full disk = %d %q, the engine says %q", code, told, direct)
		}
	}
	for i := range 3 {
		m.docker(t, "run", "-d", "--name", fmt.Sprint("next", i), "busybox", "sleep", "100000")
		if got := m.docker(t, "ps", "--filter", fmt.Sprint("name=next", i), "--format", `{{.Label "com.docker.swarm.node"}}`); got != "full-2" {
			t.Errorf("container %d after the refusals was placed on %q, want full-2", i, got)
		}
	}
	if got := m.sql(t, "SELECT state FROM nodes WHERE name = 'full-1'"); got != "healthy" {
		t.Errorf("the node is %s, want it kept", got)
	}
	if _, told, code := dockerCLI(t, m.addr, "run", "-d", "--name", "must", "-e", "constraint:node==full-1", "busybox", "true"); code == 0 || !strings.Contains(told, "no space left") {
		t.Errorf("run on the full node = %d %q, want the engine's words", code, told)
	}
	if err := os.Remove(filepath.Join(data, "filler")); err != nil {
		t.Fatal(err)
	}
	m.oracle(t, a.addr, engines[1].addr)
	faultHeld(t, 12, "the engine's words reach the client, once each; after three refusals the node comes last, and stays healthy")
}

// F32: with the docker command and the classic builder.
func TestF32AKilledBuildEndsOnTheEngine(t *testing.T) {
	slowFault(t, "starts an engine of its own")
	m, engines := faultCluster(t, "build-1")
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "Dockerfile"), "FROM busybox\nRUN sleep 1000\n")
	cmd := dockerCommand(t, m.addr, "build", dir)
	cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	running := func() string { return engines[0].docker(t, "ps", "-q", "--no-trunc", "--filter", "ancestor=busybox") }
	before := running() // the container of faultCluster
	eventually(t, 30*time.Second, func() error {
		if now := running(); len(now) <= len(before) {
			return errors.New("the build does not run yet")
		}
		return nil
	})
	began := time.Now()
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, 30*time.Second, func() error {
		if now := running(); len(now) > len(before) {
			return errors.New("the build goes on")
		}
		return nil
	})
	faultTook(t, 32, "real build ended", time.Since(began), 2*time.Second)
	m.oracle(t, engines[0].addr)
}
