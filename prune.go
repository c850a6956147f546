package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// exchange sends a request to the engine and reads its answer whole.
func (e *engine) exchange(ctx context.Context, method, address string, header http.Header, data []byte, p patience) (*created, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	copyHeaders(req.Header, header)
	resp, err := e.do(req, p)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lim := &io.LimitedReader{R: resp.Body, N: maxAnswer + 1}
	body, err := io.ReadAll(lim)
	if err == nil && lim.N <= 0 {
		err = fmt.Errorf("over %d MiB", maxAnswer>>20)
	}
	if err != nil {
		return nil, &engineError{e.nodeName(), method + " " + req.URL.Path, true, false, err}
	}
	return &created{resp.StatusCode, resp.Header, body}, nil
}

// toAll is one call that is put to every node, its answers merged into one.
type toAll struct {
	path string
	// query is the client's for this engine; an error leaves the engine out.
	query func(e *engine, v apiVersion) (url.Values, error)
	// shape makes an answer fit for merging; nil: as it is.
	shape func(e *engine, answer object) (object, error)
	// once is the key of a list in the merged answer that has nothing twice.
	once string
	// changed marks what an answer says to have changed.
	changed func(e *engine, answer []byte)
}

// run puts the call to every healthy node that the client's filters allow. Nodes that
// cannot be asked, or refuse while others do not, are named as Warnings in the answer.
func (a *toAll) run(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	engines, left, err := c.nodesAsked(call)
	if err != nil {
		return err
	}
	if len(engines) == 0 {
		return errorf(http.StatusServiceUnavailable, "no node can be asked: %s", strings.Join(left, ", "))
	}
	// Without a version each engine would answer as its own highest: they must agree.
	v := call.version
	if v == 0 {
		v = c.nodes.fleet.Load().highest
	}
	type result struct {
		resp *created
		err  error
	}
	results := make([]result, len(engines))
	var g errgroup.Group
	g.SetLimit(64)
	for i, e := range engines {
		g.Go(func() error {
			query, err := a.query(e, v)
			if err != nil {
				results[i].err = err
				return nil
			}
			results[i].resp, results[i].err = e.exchange(r.Context(), r.Method, e.url(v, a.path, query.Encode()), r.Header, nil, change)
			if results[i].err == nil && results[i].resp.status == http.StatusOK && a.changed != nil {
				a.changed(e, results[i].resp.body)
			}
			return nil
		})
	}
	g.Wait()
	var answers []object
	var header http.Header
	var refused *created
	for i, res := range results {
		name := engines[i].nodeName()
		err := res.err
		if err == nil && res.resp.status != http.StatusOK {
			refused = res.resp
			err = errors.New(engineMessage(bytes.NewReader(res.resp.body)))
		}
		var o object
		if err == nil {
			o, err = parseObject(res.resp.body)
		}
		if err == nil && a.shape != nil {
			o, err = a.shape(engines[i], o)
		}
		if err != nil {
			left = append(left, name+": "+oneLine(err))
			continue
		}
		header = res.resp.header
		answers = append(answers, o)
	}
	if len(answers) == 0 {
		if refused != nil {
			copyAnswerHeaders(w.Header(), refused.header)
			w.WriteHeader(refused.status)
			w.Write(refused.body)
			return nil
		}
		return asAnswer(results[0].err, r.Method != http.MethodGet)
	}
	merged := mergeAnswers(answers)
	if a.once != "" && merged.get(a.once) != nil {
		merged = merged.replace(a.once, withoutDoubles(merged.get(a.once)))
	}
	if len(left) > 0 {
		warnings := make([]string, len(left))
		for i, l := range left {
			warnings[i] = "left out: " + l
		}
		c.log.Warn("not all nodes answered", "path", a.path, "left_out", strings.Join(left, ", "))
		merged = merged.with("Warnings", warnings)
	}
	copyAnswerHeaders(w.Header(), header)
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(merged.bytes())
	return err
}

