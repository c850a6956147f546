package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// builtinNetworks are on every engine and mean the same there: they are shown
// once, with the ID that the first node has for them.
var builtinNetworks = []string{"bridge", "host", "none", "docker_gwbridge", "ingress"}

// predefinedNetworks cannot be made or removed, and count as in use.
var predefinedNetworks = []string{"bridge", "host", "none"}

// networkPlace is a network as one node has it.
type networkPlace struct {
	node            int64
	nodeName        string
	id, name, scope string
	listed          bool   // the node's engine lists it now
	swarm           string // of the node
	manager         bool   // of that swarm
}

// queryFunc reads rows: for requests from the readers, for placement in its transaction.
type queryFunc func(query string, args ...any) (*sql.Rows, error)

// findNetworks finds the places of the network that ref names, as Docker looks for
// it: by ID, by name, by node/name, by the beginning of its ID. by tells which.
func findNetworks(query queryFunc, ref string) (places []networkPlace, by string, err error) {
	node, name, slash := strings.Cut(ref, "/")
	looks := []struct {
		by, where string
		args      []any
		on        bool
	}{
		{"ID", "x.network_id = ?", []any{ref}, true},
		{"name", "x.name = ?", []any{ref}, true},
		{"node", "n.name = ? AND (x.name = ? OR x.network_id = ?)", []any{node, name, name}, slash},
		{"ID prefix", "x.network_id >= ? AND x.network_id < ? || '~'", []any{ref, ref}, isAlphanumeric(ref)},
	}
	for _, l := range looks {
		if !l.on {
			continue
		}
		rows, err := query(`SELECT n.id, n.name, x.network_id, x.name, x.scope, x.listed, n.docker_swarm, n.swarm_manager
			FROM networks x JOIN nodes n ON n.id = x.node_id WHERE `+l.where+" ORDER BY n.id LIMIT 10000", l.args...)
		if err != nil {
			return nil, "", err
		}
		for rows.Next() {
			var p networkPlace
			if err := rows.Scan(&p.node, &p.nodeName, &p.id, &p.name, &p.scope, &p.listed, &p.swarm, &p.manager); err != nil {
				rows.Close()
				return nil, "", err
			}
			places = append(places, p)
		}
		if err := rows.Err(); err != nil || len(places) > 0 {
			return places, l.by, err
		}
	}
	return nil, "", nil
}

func isAlphanumeric(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
}

// networkNodes are the nodes where a container can join the network that ref names:
// those that have a local one, or all of the swarm whose network it is; nil if
// nobody has it or its scope is global.
func (t *tx) networkNodes(ref string) ([]int64, error) {
	places, _, err := findNetworks(t.query, ref)
	if err != nil {
		return nil, err
	}
	var nodes []int64
	swarms := []string{}
	for _, p := range places {
		if p.scope != "local" && p.scope != "swarm" {
			return nil, nil
		}
		nodes = append(nodes, p.node)
		if p.scope == "swarm" && p.swarm != "" {
			swarms = append(swarms, p.swarm)
		}
	}
	if len(swarms) == 0 {
		return nodes, nil
	}
	return t.ids(`SELECT value FROM json_each(?)
		UNION SELECT id FROM nodes WHERE docker_swarm IN (SELECT value FROM json_each(?)) ORDER BY 1`, jsonText(nodes), jsonText(swarms))
}

// networkFree refuses a network name that the cluster knows, or is making. Those
// of predefined networks are the engine's to refuse.
func (t *tx) networkFree(name string) error {
	if slices.Contains(predefinedNetworks, name) {
		return nil
	}
	var taken bool
	err := t.get(`SELECT EXISTS (SELECT 1 FROM networks WHERE name = ?1)
		OR EXISTS (SELECT 1 FROM reservations WHERE kind = 'network' AND name = ?1)`, []any{name}, &taken)
	if err == nil && taken {
		return errorf(http.StatusConflict, "network with name %s already exists", name)
	}
	return err
}

// putNetworks makes a node's network rows what its engine lists. Items of a wrong
// shape are counted and skipped; while there are any, no row is deleted. Rows of
// networks that are owed a read were written by creates while the list was on its
// way; they stay.
func (t *tx) putNetworks(node int64, list []json.RawMessage, owed func(mark) bool) (bad int, err error) {
	known, err := t.summaries("SELECT network_id, summary FROM networks WHERE node_id = ? AND listed = 1", node)
	if err != nil {
		return 0, err
	}
	for _, raw := range list {
		id, err := t.putNetworkRow(node, raw, known)
		if err != nil {
			return bad, err
		}
		if id == "" {
			bad++
		}
		delete(known, id)
	}
	if bad > 0 {
		return bad, nil
	}
	for id := range known {
		if owed != nil && owed(mark{"network", id}) {
			continue
		}
		if err := t.dropNetwork(node, id); err != nil {
			return 0, err
		}
	}
	// A manager's list is all there is in its swarm: rows kept for want of one go.
	_, err = t.exec(`DELETE FROM networks WHERE listed = 0 AND node_id IN (
		SELECT o.id FROM nodes o JOIN nodes m ON m.docker_swarm = o.docker_swarm WHERE m.id = ? AND m.swarm_manager = 1)`, node)
	return 0, err
}

