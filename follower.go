package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// session connects to the engine, takes its lists and follows its events until
// something breaks. It returns what did, never nil.
func (ns *nodes) session(ctx context.Context, e *engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &follower{ns: ns, e: e}
	err := aside(ctx, f.open)
	if f.stream != nil {
		defer f.stream.Close()
		defer e.marks.end()
		defer cancel()
	}
	if err != nil {
		return err
	}
	return f.follow(ctx)
}

// aside runs fn in a goroutine of its own and waits for it: the stack that it needs goes with
// it. Those of a thousand nodes that wait would be a fifth of the program's memory.
func aside(ctx context.Context, fn func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	return <-done
}

// follower is a session with an engine.
type follower struct {
	ns     *nodes
	e      *engine
	stream io.ReadCloser // of its events; nil: not asked for yet
	clock  time.Time     // the engine's, when the session began
	known  knownList
	events *eventQueue
	probe  *time.Timer
	again  *time.Timer // to the next list
	turn   int         // which lists are taken with it
	opened int64       // monotonic
	looked int64       // monotonic, when the stream last told something,
	last   int64       // and the engine's time of that, unix nanoseconds
}

// open connects, subscribes and lists, and has the node healthy.
func (f *follower) open(ctx context.Context) error {
	ns, e := f.ns, f.e
	if err := ns.awaitRelease(ctx); err != nil {
		return &stepError{"connect", err}
	}
	select {
	case ns.starting <- struct{}{}:
	case <-ctx.Done():
		return &stepError{"connect", ctx.Err()}
	}
	started := sync.OnceFunc(func() { <-ns.starting })
	defer started()
	facts, err := ns.connect(ctx, e)
	if err != nil {
		return err
	}
	if e.location.named && !e.verified {
		if err := ns.store.sameHost(ctx, e.id, facts); err != nil {
			return &stepError{"identity", err}
		}
	}
	other, err := ns.store.replaced(ctx, e.id, facts.info.ID)
	if err != nil {
		return &stepError{"write node", err}
	}
	if other != 0 {
		return &replacedError{other}
	}
	seq, err := ns.store.nodeUp(ctx, e.id, facts)
	if err != nil {
		return &stepError{"write node", err}
	}
	e.began.Store(monotonic())
	e.clockTold.Store(int64(facts.skew))
	e.setName(seq.name)
	e.shown.Store(seq.shown)
	for _, warning := range seq.warnings {
		if !slices.Contains(e.warned, warning) {
			ns.log.Warn(warning, "node", seq.name, "addr", e.addr)
		}
	}
	e.warned = seq.warnings
	ns.noteCertificate(e, time.Now())
	f.clock = facts.clock
	if f.stream, err = ns.subscribe(ctx, e, facts.clock.Add(-eventOverlap)); err != nil {
		return &stepError{"events", err}
	}
	e.marks.begin(func(ks []mark) { ns.readMarks(ctx, e, ks) })
	if err := ns.giveWay(ctx, e); err != nil {
		return &stepError{"rename old containers", err}
	}
	if err := ns.listLess(ctx, e, unlisted{}, &f.known); err != nil {
		return &stepError{"list", err}
	}
	if err := ns.settleReservations(ctx, e); err != nil {
		return &stepError{"settle reservations", err}
	}
	e.trouble.Store(nil)
	e.timeouts.Store(0)
	if !e.healthy.Load() {
		lost := make(chan struct{})
		e.lost.Store(&lost)
	}
	e.healthy.Store(true) // before the row: a create that picks the node must find it so
	if err := ns.store.nodeHealthy(ctx, e.id, facts.info.ID, seq.back); err != nil {
		return &stepError{"write node", err}
	}
	e.noteTried()
	started()
	if ns.count() > closeNodes { // an open file each: with so many they are not kept for the next call
		e.reads.close()
		e.transport.CloseIdleConnections()
	}
	ns.tell(slog.LevelInfo, "node healthy", e, nil, "engine", facts.version.Version, "api", facts.api.String())
	return nil
}

// subscribe opens the event stream. since lies before the list that follows: an
// engine answers /events before it listens, so without it there is a gap.
func (ns *nodes) subscribe(ctx context.Context, e *engine, since time.Time) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(0, "/events", "since="+strconv.FormatInt(since.Unix(), 10)), nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.send(req, endless)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", resp.Status, engineMessage(resp.Body))
	}
	return resp.Body, nil
}

// missed asks for the engine's events since the last that the stream told (unix
// nanoseconds of its clock), up to a moment ago, and applies them. If there are any
// the stream is dead, though the connection looks alive: where something between
// has forgotten it, nobody tells.
func (ns *nodes) missed(ctx context.Context, e *engine, last int64, now time.Time) (n int, err error) {
	until := now.Add(-eventOverlap).UnixNano()
	if last >= until {
		return 0, nil
	}
	seconds := func(nano int64) string { return fmt.Sprintf("%d.%09d", nano/second, nano%second) }
	body, err := e.get(ctx, "/events", "since="+seconds(last+1)+"&until="+seconds(until))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	events := readEvents(ctx, body)
	defer events.end(context.Canceled)
	for {
		<-events.some
		batch, ended := events.take()
		if len(batch) > 0 {
			fresh, err := ns.apply(ctx, e, batch)
			if n += fresh; err != nil {
				return n, err
			}
		}
		if errors.Is(ended, io.EOF) {
			return n, nil
		}
		if ended != nil {
			return n, ended
		}
	}
}

