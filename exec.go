package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// execCreate remembers which node has the exec before its ID is passed on, so
// that it outlives a restart of the manager.
func execCreate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	rl := &relay{engine: at.engine, path: containerPath(r, call, at), patience: change, editStatus: http.StatusCreated,
		edit: func(data []byte) ([]byte, error) {
			var answer struct{ Id string }
			if err := json.Unmarshal(data, &answer); err != nil {
				return nil, err
			}
			return data, c.store.putExec(c.base, answer.Id, at.engine.id, at.id)
		}}
	return rl.run(w, r, call)
}

// keptExecs is how long an exec's node is remembered, in seconds; engines forget
// theirs with the container or at a restart.
const keptExecs = 7 * 24 * 3600

func (s *store) putExec(ctx context.Context, id string, node int64, container string) error {
	return s.write(ctx, func(t *tx) error {
		if _, err := t.exec("DELETE FROM execs WHERE made_at < CAST(strftime('%s','now') AS INTEGER) - ?", keptExecs); err != nil {
			return err
		}
		_, err := t.exec("INSERT OR REPLACE INTO execs (exec_id, node_id, container_id) VALUES (?,?,?)", id, node, container)
		return err
	})
}

// execEngine finds the engine that has an exec: by its row, else by asking every
// healthy node. It is 404 only when all of them say so.
func (c *cluster) execEngine(ctx context.Context, id string) (*engine, error) {
	var node int64
	err := c.store.get(ctx, "SELECT node_id FROM execs WHERE exec_id = ?", []any{id}, &node)
	if err == nil {
		return c.engine(ctx, node)
	}
	if !errors.Is(err, errNotFound) {
		return nil, err
	}
	c.nodes.firstTries(ctx)
	type reply struct {
		*engine
		err error
	}
	engines := c.healthyEngines()
	replies := make(chan reply, len(engines))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, e := range engines {
		go func() {
			body, err := e.get(ctx, "/exec/"+url.PathEscape(id)+"/json", "")
			if err == nil {
				body.Close()
			}
			replies <- reply{e, err}
		}()
	}
	unknown := errorf(http.StatusNotFound, "No such exec instance: %s", id)
	for range engines {
		switch r := <-replies; {
		case r.err == nil:
			return r.engine, nil
		case errors.As(r.err, new(*engineError)):
			unknown = asAnswer(r.err, false)
		case !errors.Is(r.err, errNotFound):
			unknown = errorf(http.StatusBadGateway, "node %s: %v", r.nodeName(), r.err)
		}
	}
	return nil, unknown
}

func execPath(r *http.Request, call *call) string {
	return "/exec/" + url.PathEscape(call.name) + strings.TrimPrefix(r.URL.Path, "/exec/"+call.name)
}

// execPass relays exec inspect and resize.
func execPass(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	e, err := c.execEngine(r.Context(), call.name)
	if err != nil {
		return err
	}
	return (&relay{engine: e, path: execPath(r, call)}).run(w, r, call)
}

// execStart joins the client and the exec's streams, or starts it detached. The
// body goes to the engine whole and never into the exec's input.
func execStart(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	closeAfter(w)
	e, err := c.execEngine(r.Context(), call.name)
	if err != nil {
		return err
	}
	body, err := readBody(r)
	if err != nil {
		return err
	}
	return (&hijack{engine: e, path: execPath(r, call), protocol: "tcp", body: body}).run(w, r, call)
}
