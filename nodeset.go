package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// set makes lines the nodes of the cluster: new ones are watched, those that are not
// named any more are let go, their containers untouched. One whose TLS or name has
// changed is connected to anew, for what is read of it holds the name. It goes on behind
// nodes that cannot be used and returns why.
func (ns *nodes) set(ctx context.Context, lines []nodeLine) error {
	ns.turn.Lock()
	defer ns.turn.Unlock()
	ns.settling.Do(func() {
		ns.wg.Go(func() { ns.keepSettling(ctx) })
		ns.wg.Go(func() { ns.giveBack(ctx) })
	})
	named, err := ns.store.setNodes(ctx, lines)
	if err != nil {
		return err
	}
	ns.mu.Lock()
	var gone, again, relabelled []*watched
	for id, w := range ns.engines {
		l, ok := named[id]
		switch {
		case !ok:
			gone = append(gone, w)
		case !l.sameTLS(w.line) || l.name != w.line.name || l.renamed:
			again = append(again, w)
		default:
			if !l.equal(w.line) {
				relabelled = append(relabelled, w)
			}
			w.line = l.nodeLine
			continue
		}
		delete(ns.engines, id)
		w.cancel()
	}
	ns.mu.Unlock()
	// Before others are connected to, which may have their names, or their engines.
	for _, w := range gone {
		<-w.done
		left, err := ns.store.removeNode(ctx, w.id)
		if err != nil {
			return err
		}
		ns.log.Info("node removed", "node", w.nodeName(), "addr", w.addr, "containers_left", left)
	}
	for _, w := range again {
		<-w.done
	}
	var failed []error
	for id, l := range named {
		if ns.get(id) != nil {
			continue
		}
		if err := ns.begin(ctx, id, l.nodeLine, l.node); err != nil {
			failed = append(failed, fmt.Errorf("node %s: %w", l.address, err))
			failed = append(failed, ns.store.nodeDown(ctx, id, "unhealthy", &stepError{"prepare", err}))
		}
	}
	ns.countVersions()
	for _, w := range relabelled {
		shown, err := ns.store.showNode(ctx, w.id)
		if err != nil {
			return err
		}
		w.shown.Store(shown)
		ns.log.Info("node labelled by its line", "node", w.nodeName(), "addr", w.addr)
	}
	if len(relabelled) > 0 {
		ns.noteChange()
	}
	if len(failed) > 0 {
		return &unusableError{errors.Join(failed...)}
	}
	return nil
}

// unusableError tells of nodes that cannot be used as their lines say; others can.
type unusableError struct{ error }

// begin watches a node, which is called name until its engine has answered.
func (ns *nodes) begin(ctx context.Context, id int64, l nodeLine, name string) error {
	certs, err := ns.certsOf(ctx, l)
	if err != nil {
		return err
	}
	if l.noCheck {
		ns.log.Warn("the certificate of this engine is not checked: its line says skip-verify", "addr", l.address)
	}
	e, err := newEngine(id, l.address, certs, !l.noCheck, &ns.ssh)
	if err != nil {
		return err
	}
	if name != unheardName(l.address) {
		e.setName(name)
	}
	e.builds.all = &ns.builds
	e.location.resolver, e.metrics = ns.resolver, ns.store.metrics
	ectx, cancel := context.WithCancel(ctx)
	w := &watched{e, l, cancel, make(chan struct{})}
	ns.mu.Lock()
	ns.engines[id] = w
	ns.mu.Unlock()
	ns.wg.Go(func() {
		defer close(w.done)
		ns.watch(ectx, e)
	})
	return nil
}

// disown has the nodes that a source has named go unhealthy with this problem; nil takes
// that back.
func (ns *nodes) disown(source string, problem error) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for _, w := range ns.engines {
		if w.line.source != source {
			continue
		}
		if problem == nil {
			w.disowned.Store(nil)
			continue
		}
		w.disowned.Store(&problem)
	}
}

// certsOf are the certificates towards a node; nil: plain. Those of a directory are
// read once for all nodes that name it.
func (ns *nodes) certsOf(ctx context.Context, l nodeLine) (*certSource, error) {
	switch l.tls {
	case "":
		return ns.certs, nil
	case "off":
		return nil, nil
	}
	if certs := ns.dirs[l.tls]; certs != nil {
		return certs, nil
	}
	certs, err := newCertSource(ns.log, "engine", engineCertFiles(l.tls))
	if err != nil {
		return nil, err
	}
	ns.dirs[l.tls] = certs
	var reload <-chan struct{}
	if ns.reloads != nil {
		reload = ns.reloads()
	}
	ns.wg.Go(func() { certs.watch(ctx, reload) })
	return certs, nil
}

// remove takes a node out of the cluster until it is named anew. Without force it
// refuses one that has containers; they are not touched.
func (ns *nodes) remove(ctx context.Context, id int64, force bool) error {
	ns.turn.Lock()
	defer ns.turn.Unlock()
	left, err := ns.store.keepOut(ctx, id, force)
	if err != nil {
		return err
	}
	ns.mu.Lock()
	w := ns.engines[id]
	delete(ns.engines, id)
	ns.mu.Unlock()
	if w != nil {
		w.cancel()
		<-w.done
		ns.log.Info("node removed by docker node rm, it stays away until it is named anew", "node", w.nodeName(), "addr", w.addr, "containers_left", left)
		// Once more: its watcher may have written until now.
		_, err = ns.store.removeNode(context.WithoutCancel(ctx), id)
	}
	ns.countVersions()
	ns.noteChange()
	return err
}

// wait returns when every watcher has ended; their context must have.
func (ns *nodes) wait() {
	ns.wg.Wait()
	ns.ssh.close()
}

// get returns the engine of a node, healthy or not; nil if the node is gone.
func (ns *nodes) get(id int64) *engine {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if w := ns.engines[id]; w != nil {
		return w.engine
	}
	return nil
}

// all returns every engine, healthy or not.
func (ns *nodes) all() []*engine {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	list := make([]*engine, 0, len(ns.engines))
	for _, w := range ns.engines {
		list = append(list, w.engine)
	}
	return list
}

// firstTries waits, just after the start, until every node has been tried once.
func (ns *nodes) firstTries(ctx context.Context) {
	ns.release()
	if time.Since(start) > 2*startWait {
		return
	}
	for _, e := range ns.all() {
		e.firstTry(ctx)
	}
}

// settle waits up to a second for the reads that healthy nodes owe, so that a
// list shows what a call that has returned has changed. It tells whether there
// was anything to wait for.
func (ns *nodes) settle(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	waited := false
	for _, e := range ns.all() {
		if e.healthy.Load() && e.marks.wait(ctx) {
			waited = true
		}
	}
	return waited
}
