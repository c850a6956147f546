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
	"testing"
	"time"
)

// awaitListed waits until docker ps -a shows exactly these names.
func (f *front) awaitListed(t testing.TB, timeout time.Duration, names ...string) {
	t.Helper()
	eventually(t, timeout, func() error {
		shown := f.listed(t)
		if len(shown) != len(names) {
			return fmt.Errorf("listed are %v, want %q", shown, names)
		}
		for _, name := range names {
			if _, ok := shown[name]; !ok {
				return fmt.Errorf("listed are %v, want %q", shown, names)
			}
		}
		return nil
	})
}

// watchEvents is docker events through the front: each event comes out once it is
// there. The stream ends with the test.
func (f *front) watchEvents(t testing.TB, query string) <-chan engineEvent {
	t.Helper()
	w := f.wire(t)
	w.SetDeadline(time.Now().Add(5 * time.Minute))
	w.send("GET /events" + query + " HTTP/1.1\r\nHost: docker\r\n\r\n")
	resp := w.answer()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("events = %s", resp.Status)
	}
	out := make(chan engineEvent, 10_000)
	go func() {
		defer close(out)
		dec := json.NewDecoder(resp.Body)
		for {
			var ev engineEvent
			if dec.Decode(&ev) != nil {
				return
			}
			out <- ev
		}
	}()
	return out
}

// steady makes the sessions look old enough for their streams' end to be no sign of trouble.
func (f *front) steady(t testing.TB) {
	t.Helper()
	eventually(t, 3*steadyStream, func() error {
		for _, e := range f.nodes.all() {
			if age := time.Duration(monotonic() - e.began.Load()); age < steadyStream+time.Second {
				return fmt.Errorf("node %s is %v old", e.nodeName(), age)
			}
		}
		return nil
	})
}

// What is between cuts the stream of an engine that lives: nobody but the watcher of
// the node may notice.
func TestF52AStreamThatIsCutIsOpenedAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 seconds, left out by -short")
	}
	t.Parallel()
	for how, cut := range map[string]func(*chaosRelay){"end": (*chaosRelay).eof, "reset": (*chaosRelay).drop} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			e, f, relay := relayedNode(t, "before")
			f.steady(t)
			events := f.watchEvents(t, "?since=1")
			began := time.Now()
			cut(relay)
			e.addContainer("meanwhile", "busybox", true, nil)
			f.awaitListed(t, 20*time.Second, "before", "meanwhile")
			eventually(t, 20*time.Second, func() error {
				if f.rows(t, "SELECT count(*) FROM events WHERE action = 'start'") != "2" {
					return errors.New("the start of a container in the gap is not told")
				}
				return nil
			})
			faultTook(t, 52, "what happened after the "+how+" of the stream is shown and told", time.Since(began), 3*time.Second)
			if got := f.rows(t, "SELECT action FROM events WHERE type = 'swarm'"); got != "engine_connect" {
				t.Errorf("events of the node: %q, want it healthy all the time", got)
			}
			f.oracle(t)
			e.emit(`{"Type":"container","Action":"last","Actor":{"ID":"x"},"time":9,"timeNano":9}`)
			seen := map[string]int{}
			for ev := range events {
				if ev.Action == "last" {
					break
				}
				seen[fmt.Sprint(ev.TimeNano, ev.Actor.ID, ev.Action)]++
			}
			for ev, n := range seen {
				if n > 1 {
					t.Errorf("%s was told %d times", ev, n)
				}
			}
			if len(seen) < 4 {
				t.Errorf("%d events, want create and start of two containers at least", len(seen))
			}
		})
	}
}

// relayedNode is a node that is reached through a relay and has one container.
func relayedNode(t *testing.T, container string) (*fakeEngine, *front, *chaosRelay) {
	t.Helper()
	e := newFakeEngine(t, hostNamed("a"))
	f, relays := newRelayedFront(t, e)
	f.make(t, container, sleepBody)
	f.oracle(t)
	return e, f, relays[0]
}

// F25: the engine's host has gone without a word.
func TestF25APeerThatIsGoneWithoutAWordIsMissed(t *testing.T) {
	slowFault(t, "takes half a minute")
	t.Parallel()
	e, f, relay := relayedNode(t, "web")
	began := time.Now()
	relay.halfOpen()
	f.awaitStates(t, "a=unhealthy")
	faultTook(t, 25, "peer gone: unhealthy", time.Since(began), 45*time.Second)
	e.addContainer("meanwhile", "busybox", true, nil)
	began = time.Now()
	relay.pass()
	f.awaitListed(t, time.Minute, "web", "meanwhile")
	faultTook(t, 25, "back: listed", time.Since(began), 10*time.Second)
	f.oracle(t)
}

// F25: only the connection is gone, as when something between has forgotten it.
func TestF25AStreamThatIsDeadAloneIsMissed(t *testing.T) {
	slowFault(t, "takes half a minute")
	t.Parallel()
	e, f, relay := relayedNode(t, "web")
	events := f.watchEvents(t, `?filters={"event":["start"]}`)
	relay.halfOpen()
	relay.pass()
	began := time.Now()
	e.addContainer("meanwhile", "busybox", true, nil)
	for ev := range events {
		if ev.Actor.Attributes["name"] == "meanwhile" {
			break
		}
	}
	faultTook(t, 25, "stream dead alone: its first event told", time.Since(began), 45*time.Second)
	began = time.Now()
	e.addContainer("later", "busybox", true, nil)
	within(t, events, 20*time.Second)
	faultTook(t, 25, "and the next over a new stream", time.Since(began), 3*time.Second)
	if got := f.states(t); got != "a=healthy" {
		t.Errorf("states = %s, want it healthy all the time", got)
	}
	f.oracle(t)
}

