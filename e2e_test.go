package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The end-to-end tests run what a person types in the first hour: the real docker
// command on the real program over three real engines. Most commands are run a
// second time on one engine alone: what is printed must be the same.

// twin is a cluster, and a single engine that is not part of it.
type twin struct {
	*manager
	engines []*labEngine
	alone   *labEngine
}

var twinAlone struct {
	once sync.Once
	err  error
	*labEngine
}

// newTwin starts a manager over the three shared engines, beside the engine that
// is compared with. Both sides are empty, and are so again when the test ends.
func newTwin(t *testing.T, flags ...string) *twin {
	t.Helper()
	engines := labEngines(t)
	twinAlone.once.Do(func() { twinAlone.labEngine, twinAlone.err = labNew("alone", "--label", "storage=ssd") })
	if twinAlone.err != nil {
		t.Fatal(twinAlone.err)
	}
	t.Cleanup(func() { twinAlone.reset(t) })
	for _, e := range engines {
		flags = append(flags, e.addr)
	}
	return &twin{startManager(t, flags...), engines, twinAlone.labEngine}
}

// cliResult is what one docker command said.
type cliResult struct {
	stdout, stderr string
	exit           int
}

func (r cliResult) String() string {
	return fmt.Sprintf("exit code %d\n--- stdout\n%s--- stderr\n%s", r.exit, r.stdout, r.stderr)
}

// same runs a docker command on the cluster and on the lone engine and compares
// all that it says. It returns what the cluster's said.
func (w *twin) same(t *testing.T, args ...string) cliResult {
	t.Helper()
	return w.sameWith(t, nil, nil, args...)
}

// sameSorted is same where the order of lines means nothing.
func (w *twin) sameSorted(t *testing.T, args ...string) cliResult {
	t.Helper()
	return w.sameWith(t, nil, func(s string) string {
		lines := strings.Split(s, "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}, args...)
}

// sameWith is same with an input, and with a change to both outputs before they are compared.
func (w *twin) sameWith(t *testing.T, stdin []byte, change func(string) string, args ...string) cliResult {
	t.Helper()
	r, err := w.compare(t, stdin, change, args...)
	if err != nil {
		t.Error(err)
	}
	return r
}

// compare is sameWith that returns the difference.
func (w *twin) compare(t *testing.T, stdin []byte, change func(string) string, args ...string) (cliResult, error) {
	t.Helper()
	var both [2]cliResult
	var wg sync.WaitGroup
	for i, host := range []string{w.addr, w.alone.addr} {
		cmd := dockerCommand(t, host, args...)
		wg.Go(func() { both[i] = runCommand(cmd, stdin) })
	}
	wg.Wait()
	normal := func(r cliResult) cliResult {
		r.stdout, r.stderr = normalText(r.stdout), normalText(r.stderr)
		if change != nil {
			r.stdout, r.stderr = change(r.stdout), change(r.stderr)
		}
		return r
	}
	if got, want := normal(both[0]), normal(both[1]); got != want {
		return both[0], fmt.Errorf("docker %s\non the cluster: %v\non one engine: %v", strings.Join(args, " "), got.without(want), want.without(got))
	}
	return both[0], nil
}

// without leaves out, of long texts, the lines that other has too.
func (r cliResult) without(other cliResult) cliResult {
	cut := func(text, other string) string {
		lines := strings.SplitAfter(text, "\n")
		if len(lines) < 10 {
			return text
		}
		kept := slices.DeleteFunc(lines, func(l string) bool { return strings.Contains("\n"+other, "\n"+strings.TrimSuffix(l, "\n")) })
		return fmt.Sprintf("(of %d bytes)\n%s", len(text), strings.Join(kept, ""))
	}
	return cliResult{cut(r.stdout, other.stdout), cut(r.stderr, other.stderr), r.exit}
}

// ok is same for a command that must succeed; it returns what it prints, trimmed.
func (w *twin) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := w.same(t, args...)
	if r.exit != 0 {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.stdout)
}

// ask runs a docker command on the cluster only.
func (w *twin) ask(t *testing.T, args ...string) cliResult {
	t.Helper()
	return runCommand(dockerCommand(t, w.addr, args...), nil)
}

func runCommand(cmd *exec.Cmd, stdin []byte) cliResult {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		return cliResult{stderr: err.Error(), exit: -1}
	}
	return cliResult{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// variable is what differs from run to run, or by design between a cluster and an
// engine: IDs, times, our labels, the holder's node in a refusal, a node's address
// instead of "every address".
var variable = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`"com\.docker\.swarm\.(id|node)":"[^"]*",?`), ""},
	{regexp.MustCompile(`com\.docker\.swarm\.(id|node)=[^,"\s)]*(, ?|\b)`), ""},
	{regexp.MustCompile(`,?"node\.name":"[^"]*"|, node\.name=[^,)]*`), ""},
	{regexp.MustCompile(`,([}\]])`), "$1"},
	{regexp.MustCompile(` on node node-\d`), ""},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "<ID>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<id>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ][0-9:.]+(Z| [+-]\d{4} [A-Z]+|[+-][0-9:]+)?`), "<time>"},
	{regexp.MustCompile(`(Less than a second|About a minute|\d+ (seconds?|minutes?))( ago)?`), "<duration>"},
	{regexp.MustCompile(`,? ?(\[::\]|::):\d+((->|-\\u003e)\d+/\w+)?`), ""},
	{regexp.MustCompile(`(0\.0\.0\.0|10\.213\.\d+\.1\d):(\d+)`), "<node>:$2"},
	{regexp.MustCompile(`(?m)^(\d+/tcp ->)?\n`), ""},
	{regexp.MustCompile(`Invalid filter`), "invalid filter"}, // engines before 23 write it large
	{regexp.MustCompile(`Cannot kill`), "cannot kill"},       // the same
	{regexp.MustCompile(`  +`), "  "},
}

