package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// sources are where nodes come from: the command line, the node file, names in the DNS,
// and rows that swarmlite node add and swarmlite join have made. Of equal addresses the
// one named first counts, in this order.
type sources struct {
	log      *slog.Logger
	store    *store
	nodes    *nodes
	resolver *net.Resolver
	limits   *connLimits // of clients, which follow the number of nodes; nil: nobody counts
	fixed    []nodeLine  // of the command line
	fromFile chan []nodeLine
	applies  chan chan error
	beats    heartbeats
	ended    chan struct{} // closed when nobody listens to the channels any more

	// What follows belongs to begin, and then to run.
	file   []nodeLine
	names  map[string]*nameAnswer // by dns:// address
	failed string                 // why the nodes could not be set as they should be; logged once
}

// nameAnswer is what the DNS has said of a name.
type nameAnswer struct {
	missing map[string]int // by address: from how many answers in a row it was missing
	good    int64          // monotonic, when there was an answer last
	err     error          // of the last question; nil: it was answered
}

// Where a node comes from, as nodes.source has it; a dns:// address says so itself.
const (
	fromArguments = "arguments"
	fromFile      = "file"
	fromAdd       = "added"
	fromJoin      = "joined"
)

func newSources(log *slog.Logger, s *store, ns *nodes, fixed, file []nodeLine) *sources {
	return &sources{log: log, store: s, nodes: ns, resolver: net.DefaultResolver, fixed: fixed, file: file,
		fromFile: make(chan []nodeLine), applies: make(chan chan error), ended: make(chan struct{}), names: map[string]*nameAnswer{}}
}

// begin gives the cluster its first nodes, and takes those out that an earlier run
// knew and nothing names any more.
func (s *sources) begin(ctx context.Context) error {
	s.heard(ctx, s.ask(ctx, s.dnsNames()))
	// Who had joined before the start has all the time of a new one to be heard of.
	joined, err := s.store.joined(ctx)
	if err != nil {
		return err
	}
	for _, id := range joined {
		s.beats.heard(id, startTTL)
	}
	lines, err := s.lines(ctx)
	if err != nil {
		return err
	}
	stray, err := s.store.strayNodes(ctx, lines)
	if err != nil {
		return err
	}
	for _, id := range stray {
		if _, err := s.store.removeNode(ctx, id); err != nil {
			return err
		}
	}
	err = s.apply(ctx)
	if errors.As(err, new(*unusableError)) {
		return nil // and logged: the others work
	}
	return err
}

// run follows the sources until ctx ends. tick is when names are asked again.
func (s *sources) run(ctx context.Context, tick <-chan time.Time) {
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() { s.followHeartbeats(ctx) })
	defer close(s.ended)
	answers := make(chan map[string]found, 1)
	due := tick // nil while the DNS is being asked
	for {
		select {
		case s.file = <-s.fromFile:
			s.tryApply(ctx)
		case done := <-s.applies:
			done <- s.apply(ctx)
		case <-due:
			due = nil
			names := s.dnsNames()
			asking.Go(func() { answers <- s.ask(ctx, names) })
		case a := <-answers:
			due = tick
			if s.heard(ctx, a) || s.failed != "" {
				s.tryApply(ctx)
			}
		case <-ctx.Done():
			return
		}
	}
}

// setFile makes lines what the node file says.
func (s *sources) setFile(lines []nodeLine) {
	select {
	case s.fromFile <- lines:
	case <-s.ended:
	}
}

// changed has rows take effect that were written for the nodes.
func (s *sources) changed(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.applies <- done:
	case <-s.ended:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-done
}

func (s *sources) tryApply(ctx context.Context) { _ = s.apply(ctx) } // logged

