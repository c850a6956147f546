package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// maxJSON bounds a JSON body that has to be read whole, from clients; 16 MiB.
const maxJSON = 16 << 20

// object is a JSON object taken apart at its top level only: the members keep
// their order and their own bytes, so that keys newer than this program, and
// numbers it would round, go through unchanged.
type object []member

type member struct {
	key   string
	value json.RawMessage
	spelt []byte // the key as it came, quotes and all; nil for ours
}

// parseObject takes data apart. null and nothing at all are an empty object, as
// engines read them. It looks for the ends of members only (encoding/json takes
// five times as long): whether a member is valid is for whoever decodes it.
func parseObject(data []byte) (o object, err error) {
	_, err = eachMember(data, func(spelt []byte, begin, end int) error {
		if o == nil {
			o = make(object, 0, 32)
		}
		m := member{key: string(spelt[1 : len(spelt)-1]), spelt: spelt, value: data[begin:end]}
		if bytes.IndexByte(spelt, '\\') >= 0 {
			if err := json.Unmarshal(spelt, &m.key); err != nil {
				return err
			}
		}
		o = append(o, m)
		return nil
	})
	return o, err
}

// eachMember calls member with each key of an object, quotes and all, and where its value
// begins and ends. It returns where the object's closing brace is; 0 if there is no object,
// as in null.
func eachMember(data []byte, member func(spelt []byte, begin, end int) error) (closing int, err error) {
	s := scanner{data: data}
	switch s.next() {
	case 0:
		return 0, nil
	case '{':
	default:
		if string(bytes.TrimSpace(data)) == "null" {
			return 0, nil
		}
		return 0, errors.New("expected a JSON object")
	}
	s.at++
	for first := true; ; first = false {
		c := s.next()
		if c == '}' {
			return s.at, nil
		}
		if !first {
			if c != ',' {
				return 0, s.unexpected("after a member")
			}
			s.at++
			c = s.next()
		}
		if c != '"' {
			return 0, s.unexpected("where a key begins")
		}
		spelt, err := s.value()
		if err != nil {
			return 0, err
		}
		if s.next() != ':' {
			return 0, s.unexpected("after a key")
		}
		s.at++
		s.next()
		begin := s.at
		if _, err := s.value(); err != nil {
			return 0, err
		}
		if err := member(spelt, begin, s.at); err != nil {
			return 0, err
		}
	}
}

// placeOf tells where in an object the value of key stands, which is in exactly this
// spelling; begin is 0 if it is not there.
func placeOf(data []byte, key string) (begin, end int) {
	_, err := eachMember(data, func(spelt []byte, b, e int) error {
		if string(spelt[1:len(spelt)-1]) == key {
			begin, end = b, e
		}
		return nil
	})
	if err != nil {
		return 0, 0
	}
	return begin, end
}

