package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// testStore is a new state database that is closed when the test ends.
func testStore(t testing.TB) *store {
	t.Helper()
	s, err := openStore(t.Context(), filepath.Join(t.TempDir(), "swarmlite.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// sql runs statements in one write transaction.
func (s *store) sql(t testing.TB, statements string) {
	t.Helper()
	err := s.write(t.Context(), func(t *tx) error {
		_, err := t.conn.ExecContext(t.ctx, statements)
		return err
	})
	if err != nil {
		t.Fatalf("%v in %s", err, statements)
	}
}

// all is the answer to a query as text: rows are lines, columns are separated by "|".
func (s *store) all(t testing.TB, query string, args ...any) string {
	t.Helper()
	rows, err := s.ro.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%v in %s", err, query)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rows.Next() {
		values, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		var line []string
		for _, v := range values {
			if v == nil {
				v = "NULL"
			}
			line = append(line, fmt.Sprint(v))
		}
		lines = append(lines, strings.Join(line, "|"))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// one is all for a query whose answer is one row.
func (s *store) one(t testing.TB, query string, args ...any) string {
	t.Helper()
	got := s.all(t, query, args...)
	if got == "" || strings.Contains(got, "\n") {
		t.Fatalf("%s = %q, want one row", query, got)
	}
	return got
}
