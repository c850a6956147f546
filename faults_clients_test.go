package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestF30ClientsThatDoNotGoOnAreCut(t *testing.T) {
	slowFault(t, "takes over a minute")
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	var wg sync.WaitGroup
	for what, c := range map[string]struct {
		text string
		from string
		goal time.Duration
	}{
		"half a header":    {"GET /info HTTP/1.1\r\nHost: dock", "127.0.0.2", 15 * time.Second},
		"nothing at all":   {"", "127.0.0.3", 15 * time.Second},
		"half a JSON body": {"POST /containers/create HTTP/1.1\r\nHost: docker\r\nContent-Length: 1000\r\n\r\n{", "127.0.0.4", time.Minute + 2*time.Second},
		"half an attach":   {"POST /containers/x/attach HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "127.0.0.5", time.Minute + 2*time.Second},
	} {
		wg.Go(func() {
			var slowest atomic.Int64
			var kind sync.WaitGroup
			for range 250 {
				conn, err := f.dialFrom(t, c.from)
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(conn, c.text)
				kind.Go(func() {
					began := time.Now()
					io.Copy(io.Discard, conn)
					raise(&slowest, time.Since(began))
				})
			}
			kind.Wait()
			faultTook(t, 30, "the last of 250 × "+what+" cut", time.Duration(slowest.Load()), c.goal)
		})
	}
	var slowest time.Duration
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		began := time.Now()
		if status, answer := f.call(t, "GET", "/_ping", ""); status != http.StatusOK {
			t.Errorf("ping beside them = %d %s", status, answer)
		}
		slowest = max(slowest, time.Since(began))
	}
	faultTook(t, 30, "slowest ping beside 1,000 of them", slowest, 100*time.Millisecond)
	wg.Wait()
	if status, answer := f.call(t, "GET", "/_ping", ""); status != http.StatusOK {
		t.Errorf("ping afterwards = %d %s", status, answer)
	}
}

// One that does not read is cut, the others do not feel it.
func TestF36AStuckWatcherOfEventsIsCut(t *testing.T) {
	t.Parallel()
	watchers := 50
	if allFaults() {
		watchers = 1000
	}
	e := newFakeEngine(t)
	f := newFront(t, e)
	raw, err := f.listener.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Small buffers in the kernel, or it would take megabytes to fill them.
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10) })
	open := func(i int) net.Conn {
		conn, err := f.dialFrom(t, fmt.Sprintf("127.0.1.%d", 1+i/500))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
		return conn
	}
	stuck, err := (&net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	}}).Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	io.WriteString(stuck, "GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
	var told sync.Map // time of the event to when it was emitted
	var latest, seen atomic.Int64
	var wg sync.WaitGroup
	for i := range watchers - 1 {
		conn := open(i)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			dec := json.NewDecoder(resp.Body)
			for {
				var ev engineEvent
				if err := dec.Decode(&ev); err != nil {
					t.Errorf("a watcher that reads was cut: %v", err)
					return
				}
				if ev.Action == "last" {
					return
				}
				at, ok := told.Load(ev.TimeNano)
				if !ok {
					continue
				}
				raise(&latest, time.Since(at.(time.Time)))
				seen.Add(1)
			}
		})
	}
	n := int64(0)
	emit := func(action string) {
		n++
		told.Store(n, time.Now())
		e.emit(fmt.Sprintf(`{"Type":"volume","Action":%q,"Actor":{"ID":"v","Attributes":{"pad":%q}},"time":1,"timeNano":%d}`, action, strings.Repeat("x", 2000), n))
	}
	eventually(t, time.Minute, func() error {
		emit("mount")
		time.Sleep(200 * time.Millisecond) // a steady trickle
		if !strings.Contains(f.logged(), "events cut: the client does not read them") {
			return errors.New("the stuck watcher is not cut")
		}
		return nil
	})
	emit("last")
	wg.Wait()
	if want := (n - 1) * int64(watchers-1); seen.Load() != want {
		t.Errorf("%d events were told, want each of %d to each of %d", seen.Load(), n-1, watchers-1)
	}
	stuck.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, stuck); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the stuck watcher's connection is still open")
	}
	faultTook(t, 36, fmt.Sprintf("one stuck watcher cut; the latest of %d events to %d others came", n-1, watchers-1), time.Duration(latest.Load()), 100*time.Millisecond)
}

