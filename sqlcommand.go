package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/peterbourgon/ff/v3"
)

const sqlUsage = `Usage: swarmlite sql [flags] 'select …'

Prints what a query over the manager's database gives, read-only, whether the
manager runs or not; - reads the query from standard input. Of several, with ;
between them, one result comes after the other. Some to begin with:

  swarmlite sql 'select * from cluster'
  swarmlite sql 'select * from why limit 5'
  swarmlite sql 'select sql from sqlite_schema'   every table and view, explained

Flags:
`

// sqlCommand prints a query's rows, for boxes without a sqlite3 shell.
func sqlCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("swarmlite sql", flag.ContinueOnError)
	path := dbFlag(fs)
	asCSV := fs.Bool("csv", false, "print comma-separated values")
	asJSON := fs.Bool("json", false, "print a JSON array for each query, with an object for each row")
	if help, err := parseCommand(fs, args, sqlUsage, stderr); help || err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return fmt.Errorf("sql: expected one query in quotes, got %d arguments; swarmlite sql -h tells more", fs.NArg())
	}
	if *asCSV && *asJSON {
		return errors.New("sql: -csv and -json exclude each other")
	}
	query := fs.Arg(0)
	if query == "-" {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return fmt.Errorf("sql: read the query: %w", err)
		}
		query = string(data)
	}
	list := statements(query)
	if len(list) == 0 {
		return errors.New("sql: the query is empty")
	}
	db, err := openReader(ctx, *path)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // BEGIN is for the statements behind it
	print, between := printTable, "\n"
	if *asCSV {
		print = printCSV
	} else if *asJSON {
		print, between = printJSON, ""
	}
	before := ""
	for _, statement := range list {
		printed, err := printStatement(ctx, db, statement, stdout, before, print)
		if err != nil {
			return fmt.Errorf("sql: %s", sqliteWords(err))
		}
		if printed {
			before = between
		}
	}
	return nil
}

// printStatement prints what one statement gives, behind before. There are statements
// that give nothing, not even columns.
func printStatement(ctx context.Context, db *sql.DB, statement string, w io.Writer, before string, print func(io.Writer, []string, *sql.Rows) error) (printed bool, err error) {
	rows, err := db.QueryContext(ctx, statement)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil || len(columns) == 0 {
		return false, err
	}
	io.WriteString(w, before)
	return true, print(w, columns, rows)
}

// statements are the parts of a query between its semicolons. The driver would run them
// all and give the last one's rows.
func statements(query string) (list []string) {
	bare := bareSQL(query)
	for from := 0; from < len(query); {
		to := len(query)
		if n := strings.IndexByte(bare[from:], ';'); n >= 0 {
			to = from + n
		}
		if strings.TrimSpace(bare[from:to]) != "" {
			list = append(list, query[from:to])
		}
		from = to + 1
	}
	return list
}

// bareSQL blanks out comments and what is in quotes, so that all else stays where it is.
func bareSQL(text string) string {
	out := []byte(text)
	blank := func(from, to int) {
		for i := from; i < min(to, len(out)); i++ {
			if out[i] != '\n' {
				out[i] = ' '
			}
		}
	}
	for i := 0; i < len(text); i++ {
		end := ""
		switch {
		case strings.HasPrefix(text[i:], "--"):
			end = "\n"
		case strings.HasPrefix(text[i:], "/*"):
			end = "*/"
		case text[i] == '\'' || text[i] == '"' || text[i] == '`':
			end = text[i : i+1]
		case text[i] == '[': // a name, as Microsoft quotes it
			end = "]"
		default:
			continue
		}
		to := len(text)
		if n := strings.Index(text[i+1:], end); n >= 0 {
			to = i + 1 + n + len(end)
		}
		blank(i, to)
		i = to - 1
	}
	return string(out)
}

// defaultDB is the file that holds all state, where -db names no other.
const defaultDB = "swarmlite.db"

// dbFlag is the flag by which every command finds the database.
func dbFlag(fs *flag.FlagSet) *string {
	return fs.String("db", defaultDB, "the manager's SQLite `FILE`; also read from SWARMLITE_DB")
}

