package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestCreateWaitsUntilRoomIsFreed(t *testing.T) {
	t.Parallel()
	one := newFakeEngine(t, func(e *fakeEngine) { e.name = "one" })
	c, base := testCluster(t, one)
	create := func(name, labels string) (int, string) {
		return postJSON(t, base+"/containers/create?name="+name, `{"Image":"busybox","HostConfig":{"NanoCpus":3000000000},"Labels":{`+labels+`}}`)
	}
	if status, answer := create("first", ""); status != 201 {
		t.Fatalf("create = %d %s, want 201", status, answer)
	}
	answers := make(chan string, 1)
	go func() {
		status, answer := create("second", `"com.docker.swarm.wait":"60s"`)
		answers <- fmt.Sprint(status, " ", answer)
	}()
	eventually(t, 20*time.Second, func() error { return c.inLine(t, "second") })
	if status, answer := create("second", ""); status != 409 || !strings.Contains(answer, "waits for room") {
		t.Errorf("create of a name that is held in line = %d %s, want 409", status, answer)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodDelete, base+"/containers/first", nil)
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 204 {
		t.Fatal(resp, err)
	}
	select {
	case answer := <-answers:
		if !strings.HasPrefix(answer, "201 ") {
			t.Errorf("the create that waited = %s, want 201", answer)
		}
	case <-time.After(time.Minute):
		t.Fatal("room was freed and the create still waits")
	}
	if err := c.inLine(t, ""); err != nil {
		t.Error(err)
	}
	if got := c.store.all(t, "SELECT name, outcome FROM placements WHERE name = 'second' AND outcome <> 'moved'"); got != "second|created" {
		t.Errorf("ledger %q, want one placement that was made", got)
	}
}

func TestCreateLeavesTheLineWithItsClient(t *testing.T) {
	t.Parallel()
	one := newFakeEngine(t, func(e *fakeEngine) { e.name, e.labels = "one", []string{"containerslots=0"} })
	c, base := testCluster(t, one)
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	ended := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, base+"/containers/create?name=web",
			strings.NewReader(`{"Image":"busybox","Labels":{"com.docker.swarm.wait":"10m"}}`))
		req.Header.Set("Content-Type", "application/json")
		_, err := http.DefaultClient.Do(req)
		ended <- err
	}()
	eventually(t, 20*time.Second, func() error { return c.inLine(t, "web") })
	hangUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error { return c.inLine(t, "") })
	if status, answer := postJSON(t, base+"/containers/create?name=x", `{"Image":"busybox","Labels":{"com.docker.swarm.wait":"soon"}}`); status != 400 || !strings.Contains(answer, `label com.docker.swarm.wait \"soon\": expected a duration such as 10m`) {
		t.Errorf("create with a bad wait = %d %s, want 400", status, answer)
	}
}

// Whatever may make room wakes the line at once, not with the next tick.
func TestWhatMakesRoomWakesTheLine(t *testing.T) {
	t.Parallel()
	setSpec := func(spec string) func(t *testing.T, e *fakeEngine, c *cluster, base string) {
		return func(t *testing.T, e *fakeEngine, c *cluster, base string) {
			if status, answer := postJSON(t, base+"/nodes/one/update?version="+c.store.one(t, "SELECT spec_version FROM nodes"), spec); status != 200 {
				t.Errorf("node update = %d %s", status, answer)
			}
		}
	}
	remove := func(t *testing.T, e *fakeEngine, c *cluster, base string) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodDelete, base+"/containers/big", nil)
		if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 204 {
			t.Error(resp, err)
		}
	}
	for _, c := range []struct {
		name   string
		before func(t *testing.T, e *fakeEngine, c *cluster, base string)
		flags  string
		then   func(t *testing.T, e *fakeEngine, c *cluster, base string)
	}{
		{"a container is removed", nil, `"HostConfig":{"Memory":4294967296}`, remove},
		{"a container is stopped", func(t *testing.T, e *fakeEngine, c *cluster, base string) {
			if status, answer := postJSON(t, base+"/containers/big/start", ""); status != 204 {
				t.Fatal(status, answer)
			}
			eventually(t, 20*time.Second, func() error {
				if got := c.store.one(t, "SELECT state FROM containers"); got != "running" {
					return fmt.Errorf("container is %s", got)
				}
				return nil
			})
		}, `"HostConfig":{"Memory":4294967296}`, func(t *testing.T, e *fakeEngine, c *cluster, base string) {
			if status, answer := postJSON(t, base+"/containers/big/stop", ""); status != 204 {
				t.Error(status, answer)
			}
		}},
		{"a port is given back", nil, `"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"80"}]}}`, remove},
		{"a node is made active", setSpec(`{"Availability":"pause"}`), `"HostConfig":{}`, setSpec(`{"Availability":"active"}`)},
		{"a label is set", nil, `"Env":["constraint:gpu==yes"]`, setSpec(`{"Availability":"active","Labels":{"gpu":"yes"}}`)},
		{"a node is back", func(t *testing.T, e *fakeEngine, c *cluster, base string) {
			remove(t, e, c, base) // a container that is read again would ring as well
			e.stop()
			eventually(t, 20*time.Second, func() error {
				if got := c.store.one(t, "SELECT state FROM nodes"); got != "unhealthy" {
					return fmt.Errorf("node is %s", got)
				}
				return nil
			})
		}, `"HostConfig":{}`, func(t *testing.T, e *fakeEngine, c *cluster, base string) { e.restart() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newFakeEngine(t, func(e *fakeEngine) { e.name, e.memory = "one", 4<<30 })
			cl, base := testCluster(t, e)
			cl.scheduler.line.tick = time.Hour
			if status, answer := postJSON(t, base+"/containers/create?name=big", `{"Image":"busybox","HostConfig":{"Memory":3221225472,"PortBindings":{"80/tcp":[{"HostPort":"80"}]}}}`); status != 201 {
				t.Fatalf("create = %d %s, want 201", status, answer)
			}
			if c.before != nil {
				c.before(t, e, cl, base)
			}
			answers := make(chan string, 1)
			go func() {
				status, answer := postJSON(t, base+"/containers/create?name=web", `{"Image":"busybox","Labels":{"com.docker.swarm.wait":"10m"},`+c.flags+`}`)
				answers <- fmt.Sprint(status, " ", answer)
			}()
			eventually(t, 20*time.Second, func() error { return cl.inLine(t, "web") })
			c.then(t, e, cl, base)
			select {
			case answer := <-answers:
				if !strings.HasPrefix(answer, "201 ") {
					t.Errorf("the create that waited = %s, want 201", answer)
				}
			case <-time.After(time.Minute):
				t.Errorf("it still waits: %s", cl.store.all(t, "SELECT name, message FROM waiting"))
			}
		})
	}
}