// arrayItems cuts a JSON array into its items, as parseObject does an object.
func arrayItems(data []byte) (items []json.RawMessage, err error) {
	s := scanner{data: data}
	if s.next() != '[' {
		return nil, errors.New("expected a JSON array")
	}
	s.at++
	for first := true; ; first = false {
		c := s.next()
		if c == ']' && (first || len(items) > 0) {
			break
		}
		if !first {
			if c != ',' {
				return nil, s.unexpected("after an item")
			}
			s.at++
			s.next()
		}
		item, err := s.value()
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	if s.at++; s.next() != 0 {
		return nil, s.unexpected("behind the array")
	}
	return items, nil
}

// scanner finds where JSON values end.
type scanner struct {
	data []byte
	at   int
}

// next skips blanks and returns the byte there, 0 at the end.
func (s *scanner) next() byte {
	for ; s.at < len(s.data); s.at++ {
		switch c := s.data[s.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) unexpected(where string) error {
	if s.at >= len(s.data) {
		return errors.New("unexpected end of JSON input")
	}
	return fmt.Errorf("invalid character %q %s", s.data[s.at], where)
}

// value returns the bytes of the value that begins here, and goes past it.
func (s *scanner) value() ([]byte, error) {
	begin, depth := s.at, 0
	for ; s.at < len(s.data); s.at++ {
		switch s.data[s.at] {
		case '"':
			if !s.skipString() {
				return nil, s.unexpected("")
			}
			if depth == 0 {
				s.at++
				return s.data[begin:s.at], nil
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // the end of a number or word, and of the object around it
				return s.word(begin)
			}
			if depth--; depth == 0 {
				s.at++
				return s.data[begin:s.at], nil
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return s.word(begin)
			}
		}
	}
	return nil, s.unexpected("")
}

// word returns a number, true, false or null.
func (s *scanner) word(begin int) ([]byte, error) {
	w := s.data[begin:s.at]
	if !plainWord(w) && !json.Valid(w) {
		return nil, s.unexpected("where a value begins")
	}
	return w, nil
}

// plainWord tells of the commonest words at a glance that they are valid: true, false,
// null, and whole numbers from 0 on.
func plainWord(w []byte) bool {
	switch string(w) {
	case "true", "false", "null", "0":
		return true
	}
	for _, c := range w {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(w) > 0 && w[0] != '0'
}

// skipString goes to the closing quote; false if there is none.
func (s *scanner) skipString() bool {
	s.at++
	for s.at < len(s.data) {
		n := bytes.IndexByte(s.data[s.at:], '"')
		if n < 0 {
			break
		}
		escape := bytes.IndexByte(s.data[s.at:s.at+n], '\\')
		if escape < 0 {
			s.at += n
			return true
		}
		s.at += escape + 2 // past what is escaped
	}
	s.at = len(s.data)
	return false
}

// bytes puts the object together again.
func (o object) bytes() []byte {
	size := 2
	for _, m := range o {
		size += len(m.key) + len(m.spelt) + len(m.value) + 4
	}
	var b bytes.Buffer
	b.Grow(size)
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		spelt := m.spelt
		if spelt == nil {
			spelt, _ = json.Marshal(m.key)
		}
		b.Write(spelt)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// get returns the value of key in exactly this spelling, as engines write it; nil if it is not there.
func (o object) get(key string) json.RawMessage {
	for i := len(o) - 1; i >= 0; i-- {
		if o[i].key == key {
			return o[i].value
		}
	}
	return nil
}

// without cuts every spelling of key: an engine folds letter case, and of doubles the last wins.
func (o object) without(key string) object {
	kept := make(object, 0, len(o)+1)
	for _, m := range o {
		if !strings.EqualFold(m.key, key) {
			kept = append(kept, m)
		}
	}
	return kept
}

// withoutPath is without for a key within a key, such as HostConfig.Annotations.
func (o object) withoutPath(path string) object {
	key, rest, nested := strings.Cut(path, ".")
	if !nested {
		return o.without(key)
	}
	inner, err := parseObject(o.get(key))
	if err != nil || inner == nil {
		return o
	}
	return o.replace(key, inner.withoutPath(rest).bytes())
}

// with replaces every spelling of key by one, at the end.
func (o object) with(key string, value any) object {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err) // only values of our own come here: strings, numbers, maps of them
	}
	return append(o.without(key), member{key: key, value: raw})
}

// replace puts value in the place of key, or at the end if key is not there.
func (o object) replace(key string, value []byte) object {
	for i := range o {
		if o[i].key == key {
			o[i].value = value
			return o
		}
	}
	return append(o, member{key: key, value: value})
}

// editWithin has edit change the value of a key within a key of a body, such as
// HostConfig.DeviceRequests; all else stays as it came. Of doubles, an engine takes the
// last one that has the key.
func editWithin(body []byte, outer, key string, edit func(json.RawMessage) (any, error)) ([]byte, error) {
	o, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	for i := len(o) - 1; i >= 0; i-- {
		if !strings.EqualFold(o[i].key, outer) {
			continue
		}
		inner, err := parseObject(o[i].value)
		if err != nil {
			return nil, err
		}
		for j := len(inner) - 1; j >= 0; j-- {
			if !strings.EqualFold(inner[j].key, key) {
				continue
			}
			value, err := edit(inner[j].value)
			if err != nil {
				return nil, err
			}
			o[i].value = inner.with(key, value).bytes()
			return o.bytes(), nil
		}
	}
	return body, nil
}

// readBody reads a client's JSON body whole, up to maxJSON.
func readBody(r *http.Request) ([]byte, error) {
	b, ok := r.Body.(*clientBody)
	if ok {
		b.conn.SetReadDeadline(time.Now().Add(jsonWait))
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxJSON+1))
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "read request body: %v", err)
	}
	if len(data) > maxJSON {
		return nil, errorf(http.StatusRequestEntityTooLarge, "request body is over %d MiB", maxJSON>>20)
	}
	if ok {
		b.conn.SetReadDeadline(time.Time{})
	}
	return data, nil
}

const (
	jsonWait = time.Minute     // how long a client may take to send a JSON body
	dropWait = 5 * time.Second // and the rest of one that nobody reads
	bodyWait = 5 * time.Minute // and each piece of one that is passed on as it comes
)

// clientBody is a client's body: whether it broke off tells whose fault a failed call was.
type clientBody struct {
	io.ReadCloser
	conn   *http.ResponseController
	wait   time.Duration // for each piece; 0: for ever
	ended  atomic.Bool
	broken atomic.Bool
}

// stalls has the body break off when the client sends nothing for wait though it is
// waited for. Until the body has been read to its end.
func (b *clientBody) stalls(wait time.Duration) { b.wait = wait }

func (b *clientBody) Read(p []byte) (int, error) {
	if b.wait > 0 {
		b.conn.SetReadDeadline(time.Now().Add(b.wait))
	}
	n, err := b.ReadCloser.Read(p)
	if b.wait > 0 && err != nil {
		b.conn.SetReadDeadline(time.Time{})
	}
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	} else if err != nil {
		b.broken.Store(true)
	}
	return n, err
}

// drop is for what nobody has read: net/http reads on for a while to keep the
// connection, but it would wait for ever.
func (b *clientBody) drop() {
	if !b.ended.Load() && !b.broken.Load() {
		b.conn.SetReadDeadline(time.Now().Add(dropWait))
	}
}

// decodeBody reads data into wanted the way an engine does: letter case folded,
// the last of doubles wins, unknown keys ignored. Deep nesting and bytes after
// the object are refused.
func decodeBody(data []byte, wanted any) error {
	if err := checkDepth(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(wanted); err != nil {
		if errors.Is(err, io.EOF) {
			return errorf(http.StatusBadRequest, "invalid JSON: got EOF while reading request body")
		}
		return errorf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errorf(http.StatusBadRequest, "unexpected content after JSON")
	}
	return nil
}

// maxDepth bounds nesting in client bodies: real ones stay below 10.
const maxDepth = 200

func checkDepth(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return errorf(http.StatusBadRequest, "invalid JSON: nested deeper than %d", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// jsonText encodes a value of our own for a text column.
func jsonText(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps and structs of strings and numbers always encode
	}
	return string(data)
}
