package main

import (
	"context"
	"errors"
	"strings"
	"time"
)

// putEvents stores events that were not seen before, by time, thing and action:
// a new subscription begins before the old one ended. fresh is called for each
// before it can be read.
func (s *store) putEvents(ctx context.Context, node int64, name string, batch []engineEvent, fresh func(engineEvent)) error {
	return s.writeWithin(ctx, s.eventWait(), func(t *tx) error {
		for _, ev := range batch {
			if ev.Type == "container" && ev.Action == "destroy" {
				// A list may have been faster.
				if told, err := t.destroyTold(node, ev.Actor.ID); err != nil {
					return err
				} else if told {
					continue
				}
			}
			res, err := t.exec("INSERT OR IGNORE INTO events (at_nano, node_id, node, time_nano, type, action, actor, body) VALUES (?,?,?,?,?,?,?,?)",
				time.Now().UnixNano(), node, name, ev.TimeNano, bounded(ev.Type), bounded(ev.Action), bounded(ev.Actor.ID), strings.TrimSpace(summaryText(ev.raw)))
			if err != nil {
				return err
			}
			if n, _ := res.RowsAffected(); n == 0 {
				continue
			}
			fresh(ev)
			t.newEvents = true
		}
		return nil
	})
}

// destroyTold tells whether those who watch have heard lately that a container is no more.
func (t *tx) destroyTold(node int64, id string) (bool, error) {
	err := t.get("SELECT 1 FROM events WHERE at_nano > ? AND node_id = ? AND actor = ? AND action = 'destroy' AND type = 'container' LIMIT 1",
		[]any{time.Now().Add(-2 * listEvery).UnixNano(), node, id}, new(int))
	if errors.Is(err, errNotFound) {
		return false, nil
	}
	return err == nil, err
}

// destroyed stores the event of a container whose own was lost: its engine was down
// when it went, or lost all it had.
func (t *tx) destroyed(node int64, id, name, image string, labels map[string]string) error {
	var nodeName string
	if err := t.get("SELECT name FROM nodes WHERE id = ?", []any{node}, &nodeName); err != nil {
		return err
	}
	now := time.Now()
	attributes := map[string]string{}
	for k, v := range labels {
		if k != nodeLabel {
			attributes[k] = v
		}
	}
	attributes["name"], attributes["image"] = name, image
	body := jsonText(map[string]any{
		"status": "destroy", "id": id, "from": image, "Type": "container", "Action": "destroy", "scope": "local",
		"Actor": map[string]any{"ID": id, "Attributes": attributes}, "time": now.Unix(), "timeNano": now.UnixNano()})
	_, err := t.exec("INSERT OR IGNORE INTO events (at_nano, node_id, node, time_nano, type, action, actor, body) VALUES (?,?,?,?,'container','destroy',?,?)",
		now.UnixNano(), node, nodeName, now.UnixNano(), id, body)
	t.newEvents = true
	return err
}

// managerEvent stores an event of the cluster's own about a node, in classic Swarm's words.
func (t *tx) managerEvent(node int64, action string) error {
	var name, addr, ip, engineID string
	if err := t.get("SELECT name, address, ip, coalesce(engine_id, '') FROM nodes WHERE id = ?", []any{node}, &name, &addr, &ip, &engineID); err != nil {
		return err
	}
	return t.swarmEvent(action, engineID, name, map[string]string{
		"node.name": name, "node.addr": strings.TrimPrefix(addr, "tcp://"), "node.ip": ip, "node.id": engineID})
}

// swarmEvent stores an event of type swarm. node is the name that filters look at.
func (t *tx) swarmEvent(action, actor, node string, attributes map[string]string) error {
	now := time.Now()
	body := jsonText(map[string]any{
		"status": action, "id": actor, "from": "swarm", "Type": "swarm", "Action": action, "scope": "local",
		"Actor": map[string]any{"ID": actor, "Attributes": attributes},
		"time":  now.Unix(), "timeNano": now.UnixNano()})
	_, err := t.exec("INSERT INTO events (at_nano, node, time_nano, type, action, actor, body) VALUES (?,?,?,'swarm',?,?,?)",
		now.UnixNano(), node, now.UnixNano(), action, actor, body)
	t.newEvents = true
	return err
}
