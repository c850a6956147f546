package main

import (
	"fmt"
	"slices"
)

// A plan is how the nodes to choose among are found. Whatever it finds is ranked by
// the same order, the strategy's own; the ledger says which one it was.
const (
	planExact = "exact" // every node is looked at
	planSizes = "sizes" // the best few of each size of node, from an index
	planFew   = "few"   // those that one clause names
	planHome  = "home"  // where the workload belongs
)

const (
	exactNodes = 200 // up to so many every node is looked at: it takes less than a tenth of a millisecond
	bestOfSize = 4   // nodes of each size that are ranked; 64 in all where sizes are many, but at least 2 of each
	imageNodes = 8   // nodes that have the image are ranked too, up to so many
)

// candidate is a node that fits.
type candidate struct {
	node  int64
	name  string
	score int64
}

// sizes is how many nodes there are, and of how many sizes those that are healthy.
func (t *tx) sizes() (nodes, sizes int, err error) {
	err = t.get("SELECT coalesce(sum(nodes) FILTER (WHERE state <> 'removed'), 0), count(*) FILTER (WHERE state = 'healthy') FROM node_sizes", nil, &nodes, &sizes)
	return nodes, sizes, err
}

// pick finds the node that is best for w among more than exactNodes, and the second best.
// It returns none if none fits.
//
// It looks at few of them. Inside one size of node the order by load does not depend on
// the request, so the best of each size are the first in an index that fit, and only
// those are ranked. Soft expressions, a strategy other than spread and binpack, and
// networks and volumes, which go by what no index has, are worth a look at every node.
func (q *query) pick(t *tx, w *workload, nodes, sizes int) (best []candidate, plan string, err error) {
	where, args := q.where()
	few := q.fewest()
	switch {
	case few != nil && few.count == 0:
		return nil, planFew, nil
	// An index by load is walked until enough nodes fit: the fewer do, the longer it takes.
	case few != nil && few.count*few.count <= nodes*bestOfSize:
		best, err = q.rank(t, w, among(few.sql), slices.Concat(few.args, args), where)
		return best, planFew, err
	}
	for _, home := range q.homes {
		if best, err = q.rank(t, w, "node_load n", slices.Concat(home.args, args), "("+home.sql+")\n AND "+where); err != nil || len(best) > 0 {
			return best, planHome, err
		}
	}
	if w.kind == "container" && len(q.soft) == 0 && slices.ContainsFunc(q.clauses, func(c clause) bool { return c.sql == isHealthy }) {
		if best, err = q.bestOfSizes(t, w, sizes); err != nil || len(best) > 0 {
			return best, planSizes, err
		}
	}
	// None fits, or only nodes that failed lately.
	best, err = q.rank(t, w, "node_load n", args, where)
	return best, planExact, err
}

// among is node_load, cut to the nodes of a query. CROSS: the planner knows no better
// than to go by an index for all healthy nodes.
func among(ids string) string {
	return "(SELECT 0 AS id WHERE 0 UNION " + ids + ") k CROSS JOIN node_load n ON n.id = k.id"
}

// fewest is the smallest set of nodes that a clause names, nil if none does.
func (q *query) fewest() *nodeSet {
	var few *nodeSet
	for _, c := range q.clauses {
		if c.few != nil && (few == nil || c.few.count < few.count) {
			few = c.few
		}
	}
	return few
}

// bestOfSizes ranks the nodes that are the first that fit of their size, by the load that
// is asked for; none if no index has the order. Nodes that failed lately are left out: any
// other goes before them.
func (q *query) bestOfSizes(t *tx, w *workload, sizes int) ([]candidate, error) {
	load := ""
	switch {
	case w.nanoCPUs > 0 && w.memory > 0:
		load = "n.load_both"
	case w.nanoCPUs > 0:
		load = "n.load_cpus"
	case w.memory > 0:
		load = "n.load_memory"
	}
	limit := max(2, min(bestOfSize, 64/max(sizes, 1)))
	if load == "" {
		limit = 2 // the score is the same everywhere, and the index has the rest of the order
	}
	var order string
	switch {
	case q.strategy == "spread" && load == "":
		order = "n.containers"
	case q.strategy == "spread":
		order = load // what is equal here is ranked by containers when the sizes meet
	case q.strategy == "binpack" && load == "":
		order = "n.containers DESC"
	case q.strategy == "binpack":
		order = load + " DESC"
	default:
		return nil, nil
	}
	where, args := q.where()
	best, err := q.rank(t, w, fmt.Sprintf(`node_sizes s CROSS JOIN node_load n ON n.id IN (
			SELECT n.id FROM node_load n
			 WHERE n.failures = 0 AND n.size_class = s.size_class AND %s
			 ORDER BY %s LIMIT %d)`, where, order, limit), args, "s.state = 'healthy'")
	if err != nil || len(best) == 0 {
		return nil, err
	}
	// A node as good may have the image, and be the one that the image was just pulled to.
	var enough bool
	image := w.imageName()
	err = t.get("SELECT EXISTS (SELECT 1 FROM image_names WHERE node_id = ?1 AND name = ?2) OR NOT EXISTS (SELECT 1 FROM image_names WHERE name = ?2)",
		[]any{best[0].node, image}, &enough)
	if err != nil || enough {
		return best, err
	}
	return q.rank(t, w, among("SELECT ? UNION SELECT node_id FROM (SELECT node_id FROM image_names WHERE name = ? LIMIT ?)"),
		slices.Concat([]any{best[0].node, image, imageNodes}, args), where)
}

// rank returns the two that are best of the nodes in from that meet where. args are of both.
func (q *query) rank(t *tx, w *workload, from string, args []any, where string) ([]candidate, error) {
	order, orderArgs := q.order(w)
	rows, err := t.query(fmt.Sprintf(ask+`
		SELECT n.id, n.name, CAST(%[1]s AS INTEGER), %[1]s AS score FROM %[2]s
		 WHERE %[3]s
		 ORDER BY %[4]s LIMIT 2`, q.st.score, from, where, order), slices.Concat(q.args, args, orderArgs)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var best []candidate
	for rows.Next() {
		var c candidate
		if err := rows.Scan(&c.node, &c.name, &c.score, new(any)); err != nil {
			return nil, err
		}
		best = append(best, c)
	}
	return best, rows.Err()
}
