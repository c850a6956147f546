package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// More events than an engine keeps, in a gap; then some in an order that they never had.
func TestF53LostAndReorderedEvents(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"))
	f, relays := newRelayedFront(t, e)
	for i := range 20 {
		f.make(t, fmt.Sprint("c", i), sleepBody)
	}
	f.oracle(t)
	relays[0].refuse()
	f.awaitStates(t, "a=unhealthy")
	for i := range 200 { // 4 events each and more
		name := fmt.Sprint("gap", i)
		e.addContainer(name, "busybox", true, nil)
		if i%3 > 0 {
			e.exitContainer(name, 1)
		}
		if i%3 > 1 {
			e.removeContainer(name)
		}
	}
	for i := range 10 {
		e.removeContainer(fmt.Sprint("c", i))
	}
	began := time.Now()
	relays[0].pass()
	f.awaitStates(t, "a=healthy")
	f.oracle(t)
	faultTook(t, 53, "right after a gap with 800 events", time.Since(began), time.Minute)
	// An old event of each kind about each thing, the newest first.
	_, answer := f.call(t, "GET", "/containers/json?all=1", "")
	var list []struct{ Id string }
	if err := json.Unmarshal([]byte(answer), &list); err != nil || len(list) == 0 {
		t.Fatal(answer)
	}
	n := time.Now().UnixNano()
	for _, c := range list {
		for _, action := range []string{"destroy", "die", "start", "create", "rename", "pause"} {
			n--
			e.emit(fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q,"Attributes":{"name":"x"}},"time":%d,"timeNano":%d}`, action, c.Id, n/second, n))
		}
	}
	e.addContainer("last", "busybox", true, nil)
	eventually(t, 20*time.Second, func() error {
		if f.rows(t, "SELECT count(*) FROM events WHERE action = 'pause'") != fmt.Sprint(len(list)) {
			return errors.New("the events have not all come")
		}
		return nil
	})
	f.oracle(t)
	for name, status := range f.listed(t) {
		if want := e.statusOf(name); strings.HasPrefix(status, "Up") != (want == "running") {
			t.Errorf("status of %s = %q, on the engine it is %s", name, status, want)
		}
	}
	faultHeld(t, 53, fmt.Sprintf("right after %d events in the wrong order", 6*len(list)))
}

func (e *fakeEngine) statusOf(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.byName[name].status
}

// The stream lives and tells nothing: the minute's list repairs it.
func TestF53EventsThatNeverCome(t *testing.T) {
	slowFault(t, "takes a minute")
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	f.make(t, "web", sleepBody)
	f.oracle(t)
	e.mute(true)
	began := time.Now()
	e.removeContainer("web")
	e.addContainer("behind", "busybox", true, nil)
	eventually(t, 90*time.Second, func() error {
		if shown := f.listed(t); len(shown) != 1 || shown["behind"] == "" {
			return fmt.Errorf("listed are %v", shown)
		}
		return nil
	})
	faultTook(t, 53, "right though no event came", time.Since(began), listEvery+5*time.Second)
	f.oracle(t)
}

// Lines that are no events of this world; the stream goes on.
func TestF55OddEvents(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	f.make(t, "web", sleepBody)
	f.oracle(t)
	e.forget()
	events := f.watchEvents(t, `?filters={"event":["die"]}`)
	unknown := strings.Repeat("a", 64)
	for _, line := range []string{
		`{"Type":"container","Action":"start","Actor":{"ID":"` + unknown + `"},"time":1,"timeNano":1}`,
		`{"Type":"container","Action":"destroy","Actor":{"ID":"` + unknown + `"},"time":1,"timeNano":2}`,
		`{"Type":"container","Action":"start","Actor":{"ID":""},"time":1,"timeNano":3}`,
		`{"Type":"container","Action":"start","Actor":{"ID":"../../info?x=1"},"time":1,"timeNano":4}`,
		`{"Type":"volume","Action":"create","Actor":{"ID":"no/such volume"},"time":1,"timeNano":5}`,
		`{"Type":"network","Action":"create","Actor":{"ID":"` + unknown + `","Attributes":{"container":"` + unknown + `"}},"time":1,"timeNano":6}`,
		`{"Type":"flying saucer","Action":"land","Actor":{"ID":"x"},"time":1,"timeNano":7}`,
		`{"Type":"container","Action":"start","Actor":null,"time":-1,"timeNano":-9223372036854775808}`,
		`{"Type":17,"Action":{}}`, `{"Type":"container"`, `garbage`, `null`, `[]`, `17`, `""`, "", "\x00\xff\xfe", `{"status":"start","id":"` + unknown + `","from":"x","time":1}`,
		`{"Type":"container","Action":"start","Actor":{"ID":"x","Attributes":{"pad":"` + strings.Repeat("x", 10<<20) + `"}},"time":1,"timeNano":8}`,
		strings.Repeat("x", 10<<20),
	} {
		e.emit(line)
	}
	e.exitContainer("web", 3)
	if ev := within(t, events, 20*time.Second); ev.Actor.Attributes["name"] != "web" {
		t.Errorf("event = %+v, want the end of web", ev)
	}
	f.oracle(t)
	if n := e.count("GET", "^/events$"); n > 0 {
		t.Errorf("the stream was opened %d times anew", n)
	}
	if n := e.count("GET", "^/info$"); n > 0 {
		t.Error("an event had another path asked")
	}
	if n := e.count("GET", "^/containers/json$"); n > 30 {
		t.Errorf("%d reads of containers for a dozen odd events", n)
	}
	if got := f.rows(t, "SELECT max(length(body)) FROM events"); len(got) > 6 {
		t.Errorf("an event of %s bytes is kept", got)
	}
	faultHeld(t, 55, "20 odd lines, two of 10 MiB: the stream goes on, no row is made")
}

// One engine tells 10,000 events a second.
func TestF54AStormOfEvents(t *testing.T) {
	slowFault(t, "keeps the machine busy for ten seconds")
	storm, calm := newFakeEngine(t, hostNamed("storm")), newFakeEngine(t, hostNamed("calm"))
	m := newManager(t, managerBinary(t), storm.addr(), calm.addr())
	m.start(t)
	m.ready(t)
	f := &front{addr: m.addr}
	var ids []string
	for i := range 50 {
		ids = append(ids, storm.addContainer(fmt.Sprint("c", i), "busybox", true, nil))
	}
	eventually(t, 20*time.Second, func() error {
		if got := m.sql(t, "SELECT count(*) FROM containers"); got != "50" {
			return errors.New(got)
		}
		return nil
	})
	events := f.watchEvents(t, `?filters={"event":["start","die"]}`)
	const seconds, each = 10, 10_000
	var worst atomic.Int64 // of the calm node's events
	var marks sync.Map
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ev := range events {
			if at, ok := marks.Load(ev.Actor.Attributes["name"]); ok && ev.Action == "start" {
				late := int64(time.Since(at.(time.Time)))
				worst.Store(max(worst.Load(), late))
			}
			if ev.Actor.Attributes["name"] == "end" && ev.Action == "start" {
				return
			}
		}
	}()
	spent, began := cpuTime(t, m), time.Now()
	var calls []time.Duration
	n := began.UnixNano()
	for tick := range seconds * 10 {
		for i := range each / 10 {
			n++
			action := "exec_start: probe"
			if i%5 == 0 {
				action = "start"
			}
			storm.emit(fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q,"Attributes":{"name":"s"}},"time":%d,"timeNano":%d}`, action, ids[i%len(ids)], n/second, n))
		}
		if tick%5 == 0 {
			name := fmt.Sprint("calm", tick)
			marks.Store(name, time.Now())
			calm.addContainer(name, "busybox", true, nil)
		}
		asked := time.Now()
		if status, answer := f.call(t, "GET", "/containers/json", ""); status != http.StatusOK {
			t.Errorf("list = %d %s", status, answer)
		}
		calls = append(calls, time.Since(asked))
		if next := began.Add(time.Duration(tick+1) * 100 * time.Millisecond); time.Now().Before(next) {
			time.Sleep(time.Until(next)) // the rate is the point
		}
	}
	took := time.Since(began)
	stormEnd := time.Now()
	marks.Store("end", stormEnd)
	storm.addContainer("end", "busybox", true, nil)
	within(t, ended, time.Minute)
	slices.Sort(calls)
	faultTook(t, 54, fmt.Sprintf("%d events in %v: the last told", seconds*each, took.Round(time.Second)), time.Since(stormEnd), 2*time.Second)
	faultTook(t, 54, "the other node's events told", time.Duration(worst.Load()), 2*time.Second)
	faultTook(t, 54, "p99 of a list meanwhile", calls[len(calls)*99/100], 100*time.Millisecond)
	faultCount(t, 54, "CPU", int64(100*(cpuTime(t, m)-spent)/took), 100, "% of a core")
	if got := m.sql(t, "SELECT count(*) FROM events WHERE node = 'storm' AND actor <> '' AND body LIKE '%\"name\":\"s\"%'"); got != fmt.Sprint(seconds*each) && took < 2*seconds*time.Second {
		t.Logf("%s of %d events are in the ledger", got, seconds*each)
	}
	m.oracle(t, storm.addr(), calm.addr())
}

