package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// move makes one attempt: the copy first, then, if it runs, the old container is
// stopped and the copy takes its name. An attempt that the manager died in is settled
// by its row.
func (m *mover) move(ctx context.Context, k *leaving, why string) error {
	mv := &move{why: why, name: k.name, image: k.image, swarmID: k.swarmID, container: k.id, running: runs(k.state), from: k.node,
		copyName: suffixed(k.name, "-new-"+shortID(k.id))}
	if mv.swarmID == "" {
		mv.swarmID = newSwarmID()
	}
	err := m.store.write(ctx, func(t *tx) error {
		if err := t.beginMove(mv, k.attempt); err != nil {
			return err
		}
		return t.get("SELECT from_node FROM moves WHERE id = ?", []any{mv.id}, &mv.fromNode)
	})
	if errors.Is(err, errNotFound) {
		return nil // gone, or another attempt was begun
	}
	if err != nil {
		return err
	}
	err = m.makeCopy(ctx, mv, k)
	if err == nil {
		err = m.store.commitMove(ctx, mv)
	}
	if ctx.Err() != nil {
		return ctx.Err() // the next start undoes it, or goes on
	}
	if err != nil {
		if err := m.store.failMove(ctx, mv, err); err != nil {
			return err
		}
		m.log.Warn("container not moved", "container", mv.name, "node", mv.fromNode, "why", mv.why, "err", oneLine(err))
	}
	return m.settle(ctx, mv)
}

// makeCopy creates the copy on another node, placed as any create is, and sees it run.
func (m *mover) makeCopy(ctx context.Context, mv *move, k *leaving) error {
	body, networks, err := m.madeFrom(ctx, mv, k)
	if err != nil {
		return err
	}
	query, err := url.ParseQuery(body.query)
	if err != nil {
		return err
	}
	query.Set("name", mv.copyName)
	call := &call{version: body.version, query: query, client: ctx}
	text, err := followMoved(m.reader(ctx), []byte(body.text))
	if err != nil {
		return err
	}
	load, data, err := readCreateAs(text, call, mv.swarmID)
	if err != nil {
		return err
	}
	load.leaves, load.replaces = mv.from, mv.container
	networks = slices.DeleteFunc(networks, func(n attachment) bool {
		return slices.Contains(load.networks, n.network) || slices.Contains(load.networks, n.id)
	})
	for _, n := range networks {
		load.networks = append(load.networks, n.network) // it can go only where they are
	}
	if load.policy == policyMove {
		load.keepBody(data, query)
	}
	resp, err := m.create(ctx, http.Header{"Content-Type": {"application/json"}}, call, load, data)
	if err != nil {
		var none *noNodeError
		if errors.As(err, &none) {
			return errors.New(none.full())
		}
		if lacks := m.lackedImage(ctx, load.image); lacks != nil {
			return lacks
		}
		return err
	}
	if resp.status != http.StatusCreated {
		err := errors.New(engineMessage(bytes.NewReader(resp.body)))
		if lacks := m.lackedImage(ctx, load.image); resp.status == http.StatusNotFound && lacks != nil {
			return lacks
		}
		return err
	}
	var made struct{ Id string }
	if err := json.Unmarshal(resp.body, &made); err != nil {
		return err
	}
	mv.copyID = made.Id
	if err := m.store.copyMade(ctx, mv); err != nil {
		return err
	}
	e := m.nodes.get(mv.to)
	if e == nil {
		return fmt.Errorf("node %s was taken out of the cluster", mv.toNode)
	}
	for _, n := range networks {
		if err := m.connect(ctx, e, mv.copyID, n); err != nil {
			return fmt.Errorf("connect to network %s: %w", n.network, err)
		}
	}
	if !mv.running {
		return nil
	}
	if err := e.askContainer(ctx, http.MethodPost, mv.copyID+"/start", "", nil, change, http.StatusNoContent, http.StatusNotModified); err != nil {
		return fmt.Errorf("start on node %s: %w", mv.toNode, err)
	}
	e.marks.add(mark{"container", mv.copyID})
	if mv.why == whyFailure {
		return nil // nothing of it runs: whether it becomes healthy is seen afterwards
	}
	return m.proven(ctx, e, mv)
}

