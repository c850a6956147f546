package main

import (
	"io"
	"net"
	"sync"
	"testing"
)

// chaosRelay stands between the manager and an engine, for the faults of a network
// (FAULTS 2.1). What it does to connections it does to those that are open too.
type chaosRelay struct {
	target string
	listen net.Listener

	mu      sync.Mutex
	changed chan struct{} // closed when a switch is turned
	conns   map[*chaosConn]bool
	refused bool // connections are reset as soon as they come
	toEnd   flow // what happens to bytes towards the engine
	back    flow // and to its answers
	done    sync.WaitGroup
}

// flow is what happens to one direction.
type flow int

const (
	passes flow = iota
	stalls      // bytes wait here, as those of a partition do: what is sent again arrives when it heals
	vanish      // bytes are taken and never arrive
)

type chaosConn struct {
	client, engine net.Conn
	once           sync.Once
	closed         chan struct{}
}

// reset ends both sides at once, with an RST.
func (c *chaosConn) reset() {
	for _, side := range []net.Conn{c.client, c.engine} {
		if tcp, ok := side.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
	}
	c.close()
}

func (c *chaosConn) close() {
	c.once.Do(func() {
		close(c.closed)
		c.client.Close()
		if c.engine != nil {
			c.engine.Close()
		}
	})
}

// newChaosRelay passes everything to the engine at target until told otherwise.
func newChaosRelay(t testing.TB, target string) *chaosRelay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &chaosRelay{target: target, listen: l, changed: make(chan struct{}), conns: map[*chaosConn]bool{}}
	r.done.Go(r.accept)
	t.Cleanup(func() {
		l.Close()
		r.turn(func() { r.refused = true })
		r.drop()
		r.done.Wait()
	})
	return r
}

func (r *chaosRelay) addr() string { return r.listen.Addr().String() }

// turn changes switches and wakes what waits for them.
func (r *chaosRelay) turn(set func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set()
	close(r.changed)
	r.changed = make(chan struct{})
}

// pass ends every fault. What was held back arrives late.
func (r *chaosRelay) pass() {
	r.turn(func() { r.toEnd, r.back, r.refused = passes, passes, false })
}

// stall is a partition: connections are taken, nothing goes through, nothing is closed.
func (r *chaosRelay) stall() { r.turn(func() { r.toEnd, r.back = stalls, stalls }) }

// loseAnswers cuts one direction: requests arrive, answers do not until it heals.
func (r *chaosRelay) loseAnswers() { r.turn(func() { r.back = stalls }) }

// refuse resets what comes, and what is open.
func (r *chaosRelay) refuse() {
	r.turn(func() { r.refused = true })
	r.drop()
}

// drop resets the connections that are open.
func (r *chaosRelay) drop() {
	for _, c := range r.open() {
		c.reset()
	}
}

// eof ends the engine's side of the connections that are open, in good order.
func (r *chaosRelay) eof() {
	for _, c := range r.open() {
		c.close()
	}
}

// halfOpen has the engine's side of every open connection gone without a word: the
// manager's side stays open, takes what is sent and is never closed or answered.
func (r *chaosRelay) halfOpen() {
	r.turn(func() { r.toEnd, r.back = vanish, vanish })
	for _, c := range r.open() {
		c.engine.Close()
	}
}

func (r *chaosRelay) open() []*chaosConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*chaosConn
	for c := range r.conns {
		list = append(list, c)
	}
	return list
}

func (r *chaosRelay) accept() {
	for {
		client, err := r.listen.Accept()
		if err != nil {
			return
		}
		c := &chaosConn{client: client, closed: make(chan struct{})}
		r.mu.Lock()
		refused := r.refused
		r.mu.Unlock()
		if !refused {
			c.engine, err = net.Dial("tcp", r.target)
		}
		if refused || err != nil {
			c.reset()
			continue
		}
		r.mu.Lock()
		r.conns[c] = true
		r.mu.Unlock()
		r.done.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { r.pump(c, c.engine, c.client, &r.toEnd) })
			both.Go(func() { r.pump(c, c.client, c.engine, &r.back) })
			both.Wait()
			r.mu.Lock()
			delete(r.conns, c)
			r.mu.Unlock()
			c.close()
		})
	}
}

// pump moves one direction until it ends.
func (r *chaosRelay) pump(c *chaosConn, to, from net.Conn, how *flow) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		switch r.await(c, how) {
		case stalls: // closed meanwhile
			return
		case vanish:
			if err != nil {
				return // its end vanishes as well
			}
			continue
		}
		if _, e := to.Write(buf[:n]); e != nil {
			c.reset()
			return
		}
		if err == io.EOF {
			closeWrite(to)
			return
		}
		if err != nil {
			c.reset()
			return
		}
	}
}

// await holds a piece back as the switches say, and tells what to do with it then.
func (r *chaosRelay) await(c *chaosConn, how *flow) flow {
	for {
		r.mu.Lock()
		now, changed := *how, r.changed
		r.mu.Unlock()
		if now != stalls {
			return now
		}
		select {
		case <-changed:
		case <-c.closed:
			return stalls
		}
	}
}
