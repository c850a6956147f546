//go:build bench

package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// goal is one figure of the table: what was wanted, what was measured.
type goal struct {
	no       int
	what     string
	wanted   string
	measured string
	against  string // what it is a ratio of
	reached  bool
}

// goals collects the table while the runs go on.
type goals struct {
	t    *testing.T
	dir  string
	bin  string
	list []goal
	// figures of one run that another is compared with
	rate, cpu map[string]float64
}

func (g *goals) add(no int, reached bool, what, wanted, measured, against string) {
	g.list = append(g.list, goal{no, what, wanted, measured, against, reached})
	word := "reached"
	if !reached {
		word = "NOT reached"
	}
	g.t.Logf("goal %d: %s: %s (wanted %s) %s: %s", no, what, measured, wanted, against, word)
}

// fleetProcess is a fleet in a process of its own.
type fleetProcess struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.Closer
	port int
	n    int
}

func (g *goals) fleet(n, each int) *fleetProcess {
	g.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("FLEET=%d,%d", n, each))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	f := &fleetProcess{t: g.t, cmd: cmd, in: in, n: n}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		f.port, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		g.t.Fatalf("the fleet of %d did not start: %v", n, err)
	}
	g.t.Cleanup(f.end)
	return f
}

func (f *fleetProcess) end() {
	f.in.Close()
	_ = f.cmd.Wait() // a second time: it has ended already
}

// control asks the fleet's own endpoint.
func (f *fleetProcess) control(method, path string) []byte {
	f.t.Helper()
	req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", f.port, path), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		f.t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, body, err)
	}
	return body
}

// managerProcess is the real program over a fleet.
type managerProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	url   string
	db    string
	log   string
	args  []string
	began time.Time
	ended bool
}

