package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	sqlite3 "modernc.org/sqlite/lib"
)

// mirrors are the tables that engines fill again when they list what they have.
var mirrors = []string{"node_info", "containers", "container_labels", "ports", "port_ranges", "namespaces", "mounts", "container_networks", "images", "image_names",
	"networks", "network_labels", "volumes", "volume_labels", "node_resources", "resources"}

// tallies are the tables that triggers keep.
var tallies = []string{"node_sizes", "label_values"}

// passing are the tables about what goes on; in a damaged file none of it can be trusted.
var passing = []string{"reservations", "waiting", "renames", "relays", "pulls"}

// upgrade makes a file of this schema out of one with an older, which is kept beside it.
// A crash at any moment leaves one of the two in place.
func upgrade(ctx context.Context, log *slog.Logger, path string, version int) error {
	backup := fmt.Sprintf("%s.schema-%d", path, version)
	if err := backUp(ctx, path, backup); err != nil {
		return fmt.Errorf("upgrade from schema %d: back up to %s: %w", version, backup, err)
	}
	err := makeFile(ctx, path, &source{attach: backup, carry: carryAll}, func() error { return leaveWAL(ctx, path) })
	if err != nil {
		return fmt.Errorf("upgrade from schema %d: %w; the file is as it was, the older swarmlite can run on it", version, err)
	}
	log.Info("state database upgraded", "db", path, "from_schema", version, "to_schema", schemaVersion, "backup", backup)
	return nil
}

// backUp writes all that the database at path holds into a file of its own, which is
// there whole or not at all.
func backUp(ctx context.Context, path, backup string) error {
	db, err := sql.Open("sqlite", dsn(path, fmt.Sprintf("mode=rw&_pragma=busy_timeout(%d)", busyWait.Milliseconds())))
	if err != nil {
		return err
	}
	defer db.Close()
	return vacuumInto(ctx, db, backup)
}

// vacuumInto writes the database that db has open to path, with a rename at the end.
func vacuumInto(ctx context.Context, db querier, path string) error {
	writing := path + ".new"
	if err := removeAll(writing, "", "-journal"); err != nil {
		return err
	}
	if err := emptyFile(writing); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", writing); err != nil {
		removeAll(writing, "", "-journal")
		return err
	}
	// SQLite does not sync what VACUUM INTO writes.
	f, err := os.OpenFile(writing, os.O_RDWR, 0)
	if err != nil {
		return plain(err)
	}
	err = errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(writing, path)
	}
	if err != nil {
		return err
	}
	return syncDir(path)
}

// leaveWAL folds the WAL of the file at path into it and takes WAL mode off, so that
// nothing beside the file belongs to it.
func leaveWAL(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", dsn(path, fmt.Sprintf("mode=rw&_pragma=busy_timeout(%d)", busyWait.Milliseconds())))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, "PRAGMA journal_mode = DELETE")
	return storeReason(err)
}

// carryAll copies every table by the columns that both schemas have; triggers count
// anew what is kept by them. What engines list gets a blank at the end of its JSON, so
// that the first list finds it changed and fills new columns.
func carryAll(ctx context.Context, conn *sql.Conn) error {
	tables, err := commonTables(ctx, conn, "main", conn, "old")
	if err != nil {
		return err
	}
	for _, t := range tables {
		if slices.Contains(tallies, t.name) {
			continue
		}
		into := strings.Join(t.columns, ", ")
		from := into
		if t.name == "containers" && !slices.Contains(t.columns, "age") {
			into, from = "age, "+into, "(min(max(created_at, 0), (1 << 35) - 1) << 28) | (id & (1 << 28) - 1), "+from // as containerAge
		}
		if _, err := conn.ExecContext(ctx, "INSERT INTO main."+t.name+" ("+into+") SELECT "+from+" FROM old."+t.name); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
		if err := zeroSums(ctx, conn, t); err != nil {
			return err
		}
		if slices.Contains(t.columns, "summary") {
			if _, err := conn.ExecContext(ctx, "UPDATE main."+t.name+" SET summary = summary || ' '"); err != nil {
				return err
			}
		}
	}
	if err := carryLooks(ctx, conn); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "UPDATE main.containers SET inspected = 0"); err != nil {
		return err
	}
	var table string
	err = conn.QueryRowContext(ctx, `SELECT "table" FROM pragma_foreign_key_check`).Scan(&table)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("table %s: rows refer to others that are not there", table)
	}
	return err
}