func normalText(s string) string {
	// Older docker commands print labels in any order.
	s = regexp.MustCompile(`"Labels":"[^"]*"`).ReplaceAllStringFunc(s, func(field string) string {
		labels := strings.Split(field[len(`"Labels":"`):len(field)-1], ",")
		labels = slices.DeleteFunc(labels, func(l string) bool { return strings.HasPrefix(l, "com.docker.swarm.") })
		slices.Sort(labels)
		return `"Labels":"` + strings.Join(labels, ",") + `"`
	})
	for _, v := range variable {
		s = v.pattern.ReplaceAllString(s, v.by)
	}
	return s
}

// apiCall asks the API of host, and returns the answer with its body.
func apiCall(t *testing.T, method, host, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(body)
}

// apiText sends a JSON body and returns what comes back, to its end.
func apiText(t *testing.T, host, path, body string) string {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+host+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("POST %s: %s %s %v", path, resp.Status, answer, err)
	}
	return string(answer)
}

// apiJSON is apiText for an answer that is a JSON object.
func apiJSON(t *testing.T, host, path, body string) map[string]any {
	t.Helper()
	text := apiText(t, host, path, body)
	var answer map[string]any
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatalf("POST %s: %v: %s", path, err, text)
	}
	return answer
}

// jsonShape lists the keys of a JSON text with the types of their values, sorted:
// ".State.Pid number". Of arrays the first element stands for all.
func jsonShape(t *testing.T, text string) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	var shape []string
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, value := range v {
				walk(path+"."+k, value)
			}
			if len(v) == 0 {
				shape = append(shape, path+" {}")
			}
		case []any:
			if len(v) == 0 {
				shape = append(shape, path+" []")
				return
			}
			walk(path+"[]", v[0])
		case nil:
			shape = append(shape, path+" null")
		default:
			shape = append(shape, fmt.Sprintf("%s %T", path, v))
		}
	}
	walk("", v)
	slices.Sort(shape)
	return slices.Compact(shape)
}

