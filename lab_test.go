package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The lab of the end-to-end tests: real engines, started by testdata/lab on the
// first use, and the real binary as a process in front of them.
var (
	labUp struct {
		once     sync.Once
		err      error
		dir      string         // holds the lab and the binaries
		watchdog io.WriteCloser // closed, also by a crash of the tests, it ends the lab
	}
	labShared struct {
		once    sync.Once
		err     error
		engines []*labEngine
	}
	labBinaries struct {
		sync.Mutex
		built map[string]error // by path
	}
)

func TestMain(m *testing.M) {
	if want := os.Getenv("FLEET"); want != "" { // a process of its own, see fleet
		if err := fleetMain(want); err != nil {
			fmt.Fprintln(os.Stderr, "fleet:", err)
			os.Exit(1)
		}
		return
	}
	// Nothing here is behind a proxy, least of all the engines.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		os.Unsetenv(name)
		os.Unsetenv(strings.ToLower(name))
	}
	code := m.Run()
	if labUp.dir != "" {
		if out, err := labCommand("down").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "lab down: %v\n%s", err, out)
			code = max(code, 1)
		}
		labUp.watchdog.Close()
		os.RemoveAll(labUp.dir)
	}
	os.Exit(code)
}

// needLab skips the test under -short. Where the lab cannot run, the test fails:
// an end-to-end test that was not run has not passed.
func needLab(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real engines, left out by -short")
	}
	labUp.once.Do(func() { labUp.err = labBegin() })
	if labUp.err != nil {
		t.Fatalf("real engines cannot be started here: %v (go test -short leaves these tests out)", labUp.err)
	}
}

// labBegin makes the lab's directory, and the process that takes the lab down when
// this one ends, however it ends: a test that times out never gets to TestMain's end.
func labBegin() error {
	if os.Geteuid() != 0 {
		return errors.New("that takes root")
	}
	if out, err := exec.Command("unshare", "--mount", "--uts", "--ipc", "--pid", "--net", "--fork", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("that takes namespaces: %s", bytes.TrimSpace(out))
	}
	dir, err := os.MkdirTemp("", "swarmlite-test-")
	if err != nil {
		return err
	}
	labUp.dir = dir
	watchdog := exec.Command("bash", "-c", `cat >/dev/null; "$0" down; rm -rf "$1"`, labScript(), dir)
	watchdog.Env = labEnv()
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C ends the tests, not this
	labUp.watchdog, err = watchdog.StdinPipe()
	if err != nil {
		return err
	}
	return watchdog.Start()
}

func labScript() string {
	path, err := filepath.Abs("testdata/lab")
	if err != nil {
		panic(err)
	}
	return path
}

func labEnv() []string {
	return append(os.Environ(), "LAB_DIR="+filepath.Join(labUp.dir, "lab"))
}

func labCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(labScript(), args...)
	cmd.Env = labEnv()
	return cmd
}

