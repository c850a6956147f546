package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
)

// nodeSpec is what an operator sets on a node with docker node update. It lives in
// the database and outlives everything.
type nodeSpec struct {
	Labels       map[string]string
	Role         string
	Availability string
}

// nodeUpdate answers docker node update. The whole Spec comes, so labels are
// replaced; a version that is not the node's means that somebody else was faster.
func nodeUpdate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	var spec nodeSpec
	if err := decodeBody(data, &spec); err != nil {
		return err
	}
	if err := spec.check(); err != nil {
		return err
	}
	seen, err := strconv.ParseInt(call.query.Get("version"), 10, 64)
	if err != nil {
		return errorf(http.StatusBadRequest, "invalid node version '%s': %v", call.query.Get("version"), err)
	}
	n, err := c.node(r.Context(), call.name)
	if err != nil {
		return err
	}
	id, shown, err := c.store.setSpec(r.Context(), n.ID, &spec, seen)
	if err != nil {
		return err
	}
	if e := c.nodes.get(id); e != nil {
		e.shown.Store(shown)
	}
	c.log.Info("node updated", "node", n.Description.Hostname, "availability", spec.Availability, "labels", len(spec.Labels))
	c.nodes.noteChange()
	return nil
}

// check refuses what a node of ours cannot be.
func (s *nodeSpec) check() error {
	switch s.Availability {
	case "active", "pause", "drain":
	default:
		return errorf(http.StatusBadRequest, "invalid Availability: %q, expected active, pause or drain", s.Availability)
	}
	if s.Role != "" && s.Role != "worker" {
		return errorf(http.StatusBadRequest, "node role %q: nodes of this cluster have no roles", s.Role)
	}
	for k, v := range s.Labels {
		if err := checkResourceLabel(k, v); err != nil {
			return errorf(http.StatusBadRequest, "%v", err)
		}
		if k == "" || ownLabel(k) {
			return errorf(http.StatusBadRequest, "label %q is set by swarmlite, choose another key", k)
		}
	}
	return nil
}

// setSpec writes what the operator set, if version is still the node's. It returns
// the node and what inspect now shows of it.
func (s *store) setSpec(ctx context.Context, ref string, spec *nodeSpec, version int64) (id int64, shown *shownNode, err error) {
	err = s.write(ctx, func(t *tx) error {
		var engineLabels, before string
		var current int64
		err := t.get("SELECT id, spec_version, engine_labels, availability FROM nodes n WHERE "+nodeID+" = ? AND state <> 'removed'",
			[]any{ref}, &id, &current, &engineLabels, &before)
		if errors.Is(err, errNotFound) {
			return noNode(ref)
		}
		if err != nil {
			return err
		}
		if current != version {
			return errorf(http.StatusConflict, "rpc error: code = Unknown desc = update out of sequence")
		}
		if _, err := t.exec("UPDATE nodes SET availability = ?, spec_version = spec_version + 1 WHERE id = ?", spec.Availability, id); err != nil {
			return err
		}
		if spec.Availability != before {
			if _, err := t.exec("UPDATE nodes SET availability_at = strftime('%s','now') WHERE id = ?", id); err != nil {
				return err
			}
			if err := t.managerEvent(id, spec.Availability); err != nil {
				return err
			}
		}
		if _, err := t.exec("DELETE FROM node_labels WHERE node_id = ? AND source <> 'automatic'", id); err != nil {
			return err
		}
		for k, v := range spec.Labels {
			if _, err := t.exec("INSERT INTO node_labels VALUES (?,?,?,'operator')", id, bounded(k), bounded(v)); err != nil {
				return err
			}
		}
		var labels map[string]string
		if err := json.Unmarshal([]byte(engineLabels), &labels); err != nil {
			return err
		}
		if err := t.coverLabels(id, labels); err != nil {
			return err
		}
		shown, err = t.shownNode(id)
		return err
	})
	return id, shown, err
}
