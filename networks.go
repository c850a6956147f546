package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// network is what a reference of a client's names: one network, on one node, or on
// several if it is built in or a swarm's.
type network struct {
	name, scope string
	places      []networkPlace
}

// network finds a network as Docker does. Two that match are 400 in Docker's
// words; extra is told behind them.
func (c *cluster) network(ctx context.Context, ref, scope, extra string) (*network, error) {
	find := func() ([]networkPlace, string, error) {
		places, by, err := findNetworks(c.reader(ctx), ref)
		if scope != "" {
			places = slices.DeleteFunc(places, func(p networkPlace) bool { return p.scope != scope })
		}
		return places, by, err
	}
	places, by, err := find()
	if err == nil && len(places) != 1 {
		// It may have been made on its host a moment ago, or another of its name removed.
		c.nodes.settle(ctx)
		places, by, err = find()
	}
	if err != nil {
		return nil, err
	}
	if len(places) == 0 {
		return nil, errorf(http.StatusNotFound, "network %s not found", ref)
	}
	n := &network{places[0].name, places[0].scope, places}
	if by == "name" && slices.Contains(builtinNetworks, n.name) {
		return n, nil
	}
	var choices []string
	for i, p := range places {
		choice := p.nodeName + "/" + p.name
		switch {
		case p.scope != "local" && i > 0 && p.id == places[0].id:
			continue // the same network, as another node has it
		case by == "node" || slices.Contains(choices, choice):
			choice = p.id
		}
		choices = append(choices, choice)
	}
	if len(choices) == 1 {
		return n, nil
	}
	msg := fmt.Sprintf("network %s is ambiguous (%d matches found based on %s)", ref, len(choices), matchedBy(by))
	if extra != "" {
		msg += ": " + extra + " " + strings.Join(choices, " or ")
	}
	return nil, errorf(http.StatusBadRequest, "%s", msg)
}

// matchedBy is how Docker tells what a reference was matched by.
func matchedBy(by string) string {
	if by == "ID prefix" {
		return by
	}
	return "name"
}

// askable are the engines that list the network and can be asked, managers of its
// swarm first.
func (c *cluster) askable(ctx context.Context, n *network) (list []*engine, ids []string, err error) {
	for _, managers := range []bool{true, false} {
		for _, p := range n.places {
			e, problem := c.engine(ctx, p.node)
			switch {
			case p.manager != managers:
			case problem != nil:
				err = problem
			case p.listed:
				list, ids = append(list, e), append(ids, p.id)
			}
		}
	}
	if len(list) > 0 {
		err = nil
	}
	return list, ids, err
}

func networkPath(id, suffix string) string { return "/networks/" + url.PathEscape(id) + suffix }

// networkInspect asks the node that has the network. What is on several nodes,
// built in or a swarm's, is answered with the containers and peers of all.
func networkInspect(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	n, err := c.network(r.Context(), call.name, call.query.Get("scope"), "")
	if err != nil {
		return err
	}
	if n.scope != "local" && len(n.places) == 1 {
		// Which workers use it may have changed with the call before this one.
		c.nodes.settle(r.Context())
		if n, err = c.network(r.Context(), call.name, call.query.Get("scope"), ""); err != nil {
			return err
		}
	}
	engines, ids, err := c.askable(r.Context(), n)
	if err != nil {
		return err
	}
	switch {
	case len(engines) == 0: // of a swarm without a manager here, and unused
		var summary string
		err := c.store.get(r.Context(), "SELECT summary FROM networks WHERE node_id = ? AND network_id = ?", []any{n.places[0].node, n.places[0].id}, &summary)
		if errors.Is(err, errNotFound) {
			return errorf(http.StatusNotFound, "network %s not found", call.name)
		}
		if err != nil {
			return err
		}
		return writeJSON(w, json.RawMessage(summary))
	case len(engines) == 1 && ids[0] == n.places[0].id:
		return (&relay{engine: engines[0], path: networkPath(ids[0], "")}).run(w, r, call)
	}
	found := make([]object, len(engines))
	errs := make([]error, len(engines))
	var g errgroup.Group
	g.SetLimit(64)
	for i, e := range engines {
		g.Go(func() error {
			resp, err := e.exchange(r.Context(), http.MethodGet, e.url(call.version, networkPath(ids[i], ""), call.query.Encode()), nil, nil, read)
			if err == nil && resp.status != http.StatusOK {
				err = errorf(resp.status, "%s", engineMessage(bytes.NewReader(resp.body)))
			}
			if err == nil {
				found[i], err = parseObject(resp.body)
			}
			errs[i] = err
			return nil
		})
	}
	g.Wait()
	merged, err := mergeInspects(found)
	if err != nil {
		return err
	}
	if merged == nil {
		return asAnswer(errs[0], false)
	}
	for i, err := range errs {
		if err != nil && statusOf(err) != http.StatusNotFound {
			c.log.Warn("network inspected without one node", "network", n.name, "node", engines[i].nodeName(), "err", oneLine(err))
		}
	}
	return writeJSON(w, json.RawMessage(merged.replace("Id", []byte(jsonText(n.places[0].id))).bytes()))
}

