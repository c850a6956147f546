package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-shellwords"
)

const simulateUsage = `Usage: swarmlite simulate [flags]
       swarmlite simulate -requests FILE [flags]
       swarmlite simulate -fill [flags] [docker run flags] IMAGE

Shows where containers would have gone under another strategy, overcommit or set of
nodes. Requests are placed in a copy of the manager's database by the same statements
as in a create; the database is only read, whether the manager runs or not.

By itself it replays the ledger: what the ledger tells of is taken off the nodes, then
placed again in its order, and taken away when it went. What was made without the
manager, or is too old for the ledger, stays where it is.

With -requests it places what FILE has on the cluster as it is: a line is the body of a
create in JSON, or docker run flags and an image; # begins a comment; - is standard input.

With -fill it counts how many more of one container fit.

  swarmlite simulate -strategy binpack
  swarmlite simulate -without node-3
  swarmlite simulate -fill -add like=node-1,count=2 -m 512m nginx

Flags:
`

// simulateFlags are the command's own, and whether they take a value.
var simulateFlags = map[string]bool{"db": true, "json": false, "help": false, "strategy": true, "filter": true, "overcommit": true,
	"without": true, "add": true, "since": true, "requests": true, "fill": false}

// simulateCommand prints what would have gone where.
func simulateCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("swarmlite simulate", flag.ContinueOnError)
	path := dbFlag(fs)
	asJSON := fs.Bool("json", false, "print JSON")
	fill := fs.Bool("fill", false, "count how many more of one container fit")
	file := fs.String("requests", "", "`FILE` of requests to place")
	c := changes{overcommit: math.NaN()}
	fs.StringVar(&c.strategy, "strategy", "", "`NAME` of a strategy, or a file that ends in .sql (default the manager's)")
	list := func(into *[]string) func(string) error {
		return func(s string) error { *into = append(*into, s); return nil }
	}
	fs.Func("filter", "`NAME` of a filter to use; repeatable (default the manager's)", list(&c.filters))
	fs.Func("overcommit", "`RATIO` to promise beyond what a node has (default the manager's)", func(s string) (err error) {
		if c.overcommit, err = strconv.ParseFloat(s, 64); err != nil || c.overcommit <= -1 || c.overcommit > 1000 {
			return errors.New("expected a ratio such as 0.05")
		}
		return nil
	})
	fs.Func("without", "`NODE` to leave out, with what is on it: what is tied to that is refused; repeatable", list(&c.without))
	fs.Func("add", "`NODE` to add: cpus=8,memory=32g[,label=K=V][,count=N], or like=NODE[,…]; repeatable", func(s string) error {
		a, err := parseAddedNodes(s)
		c.added = append(c.added, a)
		return err
	})
	var since time.Duration
	fs.Func("since", "`AGE` to go back in the ledger, as in 7d or 12h (default all of it)", func(s string) (err error) {
		since, err = parseAge(s)
		return err
	})
	var flags createFlags
	var wrong error
	own := args
	if slices.ContainsFunc(args, func(a string) bool { return a == "-fill" || a == "--fill" }) {
		wrong = flags.parse(args, simulateFlags)
		own = flags.own
	}
	if help, err := parseCommand(fs, own, simulateUsage, stderr); help || err != nil {
		return err
	}
	switch {
	case wrong != nil:
		return fmt.Errorf("simulate: %w; swarmlite simulate -h tells more", wrong)
	case fs.NArg() > 0:
		return fmt.Errorf("simulate: unexpected %q: docker run flags and an image come with -fill; swarmlite simulate -h tells more", fs.Arg(0))
	case *fill && *file != "":
		return errors.New("simulate: -fill and -requests exclude each other")
	}
	x := &simulation{Mode: "ledger", since: since}
	var err error
	switch {
	case *fill:
		x.Mode = "fill"
		one, err := newTrial([]byte(jsonText(flags.body)), flags.query)
		if err != nil {
			return fmt.Errorf("simulate: %w", err)
		}
		x.Requests = []*trial{one}
	case *file != "":
		x.Mode = "requests"
		if x.Requests, err = openTrials(*file, stdin); err != nil {
			return fmt.Errorf("simulate: %w", err)
		}
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM) // the copy is not left behind
	defer stop()
	s, err := openScratch(ctx, *path, slog.New(slog.NewTextHandler(stderr, nil)))
	if err != nil {
		return err
	}
	defer s.close()
	if err := x.run(ctx, s, &c); err != nil {
		return fmt.Errorf("simulate: %s", sqliteWords(err))
	}
	if *asJSON {
		return json.NewEncoder(stdout).Encode(x)
	}
	return x.print(stdout)
}

