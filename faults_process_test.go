package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fakeManager is the real program, as a process, over simulated engines, which a test
// can have do something at a chosen moment of a call.
type fakeManager struct {
	*manager
	fakes []*fakeEngine
}

func startFakeManager(t *testing.T, engines int, flags ...string) *fakeManager {
	t.Helper()
	m := &fakeManager{}
	for i := range engines {
		e := newFakeEngine(t, hostNamed(fmt.Sprint("host-", i)))
		m.fakes = append(m.fakes, e)
		flags = append(flags, e.addr())
	}
	m.manager = startManager(t, flags...)
	return m
}

func (m *fakeManager) check(t *testing.T) {
	t.Helper()
	var addrs []string
	for _, e := range m.fakes {
		addrs = append(addrs, e.addr())
	}
	m.oracle(t, addrs...)
}

// call is one request to the manager; the status is 0 if the connection broke.
func (m *fakeManager) call(method, path, body string) (status int, answer string) {
	status, answer, _ = (&front{addr: m.addr}).try(method, path, body)
	return status, answer
}

// killAt has the manager killed by the next request that matches, at the engine. before
// tells whether that comes before the engine does what it is asked.
func (m *fakeManager) killAt(t *testing.T, method, path string, before bool) {
	t.Helper()
	var once atomic.Bool
	process, ended := m.cmd.Process, m.ended // those of the next start are not meant
	for _, e := range m.fakes {
		e.override(method, path, func(w http.ResponseWriter, r *http.Request) {
			if !once.CompareAndSwap(false, true) {
				e.answer(w, r)
				return
			}
			if before {
				_ = process.Kill()
				<-ended
				panic(http.ErrAbortHandler)
			}
			e.answer(unsent{w, http.Header{}}, r)
			_ = process.Kill()
			<-ended
			panic(http.ErrAbortHandler)
		})
	}
}

// unsent drops an engine's answer.
type unsent struct {
	http.ResponseWriter
	header http.Header
}

func (u unsent) Header() http.Header         { return u.header }
func (u unsent) WriteHeader(int)             {}
func (u unsent) Write(p []byte) (int, error) { return len(p), nil }

// kills runs do for as many kills as the matrix wants, each with a manager that has
// been started again, and reports the slowest start.
func (m *fakeManager) kills(t *testing.T, row, n int, do func(i int)) {
	t.Helper()
	if allFaults() {
		n = 100
	}
	var slowest time.Duration
	for i := range n {
		do(i)
		m.wait(t, 10*time.Second)
		for _, e := range m.fakes {
			e.heal()
		}
		m.start(t)
		began := time.Now()
		m.ready(t)
		slowest = max(slowest, time.Since(began))
		if t.Failed() {
			return
		}
	}
	m.check(t)
	faultTook(t, row, fmt.Sprintf("%d kills: nothing lost, doubled or left; ready again", n), slowest, 3*time.Second)
}

// F41: killed between the reservation and the engine's part. The name is free again,
// or held until a look at the node has told that nothing was made.
func TestF41KilledBeforeTheEngineWasAsked(t *testing.T) {
	m := startFakeManager(t, 3)
	m.kills(t, 41, 6, func(i int) {
		name := fmt.Sprint("c", i)
		m.killAt(t, "POST", "^/containers/create$", true)
		if status, answer := m.call("POST", "/containers/create?name="+name, sleepBody); status != 0 {
			t.Errorf("create = %d %s, want a broken connection", status, answer)
		}
	})
	for _, e := range m.fakes {
		if names := e.containerNames(); len(names) > 0 {
			t.Errorf("%s has %q", e.name, names)
		}
	}
	if status, answer := m.call("POST", "/containers/create?name=c0", sleepBody); status != http.StatusCreated {
		t.Errorf("create of the name afterwards = %d %s", status, answer)
	}
	m.check(t)
}

// F42: killed after the engine has made the container, and before its row is written.
func TestF42KilledAfterTheEngineMadeIt(t *testing.T) {
	m := startFakeManager(t, 3)
	made := 0
	m.kills(t, 42, 6, func(i int) {
		name := fmt.Sprint("c", i)
		m.killAt(t, "POST", "^/containers/create$", false)
		if status, answer := m.call("POST", "/containers/create?name="+name, sleepBody); status != 0 {
			t.Errorf("create = %d %s, want a broken connection", status, answer)
		}
		made++
	})
	total := 0
	for _, e := range m.fakes {
		total += len(e.containerNames())
	}
	if total != made {
		t.Errorf("%d containers, want the %d that were made", total, made)
	}
	for i := range made {
		name := fmt.Sprint("c", i)
		if status, answer := m.call("POST", "/containers/create?name="+name, sleepBody); status != http.StatusConflict {
			t.Errorf("create of %s again = %d %s, want 409", name, status, answer)
		}
		if status, answer := m.call("GET", "/containers/"+name+"/json", ""); status != http.StatusOK {
			t.Errorf("inspect of %s = %d %s", name, status, answer)
		}
	}
	if got := m.sql(t, "SELECT outcome, count(*) FROM placements WHERE kind = 'container' AND name GLOB 'c[0-9]*' AND container_id <> '' GROUP BY 1"); got != fmt.Sprintf("created|%d", made) {
		t.Errorf("placements: %s, want %d created", got, made)
	}
}

