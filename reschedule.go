package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"
)

// mover makes containers anew on other nodes, when theirs is drained or has failed.
// What is under way is in the table moves; here is only who is at it.
type mover struct {
	*cluster
	after    time.Duration // a node must have been lost for so long
	recreate bool          // a drain moves containers without a policy, too
	pace     movePace

	mu   sync.Mutex
	busy map[string]bool // containers that are moved, attempts that are settled, nodes whose old containers are stopped
	wg   sync.WaitGroup

	looked, resumed int64 // monotonic nanoseconds: of the last round, of the first one after the process was stopped
	told            int64 // of the last look for bodies

	nothing storeVersion // of rows that asked for nothing to be done
}

// movePace is how fast things go; tests are in more of a hurry.
type movePace struct {
	round       time.Duration // between looks, at least
	first, last time.Duration // between attempts, doubling
	proven      time.Duration // a copy without a health check must have run for so long
	health      time.Duration // and one with a health check is waited for so long
	fresh       time.Duration // a container that was never started is left alone for so long
}

var usualPace = movePace{time.Second, 5 * time.Second, 5 * time.Minute, 2 * time.Second, 5 * time.Minute, time.Minute}

const (
	movesAtOnce = 8
	tellEvery   = 5 * time.Second  // bodies of adopted containers are looked for
	longPause   = 10 * time.Second // a round so late tells that the process was stopped: nothing is judged by it
)

func newMover(c *cluster, after time.Duration, recreate bool) *mover {
	return &mover{cluster: c, after: after, recreate: recreate, pace: usualPace, busy: map[string]bool{}}
}

