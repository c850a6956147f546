package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Deadlines towards an engine (FAULTS S23). A hung engine still accepts
// connections, so only these find it.
const (
	dialWait    = 3 * time.Second
	readWait    = 10 * time.Second // first header byte of a read
	writeWait   = 60 * time.Second // of a create or start; runs out only if the engine's ping fails as well
	probeWait   = 5 * time.Second
	startWait   = 3 * time.Second // calls wait for a node's first connection
	maxCalls    = 64              // ordinary calls under way to one engine
	maxHeavy    = 8               // pulls, builds, loads, imports and pushes under way there
	maxHeader   = 1 << 20         // bytes of an answer's header
	maxAnswer   = 16 << 20        // bytes of JSON that we decode of what an engine has, all lists together
	maxItem     = 8 << 20         // bytes of JSON about one thing, or of one event
	slowAnswers = 3               // calls over their deadline, in a row, that make a node unhealthy
	callBuffer  = 2 << 10         // a call and its answer are small, and there is a connection to each of a thousand engines; large pieces go past it
	second      = int64(1e9)
)

// patience is how long a kind of call may take until the answer's header.
type patience int

const (
	read    patience = iota // readWait, also for each piece of the answer
	change                  // writeWait, and longer while the engine's ping is answered
	slow                    // the same for calls that are meant to take long: they take no place from others
	forever                 // streams, and calls that may take any time while the engine lives
	endless                 // readWait, then nothing: the engine's own stream of events
)

// engine is the live connection to the daemon on a node.
type engine struct {
	id   int64  // of the node
	addr string // as in nodes.address
	base string // scheme and host for requests

	network, host string // to dial
	location      location
	tunnel        *tunnel // nil unless the engine is reached over ssh; then host is its socket here
	tls           *tls.Config
	verified      bool // its certificate proves who it is
	transport     *http.Transport
	reads         upstream
	calls         chan struct{} // places for ordinary calls
	heavy         chan struct{} // places for pulls, loads, builds and the like

	healthy    atomic.Bool
	name       atomic.Pointer[string]
	trouble    atomic.Pointer[string] // last error while it is not healthy
	highest    atomic.Int64           // apiVersion
	lowest     atomic.Int64           // apiVersion
	said       atomic.Value           // pingSaid
	shown      atomic.Pointer[shownNode]
	lastAnswer atomic.Int64  // monotonic nanoseconds, see now
	clockOff   atomic.Int64  // nanoseconds that its clock was off ours in its last answer to a list
	clockTold  atomic.Int64  // and when that was told last
	certEnds   atomic.Int64  // unix seconds, of the certificate that it showed last; 0: none
	inSwarm    atomic.Bool   // of Docker's own, Swarm mode
	timeouts   atomic.Int32  // in a row
	failed     atomic.Int32  // starts and creates it failed at lately: see noteWork
	suspect    chan struct{} // a call ran out: probe now
	unwritten  chan error    // what was read of it could not be written
	unsettled  chan struct{} // it may have done a create that nobody waits for any more
	tried      chan struct{} // closed when the first attempt to connect has ended, well or not
	triedOnce  sync.Once
	began      atomic.Int64                  // monotonic nanoseconds, when it was connected to
	since      atomic.Int64                  // unix seconds, when it was found unhealthy
	lostAt     atomic.Int64                  // monotonic nanoseconds, the same
	lost       atomic.Pointer[chan struct{}] // closed when it is
	disowned   atomic.Pointer[error]         // why nobody says any more that it is one of us; nil: somebody does

	metrics *metrics // nil: nobody counts

	// The watcher's.
	warned     []string  // of its labels, as they were logged
	certWarned time.Time // when its certificate's end was

	builds buildStreams
	marks  marks
}

// pingSaid is what an engine's ping tells in headers that not every version sends.
type pingSaid struct {
	builder string // Builder-Version
	swarm   bool   // that there is a Swarm
}

// shownNode is what inspect shows of a node: classic Swarm's Node object, ready made,
// and the address for published ports.
type shownNode struct {
	ip   string
	node json.RawMessage
}

// start is what monotonic time is counted from: health is never judged by the wall clock.
var start = time.Now()

func monotonic() int64 { return int64(time.Since(start)) }

// engineError is a call that an engine did not answer.
type engineError struct {
	node    string
	op      string
	sent    bool // the request may have reached the engine
	timeout bool
	err     error
}

func (e *engineError) Error() string {
	return fmt.Sprintf("%s on node %s: %v", e.op, e.node, e.err)
}

func (e *engineError) Unwrap() error { return e.err }

var errNoAnswer = errors.New("no answer in time")

