package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fakeEngine is a simulated Docker engine on a loopback port. It stands where a
// real engine cannot: failures at a chosen request, old and new API versions,
// storms, a thousand nodes. Answers, statuses and events were copied from a real
// 20.10.24; containers "run" until they are told to stop.
//
// The HTTP is real (net/http on a listener); an idle engine costs one listener
// and the goroutine that accepts on it. All methods may be called at any time
// from any goroutine, the fields of the first block only by an option.
type fakeEngine struct {
	name          string         // host name; "fake-<port>" if empty
	id            string         // engine ID; random if empty
	cpus          int            //
	memory        int64          // bytes
	labels        []string       // "key=value", as /info shows them
	apiVersion    string         // highest API version
	minAPIVersion string         // lowest API version
	serverVersion string         //
	driver        string         // storage driver; "overlayfs" makes it a containerd image store
	arch          string         // of its images, as Go names it; /info has the kernel's name for it
	preloaded     []string       // references of images that are there from the start
	info          map[string]any // keys of /info that replace the simulated ones
	tlsConfig     *tls.Config    // nil: clear text
	keep          int            // how many requests the record holds

	t      testing.TB
	hung   atomic.Pointer[fakeGate] // nil unless hang(true)
	skewed atomic.Int64             // nanoseconds that this engine's clock is ahead
	muted  atomic.Bool              // nothing is told to watchers of events
	port   int                      // 0 before the first start, then for ever

	mu     sync.Mutex   // guards everything below; never held while writing to a client
	server *http.Server // nil while stopped
	listen net.Listener
	served chan struct{} // closed when the accept loop has ended
	cancel context.CancelFunc
	holder int // socket that keeps the port while stopped; -1: none
	conns  map[*fakeConn]bool
	record []*fakeRequest

	overrides []*fakeRule
	failures  []*fakeRule
	cuts      []*fakeRule
	drops     []*fakeRule
	delays    map[string]time.Duration // by path prefix

	containers []*fakeContainer // in order of creation
	byID       map[string]*fakeContainer
	byName     map[string]*fakeContainer
	images     []*fakeImage
	networks   []*fakeNetwork
	volumes    []*fakeVolume
	execs      map[string]*fakeExec
	recent     []fakeEvent // the last 256, as engines keep
	watchers   map[*fakeWatcher]bool
	lastTime   time.Time // of an event; no two have the same
	lastPort   int       // last port given to a container that did not care
	lastPID    int
}

// fakeRequest is one request as the engine got it.
type fakeRequest struct {
	method   string
	host     string
	remote   string // address of the client's end of the connection
	path     string // with the version prefix
	rawQuery string
	header   http.Header
	body     []byte // not of streams: load, build, import, archive, push
}

// fakeRule is a failure switch for the requests that it matches.
type fakeRule struct {
	method string // "": any
	path   *regexp.Regexp
	hook   http.HandlerFunc // overrides, failures
	after  int64            // cuts: body bytes
}

// fakeGate is closed when the engine stops hanging.
type fakeGate struct{ open chan struct{} }

// newFakeEngine starts an engine that is closed when the test ends.
func newFakeEngine(t testing.TB, opts ...func(*fakeEngine)) *fakeEngine {
	t.Helper()
	e := &fakeEngine{
		cpus: 4, memory: 8 << 30,
		apiVersion: "1.41", minAPIVersion: "1.12", serverVersion: "20.10.24",
		driver: "overlay2", arch: "amd64", preloaded: []string{"busybox:latest"}, keep: 4096,
		t: t, holder: -1,
		conns: map[*fakeConn]bool{}, delays: map[string]time.Duration{}, watchers: map[*fakeWatcher]bool{},
	}
	for _, opt := range opts {
		opt(e)
	}
	if e.id == "" {
		e.id = fakeEngineID()
	}
	e.wipe()
	for _, ref := range e.preloaded {
		e.addImage(ref, "")
	}
	e.restart()
	t.Cleanup(e.close)
	return e
}

// addr is where the engine listens, "127.0.0.1:port", also while it is stopped.
func (e *fakeEngine) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port)) }

// now is the engine's own idea of the time.
func (e *fakeEngine) now() time.Time {
	return time.Now().Add(time.Duration(e.skewed.Load())).UTC()
}

// restart starts the engine on its port, with all it had when it stopped, save
// what real engines keep in memory only: execs and past events.
// On an engine that runs it does nothing.
func (e *fakeEngine) restart() {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server != nil {
		return
	}
	config := net.ListenConfig{Control: fakeSharePort}
	listener, err := config.Listen(context.WithoutCancel(e.t.Context()), "tcp4", e.addr())
	if err != nil {
		e.t.Errorf("fake engine %s: listen on %s: %v", e.name, e.addr(), err)
		return
	}
	e.releasePort()
	if e.port == 0 {
		e.port = listener.Addr().(*net.TCPAddr).Port
	}
	if e.name == "" {
		e.name = "fake-" + strconv.Itoa(e.port)
	}
	e.execs, e.recent = map[string]*fakeExec{}, nil
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.t.Context()))
	server := &http.Server{
		Handler:     e,
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, fakeConnKey{}, conn)
		},
	}
	var counted net.Listener = fakeListener{listener, e}
	if e.tlsConfig != nil {
		counted = tls.NewListener(counted, e.tlsConfig)
	}
	served := make(chan struct{})
	e.server, e.listen, e.cancel, e.served = server, listener, cancel, served
	go func() { // stop waits for it
		defer close(served)
		_ = server.Serve(counted)
	}()
}

