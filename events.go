package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// events answers docker events from the event rows of all nodes: those since a
// time, then new ones as they come, until a time or until the client leaves.
// Times are the manager's, when an event arrived.
func events(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := parseFilters(call.query) // those that an engine does not know it lets pass here
	if err != nil {
		return err
	}
	since, _, err := eventTime(call.query.Get("since"))
	if err != nil {
		return err
	}
	until, bounded, err := eventTime(call.query.Get("until"))
	if err != nil {
		return err
	}
	if bounded && until.Before(since) {
		return errorf(http.StatusBadRequest, "`since` time (%s) cannot be after `until` time (%s)", call.query.Get("since"), call.query.Get("until"))
	}
	ctx := call.client
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	var last int64
	if since.IsZero() {
		err = c.store.get(r.Context(), "SELECT coalesce(max(id), 0) FROM events", nil, &last)
	} else {
		err = c.store.get(r.Context(), "SELECT coalesce(min(id) - 1, (SELECT coalesce(max(id), 0) FROM events)) FROM events WHERE at_nano >= ?", []any{since.UnixNano()}, &last)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	flush.Flush()
	for {
		more := c.store.newEvents() // before the look, so that none slips between
		flush.SetWriteDeadline(time.Now().Add(stuckReader))
		n, err := c.writeEvents(r.Context(), w, f, call.version, &last, until, bounded)
		if err == nil && n > 0 {
			err = flush.Flush()
		}
		flush.SetWriteDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.log.Warn("events cut: the client does not read them", "addr", r.RemoteAddr)
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the client has gone, or must not take this for the end
		}
		if n > 0 {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		case <-c.base.Done():
			return nil
		}
	}
}

// stuckReader is how long a client may leave its events unread once the buffers on
// the way are full.
const stuckReader = 5 * time.Second

// eventBatch is how many rows are read at once; no read stays open while the client is written to for long.
const eventBatch = 500

// writeEvents writes the next rows after last that pass; n is how many were looked at.
func (c *cluster) writeEvents(ctx context.Context, w http.ResponseWriter, f listFilters, v apiVersion, last *int64, until time.Time, bounded bool) (n int, err error) {
	rows, err := c.store.query(ctx, "SELECT id, at_nano, node, body FROM events WHERE id > ? ORDER BY id LIMIT ?", *last, eventBatch)
	if err != nil {
		return 0, err
	}
	type row struct{ node, body string }
	var list []row
	for rows.Next() {
		var id, at int64
		var r row
		if err := rows.Scan(&id, &at, &r.node, &r.body); err != nil {
			rows.Close()
			return 0, err
		}
		*last = id
		n++
		if !bounded || at <= until.UnixNano() {
			list = append(list, r)
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	for _, r := range list {
		var ev engineEvent
		if json.Unmarshal([]byte(r.body), &ev) != nil || !f.matchEvent(&ev, r.node) {
			continue
		}
		line, err := shownEvent([]byte(r.body), &ev, r.node, v)
		if err != nil {
			continue
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return 0, err
		}
	}
	return n, nil
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

// matchEvent tells whether an event passes; semantics are the engine's.
func (f listFilters) matchEvent(ev *engineEvent, node string) bool {
	if !f.matchAction(ev.Action) || !f.exact("type", ev.Type) || !f.exact("node", node) {
		return false
	}
	if f.has("scope") && !slices.Contains(f["scope"], "local") {
		return false
	}
	if !f.labels("label", ev.Actor.Attributes) {
		return false
	}
	for _, kind := range []string{"container", "daemon", "network", "plugin", "volume", "service", "secret", "config"} {
		// Of whatever type: an engine shows the image site:1 where container=site is asked for.
		if f.has(kind) && !f.prefixed(kind, ev.Actor.ID, ev.Actor.Attributes["name"]) {
			return false
		}
	}
	return f.matchImage(ev)
}

// matchAction compares whole words, but exec_create, exec_start and health_status
// by their beginning: "exec_start: sh" passes exec_start.
func (f listFilters) matchAction(action string) bool {
	if !f.has("event") {
		return true
	}
	word, _, long := strings.Cut(action, ":")
	return slices.Contains(f["event"], action) || long && slices.Contains(f["event"], word)
}

func (f listFilters) prefixed(key string, values ...string) bool {
	for _, want := range f[key] {
		for _, v := range values {
			if strings.HasPrefix(v, want) {
				return true
			}
		}
	}
	return false
}

// matchImage lets events of an image pass, and of containers made from it.
func (f listFilters) matchImage(ev *engineEvent) bool {
	if !f.has("image") {
		return true
	}
	name := ev.Actor.Attributes["image"]
	if ev.Type == "image" {
		name = ev.Actor.Attributes["name"]
	} else if ev.Type != "container" {
		return false
	}
	bare := name
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		bare = name[:i]
	}
	id := ev.Actor.ID
	return slices.ContainsFunc(f["image"], func(want string) bool {
		return want == name || want == bare || ev.Type == "image" && want == id
	})
}

// eventTime reads since and until: unix seconds, perhaps with a fraction.
func eventTime(s string) (at time.Time, set bool, err error) {
	if s == "" {
		return time.Time{}, false, nil
	}
	whole, fraction, _ := strings.Cut(s, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
			return at, true, nil
		}
		return time.Time{}, false, errorf(http.StatusBadRequest, "strconv.ParseInt: parsing %q: invalid syntax", s)
	}
	var nanos int64
	if fraction != "" {
		fraction = (fraction + "000000000")[:9]
		if nanos, err = strconv.ParseInt(fraction, 10, 64); err != nil {
			return time.Time{}, false, errorf(http.StatusBadRequest, "strconv.ParseInt: parsing %q: invalid syntax", s)
		}
	}
	return time.Unix(seconds, nanos), true, nil
}
