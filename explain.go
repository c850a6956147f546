package main

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const explainUsage = `Usage: swarmlite explain [flags] [docker run flags] IMAGE

Shows node by node where docker run with these flags would go and what refuses the
others, decided as a create would be, from the manager's database, whether the
manager runs or not. Nothing is reserved. Exits with 1 if no node fits.

  swarmlite explain -m 2g -p 80:80 -e constraint:storage==ssd nginx

All flags of docker create and docker run are known; those that placement looks at are
  --cpus --cpu-quota --cpu-period -m --memory-reservation -p --expose -e --env-file
  -l --label-file --name --network -v --mount --volumes-from --link --ipc --pid
  --runtime --platform --gpus --device, and -c if the manager has -cpu-shares=cores

Flags of its own:
`

// explainCommand prints what the scheduler thinks of each node for one create.
func explainCommand(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	var flags createFlags
	wrong := flags.parse(args, map[string]bool{"db": true, "json": false, "help": false})
	fs := flag.NewFlagSet("swarmlite explain", flag.ContinueOnError)
	path := dbFlag(fs)
	asJSON := fs.Bool("json", false, "print JSON")
	if help, err := parseCommand(fs, flags.own, explainUsage, stderr); help || err != nil {
		return err
	}
	if wrong != nil {
		return fmt.Errorf("explain: %w; swarmlite explain -h tells more", wrong)
	}
	w, data, err := readCreate([]byte(jsonText(flags.body)), &call{query: flags.query})
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	db, err := openReader(ctx, *path)
	if err != nil {
		return err
	}
	defer db.Close()
	var x *explanation
	err = readTx(ctx, db, func(t *tx) error {
		sc, err := t.managersScheduler()
		if err != nil {
			return err
		}
		if err := w.readWait(sc.wait, nil); err != nil {
			return err
		}
		if _, err := cutNodes(t.query, w, data); err != nil {
			return err
		}
		x, err = sc.explain(t, w)
		return err
	})
	if err != nil {
		return fmt.Errorf("explain: %s", sqliteWords(err))
	}
	if *asJSON {
		err = json.NewEncoder(stdout).Encode(x)
	} else {
		err = x.print(stdout)
	}
	if err == nil && x.Node == "" {
		err = errors.New(x.Message)
	}
	return err
}

// readTx runs fn in a read transaction on a connection that cannot write.
func readTx(ctx context.Context, db *sql.DB, fn func(*tx) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	t := &tx{ctx: ctx, conn: conn, stmts: map[string]*sql.Stmt{}}
	defer func() {
		for _, st := range t.stmts {
			st.Close()
		}
	}()
	if _, err := t.exec("BEGIN"); err != nil {
		return err
	}
	defer t.exec("ROLLBACK")
	return fn(t)
}

