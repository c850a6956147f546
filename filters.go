package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// isHealthy is the clause that lets a query use the indexes by load.
const isHealthy = "n.state = 'healthy'"

// healthClauses refuse nodes that do not answer, or whose swarmlite join is silent.
func healthClauses(*tx, *workload) ([]clause, error) {
	return []clause{
		{one: "is not healthy", many: "are not healthy", sql: isHealthy},
		{one: "does not answer", many: "do not answer", sql: "n.answers = 1"},
		{one: "has not renewed its registration", many: "have not renewed their registration", sql: "n.lapsed = 0"},
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
func resourceClauses(t *tx, w *workload) ([]clause, error) {
	var cs []clause
	if w.nanoCPUs > 0 {
		words := fmt.Sprintf("less than %s CPUs free", cpusText(w.nanoCPUs))
		if w.nanoCPUs == 1e9 {
			words = "less than 1 CPU free"
		}
		cs = append(cs, clause{one: "has " + words, many: "have " + words, sql: "n.used_nano_cpus + ? <= n.nano_cpus", args: []any{w.nanoCPUs}})
	}
	if w.memory > 0 {
		words := fmt.Sprintf("less than %s of memory free", bytesText(w.memory))
		cs = append(cs, clause{one: "has " + words, many: "have " + words, sql: "n.used_memory_bytes + ? <= n.memory_bytes", args: []any{w.memory}})
	}
	for i, d := range w.demands {
		for _, other := range w.demands[:i] { // the last clause asks for all of a thing
			if other.Name == d.Name {
				d.Amount += other.Amount
			}
		}
		more, err := t.demandClauses(d)
		if err != nil {
			return nil, err
		}
		cs = append(cs, more...)
	}
	return cs, nil
}

// demandClauses refuse nodes that do not have what is asked for of a countable thing,
// or not enough of it free. Device requests for what no node says that it has refuse
// none: an engine finds devices that it does not list, or says that there are none.
func (t *tx) demandClauses(d demand) (cs []clause, err error) {
	if d.Device > 0 {
		if any, err := t.anyHas(d.Name); !any || err != nil {
			return nil, err
		}
	}
	name := d.Name
	const (
		has  = "EXISTS (SELECT 1 FROM resource_load r WHERE r.node_id = n.id AND r.name = ? AND %s)"
		free = "NOT EXISTS (SELECT 1 FROM resources_held h WHERE h.node_id = n.id AND h.name = ? AND %s)"
	)
	few := &nodeSet{0, "SELECT node_id FROM node_resources WHERE name = ? AND amount >= ?", []any{name, max(d.Amount, 1)}}
	if err := t.get("SELECT count(*) FROM ("+few.sql+")", few.args, &few.count); err != nil {
		return nil, err
	}
	add := func(words, sql, condition string, args ...any) {
		c := clause{one: "has " + words, many: "have " + words, sql: fmt.Sprintf(sql, condition), args: append([]any{name}, args...)}
		if sql == has {
			c.few = few
		}
		cs = append(cs, c)
	}
	switch {
	case len(d.IDs) > 0:
		unknown, err := t.unlisted(name, d.IDs)
		if err != nil {
			return nil, err
		}
		ids, what := jsonText(d.IDs), name+" "+strings.Join(d.IDs, ", ")
		if !unknown { // else it may be another name of one that a node lists
			add(what, has, "NOT EXISTS (SELECT 1 FROM json_each(?) j WHERE j.value NOT IN (SELECT value FROM json_each(r.devices)))", ids)
			cs[0].one, cs[0].many = "does not have "+what, "do not have "+what
		}
		add(what+" in use", free, "h.device IN (SELECT value FROM json_each(?))", ids)
	case d.Amount <= 0:
		add("no "+name, has, "r.amount > 0")
	}
	switch {
	case d.Amount == everything:
		add(name+" in use", free, "1")
	case d.Amount == 1:
		add("no "+name+" free", has, "r.used < r.amount")
	case d.Amount > 1:
		add(fmt.Sprintf("less than %d %s free", d.Amount, name), has, "r.used + ? <= r.amount", d.Amount)
	}
	return cs, nil
}

// portClauses refuse nodes where a host port is taken, TCP and UDP apart. Of a
// range one free port is enough; what was promised one of a range that lies in it
// will take one, whichever. In the host's network the ports are those that containers
// expose; the rows of stopped ones stay and do not count.
func portClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, p := range w.ports {
		if p.ip == hostMode {
			words := fmt.Sprintf("port %d/%s of the host's network in use", p.first, p.protocol)
			cs = append(cs, clause{one: "has " + words, many: "have " + words, sql: `NOT EXISTS (SELECT 1 FROM ports p
				WHERE p.node_id = n.id AND p.protocol = ? AND p.host_port = ? AND p.host_ip = 'host'
				AND (p.reservation IS NOT NULL OR EXISTS (SELECT 1 FROM containers c WHERE c.id = p.container AND c.counted)))`,
				args: []any{p.protocol, p.first}})
			continue
		}
		words := fmt.Sprintf("port %s in use", p)
		cs = append(cs, clause{one: "has " + words, many: "have " + words,
			sql: `(SELECT count(DISTINCT CASE p.last_port WHEN p.host_port THEN p.host_port ELSE -p.id END) FROM ports p
				WHERE p.node_id = n.id AND p.protocol = ? AND p.host_port BETWEEN ? AND ? AND p.last_port <= ?
				AND (? = '' AND p.host_ip <> 'host' OR p.host_ip IN ('', ?))) < ?`,
			args: []any{p.protocol, p.first, p.last, p.last, p.ip, p.ip, p.last - p.first + 1}})
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

// exprClause words the clause of an expression; != turns its condition round.
func exprClause(kind string, e expr, c clause) clause {
	words := kind + " " + e.String()
	c.one, c.many, c.soft = "fails "+words, "fail "+words, e.soft
	if e.not {
		c.sql, c.few = "NOT ("+c.sql+")", nil
	}
	return c
}

// constraint is the condition that a node's label matches e. Patterns are matched
// here against the few values there are, so that the statement keeps its shape.
func (t *tx) constraint(e expr) (clause, error) {
	if e.key == "node" {
		values, n, err := t.matching(e, "SELECT name, 1 FROM node_load UNION SELECT engine_id, 1 FROM node_load WHERE engine_id IS NOT NULL")
		c := clause{sql: "n.name IN (SELECT value FROM json_each(?1)) OR coalesce(n.engine_id IN (SELECT value FROM json_each(?1)), 0)", args: []any{values}}.numbered()
		c.few = &nodeSet{n, "SELECT id FROM nodes WHERE name IN (SELECT value FROM json_each(?)) UNION ALL SELECT id FROM nodes WHERE engine_id IN (SELECT value FROM json_each(?))", []any{values, values}}
		return c, err
	}
	values, n, err := t.matching(e, "SELECT value, nodes FROM label_values WHERE key = ?", e.key)
	if err == nil && e.exact() {
		err = t.get("SELECT coalesce(sum(nodes), 0) FROM label_values WHERE key = ? AND value = ?", []any{e.key, e.value}, &n)
	}
	return clause{sql: "EXISTS (SELECT 1 FROM node_labels l WHERE l.node_id = n.id AND l.key = ? AND l.value IN (SELECT value FROM json_each(?)))",
		args: []any{e.key, values},
		few:  &nodeSet{n, "SELECT l.node_id FROM node_labels l WHERE l.key = ? AND l.value IN (SELECT value FROM json_each(?))", []any{e.key, values}}}, err
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

// matching is the values of a query that e matches, as a JSON array, with the sum of
// the numbers beside them. A plain value needs no look and counts for one.
func (t *tx) matching(e expr, query string, args ...any) (values string, n int, err error) {
	if e.exact() {
		return jsonText([]string{e.value}), 1, nil
	}
	rows, err := t.query(query, args...)
	if err != nil {
		return "", 0, err
	}
	defer rows.Close()
	found := []string{}
	for rows.Next() {
		var v string
		var nodes int
		if err := rows.Scan(&v, &nodes); err != nil {
			return "", 0, err
		}
		if e.match(v) {
			found = append(found, v)
			n += nodes
		}
	}
	return jsonText(found), n, rows.Err()
}

// whitelistClauses keep to the nodes that are named, n1|n2; classic Swarm looks at
// neither key nor operator there.
func whitelistClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, e := range w.whitelists {
		names := strings.Split(e.value, "|")
		args := []any{jsonText(names)}
		cs = append(cs, clause{one: "is not in whitelist " + e.value, many: "are not in whitelist " + e.value, soft: e.soft,
			sql: "n.name IN (SELECT value FROM json_each(?))", args: args,
			few: &nodeSet{len(names), "SELECT id FROM nodes WHERE name IN (SELECT value FROM json_each(?))", args}})
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
		values, n, err := t.matching(e, "SELECT name, 1 FROM containers UNION SELECT container_id, 1 FROM containers UNION SELECT name, 1 FROM reservations WHERE kind = 'container'")
		if err == nil && e.exact() && isShortID(e.value) {
			ids, err := t.strings("SELECT container_id FROM containers WHERE container_id >= ?1 AND container_id < ?1 || 'g'", e.value)
			if err != nil {
				return clause{}, err
			}
			values, n = jsonText(append(ids, e.value)), n+len(ids)
		}
		c := clause{sql: `EXISTS (SELECT 1 FROM containers c WHERE c.node_id = n.id AND c.name IN (SELECT value FROM json_each(?1)))
			OR EXISTS (SELECT 1 FROM containers c WHERE c.node_id = n.id AND c.container_id IN (SELECT value FROM json_each(?1)))
			OR EXISTS (SELECT 1 FROM reservations r WHERE r.node_id = n.id AND r.kind = 'container' AND r.name IN (SELECT value FROM json_each(?1)))`,
			args: []any{values}}.numbered()
		c.few = &nodeSet{n, `SELECT node_id FROM containers WHERE name IN (SELECT value FROM json_each(?))
			UNION ALL SELECT node_id FROM containers WHERE container_id IN (SELECT value FROM json_each(?))
			UNION ALL SELECT node_id FROM reservations WHERE kind = 'container' AND name IN (SELECT value FROM json_each(?))`, []any{values, values, values}}
		return c, err
	case "image":
		if e.exact() {
			return imageAffinity(e.value), nil
		}
		values, err := t.matchingImages(e)
		return clause{sql: `EXISTS (SELECT 1 FROM image_names i WHERE i.node_id = n.id AND i.name IN (SELECT value FROM json_each(?1)))
			OR EXISTS (SELECT 1 FROM images i WHERE i.node_id = n.id AND i.image_id IN (SELECT value FROM json_each(?1)))`,
			args: []any{values}}.numbered(), err
	}
	values, _, err := t.matching(e, `SELECT DISTINCT value, 1 FROM container_labels WHERE key = ?1
		UNION SELECT j.value, 1 FROM reservations r, json_each(r.labels) j WHERE j.key = ?1`, e.key)
	return clause{sql: `EXISTS (SELECT 1 FROM container_labels b JOIN containers c ON c.id = b.container
			WHERE c.node_id = n.id AND b.key = ? AND b.value IN (SELECT value FROM json_each(?)))
		OR EXISTS (SELECT 1 FROM reservations r, json_each(r.labels) j
			WHERE r.node_id = n.id AND j.key = ? AND j.value IN (SELECT value FROM json_each(?)))`,
		args: []any{e.key, values, e.key, values}}, err
}

// isShortID tells an ID as lists show it, twelve digits or more, from a name.
func isShortID(s string) bool { return len(s) >= 12 && len(s) < 64 && isHex(s) }

// imageAffinity is the condition that a node has an image: redis is any of its
// tags, redis:7 that one; IDs are given with or without sha256:, and may be short.
func imageAffinity(ref string) clause {
	name, from, to, low, high := imageName(ref), "", "", "", ""
	if isShortID(strings.TrimPrefix(ref, "sha256:")) {
		low, high = idRange(ref)
	}
	if repo, ok := strings.CutSuffix(name, ":latest"); ok && !strings.HasSuffix(ref, ":latest") {
		from, to = repo+":", repo+";" // ; is the character after :
	}
	return clause{sql: `EXISTS (SELECT 1 FROM image_names i WHERE i.node_id = n.id AND i.name = ?)
		OR EXISTS (SELECT 1 FROM image_names i WHERE i.node_id = n.id AND i.name > ? AND i.name < ?)
		OR EXISTS (SELECT 1 FROM images i WHERE i.node_id = n.id AND i.image_id IN (?, ?))
		OR EXISTS (SELECT 1 FROM images i WHERE i.node_id = n.id AND i.image_id > ? AND i.image_id < ?)`,
		args: []any{name, from, to, ref, "sha256:" + ref, low, high}}
}

// matchingImages is the names and IDs of images that a pattern matches, as a JSON
// array, each in all the ways people write it.
func (t *tx) matchingImages(e expr) (string, error) {
	rows, err := t.query("SELECT DISTINCT name FROM image_names UNION ALL SELECT DISTINCT image_id FROM images")
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
		if e.match(name) || e.match(familiarName(name)) || e.match(repository(name)) || e.match(strings.TrimPrefix(name, "sha256:")) {
			found = append(found, name)
		}
	}
	return jsonText(found), rows.Err()
}

// driverClauses refuse nodes without the driver of a network or volume. A driver
// that no node has refuses none: an engine finds plugins that it does not list yet,
// or says in its own words that there is none. So with the networks of a swarm,
// which only its managers make.
func driverClauses(_ *tx, w *workload) ([]clause, error) {
	var cs []clause
	if w.swarm {
		cs = append(cs, clause{one: "is not a swarm manager", many: "are not swarm managers",
			sql: `n.id IN (SELECT m.id FROM nodes m WHERE m.swarm_manager = 1)
				OR NOT EXISTS (SELECT 1 FROM nodes m WHERE m.swarm_manager = 1 AND m.state <> 'removed')`})
	}
	list := map[string]string{"network": "$.Plugins.Network", "volume": "$.Plugins.Volume"}[w.kind]
	if list == "" || w.driver == "" || w.driver == "bridge" || w.driver == "local" {
		return cs, nil
	}
	words := fmt.Sprintf("have %s driver %s", w.kind, w.driver)
	const has = "FROM node_info i, json_each(CASE WHEN json_valid(i.info) THEN i.info ELSE '{}' END, ?) p WHERE p.value IN (?, ? || ':latest')"
	args := []any{list, w.driver, w.driver}
	return append(cs, clause{one: "does not " + words, many: "do not " + words,
		sql:  "n.id IN (SELECT i.node_id " + has + ") OR NOT EXISTS (SELECT 1 " + has + ")",
		args: slices.Concat(args, args)}), nil
}

// platformClauses refuse nodes that cannot run what the request asks for, else what
// the image is made for, as far as nodes have told it: no registry is asked. A pull
// or build for a platform that no node runs goes anywhere: it may be for others.
func platformClauses(t *tx, w *workload) ([]clause, error) {
	wanted, words := []string{w.platform}, "cannot run "
	if w.platform == "" {
		if w.kind != "container" {
			return nil, nil
		}
		var err error
		if wanted, err = t.imagePlatforms(w.image, w.imageName()); err != nil || len(wanted) == 0 {
			return nil, err
		}
		words += "an image for "
	}
	all, err := t.nodePlatforms()
	if err != nil {
		return nil, err
	}
	run := slices.DeleteFunc(slices.Clone(all), func(node string) bool {
		return node != "[]" && !slices.ContainsFunc(wanted, func(p string) bool { return runsPlatform(node, p) })
	})
	if len(run) == len(all) || len(run) == 0 && w.kind != "container" {
		return nil, nil
	}
	words += strings.Join(wanted, " or ")
	return []clause{{one: words, many: words, sql: "n.platforms IN (SELECT value FROM json_each(?))", args: []any{jsonText(run)},
		cure: "a node that emulates it says so by its label platforms=" + strings.Join(wanted, ",")}}, nil
}

// imageClauses keep a create by image ID to nodes that have the image, or whose
// image store is of the same kind as one that has: elsewhere a copy gets another ID.
// A pull goes to a node that has the image already, and a create by digest to where
// that digest was pulled a moment ago: copies on graph drivers lose their digests.
func imageClauses(t *tx, w *workload) ([]clause, error) {
	name := w.imageName()
	switch {
	case w.kind == "image" && name != "":
		return []clause{{one: "lacks the image", many: "lack the image", soft: true, sql: `EXISTS (SELECT 1 FROM image_names i LEFT JOIN image_tags t ON t.name = i.name
			WHERE i.node_id = n.id AND i.name = ? AND (t.name IS NULL OR t.image_id = i.image_id))`, args: []any{name}}}, nil
	case w.kind != "container":
		return nil, nil
	case isDigestName(name):
		return []clause{{one: "has not pulled the image", many: "have not pulled the image", soft: true, sql: `EXISTS (SELECT 1 FROM image_tags t WHERE t.node_id = n.id AND t.name = ?
			AND t.set_at >= CAST(strftime('%s','now') AS INTEGER) - ?)`, args: []any{name, expectedPull}}}, nil
	}
	low, high := idRange(w.image)
	if low == "" {
		return nil, nil
	}
	var id string
	err := t.get(`SELECT image_id FROM images WHERE image_id >= ? AND image_id < ?
		AND NOT EXISTS (SELECT 1 FROM image_names WHERE name = ?) LIMIT 1`, []any{low, high, name}, &id)
	if errors.Is(err, errNotFound) {
		return nil, nil // by name, or nobody has it, which the engine says itself
	}
	words := "have image " + shortID(id) + ", and another kind of image store"
	return []clause{clause{one: "does not " + words, many: "do not " + words,
		sql: `EXISTS (SELECT 1 FROM images i WHERE i.node_id = n.id AND i.image_id = ?1)
			OR EXISTS (SELECT 1 FROM images i JOIN nodes h ON h.id = i.node_id JOIN nodes s ON s.id = n.id
				WHERE i.image_id = ?1 AND h.state = 'healthy' AND h.image_store = s.image_store)`, args: []any{id}}.numbered()}, err
}
