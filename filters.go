package main

import (
	"fmt"
	"strings"
)

// healthClauses refuse nodes that do not answer.
func healthClauses(*tx, *workload) ([]clause, error) {
	return []clause{
		{one: "is not healthy", many: "are not healthy", sql: "n.state = 'healthy'"},
		{one: "does not answer", many: "do not answer", sql: "n.answers = 1"},
	}, nil
}

// availabilityClauses refuse nodes that the operator has closed.
func availabilityClauses(*tx, *workload) ([]clause, error) {
	return []clause{{one: "is paused or draining", many: "are paused or draining", sql: "n.availability = 'active'"}}, nil
}

// apiClauses refuse engines that are too old for the version the client speaks:
// they would drop what they do not know without a word.
func apiClauses(_ *tx, w *workload) ([]clause, error) {
	if w.version == 0 {
		return nil, nil
	}
	words := fmt.Sprintf("older than API %s", w.version)
	return []clause{{one: "is " + words, many: "are " + words,
		sql:  "CAST(substr(n.api_version, 1, instr(n.api_version, '.') - 1) AS INTEGER) * 1000 + CAST(substr(n.api_version, instr(n.api_version, '.') + 1) AS INTEGER) >= ?",
		args: []any{int64(w.version)}}}, nil
}

// slotClauses honour the node label containerslots.
func slotClauses(_ *tx, w *workload) ([]clause, error) {
	if w.kind != "container" {
		return nil, nil
	}
	return []clause{{one: "has no container slot left", many: "have no container slot left", sql: "n.slots IS NULL OR n.containers < n.slots"}}, nil
}

// resourceClauses refuse nodes without room, overcommit included.
func resourceClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	if w.nanoCPUs > 0 {
		words := fmt.Sprintf("less than %s CPUs free", cpusText(w.nanoCPUs))
		cs = append(cs, clause{one: "has " + words, many: "have " + words, sql: "n.used_nano_cpus + ? <= n.nano_cpus", args: []any{w.nanoCPUs}})
	}
	if w.memory > 0 {
		words := fmt.Sprintf("less than %s of memory free", bytesText(w.memory))
		cs = append(cs, clause{one: "has " + words, many: "have " + words, sql: "n.used_memory_bytes + ? <= n.memory_bytes", args: []any{w.memory}})
	}
	return cs, nil
}

// portClauses refuse nodes where a host port is taken, TCP and UDP apart. Of a
// range one free port is enough.
func portClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, p := range w.ports {
		words := fmt.Sprintf("port %s in use", p)
		cs = append(cs, clause{one: "has " + words, many: "have " + words,
			sql: `(SELECT count(DISTINCT p.host_port) FROM ports p WHERE p.node_id = n.id AND p.protocol = ?
				AND p.host_port BETWEEN ? AND ? AND (? = '' OR p.host_ip IN ('', ?))) < ?`,
			args: []any{p.protocol, p.first, p.last, p.ip, p.ip, p.last - p.first + 1}})
	}
	return cs, nil
}

// constraintClauses demand node labels, or prefer them when soft. A node without
// the label fails ==, whatever the value, and passes !=.
func constraintClauses(t *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, e := range w.constraints {
		c, err := t.constraint(e)
		if err != nil {
			return nil, err
		}
		cs = append(cs, exprClause("constraint", e, c))
	}
	return cs, nil
}

// exprClause words the clause of an expression; != turns its condition round, and
// a soft one is marked for the preference.
func exprClause(kind string, e expr, c clause) clause {
	words := kind + " " + e.String()
	c.one, c.many = "fails "+words, "fail "+words
	if e.not {
		c.sql = "NOT (" + c.sql + ")"
	}
	if e.soft {
		c.one = "~" + c.one
	}
	return c
}

// constraint is the condition that a node's label matches e. Patterns are matched
// here against the few values there are, so that the statement keeps its shape.
func (t *tx) constraint(e expr) (clause, error) {
	if e.key == "node" {
		values, err := t.matching(e, "SELECT name FROM node_load UNION SELECT engine_id FROM node_load WHERE engine_id IS NOT NULL")
		return clause{sql: "n.name IN (SELECT value FROM json_each(?1)) OR coalesce(n.engine_id IN (SELECT value FROM json_each(?1)), 0)", args: []any{values}}.numbered(), err
	}
	values, err := t.matching(e, `
		WITH RECURSIVE v (value) AS (
			SELECT min(value) FROM node_labels WHERE key = ?1
			UNION ALL
			SELECT (SELECT min(value) FROM node_labels WHERE key = ?1 AND value > v.value) FROM v WHERE v.value IS NOT NULL)
		SELECT value FROM v WHERE value IS NOT NULL`, e.key)
	return clause{sql: "EXISTS (SELECT 1 FROM node_labels l WHERE l.node_id = n.id AND l.key = ? AND l.value IN (SELECT value FROM json_each(?)))",
		args: []any{e.key, values}}, err
}

// numbered spells out ?1 placeholders: clauses are joined, so only plain ? can be used.
func (c clause) numbered() clause {
	value := c.args[0]
	c.args = nil
	for range strings.Count(c.sql, "?1") {
		c.args = append(c.args, value)
	}
	c.sql = strings.ReplaceAll(c.sql, "?1", "?")
	return c
}

// matching is the values of a query that e matches, as a JSON array. A plain value needs no look.
func (t *tx) matching(e expr, query string, args ...any) (string, error) {
	if e.exact() {
		return jsonText([]string{e.value}), nil
	}
	rows, err := t.query(query, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	found := []string{}
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return "", err
		}
		if e.match(v) {
			found = append(found, v)
		}
	}
	return jsonText(found), rows.Err()
}