// carryLooks copies what was thought of each node, of which schema 1 had a row each.
func carryLooks(ctx context.Context, conn *sql.Conn) error {
	var there bool
	err := conn.QueryRowContext(ctx, "SELECT count(*) FROM old.sqlite_schema WHERE type = 'table' AND name = 'placement_nodes'").Scan(&there)
	if err == nil && there {
		_, err = conn.ExecContext(ctx, `INSERT INTO main.placement_looks
			SELECT placement_id, json_group_array(json_array(node, address, refused_by, score)) FROM old.placement_nodes GROUP BY placement_id`)
	}
	return err
}

// zeroSums has the sums of the nodes begin at zero, once their rows are there and before
// those that are counted come.
func zeroSums(ctx context.Context, conn *sql.Conn, t carriedTable) error {
	if t.name != "nodes" {
		return nil
	}
	_, err := conn.ExecContext(ctx, "UPDATE main.nodes SET containers = 0, used_nano_cpus = 0, used_memory_bytes = 0")
	return err
}

// rebuild sets a damaged file aside and makes a new one with what can still be read
// of the ledgers and of what the operator set. The engines tell the rest.
func rebuild(ctx context.Context, log *slog.Logger, path, reason string) error {
	aside := path + ".corrupt-" + timeSuffix()
	var lost []string
	carry := func(ctx context.Context, conn *sql.Conn) (err error) {
		lost, err = carryReadable(ctx, conn, path)
		return err
	}
	setAside := func() error {
		if err := os.Link(path, aside); err != nil {
			return plain(err)
		}
		if wal, err := os.Lstat(path + "-wal"); err != nil || wal.Size() == 0 {
			return nil
		}
		return os.Rename(path+"-wal", aside+"-wal")
	}
	if err := makeFile(ctx, path, &source{carry: carry}, setAside); err != nil {
		return fmt.Errorf("damaged (%s), and it cannot be set aside: %w", reason, err)
	}
	log.Error("state database was damaged: set aside and made anew, engines are asked for what they have",
		"db", path, "reason", reason, "set_aside", aside, "lost", strings.Join(lost, ", "))
	return nil
}

// carryReadable copies what can be read of tables that no engine can tell again. It
// returns which could not be read to the end.
func carryReadable(ctx context.Context, conn *sql.Conn, path string) (lost []string, err error) {
	// A connection of its own: what goes wrong on it does not take conn's transaction along.
	// With writable_schema SQLite reads files that are cut off, and tables whose neighbours it cannot read.
	old, err := sql.Open("sqlite", dsn(path, "mode=ro&_pragma=writable_schema(on)"))
	if err != nil {
		return nil, err
	}
	defer old.Close()
	old.SetMaxOpenConns(1)
	tables, err := commonTables(ctx, conn, "main", old, "main")
	if isDamage(err) {
		return []string{"everything"}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if slices.Contains(mirrors, t.name) || slices.Contains(passing, t.name) || slices.Contains(tallies, t.name) {
			continue
		}
		whole, err := carryRows(ctx, conn, old, t)
		if err == nil {
			err = zeroSums(ctx, conn, t)
		}
		if err != nil {
			return nil, err
		}
		if !whole {
			lost = append(lost, t.name)
		}
	}
	if len(lost) == 0 {
		lost = []string{"nothing"}
	}
	return lost, dropOrphans(ctx, conn, tables)
}

