package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// defaultGroupLabels are the labels that make a group when -group-by names none:
// those of a Compose project, a Testcontainers session, a GitLab job.
var defaultGroupLabels = []string{"com.docker.compose.project", "org.testcontainers.sessionId",
	"org.testcontainers.session-id", "com.gitlab.gitlab-runner.job.id"}

// groupOf is the group that things with these labels belong to, label=value by the
// first label of by that is there; "" for none.
func groupOf(labels map[string]string, by []string) string {
	for _, key := range by {
		if v := labels[key]; v != "" {
			return key + "=" + v
		}
	}
	return ""
}

// groupClauses keep a group together before the ties exist: its members go to the
// node of the first one. A group whose members share nothing local may spill over
// when that node does not fit; one with a local network or volume may not, or what
// is made elsewhere could never be used with it. A container that joins a network
// of swarm or global scope was meant to spread and belongs to no group.
func groupClauses(t *tx, w *workload) ([]clause, error) {
	if w.kind != "container" && !w.isThing() || w.swarm {
		return nil, nil
	}
	var by string
	if err := t.get("SELECT group_by FROM manager", nil, &by); err != nil {
		return nil, err
	}
	var keys []string
	if err := json.Unmarshal([]byte(by), &keys); err != nil {
		return nil, fmt.Errorf("group_by of the manager row: %w", err)
	}
	if w.group = groupOf(w.labels, keys); w.group == "" {
		return nil, nil
	}
	for _, ref := range w.networks {
		places, _, err := findNetworks(t.query, ref)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(places, func(p networkPlace) bool { return p.scope != "local" }) {
			w.group = ""
			return nil, nil
		}
	}
	g, err := t.groupNodes(w.group)
	if err != nil || g.first == 0 {
		return nil, err
	}
	what := "group " + w.group
	cs := []clause{{home: true, sql: "n.id = ?", args: []any{g.first}}}
	if len(g.bound) > 0 {
		args := []any{jsonText(g.bound)}
		cs = append(cs, clause{one: "does not have " + what, many: "do not have " + what, tie: what, nodes: g.bound,
			sql: "n.id IN (SELECT value FROM json_each(?))", args: args, few: &nodeSet{len(g.bound), "SELECT value FROM json_each(?)", args}})
	}
	return cs, nil
}

// groupNodes is where a group is.
type groupNodes struct {
	first int64   // node of the first local network or volume, else of the first container; 0: no member yet
	bound []int64 // nodes with local networks and volumes of the group
}

// groupNodes looks a group's members up, creates under way included.
func (t *tx) groupNodes(group string) (*groupNodes, error) {
	key, value, _ := strings.Cut(group, "=")
	rows, err := t.query(`
		SELECT node_id, local FROM (
			SELECT c.node_id, c.created_at AS at, 0 AS local
			  FROM container_labels l JOIN containers c ON c.id = l.container
			 WHERE l.key = ?1 AND l.value = ?2 AND NOT EXISTS (
			       SELECT 1 FROM container_networks a JOIN networks x ON x.network_id = a.network_id OR a.network_id = '' AND x.name = a.name
			        WHERE a.container = c.id AND x.scope <> 'local')
			UNION ALL
			SELECT x.node_id, CAST(strftime('%s', x.created_at) AS INTEGER), 1
			  FROM network_labels l JOIN networks x ON x.node_id = l.node_id AND x.network_id = l.network_id
			 WHERE l.key = ?1 AND l.value = ?2 AND x.scope = 'local'
			UNION ALL
			SELECT v.node_id, CAST(strftime('%s', v.created_at) AS INTEGER), 1
			  FROM volume_labels l JOIN volumes v ON v.node_id = l.node_id AND v.name = l.name
			 WHERE l.key = ?1 AND l.value = ?2 AND v.scope = 'local'
			UNION ALL
			SELECT r.node_id, r.made_at, r.kind <> 'container' FROM reservations r WHERE r.group_key = ?3)
		 ORDER BY local DESC, at, node_id`, key, value, group)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	g := &groupNodes{}
	for rows.Next() {
		var node int64
		var local bool
		if err := rows.Scan(&node, &local); err != nil {
			return nil, err
		}
		if g.first == 0 {
			g.first = node
		}
		if local && !slices.Contains(g.bound, node) {
			g.bound = append(g.bound, node)
		}
	}
	return g, rows.Err()
}
