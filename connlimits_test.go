package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dialFrom opens a connection to the front from an address of loopback, as another
// client would; it ends with the test at the latest.
func (f *front) dialFrom(t testing.TB, ip string) (net.Conn, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", f.addr)
	if err == nil {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(2 * time.Minute))
	}
	return c, err
}

// askOn sends one GET over a connection and reads its answer.
func askOn(c net.Conn, path string) (resp *http.Response, body string, err error) {
	if _, err = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: docker\r\n\r\n"); err != nil {
		return nil, "", err
	}
	if resp, err = http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		return nil, "", err
	}
	data, err := io.ReadAll(resp.Body)
	return resp, string(data), err
}

// S21
func TestConnectionsOverALimitAreTold(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	f.limits.mu.Lock()
	f.limits.each, f.limits.total = 20, 50
	f.limits.mu.Unlock()
	dial := func(ip string) net.Conn {
		t.Helper()
		c, err := f.dialFrom(t, ip)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	refused := func(c net.Conn, words string) {
		t.Helper()
		resp, body, err := askOn(c, "/_ping")
		if err != nil {
			t.Fatalf("a connection over a limit: %v", err)
		}
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !resp.Close || !strings.Contains(message(body), words) {
			t.Errorf("a connection over a limit = %s %q %s, want 503 with Retry-After that says %q", resp.Status, resp.Header, body, words)
		}
	}
	served := func(c net.Conn) {
		t.Helper()
		if resp, body, err := askOn(c, "/_ping"); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("a connection below the limits = %v %s, %v", resp, body, err)
		}
	}
	var open []net.Conn
	for range 20 {
		open = append(open, dial("127.0.0.2"))
	}
	refused(dial("127.0.0.2"), "over 20 connections from 127.0.0.2")
	served(open[19])
	served(dial("127.0.0.3"))
	for range 19 {
		dial("127.0.0.3")
	}
	for range 10 {
		dial("127.0.0.4")
	}
	refused(dial("127.0.0.5"), "over 50 connections")
	// One that asks nothing is not waited for: those beyond the refused are closed.
	for range 2 * maxRefusals {
		dial("127.0.0.6")
	}
	last := dial("127.0.0.6")
	if n, err := last.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection far over the limit got %d bytes, want it closed", n)
	}
	for _, c := range open {
		c.Close()
	}
	eventually(t, 20*time.Second, func() error {
		f.limits.mu.Lock()
		defer f.limits.mu.Unlock()
		if f.limits.open != 30 || f.limits.by["127.0.0.2"] != 0 {
			return fmt.Errorf("%d connections are counted, want 30", f.limits.open)
		}
		return nil
	})
	served(dial("127.0.0.2"))
}

func TestLimitsLeaveDescriptorsToTheRest(t *testing.T) {
	t.Parallel()
	if l := newConnLimits(100_000_000); l.total != fewestClients {
		t.Errorf("total = %d where nodes need all descriptors, want %d", l.total, fewestClients)
	}
	if l := newConnLimits(0); l.total < fewestClients || l.total > maxConns {
		t.Errorf("total = %d", l.total)
	}
}

// Nodes come while the manager runs: from the DNS, the file, by node add.
func TestLimitsFollowTheNumberOfNodes(t *testing.T) {
	t.Parallel()
	l := newConnLimits(0)
	few := l.total
	l.leaveTo(100_000_000)
	if l.total != fewestClients {
		t.Errorf("total = %d when nodes need all descriptors, want %d", l.total, fewestClients)
	}
	dns, e := newDNSServer(t), newFakeEngine(t, hostNamed("a"))
	f := newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), dns)
	f.sources.limits = l
	commandOK(t, "tcp://"+e.addr(), "node", "add", "-H", f.addr, e.addr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if want := max(fewestClients, few-2*keptPerNode); l.total < want || l.total > few {
		t.Errorf("total = %d with one node, want %d or so", l.total, want)
	}
}

// A client that sends a body by and by may take any time, one that stops may not.
func TestABodyThatStallsBreaksOff(t *testing.T) {
	t.Parallel()
	read := make(chan error, 2)
	f := newFront(t, newFakeEngine(t))
	f.api.router = f.api.route([]route{{"POST", "/read", func(_ *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
		call.body.stalls(2 * time.Second)
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
		return writeJSON(w, "read")
	}}})
	w := f.wire(t)
	w.send("POST /read HTTP/1.1\r\nHost: docker\r\nContent-Length: 8\r\n\r\n")
	for range 8 {
		time.Sleep(300 * time.Millisecond) // a slow client; together more than one piece may take
		w.send("x")
	}
	if err := within(t, read, 20*time.Second); err != nil {
		t.Errorf("a slow body = %v", err)
	}
	if resp := w.answer(); resp.StatusCode != http.StatusOK {
		t.Errorf("a slow body is answered %s", resp.Status)
	}
	w = f.wire(t)
	w.send("POST /read HTTP/1.1\r\nHost: docker\r\nContent-Length: 8\r\n\r\nxxx")
	if err := within(t, read, 20*time.Second); err == nil {
		t.Error("a body that stalls was read to its end")
	}
}
