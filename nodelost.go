package main

import (
	"context"
	"errors"
	"time"
)

// replacedError ends a session with an engine that is not the node's: another host
// answers at its address. That host is a node of its own.
type replacedError struct{ node int64 }

func (e *replacedError) Error() string { return "another host answers at this address" }

// replaced finds out whether an engine is another than the one that a node had. If so
// the node is lost: it keeps its name, with -lost behind it, and its containers, until
// its engine answers somewhere again or docker node rm takes it out. The address, and
// what the operator set for it, is a new node's, whose id it returns; else 0.
func (s *store) replaced(ctx context.Context, id int64, engineID string) (other int64, err error) {
	err = s.write(ctx, func(t *tx) error {
		other = 0
		var had, name, state string
		if err := t.get("SELECT coalesce(engine_id, ''), name, state FROM nodes WHERE id = ?", []any{id}, &had, &name, &state); err != nil {
			return err
		}
		if had == "" || had == engineID {
			return nil
		}
		if state == "healthy" {
			if err := t.managerEvent(id, "engine_disconnect"); err != nil {
				return err
			}
		}
		const columns = "address, source, line_name, line_labels, line_tls, skip_verify, availability, availability_at"
		var address string
		if err := t.get("SELECT address FROM nodes WHERE id = ?", []any{id}, &address); err != nil {
			return err
		}
		lost := address + "#" + bounded(had)
		if _, err := t.exec("DELETE FROM nodes WHERE address = ? AND state = 'removed'", lost); err != nil {
			return err
		}
		name, err := t.freeNodeName(id, name+"-lost")
		if err != nil {
			return err
		}
		// A lost node has no source: nobody names it any more.
		res, err := t.exec("INSERT INTO nodes ("+columns+", name) SELECT '(new)', source, line_name, line_labels, line_tls, skip_verify, availability, availability_at, name FROM nodes WHERE id = ?", id)
		if err != nil {
			return err
		}
		if other, err = res.LastInsertId(); err != nil {
			return err
		}
		for _, do := range []struct {
			sql  string
			args []any
		}{
			{`UPDATE nodes SET address = ?, source = 'lost', state = 'unhealthy', state_at = CASE state WHEN 'unhealthy' THEN state_at ELSE strftime('%s','now') END,
				step = 'connect', error = 'another host answers at its address' WHERE id = ?`, []any{lost, id}},
			{"UPDATE nodes SET address = ?, state_at = strftime('%s','now') WHERE id = ?", []any{address, other}},
			{"INSERT INTO node_labels SELECT ?, key, value, source FROM node_labels WHERE node_id = ? AND source = 'operator'", []any{other, id}},
			{"UPDATE placements SET outcome = 'failed', message = 'its node was lost' WHERE id IN (SELECT placement_id FROM reservations WHERE node_id = ?)", []any{id}},
			{"DELETE FROM reservations WHERE node_id = ?", []any{id}},
			{"DELETE FROM renames WHERE node_id = ?", []any{id}},
		} {
			if _, err := t.exec(do.sql, do.args...); err != nil {
				return err
			}
		}
		return t.renameNode(id, name)
	})
	return other, err
}

// handOver has the new node of an address watched instead of the one that was lost
// there. It waits for its turn, unless the node is let go of meanwhile.
func (ns *nodes) handOver(ctx context.Context, e *engine, other int64) {
	for !ns.turn.TryLock() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return // whoever let it go, or the next start, finds the new node
		}
	}
	defer ns.turn.Unlock()
	ns.mu.Lock()
	w := ns.engines[e.id]
	if w != nil && w.engine == e {
		delete(ns.engines, e.id)
	}
	ns.mu.Unlock()
	if w == nil || w.engine != e || ctx.Err() != nil {
		return
	}
	left := 0
	err := ns.store.get(ctx, "SELECT count(*) FROM containers WHERE node_id = ?", []any{e.id}, &left)
	ns.log.Error("engine ID changed: another host answers at this address, the node is lost", "node", e.nodeName()+"-lost", "addr", e.addr, "containers", left)
	if err = errors.Join(err, ns.begin(ctx, other, w.line, e.nodeName())); err != nil {
		ns.log.Error("new node not watched", "addr", e.addr, "err", err)
	}
	ns.countVersions()
	ns.noteChange()
}
