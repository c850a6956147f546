package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// upstream keeps connections to an engine for reads without a body. They are
// written and read by the goroutine that asks: http.Transport hands each call to
// two goroutines of its own, which costs a proxied inspect half of its time.
type upstream struct {
	mu   sync.Mutex
	idle []*upstreamConn // the one used last is at the end
}

type upstreamConn struct {
	net.Conn
	in     *bufio.Reader
	header int   // bytes that may still come before the header is whole; below 0: it is
	used   int64 // monotonic nanoseconds
}

// Read bounds an answer's header.
func (c *upstreamConn) Read(p []byte) (int, error) {
	if c.header == 0 {
		return 0, fmt.Errorf("the answer's header is over %d MiB", maxHeader>>20)
	}
	if c.header > 0 && len(p) > c.header {
		p = p[:c.header]
	}
	n, err := c.Conn.Read(p)
	if c.header > 0 {
		c.header -= n
	}
	return n, err
}

const (
	maxIdle  = 8
	idleTime = 5 * time.Second // an open file each, so they do not wait for long

	// quietBuffer is for what is open to every node all the time and says little: its
	// stream of events. An event is some 500 bytes.
	quietBuffer = 1 << 10
)

// take returns an idle connection, nil if there is none that is fresh.
func (u *upstream) take() *upstreamConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle) == 0 {
		return nil
	}
	last := len(u.idle) - 1
	c := u.idle[last]
	u.idle[last], u.idle = nil, u.idle[:last]
	if monotonic()-c.used < int64(idleTime) {
		return c
	}
	c.Close()
	u.closeIdle(0)
	return nil
}

// put keeps a connection for the next read.
func (u *upstream) put(c *upstreamConn) {
	c.used = monotonic()
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle) >= maxIdle {
		c.Close()
		return
	}
	u.idle = append(u.idle, c)
	if len(u.idle) == 1 {
		time.AfterFunc(idleTime, u.expire)
	}
}

// expire closes what was idle for too long, as long as anything is idle.
func (u *upstream) expire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closeIdle(idleTime)
	if len(u.idle) > 0 {
		time.AfterFunc(idleTime, u.expire)
	}
}

// closeIdle closes connections that were idle for at least age.
func (u *upstream) closeIdle(age time.Duration) {
	kept := u.idle[:0]
	for _, c := range u.idle {
		if monotonic()-c.used >= int64(age) {
			c.Close()
			continue
		}
		kept = append(kept, c)
	}
	clear(u.idle[len(kept):]) // or the closed ones' buffers stay for as long as the engine
	if u.idle = kept; len(kept) == 0 {
		u.idle = nil
	}
}

func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closeIdle(0)
}