// apply makes what the sources name the nodes of the cluster. Nodes that cannot be used
// are logged, each cause once; they are tried again with the names in the DNS.
func (s *sources) apply(ctx context.Context) error {
	lines, err := s.lines(ctx)
	if err == nil {
		err = s.nodes.set(ctx, lines)
	}
	if ctx.Err() != nil {
		return err
	}
	if s.limits != nil {
		s.limits.leaveTo(len(s.nodes.all()))
	}
	if err == nil {
		s.failed = ""
	} else if s.failed != err.Error() {
		s.failed = err.Error()
		s.log.Error("nodes not set as they should be", "err", err)
	}
	s.vouch()
	return err
}

// lines are the nodes that the sources name, each once.
func (s *sources) lines(ctx context.Context) ([]nodeLine, error) {
	own, err := s.store.ownLines(ctx)
	if err != nil {
		return nil, err
	}
	return union(append(s.expand(s.fixed, fromArguments), s.expand(s.file, fromFile)...), own), nil
}

// expand puts what the DNS says in the place of names.
func (s *sources) expand(lines []nodeLine, source string) []nodeLine {
	var all []nodeLine
	for _, l := range lines {
		l.source = source
		if !strings.HasPrefix(l.address, "dns://") {
			all = append(all, l)
			continue
		}
		l.source = l.address
		if known := s.names[l.address]; known != nil {
			for _, address := range slices.Sorted(maps.Keys(known.missing)) {
				l.address = address
				all = append(all, l)
			}
		}
	}
	return all
}

// dnsNames are the dns:// addresses among the lines.
func (s *sources) dnsNames() []string {
	var names []string
	for _, l := range slices.Concat(s.fixed, s.file) {
		if strings.HasPrefix(l.address, "dns://") && !slices.Contains(names, l.address) {
			names = append(names, l.address)
		}
	}
	return names
}

// found is one answer of the DNS, or the lack of one.
type found struct {
	addresses []string
	err       error
}

func (s *sources) ask(ctx context.Context, names []string) map[string]found {
	var mu sync.Mutex
	answers := map[string]found{}
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			addresses, err := askName(ctx, s.resolver, name)
			mu.Lock()
			defer mu.Unlock()
			answers[name] = found{addresses, err}
		})
	}
	wg.Wait()
	return answers
}

// heard takes answers in and tells whether they change which nodes there are. An
// address must be missing from two answers before it goes: one may have been cut short.
func (s *sources) heard(ctx context.Context, answers map[string]found) (changed bool) {
	for name, a := range answers {
		known := s.names[name]
		if known == nil {
			known = &nameAnswer{missing: map[string]int{}, good: monotonic()}
			s.names[name] = known
			changed = true
			if a.err != nil { // after a restart the last good answer is in the rows
				before, err := s.store.addressesFrom(ctx, name)
				if err != nil {
					s.log.Error("earlier answers of the DNS not read", "name", name, "err", err)
				}
				for _, address := range before {
					known.missing[address] = 0
				}
			}
		}
		if a.err != nil {
			if known.err == nil {
				s.log.Warn("no answer of the DNS, the last one is used for 5 minutes", "name", name, "err", a.err)
			}
			known.err = a.err
			continue
		}
		if known.err != nil {
			s.log.Info("the DNS answers again", "name", name, "nodes", len(a.addresses))
		}
		known.err, known.good = nil, monotonic()
		for address := range known.missing {
			if known.missing[address]++; known.missing[address] > 1 && !slices.Contains(a.addresses, address) {
				delete(known.missing, address)
				changed = true
			}
		}
		for _, address := range a.addresses {
			if _, old := known.missing[address]; !old {
				changed = true
			}
			known.missing[address] = 0
		}
	}
	s.vouch()
	return changed
}

// vouch tells engines whose name has had no answer for too long that nobody says any
// more that they are part of the cluster, and takes it back when there is one.
func (s *sources) vouch() {
	for name, known := range s.names {
		var problem error
		if known.err != nil && time.Duration(monotonic()-known.good) >= keepName {
			problem = fmt.Errorf("no answer about %s for %s: %w", name, keepName, known.err)
		}
		s.nodes.disown(name, problem)
	}
}
