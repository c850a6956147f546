package main

import (
	"context"
	"slices"
	"sync"
	"time"
)

// mark names one thing on a node that changed and has to be read again. A "busy"
// container is one that the engine may still be changing, "update" is one whose
// reservations may have changed: the same read of a "container", with more to it;
// "look" is one of which all but that is known, with less to it.
// Reads of one thing never run side by side, or the older might have the last word.
type mark struct{ kind, id string }

// marks are the reads that a node owes: state of the connection, not of the
// cluster. One read serves a changing call and the event that follows it. While
// the whole node is listed the reads wait, so that an older list never
// overwrites a newer row.
type marks struct {
	mu      sync.Mutex
	open    bool // a session is there to do the reads
	listing bool
	waiting bool // for more to come: see gather
	todo    []mark
	state   map[mark]*markState
	running int
	looks   int // of those running
	idle    *sync.Cond
	read    func([]mark)
}

type markState struct {
	done    chan struct{}
	running bool
	ranOut  bool       // a list waited for it once in vain
	busy    bool       // the engine may not have finished its change
	look    bool       // nothing but a look was asked for: it is not waited for, and others go first
	update  bool       // what it reserves may have changed
	next    *markState // asked for again while running
}

const (
	maxReads    = 4  // reads of one node that go on at once
	maxTogether = 16 // containers that one of them is for
)

// gather is how long a read waits, unless somebody waits for it: what a client does to a
// container comes in a row, create and start and the events of both, and one read serves all.
const gather = 100 * time.Millisecond

// begin lets marks in; read does the reading, of one, or of several containers.
func (m *marks) begin(read func([]mark)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.idle == nil {
		m.idle = sync.NewCond(&m.mu)
	}
	m.open, m.waiting, m.read, m.todo, m.state = true, false, read, nil, map[mark]*markState{}
}

// end drops what is owed: the next session lists everything.
func (m *marks) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.open {
		return
	}
	m.open, m.listing = false, false
	for m.running > 0 {
		m.idle.Wait()
	}
	for _, s := range m.state {
		for ; s != nil; s = s.next {
			close(s.done)
		}
	}
	m.todo, m.state = nil, nil
}

// hold waits for reads under way and keeps new ones back until release.
func (m *marks) hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listing = true
	for m.running > 0 {
		m.idle.Wait()
	}
}

func (m *marks) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listing = false
	m.spawn()
}

// add owes a read of k; a read that has not begun yet serves this one too.
func (m *marks) add(k mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.open {
		return
	}
	busy, update, look := k.kind == "busy", k.kind == "update", k.kind == "look"
	if busy || update || look {
		k.kind = "container"
	}
	s := m.state[k]
	switch {
	case s == nil:
		s = &markState{done: make(chan struct{}), look: look}
		m.state[k] = s
		m.todo = append(m.todo, k)
	case s.running:
		if s.next == nil {
			s.next = &markState{done: make(chan struct{}), look: look}
		}
		s = s.next
	}
	s.look = s.look && look
	s.busy, s.update = s.busy || busy, s.update || update
	if !m.waiting && len(m.todo) > 0 {
		m.waiting = true
		time.AfterFunc(gather, m.hurry)
	}
}

// hurry has the reads begin that wait for more to come.
func (m *marks) hurry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting = false
	m.spawn()
}

// owes tells whether a read of k waits for its turn or is under way.
func (m *marks) owes(k mark) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state[k]
	return s != nil && (!s.look || s.next != nil)
}

// owesLater tells whether a read of container id will begin after now.
func (m *marks) owesLater(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state[mark{"container", id}]
	return s != nil && (!s.running && !s.look || s.next != nil && !s.next.look)
}

func (m *marks) spawn() {
	for m.open && !m.listing && !m.waiting && m.running < maxReads {
		i := slices.IndexFunc(m.todo, func(k mark) bool { return !m.state[k].look })
		if i < 0 && len(m.todo) > 0 && m.looks == 0 {
			i = 0
		}
		if i < 0 {
			return
		}
		ks := []mark{m.todo[i]}
		m.todo = slices.Delete(m.todo, i, i+1)
		s := m.state[ks[0]]
		if m.together(ks[0]) {
			m.todo = slices.DeleteFunc(m.todo, func(k mark) bool {
				with := len(ks) < maxTogether && m.together(k)
				if with {
					ks = append(ks, k)
				}
				return with
			})
		}
		for _, k := range ks {
			m.state[k].running = true
		}
		m.running++
		if s.look {
			m.looks++
		}
		go m.work(ks, s.busy, s.update, s.look)
	}
}

// together tells whether k can be read with others: after a burst each would wait for those before it.
func (m *marks) together(k mark) bool {
	s := m.state[k]
	return k.kind == "container" && !s.busy && !s.update && !s.look
}

func (m *marks) work(ks []mark, busy, update, look bool) {
	if update {
		m.read([]mark{{"update", ks[0].id}})
	}
	switch {
	case look:
		m.read([]mark{{"look", ks[0].id}})
	case busy:
		m.read([]mark{{"busy", ks[0].id}})
	case !update:
		m.read(ks)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	if look {
		m.looks--
	}
	for _, k := range ks {
		m.done(k)
	}
	m.spawn()
	if m.open && len(m.state) == 0 {
		// Of a node's first list there are as many as it has containers: that room is not kept.
		m.todo, m.state = nil, map[mark]*markState{}
	}
	m.idle.Broadcast()
}

func (m *marks) done(k mark) {
	s := m.state[k]
	if s == nil {
		return
	}
	close(s.done)
	if s.next != nil {
		m.state[k] = s.next
		m.todo = append(m.todo, k)
	} else {
		delete(m.state, k)
	}
}

// wait returns when the reads owed now are done, or ctx has ended. A read that
// was waited for in vain once is not waited for again. It tells whether there were any.
func (m *marks) wait(ctx context.Context) bool {
	m.mu.Lock()
	var owed []*markState
	for _, s := range m.state {
		for ; s != nil; s = s.next {
			if !s.ranOut && !s.look {
				owed = append(owed, s)
			}
		}
	}
	if len(owed) > 0 {
		m.waiting = false
		m.spawn()
	}
	m.mu.Unlock()
	for i, s := range owed {
		select {
		case <-s.done:
		case <-ctx.Done():
			m.mu.Lock()
			for _, s := range owed[i:] {
				s.ranOut = true
			}
			m.mu.Unlock()
			return true
		}
	}
	return len(owed) > 0
}
