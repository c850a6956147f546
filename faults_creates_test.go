package main

import (
	"database/sql"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// F24: the engine made the container, and its answer was lost.
func TestF24ACreateWhoseAnswerIsLostIsSettledByItsLabel(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	for _, e := range f.fakes {
		e.dropAnswer("^/containers/create$")
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			name := fmt.Sprint("c", i)
			status, answer := 0, "did not answer"
			for began := time.Now(); strings.Contains(answer, "did not answer") && time.Since(began) < time.Minute; { // the machine is busy
				status, answer = f.call(t, "POST", "/containers/create?name="+name, sleepBody)
			}
			if status != http.StatusBadGateway || !strings.Contains(message(answer), "outcome unknown, look before you retry") ||
				!strings.Contains(message(answer), "node a") && !strings.Contains(message(answer), "node b") {
				t.Errorf("create whose answer is lost = %d %s", status, answer)
			}
			// A client that does not look and retries must not get a second copy.
			for range 3 {
				if status, answer := f.call(t, "POST", "/containers/create?name="+name, sleepBody); status != http.StatusConflict {
					t.Errorf("create of the same name = %d %s, want 409", status, answer)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range f.fakes {
		e.heal()
	}
	f.oracle(t)
	if got := len(a.containerNames()) + len(b.containerNames()); got != 50 {
		t.Errorf("%d containers, want 50", got)
	}
	faultCount(t, 24, "copies beside the first of 50 creates whose answers were lost", len(a.containerNames())+len(b.containerNames())-50, 0, "")
	// On a busy machine an engine may be passed over as silent before it is asked.
	if got := f.rows(t, "SELECT outcome, count(*) FROM placements WHERE kind = 'container' AND outcome NOT IN ('moved', 'refused') GROUP BY outcome"); got != "created|50" {
		t.Errorf("placements = %q, want all of them created", got)
	}
	if status, answer := f.call(t, "DELETE", "/containers/c1?force=1", ""); status != http.StatusNoContent {
		t.Errorf("rm of an adopted container = %d %s", status, answer)
	}
	f.make(t, "c1", sleepBody)
	f.oracle(t)
}

// The request was lost, not the answer: nothing was made, and the name is free again.
func TestACreateThatNeverArrivedIsReleased(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	undo := e.override("POST", "^/containers/create$", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if status, answer := f.call(t, "POST", "/containers/create?name=web", sleepBody); status != http.StatusBadGateway {
		t.Errorf("create = %d %s, want 502", status, answer)
	}
	undo()
	if status, answer := f.call(t, "POST", "/containers/create?name=web", sleepBody); status != http.StatusConflict {
		t.Errorf("create of the name while nobody knows = %d %s, want 409", status, answer)
	}
	f.oracle(t)
	f.make(t, "web", sleepBody)
	f.oracle(t)
}

// An engine that was hung takes the request out of its socket when it goes on, long
// after the manager has given up.
func TestACreateThatAHungEngineMakesLateIsAdopted(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	late := make(chan struct{})
	e.override("POST", "^/containers/create$", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		conn.Close() // the manager sees the connection break
		<-late
		e.answer(httptest.NewRecorder(), r)
	})
	if status, answer := f.call(t, "POST", "/containers/create?name=web", sleepBody); status != http.StatusBadGateway {
		t.Errorf("create = %d %s, want 502", status, answer)
	}
	e.stop() // as good as hung: it does not answer for longer than the reservation lasts by itself
	f.store.write(t.Context(), func(tx *tx) error {
		_, err := tx.exec("UPDATE reservations SET made_at = made_at - 3600")
		return err
	})
	e.restart()
	eventually(t, 20*time.Second, func() error {
		if got := f.rows(t, "SELECT state FROM nodes"); got != "healthy" {
			return errors.New(got)
		}
		return nil
	})
	if status, answer := f.call(t, "POST", "/containers/create?name=web", sleepBody); status != http.StatusConflict {
		t.Errorf("create of the same name just after it came back = %d %s, want 409", status, answer)
	}
	close(late)
	f.oracle(t)
	if got := e.containerNames(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("containers = %q, want one web", got)
	}
}

func TestACreateWhoseRowCannotBeWrittenIsSettledLater(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	locked := make(chan *sql.Conn, 1)
	e.override("POST", "^/containers/create$", func(w http.ResponseWriter, r *http.Request) {
		// Somebody opens a shell and writes: BEGIN EXCLUSIVE.
		db, err := sql.Open("sqlite", dsn(f.store.path, "_pragma=busy_timeout(5000)"))
		if err != nil {
			t.Error(err)
		}
		conn, err := db.Conn(t.Context())
		if err == nil {
			_, err = conn.ExecContext(t.Context(), "BEGIN EXCLUSIVE")
		}
		if err != nil {
			t.Error(err)
		}
		locked <- conn
		e.answer(w, r)
	})
	status, answer := f.call(t, "POST", "/containers/create?name=web", sleepBody)
	if status != http.StatusServiceUnavailable || !strings.Contains(message(answer), "state database: locked by another program") {
		t.Errorf("create = %d %s, want 503 that names the database", status, answer)
	}
	conn := <-locked
	if _, err := conn.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Error(err)
	}
	conn.Close()
	e.heal()
	f.oracle(t)
	if got := e.containerNames(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("containers = %q, want one web", got)
	}
}

// F33: engines finish such a create too.
func TestF33AClientThatLeavesInACreateStillGetsItsContainer(t *testing.T) {
	t.Parallel()
	// Four engines: each takes 64 calls at a time, and a machine under load spreads them unevenly.
	f := newFront(t, newFakeEngine(t), newFakeEngine(t), newFakeEngine(t), newFakeEngine(t))
	gate := make(chan struct{})
	for _, e := range f.fakes {
		e.override("POST", "^/containers/create$", func(w http.ResponseWriter, r *http.Request) {
			<-gate
			e.answer(w, r)
		})
	}
	var clients []*wire
	for i := range 100 {
		w := f.wire(t)
		w.send(fmt.Sprintf("POST /containers/create?name=c%d HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			i, len(sleepBody), sleepBody))
		clients = append(clients, w)
	}
	eventually(t, 20*time.Second, func() error {
		n := 0
		for _, e := range f.fakes {
			n += e.count("POST", "/create$")
		}
		if n != 100 {
			return fmt.Errorf("%d creates have reached the engines", n)
		}
		return nil
	})
	for i, w := range clients {
		if i%2 == 0 {
			w.reset()
		} else {
			w.Close()
		}
	}
	close(gate)
	eventually(t, 20*time.Second, func() error {
		n := 0
		for _, e := range f.fakes {
			n += len(e.containerNames())
		}
		if n != 100 {
			return fmt.Errorf("%d containers, want 100", n)
		}
		return nil
	})
	f.oracle(t)
	faultCount(t, 33, "creates of 100 that were not finished, or have no row", 0, 0, "")
}

func TestF37FiftyCreatesOfOneName(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t), newFakeEngine(t), newFakeEngine(t))
	rounds := 20
	if allFaults() {
		rounds = 100
	}
	for round := range rounds {
		var made, taken atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				status, answer := f.call(t, "POST", fmt.Sprint("/containers/create?name=only", round), sleepBody)
				switch {
				case status == http.StatusCreated:
					made.Add(1)
				case status == http.StatusConflict && strings.HasPrefix(message(answer), fmt.Sprintf("Conflict. The container name \"/only%d\" is already in use by ", round)):
					taken.Add(1)
				default:
					t.Errorf("create = %d %s", status, answer)
				}
			})
		}
		wg.Wait()
		if made.Load() != 1 || taken.Load() != 49 {
			t.Errorf("round %d: %d made, %d refused, want 1 and 49", round, made.Load(), taken.Load())
		}
	}
	faultHeld(t, 37, fmt.Sprintf("one 201 and 49 × 409 in each of %d rounds", rounds))
	f.oracle(t)
}

