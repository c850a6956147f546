package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// call is one client request on its way: what the route table found out.
type call struct {
	version apiVersion // the client's; 0: none given
	name    string     // what {id} or {name} stands for
	query   url.Values
	body    *clientBody     // nil: none
	client  context.Context // ends when the client leaves, or has closed its own direction
	refused error           // what is wrong with the version: of operations that there are only
}

// writeJSON answers 200 with v.
func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// asAnswer gives an engine's failure to answer its status.
func asAnswer(err error, write bool) error {
	var ee *engineError
	switch {
	case err == nil || !errors.As(err, &ee):
		return err
	case outOfFiles(ee.err):
		return errorf(http.StatusServiceUnavailable, "no file descriptor is left for node %s: close some connections, or raise the limit (LimitNOFILE, ulimit -n)", ee.node)
	case ee.timeout && write && ee.sent:
		return errorf(http.StatusGatewayTimeout, "node %s did not answer in time: outcome unknown, look before you retry", ee.node)
	case ee.timeout:
		return errorf(http.StatusGatewayTimeout, "node %s did not answer in time", ee.node)
	case write && ee.sent:
		return errorf(http.StatusBadGateway, "connection to node %s broke before it answered: outcome unknown, look before you retry", ee.node)
	}
	return errorf(http.StatusBadGateway, "node %s: %v", ee.node, ee.err)
}

// relay passes one request to one engine and its answer back verbatim.
type relay struct {
	engine     *engine
	path       string // at the engine, without version
	query      url.Values
	patience   patience
	body       io.Reader // instead of the client's; with its length
	length     int64
	edit       func([]byte) ([]byte, error) // sees or rewrites a JSON answer of editStatus, read whole
	editStatus int                          // 200 if it is not set
	answered   func(status int)             // after the engine's header came, before the client sees it
}

// smallBody is read whole also where long ones are passed on as they come. docker-py sends
// "{}" with a push, and an engine answers that before it has read it: at the first byte of
// an answer net/http takes what is left of the body away from whoever still reads it.
const smallBody = 64 << 10

// droppedHeaders never cross, either way: hop-by-hop fields, those that name the
// client to the engine, and those that only mean something between the two ends of
// one connection (S7).
var droppedHeaders = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true, "Transfer-Encoding": true,
	"Upgrade": true, "Host": true, "Cookie": true, "Authorization": true, "Forwarded": true, "Origin": true, "Expect": true,
	"Http2-Settings": true, "Content-Length": true,
}

func copyHeaders(to, from http.Header) {
	named := map[string]bool{}
	for _, v := range from["Connection"] {
		for _, f := range strings.Split(v, ",") {
			named[http.CanonicalHeaderKey(strings.TrimSpace(f))] = true
		}
	}
	for k, v := range from {
		if droppedHeaders[k] || named[k] || strings.HasPrefix(k, "Proxy-") || strings.HasPrefix(k, "X-Forwarded-") || strings.HasPrefix(k, "Sec-") {
			continue
		}
		to[k] = v
	}
}

// ownHeaders are set by api.go for the whole cluster; an engine's do not replace them.
var ownHeaders = []string{"Api-Version", "Docker-Experimental", "Ostype", "Server", "Date"}

func copyAnswerHeaders(to, from http.Header) {
	own := map[string][]string{}
	for _, k := range ownHeaders {
		if v, ok := to[k]; ok {
			own[k] = v
		}
	}
	copyHeaders(to, from)
	for k := range to {
		if strings.HasPrefix(k, "Access-Control-") { // an engine's own web pages are not ours (S12)
			delete(to, k)
		}
	}
	for _, k := range ownHeaders {
		delete(to, k)
		if v, ok := own[k]; ok {
			to[k] = v
		}
	}
}

