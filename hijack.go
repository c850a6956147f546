package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// join takes over the client's connection and answers as the engine did; what
// follows are raw bytes both ways, those that came early first.
func (h *hijack) join(w http.ResponseWriter, engine net.Conn, fromEngine *bufio.Reader, resp *http.Response, switched bool) error {
	header := w.Header().Clone()
	header.Del("Connection")
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	defer client.Close()
	client.SetDeadline(time.Time{})
	copyAnswerHeaders(header, resp.Header)
	if switched {
		header.Set("Connection", "Upgrade")
		header.Set("Upgrade", h.protocol)
		for k, v := range resp.Header {
			if strings.HasPrefix(k, "Sec-Websocket-") {
				header[k] = v
			}
		}
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n", resp.StatusCode, http.StatusText(resp.StatusCode))
	header.Write(&head)
	head.WriteString("\r\n")
	if _, err := io.WriteString(client, head.String()); err != nil {
		return nil
	}
	s := &session{client: client, engine: engine, ended: h.ended}
	s.run(buffered.Reader, fromEngine)
	return nil
}

const (
	// An end that has not acknowledged what it was sent for this long has gone.
	// TCP_USER_TIMEOUT would say so too, but it also cuts off an end that lives and
	// does not read for a while, such as a container that is busy.
	deadAfter = time.Minute
	deadLooks = 15 * time.Second
	// lastInput is how long a client may pause once the engine has ended its output:
	// it has been told, and engines read no more, but its last bytes still go there.
	lastInput = 10 * time.Second
)

// session is a raw stream between a client and an engine.
type session struct {
	client, engine net.Conn
	ended          func() // after the last output, before the client sees the end; may be nil
	outputOver     atomic.Bool
}

// run copies both ways until both directions have ended, or one end has gone.
func (s *session) run(fromClient, fromEngine io.Reader) {
	if tc := tcpConn(s.client); tc != nil {
		tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 3})
	}
	over, inputOver := make(chan struct{}), make(chan struct{})
	defer close(over)
	go s.watch(over)
	go func() {
		defer close(inputOver)
		s.input(fromClient)
	}()
	s.output(fromEngine)
	<-inputOver
}

// input passes on what the client sends, and then its half-close.
func (s *session) input(from io.Reader) {
	readErr, writeErr := copyUntil(s.engine, from, func() {
		if s.outputOver.Load() {
			s.lastInput()
		}
	})
	if readErr != nil { // the client has gone, or had its time
		s.engine.Close()
		return
	}
	if writeErr == nil {
		closeWrite(s.engine)
	}
	// From here on no read would tell that the client has gone.
	go func() {
		if gone(s.client) {
			s.engine.Close()
		}
	}()
}

// output passes on what the engine sends. A reset counts as its end: an engine that
// closes before it has read all input causes one, and no output may be lost for it.
func (s *session) output(from io.Reader) {
	_, writeErr := copyUntil(s.client, from, nil)
	if s.ended != nil {
		s.ended()
	}
	if writeErr != nil { // the client has gone
		s.engine.Close()
		s.client.Close()
		return
	}
	s.outputOver.Store(true)
	s.lastInput()
	closeWrite(s.client)
}

func (s *session) lastInput() {
	deadline := time.Now().Add(lastInput)
	s.client.SetReadDeadline(deadline)
	s.engine.SetWriteDeadline(deadline)
}

// watch ends the session when one of its ends is dead.
func (s *session) watch(over <-chan struct{}) {
	tick := time.NewTicker(deadLooks)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			if dead(s.client) || dead(s.engine) {
				s.client.Close()
				s.engine.Close()
				return
			}
		}
	}
}

// copyUntil copies to the end of from, or the first error, and tells the two sides'
// errors apart. before is called ahead of each read, unless it is nil.
func copyUntil(to io.Writer, from io.Reader, before func()) (readErr, writeErr error) {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	for {
		if before != nil {
			before()
		}
		n, err := from.Read(buf[:])
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// closeWrite ends one direction; the other goes on.
func closeWrite(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite()
		return
	}
	c.Close()
}

// plainConn is the socket below TLS and the count of connections.
func plainConn(c net.Conn) net.Conn {
	for {
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = t.NetConn()
	}
}

func tcpConn(c net.Conn) *net.TCPConn {
	tc, _ := plainConn(c).(*net.TCPConn)
	return tc
}

// dead tells whether the other end of c has acknowledged nothing for deadAfter
// though there are bytes for it. One that only does not read answers the kernel's
// probes. An idle connection is the keep-alive's to judge.
func dead(c net.Conn) bool {
	tc := tcpConn(c)
	if tc == nil {
		return false
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return false
	}
	found := false
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		found = err == nil && (info.Unacked > 0 || info.Notsent_bytes > 0) &&
			time.Duration(info.Last_ack_recv)*time.Millisecond > deadAfter
	})
	return found
}

// gone waits until the other end of c has closed both directions or has reset the
// connection; false if c is closed first. A read cannot tell: it ends the same way
// for an end that has closed its own direction only and waits for output. Nor can
// the kernel at once, if that end had no output left unread: then its probes are
// answered as long as a half-closed socket is kept there, a minute on Linux.
func gone(c net.Conn) bool {
	sc, ok := plainConn(c).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	found := false
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		found = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		return found
	})
	return err == nil && found
}
