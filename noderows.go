package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// removeNode takes a node out: its mirror rows go, what the operator set stays.
// It returns how many containers are left to themselves on the host.
func (s *store) removeNode(ctx context.Context, id int64) (left int, err error) {
	err = s.write(ctx, func(t *tx) error {
		if err := t.get("SELECT count(*) FROM containers WHERE node_id = ?", []any{id}, &left); err != nil {
			return err
		}
		return t.takeOut(id)
	})
	return left, err
}

func (t *tx) takeOut(id int64) error {
	var state string
	if err := t.get("SELECT state FROM nodes WHERE id = ?", []any{id}, &state); err != nil {
		return err
	}
	if state == "healthy" {
		if err := t.managerEvent(id, "engine_disconnect"); err != nil {
			return err
		}
	}
	if err := t.dropMirror(id); err != nil {
		return err
	}
	_, err := t.exec("UPDATE nodes SET state = 'removed', state_at = strftime('%s','now'), confirmed = 0, engine_id = NULL WHERE id = ?", id)
	return err
}

// keepOut takes a node out until it is named anew. Without force it refuses one that
// has containers, or is about to.
func (s *store) keepOut(ctx context.Context, id int64, force bool) (left int, err error) {
	err = s.write(ctx, func(t *tx) error {
		var name string
		err := t.get(`SELECT name, (SELECT count(*) FROM containers WHERE node_id = ?1)
			+ (SELECT count(*) FROM reservations WHERE node_id = ?1 AND kind = 'container') FROM nodes WHERE id = ?1`, []any{id}, &name, &left)
		if err != nil {
			return err
		}
		if left > 0 && !force {
			return errorf(http.StatusConflict, "node %s has %s: remove what is on it or drain the node first, or use --force, which leaves it on the host", name, counted(left, "container"))
		}
		if err := t.takeOut(id); err != nil {
			return err
		}
		_, err = t.exec("UPDATE nodes SET kept_out = 1 WHERE id = ?", id)
		return err
	})
	return left, err
}

// dropMirror deletes what a node's engine told, and what was reserved there.
func (t *tx) dropMirror(id int64) error {
	for _, table := range []string{"containers", "reservations", "renames", "images", "image_names", "image_copies", "networks", "volumes", "execs", "pulls", "image_tags"} {
		if _, err := t.exec("DELETE FROM "+table+" WHERE node_id = ?", id); err != nil {
			return err
		}
	}
	return nil
}

// begin is the manager's first write: nodes are unheard of until they answer,
// those that are not named are taken out, and nobody waits for reservations of
// an earlier run.
func (s *store) begin(ctx context.Context, m managerRow) error {
	return s.write(ctx, func(t *tx) error {
		var cores bool // as the last manager read CpuShares
		if err := t.get("SELECT cpu_shares = 'cores' FROM manager", nil, &cores); err != nil {
			return err
		}
		if cores != m.cores { // what containers reserve is another thing now: their engines are asked again
			if _, err := t.exec("UPDATE containers SET inspected = 0"); err != nil {
				return err
			}
		}
		_, err := t.exec(`UPDATE manager SET version = ?, strategy = ?, filters = ?, overcommit = ?, count_stopped = ?, group_by = ?,
			strategy_sql = ?, relay_ports = ?, drain = coalesce(nullif(?, ''), 'policy'), cpu_shares = iif(?, 'cores', 'weights'), wait_ms = ?, started_at = strftime('%s','now')`, m.version, m.strategy, m.filters, m.overcommit, m.countStopped,
			jsonText(append([]string{}, m.groupBy...)), m.strategySQL, m.relayPorts, m.drain, m.cores, m.wait.Milliseconds())
		if err != nil {
			return err
		}
		if _, err := t.exec("UPDATE reservations SET state = 'unknown'"); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE placements SET outcome = 'unknown', message = 'the manager stopped' WHERE outcome = 'reserved' AND kind IN ('image', 'build')"); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE renames SET answered = 1 WHERE container_id NOT IN (SELECT copy_id FROM moves WHERE step = 'swap')"); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE moves SET step = 'undo', error = 'the manager stopped while it was made' WHERE step = 'make'"); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM waiting"); err != nil {
			return err
		}
		_, err = t.exec("UPDATE nodes SET state = 'pending', confirmed = 0, failures = 0, answers = 1 WHERE state <> 'removed' AND source <> 'lost'")
		return err
	})
}

