package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/sync/errgroup"
)

// Why containers are moved.
const (
	whyDrain   = "drain"
	whyFailure = "node failure"
)

// move is one attempt to make a container anew on another node: a row of moves.
type move struct {
	id                  int64
	why                 string
	name, image         string
	swarmID, container  string // of the old one
	running             bool
	from, to            int64 // nodes; to is 0 until the copy is made
	fromNode, toNode    string
	copyName, copyID    string
	step, outcome, text string // text is the error
}

const moveColumns = `id, why, name, image, swarm_id, container_id, running, from_id, from_node, copy_name, copy_id, coalesce(to_id, 0), to_node, step, outcome, error`

func (m *move) dest() []any {
	return []any{&m.id, &m.why, &m.name, &m.image, &m.swarmID, &m.container, &m.running, &m.from, &m.fromNode, &m.copyName, &m.copyID, &m.to, &m.toNode,
		&m.step, &m.outcome, &m.text}
}

// runs tells whether the copy of a container in this state is to be started.
func runs(state string) bool {
	switch state {
	case "running", "restarting", "paused", "stopping":
		return true
	}
	return false
}

// openMoves are the attempts that have come to a step and not to their end.
func (s *store) openMoves(ctx context.Context) ([]*move, error) {
	rows, err := s.query(ctx, "SELECT "+moveColumns+" FROM moves WHERE step <> 'done' ORDER BY id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []*move
	for rows.Next() {
		m := &move{}
		if err := rows.Scan(m.dest()...); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, rows.Err()
}

// suffixed is a name with something behind it, within the bound on names.
func suffixed(name, suffix string) string { return name[:min(len(name), maxName-len(suffix))] + suffix }

// oldName is what an old container is called once its copy has the name.
func (m *move) oldName() string { return suffixed(m.name, "-old-"+shortID(m.container)) }

// keptMoves is how many ended attempts the ledger keeps.
const keptMoves = 10000

// beginMove writes a new attempt. It returns errNotFound if the container is gone, or if
// there was another attempt behind last, which is what was known when this was decided.
func (t *tx) beginMove(m *move, last int64) error {
	m.step, m.outcome = "make", "under way"
	res, err := t.exec(`
		INSERT INTO moves (why, name, image, swarm_id, container_id, running, from_id, from_node, from_engine, copy_name)
		SELECT ?, c.name, c.image, ?, c.container_id, ?, c.node_id, n.name, coalesce(n.engine_id, ''), ?
		  FROM (SELECT * FROM containers WHERE node_id = ? AND container_id = ?) c JOIN nodes n ON n.id = c.node_id
		 WHERE NOT EXISTS (SELECT 1 FROM moves o WHERE o.container_id = c.container_id AND (o.step <> 'done' OR o.id > ?))`,
		m.why, m.swarmID, m.running, m.copyName, m.from, m.container, last)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); n == 0 || err != nil {
		return errors.Join(errNotFound, err)
	}
	if m.id, err = res.LastInsertId(); err != nil {
		return err
	}
	_, err = t.exec("DELETE FROM moves WHERE id <= ? AND step = 'done' AND outcome = 'failed'", m.id-keptMoves)
	return err
}

// told tells those who watch what became of a move.
func (t *tx) told(m *move, action string) error {
	actor, node := m.copyID, m.toNode
	attributes := map[string]string{"name": m.name, "image": m.image, "why": m.why, "from": m.fromNode, "old.id": m.container}
	if action != "reschedule" {
		actor, node, attributes["error"] = m.container, m.fromNode, m.text
	}
	if m.toNode != "" {
		attributes["to"] = m.toNode
	}
	attributes["node.name"] = node
	return t.swarmEvent(action, actor, node, attributes)
}

// giveWay has old containers on a node give way to copies that were made of them
// while it was lost: they lose their names, and do not start again by themselves. It
// comes before the node is listed, so that no name is there twice.
func (ns *nodes) giveWay(ctx context.Context, e *engine) error {
	return ns.eachOld(ctx, e, "to rename", func(ctx context.Context, m *move) error {
		if err := e.noRestart(ctx, m.container); err != nil {
			return err
		}
		if _, err := e.renameStopped(ctx, m.container, m.oldName(), false); err != nil {
			return err
		}
		ns.log.Warn("container is back with its node, and runs elsewhere by now: renamed, to be stopped", "container", m.oldName(), "node", e.nodeName(), "runs_on", m.toNode)
		return ns.store.oldIs(ctx, m, "to stop")
	})
}

// stopOld stops what giveWay has renamed. Its volumes stay, and so does the container.
func (ns *nodes) stopOld(ctx context.Context, e *engine) error {
	return ns.eachOld(ctx, e, "to stop", func(ctx context.Context, m *move) error {
		if err := e.askContainer(ctx, http.MethodPost, m.container+"/stop", "", nil, slow, http.StatusNoContent, http.StatusNotModified); err != nil {
			return err
		}
		e.marks.add(mark{"container", m.container})
		ns.log.Info("old container stopped", "container", m.oldName(), "node", e.nodeName())
		return ns.store.oldIs(ctx, m, "kept")
	})
}

// eachOld does something with each old container on a node that waits for it. One
// that is no more waits for nothing.
func (ns *nodes) eachOld(ctx context.Context, e *engine, state string, do func(context.Context, *move) error) error {
	rows, err := ns.store.query(ctx, "SELECT "+moveColumns+` FROM moves WHERE old = ?1
		AND (from_id = ?2 OR from_engine = (SELECT engine_id FROM nodes WHERE id = ?2))`, state, e.id)
	if err != nil {
		return err
	}
	defer rows.Close()
	var g errgroup.Group
	g.SetLimit(4)
	for rows.Next() {
		m := &move{}
		if err := rows.Scan(m.dest()...); err != nil {
			return err
		}
		g.Go(func() error {
			err := do(ctx, m)
			if errors.Is(err, errNotFound) {
				return ns.store.oldIs(ctx, m, "removed")
			}
			return err
		})
	}
	return errors.Join(g.Wait(), rows.Err())
}

// oldIs writes what has become of the old container.
func (s *store) oldIs(ctx context.Context, m *move, what string) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE moves SET old = ? WHERE id = ?", what, m.id)
		if err != nil || what != "to stop" {
			return err
		}
		return t.told(&move{why: m.why, name: m.oldName(), image: m.image, container: m.container, fromNode: m.fromNode, toNode: m.toNode,
			text: "it runs on node " + m.toNode + " by now"}, "reschedule_old")
	})
}