func TestF23F27APartitionAndItsEnd(t *testing.T) {
	slowFault(t, "takes half a minute")
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f, relays := newRelayedFront(t, a, b)
	for i := range 6 {
		f.make(t, fmt.Sprint("c", i), sleepBody)
	}
	f.oracle(t)
	began := time.Now()
	relays[0].stall()
	f.awaitStates(t, "a=unhealthy b=healthy")
	faultTook(t, 23, "unhealthy", time.Since(began), 20*time.Second)
	var slowest time.Duration
	for i := range 6 {
		began := time.Now()
		status, answer := f.call(t, "GET", fmt.Sprintf("/containers/c%d/json", i), "")
		slowest = max(slowest, time.Since(began))
		on := b
		if slices.Contains(a.containerNames(), fmt.Sprint("c", i)) {
			on = a
		}
		if want := map[*fakeEngine]int{a: 503, b: 200}[on]; status != want {
			t.Errorf("inspect of c%d on %s = %d %s, want %d", i, on.name, status, answer, want)
		}
	}
	faultTook(t, 23, "answers about its containers", slowest, time.Second)
	gone := a.containerNames()[0]
	a.removeContainer(gone)
	a.addContainer("made-behind", "busybox", true, nil)
	f.make(t, gone+"-again", sleepBody)
	began = time.Now()
	relays[0].pass()
	f.awaitStates(t, "a=healthy b=healthy")
	f.oracle(t)
	faultTook(t, 27, "all views agree", time.Since(began), 10*time.Second)
	if got := f.rows(t, "SELECT count(*) FROM containers WHERE name = '"+gone+"'"); got != "0" {
		t.Errorf("a container that was removed during the partition is back")
	}
}

// The engine makes them, and no answer comes back for the whole minute of a create.
func TestF24AnswersThatAreLostForALongTime(t *testing.T) {
	slowFault(t, "takes half a minute")
	t.Parallel()
	e, f, relay := relayedNode(t, "before")
	relay.loseAnswers()
	const creates = 50 // they have a place each
	began := time.Now()
	var wg sync.WaitGroup
	for i := range creates {
		wg.Go(func() {
			w := f.wire(t)
			w.SetDeadline(time.Now().Add(2 * time.Minute))
			w.send(fmt.Sprintf("POST /containers/create?name=c%d HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", i, len(sleepBody), sleepBody))
			resp, err := http.ReadResponse(w.in, nil)
			if err != nil {
				t.Errorf("create: %v", err)
				return
			}
			body, _ := io.ReadAll(resp.Body)
			status, answer := resp.StatusCode, string(body)
			if status != http.StatusGatewayTimeout && status != http.StatusServiceUnavailable && status != http.StatusBadGateway {
				t.Errorf("create = %d %s, want 504", status, answer)
			}
			if status == http.StatusGatewayTimeout && !strings.Contains(message(answer), "outcome unknown") {
				t.Errorf("504 = %s, want it to say that the outcome is unknown", answer)
			}
		})
	}
	wg.Wait()
	t.Logf("creates given up after %v", time.Since(began).Round(time.Second))
	made := len(e.containerNames())
	began = time.Now()
	relay.pass()
	f.awaitStates(t, "a=healthy")
	f.oracle(t)
	faultTook(t, 24, fmt.Sprintf("the %d that were made are known, the others' names free", made-1), time.Since(began), 45*time.Second)
	for i := range creates {
		name := fmt.Sprint("c", i)
		status, answer := f.call(t, "POST", "/containers/create?name="+name, sleepBody)
		if want := map[bool]int{true: 409, false: 201}[slices.Contains(e.containerNames(), name) && status != 201]; status != want {
			t.Errorf("create of %s afterwards = %d %s", name, status, answer)
		}
	}
	f.oracle(t)
	faultCount(t, 24, fmt.Sprintf("copies beside the first of %d creates retried by name", creates), len(e.containerNames())-creates-1, 0, "")
}

// F8: one engine at two addresses.
func TestF08OneEngineAtTwoAddresses(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"))
	e.addContainer("web", "busybox", true, nil)
	f, relays := newRelayedFront(t, e, e)
	f.fakes = f.fakes[:1]
	began := time.Now()
	eventually(t, 2*listEvery, func() error {
		if got := f.rows(t, "SELECT state FROM nodes ORDER BY state"); got != "duplicate\nhealthy" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 8, "one is healthy, the other duplicate", time.Since(began), listEvery)
	first := f.rows(t, "SELECT substr(address, 7) FROM nodes WHERE state = 'healthy'")
	if got := f.rows(t, "SELECT error FROM nodes WHERE state = 'duplicate'"); !strings.Contains(got, first) || !strings.Contains(got, e.id) {
		t.Errorf("the duplicate says %q, want it to name %s and the ID", got, first)
	}
	if got := f.rows(t, "SELECT count(*) FROM trouble WHERE detail LIKE '%duplicate ID%'"); got != "1" {
		t.Errorf("%s rows of trouble tell of it, want 1", got)
	}
	f.oracle(t)
	// The address that was first goes: the host has moved.
	old := relays[0]
	if old.addr() != first {
		old = relays[1]
	}
	began = time.Now()
	old.refuse()
	eventually(t, 2*listEvery, func() error {
		if got := f.rows(t, "SELECT state, substr(address, 7) = '"+first+"' FROM nodes ORDER BY state"); got != "healthy|0\nunhealthy|1" {
			return errors.New(got)
		}
		return nil
	})
	faultTook(t, 8, "the other takes over", time.Since(began), listEvery)
	f.oracle(t)
	f.make(t, "next", sleepBody)
	f.oracle(t)
}