// newEngine prepares the connection to the daemon at addr; nothing is dialed yet.
// Without certs TCP is plain; sockets always are. Without verify any certificate of
// the engine will do.
func newEngine(id int64, addr string, certs *certSource, verify bool, ssh *sshClient) (*engine, error) {
	e := &engine{id: id, addr: addr, calls: make(chan struct{}, maxCalls), heavy: make(chan struct{}, maxHeavy), suspect: make(chan struct{}, 1), unwritten: make(chan error, 1),
		unsettled: make(chan struct{}, 1), tried: make(chan struct{})}
	lost := make(chan struct{})
	e.lost.Store(&lost)
	e.setName(strings.TrimPrefix(addr, "tcp://"))
	scheme, host, _ := strings.Cut(addr, "://")
	e.network, e.host, e.base = "tcp", host, "http://"+host
	if scheme == "unix" {
		e.network, e.base = "unix", "http://docker"
	}
	if scheme == "ssh" {
		t, err := ssh.tunnel(id, addr)
		if err != nil {
			return nil, err
		}
		e.network, e.base, e.host, e.tunnel = "unix", "http://docker", t.socket, t
	}
	if certs != nil && scheme == "tcp" {
		e.base = "https://" + host
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			return nil, err
		}
		e.tls, e.verified = certs.clientConfig(verify, name), verify
	}
	e.location.host = e.host
	e.location.named = e.network == "tcp" && isName(e.host)
	e.transport = &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dialPlain(ctx) },
		DialTLSContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dial(ctx) },
		MaxIdleConnsPerHost:    16, // enough for a burst; an open file each, so they do not wait for long
		IdleConnTimeout:        5 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         callBuffer, WriteBufferSize: callBuffer,
		DisableCompression: true,
		TLSNextProto:       map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1 only
	}
	return e, nil
}

func (e *engine) setName(s string) { e.name.Store(&s) }
func (e *engine) nodeName() string { return *e.name.Load() }

func (e *engine) versions() (lowest, highest apiVersion) {
	return apiVersion(e.lowest.Load()), apiVersion(e.highest.Load())
}

// versionRange is what an engine speaks; highest is 0 while it has not said.
type versionRange struct{ lowest, highest apiVersion }

func (e *engine) speaks() versionRange {
	lowest, highest := e.versions()
	return versionRange{lowest, highest}
}

func (e *engine) dialPlain(ctx context.Context) (net.Conn, error) {
	// No TCP_USER_TIMEOUT: it would also end a connection whose other end lives and does
	// not read for a while. Calls have deadlines, raw streams their watch.
	d := net.Dialer{Timeout: dialWait,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 3}}
	conn, err := d.DialContext(ctx, e.network, e.location.address())
	if outOfFiles(err) {
		e.transport.CloseIdleConnections()
		e.reads.close()
		conn, err = d.DialContext(ctx, e.network, e.host)
	}
	if err != nil && e.tunnel != nil {
		return nil, errors.New("the ssh connection is down")
	}
	return conn, err
}

// outOfFiles tells whether err says that this process has no descriptor left.
func outOfFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// dial connects, with TLS where the node has it.
func (e *engine) dial(ctx context.Context) (net.Conn, error) {
	conn, err := e.dialPlain(ctx)
	if err != nil {
		return nil, err
	}
	return e.secure(ctx, conn)
}

// secure is conn itself, or TLS over it where the node has it.
func (e *engine) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if e.tls == nil {
		return conn, nil
	}
	tc := tls.Client(conn, e.tls)
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		if errors.As(err, new(tls.RecordHeaderError)) {
			err = errors.New("the engine does not speak TLS there: write tls=off behind its address if that is meant")
		}
		return nil, err
	}
	e.certEnds.Store(tc.ConnectionState().PeerCertificates[0].NotAfter.Unix())
	return tc, nil
}

// noteTried lets those go on who wait for the first attempt to connect.
func (e *engine) noteTried() { e.triedOnce.Do(func() { close(e.tried) }) }

