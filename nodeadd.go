package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// addedNode is a node to be, in what swarmlite node add and the manager say to each other.
type addedNode struct {
	Address string
	Words   []string `json:",omitempty"` // options, as in a node file
}

// nodeAdd answers swarmlite node add. The node lives in the database until it is
// taken out.
func nodeAdd(c *cluster, w http.ResponseWriter, r *http.Request, _ *call) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	var node addedNode
	if err := decodeBody(data, &node); err != nil {
		return err
	}
	lines, err := addedLines(append([]string{node.Address}, node.Words...), c.engineTLS)
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	if err := c.store.addNodes(r.Context(), lines); err != nil {
		return err
	}
	c.log.Info("nodes added", "addr", node.Address, "nodes", len(lines))
	// One that cannot be used is there all the same, and says why.
	if err := c.named.changed(c.base); err != nil && !errors.As(err, new(*unusableError)) {
		return err
	}
	added := []addedNode{}
	for _, l := range lines {
		added = append(added, addedNode{Address: l.address})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	return writeJSON(w, added)
}

// addedLines reads what is behind swarmlite node add: one address or range, and options.
func addedLines(words []string, secure bool) ([]nodeLine, error) {
	lines, err := parseNode(words, secure)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(lines[0].address, "dns://") {
		return nil, errors.New("a name in the DNS stands for nodes that come and go: put it into the node file, or on the manager's command line")
	}
	for i := range lines {
		lines[i].source = fromAdd
	}
	return lines, nil
}

// addNodes writes nodes that nobody names but the database.
func (s *store) addNodes(ctx context.Context, lines []nodeLine) error {
	return s.write(ctx, func(t *tx) error {
		for _, l := range lines {
			if err := t.addNode(l); err != nil {
				return err
			}
		}
		return nil
	})
}

// addNode writes a node that was taken out, or was never there.
func (t *tx) addNode(l nodeLine) error {
	res, err := t.exec(`INSERT INTO nodes (address, name, state_at) VALUES (?1, ?2, strftime('%s','now'))
		ON CONFLICT (address) DO UPDATE SET state = 'pending', error = '', step = '', kept_out = 0, state_at = strftime('%s','now')
		WHERE state = 'removed'`, l.address, unheardName(l.address))
	if err != nil {
		return err
	}
	var id int64
	var name, source string
	if err := t.get("SELECT id, name, source FROM nodes WHERE address = ?", []any{l.address}, &id, &name, &source); err != nil {
		return err
	}
	if n, _ := res.RowsAffected(); n == 0 {
		return errorf(http.StatusConflict, "%s is in the cluster already, as node %s (%s)", l.address, name, source)
	}
	return t.setLine(id, l)
}