// imageError is an attempt that failed because no node that answers has the image.
type imageError struct{ image, words string }

func (e *imageError) Error() string { return fmt.Sprintf("image %s: %s", e.image, e.words) }

// copyMade writes where the copy is.
func (s *store) copyMade(ctx context.Context, m *move) error {
	return s.write(ctx, func(t *tx) error {
		err := t.get("SELECT n.id, n.name FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.container_id = ? AND c.swarm_id = ?", []any{m.copyID, m.swarmID}, &m.to, &m.toNode)
		if errors.Is(err, errNotFound) {
			return errors.New("the copy was removed, or its node was taken out of the cluster")
		}
		if err == nil {
			_, err = t.exec("UPDATE moves SET copy_id = ?, to_id = ?, to_node = ? WHERE id = ?", m.copyID, m.to, m.toNode, m.id)
		}
		return err
	})
}

// commitMove decides that the copy takes over, if that is still wanted: from here on
// the attempt goes on whatever happens. A lost container is dropped in the same act.
func (s *store) commitMove(ctx context.Context, m *move) error {
	return s.write(ctx, func(t *tx) error {
		var state, availability, container, name string
		err := t.get(`SELECT n.state, n.availability, c.state, c.name FROM nodes n LEFT JOIN containers c ON c.node_id = n.id AND c.container_id = ?
			WHERE n.id = ? AND c.id IS NOT NULL`, []any{m.container, m.from}, &state, &availability, &container, &name)
		switch {
		case errors.Is(err, errNotFound):
			return errors.New("it was removed meanwhile")
		case err != nil:
			return err
		case m.why == whyDrain && availability != "drain":
			return fmt.Errorf("node %s is %s again", m.fromNode, availability)
		case m.why == whyFailure && state == "healthy":
			return fmt.Errorf("node %s is back", m.fromNode)
		case m.running != runs(container):
			return fmt.Errorf("it is %s by now", container)
		}
		m.name, m.step = name, "swap"
		if m.why == whyFailure {
			if _, err := t.exec("DELETE FROM containers WHERE node_id = ? AND container_id = ?", m.from, m.container); err != nil {
				return err
			}
			if _, err := t.exec("UPDATE moves SET old = 'to rename' WHERE id = ?", m.id); err != nil {
				return err
			}
			if _, err := t.holdForCopy(m); err != nil {
				return err
			}
		}
		_, err = t.exec("UPDATE moves SET step = 'swap', name = ? WHERE id = ?", name, m.id)
		return err
	})
}

