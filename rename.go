package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// containerRename keeps names unique in the cluster: both the old and the new one
// are held in the database before the engine is asked, and until a read that was
// begun after its answer has told which one the container has. A read or a list
// under way may still bring the old one.
func containerRename(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(call.query.Get("name"), "/")
	if name == "" || name == at.name {
		return c.toContainer(w, r, call, &relay{patience: change}, true) // the engine's to refuse
	}
	hold, err := c.store.holdNames(r.Context(), at.engine.id, at.id, name)
	if errors.As(err, new(*errNameTaken)) {
		return errorf(http.StatusConflict, "Error when allocating new name: %v", err)
	}
	if err != nil {
		return err
	}
	told := false
	answered := func(status int) {
		told = true
		if err := c.store.renamed(c.base, hold, status == http.StatusNoContent); err != nil {
			c.log.Error("rename not written", "container", at.id, "err", err)
		}
		at.marks.add(mark{"container", at.id})
	}
	err = (&relay{engine: at.engine, path: containerPath(r, call, at), patience: change, answered: answered}).run(w, r, call)
	if !told { // the engine was not asked
		answered(0)
	}
	return err
}

// holdNames holds name, if it is free, and the container's own, for a rename.
func (s *store) holdNames(ctx context.Context, node int64, id, name string) (hold int64, err error) {
	err = s.write(ctx, func(t *tx) error {
		if err := t.nameFreeFor(name, id); err != nil {
			return err
		}
		res, err := t.exec(`INSERT INTO renames (node_id, container_id, name, old_name)
			SELECT node_id, container_id, ?, name FROM containers WHERE node_id = ? AND container_id = ?`, name, node, id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); n == 0 || err != nil { // removed a moment ago
			return errors.Join(errorf(http.StatusNotFound, "No such container: %s", id), err)
		}
		hold, err = res.LastInsertId()
		return err
	})
	return hold, err
}

// renamed notes that the engine has answered, or will not.
func (s *store) renamed(ctx context.Context, hold int64, done bool) error {
	return s.write(ctx, func(t *tx) error {
		if done {
			if _, err := t.exec(`UPDATE containers SET name = r.name FROM renames r
				WHERE r.id = ? AND containers.node_id = r.node_id AND containers.container_id = r.container_id`, hold); err != nil {
				return err
			}
		}
		_, err := t.exec("UPDATE renames SET answered = 1 WHERE id = ?", hold)
		return err
	})
}
