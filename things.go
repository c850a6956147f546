package main

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"time"
)

// Networks and volumes are made alike: placed like a container, on one node.

// readThing reads what steers a network or volume: expressions in its labels, and
// a node before its name (node/name), which is cut from the body.
func (c *cluster) readThing(ctx context.Context, load *workload, data []byte) ([]byte, error) {
	load.swarmID = newSwarmID()
	texts, err := labelExpressions(load.labels)
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "%v", err)
	}
	for kind, list := range texts {
		if err := load.addExpressions(kind, list); err != nil {
			return nil, errorf(http.StatusBadRequest, "%v", err)
		}
	}
	node, name, ok, err := cutNode(c.reader(ctx), load.name)
	if err != nil || !ok {
		return data, err
	}
	load.name = name
	load.constraints = append(load.constraints, expr{key: "node", value: node})
	o, err := parseObject(data)
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	return o.with("Name", name).bytes(), nil
}

// cutNode splits node/name if its first part is the name of a node.
func cutNode(query queryFunc, ref string) (node, name string, ok bool, err error) {
	node, name, ok = strings.Cut(ref, "/")
	if !ok || node == "" || name == "" {
		return "", ref, false, nil
	}
	rows, err := query("SELECT 1 FROM nodes WHERE name = ? AND state <> 'removed'", node)
	if err != nil {
		return "", ref, false, err
	}
	defer rows.Close()
	if !rows.Next() {
		return "", ref, false, rows.Err()
	}
	return node, name, true, nil
}

// detached does work that goes on though the client leaves, as engines finish what they began.
func (c *cluster) detached(w http.ResponseWriter, r *http.Request, work func(context.Context) (*created, error)) error {
	resp, err := work(context.WithoutCancel(r.Context()))
	if err != nil {
		return asRefusal(asAnswer(err, true))
	}
	copyAnswerHeaders(w.Header(), resp.header)
	w.WriteHeader(resp.status)
	w.Write(resp.body)
	return nil
}

// make places a network or volume and has the picked engine create it; another
// engine is asked only while it is sure that nothing was sent. made writes its row
// from the engine's answer, before the client hears of it, and says what to read again.
func (c *cluster) make(ctx context.Context, header http.Header, call *call, load *workload, path string, data []byte,
	made func(*tx, *placement, []byte) (mark, error)) (*created, error) {
	for {
		p, err := c.scheduler.place(ctx, load)
		if err != nil && c.awaitSilent(ctx, load, err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e := c.nodes.get(p.node)
		if e == nil || !c.answers(ctx, e, load) {
			if err := c.passOver(ctx, load, p, "no answer to a ping", 0); err != nil {
				return nil, err
			}
			continue
		}
		began := time.Now()
		resp, err := e.exchange(ctx, http.MethodPost, e.url(call.version, path, call.query.Encode()), header, data, change)
		took := time.Since(began)
		if err != nil {
			if err := c.notAnswered(ctx, load, p, err, took); err != nil {
				return nil, err
			}
			continue
		}
		if resp.status != http.StatusCreated {
			return resp, c.release(ctx, p, "failed", engineMessage(bytes.NewReader(resp.body)), took)
		}
		if err := c.madeRow(ctx, e, p, took, func(t *tx) (mark, error) { return made(t, p, resp.body) }); err != nil {
			c.unknown(p, err, took)
			return nil, err
		}
		return resp, nil
	}
}

// madeRow turns a reservation into the row of a network or volume. The read that is
// owed before the row is written keeps a list under way from dropping it.
func (c *cluster) madeRow(ctx context.Context, e *engine, p *placement, took time.Duration, made func(*tx) (mark, error)) error {
	return c.store.write(ctx, func(t *tx) error {
		k, err := made(t)
		if err != nil {
			return err
		}
		if k.kind != "" {
			e.marks.add(k)
		}
		if _, err := t.exec("DELETE FROM reservations WHERE id = ?", p.reservation); err != nil {
			return err
		}
		_, err = t.exec("UPDATE placements SET outcome = 'created', engine_us = ? WHERE id = ?", took.Microseconds(), p.id)
		return err
	})
}

// dropThing takes the row of a network or volume away that its engine has just removed.
// The mark made before it has the engine read again, which puts right what this cannot.
func (c *cluster) dropThing(kind string, e *engine, drop func(*tx) error) {
	if err := c.store.write(c.base, drop); err != nil {
		c.log.Warn("removal not written", "node", e.nodeName(), "kind", kind, "err", err)
	}
}
