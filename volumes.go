package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// volumePlace is a volume as one node has it.
type volumePlace struct {
	node                  int64
	nodeName, name, scope string
}

// findVolumes finds the places of a volume, the oldest first: by name, else by node/name.
func (c *cluster) findVolumes(ctx context.Context, ref string) (places []volumePlace, err error) {
	node, name, slash := strings.Cut(ref, "/")
	for _, look := range []struct {
		where string
		args  []any
		on    bool
	}{{"v.name = ?", []any{ref}, true}, {"n.name = ? AND v.name = ?", []any{node, name}, slash}} {
		if !look.on || len(places) > 0 {
			continue
		}
		rows, err := c.store.query(ctx, "SELECT v.node_id, n.name, v.name, v.scope FROM volumes v JOIN nodes n ON n.id = v.node_id WHERE "+
			look.where+" ORDER BY "+oldestFirst, look.args...)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var p volumePlace
			if err := rows.Scan(&p.node, &p.nodeName, &p.name, &p.scope); err != nil {
				rows.Close()
				return nil, err
			}
			places = append(places, p)
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
	}
	return places, nil
}

// volume finds the places of a volume, or is an engine's 404.
func (c *cluster) volume(ctx context.Context, ref string) ([]volumePlace, error) {
	places, err := c.findVolumes(ctx, ref)
	if err == nil && len(places) != 1 {
		// It may have been made on its host a moment ago, or another of its name removed.
		c.nodes.settle(ctx)
		places, err = c.findVolumes(ctx, ref)
	}
	if err == nil && len(places) == 0 {
		return nil, errorf(http.StatusNotFound, "get %s: no such volume", ref)
	}
	return places, err
}

// volumeEngine is the engine to ask about a volume: of the oldest that has the
// name, or of any node that can be asked if the volume is everywhere.
func (c *cluster) volumeEngine(ctx context.Context, places []volumePlace) (e *engine, err error) {
	for _, p := range places {
		if e, err = c.engine(ctx, p.node); err == nil || p.scope == "local" {
			return e, err
		}
	}
	return nil, err
}

// volumeInspect asks the node that has the volume.
func volumeInspect(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	places, err := c.volume(r.Context(), call.name)
	if err != nil {
		return err
	}
	e, err := c.volumeEngine(r.Context(), places)
	if err != nil {
		return err
	}
	return (&relay{engine: e, path: volumePath(places[0].name)}).run(w, r, call)
}

// volumeRemove sends a removal to the node that has the volume. A name that several
// nodes hold is refused: it could mean any. Forced, what is not there is removed.
func volumeRemove(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	places, err := c.volume(r.Context(), call.name)
	if statusOf(err) == http.StatusNotFound && isTrue(call.query, "force") {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if err != nil {
		return err
	}
	if len(places) > 1 && places[0].scope == "local" {
		var choices []string
		for _, p := range places {
			choices = append(choices, p.nodeName)
		}
		return severalNodes("volume", places[0].name, choices)
	}
	e, err := c.volumeEngine(r.Context(), places)
	if err != nil {
		return err
	}
	rl := &relay{engine: e, path: volumePath(places[0].name), patience: change, answered: func(status int) {
		for _, p := range places {
			if e := c.nodes.get(p.node); e != nil {
				e.marks.add(mark{"volume", p.name})
			}
		}
		if status >= 200 && status < 300 && places[0].scope == "local" {
			c.dropThing("volume", e, func(t *tx) error { return t.putVolume(e.id, places[0].name, nil) })
		}
	}}
	return rl.run(w, r, call)
}

// volumeCreate makes a volume on one node, picked as for a container. A name that
// is known goes to the node that has it, which answers with the volume there is.
func volumeCreate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	var body struct {
		Name, Driver string
		Labels       map[string]string
	}
	if err := decodeBody(data, &body); err != nil {
		return err
	}
	load := &workload{kind: "volume", name: body.Name, driver: body.Driver, version: call.version, labels: body.Labels}
	if data, err = c.readThing(r.Context(), load, data); err != nil {
		return err
	}
	if body.Name != "" {
		load.volumes = []string{load.name}
		places, err := c.findVolumes(r.Context(), body.Name)
		if err != nil {
			return err
		}
		if len(places) > 0 {
			e, err := c.volumeEngine(r.Context(), places)
			if err != nil {
				return err
			}
			rl := &relay{engine: e, path: "/volumes/create", patience: change, body: bytes.NewReader(data), length: int64(len(data)),
				answered: func(int) { e.marks.add(mark{"volume", places[0].name}) }}
			return rl.run(w, r, call)
		}
	}
	return c.detached(w, r, func(ctx context.Context) (*created, error) {
		return c.make(ctx, r.Header, call, load, "/volumes/create", data, func(t *tx, p *placement, answer []byte) (mark, error) {
			return t.madeVolume(p.node, answer)
		})
	})
}