// sameShape compares the keys of two JSON texts; ours are allowed to have more
// keys that begin with one of extra.
func sameShape(t *testing.T, what, got, want string, extra ...string) {
	t.Helper()
	ours := slices.DeleteFunc(jsonShape(t, got), func(key string) bool {
		return slices.ContainsFunc(extra, func(e string) bool { return strings.HasPrefix(key, e) })
	})
	theirs := jsonShape(t, want)
	for _, key := range theirs {
		// An object that is empty at an engine may hold what is ours.
		empty, isObject := strings.CutSuffix(key, " {}")
		if !slices.Contains(ours, key) && !(isObject && slices.ContainsFunc(extra, func(e string) bool { return strings.HasPrefix(e, empty+".") })) {
			t.Errorf("%s lacks %s", what, key)
		}
	}
	for _, key := range ours {
		if !slices.Contains(theirs, key) {
			t.Errorf("%s has %s, which an engine's has not", what, key)
		}
	}
}

// --- a terminal --------------------------------------------------------------

// terminal is a docker command with a person in front of it.
type terminal struct {
	cmd           *exec.Cmd
	master, slave *os.File
	screen        *logBuffer
}

// openTerminal runs cmd on a pseudo terminal of its own, 80 columns by 24 lines.
func openTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatalf("pseudo terminal: %v", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	term := &terminal{cmd, master, slave, &logBuffer{}}
	term.resize(t, 80, 24)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go io.Copy(term.screen, master) // ends when the terminal is closed
	return term
}

func (x *terminal) resize(t *testing.T, columns, lines uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(x.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: lines, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// press types keys.
func (x *terminal) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := x.master.WriteString(keys); err != nil {
		t.Fatalf("type %q: %v", keys, err)
	}
}

// pressEach types keys one by one, as fingers do: a docker command takes two that
// come in one read for pasted text, not for its detach keys.
func (x *terminal) pressEach(t *testing.T, keys string) {
	t.Helper()
	for _, key := range keys {
		x.press(t, string(key))
		eventually(t, 20*time.Second, func() error {
			if left, err := unix.IoctlGetInt(int(x.slave.Fd()), unix.TIOCINQ); err != nil || left > 0 {
				return fmt.Errorf("key %q is not read: %d left, %v", key, left, err)
			}
			return nil
		})
	}
}

// shows waits for text on the screen.
func (x *terminal) shows(t *testing.T, text string) {
	t.Helper()
	outputHas(t, x.screen, text)
}

// ends returns the command's exit code.
func (x *terminal) ends(t *testing.T) int {
	t.Helper()
	_ = x.cmd.Wait() // its end is in ProcessState
	return x.cmd.ProcessState.ExitCode()
}

// hasSize asks the shell in it until it has this size, which the docker command sets when
// the shell runs already.
func (x *terminal) hasSize(t *testing.T, size string) {
	t.Helper()
	answer := regexp.MustCompile(`size is (\d+ \d+)\r\n`)
	eventually(t, 20*time.Second, func() error {
		before := len(answer.FindAllString(x.screen.String(), -1))
		x.press(t, "echo size is $(stty size)\n")
		var told [][]string
		eventually(t, 20*time.Second, func() error {
			if told = answer.FindAllStringSubmatch(x.screen.String(), -1); len(told) <= before {
				return fmt.Errorf("the shell does not tell its size: %q", x.screen)
			}
			return nil
		})
		if got := told[len(told)-1][1]; got != size {
			return fmt.Errorf("the terminal's size is %s, want %s", got, size)
		}
		return nil
	})
}

func outputHas(t *testing.T, out *logBuffer, text string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if !strings.Contains(out.String(), text) {
			return fmt.Errorf("no %q in %q", text, out.String())
		}
		return nil
	})
}

// startDocker starts a docker command and collects what it prints.
func startDocker(t *testing.T, cmd *exec.Cmd) *logBuffer {
	t.Helper()
	out := &logBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return out
}

