package main

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
)

// putResources writes what a node has of countable things: by its labels, which come
// first, and by what its engine reports.
func (t *tx) putResources(node int64) error {
	var reported engineResources
	var info, labels string
	err := t.get(`SELECT coalesce((SELECT info FROM node_info WHERE node_id = ?1), ''),
		(SELECT coalesce(json_group_object(key, value), '{}') FROM node_labels WHERE node_id = ?1 AND key > 'resource.' AND key < 'resource/')`,
		[]any{node}, &info, &labels)
	if err != nil {
		return err
	}
	_ = json.Unmarshal([]byte(info), &reported) // of an odd shape: it reports none
	found := reported.supplies()
	var byLabel map[string]string
	if err := json.Unmarshal([]byte(labels), &byLabel); err != nil {
		return err
	}
	var wrong []string // an engine's own: others are refused where they are set
	for _, key := range slices.Sorted(maps.Keys(byLabel)) {
		name, s, err := parseSupply(key, byLabel[key])
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		found[name] = s
	}
	if _, err := t.exec("UPDATE nodes SET bad_labels = ?1 WHERE id = ?2 AND bad_labels <> ?1", plainLine(strings.Join(wrong, "; ")), node); err != nil {
		return err
	}
	if _, err := t.exec("DELETE FROM node_resources WHERE node_id = ?", node); err != nil {
		return err
	}
	for name, s := range found {
		if _, err := t.exec("INSERT INTO node_resources VALUES (?,?,?,?)", node, name, s.amount, jsonText(append([]string{}, s.devices...))); err != nil {
			return err
		}
	}
	return nil
}

// takeResources writes what a reservation takes on the node that was picked, and picks
// devices for the device requests that ask for a number, where the node's IDs are
// known; picked is by the number of the request. Those that no stopped container
// would want again go first.
func (t *tx) takeResources(node, reservation int64, demands []demand) (picked map[int][]string, err error) {
	for _, d := range demands {
		ids := d.IDs
		if d.Device > 0 && d.Amount > 0 && ids == nil {
			ids, err = t.strings(`
				SELECT j.value FROM node_resources r, json_each(r.devices) j
				 WHERE r.node_id = ?1 AND r.name = ?2 AND NOT EXISTS (SELECT 1 FROM resources_held h
				       WHERE h.node_id = ?1 AND h.name = ?2 AND h.device = j.value)
				 ORDER BY EXISTS (SELECT 1 FROM resources u WHERE u.node_id = ?1 AND u.name = ?2 AND u.device = j.value), j.key LIMIT ?3`,
				node, d.Name, d.Amount)
			if err != nil {
				return nil, err
			}
			if int64(len(ids)) < d.Amount {
				ids = nil
			} else {
				if picked == nil {
					picked = map[int][]string{}
				}
				picked[d.Device] = ids
			}
		}
		if err := t.putHeld(node, nil, reservation, d, ids); err != nil {
			return nil, err
		}
	}
	return picked, nil
}

// putHeld writes what a container or reservation holds, a row for each ID.
func (t *tx) putHeld(node int64, container, reservation any, d demand, ids []string) error {
	if d.Amount == 0 {
		return nil
	}
	const insert = "INSERT INTO resources (node_id, container, reservation, name, amount, device) VALUES (?,?,?,?,?,?)"
	if len(ids) == 0 {
		_, err := t.exec(insert, node, container, reservation, d.Name, d.Amount, "")
		return err
	}
	for _, id := range ids {
		if _, err := t.exec(insert, node, container, reservation, d.Name, 1, bounded(id)); err != nil {
			return err
		}
	}
	return nil
}

// holdResources writes what a container holds, as its inspect tells: this is how the
// rows are made again when the database was lost.
func (t *tx) holdResources(node, container int64, h *hostConfig, labels map[string]string) error {
	demands, err := h.demands(labels)
	if err != nil {
		demands = nil // made behind our back with a label that we would have refused
	}
	if _, err := t.exec("DELETE FROM resources WHERE container = ?", container); err != nil {
		return err
	}
	for _, d := range demands {
		if err := t.putHeld(node, container, nil, d, d.IDs); err != nil {
			return err
		}
	}
	return nil
}

// anyHas tells whether some node says that it has a thing.
func (t *tx) anyHas(name string) (bool, error) {
	err := t.get("SELECT 1 FROM node_resources r JOIN nodes n ON n.id = r.node_id WHERE r.name = ? AND n.state <> 'removed' LIMIT 1", []any{name}, new(int))
	if errors.Is(err, errNotFound) {
		return false, nil
	}
	return err == nil, err
}

// unlisted tells whether one of these IDs is listed by no node.
func (t *tx) unlisted(name string, ids []string) (bool, error) {
	var unknown bool
	err := t.get(`SELECT EXISTS (SELECT 1 FROM json_each(?) j WHERE NOT EXISTS (SELECT 1 FROM node_resources r JOIN nodes n ON n.id = r.node_id, json_each(r.devices) k
		WHERE r.name = ? AND n.state <> 'removed' AND k.value = j.value))`, []any{jsonText(ids), name}, &unknown)
	return unknown, err
}