// carryRows copies the rows of a table that can be read and written. It tells whether
// those are all.
func carryRows(ctx context.Context, conn *sql.Conn, old *sql.DB, t carriedTable) (whole bool, err error) {
	columns := strings.Join(t.columns, ", ")
	put, err := conn.PrepareContext(ctx, "INSERT OR IGNORE INTO main."+t.name+" ("+columns+") VALUES (?"+strings.Repeat(",?", len(t.columns)-1)+")")
	if err != nil {
		return false, err
	}
	defer put.Close()
	rows, err := old.QueryContext(ctx, "SELECT "+columns+" FROM "+t.name)
	if err != nil {
		return false, nil
	}
	defer rows.Close()
	row, into := make([]any, len(t.columns)), make([]any, len(t.columns))
	for i := range row {
		into[i] = &row[i]
	}
	whole = true
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return false, nil
		}
		// A value of the wrong type is damage, too.
		if res, err := put.ExecContext(ctx, row...); sqliteCode(err)&0xff == sqlite3.SQLITE_CONSTRAINT {
			whole = false
		} else if err != nil {
			return false, err
		} else if n, _ := res.RowsAffected(); n == 0 {
			whole = false
		}
	}
	return whole && rows.Err() == nil, nil
}

// carriedTable is a table of both schemas, with the columns that both have.
type carriedTable struct {
	name    string
	columns []string
}

func commonTables(ctx context.Context, to querier, toSchema string, from querier, fromSchema string) (tables []carriedTable, err error) {
	read := func(q querier, schema string) ([][]string, error) {
		return readTexts(ctx, q, "SELECT t.name, c.name FROM "+schema+".sqlite_schema t JOIN pragma_table_info(t.name, '"+schema+
			"') c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' ORDER BY t.rowid, c.cid")
	}
	there, err := read(from, fromSchema)
	if err != nil {
		return nil, err
	}
	had := map[[2]string]bool{}
	for _, column := range there {
		had[[2]string(column)] = true
	}
	here, err := read(to, toSchema)
	if err != nil {
		return nil, err
	}
	for _, column := range here {
		if !had[[2]string(column)] {
			continue
		}
		if len(tables) == 0 || tables[len(tables)-1].name != column[0] {
			tables = append(tables, carriedTable{name: column[0]})
		}
		t := &tables[len(tables)-1]
		t.columns = append(t.columns, column[1])
	}
	return tables, nil
}

// querier is a database, or one connection to it.
type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}

// dropOrphans deletes rows that refer to rows which were not carried over.
func dropOrphans(ctx context.Context, conn *sql.Conn, tables []carriedTable) error {
	for gone := int64(1); gone > 0; {
		gone = 0
		for _, t := range tables {
			keys, err := readTexts(ctx, conn, `
				SELECT k."table", group_concat('p.' || k."to" || ' = c.' || k."from", ' AND '), group_concat('c.' || k."from" || ' IS NOT NULL', ' AND ')
				  FROM pragma_foreign_key_list('`+t.name+`', 'main') k GROUP BY k.id`)
			if err != nil {
				return err
			}
			for _, k := range keys {
				res, err := conn.ExecContext(ctx, "DELETE FROM main."+t.name+" AS c WHERE "+k[2]+" AND NOT EXISTS (SELECT 1 FROM main."+k[0]+" p WHERE "+k[1]+")")
				if err != nil {
					return err
				}
				n, _ := res.RowsAffected()
				gone += n
			}
		}
	}
	return nil
}

// readTexts reads rows of texts.
func readTexts(ctx context.Context, q querier, query string) ([][]string, error) {
	rows, err := q.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	var found [][]string
	for rows.Next() {
		row, into := make([]string, len(columns)), make([]any, len(columns))
		for i := range row {
			into[i] = &row[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		found = append(found, row)
	}
	return found, rows.Err()
}