// F58: the files are deleted or replaced under a running manager. Nothing is lost, and it
// does not go on with files that nobody sees.
func TestF58FilesDeletedOrReplaced(t *testing.T) {
	var slowest time.Duration
	for _, tt := range []struct {
		name string
		do   func(db string) error
		says string
		kept bool // what the operator set is there after the next start
	}{
		{"rm swarmlite.db", os.Remove, "swarmlite.db was deleted while swarmlite was running; its state is written there again: start swarmlite again", true},
		{"rm swarmlite.db*", func(db string) error {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(db + suffix); err != nil {
					return err
				}
			}
			return nil
		}, "swarmlite.db was deleted while swarmlite was running; its state is written there again: start swarmlite again", true},
		{"mv swarmlite.db away", func(db string) error { return os.Rename(db, db+".old") }, "was deleted while swarmlite was running", true},
		{"rm swarmlite.db-wal", func(db string) error { return os.Remove(db + "-wal") }, "swarmlite.db-wal was deleted while swarmlite was running; the state is folded into the database: start swarmlite again", true},
		{"another file in its place", func(db string) error {
			if err := os.WriteFile(db+".other", nil, 0o600); err != nil {
				return err
			}
			return os.Rename(db+".other", db)
		}, "swarmlite.db was replaced by another file while swarmlite was running; its state is in ", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := startFakeManager(t, 2)
			if status, answer := m.call("POST", "/containers/create?name=web", sleepBody); status != http.StatusCreated {
				t.Fatalf("create = %d %s", status, answer)
			}
			m.docker(t, "node", "update", "--availability", "drain", "host-1")
			id := m.sql(t, "SELECT cluster_id FROM manager")
			began := time.Now()
			if err := tt.do(m.db); err != nil {
				t.Fatal(err)
			}
			code := m.wait(t, 20*time.Second)
			slowest = max(slowest, time.Since(began))
			lines := strings.Split(strings.TrimSpace(m.log.String()), "\n")
			last := lines[len(lines)-1]
			if code != 1 || !strings.HasPrefix(last, "swarmlite: state database "+m.db+": ") || !strings.Contains(last, tt.says) {
				t.Errorf("exit code %d, last line %q, want 1 and %q", code, last, tt.says)
			}
			m.start(t)
			m.ready(t)
			want := id + "|drain"
			got := m.sql(t, "SELECT cluster_id, availability FROM manager, nodes WHERE name = 'host-1'")
			if tt.kept && got != want {
				t.Errorf("after the next start: %s, want %s", got, want)
			}
			if !tt.kept {
				rescued, _ := filepath.Glob(m.db + ".rescued-*")
				if len(rescued) != 1 || got == want {
					t.Errorf("rescued: %q; the database in its place has %s", rescued, got)
				}
			}
			m.check(t)
		})
	}
	faultTook(t, 58, "stopped with one line, its state saved", slowest, 10*time.Second)
}

// F60: damage under a running manager ends it at the first sign; the next start has the cure.
func TestF60DamagedWhileRunning(t *testing.T) {
	m := startFakeManager(t, 2)
	for i := range 5 {
		if status, answer := m.call("POST", fmt.Sprint("/containers/create?name=c", i), sleepBody); status != http.StatusCreated {
			t.Fatalf("create = %d %s", status, answer)
		}
	}
	// Folded, so that readers look into the file.
	eventually(t, 20*time.Second, func() error {
		if info, err := os.Lstat(m.db); err != nil || info.Size() < 4096*20 {
			return fmt.Errorf("the file has %d bytes, %v", info.Size(), err)
		}
		return nil
	})
	m.cmd.Process.Signal(syscall.SIGSTOP) // all of it at one moment
	overwrite(t, m.db, 4096)
	if err := os.Truncate(m.db+"-wal", 0); err != nil {
		t.Fatal(err)
	}
	m.cmd.Process.Signal(syscall.SIGCONT)
	began := time.Now()
	failed := 0
	for deadline := time.Now().Add(30 * time.Second); m.running() && time.Now().Before(deadline); {
		status, answer := m.call("POST", fmt.Sprintf("/containers/create?name=d%d", failed+rand.IntN(1e9)), sleepBody)
		if status >= 500 {
			failed++
			if !strings.Contains(answer, "state database: damaged") {
				t.Errorf("a call on a damaged database = %d %s", status, answer)
			}
		}
	}
	code := m.wait(t, 20*time.Second)
	took := time.Since(began)
	if code != 1 || !strings.Contains(m.log.String(), "swarmlite: state database "+m.db+": damaged (") {
		t.Errorf("exit code %d, want 1 and a line that says damaged", code)
	}
	m.start(t)
	m.ready(t)
	if aside, _ := filepath.Glob(m.db + ".corrupt-*"); len(aside) == 0 {
		t.Error("nothing was set aside")
	}
	m.check(t)
	faultCount(t, 60, "calls that failed before the manager stopped", failed, 1, "")
	faultTook(t, 60, "stopped", took, 5*time.Second)
}
