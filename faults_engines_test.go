package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// oneOfEach makes the calls of a container's life through the front, at a version as
// in "/v1.24", and returns how many of them were answered 5xx. A create that no node
// can express is 400.
func (f *front) oneOfEach(t testing.TB, version, name string) (calls, failed int) {
	t.Helper()
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/_ping", ""}, {"GET", "/version", ""}, {"GET", "/info", ""},
		{"POST", "/containers/create?name=" + name, ttyBody},
		{"POST", "/containers/" + name + "/start", ""}, {"GET", "/containers/json?all=1", ""}, {"GET", "/containers/" + name + "/json", ""},
		{"GET", "/containers/" + name + "/logs?stdout=1", ""}, {"GET", "/containers/" + name + "/top", ""},
		{"POST", "/containers/" + name + "/exec", `{"Cmd":["true"]}`}, {"POST", "/containers/" + name + "/rename?name=" + name + "-new", ""},
		{"POST", "/containers/" + name + "-new/kill", ""}, {"POST", "/containers/" + name + "-new/wait", ""},
		{"GET", "/images/json", ""}, {"GET", "/images/busybox/json", ""}, {"GET", "/networks", ""}, {"GET", "/volumes", ""},
		{"POST", "/volumes/create", `{"Name":"v-` + name + `"}`}, {"DELETE", "/volumes/v-" + name, ""},
		{"GET", "/events?since=1&until=2", ""}, {"DELETE", "/containers/" + name + "-new?force=1", ""},
	} {
		status, answer := f.call(t, c.method, version+c.path, c.body)
		calls++
		if status >= 500 {
			failed++
			t.Errorf("%s %s%s = %d %s", c.method, version, c.path, status, answer)
		}
	}
	return calls, failed
}

func apiRange(low, high string) func(*fakeEngine) {
	return func(e *fakeEngine) { e.minAPIVersion, e.apiVersion = low, high }
}

func TestF13F14F15EnginesAndClientsOfEveryAge(t *testing.T) {
	t.Parallel()
	t.Run("engine 1.24", func(t *testing.T) {
		t.Parallel()
		e := newFakeEngine(t, apiRange("1.12", "1.24"))
		f := newFront(t, e)
		calls, failed := 0, 0
		for i, version := range []string{"", "/v1.24"} {
			n, bad := f.oneOfEach(t, version, fmt.Sprint("c", i))
			calls, failed = calls+n, failed+bad
		}
		for _, r := range e.requests() {
			if _, version := fakeSplitVersion(r.path); version != "" && version != "1.24" {
				t.Errorf("the engine was asked %s, which it does not know", r.path)
			}
		}
		f.oracle(t)
		faultCount(t, 13, fmt.Sprintf("5xx in %d calls", calls), failed, 0, "")
	})
	t.Run("beside a newer one", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, newFakeEngine(t, apiRange("1.12", "1.24")), newFakeEngine(t, apiRange("1.24", "1.41")))
		if _, failed := f.oneOfEach(t, "/v1.24", "both"); failed > 0 {
			t.Errorf("%d calls failed", failed)
		}
		f.oracle(t)
	})
	t.Run("engine from 1.40, client 1.24", func(t *testing.T) {
		t.Parallel()
		e := newFakeEngine(t, apiRange("1.40", "1.56"))
		f := newFront(t, e)
		calls, failed := f.oneOfEach(t, "/v1.24", "old")
		for _, r := range e.requests() {
			if _, version := fakeSplitVersion(r.path); version != "" && fakeOlder(version, "1.40") {
				t.Errorf("the engine was asked %s, which it does not know any more", r.path)
			}
		}
		f.oracle(t)
		faultCount(t, 14, fmt.Sprintf("5xx in %d calls", calls), failed, 0, "")
	})
	t.Run("client newer than the engines", func(t *testing.T) {
		t.Parallel()
		e := newFakeEngine(t, apiRange("1.12", "1.41"))
		f := newFront(t, e)
		resp, err := loneClient.Get("http://" + f.addr + "/_ping")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Api-Version"); got != "1.41" {
			t.Errorf("ping says %s, want 1.41", got)
		}
		status, answer := f.call(t, "GET", "/v1.56/info", "")
		if want := "client version 1.56 is too new. Maximum supported API version is 1.41"; status != http.StatusBadRequest || message(answer) != want {
			t.Errorf("info of a newer client = %d %s, want 400 %s", status, answer, want)
		}
		faultHeld(t, 15, `ping says 1.41; /v1.56 is 400 "too new" in the engine's words`)
	})
}

