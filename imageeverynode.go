package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// bringEverywhere sends a pull, import or load to all healthy nodes at once
// (-images=every-node), as classic Swarm did: a line a node when it begins and when
// it ends, and one node's failure fails the whole.
func (c *cluster) bringEverywhere(w http.ResponseWriter, r *http.Request, in *incoming) error {
	engines := c.healthyEngines()
	if len(engines) == 0 {
		return errorf(http.StatusServiceUnavailable, "no node is healthy")
	}
	out := &mergedProgress{w: w, verb: in.verb + " " + in.ref}
	bodies := newBodySplit(steadyBody(w, r), len(engines))
	landed := make([]*progressLines, len(engines)) // nil where it failed
	var wg sync.WaitGroup
	// The body flows at the pace of the slowest, when all have their places; those are
	// taken in one order, or two calls could each have what the other waits for.
	slices.SortFunc(engines, func(a, b *engine) int { return cmp.Compare(a.id, b.id) })
	for i, e := range engines {
		release, err := e.heavyCall(in.call.client)
		if err != nil {
			out.failed(e, err.Error(), nil)
			bodies.drop(i)
			continue
		}
		wg.Go(func() {
			defer release()
			defer bodies.drop(i)
			landed[i] = c.bringTo(e, r, in, bodies.reader(i), out)
		})
	}
	bodies.pour()
	wg.Wait()
	var first *engine
	for i, e := range engines {
		if landed[i] == nil {
			continue
		}
		names := append(landed[i].loaded, in.names...)
		if first == nil {
			first = e
			c.tagsMoved(e, in.repo, names)
			continue
		}
		c.readImages(c.base, e)
		c.noteCopies(names, first, e)
	}
	return out.finish()
}

// noteCopies writes that what e has under these names is what from has, though
// their image stores give it different IDs.
func (c *cluster) noteCopies(names []string, from, e *engine) {
	for _, name := range names {
		var id string
		err := c.store.get(c.base, `SELECT i.image_id FROM image_names i JOIN nodes a ON a.id = i.node_id JOIN nodes b ON b.id = ?3
			WHERE i.node_id = ?2 AND i.name = ?1 AND a.image_store <> b.image_store`, []any{name, from.id, e.id}, &id)
		if err == nil {
			err = c.store.copied(c.base, name, id, from.id, e.id)
		}
		if err != nil && !errors.Is(err, errNotFound) {
			c.log.Warn("copy not noted", "image", name, "node", e.nodeName(), "err", err)
		}
	}
}

// bringTo does one node's part; it returns nil if that failed.
func (c *cluster) bringTo(e *engine, r *http.Request, in *incoming, body io.Reader, out *mergedProgress) *progressLines {
	watch := &progressLines{ResponseWriter: discardAnswer{}}
	failure, refusal := func() (string, *created) {
		req, err := http.NewRequestWithContext(in.call.client, r.Method, e.url(in.call.version, in.path, in.call.query.Encode()), body)
		if err != nil {
			return err.Error(), nil
		}
		copyHeaders(req.Header, r.Header)
		resp, err := e.do(req, forever)
		if err != nil {
			return oneLine(asAnswer(err, true)), nil
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			data, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
			whole := &created{resp.StatusCode, resp.Header, data}
			return whole.message(), whole
		}
		out.line(progressLine{Status: out.verb + "...", ID: e.nodeName()})
		var last string
		for dec := json.NewDecoder(resp.Body); ; {
			var line progressLine
			if err := dec.Decode(&line); errors.Is(err, io.EOF) {
				return last, nil
			} else if err != nil {
				return oneLine(err), nil
			}
			if msg := line.failure(); msg != "" {
				last = msg
			}
			if name, ok := line.loadedName(); ok {
				watch.loaded = append(watch.loaded, imageName(name))
			}
			if line.ID == "" && (strings.HasPrefix(line.Status, "Status: ") || strings.HasPrefix(line.Status, "Digest: ") ||
				strings.HasPrefix(line.Status, "sha256:") || strings.HasPrefix(line.Stream, "Loaded image")) {
				out.last(line)
			}
		}
	}()
	if failure != "" {
		out.failed(e, failure, refusal)
		return nil
	}
	done := map[string]string{"Pulling": "downloaded", "Importing": "imported", "Loading": "loaded"}
	out.line(progressLine{Status: out.verb + "... : " + done[in.verb], ID: e.nodeName()})
	return watch
}