// mergeInspects is the first inspect with the containers and peers of all; nil if there is none.
func mergeInspects(found []object) (object, error) {
	var merged, containers object
	var peers []json.RawMessage
	seen := map[string]bool{}
	for _, o := range found {
		if o == nil {
			continue
		}
		if merged == nil {
			merged = o
		}
		here, err := parseObject(o.get("Containers"))
		if err != nil {
			return nil, err
		}
		for _, m := range here {
			if containers.get(m.key) == nil { // lb-… is on every node of a swarm
				containers = append(containers, m)
			}
		}
		var list []json.RawMessage
		if raw := o.get("Peers"); raw != nil {
			if err := json.Unmarshal(raw, &list); err != nil {
				return nil, err
			}
		}
		for _, p := range list {
			if !seen[string(p)] {
				seen[string(p)] = true
				peers = append(peers, p)
			}
		}
	}
	if merged == nil {
		return nil, nil
	}
	merged = merged.replace("Containers", containers.bytes())
	if peers != nil {
		raw, err := json.Marshal(peers)
		if err != nil {
			return nil, err
		}
		merged = merged.replace("Peers", raw)
	}
	return merged, nil
}

// networkBody is what placement reads of a network create.
type networkBody struct {
	Name, Driver, Scope string
	Labels              map[string]string
	ConfigFrom          struct{ Network string }
}

// networkCreate makes a network on one node, picked as for a container; a swarm's
// on a manager of it.
func networkCreate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	var body networkBody
	if err := decodeBody(data, &body); err != nil {
		return err
	}
	load := &workload{kind: "network", name: body.Name, driver: body.Driver, version: call.version, labels: body.Labels,
		swarm: body.Driver == "overlay" || body.Scope == "swarm"}
	if body.ConfigFrom.Network != "" {
		load.networks = []string{body.ConfigFrom.Network}
	}
	if data, err = c.readThing(r.Context(), load, data); err != nil {
		return err
	}
	body.Name = load.name
	return c.detached(w, r, func(ctx context.Context) (*created, error) {
		return c.make(ctx, r.Header, call, load, "/networks/create", data, func(t *tx, p *placement, answer []byte) (mark, error) {
			return t.madeNetwork(p.node, &body, answer)
		})
	})
}

// madeNetwork writes the row of a network as its create described it, until the
// engine's own entry is read.
func (t *tx) madeNetwork(node int64, body *networkBody, answer []byte) (mark, error) {
	var made struct{ Id string }
	if err := json.Unmarshal(answer, &made); err != nil || made.Id == "" {
		return mark{}, errorf(http.StatusBadGateway, "the engine answered a create without an Id")
	}
	k := mark{"network", made.Id}
	err := t.get("SELECT 1 FROM networks WHERE node_id = ? AND network_id = ?", []any{node, made.Id}, new(int))
	if !errors.Is(err, errNotFound) {
		return k, err // its event was faster
	}
	if err := t.get("SELECT 1 FROM nodes WHERE id = ? AND state <> 'removed'", []any{node}, new(int)); err != nil {
		if errors.Is(err, errNotFound) {
			err = nil // its node was taken out of the cluster meanwhile
		}
		return k, err
	}
	driver, scope := body.Driver, "local"
	if driver == "" {
		driver = "bridge"
	}
	if driver == "overlay" || body.Scope == "swarm" {
		scope = "swarm"
	}
	labels := body.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	_, err = t.putNetworkRow(node, json.RawMessage(jsonText(map[string]any{"Name": body.Name, "Id": made.Id, "Driver": driver, "Scope": scope,
		"Created": time.Now().UTC().Format(time.RFC3339Nano), "Labels": labels, "Containers": map[string]any{}, "Options": map[string]any{}})), nil)
	return k, err
}

// networkRemove sends a removal to the node that has the network; a swarm's to a
// manager of it. A name that several nodes hold is refused: it could mean any.
func networkRemove(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	n, err := c.network(r.Context(), call.name, "", "use")
	if err != nil {
		return err
	}
	if n.scope == "local" && len(n.places) > 1 && !slices.Contains(predefinedNetworks, n.name) {
		var nodes []string
		for _, p := range n.places {
			nodes = append(nodes, p.nodeName)
		}
		return severalNodes("network", n.name, nodes)
	}
	asked := *n
	if managers := slices.DeleteFunc(slices.Clone(n.places), func(p networkPlace) bool { return !p.manager }); n.scope != "local" && len(managers) > 0 {
		asked.places = managers
	}
	engines, ids, err := c.askable(r.Context(), &asked)
	if err != nil {
		return err
	}
	if len(engines) == 0 {
		return errorf(http.StatusNotFound, "network %s not found", call.name)
	}
	rl := &relay{engine: engines[0], path: networkPath(ids[0], ""), patience: change, answered: func(status int) {
		if n.scope != "local" && status < 300 && status > 0 {
			c.letGo(r.Context(), n)
		}
		for _, p := range n.places {
			if e := c.nodes.get(p.node); e != nil {
				e.marks.add(mark{"network", p.id})
			}
		}
		if status >= 200 && status < 300 && n.scope == "local" {
			// The name is free when this returns. Of a swarm's networks the nodes tell, see letGo.
			c.dropThing("network", engines[0], func(t *tx) error { return t.dropNetwork(engines[0].id, ids[0]) })
		}
	}}
	return rl.run(w, r, call)
}

