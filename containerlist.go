package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// containerList answers docker ps from rows, with every filter Docker has and
// ours, node. Only sizes are asked of the engines.
func containerList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	c.nodes.listBegins()
	defer c.nodes.release()
	l, err := c.newContainerLister(r.Context(), call)
	if err != nil {
		return err
	}
	c.nodes.settle(r.Context())
	if isTrue(call.query, "size") {
		if l.sizes, err = c.containerSizes(r.Context()); err != nil {
			return err
		}
	}
	if c.relay != nil {
		l.relay = c.relay
		if l.relayed, err = c.store.allRelayed(r.Context()); err != nil {
			return err
		}
	}
	builtin, err := c.store.builtinIDs(r.Context())
	if err != nil {
		return err
	}
	faces, err := c.store.listFaces(r.Context())
	if err != nil {
		return err
	}
	newest := c.nodes.fleet.Load().newest
	for _, face := range faces {
		newest = max(newest, face.newest)
	}
	l.cutFor(newest)
	// What no filter looks at is not fetched: of thirty thousand rows each column costs.
	columns, where := "c.summary, c.node_id, c.status_head, c.status_at, c.status_tail", ""
	if l.looks() {
		columns += ", c.state, c.age, c.container_id, c.name, c.image, c.image_id"
	} else if !l.all && l.limit <= 0 {
		where = " WHERE c.state IN ('running', 'paused', 'restarting', 'stopping')"
	}
	rows, err := c.store.scan(r.Context(), "SELECT "+columns+" FROM containers c"+where+" ORDER BY c.age DESC")
	if err != nil {
		return err
	}
	defer rows.close()
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(w, 64<<10)
	out.WriteByte('[')
	shown := 0
	for (l.limit <= 0 || shown < l.limit) && rows.next() {
		node := rows.int(1)
		face, known := faces[node]
		if !known {
			continue // made on a node that has just joined: the list is as of a moment before
		}
		e := &listed{listFace: face, summary: l.shownIDs(rows.text(0), builtin[node])}
		if l.looks() {
			e.head, e.tail, e.state = string(rows.text(2)), string(rows.text(4)), string(rows.text(5))
			e.age, e.id, e.name = rows.int(6), string(rows.text(7)), string(rows.text(8))
			e.image, e.imageID = string(rows.text(9)), string(rows.text(10))
			if !l.match(e) {
				continue
			}
		}
		if shown > 0 {
			out.WriteByte(',')
		}
		shown++
		status := l.status(face.nodeState, rows.text(2), rows.text(4), !rows.null(3), rows.int(3))
		if err := writeEntry(out, status, l.shaped(e)); err != nil {
			return err
		}
	}
	if rows.err != nil {
		// Half a list must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
	out.WriteString("]\n")
	return out.Flush()
}

// looks tells whether the list looks at what a container is called and made of.
func (l *containerLister) looks() bool {
	return len(l.filters) > 0 || l.sizes != nil || l.relay != nil || l.names != "plain"
}

// containerLister is a list request, understood.
type containerLister struct {
	filters         listFilters
	all             bool
	limit           int
	names           string
	version         apiVersion // the client's
	cut             []cutField
	now             time.Time
	buf             []byte // of the entry under way
	words           statusMemo
	exited          map[string]bool
	publish, expose map[string]bool
	ids, ancestors  map[string]bool
	isTask, taskSet bool
	before, since   *int64 // ages
	sizes           map[string]containerSize
	relay           *portRelay
	relayed         map[string]map[relayedPort]int // by container ID, with -relay-ports
}

type containerSize struct{ SizeRw, SizeRootFs json.RawMessage }

var containerFilters = []string{"ancestor", "before", "exited", "expose", "health", "id", "isolation", "is-task", "label",
	"name", "network", "node", "publish", "since", "status", "volume"}