// managerRow is what the manager writes of itself at start.
type managerRow struct {
	version, strategy, filters string
	overcommit                 float64
	countStopped               bool
	groupBy                    []string
	strategySQL                string
	relayPorts                 bool
	drain                      string // policy or recreate
	cores                      bool   // CpuShares are whole CPUs
	wait                       time.Duration
}

// upNode is what nodeUp found out about a node that answers.
type upNode struct {
	name     string
	shown    *shownNode
	warnings []string
	back     bool // it was lost and is the same engine again
}

// sameHost refuses another engine at an address that the name of a node has come to lead
// to: without TLS whoever answers the DNS could put an engine of his own in its place.
func (s *store) sameHost(ctx context.Context, id int64, f *nodeFacts) error {
	var engineID, ip string
	if err := s.get(ctx, "SELECT coalesce(engine_id, ''), ip FROM nodes WHERE id = ?", []any{id}, &engineID, &ip); err != nil {
		return err
	}
	if engineID == "" || engineID == f.info.ID || ip == f.ip {
		return nil
	}
	return fmt.Errorf("the name led to %s and leads to %s now, where another engine answers (ID %s): "+
		"take the node out with docker node rm and name it again, or use TLS", ip, f.ip, f.info.ID)
}

// nodeUp writes what an engine says of itself. It returns a *duplicateError if a
// node that is healthy, or is about to be, has the same engine ID.
func (s *store) nodeUp(ctx context.Context, id int64, f *nodeFacts) (up upNode, err error) {
	defer s.room.ring() // it may have other labels, or more memory
	err = s.write(ctx, func(t *tx) error {
		up = upNode{}
		var other int64
		var otherName, otherAddr, otherState string
		err := t.get("SELECT id, name, address, state FROM nodes WHERE engine_id = ? AND id <> ? AND state <> 'removed' ORDER BY state = 'healthy' DESC",
			[]any{f.info.ID, id}, &other, &otherName, &otherAddr, &otherState)
		switch {
		case errors.Is(err, errNotFound):
		case err != nil:
			return err
		case otherState == "healthy" || otherState == "pending":
			return &duplicateError{f.info.ID, otherName, otherAddr}
		default:
			// The host has moved here from an address that does not answer: its containers are listed once.
			if err := t.dropMirror(other); err != nil {
				return err
			}
			if _, err := t.exec("UPDATE nodes SET engine_id = NULL, state = iif(source = 'lost', 'removed', state) WHERE id = ?", other); err != nil {
				return err
			}
		}
		var oldID, oldState string
		if err := t.get("SELECT coalesce(engine_id, ''), state FROM nodes WHERE id = ?", []any{id}, &oldID, &oldState); err != nil {
			return err
		}
		up.back = oldID == f.info.ID && oldState == "unhealthy"
		if oldID != "" && oldID != f.info.ID {
			return errors.New("another engine answers than a moment ago") // the next session finds out
		}
		var lineName string
		if err := t.get("SELECT line_name FROM nodes WHERE id = ?", []any{id}, &lineName); err != nil {
			return err
		}
		if up.name, err = t.freeNodeName(id, cmp.Or(lineName, hostName(f.info.Name))); err != nil {
			return err
		}
		labels, warnings := engineLabels(f.info.Labels)
		up.warnings = append(up.warnings, warnings...)
		skew := clockSkew(f.skew)
		if skew != 0 {
			up.warnings = append(up.warnings, clockWords(skew))
		}
		_, err = t.exec(`UPDATE nodes SET engine_id = ?, name = ?, ip = ?, cpus = ?, memory_bytes = ?, storage_driver = ?,
			kernel_version = ?, operating_system = ?, os_type = ?, architecture = ?, engine_version = ?, api_version = ?,
			min_api_version = ?, clock_skew_ms = ?, engine_labels = ? WHERE id = ?`,
			bounded(f.info.ID), up.name, f.ip, f.info.NCPU, f.info.MemTotal, plainLine(f.info.Driver),
			plainLine(f.info.KernelVersion), plainLine(f.info.OperatingSystem), plainLine(f.info.OSType), plainLine(f.info.Architecture),
			plainLine(f.version.Version), f.api.String(), f.min.String(), skew.Milliseconds(), jsonText(labels), id)
		if err != nil {
			return err
		}
		if _, err := t.exec("INSERT OR REPLACE INTO node_info VALUES (?,?,?)", id, summaryText(f.rawInfo), summaryText(f.rawVer)); err != nil {
			return err
		}
		if err := t.putSwarm(id, &f.info.Swarm); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE nodes SET image_store = ? WHERE id = ?", f.info.imageStore(), id); err != nil {
			return err
		}
		if err := t.putNodeLabels(id, f, labels); err != nil {
			return err
		}
		up.shown, err = t.shownNode(id)
		return err
	})
	return up, err
}

