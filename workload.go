package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// workload is what a create asks for, as far as placement looks at it.
type workload struct {
	kind    string // container, network, volume, image
	name    string // "" asks for one
	image   string // as the client wrote it
	swarmID string
	prefer  int64     // node that goes before all others that fit; 0: none
	seed    int64     // of a build's client: its order among nodes is always the same
	drawn   int64     // of an earlier placement by random, which is made again; 0: a new one
	silent  []*engine // excluded, but may only be slow
	awaited time.Time // when they were first waited for
	// nanoCPUs is in units of 1e-9 CPU, memory in bytes; zero asks for nothing.
	nanoCPUs, memory int64
	shares           int64 // CpuShares, which are CPUs only if the manager says so: see countShares
	ports            []hostPort
	constraints      []expr
	affinities       []expr
	whitelists       []expr
	networks         []string          // names or IDs, as given
	volumes          []string          // names
	containers       []string          // that it must be beside: --link, --volumes-from, --network container:…
	namespaces       map[string]string // those of containers whose PID or IPC namespace it joins, by kind
	runtime          string
	platform         string // linux/arm64, or only linux, as the request demands
	demands          []demand
	driver           string // of a network or volume
	swarm            bool   // a network that all nodes of a swarm share
	group            string // label=value of the group it belongs to
	policy           string // of rescheduling; "" for none
	keep             string // the create's body, kept to make the container anew elsewhere; "" for none
	query            string // of the create, kept with it
	leaves           int64  // node that it must not go to: the one it is moved from; 0: none
	replaces         string // ID of the container that it is a copy of
	version          apiVersion
	labels           map[string]string
	exclude          []int64 // nodes that were silent when asked
	// A create that may wait for room does so until then, or until its client has gone;
	// line is its row in waiting, 0 before and after.
	until   time.Time
	gone    <-chan struct{}
	line    int64
	refused int64 // row in the ledger of its last refusal; 0: none

	named struct{ image, name string } // see imageName
}

// imageName is the normalised name of the image. A create needs it many times, and to parse
// it takes as long as a statement.
func (w *workload) imageName() string {
	if w.named.image != w.image {
		w.named.image, w.named.name = w.image, imageName(w.image)
	}
	return w.named.name
}

// runtimes is the runtime that is asked for, if any.
func (w *workload) runtimes() []string {
	if w.runtime == "" {
		return nil
	}
	return []string{w.runtime}
}

// countShares makes CPUs of a workload's shares, if they are that and it asks for no
// CPUs otherwise.
func (w *workload) countShares(cores bool) {
	if cores && w.nanoCPUs == 0 && w.shares > 0 {
		w.nanoCPUs = wholeCPUs(w.shares)
	}
}

