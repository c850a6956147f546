package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// inspected is what we read of a container's inspect.
type inspected struct {
	State struct {
		Status                string
		StartedAt, FinishedAt time.Time
	}
	HostConfig hostConfig
	Config     struct {
		Labels       map[string]string
		ExposedPorts map[string]struct{}
	}
}

// nodeFace is what a node lends its rows: list entries are stored as they are
// shown, with the node's label and its address for published ports.
type nodeFace struct {
	id           int64
	name, ip     string
	skew         time.Duration
	countStopped bool
	cpus         int64 // that CpuShares are told of; 0: they are weights
	now          time.Time
}

func (t *tx) nodeFace(id int64) (*nodeFace, error) { return readNodeFace(t.get, id) }

func readNodeFace(get func(string, []any, ...any) error, id int64) (*nodeFace, error) {
	n := &nodeFace{id: id, now: time.Now()}
	var skew int64
	err := get("SELECT n.name, n.ip, n.clock_skew_ms, m.count_stopped, iif(m.cpu_shares = 'cores', n.cpus, 0) FROM nodes n, manager m WHERE n.id = ?",
		[]any{id}, &n.name, &n.ip, &skew, &n.countStopped, &n.cpus)
	n.skew = time.Duration(skew) * time.Millisecond
	return n, err
}

// shows tells whether rows are made with what o lends them as well.
func (n *nodeFace) shows(o *nodeFace) bool {
	return n.name == o.name && n.ip == o.ip && n.countStopped == o.countStopped
}

// containerRow is a container as its engine lists it, ready for its rows.
type containerRow struct {
	id, name, image, imageID, state string
	created                         int64
	status                          statusWords
	labels                          map[string]string
	shownLabels                     []byte // as they are in summary
	ports                           []entryPort
	mounts                          []entryMount
	networks                        map[string]struct{ NetworkID string }
	namespaces                      map[string]string // of others that it joins, by kind; a list does not tell
	counted                         bool
	summary                         []byte
	held                            *heldRoom // what its reservation held, if it becomes this row
	row                             int64     // its row's id, once it is written
}

// heldRoom is what a container reserves.
type heldRoom struct{ nanoCPUs, memory int64 }

type entryPort struct {
	IP                      string `json:",omitempty"`
	PrivatePort, PublicPort uint16
	Type                    string
}

type entryMount struct{ Type, Name, Source, Destination string }

// listedEntry is what we read of a list entry as it is stored.
type listedEntry struct {
	Labels          map[string]string
	Ports           []entryPort
	Mounts          []entryMount
	NetworkSettings struct {
		Networks map[string]struct{ NetworkID string }
	}
}