// shownNode reads what inspect shows of a node.
func (t *tx) shownNode(id int64) (*shownNode, error) {
	var node struct {
		ID, IP, Addr, Name string
		Cpus, Memory       int64
		Labels             map[string]string
	}
	var labels string
	err := t.get(`SELECT coalesce(engine_id, ''), ip, address, name, cpus, memory_bytes,
		(SELECT coalesce(json_group_object(key, value), '{}') FROM node_labels WHERE node_id = nodes.id) FROM nodes WHERE id = ?`,
		[]any{id}, &node.ID, &node.IP, &node.Addr, &node.Name, &node.Cpus, &node.Memory, &labels)
	if err != nil {
		return nil, err
	}
	node.Addr = strings.TrimPrefix(node.Addr, "tcp://")
	if err := json.Unmarshal([]byte(labels), &node.Labels); err != nil {
		return nil, err
	}
	return &shownNode{node.IP, json.RawMessage(jsonText(node))}, nil
}

// showNode reads what inspect shows of a node.
func (s *store) showNode(ctx context.Context, id int64) (shown *shownNode, err error) {
	err = s.write(ctx, func(t *tx) error {
		shown, err = t.shownNode(id)
		return err
	})
	return shown, err
}

// freeNodeName gives a node this name, with the address behind it if another node has
// it already.
func (t *tx) freeNodeName(id int64, name string) (string, error) {
	var addr string
	var taken int
	err := t.get("SELECT address, (SELECT count(*) FROM nodes WHERE name = ? AND id <> ? AND state <> 'removed') FROM nodes WHERE id = ?",
		[]any{name, id, id}, &addr, &taken)
	if err == nil && taken > 0 {
		name += "-" + hostName(shortened(addr))
	}
	return name, err
}

// automaticLabels are set from what the engine says of itself; no label of a person's covers them.
var automaticLabels = map[string]func(*engineInfo) string{
	"storagedriver":   func(i *engineInfo) string { return i.Driver },
	"kernelversion":   func(i *engineInfo) string { return i.KernelVersion },
	"operatingsystem": func(i *engineInfo) string { return i.OperatingSystem },
	"ostype":          func(i *engineInfo) string { return i.OSType },
	"architecture":    func(i *engineInfo) string { return i.Architecture },
}

// engineLabels reads the labels an engine was started with.
func engineLabels(list []string) (labels map[string]string, warnings []string) {
	labels = map[string]string{}
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		switch {
		case !ok:
			warnings = append(warnings, fmt.Sprintf("engine label %q is not key=value and is ignored", l))
			continue
		case ownLabel(k):
			warnings = append(warnings, fmt.Sprintf("engine label %q is ignored: %s is set by swarmlite", l, k))
			continue
		}
		if err := checkResourceLabel(k, v); err != nil {
			warnings = append(warnings, "engine "+err.Error()) // constraints see it all the same
		}
		labels[bounded(k)] = bounded(v)
	}
	return labels, warnings
}

// ownLabel tells whether only swarmlite sets this label.
func ownLabel(key string) bool { return key == "node" || automaticLabels[key] != nil }

// putNodeLabels writes the labels that constraints see; the operator's stay.
func (t *tx) putNodeLabels(id int64, f *nodeFacts, labels map[string]string) error {
	if _, err := t.exec("DELETE FROM node_labels WHERE node_id = ? AND source <> 'operator'", id); err != nil {
		return err
	}
	for k, read := range automaticLabels {
		if _, err := t.exec("INSERT OR REPLACE INTO node_labels VALUES (?,?,?,'automatic')", id, k, plainLine(read(&f.info))); err != nil {
			return err
		}
	}
	return t.coverLabels(id, labels)
}