// --- version, info, ping -----------------------------------------------------

func TestE2ESystem(t *testing.T) {
	w := newTwin(t)
	t.Run("version", func(t *testing.T) {
		w.ok(t, "version", "--format", "{{.Server.Version}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}/{{.Server.Arch}} {{.Client.APIVersion}}")
		text := w.docker(t, "version")
		for _, want := range []string{"Server: swarmlite dev", " swarmlite:\n", "  Nodes:            3"} {
			if !strings.Contains(text, want) {
				t.Errorf("docker version lacks %q:\n%s", want, text)
			}
		}
		_, ours := apiCall(t, "GET", w.addr, "/version")
		_, theirs := apiCall(t, "GET", w.alone.addr, "/version")
		sameShape(t, "/version", ours, theirs)
	})
	t.Run("ping", func(t *testing.T) {
		for _, method := range []string{"GET", "HEAD"} {
			ours, body := apiCall(t, method, w.addr, "/_ping")
			theirs, want := apiCall(t, method, w.alone.addr, "/_ping")
			if body != want || ours.StatusCode != http.StatusOK {
				t.Errorf("%s /_ping: %s %q, want %q", method, ours.Status, body, want)
			}
			for key, values := range theirs.Header {
				if key != "Server" && key != "Date" && !slices.Equal(ours.Header[key], values) {
					t.Errorf("%s /_ping: %s: %q, want %q", method, key, ours.Header[key], values)
				}
			}
		}
	})
	t.Run("a version of the API that is too new or too old is refused in an engine's words", func(t *testing.T) {
		for _, path := range []string{"/v1.99/info", "/v1.11/_ping"} {
			ours, body := apiCall(t, "GET", w.addr, path)
			theirs, want := apiCall(t, "GET", w.alone.addr, path)
			// This engine refuses the old one in plain text, newer ones in JSON.
			if ours.StatusCode != theirs.StatusCode || !strings.Contains(body, strings.Trim(want, "{}\n")) {
				t.Errorf("GET %s: %s %s, want %s %s", path, ours.Status, body, theirs.Status, want)
			}
		}
	})
	t.Run("what Swarm mode offers is refused as by an engine outside a swarm", func(t *testing.T) {
		w.same(t, "service", "ls")
	})
	w.docker(t, "run", "-d", "--name", "web", "-e", "constraint:storage==disk", "--cpus", "0.5", "-m", "64m", "busybox", "sleep", "1000")
	w.docker(t, "create", "--name", "idle", "-e", "constraint:zone==b", "busybox", "true")
	t.Run("info", func(t *testing.T) { w.testInfo(t) })
	t.Run("info after an engine has died", func(t *testing.T) { w.testInfoOfDeadNode(t) })
}

// nodeLines are the lines of docker info about one node, trimmed.
func nodeLines(info, node string) []string {
	var lines []string
	for line := range strings.Lines(info) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, node+": ") {
			lines = []string{line}
		} else if lines != nil {
			fact, ok := strings.CutPrefix(line, "└ ")
			if !ok {
				break
			}
			lines = append(lines, fact)
		}
	}
	return lines
}

