package main

import (
	"context"
	"net"
	"sync"
)

// heldConn is a client's connection. net/http writes an answer's header with the first
// 4 KiB, then the rest, then what ends a chunk: each is a system call, and wakes the
// client. While it is held, that waits to become one.
type heldConn struct {
	net.Conn
	mu   sync.Mutex
	held *[]byte // nil: it is not held
}

const holdRoom = 32 << 10 // more goes on at once, with what was held

var holdBuffers = sync.Pool{New: func() any { b := make([]byte, 0, holdRoom); return &b }}

func (c *heldConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return c.Conn.Write(p)
	}
	if len(*c.held)+len(p) <= holdRoom {
		*c.held = append(*c.held, p...)
		return len(p), nil
	}
	both := net.Buffers{*c.held, p}
	*c.held = (*c.held)[:0]
	if _, err := both.WriteTo(c.Conn); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *heldConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = holdBuffers.Get().(*[]byte)
}

// release writes what was held.
func (c *heldConn) release() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(*c.held) > 0 {
		_, err = c.Conn.Write(*c.held)
	}
	*c.held = (*c.held)[:0]
	holdBuffers.Put(c.held)
	c.held = nil
	return err
}

// heldKey holds in a request's context the connection that it came over.
type heldKey struct{}

// onePiece has what write writes towards the client go out at once.
func onePiece(ctx context.Context, write func() error) (err error) {
	if conn, ok := ctx.Value(heldKey{}).(*heldConn); ok {
		conn.hold()
		defer func() {
			if failed := conn.release(); err == nil {
				err = failed
			}
		}()
	}
	return write()
}
