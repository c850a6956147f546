package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	rankTime         = 100 * time.Millisecond // longer takes no strategy: the create goes by spread
	checkTime        = 10 * time.Second       // at the start nobody waits, and the host may be busy coming up
	maxStrategyBytes = 64 << 10
	maxRankedBytes   = 8 << 20 // of one value while it ranks: zeroblob(1e9) is one word
)

// strategyFile is a strategy of the operator's: one SELECT that gives node (its name
// or id) and score; the lowest score is preferred. It runs on a connection that
// cannot write. Nodes it does not give, or gives without a score, are out.
type strategyFile struct {
	name, text string
	limit      time.Duration // rankTime; tests on busy machines give more
	turn       chan struct{} // one create at a time: each ranks by what the one before reserved
}

// byFile ranks by the file's scores, which are ?3: a JSON object of node id to score.
var byFile = strategy{
	score: "CAST(round(" + fileScore + ") AS INTEGER)",
	order: fileScore + ", n.containers",
}

const fileScore = `json_extract(?3, '$."' || n.id || '"')`

// readStrategyFile reads and checks a strategy before anything is touched, against
// an empty database of the same schema.
func readStrategyFile(path string) (*strategyFile, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("strategy %s: %w", path, plain(err))
	}
	if len(data) > maxStrategyBytes {
		return nil, fmt.Errorf("strategy %s: %d bytes long, at most %d are allowed", path, len(data), maxStrategyBytes)
	}
	f := newStrategyFile(filepath.Base(path), string(data))
	if err := f.check(context.Background()); err != nil {
		return nil, fmt.Errorf("strategy %s: %w", path, err)
	}
	return f, nil
}

func newStrategyFile(name, text string) *strategyFile {
	return &strategyFile{name: name, text: text, limit: rankTime, turn: make(chan struct{}, 1)}
}

// check tells of what is wrong with the file, by line.
func (f *strategyFile) check(ctx context.Context) error {
	bare := bareSQL(f.text)
	first := strings.ToUpper(strings.TrimSpace(bare))
	if !strings.HasPrefix(first, "SELECT") && !strings.HasPrefix(first, "WITH") {
		return errors.New("expected one SELECT that gives node and score")
	}
	if at := strings.IndexByte(bare, ';'); at >= 0 && strings.TrimSpace(bare[at+1:]) != "" {
		rest := at + 1 + len(bare[at+1:]) - len(strings.TrimLeft(bare[at+1:], " \t\r\n"))
		return fmt.Errorf("line %d: expected one SELECT, found more behind it", lineOf(bare, rest))
	}
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, schema); err != nil {
		return err
	}
	if err := readOnly(conn); err != nil {
		return err
	}
	atStart := *f
	atStart.limit = checkTime
	if _, err = atStart.rank(ctx, conn, &workload{}); err == nil {
		return nil
	}
	var se *sqlite.Error
	if errors.As(err, &se) && se.Code() == sqlite3.SQLITE_AUTH {
		return errors.New("expected one SELECT that only reads")
	}
	words := sqliteWords(err)
	if line := f.errorLine(ctx, conn, bare, words); line > 0 {
		return fmt.Errorf("line %d: %s", line, words)
	}
	return errors.New(words)
}

// readOnly has conn refuse to compile whatever does more than read, wherever it is hidden.
// A file is compiled once on such a connection; afterwards it means the same.
func readOnly(conn *sql.Conn) error {
	return conn.Raw(func(driverConn any) error {
		return driverConn.(sqlite.AuthorizerRegisterer).RegisterAuthorizer(
			func(action sqlite.AuthorizerActionCode, _, function, _, _ string) sqlite.AuthorizerReturnCode {
				switch action {
				case sqlite.AuthSelect, sqlite.AuthRead, sqlite.AuthRecursive:
					return sqlite.AuthorizerOK
				case sqlite.AuthFunction:
					if !strings.EqualFold(function, "load_extension") {
						return sqlite.AuthorizerOK
					}
				}
				return sqlite.AuthorizerDeny
			})
	})
}

// errorLine finds the line that SQLite complains of, which its driver does not
// tell; 0 if that cannot be known.
func (f *strategyFile) errorLine(ctx context.Context, conn *sql.Conn, bare, words string) int {
	var token string
	if rest, ok := strings.CutPrefix(words, `near "`); ok {
		token = strings.TrimSuffix(rest, `": syntax error`)
		// The parser reads from left to right: the shortest beginning that gives this error ends there.
		for at := 0; ; {
			next := strings.Index(f.text[at:], token)
			if next < 0 || token == "" {
				return 0
			}
			at += next + len(token)
			if st, err := conn.PrepareContext(ctx, f.text[:at]); err == nil {
				st.Close()
			} else if sqliteWords(err) == words {
				return lineOf(f.text, at-len(token))
			}
		}
	}
	cause, name, ok := strings.Cut(words, ": ")
	if !ok || !strings.HasPrefix(cause, "no such") && !strings.HasPrefix(cause, "ambiguous column") {
		if words == "incomplete input" {
			return lineOf(bare, len(strings.TrimRight(bare, " \t\r\n;")))
		}
		return 0
	}
	if at := strings.Index(strings.ToLower(bare), strings.ToLower(name)); at >= 0 {
		return lineOf(bare, at)
	}
	return 0
}

