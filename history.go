package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

const (
	keptEvents = 100_000 // event rows
	trimEvery  = time.Minute
	// A batch that keeps the writer for longer than trimTime is made smaller the next time.
	trimTime             = 3 * time.Millisecond
	minTrimmed, maxTrims = 10, 1000 // rows a batch
	// Batches wait for a writer without work, but not for ever: rows come with every create.
	trimPatience = time.Second
	trimPause    = 5 * time.Millisecond
)

// history is how long the ledger of placements is kept: -history AGE/ROWS. Zero is no limit.
type history struct {
	age  time.Duration
	rows int64
}

const day = 24 * time.Hour

var errHistory = errors.New("expected an age and a number of rows such as 90d/1000000, 0 for no limit")

// Set reads 90d/1000000; a half that is left out stays as it is.
func (h *history) Set(s string) error {
	age, rows, _ := strings.Cut(s, "/")
	if age != "" {
		d, err := parseAge(age)
		if err != nil {
			return errHistory
		}
		h.age = d
	}
	if rows == "" {
		return nil
	}
	n, err := strconv.ParseUint(rows, 10, 63)
	if err != nil {
		return errHistory
	}
	h.rows = int64(n)
	return nil
}

// parseAge reads a duration, in days as well: 90d, 36h.
func parseAge(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * day, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	return 0, errors.New("expected an age such as 90d or 36h")
}

func (h *history) String() string {
	if h.age%day == 0 {
		return fmt.Sprintf("%dd/%d", h.age/day, h.rows)
	}
	return fmt.Sprintf("%s/%d", h.age, h.rows)
}

// trim keeps the ledgers within h and keptEvents until ctx ends: it deletes a little
// at a time, while the writer has nothing else to do.
func (s *store) trim(ctx context.Context, log *slog.Logger, h history) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var old func(*tx, int64) (int64, bool, error)
	for round := 0; ; round++ {
		if round%60 == 0 {
			old = placementsBeyond(h) // from the start: containers whose rows were kept may have gone
		}
		placements, err := s.trimLedger(ctx, old)
		events, err2 := s.trimLedger(ctx, trimEvents)
		if err = errors.Join(err, err2); err != nil && ctx.Err() == nil {
			log.Warn("history not trimmed", "err", err)
		}
		if placements+events > 0 {
			log.Debug("history trimmed", "placements", placements, "events", events)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// trimLedger runs batch, which looks at up to limit rows, until there is no more to
// do. It returns how many rows were deleted.
func (s *store) trimLedger(ctx context.Context, batch func(t *tx, limit int64) (deleted int64, more bool, err error)) (total int64, err error) {
	limit := int64(minTrimmed)
	for more := true; more; {
		for waited := time.Duration(0); waited == 0 || len(s.writes) > 0 && waited < trimPatience; waited += trimPause {
			select {
			case <-time.After(trimPause):
			case <-ctx.Done():
				return total, ctx.Err()
			}
		}
		var deleted int64
		err := s.write(ctx, func(t *tx) (err error) {
			began := time.Now()
			err = t.mostlyIdle(func() (err error) {
				deleted, more, err = batch(t, limit)
				return err
			})
			if time.Since(began) > trimTime {
				limit = max(limit/2, minTrimmed)
			} else {
				limit = min(2*limit, maxTrims)
			}
			return err
		})
		if err != nil {
			return total, err
		}
		total += deleted
	}
	return total, nil
}

// placementsBeyond walks over the placements that are beyond h, from the oldest on.
// Those of containers that are still there stay: why and ran tell of them.
func placementsBeyond(h history) func(t *tx, limit int64) (int64, bool, error) {
	var after int64
	return func(t *tx, limit int64) (int64, bool, error) {
		var oldest, last int64
		if h.rows > 0 {
			if err := t.get("SELECT coalesce(max(id), 0) - ? FROM placements", []any{h.rows}, &oldest); err != nil {
				return 0, false, err
			}
		}
		var since int64
		if h.age > 0 {
			since = time.Now().Add(-h.age).Unix()
		}
		err := t.get("SELECT coalesce(max(id), 0) FROM (SELECT id, at FROM placements WHERE id > ?1 ORDER BY id LIMIT ?2) WHERE at < ?3 OR id <= ?4",
			[]any{after, limit, since, oldest}, &last)
		if err != nil || last == 0 {
			return 0, false, err
		}
		res, err := t.exec(`DELETE FROM placements WHERE id > ? AND id <= ?
			AND NOT EXISTS (SELECT 1 FROM containers c WHERE c.container_id = placements.container_id)
			AND NOT EXISTS (SELECT 1 FROM reservations r WHERE r.placement_id = placements.id)`, after, last)
		if err != nil {
			return 0, false, err
		}
		after = last
		n, err := res.RowsAffected()
		return n, true, err
	}
}

func trimEvents(t *tx, limit int64) (int64, bool, error) {
	// One bound: of two, SQLite would use the first and look at every row up to it.
	res, err := t.exec("DELETE FROM events WHERE id <= min((SELECT max(id) FROM events) - ?, (SELECT min(id) FROM events) + ? - 1)", keptEvents, limit)
	if err != nil {
		return 0, false, err
	}
	n, err := res.RowsAffected()
	return n, n > 0, err
}
