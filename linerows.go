package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// namedLine is a node as its line and the database name it.
type namedLine struct {
	nodeLine
	node    string // its name
	renamed bool   // it has its line's name only now
}

// setNodes makes lines the nodes of the cluster and returns them by their ids. Rows of other
// addresses stay until removeNode. Nodes that docker node rm took out are not among
// them: they stay away until they are named anew.
func (s *store) setNodes(ctx context.Context, lines []nodeLine) (map[int64]namedLine, error) {
	nodes := map[int64]namedLine{}
	addresses := make([]string, len(lines))
	for i, l := range lines {
		addresses[i] = l.address
	}
	err := s.write(ctx, func(t *tx) error {
		clear(nodes)
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
				nodes[s.id] = namedLine{nodeLine: l}
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
			nodes[id] = namedLine{nodeLine: l}
			if err := t.setLine(id, l); err != nil {
				return err
			}
		}
		return t.giveNames(nodes)
	})
	return nodes, err
}

// giveNames tells nodes their names. One whose line has a name that others have given up
// gets it: lines may exchange names, or one has that of a node which is named no more.
func (t *tx) giveNames(nodes map[int64]namedLine) error {
	rows, err := t.query("SELECT id, name FROM nodes WHERE state <> 'removed'")
	if err != nil {
		return err
	}
	defer rows.Close()
	taken := map[string]bool{}
	for rows.Next() {
		var id int64
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			return err
		}
		if n, ok := nodes[id]; ok {
			n.node, taken[name] = name, true
			nodes[id] = n
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[id]
		if n.name == "" || taken[n.name] {
			continue
		}
		if err := t.renameNode(id, n.name); err != nil {
			return err
		}
		n.node, n.renamed, taken[n.name] = n.name, true, true
		nodes[id] = n
	}
	return nil
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

// setLine writes what the operator's line says of a node, if that has changed.
func (t *tx) setLine(id int64, l nodeLine) error {
	if err := t.nameByLine(id, l.name); err != nil {
		return err
	}
	labels := labelText(l.labels)
	// Who names it now may be somebody that sends no heartbeats.
	if _, err := t.exec(`UPDATE nodes SET source = ?1, line_tls = ?2, skip_verify = ?3, lapsed = lapsed AND ?1 = 'joined'
		WHERE id = ?4 AND (source, line_tls, skip_verify) <> (?1, ?2, ?3)`, l.source, l.tls, l.noCheck, id); err != nil {
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

// nameByLine names a node as its line does, before its engine has ever answered as well:
// so list shows it and node rm finds it. Without a name there it is called as its host,
// or keeps the name that it had from that, or from nobody.
func (t *tx) nameByLine(id int64, lineName string) error {
	var address, name, before, host string
	var heard bool
	err := t.get(`SELECT address, name, line_name, engine_id IS NOT NULL, coalesce((SELECT json_extract(i.info, '$.Name') FROM node_info i
		WHERE i.node_id = n.id AND json_valid(i.info)), '') FROM nodes n WHERE id = ?`, []any{id}, &address, &name, &before, &heard, &host)
	if err != nil || heard && lineName == before {
		return err
	}
	wanted := lineName
	switch {
	case lineName != "":
	case before == "":
		wanted = name
	case heard && host != "":
		wanted = hostName(host)
	default:
		wanted = unheardName(address)
	}
	free, err := t.freeNodeName(id, wanted)
	if err != nil || free == name {
		return err
	}
	return t.renameNode(id, free)
}

// renameNode gives a node another name, which the rows of its containers hold, too.
func (t *tx) renameNode(id int64, name string) error {
	_, err := t.exec("UPDATE nodes SET name = ? WHERE id = ?", name, id)
	if err == nil {
		_, err = t.exec(`UPDATE containers SET summary = json_set(summary, '$.Labels."' || ? || '"', ?) WHERE node_id = ?`, nodeLabel, name, id)
	}
	return err
}

// unheardName is the name of a node that has not answered and that nobody has named.
func unheardName(address string) string { return "(" + shortened(address) + ")" }

// shortened is an address as it may stand in a path: in SQL shortAddress.
func shortened(address string) string {
	return strings.Replace(strings.TrimPrefix(address, "tcp://"), "://", ":", 1)
}

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
