package main

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	beatLook   = time.Second
	longestTTL = 24 * time.Hour
	startTTL   = time.Minute // of a node that had joined before the manager started
)

// joinLimits keep whoever reaches the listener from trying tokens, and from keeping the
// database busy.
type joinLimits struct{ all, wrong *rate.Limiter }

func newJoinLimits() *joinLimits {
	return &joinLimits{all: rate.NewLimiter(500, 2000), wrong: rate.NewLimiter(1, 10)}
}

// heartbeats are how long the nodes that register themselves (swarmlite join) are taken
// to be there. Times are monotonic: a clock that jumps makes nobody late. A node whose
// time is over takes no new containers until it is heard of again; its engine alone says
// whether it lives, so it is not a lost node, and nothing is moved.
type heartbeats struct {
	mu    sync.Mutex
	until map[int64]int64 // node → monotonic nanoseconds
}

// heard gives a node until ttl from now.
func (h *heartbeats) heard(node int64, ttl time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.until == nil {
		h.until = map[int64]int64{}
	}
	h.until[node] = monotonic() + int64(ttl)
}

// late returns the nodes whose time is over, once each. paused is for how long the
// manager itself was not there to hear anything.
func (h *heartbeats) late(paused time.Duration) (nodes []int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for node, until := range h.until {
		until += int64(paused)
		h.until[node] = until
		if monotonic() > until {
			nodes = append(nodes, node)
			delete(h.until, node)
		}
	}
	return nodes
}

// followHeartbeats closes nodes that are late for placement, until ctx ends.
func (s *sources) followHeartbeats(ctx context.Context) {
	tick := time.NewTicker(beatLook)
	defer tick.Stop()
	last := monotonic()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		paused := time.Duration(monotonic()-last) - beatLook
		if last = monotonic(); paused < 2*beatLook {
			paused = 0
		}
		s.closeLate(ctx, s.beats.late(paused))
	}
}

func (s *sources) closeLate(ctx context.Context, nodes []int64) {
	for _, id := range nodes {
		name, err := s.store.nodeLapsed(ctx, id)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("node state not written", "err", err)
			}
			continue
		}
		if name != "" {
			s.log.Warn("node is not registered any more and takes no new containers: its swarmlite join is silent", "node", name)
		}
	}
}

// joined are the nodes that register themselves and are open.
func (s *store) joined(ctx context.Context) ([]int64, error) {
	return s.ids(ctx, "SELECT id FROM nodes WHERE source = 'joined' AND state <> 'removed' AND lapsed = 0")
}

// nodeLapsed closes a node whose registration is over. It returns its name, "" if it was
// closed already or is no longer one that registers itself.
func (s *store) nodeLapsed(ctx context.Context, id int64) (name string, err error) {
	err = s.write(ctx, func(t *tx) error {
		name = ""
		res, err := t.exec("UPDATE nodes SET lapsed = 1 WHERE id = ? AND source = 'joined' AND state <> 'removed' AND lapsed = 0", id)
		if err != nil {
			return err
		}
		if n, _ := res.RowsAffected(); n == 0 {
			return nil
		}
		return t.get("SELECT name FROM nodes WHERE id = ?", []any{id}, &name)
	})
	return name, err
}
