package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	timetypes "github.com/docker/docker/api/types/time"
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
	c.store.followers.Add(1)
	defer c.store.followers.Add(-1)
	for {
		more := c.store.newEvents() // before the look, so that none slips between
		rows, err := c.reads.next(r.Context(), c.store, last)
		if err == nil && len(rows) > 0 {
			last = rows[len(rows)-1].id
			flush.SetWriteDeadline(time.Now().Add(stuckReader))
			if err = writeEvents(w, rows, f, call.version, until, bounded); err == nil {
				err = flush.Flush()
			}
			flush.SetWriteDeadline(time.Time{})
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.log.Warn("events cut: the client does not read them", "addr", r.RemoteAddr)
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the client has gone, or must not take this for the end
		}
		if len(rows) > 0 {
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

// writeEvents writes those of rows that pass.
func writeEvents(w http.ResponseWriter, rows []*eventRow, f listFilters, v apiVersion, until time.Time, bounded bool) error {
	for _, r := range rows {
		if r.bad || bounded && r.at > until.UnixNano() || !f.matchEvent(&r.event, r.node) {
			continue
		}
		if _, err := w.Write(r.line(v)); err != nil {
			return err
		}
	}
	return nil
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
	seconds, nanos, err := timetypes.ParseTimestamps(s, -1)
	if err != nil {
		if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
			return at, true, nil
		}
		return time.Time{}, false, errorf(http.StatusBadRequest, "%v", err)
	}
	if seconds == -1 { // an engine's own sign for no time
		return time.Time{}, false, nil
	}
	return time.Unix(seconds, nanos), true, nil
}
