package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
)

// cluster is what handlers work on.
type cluster struct {
	log       *slog.Logger
	store     *store
	nodes     *nodes
	scheduler *scheduler
	names     string   // plain, both or node: how lists name containers
	infoNodes int      // that docker info shows; all of them are in the database
	everyNode bool     // -images=every-node: pull, load and import go to all nodes
	engineTLS bool     // engines are spoken to in TLS unless their line says otherwise
	named     *sources // where nodes come from
	joins     *joinLimits
	base      context.Context // outlives requests: a create is finished when its client has gone
	transfers transfers
	reads     eventReads
	relay     *portRelay // nil without -relay-ports
}

// transfers are the copies of images between nodes that run now: one for each
// image and node, shared by all who wait for it.
type transfers struct {
	mu      sync.Mutex
	running map[transferKey]*transfer
}

type transferKey struct {
	image string // normalised name, or ID
	node  int64
}

type transfer struct {
	done chan struct{}
	err  error
}

// handler answers one endpoint, or returns an error that api.serve answers.
type handler func(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error

// located is a container and the engine that has it. ref is what the engine is asked
// by: the client's own word where the engine knows it, as its messages repeat it.
type located struct {
	id, name, ref string
	*engine
}

// reader reads rows for a request.
func (c *cluster) reader(ctx context.Context) queryFunc {
	return func(query string, args ...any) (*sql.Rows, error) { return c.store.query(ctx, query, args...) }
}

// container finds a container as Docker does: by ID, name, node/name, or unique
// prefix of an ID. Two hits, made behind our back, are 400 and list the choices;
// a node that does not answer is 503.
func (c *cluster) container(ctx context.Context, ref string) (*located, error) {
	if ref == "" {
		return nil, errorf(http.StatusBadRequest, `invalid name or ID supplied: ""`)
	}
	found, err := c.lookUp(ctx, ref)
	if err == nil && len(found) == 0 {
		// It may have been made on its host a moment ago.
		c.nodes.settle(ctx)
		found, err = c.lookUp(ctx, ref)
	}
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errorf(http.StatusNotFound, "No such container: %s", ref)
	}
	if len(found) > 1 {
		var choices []string
		for _, f := range found {
			choices = append(choices, f.nodeName+"/"+f.name)
		}
		return nil, errorf(http.StatusBadRequest, "container %s is ambiguous, %d match: use %s", ref, len(found), strings.Join(choices, " or "))
	}
	f := found[0]
	e, err := c.engine(ctx, f.node)
	if err != nil {
		return nil, err
	}
	if ref = strings.TrimPrefix(ref, "/"); ref != f.name && !strings.HasPrefix(f.id, ref) {
		ref = f.id
	}
	return &located{f.id, f.name, ref, e}, nil
}

// engine returns the engine of a node if it can be asked.
func (c *cluster) engine(ctx context.Context, node int64) (*engine, error) {
	e := c.nodes.get(node)
	if e == nil {
		var name, problem string
		err := c.store.get(ctx, "SELECT name, error FROM nodes WHERE id = ? AND source = 'lost'", []any{node}, &name, &problem)
		if err == nil {
			return nil, errorf(http.StatusServiceUnavailable, "node %s is lost: %s", name, problem)
		}
		return nil, errorf(http.StatusServiceUnavailable, "the node was taken out of the cluster")
	}
	c.nodes.release()
	e.firstTry(ctx)
	return e, usable(e)
}

type foundContainer struct {
	id, name, nodeName string
	node               int64
}

func (c *cluster) lookUp(ctx context.Context, ref string) ([]foundContainer, error) {
	const columns = "SELECT c.container_id, c.name, n.name, n.id FROM containers c JOIN nodes n ON n.id = c.node_id WHERE "
	bare := strings.TrimPrefix(ref, "/")
	node, name, slash := strings.Cut(bare, "/")
	type look struct {
		where string
		args  []any
	}
	var looks []look
	if len(ref) == 64 {
		looks = append(looks, look{"c.container_id = ?", []any{ref}})
	}
	looks = append(looks, look{"c.name = ?", []any{bare}})
	if slash {
		looks = append(looks, look{"n.name = ? AND (c.name = ? OR c.container_id = ?)", []any{node, name, name}})
	}
	if len(ref) == 64 {
		looks = append(looks, look{"c.swarm_id = ? AND c.swarm_id <> '' AND NOT EXISTS (SELECT 1 FROM moves m WHERE m.container_id = c.container_id AND m.outcome = 'moved')", []any{ref}})
	}
	if isHex(ref) && len(ref) < 64 {
		// A range on the index, not LIKE: a name that holds % must match nothing.
		looks = append(looks, look{"c.container_id >= ? AND c.container_id < ?", []any{ref, ref + "g"}})
	}
	for _, l := range looks {
		found, err := c.findContainers(ctx, columns+l.where+" LIMIT 10", l.args)
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	return nil, nil
}

func (c *cluster) findContainers(ctx context.Context, query string, args []any) ([]foundContainer, error) {
	rows, err := c.store.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []foundContainer
	for rows.Next() {
		var f foundContainer
		if err := rows.Scan(&f.id, &f.name, &f.nodeName, &f.node); err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	return found, rows.Err()
}

// healthyEngines lists the engines that can be asked.
func (c *cluster) healthyEngines() []*engine {
	var list []*engine
	for _, e := range c.nodes.all() {
		if e.healthy.Load() {
			list = append(list, e)
		}
	}
	return list
}

// oneLine is an error for a log attribute.
func oneLine(err error) string { return strings.ReplaceAll(fmt.Sprint(err), "\n", " ") }
