package main

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/base32"
	"encoding/hex"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// fakeAnswer is the answer to one request, with its cut or drop.
type fakeAnswer struct {
	http.ResponseWriter
	conn *fakeConn
	drop bool
	left int64 // body bytes until the cut; -1: none
}

func (a *fakeAnswer) WriteHeader(status int) {
	if !a.drop {
		a.ResponseWriter.WriteHeader(status)
	}
}

func (a *fakeAnswer) Write(p []byte) (int, error) {
	if a.drop {
		return len(p), nil
	}
	if a.left < 0 {
		return a.ResponseWriter.Write(p)
	}
	if int64(len(p)) < a.left {
		a.left -= int64(len(p))
		return a.ResponseWriter.Write(p)
	}
	_, _ = a.ResponseWriter.Write(p[:a.left])
	a.Flush()
	a.conn.reset()
	panic(http.ErrAbortHandler)
}

// Flush sends what was written.
func (a *fakeAnswer) Flush() {
	if !a.drop {
		_ = http.NewResponseController(a.ResponseWriter).Flush()
	}
}

// Hijack is for hooks; handlers use fakeCall.hijack.
func (a *fakeAnswer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(a.ResponseWriter).Hijack()
}

// fakeConnKey finds the connection in a request's context.
type fakeConnKey struct{}

// fakeConn is a connection that the engine counts and can silence.
type fakeConn struct {
	net.Conn
	e      *fakeEngine
	left   atomic.Int64 // bytes until the reset; -1: none. For upgraded streams
	closed chan struct{}
	once   sync.Once
}

// fakeListener makes the connections of an engine.
type fakeListener struct {
	net.Listener
	e *fakeEngine
}

func (l fakeListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &fakeConn{Conn: inner, e: l.e, closed: make(chan struct{})}
	conn.left.Store(-1)
	l.e.mu.Lock()
	l.e.conns[conn] = true
	l.e.mu.Unlock()
	return conn, nil
}

// fakeConnOf finds the counted connection below TLS.
func fakeConnOf(conn any) (*fakeConn, bool) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	counted, ok := conn.(*fakeConn)
	return counted, ok
}

// Write waits while the engine hangs.
func (c *fakeConn) Write(p []byte) (int, error) {
	c.e.awaitAwake(c.closed)
	left := c.left.Load()
	if left < 0 {
		return c.Conn.Write(p)
	}
	if int64(len(p)) < left {
		c.left.Add(-int64(len(p)))
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:left])
	c.reset()
	return n, net.ErrClosed
}

func (c *fakeConn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
		c.e.mu.Lock()
		delete(c.e.conns, c)
		c.e.mu.Unlock()
	})
	return err
}

// CloseWrite ends our direction only.
func (c *fakeConn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// reset closes the connection so that the other side gets an RST.
func (c *fakeConn) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// fakeID is 64 random hex digits.
func fakeID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// fakeEngineID looks like GXNB:A64G:…, twelve groups of four.
func fakeEngineID() string {
	b := make([]byte, 30)
	_, _ = rand.Read(b)
	text := base32.StdEncoding.EncodeToString(b)
	var groups []string
	for ; len(text) >= 4; text = text[4:] {
		groups = append(groups, text[:4])
	}
	return strings.Join(groups, ":")
}
