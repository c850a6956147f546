package main

import (
	"encoding/json"
)

func (t *tx) putNetworks(node int64, list []json.RawMessage) error {
	known, err := t.summaries("SELECT network_id, summary FROM networks WHERE node_id = ?", node)
	if err != nil {
		return err
	}
	for _, raw := range list {
		id, err := t.putNetworkRow(node, raw, known)
		if err != nil {
			return err
		}
		delete(known, id)
	}
	for id := range known {
		if _, err := t.exec("DELETE FROM networks WHERE node_id = ? AND network_id = ?", node, id); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putNetworkRow(node int64, raw json.RawMessage, known map[string]string) (id string, err error) {
	var n struct{ Id, Name, Driver, Scope, Created string }
	text := summaryText(raw)
	if json.Unmarshal(raw, &n) != nil || n.Id == "" || text == "" {
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
		if got, err := t.putNetworkRow(node, raw, nil); err != nil || got == id {
			return err
		}
	}
	_, err := t.exec("DELETE FROM networks WHERE node_id = ? AND network_id = ?", node, id)
	return err
}

func (t *tx) putVolumes(node int64, list []json.RawMessage) error {
	known, err := t.summaries("SELECT name, summary FROM volumes WHERE node_id = ?", node)
	if err != nil {
		return err
	}
	for _, raw := range list {
		name, err := t.putVolumeRow(node, raw, known)
		if err != nil {
			return err
		}
		delete(known, name)
	}
	for name := range known {
		if _, err := t.exec("DELETE FROM volumes WHERE node_id = ? AND name = ?", node, name); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) putVolumeRow(node int64, raw json.RawMessage, known map[string]string) (name string, err error) {
	var v struct{ Name, Driver, Scope, CreatedAt string }
	text := summaryText(raw)
	if json.Unmarshal(raw, &v) != nil || v.Name == "" || text == "" {
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