// madeVolume writes the row of a volume: an engine answers a create with its entry.
func (t *tx) madeVolume(node int64, answer []byte) (mark, error) {
	err := t.get("SELECT 1 FROM nodes WHERE id = ? AND state <> 'removed'", []any{node}, new(int))
	if err != nil && !errors.Is(err, errNotFound) {
		return mark{}, err
	}
	if err != nil {
		return mark{}, nil // its node was taken out of the cluster meanwhile
	}
	name, err := t.putVolumeRow(node, answer, nil)
	if err == nil && name == "" {
		err = errorf(http.StatusBadGateway, "the engine answered a create without a volume")
	}
	return mark{"volume", name}, err
}

var volumeFilters = []string{"dangling", "driver", "label", "name", "node"}

// volumeList answers docker volume ls from rows.
func volumeList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := parseFilters(call.query)
	if err != nil {
		return errorf(http.StatusBadRequest, "error reading volume filters: %v", err)
	}
	if err := f.only(volumeFilters); err != nil {
		return err
	}
	dangling, danglingSet, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	c.nodes.settle(r.Context())
	rows, err := c.store.query(r.Context(), `
		SELECT v.node_id, n.name, v.name, v.driver, v.scope, v.summary,
		       EXISTS (SELECT 1 FROM mounts m JOIN containers c ON c.id = m.container
		                WHERE m.name = v.name AND (c.node_id = v.node_id OR v.scope <> 'local'))
		  FROM volumes v JOIN nodes n ON n.id = v.node_id ORDER BY v.name, `+oldestFirst)
	if err != nil {
		return err
	}
	defer rows.Close()
	list := []json.RawMessage{}
	last := "" // name of the row before, when it was shown or left out
	for rows.Next() {
		var id int64
		var node, name, driver, scope, summary string
		var used bool
		if err := rows.Scan(&id, &node, &name, &driver, &scope, &summary, &used); err != nil {
			return err
		}
		again := name == last
		last = name
		switch {
		case again && scope != "local" && !f.has("node"):
			continue
		case !f.exact("node", node), !f.exact("driver", driver), !f.pattern("name", name):
			continue
		case danglingSet && dangling == used:
			continue
		}
		o, err := parseObject([]byte(summary))
		if err != nil {
			return fmt.Errorf("volume row %s: %w", name, err)
		}
		if scope == "local" {
			o = withNodeLabel(o, node)
			if again {
				o = o.replace("Name", []byte(jsonText(node+"/"+name)))
			}
		}
		if f.has("label") {
			var labels map[string]string
			json.Unmarshal(o.get("Labels"), &labels) // null, or of an odd shape: no labels
			if !f.labels("label", labels) {
				continue
			}
		}
		list = append(list, o.bytes())
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return writeJSON(w, struct {
		Volumes  []json.RawMessage
		Warnings []string
	}{list, nil})
}

