package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// Small clusters are watched closely. In large ones what it takes to watch is shared: the
// pings of all nodes are 15 a second, whatever their number, the lists of containers 17.
const (
	closeNodes  = 150  // up to so many nodes each is pinged every probeEvery
	listedNodes = 1000 // up to so many each is listed every listEvery
	listTurns   = 6    // lists of a node in a large cluster until it has listed everything
	startNodes  = 256  // that connect and are listed at one time
	fewChanges  = 5    // changes in a second that are told one by one
	shownLines  = 50   // up to so many nodes each tells by itself that it is healthy or not

	// The engines of a large cluster wait so long for a client's first list to begin, see hold,
	firstList = 250 * time.Millisecond
	listMost  = 2 * time.Second // and so long for it to end, from its beginning
)

// hold keeps engines from being connected to until release, if they are many and most are
// known from before: to connect to a thousand takes all processors for seconds, and whoever
// waits for the manager to be back is given what is known before that. It is for a start,
// before set.
func (ns *nodes) hold(ctx context.Context) error {
	var known int
	if err := ns.store.get(ctx, "SELECT count(*) FROM nodes WHERE state = 'pending' AND engine_id IS NOT NULL", nil, &known); err != nil {
		return err
	}
	if known > closeNodes {
		ns.held = make(chan struct{})
	}
	return nil
}

// release ends hold: after the first list, for a call that needs an engine, or when nobody
// has asked for anything soon.
func (ns *nodes) release() {
	if ns.held != nil {
		ns.letGo.Do(func() { close(ns.held) })
	}
}

// releaseSoon ends hold when no list has begun soon. It is called before clients are served.
func (ns *nodes) releaseSoon() { ns.soon = time.AfterFunc(firstList, ns.release) }

// listBegins has the engines wait for the end of the first list. A client that reads
// slowly holds them back for no longer than listMost.
func (ns *nodes) listBegins() {
	if ns.soon != nil {
		ns.listed.Do(func() { ns.soon.Reset(listMost) })
	}
}

func (ns *nodes) awaitRelease(ctx context.Context) error {
	if ns.held == nil {
		return nil
	}
	select {
	case <-ns.held:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pace makes a pause longer by as much as there are more than upTo nodes.
func (ns *nodes) pace(pause time.Duration, upTo int) time.Duration {
	return pause * time.Duration(max(ns.count(), upTo)) / time.Duration(upTo)
}

// spread is a random part of what pace makes a pause of each of closeNodes longer by: less by
// that the first time, a thousand nodes that are started together do not end it together.
func (ns *nodes) spread(pause time.Duration) time.Duration {
	return rand.N(ns.pace(pause, closeNodes) - pause + 1)
}

// count is how many nodes there are, healthy or not.
func (ns *nodes) count() int {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return len(ns.engines)
}

// unlisted is what a list leaves out. In a large cluster containers are listed at their
// pace, and every other time one of the rest in its turn: they change less, and events tell.
type unlisted struct{ containers, images, networks, volumes bool }

func (ns *nodes) unlistedAt(turn int) unlisted {
	if ns.count() <= closeNodes {
		return unlisted{}
	}
	return unlisted{images: turn%listTurns != 0, networks: turn%listTurns != 2, volumes: turn%listTurns != 4}
}

// keepSettling has nodes look for creates that nobody waits for any more: see settleReservations.
func (ns *nodes) keepSettling(ctx context.Context) {
	tick := time.NewTicker(graceUnknown / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		ids, err := ns.store.unsettledNodes(ctx)
		if err != nil {
			if ctx.Err() == nil {
				ns.log.Warn("reservations not looked for", "err", err)
			}
			continue
		}
		for _, id := range ids {
			e := ns.get(id)
			if e == nil {
				continue
			}
			select {
			case e.unsettled <- struct{}{}:
			default:
			}
		}
	}
}

// giveBack returns to the system what the start of a large cluster took: connecting,
// listing and inspecting all at once takes far more memory than following does.
func (ns *nodes) giveBack(ctx context.Context) {
	tick := time.NewTicker(time.Second / 4)
	defer tick.Stop()
	for quiet := 0; quiet < 2; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if quiet++; len(ns.starting) > 0 || len(ns.looking) > 0 {
			quiet = 0
		}
	}
	if ns.count() > closeNodes {
		debug.FreeOSMemory()
	}
}

// progress tells of nodes that become healthy, or are lost. With many nodes it is a
// line a second that sums up, if more than a few have changed.
type progress struct {
	mu        sync.Mutex
	summingUp bool
	lines     []func() // of the second that runs, as long as they are few
	healthy   int
	lost      []string // names of the first nodes
	losses    int
	lastErr   error
}

// tell logs a change of a node's state, err is why it was lost.
func (ns *nodes) tell(level slog.Level, message string, e *engine, err error, more ...any) {
	line := func() {
		ns.log.Log(context.Background(), level, message, append([]any{"node", e.nodeName(), "addr", e.addr}, more...)...)
	}
	if ns.count() <= shownLines {
		line()
		return
	}
	p := &ns.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) <= fewChanges {
		p.lines = append(p.lines, line)
	}
	if err == nil {
		p.healthy++
	} else {
		p.losses, p.lastErr = p.losses+1, err
		if len(p.lost) < fewChanges {
			p.lost = append(p.lost, e.nodeName())
		}
	}
	if !p.summingUp {
		p.summingUp = true
		time.AfterFunc(time.Second, ns.sumUp)
	}
}

// sumUp logs what has changed in the last second.
func (ns *nodes) sumUp() {
	p := &ns.progress
	p.mu.Lock()
	lines, healthy, lost, losses, cause := p.lines, p.healthy, p.lost, p.losses, p.lastErr
	p.lines, p.healthy, p.lost, p.losses, p.lastErr, p.summingUp = nil, 0, nil, 0, nil, false
	p.mu.Unlock()
	if len(lines) <= fewChanges {
		for _, line := range lines {
			line()
		}
		return
	}
	all := ns.all()
	well := 0
	for _, e := range all {
		if e.healthy.Load() {
			well++
		}
	}
	ns.log.Info("nodes", "healthy", well, "of", len(all), "joined", healthy)
	if losses > 0 {
		names := strings.Join(lost, ", ")
		if losses > len(lost) {
			names += fmt.Sprintf(" and %d more", losses-len(lost))
		}
		ns.log.Warn("nodes unhealthy", "nodes", names, "err", cause)
	}
}
