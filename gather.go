package main

import (
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An engine writes each line of a log as a chunk and a packet of its own, and passing
// each on alone costs more than the engine takes to write it. So a stream is passed on
// when nothing more is there to be read; and when that was little fewSmall times in a
// row, within gatherTime of each other, what follows is left to gather for that long.
const (
	gatherTime = time.Millisecond
	smallPiece = 2 << 10
	fewSmall   = 4
)

// gatherConn is a connection whose reader hears when a read has to wait. It lies below
// TLS, where a read takes one record only.
type gatherConn struct {
	net.Conn
	ahead  func() error // called before a read that has to wait; nil: nobody wants to know
	bytes  int          // read since then
	small  int          // times in a row that they were few
	waited int64        // monotonic, when a read had to wait last
}

func (c *gatherConn) Read(p []byte) (int, error) {
	if c.ahead == nil {
		return c.Conn.Read(p)
	}
	n, err, there := readNow(c.Conn, p)
	if !there {
		if err := c.ahead(); err != nil {
			return 0, err
		}
		c.pause()
		n, err = c.Conn.Read(p)
	}
	c.bytes += n
	return n, err
}

// pause lets small pieces gather that come in quick succession.
func (c *gatherConn) pause() {
	now := monotonic()
	if c.bytes < smallPiece && now-c.waited < int64(gatherTime) {
		c.small++
	} else {
		c.small = 0
	}
	if c.small >= fewSmall {
		time.Sleep(gatherTime)
		now = monotonic()
	}
	c.bytes, c.waited = 0, now
}

// readNow reads what is there; false if that is nothing, or if an ordinary read has to
// find out.
func readNow(conn net.Conn, p []byte) (n int, err error, there bool) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, nil, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, nil, false
	}
	err = raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), p)
		there = err == nil
		return true
	})
	if !there || err != nil {
		return 0, nil, false
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF, true
	}
	return n, nil, true
}
