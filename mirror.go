package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	units "github.com/docker/go-units"
	"golang.org/x/sync/errgroup"
)

// lists is what an engine has, as it lists it.
type lists struct {
	containers, images, networks, volumes []json.RawMessage
}

// list reads all that the node has and makes its rows so. A list that fails
// changes nothing.
func (ns *nodes) list(ctx context.Context, e *engine) error {
	e.marks.hold()
	defer e.marks.release()
	before, err := ns.store.newestContainer(ctx, e.id)
	if err != nil {
		return err
	}
	var l lists
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.getJSON(gctx, "/images/json", "all=1", &l.images) })
	g.Go(func() error { return e.getJSON(gctx, "/networks", "", &l.networks) })
	g.Go(func() error {
		var v struct{ Volumes []json.RawMessage }
		err := e.getJSON(gctx, "/volumes", "", &v)
		l.volumes = v.Volumes
		return err
	})
	g.Go(func() error {
		for try := 0; ; try++ {
			l.containers = nil
			if err := e.getJSON(gctx, "/containers/json", "all=1", &l.containers); err != nil {
				return err
			}
			// An empty list after a non-empty one may be an engine that is still loading.
			if len(l.containers) > 0 || before.rows == 0 || try > 0 {
				return nil
			}
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	look, err := ns.store.putLists(ctx, e.id, l, before.id)
	if err != nil {
		return err
	}
	for _, id := range look {
		e.marks.add(mark{"container", id})
	}
	return nil
}

// readMark reads one thing again and writes or deletes its row. What goes wrong
// is left to the next list.
func (ns *nodes) readMark(ctx context.Context, e *engine, k mark) {
	if err := ns.readThing(ctx, e, k); err != nil && ctx.Err() == nil {
		ns.log.Warn("not read again", "node", e.nodeName(), "what", k.kind, "id", k.id, "err", err)
	}
}

func (ns *nodes) readThing(ctx context.Context, e *engine, k mark) error {
	switch k.kind {
	case "container":
		return ns.readContainer(ctx, e, k.id)
	case "update": // what it reserves may have changed, which only an inspect tells
		err := ns.store.write(ctx, func(t *tx) error {
			_, err := t.exec("UPDATE containers SET inspected = 0 WHERE node_id = ? AND container_id = ?", e.id, k.id)
			return err
		})
		if err != nil {
			return err
		}
		return ns.readContainer(ctx, e, k.id)
	case "images":
		var images []json.RawMessage
		if err := e.getJSON(ctx, "/images/json", "all=1", &images); err != nil {
			return err
		}
		return ns.store.write(ctx, func(t *tx) error { return t.putImages(e.id, images) })
	case "network":
		// By list, not by inspect: the list entry is what is stored.
		var found []json.RawMessage
		if err := e.getJSON(ctx, "/networks", filterQuery("id", k.id), &found); err != nil {
			return err
		}
		return ns.store.write(ctx, func(t *tx) error { return t.putNetwork(e.id, k.id, found) })
	case "volume":
		var found json.RawMessage
		err := e.getJSON(ctx, "/volumes/"+url.PathEscape(k.id), "", &found)
		if err != nil && !errors.Is(err, errNotFound) {
			return err
		}
		return ns.store.write(ctx, func(t *tx) error { return t.putVolume(e.id, k.id, found) })
	case "info":
		facts, err := ns.connect(ctx, e)
		if err != nil {
			return err
		}
		_, err = ns.store.nodeUp(ctx, e.id, facts)
		return err
	}
	return fmt.Errorf("nothing known to read of kind %q", k.kind)
}

// filterQuery is a list filter on one exact value, as a query.
func filterQuery(key, value string) string {
	f, _ := json.Marshal(map[string][]string{key: {value}})
	return "all=1&filters=" + url.QueryEscape(string(f))
}

// readContainer reads a container's list entry, and its inspect when the entry
// cannot tell what it reserves or since when it runs.
func (ns *nodes) readContainer(ctx context.Context, e *engine, id string) error {
	var found []json.RawMessage
	if err := e.getJSON(ctx, "/containers/json", filterQuery("id", id), &found); err != nil {
		return err
	}
	var look bool
	err := ns.store.write(ctx, func(t *tx) error {
		n, err := t.nodeFace(e.id)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			_, err := t.exec("DELETE FROM containers WHERE node_id = ? AND container_id = ?", e.id, id)
			return err
		}
		row, err := n.container(found[0])
		if err != nil {
			return fmt.Errorf("bad list entry: %w", err)
		}
		look, err = t.putContainer(n, row)
		return err
	})
	if err != nil || !look {
		return err
	}
	var in inspected
	if err := e.getJSON(ctx, "/containers/"+url.PathEscape(id)+"/json", "", &in); err != nil {
		if errors.Is(err, errNotFound) {
			return nil // gone meanwhile: its destroy event follows
		}
		return err
	}
	return ns.store.write(ctx, func(t *tx) error { return t.putInspected(e.id, id, &in) })
}

// inspected is what we read of a container's inspect.
type inspected struct {
	State struct {
		Status                string
		StartedAt, FinishedAt time.Time
	}
	HostConfig hostConfig
}

// nodeFace is what a node lends its rows: list entries are stored as they are
// shown, with the node's label and its address for published ports.
type nodeFace struct {
	id           int64
	name, ip     string
	skew         time.Duration
	countStopped bool
	now          time.Time
}

func (t *tx) nodeFace(id int64) (*nodeFace, error) {
	n := &nodeFace{id: id, now: time.Now()}
	var skew int64
	err := t.get("SELECT n.name, n.ip, n.clock_skew_ms, m.count_stopped FROM nodes n, manager m WHERE n.id = ?",
		[]any{id}, &n.name, &n.ip, &skew, &n.countStopped)
	n.skew = time.Duration(skew) * time.Millisecond
	return n, err
}

// containerRow is a container as its engine lists it, ready for its rows.
type containerRow struct {
	id, name, image, imageID, state string
	created                         int64
	status                          statusWords
	labels                          map[string]string
	ports                           []entryPort
	mounts                          []entryMount
	networks                        map[string]struct{ NetworkID string }
	counted                         bool
	summary                         []byte
}

type entryPort struct {
	IP                      string `json:",omitempty"`
	PrivatePort, PublicPort uint16
	Type                    string
}

type entryMount struct{ Type, Name, Source, Destination string }

// nodeLabel is shown on every container, so that docker ps can tell where things are.
const nodeLabel = "com.docker.swarm.node"

// container makes a row of a list entry. Text is made valid and bounded before
// the database sees it; an entry of the wrong shape is an error.
func (n *nodeFace) container(raw json.RawMessage) (*containerRow, error) {
	var entry struct {
		Id, Image, ImageID, State, Status string
		Names                             []string
		Created                           int64
		Labels                            map[string]string
		Ports                             []entryPort
		Mounts                            []entryMount
		NetworkSettings                   struct {
			Networks map[string]struct{ NetworkID string }
		}
	}
	if err := json.Unmarshal(raw, &entry); err != nil {
		return nil, err
	}
	if entry.Id == "" {
		return nil, errors.New("no Id")
	}
	r := &containerRow{id: entry.Id, image: bounded(entry.Image), imageID: entry.ImageID, created: entry.Created,
		labels: entry.Labels, ports: entry.Ports, mounts: entry.Mounts, networks: entry.NetworkSettings.Networks,
		name: plainName(entry.Names), state: entry.State, status: splitStatus(entry.Status)}
	if !slices.Contains(containerStates, r.state) {
		r.state = stateOfStatus(entry.Status)
	}
	r.counted = n.countStopped || counts(r.state)
	o, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{nodeLabel: n.name}
	for k, v := range entry.Labels {
		if k != nodeLabel {
			labels[k] = v
		}
	}
	o = o.without("Status")
	if l, err := json.Marshal(labels); err == nil {
		o = o.replace("Labels", l)
	}
	if ports := n.shownPorts(o.get("Ports")); ports != nil {
		o = o.replace("Ports", ports)
	}
	r.summary = []byte(strings.ToValidUTF8(string(o.bytes()), "\uFFFD"))
	if len(r.summary) > maxSummary {
		return nil, fmt.Errorf("entry of %d bytes", len(r.summary))
	}
	return r, nil
}

var containerStates = []string{"created", "running", "paused", "restarting", "removing", "exited", "dead", "stopping"}

// counts tells whether a container in this state takes room: those that run, or are about to.
func counts(state string) bool {
	switch state {
	case "running", "paused", "restarting", "created", "stopping":
		return true
	}
	return false
}

// stateOfStatus reads the state out of the words, for engines whose list has no State.
func stateOfStatus(status string) string {
	for prefix, state := range map[string]string{"Up": "running", "Exited": "exited", "Created": "created",
		"Restarting": "restarting", "Dead": "dead", "Removal": "removing"} {
		if strings.HasPrefix(status, prefix) {
			if strings.HasSuffix(status, "(Paused)") {
				return "paused"
			}
			return state
		}
	}
	return "unknown"
}

// plainName is the container's own name: the one with no inner slash; others are link aliases.
func plainName(names []string) string {
	for _, name := range names {
		if bare := strings.TrimPrefix(name, "/"); !strings.Contains(bare, "/") {
			return bounded(bare)
		}
	}
	return ""
}

const (
	maxText    = 64 << 10 // of one string from an engine
	maxSummary = 4 << 20  // of one list entry
)

// bounded makes hostile text fit for the database.
func bounded(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD")
}

// summaryText is a list entry as it is stored; "" if it is too large to be one.
func summaryText(raw json.RawMessage) string {
	if len(raw) > maxSummary {
		return ""
	}
	return strings.ToValidUTF8(string(raw), "\uFFFD")
}

// shownPorts shows ports published on every address with the node's own: one
// entry, not one for IPv4 and one for IPv6. nil: nothing to change.
func (n *nodeFace) shownPorts(raw json.RawMessage) json.RawMessage {
	var ports []json.RawMessage
	if n.ip == "" || json.Unmarshal(raw, &ports) != nil {
		return nil
	}
	seen := map[string]bool{}
	kept := ports[:0]
	for _, p := range ports {
		o, err := parseObject(p)
		if err != nil {
			return nil
		}
		var ip string
		if json.Unmarshal(o.get("IP"), &ip) == nil && ip != "" && everyIP(ip) == "" {
			shown, _ := json.Marshal(n.ip)
			p = o.replace("IP", shown).bytes()
		}
		if seen[string(p)] {
			continue
		}
		seen[string(p)] = true
		kept = append(kept, p)
	}
	out, err := json.Marshal(kept)
	if err != nil {
		return nil
	}
	return out
}

// statusWords is the Status of a list entry, taken apart around its time, so
// that "Up 5 minutes" can be told anew whenever it is shown.
type statusWords struct {
	head, words, tail string
	age               time.Duration
	timed             bool // there is a time between head and tail
}

var statusShape = regexp.MustCompile(`^(Up |Exited \(-?\d+\) |Restarting \(-?\d+\) )(Less than a second|About a minute|About an hour|(\d+) (second|minute|hour|day|week|month|year)s?)((?: ago)?(?: \(.*\))?)$`)

func splitStatus(status string) statusWords {
	m := statusShape.FindStringSubmatch(status)
	if m == nil {
		return statusWords{head: bounded(status)}
	}
	s := statusWords{head: m[1], words: m[2], tail: m[5], timed: true}
	switch {
	case m[2] == "About a minute":
		s.age = time.Minute
	case m[2] == "About an hour":
		s.age = time.Hour
	case m[3] != "":
		n, _ := strconv.Atoi(m[3])
		s.age = time.Duration(n) * map[string]time.Duration{"second": time.Second, "minute": time.Minute, "hour": time.Hour,
			"day": 24 * time.Hour, "week": 7 * 24 * time.Hour, "month": 30 * 24 * time.Hour, "year": 365 * 24 * time.Hour}[m[4]]
	}
	return s
}

// exact tells whether the words give the time to the second.
func (s statusWords) exact() bool { return !s.timed || s.age < time.Minute }

// statusText puts the words together again for now.
func statusText(head string, at *int64, tail string, now time.Time) string {
	if at == nil {
		return head
	}
	return head + units.HumanDuration(max(now.Sub(time.Unix(*at, 0)), 0)) + tail
}

// putContainer writes a container's rows if they differ from what is there. It
// reports whether an inspect is wanted: what the container reserves is unknown,
// or its words have a time that the row cannot explain.
func (t *tx) putContainer(n *nodeFace, r *containerRow) (look bool, err error) {
	var old struct {
		id                               int64
		summary, name, state, head, tail string
		at                               *int64
		known, counted                   bool
	}
	err = t.get(`SELECT id, summary, name, state, status_head, status_at, status_tail, inspected, counted
		FROM containers WHERE container_id = ? AND node_id = ?`, []any{r.id, n.id},
		&old.id, &old.summary, &old.name, &old.state, &old.head, &old.at, &old.tail, &old.known, &old.counted)
	exists := err == nil
	if err != nil && !errors.Is(err, errNotFound) {
		return false, err
	}
	var at *int64
	known := old.known
	if r.status.timed {
		since := n.now.Add(-r.status.age).Unix()
		at = &since
		switch {
		case exists && old.at != nil && old.head == r.status.head && sameWords(n.now, *old.at, r.status.words):
			at = old.at
		case !r.status.exact():
			known = false
		}
	}
	if exists && old.summary == string(r.summary) && old.name == r.name && old.state == r.state && old.head == r.status.head &&
		old.tail == r.status.tail && old.counted == r.counted && (old.at == at || old.at != nil && at != nil && *old.at == *at) {
		return !known, nil
	}
	if !exists {
		res, err := t.exec(`INSERT INTO containers (node_id, container_id, name, image, image_id, state, created_at,
			status_head, status_at, status_tail, swarm_id, counted, summary) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)`,
			n.id, r.id, r.name, r.image, r.imageID, r.state, r.created, r.status.head, at, r.status.tail,
			r.labels[swarmIDLabel], r.counted, string(r.summary))
		if err != nil {
			return false, err
		}
		old.id, _ = res.LastInsertId()
	} else if _, err := t.exec(`UPDATE containers SET name = ?, image = ?, image_id = ?, state = ?, created_at = ?, status_head = ?,
			status_at = ?, status_tail = ?, swarm_id = ?, counted = ?, inspected = ?, summary = ? WHERE id = ?`,
		r.name, r.image, r.imageID, r.state, r.created, r.status.head, at, r.status.tail, r.labels[swarmIDLabel],
		r.counted, known, string(r.summary), old.id); err != nil {
		return false, err
	}
	return !known, t.putContainerParts(n, old.id, r)
}

// sameWords tells whether a container that is in its state since at would be
// described with these words. A second to either side counts: the engine counted at another moment.
func sameWords(now time.Time, at int64, words string) bool {
	d := now.Sub(time.Unix(at, 0))
	for _, off := range []time.Duration{0, -time.Second, time.Second, -2 * time.Second} {
		if units.HumanDuration(max(d+off, 0)) == words {
			return true
		}
	}
	return false
}

// putContainerParts writes the tables beside a container's row.
func (t *tx) putContainerParts(n *nodeFace, id int64, r *containerRow) error {
	for _, table := range []string{"container_labels", "mounts", "container_networks"} {
		if _, err := t.exec("DELETE FROM "+table+" WHERE container = ?", id); err != nil {
			return err
		}
	}
	for k, v := range r.labels {
		if _, err := t.exec("INSERT INTO container_labels VALUES (?,?,?)", id, bounded(k), bounded(v)); err != nil {
			return err
		}
	}
	for _, m := range r.mounts {
		name := m.Name
		if m.Type != "" && m.Type != "volume" {
			name = ""
		}
		if _, err := t.exec("INSERT OR IGNORE INTO mounts VALUES (?,?,?,?,?)", id, m.Type, bounded(name), bounded(m.Source), bounded(m.Destination)); err != nil {
			return err
		}
	}
	for name, net := range r.networks {
		if _, err := t.exec("INSERT INTO container_networks VALUES (?,?,?)", id, bounded(name), bounded(net.NetworkID)); err != nil {
			return err
		}
	}
	// A container that was never started lists no ports: those it was promised stay.
	if r.state == "created" {
		return nil
	}
	return t.putPorts(n.id, id, heldPorts(r.state, r.ports))
}

// heldPorts are the host ports a listed container holds; a stopped one holds none.
func heldPorts(state string, ports []entryPort) []hostPort {
	if !counts(state) {
		return nil
	}
	var held []hostPort
	for _, p := range ports {
		if p.PublicPort != 0 {
			held = append(held, hostPort{everyIP(p.IP), int(p.PublicPort), int(p.PublicPort), p.Type})
		}
	}
	return held
}

func (t *tx) putPorts(node, container int64, ports []hostPort) error {
	if _, err := t.exec("DELETE FROM ports WHERE container = ?", container); err != nil {
		return err
	}
	seen := map[hostPort]bool{}
	for _, p := range ports {
		if seen[p] {
			continue
		}
		seen[p] = true
		if _, err := t.exec("INSERT INTO ports (node_id, container, host_ip, host_port, last_port, protocol) VALUES (?,?,?,?,?,?)",
			node, container, p.ip, p.first, p.last, p.protocol); err != nil {
			return err
		}
	}
	return nil
}

// putInspected writes what only an inspect tells: reservations, and exact times.
func (t *tx) putInspected(node int64, containerID string, in *inspected) error {
	n, err := t.nodeFace(node)
	if err != nil {
		return err
	}
	var id int64
	var head, state string
	err = t.get("SELECT id, status_head, state FROM containers WHERE node_id = ? AND container_id = ?", []any{node, containerID}, &id, &head, &state)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	since := in.State.FinishedAt
	if strings.HasPrefix(head, "Up ") {
		since = in.State.StartedAt
	}
	var at *int64
	if since.Year() > 1 { // the zero time: never started, or never stopped
		s := since.Add(-n.skew).Unix()
		at = &s
	}
	_, err = t.exec(`UPDATE containers SET inspected = 1, nano_cpus = ?, memory_bytes = ?,
		status_at = CASE WHEN status_at IS NULL THEN NULL ELSE coalesce(?, status_at) END WHERE id = ?`,
		in.HostConfig.nanoCPUs(), in.HostConfig.memoryBytes(), at, id)
	if err == nil && state == "created" {
		err = t.putPorts(node, id, in.HostConfig.ports())
	}
	return err
}

// mirrorState is how far a node's rows went before a list was asked for.
type mirrorState struct {
	id   int64 // of the newest container row of any node
	rows int64 // containers known on the node
}

func (s *store) newestContainer(ctx context.Context, node int64) (m mirrorState, err error) {
	// Read in the writer's line: a create that has been answered is committed and must be counted.
	err = s.write(ctx, func(t *tx) error {
		return t.get("SELECT (SELECT coalesce(max(id), 0) FROM containers), (SELECT count(*) FROM containers WHERE node_id = ?)",
			[]any{node}, &m.id, &m.rows)
	})
	return m, err
}

// putLists makes a node's rows what its engine lists. Container rows newer than
// before were written by creates while the list was on its way; they stay. It
// returns the containers that want an inspect.
func (s *store) putLists(ctx context.Context, node int64, l lists, before int64) (look []string, err error) {
	err = s.write(ctx, func(t *tx) error {
		look = nil
		n, err := t.nodeFace(node)
		if err != nil {
			return err
		}
		listed := map[string]bool{}
		bad := 0
		for _, raw := range l.containers {
			row, err := n.container(raw)
			if err != nil {
				bad++
				continue
			}
			listed[row.id] = true
			want, err := t.putContainer(n, row)
			if err != nil {
				return err
			}
			if want {
				look = append(look, row.id)
			}
		}
		if bad == 0 {
			if err := t.dropUnlisted(node, listed, before); err != nil {
				return err
			}
		}
		if err := t.putImages(node, l.images); err != nil {
			return err
		}
		if err := t.putNetworks(node, l.networks); err != nil {
			return err
		}
		if err := t.putVolumes(node, l.volumes); err != nil {
			return err
		}
		note := ""
		if bad > 0 {
			note = fmt.Sprintf("bad answer: %d of %d containers in the list have a wrong shape", bad, len(l.containers))
		}
		_, err = t.exec("UPDATE nodes SET error = ?, confirmed = 1 WHERE id = ? AND (error <> ? OR confirmed = 0)", note, node, note)
		return err
	})
	return look, err
}

func (t *tx) dropUnlisted(node int64, listed map[string]bool, before int64) error {
	rows, err := t.query("SELECT id, container_id FROM containers WHERE node_id = ? AND id <= ?", node, before)
	if err != nil {
		return err
	}
	var gone []int64
	for rows.Next() {
		var id int64
		var cid string
		if err := rows.Scan(&id, &cid); err != nil {
			rows.Close()
			return err
		}
		if !listed[cid] {
			gone = append(gone, id)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, id := range gone {
		if _, err := t.exec("DELETE FROM containers WHERE id = ?", id); err != nil {
			return err
		}
	}
	return nil
}

// imageName is the normalised form of a reference: alpine is docker.io/library/alpine:latest.
// A digest without a name (sha256:…) and what does not parse have none.
func imageName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	return reference.TagNameOnly(named).String()
}

// familiarName is a normalised reference as people write it: busybox:latest.
func familiarName(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// putImages makes a node's image rows what its engine lists.
func (t *tx) putImages(node int64, images []json.RawMessage) error {
	known, err := t.summaries("SELECT image_id, summary FROM images WHERE node_id = ?", node)
	if err != nil {
		return err
	}
	for _, raw := range images {
		var im struct {
			Id, ParentId          string
			Created, Size         int64
			RepoTags, RepoDigests []string
		}
		text := summaryText(raw)
		if json.Unmarshal(raw, &im) != nil || im.Id == "" || text == "" {
			continue
		}
		old, exists := known[im.Id]
		delete(known, im.Id)
		if exists && old == text {
			continue
		}
		names := map[string]bool{}
		tagged := false
		for _, ref := range slices.Concat(im.RepoTags, im.RepoDigests) {
			if name := imageName(ref); name != "" && !strings.HasPrefix(ref, "<none>") {
				names[name] = true
			}
		}
		for _, ref := range im.RepoTags {
			tagged = tagged || ref != "<none>:<none>"
		}
		if _, err := t.exec("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?)", node, im.Id, im.ParentId, im.Created, im.Size, !tagged, text); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM image_names WHERE node_id = ? AND image_id = ?", node, im.Id); err != nil {
			return err
		}
		for name := range names {
			if _, err := t.exec("INSERT OR REPLACE INTO image_names VALUES (?,?,?)", node, bounded(name), im.Id); err != nil {
				return err
			}
		}
	}
	for id := range known {
		if _, err := t.exec("DELETE FROM images WHERE node_id = ? AND image_id = ?", node, id); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM image_names WHERE node_id = ? AND image_id = ?", node, id); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) summaries(query string, node int64) (map[string]string, error) {
	rows, err := t.query(query, node)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	known := map[string]string{}
	for rows.Next() {
		var id, summary string
		if err := rows.Scan(&id, &summary); err != nil {
			return nil, err
		}
		known[id] = summary
	}
	return known, rows.Err()
}

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