// maxName bounds a container's name, in bytes; engines do not.
const maxName = 255

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
	if !validID(entry.Id) {
		return nil, errors.New("no Id, or an odd one")
	}
	r := &containerRow{id: entry.Id, image: bounded(entry.Image), imageID: bounded(entry.ImageID), created: entry.Created,
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
		o, r.shownLabels = o.replace("Labels", l), l
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

// plainName is the container's own name: the one with no inner slash; others are link aliases.
func plainName(names []string) string {
	for _, name := range names {
		if bare := strings.TrimPrefix(name, "/"); !strings.Contains(bare, "/") {
			return bounded(bare)
		}
	}
	return ""
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

// storedContainer is a container's row as far as it is compared with what an engine lists.
type storedContainer struct {
	id, age                          int64
	summary, name, state, head, tail string
	at                               *int64
	known, counted                   bool
}

// storedContainers are the rows of a node's containers, or of one of them, by container ID.
func (t *tx) storedContainers(node int64, only string) (map[string]*storedContainer, error) {
	query, args := `SELECT container_id, id, age, summary, name, state, status_head, status_at, status_tail, inspected, counted
		FROM containers WHERE node_id = ?`, []any{node}
	if only != "" {
		query, args = query+" AND container_id = ?", append(args, only)
	}
	rows, err := t.query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	stored := map[string]*storedContainer{}
	for rows.Next() {
		var id string
		c := &storedContainer{}
		if err := rows.Scan(&id, &c.id, &c.age, &c.summary, &c.name, &c.state, &c.head, &c.at, &c.tail, &c.known, &c.counted); err != nil {
			return nil, err
		}
		stored[id] = c
	}
	return stored, rows.Err()
}

// putContainer writes a container's rows if they differ from what is there. It
// reports whether an inspect is wanted: what the container reserves is unknown,
// or its words have a time that the row cannot explain.
func (t *tx) putContainer(n *nodeFace, r *containerRow) (look bool, err error) {
	stored, err := t.storedContainers(n.id, r.id)
	if err != nil {
		return false, err
	}
	var rows newRows
	if look, err = t.putContainerOver(n, r, stored[r.id], &rows); err != nil {
		return false, err
	}
	return look, t.insert(&rows)
}

// putContainerOver is putContainer where the row that is there is known; nil: none. New
// rows are left to rows.
func (t *tx) putContainerOver(n *nodeFace, r *containerRow, stored *storedContainer, rows *newRows) (look bool, err error) {
	exists := stored != nil
	var old storedContainer
	if exists {
		old = *stored
	}
	counted := r.counted
	if counted && r.held == nil && (!exists || !old.counted) && r.labels[swarmIDLabel] != "" {
		// Of a create under way the reservation counts; an event may be faster than the answer.
		var reserved int
		if err := t.get("SELECT count(*) FROM reservations WHERE swarm_id = ? AND node_id = ?", []any{r.labels[swarmIDLabel], n.id}, &reserved); err != nil {
			return false, err
		}
		counted = reserved == 0
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
		old.tail == r.status.tail && old.counted == counted && (old.at == at || old.at != nil && at != nil && *old.at == *at) {
		return !known, nil
	}
	if !exists {
		held := r.held
		if held == nil {
			held = &heldRoom{}
		}
		if old.id, err = t.nextContainer(rows); err != nil {
			return false, err
		}
		rows.containers = append(rows.containers, containerAge(r.created, old.id), old.id, n.id, r.id, r.name, r.image, r.imageID, r.state, r.created, r.status.head, at, r.status.tail,
			bounded(r.labels[swarmIDLabel]), counted, r.held != nil, held.nanoCPUs, held.memory, string(r.summary))
	} else if _, err := t.exec(`UPDATE containers SET name = ?, image = ?, image_id = ?, state = ?, created_at = ?, status_head = ?,
			status_at = ?, status_tail = ?, swarm_id = ?, counted = ?, inspected = ?, summary = ? WHERE id = ?`,
		r.name, r.image, r.imageID, r.state, r.created, r.status.head, at, r.status.tail, bounded(r.labels[swarmIDLabel]),
		counted, known, string(r.summary), old.id); err != nil {
		return false, err
	}
	if age := containerAge(r.created, old.id); exists && age != old.age { // a statement of its own: it moves the row in every index
		if _, err := t.exec("UPDATE containers SET age = ? WHERE id = ?", age, old.id); err != nil {
			return false, err
		}
	}
	r.row = old.id
	// What a create said is what the engine lists then: labels are most of the parts.
	sameLabels := exists && r.shownLabels != nil && strings.Contains(old.summary, `"Labels":`+string(r.shownLabels))
	return !known, t.putContainerParts(n, old.id, r, exists, sameLabels, rows)
}

// putContainerParts writes the tables beside a container's row, in place of what is there
// if it had a row before.
func (t *tx) putContainerParts(n *nodeFace, id int64, r *containerRow, before, sameLabels bool, rows *newRows) error {
	if before {
		for _, table := range []string{"container_labels", "mounts", "container_networks"} {
			if sameLabels && table == "container_labels" {
				continue
			}
			if _, err := t.exec("DELETE FROM "+table+" WHERE container = ?", id); err != nil {
				return err
			}
		}
	}
	labels := r.labels
	if sameLabels {
		labels = nil
	}
	for k, v := range labels {
		rows.labels = append(rows.labels, id, bounded(k), bounded(v))
	}
	for _, m := range r.mounts {
		name := m.Name
		if m.Type != "" && m.Type != "volume" {
			name = ""
		}
		rows.mounts = append(rows.mounts, id, bounded(m.Type), bounded(name), bounded(m.Source), bounded(m.Destination))
	}
	for name, net := range r.networks {
		rows.networks = append(rows.networks, id, bounded(name), bounded(net.NetworkID))
	}
	// A container that does not run lists no ports. Those that one which was never
	// started was promised stay; so do a stopped one's under -count-stopped.
	if r.state == "created" || n.countStopped && !counts(r.state) {
		return nil
	}
	held := heldPorts(r.state, r.ports)
	if !before {
		rows.putPorts(n.id, id, held)
		return nil
	}
	return t.putPorts(n.id, id, held, "host_ip <> 'host'") // those of the host's network are not listed
}

// heldPorts are the host ports a listed container holds; a stopped one holds none.
func heldPorts(state string, ports []entryPort) []hostPort {
	if !counts(state) {
		return nil
	}
	var held []hostPort
	for _, p := range ports {
		if p.PublicPort != 0 {
			held = append(held, hostPort{bounded(everyIP(p.IP)), int(p.PublicPort), int(p.PublicPort), bounded(p.Type)})
		}
	}
	return held
}

// putPorts writes ports of a container in place of those that which picks.
func (t *tx) putPorts(node, container int64, ports []hostPort, which string) error {
	if _, err := t.exec("DELETE FROM ports WHERE container = ? AND "+which, container); err != nil {
		return err
	}
	var rows newRows
	rows.putPorts(node, container, ports)
	return t.insert(&rows)
}

// putPorts gathers ports of a container that has none, each once.
func (rows *newRows) putPorts(node, container int64, ports []hostPort) {
	for i, p := range ports {
		if !slices.Contains(ports[:i], p) {
			rows.ports = append(rows.ports, node, container, p.ip, p.first, p.last, p.protocol)
		}
	}
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
		in.HostConfig.reservedCPUs(n.cpus), in.HostConfig.memoryBytes(), at, id)
	if err == nil {
		err = t.holdResources(node, id, &in.HostConfig, in.Config.Labels)
	}
	if err == nil && (state == "created" || n.countStopped && !counts(state)) {
		err = t.putPorts(node, id, in.HostConfig.ports(), "host_ip <> 'host'")
	}
	if err == nil {
		err = t.putPorts(node, id, in.HostConfig.exposed(in.Config.ExposedPorts), "host_ip = 'host'")
	}
	if err == nil {
		err = t.putNamespaces(id, in.HostConfig.namespaces())
	}
	for _, p := range in.HostConfig.ports() {
		if err == nil && p.last > p.first { // a container is made with its ranges, they never change
			_, err = t.exec("INSERT OR IGNORE INTO port_ranges VALUES (?,?,?,?)", id, bounded(p.protocol), p.first, p.last)
		}
	}
	return err
}

// putNamespaces writes whose namespaces a container joins, which never changes.
func (t *tx) putNamespaces(container int64, joined map[string]string) error {
	for kind, owner := range joined {
		if _, err := t.exec("INSERT OR IGNORE INTO namespaces VALUES (?,?,?)", container, kind, bounded(owner)); err != nil {
			return err
		}
	}
	return nil
}