// putNetworkRow writes a network's row if it differs from the known one. It
// returns the network's ID, or "" for an item of a wrong shape.
func (t *tx) putNetworkRow(node int64, raw json.RawMessage, known map[string]string) (id string, err error) {
	var n struct {
		Id, Name, Driver, Scope, Created string
		Labels                           map[string]string
	}
	text := summaryText(raw)
	if json.Unmarshal(raw, &n) != nil || !validID(n.Id) || text == "" {
		return "", nil
	}
	if old, ok := known[n.Id]; ok && old == text {
		return n.Id, nil
	}
	// Deletes the labels of an earlier row as well.
	if _, err = t.exec(`INSERT OR REPLACE INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (?,?,?,?,?,?,?)`,
		node, n.Id, bounded(n.Name), bounded(n.Driver), bounded(n.Scope), bounded(n.Created), text); err != nil {
		return "", err
	}
	for k, v := range n.Labels {
		if _, err := t.exec("INSERT OR REPLACE INTO network_labels VALUES (?,?,?,?)", node, n.Id, bounded(k), bounded(v)); err != nil {
			return "", err
		}
	}
	return n.Id, nil
}

// putNetwork writes one network as found by its ID, or deletes its row.
func (t *tx) putNetwork(node int64, id string, found []json.RawMessage) error {
	for _, raw := range found {
		got, err := t.putNetworkRow(node, raw, nil)
		if err != nil || got == id {
			return err
		}
		if got == "" {
			return errors.New("bad list entry")
		}
	}
	return t.dropNetwork(node, id)
}

// dropNetwork deletes the row of a network that an engine lists no more. A worker
// of a swarm lists the swarm's networks only while it uses them, so that vanishing
// there is no deletion: with no manager among the nodes to tell, the last row stays.
func (t *tx) dropNetwork(node int64, id string) error {
	res, err := t.exec(`UPDATE networks SET listed = 0 WHERE node_id = ?1 AND network_id = ?2 AND scope = 'swarm'
		AND NOT EXISTS (SELECT 1 FROM networks o WHERE o.network_id = ?2 AND o.node_id <> ?1)
		AND EXISTS (SELECT 1 FROM nodes n WHERE n.id = ?1 AND n.docker_swarm <> '' AND NOT EXISTS (
			SELECT 1 FROM nodes m WHERE m.docker_swarm = n.docker_swarm AND m.swarm_manager = 1 AND m.state <> 'removed'))`, node, id)
	if err != nil {
		return err
	}
	if kept, _ := res.RowsAffected(); kept > 0 {
		return nil
	}
	_, err = t.exec("DELETE FROM networks WHERE node_id = ? AND network_id = ?", node, id)
	return err
}