// letGo waits, up to a second, until no engine lists a network of a swarm that its
// manager has removed: each hears of it, and says so, a moment later.
func (c *cluster) letGo(ctx context.Context, n *network) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for _, p := range n.places {
		for e := c.nodes.get(p.node); e != nil && e.healthy.Load(); {
			var found []json.RawMessage
			if err := e.getJSON(ctx, "/networks", filterQuery("id", p.id), &found); err != nil || len(found) == 0 {
				break
			}
			select {
			case <-again.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// severalNodes refuses to remove what has the same name on several nodes.
func severalNodes(kind, name string, nodes []string) error {
	return errorf(http.StatusBadRequest, "%s %s is on %d nodes: use %s/%s", kind, name, len(nodes), strings.Join(nodes, "/"+name+" or "), name)
}

// networkConnect and disconnect go to the engine of the container.
func networkConnect(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	var body struct {
		Container string
		Force     bool
	}
	if err := decodeBody(data, &body); err != nil {
		return err
	}
	ref := call.name
	suffix := strings.TrimPrefix(r.URL.Path, "/networks/"+ref)
	at, err := c.container(r.Context(), body.Container)
	if statusOf(err) == http.StatusNotFound && body.Force {
		// An engine takes an endpoint off a network though its container is gone.
		n, err := c.network(r.Context(), ref, "", "use")
		if err != nil {
			return err
		}
		engines, ids, err := c.askable(r.Context(), n)
		if err != nil || len(engines) != 1 {
			return errorf(http.StatusNotFound, "No such container: %s", body.Container)
		}
		return c.networkChange(w, r, call, engines[0], ids[0], suffix, data, "")
	}
	if err != nil {
		return err
	}
	id, err := c.networkAt(r.Context(), ref, at)
	if err != nil {
		return err
	}
	if body.Container != at.id && strings.TrimPrefix(body.Container, "/") != at.name {
		o, err := parseObject(data)
		if err != nil {
			return errorf(http.StatusBadRequest, "invalid JSON: %v", err)
		}
		data = o.with("Container", at.id).bytes()
	}
	return c.networkChange(w, r, call, at.engine, id, suffix, data, at.id)
}

// networkChange relays a connect or disconnect. A container that does not run gives
// no event, so it is read again as well.
func (c *cluster) networkChange(w http.ResponseWriter, r *http.Request, call *call, e *engine, id, suffix string, data []byte, container string) error {
	rl := &relay{engine: e, path: networkPath(id, suffix), patience: change, body: bytes.NewReader(data), length: int64(len(data)), answered: func(int) {
		e.marks.add(mark{"network", id})
		if container != "" {
			e.marks.add(mark{"container", container})
		}
	}}
	return rl.run(w, r, call)
}

// networkAt is the ID that ref's network has on the node of a container.
func (c *cluster) networkAt(ctx context.Context, ref string, at *located) (id string, err error) {
	find := func() ([]networkPlace, string, error) {
		return findNetworks(c.reader(ctx), ref)
	}
	places, by, err := find()
	if err == nil && len(places) == 0 {
		c.nodes.settle(ctx)
		places, by, err = find()
	}
	if err != nil {
		return "", err
	}
	if len(places) == 0 {
		return "", errorf(http.StatusNotFound, "network %s not found", ref)
	}
	if slices.Contains(builtinNetworks, places[0].name) && places[0].scope == "local" {
		return places[0].name, nil // whatever node's ID it was called by
	}
	var swarm string
	if err := c.store.get(ctx, "SELECT docker_swarm FROM nodes WHERE id = ?", []any{at.engine.id}, &swarm); err != nil {
		return "", err
	}
	here := map[string]bool{}
	for _, p := range places {
		if p.node == at.engine.id || p.scope == "swarm" && p.swarm == swarm || p.scope == "global" {
			here[p.id] = true
			id = p.id
		}
	}
	switch {
	case len(here) > 1:
		return "", errorf(http.StatusBadRequest, "network %s is ambiguous (%d matches found based on %s)", ref, len(here), matchedBy(by))
	case len(here) == 1:
		return id, nil
	case places[0].scope == "swarm":
		return "", errorf(http.StatusBadRequest, "network %s is of a swarm that node %s, with container %s, is not in", ref, at.nodeName(), at.name)
	}
	return "", errorf(http.StatusBadRequest, "network %s is on node %s, container %s is on node %s, where a local network does not reach: make the network there (%s/%s)",
		ref, places[0].nodeName, at.name, at.nodeName(), at.nodeName(), places[0].name)
}
