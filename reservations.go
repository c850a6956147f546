package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// swarmIDLabel is given to every container that is created through the cluster:
// by it a container is found again whose create was never answered.
const swarmIDLabel = "com.docker.swarm.id"

// placement is a decision that was made: room on a node until it is created or released.
type placement struct {
	id, reservation int64
	node            int64
	nodeName        string
	name            string           // the workload's, or the one that was found for it
	devices         map[int][]string // picked for the create's device requests, by their number from 1
}

// graceUnknown is how long an engine may still be at work on a create that
// nobody waits for any more. It finishes such a create as if the client were there,
// and one that was hung begins with it only when it comes back.
const graceUnknown = 5 * time.Second

// created turns a reservation into the container's row, in one transaction,
// before the client hears 201. first is the row as the create described it; if
// an event was faster the row is there already and only what it reserves is added.
func (s *store) created(ctx context.Context, p *placement, first *containerRow, engineTime time.Duration) error {
	return s.writeWithin(ctx, s.createWait(), func(t *tx) error {
		return t.reservationToContainer(p.reservation, first, engineTime)
	})
}

func (t *tx) reservationToContainer(reservation int64, first *containerRow, engineTime time.Duration) error {
	var node, placement int64
	var row *int64 // of the container, if it is there
	var state *string
	var counted *bool
	held := &heldRoom{}
	err := t.get(`SELECT r.node_id, r.placement_id, r.nano_cpus, r.memory_bytes, c.id, c.state, c.counted
		FROM reservations r LEFT JOIN containers c ON c.container_id = ? AND c.node_id = r.node_id WHERE r.id = ?`,
		[]any{first.id, reservation}, &node, &placement, &held.nanoCPUs, &held.memory, &row, &state, &counted)
	if err != nil {
		return err // errNotFound: the node was taken out of the cluster meanwhile
	}
	n, err := t.nodeFace(node)
	if err != nil {
		return err
	}
	if state == nil {
		state, counted = &first.state, new(bool)
	}
	counts := n.countStopped || counts(*state)
	if counts && !*counted { // nothing changes for the node: its sums are in four indexes
		if _, err := t.exec("UPDATE reservations SET state = 'taken' WHERE id = ?", reservation); err != nil {
			return err
		}
	}
	which := "host_ip = 'host'" // a running container's list has told what it publishes
	if *state == "created" {
		which = "1"
	}
	if row == nil {
		first.held = held
		var rows newRows
		if _, err := t.putContainerOver(n, first, nil, &rows); err != nil {
			return err
		}
		if err := t.insert(&rows); err != nil {
			return err
		}
		row = &first.row
	} else {
		if _, err := t.exec("UPDATE containers SET inspected = 1, nano_cpus = ?, memory_bytes = ?, counted = ? WHERE id = ?",
			held.nanoCPUs, held.memory, counts, *row); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM ports WHERE container = ? AND "+which, *row); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM resources WHERE container = ?", *row); err != nil {
			return err
		}
	}
	if err := t.putNamespaces(*row, first.namespaces); err != nil {
		return err
	}
	if _, err := t.exec("INSERT OR IGNORE INTO port_ranges SELECT ?, protocol, host_port, last_port FROM ports WHERE reservation = ? AND last_port > host_port", *row, reservation); err != nil {
		return err
	}
	if _, err := t.exec("UPDATE ports SET container = ?, reservation = NULL WHERE reservation = ? AND "+which, *row, reservation); err != nil {
		return err
	}
	if _, err := t.exec("UPDATE resources SET container = ?, reservation = NULL WHERE reservation = ?", *row, reservation); err != nil {
		return err
	}
	if _, err := t.exec("DELETE FROM reservations WHERE id = ?", reservation); err != nil {
		return err
	}
	_, err = t.exec("UPDATE placements SET outcome = 'created', container_id = ?, engine_us = ?, message = '' WHERE id = ?", first.id, engineTime.Microseconds(), placement)
	return err
}

// release gives the room back. outcome is failed, or moved when the engine was not asked.
func (s *store) release(ctx context.Context, p *placement, outcome, message string, engineTime time.Duration) error {
	defer s.room.ring()
	return s.write(ctx, func(t *tx) error {
		if _, err := t.exec("DELETE FROM reservations WHERE id = ?", p.reservation); err != nil {
			return err
		}
		_, err := t.exec("UPDATE placements SET outcome = ?, message = ?, engine_us = ? WHERE id = ?", outcome, bounded(message), engineTime.Microseconds(), p.id)
		return err
	})
}

// outcome writes what came of a placement that reserved no room.
func (s *store) outcome(ctx context.Context, p *placement, outcome, message string, engineTime time.Duration) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE placements SET outcome = ?, message = ?, engine_us = ? WHERE id = ?", outcome, bounded(message), engineTime.Microseconds(), p.id)
		return err
	})
}

// unknown keeps a reservation whose engine was asked and has not answered; a
// look at the node settles it.
func (s *store) unknown(ctx context.Context, p *placement, message string, engineTime time.Duration) error {
	return s.write(ctx, func(t *tx) error {
		if _, err := t.exec("UPDATE reservations SET state = 'unknown', made_at = strftime('%s','now') WHERE id = ?", p.reservation); err != nil {
			return err
		}
		_, err := t.exec("UPDATE placements SET outcome = 'unknown', message = ?, engine_us = ? WHERE id = ?", bounded(message), engineTime.Microseconds(), p.id)
		return err
	})
}

type openReservation struct {
	id, placement       int64
	kind, name, swarmID string
	made                time.Time
}

