package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
)

// engineEvent is one line of /events.
type engineEvent struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
	Status, ID     string // engines before 1.22 send only these
	Time, TimeNano int64

	raw json.RawMessage
}

// readEvents reads the stream until it or ctx ends, into the queue that it returns.
func readEvents(ctx context.Context, stream io.Reader) *eventQueue {
	q := &eventQueue{some: make(chan struct{}, 1)}
	q.taken = sync.NewCond(&q.mu)
	go func() { // until the stream is closed, or the queue ended
		defer context.AfterFunc(ctx, func() { q.end(ctx.Err()) })()
		in := bufio.NewReaderSize(stream, quietBuffer)
		for {
			line, err := readLine(in)
			if err != nil {
				q.end(err)
				return
			}
			if !q.put(line) {
				return
			}
		}
	}()
	return q
}

// maxBunch is how many events of a node are stored in one transaction.
const maxBunch = 256

// eventQueue is what was read of a stream and not taken yet: under load what has come while
// the last bunch was stored, up to maxBunch lines, or maxItem bytes and a line. It holds no
// room for what does not come: most nodes are silent most of the time.
type eventQueue struct {
	some chan struct{} // receives when there is something to take

	mu    sync.Mutex
	taken *sync.Cond
	lines [][]byte
	bytes int   // of lines
	err   error // why there will be no more
}

// put waits for room. It tells whether the events are still wanted.
func (q *eventQueue) put(line []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for (len(q.lines) >= maxBunch || q.bytes >= maxItem) && q.err == nil {
		q.taken.Wait()
	}
	q.lines, q.bytes = append(q.lines, line), q.bytes+len(line)
	q.tell()
	return q.err == nil
}

func (q *eventQueue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.taken.Broadcast()
	q.tell()
}

func (q *eventQueue) tell() {
	select {
	case q.some <- struct{}{}:
	default:
	}
}

// take returns the events that have come, and why there will be no more. Lines that are
// no events are skipped.
func (q *eventQueue) take() (bunch []engineEvent, err error) {
	q.mu.Lock()
	lines := q.lines
	q.lines, q.bytes, err = nil, 0, q.err
	q.taken.Broadcast()
	q.mu.Unlock()
	for _, line := range lines {
		if ev, ok := parseEvent(line); ok {
			bunch = append(bunch, ev)
		}
	}
	return bunch, err
}

func parseEvent(line []byte) (ev engineEvent, ok bool) {
	ev.raw = line
	if json.Unmarshal(line, &ev) != nil || ev.Action == "" && ev.Status == "" {
		return ev, false
	}
	if ev.Action == "" {
		ev.Type, ev.Action, ev.Actor.ID = "container", ev.Status, ev.ID
	}
	if ev.TimeNano == 0 {
		ev.TimeNano = ev.Time * second
	}
	return ev, true
}

// readLine returns the next line; one over maxItem is skipped, its memory not kept.
func readLine(in *bufio.Reader) (line []byte, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) <= maxItem {
			line = append(line, part...)
		}
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// apply owes a read for each thing that events say has changed, then stores the
// events. In this order a client that hears of an event and lists, waits for the read.
// It returns how many were not known.
func (ns *nodes) apply(ctx context.Context, e *engine, batch []engineEvent) (fresh int, err error) {
	err = ns.store.putEvents(ctx, e.id, e.nodeName(), batch, func(ev engineEvent) {
		fresh++
		for _, k := range eventMarks(ev) {
			e.marks.add(k)
		}
	})
	return fresh, err
}

// eventMarks tells what an event asks to read again. Execs, attach, top and copies
// change nothing that a list shows; health checks are execs, so they are many.
func eventMarks(ev engineEvent) []mark {
	action, _, _ := strings.Cut(ev.Action, ":")
	id := ev.Actor.ID
	switch ev.Type {
	case "container":
		switch action {
		case "exec_create", "exec_start", "exec_die", "exec_detach", "attach", "detach", "top", "resize", "copy",
			"archive-path", "extract-to-dir", "export", "kill":
			return nil
		case "commit":
			return []mark{{"images", ""}}
		case "update":
			return []mark{{"update", id}}
		case "die", "pause", "unpause", "oom": // told before the engine's list shows it
			return []mark{{"busy", id}}
		}
		return []mark{{"container", id}}
	case "image":
		return []mark{{"images", ""}}
	case "node": // of Docker's Swarm mode: the engine's part in its swarm may have changed
		return []mark{{"info", ""}}
	case "network":
		var marks []mark
		// That a container is on a bridge, every container at its start, changes nothing in the network's
		// list entry. Of a swarm's network it may be what brings it to this node.
		if driver := ev.Actor.Attributes["type"]; action != "connect" && action != "disconnect" || driver != "bridge" && driver != "host" && driver != "null" {
			marks = append(marks, mark{"network", id})
		}
		if ev.Actor.Attributes["name"] == "ingress" { // made when an engine joins a swarm
			marks = append(marks, mark{"info", ""})
		}
		if c := ev.Actor.Attributes["container"]; c != "" {
			marks = append(marks, mark{"container", c})
		}
		return marks
	case "volume":
		if action == "mount" || action == "unmount" {
			return nil
		}
		return []mark{{"volume", id}}
	case "daemon":
		return []mark{{"info", ""}}
	}
	return nil
}
