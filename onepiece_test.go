package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// countingListener counts what is written to its connections, in system calls.
type countingListener struct {
	net.Listener
	writes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return countingConn{conn, l.writes}, err
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// An answer that net/http would write with its header, then the rest, and a line of a
// log that it would write as the chunk's head, its bytes and its end.
func TestAnAnswerGoesToTheClientInOnePiece(t *testing.T) {
	t.Parallel()
	const line = 5000 // more than net/http holds
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	more := make(chan struct{})
	e.override("GET", "/logs$", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range more {
			fmt.Fprintf(conn, "%x\r\n%s\r\n", line, strings.Repeat("x", line))
		}
		io.WriteString(conn, "0\r\n\r\n")
	})
	inspected := fmt.Sprintf(`{"Id":%q,"Path":%q}`, id, strings.Repeat("p", line))
	e.override("GET", "/containers/[^/]+/json$", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, inspected)
	})
	var writes atomic.Int64
	l := listenLocal(t)
	srv := newServer(f.api, f.log)
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(f.limits.listener(countingListener{l, &writes}))
	}()
	t.Cleanup(func() { srv.Close(); <-served })
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(conn)
	ask := func(path string) *http.Response {
		t.Helper()
		fmt.Fprintf(conn, "GET /v1.41/containers/%s%s HTTP/1.1\r\nHost: docker\r\n\r\n", id, path)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v %v", path, resp, err)
		}
		return resp
	}
	resp := ask("/json")
	if data, err := io.ReadAll(resp.Body); err != nil || !bytes.HasPrefix(data, []byte(inspected[:len(inspected)-1])) {
		t.Errorf("inspect = %.80s (%v), want the engine's %.80s", data, err, inspected)
	}
	if n := writes.Load(); n != 1 {
		t.Errorf("inspect went to the client in %d pieces, want 1", n)
	}
	resp = ask("/logs?stdout=1&follow=1")
	before := writes.Load()
	for i := range int64(3) {
		more <- struct{}{}
		if _, err := io.ReadFull(resp.Body, make([]byte, line)); err != nil {
			t.Fatal(err)
		}
		if n := writes.Load() - before; n != i+1 {
			t.Errorf("%d lines went to the client in %d pieces", i+1, n)
		}
	}
	close(more)
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("behind the last line: %q, %v", rest, err)
	}
}

// recordingConn keeps what is written, each in its own piece; it fails once broken is set.
type recordingConn struct {
	net.Conn
	pieces []string
	broken bool
}

func (c *recordingConn) Write(p []byte) (int, error) {
	if c.broken {
		return 0, net.ErrClosed
	}
	c.pieces = append(c.pieces, string(p))
	return len(p), nil
}

func TestHeldWritesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	to := &recordingConn{}
	c := &heldConn{Conn: to}
	large := strings.Repeat("L", holdRoom)
	for _, p := range []string{"a", "(hold)", "b", "c", large, "d", "(release)", "e", "(hold)", "(release)"} {
		switch p {
		case "(hold)":
			c.hold()
		case "(release)":
			if err := c.release(); err != nil {
				t.Fatal(err)
			}
		default:
			if n, err := io.WriteString(c, p); n != len(p) || err != nil {
				t.Fatalf("write = %d, %v", n, err)
			}
		}
	}
	if got, want := strings.Join(to.pieces, "|"), "a|bc|"+large+"|d|e"; got != want {
		t.Errorf("written in pieces of %.40q…, want %.40q…", got, want)
	}
	c.hold()
	io.WriteString(c, "lost")
	to.broken = true
	if err := c.release(); err == nil {
		t.Error("what was held and could not be written is no error")
	}
}
