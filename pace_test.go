package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestPaceOfManyNodes: up to 150 nodes each is pinged every 10 s and listed whole every
// minute; beyond that all together are asked no more often than that.
func TestPaceOfManyNodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		nodes       int
		probe, list time.Duration
		part        int // of six lists these many have images, networks or volumes
	}{
		{3, probeEvery, listEvery, 18},
		{150, probeEvery, listEvery, 18},
		{300, 2 * probeEvery, listEvery, 3},
		{10_000, probeEvery * 10_000 / 150, 10 * listEvery, 3},
	} {
		ns := newNodes(slog.New(slog.DiscardHandler), nil, nil)
		for i := range c.nodes {
			ns.engines[int64(i)] = &watched{}
		}
		if got := ns.pace(probeEvery, closeNodes); got != c.probe {
			t.Errorf("%d nodes are pinged every %v, want %v", c.nodes, got, c.probe)
		}
		if got := ns.pace(listEvery, listedNodes); got != c.list {
			t.Errorf("%d nodes are listed every %v, want %v", c.nodes, got, c.list)
		}
		if got := ns.spread(probeEvery); got < 0 || got > c.probe-probeEvery {
			t.Errorf("%d nodes: the first ping may come %v earlier, want 0 to %v", c.nodes, got, c.probe-probeEvery)
		}
		part := 0
		for turn := range 6 {
			not := ns.unlistedAt(turn)
			for _, left := range []bool{not.images, not.networks, not.volumes} {
				if !left {
					part++
				}
			}
		}
		if part != c.part {
			t.Errorf("%d nodes: six lists have %d others than containers, want %d", c.nodes, part, c.part)
		}
	}
}

// TestManyNodesAreToldOfInALineASecond: a thousand nodes that join are a line, the third that
// is lost later has its own.
func TestManyNodesAreToldOfInALineASecond(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	ns := newNodes(slog.New(slog.NewTextHandler(&log, nil)), nil, nil)
	var engines []*engine
	for i := range 1000 {
		e, err := newEngine(int64(i), "tcp://10.0.0.1:2375", nil, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		ns.engines[int64(i)] = &watched{engine: e}
		engines = append(engines, e)
	}
	for _, e := range engines {
		e.healthy.Store(true)
		ns.tell(slog.LevelInfo, "node healthy", e, nil)
	}
	for range 20 {
		ns.tell(slog.LevelWarn, "node unhealthy", engines[0], errors.New("gone"), "err", "gone")
	}
	eventually(t, 20*time.Second, func() error {
		if !strings.Contains(log.String(), "joined=1000") || !strings.Contains(log.String(), "and 15 more") {
			return errors.New("no summary: " + log.String())
		}
		return nil
	})
	if lines := strings.Count(log.String(), "\n"); lines != 2 {
		t.Errorf("%d lines, want one of those that joined and one of those that were lost:\n%s", lines, log.String())
	}
	ns.tell(slog.LevelWarn, "node unhealthy", engines[3], errors.New("gone"), "err", "gone")
	eventually(t, 20*time.Second, func() error {
		if !strings.Contains(log.String(), `msg="node unhealthy"`) {
			return errors.New("one node that is lost has no line of its own: " + log.String())
		}
		return nil
	})
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestInfoShowsTheFirstNodes: docker info of a large cluster stays readable.
func TestInfoShowsTheFirstNodes(t *testing.T) {
	t.Parallel()
	c, url := testCluster(t)
	c.store.sql(t, standardCluster)
	manyNodes(t, c.store, 300)
	c.store.sql(t, "UPDATE nodes SET state = 'unhealthy', step = 'ping', error = 'gone' WHERE id % 3 = 0")
	for _, show := range []int{50, 0, 1000} {
		c.infoNodes = show
		resp, err := http.Get(url + "/v1.41/info")
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			SystemStatus [][2]string
			Warnings     []string
		}
		err = json.NewDecoder(resp.Body).Decode(&info)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		nodes, last := 0, info.SystemStatus[len(info.SystemStatus)-1]
		for _, line := range info.SystemStatus {
			if strings.Contains(line[0], "└ ID") {
				nodes++
			}
		}
		want := min(show, 300)
		more := fmt.Sprintf(" … and %d more", 300-want)
		if nodes != want || (last[0] == more) != (want < 300) {
			t.Errorf("-info-nodes %d: %d nodes and %q at the end, want %d and %q", show, nodes, last, want, more)
		}
		if got, want := len(info.Warnings), min(max(show, 1)+1, 100); got != want {
			t.Errorf("-info-nodes %d: %d warnings, want %d: %q", show, got, want, info.Warnings[len(info.Warnings)-1])
		}
	}
}

// TestInfoCountsContainersByState: as an engine counts them, whatever most of them are.
func TestInfoCountsContainersByState(t *testing.T) {
	t.Parallel()
	c, url := testCluster(t)
	c.store.sql(t, standardCluster)
	for _, tt := range []struct {
		states          string // a JSON list
		running, paused int
	}{
		{`[]`, 0, 0},
		{`["running", "running"]`, 2, 0},
		{`["created", "running", "paused", "restarting", "removing", "exited", "dead", "stopping", "unknown"]`, 3, 1},
		{`["exited", "exited", "paused", "paused"]`, 0, 2},
	} {
		c.store.sql(t, `DELETE FROM containers; INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary)
			SELECT key + 1, 1, 'c' || key, 'c' || key, 'busybox', value, 1, '{}' FROM json_each('`+tt.states+`')`)
		resp, err := http.Get(url + "/v1.41/info")
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Containers, ContainersRunning, ContainersPaused, ContainersStopped int }
		err = json.NewDecoder(resp.Body).Decode(&got)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		want := got
		want.Containers = strings.Count(tt.states, `"`) / 2
		want.ContainersRunning, want.ContainersPaused = tt.running, tt.paused
		want.ContainersStopped = want.Containers - tt.running - tt.paused
		if got != want {
			t.Errorf("of %s: %+v, want %+v", tt.states, got, want)
		}
	}
}

