package main

import (
	"bytes"
	"context"
	"database/sql"
	"hash/maphash"
	"time"
	"unique"
)

// knownList is what an engine listed last of its containers, and the rows that it made, as
// hashes. A list that says the same, of rows that are still the same, is not taken apart
// again: of 1,000 nodes with 30 containers that would be 30,000 a minute for nothing. It
// can be dropped at any time.
type knownList struct {
	face    nodeFace     // what the node lent its rows
	listed  bool         // all of the list was well
	entries []knownEntry // in the list's order
	bytes   uint64       // the hash of the list less the words of each Status, in which time goes on

	// What the database said last; as long as nothing is committed it is not asked again.
	version storeVersion
	before  mirrorState
	told    bool // the rows were compared, and the entries have what they tell of the Status

	rest [3]knownAnswer // to images, networks and volumes
}

// knownAnswer is the hash of what an engine listed last, and the version from which rows
// were made so: if it is that still, there was nothing to make.
type knownAnswer struct {
	hash    uint64
	version storeVersion
}

// knownEntry is an entry of a list, and its row.
type knownEntry struct {
	row   uint64 // the row's hash
	gap   int32  // bytes of the list since the words of the Status before
	frame unique.Handle[statusFrame]
	at    int64 // unix seconds
}

// statusFrame is what is around the time in a Status: few different ones for any number of
// containers.
type statusFrame struct {
	head, tail string
	timed      bool
}

var listSeed = maphash.MakeSeed()

// note keeps what a list says and the hashes of the rows that its entries make. One whose
// entries have no plain Status each is not known.
func (k *knownList) note(list []byte, rows []uint64) {
	words := statusWordsIn(list)
	if len(words) != len(rows) {
		return
	}
	var h maphash.Hash
	h.SetSeed(listSeed)
	from := 0
	for i, w := range words {
		h.Write(list[from:w.from])
		k.entries = append(k.entries, knownEntry{row: rows[i], gap: int32(w.from - from)})
		from = w.to
	}
	h.Write(list[from:])
	k.listed, k.bytes = true, h.Sum64()
}

// span is a piece of a text.
type span struct{ from, to int }

// statusWordsIn tells where in a list of containers the words of each Status are, nil if
// an entry has none, or a second one, or some with an escape.
func statusWordsIn(list []byte) (words []span) {
	s := scanner{data: list}
	if s.next() != '[' {
		return nil
	}
	s.at++
	for s.next() == '{' {
		found := false
		for more := true; more; {
			s.at++ // over { or ,
			s.next()
			key, err := s.value()
			if err != nil || s.next() != ':' {
				return nil
			}
			s.at++
			s.next()
			from := s.at
			value, err := s.value()
			if err != nil {
				return nil
			}
			if string(key) == `"Status"` {
				if found || len(value) < 2 || value[0] != '"' || bytes.IndexByte(value, '\\') >= 0 {
					return nil
				}
				found = true
				words = append(words, span{from + 1, s.at - 1})
			}
			switch s.next() {
			case ',':
			case '}':
				more = false
			default:
				return nil
			}
		}
		if !found {
			return nil
		}
		if s.at++; s.next() == ',' {
			s.at++
		}
	}
	return words
}

// says tells whether a list says what was listed last, but for the words of each Status,
// which it returns.
func (k *knownList) says(list []byte) (words [][]byte, same bool) {
	if !k.listed {
		return nil, false
	}
	var h maphash.Hash
	h.SetSeed(listSeed)
	rest := list
	for _, e := range k.entries {
		if int(e.gap) > len(rest) {
			return nil, false
		}
		h.Write(rest[:e.gap])
		rest = rest[e.gap:]
		end := bytes.IndexByte(rest, '"')
		if end < 0 || bytes.IndexByte(rest[:end], '\\') >= 0 {
			return nil, false
		}
		words, rest = append(words, rest[:end]), rest[end:]
	}
	h.Write(rest)
	return words, h.Sum64() == k.bytes
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
func (e *knownEntry) tells(status []byte, now time.Time) bool {
	f := e.frame.Value()
	if !f.timed {
		return f.tail == "" && string(status) == f.head
	}
	words, head := bytes.CutPrefix(status, []byte(f.head))
	words, tail := bytes.CutSuffix(words, []byte(f.tail))
	return head && tail && sameWords(now, e.at, string(words))
}

// listsKnown tells whether an engine lists what it listed last, and the node's rows are
// what that made of them: nothing is to be written or looked at.
func (s *store) listsKnown(ctx context.Context, known *knownList, list []byte) (bool, error) {
	words, same := known.says(list)
	if !same || known.before.renames != "[]" || !known.face.shows(&known.before.face) {
		return false, nil
	}
	if !known.told {
		same, err := s.compareRows(ctx, known)
		if err != nil || !same {
			return false, err
		}
		known.told = true
	}
	now := time.Now()
	for i := range known.entries {
		if !known.entries[i].tells(words[i], now) {
			return false, nil
		}
	}
	return true, nil
}

// compareRows tells whether the node's rows are those that are known, and notes what they
// tell of each Status.
func (s *store) compareRows(ctx context.Context, known *knownList) (same bool, err error) {
	rows, err := s.query(ctx, `SELECT container_id, name, state, summary, status_head, status_at, status_tail, inspected, counted
		FROM containers WHERE node_id = ?`, known.face.id)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	of := make(map[uint64]*knownEntry, len(known.entries))
	for i := range known.entries {
		of[known.entries[i].row] = &known.entries[i]
	}
	for rows.Next() {
		var id, name, state, summary, head, tail sql.RawBytes
		var at sql.NullInt64
		var looked, counted bool
		if err := rows.Scan(&id, &name, &state, &summary, &head, &at, &tail, &looked, &counted); err != nil {
			return false, err
		}
		hash := rowHash(id, name, state, summary, counted)
		e := of[hash]
		if e == nil || !looked {
			return false, nil
		}
		delete(of, hash)
		e.frame, e.at = unique.Make(statusFrame{string(head), string(tail), at.Valid}), at.Int64
	}
	return len(of) == 0, rows.Err()
}