// whitelistClauses keep to the nodes that are named, n1|n2; classic Swarm looks at
// neither key nor operator there.
func whitelistClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, e := range w.whitelists {
		cs = append(cs, clause{one: "is not in whitelist " + e.value, many: "are not in whitelist " + e.value,
			sql: "n.name IN (SELECT value FROM json_each(?))", args: []any{jsonText(strings.Split(e.value, "|"))}})
	}
	return cs, nil
}

// affinityClauses look at what is on a node: containers by name or ID, images, and
// containers' labels. Creates under way count.
func affinityClauses(t *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, e := range w.affinities {
		c, err := t.affinity(e)
		if err != nil {
			return nil, err
		}
		cs = append(cs, exprClause("affinity", e, c))
	}
	return cs, nil
}

func (t *tx) affinity(e expr) (clause, error) {
	switch e.key {
	case "container":
		values, err := t.matching(e, "SELECT name FROM containers UNION SELECT container_id FROM containers UNION SELECT name FROM reservations")
		return clause{sql: `EXISTS (SELECT 1 FROM containers c WHERE c.node_id = n.id AND c.name IN (SELECT value FROM json_each(?1)))
			OR EXISTS (SELECT 1 FROM containers c WHERE c.node_id = n.id AND c.container_id IN (SELECT value FROM json_each(?1)))
			OR EXISTS (SELECT 1 FROM reservations r WHERE r.node_id = n.id AND r.name IN (SELECT value FROM json_each(?1)))`,
			args: []any{values}}.numbered(), err
	case "image":
		if e.exact() {
			return clause{sql: `EXISTS (SELECT 1 FROM image_names i WHERE i.node_id = n.id AND i.name = ?)
				OR EXISTS (SELECT 1 FROM images i WHERE i.node_id = n.id AND i.image_id IN (?, ?))`,
				args: []any{imageName(e.value), e.value, "sha256:" + e.value}}, nil
		}
		values, err := t.matchingImages(e)
		return clause{sql: "EXISTS (SELECT 1 FROM image_names i WHERE i.node_id = n.id AND i.name IN (SELECT value FROM json_each(?)))", args: []any{values}}, err
	}
	values, err := t.matching(e, `SELECT DISTINCT value FROM container_labels WHERE key = ?1
		UNION SELECT j.value FROM reservations r, json_each(r.labels) j WHERE j.key = ?1`, e.key)
	return clause{sql: `EXISTS (SELECT 1 FROM container_labels b JOIN containers c ON c.id = b.container
			WHERE c.node_id = n.id AND b.key = ? AND b.value IN (SELECT value FROM json_each(?)))
		OR EXISTS (SELECT 1 FROM reservations r, json_each(r.labels) j
			WHERE r.node_id = n.id AND j.key = ? AND j.value IN (SELECT value FROM json_each(?)))`,
		args: []any{e.key, values, e.key, values}}, err
}

// matchingImages matches e with images as people write them: redis, redis:7, and the full name.
func (t *tx) matchingImages(e expr) (string, error) {
	rows, err := t.query("SELECT DISTINCT name FROM image_names")
	if err != nil {
		return "", err
	}
	defer rows.Close()
	found := []string{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return "", err
		}
		short := familiarName(name)
		repo, _, _ := strings.Cut(short, ":")
		if e.match(name) || e.match(short) || e.match(repo) {
			found = append(found, name)
		}
	}
	return jsonText(found), rows.Err()
}

// dependencyClauses keep a container with what is on one node only: local
// networks and volumes, and containers it links to or shares a namespace with.
// What nobody has ties nothing; the engine says what it thinks of it.
func dependencyClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, name := range w.networks {
		words := "have network " + name
		cs = append(cs, clause{one: "does not " + words, many: "do not " + words,
			sql: `NOT EXISTS (SELECT 1 FROM networks x WHERE x.name = ?1 OR x.network_id = ?1)
				OR EXISTS (SELECT 1 FROM networks x WHERE (x.name = ?1 OR x.network_id = ?1) AND (x.node_id = n.id OR x.scope <> 'local'))`,
			args: []any{name}}.numbered())
	}
	for _, name := range w.volumes {
		words := "have volume " + name
		cs = append(cs, clause{one: "does not " + words, many: "do not " + words,
			sql: `n.id IN (SELECT node_id FROM volumes WHERE name = ?1 UNION SELECT c.node_id FROM mounts m JOIN containers c ON c.id = m.container WHERE m.name = ?1
					UNION SELECT r.node_id FROM reservations r, json_each(r.volumes) j WHERE j.value = ?1)
				OR EXISTS (SELECT 1 FROM volumes WHERE name = ?1 AND scope <> 'local')
				OR NOT EXISTS (SELECT 1 FROM volumes WHERE name = ?1) AND NOT EXISTS (SELECT 1 FROM mounts WHERE name = ?1)
					AND NOT EXISTS (SELECT 1 FROM reservations r, json_each(r.volumes) j WHERE j.value = ?1)`,
			args: []any{name}}.numbered())
	}
	for _, ref := range w.containers {
		words := "have container " + ref
		cs = append(cs, clause{one: "does not " + words, many: "do not " + words,
			sql: `NOT EXISTS (SELECT 1 FROM containers c WHERE c.name = ?1 OR c.container_id = ?1)
				OR EXISTS (SELECT 1 FROM containers c WHERE (c.name = ?1 OR c.container_id = ?1) AND c.node_id = n.id)`,
			args: []any{ref}}.numbered())
	}
	return cs, nil
}