// cutNodes resolves node/name in the mounts, networks and container references of
// a create: the container goes to that node, whose engine knows the plain name.
func cutNodes(query queryFunc, load *workload, data []byte) ([]byte, error) {
	if !slices.ContainsFunc(slices.Concat(load.volumes, load.networks, load.containers), func(ref string) bool { return strings.Contains(ref, "/") }) {
		return data, nil
	}
	cut := map[string]string{} // node/name: name
	for _, refs := range [][]string{load.volumes, load.networks, load.containers} {
		for i, ref := range refs {
			node, name, ok, err := cutNode(query, ref)
			if err != nil {
				return nil, err
			}
			if ok {
				refs[i], cut[ref] = name, name
				load.constraints = append(load.constraints, expr{key: "node", value: node})
			}
		}
	}
	if len(cut) == 0 {
		return data, nil
	}
	for kind, ref := range load.namespaces {
		load.namespaces[kind] = cmp.Or(cut[ref], ref)
	}
	o, err := parseObject(data)
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	return cutReferences(o, cut).bytes(), nil
}

// cutReferences replaces the references of cut where a create body has them. Keys
// count in every letter case, as an engine reads them.
func cutReferences(o object, cut map[string]string) object {
	head := func(s, sep string) string { // name:rest
		ref, rest, found := strings.Cut(s, sep)
		name, ok := cut[ref]
		if !ok {
			return s
		}
		if found {
			return name + sep + rest
		}
		return name
	}
	list := func(s string) string { return head(s, ":") }
	link := func(s string) string { return head(strings.TrimPrefix(s, "/"), ":") }
	mode := func(s string) string {
		if ref, ok := strings.CutPrefix(s, "container:"); ok {
			return "container:" + head(ref, "\x00")
		}
		return head(s, "\x00")
	}
	edits := map[string]func(json.RawMessage) json.RawMessage{
		"binds": eachText(list), "links": eachText(link), "volumesfrom": eachText(list),
		"networkmode": text(mode), "ipcmode": text(mode), "pidmode": text(mode),
		"mounts": func(raw json.RawMessage) json.RawMessage {
			var mounts []json.RawMessage
			if json.Unmarshal(raw, &mounts) != nil {
				return raw
			}
			for i, m := range mounts {
				mo, err := parseObject(m)
				if err != nil {
					return raw
				}
				mounts[i] = editMembers(mo, map[string]func(json.RawMessage) json.RawMessage{"source": text(mode)}).bytes()
			}
			return json.RawMessage(jsonText(mounts))
		},
		"endpointsconfig": func(raw json.RawMessage) json.RawMessage {
			endpoints, err := parseObject(raw)
			if err != nil {
				return raw
			}
			for i, m := range endpoints {
				if name := mode(m.key); name != m.key {
					endpoints[i] = member{key: name, value: m.value}
				}
			}
			return endpoints.bytes()
		},
	}
	inner := func(raw json.RawMessage) json.RawMessage {
		in, err := parseObject(raw)
		if err != nil {
			return raw
		}
		return editMembers(in, edits).bytes()
	}
	return editMembers(o, map[string]func(json.RawMessage) json.RawMessage{"hostconfig": inner, "networkingconfig": inner})
}

// editMembers changes the values of o by lower-cased key.
func editMembers(o object, edits map[string]func(json.RawMessage) json.RawMessage) object {
	for i, m := range o {
		if edit := edits[strings.ToLower(m.key)]; edit != nil && string(m.value) != "null" {
			o[i].value = edit(m.value)
		}
	}
	return o
}

// text edits a JSON string, eachText those of a list; what has another shape stays.
func text(edit func(string) string) func(json.RawMessage) json.RawMessage {
	return func(raw json.RawMessage) json.RawMessage {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return raw
		}
		return json.RawMessage(jsonText(edit(s)))
	}
}

func eachText(edit func(string) string) func(json.RawMessage) json.RawMessage {
	return func(raw json.RawMessage) json.RawMessage {
		var list []string
		if json.Unmarshal(raw, &list) != nil {
			return raw
		}
		for i := range list {
			list[i] = edit(list[i])
		}
		return json.RawMessage(jsonText(list))
	}
}
