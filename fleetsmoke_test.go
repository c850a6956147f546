package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newTestFleet(t *testing.T, n, each int) *fleet {
	t.Helper()
	f, err := newFleet(n, each, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

func (f *fleet) ask(ctx context.Context, method string, node int, path, body string) (status int, answer string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+f.addr(node)+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// TestFleetIsManyEngines: a manager over a fleet finds every engine and every container,
// and creates, starts, inspects and removes there.
func TestFleetIsManyEngines(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, 20, 3)
	var addresses []string
	for _, a := range strings.Fields(f.addrs()) {
		addresses = append(addresses, "tcp://"+a)
	}
	c, url := testClusterAt(t, addresses)
	if got := c.store.all(t, "SELECT count(*), count(DISTINCT node_id), sum(state = 'running') FROM containers"); got != "60|20|60" {
		t.Errorf("containers, nodes, running = %s, want 60|20|60", got)
	}
	resp, err := http.Post(url+"/v1.41/containers/create?name=new", "application/json", strings.NewReader(`{"Image":"busybox"}`))
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	for _, step := range []struct {
		method, path string
		want         int
	}{{"POST", "/containers/new/start", 204}, {"GET", "/containers/new/json", 200}, {"GET", "/containers/new/logs?stdout=1", 200},
		{"POST", "/containers/new/stop", 204}, {"DELETE", "/containers/new", 204}, {"GET", "/containers/new/json", 404}} {
		req, err := http.NewRequest(step.method, url+"/v1.41"+step.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != step.want {
			t.Errorf("%s %s: %d, want %d", step.method, step.path, resp.StatusCode, step.want)
		}
	}
	counts := f.counts()
	for _, what := range []string{"GET info", "GET version", "GET events", "POST containers create", "POST containers start", "DELETE containers"} {
		if counts[what] == 0 {
			t.Errorf("%q was not counted: %v", what, counts)
		}
	}
}

// TestFleetSizes: bodies are as large as those of busy engines.
func TestFleetSizes(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, 1, 30)
	_, list, err := f.ask(t.Context(), "GET", 0, "/v1.41/containers/json?all=1", "")
	if err != nil {
		t.Fatal(err)
	}
	var entries []struct{ Id string }
	if err := json.Unmarshal([]byte(list), &entries); err != nil || len(entries) != 30 {
		t.Fatalf("%d entries, want 30 (%v)", len(entries), err)
	}
	if size := len(list) / 30; size < 800 || size > 1300 {
		t.Errorf("a list entry has %d bytes, want about 1 KB", size)
	}
	_, inspect, err := f.ask(t.Context(), "GET", 0, "/containers/"+entries[0].Id+"/json", "")
	if err != nil || !json.Valid([]byte(inspect)) || len(inspect) < 4500 || len(inspect) > 6500 {
		t.Errorf("an inspect has %d bytes, want about 5 KB of JSON (%v)", len(inspect), err)
	}
	_, one, err := f.ask(t.Context(), "GET", 0, "/containers/json?"+filterQuery("id", entries[7].Id), "")
	if err != nil || strings.Count(one, `"Id":`) != 1 || !strings.Contains(one, entries[7].Id) {
		t.Errorf("list of one by ID: %s (%v)", one, err)
	}
	for _, path := range []string{"/info", "/version", "/images/json", "/networks", "/networks/bridge", "/volumes"} {
		if status, body, err := f.ask(t.Context(), "GET", 0, path, ""); status != http.StatusOK || !json.Valid([]byte(body)) || err != nil {
			t.Errorf("GET %s: %d %s (%v)", path, status, body, err)
		}
	}
}

// TestFleetTellsEvents: a stream has what happens, and with since what has happened.
func TestFleetTellsEvents(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, 2, 0)
	began := time.Now().Unix()
	if status, body, err := f.ask(t.Context(), "POST", 1, "/containers/create?name=a", `{"Image":"busybox"}`); status != http.StatusCreated {
		t.Fatal(status, body, err)
	}
	resp, err := http.Get("http://" + f.addr(1) + "/events?since=" + strconv.FormatInt(began, 10))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if status, body, err := f.ask(t.Context(), "POST", 1, "/containers/a/start", ""); status != http.StatusNoContent {
		t.Fatal(status, body, err)
	}
	lines := bufio.NewScanner(resp.Body)
	for _, want := range []string{"container create", "network connect", "container start"} {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		var ev engineEvent
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil || ev.Type+" "+ev.Action != want {
			t.Errorf("event %s, want %s (%v)", bytes.TrimSpace(lines.Bytes()), want, err)
		}
	}
}

// TestFleetSwitches: engines hang, are slow and die, and are well again.
func TestFleetSwitches(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, 4, 0)
	control := func(method, path string) {
		t.Helper()
		req, err := http.NewRequest(method, fmt.Sprintf("http://127.0.0.1:%d%s", f.port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	answers := func() int {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // a slow one takes ten
		defer cancel()
		var n atomic.Int64
		var wg sync.WaitGroup
		for i := range f.nodes {
			wg.Go(func() {
				if status, _, err := f.ask(ctx, "GET", i, "/_ping", ""); err == nil && status == http.StatusOK {
					n.Add(1)
				}
			})
		}
		wg.Wait()
		return int(n.Load())
	}
	for _, harm := range []struct {
		path string
		want int
	}{{"/hang?percent=25", 3}, {"/die?percent=50", 2}, {"/slow?percent=100&for=10s", 0}} {
		control("POST", harm.path)
		if got := answers(); got != harm.want {
			t.Errorf("after %s %d of 4 answer, want %d", harm.path, got, harm.want)
		}
		control("POST", "/heal")
		if got := answers(); got != 4 {
			t.Errorf("healed after %s, %d of 4 answer", harm.path, got)
		}
	}
	control("GET", "/counts")
}