// follow applies events, lists the node again each minute and pings it when it
// is quiet, until one of them fails. It waits most of the time, with a stack to be kept small.
func (f *follower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.begin(ctx)
	defer f.probe.Stop()
	defer f.again.Stop()
	moved := make(chan error, 1)
	if f.e.location.named {
		ask := time.NewTicker(askEvery)
		defer ask.Stop()
		go func() { moved <- f.e.location.stay(ctx, ask.C) }()
	}
	for {
		var do func(context.Context) error
		select {
		case <-f.events.some:
			do = f.take
		case err := <-f.e.unwritten:
			return &stepError{"write what was read", err}
		case <-f.e.suspect:
			do = f.doubt
		case err := <-moved:
			return &stepError{"dns", err}
		case <-f.probe.C:
			do = f.check
		case <-f.e.unsettled:
			do = f.settle
		case <-f.again.C:
			do = f.list
		case <-ctx.Done():
			return &stepError{"stop", ctx.Err()}
		}
		if err := aside(ctx, do); err != nil {
			return err
		}
	}
}

func (f *follower) begin(ctx context.Context) {
	ns := f.ns
	f.events = readEvents(ctx, f.stream)
	f.probe = time.NewTimer(ns.pace(probeEvery, closeNodes) - ns.spread(probeEvery))
	// Spread over the minute, or a thousand nodes started together list together for ever; and
	// over the turns, or all of them list their networks in one minute and nothing but containers in the next.
	first := ns.pace(listEvery, listedNodes) / 2
	f.again, f.turn = time.NewTimer(first+rand.N(first)), rand.N(listTurns)
	f.opened = monotonic()
	f.looked, f.last = f.opened-int64(ns.spread(eventsQuiet)), f.clock.UnixNano()
}

// take applies the events that have come.
func (f *follower) take(ctx context.Context) error {
	batch, ended := f.events.take()
	if len(batch) > 0 {
		f.looked, f.last = monotonic(), max(f.last, batch[len(batch)-1].TimeNano)
		if _, err := f.ns.apply(ctx, f.e, batch); err != nil {
			return &stepError{"write events", err}
		}
	}
	if ended != nil {
		return &stepError{"events", fmt.Errorf("%w: %w", errStreamEnded, ended)}
	}
	return nil
}

// doubt finds out whether an engine lives that did not answer in time.
func (f *follower) doubt(ctx context.Context) error {
	if f.e.timeouts.Load() >= slowAnswers {
		return &stepError{"calls", fmt.Errorf("%d calls in a row had no answer in time", slowAnswers)}
	}
	if err := f.e.ping(ctx, probeWait); err != nil {
		return &stepError{"ping", err}
	}
	if err := f.ns.store.nodeSilent(ctx, f.e.id, false); err != nil {
		return &stepError{"write node", err}
	}
	return nil
}

// check pings an engine that has been quiet, and asks whether its stream of events is as quiet as it seems.
func (f *follower) check(ctx context.Context) error {
	ns, e := f.ns, f.e
	pause := ns.pace(probeEvery, closeNodes)
	f.probe.Reset(pause)
	if problem := e.disowned.Load(); problem != nil {
		return &stepError{"dns", *problem}
	}
	if time.Duration(monotonic()-f.looked) > ns.pace(eventsQuiet, closeNodes) {
		f.looked = monotonic()
		missed, err := ns.missed(ctx, e, f.last, f.clock.Add(time.Duration(f.looked-f.opened)))
		if err == nil && missed > 0 {
			return &stepError{"events", fmt.Errorf("%w without a word: it did not tell %s", errStreamEnded, counted(missed, "event"))}
		}
		if err != nil { // whether the engine lives is the ping's to say
			ns.log.Warn("events not compared", "node", e.nodeName(), "err", err)
		}
	}
	if e.quietFor() < pause/2 || pause > listEvery && e.quietFor() < 2*listEvery { // its lists are its pings
		return nil
	}
	if err := e.ping(ctx, probeWait); err != nil {
		return &stepError{"ping", err}
	}
	return nil
}

func (f *follower) settle(ctx context.Context) error {
	if err := f.ns.settleReservations(ctx, f.e); err != nil && ctx.Err() == nil {
		f.ns.log.Warn("reservations not settled", "node", f.e.nodeName(), "err", err)
	}
	return nil
}

// list takes the lists whose turn it is.
func (f *follower) list(ctx context.Context) error {
	ns, e := f.ns, f.e
	f.turn++
	if err := ns.listLess(ctx, e, ns.unlistedAt(f.turn), &f.known); isStoreFault(err) {
		return &stepError{"list", err}
	} else if err != nil {
		// A list that fails deletes nothing; whether the engine lives is the ping's to say.
		ns.log.Warn("node not listed", "node", e.nodeName(), "err", err)
		if err := e.ping(ctx, probeWait); err != nil {
			return &stepError{"ping", err}
		}
	} else if err := errors.Join(ns.calm(ctx, e, f.known.before.failed), ns.noteClock(ctx, e)); err != nil {
		return &stepError{"write node", err}
	}
	ns.noteCertificate(e, time.Now())
	if e.inSwarm.Load() { // no event tells that an engine has left its swarm
		e.marks.add(mark{"info", ""})
	}
	f.again.Reset(ns.pace(listEvery, listedNodes))
	return nil
}