// firstTry waits for the first attempt to connect, at most startWait: a manager
// that has just started knows its containers, but not yet whether it can ask for them.
func (e *engine) firstTry(ctx context.Context) {
	select {
	case <-e.tried:
		return
	default:
	}
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case <-e.tried:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// usable refuses an engine that is known not to answer.
func usable(e *engine) error {
	if e.healthy.Load() {
		return nil
	}
	t := e.trouble.Load()
	if t == nil {
		return errorf(http.StatusServiceUnavailable, "node %s is not healthy: not connected yet", e.nodeName())
	}
	return errorf(http.StatusServiceUnavailable, "node %s is not healthy since %s: %s", e.nodeName(),
		time.Unix(e.since.Load(), 0).UTC().Format(time.RFC3339), *t)
}

// answered notes a sign of life.
func (e *engine) answered() { e.lastAnswer.Store(monotonic()) }

// quietFor is the time since the engine answered anything.
func (e *engine) quietFor() time.Duration {
	return time.Duration(monotonic() - e.lastAnswer.Load())
}

// doubt has the watcher look at the engine at once.
func (e *engine) doubt() {
	select {
	case e.suspect <- struct{}{}:
	default:
	}
}

// do sends a client's req and waits for the answer's header as long as p allows. The
// caller closes the body. Errors are *engineError, and an *apiError if the node
// becomes unhealthy while the call waits for its turn.
func (e *engine) do(req *http.Request, p patience) (*http.Response, error) {
	if p == forever {
		return e.send(req, p)
	}
	if p != slow {
		if err := e.turn(req); err != nil {
			return nil, err
		}
		defer func() { <-e.calls }()
	}
	// The engine is heard to the end: it finishes what it has begun, and a client that
	// has closed its own direction looks as if it had left.
	return e.send(req.WithContext(context.WithoutCancel(req.Context())), p)
}

// turn waits for a place among the calls to this engine, for as long as the client
// waits and the node is healthy.
func (e *engine) turn(req *http.Request) error {
	select {
	case e.calls <- struct{}{}:
		return nil
	default:
	}
	for {
		select {
		case e.calls <- struct{}{}:
			return nil
		case <-*e.lost.Load():
			if err := usable(e); err != nil {
				return err
			}
		case <-req.Context().Done():
			return &engineError{e.nodeName(), req.Method + " " + req.URL.Path, false, false, req.Context().Err()}
		}
	}
}

// send is do without a place among the calls that are counted: for streams, and for
// what the manager itself asks.
func (e *engine) send(req *http.Request, p patience) (resp *http.Response, err error) {
	began := time.Now()
	defer func() { e.metrics.call(err, began) }()
	if (p == read || p == forever || p == endless) && (req.Body == nil || req.Body == http.NoBody) && (req.Method == http.MethodGet || req.Method == http.MethodHead) {
		return e.read(req, p)
	}
	fail := func(sent, timeout bool, err error) error {
		return &engineError{e.nodeName(), req.Method + " " + req.URL.Path, sent, timeout, err}
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}
	waiting, answered := context.WithCancel(ctx)
	var timer *time.Timer
	if p == read {
		timer = time.AfterFunc(readWait, func() { cancel(errNoAnswer) })
	} else {
		timer = time.AfterFunc(writeWait, func() { e.outlive(waiting, cancel, p) })
	}
	resp, err = e.transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, trace)))
	timer.Stop()
	answered()
	if err != nil {
		timeout := context.Cause(ctx) == errNoAnswer
		cancel(nil)
		if timeout {
			e.timeouts.Add(1)
			e.doubt()
			return nil, fail(sent.Load(), true, errNoAnswer)
		}
		if req.Context().Err() == nil {
			e.doubt()
		}
		return nil, fail(sent.Load(), false, err)
	}
	e.answered()
	e.timeouts.Store(0)
	body := &answerBody{ReadCloser: resp.Body, cancel: cancel}
	if p == read || p == change || p == slow {
		body.stalled = time.AfterFunc(time.Hour, func() { cancel(errNoAnswer) })
		body.stalled.Stop()
	}
	resp.Body = body
	return resp, nil
}

// outlive gives up a call that is over its deadline when the engine's ping fails as
// well: at once for a change, after a minute of silence for a call that may take any time.
func (e *engine) outlive(waiting context.Context, cancel context.CancelCauseFunc, p patience) {
	heard := monotonic()
	for {
		err := e.ping(waiting, probeWait)
		switch {
		case waiting.Err() != nil:
			return
		case err == nil:
			heard = monotonic()
		case p == change || time.Duration(monotonic()-heard) > writeWait:
			cancel(errNoAnswer)
			return
		}
		select {
		case <-time.After(readWait):
		case <-waiting.Done():
			return
		}
	}
}

// answerBody ends the call's context when its answer is closed, or stalls.
type answerBody struct {
	io.ReadCloser
	cancel  context.CancelCauseFunc
	stalled *time.Timer // runs while a read waits; nil: a stream, which may be silent
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.stalled == nil {
		return b.ReadCloser.Read(p)
	}
	b.stalled.Reset(readWait)
	defer b.stalled.Stop()
	return b.ReadCloser.Read(p)
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// url is the address of path at version v, brought into the engine's range.
func (e *engine) url(v apiVersion, path, query string) string {
	lowest, highest := e.versions()
	u := e.base
	if v = v.clamp(lowest, highest); v != 0 {
		u += "/v" + v.String()
	}
	u += path
	if query != "" {
		u += "?" + query
	}
	return u
}

// ping asks for a sign of life within d. One that we have no descriptor for says
// nothing against the engine.
func (e *engine) ping(ctx context.Context, d time.Duration) error {
	_, err := e.pingHeader(ctx, d)
	if outOfFiles(err) {
		return nil
	}
	return err
}

// pingHeader is ping for what an engine says of itself in its answer's header.
func (e *engine) pingHeader(ctx context.Context, d time.Duration) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.base+"/_ping", nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, errNoAnswer
		}
		return nil, err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ping answered %s", resp.Status)
	}
	e.answered()
	return resp.Header, nil
}