// nodesAsked are the engines that a call to all goes to, and those that cannot be
// asked, with the reason. The filter node is ours and is taken out of the query.
func (c *cluster) nodesAsked(call *call) (engines []*engine, left []string, err error) {
	f, err := parseFilters(call.query)
	if err != nil {
		return nil, nil, err
	}
	only := f["node"]
	if call.query, err = withoutFilter(call.query, "node"); err != nil {
		return nil, nil, err
	}
	all := c.nodes.all()
	slices.SortFunc(all, func(a, b *engine) int { return int(a.id - b.id) })
	for _, e := range all {
		if len(only) > 0 && !slices.Contains(only, e.nodeName()) {
			continue
		}
		if err := usable(e); err != nil {
			left = append(left, err.Error())
			continue
		}
		engines = append(engines, e)
	}
	return engines, left, nil
}

// withoutFilter takes a filter out of a query; the others stay as they came.
func withoutFilter(q url.Values, key string) (url.Values, error) {
	o, err := parseObject([]byte(q.Get("filters")))
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "invalid filter")
	}
	if o.get(key) == nil {
		return q, nil
	}
	q = cloneQuery(q)
	q.Set("filters", string(o.without(key).bytes()))
	return q, nil
}

// sameQuery passes the client's query on.
func sameQuery(call *call) func(*engine, apiVersion) (url.Values, error) {
	return func(*engine, apiVersion) (url.Values, error) { return call.query, nil }
}

// mergeAnswers makes one JSON object of several: numbers are added, lists put one
// behind the other, objects merged, and of anything else the first stands.
func mergeAnswers(answers []object) object {
	merged := answers[0]
	for _, next := range answers[1:] {
		for _, m := range next {
			merged = merged.replace(m.key, mergeValues(merged.get(m.key), m.value))
		}
	}
	return merged
}

func mergeValues(a, b json.RawMessage) json.RawMessage {
	a, b = bytes.TrimSpace(a), bytes.TrimSpace(b)
	switch {
	case len(a) == 0 || string(a) == "null":
		return b
	case len(b) == 0 || a[0] == '"' || a[0] == 't' || a[0] == 'f' || string(b) == "null":
		return a
	case a[0] == '[' && b[0] == '[':
		var x, y []json.RawMessage
		if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
			return a
		}
		return json.RawMessage(jsonText(append(x, y...)))
	case a[0] == '{' && b[0] == '{':
		x, errX := parseObject(a)
		y, errY := parseObject(b)
		if errX != nil || errY != nil {
			return a
		}
		return mergeAnswers([]object{x, y}).bytes()
	}
	x, okX := new(big.Int).SetString(string(a), 10)
	y, okY := new(big.Int).SetString(string(b), 10)
	if !okX || !okY {
		return a
	}
	return json.RawMessage(x.Add(x, y).String())
}

// withoutDoubles is a JSON list without the items that stand in it already.
func withoutDoubles(list json.RawMessage) json.RawMessage {
	var items []json.RawMessage
	if json.Unmarshal(list, &items) != nil || items == nil {
		return list
	}
	seen := map[string]bool{}
	return json.RawMessage(jsonText(slices.DeleteFunc(items, func(item json.RawMessage) bool {
		double := seen[string(item)]
		seen[string(item)] = true
		return double
	})))
}

// containerPrune removes the stopped containers of all nodes.
func containerPrune(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return (&toAll{path: "/containers/prune", query: sameQuery(call), changed: func(e *engine, answer []byte) {
		var gone struct{ ContainersDeleted []string }
		json.Unmarshal(answer, &gone)               // of an odd shape: the events tell
		for _, id := range gone.ContainersDeleted { // first: an older read under way must not bring the row back
			e.marks.add(mark{"container", id})
		}
		if err := c.store.dropContainers(c.base, e.id, gone.ContainersDeleted); err != nil {
			c.log.Error("rows of pruned containers not deleted", "node", e.nodeName(), "err", err)
		}
		c.nodes.noteChange()
	}}).run(c, w, r, call)
}

// dropContainers forgets containers at once: their names are free when the prune returns.
func (s *store) dropContainers(ctx context.Context, node int64, ids []string) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM containers WHERE node_id = ? AND container_id IN (SELECT value FROM json_each(?))", node, jsonText(append([]string{}, ids...)))
		return err
	})
}