// simulation is what a simulation came to.
type simulation struct {
	Mode        string        `json:"mode"` // ledger, requests, fill
	Strategy    string        `json:"strategy"`
	Overcommit  float64       `json:"overcommit"`
	Requests    []*trial      `json:"requests"`
	Same        int           `json:"same"`         // of the ledger: went where they had gone
	Elsewhere   int           `json:"elsewhere"`    // to another node
	Placed      int           `json:"placed"`       // all that found a node
	RefusedThen int           `json:"refused_then"` // in truth
	RefusedNow  int           `json:"refused_now"`
	Unreadable  int           `json:"unreadable"` // rows of the ledger
	LeftOut     []*trial      `json:"left_out"`   // what is on nodes that are left out and is not placed again
	Message     string        `json:"message"`    // of fill: why no more fit
	Nodes       []nodeBalance `json:"nodes"`

	since time.Duration
}

// maxFill ends the count of a container that may fit without end, such as one that is affine to itself.
const maxFill = 100_000

func (x *simulation) run(ctx context.Context, s *scratch, c *changes) (err error) {
	before := map[string]int64{}
	nodes, err := s.balance(ctx, nil)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		before[n.Node] = n.Containers
	}
	rest := "only what is asked for is placed"
	if x.Mode == "ledger" {
		rest = "the ledger does not tell of it"
		if x.Requests, x.Unreadable, err = s.rewind(ctx, x.since); err != nil {
			return err
		}
	}
	if x.LeftOut, err = s.apply(ctx, c, rest); err != nil {
		return err
	}
	x.Strategy = s.sc.strategy
	if err := s.get(ctx, "SELECT overcommit FROM manager", nil, &x.Overcommit); err != nil {
		return err
	}
	for _, r := range x.Requests {
		if err := s.resolve(ctx, r); err != nil {
			return err
		}
	}
	if x.Mode == "fill" {
		err = x.fill(ctx, s)
	} else {
		err = s.run(ctx, x.Requests)
	}
	if err != nil {
		return err
	}
	for _, r := range x.Requests {
		switch {
		case r.Now == "":
			x.RefusedNow++
		case r.Now == r.Then:
			x.Same++
		default:
			x.Elsewhere++
		}
		if r.Now != "" {
			x.Placed++
		}
		if r.fromLedger && r.Then == "" {
			x.RefusedThen++
		}
	}
	x.Nodes, err = s.balance(ctx, before)
	return err
}

// fill places the one request again and again until it is refused.
func (x *simulation) fill(ctx context.Context, s *scratch) error {
	one := x.Requests[0]
	one.w.name = ""
	x.Requests = []*trial{}
	for range maxFill {
		r := &trial{Kind: one.Kind, Image: one.Image, w: one.w}
		if err := s.place(ctx, r); err != nil {
			return err
		}
		if r.Now == "" {
			x.Message = r.Message
			return nil
		}
		x.Requests = append(x.Requests, r)
		if len(x.Requests) == 1 {
			if runs, err := s.runsOut(ctx, one.w); err != nil || !runs {
				x.Message = "any number: it asks for nothing that runs out"
				return err
			}
		}
	}
	x.Message = fmt.Sprintf("counted no further than %d", maxFill)
	return nil
}

// runsOut tells whether nodes may come to have too little of something for w.
func (s *scratch) runsOut(ctx context.Context, w *workload) (runs bool, err error) {
	hard := func(e expr) bool { return !e.soft }
	if w.nanoCPUs > 0 || w.shares > 0 || w.memory > 0 || len(w.ports)+len(w.demands) > 0 || slices.ContainsFunc(w.affinities, hard) || s.sc.file != nil {
		return true, nil
	}
	err = s.get(ctx, "SELECT EXISTS (SELECT 1 FROM node_load WHERE slots IS NOT NULL)", nil, &runs)
	return runs, err
}