// stop ends the engine as kill -9 does: the port refuses, every connection is
// closed in the middle of whatever it carried, containers go on. It does not
// wait for handlers, so that an override may call it.
func (e *fakeEngine) stop() {
	e.mu.Lock()
	server, listener, cancel, served := e.server, e.listen, e.cancel, e.served
	e.server = nil
	if server != nil {
		e.holdPort()
	}
	e.mu.Unlock()
	if server == nil {
		return
	}
	_ = listener.Close()
	<-served // from here on there is no new connection
	e.mu.Lock()
	var open []*fakeConn
	for conn := range e.conns {
		open = append(open, conn)
	}
	e.mu.Unlock()
	for _, conn := range open {
		_ = conn.Close()
	}
	_ = server.Close()
	// Only now: a handler that ends because of its context must not be able to
	// end its answer in good order.
	cancel()
}

// close stops the engine for good.
func (e *fakeEngine) close() {
	e.stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.releasePort()
}

// holdPort keeps the port from everybody else while the engine is stopped: a
// socket that is bound and does not listen. Without it another test's engine or
// an outgoing connection may get the port, and restart fails once in a while.
func (e *fakeEngine) holdPort() {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	addr := &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: e.port}
	if syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, fakeReusePort, 1) != nil || syscall.Bind(fd, addr) != nil {
		_ = syscall.Close(fd)
		return
	}
	e.holder = fd
}

// releasePort gives up what holdPort holds.
func (e *fakeEngine) releasePort() {
	if e.holder >= 0 {
		_ = syscall.Close(e.holder)
		e.holder = -1
	}
}

// fakeReusePort is SO_REUSEPORT of Linux, which package syscall lacks.
const fakeReusePort = 0xf

// fakeSharePort lets a listener and the socket of holdPort have one port.
func fakeSharePort(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, fakeReusePort, 1)
	})
	return errors.Join(err, failed)
}

// wipe empties the engine as a deleted data root does: no containers, images and
// volumes, new built-in networks, same engine ID, nobody is told.
func (e *fakeEngine) wipe() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		c.end()
		close(c.gone)
	}
	e.containers, e.images, e.volumes, e.recent = nil, nil, nil, nil
	e.byID, e.byName = map[string]*fakeContainer{}, map[string]*fakeContainer{}
	e.execs = map[string]*fakeExec{}
	e.networks = nil
	for _, builtin := range []struct{ name, driver string }{{"none", "null"}, {"host", "host"}, {"bridge", "bridge"}} {
		e.networks = append(e.networks, &fakeNetwork{
			id: fakeID(), name: builtin.name, driver: builtin.driver, scope: "local",
			created: e.now(), builtin: true, subnet: 17,
		})
	}
}

// hang makes the engine silent, as SIGSTOP does: it takes connections and
// requests and answers nothing, streams that are open included. hang(false) is
// SIGCONT: what waited is answered late.
func (e *fakeEngine) hang(on bool) {
	if on {
		e.hung.CompareAndSwap(nil, &fakeGate{make(chan struct{})})
		return
	}
	if gate := e.hung.Swap(nil); gate != nil {
		close(gate.open)
	}
}

// awaitAwake returns when the engine does not hang, or done is closed.
func (e *fakeEngine) awaitAwake(done <-chan struct{}) {
	for gate := e.hung.Load(); gate != nil; gate = e.hung.Load() {
		select {
		case <-gate.open:
		case <-done:
			return
		}
	}
}

// delay makes requests whose path (without version) begins with prefix wait for
// d before anything is done. The longest prefix counts; zero ends it.
func (e *fakeEngine) delay(prefix string, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.delays[prefix] = d
}

