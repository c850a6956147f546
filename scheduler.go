package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/pkg/namesgenerator"
	units "github.com/docker/go-units"
)

// clause is one condition that a node must meet, on the columns of node_load (n).
type clause struct {
	filter    string
	one, many string // in words: is not healthy, are not healthy
	soft      bool   // only preferred
	home      bool   // where it belongs: preferred above all that is soft
	tie       string // what ties the workload to nodes: network demo_default
	cure      string // what can be done, told when it refuses every node
	nodes     []int64
	few       *nodeSet // the nodes that alone can meet it, where an index has them; nil: unknown
	sql       string
	args      []any
}

// nodeSet is a query for ids of nodes, with how many it is for, or a little more.
type nodeSet struct {
	count int
	sql   string
	args  []any
}

// filter is a named reason to refuse nodes. Its function reads, in the transaction
// that places, what it needs to write its clauses.
type filter struct {
	name    string
	clauses func(*tx, *workload) ([]clause, error)
}

// filters in the order in which a node's refusal is told; -filter chooses among them.
var filters = []filter{
	{"health", healthClauses},
	{"availability", availabilityClauses},
	{"api", apiClauses},
	{"dependency", dependencyClauses},
	{"driver", driverClauses},
	{"platform", platformClauses},
	{"group", groupClauses},
	{"image", imageClauses},
	{"constraint", constraintClauses},
	{"whitelist", whitelistClauses},
	{"affinity", affinityClauses},
	{"port", portClauses},
	{"containerslots", slotClauses},
	{"resources", resourceClauses},
}

// strategy is the order among nodes that fit: its SQL ranks node_load (n), with
// the workload's CPUs as ?1, memory as ?2 and a random seed as ?3.
type strategy struct {
	score string // an integer, shown by why and explain
	order string
}

// weight is classic Swarm's: the percentage that would be in use of what is asked for, 100 for what is not.
const weight = `(CASE WHEN ?1 > 0 THEN (n.used_nano_cpus + ?1) * 100 / n.nano_cpus ELSE 100 END
	+ CASE WHEN ?2 > 0 THEN (n.used_memory_bytes + ?2) * 100 / n.memory_bytes ELSE 100 END)`

var strategies = map[string]strategy{
	"spread":  {weight, "n.failures, score, n.containers"},
	"binpack": {weight, "n.failures, score DESC, n.containers DESC"},
	"random":  {"shuffle(?3, n.id)", "score"},
}

// scheduler decides where workloads go.
type scheduler struct {
	log      *slog.Logger
	store    *store
	strategy string
	file     *strategyFile // nil: the strategy is one of strategies
	filters  []filter
	// portsOnce: a fixed port may be used by one container of the whole cluster (-relay-ports).
	portsOnce bool
	cores     bool          // CpuShares of a container are whole CPUs (-cpu-shares)
	wait      time.Duration // for room, of a create that does not say (-wait)
	line      line
}

func newScheduler(log *slog.Logger, s *store, strategyName string, filterNames []string) (*scheduler, error) {
	sc := &scheduler{log: log, store: s, strategy: strategyName, filters: filters}
	if strings.HasSuffix(strategyName, ".sql") {
		var err error
		if sc.file, err = readStrategyFile(strategyName); err != nil {
			return nil, err
		}
		sc.strategy = sc.file.name
	} else if _, ok := strategies[strategyName]; !ok {
		return nil, fmt.Errorf("strategy %q: expected spread, binpack or random, or a file that ends in .sql", strategyName)
	}
	if len(filterNames) == 0 {
		return sc, nil
	}
	sc.filters = nil
	for _, f := range filters {
		if slices.Contains(filterNames, f.name) {
			sc.filters = append(sc.filters, f)
		}
	}
	for _, name := range filterNames {
		if !slices.ContainsFunc(filters, func(f filter) bool { return f.name == name }) {
			return nil, fmt.Errorf("filter %q: expected one of %s", name, strings.Join(filterList(filters), ", "))
		}
	}
	return sc, nil
}

func filterList(fs []filter) []string {
	var names []string
	for _, f := range fs {
		names = append(names, f.name)
	}
	return names
}

// errNameTaken refuses a name that a container or a create under way has.
type errNameTaken struct{ name, holder, node string }