// stillDrained ends an attempt whose node was opened again meanwhile.
func (s *store) stillDrained(ctx context.Context, m *move) error {
	var availability string
	err := s.get(ctx, "SELECT availability FROM nodes WHERE id = ?", []any{m.from}, &availability)
	if err == nil && availability != "drain" {
		err = fmt.Errorf("node %s is %s again", m.fromNode, availability)
	}
	return err
}

// holdForCopy holds the name for the copy, which is free to nobody else while the old
// container is stopped and removed. It finds the hold that it made before.
func (s *store) holdForCopy(ctx context.Context, m *move) (hold int64, err error) {
	err = s.write(ctx, func(t *tx) error {
		hold, err = t.holdForCopy(m)
		return err
	})
	return hold, err
}

func (t *tx) holdForCopy(m *move) (hold int64, err error) {
	err = t.get("SELECT id FROM renames WHERE node_id = ? AND container_id = ? AND name = ?", []any{m.to, m.copyID, m.name}, &hold)
	if !errors.Is(err, errNotFound) {
		return hold, err
	}
	res, err := t.exec("INSERT INTO renames (node_id, container_id, name, old_name) VALUES (?,?,?,?)", m.to, m.copyID, m.name, m.copyName)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// failMove writes why an attempt failed. What there is of its copy is to be taken away.
func (s *store) failMove(ctx context.Context, m *move, cause error) error {
	m.step, m.text = "undo", cause.Error()
	var lacks *imageError
	if errors.As(cause, &lacks) {
		m.image = lacks.image // as it was asked for: the row of a container may say an ID
	}
	return s.write(ctx, func(t *tx) error {
		if _, err := t.exec("DELETE FROM renames WHERE node_id = ? AND container_id = ?", m.to, m.copyID); err != nil {
			return err
		}
		_, err := t.exec("UPDATE moves SET step = 'undo', error = ?, lacks_image = ?, image = ? WHERE id = ?", bounded(m.text), lacks != nil, bounded(m.image), m.id)
		return err
	})
}

// endMove closes an attempt, and tells those who watch.
func (s *store) endMove(ctx context.Context, m *move, outcome, old, problem string) error {
	m.step, m.outcome, m.text = "done", outcome, problem
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE moves SET step = 'done', outcome = ?, error = ?, ended_at = strftime('%s','now'),
			old = CASE old WHEN '' THEN ?3 ELSE old END WHERE id = ?`, outcome, bounded(problem), old, m.id)
		if err != nil {
			return err
		}
		if outcome == "failed" {
			return t.told(m, "reschedule_failed")
		}
		if _, err := t.exec("UPDATE placements SET name = ? WHERE container_id = ? AND container_id <> '' AND name = ?", m.name, m.copyID, m.copyName); err != nil {
			return err
		}
		// With -relay-ports: the number that the old one had is free for the copy now.
		if _, err := t.exec("DELETE FROM relays WHERE listen_port <> host_port AND container IN (SELECT id FROM containers WHERE node_id = ? AND container_id = ?)", m.to, m.copyID); err != nil {
			return err
		}
		return t.told(m, "reschedule")
	})
}