// overdue tells whether the engine must have done by now what it was asked. One that was
// made in the future was made before the clock was set back.
func (r *openReservation) overdue() bool {
	age := time.Since(r.made)
	return age > graceUnknown || age < -time.Second
}

func (s *store) unknownReservations(ctx context.Context, node int64) ([]openReservation, error) {
	rows, err := s.query(ctx, "SELECT id, placement_id, kind, name, swarm_id, made_at FROM reservations WHERE node_id = ? AND state = 'unknown'", node)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []openReservation
	for rows.Next() {
		var r openReservation
		var made int64
		if err := rows.Scan(&r.id, &r.placement, &r.kind, &r.name, &r.swarmID, &made); err != nil {
			return nil, err
		}
		r.made = time.Unix(made, 0)
		list = append(list, r)
	}
	return list, rows.Err()
}

// unsettledNodes are the nodes that have creates that nobody waits for.
func (s *store) unsettledNodes(ctx context.Context) ([]int64, error) {
	return s.ids(ctx, "SELECT DISTINCT node_id FROM reservations WHERE state = 'unknown'")
}

// settleReservations looks at the node for each create that nobody waits for:
// what is there is adopted, what is not, and can no longer come, is released.
func (ns *nodes) settleReservations(ctx context.Context, e *engine) error {
	list, err := ns.store.unknownReservations(ctx, e.id)
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.kind != "container" {
			if err := ns.settleThing(ctx, e, r); err != nil {
				return err
			}
			continue
		}
		var found []json.RawMessage
		if err := e.getJSON(ctx, "/containers/json", filterQuery("label", swarmIDLabel+"="+r.swarmID), &found); err != nil {
			return err
		}
		if found, err = ns.store.withoutOld(ctx, found); err != nil {
			return err
		}
		switch {
		case len(found) > 0:
			err = ns.store.adopt(ctx, e.id, r, found[0])
			ns.log.Info("create found on its node", "node", e.nodeName(), "id", r.swarmID)
		case r.overdue() && time.Duration(monotonic()-e.began.Load()) > graceUnknown:
			err = ns.store.release(ctx, &placement{id: r.placement, reservation: r.id}, "failed", "the engine did not make it", 0)
			ns.log.Info("create not found on its node, room released", "node", e.nodeName(), "id", r.swarmID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withoutOld leaves out, of containers with one com.docker.swarm.id, those that were
// moved away: what is looked for is their copy.
func (s *store) withoutOld(ctx context.Context, found []json.RawMessage) (kept []json.RawMessage, err error) {
	for _, raw := range found {
		var entry struct{ Id string }
		if err := json.Unmarshal(raw, &entry); err != nil {
			return nil, fmt.Errorf("bad list entry: %w", err)
		}
		err := s.get(ctx, "SELECT 1 FROM moves WHERE container_id = ? AND (outcome = 'moved' OR step = 'swap')", []any{entry.Id}, new(int))
		if errors.Is(err, errNotFound) {
			kept = append(kept, raw)
		} else if err != nil {
			return nil, err
		}
	}
	return kept, nil
}

func (s *store) adopt(ctx context.Context, node int64, r openReservation, entry json.RawMessage) error {
	return s.write(ctx, func(t *tx) error {
		n, err := t.nodeFace(node)
		if err != nil {
			return err
		}
		row, err := n.container(entry)
		if err != nil {
			return fmt.Errorf("bad list entry: %w", err)
		}
		if _, err := t.putContainer(n, row); err != nil {
			return err
		}
		err = t.reservationToContainer(r.id, row, 0)
		if errors.Is(err, errNotFound) {
			return nil // settled by another hand
		}
		if err == nil { // a list does not tell whose namespaces it joins
			_, err = t.exec("UPDATE containers SET inspected = 0 WHERE node_id = ? AND container_id = ?", node, row.id)
		}
		return err
	})
}

// settleThing looks at the node for a network or volume whose create was never
// answered: by its name, which nobody else can have taken meanwhile.
func (ns *nodes) settleThing(ctx context.Context, e *engine, r openReservation) error {
	var found json.RawMessage
	var err error
	switch {
	case r.kind == "network":
		var list []json.RawMessage
		err = e.getJSON(ctx, "/networks", filterQuery("name", "^"+regexp.QuoteMeta(r.name)+"$"), &list)
		if len(list) > 0 {
			found = list[0]
		}
	case r.name != "":
		err = e.getJSON(ctx, volumePath(r.name), "", &found)
	}
	if err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	if found == nil && !r.overdue() {
		return nil
	}
	ns.log.Info("create without answer settled", "node", e.nodeName(), r.kind, r.name, "found", found != nil)
	return ns.store.write(ctx, func(t *tx) error {
		outcome, message := "failed", "the engine did not make it"
		if found != nil {
			outcome, message = "created", ""
			put := t.putNetworkRow
			if r.kind == "volume" {
				put = t.putVolumeRow
			}
			if _, err := put(e.id, found, nil); err != nil {
				return err
			}
		}
		if _, err := t.exec("DELETE FROM reservations WHERE id = ?", r.id); err != nil {
			return err
		}
		_, err := t.exec("UPDATE placements SET outcome = ?, message = ? WHERE id = ?", outcome, message, r.placement)
		return err
	})
}

// letGo lets go of the names held for renames (a JSON list of ids) that were answered
// before what is written in t was read.
func (t *tx) letGo(renames string) error {
	if renames == "[]" || renames == "" {
		return nil
	}
	_, err := t.exec("DELETE FROM renames WHERE id IN (SELECT value FROM json_each(?))", renames)
	return err
}
