package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"hash/maphash"
	"time"
)

// knownList is what an engine listed last of its containers, and the rows that it made, as
// hashes. A list that says the same, of rows that are still the same, is not taken apart
// again: of 1,000 nodes with 30 containers that would be 30,000 a minute for nothing. It
// can be dropped at any time.
type knownList struct {
	face nodeFace          // what the node lent its rows
	rows map[uint64]uint64 // a list entry less its Status → the row
}

var listSeed = maphash.MakeSeed()

// add notes which row an entry makes.
func (k *knownList) add(raw json.RawMessage, r *containerRow) {
	if entry, _, ok := entryHash(raw); ok {
		k.rows[entry] = rowHash([]byte(r.id), []byte(r.name), []byte(r.state), r.summary, r.counted)
	}
}

// entryHash is that of a list entry less its Status, in whose words time goes on.
func entryHash(raw json.RawMessage) (hash uint64, status []byte, ok bool) {
	s := scanner{data: raw}
	if s.next() != '{' {
		return 0, nil, false
	}
	for s.at++; ; s.at++ {
		s.next()
		key, err := s.value()
		if err != nil || s.next() != ':' {
			return 0, nil, false
		}
		s.at++
		s.next()
		from := s.at
		value, err := s.value()
		if err != nil {
			return 0, nil, false
		}
		if string(key) == `"Status"` {
			if len(value) < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
				return 0, nil, false
			}
			var h maphash.Hash
			h.SetSeed(listSeed)
			h.Write(raw[:from])
			h.Write(raw[s.at:])
			return h.Sum64(), value[1 : len(value)-1], true
		}
		if s.next() != ',' {
			return 0, nil, false
		}
	}
}

// rowHash is that of what a row has of its list entry, less its status.
func rowHash(id, name, state, summary []byte, counted bool) uint64 {
	var h maphash.Hash
	h.SetSeed(listSeed)
	for _, text := range [][]byte{id, name, state, summary} {
		h.Write(text)
		h.WriteByte(0)
	}
	maphash.WriteComparable(&h, counted)
	return h.Sum64()
}

// tells tells whether a row says of its container's status what its engine says now.
func (c *storedContainer) tells(status []byte, now time.Time) bool {
	if c.at == nil {
		return c.tail == "" && string(status) == c.head
	}
	words, head := bytes.CutPrefix(status, []byte(c.head))
	words, tail := bytes.CutSuffix(words, []byte(c.tail))
	return head && tail && sameWords(now, *c.at, string(words))
}

// listsKnown tells whether an engine lists what it listed last, and the node's rows are
// what that made of them: nothing is to be written or looked at.
func (s *store) listsKnown(ctx context.Context, face *nodeFace, known *knownList, list []json.RawMessage) (bool, error) {
	if known.rows == nil || len(known.rows) != len(list) || !known.face.shows(face) {
		return false, nil
	}
	rows, err := s.query(ctx, `SELECT container_id, summary, name, state, status_head, status_at, status_tail, inspected, counted
		FROM containers WHERE node_id = ?`, face.id)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	stored := make(map[uint64]storedContainer, len(list))
	for rows.Next() {
		var id, summary, name, state sql.RawBytes
		var c storedContainer
		if err := rows.Scan(&id, &summary, &name, &state, &c.head, &c.at, &c.tail, &c.known, &c.counted); err != nil {
			return false, err
		}
		if !c.known {
			return false, nil
		}
		stored[rowHash(id, name, state, summary, c.counted)] = c
	}
	if err := rows.Err(); err != nil || len(stored) != len(list) {
		return false, err
	}
	now := time.Now()
	for _, raw := range list {
		entry, status, ok := entryHash(raw)
		if !ok {
			return false, nil
		}
		row, ok := known.rows[entry]
		c, there := stored[row]
		if !ok || !there || !c.tells(status, now) {
			return false, nil
		}
		delete(stored, row) // listed once
	}
	return true, nil
}
