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
// when nothing more is there to be read; and once that was little fewSmall times in a
// row, within quickly of each other, what follows is left to gather each time, as long
// as it comes to more than smallPiece: for as long as gatherRoom is likely to take, within bounds.
const (
	quickly     = time.Millisecond
	gatherLeast = 200 * time.Microsecond
	gatherMost  = time.Millisecond // by so much a line of a fast log may be late
	smallPiece  = 2 << 10
	fewSmall    = 4
	gatherRoom  = 64 << 10
)

// gatherConn is a connection whose reader hears when a read has to wait. It lies below
// TLS, where a read takes one record only.
type gatherConn struct {
	net.Conn
	ahead     func() error // called before a read that has to wait; nil: nobody wants to know
	drained   bool         // the last read took all that was there
	last      int64        // monotonic, when it was
	small     int          // reads in a row that did so, took little, and followed each other quickly
	gathering bool
	gathered  int // bytes, since it was waited for last
	pause     time.Duration
	room      []byte // while gathering: few of its readers ask for much at a time
	held      []byte // in room, read and not handed out yet
}

func (c *gatherConn) Read(p []byte) (int, error) {
	if len(c.held) > 0 {
		n := copy(p, c.held)
		c.held = c.held[n:]
		return n, nil
	}
	if c.ahead == nil {
		return c.Conn.Read(p)
	}
	if c.gathering && c.drained { // a line may be there by now, and soon there are many
		if err := c.ahead(); err != nil {
			return 0, err
		}
		if c.gathered < smallPiece {
			c.gathering, c.small, c.room, c.pause = false, 0, nil, 0
		} else {
			c.pause = nextPause(c.pause, c.gathered)
			pause := unix.NsecToTimespec(int64(c.pause)) // Go's own timers are up to a millisecond late
			unix.Nanosleep(&pause, nil)
		}
		c.gathered = 0
	}
	if !c.gathering {
		return c.read(p)
	}
	n, err := c.read(c.room)
	c.held = c.room[:n]
	n = copy(p, c.held)
	c.held = c.held[n:]
	return n, err
}

func (c *gatherConn) read(p []byte) (int, error) {
	n, err, there := readNow(c.Conn, p)
	if !there {
		if err := c.ahead(); err != nil {
			return 0, err
		}
		n, err = c.Conn.Read(p)
	}
	now := monotonic()
	c.drained = n < len(p)
	switch quick := now-c.last < int64(quickly); {
	case c.gathering:
		c.gathered += n
	case !quick || !c.drained || n >= smallPiece:
		c.small = 0
	default:
		if c.small++; c.small >= fewSmall {
			c.gathering, c.gathered, c.room = true, smallPiece, make([]byte, gatherRoom)
		}
	}
	c.last = now
	return n, err
}

// nextPause follows one that brought so many bytes; 0: there was none yet.
func nextPause(last time.Duration, gathered int) time.Duration {
	return max(gatherLeast, min(gatherMost, last*gatherRoom/time.Duration(gathered)))
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