// F16: one engine says nonsense, in every answer that we read. It is told as such and
// the other one works on.
func TestF16AnEngineThatSaysNonsense(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	a.addContainer("old", "busybox", true, nil)
	b.addContainer("fine", "busybox", true, nil)
	f := newFront(t, a, b)
	f.oracle(t)
	var engine *engine
	for _, e := range f.nodes.all() {
		if e.nodeName() == "a" {
			engine = e
		}
	}
	n := 0
	for _, path := range []string{"^/containers/json$", "^/images/json$", "^/networks$", "^/volumes$", "^/containers/[^/]+/json$", "^/info$", "^/version$"} {
		for _, answer := range []string{"", "{", "[", "null", "true", "17", `"text"`, "<html>", "\x00\xff", `{"Id":`, `[{"Id":17}]`, `[{"Id":"x","Names":{}}]`, `{"Volumes":17}`, "[[[[",
			strings.Repeat("[", 20_000), `[{"Id":"` + strings.Repeat("x", 1<<20) + `"}]`, `{"ID":"x"}`, `[null]`, `{"message":"x"}`} {
			undo := a.fail("GET", path, http.StatusOK, answer+" ")
			f.nodes.list(t.Context(), engine)
			f.nodes.readThings(t.Context(), engine, []mark{{"info", ""}})
			f.call(t, "GET", "/containers/old/json", "")
			undo()
			n++
			if got := f.rows(t, "SELECT count(*) FROM containers WHERE name IN ('old', 'fine')"); got != "2" {
				t.Fatalf("after %.40q to %s: %s containers, want 2", answer, path, got)
			}
		}
	}
	if status, answer := f.call(t, "GET", "/containers/fine/json", ""); status != http.StatusOK {
		t.Errorf("inspect on the other node = %d %s", status, answer)
	}
	undo := a.fail("GET", "^/containers/json$", http.StatusOK, `[{"Id":17}]`)
	if err := f.nodes.list(t.Context(), engine); err != nil {
		t.Fatal(err)
	}
	if got := f.rows(t, "SELECT what, node, detail FROM trouble"); !strings.HasPrefix(got, "bad answer|a|bad answer: wrong shape of 1 of 1 container in the list") {
		t.Errorf("trouble = %q, want the bad answer of a", got)
	}
	undo()
	if err := f.nodes.list(t.Context(), engine); err != nil {
		t.Fatal(err)
	}
	f.oracle(t)
	faultHeld(t, 16, fmt.Sprintf("%d kinds of nonsense: no row is lost, the other node is not touched", n))
}

// sameID gives a container of e another's ID, as a copied data root does.
func (e *fakeEngine) sameID(id, as string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.byID[id]
	delete(e.byID, id)
	c.id = as
	e.byID[as] = c
}

