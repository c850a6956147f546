package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// front is swarmlite in this process over simulated engines: real store, router and
// server, with its insides in reach.
type front struct {
	*cluster
	api   *api
	addr  string // host:port
	fakes []*fakeEngine
	logs  *logText

	limits   *connLimits
	listener *net.TCPListener
	end      context.CancelFunc // as at the end of the program, without waiting
}

// newFront returns when every engine that runs is healthy, or duplicate.
func newFront(t testing.TB, fakes ...*fakeEngine) *front {
	t.Helper()
	f := startFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), fakes...)
	f.settled(t)
	return f
}

// settled waits until every engine is healthy, or has been found not to be.
func (f *front) settled(t testing.TB) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		for _, e := range f.nodes.all() {
			if !e.healthy.Load() && e.trouble.Load() == nil {
				return fmt.Errorf("node %s is not healthy", e.nodeName())
			}
		}
		return nil
	})
}

// startFront is newFront with a database of its own choice, and without the wait.
func startFront(t testing.TB, db string, fakes ...*fakeEngine) *front {
	t.Helper()
	var addrs []string
	for _, e := range fakes {
		addrs = append(addrs, "tcp://"+e.addr())
	}
	f := startFrontOver(t, db, addrs, func(*nodes) {})
	f.fakes = fakes
	return f
}

// newRelayedFront is newFront with a relay before each engine.
func newRelayedFront(t testing.TB, fakes ...*fakeEngine) (*front, []*chaosRelay) {
	t.Helper()
	var relays []*chaosRelay
	var addrs []string
	for _, e := range fakes {
		r := newChaosRelay(t, e.addr())
		relays, addrs = append(relays, r), append(addrs, "tcp://"+r.addr())
	}
	f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), addrs, func(*nodes) {})
	f.fakes = fakes
	f.settled(t)
	return f, relays
}

// startFrontOver is startFront with addresses of its own choice, and nodes that are set
// up before the first is watched.
func startFrontOver(t testing.TB, db string, addrs []string, setUp func(*nodes)) *front {
	t.Helper()
	log, logs := testLog()
	store, err := openStore(t.Context(), log, db)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &front{end: cancel, limits: newConnLimits(len(addrs))}
	f.logs = logs
	sched, err := newScheduler(log, store, "spread", nil)
	if err == nil {
		err = store.begin(ctx, managerRow{version: "test", strategy: "spread", overcommit: 0.05})
	}
	if err != nil {
		t.Fatal(err)
	}
	ns := newNodes(log, store, nil)
	setUp(ns)
	if len(addrs) > 0 { // else the test names them
		if err := ns.set(ctx, linesOf(addrs...)); err != nil {
			t.Fatal(err)
		}
	}
	f.cluster = &cluster{log: log, store: store, nodes: ns, scheduler: sched, infoNodes: 50, names: "plain", base: ctx}
	f.api = newAPI(f.cluster, log, "test", nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	f.listener = l.(*net.TCPListener)
	l = f.limits.listener(l)
	srv := newServer(f.api, log)
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
		cancel()
		ns.wait()
		store.close()
		if strings.Contains(f.logged(), "panic in a request") && !strings.Contains(f.logged(), "panic of the test") {
			t.Errorf("a request panicked:\n%s", f.logged())
		}
	})
	return f
}

func (f *front) logged() string {
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	return f.logs.text.String()
}

// call is one request as a plain client makes it; the answer is read whole.
func (f *front) call(t testing.TB, method, path, body string) (status int, answer string) {
	t.Helper()
	status, answer, err := f.try(method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return status, answer
}

func (f *front) try(method, path, body string) (status int, answer string, err error) {
	req, err := http.NewRequest(method, "http://"+f.addr+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := loneClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// loneClient keeps no connections: tests count them.
var loneClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 3 * time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// make creates a container through the front and starts it.
func (f *front) make(t testing.TB, name, body string) (id string) {
	t.Helper()
	status, answer := f.call(t, "POST", "/containers/create?name="+name, body)
	var made struct{ Id string }
	if err := json.Unmarshal([]byte(answer), &made); status != http.StatusCreated || err != nil {
		t.Fatalf("create %s: %d %s", name, status, answer)
	}
	if status, answer := f.call(t, "POST", "/containers/"+made.Id+"/start", ""); status != http.StatusNoContent {
		t.Fatalf("start %s: %d %s", name, status, answer)
	}
	return made.Id
}

const (
	sleepBody = `{"Image":"busybox","Cmd":["sleep","inf"]}`
	ttyBody   = `{"Image":"busybox","Cmd":["cat"],"Tty":true,"OpenStdin":true,"AttachStdin":true}`
)

// wire is a raw connection to the front.
type wire struct {
	*net.TCPConn
	t  testing.TB
	in *bufio.Reader
}

// wire dials; the connection ends with the test at the latest.
func (f *front) wire(t testing.TB) *wire {
	t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	return &wire{c.(*net.TCPConn), t, bufio.NewReader(c)}
}

func (w *wire) send(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w.TCPConn, text); err != nil {
		w.t.Fatalf("send: %v", err)
	}
}

// answer reads the header of the next answer; of an upgrade, the stream is w.in.
func (w *wire) answer() *http.Response {
	w.t.Helper()
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.t.Fatalf("answer: %v", err)
	}
	return resp
}

// rest reads to the end of the stream.
func (w *wire) rest() string {
	w.t.Helper()
	data, err := io.ReadAll(w.in)
	if err != nil {
		w.t.Fatalf("read to the end: %v (after %q)", err, data)
	}
	return string(data)
}

// reset closes the connection as a process does that is killed with output unread.
func (w *wire) reset() {
	w.SetLinger(0)
	w.Close()
}

// exec makes an exec in a container and returns its ID.
func (f *front) exec(t testing.TB, container, body string) string {
	t.Helper()
	status, answer := f.call(t, "POST", "/containers/"+container+"/exec", body)
	var made struct{ Id string }
	if err := json.Unmarshal([]byte(answer), &made); status != http.StatusCreated || err != nil {
		t.Fatalf("exec in %s: %d %s", container, status, answer)
	}
	return made.Id
}

// quiet waits until the engines have one connection each: the one with their events.
func (f *front) quiet(t testing.TB) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		f.closeIdle()
		n := 0
		for _, e := range f.fakes {
			n += e.connections()
		}
		if n > len(f.fakes) {
			return fmt.Errorf("%d connections to %d engines", n, len(f.fakes))
		}
		return nil
	})
}

func (f *front) closeIdle() {
	for _, e := range f.nodes.all() {
		e.transport.CloseIdleConnections()
		e.reads.close()
	}
}

// within takes the next value, or fails the test.
func within[T any](t testing.TB, ch <-chan T, d time.Duration) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(d):
		t.Fatalf("nothing after %v", d)
	}
	return v
}