// fail answers requests with status and body, as given, and does nothing else.
// The method "" is any; the expression sees the path without version. Undo takes
// it back. An empty body becomes {"message": …}.
func (e *fakeEngine) fail(method, path string, status int, body string) (undo func()) {
	if body == "" {
		body = fmt.Sprintf(`{"message":%q}`+"\n", strings.ToLower(http.StatusText(status)))
	}
	return e.addRule(&e.failures, method, path, 0, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Api-Version", e.apiVersion)
		if strings.HasPrefix(body, "{") || strings.HasPrefix(body, "[") {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// override gives requests to hook, before any failure is looked for. The hook
// may go on with e.answer(w, r), stop the engine, hijack. The newest counts.
func (e *fakeEngine) override(method, path string, hook http.HandlerFunc) (undo func()) {
	return e.addRule(&e.overrides, method, path, 0, hook)
}

// cutAfter resets the connection when n bytes of the answer's body are sent.
func (e *fakeEngine) cutAfter(path string, n int64) (undo func()) {
	return e.addRule(&e.cuts, "", path, n, nil)
}

// dropAnswer does what is asked, then closes the connection without a word.
func (e *fakeEngine) dropAnswer(path string) (undo func()) {
	return e.addRule(&e.drops, "", path, 0, nil)
}

// addRule puts a rule on a list; the newest is found first.
func (e *fakeEngine) addRule(list *[]*fakeRule, method, path string, after int64, hook http.HandlerFunc) (undo func()) {
	rule := &fakeRule{method: method, path: regexp.MustCompile(path), after: after, hook: hook}
	e.mu.Lock()
	defer e.mu.Unlock()
	*list = append([]*fakeRule{rule}, *list...)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		*list = slices.DeleteFunc(slices.Clone(*list), func(r *fakeRule) bool { return r == rule })
	}
}

// heal takes back every failure: hang, delays, rules, the clock, the mute.
func (e *fakeEngine) heal() {
	e.mu.Lock()
	e.overrides, e.failures, e.cuts, e.drops = nil, nil, nil, nil
	clear(e.delays)
	e.mu.Unlock()
	e.skew(0)
	e.mute(false)
	e.hang(false)
}

// skew puts the engine's clock d ahead: Date header, event times, all it says.
func (e *fakeEngine) skew(d time.Duration) { e.skewed.Store(int64(d)) }

// requests is the record, oldest first: the last e.keep requests.
func (e *fakeEngine) requests() []fakeRequest {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]fakeRequest, len(e.record))
	for i, r := range e.record {
		list[i] = *r
	}
	return list
}

// count tells how many requests of the record match; the method "" is any, the
// expression sees the path without version.
func (e *fakeEngine) count(method, path string) int {
	expr, n := regexp.MustCompile(path), 0
	for _, r := range e.requests() {
		if bare, _ := fakeSplitVersion(r.path); (method == "" || method == r.method) && expr.MatchString(bare) {
			n++
		}
	}
	return n
}

// forget empties the record.
func (e *fakeEngine) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record = nil
}

// connections is how many are open now, upgraded ones included.
func (e *fakeEngine) connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// ServeHTTP records a request, applies the switches, then answers it.
func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _ := fakeSplitVersion(r.URL.Path)
	noted := &fakeRequest{method: r.Method, host: r.Host, remote: r.RemoteAddr, path: r.URL.Path, rawQuery: r.URL.RawQuery, header: r.Header.Clone()}
	e.mu.Lock()
	if e.record = append(e.record, noted); len(e.record) > e.keep {
		e.record = slices.Clone(e.record[len(e.record)-e.keep/2:])
	}
	e.mu.Unlock()
	if !fakeStreamed.MatchString(path) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e.mu.Lock()
		noted.body = body
		e.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	e.awaitAwake(r.Context().Done())
	if !e.awaitDelay(r.Context(), path) {
		return
	}
	e.mu.Lock()
	hook := e.answer
	if rule := fakeFind(e.failures, r.Method, path); rule != nil {
		hook = rule.hook
	}
	if rule := fakeFind(e.overrides, r.Method, path); rule != nil {
		hook = rule.hook
	}
	answer := &fakeAnswer{ResponseWriter: w, left: -1, drop: fakeFind(e.drops, r.Method, path) != nil}
	if rule := fakeFind(e.cuts, r.Method, path); rule != nil {
		answer.left = rule.after
	}
	e.mu.Unlock()
	answer.conn, _ = fakeConnOf(r.Context().Value(fakeConnKey{}))
	hook(answer, r)
	if answer.drop {
		panic(http.ErrAbortHandler) // net/http closes the connection and says nothing
	}
}

// fakeStreamed are the paths whose bodies may be long; their handlers read them.
var fakeStreamed = regexp.MustCompile(`^/(build|images/load|images/.+/push|images/create|containers/.+/archive)$`)

// awaitDelay waits as delay has asked; false means the client has gone.
func (e *fakeEngine) awaitDelay(ctx context.Context, path string) bool {
	e.mu.Lock()
	longest, wait := -1, time.Duration(0)
	for prefix, d := range e.delays {
		if strings.HasPrefix(path, prefix) && len(prefix) > longest {
			longest, wait = len(prefix), d
		}
	}
	e.mu.Unlock()
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// fakeFind is the first rule that matches, or nil.
func fakeFind(rules []*fakeRule, method, path string) *fakeRule {
	for _, r := range rules {
		if (r.method == "" || r.method == method) && r.path.MatchString(path) {
			return r
		}
	}
	return nil
}
