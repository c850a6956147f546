package main

import (
	"encoding/json"
	"errors"
)

// putNetworks makes a node's network rows what its engine lists. Items of a wrong
// shape are counted and skipped; while there are any, no row is deleted.
func (t *tx) putNetworks(node int64, list []json.RawMessage) (bad int, err error) {
	known, err := t.summaries("SELECT network_id, summary FROM networks WHERE node_id = ?", node)
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
		if _, err := t.exec("DELETE FROM networks WHERE node_id = ? AND network_id = ?", node, id); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// putNetworkRow writes a network's row if it differs from the known one. It
// returns the network's ID, or "" for an item of a wrong shape.
func (t *tx) putNetworkRow(node int64, raw json.RawMessage, known map[string]string) (id string, err error) {
	var n struct{ Id, Name, Driver, Scope, Created string }
	text := summaryText(raw)
	if json.Unmarshal(raw, &n) != nil || !validID(n.Id) || text == "" {
		return "", nil
	}
	if old, ok := known[n.Id]; ok && old == text {
		return n.Id, nil
	}
	_, err = t.exec("INSERT OR REPLACE INTO networks VALUES (?,?,?,?,?,?,?)", node, n.Id, bounded(n.Name), bounded(n.Driver), bounded(n.Scope), bounded(n.Created), text)
	return n.Id, err
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
	_, err := t.exec("DELETE FROM networks WHERE node_id = ? AND network_id = ?", node, id)
	return err
}

// putVolumes is putNetworks for volumes.
func (t *tx) putVolumes(node int64, list []json.RawMessage) (bad int, err error) {
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
		if _, err := t.exec("DELETE FROM volumes WHERE node_id = ? AND name = ?", node, name); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// putVolumeRow is putNetworkRow for volumes.
func (t *tx) putVolumeRow(node int64, raw json.RawMessage, known map[string]string) (name string, err error) {
	var v struct{ Name, Driver, Scope, CreatedAt string }
	text := summaryText(raw)
	if json.Unmarshal(raw, &v) != nil || !validID(v.Name) || text == "" {
		return "", nil
	}
	if old, ok := known[v.Name]; ok && old == text {
		return v.Name, nil
	}
	_, err = t.exec("INSERT OR REPLACE INTO volumes VALUES (?,?,?,?,?,?)", node, bounded(v.Name), bounded(v.Driver), bounded(v.Scope), bounded(v.CreatedAt), text)
	return v.Name, err
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