// resolve cuts node/name as a create does.
func (s *scratch) resolve(ctx context.Context, r *trial) error {
	if r.fromLedger {
		return nil // was cut before
	}
	reader := (&cluster{store: s.store}).reader(ctx)
	_, err := cutNodes(reader, r.w, []byte("{}"))
	return err
}

// rewind reads the ledger's requests and takes what they came to off the nodes.
// Refusals are among them: they may fit now. What was not asked of an engine, or an
// engine refused, is not.
func (s *scratch) rewind(ctx context.Context, since time.Duration) (trials []*trial, unreadable int, err error) {
	from := int64(0)
	if since > 0 {
		from = time.Now().Add(-since).Unix()
	}
	rows, err := s.query(ctx, `
		SELECT p.at, datetime(p.at, 'unixepoch'), p.kind, p.name, p.image, p.request, iif(p.strategy = 'random', p.seed, 0), p.node, p.container_id,
		       coalesce(m.ended_at, p.ended_at, CASE WHEN c.counted = 0 THEN coalesce(c.status_at, p.at) END, 0)
		  FROM placements p LEFT JOIN containers c ON c.container_id = p.container_id AND p.container_id <> ''
		       LEFT JOIN moves m ON m.container_id = p.container_id AND m.outcome = 'moved'
		 WHERE p.kind IN ('container', 'network', 'volume') AND p.outcome IN ('created', 'reserved', 'unknown', 'refused') AND p.at >= ?
		 ORDER BY p.id`, from)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		r := &trial{fromLedger: true}
		var request string
		var seed int64
		var sh shape
		if err := rows.Scan(&r.at, &r.At, &r.Kind, &r.Name, &r.Image, &request, &seed, &r.Then, &r.id, &r.ends); err != nil {
			return nil, 0, err
		}
		if err := json.Unmarshal([]byte(request), &sh); err != nil {
			unreadable++
			continue
		}
		if r.w, err = sh.workload(); err != nil {
			unreadable++
			continue
		}
		r.w.kind, r.w.name, r.w.image, r.w.drawn = r.Kind, r.Name, r.Image, seed
		trials = append(trials, r)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, err
	}
	return trials, unreadable, s.write(ctx, func(t *tx) error {
		for _, sql := range []string{
			"DELETE FROM reservations",
			"DELETE FROM renames",
			"DELETE FROM containers WHERE container_id IN (SELECT container_id FROM placements WHERE at >= ? AND container_id <> '')",
			"DELETE FROM networks WHERE (name, node_id) IN (SELECT name, node_id FROM placements WHERE at >= ? AND kind = 'network' AND outcome = 'created')",
			"DELETE FROM volumes WHERE (name, node_id) IN (SELECT name, node_id FROM placements WHERE at >= ? AND kind = 'volume' AND outcome = 'created')",
			// Volumes that containers brought into being: they are there again when these are.
			`DELETE FROM volumes WHERE (name, node_id) IN (SELECT j.value, p.node_id FROM placements p, json_each(p.request, '$.volumes') j
			  WHERE p.at >= ? AND p.kind = 'container' AND p.outcome = 'created' AND volumes.created_at >= strftime('%Y-%m-%dT%H:%M:%S', p.at - 2, 'unixepoch'))`,
			"DELETE FROM placements WHERE at >= ?",
		} {
			args := []any{from}[:strings.Count(sql, "?")]
			if _, err := t.exec(sql, args...); err != nil {
				return err
			}
		}
		return nil
	})
}

func openTrials(path string, stdin io.Reader) ([]*trial, error) {
	if path == "-" {
		return readTrials(stdin, "standard input ")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("-requests %s: %w", path, plain(err))
	}
	defer f.Close()
	return readTrials(f, path+" ")
}

// readTrials reads requests, one a line; source begins what is said of a wrong one.
func readTrials(from io.Reader, source string) ([]*trial, error) {
	list := []*trial{}
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxJSON)
	for number := 1; lines.Scan(); number++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		r, err := readTrial(line)
		if err != nil {
			return nil, fmt.Errorf("%sline %d: %w", source, number, err)
		}
		list = append(list, r)
	}
	return list, lines.Err()
}

