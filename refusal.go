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

// most tells how much of the CPUs and memory asked for there is, where they are
// what refuses: the largest node if none is large enough, else the most that is free.
func (q *query) most(t *tx) (words string, impossible bool, err error) {
	var parts []string
	where, args := q.without("resources").where()
	useful, usefulArgs := q.without(roomFilters...).where() // a large node that is down may come back
	for which, r := range []struct {
		total, used string
		words       func(int64) string
	}{
		{"nano_cpus", "used_nano_cpus", cpusWords},
		{"memory_bytes", "used_memory_bytes", func(n int64) string { return bytesText(n) + " of memory" }},
	} {
		asked := q.args[which].(int64)
		if asked == 0 {
			continue
		}
		for i, look := range []struct{ amount, words string }{
			{"n." + r.total, "the largest node that qualifies is %s with %s in all"},
			{"n." + r.total + " - n." + r.used, "the most free is on %s: %s"},
		} {
			var node string
			var amount int64
			err := t.get(fmt.Sprintf("SELECT n.name, %s AS amount FROM node_load n WHERE %s ORDER BY amount DESC, n.id LIMIT 1", look.amount, where), args, &node, &amount)
			if errors.Is(err, errNotFound) {
				return "", false, nil // it is not room that they lack
			}
			if err != nil {
				return "", false, err
			}
			if amount < asked {
				parts = append(parts, fmt.Sprintf(look.words, node, r.words(max(amount, 0))))
				if i == 0 {
					err := t.get(fmt.Sprintf("SELECT %s AS amount FROM node_load n WHERE %s ORDER BY amount DESC LIMIT 1", look.amount, useful), usefulArgs, &amount)
					if err != nil {
						return "", false, err
					}
					impossible = impossible || amount < asked
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
