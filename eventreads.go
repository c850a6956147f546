package main

import (
	"context"
	"encoding/json"
	"sync"
)

// eventBatch is how many rows are read at once; no read stays open while the client is written to for long.
const eventBatch = 500

// eventRow is an event as it is stored.
type eventRow struct {
	id, at int64
	node   string
	event  engineEvent
	bad    bool // no event: nobody is shown it
	body   []byte
	shown  [2]struct { // its line for clients, before and from API 1.52
		once sync.Once
		line []byte
	}
}

// line is the event as a client of version v is shown it; nil if it is of an odd shape. It is
// made for the first that wants it: in a storm most events pass nobody's filters.
func (r *eventRow) line(v apiVersion) []byte {
	shown := &r.shown[0]
	if v >= 1052 {
		shown = &r.shown[1]
	}
	shown.once.Do(func() {
		if line, err := shownEvent(r.body, &r.event, r.node, v); err == nil {
			shown.line = append(line, '\n')
		}
	})
	return shown.line
}

// eventReads shares what was read after an id: of a thousand clients that follow the
// events most want the same rows next. Rows have ids in the order of their commits, so
// what followed an id once always does.
type eventReads struct {
	mu    sync.Mutex
	after int64
	rows  []*eventRow
}

// next returns the rows after id, in their order; none if there are none yet.
func (e *eventReads) next(ctx context.Context, s *store, id int64) ([]*eventRow, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.rows) > 0 && e.after == id {
		return e.rows, nil
	}
	found, err := s.query(ctx, "SELECT id, at_nano, node, body FROM events WHERE id > ? ORDER BY id LIMIT ?", id, eventBatch)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var rows []*eventRow
	for found.Next() {
		var r eventRow
		if err := found.Scan(&r.id, &r.at, &r.node, &r.body); err != nil {
			return nil, err
		}
		r.bad = json.Unmarshal(r.body, &r.event) != nil
		rows = append(rows, &r)
	}
	if err := found.Err(); err != nil {
		return nil, err
	}
	if len(rows) > 0 {
		e.after, e.rows = id, rows
	}
	return rows, nil
}

// shownEvent adds the node's name to an event, and gives or takes the fields that
// were dropped with API 1.52.
func shownEvent(body []byte, ev *engineEvent, node string, v apiVersion) ([]byte, error) {
	o, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	actor, err := parseObject(o.get("Actor"))
	if err != nil {
		return nil, err
	}
	attributes, err := parseObject(actor.get("Attributes"))
	if err != nil {
		return nil, err
	}
	if attributes.get("node.name") == nil {
		attributes = attributes.with("node.name", node)
		actor = actor.replace("Attributes", attributes.bytes())
		o = o.replace("Actor", actor.bytes())
	}
	if v >= 1052 {
		return o.without("status").without("id").without("from").bytes(), nil
	}
	if (ev.Type == "container" || ev.Type == "image") && o.get("status") == nil {
		o = o.with("status", ev.Action).with("id", ev.Actor.ID)
		if from := ev.Actor.Attributes["image"]; ev.Type == "container" && from != "" {
			o = o.with("from", from)
		}
	}
	return o.bytes(), nil
}