// read sends a request without a body and waits up to readWait for the header of
// the answer. The caller closes the body; a connection whose answer was read to
// its end is kept.
// An endless answer has a connection of its own and may be silent for any time.
func (e *engine) read(req *http.Request, endless bool) (*http.Response, error) {
	fail := func(sent bool, err error) error {
		timeout := errors.Is(err, os.ErrDeadlineExceeded) && req.Context().Err() == nil
		if timeout {
			e.timeouts.Add(1)
			err = errNoAnswer
		}
		if req.Context().Err() == nil {
			e.doubt()
		}
		return &engineError{e.nodeName(), req.Method + " " + req.URL.Path, sent, timeout, err}
	}
	var head strings.Builder
	head.WriteString(req.Method + " " + req.URL.RequestURI() + " HTTP/1.1\r\nHost: " + req.URL.Host + "\r\n")
	req.Header.Write(&head)
	head.WriteString("\r\n")
	for {
		var conn *upstreamConn
		if !endless {
			conn = e.reads.take()
		}
		reused := conn != nil
		if !reused {
			fresh, err := e.dial(req.Context())
			if err != nil {
				return nil, fail(false, err)
			}
			conn = &upstreamConn{Conn: fresh}
			size := 4 << 10 // large pieces go past it
			if endless {
				size = quietBuffer
			}
			conn.in = bufio.NewReaderSize(conn, size)
		}
		conn.header = maxHeader
		// A client that leaves ends the call.
		stop := context.AfterFunc(req.Context(), func() { conn.SetDeadline(time.Unix(1, 0)) })
		conn.SetDeadline(time.Now().Add(readWait))
		_, err := io.WriteString(conn, head.String())
		if err == nil {
			_, err = conn.in.Peek(1)
		}
		var resp *http.Response
		if err == nil {
			resp, err = http.ReadResponse(conn.in, req)
		} else if reused && !errors.Is(err, os.ErrDeadlineExceeded) {
			// The engine closed it while it was idle. Asking again for a read does no harm.
			stop()
			conn.Close()
			continue
		}
		if err != nil {
			stop()
			conn.Close()
			return nil, fail(true, err)
		}
		e.answered()
		e.timeouts.Store(0)
		conn.header = -1
		if endless {
			conn.SetDeadline(time.Time{})
			if req.Context().Err() != nil {
				conn.SetDeadline(time.Unix(1, 0)) // its end has set this just before it was put off
			}
		}
		resp.Body = &upstreamBody{ReadCloser: resp.Body, engine: e, conn: conn, ctx: req.Context(), stop: stop, endless: endless,
			keep: !endless && !resp.Close && resp.StatusCode >= 200, ended: req.Method == http.MethodHead || resp.ContentLength == 0}
		return resp, nil
	}
}

// upstreamBody gives its connection back when the answer was read to its end.
type upstreamBody struct {
	io.ReadCloser
	engine      *engine
	conn        *upstreamConn
	ctx         context.Context
	stop        func() bool
	keep, ended bool
	endless     bool
	closed      bool
}

// Read waits up to readWait for each piece, unless the answer is endless.
func (b *upstreamBody) Read(p []byte) (int, error) {
	if b.endless {
		return b.ReadCloser.Read(p)
	}
	b.conn.SetDeadline(time.Now().Add(readWait))
	if b.ctx.Err() != nil {
		return 0, b.ctx.Err() // its end may have set a deadline that has just been put off
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended = true
	}
	return n, err
}

// Close must not read on: an endless answer would never let go.
func (b *upstreamBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if b.stop() && b.keep && b.ended && b.conn.in.Buffered() == 0 {
		b.engine.reads.put(b.conn)
		return nil
	}
	return b.conn.Close()
}

// buildStreams are the builds, sessions and gRPC connections open to an engine.
// BuildKit sets tags that no request names, on 20.10 without an event, so an engine
// that has some open, or had a moment ago, is asked before a tag is believed.
type buildStreams struct {
	mu     sync.Mutex
	open   int
	grpc   map[string]int // clients' open gRPC connections
	closed int64          // monotonic, when the last stream was; 0: never
}

// recentBuild is how long after the end of its last stream an engine counts as building.
const recentBuild = 5 * time.Second

// begin counts a stream in until the function it returns is called. grpc is the
// client of a gRPC connection, "" for other streams.
func (b *buildStreams) begin(grpc string) (end func()) {
	count := func(n int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.open += n
		b.closed = monotonic()
		if grpc == "" {
			return
		}
		if b.grpc == nil {
			b.grpc = map[string]int{}
		}
		if b.grpc[grpc] += n; b.grpc[grpc] == 0 {
			delete(b.grpc, grpc)
		}
	}
	count(1)
	return func() { count(-1) }
}

// hasGRPC tells whether the client has a gRPC connection open.
func (b *buildStreams) hasGRPC(client string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.grpc[client] > 0
}

// building tells whether a build may have set tags that we have not heard of.
func (e *engine) building() bool {
	b := &e.builds
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open > 0 || b.closed > 0 && monotonic()-b.closed < int64(recentBuild)
}