// madeFrom finds what the container is made from: what its create said, else what
// its engine tells now. networks are those it is on beside the first.
func (m *mover) madeFrom(ctx context.Context, mv *move, k *leaving) (body *keptBody, networks []attachment, err error) {
	e := m.nodes.get(k.node)
	here := e != nil && e.healthy.Load()
	entry := []byte(k.summary)
	body, err = keptBodyOf(func(query string, args []any, dest ...any) error { return m.store.get(ctx, query, args, dest...) }, k, here)
	switch {
	case errors.Is(err, errNotFound) && !here:
		return nil, nil, errNoBody
	case errors.Is(err, errNotFound):
		body, entry, err = m.tellBody(ctx, e, k)
	case err == nil && here:
		var in json.RawMessage
		err = e.getJSON(ctx, "/containers/"+k.id+"/json", "", &in)
		entry = in
	}
	if err != nil {
		return nil, nil, fmt.Errorf("what it was made from: %w", err)
	}
	all, err := attachments(entry, k.id)
	if err != nil {
		return nil, nil, err
	}
	first := k.mode
	if first == "" || first == "default" {
		first = "bridge"
	}
	for _, a := range all {
		if a.network != first && a.id != first && a.network != "host" && a.network != "none" {
			networks = append(networks, a)
		}
	}
	return body, networks, nil
}

// followMoved gives a create body the IDs of today where it names, by ID, containers that
// have been moved: Compose makes such references of network_mode service:x.
func followMoved(query queryFunc, data []byte) ([]byte, error) {
	var body createBody
	if err := decodeBody(data, &body); err != nil {
		return nil, err
	}
	var w workload
	w.readTies(&body)
	now := map[string]string{}
	for _, ref := range w.containers {
		if len(ref) < 12 || !isHex(ref) {
			continue
		}
		// Rows of moves go in one direction, so this ends: a copy's ID is new.
		ids, err := column[string](query(`WITH RECURSIVE later (id, move) AS (
			SELECT copy_id, id FROM moves WHERE container_id >= ?1 AND container_id < ?1 || 'g' AND outcome = 'moved'
			UNION SELECT m.copy_id, m.id FROM later JOIN moves m ON m.container_id = later.id AND m.outcome = 'moved')
			SELECT id FROM later ORDER BY move DESC LIMIT 1`, ref))
		if err != nil {
			return nil, err
		}
		if len(ids) > 0 {
			now[ref] = ids[0]
		}
	}
	if len(now) == 0 {
		return data, nil
	}
	o, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	return cutReferences(o, now).bytes(), nil
}

// connect attaches a container to one more network.
func (m *mover) connect(ctx context.Context, e *engine, container string, n attachment) error {
	body := object{}.with("Container", container)
	body = append(body, member{key: "EndpointConfig", value: n.settings})
	resp, err := e.exchange(ctx, http.MethodPost, e.url(0, "/networks/"+url.PathEscape(n.network)+"/connect", ""),
		http.Header{"Content-Type": {"application/json"}}, body.bytes(), change)
	if err == nil && resp.status != http.StatusOK {
		err = errors.New(resp.message())
	}
	return err
}

// lackedImage tells that no node that answers has an image; nil if one has.
func (m *mover) lackedImage(ctx context.Context, ref string) error {
	f, err := m.lookUpImage(ctx, ref)
	switch {
	case errors.Is(err, errNotFound):
		return &imageError{ref, "no node has it; pull it, or load it"}
	case err != nil || len(m.sources(f)) > 0:
		return nil
	}
	var name string
	if m.store.get(ctx, "SELECT name FROM nodes WHERE id = ?", []any{f.holders[0].node}, &name) != nil {
		return nil
	}
	return &imageError{ref, "only node " + name + " has it, which does not answer; pull it, or load it"}
}

