package main

import (
	"math/bits"
	"strings"
)

// newRows are rows that are written together: at the start of a manager they are a
// hundred thousand, and a statement for many costs little more than one for a single row.
type newRows struct {
	containerID int64 // of the last new container's row; 0: nobody has asked yet

	containers, labels, mounts, networks, ports []any // values, row after row
}

// nextContainer is the id of a new container's row: the next that SQLite would give.
func (t *tx) nextContainer(rows *newRows) (id int64, err error) {
	if rows.containerID == 0 {
		if err := t.get("SELECT coalesce(max(id), 0) FROM containers", nil, &rows.containerID); err != nil {
			return 0, err
		}
	}
	rows.containerID++
	return rows.containerID, nil
}

// containerAge is the place of a container in lists, containers.age: the second it was made
// in, and within one second the order of the rows. Seconds that no clock shows are the
// nearest that one does.
func containerAge(created, id int64) int64 {
	const seconds, ids = 1<<35 - 1, 1<<28 - 1
	return min(max(created, 0), seconds)<<28 | id&ids
}

// insert writes what was gathered.
func (t *tx) insert(rows *newRows) error {
	for _, table := range []struct {
		into    string
		columns int
		values  []any
	}{
		{`INSERT INTO containers (age, id, node_id, container_id, name, image, image_id, state, created_at,
			status_head, status_at, status_tail, swarm_id, counted, inspected, nano_cpus, memory_bytes, summary)`, 18, rows.containers},
		{"INSERT OR IGNORE INTO container_labels (container, key, value)", 3, rows.labels},
		{"INSERT OR IGNORE INTO mounts (container, type, name, source, destination)", 5, rows.mounts},
		{"INSERT OR IGNORE INTO container_networks (container, name, network_id)", 3, rows.networks},
		{"INSERT INTO ports (node_id, container, host_ip, host_port, last_port, protocol)", 6, rows.ports},
	} {
		if err := t.insertMany(table.into, table.columns, table.values); err != nil {
			return err
		}
	}
	return nil
}

// manyRows is how many rows one statement may have.
const manyRows = 32

// insertMany writes rows of so many columns. The number of rows in a statement is a
// power of two, so that few statements stay prepared.
func (t *tx) insertMany(into string, columns int, values []any) error {
	row := "(" + strings.Repeat("?,", columns-1) + "?)"
	for len(values) > 0 {
		n := min(1<<(bits.Len(uint(len(values)/columns))-1), manyRows)
		if _, err := t.exec(into+" VALUES "+strings.Repeat(row+",", n-1)+row, values[:n*columns]...); err != nil {
			return err
		}
		values = values[n*columns:]
	}
	return nil
}
