package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// F44: after a restart lists come from the database at once, and say what is not
// confirmed yet; what has happened on the hosts meanwhile is known when they have answered.
func TestF44HostsChangeWhileTheManagerIsDown(t *testing.T) {
	m := startFakeManager(t, 3)
	for i := range 6 {
		if status, answer := m.call("POST", fmt.Sprint("/containers/create?name=c", i), sleepBody); status != http.StatusCreated {
			t.Fatalf("create = %d %s", status, answer)
		}
	}
	m.kill9(t)
	hung := m.fakes[0]
	hung.hang(true)
	m.fakes[1].addContainer("new", "busybox", true, nil)
	gone := m.fakes[2].containerNames()[0]
	m.fakes[2].removeContainer(gone)
	m.start(t)
	began := time.Now()
	var list []struct {
		Names  []string
		Status string
	}
	eventually(t, 20*time.Second, func() error {
		status, answer := m.call("GET", "/containers/json?all=1", "")
		if status != http.StatusOK {
			return fmt.Errorf("list = %d %s", status, answer)
		}
		return json.Unmarshal([]byte(answer), &list)
	})
	faultTook(t, 44, "first list, from the database", time.Since(began), 2*time.Second)
	unconfirmed := 0
	for _, c := range list {
		if !slices.Contains(hung.containerNames(), strings.TrimPrefix(c.Names[0], "/")) {
			continue
		}
		if !strings.HasSuffix(c.Status, " (unconfirmed)") {
			t.Errorf("%s of a node that has not answered yet is shown as %q", c.Names[0], c.Status)
		}
		unconfirmed++
	}
	if unconfirmed != len(hung.containerNames()) {
		t.Errorf("%d of the %d containers of the node that has not answered are listed", unconfirmed, len(hung.containerNames()))
	}
	hung.hang(false)
	m.check(t)
	if _, answer := m.call("GET", "/containers/json?all=1", ""); strings.Contains(answer, "unconfirmed") || !strings.Contains(answer, "/new") || strings.Contains(answer, "/"+gone+`"`) {
		t.Errorf("list when all have answered: %s", answer)
	}
}

// F41, F44: how soon all is known of a fleet.
func TestF44FleetIsKnownAgain(t *testing.T) {
	for _, size := range [][2]int{{100, 20}, {1000, 20}} {
		if size[0] > 100 {
			slowFault(t, "a thousand engines")
		}
		fl, err := newFleet(size[0], size[1], 0)
		if err != nil {
			t.Fatal(err)
		}
		defer fl.close()
		file := filepath.Join(t.TempDir(), "nodes")
		writeFile(t, file, fl.addrs())
		m := newManager(t, managerBinary(t), "-nodes", file)
		m.start(t)
		m.ready(t)
		fleetStates(t, m, fmt.Sprintf("healthy|%d", size[0]))
		m.kill9(t)
		began := time.Now()
		m.start(t)
		m.ready(t)
		fleetStates(t, m, fmt.Sprintf("healthy|%d", size[0]))
		if got := m.sql(t, "SELECT count(*) FROM containers, nodes WHERE nodes.id = node_id AND confirmed"); got != fmt.Sprint(size[0]*size[1]) {
			t.Errorf("%s containers of %d nodes with %d each", got, size[0], size[1])
		}
		what := fmt.Sprintf("%d nodes with %d containers each known again", size[0], size[1])
		if size[0] == 100 {
			faultTook(t, 41, what, time.Since(began), 3*time.Second)
		} else {
			faultTook(t, 44, what, time.Since(began), 15*time.Second)
		}
		m.kill9(t)
	}
}

