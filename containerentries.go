package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// listFace is what a node lends the list entries of its containers.
type listFace struct {
	node, nodeIP, nodeState string
	newest                  apiVersion // that its entries may be of
}

func (s *store) listFaces(ctx context.Context) (map[int64]*listFace, error) {
	rows, err := s.scan(ctx, "SELECT id, name, ip, state, api_version FROM nodes")
	if err != nil {
		return nil, err
	}
	defer rows.close()
	faces := map[int64]*listFace{}
	for rows.next() {
		f := &listFace{node: string(rows.text(1)), nodeIP: string(rows.text(2)), nodeState: string(rows.text(3))}
		f.newest, _ = parseAPIVersion(string(rows.text(4))) // none yet: no entries
		faces[rows.int(0)] = f
	}
	return faces, rows.err
}

// writeEntry puts one entry out: the stored one, with its status in front.
func writeEntry(out *bufio.Writer, status, summary []byte) error {
	out.WriteString(`{"Status":`)
	out.Write(status)
	if len(summary) > 2 {
		out.WriteByte(',')
	}
	_, err := out.Write(summary[1:])
	return err
}

// statusMemo is the status that was told last. Neighbours in the list are often of one age.
type statusMemo struct {
	node, head, tail string
	timed            bool
	at               int64
	text             []byte
}

// status is a container's status as of now, JSON: head, the time since at, tail.
func (l *containerLister) status(node string, head, tail []byte, timed bool, at int64) []byte {
	m := &l.words
	if m.text != nil && m.node == node && m.at == at && m.timed == timed && m.head == string(head) && m.tail == string(tail) {
		return m.text
	}
	*m = statusMemo{node: node, head: string(head), tail: string(tail), timed: timed, at: at}
	var since *int64
	if timed {
		since = &at
	}
	status := statusText(m.head, since, m.tail, l.now)
	if node == "unhealthy" || node == "duplicate" {
		status = "Host Down"
	}
	if node == "pending" {
		status += " (unconfirmed)" // of before the manager started
	}
	m.text, _ = json.Marshal(status) // a string always has a text
	return m.text
}

// shownIDs is an entry with the IDs of built-in networks that lists show.
func (l *containerLister) shownIDs(summary []byte, ids []builtinID) []byte {
	if len(ids) == 0 {
		return summary
	}
	const key = `NetworkID":"` // quotes are everywhere, and a search that begins with one is slow
	l.buf = l.buf[:0]
	for {
		i := bytes.Index(summary, []byte(key))
		if i < 0 {
			break
		}
		own := ids
		if i == 0 || summary[i-1] != '"' {
			own = nil // a longer key's end
		}
		l.buf, summary = append(l.buf, summary[:i+len(key)]...), summary[i+len(key):]
		for _, id := range own {
			if rest, ok := bytes.CutPrefix(summary, []byte(id.own)); ok && len(rest) > 0 && rest[0] == '"' {
				l.buf, summary = append(l.buf, id.shown...), rest
				break
			}
		}
	}
	l.buf = append(l.buf, summary...)
	return l.buf
}

// cutField is a key of an entry that this client's version has not.
type cutField struct {
	path   string
	quoted []byte // its last key, as an entry has it
}

// cutFor decides which fields are cut from entries of versions up to newest.
func (l *containerLister) cutFor(newest apiVersion) {
	for _, f := range listFields {
		if l.version != 0 && l.version < f.from && f.from <= newest {
			l.cut = append(l.cut, cutField{f.key, []byte(`"` + f.key[strings.IndexByte(f.key, '.')+1:] + `"`)})
		}
	}
}

// shaped is the stored entry as this client gets it: names by -names, sizes if
// asked for, and no fields that are newer than the client's version.
func (l *containerLister) shaped(e *listed) []byte {
	cut := slices.ContainsFunc(l.cut, func(f cutField) bool { return bytes.Contains(e.summary, f.quoted) })
	size, sized := l.sizes[e.id]
	relayed := l.relayed[e.id]
	if !cut && !sized && relayed == nil && l.names == "plain" {
		return e.summary
	}
	o, err := parseObject(e.summary)
	if err != nil {
		return e.summary
	}
	for _, f := range l.cut {
		o = o.withoutPath(f.path)
	}
	if sized {
		if size.SizeRw != nil {
			o = o.replace("SizeRw", size.SizeRw)
		}
		if size.SizeRootFs != nil {
			o = o.replace("SizeRootFs", size.SizeRootFs)
		}
	}
	if relayed != nil {
		o = o.replace("Ports", l.relay.shownEntryPorts(o.get("Ports"), e.nodeIP, relayed))
	}
	var names []string
	if l.names != "plain" && json.Unmarshal(o.get("Names"), &names) == nil {
		node := "/" + e.node + "/" + e.name
		if l.names == "node" {
			names = []string{node}
		} else {
			names = append(names, node)
		}
		o = o.with("Names", names)
	}
	return o.bytes()
}

// containerSizes asks every healthy engine for its containers' sizes, by ID.
func (c *cluster) containerSizes(ctx context.Context) (map[string]containerSize, error) {
	engines := c.healthyEngines()
	found := make([][]struct {
		Id string
		containerSize
	}, len(engines))
	var g errgroup.Group
	g.SetLimit(64)
	for i, e := range engines {
		g.Go(func() error {
			// A node that does not answer leaves its sizes out; its containers are listed all the same.
			if err := e.getWithin(ctx, "/containers/json", "all=1&size=1", &found[i], newRoom(maxAnswer)); err != nil {
				c.log.Warn("sizes not read", "node", e.nodeName(), "err", oneLine(err))
			}
			return nil
		})
	}
	g.Wait()
	sizes := map[string]containerSize{}
	for _, list := range found {
		for _, s := range list {
			sizes[s.Id] = s.containerSize
		}
	}
	return sizes, ctx.Err()
}