// proven waits until the copy has shown that it runs: its health check passes, or
// without one it has run for a moment.
func (m *mover) proven(ctx context.Context, e *engine, mv *move) error {
	began := time.Now()
	for {
		var in struct {
			State struct {
				Status   string
				Running  bool
				ExitCode int
				Error    string
				Health   *struct {
					Status string
					Log    []struct{ Output string }
				}
			}
		}
		if err := m.store.stillDrained(ctx, mv); err != nil {
			return err
		}
		err := e.getJSON(ctx, "/containers/"+mv.copyID+"/json", "", &in)
		if errors.Is(err, errNotFound) {
			return fmt.Errorf("the copy on node %s ended and is gone", mv.toNode)
		}
		if err != nil {
			return err
		}
		s := in.State
		checked := s.Health != nil && s.Health.Status != "" && s.Health.Status != "none"
		switch {
		case s.Status == "restarting" || !s.Running:
			return fmt.Errorf("the copy on node %s ended with exit code %d%s", mv.toNode, s.ExitCode, behind(s.Error))
		case !checked && time.Since(began) >= m.pace.proven:
			return nil
		case checked && s.Health.Status == "healthy":
			return nil
		case checked && s.Health.Status == "unhealthy":
			last := ""
			if n := len(s.Health.Log); n > 0 {
				last = behind(strings.TrimSpace(s.Health.Log[n-1].Output))
			}
			return fmt.Errorf("the copy on node %s is unhealthy%s", mv.toNode, last)
		case time.Since(began) >= m.pace.health:
			return fmt.Errorf("the copy on node %s did not become healthy in %v", mv.toNode, m.pace.health)
		}
		select {
		case <-time.After(min(m.pace.proven, 500*time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// behind puts words behind others.
func behind(words string) string {
	if words == "" {
		return ""
	}
	return ": " + words[:min(len(words), 200)]
}

// settleRow settles an attempt that nobody is at.
func (m *mover) settleRow(ctx context.Context, id int64) error {
	mv := &move{} // read now: whoever was at it may just have ended it
	err := m.store.get(ctx, "SELECT "+moveColumns+" FROM moves WHERE id = ? AND step <> 'done'", []any{id}, mv.dest()...)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.settle(ctx, mv)
}

// settle brings an attempt to its end from the step that its row tells. Each part may
// have been done before.
func (m *mover) settle(ctx context.Context, mv *move) error {
	if mv.step == "undo" {
		return m.undo(ctx, mv)
	}
	return m.swap(ctx, mv)
}

// undo takes the copy of a failed attempt away, with the volumes that were made for it.
func (m *mover) undo(ctx context.Context, mv *move) error {
	err := m.store.get(ctx, "SELECT 1 FROM reservations WHERE name = ? AND swarm_id = ?", []any{mv.copyName, mv.swarmID}, new(int))
	if err == nil {
		return nil // its engine has not answered yet: a look at the node will tell what there is to undo
	}
	if !errors.Is(err, errNotFound) {
		return err
	}
	var id string
	var node int64
	err = m.store.get(ctx, "SELECT container_id, node_id FROM containers WHERE name = ? AND swarm_id = ?", []any{mv.copyName, mv.swarmID}, &id, &node)
	if errors.Is(err, errNotFound) {
		return m.store.endMove(ctx, mv, "failed", "", mv.text)
	}
	if err != nil {
		return err
	}
	e := m.nodes.get(node)
	if e == nil || !e.healthy.Load() {
		return nil // when it is back
	}
	err = e.askContainer(ctx, http.MethodDelete, id, "force=1&v=1", nil, slow, http.StatusNoContent)
	if err != nil && !errors.Is(err, errNotFound) {
		return fmt.Errorf("remove the copy %s on node %s: %w", mv.copyName, e.nodeName(), err)
	}
	if err := m.store.dropContainer(ctx, node, id); err != nil {
		return err
	}
	return m.store.endMove(ctx, mv, "failed", "", mv.text)
}

// swap stops the old container, and gives the copy its name.
func (m *mover) swap(ctx context.Context, mv *move) error {
	e := m.nodes.get(mv.to)
	if e == nil {
		return m.store.failMove(ctx, mv, fmt.Errorf("node %s was taken out of the cluster", mv.toNode))
	}
	if !e.healthy.Load() {
		return nil // when it is back
	}
	hold, err := m.store.holdForCopy(ctx, mv)
	if err != nil {
		return err
	}
	old := "to rename"
	if mv.why == whyDrain {
		if old, err = m.stopFirst(ctx, mv); err != nil || old == "" {
			return err
		}
	}
	problem := ""
	renamed, err := e.renameStopped(ctx, mv.copyID, mv.name, mv.running)
	switch {
	case errors.Is(err, errNotFound):
		problem = "the copy was removed on its host"
	case errors.As(err, new(*engineError)):
		return err
	case err != nil && renamed:
		problem = fmt.Sprintf("the copy was stopped to be renamed, and did not start again: %v", err)
	case err != nil: // made on the host a moment ago, under this name
		problem = fmt.Sprintf("the copy is called %s: %v", mv.copyName, err)
	}
	if err := m.store.renamed(ctx, hold, renamed); err != nil {
		return err
	}
	e.marks.add(mark{"container", mv.copyID})
	if err := m.store.endMove(ctx, mv, "moved", old, problem); err != nil {
		return err
	}
	m.nodes.noteChange()
	m.log.Info("container moved", "container", mv.name, "node", mv.toNode, "from", mv.fromNode, "why", mv.why, "old", old)
	return nil
}

// stopFirst stops the old container on a drained node and takes it away: removed, its
// volumes apart, or kept under another name when it has volumes that only it knows. It
// tells what became of it; "" if that has to wait.
func (m *mover) stopFirst(ctx context.Context, mv *move) (old string, err error) {
	e := m.nodes.get(mv.from)
	switch {
	case e == nil:
		return "removed", nil // taken out with its node
	case !e.healthy.Load() && m.lost(e):
		// It was lost after its copy had been made: the copy goes on, the old one gives way when it is back.
		return "to rename", m.store.dropContainer(ctx, mv.from, mv.container)
	case !e.healthy.Load():
		return "", nil
	}
	var keep bool
	if err := m.store.get(ctx, `SELECT EXISTS (SELECT 1 FROM mounts m JOIN containers c ON c.id = m.container
		WHERE c.node_id = ? AND c.container_id = ? AND `+unnamed+`)`, []any{mv.from, mv.container}, &keep); err != nil {
		return "", err
	}
	if keep {
		if err := e.noRestart(ctx, mv.container); err != nil && !errors.Is(err, errNotFound) {
			return "", err
		}
	}
	err = e.askContainer(ctx, http.MethodPost, mv.container+"/stop", "", nil, slow, http.StatusNoContent, http.StatusNotModified)
	switch {
	case errors.Is(err, errNotFound):
		return "removed", m.store.dropContainer(ctx, mv.from, mv.container)
	case errors.As(err, new(*engineError)):
		return "", err
	case err != nil:
		err = fmt.Errorf("stop on node %s: %w", mv.fromNode, err)
		return "", errors.Join(err, m.store.failMove(ctx, mv, err))
	}
	e.marks.add(mark{"container", mv.container})
	if keep {
		hold, err := m.store.holdNames(ctx, mv.from, mv.container, mv.oldName())
		if err == nil {
			err = e.renameContainer(ctx, mv.container, mv.oldName())
			err = errors.Join(err, m.store.renamed(ctx, hold, err == nil))
			e.marks.add(mark{"container", mv.container})
		}
		if statusOf(err) != http.StatusNotFound && !errors.Is(err, errNotFound) {
			return "kept", err
		}
		return "removed", nil // --rm
	}
	// An engine that is removing it by itself (--rm) answers 409, or 404 when it has.
	err = e.askContainer(ctx, http.MethodDelete, mv.container, "", nil, slow, http.StatusNoContent, http.StatusConflict)
	if err != nil && !errors.Is(err, errNotFound) {
		return "", fmt.Errorf("remove on node %s: %w", mv.fromNode, err)
	}
	e.marks.add(mark{"container", mv.container})
	return "removed", m.store.dropContainer(ctx, mv.from, mv.container)
}