// A manager that knew many nodes gives its first list before it connects to them.
func TestFirstListGoesBeforeConnecting(t *testing.T) {
	t.Parallel()
	for what, ask := range map[string]func(*cluster){
		"a list": func(c *cluster) {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/containers/json", nil)
			if err := containerList(c, httptest.NewRecorder(), req, &call{version: 1041, query: req.URL.Query()}); err != nil {
				t.Error(err)
			}
		},
		"a create":            func(c *cluster) { c.nodes.firstTries(t.Context()) },
		"a call to an engine": func(c *cluster) { _, _ = c.engine(t.Context(), 1) }, // in time or not
	} {
		st := testStore(t)
		st.sql(t, standardCluster)
		manyNodes(t, st, closeNodes+2)
		st.sql(t, "UPDATE nodes SET state = 'pending', engine_id = iif(id = 1, NULL, 'ID' || id)")
		e := newFakeEngine(t)
		st.sql(t, "UPDATE nodes SET address = 'tcp://"+e.addr()+"' WHERE id = 1")
		ctx, cancel := context.WithCancel(t.Context())
		ns := newNodes(slog.New(slog.DiscardHandler), st, nil)
		t.Cleanup(func() { cancel(); ns.wait() })
		if err := ns.hold(ctx); err != nil {
			t.Fatal(err)
		}
		if err := ns.set(ctx, linesOf("tcp://"+e.addr())); err != nil {
			t.Fatal(err)
		}
		for range 50 { // some time, in which an engine would be connected to
			if err := st.write(ctx, func(*tx) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if got := e.requests(); len(got) > 0 {
			t.Errorf("before %s the engine was asked %v", what, got)
		}
		ask(&cluster{store: st, nodes: ns, names: "plain"})
		eventually(t, time.Minute, func() error {
			if got := st.one(t, "SELECT state || ' ' || step || ' ' || error FROM nodes WHERE id = 1"); !strings.HasPrefix(got, "healthy ") {
				return fmt.Errorf("after %s the engine is %s", what, got)
			}
			return nil
		})
	}
}

func TestFewNodesAreConnectedToAtOnce(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	manyNodes(t, st, closeNodes)
	st.sql(t, "UPDATE nodes SET state = 'pending', engine_id = 'ID' || id")
	ns := newNodes(slog.New(slog.DiscardHandler), st, nil)
	if err := ns.hold(t.Context()); err != nil || ns.held != nil {
		t.Errorf("%d nodes wait for a list, %v", closeNodes, err)
	}
}