// coverLabels writes the labels of the node's line that no label of the operator's
// covers, the engine's that neither does, and what labels set: the limit containerslots,
// the platforms that the node emulates, the countable things that it has.
func (t *tx) coverLabels(id int64, labels map[string]string) error {
	if _, err := t.exec(`INSERT OR IGNORE INTO node_labels SELECT n.id, l.key, l.value, 'line' FROM nodes n, json_each(n.line_labels) l
		WHERE n.id = ?`, id); err != nil {
		return err
	}
	for k, v := range labels {
		if _, err := t.exec("INSERT OR IGNORE INTO node_labels VALUES (?,?,?,'engine')", id, k, v); err != nil {
			return err
		}
	}
	var os, architecture, emulated string
	err := t.get(`SELECT os_type, architecture, coalesce((SELECT value FROM node_labels WHERE node_id = ?1 AND key = 'platforms'), '')
		FROM nodes WHERE id = ?1`, []any{id}, &os, &architecture, &emulated)
	if err != nil {
		return err
	}
	_, err = t.exec(`UPDATE nodes SET platforms = ?2, slots = (SELECT CAST(value AS INTEGER) FROM node_labels
		WHERE node_id = ?1 AND key = 'containerslots' AND value <> '' AND value NOT GLOB '*[^0-9]*') WHERE id = ?1`,
		id, jsonText(runnable(os, architecture, emulated)))
	if err != nil {
		return err
	}
	return t.putResources(id)
}

// nodePlatforms lists what the nodes run, each set once: of thousand nodes most are alike.
func (t *tx) nodePlatforms() ([]string, error) {
	return t.strings(`
		WITH RECURSIVE v (value) AS (
			SELECT min(platforms) FROM nodes WHERE state <> 'removed'
			UNION ALL
			SELECT (SELECT min(platforms) FROM nodes WHERE state <> 'removed' AND platforms > v.value) FROM v WHERE v.value IS NOT NULL)
		SELECT value FROM v WHERE value IS NOT NULL`)
}

// nodeHealthy opens a node for placement. back tells that it was lost and is there
// again. It returns a *duplicateError, and drops what was listed, if its engine ID has
// become another node's since nodeUp.
func (s *store) nodeHealthy(ctx context.Context, id int64, engineID string, back bool) error {
	defer s.room.ring()
	var dup *duplicateError
	err := s.write(ctx, func(t *tx) error {
		var old, other, otherAddr string
		var own bool
		dup = nil
		err := t.get("SELECT state, engine_id IS ?2 FROM nodes WHERE id = ?1", []any{id, bounded(engineID)}, &old, &own)
		if err == nil && !own {
			if err = t.get("SELECT name, address FROM nodes WHERE engine_id = ?", []any{bounded(engineID)}, &other, &otherAddr); err == nil {
				dup = &duplicateError{engineID, other, otherAddr}
				return t.dropMirror(id)
			}
		}
		if err != nil {
			return err
		}
		_, err = t.exec(`UPDATE nodes SET state = 'healthy', state_at = CASE state WHEN 'healthy' THEN state_at ELSE strftime('%s','now') END,
			step = '', answers = 1 WHERE id = ?`, id)
		if err != nil || old == "healthy" {
			return err
		}
		if back {
			return t.managerEvent(id, "engine_reconnect")
		}
		return t.managerEvent(id, "engine_connect")
	})
	if err == nil && dup != nil {
		return dup
	}
	return err
}

// nodeCalm forgets earlier failures of a node that has been well for a while.
func (s *store) nodeCalm(ctx context.Context, id int64) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE nodes SET failures = 0 WHERE id = ? AND failures > 0", id)
		return err
	})
}

// nodeDown closes a node for placement and keeps why. Its containers stay listed.
func (s *store) nodeDown(ctx context.Context, id int64, state string, cause error) error {
	step, msg := "connect", cause.Error()
	var se *stepError
	if errors.As(cause, &se) {
		step, msg = se.step, se.err.Error()
	}
	return s.write(ctx, func(t *tx) error {
		var old string
		if err := t.get("SELECT state FROM nodes WHERE id = ?", []any{id}, &old); err != nil {
			return err
		}
		_, err := t.exec(`UPDATE nodes SET state = ?1, state_at = CASE state WHEN ?1 THEN state_at ELSE strftime('%s','now') END,
			step = ?2, error = ?3, failures = min(failures + 1, 3) WHERE id = ?4`, state, step, plainLine(msg), id)
		if err != nil || old != "healthy" {
			return err
		}
		return t.managerEvent(id, "engine_disconnect")
	})
}

// nodeSilent takes a node out of the candidates, or back in, by whether it answered when a create needed it.
func (s *store) nodeSilent(ctx context.Context, id int64, silent bool) error {
	defer s.room.ring()
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE nodes SET answers = ? WHERE id = ? AND answers <> ?", !silent, id, !silent)
		return err
	})
}