// run looks for what is to be moved until ctx ends: when something has changed, and
// each second. What it is in the middle of then goes on at the next start.
func (m *mover) run(ctx context.Context) {
	defer m.wg.Wait()
	for {
		changed := m.store.room.next()
		if err := m.look(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("containers to be moved not looked for", "err", err)
		}
		select {
		case <-time.After(m.pace.round):
		case <-ctx.Done():
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// start does work in the background, unless it is being done. At most movesAtOnce at a time.
func (m *mover) start(ctx context.Context, what string, work func(context.Context) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[what] || len(m.busy) >= movesAtOnce || ctx.Err() != nil {
		return
	}
	m.busy[what] = true
	m.wg.Go(func() {
		err := work(ctx)
		if err != nil && ctx.Err() == nil {
			m.log.Warn("not moved on", "what", what, "err", oneLine(err))
		}
		m.mu.Lock()
		delete(m.busy, what)
		m.mu.Unlock()
		m.store.room.ring()
	})
}

// isBusy tells whether something is being done.
func (m *mover) isBusy(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.busy[what]
}

// look has done what there is to do.
func (m *mover) look(ctx context.Context) error {
	now := monotonic()
	if time.Duration(now-m.looked) > longPause {
		m.resumed = now
	}
	m.looked = now
	if time.Duration(now-m.told) > tellEvery {
		m.told = now
		m.start(ctx, "bodies", m.tellBodies)
	}
	version := m.store.version()
	if version == m.nothing {
		return nil
	}
	open, err := m.store.openMoves(ctx)
	if err != nil {
		return err
	}
	for _, mv := range open {
		if mv.step != "make" && !m.isBusy(mv.container) {
			m.start(ctx, mv.container, func(ctx context.Context) error { return m.settleRow(ctx, mv.id) })
		}
	}
	olds, err := m.stopOlds(ctx)
	if err != nil {
		return err
	}
	nodes, err := m.lookAtNodes(ctx)
	if err == nil && len(open)+olds+nodes == 0 {
		m.nothing = version
	}
	return err
}

// stopOlds has old containers stopped on nodes that are back. It returns on how many.
func (m *mover) stopOlds(ctx context.Context) (int, error) {
	nodes, err := m.store.ids(ctx, `SELECT DISTINCT n.id FROM moves m JOIN nodes n ON n.id = m.from_id OR n.engine_id = m.from_engine
		WHERE m.old IN ('to rename', 'to stop') AND n.state = 'healthy'`)
	for _, id := range nodes {
		if e := m.nodes.get(id); e != nil && e.healthy.Load() {
			m.start(ctx, fmt.Sprint("old containers of node ", id), func(ctx context.Context) error {
				return errors.Join(m.nodes.giveWay(ctx, e), m.nodes.stopOld(ctx, e))
			})
		}
	}
	return len(nodes), err
}

// lookAtNodes starts attempts for what is on nodes that are drained, or have been
// lost for long enough, and writes why the rest stays. It returns how many nodes may
// be such.
func (m *mover) lookAtNodes(ctx context.Context) (nodes int, err error) {
	rows, err := m.store.query(ctx, `SELECT id, state, state_at, source = 'lost' FROM nodes
		WHERE state = 'healthy' AND availability = 'drain' OR state = 'unhealthy' AND id IN (
		      SELECT c.node_id FROM container_labels l JOIN containers c ON c.id = l.container WHERE l.key = ?)`, expressionLabel("reschedule"))
	if err != nil {
		return 0, err
	}
	why := map[int64]string{}
	for rows.Next() {
		nodes++
		var id, since int64
		var state string
		var replaced bool // another host answers at its address
		if err := rows.Scan(&id, &state, &since, &replaced); err != nil {
			rows.Close()
			return 0, err
		}
		switch e := m.nodes.get(id); {
		case state == "healthy":
			why[id] = whyDrain
		case replaced && time.Since(time.Unix(since, 0)) >= m.after, e != nil && m.lost(e):
			why[id] = whyFailure
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	ids := []int64{}
	for id := range why {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if err := m.store.forgetStays(ctx, ids); err != nil {
		return 0, err
	}
	for _, id := range ids {
		if err := m.lookAt(ctx, id, why[id]); err != nil {
			return 0, err
		}
	}
	return nodes, nil
}

// lost tells whether a node does not answer for so long that its containers are to be
// made anew. Time in which this process was stopped does not count: it heard nothing.
func (m *mover) lost(e *engine) bool {
	return !e.healthy.Load() && e.trouble.Load() != nil && time.Duration(monotonic()-max(e.lostAt.Load(), m.resumed)) >= m.after
}

// forgetStays drops why containers stay on nodes that nothing has to leave any more.
func (s *store) forgetStays(ctx context.Context, left []int64) error {
	const others = "stays <> '' AND node_id NOT IN (SELECT value FROM json_each(?))"
	err := s.get(ctx, "SELECT 1 FROM containers WHERE "+others+" LIMIT 1", []any{jsonText(left)}, new(int))
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE containers SET stays = '' WHERE "+others, jsonText(left))
		return err
	})
}

// lookAt starts attempts for what is to leave one node.
func (m *mover) lookAt(ctx context.Context, node int64, why string) error {
	list, err := allLeaving(m.store.queryIn(ctx), node)
	if err != nil {
		return err
	}
	stays := map[int64]string{}
	for _, k := range list {
		reason := k.reason(why, m.recreate)
		if why == whyFailure && k.policy() != policyMove {
			reason = "" // nobody asked for it to be moved
		} else if reason == "" {
			reason = k.lastError
			ready, err := m.ready(ctx, k)
			if err != nil {
				return err
			}
			if ready {
				m.start(ctx, k.id, func(ctx context.Context) error { return m.move(ctx, k, why) })
			}
		}
		if reason != k.stays {
			stays[k.row] = reason
		}
	}
	if len(stays) == 0 {
		return nil
	}
	return m.store.write(ctx, func(t *tx) error {
		for row, reason := range stays {
			if _, err := t.exec("UPDATE containers SET stays = ? WHERE id = ?", bounded(reason), row); err != nil {
				return err
			}
		}
		return nil
	})
}

// ready tells whether it is time for an attempt. One that failed because no node that
// answers had the image waits for the image, as long as it takes.
func (m *mover) ready(ctx context.Context, k *leaving) (bool, error) {
	if k.moving {
		return false, nil // how it ends decides
	}
	if !k.lacksImage {
		return k.due(time.Now(), m.pace), nil
	}
	f, err := m.lookUpImage(ctx, k.wanted)
	if errors.Is(err, errNotFound) {
		return false, nil
	}
	return err == nil && len(m.sources(f)) > 0, err
}

// tellBodies has the engine tell what containers with a policy are made from: those
// made on their hosts, and those updated since. So it is known when a node is lost.
func (m *mover) tellBodies(ctx context.Context) error {
	rows, err := m.store.query(ctx, `
		SELECT c.node_id, c.container_id, c.swarm_id
		  FROM container_labels l JOIN containers c ON c.id = l.container JOIN nodes n ON n.id = c.node_id
		  LEFT JOIN create_bodies b ON b.key = CASE c.swarm_id WHEN '' THEN c.container_id ELSE c.swarm_id END
		 WHERE l.key = ? AND instr(l.value, ?) AND n.state = 'healthy' AND coalesce(b.stale, 1)
		   AND NOT EXISTS (SELECT 1 FROM moves m WHERE m.container_id = c.container_id AND m.outcome = 'moved') LIMIT 50`,
		expressionLabel("reschedule"), policyMove)
	if err != nil {
		return err
	}
	var list []*leaving
	for rows.Next() {
		k := &leaving{}
		if err := rows.Scan(&k.node, &k.id, &k.swarmID); err != nil {
			rows.Close()
			return err
		}
		list = append(list, k)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, k := range list {
		e := m.nodes.get(k.node)
		if e == nil || !e.healthy.Load() {
			continue
		}
		body, _, err := m.tellBody(ctx, e, k)
		if errors.Is(err, errNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("what %s on %s is made from: %w", shortID(k.id), e.nodeName(), err)
		}
		err = m.store.write(ctx, func(t *tx) error {
			if t.get("SELECT 1 FROM containers WHERE node_id = ? AND container_id = ?", []any{k.node, k.id}, new(int)) != nil {
				return nil
			}
			_, err := t.exec("INSERT OR REPLACE INTO create_bodies (key, body, version) VALUES (?,?,?)", k.key(), body.text, body.version.String())
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tellBody rebuilds a container's create body from its engine's inspect, which it
// returns as well.
func (m *mover) tellBody(ctx context.Context, e *engine, k *leaving) (*keptBody, []byte, error) {
	var in, image json.RawMessage
	if err := e.getJSON(ctx, "/containers/"+k.id+"/json", "", &in); err != nil {
		return nil, nil, err
	}
	var of struct{ Image string }
	if err := json.Unmarshal(in, &of); err != nil {
		return nil, nil, err
	}
	err := e.getJSON(ctx, "/images/"+url.PathEscape(of.Image)+"/json", "", &image)
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, nil, err
	}
	text, err := rebuildBody(in, image)
	if err == nil {
		text, err = m.askedCores(ctx, e, text)
	}
	if err != nil {
		return nil, nil, err
	}
	_, highest := e.versions()
	return &keptBody{text: string(text), version: highest}, in, nil
}
