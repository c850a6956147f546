package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// fleet is up to 10,000 simulated engines in one process: one listener for all of
// them, an address of 127.0.0.0/8 each. It says what a busy host says, in realistic
// sizes (a list entry of 1 KB, an inspect of 5 KB), as fast as it can be said: it is
// there to be measured against. For correctness there is fakeEngine.
type fleet struct {
	port     int
	nodes    []*fleetNode
	server   *http.Server
	served   chan struct{}
	requests sync.Map // what was asked, "POST create" → *atomic.Int64
	open     atomic.Int64
}

// fleetNode is one engine of a fleet, and its switches.
type fleetNode struct {
	fleet *fleet
	index int
	name  string
	id    string

	hung  atomic.Pointer[fakeGate] // accepts and does not answer
	delay atomic.Int64             // nanoseconds before each answer
	dead  atomic.Bool              // closes every connection
	dials atomic.Int64             // connections that came, also while dead

	mu         sync.Mutex
	containers []*fleetContainer // in order of creation
	byRef      map[string]*fleetContainer
	recent     []fleetEvent
	watchers   map[*fleetWatcher]bool
	lastTime   time.Time
}

const (
	maxFleet    = 10_000
	fleetCPUs   = 32
	fleetMemory = 128 << 30
	fleetRecent = 64 // past events that a node keeps
)

// newFleet starts n engines with perNode running containers each. Port 0 picks one.
func newFleet(n, perNode, port int) (*fleet, error) {
	if n < 1 || n > maxFleet {
		return nil, fmt.Errorf("a fleet of %d engines: expected 1 to %d", n, maxFleet)
	}
	f := &fleet{served: make(chan struct{})}
	now := time.Now()
	for i := range n {
		node := &fleetNode{fleet: f, index: i, name: fmt.Sprintf("sim-%05d", i), id: fakeEngineID(),
			byRef: map[string]*fleetContainer{}, watchers: map[*fleetWatcher]bool{}}
		for k := range perNode {
			c := node.add(fmt.Sprintf("old-%05d-%d", i, k), &fleetCreate{Image: "busybox", Labels: map[string]string{
				"com.docker.compose.project": fmt.Sprintf("shop-%d", k%7), "com.docker.compose.service": "web", "org.opencontainers.image.title": "a shop"}})
			c.created = now.Add(-time.Duration(perNode-k) * time.Minute).Truncate(time.Second)
			c.state, c.started = "running", c.created.Add(time.Second)
		}
		f.nodes = append(f.nodes, node)
	}
	// Only the loopback device, where there is the right to say so: 0.0.0.0 is the way
	// to have all of 127.0.0.0/8 with one listener.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptString(int(fd), syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, "lo")
		})
	}}
	l, err := config.Listen(context.Background(), "tcp4", "0.0.0.0:"+strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	f.port = l.Addr().(*net.TCPAddr).Port
	f.server = &http.Server{
		Handler:  f,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, fleetKey{}, f.nodeOf(conn.LocalAddr()))
		},
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				f.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				f.open.Add(-1)
			}
		},
	}
	go func() { // close waits for it
		defer close(f.served)
		_ = f.server.Serve(fleetListener{l, f})
	}()
	return f, nil
}

// fleetMain makes this process a fleet, sized by want as in "1000,30", until its input
// ends. It writes the port that it has.
func fleetMain(want string) error {
	var n, each int
	if _, err := fmt.Sscanf(want, "%d,%d", &n, &each); err != nil {
		return fmt.Errorf("FLEET=%s: %w", want, err)
	}
	f, err := newFleet(n, each, 0)
	if err != nil {
		return err
	}
	defer f.close()
	fmt.Println(f.port)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

type fleetKey struct{}

// fleetListener closes what does not come over loopback, and what a dead node is asked.
type fleetListener struct {
	net.Listener
	fleet *fleet
}

func (l fleetListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr, ok := conn.LocalAddr().(*net.TCPAddr)
		if !ok || !addr.IP.IsLoopback() {
			conn.Close()
			continue
		}
		node := l.fleet.nodeOf(addr)
		if node != nil {
			node.dials.Add(1)
		}
		if node != nil && node.dead.Load() {
			_ = conn.(*net.TCPConn).SetLinger(0) // a reset, as of a host without Docker
			conn.Close()
			continue
		}
		return conn, nil
	}
}