func (w *twin) testInfo(t *testing.T) {
	text := w.docker(t, "info")
	for _, want := range []string{"Containers: 2\n", "Running: 1\n", "Paused: 0\n", "Stopped: 1\n", "Images: 1\n", "Strategy: spread\n", "Nodes: 3\n", "Swarm: inactive\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("docker info lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "WARNING: node") {
		t.Errorf("docker info warns though all is well:\n%s", text)
	}
	for i, want := range [][]string{
		{"Containers: 0 (0 Running, 0 Paused, 0 Stopped)", "Reserved CPUs: 0 / ", "storage=ssd", "zone=a"},
		{"Containers: 1 (1 Running, 0 Paused, 0 Stopped)", "Reserved CPUs: 0.5 / ", "Reserved Memory: 64MiB / ", "storage=disk", "zone=a"},
		{"Containers: 1 (0 Running, 0 Paused, 1 Stopped)", "Reserved CPUs: 0 / ", "storage=ssd", "zone=b"},
	} {
		e := w.engines[i]
		lines := strings.Join(nodeLines(text, e.name), "\n")
		want = append(want, e.name+": "+e.addr+"\n", "ID: "+e.docker(t, "info", "-f", "{{.ID}}"), "Status: Healthy", "ServerVersion: ")
		for _, want := range want {
			if !strings.Contains(lines, want) {
				t.Errorf("docker info of %s lacks %q:\n%s", e.name, want, lines)
			}
		}
	}
	cpus := 0
	fmt.Sscan(w.alone.docker(t, "info", "-f", "{{.NCPU}}"), &cpus)
	if got := w.docker(t, "info", "-f", "{{.NCPU}}"); got != fmt.Sprint(3*cpus) {
		t.Errorf("NCPU = %s, want three times %d", got, cpus)
	}
	_, ours := apiCall(t, "GET", w.addr, "/info")
	_, theirs := apiCall(t, "GET", w.alone.addr, "/info")
	var info map[string]json.RawMessage
	for _, body := range []string{theirs, ours} {
		missing := slices.DeleteFunc(keysOf(info), func(k string) bool { return strings.Contains(body, `"`+k+`"`) })
		if len(missing) > 0 {
			t.Errorf("/info lacks %v", missing)
		}
		if err := json.Unmarshal([]byte(body), &info); err != nil {
			t.Fatal(err)
		}
	}
}

func keysOf(m map[string]json.RawMessage) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

func (w *twin) testInfoOfDeadNode(t *testing.T) {
	dead := w.engines[1]
	dead.kill(t)
	began := time.Now()
	eventually(t, 20*time.Second, func() error {
		r := w.ask(t, "info")
		lines := strings.Join(nodeLines(r.stdout, dead.name), "\n")
		for _, want := range []string{"Status: Unhealthy", "Error: ", "Containers: 1 (1 Running", "Reserved CPUs: 0.5 / ", "storage=disk"} {
			if !strings.Contains(lines, want) {
				return fmt.Errorf("docker info of the dead node lacks %q:\n%s", want, lines)
			}
		}
		if !strings.Contains(r.stderr, "WARNING: node "+dead.name+" (tcp://"+dead.addr+") is unhealthy since ") {
			return fmt.Errorf("docker info does not warn of %s:\n%s", dead.name, r.stderr)
		}
		return nil
	})
	if took := time.Since(began); took > 10*time.Second { // two, but the machine may be busy
		t.Errorf("the dead node was shown after %v, want 2 s", took)
	}
	if got := w.docker(t, "ps", "-a", "--format", "{{.Names}} {{.Status}}"); got != "idle Created\nweb Host Down" {
		t.Errorf("docker ps with a dead node:\n%s\nwant web to be Host Down", got)
	}
	for _, args := range [][]string{{"stop", "web"}, {"inspect", "web"}, {"logs", "web"}, {"exec", "web", "true"}, {"rm", "-f", "web"}} {
		r := w.ask(t, args...)
		if r.exit != 1 || !strings.Contains(r.stderr, "node node-2 is not healthy") {
			t.Errorf("docker %s on a dead node: %v, want that node-2 is not healthy", args, r)
		}
	}
	r := w.ask(t, "run", "-d", "-e", "constraint:storage==disk", "busybox", "true")
	if want := "no node fits: 2 of 3 fail constraint storage==disk, 1 is not healthy"; r.exit != 125 || !strings.Contains(r.stderr, want) {
		t.Errorf("docker run that only fits a dead node: %v, want %q", r, want)
	}
	dead.restart(t)
	eventually(t, 20*time.Second, func() error {
		if got := w.docker(t, "ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "idle created\nweb exited" {
			return fmt.Errorf("docker ps after the node is back:\n%s", got)
		}
		return nil
	})
	w.docker(t, "start", "web")
}