// What one engine answers never ends, or is a gigabyte long.
func TestF16AnEngineThatNeverEnds(t *testing.T) {
	slowFault(t, "moves gigabytes")
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	b.addContainer("fine", "busybox", true, nil)
	id := a.addContainer("web", "busybox", true, nil)
	m := newManager(t, managerBinary(t), a.addr(), b.addr())
	m.start(t)
	m.ready(t)
	f := &front{addr: m.addr}
	before := m.peakMemory(t)
	item := `{"Id":"` + strings.Repeat("f", 64) + `","Names":["/x"],"Image":"x","State":"running","Labels":{"pad":"` + strings.Repeat("y", 4000) + `"}},`
	var asked, ended atomic.Int64
	endless := func(head string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			defer ended.Add(1)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, head)
			for sent := 0; sent < 1<<30; sent += len(item) {
				if _, err := io.WriteString(w, item); err != nil {
					return
				}
			}
		}
	}
	// quiet waits until so many answers have been begun and all of them given up.
	quiet := func(n int64) {
		t.Helper()
		eventually(t, time.Minute, func() error {
			if a, e := asked.Load(), ended.Load(); a < n || a != e {
				return fmt.Errorf("%d of %d endless answers were asked for, %d have ended", a, n, e)
			}
			return nil
		})
		asked.Store(0)
		ended.Store(0)
	}
	tell := func(kind, action, id string) {
		a.emit(fmt.Sprintf(`{"Type":%q,"Action":%q,"Actor":{"ID":%q},"time":1,"timeNano":%d}`, kind, action, id, time.Now().UnixNano()))
	}
	for _, c := range []struct {
		what, path, head string
		cause            func()
	}{
		{"containers", "^/containers/json$", "[", func() { tell("container", "start", id) }},
		{"images", "^/images/json$", "[", func() { tell("image", "tag", "x") }},
		{"an inspect", "^/containers/[^/]+/json$", `{"x":[`, func() { f.try("GET", "/containers/web/json", "") }},
		{"info", "^/info$", `{"x":[`, func() { tell("daemon", "reload", "x") }},
		{"a list of processes", "/top$", `{"x":[`, func() {
			resp, err := loneClient.Get("http://" + m.addr + "/containers/web/top")
			if err == nil {
				io.CopyN(io.Discard, resp.Body, 256<<20) // passed on as it comes
				resp.Body.Close()
			}
		}},
	} {
		undo := a.override("GET", c.path, endless(c.head))
		for range 3 {
			c.cause()
			quiet(1)
		}
		undo()
		t.Logf("most memory up to endless %s: %d MiB, %d before", c.what, m.peakMemory(t)>>20, before>>20)
		if status, answer := f.call(t, "GET", "/containers/fine/json", ""); status != http.StatusOK {
			t.Errorf("inspect on the other node = %d %s", status, answer)
		}
	}
	// All lists at once, when it is connected to.
	a.stop()
	for path, head := range map[string]string{"^/containers/json$": "[", "^/images/json$": "[", "^/networks$": "[", "^/volumes$": `{"Volumes":[`} {
		a.override("GET", path, endless(head))
	}
	a.restart()
	quiet(8)
	if !strings.Contains(m.sql(t, "SELECT error FROM nodes WHERE name = 'a'"), "over 16 MiB") {
		t.Errorf("the node says %q, want that an answer is too long", m.sql(t, "SELECT state, step, error FROM nodes WHERE name = 'a'"))
	}
	faultCount(t, 16, "memory beside endless answers grew by", (m.peakMemory(t)-before)>>20, 64, "MiB")
	if got := m.sql(t, "SELECT group_concat(name || '=' || state, ' ') FROM nodes"); got != "a=unhealthy b=healthy" {
		t.Errorf("nodes are %s", got)
	}
	a.heal()
	eventually(t, 30*time.Second, func() error {
		if got := m.sql(t, "SELECT count(*) FROM nodes WHERE state = 'healthy'"); got != "2" {
			return errors.New(got)
		}
		return nil
	})
	m.oracle(t, a.addr(), b.addr())
}