// lab runs testdata/lab and returns what it says.
func lab(t testing.TB, args ...string) string {
	t.Helper()
	out, err := labTry(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func labTry(args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := labCommand(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lab %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// --- engines -----------------------------------------------------------------

// labEngine is a real Docker engine with a host name and an address of its own,
// which this machine can reach, as it can the ports that its containers publish.
type labEngine struct {
	name string
	addr string // host:port
}

// labEngines gives the three engines that tests share: node-1 (storage=ssd, zone=a),
// node-2 (disk, a) and node-3 (ssd, b). When the test ends they are whole and empty
// again, so tests that use them do not run in parallel.
func labEngines(t testing.TB) []*labEngine {
	t.Helper()
	needLab(t)
	labShared.once.Do(func() {
		labels := [][]string{{"storage=ssd", "zone=a"}, {"storage=disk", "zone=a"}, {"storage=ssd", "zone=b"}}
		labShared.engines = make([]*labEngine, len(labels))
		errs := make([]error, len(labels))
		var wg sync.WaitGroup
		for i, l := range labels {
			wg.Go(func() {
				labShared.engines[i], errs[i] = labNew(fmt.Sprint("node-", i+1), "--label", l[0], "--label", l[1])
			})
		}
		wg.Wait()
		labShared.err = errors.Join(errs...)
	})
	if labShared.err != nil {
		t.Fatal(labShared.err)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, e := range labShared.engines {
			wg.Go(func() { e.reset(t) })
		}
		wg.Wait()
	})
	return labShared.engines
}

// labStart starts an engine for this test alone. Flags are those of "lab start":
// "--label", "k=v", and after "--" those of dockerd. Names are unique in all tests.
func labStart(t testing.TB, name string, flags ...string) *labEngine {
	t.Helper()
	needLab(t)
	e, err := labNew(name, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab(t, "rm", name) })
	return e
}

func labNew(name string, flags ...string) (*labEngine, error) {
	if _, err := labTry(append([]string{"start", name}, flags...)...); err != nil {
		return nil, err
	}
	addr, err := labTry("addr", name)
	return &labEngine{name: name, addr: addr}, err
}

// labRegistry starts a registry that holds busybox and returns its host:port.
func labRegistry(t testing.TB) string {
	t.Helper()
	needLab(t)
	lab(t, "registry", "start")
	return lab(t, "registry", "addr")
}

// kill cuts the power: the engine and its containers die at once.
func (e *labEngine) kill(t testing.TB) { t.Helper(); lab(t, "kill", e.name) }

// stop ends the engine as a shutdown does. Connections to it are then refused.
func (e *labEngine) stop(t testing.TB) { t.Helper(); lab(t, "stop", e.name) }

// restart starts it again, with the same ID and data, and waits until it answers.
func (e *labEngine) restart(t testing.TB) { t.Helper(); lab(t, "restart", e.name) }

// pause makes it hang: it accepts connections and says nothing.
func (e *labEngine) pause(t testing.TB) { t.Helper(); lab(t, "pause", e.name) }

// resume ends a pause.
func (e *labEngine) resume(t testing.TB) { t.Helper(); lab(t, "resume", e.name) }

// unplug takes the network cable out: no answer of any kind comes back.
func (e *labEngine) unplug(t testing.TB) { t.Helper(); lab(t, "unplug", e.name) }

// plug puts the cable back.
func (e *labEngine) plug(t testing.TB) { t.Helper(); lab(t, "plug", e.name) }

// docker runs the docker command on this engine, behind swarmlite's back. It
// returns what the command prints, trimmed.
func (e *labEngine) docker(t testing.TB, args ...string) string {
	t.Helper()
	return dockerOK(t, e.addr, args...)
}

// reset undoes what a test did to a shared engine.
func (e *labEngine) reset(t testing.TB) {
	t.Helper()
	lab(t, "plug", e.name)
	if strings.Contains(lab(t, "list"), e.name+" stopped") {
		lab(t, "restart", e.name)
	}
	lab(t, "resume", e.name)
	// What is on its way out by itself, as after a run --rm, cannot be removed and holds what it uses.
	eventually(t, time.Minute, func() error {
		for _, kind := range []struct{ list, remove []string }{
			{[]string{"ps", "-aq"}, []string{"rm", "-fv"}},
			{[]string{"network", "ls", "-q", "--filter", "type=custom"}, []string{"network", "rm"}},
			{[]string{"volume", "ls", "-q"}, []string{"volume", "rm", "-f"}},
		} {
			found := strings.Fields(e.docker(t, kind.list...))
			if len(found) == 0 {
				continue
			}
			if _, stderr, exit := dockerCLI(t, e.addr, append(kind.remove, found...)...); exit != 0 {
				return fmt.Errorf("%s: docker %s: %s", e.name, strings.Join(kind.remove, " "), stderr)
			}
		}
		return nil
	})
	// The image is loaded again rather than spared: a test may have removed it.
	if ids := strings.Fields(e.docker(t, "images", "-aq")); len(ids) > 1 || len(ids) == 0 ||
		e.docker(t, "images", "-q", "busybox:latest") == "" {
		dockerCLI(t, e.addr, append([]string{"rmi", "-f"}, ids...)...)
		e.docker(t, "load", "-q", "-i", lab(t, "image"))
	}
}

// --- the docker command ------------------------------------------------------

// dockerCLI runs the docker command that is first in PATH, as a user of host would
// (tcp://host:port, host:port or unix:///path), with none of this user's settings.
func dockerCLI(t testing.TB, host string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := dockerCommand(t, host, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exitErr := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exitErr) {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// dockerCommand is dockerCLI's command before it runs, for a test that talks to it. It
// is killed after five minutes, and when the test ends.
func dockerCommand(t testing.TB, host string, args ...string) *exec.Cmd {
	t.Helper()
	if !strings.Contains(host, "://") {
		host = "tcp://" + host
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.WaitDelay = time.Second
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "DOCKER_") })
	cmd.Env = append(cmd.Env, "DOCKER_HOST="+host, "DOCKER_CONFIG="+t.TempDir())
	return cmd
}

// dockerOK is dockerCLI for a command that must succeed. It returns what the
// command prints, trimmed.
func dockerOK(t testing.TB, host string, args ...string) string {
	t.Helper()
	stdout, stderr, exit := dockerCLI(t, host, args...)
	if exit != 0 {
		t.Fatalf("docker %s: exit code %d\n%s%s", strings.Join(args, " "), exit, stdout, stderr)
	}
	return strings.TrimSpace(stdout)
}

// --- the manager -------------------------------------------------------------

// manager is the real program, as a process, built with -race.
type manager struct {
	addr   string // host:port
	db     string
	binary string
	args   []string
	nodes  int
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has ended
	log    *logBuffer
}

// startManager runs swarmlite with these flags and node addresses (flags first), on
// a free port of loopback and with a new database if they do not say where, and
// returns when it answers and all nodes are healthy. With -tlsverify, when it listens.
func startManager(t testing.TB, args ...string) *manager {
	t.Helper()
	var flags []string
	if !allFaults() { // its figures are those of the program as it is built for users
		flags = []string{"-race"}
	}
	m := newManager(t, managerBinary(t, flags...), args...)
	m.start(t)
	m.ready(t)
	return m
}

// newManager is startManager before the start.
func newManager(t testing.TB, binary string, args ...string) *manager {
	t.Helper()
	m := &manager{binary: binary, args: args, nodes: countNodes(args), log: &logBuffer{}}
	m.addr = strings.TrimPrefix(flagValue(args, "H"), "tcp://")
	if m.addr == "" {
		m.addr = freePort(t)
		m.args = append([]string{"-H", "tcp://" + m.addr}, m.args...)
	}
	m.db = flagValue(args, "db")
	if m.db == "" {
		m.db = filepath.Join(t.TempDir(), "swarmlite.db")
		m.args = append([]string{"-db", m.db}, m.args...)
	}
	t.Cleanup(func() {
		m.kill9(t)
		if strings.Contains(m.log.String(), "DATA RACE") {
			t.Error("swarmlite has a data race, see its log")
		}
		if t.Failed() {
			t.Logf("log of swarmlite on %s:\n%s", m.addr, m.log.String())
		}
	})
	return m
}

// start runs the process and does not wait for anything.
func (m *manager) start(t testing.TB) {
	t.Helper()
	m.cmd = exec.Command(m.binary, m.args...)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "SWARMLITE_") || strings.HasPrefix(kv, "DOCKER_")
	}), "GORACE=halt_on_error=0")
	if err := startMortal(m.cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	m.ended = ended
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait() // its end is in cmd.ProcessState
		close(ended)
	}(m.cmd)
}

