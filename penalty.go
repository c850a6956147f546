package main

import (
	"context"
	"net/http"
)

const (
	penaltyAfter = 3 // starts and creates in a row that an engine failed at: it comes last then
	penaltyMost  = 8 // minutes that this is remembered for
)

// noteWork notes how an engine answered when it was to start or create a container.
// One that fails again and again at what others can do (its disk is full, its runtime
// is broken) answers pings all the same: it stays a node, and is chosen last.
func (ns *nodes) noteWork(ctx context.Context, e *engine, start bool, status int) {
	if status < http.StatusInternalServerError {
		if start && status == http.StatusNoContent {
			e.failed.Store(0)
		}
		return
	}
	if e.failed.Add(1) != penaltyAfter {
		return
	}
	ns.log.Warn("node chosen last: it fails at starting containers", "node", e.nodeName(), "times", penaltyAfter)
	if err := ns.store.nodePenalty(ctx, e.id); err != nil {
		ns.log.Error("node state not written", "node", e.nodeName(), "err", err)
	}
}

// calm forgets a little of what a node failed at; it is called once a minute. last tells
// that the node's row has it chosen last.
func (ns *nodes) calm(ctx context.Context, e *engine, last bool) error {
	if n := e.failed.Load(); n > 0 {
		e.failed.CompareAndSwap(n, min(n, penaltyMost)-1)
	}
	if !last || e.failed.Load() >= penaltyAfter {
		return nil
	}
	return ns.store.nodeCalm(ctx, e.id)
}

func (s *store) nodePenalty(ctx context.Context, id int64) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE nodes SET failures = 3 WHERE id = ?", id)
		return err
	})
}