// F45: calls are finished, streams get the grace, and everything is folded.
func TestF45SIGTERM(t *testing.T) {
	for _, twice := range []bool{false, true} {
		m := startFakeManager(t, 1)
		e := m.fakes[0]
		e.addContainer("web", "busybox", true, nil)
		if status, answer := m.call("POST", "/containers/create?name=tty", ttyBody); status != http.StatusCreated {
			t.Fatalf("create = %d %s", status, answer)
		}
		if status, answer := m.call("POST", "/containers/tty/start", ""); status != http.StatusNoContent {
			t.Fatalf("start = %d %s", status, answer)
		}
		f := &front{addr: m.addr}
		attached := f.wire(t)
		attached.send("POST /containers/tty/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
		if resp := attached.answer(); resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("attach = %s", resp.Status)
		}
		slow := make(chan string, 1)
		arrived := make(chan struct{})
		e.override("POST", "/containers/web/stop$", func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
			}
			e.answer(w, r)
		})
		go func() {
			status, answer := m.call("POST", "/containers/web/stop", "")
			slow <- fmt.Sprint(status, answer)
		}()
		within(t, arrived, 20*time.Second)
		kept := f.wire(t)
		ping := func() int {
			t.Helper()
			kept.send("GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
			resp := kept.answer()
			io.Copy(io.Discard, resp.Body)
			return resp.StatusCode
		}
		if status := ping(); status != http.StatusOK {
			t.Fatalf("ping = %d", status)
		}
		if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, 20*time.Second, func() error {
			conn, err := net.Dial("tcp", m.addr)
			if err == nil {
				conn.Close()
				return errors.New("it still listens")
			}
			return nil
		})
		if status := ping(); status != http.StatusServiceUnavailable {
			t.Errorf("ping on a connection that is kept = %d, want 503", status)
		}
		if got := within(t, slow, 20*time.Second); got != "204" {
			t.Errorf("a call under way at SIGTERM = %s, want 204", got)
		}
		attached.send("still there\n")
		if line, err := attached.in.ReadString('\n'); err != nil || !strings.Contains(line, "still there") {
			t.Errorf("an attached stream after SIGTERM: %q, %v", line, err)
		}
		if twice {
			again := time.Now()
			m.cmd.Process.Signal(syscall.SIGTERM)
			m.wait(t, 10*time.Second)
			faultTook(t, 45, "a second SIGTERM ends it", time.Since(again), 2*time.Second)
		} else {
			if code := m.wait(t, 20*time.Second); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			faultTook(t, 45, "ended, with a stream that never does", time.Since(began), 10*time.Second)
			if _, err := io.ReadAll(attached.in); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the stream's end: %v", err)
			}
		}
		if files := fmt.Sprint(fileNames(t, filepath.Dir(m.db))); files != "[swarmlite.db swarmlite.db.lock]" {
			t.Errorf("files afterwards: %s, want no log", files)
		}
	}
}

// F46: a broken file at SIGHUP changes nothing, and is told once.
func TestF46SIGHUPWithABrokenNodeFile(t *testing.T) {
	e := newFakeEngine(t, hostNamed("a"))
	file := filepath.Join(t.TempDir(), "nodes")
	writeFile(t, file, e.addr()+"\n")
	m := startManager(t, "-nodes", file)
	fleetStates(t, m, "healthy|1")
	conn, err := net.Dial("tcp", m.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	writeFile(t, file, e.addr()+"\nhost:port:more\n")
	if err := m.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if !strings.Contains(m.log.String(), "node file not used, the nodes stay as they are") || !strings.Contains(m.log.String(), "nodes:2: ") {
			return fmt.Errorf("log: %s", m.log.String())
		}
		return nil
	})
	fmt.Fprint(conn, "GET /containers/json HTTP/1.1\r\nHost: docker\r\n\r\n")
	answer := make([]byte, 15)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 200 OK" {
		t.Errorf("a connection from before: %q, %v", answer, err)
	}
	if got := m.sql(t, "SELECT name, state FROM nodes"); got != "a|healthy" {
		t.Errorf("nodes: %s", got)
	}
	faultHeld(t, 46, "one line with the number of the bad line; the node and a connection from before stay (certificates: TestReload…)")
}

// F47: two managers over the same hosts get along: names meet on the engine.
func TestF47TwoManagersOverOneHost(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	a, b := newFront(t, e), newFront(t, e)
	a.make(t, "web", sleepBody)
	eventually(t, 20*time.Second, func() error {
		if _, ok := b.listed(t)["web"]; !ok {
			return errors.New("the other manager does not list it")
		}
		return nil
	})
	if status, answer := b.call(t, "POST", "/containers/create?name=web", sleepBody); status != http.StatusConflict {
		t.Errorf("create of its name through the other manager = %d %s, want 409", status, answer)
	}
	b.make(t, "db", sleepBody)
	a.oracle(t)
	b.oracle(t)
}