// putVolumes is putNetworks for volumes.
func (t *tx) putVolumes(node int64, list []json.RawMessage, owed func(mark) bool) (bad int, err error) {
	known, err := t.summaries("SELECT name, summary FROM volumes WHERE node_id = ?", node)
	if err != nil {
		return 0, err
	}
	for _, raw := range list {
		name, err := t.putVolumeRow(node, raw, known)
		if err != nil {
			return bad, err
		}
		if name == "" {
			bad++
		}
		delete(known, name)
	}
	if bad > 0 {
		return bad, nil
	}
	for name := range known {
		if owed != nil && owed(mark{"volume", name}) {
			continue
		}
		if _, err := t.exec("DELETE FROM volumes WHERE node_id = ? AND name = ?", node, name); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// putVolumeRow is putNetworkRow for volumes.
func (t *tx) putVolumeRow(node int64, raw json.RawMessage, known map[string]string) (name string, err error) {
	var v struct {
		Name, Driver, Scope, CreatedAt string
		Labels                         map[string]string
	}
	text := summaryText(raw)
	if json.Unmarshal(raw, &v) != nil || !validID(v.Name) || text == "" {
		return "", nil
	}
	if old, ok := known[v.Name]; ok && old == text {
		return v.Name, nil
	}
	// Deletes the labels of an earlier row as well.
	if _, err = t.exec("INSERT OR REPLACE INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (?,?,?,?,?,?)",
		node, bounded(v.Name), bounded(v.Driver), bounded(v.Scope), bounded(v.CreatedAt), text); err != nil {
		return "", err
	}
	for k, val := range v.Labels {
		if _, err := t.exec("INSERT OR REPLACE INTO volume_labels VALUES (?,?,?,?)", node, bounded(v.Name), bounded(k), bounded(val)); err != nil {
			return "", err
		}
	}
	return v.Name, nil
}

// putVolume writes one volume, or deletes its row when the engine has none of that name.
func (t *tx) putVolume(node int64, name string, raw json.RawMessage) error {
	if raw != nil {
		_, err := t.putVolumeRow(node, raw, nil)
		return err
	}
	_, err := t.exec("DELETE FROM volumes WHERE node_id = ? AND name = ?", node, name)
	return err
}

// putSwarm notes which swarm, in Docker's Swarm mode, an engine belongs to. A
// manager knows the swarm's ID; a worker knows its managers only, so it is told
// by one of them, or by another worker that knows the same, or goes by their name.
func (t *tx) putSwarm(node int64, s *engineSwarm) error {
	managers := []string{}
	for _, m := range s.RemoteManagers {
		managers = append(managers, bounded(m.NodeID))
	}
	swarm := bounded(s.Cluster.ID)
	if swarm == "" && len(managers) > 0 {
		err := t.get(`SELECT docker_swarm FROM nodes WHERE id <> ?1 AND docker_swarm <> '' AND state <> 'removed' AND (
				swarm_node IN (SELECT value FROM json_each(?2)) AND swarm_manager = 1
				OR EXISTS (SELECT 1 FROM json_each(swarm_managers) a JOIN json_each(?2) b ON b.value = a.value))
			ORDER BY swarm_manager DESC, id LIMIT 1`, []any{node, jsonText(managers)}, &swarm)
		if err != nil && !errors.Is(err, errNotFound) {
			return err
		}
		if swarm == "" {
			swarm = "of manager " + managers[0]
		}
	}
	if s.LocalNodeState != "active" {
		swarm = ""
	}
	if _, err := t.exec("UPDATE nodes SET docker_swarm = ?, swarm_manager = ?, swarm_node = ?, swarm_managers = ? WHERE id = ?",
		swarm, swarm != "" && s.ControlAvailable, bounded(s.NodeID), jsonText(managers), node); err != nil {
		return err
	}
	if !s.ControlAvailable || swarm == "" {
		return nil
	}
	_, err := t.exec(`UPDATE nodes SET docker_swarm = ?1 WHERE swarm_manager = 0 AND docker_swarm NOT IN ('', ?1)
		AND EXISTS (SELECT 1 FROM json_each(swarm_managers) WHERE value = ?2)`, swarm, bounded(s.NodeID))
	return err
}

// builtinID is the ID that a node has for a built-in network, and the one that lists show.
type builtinID struct{ own, shown string }

// builtinIDs are by node the IDs of built-in networks that lists show differently:
// with that of the first node.
func (s *store) builtinIDs(ctx context.Context) (map[int64][]builtinID, error) {
	rows, err := s.scan(ctx, "SELECT node_id, name, network_id FROM networks WHERE name IN ('"+strings.Join(builtinNetworks, "', '")+"') ORDER BY node_id")
	if err != nil {
		return nil, err
	}
	defer rows.close()
	first := map[string]string{}
	ids := map[int64][]builtinID{}
	for rows.next() {
		node, name, id := rows.int(0), string(rows.text(1)), string(rows.text(2))
		if shown, ok := first[name]; !ok {
			first[name] = id
		} else if shown != id {
			ids[node] = append(ids[node], builtinID{id, shown})
		}
	}
	return ids, rows.err
}

// oldestFirst is the order of volumes with one name: the oldest has the plain name.
const oldestFirst = "coalesce(CAST(strftime('%s', v.created_at) AS INTEGER), 0), v.node_id"

// oldestVolume is the node of the oldest of several volumes with one name, 0 if
// none has been listed yet.
func (t *tx) oldestVolume(name string) (node int64, err error) {
	err = t.get("SELECT v.node_id FROM volumes v WHERE v.name = ? ORDER BY "+oldestFirst+" LIMIT 1", []any{name}, &node)
	if errors.Is(err, errNotFound) {
		err = nil
	}
	return node, err
}

// volumePath is where engines have a volume.
func volumePath(name string) string { return "/volumes/" + url.PathEscape(name) }
