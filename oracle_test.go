package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// oracle tells whether a fault has left anything behind (FAULTS 2.1): what the engines
// have, what the endpoint shows and what the database says must be the same.
type oracle struct {
	engines func() ([]string, error)                // "ID name" of each container, of all engines
	shown   func() ([]string, error)                // the same, as docker ps -a shows it
	rows    func(testing.TB, string, ...any) string // asks the database: rows are lines, columns separated by "|"
}

// check waits until all is quiet, and compares.
func (o *oracle) check(t testing.TB) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		has, err := o.engines()
		if err != nil {
			return err
		}
		slices.Sort(has)
		names := map[string]string{}
		for _, c := range has {
			id, name, _ := strings.Cut(c, " ")
			if other, ok := names[name]; ok {
				return fmt.Errorf("name %s is doubled: containers %s and %s", name, other, id)
			}
			names[name] = id
		}
		shown, err := o.shown()
		if err != nil {
			return err
		}
		slices.Sort(shown)
		if !slices.Equal(has, shown) {
			return fmt.Errorf("the engines have %q, a list shows %q", has, shown)
		}
		if got := o.rows(t, "SELECT container_id || ' ' || name FROM containers ORDER BY 1"); got != strings.Join(has, "\n") {
			return fmt.Errorf("the engines have %q, the database %q", has, got)
		}
		if got := o.rows(t, "SELECT kind, name, state FROM reservations"); got != "" {
			return fmt.Errorf("reservations are left: %s", got)
		}
		if got := o.rows(t, "SELECT name, old_name, answered FROM renames"); got != "" {
			return fmt.Errorf("names are held for renames: %s", got)
		}
		return nil
	})
	sums := o.rows(t, `SELECT n.name FROM nodes n WHERE n.containers <> (SELECT count(*) FROM containers c WHERE c.node_id = n.id AND c.counted)
		OR n.used_memory_bytes <> (SELECT coalesce(sum(memory_bytes), 0) FROM containers c WHERE c.node_id = n.id AND c.counted)
		OR n.used_nano_cpus <> (SELECT coalesce(sum(nano_cpus), 0) FROM containers c WHERE c.node_id = n.id AND c.counted)`)
	if sums != "" {
		t.Errorf("the sums of %s are wrong", sums)
	}
	if got := o.rows(t, "SELECT id FROM placements WHERE outcome = 'reserved' AND kind NOT IN ('image', 'build')"); got != "" {
		t.Errorf("placements %s are for ever under way", got)
	}
	if got := o.rows(t, "SELECT * FROM pragma_integrity_check"); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
	if got := o.rows(t, `SELECT "table", rowid FROM pragma_foreign_key_check`); got != "" {
		t.Errorf("foreign_key_check: %s", got)
	}
}

// oracle compares the three views over simulated engines.
func (f *front) oracle(t testing.TB) {
	t.Helper()
	(&oracle{
		engines: func() (has []string, err error) {
			for _, e := range f.fakes {
				has = append(has, e.containerIDs()...)
			}
			return has, nil
		},
		shown: func() ([]string, error) { return listedAt(t.Context(), f.addr) },
		rows:  f.rows,
	}).check(t)
}

// oracle compares the three views of a manager that runs as a process over engines at
// these addresses.
func (m *manager) oracle(t testing.TB, engines ...string) {
	t.Helper()
	(&oracle{
		engines: func() (has []string, err error) {
			for _, addr := range engines {
				list, e := listedAt(t.Context(), addr)
				has, err = append(has, list...), errors.Join(err, e)
			}
			return has, err
		},
		shown: func() ([]string, error) { return listedAt(t.Context(), m.addr) },
		rows:  func(t testing.TB, query string, _ ...any) string { t.Helper(); return m.sql(t, query) },
	}).check(t)
	for _, word := range []string{"panic", "DATA RACE"} {
		if strings.Contains(m.log.String(), word) {
			t.Errorf("the manager's log has %s", word)
		}
	}
}

// listedAt asks a Docker API for all containers: "ID name" of each.
func listedAt(ctx context.Context, addr string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/containers/json?all=1", nil)
	if err != nil {
		return nil, err
	}
	resp, err := loneClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list []struct {
		Id    string
		Names []string
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("list of %s: %s %s", addr, resp.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &list)
	}
	var has []string
	for _, c := range list {
		if len(c.Names) == 0 {
			return nil, fmt.Errorf("list of %s: %s has no name", addr, c.Id)
		}
		has = append(has, c.Id+" "+strings.TrimPrefix(c.Names[0], "/"))
	}
	return has, err
}