func lineOf(text string, at int) int { return 1 + strings.Count(text[:at], "\n") }

// rank runs the file and returns its scores as JSON, by node id. The query may use
// what is asked for as :nano_cpus, :memory_bytes, :image, :name and :labels (JSON).
func (f *strategyFile) rank(ctx context.Context, conn *sql.Conn, w *workload) (string, error) {
	within, cancel := context.WithTimeout(ctx, f.limit)
	defer cancel()
	scores, err := f.scores(within, conn, w)
	if err != nil && ctx.Err() == nil && errors.Is(within.Err(), context.DeadlineExceeded) {
		return "", fmt.Errorf("took over %d ms", f.limit.Milliseconds())
	}
	return scores, err
}

func (f *strategyFile) scores(ctx context.Context, conn *sql.Conn, w *workload) (string, error) {
	before, err := sqlite.Limit(conn, sqlite3.SQLITE_LIMIT_LENGTH, maxRankedBytes)
	if err != nil {
		return "", err
	}
	defer sqlite.Limit(conn, sqlite3.SQLITE_LIMIT_LENGTH, before)
	ids, known := map[string]int64{}, map[int64]bool{}
	nodes, err := conn.QueryContext(ctx, "SELECT id, name FROM node_load")
	if err != nil {
		return "", err
	}
	err = eachRow(nodes, func(values []any) error {
		id, _ := values[0].(int64)
		name, _ := values[1].(string)
		ids[name], known[id] = id, true
		return nil
	})
	nodes.Close()
	if err != nil {
		return "", err
	}
	rows, err := conn.QueryContext(ctx, f.text, sql.Named("nano_cpus", w.nanoCPUs), sql.Named("memory_bytes", w.memory),
		sql.Named("image", w.image), sql.Named("name", w.name), sql.Named("labels", jsonText(w.labels)))
	if err != nil {
		return "", err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return "", err
	}
	column := func(name string) int {
		return slices.IndexFunc(columns, func(c string) bool { return strings.EqualFold(c, name) })
	}
	node, score := column("node"), column("score")
	if node < 0 || score < 0 {
		return "", fmt.Errorf("expected columns node and score, got %s", strings.Join(columns, ", "))
	}
	scores := map[int64]any{}
	err = eachRow(rows, func(values []any) error {
		id, ok := values[node].(int64)
		if !ok {
			id = ids[cell(values[node])]
		}
		switch s := values[score].(type) {
		case nil:
			return nil
		case int64:
		case float64: // JSON has no infinity
			values[score] = min(max(s, -math.MaxFloat64), math.MaxFloat64)
		default:
			return fmt.Errorf("score %q of node %s: expected a number", cell(values[score]), cell(values[node]))
		}
		if _, twice := scores[id]; !twice && known[id] {
			scores[id] = values[score]
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return jsonText(scores), nil
}

// applyFile makes q go by the file's scores.
func (q *query) applyFile(f *strategyFile, scores string) {
	q.strategy, q.st, q.args[2] = f.name, byFile, scores
	words := "ranked by " + f.name
	q.clauses = append(q.clauses, clause{filter: "strategy", one: "is not " + words, many: "are not " + words,
		sql: `json_extract(?, '$."' || n.id || '"') IS NOT NULL`, args: []any{scores}})
}

// fileScores asks the file, after the last commit, and takes its turn until done is
// called. A file that fails is warned of, and this create goes by spread: scores is "".
func (sc *scheduler) fileScores(ctx context.Context, w *workload) (scores string, done func(), err error) {
	if sc.file == nil {
		return "", func() {}, nil
	}
	select {
	case sc.file.turn <- struct{}{}:
	case <-ctx.Done():
		return "", nil, ctx.Err()
	}
	conn, err := sc.store.ro.Conn(ctx)
	if err == nil {
		scores, err = sc.file.rank(ctx, conn, w)
		conn.Close()
	}
	if err != nil {
		sc.log.Warn("strategy file failed, placed by spread", "file", sc.file.name, "err", sqliteWords(err))
	}
	return scores, func() { <-sc.file.turn }, nil
}

// sql is the file's text, for the manager's row: explain ranks by it.
func (f *strategyFile) sql() string {
	if f == nil {
		return ""
	}
	return f.text
}
