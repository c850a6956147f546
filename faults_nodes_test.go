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

// rows asks the database: rows are lines, columns are separated by "|".
func (f *front) rows(t testing.TB, query string, args ...any) string {
	t.Helper()
	rows, err := f.store.ro.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		values, dest := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, v := range values {
			words = append(words, fmt.Sprint(v))
		}
		lines = append(lines, strings.Join(words, "|"))
	}
	return strings.Join(lines, "\n")
}

// states is the state of each node, by name.
func (f *front) states(t testing.TB) string {
	t.Helper()
	return f.rows(t, "SELECT name || '=' || state FROM nodes ORDER BY name")
}

// hostNamed makes an engine with a host name.
func hostNamed(name string) func(*fakeEngine) { return func(e *fakeEngine) { e.name = name } }

// listed is docker ps -a through the front: name to status.
func (f *front) listed(t testing.TB) map[string]string {
	t.Helper()
	status, answer := f.call(t, "GET", "/containers/json?all=1", "")
	var list []struct {
		Names  []string
		Status string
	}
	if err := json.Unmarshal([]byte(answer), &list); status != http.StatusOK || err != nil {
		t.Fatalf("list = %d %s", status, answer)
	}
	found := map[string]string{}
	for _, c := range list {
		found[strings.TrimPrefix(c.Names[0], "/")] = c.Status
	}
	if len(found) != len(list) {
		t.Errorf("a name is listed twice: %s", answer)
	}
	return found
}

// --- engines that die --------------------------------------------------------

func TestF01F02AnEngineThatDiesAndComesBack(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	on := map[string]*fakeEngine{}
	for i := range 4 {
		name := fmt.Sprint("c", i)
		f.make(t, name, sleepBody)
		on[name] = a
		if slices.Contains(b.containerNames(), name) {
			on[name] = b
		}
	}
	began := time.Now()
	a.stop()
	eventually(t, probeEvery-time.Second, func() error { // by the end of its stream, no probe
		if got := f.states(t); got != "a=unhealthy\nb=healthy" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 1, "killed engine unhealthy", time.Since(began), 2*time.Second)
	slowest := time.Duration(0)
	for name, status := range f.listed(t) {
		if down := status == "Host Down"; down != (on[name] == a) {
			t.Errorf("status of %s on %s = %q", name, on[name].name, status)
		}
		began := time.Now()
		code, answer := f.call(t, "GET", "/containers/"+name+"/json", "")
		switch {
		case on[name] == b && code != http.StatusOK:
			t.Errorf("inspect of %s on the other node = %d %s", name, code, answer)
		case on[name] == a && (code != http.StatusServiceUnavailable || !strings.Contains(answer, "node a is not healthy since ") || !strings.Contains(answer, ": ")):
			t.Errorf("inspect of %s on the dead node = %d %s, want 503 that names the node, since when and why", name, code, answer)
		}
		slowest = max(slowest, time.Since(began))
	}
	faultTook(t, 1, "503 for its containers", slowest, time.Second)
	f.make(t, "new", sleepBody)
	if !slices.Contains(b.containerNames(), "new") {
		t.Error("a create did not go to the node that lives")
	}
	a.removeContainer(firstOn(on, a))
	a.addContainer("behind", "busybox", true, nil)
	began = time.Now()
	a.restart()
	eventually(t, 20*time.Second, func() error {
		if got := f.states(t); got != "a=healthy\nb=healthy" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 2, "healthy", time.Since(began), 6*time.Second)
	f.oracle(t)
	f.make(t, "newer", sleepBody)
	f.oracle(t)
}

// firstOn is one of the containers of an engine.
func firstOn(on map[string]*fakeEngine, e *fakeEngine) string {
	for name, at := range on {
		if at == e {
			return name
		}
	}
	return ""
}

// F5: the container's own events are lost with the engine that had them.
func TestF05AWipedEngineLosesItsContainersAndWatchersAreTold(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "web", `{"Image":"busybox","Cmd":["sleep","inf"],"Labels":{"app":"shop"}}`)
	w := f.wire(t)
	w.send(`GET /events?filters={"event":["destroy"],"label":["app=shop"]} HTTP/1.1` + "\r\nHost: docker\r\n\r\n")
	resp := w.answer()
	e.stop()
	e.wipe()
	e.addImage("busybox:latest", "")
	e.restart()
	began := time.Now()
	var event engineEvent
	if err := json.NewDecoder(resp.Body).Decode(&event); err != nil || event.Actor.ID != id || event.Actor.Attributes["name"] != "web" {
		t.Errorf("event = %+v, %v, want the destroy of web", event, err)
	}
	faultTook(t, 5, "watchers told", time.Since(began), 10*time.Second)
	eventually(t, 20*time.Second, func() error {
		if f.rows(t, "SELECT state FROM nodes") != "healthy" {
			return errors.New("the node is not healthy")
		}
		return nil
	})
	f.make(t, "web", sleepBody) // the name is free again
	f.oracle(t)
	if got := f.rows(t, "SELECT count(*) FROM events WHERE action = 'destroy'"); got != "1" {
		t.Errorf("%s destroy events, want 1", got)
	}
}

func TestAContainerIsToldAsDestroyedOnce(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "web", sleepBody)
	e.mute(true) // the event comes later than a list
	e.removeContainer("web")
	if err := f.nodes.list(t.Context(), f.nodes.all()[0]); err != nil {
		t.Fatal(err)
	}
	e.mute(false)
	e.emit(`{"Type":"container","Action":"destroy","Actor":{"ID":"` + id + `","Attributes":{"name":"web"}},"scope":"local","time":1,"timeNano":1}`)
	f.make(t, "other", sleepBody)
	e.exitContainer("other", 0)
	eventually(t, 20*time.Second, func() error { // by then the stream has brought all before it
		if f.rows(t, "SELECT count(*) FROM events WHERE action = 'die'") == "0" {
			return errors.New("no event of the other container")
		}
		return nil
	})
	if got := f.rows(t, "SELECT count(*) FROM events WHERE action = 'destroy' AND actor = ?", id); got != "1" {
		t.Errorf("%s destroy events, want 1", got)
	}
}