// managersScheduler is the scheduler as the manager that wrote the database has it.
func (t *tx) managersScheduler() (*scheduler, error) {
	var strategyName, file, names string
	var portsOnce, cores bool
	var waitMS int64
	if err := t.get("SELECT strategy, strategy_sql, filters, relay_ports, cpu_shares = 'cores', wait_ms FROM manager", nil, &strategyName, &file, &names, &portsOnce, &cores, &waitMS); err != nil {
		return nil, err
	}
	builtIn := strategyName
	if file != "" {
		builtIn = "spread"
	}
	sc, err := newScheduler(nil, nil, builtIn, strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' }))
	if err == nil && file != "" {
		sc.strategy, sc.file = strategyName, newStrategyFile(strategyName, file)
	}
	if err == nil {
		sc.portsOnce, sc.cores, sc.wait = portsOnce, cores, time.Duration(waitMS)*time.Millisecond
	}
	return sc, err
}

// explanation is the answer to "where would this go, and why not there".
type explanation struct {
	Image    string          `json:"image"`
	Strategy string          `json:"strategy"`
	Node     string          `json:"node"`    // "": none fits
	Fitting  int             `json:"fitting"` // nodes
	Message  string          `json:"message"` // the sentence that sums it up
	Nodes    []explainedNode `json:"nodes"`   // best first, then those that do not fit

	wishes int      // soft expressions
	things []string // countable ones that are asked for
}

type explainedNode struct {
	Node            string           `json:"node"`
	Address         string           `json:"address"`
	Rank            int              `json:"rank"`       // from 1; 0: does not fit
	RefusedBy       string           `json:"refused_by"` // in words
	Filter          string           `json:"filter"`
	Score           *int64           `json:"score"`
	Wishes          int              `json:"wishes"` // soft expressions that hold
	Containers      int64            `json:"containers"`
	FreeNanoCPUs    int64            `json:"free_nano_cpus"`
	FreeMemoryBytes int64            `json:"free_memory_bytes"`
	FreeSlots       *int64           `json:"free_slots"`     // null: no limit
	FreeResources   map[string]int64 `json:"free_resources"` // countable things, by name
}

// explain decides as place does, by the same clauses in the same order, and
// reserves nothing. A strategy file that fails is passed over for spread here, too.
func (sc *scheduler) explain(t *tx, w *workload) (*explanation, error) {
	x := &explanation{Image: w.image, Strategy: sc.strategy}
	w.countShares(sc.cores)
	var scores, failed string
	if sc.file != nil {
		var err error
		if scores, err = sc.file.rank(t.ctx, t.conn, w); err != nil {
			if t.ctx.Err() != nil {
				return nil, t.ctx.Err()
			}
			x.Strategy, failed = "spread", fmt.Sprintf("; by spread, as strategy %s fails: %s", sc.file.name, sqliteWords(err))
		}
	}
	var taken *errNameTaken
	if w.name != "" {
		if err := t.nameFree(w.name); err != nil && !errors.As(err, &taken) {
			return nil, err
		}
	}
	if sc.portsOnce {
		if err := t.portsFree(w.ports, w.replaces); err != nil {
			return nil, err
		}
	}
	q, err := sc.query(t, w, 0)
	if err != nil {
		return nil, err
	}
	if scores != "" {
		q.applyFile(sc.file, scores)
	}
	refused := &noNodeError{}
	all, fitting, err := q.judge(t, w, refused)
	if err != nil {
		return nil, err
	}
	refused.nodes = len(all)
	for _, d := range w.demands {
		if !slices.Contains(x.things, d.Name) {
			x.things = append(x.things, d.Name)
		}
	}
	x.Fitting, x.wishes = fitting, len(q.soft)
	if x.Nodes, err = q.ranked(t, w); err != nil {
		return nil, err
	}
	switch {
	case taken != nil:
		x.Message = taken.Error()
	case fitting == 0:
		x.Message = refused.full()
		if !refused.impossible && time.Now().Before(w.until) {
			x.Message = fmt.Sprintf("would wait in line for %s; %s", cmp.Or(w.labels[waitLabel], shortDuration(sc.wait)+" (-wait)"), x.Message)
		}
	default:
		x.Node = x.Nodes[0].Node
		x.Message = fmt.Sprintf("%s would choose %s: %d of %d fit", x.Strategy, x.Node, fitting, len(all))
		if fitting == 1 {
			x.Message = fmt.Sprintf("%s would choose %s, the only one of %d that fits", x.Strategy, x.Node, len(all))
		}
		if sc.strategy == "random" && fitting > 1 {
			x.Message = fmt.Sprintf("random would choose any of the %d of %d that fit", fitting, len(all))
		}
		x.Message += failed
	}
	return x, nil
}

// shortDuration is d as a person writes it: 10m, not 10m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	for _, nothing := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, nothing) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// ranked lists all nodes with their room: those that fit, best first, then the others.
func (q *query) ranked(t *tx, w *workload) ([]explainedNode, error) {
	by, byArgs := q.refusedBy()
	prefer, preferArgs := q.preference()
	if prefer == "" {
		prefer = "0"
	}
	order, orderArgs := q.order(w)
	rows, err := t.query(fmt.Sprintf(ask+`
		SELECT n.name, n.address, %s AS by, %s, CAST(%s AS INTEGER) AS score, n.containers,
		       n.nano_cpus - n.used_nano_cpus, n.memory_bytes - n.used_memory_bytes, n.slots - n.containers,
		       (SELECT json_group_object(r.name, r.amount - r.used) FROM resource_load r WHERE r.node_id = n.id)
		  FROM node_load n ORDER BY by > 0, %s`, by, prefer, q.st.score, order),
		slices.Concat(q.args, byArgs, preferArgs, orderArgs)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []explainedNode{}
	for rows.Next() {
		var n explainedNode
		var clause int
		var things string
		if err := rows.Scan(&n.Node, &n.Address, &clause, &n.Wishes, &n.Score, &n.Containers, &n.FreeNanoCPUs, &n.FreeMemoryBytes, &n.FreeSlots, &things); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(things), &n.FreeResources); err != nil {
			return nil, err
		}
		if clause > 0 {
			n.RefusedBy, n.Filter, n.Score = q.clauses[clause-1].one, q.clauses[clause-1].filter, nil
		} else {
			n.Rank = len(list) + 1
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

func (x *explanation) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	wishes := ""
	if x.wishes > 0 {
		wishes = "WISHES\t"
	}
	things := ""
	for _, name := range x.things {
		things += "FREE " + strings.ToUpper(name) + "\t"
	}
	fmt.Fprintln(t, "NODE\tFITS\tSCORE\t"+wishes+"CONTAINERS\tFREE CPUS\tFREE MEMORY\t"+things+"FREE SLOTS\tREFUSED BECAUSE IT")
	for _, n := range x.Nodes {
		fits, score, slots := "no", "-", "-"
		if n.Rank > 0 {
			fits = "yes"
		}
		if n.Score != nil {
			score = strconv.FormatInt(*n.Score, 10)
		}
		if n.FreeSlots != nil {
			slots = strconv.FormatInt(*n.FreeSlots, 10)
		}
		if x.wishes > 0 {
			wishes = fmt.Sprintf("%d of %d\t", n.Wishes, x.wishes)
		}
		things = ""
		for _, name := range x.things {
			things += fmt.Sprint(n.FreeResources[name], "\t")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s%d\t%.2f\t%s\t%s%s\t%s\n", n.Node, fits, score, wishes, n.Containers,
			float64(n.FreeNanoCPUs)/1e9, bytesText(n.FreeMemoryBytes), things, slots, n.RefusedBy)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if x.Node == "" {
		return nil // the error tells it
	}
	_, err := fmt.Fprintf(w, "\n%s\n", x.Message)
	return err
}
