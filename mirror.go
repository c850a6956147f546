package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"

	"golang.org/x/sync/errgroup"
)

// lists is what an engine has, as it lists it.
type lists struct {
	containers, images, networks, volumes []json.RawMessage

	answer   []byte          // that containers are cut from, until they are written
	renames  string          // to let go of: a JSON list of ids
	owed     func(mark) bool // what will be read again anyway: newer than the list
	building bool            // the engine's images may be what a build tags just now
	unlisted unlisted
	rest     [3]knownAnswer // to images, networks and volumes
	known    *knownList     // told of the list, if all of it is well; nil: nobody asks
}

// list reads all that the node has and makes its rows so. A list that fails changes nothing.
func (ns *nodes) list(ctx context.Context, e *engine) error {
	return ns.listLess(ctx, e, unlisted{}, &knownList{})
}

// listLess is list, less what is left out and what is known: the list before, of the same
// session.
func (ns *nodes) listLess(ctx context.Context, e *engine, not unlisted, known *knownList) error {
	e.marks.hold()
	defer e.marks.release()
	if version := ns.store.version(); known.before.face.id == 0 || version != known.version {
		before, err := ns.store.newestContainer(ctx, e.id)
		if err != nil {
			return err
		}
		known.version, known.before, known.told = version, before, false
	}
	before := known.before
	l := lists{owed: e.marks.owes, renames: before.renames, unlisted: not}
	buffer := ns.answers.Get().(*[]byte)
	defer ns.answers.Put(buffer)
	g, gctx := errgroup.WithContext(ctx)
	room := newRoom(maxAnswer)
	if !not.images || !not.networks || !not.volumes {
		g.Go(func() error { return ns.listRest(gctx, e, &l, known, room) }) // one after the other: two connections are enough
	}
	g.Go(func() (err error) {
		for try := 0; ; try++ {
			if l.answer, err = e.getWhole(gctx, "/containers/json", "all=1", buffer, room); err != nil {
				return err
			}
			if l.unlisted.containers, err = ns.store.listsKnown(gctx, known, l.answer); err != nil || l.unlisted.containers {
				return err
			}
			if l.containers, err = arrayItems(l.answer); err != nil {
				return fmt.Errorf("bad answer to /containers/json: %w", err)
			}
			// An empty list after a non-empty one may be an engine that is still loading.
			if len(l.containers) > 0 || before.rows == 0 || try > 0 {
				return nil
			}
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if !not.images {
		defer e.marks.add(mark{"platforms", ""})
	}
	if l.unlisted == (unlisted{true, true, true, true}) {
		return nil
	}
	if !l.unlisted.containers {
		*known = knownList{rest: known.rest, version: known.version, before: before}
		l.known = known
	}
	l.building = e.builds.recent()
	look, err := ns.store.putLists(ctx, e.id, l, before.id)
	if err != nil {
		return err
	}
	for i, answer := range l.rest {
		if answer.hash != 0 {
			known.rest[i] = answer
		}
	}
	ns.noteChange()
	for _, id := range look {
		e.marks.add(mark{"look", id})
	}
	return nil
}

// listRest reads what else than containers the node has, and leaves out what is known.
func (ns *nodes) listRest(ctx context.Context, e *engine, l *lists, known *knownList, room *answerRoom) error {
	var v struct{ Volumes []json.RawMessage }
	defer func() { l.volumes = v.Volumes }()
	buffer := ns.answers.Get().(*[]byte)
	defer ns.answers.Put(buffer)
	for i, kind := range []struct {
		not         *bool
		path, query string
		dest        any
	}{
		{&l.unlisted.images, "/images/json", "all=1", &l.images},
		{&l.unlisted.networks, "/networks", "", &l.networks},
		{&l.unlisted.volumes, "/volumes", "", &v},
	} {
		if *kind.not {
			continue
		}
		answer, err := e.getWhole(ctx, kind.path, kind.query, buffer, room)
		if err != nil {
			return err
		}
		l.rest[i] = knownAnswer{maphash.Bytes(listSeed, answer), known.version}
		if *kind.not = l.rest[i] == known.rest[i] && !e.builds.recent(); *kind.not {
			continue
		}
		if err := decodeAnswer(bytes.NewReader(answer), kind.dest); err != nil {
			return fmt.Errorf("bad answer to %s: %w", kind.path, err)
		}
	}
	return nil
}

// mirrorState is how far a node's rows went before a list was asked for.
type mirrorState struct {
	renames string // ids of those that were answered, JSON
	id      int64  // of the newest container row of any node
	rows    int64  // containers known on the node
	face    nodeFace
	failed  bool // creates or starts there, lately
}

func (s *store) newestContainer(ctx context.Context, node int64) (m mirrorState, err error) {
	// What is not committed yet counts as newer than the list, and stays.
	m.face = nodeFace{id: node}
	err = s.get(ctx, `SELECT (SELECT coalesce(max(id), 0) FROM containers), (SELECT count(*) FROM containers WHERE node_id = ?1),
		(SELECT json_group_array(id) FROM renames WHERE node_id = ?1 AND answered), n.name, n.ip, m.count_stopped, n.failures > 0 FROM nodes n, manager m WHERE n.id = ?1`,
		[]any{node}, &m.id, &m.rows, &m.renames, &m.face.name, &m.face.ip, &m.face.countStopped, &m.failed)
	return m, err
}

// putLists makes a node's rows what its engine lists. Container rows newer than
// before were written by creates while the list was on its way; they stay. It
// returns the containers that want an inspect.
func (s *store) putLists(ctx context.Context, node int64, l lists, before int64) (look []string, err error) {
	select {
	case s.lists <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.lists }()
	// Decoded before the writer's turn, which is everybody's.
	n, err := readNodeFace(func(query string, args []any, dest ...any) error { return s.get(ctx, query, args, dest...) }, node)
	if err != nil {
		return nil, err
	}
	bad := 0
	var entries []*containerRow
	listed := map[string]bool{}
	known := knownList{face: *n}
	var hashes []uint64
	if l.unlisted.containers {
		l.containers = nil
	}
	for _, raw := range slices.Backward(l.containers) { // oldest first: rows are listed in the order they were made
		row, err := n.container(raw)
		if err != nil || listed[row.id] {
			bad++
			continue
		}
		entries = append(entries, row)
		listed[row.id] = true
		hashes = append(hashes, rowHash([]byte(row.id), []byte(row.name), []byte(row.state), row.summary, row.counted))
	}
	if l.known != nil {
		slices.Reverse(hashes)
		known.note(l.answer, hashes)
	}
	err = s.write(ctx, func(t *tx) error {
		return t.mostlyIdle(func() (err error) {
			look = nil
			var badImages, badNetworks, badVolumes int
			var reread []string
			if !l.unlisted.containers {
				if look, err = t.putContainers(n, entries, listed, before, bad == 0, l); err != nil {
					return err
				}
			}
			if !l.unlisted.images {
				if badImages, reread, err = t.putImages(node, l.images, l.building); err != nil {
					return err
				}
			}
			look = append(look, reread...)
			if !l.unlisted.networks {
				if badNetworks, err = t.putNetworks(node, l.networks, l.owed); err != nil {
					return err
				}
			}
			if !l.unlisted.volumes {
				if badVolumes, err = t.putVolumes(node, l.volumes, l.owed); err != nil {
					return err
				}
			}
			note := ""
			for _, list := range []struct {
				bad, items int
				kind       string
			}{{bad, len(l.containers), "container"}, {badImages, len(l.images), "image"}, {badNetworks, len(l.networks), "network"}, {badVolumes, len(l.volumes), "volume"}} {
				if list.bad > 0 {
					note += fmt.Sprintf(", %d of %s", list.bad, counted(list.items, list.kind))
				}
			}
			if note != "" {
				note = "bad answer: wrong shape of " + note[2:] + " in the list"
			}
			if l.known != nil && note == "" {
				l.known.face, l.known.listed, l.known.entries, l.known.bytes = known.face, known.listed, known.entries, known.bytes
			}
			_, err = t.exec("UPDATE nodes SET error = ?, confirmed = 1 WHERE id = ? AND (error <> ? OR confirmed = 0)", note, node, note)
			return err
		})
	})
	return look, err
}

// putContainers makes a node's container rows what its engine lists, and deletes those of
// what it does not list if the list is whole. It returns those that want an inspect.
func (t *tx) putContainers(n *nodeFace, entries []*containerRow, listed map[string]bool, before int64, whole bool, l lists) (look []string, err error) {
	stored, err := t.storedContainers(n.id, "")
	if err != nil {
		return nil, err
	}
	var rows newRows
	for _, row := range entries {
		if stored[row.id] == nil && l.owed != nil && l.owed(mark{"container", row.id}) {
			continue // read again anyway: it may have been removed since
		}
		want, err := t.putContainerOver(n, row, stored[row.id], &rows)
		if err != nil {
			return nil, err
		}
		if want {
			look = append(look, row.id)
		}
	}
	if err := t.insert(&rows); err != nil || !whole {
		return look, err
	}
	for id := range stored {
		if !listed[id] {
			if err := t.dropUnlisted(n.id, listed, before); err != nil {
				return nil, err
			}
			break
		}
	}
	return look, t.letGo(l.renames)
}

// dropUnlisted deletes containers that are no more. Those who watch are told, as the
// engine's own event was lost, unless it came.
func (t *tx) dropUnlisted(node int64, listed map[string]bool, before int64) error {
	type lost struct {
		row                      int64
		id, name, image, summary string
	}
	rows, err := t.query("SELECT id, container_id, name, image, summary FROM containers WHERE node_id = ? AND id <= ?", node, before)
	if err != nil {
		return err
	}
	var gone []lost
	for rows.Next() {
		var l lost
		if err := rows.Scan(&l.row, &l.id, &l.name, &l.image, &l.summary); err != nil {
			rows.Close()
			return err
		}
		if !listed[l.id] {
			gone = append(gone, l)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, l := range gone {
		if _, err := t.exec("DELETE FROM containers WHERE id = ?", l.row); err != nil {
			return err
		}
		told, err := t.destroyTold(node, l.id)
		if err != nil {
			return err
		}
		if told {
			continue
		}
		var entry listedEntry
		json.Unmarshal([]byte(l.summary), &entry) // of an odd shape: an event without labels
		if err := t.destroyed(node, l.id, l.name, l.image, entry.Labels); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) summaries(query string, node int64) (map[string]string, error) {
	rows, err := t.query(query, node)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	known := map[string]string{}
	for rows.Next() {
		var id, summary string
		if err := rows.Scan(&id, &summary); err != nil {
			return nil, err
		}
		known[id] = summary
	}
	return known, rows.Err()
}