// parseCommand reads a command's flags; help tells that they were asked for and printed.
func parseCommand(fs *flag.FlagSet, args []string, usage string, stderr io.Writer) (help bool, err error) {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	err = ff.Parse(fs, args, ff.WithEnvVarPrefix("SWARMLITE"))
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(stderr)
		fmt.Fprint(stderr, usage)
		fs.PrintDefaults()
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s; %s -h lists the flags", strings.TrimPrefix(err.Error(), "error parsing commandline arguments: "), fs.Name())
	}
	return false, nil
}

// openReader opens the manager's database for reading, beside a manager that may
// run. Files of other programs are refused.
func openReader(ctx context.Context, path string) (*sql.DB, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state database %s: not there; name the manager's file with -db", path)
	} else if err != nil {
		return nil, fmt.Errorf("state database %s: %w", path, plain(err))
	}
	db, err := sql.Open("sqlite", dsn(path, fmt.Sprintf("mode=ro&_pragma=busy_timeout(%d)&_pragma=query_only(1)&_pragma=temp_store(2)", busyWait.Milliseconds())))
	if err != nil {
		return nil, err
	}
	var id, version int
	err = db.QueryRowContext(ctx, "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version").Scan(&id, &version)
	switch {
	case err != nil:
		err = errors.New(sqliteWords(err))
	case id != applicationID:
		err = errors.New("belongs to another program; name the manager's file with -db")
	case version != schemaVersion:
		err = fmt.Errorf("has schema %d, this swarmlite knows %d; use the manager's own version", version, schemaVersion)
	default:
		return db, nil
	}
	db.Close()
	return nil, fmt.Errorf("state database %s: %w", path, err)
}

// eachRow calls do with the values of each row as strings, numbers or nil.
func eachRow(rows *sql.Rows, do func(values []any) error) error {
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values := make([]any, len(columns))
	into := make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, v := range values {
			if b, ok := v.([]byte); ok {
				values[i] = string(b)
			}
		}
		if err := do(values); err != nil {
			return err
		}
	}
	return rows.Err()
}

// cell is a value in a table: one line, NULL is empty.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

var oneLiner = strings.NewReplacer("\n", "␤", "\t", " ", "\r", "")

func printTable(w io.Writer, columns []string, rows *sql.Rows) error {
	// A single column is somebody's text, as sqlite_schema's is: it keeps its lines.
	if len(columns) == 1 {
		fmt.Fprintln(w, columns[0])
		return eachRow(rows, func(values []any) error {
			_, err := fmt.Fprintln(w, cell(values[0]))
			return err
		})
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(columns, "\t"))
	err := eachRow(rows, func(values []any) error {
		cells := make([]string, len(values))
		for i, v := range values {
			cells[i] = oneLiner.Replace(cell(v))
		}
		_, err := fmt.Fprintln(t, strings.Join(cells, "\t"))
		return err
	})
	return errors.Join(err, t.Flush())
}

func printCSV(w io.Writer, columns []string, rows *sql.Rows) error {
	c := csv.NewWriter(w)
	c.Write(columns)
	err := eachRow(rows, func(values []any) error {
		cells := make([]string, len(values))
		for i, v := range values {
			cells[i] = cell(v)
		}
		return c.Write(cells)
	})
	c.Flush()
	return errors.Join(err, c.Error())
}

// printJSON writes the columns in the query's order, which a map would lose.
func printJSON(w io.Writer, columns []string, rows *sql.Rows) error {
	next := "[\n"
	err := eachRow(rows, func(values []any) error {
		var b bytes.Buffer
		b.WriteString(next + "{")
		next = ",\n"
		for i, v := range values {
			if i > 0 {
				b.WriteString(", ")
			}
			value, err := json.Marshal(v)
			if err != nil {
				return err
			}
			b.WriteString(jsonText(columns[i]) + ": ")
			b.Write(value)
		}
		b.WriteString("}")
		_, err := w.Write(b.Bytes())
		return err
	})
	if next == "[\n" {
		io.WriteString(w, "[")
	}
	io.WriteString(w, "\n]\n")
	return err
}
