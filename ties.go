package main

// dependencyClauses keep a container with what is on one node only: local
// networks and volumes, and containers it links to or shares a namespace with.
// What nobody has ties nothing; the engine says what it thinks of it.
func dependencyClauses(t *tx, w *workload) ([]clause, error) {
	var cs []clause
	for _, tie := range []struct {
		kind string
		refs []string
		find func(*tx, string) ([]int64, error)
	}{
		{"network", w.networks, (*tx).networkNodes},
		{"volume", w.volumes, (*tx).volumeNodes},
		{"container", w.containers, (*tx).containerNodes},
		{"runtime", w.runtimes(), (*tx).runtimeNodes},
	} {
		for _, ref := range tie.refs {
			nodes, err := tie.find(t, ref)
			if err != nil {
				return nil, err
			}
			if nodes == nil {
				continue
			}
			what := tie.kind + " " + ref
			args := []any{jsonText(nodes)}
			cs = append(cs, clause{one: "does not have " + what, many: "do not have " + what, tie: what, nodes: nodes,
				sql: "n.id IN (SELECT value FROM json_each(?))", args: args, few: &nodeSet{len(nodes), "SELECT value FROM json_each(?)", args}})
			if tie.kind == "volume" && len(nodes) > 1 {
				oldest, err := t.oldestVolume(ref)
				if err != nil {
					return nil, err
				}
				cs = append(cs, clause{home: true, sql: "n.id = ?", args: []any{oldest}})
			}
		}
	}
	return cs, nil
}

// volumeNodes are the nodes that have a volume of this name, or will have it when
// a create under way is done.
func (t *tx) volumeNodes(name string) ([]int64, error) {
	return t.holders(name, `SELECT node_id, scope = 'local' FROM volumes WHERE name = ?1
		UNION SELECT c.node_id, 1 FROM mounts m JOIN containers c ON c.id = m.container WHERE m.name = ?1
		UNION SELECT r.node_id, 1 FROM reservations r, json_each(r.volumes) j WHERE j.value = ?1`, "")
}

// containerNodes are the nodes that have a container of this ID, name or prefix of an ID.
func (t *tx) containerNodes(ref string) ([]int64, error) {
	return t.holders(ref, "SELECT node_id, 1 FROM containers WHERE name = ltrim(?1, '/') OR container_id = ?1",
		"SELECT node_id, 1 FROM containers WHERE container_id >= ?1 AND container_id < ?1 || 'g'")
}

// runtimeNodes are the nodes whose engine names the runtime.
func (t *tx) runtimeNodes(name string) ([]int64, error) {
	return t.holders(name, `SELECT n.node_id, 1 FROM node_info n, json_each(CASE WHEN json_valid(n.info) THEN n.info ELSE '{}' END, '$.Runtimes') j
		WHERE j.key = ?1`, "")
}

// holders runs query for ref and, if that finds nothing and ref may be part of an
// ID, byPrefix. Rows are a node and whether the thing is local to it. It returns
// nil if nobody has the thing, or if it spans nodes.
func (t *tx) holders(ref, query, byPrefix string) ([]int64, error) {
	for _, q := range []string{query, byPrefix} {
		if q == "" || q == byPrefix && !isHex(ref) {
			continue
		}
		rows, err := t.query(q, ref)
		if err != nil {
			return nil, err
		}
		var nodes []int64
		spans := false
		for rows.Next() {
			var node int64
			var local bool
			if err := rows.Scan(&node, &local); err != nil {
				rows.Close()
				return nil, err
			}
			spans = spans || !local
			nodes = append(nodes, node)
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
		if spans {
			return nil, nil
		}
		if nodes != nil {
			return nodes, nil
		}
	}
	return nil, nil
}
