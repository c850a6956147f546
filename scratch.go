package main

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	units "github.com/docker/go-units"
)

// scratch is a copy of the manager's database in which requests are placed by the
// same statements as in a create, and no engine is asked. It is gone when closed.
type scratch struct {
	*store
	sc    *scheduler
	dir   string
	ids   int               // that were made up
	peaks map[int64]float64 // highest load of each node, percent
	made  map[string]*trial // by the name of a volume: who made it last
	out   map[int64]string  // names of the nodes that are left out
	// refused are what was there in truth and is not in the simulation, as in network demo
	// or container ID: what would join them is refused with them.
	refused map[string]bool
}

// openScratch copies the database at path, which is only read. SQLite makes the
// copy in one read transaction, beside a manager that may run.
func openScratch(ctx context.Context, path string, log *slog.Logger) (s *scratch, err error) {
	db, err := openReader(ctx, path)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	s = &scratch{peaks: map[int64]float64{}, made: map[string]*trial{}, out: map[int64]string{}, refused: map[string]bool{}}
	if s.dir, err = os.MkdirTemp("", "swarmlite-"); err != nil {
		return nil, fmt.Errorf("scratch copy: %w; TMPDIR names another place", err)
	}
	copied := filepath.Join(s.dir, "scratch.db")
	// query_only would forbid the copy to be written; the original is open with mode=ro.
	db.SetMaxOpenConns(1)
	_, err = db.ExecContext(ctx, "PRAGMA query_only = 0")
	if err == nil {
		_, err = db.ExecContext(ctx, "VACUUM INTO ?", copied)
	}
	if err != nil {
		os.RemoveAll(s.dir)
		return nil, fmt.Errorf("scratch copy in %s: %s; TMPDIR names another place", s.dir, sqliteWords(err))
	}
	if s.store, err = openStore(ctx, log, copied); err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	err = s.write(ctx, func(t *tx) (err error) {
		if s.sc, err = t.managersScheduler(); err != nil {
			return err
		}
		s.sc.log, s.sc.store = log, s.store
		_, err = t.exec("DELETE FROM waiting")
		return err
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *scratch) close() {
	s.store.close()
	os.RemoveAll(s.dir)
}

// changes are what is to be different from the cluster as it is.
type changes struct {
	strategy   string
	filters    []string
	overcommit float64 // NaN: as the manager has it
	without    []string
	added      []addedNodes
}

// apply makes the changes, and tells what is left out with nodes: because something ties
// it to them, else for the reason that rest gives.
func (s *scratch) apply(ctx context.Context, c *changes, rest string) (leftOut []*trial, err error) {
	if c.strategy != "" {
		other, err := newScheduler(nil, nil, c.strategy, nil)
		if err != nil {
			return nil, fmt.Errorf("-%w", err)
		}
		s.sc.strategy, s.sc.file = other.strategy, other.file
	}
	if len(c.filters) > 0 {
		other, err := newScheduler(nil, nil, "spread", c.filters)
		if err != nil {
			return nil, fmt.Errorf("-%w", err)
		}
		s.sc.filters = other.filters
	}
	if !math.IsNaN(c.overcommit) {
		err := s.write(ctx, func(t *tx) error {
			_, err := t.exec("UPDATE manager SET overcommit = ?", c.overcommit)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	added := 0
	for _, a := range c.added {
		for range a.count {
			added++
			err := s.write(ctx, func(t *tx) error { return t.addNodeLike(a, fmt.Sprint("added-", added)) })
			if err != nil {
				return nil, err
			}
		}
	}
	for _, ref := range c.without {
		var id int64
		var name string
		err := s.get(ctx, "SELECT id, name FROM node_load WHERE ? IN (name, engine_id, address)", []any{ref}, &id, &name)
		if errors.Is(err, errNotFound) {
			return nil, fmt.Errorf("-without: node %s not found", ref)
		}
		var gone []*trial
		if err == nil {
			gone, err = s.leaveOut(ctx, id, name, rest)
		}
		if err != nil {
			return nil, err
		}
		leftOut = append(leftOut, gone...)
	}
	return leftOut, nil
}

// leaveOut takes a node out. The containers, networks and volumes on it stay in the copy,
// or what is tied to them would be placed as if they had never been.
func (s *scratch) leaveOut(ctx context.Context, id int64, name, rest string) (leftOut []*trial, err error) {
	list, err := allLeaving(s.queryIn(ctx), id)
	if err != nil {
		return nil, err
	}
	for _, k := range list {
		leftOut = append(leftOut, &trial{Kind: "container", Name: k.name, Image: k.image, Then: name,
			Message: fmt.Sprintf("left out with %s: %s", name, cmp.Or(k.tie(), rest))})
	}
	s.out[id] = name
	return leftOut, s.write(ctx, func(t *tx) error {
		for _, sql := range []string{
			"UPDATE nodes SET state = 'removed' WHERE id = ?",
			"DELETE FROM reservations WHERE node_id = ?",
			"DELETE FROM renames WHERE node_id = ?",
			"DELETE FROM ports WHERE node_id = ?",
			"DELETE FROM container_labels WHERE container IN (SELECT id FROM containers WHERE node_id = ?)", // no group begins there
		} {
			if _, err := t.exec(sql, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// leftOut tells of the first thing that a workload is tied to and that is on nodes that
// are left out, "" if it is refused for something else.
func (s *scratch) leftOut(e *noNodeError) string {
	for _, r := range e.counts {
		var at []string
		for _, node := range r.clause.nodes {
			if name := s.out[node]; name != "" && !slices.Contains(at, name) {
				at = append(at, name)
			} else if name == "" {
				at = nil
				break
			}
		}
		if at != nil {
			return fmt.Sprintf("no node fits: %s is on %s, which is left out", r.clause.tie, strings.Join(at, ", and on "))
		}
	}
	return ""
}

// lacks tells of what a workload would join and the simulation has refused; "" for nothing.
func (s *scratch) lacks(w *workload) string {
	for _, tie := range []struct {
		kind string
		refs []string
	}{{"network", w.networks}, {"container", w.containers}} {
		for _, ref := range tie.refs {
			if what := tie.kind + " " + strings.TrimPrefix(ref, "/"); s.refused[what] {
				return what + " is refused"
			}
		}
	}
	return ""
}

// addedNodes are nodes that a simulation has and the cluster has not: so much of
// each, the rest as on the node that they are like.
type addedNodes struct {
	like         string // "": the first node, without what a person has labelled it with
	cpus, memory int64
	labels       map[string]string
	count        int
}

// parseAddedNodes reads cpus=8,memory=32g,label=storage=ssd,like=node-1,count=3.
func parseAddedNodes(s string) (a addedNodes, err error) {
	a = addedNodes{labels: map[string]string{}, count: 1}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return a, err
	}
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "cpus":
			a.cpus, err = strconv.ParseInt(value, 10, 32)
		case "memory":
			a.memory, err = units.RAMInBytes(value)
		case "count":
			a.count, err = strconv.Atoi(value)
		case "like":
			a.like = value
		case "label":
			name, text, _ := strings.Cut(value, "=")
			a.labels[name] = text
		default:
			return a, fmt.Errorf("key %q: expected cpus, memory, label, like or count", key)
		}
		if err != nil || a.cpus < 0 || a.memory < 0 || a.count < 1 || a.count > 10_000 {
			return a, fmt.Errorf("%s: expected a number, as in cpus=8,memory=32g,count=2", field)
		}
	}
	if a.like == "" && (a.cpus == 0 || a.memory == 0) {
		return a, errors.New("expected cpus and memory, or like=NODE")
	}
	return a, nil
}

func (t *tx) addNodeLike(a addedNodes, name string) error {
	var like, id int64
	err := t.get("SELECT id FROM node_load WHERE ?1 IN ('', name, engine_id) ORDER BY state = 'healthy' DESC, id", []any{a.like}, &like)
	if errors.Is(err, errNotFound) {
		return fmt.Errorf("-add: node %s not found, which the new one is to be like", a.like)
	}
	if err != nil {
		return err
	}
	var columns string // not those that are computed
	if err := t.get("SELECT (SELECT max(id) + 1 FROM nodes), (SELECT group_concat(name) FROM pragma_table_info('nodes'))", nil, &id, &columns); err != nil {
		return err
	}
	for _, do := range []struct {
		sql  string
		args []any
	}{
		{"CREATE TEMP TABLE added AS SELECT " + columns + " FROM nodes WHERE id = ?", []any{like}},
		{`UPDATE added SET id = ?1, name = ?2, address = 'simulated ' || ?2, engine_id = NULL, state = 'healthy', availability = 'active', answers = 1,
			failures = 0, containers = 0, used_nano_cpus = 0, used_memory_bytes = 0, slots = NULL,
			cpus = iif(?3 > 0, ?3, cpus), memory_bytes = iif(?4 > 0, ?4, memory_bytes), line_labels = iif(?5 = '', '{}', line_labels)`, []any{id, name, a.cpus, a.memory, a.like}},
		{"INSERT INTO nodes (" + columns + ") SELECT " + columns + " FROM added", nil},
		{"DROP TABLE added", nil},
		// Devices belong to the one host.
		{"INSERT INTO node_info SELECT ?1, iif(?3 = '', json_remove(info, '$.GenericResources', '$.DiscoveredDevices'), info), version FROM node_info WHERE node_id = ?2", []any{id, like, a.like}},
		{"INSERT INTO node_labels SELECT ?, key, value, source FROM node_labels WHERE node_id = ? AND (source = 'automatic' OR ? <> '') AND key NOT IN (SELECT key FROM json_each(?))",
			[]any{id, like, a.like, jsonText(a.labels)}},
	} {
		if _, err := t.conn.ExecContext(t.ctx, do.sql, do.args...); err != nil {
			return err
		}
	}
	return t.coverLabels(id, a.labels)
}

// trial is one request, where it went in truth and where it goes in the simulation.
type trial struct {
	At      string `json:"at,omitempty"` // UTC; of the ledger's
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Image   string `json:"image,omitempty"`
	Then    string `json:"then,omitempty"` // node; "": it was refused, or is no request of the ledger
	Now     string `json:"now"`            // node; "": refused
	Message string `json:"message,omitempty"`

	w          *workload
	id         string // of the container or network
	at, ends   int64  // unix seconds; ends 0: it stays
	fromLedger bool
}

// place decides on r as a create would, and keeps what it comes to. A refusal is r's.
func (s *scratch) place(ctx context.Context, r *trial) error {
	s.ids++
	w := *r.w // groups are found out anew
	w.swarmID = fmt.Sprint("simulated-", s.ids)
	if r.id == "" {
		r.id = fmt.Sprintf("%064x", s.ids)
	}
	if w.kind == "volume" && w.name == "" {
		w.name = r.id // its engine would name it
	}
	if err := s.freeName(ctx, r); err != nil {
		return err
	}
	defer func() {
		for _, ref := range []string{r.Name, r.id} {
			s.refused[r.Kind+" "+ref] = r.Then != "" && r.Now == ""
		}
	}()
	if r.Message = s.lacks(&w); r.Message != "" {
		return nil
	}
	p, err := s.sc.place(ctx, &w)
	var none *noNodeError
	switch refusal := asRefusal(err); {
	case errors.As(err, &none):
		r.Message = cmp.Or(s.leftOut(none), none.full())
		return nil
	case err != nil && statusOf(refusal) == http.StatusConflict:
		r.Message = err.Error()
		return nil
	case err != nil:
		return err
	}
	r.Now = p.nodeName
	if w.kind == "container" {
		row := w.row(r.id, p.name, p.nodeName)
		row.networks = map[string]struct{ NetworkID string }{}
		for _, ref := range w.networks {
			row.networks[ref] = struct{ NetworkID string }{}
		}
		if err := s.created(ctx, p, row, 0); err != nil {
			return err
		}
		return s.peak(ctx, p.node)
	}
	return s.write(ctx, func(t *tx) error {
		if w.kind == "network" {
			body := networkBody{Name: w.name, Driver: w.driver, Labels: w.labels}
			if w.swarm {
				body.Scope = "swarm"
			}
			_, err = t.madeNetwork(p.node, &body, []byte(jsonText(map[string]string{"Id": r.id})))
		} else {
			s.made[w.name] = r
			_, err = t.madeVolume(p.node, []byte(jsonText(map[string]any{"Name": w.name, "Driver": w.driver, "Scope": "local", "Labels": w.labels})))
		}
		if err == nil {
			_, err = t.exec("DELETE FROM reservations WHERE id = ?", p.reservation)
		}
		return err
	})
}

// freeName lets go of what has the name of a request on nodes that are left out, and of
// whatever has that of one of the ledger: when it was made its name was free, though the
// ledger may not have seen the end of an earlier one.
func (s *scratch) freeName(ctx context.Context, r *trial) error {
	if r.w.name == "" || !r.fromLedger && len(s.out) == 0 {
		return nil
	}
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM "+r.w.kind+"s WHERE name = ? AND (? OR node_id IN (SELECT id FROM nodes WHERE state = 'removed'))", r.w.name, r.fromLedger)
		return err
	})
}

// end takes away what was placed.
func (s *scratch) end(ctx context.Context, r *trial) error {
	return s.write(ctx, func(t *tx) (err error) {
		switch r.w.kind {
		case "container":
			_, err = t.exec("DELETE FROM containers WHERE container_id = ?", r.id)
		case "network":
			_, err = t.exec("DELETE FROM networks WHERE network_id = ?", r.id)
		case "volume":
			if s.made[r.w.name] == r {
				_, err = t.exec("DELETE FROM volumes WHERE name = ?", r.w.name)
			}
		}
		return err
	})
}

// nodeLoad is the larger share of a node that is reserved, of its CPUs or its memory, in percent.
const nodeLoad = "max(100.0 * n.used_nano_cpus / n.nano_cpus, 100.0 * n.used_memory_bytes / n.memory_bytes)"

func (s *scratch) peak(ctx context.Context, node int64) error {
	var load float64
	err := s.get(ctx, "SELECT coalesce("+nodeLoad+", 0) FROM node_load n WHERE n.id = ?", []any{node}, &load)
	s.peaks[node] = max(s.peaks[node], load)
	return err
}

// nodeBalance is a node after the simulation.
type nodeBalance struct {
	Node            string  `json:"node"`
	Containers      int64   `json:"containers"`
	Before          int64   `json:"containers_before"` // in the cluster as it is
	NanoCPUs        int64   `json:"nano_cpus"`         // overcommit included, as MemoryBytes
	UsedNanoCPUs    int64   `json:"used_nano_cpus"`
	MemoryBytes     int64   `json:"memory_bytes"`
	UsedMemoryBytes int64   `json:"used_memory_bytes"`
	Load            float64 `json:"load_percent"` // the larger share of the two
	Peak            float64 `json:"peak_load_percent"`
}

func (s *scratch) balance(ctx context.Context, before map[string]int64) ([]nodeBalance, error) {
	rows, err := s.query(ctx, `SELECT n.id, n.name, n.containers, n.nano_cpus, n.used_nano_cpus, n.memory_bytes, n.used_memory_bytes, coalesce(`+nodeLoad+`, 0)
		FROM node_load n ORDER BY n.name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []nodeBalance{}
	for rows.Next() {
		var id int64
		var n nodeBalance
		if err := rows.Scan(&id, &n.Node, &n.Containers, &n.NanoCPUs, &n.UsedNanoCPUs, &n.MemoryBytes, &n.UsedMemoryBytes, &n.Load); err != nil {
			return nil, err
		}
		n.Before, n.Peak = before[n.Node], max(n.Load, s.peaks[id])
		list = append(list, n)
	}
	return list, rows.Err()
}

// run places trials in their order, and lets those go whose end comes before the next.
func (s *scratch) run(ctx context.Context, trials []*trial) error {
	var ending []*trial // that are there and will go, by their end
	endBefore := func(at int64) error {
		for len(ending) > 0 && ending[0].ends <= at {
			if err := s.end(ctx, ending[0]); err != nil {
				return err
			}
			ending = ending[1:]
		}
		return nil
	}
	for _, r := range trials {
		if err := endBefore(r.at); err != nil {
			return err
		}
		if err := s.place(ctx, r); err != nil {
			return fmt.Errorf("%s %s: %w", r.Kind, r.Name, err)
		}
		if r.Now != "" && r.ends > 0 {
			at, _ := slices.BinarySearchFunc(ending, r.ends+1, func(e *trial, ends int64) int { return cmp.Compare(e.ends, ends) })
			ending = slices.Insert(ending, at, r)
		}
	}
	return endBefore(math.MaxInt64)
}