// A database that another program has locked for a while puts nobody out of the line.
func TestLineOutlivesALockedDatabase(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+"; UPDATE nodes SET used_memory_bytes = memory_bytes")
	sc := testScheduler(t, st, "spread")
	sc.line.tick = time.Hour
	came := waiter(t, sc, "web", gib, "10m")
	eventually(t, 20*time.Second, func() error { return (&cluster{store: st}).inLine(t, "web") })
	other, err := sql.Open("sqlite", dsn(st.path, "_pragma=busy_timeout(5000)"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetMaxOpenConns(1)
	if _, err := other.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	sc.round(make(chan struct{}), nil)
	if _, err := other.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	st.sql(t, "UPDATE nodes SET used_memory_bytes = 0 WHERE id = 2")
	st.room.ring()
	select {
	case got := <-came:
		if got != "node-2" {
			t.Errorf("after the lock: %s, want node-2", got)
		}
	case <-time.After(time.Minute):
		t.Error("it still waits")
	}
}

// inLine tells when the names that wait are not these.
func (c *cluster) inLine(t testing.TB, names string) error {
	if got := strings.Join(strings.Fields(c.store.all(t, "SELECT name FROM waiting ORDER BY id")), " "); got != names {
		return fmt.Errorf("in line: %q, want %q", got, names)
	}
	return nil
}

// waiter places a create of so much memory and reports on the channel when its turn has come.
func waiter(t testing.TB, sc *scheduler, name string, memory, wait string) <-chan string {
	t.Helper()
	w, _, err := readCreate([]byte(`{"HostConfig":{"Memory":`+memory+`},"Labels":{"com.docker.swarm.wait":"`+wait+`"}}`), &call{query: url.Values{"name": {name}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.readWait(0, nil); err != nil {
		t.Fatal(err)
	}
	came := make(chan string, 1)
	go func() {
		p, err := sc.placeInTurn(t.Context(), w)
		if err != nil {
			came <- err.Error()
			return
		}
		came <- p.nodeName
	}()
	return came
}

const gib = "1073741824"

func TestLineIsByArrival(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+"; DELETE FROM nodes WHERE id > 1; UPDATE nodes SET used_memory_bytes = memory_bytes")
	sc := testScheduler(t, st, "spread")
	var came []<-chan string
	for i := range 5 {
		came = append(came, waiter(t, sc, fmt.Sprint("web-", i), gib, "10m"))
		eventually(t, 20*time.Second, func() error {
			if got := st.one(t, "SELECT count(*) FROM waiting"); got != fmt.Sprint(i+1) {
				return fmt.Errorf("%s in line, want %d", got, i+1)
			}
			return nil
		})
	}
	// Room that is freed while the line is being looked through may go to a later one
	// in the head's first quarter; after it the order is strict.
	st.sql(t, "UPDATE waiting SET since_ms = since_ms - 1000000")
	for i, mine := range came {
		st.sql(t, "UPDATE nodes SET used_memory_bytes = used_memory_bytes - "+gib)
		st.room.ring()
		select {
		case got := <-mine:
			if got != "node-1" {
				t.Fatalf("turn %d: %s", i, got)
			}
		case <-time.After(time.Minute):
			t.Fatalf("turn %d did not come: %s; %s; %s", i, st.all(t, "SELECT * FROM waiting"), st.all(t, "SELECT id, name FROM reservations"), st.all(t, "SELECT used_memory_bytes, memory_bytes, containers FROM nodes"))
		}
		for _, later := range came[i+1:] {
			select {
			case got := <-later:
				t.Fatalf("%s came out of turn", got)
			default:
			}
		}
	}
}

func TestLaterCreatePassesOnlyInTheFirstQuarterOrElsewhere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, waited, body, want string }{
		{"in the first quarter", "100", `{"Env":["constraint:node==node-1"]}`, "node-1"},
		{"after it, where the head cannot go", "400", `{}`, "node-2"},
		{"after it, where the head could go", "400", `{"Env":["constraint:node==node-1"]}`,
			"no node fits: 2 of 3 fail constraint node==node-1, 1 is kept for big, which waits for room"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			st := testStore(t)
			st.sql(t, standardCluster+`; INSERT INTO waiting (name, image, request, since_ms, until_ms, nodes, message)
				SELECT 'big', '', '{}', now - `+c.waited+`000, now + 1000000 - `+c.waited+`000, '[1]', '' FROM (SELECT strftime('%s', 'now') * 1000 AS now)`)
			p, err := testScheduler(t, st, "spread").placeBody(t.Context(), t, "web", c.body)
			got := fmt.Sprint(err)
			if err == nil {
				got = p.nodeName
			}
			if got != c.want {
				t.Errorf("place(%s) = %s, want %s", c.body, got, c.want)
			}
		})
	}
}

