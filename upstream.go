package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
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
	plain  *gatherConn   // below TLS
	in     *bufio.Reader // nil while it is idle
	header int           // bytes that may still come before the header is whole; below 0: it is
	used   int64         // monotonic nanoseconds
	until  time.Time     // its deadline; zero: none
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

	// waitStep is by how much a deadline may be early: setting one for each step of a
	// call costs more than what it takes to read it.
	waitStep = time.Second

	// readBuffer takes the answer to an inspect with one system call.
	readBuffer = 16 << 10
	// quietBuffer is for what is open to every node all the time and says little: its
	// stream of events. An event is some 500 bytes.
	quietBuffer = 1 << 10
)

// readBuffers are for connections in use.
var readBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

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
		c.buffer()
		return c
	}
	c.Close()
	u.closeIdle(0)
	return nil
}

func (c *upstreamConn) buffer() {
	c.in = readBuffers.Get().(*bufio.Reader)
	c.in.Reset(c)
}

// put keeps a connection for the next read. Nothing that came over it is left in its buffer.
func (u *upstream) put(c *upstreamConn) {
	c.in.Reset(nil)
	readBuffers.Put(c.in)
	c.in, c.used = nil, monotonic()
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

// read sends a request without a body and waits for the header of the answer, and for
// each piece of it, as long as p allows. The caller closes the body; a connection whose
// answer was read to its end is kept, but for one with an endless answer.
func (e *engine) read(req *http.Request, p patience) (*http.Response, error) {
	ctx, cancel := req.Context(), func(error) {}
	if p == forever {
		ctx, cancel = context.WithCancelCause(ctx)
	}
	fail := func(sent bool, err error) error {
		timeout := errors.Is(err, os.ErrDeadlineExceeded) && req.Context().Err() == nil
		cancel(nil)
		if timeout {
			e.timeouts.Add(1)
			err = errNoAnswer
		}
		if req.Context().Err() == nil {
			e.doubt()
		}
		return &engineError{e.nodeName(), req.Method + " " + req.URL.Path, sent, timeout, err}
	}
	var head bytes.Buffer
	head.WriteString(req.Method + " " + req.URL.RequestURI() + " HTTP/1.1\r\nHost: " + req.URL.Host + "\r\n")
	req.Header.Write(&head)
	head.WriteString("\r\n")
	if p == forever {
		waiting, answered := context.WithCancel(ctx)
		defer answered()
		defer time.AfterFunc(writeWait, func() { e.outlive(waiting, cancel, p) }).Stop()
	}
	for {
		var conn *upstreamConn
		if p != endless {
			conn = e.reads.take()
		}
		reused := conn != nil
		if !reused {
			var err error
			if conn, err = e.dialUpstream(ctx); err != nil {
				return nil, fail(false, err)
			}
			if p == endless {
				conn.in = bufio.NewReaderSize(conn, quietBuffer)
			} else {
				conn.buffer()
			}
		}
		conn.header = maxHeader
		// A client that leaves ends the call.
		stop := func() bool { return true }
		if ctx.Done() != nil {
			stop = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		}
		conn.wait(ctx, p != forever)
		_, err := conn.Write(head.Bytes())
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
		conn.wait(ctx, p == read)
		resp.Body = &upstreamBody{ReadCloser: resp.Body, engine: e, conn: conn, ctx: ctx, cancel: cancel, stop: stop, silent: p != read,
			keep: p != endless && !resp.Close && resp.StatusCode >= 200, ended: req.Method == http.MethodHead || resp.ContentLength == 0}
		return resp, nil
	}
}

// dialUpstream opens a connection for reads.
func (e *engine) dialUpstream(ctx context.Context) (*upstreamConn, error) {
	plain, err := e.dialPlain(ctx)
	if err != nil {
		return nil, err
	}
	conn := &upstreamConn{plain: &gatherConn{Conn: plain}}
	if conn.Conn, err = e.secure(ctx, conn.plain); err != nil {
		return nil, err
	}
	return conn, nil
}

// wait gives what comes next readWait, or any time, as long as the call goes on.
func (c *upstreamConn) wait(ctx context.Context, limited bool) {
	var until time.Time
	if limited {
		until = time.Now().Add(readWait)
	}
	if until.Sub(c.until) >= waitStep || c.until.IsZero() != until.IsZero() {
		c.SetDeadline(until)
		c.until = until
	}
	if ctx.Err() != nil {
		c.SetDeadline(time.Unix(1, 0)) // its end has set this just before it was put off
	}
}

// upstreamBody gives its connection back when the answer was read to its end.
type upstreamBody struct {
	io.ReadCloser
	engine      *engine
	conn        *upstreamConn
	ctx         context.Context
	cancel      func(error)
	stop        func() bool
	keep, ended bool
	silent      bool // it may be, for any time
	closed      bool
}

// Read waits up to readWait for each piece, unless the answer may be silent.
func (b *upstreamBody) Read(p []byte) (int, error) {
	if !b.silent {
		b.conn.wait(b.ctx, true)
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended = true
	}
	return n, err
}

// beforeWaiting has f called before each read that has to wait for the engine, which
// fails if f does; nil ends that.
func (b *upstreamBody) beforeWaiting(f func() error) { b.conn.plain.ahead = f }

// Close must not read on: an endless answer would never let go.
func (b *upstreamBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	defer b.cancel(nil)
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
	all    *buildStreams // those of every engine, which these are among; nil: these are all
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
	endAll := func() {}
	if b.all != nil {
		endAll = b.all.begin("")
	}
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
	return func() {
		count(-1)
		endAll()
	}
}

// hasGRPC tells whether the client has a gRPC connection open.
func (b *buildStreams) hasGRPC(client string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.grpc[client] > 0
}

// recent tells whether a build may have set tags that we have not heard of.
func (b *buildStreams) recent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open > 0 || b.closed > 0 && monotonic()-b.closed < int64(recentBuild)
}
