package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	probeEvery   = 10 * time.Second // a quiet engine is pinged; with probeWait a hung one is found within 20 s
	listEvery    = time.Minute      // events are a hint: the whole node is listed again
	firstRetry   = 500 * time.Millisecond
	storeRetry   = 3 * time.Second  // while the database cannot be written
	lastRetry    = 5 * time.Second  // a node that comes back is healthy within 6 s
	flapRetry    = 30 * time.Second // of a node whose connections keep ending young
	youngAge     = 30 * time.Second
	eventOverlap = 5 * time.Second  // events are asked from this long before the list: see follow
	eventsQuiet  = 30 * time.Second // a stream that told nothing for this long may be dead: see missed
	steadyStream = 10 * time.Second // one that ends after this long is opened again at once
)

// nodes is the set of engines: connections and their cancel functions. What is
// known about nodes is in the database.
type nodes struct {
	log   *slog.Logger
	store *store
	certs *certSource // towards engines; nil: plain
	ssh   sshClient

	resolver *net.Resolver

	reloads func() <-chan struct{} // hands out channels that receive when files are to be read again; nil: none
	dirs    map[string]*certSource // of nodes whose lines name a directory; changed by turn's holder

	changed chan struct{} // container rows were read again
	fleet   atomic.Pointer[fleetVersions]

	turn    sync.Mutex // of whoever changes which nodes there are
	mu      sync.Mutex
	engines map[int64]*watched
	wg      sync.WaitGroup

	settling sync.Once
	held     chan struct{} // closed when engines may be connected to; nil: they may
	letGo    sync.Once     // closes it
	soon     *time.Timer   // does so too
	listed   sync.Once     // puts that off, for the first list
	starting chan struct{} // places for nodes that connect
	looking  chan struct{} // places for inspects of what is known by a list only
	progress progress
	builds   buildStreams // of all engines
	answers  sync.Pool    // of *[]byte: buffers for lists of containers
}

// noteChange wakes whoever follows the container rows.
func (ns *nodes) noteChange() {
	ns.store.room.ring()
	select {
	case ns.changed <- struct{}{}:
	default:
	}
}

type watched struct {
	*engine
	line   nodeLine
	cancel context.CancelFunc
	done   chan struct{}
}

func newNodes(log *slog.Logger, s *store, certs *certSource) *nodes {
	ns := &nodes{log: log, store: s, certs: certs, resolver: net.DefaultResolver, engines: map[int64]*watched{}, dirs: map[string]*certSource{}, changed: make(chan struct{}, 1),
		starting: make(chan struct{}, startNodes), looking: make(chan struct{}, startNodes/2), answers: sync.Pool{New: func() any { return new([]byte) }}}
	ns.countVersions()
	return ns
}

// watch keeps one node's rows true until ctx ends: connect, list, follow, and
// again with a growing, jittered pause. The end of the event stream alone says
// nothing of the engine: what stands between may have cut it. So the node stays
// healthy if the next session begins at once.
func (ns *nodes) watch(ctx context.Context, e *engine) {
	pause, young, unwritten := firstRetry, 0, ""
	for {
		began := monotonic()
		err := ns.session(ctx, e)
		if errors.Is(err, errStreamEnded) && time.Duration(monotonic()-began) >= steadyStream && ctx.Err() == nil {
			ns.log.Info("events cut, asked for again", "node", e.nodeName(), "err", err)
			continue
		}
		if isStoreFault(err) && e.healthy.Load() && ctx.Err() == nil {
			// That says nothing of the engine: calls to it go on. What it tells is written when that is possible.
			if err.Error() != unwritten || time.Duration(monotonic()-began) > youngAge {
				unwritten = err.Error()
				ns.log.Error("what the node tells is not written", "node", e.nodeName(), "err", err)
			}
			select {
			case <-time.After(storeRetry/2 + rand.N(storeRetry/2)):
			case <-ctx.Done():
			}
			continue
		}
		unwritten = ""
		msg := plainLine(err.Error())
		wasHealthy := e.healthy.Load()
		if wasHealthy || e.trouble.Load() == nil {
			e.since.Store(time.Now().Unix())
			e.lostAt.Store(monotonic())
		}
		old := e.trouble.Swap(&msg)
		e.healthy.Store(false)
		if wasHealthy {
			close(*e.lost.Load()) // calls that wait for their turn are refused
		}
		e.noteTried()
		e.marks.end()
		e.transport.CloseIdleConnections()
		e.reads.close()
		if e.tunnel != nil {
			e.tunnel.down()
		}
		if ctx.Err() != nil {
			return
		}
		var replaced *replacedError
		if errors.As(err, &replaced) {
			ns.handOver(ctx, e, replaced.node)
			return
		}
		state := "unhealthy"
		var dup *duplicateError
		if errors.As(err, &dup) {
			state = "duplicate"
		}
		if err := ns.store.nodeDown(ctx, e.id, state, err); err != nil && ctx.Err() == nil {
			ns.log.Error("node state not written", "node", e.nodeName(), "err", err)
		}
		if wasHealthy || old == nil || *old != msg {
			ns.tell(slog.LevelWarn, "node "+state, e, err, "err", err)
		}
		limit := lastRetry
		if wasHealthy {
			pause = firstRetry
			if time.Duration(monotonic()-began) < youngAge {
				young++
			} else {
				young = 0
			}
			// Flapping is damped: each short life doubles the pause.
			for range min(young, 6) {
				pause = min(2*pause, flapRetry)
			}
			if young > 3 {
				limit = flapRetry
			}
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, max(limit, pause))
	}
}

// stepError is what a session ended with, and what was being done.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// errStreamEnded is the end of an event stream, which says nothing of the engine.
var errStreamEnded = errors.New("the connection ended")

// duplicateError is an engine whose ID another healthy node has.
type duplicateError struct{ id, other, otherAddr string }

func (e *duplicateError) Error() string {
	return fmt.Sprintf("duplicate ID %s, shared with node %s (%s): if both addresses lead to one engine, drop one; "+
		"if the host is a clone, stop its Docker, remove /etc/docker/key.json and /var/lib/docker/engine-id, and start it again", e.id, e.other, e.otherAddr)
}