func TestCreateThatWaitedInVainIsRefusedOnce(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster+"; UPDATE nodes SET used_memory_bytes = memory_bytes; UPDATE nodes SET memory_bytes = 9663676416, state = 'unhealthy' WHERE id = 3")
	sc := testScheduler(t, st, "spread")
	if got, want := <-waiter(t, sc, "web", gib, "300ms"), "no node fits: 2 of 3 have less than 1GiB of memory free, 1 is not healthy"; got != want {
		t.Errorf("after its time: %s, want %s", got, want)
	}
	if got := st.all(t, "SELECT name, outcome FROM placements"); got != "web|refused" {
		t.Errorf("ledger %q, want one refusal", got)
	}
	// 9 GiB would fit on the node that is down and may come back; 900 GiB never will.
	if got := <-waiter(t, sc, "never", "966367641600", "10m"); !strings.HasPrefix(got, "no node fits") {
		t.Errorf("impossible create: %s, want a refusal at once", got)
	}
	waiter(t, sc, "later", "9663676416", "10m")
	eventually(t, 20*time.Second, func() error { return (&cluster{store: st}).inLine(t, "later") })
	if got := st.one(t, "SELECT nodes || ' ' || message FROM waiting"); got != "[1,2,3] no node fits: 2 of 3 have less than 9GiB of memory free, 1 is not healthy" {
		t.Errorf("row in waiting: %s", got)
	}
	if err := st.begin(t.Context(), managerRow{strategy: "spread"}); err != nil {
		t.Fatal(err)
	}
	if err := (&cluster{store: st}).inLine(t, ""); err != nil {
		t.Errorf("after a start: %v", err)
	}
}

// A create that is refused is looked at again when the nodes have been read anew: it
// is one refusal in the ledger all the same, and none when there is room after all.
func TestRefusedCreateIsOneRowInTheLedger(t *testing.T) {
	t.Parallel()
	one := newFakeEngine(t, func(e *fakeEngine) { e.name = "one" })
	c, base := testCluster(t, one)
	for range 3 {
		// What was just created is owed a read, for which a refused create waits.
		if status, answer := postJSON(t, base+"/containers/create", `{"Image":"busybox"}`); status != 201 {
			t.Fatal(status, answer)
		}
		if status, answer := postJSON(t, base+"/containers/create", `{"Image":"busybox","Env":["constraint:storage==tape"]}`); status != 503 {
			t.Fatal(status, answer)
		}
	}
	if got := c.store.all(t, "SELECT outcome, count(*) FROM placements WHERE outcome <> 'moved' GROUP BY 1 ORDER BY 1"); got != "created|3\nrefused|3" {
		t.Errorf("ledger %q, want 3 created and 3 refused", got)
	}
	w, _, err := readCreate([]byte(`{"Env":["constraint:storage==tape"]}`), &call{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.scheduler.place(t.Context(), w); !errors.As(err, new(*noNodeError)) {
		t.Fatal(err)
	}
	c.store.sql(t, "INSERT INTO node_labels VALUES (1, 'storage', 'tape', 'operator')")
	if _, err := c.scheduler.place(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if got := c.store.one(t, "SELECT count(*) FROM placements WHERE outcome = 'refused'"); got != "3" {
		t.Errorf("%s refusals, want 3: the fourth was taken back", got)
	}
}