func TestF17F18OneIDOrNameOnTwoNodes(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	id := a.addContainer("web", "busybox", true, nil)
	b.sameID(b.addContainer("web", "busybox", true, nil), id)
	a.addContainer("db", "busybox", true, nil)
	b.addContainer("db", "busybox", true, nil)
	f := newFront(t, a, b)
	status, answer := f.call(t, "GET", "/containers/json?all=1", "")
	if n := strings.Count(answer, `"/web"`) + strings.Count(answer, `"/db"`); status != http.StatusOK || n != 4 {
		t.Errorf("list = %d %s, want all four", status, answer)
	}
	for row, refs := range map[int][]string{17: {id, id[:12]}, 18: {"db"}} {
		for _, ref := range refs {
			for _, c := range [][2]string{{"GET", "/json"}, {"POST", "/stop"}, {"DELETE", ""}, {"POST", "/attach?stream=1"}, {"POST", "/rename?name=x"}} {
				name := map[int]string{17: "web", 18: "db"}[row]
				status, answer := f.call(t, c[0], "/containers/"+ref+c[1], "")
				if status != http.StatusBadRequest || !strings.Contains(message(answer), "a/"+name) || !strings.Contains(message(answer), "b/"+name) {
					t.Errorf("%s of %.12s%s = %d %s, want 400 that names a/%s and b/%s", c[0], ref, c[1], status, answer, name, name)
				}
			}
		}
	}
	for _, e := range f.fakes {
		for _, name := range []string{"web", "db"} {
			status, answer := f.call(t, "GET", "/containers/"+e.name+"/"+name+"/json", "")
			var got struct{ Node struct{ Name string } }
			if json.Unmarshal([]byte(answer), &got); status != http.StatusOK || got.Node.Name != e.name {
				t.Errorf("inspect of %s/%s = %d on %s", e.name, name, status, got.Node.Name)
			}
			if status, answer := f.call(t, "POST", "/containers/"+e.name+"/"+name+"/kill", ""); status != http.StatusNoContent {
				t.Errorf("kill of %s/%s = %d %s", e.name, name, status, answer)
			}
		}
	}
	if got := f.rows(t, "SELECT what FROM trouble ORDER BY 1"); got != "id used twice\nname used twice\nname used twice" {
		t.Errorf("trouble = %q", got)
	}
	faultHeld(t, 17, "by ID 400 that lists both, node/name works")
	faultHeld(t, 18, "by name 400 that lists both, node/name works")
}