// The history of each name is consistent.
func TestF38NamesAreCreatedRenamedAndRemovedByMany(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t), newFakeEngine(t))
	names := []string{"x1", "y1", "z1"}
	var wg sync.WaitGroup
	var calls, wrong atomic.Int64
	began := time.Now()
	for worker := range 20 {
		wg.Go(func() {
			random := mrand.New(mrand.NewPCG(uint64(worker), 7))
			for i := 0; i < 30 || allFaults() && time.Since(began) < time.Minute; i++ {
				calls.Add(1)
				name, other := names[random.IntN(3)], names[random.IntN(3)]
				var status int
				var answer string
				switch random.IntN(4) {
				case 0, 1:
					status, answer = f.call(t, "POST", "/containers/create?name="+name, sleepBody)
				case 2:
					status, answer = f.call(t, "POST", "/containers/"+name+"/rename?name="+other, "")
				case 3:
					status, answer = f.call(t, "DELETE", "/containers/"+name+"?force=1", "")
				}
				if !slices.Contains([]int{201, 204, 404, 409}, status) && !(status == 400 && name == other) {
					wrong.Add(1)
					t.Errorf("a call about %s and %s = %d %s", name, other, status, answer)
				}
				if got := f.rows(t, "SELECT name FROM containers GROUP BY name HAVING count(*) > 1"); got != "" {
					wrong.Add(1)
					t.Errorf("name %s is used twice", got)
				}
			}
		})
	}
	wg.Wait()
	faultCount(t, 38, fmt.Sprintf("wrong answers or doubled names in %d calls by 20 clients", calls.Load()), wrong.Load(), 0, "")
	f.oracle(t)
}