func (c *cluster) newContainerLister(ctx context.Context, call *call) (*containerLister, error) {
	f, err := parseFilters(call.query, containerFilters...)
	if err != nil {
		return nil, err
	}
	l := &containerLister{filters: f, all: isTrue(call.query, "all"), names: c.names, version: call.version, now: time.Now()}
	if s := call.query.Get("limit"); s != "" {
		if l.limit, err = strconv.Atoi(s); err != nil {
			return nil, errorf(http.StatusBadRequest, "%v", err)
		}
	}
	for _, s := range f["status"] {
		if !slices.Contains(containerStates, s) {
			return nil, errorf(http.StatusBadRequest, "invalid filter 'status=%s': invalid value for state (%s): must be one of created, running, paused, restarting, removing, exited, dead", s, s)
		}
		l.all = true
	}
	for _, s := range f["health"] {
		if !slices.Contains([]string{"none", "starting", "healthy", "unhealthy"}, s) {
			return nil, errorf(http.StatusBadRequest, "invalid filter 'health=%s': invalid value for health (%s): must be one of none, starting, healthy, unhealthy", s, s)
		}
	}
	l.exited = map[string]bool{}
	for _, s := range f["exited"] {
		code, err := strconv.Atoi(s)
		if err != nil {
			return nil, errorf(http.StatusBadRequest, "invalid filter 'exited=%s': %v", s, err)
		}
		l.exited[strconv.Itoa(code)] = true
	}
	if l.isTask, l.taskSet, err = f.boolean("is-task"); err != nil {
		return nil, err
	}
	if l.publish, err = f.portSet("publish"); err != nil {
		return nil, err
	}
	if l.expose, err = f.portSet("expose"); err != nil {
		return nil, err
	}
	if f.has("id") {
		if l.ids, err = c.wholeIDs(ctx, f["id"]); err != nil {
			return nil, err
		}
	}
	if f.given("ancestor") {
		if l.ancestors, err = c.descendants(ctx, f["ancestor"]); err != nil {
			return nil, err
		}
	}
	if l.before, err = c.age(ctx, f["before"]); err != nil {
		return nil, err
	}
	l.since, err = c.age(ctx, f["since"])
	return l, err
}

// age finds the container that before or since names.
func (c *cluster) age(ctx context.Context, refs []string) (*int64, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	found, err := c.lookUp(ctx, refs[0])
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errorf(http.StatusNotFound, "No such container: %s", refs[0])
	}
	var age int64
	err = c.store.get(ctx, "SELECT age FROM containers WHERE container_id = ? AND node_id = ?", []any{found[0].id, found[0].node}, &age)
	return &age, err
}

// wholeIDs are the containers that the filter id names: each by its ID or a prefix
// that only one has. Others match nothing, as on an engine.
func (c *cluster) wholeIDs(ctx context.Context, refs []string) (map[string]bool, error) {
	ids := map[string]bool{}
	for _, ref := range refs {
		if !isHex(ref) {
			continue
		}
		var count int
		var id string
		err := c.store.get(ctx, "SELECT count(DISTINCT container_id), coalesce(min(container_id), '') FROM containers WHERE container_id >= ? AND container_id < ?",
			[]any{ref, ref + "g"}, &count, &id)
		if err != nil {
			return nil, err
		}
		if count == 1 {
			ids[id] = true
		}
	}
	return ids, nil
}