// networkPrune removes the unused networks of all nodes.
func networkPrune(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return (&toAll{path: "/networks/prune", query: sameQuery(call), changed: func(e *engine, answer []byte) {
		var gone struct{ NetworksDeleted []string }
		json.Unmarshal(answer, &gone) // of an odd shape: the events tell
		ids, err := c.store.networkIDs(r.Context(), e.id, gone.NetworksDeleted)
		if err != nil {
			c.log.Warn("networks not read again", "node", e.nodeName(), "err", err)
		}
		for _, id := range ids {
			e.marks.add(mark{"network", id})
		}
	}}).run(c, w, r, call)
}

// networkIDs are the IDs that networks of these names have on a node.
func (s *store) networkIDs(ctx context.Context, node int64, names []string) ([]string, error) {
	return s.strings(ctx, "SELECT network_id FROM networks WHERE node_id = ? AND name IN (SELECT value FROM json_each(?))", node, jsonText(names))
}

// anonymousOnly is the first version in which a volume prune spares named volumes
// unless the filter all asks for them.
const anonymousOnly = apiVersion(1042)

// volumePrune removes the unused volumes of all nodes. An engine that is too old to
// spare named volumes is not asked to prune by a client that wants them spared.
func volumePrune(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	query := func(e *engine, v apiVersion) (url.Values, error) {
		_, highest := e.versions()
		if v < anonymousOnly || highest >= anonymousOnly {
			return call.query, nil
		}
		f, err := parseFilters(call.query)
		if err != nil {
			return nil, err
		}
		yes := false
		switch all := f["all"]; len(all) {
		case 0:
		case 1:
			if yes, err = strconv.ParseBool(all[0]); err != nil {
				return nil, errorf(http.StatusBadRequest, "invalid filter 'all': %v", err)
			}
		default:
			return nil, errorf(http.StatusBadRequest, "invalid filter 'all=%s': only one value is expected", all)
		}
		if !yes {
			return nil, fmt.Errorf("its engine (API %s) would remove named volumes as well: prune with the filter all=true, or that node by itself", highest)
		}
		return withoutFilter(call.query, "all")
	}
	return (&toAll{path: "/volumes/prune", query: query, changed: func(e *engine, answer []byte) {
		var gone struct{ VolumesDeleted []string }
		json.Unmarshal(answer, &gone) // of an odd shape: the events tell
		for _, name := range gone.VolumesDeleted {
			e.marks.add(mark{"volume", name})
		}
	}}).run(c, w, r, call)
}

// pluginList shows the plugins of all nodes, each once.
func pluginList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	engines, left, err := c.nodesAsked(call)
	if err != nil {
		return err
	}
	if len(engines) == 1 && len(left) == 0 {
		return (&relay{engine: engines[0], path: "/plugins"}).run(w, r, call)
	}
	lists := make([]*created, len(engines))
	errs := make([]error, len(engines))
	var g errgroup.Group
	g.SetLimit(64)
	for i, e := range engines {
		g.Go(func() error {
			lists[i], errs[i] = e.exchange(r.Context(), http.MethodGet, e.url(call.version, "/plugins", call.query.Encode()), r.Header, nil, read)
			return nil
		})
	}
	g.Wait()
	merged := []json.RawMessage{}
	seen := map[string]bool{}
	answered := false
	for i, l := range lists {
		var list []json.RawMessage
		if errs[i] == nil && l.status == http.StatusOK {
			errs[i] = json.Unmarshal(l.body, &list)
		} else if errs[i] == nil {
			errs[i] = errorf(l.status, "%s", engineMessage(bytes.NewReader(l.body)))
		}
		if errs[i] != nil {
			c.log.Warn("plugins listed without one node", "node", engines[i].nodeName(), "err", oneLine(errs[i]))
			continue
		}
		answered = true
		for _, raw := range list {
			var p struct{ Id, Name string }
			if json.Unmarshal(raw, &p) == nil && !seen[p.Name] {
				seen[p.Name] = true
				merged = append(merged, raw)
			}
		}
	}
	if !answered && len(engines) > 0 {
		return asAnswer(errs[0], false)
	}
	return writeJSON(w, merged)
}