func TestF06AListThatIsCutOffDeletesNothing(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	for i := range 20 {
		e.addContainer(fmt.Sprint("c", i), "busybox", true, nil)
	}
	f := newFront(t, e)
	f.oracle(t)
	var whole atomic.Int64
	for try := range 100 {
		path := []string{"^/containers/json$", "^/images/json$", "^/networks$", "^/volumes$"}[try%4]
		undo := e.cutAfter(path, int64(try*97%8000))
		if err := f.nodes.list(t.Context(), f.nodes.all()[0]); err == nil {
			whole.Add(1) // the answer was shorter than the cut
		}
		undo()
		if got := f.rows(t, "SELECT count(*) FROM containers"); got != "20" {
			t.Fatalf("after a list cut at byte %d of %s: %s containers, want 20", try*97%8000, path, got)
		}
		if got := f.rows(t, "SELECT count(*) FROM networks"); got != "3" {
			t.Fatalf("after a list cut at byte %d of %s: %s networks, want 3", try*97%8000, path, got)
		}
	}
	if whole.Load() > 90 {
		t.Errorf("%d of 100 lists were not cut", whole.Load())
	}
	for _, answer := range []string{"", "[", `{"message":"x"}`, "null garbage", `[{"Id":1}]`, `[[[[`, `"text"`, "<html>"} {
		undo := e.fail("GET", "^/containers/json$", http.StatusOK, answer+" ")
		f.nodes.list(t.Context(), f.nodes.all()[0])
		undo()
		if got := f.rows(t, "SELECT count(*) FROM containers"); got != "20" {
			t.Fatalf("after the list %q: %s containers, want 20", answer, got)
		}
	}
	faultCount(t, 6, "rows lost in 100 lists that were cut and 8 that were none", 0, 0, "")
	f.oracle(t)
}

// --- engines that hang -------------------------------------------------------

func TestACreateDoesNotWaitForAnEngineThatIsSilent(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	for range 4 {
		b.addContainer("", "busybox", true, nil) // so that a is the one to be picked
	}
	f.oracle(t)
	eventually(t, 20*time.Second, func() error {
		for _, e := range f.nodes.all() {
			if e.quietFor() < freshAnswer {
				return errors.New("it answered a moment ago")
			}
		}
		return nil
	})
	a.hang(true)
	began := time.Now()
	f.make(t, "web", sleepBody)
	took := time.Since(began)
	t.Logf("create took %v beside a silent engine", took.Round(time.Millisecond))
	if took > readWait {
		t.Errorf("create took %v beside a silent engine", took)
	}
	if !slices.Contains(b.containerNames(), "web") {
		t.Error("the create did not go to the engine that answers")
	}
	if got := f.rows(t, "SELECT outcome, node FROM placements WHERE kind = 'container' ORDER BY id"); got != "moved|a\ncreated|b" {
		t.Errorf("placements = %q", got)
	}
	if got := f.rows(t, "SELECT answers FROM nodes WHERE name = 'a'"); got != "0" {
		t.Errorf("answers of the silent node = %s, want 0", got)
	}
	f.make(t, "next", sleepBody)
	if got := f.rows(t, "SELECT count(*) FROM placements WHERE outcome = 'moved'"); got != "1" {
		t.Errorf("the silent node was picked again, after it had left the candidates")
	}
	a.hang(false)
	eventually(t, 20*time.Second, func() error {
		if f.rows(t, "SELECT answers, state FROM nodes WHERE name = 'a'") != "1|healthy" {
			return errors.New("the node that answers again is no candidate")
		}
		return nil
	})
	f.make(t, "last", sleepBody)
	if !slices.Contains(a.containerNames(), "last") {
		t.Error("the create did not go to the engine that answers again")
	}
	f.oracle(t)
}

