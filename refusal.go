package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// noNodeError is a refusal: how many nodes each clause refused.
type noNodeError struct {
	nodes  int
	counts []refusal // most first
	most   string    // how much of what was asked for could be had, or what else can be done
	// impossible: no node that qualifies has so much, so that waiting would not help
	impossible bool
	tied       string // where the workload would have to go, and why it cannot
}

type refusal struct {
	clause clause
	nodes  int
	names  []string // of those nodes
}

func (r refusal) words() string {
	if r.nodes == 1 {
		return r.clause.one
	}
	return r.clause.many
}

func (e *noNodeError) Error() string {
	if e.nodes == 0 {
		return "no node fits: the cluster has no nodes"
	}
	if e.tied != "" {
		return "no node fits: " + e.tied
	}
	var parts []string
	for i, r := range e.counts {
		if i == 0 {
			parts = append(parts, fmt.Sprintf("%d of %d %s", r.nodes, e.nodes, r.words()))
		} else {
			parts = append(parts, fmt.Sprintf("%d %s", r.nodes, r.words()))
		}
	}
	return "no node fits: " + strings.Join(parts, ", ")
}

// fewNodes is how many nodes a refusal names.
const fewNodes = 6

// full is the refusal for whoever asked: the counts, the nodes behind them while
// they are few, and what could be had instead.
func (e *noNodeError) full() string {
	words := e.Error()
	if e.nodes <= fewNodes && len(e.counts) > 1 && e.tied == "" {
		var groups []string
		for _, r := range e.counts {
			groups = append(groups, strings.Join(r.names, ", "))
		}
		words += " (" + strings.Join(groups, "; ") + ")"
	}
	if e.most != "" {
		words += "; " + e.most
	}
	return words
}

// measure is an amount of something that nodes have: total and used are SQL on node_load (n).
type measure struct {
	asked       int64
	total, used string
	args        []any // of total, and of used
	words       func(int64) string
}

// measures are the amounts that the workload asks for.
func (q *query) measures(t *tx) ([]measure, error) {
	list := []measure{
		{asked: q.args[0].(int64), total: "n.nano_cpus", used: "n.used_nano_cpus", words: cpusWords},
		{asked: q.args[1].(int64), total: "n.memory_bytes", used: "n.used_memory_bytes", words: func(n int64) string { return bytesText(n) + " of memory" }},
	}
	for _, d := range q.demands {
		if d.Device > 0 {
			if any, err := t.anyHas(d.Name); err != nil {
				return nil, err
			} else if !any {
				continue
			}
		}
		const of = "coalesce((SELECT r.%s FROM resource_load r WHERE r.node_id = n.id AND r.name = ?), 0)"
		list = append(list, measure{asked: max(d.Amount, 1), total: fmt.Sprintf(of, "amount"), used: fmt.Sprintf(of, "used"), args: []any{d.Name},
			words: func(n int64) string { return fmt.Sprint(n, " ", d.Name) }})
	}
	return list, nil
}

// most tells how much of the CPUs, memory and things asked for there is, where they are
// what refuses: the largest node if none is large enough, else the most that is free.
func (q *query) most(t *tx) (words string, impossible bool, err error) {
	var parts []string
	where, args := q.without("resources").where()
	useful, usefulArgs := q.without(roomFilters...).where() // a large node that is down may come back
	measures, err := q.measures(t)
	if err != nil {
		return "", false, err
	}
	for _, r := range measures {
		if r.asked == 0 {
			continue
		}
		for i, look := range []struct {
			amount, words string
			args          []any
		}{
			{r.total, "the largest node that qualifies is %s with %s in all", r.args},
			{r.total + " - " + r.used, "the most free is on %s: %s", slices.Concat(r.args, r.args)},
		} {
			var node string
			var amount int64
			err := t.get(fmt.Sprintf("SELECT n.name, %s AS amount FROM node_load n WHERE %s ORDER BY amount DESC, n.id LIMIT 1", look.amount, where),
				slices.Concat(look.args, args), &node, &amount)
			if errors.Is(err, errNotFound) {
				return "", false, nil // it is not room that they lack
			}
			if err != nil {
				return "", false, err
			}
			if amount < r.asked {
				if amount > 0 || r.args == nil { // of things, that there are none was told
					parts = append(parts, fmt.Sprintf(look.words, node, r.words(max(amount, 0))))
				}
				if i == 0 {
					err := t.get(fmt.Sprintf("SELECT %s AS amount FROM node_load n WHERE %s ORDER BY amount DESC LIMIT 1", look.amount, useful),
						slices.Concat(look.args, usefulArgs), &amount)
					if err != nil {
						return "", false, err
					}
					impossible = impossible || amount < r.asked
				}
				break
			}
		}
	}
	return strings.Join(parts, "; "), impossible, nil
}

// cpusWords is a number of CPUs with its unit, as in 1 CPU.
func cpusWords(nano int64) string {
	if nano == 1e9 {
		return "1 CPU"
	}
	return cpusText(nano) + " CPUs"
}

// without is q less the clauses of some filters.
func (q *query) without(names ...string) *query {
	return &query{clauses: slices.DeleteFunc(slices.Clone(q.clauses), func(c clause) bool { return slices.Contains(names, c.filter) })}
}