// run relays r and answers w. An error is returned only while nothing has been
// answered yet; later ones break the connection, as a dying engine would.
func (rl *relay) run(w http.ResponseWriter, r *http.Request, c *call) error {
	query := rl.query
	if query == nil {
		query = c.query
	}
	body, length := rl.body, rl.length
	switch {
	case body != nil:
	case r.ContentLength == 0:
		body = http.NoBody
	case rl.patience == forever && (r.ContentLength < 0 || r.ContentLength > smallBody):
		body, length = steadyBody(w, r), r.ContentLength
	default: // a client that dawdles must not hold a place among the calls
		data, err := readBody(r)
		if err != nil {
			return err
		}
		body, length = bytes.NewReader(data), int64(len(data))
	}
	req, err := http.NewRequestWithContext(c.client, r.Method, rl.engine.url(c.version, rl.path, query.Encode()), body)
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	req.ContentLength = length
	req.Header["User-Agent"] = nil // the client's or none
	copyHeaders(req.Header, r.Header)
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	resp, err := rl.engine.do(req, rl.patience)
	if err != nil {
		if rl.answered != nil && write {
			rl.answered(0)
		}
		if c.client.Err() != nil || c.body != nil && c.body.broken.Load() {
			return errBrokeOff
		}
		return asAnswer(err, write)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
		return errorf(http.StatusBadGateway, "node %s answered %s, which no engine does", rl.engine.nodeName(), resp.Status)
	}
	if rl.answered != nil {
		rl.answered(resp.StatusCode)
	}
	return answer(w, r, resp, rl)
}