// An engine that has answered is not waited for once more: a create that does not fit there
// either is refused, not tried until its time is up.
func TestACreateWaitsOnceForAnEngineThatAnswers(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	e := f.nodes.all()[0]
	load := &workload{silent: []*engine{e}, exclude: []int64{e.id}}
	if !f.awaitSilent(t.Context(), load, &noNodeError{}) || len(load.exclude) > 0 {
		t.Errorf("the engine answers, and is excluded: %v", load.exclude)
	}
	if f.awaitSilent(t.Context(), load, &noNodeError{}) {
		t.Error("the engine that has answered is waited for again")
	}
}

func TestACreateWaitsForASlowEngineWhenNoOtherFits(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	eventually(t, 20*time.Second, func() error {
		if f.nodes.all()[0].quietFor() < freshAnswer {
			return errors.New("it answered a moment ago")
		}
		return nil
	})
	e.delay("/_ping", 2*time.Second)
	first := make(chan struct{})
	go func() {
		defer close(first)
		if status, answer := f.call(t, "POST", "/containers/create?name=web", sleepBody); status != http.StatusCreated {
			t.Errorf("create web: %d %s", status, answer)
		}
	}()
	eventually(t, 20*time.Second, func() error {
		if f.rows(t, "SELECT answers FROM nodes") != "0" {
			return errors.New("the engine has not been found silent")
		}
		return nil
	})
	f.make(t, "next", sleepBody) // it does not find that out itself
	<-first
	f.oracle(t)
}

func TestF03F04AHungEngineIsFoundAndReadsDoNotWaitForEver(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 seconds, left out by -short")
	}
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	a.addContainer("hung", "busybox", true, nil)
	b.addContainer("fine", "busybox", true, nil)
	f.oracle(t)
	a.hang(true)
	began := time.Now()
	type outcome struct {
		status int
		answer string
		took   time.Duration
	}
	calls := make(chan outcome, 80)
	for i := range cap(calls) { // more than have a place: the rest waits its turn
		go func() {
			path := []string{"json", "top", "changes"}[i%3]
			status, answer, err := f.try("GET", "/containers/hung/"+path, "")
			calls <- outcome{status, fmt.Sprint(answer, err), time.Since(began)}
		}()
	}
	if got := f.listed(t); len(got) != 2 {
		t.Errorf("list beside a hung engine = %v", got)
	}
	if took := time.Since(began); took > readWait/2 {
		t.Errorf("list beside a hung engine took %v", took)
	}
	if status, _ := f.call(t, "GET", "/containers/fine/json", ""); status != http.StatusOK {
		t.Errorf("inspect on the other node = %d", status)
	}
	eventually(t, 20*time.Second, func() error {
		if got := f.states(t); got != "a=unhealthy\nb=healthy" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 3, "hung engine unhealthy", time.Since(began), 20*time.Second)
	timeouts := 0
	var took []time.Duration
	for range cap(calls) {
		o := within(t, calls, 30*time.Second)
		switch {
		case o.status == http.StatusGatewayTimeout && strings.Contains(o.answer, "node a did not answer in time") && o.took < 2*readWait+2*time.Second: // a turn, and an answer
			timeouts++
			took = append(took, o.took)
		case o.status == http.StatusServiceUnavailable && strings.Contains(o.answer, "node a is not healthy since"):
		default:
			t.Errorf("call = %d %s after %v", o.status, o.answer, o.took)
		}
	}
	if timeouts < maxCalls {
		t.Fatalf("%d calls answered 504, want those %d that had a place", timeouts, maxCalls)
	}
	slices.Sort(took)
	faultTook(t, 3, fmt.Sprintf("the last of %d reads that had a place was 504", maxCalls), took[maxCalls-1], readWait+time.Second)
	a.hang(false)
	began = time.Now()
	eventually(t, 20*time.Second, func() error {
		if got := f.states(t); got != "a=healthy\nb=healthy" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 4, "healthy", time.Since(began), 10*time.Second)
	f.oracle(t)
}

func TestAnEngineThatStallsInsideAnAnswerIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 seconds, left out by -short")
	}
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	f.make(t, "web", sleepBody)
	e.override("GET", "^/containers/(.*/top|.*/json|json)$", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `[{"Id":`)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	began := time.Now()
	listed := make(chan error, 1)
	go func() { listed <- f.nodes.list(t.Context(), f.nodes.all()[0]) }()
	var wg sync.WaitGroup
	for _, path := range []string{"top", "json"} {
		wg.Go(func() {
			if status, answer, err := f.try("GET", "/containers/web/"+path, ""); err == nil && status == http.StatusOK {
				t.Errorf("%s that stalls looks whole: %s", path, answer)
			}
		})
	}
	wg.Wait()
	if err := within(t, listed, 30*time.Second); err == nil {
		t.Error("a list that stalls was taken for one")
	}
	if took := time.Since(began); took > 2*readWait {
		t.Errorf("given up after %v, want %v", took, readWait)
	}
}
