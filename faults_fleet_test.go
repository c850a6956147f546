package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fleetCluster is the program over a fleet of n engines, all healthy.
func fleetCluster(t *testing.T, n int) (*fleet, *manager) {
	t.Helper()
	fl, err := newFleet(n, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fl.close)
	file := filepath.Join(t.TempDir(), "nodes")
	writeFile(t, file, fl.addrs())
	m := newManager(t, managerBinary(t), "-nodes", file)
	m.start(t)
	m.ready(t) // it answers; nodes may still be connected to
	fleetStates(t, m, fmt.Sprintf("healthy|%d", n))
	return fl, m
}

// fleetStates waits until so many nodes are in each state, as "healthy|900\nunhealthy|100".
func fleetStates(t *testing.T, m *manager, want string) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error {
		if got := m.sql(t, "SELECT state, count(*) FROM nodes GROUP BY state ORDER BY state"); got != want {
			return errors.New(strings.ReplaceAll(got, "\n", " "))
		}
		return nil
	})
}

// p99 makes a call 200 times and returns the third slowest.
func p99(t *testing.T, m *manager, method, path, body string) time.Duration {
	t.Helper()
	f := &front{addr: m.addr}
	var all []time.Duration
	for i := range 200 {
		began := time.Now()
		status, answer := f.call(t, method, strings.ReplaceAll(path, "#", fmt.Sprintf("%d-%d", time.Now().UnixNano(), i)), body)
		all = append(all, time.Since(began))
		if status >= 300 {
			t.Fatalf("%s %s = %d %.200s", method, path, status, answer)
		}
	}
	slices.Sort(all)
	return all[197]
}

// connectionsTo counts the manager's open connections to nodes that pass.
func connectionsTo(t *testing.T, fl *fleet, passes func(*fleetNode) bool) (most int) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	open := map[*fleetNode]int{}
	for line := range strings.Lines(string(table)) {
		words := strings.Fields(line)
		if len(words) < 4 || words[3] != "01" { // established
			continue
		}
		var a, b, c, d byte
		var port int
		if n, _ := fmt.Sscanf(words[2], "%02X%02X%02X%02X:%X", &a, &b, &c, &d, &port); n != 5 || port != fl.port || c != 1 {
			continue // remote end, last byte of the address first
		}
		if i := int(b)*perBlock + int(a) - 1; i >= 0 && i < len(fl.nodes) && passes(fl.nodes[i]) {
			open[fl.nodes[i]]++
		}
	}
	for _, n := range open {
		most = max(most, n)
	}
	return most
}

func TestF09F10F11AThousandNodesOfWhichSomeAreBad(t *testing.T) {
	slowFault(t, "takes five minutes")
	fl, m := fleetCluster(t, 1000)
	create := func() time.Duration { return p99(t, m, "POST", "/containers/create?name=c#", sleepBody) }
	list := func() time.Duration { return p99(t, m, "GET", "/containers/json?limit=50", "") }
	info := func() time.Duration { return p99(t, m, "GET", "/info", "") }
	baseList, baseInfo, baseCreate := list(), info(), create()
	t.Logf("all well: p99 of ps %v, info %v, create %v", baseList, baseInfo, baseCreate)

	// One node takes 30 s for each answer.
	fl.nodes[500].delay.Store(int64(30 * time.Second))
	nowList, nowInfo, nowCreate := list(), info(), create()
	faultTook(t, 9, fmt.Sprintf("one slow node: p99 of ps (all well: %v)", baseList.Round(time.Millisecond)), nowList, 50*time.Millisecond)
	faultTook(t, 9, fmt.Sprintf("info (all well: %v)", baseInfo.Round(time.Millisecond)), nowInfo, max(50*time.Millisecond, baseInfo*3/2))
	faultTook(t, 9, fmt.Sprintf("create (all well: %v)", baseCreate.Round(time.Millisecond)), nowCreate, baseCreate*3/2+250*time.Millisecond) // once it waits for two pings
	fl.heal()
	fleetStates(t, m, "healthy|1000")

	// A hundred hang at once.
	for i := 5; i < 1000; i += 10 { // not the slow one: it may still be at work on its last answers
		fl.nodes[i].hang(true)
	}
	hung := func(n *fleetNode) bool { return n.hung.Load() != nil }
	began := time.Now()
	nowList = list()
	fleetStates(t, m, "healthy|900\nunhealthy|100")
	faultTook(t, 10, "100 hung nodes unhealthy, by pings that 1,000 share", time.Since(began), 1000*probeEvery/closeNodes+probeWait+5*time.Second)
	most, spent := 0, cpuTime(t, m)
	began = time.Now()
	eventually(t, time.Minute, func() error {
		most = max(most, connectionsTo(t, fl, hung))
		if time.Since(began) < 30*time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	faultCount(t, 10, "most connections to one of them in 30 s", most, 2, "")
	faultCount(t, 10, "CPU meanwhile", int64(100*(cpuTime(t, m)-spent)/time.Since(began)), 20, "% of a core")
	faultTook(t, 10, "p99 of ps", nowList, 50*time.Millisecond)
	faultTook(t, 10, fmt.Sprintf("create (all well: %v)", baseCreate.Round(time.Millisecond)), create(), baseCreate*3/2)
	fl.heal()
	fleetStates(t, m, "healthy|1000")

	// Every other one goes and comes, every 10 s.
	spent, began = cpuTime(t, m), time.Now()
	last := make([]int64, len(fl.nodes))
	var worst int64 // dials of one node in the 10 s that it was dead
	for round := range 12 {
		for i := 0; i < len(fl.nodes); i += 2 {
			fl.nodes[i].dead.Store(round%2 == 0)
			last[i] = fl.nodes[i].dials.Load()
			if round%2 == 0 {
				fl.nodes[i].endWatchers()
			}
		}
		time.Sleep(10 * time.Second) // the beat is the fault
		for i := 0; i < len(fl.nodes); i += 2 {
			if round%2 == 0 {
				worst = max(worst, fl.nodes[i].dials.Load()-last[i])
			}
		}
	}
	faultCount(t, 11, "most dials of one node in 10 s while it was dead", worst, 10, "")
	again := count(t, m.sql(t, "SELECT count(*) FROM events WHERE action = 'engine_reconnect' AND at_nano > "+fmt.Sprint(began.UnixNano())))
	faultCount(t, 11, "of 3,000 flaps seen as such", again, 2700, "")
	faultCount(t, 11, "CPU", int64(100*(cpuTime(t, m)-spent)/time.Since(began)), 100, "% of a core")
	fl.heal()
	fleetStates(t, m, "healthy|1000")
	if status, took := m.get(t, "/_ping"); status != http.StatusOK {
		t.Errorf("ping = %d after %v", status, took)
	}
}

// endWatchers ends the engine's streams of events, as its death does.
func (n *fleetNode) endWatchers() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.watchers {
		w.end()
	}
}

func count(t testing.TB, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