// perBlock is how many addresses of a 127.1.x.0/24 are used.
const perBlock = 250

// addr is where engine i listens.
func (f *fleet) addr(i int) string {
	return fmt.Sprintf("127.1.%d.%d:%d", i/perBlock, i%perBlock+1, f.port)
}

// addrs are the addresses of all engines, one a line, as -nodes reads them.
func (f *fleet) addrs() string {
	var b strings.Builder
	for i := range f.nodes {
		b.WriteString(f.addr(i) + "\n")
	}
	return b.String()
}

// nodeOf is the engine at an address, nil for 127.0.0.1, where the switches are.
func (f *fleet) nodeOf(addr net.Addr) *fleetNode {
	ip := addr.(*net.TCPAddr).IP.To4()
	if ip == nil || ip[1] != 1 {
		return nil
	}
	if i := int(ip[2])*perBlock + int(ip[3]) - 1; i < len(f.nodes) {
		return f.nodes[i]
	}
	return nil
}

func (f *fleet) close() {
	f.heal()
	_ = f.server.Close()
	<-f.served
}

// heal turns every switch off.
func (f *fleet) heal() {
	for _, n := range f.nodes {
		n.hang(false)
		n.delay.Store(0)
		n.dead.Store(false)
	}
}

// hang makes the engine accept connections and requests and answer none, events
// included, until it is turned off: what came meanwhile is answered then.
func (n *fleetNode) hang(on bool) {
	var gate *fakeGate
	if on {
		gate = &fakeGate{make(chan struct{})}
	}
	if old := n.hung.Swap(gate); old != nil {
		close(old.open)
	}
}

// count counts a request by what it is.
func (f *fleet) count(what string) {
	c, ok := f.requests.Load(what)
	if !ok {
		c, _ = f.requests.LoadOrStore(what, &atomic.Int64{})
	}
	c.(*atomic.Int64).Add(1)
}

// counts is how often what was asked so far.
func (f *fleet) counts() map[string]int64 {
	counts := map[string]int64{}
	f.requests.Range(func(k, v any) bool {
		counts[k.(string)] = v.(*atomic.Int64).Load()
		return true
	})
	return counts
}

// ServeHTTP answers for the engine whose address the connection came to.
func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	node, _ := r.Context().Value(fleetKey{}).(*fleetNode)
	if node == nil {
		f.control(w, r)
		return
	}
	if node.dead.Load() {
		panic(http.ErrAbortHandler)
	}
	if gate := node.hung.Load(); gate != nil {
		select {
		case <-gate.open:
		case <-r.Context().Done():
			return
		}
	}
	if d := node.delay.Load(); d > 0 {
		select {
		case <-time.After(time.Duration(d)):
		case <-r.Context().Done():
			return
		}
	}
	node.serve(w, r)
}

// control is the fleet's own endpoint, for another process: POST /hang, /slow (by
// &for=) and /die on a share of the engines, spread evenly; POST /heal; GET /counts.
func (f *fleet) control(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "GET /counts":
		counts := f.counts()
		counts["connections"] = f.open.Load() - 1 // less this one
		_ = json.NewEncoder(w).Encode(counts)
	case "GET /addrs":
		_, _ = io.WriteString(w, f.addrs())
	case "POST /heal":
		f.heal()
	case "POST /hang", "POST /slow", "POST /die":
		if err := f.harm(r.URL.Path[1:], r.FormValue("percent"), r.FormValue("for")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	default:
		http.NotFound(w, r)
	}
}

// harm throws a switch on every so-manieth engine.
func (f *fleet) harm(what, percent, by string) error {
	share, err := strconv.Atoi(percent)
	if err != nil || share < 1 || share > 100 {
		return errors.New("percent: expected 1 to 100")
	}
	var delay time.Duration
	if what == "slow" {
		if delay, err = time.ParseDuration(by); err != nil {
			return err
		}
	}
	for i, n := range f.nodes {
		if i*share/100 == (i+1)*share/100 {
			continue
		}
		switch what {
		case "hang":
			n.hang(true)
		case "slow":
			n.delay.Store(int64(delay))
		case "die":
			n.dead.Store(true)
			n.mu.Lock()
			for w := range n.watchers {
				w.end()
			}
			n.mu.Unlock()
		}
	}
	return nil
}