// shape is what the ledger keeps of a request: all that placement looks at, so that
// it can be placed again (see workload), and no environment. Its kind, name and
// image are columns of their own.
type shape struct {
	Affinities  []string          `json:"affinities,omitempty"`
	API         string            `json:"api,omitempty"`
	Beside      []string          `json:"beside,omitempty"`
	Constraints []string          `json:"constraints,omitempty"`
	Driver      string            `json:"driver,omitempty"`
	Group       string            `json:"group,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	MemoryBytes int64             `json:"memory_bytes,omitempty"`
	NanoCPUs    int64             `json:"nano_cpus,omitempty"`
	Networks    []string          `json:"networks,omitempty"`
	Platform    string            `json:"platform,omitempty"`
	Ports       []string          `json:"ports,omitempty"`
	Resources   []demand          `json:"resources,omitempty"`
	Runtime     string            `json:"runtime,omitempty"`
	Swarm       bool              `json:"swarm,omitempty"`
	Volumes     []string          `json:"volumes,omitempty"`
	Whitelists  []string          `json:"whitelists,omitempty"`
}

// shapeLabelBytes is how much of a request's labels the ledger keeps.
const shapeLabelBytes = 4 << 10

func (w *workload) shape() *shape {
	s := &shape{API: w.version.String(), NanoCPUs: w.nanoCPUs, MemoryBytes: w.memory, Networks: w.networks, Volumes: w.volumes, Beside: w.containers,
		Runtime: w.runtime, Platform: w.platform, Resources: w.demands, Driver: w.driver, Swarm: w.swarm, Group: w.group, Labels: map[string]string{},
		Constraints: exprTexts(w.constraints), Affinities: exprTexts(w.affinities), Whitelists: exprTexts(w.whitelists)}
	for _, p := range w.ports {
		s.Ports = append(s.Ports, p.String())
	}
	room := shapeLabelBytes
	for _, key := range slices.Sorted(maps.Keys(w.labels)) {
		if strings.HasPrefix(key, "com.docker.swarm.") {
			continue // ours: other fields say the same, or it is of no use a second time
		}
		if room -= len(key) + len(w.labels[key]); room >= 0 {
			s.Labels[key] = w.labels[key]
		}
	}
	return s
}

func exprTexts(exprs []expr) (texts []string) {
	for _, e := range exprs {
		texts = append(texts, e.String())
	}
	return texts
}

// workload is the request again, but for its kind, name and image.
func (s *shape) workload() (*workload, error) {
	w := &workload{nanoCPUs: s.NanoCPUs, memory: s.MemoryBytes, networks: s.Networks, volumes: s.Volumes, containers: s.Beside,
		runtime: s.Runtime, platform: s.Platform, demands: s.Resources, driver: s.Driver, swarm: s.Swarm, group: s.Group, labels: map[string]string{}}
	maps.Copy(w.labels, s.Labels)
	if key, value, ok := strings.Cut(s.Group, "="); ok {
		w.labels[key] = value // may be one that there was no room for
	}
	var err error
	if s.API != "" {
		if w.version, err = parseAPIVersion(s.API); err != nil {
			return nil, err
		}
	}
	for _, text := range s.Ports {
		p, err := parseHostPort(text)
		if err != nil {
			return nil, err
		}
		w.ports = append(w.ports, p)
	}
	for kind, texts := range map[string][]string{"constraint": s.Constraints, "affinity": s.Affinities, "whitelist": s.Whitelists} {
		if err := w.addExpressions(kind, texts); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// addExpressions parses expressions of one kind; those that steer no placement pass unread.
func (w *workload) addExpressions(kind string, texts []string) error {
	if kind == "reschedule" {
		return w.readPolicy(texts)
	}
	list := map[string]*[]expr{"constraint": &w.constraints, "affinity": &w.affinities, "whitelist": &w.whitelists}[kind]
	if list == nil {
		return nil
	}
	for _, text := range texts {
		e, err := parseExpr(kind, text)
		if err != nil {
			return err
		}
		*list = append(*list, e)
	}
	return nil
}

// isThing tells that w is a network or a volume.
func (w *workload) isThing() bool { return w.kind == "network" || w.kind == "volume" }

// seenLabels are those that affinities look at: of containers.
func (w *workload) seenLabels() map[string]string {
	if w.isThing() {
		return map[string]string{}
	}
	return w.labels
}

// fewestThings spreads networks and volumes, which count for nothing else.
// Built-in networks say nothing: engines in Swarm mode have more of them.
const fewestThings = `(SELECT count(*) FROM networks x WHERE x.node_id = n.id AND x.name NOT IN ('bridge', 'host', 'none', 'docker_gwbridge', 'ingress')) + (SELECT count(*) FROM volumes v WHERE v.node_id = n.id)
	+ (SELECT count(*) FROM reservations r WHERE r.node_id = n.id AND r.kind <> 'container')`

// lastOrder breaks the last ties but the node's id.
func (w *workload) lastOrder() (sql string, args []any) {
	if w.isThing() {
		return fewestThings, nil
	}
	return hasImage, []any{w.imageName()}
}

// What may be done with a container whose node fails or is drained.
const (
	policyOff  = "off"             // it stays where it is, whatever happens
	policyMove = "on-node-failure" // it is made anew on another node
)

// readPolicy reads a container's reschedule policy; the refusals are classic Swarm's.
func (w *workload) readPolicy(texts []string) error {
	if len(texts) > 1 {
		return fmt.Errorf("too many reschedule policies: %s", strings.Join(texts, ", "))
	}
	for _, text := range texts {
		if text != policyOff && text != policyMove {
			return fmt.Errorf("invalid reschedule policy: %q, expected %s or %s", text, policyMove, policyOff)
		}
		w.policy = text
	}
	return nil
}