// F48: reservations and health do not hang on the wall clock.
func TestF48TheClockJumps(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	for i, jump := range []int{3600, -3600} {
		name := fmt.Sprint("c", i)
		undo := e.override("POST", "^/containers/create$", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		if status, answer := f.call(t, "POST", "/containers/create?name="+name, sleepBody); status != http.StatusBadGateway {
			t.Errorf("create = %d %s, want 502", status, answer)
		}
		undo()
		// As if the clock had been set by that much since.
		f.store.sql(t, fmt.Sprintf("UPDATE reservations SET made_at = made_at - %d; UPDATE nodes SET state_at = state_at - %d", jump, jump))
		f.oracle(t)
		f.make(t, name, sleepBody)
	}
	if got := f.rows(t, "SELECT state FROM nodes"); got != "healthy" {
		t.Errorf("the node is %s", got)
	}
	if strings.Contains(f.logged(), "unhealthy") {
		t.Errorf("log: %s", f.logged())
	}
	f.oracle(t)
	faultHeld(t, 48, "reservations that are an hour old or from the future are settled; health is judged by the monotonic clock, which cannot be set here")
}

// F49: a manager that was stopped asks before it judges.
func TestF49TheManagerIsSuspended(t *testing.T) {
	m := startFakeManager(t, 3)
	long := 12 * time.Second
	if allFaults() {
		long = 5 * time.Minute
	}
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	m.fakes[0].addContainer("meanwhile", "busybox", true, nil)
	time.Sleep(long) // the suspension is the test
	if err := m.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.check(t)
	time.Sleep(2 * time.Second) // for what was due meanwhile to have its say
	m.ready(t)
	downs := strings.Count(m.log.String(), "node unhealthy")
	if downs > 0 {
		t.Errorf("log: %s", m.log.String())
	}
	faultCount(t, 49, fmt.Sprintf("nodes declared down after %v", long), downs, 0, "")
}

// F51: the manager keeps within a small machine's memory.
func TestF51MemoryLimit(t *testing.T) {
	slowFault(t, "a thousand engines with twenty containers each")
	fl, err := newFleet(1000, 20, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fl.close()
	file := filepath.Join(t.TempDir(), "nodes")
	writeFile(t, file, fl.addrs())
	t.Setenv("GOMEMLIMIT", "256MiB")
	m := newManager(t, managerBinary(t), "-nodes", file)
	m.start(t)
	m.ready(t)
	fleetStates(t, m, "healthy|1000")
	for range 20 {
		if status, answer, err := (&front{addr: m.addr}).try("GET", "/containers/json?all=1", ""); status != http.StatusOK {
			t.Fatalf("list = %d %.200s %v", status, answer, err)
		}
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	peak := 0
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "VmHWM:") {
			fmt.Sscanf(line, "VmHWM: %d", &peak)
		}
	}
	faultCount(t, 51, "peak resident memory", peak>>10, 200, "MiB")
}

// F66: a long history costs nothing at the start, and is trimmed beside the work.
func TestF66BigDatabase(t *testing.T) {
	slowFault(t, "it writes a database of 1 GiB")
	e := newFakeEngine(t, hostNamed("a"))
	for i := range 100 {
		e.addContainer(fmt.Sprint("c", i), "busybox", true, nil)
	}
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	for from := 0; from < 1_000_000; from += 50_000 {
		st.sql(t, fmt.Sprintf(`INSERT INTO events (id, at_nano, node_id, node, time_nano, type, action, actor, body)
			WITH RECURSIVE n (i) AS (SELECT %d UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			SELECT i, i, 1, 'a', i, 'container', 'start', 'c', hex(zeroblob(450)) FROM n`, from+1, from+50_000))
	}
	st.close()
	info, err := os.Lstat(path)
	if err != nil || info.Size() < 1<<30 {
		t.Fatalf("the database has %d bytes, %v", info.Size(), err)
	}
	m := newManager(t, managerBinary(t), "-db", path, e.addr())
	began := time.Now()
	m.start(t)
	m.ready(t)
	faultTook(t, 66, fmt.Sprintf("ready over %d MiB and a million events", info.Size()>>20), time.Since(began), 3*time.Second)
	faultTook(t, 66, "ps, the third slowest of 200,", p99(t, m, "GET", "/containers/json?all=1", ""), 50*time.Millisecond)
	faultTook(t, 66, "create, the third slowest of 200,", p99(t, m, "POST", "/containers/create?name=c#", sleepBody), 100*time.Millisecond)
	eventually(t, 3*time.Minute, func() error {
		// Little by little, and creates do not wait for it.
		if got := m.sql(t, "SELECT min(id) FROM events"); len(got) < 5 {
			return fmt.Errorf("the oldest event is number %s", got)
		}
		return nil
	})
	m.oracle(t, e.addr())
}