// descendants are the IDs of the images that refs name, and of all built from them.
func (c *cluster) descendants(ctx context.Context, refs []string) (map[string]bool, error) {
	ids := map[string]bool{}
	for _, ref := range refs {
		bare := strings.TrimPrefix(ref, "sha256:")
		low, high := "sha256:"+bare, "sha256:"+bare+"g"
		if !isHex(bare) {
			low, high = "", ""
		}
		rows, err := c.store.query(ctx, `
			WITH RECURSIVE a (id) AS (
				SELECT image_id FROM image_names WHERE name = ?1
				UNION SELECT image_id FROM images WHERE image_id >= ?2 AND image_id < ?3
				UNION SELECT i.image_id FROM images i JOIN a ON i.parent_id = a.id)
			SELECT id FROM a`, imageName(ref), low, high)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				rows.Close()
				return nil, err
			}
			ids[id] = true
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// listed is one row on its way into the list. Its JSON is decoded only for filters that need it.
type listed struct {
	*listFace
	id, name, image, imageID, state, head, tail string // set if filters look
	age                                         int64
	summary                                     []byte // valid until the next row
	decoded                                     *listedEntry
}

func (e *listed) entry() *listedEntry {
	if e.decoded == nil {
		e.decoded = &listedEntry{}
		json.Unmarshal(e.summary, e.decoded) // what does not fit stays empty and matches nothing
	}
	return e.decoded
}

// match tells whether a row passes every filter; semantics are the engine's.
func (l *containerLister) match(e *listed) bool {
	f := l.filters
	switch {
	case !l.all && l.limit <= 0 && e.state != "running" && e.state != "paused" && e.state != "restarting" && e.state != "stopping":
		return false
	case !f.exact("node", e.node), !f.exact("status", e.state):
		return false
	case l.ids != nil && !l.ids[e.id], !f.pattern("name", e.name, "/"+e.name):
		return false
	case l.taskSet && l.isTask:
		return false // tasks belong to Swarm mode
	case len(l.exited) > 0 && !l.exited[exitCode(e.head)]:
		return false
	case f.has("health") && !slices.Contains(f["health"], healthOf(e.tail)):
		return false
	case l.ancestors != nil && !l.ancestors[e.imageID] && (e.imageID != "" || !slices.Contains(f["ancestor"], e.image)):
		return false // a row whose ID has not been read yet has the name it was made with
	case l.before != nil && e.age >= *l.before, l.since != nil && e.age <= *l.since:
		return false
	case f.has("label") && !f.labels("label", e.entry().Labels):
		return false
	case f.has("volume") && !l.matchVolume(e), f.has("network") && !l.matchNetwork(e):
		return false
	}
	return l.matchPorts(e)
}

// matchVolume looks at volumes by name, at others by source, and at where they are mounted.
func (l *containerLister) matchVolume(e *listed) bool {
	return slices.ContainsFunc(e.entry().Mounts, func(m entryMount) bool {
		return l.filters.exact("volume", cmp.Or(m.Name, m.Source)) || l.filters.exact("volume", m.Destination)
	})
}

func (l *containerLister) matchNetwork(e *listed) bool {
	for _, want := range l.filters["network"] {
		for name, n := range e.entry().NetworkSettings.Networks {
			if name == want || strings.HasPrefix(n.NetworkID, want) {
				return true
			}
		}
	}
	return false
}

// matchPorts: a port that is published or one that is exposed is enough, on an engine too.
func (l *containerLister) matchPorts(e *listed) bool {
	if len(l.publish) == 0 && len(l.expose) == 0 {
		return true
	}
	return slices.ContainsFunc(e.entry().Ports, func(p entryPort) bool {
		return l.publish[strconv.Itoa(int(p.PublicPort))+"/"+p.Type] || l.expose[strconv.Itoa(int(p.PrivatePort))+"/"+p.Type]
	})
}

// exitCode reads the code out of "Exited (0) ".
func exitCode(head string) string {
	code, ok := strings.CutPrefix(head, "Exited (")
	if !ok {
		return ""
	}
	code, _, _ = strings.Cut(code, ")")
	return code
}

// healthOf reads the health out of " (healthy)".
func healthOf(tail string) string {
	switch {
	case strings.HasSuffix(tail, "(healthy)"):
		return "healthy"
	case strings.HasSuffix(tail, "(unhealthy)"):
		return "unhealthy"
	case strings.HasSuffix(tail, "(health: starting)"):
		return "starting"
	}
	return "none"
}
