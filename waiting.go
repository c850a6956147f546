package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// waitLabel on a create says how long it may wait for room, as in 10m; 0 is not at all.
const waitLabel = "com.docker.swarm.wait"

const (
	// waitTick is how often the head of the line looks without having been woken: what
	// rings no bell, a lock of the database that is over, say, is seen all the same.
	waitTick = time.Second
	// longestRest bounds the pause between two rounds. A round takes its time once for
	// each in line, and every container that changes rings the bell: a long line would
	// keep the database busy.
	longestRest = time.Second
)

// roomFilters refuse for what may come free by itself; the other filters tell
// whether a node is of any use to a workload.
var roomFilters = []string{"health", "availability", "port", "containerslots", "resources", "waiting"}

// errHungUp ends a create whose client left while it waited in line.
var errHungUp = errors.New("the client hung up")

// readWait reads how long a create may wait; without a label it is what -wait says.
func (w *workload) readWait(otherwise time.Duration, gone <-chan struct{}) error {
	wait := otherwise
	if text, ok := w.labels[waitLabel]; ok {
		var err error
		if wait, err = time.ParseDuration(strings.TrimSpace(text)); err != nil || wait < 0 {
			return errorf(http.StatusBadRequest, "label %s %q: expected a duration such as 10m", waitLabel, text)
		}
	}
	if wait > 0 {
		w.until, w.gone = time.Now().Add(wait), gone
	}
	return nil
}

// line is the creates that wait, in the order of their rows.
type line struct {
	mu     sync.Mutex // held by one round at a time
	places []*place
	served <-chan struct{} // the bell that the last round was for
	rest   time.Time       // until when the last round is rested from
	tick   time.Duration   // waitTick, unless a test has set it
}

// place is one create's place in line.
type place struct {
	ctx    context.Context
	w      *workload
	result chan turn
}

type turn struct {
	placed *placement
	err    error
}

// placeInTurn is place for a create that may wait: when nothing fits it stands in
// line until there is room, its time is up, or its client hangs up.
func (sc *scheduler) placeInTurn(ctx context.Context, w *workload) (*placement, error) {
	room := sc.store.room.next() // before the look, so that nothing freed meanwhile is missed
	p, err := sc.place(ctx, w)
	if w.line == 0 {
		return p, err
	}
	me := &place{ctx, w, make(chan turn, 1)}
	sc.line.mu.Lock()
	sc.line.places = append(sc.line.places, me)
	slices.SortFunc(sc.line.places, func(a, b *place) int { return cmp.Compare(a.w.line, b.w.line) })
	sc.line.mu.Unlock()
	for {
		tick := time.NewTimer(max(min(cmp.Or(sc.line.tick, waitTick), time.Until(w.until)), 0))
		select {
		case t := <-me.result:
			tick.Stop()
			return t.placed, t.err
		case <-room:
			rang := room
			room = sc.store.room.next() // before the look, again
			sc.round(rang, nil)
		case <-tick.C:
			sc.round(nil, me)
		case <-w.gone:
			tick.Stop()
			return sc.leaveLine(me)
		}
		tick.Stop()
	}
}

// round gives everyone in line their turn, from the head on: once for each ring of
// the bell, and on the tick of the head or of one whose time is up.
func (sc *scheduler) round(room <-chan struct{}, ticked *place) {
	l := &sc.line
	l.mu.Lock()
	defer l.mu.Unlock()
	if room != nil {
		if room == l.served {
			return
		}
		l.served = room
	} else if len(l.places) == 0 || ticked != l.places[0] && time.Now().Before(ticked.w.until) {
		return
	}
	time.Sleep(time.Until(l.rest))
	began := time.Now()
	defer func() { l.rest = time.Now().Add(min(4*time.Since(began), longestRest)) }()
	l.places = slices.DeleteFunc(l.places, func(at *place) bool {
		p, err := sc.place(at.ctx, at.w)
		if at.w.line != 0 && statusOf(asRefusal(err)) == http.StatusServiceUnavailable && time.Now().Before(at.w.until) {
			return false // no node fits, or the database is locked or full just now
		}
		if at.w.line != 0 {
			err = errors.Join(err, sc.dropRow(at))
		}
		at.result <- turn{p, err}
		return true
	})
}

// leaveLine gives up the place in line of a client that hung up, and the name with
// it. If its turn has just come, the create goes on, as any that was placed.
func (sc *scheduler) leaveLine(me *place) (*placement, error) {
	sc.line.mu.Lock()
	defer sc.line.mu.Unlock()
	select {
	case t := <-me.result:
		return t.placed, t.err
	default:
	}
	sc.line.places = slices.DeleteFunc(sc.line.places, func(at *place) bool { return at == me })
	return nil, errors.Join(errHungUp, sc.dropRow(me))
}

func (sc *scheduler) dropRow(at *place) error {
	err := sc.store.write(at.ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM waiting WHERE id = ?", at.w.line)
		return err
	})
	at.w.line = 0
	sc.store.room.ring() // there is a new head
	return err
}

// standInLine makes a refused create wait, in the transaction that refused it: its
// row holds its name, and the nodes that could be of use to it. The refusal is not
// kept in the ledger; the one at the end is.
func (t *tx) standInLine(w *workload, p *placement, q *query, refused *noNodeError) (line int64, err error) {
	if _, err := t.exec("DELETE FROM placements WHERE id = ?", p.id); err != nil {
		return 0, err
	}
	where, args := q.without(roomFilters...).where()
	var nodes string
	if err := t.get("SELECT json_group_array(n.id) FROM node_load n WHERE "+where, args, &nodes); err != nil {
		return 0, err
	}
	if w.line != 0 {
		_, err := t.exec("UPDATE waiting SET nodes = ?, message = ? WHERE id = ?", nodes, refused.Error(), w.line)
		return w.line, err
	}
	res, err := t.exec("INSERT INTO waiting (name, image, request, since_ms, until_ms, nodes, message) VALUES (?,?,?,?,?,?,?)",
		p.name, w.image, jsonText(w.shape()), time.Now().UnixMilli(), w.until.UnixMilli(), nodes, refused.Error())
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// waitClauses keep the nodes that could be of use to the head of the line from
// those behind it, once it has waited a quarter of its time.
func (t *tx) waitClauses(w *workload) ([]clause, error) {
	if w.kind != "container" {
		return nil, nil
	}
	var id, since, until int64
	var name, nodes string
	err := t.get("SELECT id, name, nodes, since_ms, until_ms FROM waiting ORDER BY id LIMIT 1", nil, &id, &name, &nodes, &since, &until)
	if errors.Is(err, errNotFound) {
		return nil, nil
	}
	if err != nil || id == w.line || time.Now().UnixMilli()-since < (until-since)/4 {
		return nil, err
	}
	words := fmt.Sprintf("kept for %s, which waits for room", name)
	return []clause{{filter: "waiting", one: "is " + words, many: "are " + words,
		sql: "n.id NOT IN (SELECT value FROM json_each(?))", args: []any{nodes}}}, nil
}