// manager starts the program and returns at once.
func (g *goals) manager(f *fleetProcess, name string) *managerProcess {
	g.t.Helper()
	nodes := filepath.Join(g.dir, name+".nodes")
	if err := os.WriteFile(nodes, f.control("GET", "/addrs"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0") // a free port
	if err != nil {
		g.t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	m := &managerProcess{t: g.t, url: "http://" + addr, db: filepath.Join(g.dir, name+".db"), log: filepath.Join(g.dir, name+".log"),
		args: []string{g.bin, "-nodes", nodes, "-db", filepath.Join(g.dir, name+".db"), "-H", "tcp://" + addr}}
	m.start()
	g.t.Cleanup(m.kill)
	return m
}

func (m *managerProcess) start() {
	m.t.Helper()
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(m.args[0], m.args[1:]...)
	m.cmd.Stderr = log
	m.began, m.ended = time.Now(), false
	if err := startMortal(m.cmd); err != nil { // it goes with a bench that is broken off
		m.t.Fatal(err)
	}
	m.poll("listening", func() bool {
		resp, err := http.Get(m.url + "/_ping")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
}

// kill ends the program as a power cut does.
func (m *managerProcess) kill() {
	if !m.ended {
		m.ended = true
		m.cmd.Process.Kill()
		m.cmd.Wait()
	}
}

// poll waits for a condition and returns the time since the program was started.
func (m *managerProcess) poll(what string, ok func() bool) time.Duration {
	m.t.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for !ok() {
		if time.Now().After(deadline) || syscall.Kill(m.cmd.Process.Pid, 0) != nil {
			log, _ := os.ReadFile(m.log)
			m.t.Fatalf("not %s; the log ends\n%s", what, log[max(0, len(log)-3000):])
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(m.began)
}

// ready waits until every node is healthy and listed.
func (m *managerProcess) ready(nodes int) time.Duration {
	m.t.Helper()
	time.Sleep(50 * time.Millisecond)
	return m.poll("ready", func() bool {
		time.Sleep(20 * time.Millisecond) // a question here costs the machine, too
		return m.number("SELECT count(*) FROM nodes WHERE state = 'healthy' AND confirmed = 1") == int64(nodes)
	})
}

// number asks the program's database.
func (m *managerProcess) number(query string) (n int64) {
	m.t.Helper()
	m.ask(query, &n)
	return n
}

func (m *managerProcess) text(query string) (s string) {
	m.t.Helper()
	m.ask(query, &s)
	return s
}

func (m *managerProcess) ask(query string, dest any) {
	m.t.Helper()
	db, err := sql.Open("sqlite", dsn(m.db, "mode=ro&_pragma=busy_timeout(5000)"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(dest); err != nil {
		m.t.Fatalf("%s: %v", query, err)
	}
}

// cpu is the processor time that the program has used.
func (m *managerProcess) cpu() time.Duration {
	m.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	fields := strings.Fields(string(rest))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// rss is the resident memory, in MB.
func (m *managerProcess) rss() float64 {
	m.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
	kib, _ := strconv.Atoi(strings.Fields(string(rest))[0])
	return float64(kib) * 1024 / 1e6
}

// files is how many the program has open.
func (m *managerProcess) files() int {
	m.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	return len(list)
}

// write puts the table into docs/bench.md, with the Go benchmarks that were run before.
func (g *goals) write(path, benchmarks string) error {
	var b strings.Builder
	cpu := "?"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(info), "model name\t: "); ok {
			cpu, _, _ = strings.Cut(rest, "\n")
		}
	}
	fmt.Fprintf(&b, `# What it costs

Written by %[1]smake bench%[1]s on %[2]s: swarmlite %[3]s, %[4]s, %[5]d × %[6]s.

A simulated fleet (one process), the real program and one driver share the machine; load average
before the runs: %[7]s. Create means create and start, 8 at once, unless it says otherwise. "Classic" is classic
Swarm 1.2.9, measured once in the same way on a machine of two such cores; its figures are quoted, not
measured again. "Direct" is the same call straight to one simulated engine, in the same run.

| goal | what | wanted | measured | compared | reached |
| ---: | --- | --- | --- | --- | --- |
`, "`", time.Now().UTC().Format("2006-01-02"), benchVersion(), runtime.Version(), runtime.NumCPU(), cpu, loadAverage)
	for _, r := range g.list {
		word := "yes"
		if !r.reached {
			word = "**no**"
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s | %s |\n", r.no, r.what, r.wanted, r.measured, r.against, word)
	}
	told := map[int]bool{}
	for _, r := range g.list {
		if r.reached || told[r.no] {
			continue
		}
		if len(told) == 0 {
			b.WriteString("\n## What stands in the way\n\n")
		}
		told[r.no] = true
		fmt.Fprintf(&b, "- %d: %s\n", r.no, obstacles[r.no])
	}
	b.WriteString("\n## Benchmarks in Go\n\n`make bench-go`; README, \"What it costs\", tells how two commits are compared.\n\n```text\n" + strings.TrimSpace(benchmarks) + "\n```\n")
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// obstacles are what costs most where a goal may be missed, as profiles show it.
var obstacles = map[int]string{
	1:  "nearly half of the processor time of a create is SQLite: a decision, the container's row twice, and three events, in five commits of which busy moments share some. The driver and the fleet take the rest of the two cores.",
	2:  "as 1; what the containers that are there add is in row 7.",
	3:  "as 1. The pages of some thirty tables and indexes go to the log, with two system calls each; garbage collection takes an eighth.",
	4:  "as 1: with 8 at once on two cores a create waits for the others'.",
	5:  "a create, a start, one list entry read again for both, and a ping where the engine has answered nothing for a second.",
	6:  "the ledger's row and the reservation with its triggers cost more than the decision.",
	7:  "the ledger keeps up to 200 nodes one by one, so a small cluster pays more than a large one; what grows with containers is the depth of the indexes.",
	8:  "more than half is reading eight thousand pages and taking their rows; the rest is the copy of 30 MB to the client.",
	9:  "net/http towards the client, two system calls more on each side, and taking the answer apart for what is shown of the node.",
	10: "the statements that find a container: by name one, by prefix two.",
	11: "the nodes that are shown, and the states of the containers: one pass over an index.",
	12: "half of the time is the one writer, with the indexes of a container's four to eight rows; a quarter is JSON.",
	13: "half is the list itself, see 8; the rest is opening the file and writing the state of a thousand nodes before it.",
	14: "two goroutines and an open stream a node; the translated SQLite takes 8 KiB for each page of 4 that it keeps.",
	15: "connections of the last five seconds are still open.",
	16: "for each node a minute a connection and 30 KB of list; the first time after something was committed also the node's rows, to compare them.",
	17: "see the figure: errors are a defect.",
	18: "creates that were under way to an engine as it hung wait for it; the others lose a quarter of a second once.",
	19: "an event is stored before it is told, in a commit that waits for the one before it.",
}

// loadAverage is that of the machine before the runs.
var loadAverage = func() string {
	data, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(data))[:1], "")
}()

func benchVersion() string {
	out, _ := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	return strings.TrimSpace(string(out))
}
