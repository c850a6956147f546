package main

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// decide writes the ledger and reserves. It returns a *noNodeError as refused,
// so that the transaction, and with it the ledger's row, is kept.
func (q *query) decide(t *tx, w *workload, p *placement, began time.Time) (refused *noNodeError, err error) {
	nodes, sizes, err := t.sizes()
	if err != nil {
		return nil, err
	}
	var best []candidate
	var all []judged
	var fitting *int // unknown where the nodes are too many to look at each
	plan := planExact
	if nodes > exactNodes {
		if best, plan, err = q.pick(t, w, nodes, sizes); err != nil {
			return nil, err
		}
	}
	refusal := &noNodeError{nodes: nodes}
	if len(best) == 0 {
		var n int
		if all, n, err = q.judge(t, w, refusal); err != nil {
			return nil, err
		}
		for _, j := range all[:min(n, 2)] {
			best = append(best, j.candidate)
		}
		fitting = &n
	}
	var chosen, next candidate
	var node, score, nextScore any // NULL
	outcome, message := "reserved", ""
	if len(best) == 0 {
		outcome, message = "refused", refusal.full()
	} else {
		chosen = best[0]
		node, score = chosen.node, chosen.score
		p.node, p.nodeName = chosen.node, chosen.name
	}
	if len(best) > 1 {
		next = best[1]
		nextScore = next.score
	}
	res, err := t.exec(`INSERT INTO placements (kind, name, image, swarm_id, request, strategy, seed, nodes, fitting,
			node_id, node, score, plan, next_node, next_score, outcome, message, decide_us)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, w.kind, p.name, w.image, w.swarmID, jsonText(w.shape()), q.strategy, q.seed, nodes, fitting,
		node, chosen.name, score, plan, next.name, nextScore, outcome, message, time.Since(began).Microseconds())
	if err != nil {
		return nil, err
	}
	t.metrics.decided(outcome, time.Since(began))
	p.id, _ = res.LastInsertId()
	if err := q.keepLook(t, p.id, all, refusal); err != nil {
		return nil, err
	}
	if len(best) == 0 {
		return refusal, nil
	}
	if w.keep != "" {
		if _, err := t.exec("INSERT OR REPLACE INTO create_bodies (key, body, query, version) VALUES (?,?,?,?)", w.swarmID, w.keep, w.query, w.version.String()); err != nil {
			return nil, err
		}
	}
	return nil, t.reserve(w, p)
}

// ask names the first parameters. It stands at the head of a statement so that
// the clauses' plain ? are counted on from there.
const ask = "WITH ask (cpus, memory, seed) AS (VALUES (?1, ?2, ?3))"

// reserve keeps room for w on the node that was picked, in the transaction that picked it.
func (t *tx) reserve(w *workload, p *placement) error {
	if w.kind != "container" && !w.isThing() {
		return nil
	}
	res, err := t.exec(`INSERT INTO reservations (nano_cpus, memory_bytes, placement_id, swarm_id, name, image, labels, volumes, kind, group_key, node_id)
		VALUES (?,?,?,?,?,?,?,?,?,?,?)`, w.nanoCPUs, w.memory, p.id, w.swarmID, p.name, w.image, jsonText(w.seenLabels()), jsonText(w.volumes), w.kind, w.group, p.node)
	if err != nil {
		return err
	}
	p.reservation, _ = res.LastInsertId()
	for _, port := range w.ports {
		if _, err := t.exec("INSERT INTO ports (node_id, reservation, host_ip, host_port, last_port, protocol) VALUES (?,?,?,?,?,?)",
			p.node, p.reservation, port.ip, port.first, port.last, port.protocol); err != nil {
			return err
		}
	}
	p.devices, err = t.takeResources(p.node, p.reservation, w.demands)
	return err
}

// judged is a node and the number of the first clause that refuses it, 0 for none.
type judged struct {
	candidate
	addr string
	by   int
}

// judge judges every node by every clause: first come those that fit, best first. It
// words what refuses the others in e.
func (q *query) judge(t *tx, w *workload, e *noNodeError) (all []judged, fitting int, err error) {
	by, byArgs := q.refusedBy()
	order, orderArgs := q.order(w)
	rows, err := t.query(fmt.Sprintf(ask+" SELECT n.id, n.name, n.address, %s AS refused, CAST(%s AS INTEGER) AS score FROM node_load n ORDER BY refused > 0, %s",
		by, q.st.score, order), slices.Concat(q.args, byArgs, orderArgs)...)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var j judged
		var score *int64 // NULL of a node that has not told its size
		if err := rows.Scan(&j.node, &j.name, &j.addr, &j.by, &score); err != nil {
			return nil, 0, err
		}
		if score != nil {
			j.score = *score
		}
		if j.by == 0 {
			fitting++
		}
		all = append(all, j)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, err
	}
	others := all[fitting:]
	slices.SortFunc(others, func(a, b judged) int { return cmp.Compare(a.node, b.node) })
	refused := make([][]string, len(q.clauses))
	for _, j := range others {
		refused[j.by-1] = append(refused[j.by-1], j.name)
	}
	for i, names := range refused {
		if len(names) > 0 {
			e.counts = append(e.counts, refusal{q.clauses[i], len(names), names})
		}
	}
	sort.SliceStable(e.counts, func(a, b int) bool { return e.counts[a].nodes > e.counts[b].nodes })
	if fitting == 0 {
		e.tied = q.tied(all)
		if e.most, e.impossible, err = q.most(t); e.most == "" && len(e.counts) == 1 {
			e.most = e.counts[0].clause.cure
		}
	}
	return all, fitting, err
}

// keepLook stores how every node was judged beside the placement.
func (q *query) keepLook(t *tx, placement int64, all []judged, e *noNodeError) error {
	for _, r := range e.counts {
		if _, err := t.exec("INSERT OR REPLACE INTO placement_filters VALUES (?,?,?,?)", placement, r.clause.filter, r.words(), r.nodes); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		return nil
	}
	limit := storedNodes
	if all[0].by > 0 {
		limit = refusedStored
	}
	looks := [][4]any{}
	for _, j := range all[:min(limit, len(all))] {
		if j.by > 0 {
			looks = append(looks, [4]any{j.name, j.addr, q.clauses[j.by-1].one, nil})
			continue
		}
		looks = append(looks, [4]any{j.name, j.addr, "", j.score})
	}
	_, err := t.exec("INSERT INTO placement_looks VALUES (?,?)", placement, jsonText(looks))
	return err
}

// tied tells of a workload that is tied to nodes where it is, and why it cannot go
// there: counts of all the other nodes would hide it. Empty if nothing ties it.
func (q *query) tied(all []judged) string {
	for _, c := range q.clauses {
		if c.tie == "" {
			continue
		}
		var at []string
		cure := ""
		for _, j := range all {
			if !slices.Contains(c.nodes, j.node) || len(at) == 3 {
				continue
			}
			by := q.clauses[j.by-1]
			at = append(at, j.name+", which "+by.one)
			kind, _, _ := strings.Cut(c.tie, " ")
			made := kind == "network" || kind == "volume"
			other, _, _ := strings.Cut(by.tie, " ")
			switch {
			case made && by.filter == "constraint":
				cure = fmt.Sprintf(": put the constraint on the %s (label %s)", kind, expressionLabel("constraint"))
			case made && (other == "network" || other == "volume"):
				cure = fmt.Sprintf(": make both on one node (label %s on each)", expressionLabel("constraint"))
			}
		}
		if at != nil {
			return c.tie + " is on " + strings.Join(at, ", and on ") + cure
		}
	}
	return ""
}