// discardAnswer takes an answer that nobody waits for.
type discardAnswer struct{}

func (discardAnswer) Header() http.Header         { return http.Header{} }
func (discardAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (discardAnswer) WriteHeader(int)             {}

// mergedProgress is one progress stream of what several engines do. The answer
// begins with the first engine that does not refuse: when all do, the first
// refusal is the answer, with its status.
type mergedProgress struct {
	verb string

	mu       sync.Mutex
	w        http.ResponseWriter
	began    bool
	tail     []progressLine
	failures []string
	refusal  *created
}

// line writes one line.
func (m *mergedProgress) line(l progressLine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.write(l)
}

func (m *mergedProgress) write(l progressLine) {
	if !m.began {
		m.w.Header().Set("Content-Type", "application/json")
		m.w.WriteHeader(http.StatusOK)
		m.began = true
	}
	io.WriteString(m.w, jsonText(l)+"\r\n")
	http.NewResponseController(m.w).Flush()
}

// last keeps a line for the end, once though every engine says it.
func (m *mergedProgress) last(l progressLine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tail {
		if t.Stream == l.Stream && strings.Fields(t.Status + " .")[0] == strings.Fields(l.Status + " .")[0] {
			return
		}
	}
	m.tail = append(m.tail, l)
}

func (m *mergedProgress) failed(e *engine, msg string, refusal *created) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures = append(m.failures, fmt.Sprintf("node %s: %s", e.nodeName(), msg))
	if m.refusal == nil {
		m.refusal = refusal
	}
	if m.began {
		m.write(progressLine{Status: m.verb + "... : " + msg, ID: e.nodeName()})
	}
}

// finish ends the answer.
func (m *mergedProgress) finish() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	text := strings.Join(m.failures, "\n")
	switch {
	case !m.began && m.refusal != nil:
		return m.refusal.write(m.w)
	case !m.began && text != "":
		return errorf(http.StatusBadGateway, "%s", text)
	}
	for _, l := range m.tail {
		m.write(l)
	}
	if text != "" {
		m.write(progressLine{Error: text, ErrorDetail: json.RawMessage(jsonText(map[string]string{"message": text}))})
	}
	return nil
}

// bodySplit gives several engines the same request body at the pace of the slowest.
type bodySplit struct {
	from io.Reader
	in   []*io.PipeReader
	out  []*io.PipeWriter
}

// newBodySplit splits body n ways; without a body each gets none.
func newBodySplit(body io.Reader, n int) *bodySplit {
	s := &bodySplit{from: body}
	if body == nil || body == http.NoBody {
		return s
	}
	for range n {
		in, out := io.Pipe()
		s.in, s.out = append(s.in, in), append(s.out, out)
	}
	return s
}

func (s *bodySplit) reader(i int) io.Reader {
	if s.in == nil {
		return http.NoBody
	}
	return s.in[i]
}

// drop ends one engine's part: the others go on.
func (s *bodySplit) drop(i int) {
	if s.in != nil {
		s.in[i].Close()
	}
}

// pour copies the body to all until it ends or nobody takes it any more.
func (s *bodySplit) pour() {
	if s.in == nil {
		return
	}
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	var end error
	for taken := true; taken && end == nil; {
		var n int
		n, end = s.from.Read(buf[:])
		taken = false
		for _, out := range s.out {
			if _, err := out.Write(buf[:n]); err == nil {
				taken = true
			}
		}
	}
	for _, out := range s.out {
		out.CloseWithError(end) // EOF, or why the body is not whole
	}
}