// A manager that may open 256 files: clients are refused, the database is not.
func TestF39AManagerThatIsOutOfDescriptors(t *testing.T) {
	slowFault(t, "takes half a minute")
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	m := newManager(t, managerBinary(t), a.addr(), b.addr())
	m.args = append([]string{"--nofile=256", m.binary}, m.args...)
	m.binary = "prlimit"
	m.start(t)
	m.ready(t)
	f := &front{addr: m.addr} // to ask with
	id := f.make(t, "box", sleepBody)
	kept, err := f.dialFrom(t, "127.0.0.9")
	if err != nil {
		t.Fatal(err)
	}
	if resp, _, err := askOn(kept, "/_ping"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("ping = %v, %v", resp, err)
	}
	// Streams take two descriptors each, idle connections one.
	var open []net.Conn
	served, refused, closed := 0, 0, 0
	for i := range 10_000 {
		c, err := f.dialFrom(t, fmt.Sprintf("127.0.2.%d", 1+i%200))
		if err != nil {
			closed++
			continue
		}
		open = append(open, c)
		c.SetDeadline(time.Now().Add(time.Second))
		resp, err := func() (*http.Response, error) {
			if i%4 > 0 {
				io.WriteString(c, "GET /containers/"+id+"/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n\r\n")
			} else {
				io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
			}
			return http.ReadResponse(bufio.NewReader(c), nil)
		}()
		switch {
		case err != nil:
			closed++
		case resp.StatusCode == http.StatusOK:
			served++
		case resp.StatusCode == http.StatusServiceUnavailable:
			refused++
		default:
			t.Errorf("answer = %s", resp.Status)
		}
	}
	t.Logf("%d served, %d refused, %d closed; %d files open", served, refused, closed, openCount(t, m))
	if served < 50 || refused == 0 {
		t.Errorf("%d of 10,000 were served and %d refused, want some of each", served, refused)
	}
	// Meanwhile the database works, and no engine is thought dead.
	for i := range 20 {
		body := fmt.Sprintf(`{"Image":"busybox","Labels":{"n":"%d"}}`, i)
		fmt.Fprintf(kept, "POST /containers/create?name=c%d HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
		resp, err := http.ReadResponse(bufio.NewReader(kept), nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusCreated {
			t.Errorf("create over a connection that was there before = %s %s", resp.Status, answer)
		}
	}
	began, spent := time.Now(), cpuTime(t, m)
	eventually(t, 20*time.Second, func() error { // longer than a probe
		if time.Since(began) < 12*time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	faultCount(t, 39, "CPU while full", int64(100*(cpuTime(t, m)-spent)/time.Since(began)), 10, "% of a core")
	if got := m.sql(t, "SELECT group_concat(state) FROM nodes"); got != "healthy,healthy" {
		t.Errorf("nodes are %s", got)
	}
	for _, c := range open {
		c.Close()
	}
	began = time.Now()
	eventually(t, 20*time.Second, func() error {
		status, answer, err := f.try("GET", "/containers/json?all=1", "")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("list = %d %s %v", status, answer, err)
		}
		return nil
	})
	faultTook(t, 39, "serves again", time.Since(began), 5*time.Second)
	for _, words := range []string{"unable to open", "state database", "node unhealthy"} {
		if strings.Contains(m.log.String(), words) {
			t.Errorf("the log says %q", words)
		}
	}
	faultHeld(t, 39, "of 10,000 connections under a limit of 256 files, "+strconv.Itoa(refused+closed)+" are refused; creates and the database work on")
	m.oracle(t, a.addr(), b.addr())
}

// cpuTime is what the manager has used so far.
func cpuTime(t testing.TB, m *manager) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int64
	for _, w := range words[11:13] { // utime, stime; in hundredths of a second
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// F73: a client's CA is taken away while it has a stream and an idle connection open.
func TestF73ACertificateThatIsTakenAway(t *testing.T) {
	t.Parallel()
	stays, goes := testCA(t), testCA(t)
	files := stays.server(t, "127.0.0.1")
	files.ca = filepath.Join(t.TempDir(), "clients.pem")
	trust := func(authorities ...*ca) {
		t.Helper()
		var text []byte
		for _, a := range authorities {
			pem, err := os.ReadFile(a.file)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, pem...)
		}
		writeFile(t, files.ca, string(text))
	}
	trust(stays, goes)
	f := newFront(t, newFakeEngine(t))
	source := certSourceOf(t, files)
	source.changed = func() { f.limits.recheck(source.admits) }
	reload := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go source.watch(ctx, reload)
	l, err := listen(t.Context(), "tcp://127.0.0.1:0", source.serverConfig(true), f.limits)
	if err != nil {
		t.Fatal(err)
	}
	log, _ := testLog()
	srv := newServer(f.api, log)
	go srv.Serve(l)
	defer srv.Close()
	dial := func(a *ca) (net.Conn, error) {
		config := certSourceOf(t, a.client(t, "someone")).clientConfig(true, "127.0.0.1")
		config.VerifyConnection = nil // the server's certificate is not the question here
		conn, err := tls.Dial("tcp", l.Addr().String(), config)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			conn.SetDeadline(time.Now().Add(5 * time.Minute))
			_, err = io.WriteString(conn, "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
		}
		if err == nil {
			var resp *http.Response
			if resp, err = http.ReadResponse(bufio.NewReader(conn), nil); err == nil && resp.StatusCode != http.StatusOK {
				err = errors.New(resp.Status)
			}
		}
		return conn, err
	}
	var streams []net.Conn // two that stay, two that go; the first of each with a stream
	for i, a := range []*ca{stays, stays, goes, goes} {
		conn, err := dial(a)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
			if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp, err)
			}
		}
		streams = append(streams, conn)
	}
	trust(stays)
	began := time.Now()
	reload <- struct{}{}
	for i, conn := range streams[2:] {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d of a client whose CA is gone: %v, want its end", i, err)
		}
	}
	faultTook(t, 73, "stream and idle connection of a client whose CA was taken away cut", time.Since(began), time.Minute)
	if _, err := dial(goes); err == nil {
		t.Error("a client whose CA is gone still gets in")
	}
	if resp, _, err := askOn(streams[1], "/_ping"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a client whose CA stays: %v, %v", resp, err)
	}
	f.make(t, "web", sleepBody)
	if _, err := streams[0].Read(make([]byte, 1)); err != nil {
		t.Errorf("the stream of a client whose CA stays: %v", err)
	}
}
