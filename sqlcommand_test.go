package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// clusterFile makes a manager's database with rows in it. The store behind it
// stays open, as a running manager's does.
func clusterFile(t testing.TB, rows string) (*store, string) {
	t.Helper()
	s := testStore(t)
	s.sql(t, rows)
	return s, s.path
}

// swarmlite runs the program with args, as main does.
func swarmlite(t testing.TB, args ...string) (stdout string, err error) {
	t.Helper()
	var out, errOut strings.Builder
	err = run(t.Context(), args, func(string) string { return "" }, &out, &errOut)
	return out.String() + errOut.String(), err
}

// sqlPrints compares what swarmlite sql prints, with one flag or none.
func sqlPrints(t *testing.T, path, flag, query, want string) {
	t.Helper()
	args := []string{"sql", "-db", path}
	if flag != "" {
		args = append(args, flag)
	}
	if got, err := swarmlite(t, append(args, query)...); err != nil || got != want {
		t.Errorf("swarmlite sql %s = %q, %v, want %q", flag, got, err, want)
	}
}

func TestSQLCommandPrintsRowsWhileTheManagerRuns(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, `INSERT INTO nodes (address, name, cpus) VALUES ('tcp://10.0.0.1:2375', 'one', 4), ('tcp://10.0.0.2:2375', 'two,"2"', 8)`)
	query := "SELECT name, cpus, cpus / 8.0 AS half, engine_id FROM nodes ORDER BY cpus"
	for _, c := range []struct{ name, flag, want string }{
		{"as a table", "", "name      cpus   half   engine_id\none       4      0.5    \ntwo,\"2\"   8      1      \n"},
		{"as CSV", "-csv", "name,cpus,half,engine_id\none,4,0.5,\n\"two,\"\"2\"\"\",8,1,\n"},
		{"as JSON", "-json", "[\n" + `{"name": "one", "cpus": 4, "half": 0.5, "engine_id": null},` + "\n" +
			`{"name": "two,\"2\"", "cpus": 8, "half": 1, "engine_id": null}` + "\n]\n"},
	} {
		t.Run(c.name, func(t *testing.T) { sqlPrints(t, path, c.flag, query, c.want) })
	}
	if got, err := swarmlite(t, "sql", "-db", path, "-json", "SELECT name FROM nodes WHERE 0"); err != nil || got != "[\n]\n" {
		t.Errorf("no rows as JSON: %q, %v", got, err)
	}
}

func TestSQLCommandPrintsWhatEachStatementGives(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, "INSERT INTO nodes (address, name) VALUES ('tcp://10.0.0.1:2375', 'one')")
	const query = "SELECT name, ';' AS semicolon FROM nodes -- all; of them\n; BEGIN; /* ; */ SELECT 2 AS n; COMMIT;;\nSELECT 3 AS n, 4 AS m WHERE 0; -- the end"
	for _, c := range []struct{ name, flag, want string }{
		{"as tables", "", "name   semicolon\none    ;\n\nn\n2\n\nn   m\n"},
		{"as CSV", "-csv", "name,semicolon\none,;\n\nn\n2\n\nn,m\n"},
		{"as JSON", "-json", "[\n{\"name\": \"one\", \"semicolon\": \";\"}\n]\n[\n{\"n\": 2}\n]\n[\n]\n"},
	} {
		t.Run(c.name, func(t *testing.T) { sqlPrints(t, path, c.flag, query, c.want) })
	}
	if got, err := swarmlite(t, "sql", "-db", path, "SELECT 1; SELECT * FROM nodez; SELECT 2"); err == nil || got != "1\n1\n" || err.Error() != "sql: no such table: nodez" {
		t.Errorf("swarmlite sql with a wrong second statement = %q, %v", got, err)
	}
}

func TestSQLCommandChangesNothing(t *testing.T) {
	t.Parallel()
	s, path := clusterFile(t, "INSERT INTO nodes (address) VALUES ('tcp://10.0.0.1:2375')")
	for _, query := range []string{
		"DELETE FROM nodes",
		"PRAGMA query_only = 0; DELETE FROM nodes",
		"PRAGMA user_version = 9",
	} {
		if out, err := swarmlite(t, "sql", "-db", path, query); err == nil && query[0] == 'D' {
			t.Errorf("swarmlite sql %q = %q, want an error", query, out)
		}
	}
	var rows, version int
	if err := s.get(t.Context(), "SELECT count(*), (SELECT user_version FROM pragma_user_version) FROM nodes", nil, &rows, &version); err != nil || rows != 1 || version != schemaVersion {
		t.Errorf("%d rows, user_version %d, %v: want 1 and %d", rows, version, err, schemaVersion)
	}
}

func TestSQLCommandRefusals(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, "")
	text := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "none.db")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-db", path, "SELECT * FROM nodez"}, "sql: no such table: nodez"},
		{[]string{"-db", path, "SELEC 1"}, `sql: near "SELEC": syntax error`},
		{[]string{"-db", path}, "sql: expected one query in quotes, got 0 arguments; swarmlite sql -h tells more"},
		{[]string{"-db", path, " ; -- nothing"}, "sql: the query is empty"},
		{[]string{"-db", path, "-csv", "-json", "SELECT 1"}, "sql: -csv and -json exclude each other"},
		{[]string{"-db", missing, "SELECT 1"}, "state database " + missing + ": not there; name the manager's file with -db"},
		{[]string{"-db", text, "SELECT 1"}, "state database " + text + ": file is not a database"},
		{[]string{"-dbb", path, "SELECT 1"}, "flag provided but not defined: -dbb; swarmlite sql -h lists the flags"},
	} {
		if _, err := swarmlite(t, append([]string{"sql"}, c.args...)...); err == nil || err.Error() != c.want {
			t.Errorf("swarmlite sql %q: %v, want %s", c.args, err, c.want)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("swarmlite sql made the file that was not there")
	}
}

func TestSQLCommandReadsAfterTheManagerWasKilled(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, "INSERT INTO nodes (address, name) VALUES ('tcp://10.0.0.1:2375', 'one')")
	// What kill -9 leaves: the file and a WAL that was not folded into it.
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := swarmlite(t, "sql", "-db", copied, "-csv", "SELECT name FROM nodes"); err != nil || got != "name\none\n" {
		t.Errorf("swarmlite sql = %q, %v, want the row of the WAL", got, err)
	}
	again, err := openStore(t.Context(), slog.New(slog.DiscardHandler), copied)
	if err != nil {
		t.Fatal(err)
	}
	again.close()
	if got, err := swarmlite(t, "sql", "-db", copied, "-csv", "SELECT name FROM nodes"); err != nil || got != "name\none\n" {
		t.Errorf("after a clean stop: %q, %v", got, err)
	}
}

func TestCommandsHelp(t *testing.T) {
	t.Parallel()
	for name := range commands {
		out, err := swarmlite(t, name, "-h")
		if err != nil || !strings.HasPrefix(out, "Usage: swarmlite "+name+" ") || !strings.Contains(out, "-db") && name != "join" { // which runs on a host without the database
			t.Errorf("swarmlite %s -h = %v\n%s", name, err, out)
		}
	}
}