func TestF19TwoEnginesWithOneID(t *testing.T) {
	t.Parallel()
	clone := func(e *fakeEngine) { e.id, e.name = "CLONE:ID", "clone" }
	a, b := newFakeEngine(t, clone), newFakeEngine(t, clone)
	a.addContainer("on-a", "busybox", true, nil)
	b.addContainer("on-b", "busybox", true, nil)
	began := time.Now()
	f := newFront(t, a, b)
	eventually(t, 20*time.Second, func() error {
		if got := f.rows(t, "SELECT group_concat(state) FROM (SELECT state FROM nodes ORDER BY state)"); got != "duplicate,healthy" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 19, "the second is shown as duplicate", time.Since(began), 5*time.Second)
	if got := f.rows(t, "SELECT detail FROM trouble"); !strings.Contains(got, "duplicate ID CLONE:ID") || !strings.Contains(got, "key.json") {
		t.Errorf("trouble = %q, want the ID and the cure", got)
	}
	status, answer := f.call(t, "GET", "/info", "")
	if status != http.StatusOK || !strings.Contains(answer, "duplicate ID CLONE:ID") {
		t.Errorf("info says nothing of the duplicate: %s", answer)
	}
	first := a
	if f.rows(t, "SELECT address FROM nodes WHERE state = 'healthy'") != "tcp://"+a.addr() {
		first = b
	}
	f.fakes = []*fakeEngine{first}
	f.oracle(t)
}

// F20: nothing is judged by an engine's clock.
func TestF20EnginesWithClocksOfTheirOwn(t *testing.T) {
	t.Parallel()
	fast, slow := newFakeEngine(t, hostNamed("fast")), newFakeEngine(t, hostNamed("slow"))
	fast.skew(24 * time.Hour)
	slow.skew(-24 * time.Hour)
	f := newFront(t, fast, slow)
	events := f.watchEvents(t, `?filters={"event":["start"]}`)
	since := time.Now().Unix() - 1
	var want []string
	for i := range 6 {
		name := fmt.Sprint("c", i)
		f.make(t, name, sleepBody)
		want = append(want, name)
		if ev := within(t, events, 20*time.Second); ev.Actor.Attributes["name"] != name {
			t.Errorf("event %d is of %s, want %s", i, ev.Actor.Attributes["name"], name)
		}
	}
	f.oracle(t)
	// By the manager's time, in the order of arrival.
	_, answer := f.call(t, "GET", fmt.Sprintf(`/events?since=%d&until=%d&filters={"event":["start"]}`, since, time.Now().Unix()+1), "")
	var got []string
	for dec := json.NewDecoder(strings.NewReader(answer)); dec.More(); {
		var ev engineEvent
		if err := dec.Decode(&ev); err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.Actor.Attributes["name"])
	}
	if !slices.Equal(got, want) {
		t.Errorf("events since then are of %q, want %q", got, want)
	}
	for name, status := range f.listed(t) {
		if !strings.HasPrefix(status, "Up ") || strings.Contains(status, "hour") || strings.Contains(status, "day") {
			t.Errorf("status of %s = %q, want a few seconds", name, status)
		}
	}
	if got := f.rows(t, "SELECT count(*) FROM trouble WHERE what = 'clock'"); got != "2" {
		t.Errorf("%s rows of trouble tell of clocks, want 2", got)
	}
	for _, way := range []string{"ahead of", "behind"} {
		if f.logs.count(way+" the manager's") != 1 {
			t.Errorf("the log does not tell of a clock %s the manager's:\n%s", way, f.logged())
		}
	}
	// What the lists of a minute tell of it.
	for _, e := range f.nodes.all() {
		if e.nodeName() != "slow" {
			continue
		}
		for _, d := range []time.Duration{3 * time.Hour, 0} {
			slow.skew(d)
			if err := errors.Join(f.nodes.list(t.Context(), e), f.nodes.noteClock(t.Context(), e)); err != nil {
				t.Fatal(err)
			}
			skew := "SELECT clock_skew_ms FROM nodes WHERE name = 'slow'"
			if got, err := strconv.ParseInt(f.rows(t, skew), 10, 64); err != nil || (time.Duration(got)*time.Millisecond-d).Abs() > time.Minute {
				t.Errorf("clock is %d ms off, %v, want %s", got, err, d)
			}
		}
		if got := f.logs.count("the engine's clock is right again"); got != 1 {
			t.Errorf("told %d times that the clock is right again", got)
		}
	}
	// They are set right, and wrong again, while we watch.
	for _, d := range []time.Duration{0, time.Hour, -25 * time.Hour} {
		fast.skew(d)
		name := fmt.Sprint("at", d)
		name = strings.NewReplacer("-", "minus", ".", "").Replace(name)
		fast.addContainer(name, "busybox", true, nil)
		if ev := within(t, events, 20*time.Second); ev.Actor.Attributes["name"] != name {
			t.Errorf("event after the clock went to %v is of %s, want %s", d, ev.Actor.Attributes["name"], name)
		}
	}
	f.oracle(t)
	if got := f.rows(t, "SELECT action, count(*) FROM events WHERE type = 'swarm' GROUP BY action"); got != "engine_connect|2" {
		t.Errorf("events of the nodes: %q, want no flap", got)
	}
	faultHeld(t, 20, "±24 h and jumps: no flap, events in order of arrival, since and until by the manager's time")
}

// awaitNode waits until the node of an engine is in this state.
func (f *front) awaitNode(t testing.TB, e *fakeEngine, want string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if got := f.rows(t, "SELECT state FROM nodes WHERE address = 'tcp://"+e.addr()+"'"); got != want {
			return fmt.Errorf("node %s is %s, want %s", e.name, got, want)
		}
		return nil
	})
}

