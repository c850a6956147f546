package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
)

// setNodes makes lines the nodes of the cluster and returns their ids. Rows of other
// addresses stay until removeNode. Nodes that docker node rm took out are not among
// them: they stay away until they are named anew.
func (s *store) setNodes(ctx context.Context, lines []nodeLine) (map[int64]nodeLine, error) {
	ids := map[int64]nodeLine{}
	addresses := make([]string, len(lines))
	for i, l := range lines {
		addresses[i] = l.address
	}
	err := s.write(ctx, func(t *tx) error {
		clear(ids)
		if _, err := t.exec("UPDATE nodes SET kept_out = 0 WHERE kept_out AND address NOT IN (SELECT value FROM json_each(?))",
			jsonText(addresses)); err != nil {
			return err
		}
		settled, err := t.settledLines()
		if err != nil {
			return err
		}
		for _, l := range lines {
			if s, ok := settled[l.address]; ok && l.equal(s.nodeLine) {
				ids[s.id] = l
				continue
			}
			// A node that was taken out and is named again starts afresh, but keeps what the operator set.
			if _, err := t.exec(`INSERT INTO nodes (address, name, state_at) VALUES (?1, ?2, strftime('%s','now'))
				ON CONFLICT (address) DO UPDATE SET state = 'pending', error = '', step = '' WHERE state = 'removed' AND NOT kept_out`,
				l.address, unheardName(l.address)); err != nil {
				return err
			}
			var id int64
			var keptOut bool
			if err := t.get("SELECT id, kept_out FROM nodes WHERE address = ?", []any{l.address}, &id, &keptOut); err != nil {
				return err
			}
			if keptOut {
				continue
			}
			ids[id] = l
			if err := t.setLine(id, l); err != nil {
				return err
			}
		}
		return nil
	})
	return ids, err
}

// settledLine is a node that has answered once and is not out, and its line.
type settledLine struct {
	id int64
	nodeLine
}

// settledLines are the nodes by address of which nothing is to be written as long as their
// lines say what they said before: at a start all of them.
func (t *tx) settledLines() (map[string]settledLine, error) {
	rows, err := t.query(`SELECT id, address, source, line_name, line_labels, line_tls, skip_verify FROM nodes
		WHERE state <> 'removed' AND NOT kept_out AND engine_id IS NOT NULL`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	settled := map[string]settledLine{}
	for rows.Next() {
		var l settledLine
		var labels string
		if err := rows.Scan(&l.id, &l.address, &l.source, &l.name, &labels, &l.tls, &l.noCheck); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(labels), &l.labels); err != nil {
			return nil, err
		}
		settled[l.address] = l
	}
	return settled, rows.Err()
}

// setLine writes what the operator's line says of a node, if that has changed. A node
// that has not answered yet has its name at once; else a name takes effect when the
// node is connected to.
func (t *tx) setLine(id int64, l nodeLine) error {
	if err := t.nameUnheard(id, l.name); err != nil {
		return err
	}
	labels := labelText(l.labels)
	if _, err := t.exec(`UPDATE nodes SET source = ?1, line_tls = ?2, skip_verify = ?3 WHERE id = ?4 AND (source, line_tls, skip_verify) <> (?1, ?2, ?3)`,
		l.source, l.tls, l.noCheck, id); err != nil {
		return err
	}
	res, err := t.exec("UPDATE nodes SET line_name = ?1, line_labels = ?2 WHERE id = ?3 AND (line_name, line_labels) <> (?1, ?2)", l.name, labels, id)
	if err != nil {
		return err
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return nil
	}
	var fromEngine string
	if err := t.get("SELECT engine_labels FROM nodes WHERE id = ?", []any{id}, &fromEngine); err != nil {
		return err
	}
	var known map[string]string
	if err := json.Unmarshal([]byte(fromEngine), &known); err != nil {
		return err
	}
	if _, err := t.exec("DELETE FROM node_labels WHERE node_id = ? AND source IN ('engine', 'line')", id); err != nil {
		return err
	}
	return t.coverLabels(id, known)
}

// nameUnheard names a node whose engine has not answered yet, so that list shows it and
// node rm finds it by what its line calls it. Without a name there it keeps the one that
// it had from its engine, or from nobody.
func (t *tx) nameUnheard(id int64, lineName string) error {
	var address, name, before string
	err := t.get("SELECT address, name, line_name FROM nodes WHERE id = ? AND engine_id IS NULL", []any{id}, &address, &name, &before)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	wanted := lineName
	if wanted == "" {
		if wanted = name; before != "" {
			wanted = unheardName(address)
		}
	}
	free, err := t.freeNodeName(id, wanted)
	if err != nil || free == name {
		return err
	}
	_, err = t.exec("UPDATE nodes SET name = ? WHERE id = ?", free, id)
	return err
}

// unheardName is the name of a node that has not answered and that nobody has named.
func unheardName(address string) string { return "(" + strings.TrimPrefix(address, "tcp://") + ")" }

// labelText is how line_labels has labels.
func labelText(labels map[string]string) string {
	if labels == nil {
		return "{}"
	}
	return jsonText(labels)
}

// ownLines are the nodes that nobody names but the database: those that commands have
// written.
func (s *store) ownLines(ctx context.Context) ([]nodeLine, error) {
	rows, err := s.query(ctx, `SELECT address, source, line_name, line_labels, line_tls, skip_verify FROM nodes
		WHERE source IN ('added', 'joined') AND state <> 'removed' ORDER BY id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var lines []nodeLine
	for rows.Next() {
		var l nodeLine
		var labels string
		if err := rows.Scan(&l.address, &l.source, &l.name, &labels, &l.tls, &l.noCheck); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(labels), &l.labels); err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	return lines, rows.Err()
}

// addressesFrom are the nodes that this source has named last.
func (s *store) addressesFrom(ctx context.Context, source string) ([]string, error) {
	return s.strings(ctx, "SELECT address FROM nodes WHERE source = ? AND state <> 'removed'", source)
}

// strayNodes lists nodes that an earlier run knew and lines do not name.
func (s *store) strayNodes(ctx context.Context, lines []nodeLine) ([]int64, error) {
	named := map[string]bool{}
	for _, l := range lines {
		named[l.address] = true
	}
	rows, err := s.query(ctx, "SELECT id, address FROM nodes WHERE state <> 'removed' AND source <> 'lost'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var stray []int64
	for rows.Next() {
		var id int64
		var addr string
		if err := rows.Scan(&id, &addr); err != nil {
			return nil, err
		}
		if !named[addr] {
			stray = append(stray, id)
		}
	}
	return stray, rows.Err()
}
