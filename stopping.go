package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// graceTime is how long calls under way may take after SIGTERM.
const graceTime = 8 * time.Second

// underway counts the requests that have begun, raw streams included: http.Server does
// not count those.
type underway struct {
	mu       sync.Mutex
	n        int
	stopping chan struct{} // closed when the manager is stopping
	idle     chan struct{} // closed when it is, and nothing is under way
}

func newUnderway() *underway {
	return &underway{stopping: make(chan struct{}), idle: make(chan struct{})}
}

// begin counts a request in until the function it returns is called.
func (u *underway) begin() (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.n--
		u.settle()
	}
}

func (u *underway) settle() {
	if u.n > 0 || !u.isStopping() {
		return
	}
	select {
	case <-u.idle:
	default:
		close(u.idle)
	}
}

func (u *underway) isStopping() bool {
	select {
	case <-u.stopping:
		return true
	default:
		return false
	}
}

// stop tells requests that come from now on that the manager is stopping. It returns how
// many are under way, and a channel that is closed when none is.
func (u *underway) stop() (n int, idle <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.isStopping() {
		close(u.stopping)
	}
	u.settle()
	return u.n, u.idle
}

// finish ends srv as SIGTERM wants it (FAULTS F45): nobody new gets in, a ping on a
// connection that is kept is told so, calls are finished and streams go on for the grace
// time, unless another signal comes.
func finish(ctx context.Context, srv *http.Server, u *underway, listeners []net.Listener, again <-chan os.Signal) (cut int) {
	for _, l := range listeners {
		l.Close()
	}
	_, idle := u.stop()
	grace := time.NewTimer(graceTime)
	defer grace.Stop()
	select {
	case <-idle:
		// Answers are on their way to clients; a moment is enough to write them.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		srv.Shutdown(ctx)
	case <-grace.C:
	case <-again:
	}
	srv.Close()
	cut, _ = u.stop()
	return cut
}