// answer passes an engine's answer on.
func answer(w http.ResponseWriter, r *http.Request, resp *http.Response, rl *relay) error {
	copyAnswerHeaders(w.Header(), resp.Header)
	if rl.edit != nil && resp.StatusCode == max(rl.editStatus, http.StatusOK) {
		room := items.Get().(*bytes.Buffer)
		defer func() {
			if room.Cap() <= smallBody { // few are longer
				items.Put(room)
			}
		}()
		data, err := readItem(room, resp)
		if err == nil {
			data, err = rl.edit(data)
		}
		if err != nil {
			return errorf(http.StatusBadGateway, "bad answer from node %s: %v", rl.engine.nodeName(), err)
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.WriteHeader(resp.StatusCode)
		onePiece(r.Context(), func() error {
			w.Write(data)
			return http.NewResponseController(w).Flush()
		})
		return nil
	}
	if resp.ContentLength >= 0 && resp.StatusCode != http.StatusNoContent && resp.StatusCode != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	stream := rl.patience == forever
	if stream {
		http.NewResponseController(w).Flush()
	}
	if r.Method == http.MethodHead {
		return nil
	}
	if err := copyBody(r.Context(), w, resp.Body, stream); err != nil {
		// Half an answer must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// items are buffers for answers about one thing, as long as their relaying takes.
var items = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// readItem reads an answer about one thing whole, into room.
func readItem(room *bytes.Buffer, resp *http.Response) ([]byte, error) {
	if resp.ContentLength > maxItem {
		return nil, fmt.Errorf("over %d MiB", maxItem>>20)
	}
	room.Reset()
	room.Grow(max(0, int(resp.ContentLength)) + bytes.MinRead)
	_, err := room.ReadFrom(roomReader{resp.Body, newRoom(maxItem)})
	return room.Bytes(), err
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyBody copies to w. Nothing of a stream is held back: it is flushed before a read
// that has to wait, or after each piece where that cannot be known.
func copyBody(ctx context.Context, w http.ResponseWriter, body io.Reader, stream bool) error {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	client := http.NewResponseController(w)
	var begin, end int // of what is held
	unsent := false    // some was passed on and may be held further on
	write := func() error {
		if begin == end {
			return nil
		}
		_, err := w.Write(buf[begin:end])
		begin, unsent = end, true
		return err
	}
	pass := func() error { return onePiece(ctx, write) }
	flush := func() error {
		if begin == end && !unsent {
			return nil
		}
		return onePiece(ctx, func() error {
			if err := write(); err != nil {
				return err
			}
			unsent = false
			return client.Flush()
		})
	}
	b, gathers := body.(*upstreamBody)
	if gathers = gathers && stream; gathers {
		b.beforeWaiting(flush) // in the midst of a read into buf[end:]
		defer b.beforeWaiting(nil)
	}
	for {
		if begin == end {
			begin, end = 0, 0
		}
		n, err := body.Read(buf[end:])
		end += n
		var failed error
		switch {
		case stream && (!gathers || err != nil):
			failed = flush()
		case !stream || end == len(buf):
			failed = pass()
		}
		if failed != nil {
			return failed
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hijack relays a request whose connection becomes a raw stream: attach, exec
// start, session, grpc. A stock reverse proxy is no use here: clients that send no
// Upgrade must get Docker's old 200 raw stream, a body must never reach the
// container's input, and early bytes must not be lost. The engine's whole answer
// header is read before the client's connection is touched (S9), so that after a
// refusal nothing the client sends can reach the engine.
type hijack struct {
	engine   *engine
	path     string
	protocol string // that may be asked for: tcp, websocket, h2c
	body     []byte // whole
	answered func()
	ended    func()
}

func (h *hijack) run(w http.ResponseWriter, r *http.Request, c *call) error {
	closeAfter(w)
	upgrade := strings.EqualFold(r.Header.Get("Upgrade"), h.protocol)
	req, err := http.NewRequestWithContext(r.Context(), r.Method, h.engine.url(c.version, h.path, c.query.Encode()), nil)
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	copyHeaders(req.Header, r.Header)
	if upgrade {
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", h.protocol)
		if h.protocol == "websocket" {
			for _, k := range []string{"Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"} {
				if v := r.Header[k]; v != nil {
					req.Header[k] = v
				}
			}
		}
	}
	conn, in, resp, err := h.engine.ask(req, h.body)
	if err != nil {
		return asAnswer(err, true)
	}
	defer conn.Close()
	if h.answered != nil {
		h.answered()
	}
	raw := resp.StatusCode == http.StatusOK && !upgrade && h.protocol == "tcp" && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
	switched := resp.StatusCode == http.StatusSwitchingProtocols && upgrade && strings.EqualFold(resp.Header.Get("Upgrade"), h.protocol)
	if !raw && !switched {
		rawAnswer := resp.StatusCode == http.StatusOK && upgrade && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
		if resp.StatusCode < 200 || resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified || rawAnswer {
			return errorf(http.StatusBadGateway, "node %s answered %s to an upgrade, which no engine does", h.engine.nodeName(), resp.Status)
		}
		conn.SetReadDeadline(time.Now().Add(readWait))
		return answer(w, r, resp, &relay{engine: h.engine})
	}
	return h.join(w, conn, in, resp, switched)
}

// closeAfter has an ordinary answer be the connection's last. A client that wants a
// stream may send into it early; after a refusal those bytes must not be read as its
// next request.
func closeAfter(w http.ResponseWriter) { w.Header().Set("Connection", "close") }

// ask sends req, with body as its whole body, over a connection of its own and
// reads the header of the answer. The connection is never pooled (S10).
func (e *engine) ask(req *http.Request, body []byte) (net.Conn, *bufio.Reader, *http.Response, error) {
	fail := func(sent, timeout bool, err error) (net.Conn, *bufio.Reader, *http.Response, error) {
		if timeout {
			e.timeouts.Add(1)
			err = errNoAnswer
		}
		e.doubt()
		return nil, nil, nil, &engineError{e.nodeName(), req.Method + " " + req.URL.Path, sent, timeout, err}
	}
	conn, err := e.dial(req.Context())
	if err != nil {
		return fail(false, false, err)
	}
	conn.SetDeadline(time.Now().Add(writeWait))
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", req.Method, req.URL.RequestURI(), req.URL.Host)
	req.Header.Write(&head)
	fmt.Fprintf(&head, "Content-Length: %d\r\n\r\n", len(body))
	if _, err := conn.Write(append([]byte(head.String()), body...)); err != nil {
		conn.Close()
		return fail(true, isTimeout(err), err)
	}
	limit := &io.LimitedReader{R: conn, N: maxHeader}
	in := bufio.NewReaderSize(limit, 32<<10)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		conn.Close()
		return fail(true, isTimeout(err), err)
	}
	limit.N = math.MaxInt64
	e.answered()
	conn.SetDeadline(time.Time{})
	return conn, in, resp, nil
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// steadyBody is a request's body for a stream of any length: read while the answer
// already goes out, in small pieces, and given up when it stands still for too long.
func steadyBody(w http.ResponseWriter, r *http.Request) io.ReadCloser {
	if r.Body == nil || r.Body == http.NoBody {
		return r.Body
	}
	// Without this net/http swallows what is left of the body at the first byte of
	// the answer. Where it is not supported the engine answers at the end anyway.
	_ = http.NewResponseController(w).EnableFullDuplex()
	if b, ok := r.Body.(*clientBody); ok {
		b.stalls(bodyWait)
	}
	return r.Body
}