func (e *errNameTaken) Error() string {
	if e.node == "" {
		return fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by a container that waits for room. You have to remove (or rename) that container to be able to reuse that name.", e.name)
	}
	if e.holder == "" {
		return fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by a container that is being created on node %s. You have to remove (or rename) that container to be able to reuse that name.", e.name, e.node)
	}
	return fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by container \"%s\" on node %s. You have to remove (or rename) that container to be able to reuse that name.", e.name, e.holder, e.node)
}

const (
	storedNodes   = exactNodes // a success is stored node by node up to this many nodes
	refusedStored = 50         // a refusal keeps this many nodes
)

// place picks a node for w and reserves room on it, in one transaction. It
// returns *errNameTaken, or a *noNodeError that tells what refused each node.
// Soft expressions do not refuse: nodes are preferred by how many hold (classic
// Swarm drops them all together).
func (sc *scheduler) place(ctx context.Context, w *workload) (*placement, error) {
	began := time.Now()
	w.countShares(sc.cores)
	seed := cmp.Or(w.seed, w.drawn, rand.Int64N(1<<31))
	var p *placement
	var refused *noNodeError
	var line int64
	scores, done, err := sc.fileScores(ctx, w)
	if err != nil {
		return nil, err
	}
	defer done()
	err = sc.store.writeWithin(ctx, sc.store.createWait(), func(t *tx) error {
		p, refused, line = &placement{name: w.name}, nil, 0
		if w.refused != 0 { // and looked for once more: the ledger has its last refusal, or none
			if _, err := t.exec("DELETE FROM placements WHERE id = ?", w.refused); err != nil {
				return err
			}
		}
		if w.kind == "container" {
			if w.line == 0 { // in line it has its name
				if err := t.claimName(p); err != nil {
					return err
				}
			}
			if sc.portsOnce {
				if err := t.portsFree(w.ports, w.replaces); err != nil {
					return err
				}
			}
		}
		if w.kind == "network" {
			if err := t.networkFree(w.name); err != nil {
				return err
			}
		}
		q, err := sc.query(t, w, seed)
		if err != nil {
			return err
		}
		if scores != "" && w.seed == 0 {
			q.applyFile(sc.file, scores)
		}
		refused, err = q.decide(t, w, p, began)
		if err != nil {
			return err
		}
		if refused != nil && !refused.impossible && time.Now().Before(w.until) {
			line, err = t.standInLine(w, p, q, refused)
			return err
		}
		if w.line != 0 {
			_, err = t.exec("DELETE FROM waiting WHERE id = ?", w.line)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if w.line != line {
		w.line, w.name = line, p.name
		sc.store.room.ring() // another is the head of the line now
	}
	w.refused = 0
	if refused != nil {
		if line == 0 {
			w.refused = p.id
		}
		return nil, refused
	}
	return p, nil
}

// claimName finds out whether p's name is free in the whole cluster, or finds one
// that is: engines pick theirs unique only to themselves.
func (t *tx) claimName(p *placement) error {
	if p.name != "" {
		return t.nameFree(p.name)
	}
	for try := 0; ; try++ {
		name := namesgenerator.GetRandomName(try)
		err := t.nameFree(name)
		if !errors.As(err, new(*errNameTaken)) {
			p.name = name
			return err
		}
	}
}

func (t *tx) nameFree(name string) error { return t.nameFreeFor(name, "") }

// nameFreeFor is nameFree for a rename: names that the container itself holds are free to it.
func (t *tx) nameFreeFor(name, container string) error {
	if len(name) > maxName {
		return errorf(http.StatusBadRequest, "container name is over %d bytes", maxName)
	}
	var holder, node string
	err := t.get(`SELECT c.container_id, n.name FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = ?1 AND c.container_id <> ?2
		UNION ALL SELECT m.container_id, n.name FROM renames m JOIN nodes n ON n.id = m.node_id WHERE ?1 IN (m.name, m.old_name) AND m.container_id <> ?2
		UNION ALL SELECT '', n.name FROM reservations r JOIN nodes n ON n.id = r.node_id WHERE r.name = ?1 AND r.kind = 'container'
		UNION ALL SELECT '', '' FROM waiting WHERE name = ?1 LIMIT 1`,
		[]any{name, container}, &holder, &node)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return &errNameTaken{name, holder, node}
}

// query is the one statement that places w, put together from its clauses.
type query struct {
	strategy string
	seed     int64
	clauses  []clause
	soft     []clause // preferences
	homes    []clause
	args     []any // ?1 to ?3: CPUs, memory, seed
	demands  []demand
	st       strategy
}

func (sc *scheduler) query(t *tx, w *workload, seed int64) (*query, error) {
	q := &query{strategy: sc.strategy, seed: seed, args: []any{w.nanoCPUs, w.memory, seed}, demands: w.demands}
	if sc.file != nil {
		q.strategy = "spread" // until applyFile
	}
	if w.seed != 0 {
		q.strategy = "random"
	}
	q.st = strategies[q.strategy]
	if w.prefer != 0 {
		q.soft = append(q.soft, clause{sql: "n.id = ?", args: []any{w.prefer}})
	}
	for _, f := range sc.filters {
		clauses, err := f.clauses(t, w)
		if err != nil {
			return nil, err
		}
		for _, c := range clauses {
			c.filter = f.name
			switch {
			case c.home:
				q.homes = append(q.homes, c)
			case c.soft:
				q.soft = append(q.soft, c)
			default:
				q.clauses = append(q.clauses, c)
			}
		}
	}
	if w.leaves != 0 {
		q.clauses = append(q.clauses, clause{filter: "availability", one: "is where it is now", many: "are where it is now", sql: "n.id <> ?", args: []any{w.leaves}})
	}
	kept, err := t.waitClauses(w)
	if err != nil {
		return nil, err
	}
	q.clauses = append(q.clauses, kept...)
	if len(w.exclude) > 0 {
		q.clauses = append(q.clauses, clause{filter: "health", one: "did not answer", many: "did not answer",
			sql: "n.id NOT IN (SELECT value FROM json_each(?))", args: []any{jsonText(w.exclude)}})
	}
	return q, nil
}

// where joins the hard clauses.
func (q *query) where() (sql string, args []any) {
	parts := []string{"1"}
	for _, c := range q.clauses {
		parts = append(parts, "("+c.sql+")")
		args = append(args, c.args...)
	}
	return strings.Join(parts, "\n AND "), args
}

// preference counts the soft clauses that hold, or is empty.
func (q *query) preference() (sql string, args []any) {
	var parts []string
	for _, c := range q.soft {
		parts = append(parts, "("+c.sql+")")
		args = append(args, c.args...)
	}
	if parts == nil {
		return "", nil
	}
	return "(" + strings.Join(parts, " + ") + ")", args
}

// refusedBy is the number of the first clause that refuses a node, 0 for none.
func (q *query) refusedBy() (sql string, args []any) {
	if len(q.clauses) == 0 {
		return "0", nil
	}
	var b strings.Builder
	b.WriteString("CASE")
	for i, c := range q.clauses {
		fmt.Fprintf(&b, " WHEN NOT coalesce((%s), 0) THEN %d", c.sql, i+1)
		args = append(args, c.args...)
	}
	b.WriteString(" ELSE 0 END")
	return b.String(), args
}

// hasImage prefers, among equals, a node that has the image: it comes last before
// the node's id, or spread would pile everything on the node that built it.
const hasImage = "EXISTS (SELECT 1 FROM image_names i WHERE i.name = ? AND i.node_id = n.id) DESC"

// order ranks the nodes that fit, best first.
func (q *query) order(w *workload) (sql string, args []any) {
	for _, c := range q.homes {
		sql += "(" + c.sql + ") DESC, "
		args = append(args, c.args...)
	}
	prefer, preferArgs := q.preference()
	if prefer != "" {
		sql += prefer + " DESC, "
	}
	last, lastArgs := w.lastOrder()
	return sql + q.st.order + ", " + last + ", n.id", slices.Concat(args, preferArgs, lastArgs)
}

// asRefusal gives a scheduling error its status. "no node fits" is 503 and never
// 404, on which clients pull the image.
func asRefusal(err error) error {
	var none *noNodeError
	switch {
	case errors.As(err, &none):
		return errorf(http.StatusServiceUnavailable, "%s", none.full())
	case errors.As(err, new(*errNameTaken)), errors.As(err, new(*errPortTaken)):
		return errorf(http.StatusConflict, "%v", err)
	}
	return err
}

// bytesText is a size in words, as in 512MiB.
func bytesText(n int64) string { return strings.ReplaceAll(units.BytesSize(float64(n)), " ", "") }

// cpusText is a number of CPUs, as in 1.5.
func cpusText(nano int64) string {
	data, _ := json.Marshal(float64(nano) / 1e9)
	return string(data)
}
