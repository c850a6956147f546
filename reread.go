package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
)

// readMarks reads things again, one, or several containers, and writes or deletes their rows.
// What goes wrong is left to the next list, which comes soon if it was the database.
func (ns *nodes) readMarks(ctx context.Context, e *engine, ks []mark) {
	if err := ns.readThings(ctx, e, ks); err != nil && ctx.Err() == nil {
		if isStoreFault(err) {
			select {
			case e.unwritten <- err:
			default:
			}
			return
		}
		ns.log.Warn("not read again", "node", e.nodeName(), "what", ks[0].kind, "id", ks[0].id, "of", len(ks), "err", err)
	}
}

func (ns *nodes) readThings(ctx context.Context, e *engine, ks []mark) error {
	switch k := ks[0]; k.kind {
	case "busy":
		// An inspect waits until the engine has done with the container. Its list does not.
		if err := e.getJSON(ctx, "/containers/"+url.PathEscape(k.id)+"/json", "", &inspected{}); err != nil && !errors.Is(err, errNotFound) {
			return err
		}
		return ns.readContainers(ctx, e, k.id)
	case "container":
		var ids []string
		for _, k := range ks {
			ids = append(ids, k.id)
		}
		return ns.readContainers(ctx, e, ids...)
	case "look": // a list has told all else; of a thousand nodes not all at once, and behind those that still connect
		for _, places := range []chan struct{}{ns.looking, ns.starting} {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			defer func() { <-places }()
		}
		return ns.inspectContainer(ctx, e, k.id)
	case "update": // what it reserves may have changed, which only an inspect tells
		err := ns.store.write(ctx, func(t *tx) error {
			_, err := t.exec(`UPDATE create_bodies SET stale = 1 WHERE key IN (SELECT CASE swarm_id WHEN '' THEN container_id ELSE swarm_id END
				FROM containers WHERE node_id = ? AND container_id = ?)`, e.id, k.id)
			if err != nil {
				return err
			}
			_, err = t.exec("UPDATE containers SET inspected = 0 WHERE node_id = ? AND container_id = ?", e.id, k.id)
			return err
		})
		if err != nil {
			return err
		}
		return ns.readContainers(ctx, e, k.id)
	case "images":
		var images []json.RawMessage
		if err := e.getWithin(ctx, "/images/json", "all=1", &images, newRoom(maxAnswer)); err != nil {
			return err
		}
		var reread []string
		err := ns.store.write(ctx, func(t *tx) (err error) {
			_, reread, err = t.putImages(e.id, images, e.builds.recent())
			return err
		})
		for _, id := range reread {
			e.marks.add(mark{"container", id})
		}
		if err != nil {
			return err
		}
		return ns.readPlatforms(ctx, e)
	case "platforms":
		return ns.readPlatforms(ctx, e)
	case "network":
		// By list, not by inspect: the list entry is what is stored.
		var found []json.RawMessage
		if err := e.getJSON(ctx, "/networks", filterQuery("id", k.id), &found); err != nil {
			return err
		}
		return ns.store.write(ctx, func(t *tx) error { return t.putNetwork(e.id, k.id, found) })
	case "volume":
		var found json.RawMessage
		err := e.getJSON(ctx, "/volumes/"+url.PathEscape(k.id), "", &found)
		if err != nil && !errors.Is(err, errNotFound) {
			return err
		}
		return ns.store.write(ctx, func(t *tx) error { return t.putVolume(e.id, k.id, found) })
	case "info":
		facts, err := ns.connect(ctx, e)
		if err != nil {
			return err
		}
		up, err := ns.store.nodeUp(ctx, e.id, facts)
		if err == nil {
			e.setName(up.name)
			e.shown.Store(up.shown)
		}
		return err
	}
	return fmt.Errorf("nothing known to read of kind %q", ks[0].kind)
}

// filterQuery is a list filter on exact values, as a query.
func filterQuery(key string, values ...string) string {
	f, _ := json.Marshal(map[string][]string{key: values})
	return "all=1&filters=" + url.QueryEscape(string(f))
}

// readContainers reads the list entries of containers, and the inspect of one whose entry
// cannot tell what it reserves or since when it runs.
func (ns *nodes) readContainers(ctx context.Context, e *engine, ids ...string) error {
	var renames string // that were answered before this read
	err := ns.store.get(ctx, `SELECT json_group_array(id) FROM renames WHERE node_id = ? AND answered
		AND container_id IN (SELECT value FROM json_each(?))`, []any{e.id, jsonText(ids)}, &renames)
	if err != nil {
		return err
	}
	var found []json.RawMessage
	if err := e.getWithin(ctx, "/containers/json", filterQuery("id", ids...), &found, newRoom(maxAnswer)); err != nil {
		return err
	}
	var look []string
	var bad error
	err = ns.store.writeWithin(ctx, waitOfReads, func(t *tx) error {
		look, bad = nil, nil
		n, err := t.nodeFace(e.id)
		if err != nil {
			return err
		}
		if err := t.letGo(renames); err != nil {
			return err
		}
		rows := map[string]*containerRow{}
		for _, raw := range found {
			row, err := n.container(raw)
			if err != nil {
				bad = fmt.Errorf("bad list entry: %w", err)
				continue
			}
			rows[row.id] = row
		}
		for _, id := range ids {
			want, err := t.putRead(e, n, id, rows[id], bad == nil)
			if err != nil {
				return err
			}
			if want {
				look = append(look, id)
			}
		}
		return nil
	})
	ns.noteChange()
	if err != nil {
		return err
	}
	for _, id := range look {
		bad = errors.Join(bad, ns.inspectContainer(ctx, e, id))
	}
	return bad
}

// putRead writes what was read of one container, nil if its engine does not list it any more
// and whole, what it lists was understood. It tells whether an inspect is wanted.
func (t *tx) putRead(e *engine, n *nodeFace, id string, row *containerRow, whole bool) (look bool, err error) {
	if row == nil {
		if whole {
			_, err = t.exec("DELETE FROM containers WHERE node_id = ? AND container_id = ?", e.id, id)
		}
		return false, err
	}
	if later, err := t.unseen(e, id); later || err != nil {
		return false, err
	}
	return t.putContainer(n, row)
}

// inspectContainer reads what only an inspect tells: reservations, and exact times.
func (ns *nodes) inspectContainer(ctx context.Context, e *engine, id string) error {
	var in inspected
	if err := e.getJSON(ctx, "/containers/"+url.PathEscape(id)+"/json", "", &in); err != nil {
		if errors.Is(err, errNotFound) {
			return nil // gone meanwhile: its destroy event follows
		}
		return err
	}
	return ns.store.writeWithin(ctx, waitOfReads, func(t *tx) error { return t.putInspected(e.id, id, &in) })
}

// unseen tells that a container has no row and will be read again: what was read may
// be older than its removal, and would bring it back under a name that is free.
func (t *tx) unseen(e *engine, id string) (bool, error) {
	if !e.marks.owesLater(id) {
		return false, nil
	}
	err := t.get("SELECT 1 FROM containers WHERE node_id = ? AND container_id = ?", []any{e.id, id}, new(int))
	if errors.Is(err, errNotFound) {
		return true, nil
	}
	return false, err
}
