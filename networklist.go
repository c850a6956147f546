package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
)

var networkFilters = []string{"dangling", "driver", "id", "label", "name", "node", "scope", "type"}

// networkList answers docker network ls from rows. What is built in or a swarm's is
// listed once.
func networkList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := parseFilters(call.query, networkFilters...)
	if err != nil {
		return err
	}
	dangling, danglingSet, err := f.dangling()
	if err != nil {
		return err
	}
	for _, kind := range f["type"] {
		if kind != "custom" && kind != "builtin" {
			return errorf(http.StatusBadRequest, "invalid filter: 'type'='%s'", kind)
		}
	}
	c.nodes.settle(r.Context())
	// A manager's entry of a swarm's network comes first: it is there for good.
	rows, err := c.store.query(r.Context(), `
		SELECT n.name, x.network_id, x.name, x.driver, x.scope, x.summary,
		       EXISTS (SELECT 1 FROM container_networks a JOIN containers c ON c.id = a.container
		                WHERE a.network_id = x.network_id AND c.state IN ('running', 'paused', 'restarting', 'stopping'))
		  FROM networks x JOIN nodes n ON n.id = x.node_id
		 ORDER BY x.name, x.scope <> 'local' AND NOT n.swarm_manager, n.id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	list := []json.RawMessage{}
	seen := map[string]bool{} // networks on several nodes, by name or ID
	shownID := map[string]string{}
	for rows.Next() {
		var node, id, name, driver, scope, summary string
		var used bool
		if err := rows.Scan(&node, &id, &name, &driver, &scope, &summary, &used); err != nil {
			return err
		}
		key := ""
		switch {
		case slices.Contains(builtinNetworks, name):
			key = name
			if first, ok := shownID[name]; ok {
				id = first
			}
			shownID[name] = id
		case scope != "local":
			key = id
		}
		predefined := slices.Contains(predefinedNetworks, name)
		switch {
		case seen[key]:
			continue
		case !f.exact("node", node), !f.exact("driver", driver), !f.exact("scope", scope):
			continue
		case !f.pattern("id", id), !f.pattern("name", name):
			continue
		case f.given("type") && !slices.Contains(f["type"], map[bool]string{true: "builtin", false: "custom"}[predefined]):
			continue
		case danglingSet && dangling == (used || predefined):
			continue
		}
		o, err := parseObject([]byte(summary))
		if err != nil {
			return fmt.Errorf("network row %s: %w", id, err)
		}
		if key == "" {
			o = withNodeLabel(o, node)
		}
		if f.has("label") {
			var labels map[string]string
			json.Unmarshal(o.get("Labels"), &labels) // null, or of an odd shape: no labels
			if !f.labels("label", labels) {
				continue
			}
		}
		if key != "" {
			seen[key] = true
			o = o.replace("Id", []byte(jsonText(id)))
		}
		list = append(list, o.bytes())
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return writeJSON(w, list)
}

// dangling reads that filter in an engine's words.
func (f listFilters) dangling() (value, set bool, err error) {
	switch len(f["dangling"]) {
	case 0:
		return false, false, nil
	case 1:
	default:
		return false, false, errorf(http.StatusBadRequest, `got more than one value for filter key "dangling"`)
	}
	switch f["dangling"][0] {
	case "true", "1":
		return true, true, nil
	case "false", "0":
		return false, true, nil
	}
	return false, false, errorf(http.StatusBadRequest, `invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")`)
}

// withNodeLabel shows on a list entry which node has the thing.
func withNodeLabel(o object, node string) object {
	labels, err := parseObject(o.get("Labels"))
	if err != nil {
		return o
	}
	return o.replace("Labels", labels.with(nodeLabel, node).bytes())
}