// F22: an engine that is not who it should be is not believed, and never asked in clear.
func TestF22CertificatesOfEnginesThatAreNoGood(t *testing.T) {
	t.Parallel()
	var slowest atomic.Int64
	t.Cleanup(func() {
		faultTook(t, 22, "expired, wrong name, another CA, none: the slowest told", time.Duration(slowest.Load()), probeEvery)
	})
	ours, other := testCA(t), testCA(t)
	expired := serverTemplate("127.0.0.1")
	expired.NotBefore, expired.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	for what, c := range map[string]struct {
		cert certFiles
		want string
	}{
		"expired":    {ours.issue(t, t.TempDir(), expired), "expired"},
		"wrong name": {ours.server(t, "10.1.2.3"), "not 127.0.0.1"},
		"another CA": {other.server(t, "127.0.0.1"), "unknown authority"},
		"none":       {certFiles{}, "does not speak TLS there"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			good := newFakeEngine(t, hostNamed("good"), func(e *fakeEngine) {
				e.tlsConfig = certSourceOf(t, ours.server(t, "127.0.0.1")).serverConfig(false)
			})
			bad := newFakeEngine(t, hostNamed("bad"), func(e *fakeEngine) {
				if what != "none" {
					e.tlsConfig = certSourceOf(t, c.cert).serverConfig(false)
				}
			})
			began := time.Now()
			certs := certSourceOf(t, ours.client(t, "swarmlite"))
			f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), addresses(good, bad), func(ns *nodes) { ns.certs = certs })
			f.fakes = []*fakeEngine{good}
			f.awaitNode(t, bad, "unhealthy")
			state := f.rows(t, "SELECT step || ': ' || error FROM nodes WHERE address = 'tcp://"+bad.addr()+"'")
			took := time.Since(began)
			t.Logf("told after %v", took)
			raise(&slowest, took)
			if !strings.Contains(state, c.want) {
				t.Errorf("the node is %q, want %q in it", state, c.want)
			}
			if n := len(bad.requests()); n > 0 {
				t.Errorf("%d requests reached the engine", n)
			}
			f.awaitNode(t, good, "healthy")
			f.make(t, "web", sleepBody)
			f.oracle(t)
		})
	}
}

// F12: an engine that pings, creates, and cannot start anything.
func TestF12AnEngineThatCannotStartContainers(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	b.addContainer("", "busybox", true, nil)
	b.addContainer("", "busybox", true, nil)
	b.addContainer("", "busybox", true, nil) // so that a is the one to be picked
	f.oracle(t)
	const full = "mkdir /var/lib/docker/overlay2/x: no space left on device"
	undo := a.fail("POST", "/start$", http.StatusInternalServerError, jsonText(map[string]string{"message": full}))
	for i := range penaltyAfter {
		name := fmt.Sprint("c", i)
		if status, answer := f.call(t, "POST", "/containers/create?name="+name, sleepBody); status != http.StatusCreated {
			t.Fatalf("create = %d %s", status, answer)
		}
		if !slices.Contains(a.containerNames(), name) {
			t.Fatalf("%s is not on the node with the most room", name)
		}
		if status, answer := f.call(t, "POST", "/containers/"+name+"/start", ""); status != http.StatusInternalServerError || message(answer) != full {
			t.Errorf("start = %d %s, want the engine's 500", status, answer)
		}
	}
	if n := a.count("POST", "/start$") + b.count("POST", "/start$"); n != penaltyAfter {
		t.Errorf("%d starts were asked of engines for %d of the client", n, penaltyAfter)
	}
	for range penaltyAfter {
		f.call(t, "DELETE", "/containers/"+a.containerNames()[0], "")
	}
	f.make(t, "next", sleepBody)
	if !slices.Contains(b.containerNames(), "next") {
		t.Error("a node that fails at every start is chosen first all the same")
	}
	if got := f.states(t); got != "a=healthy\nb=healthy" {
		t.Errorf("states = %s, want the node kept", got)
	}
	undo()
	var engine *engine
	for _, e := range f.nodes.all() {
		if e.nodeName() == "a" {
			engine = e
		}
	}
	for range 2 { // minutes
		if err := f.nodes.calm(t.Context(), engine, true); err != nil {
			t.Fatal(err)
		}
	}
	f.make(t, "later", sleepBody)
	if !slices.Contains(a.containerNames(), "later") {
		t.Error("the node is not forgiven after two minutes")
	}
	f.oracle(t)
	faultHeld(t, 12, "500 passed on once each, after 3 the node comes last, and is forgiven later")
}