// startMortal starts a command that is killed when the tests end, however they do. The
// kernel goes by the thread that started it: this one ends with the process, which others
// need not.
func startMortal(cmd *exec.Cmd) error {
	startThread.Do(func() {
		go func() {
			runtime.LockOSThread()
			for start := range mortals {
				start()
			}
		}()
	})
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	failed := make(chan error)
	mortals <- func() { failed <- cmd.Start() }
	return <-failed
}

var (
	startThread sync.Once
	mortals     = make(chan func())
)

// ready waits until the manager answers and every node is healthy.
func (m *manager) ready(t testing.TB) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	eventually(t, time.Minute, func() error {
		if !m.running() {
			t.Fatalf("swarmlite ended: %v\n%s", m.cmd.ProcessState, m.log.String())
		}
		if slices.ContainsFunc(m.args, func(a string) bool { return strings.TrimLeft(a, "-") == "tlsverify" }) {
			conn, err := net.Dial("tcp", m.addr)
			if err == nil {
				conn.Close()
			}
			return err
		}
		info, err := m.info(client)
		if healthy := strings.Count(info, "healthy"); err == nil && healthy < m.nodes {
			return fmt.Errorf("%d of %d nodes are healthy: %s", healthy, m.nodes, info)
		}
		return err
	})
}