// readTrial reads a create body, which may have a Name, or docker run flags.
func readTrial(line []byte) (*trial, error) {
	query := url.Values{}
	if line[0] == '{' {
		var body struct{ Name string }
		if err := decodeBody(line, &body); err != nil {
			return nil, err
		}
		query.Set("name", body.Name)
	} else {
		args, err := shellwords.Parse(string(line))
		if err != nil {
			return nil, err
		}
		if len(args) > 2 && args[0] == "docker" && (args[1] == "run" || args[1] == "create") {
			args = args[2:]
		}
		var flags createFlags
		if err := flags.parse(args, nil); err != nil {
			return nil, err
		}
		line, query = []byte(jsonText(flags.body)), flags.query
	}
	return newTrial(line, query)
}

// newTrial is a create of this body and query.
func newTrial(body []byte, query url.Values) (*trial, error) {
	w, _, err := readCreate(body, &call{query: query})
	if err != nil {
		return nil, err
	}
	return &trial{Kind: w.kind, Name: w.name, Image: w.image, w: w}, nil
}

func (x *simulation) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	orRefused := func(node string) string {
		if node == "" {
			return "refused"
		}
		return node
	}
	switch x.Mode {
	case "ledger":
		if x.Elsewhere+x.RefusedNow+len(x.LeftOut) > 0 {
			fmt.Fprintln(t, "AT\tKIND\tNAME\tTHEN\tNOW\tBECAUSE")
		}
		for _, r := range x.Requests {
			if r.Now != r.Then || r.Now == "" {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.At, r.Kind, r.Name, orRefused(r.Then), orRefused(r.Now), r.Message)
			}
		}
		for _, r := range x.LeftOut {
			fmt.Fprintf(t, "\t%s\t%s\t%s\tgone\t%s\n", r.Kind, r.Name, r.Then, r.Message)
		}
	case "requests":
		fmt.Fprintln(t, "NAME\tIMAGE\tNODE\tBECAUSE")
		for _, r := range x.Requests {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Name, r.Image, orRefused(r.Now), r.Message)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	words := fmt.Sprintf("%s, overcommit %g: ", x.Strategy, x.Overcommit)
	switch x.Mode {
	case "ledger":
		words += fmt.Sprintf("of %s %d go where they went, %d elsewhere, %d refused (%d then)", counted(len(x.Requests), "request"), x.Same, x.Elsewhere, x.RefusedNow, x.RefusedThen)
		if x.Unreadable > 0 {
			words += fmt.Sprintf("; of the ledger %s of another version left out", counted(x.Unreadable, "row"))
		}
	case "requests":
		words += fmt.Sprintf("of %s %d fit, %d refused", counted(len(x.Requests), "request"), x.Placed, x.RefusedNow)
	default:
		words += fmt.Sprintf("%d more fit, then %s", x.Placed, x.Message)
	}
	if n := len(x.LeftOut); n > 0 {
		words += fmt.Sprintf("; %s left out with their node", counted(n, "container"))
	}
	if x.Mode != "fill" {
		words = "\n" + words
	}
	fmt.Fprintf(w, "%s\n\n", words)
	fmt.Fprintln(t, "NODE\tPLACED\tCONTAINERS\tCPUS\tMEMORY\tLOAD\tPEAK")
	placed := map[string]int{}
	for _, r := range x.Requests {
		if r.Kind == "container" {
			placed[r.Now]++
		}
	}
	for _, n := range x.Nodes {
		fmt.Fprintf(t, "%s\t%d\t%d (was %d)\t%.2f / %.2f\t%s / %s\t%.0f%%\t%.0f%%\n", n.Node, placed[n.Node], n.Containers, n.Before,
			float64(n.UsedNanoCPUs)/1e9, float64(n.NanoCPUs)/1e9, bytesText(n.UsedMemoryBytes), bytesText(n.MemoryBytes), n.Load, n.Peak)
	}
	if err := t.Flush(); err != nil || len(x.Nodes) == 0 {
		return err
	}
	byLoad := func(a, b nodeBalance) int { return int(math.Copysign(1, a.Load-b.Load)) }
	byCount := func(a, b nodeBalance) int { return int(a.Containers - b.Containers) }
	low, high := slices.MinFunc(x.Nodes, byLoad), slices.MaxFunc(x.Nodes, byLoad)
	_, err := fmt.Fprintf(w, "\nspread of load: %.0f%% to %.0f%%, %d to %s a node\n", low.Load, high.Load,
		slices.MinFunc(x.Nodes, byCount).Containers, counted(int(slices.MaxFunc(x.Nodes, byCount).Containers), "container"))
	return err
}