// info returns the nodes as /info shows them, in lower case.
func (m *manager) info(client *http.Client) (string, error) {
	var info struct{ SystemStatus [][2]string }
	for _, path := range []string{"/_ping", "/info"} {
		resp, err := client.Get("http://" + m.addr + path)
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("GET %s: %s %s %w", path, resp.Status, body, err)
		}
		if path == "/info" {
			err = json.Unmarshal(body, &info)
		}
		if err != nil {
			return "", fmt.Errorf("GET %s: %w", path, err)
		}
	}
	text := strings.ToLower(fmt.Sprint(info.SystemStatus))
	return strings.ReplaceAll(text, "unhealthy", "sick"), nil
}

func (m *manager) running() bool {
	select {
	case <-m.ended:
		return false
	default:
		return m.cmd != nil
	}
}

// kill9 ends it in the middle of whatever it does.
func (m *manager) kill9(t testing.TB) {
	t.Helper()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(syscall.SIGCONT) // a test may have stopped it
	_ = m.cmd.Process.Kill()                  // an error says that it has ended
	<-m.ended
}

// stop ends it as an operator does and returns its exit code.
func (m *manager) stop(t testing.TB) int {
	t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stop swarmlite: %v", err)
	}
	return m.wait(t, time.Minute)
}

// wait returns the exit code of a manager that ends by itself.
func (m *manager) wait(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-m.ended:
	case <-time.After(timeout):
		t.Fatalf("swarmlite has not ended after %v", timeout)
	}
	return m.cmd.ProcessState.ExitCode()
}

// restart ends it, if it runs, and starts it again with the same port and database.
func (m *manager) restart(t testing.TB) {
	t.Helper()
	if m.running() {
		m.stop(t)
	}
	m.start(t)
	m.ready(t)
}

// docker runs a docker command that must succeed on the manager.
func (m *manager) docker(t testing.TB, args ...string) string {
	t.Helper()
	return dockerOK(t, m.addr, args...)
}

// sql asks the database as a person does, with the sqlite3 shell, read-only. Rows
// are lines, columns are separated by "|".
func (m *manager) sql(t testing.TB, query string) string {
	t.Helper()
	out, err := exec.Command("sqlite3", "-readonly", m.db, query).CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3 %q: %v\n%s", query, err, out)
	}
	return strings.TrimSpace(string(out))
}

// managerBinary builds swarmlite, once for each set of build flags.
func managerBinary(t testing.TB, flags ...string) string {
	t.Helper()
	needLab(t)
	path := filepath.Join(labUp.dir, strings.Join(append([]string{"swarmlite"}, flags...), ""))
	labBinaries.Lock()
	defer labBinaries.Unlock()
	err, done := labBinaries.built[path]
	if !done {
		cmd := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), ".")...)
		if slices.Contains(flags, "-race") {
			cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // make faults, which measures, is without
		}
		if out, e := cmd.CombinedOutput(); e != nil {
			err = fmt.Errorf("%s: %w\n%s", cmd, e, out)
		}
		if labBinaries.built == nil {
			labBinaries.built = map[string]error{}
		}
		labBinaries.built[path] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// countNodes counts the addresses at the end of a command line.
func countNodes(args []string) int {
	address := regexp.MustCompile(`^(tcp://)?[^-/][^/]*:\d+$|^unix://`)
	flagWithValue := regexp.MustCompile(`^--?(H|host|nodes|db|strategy|filter|overcommit|tlscacert|tlscert|tlskey|engine-tls[a-z]*|names|log-level|log-format|config)$`)
	n := 0
	for i := len(args) - 1; i >= 0 && address.MatchString(args[i]); i-- {
		if i > 0 && flagWithValue.MatchString(args[i-1]) && args[i-1] != "-engine-tlsverify" {
			break
		}
		n++
	}
	return n
}

// flagValue finds "-name value" or "-name=value", or returns "".
func flagValue(args []string, name string) string {
	for i, a := range args {
		key, value, ok := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || key != name {
			continue
		}
		if ok {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// freePort is an address of loopback that nobody listens on. The kernel gives numbers
// from 32768 on to whoever asks for any, and to connections: one of those might be
// taken before the test listens there, or while what listens is started again.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprint("127.0.0.1:", 20000+(os.Getpid()*100+int(portsGiven.Add(1)))%12000)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port below 32768")
	return ""
}

// portsGiven has each call of freePort try another number.
var portsGiven atomic.Int32

// logBuffer keeps what a process prints; it may be read while more comes.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// eventually asks again and again until there is no error, and fails the test with
// the last one when the time is up.
func eventually(t testing.TB, timeout time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v still: %v", timeout, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
