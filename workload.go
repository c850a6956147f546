package main

import "time"

// workload is what a create asks for, as far as placement looks at it.
type workload struct {
	kind    string // container, network, volume, image
	name    string // "" asks for one
	image   string // as the client wrote it
	swarmID string
	prefer  int64     // node that goes before all others that fit; 0: none
	seed    int64     // of a build's client: its order among nodes is always the same
	silent  []*engine // excluded, but may only be slow
	awaited bool      // they have been waited for
	// nanoCPUs is in units of 1e-9 CPU, memory in bytes; zero asks for nothing.
	nanoCPUs, memory int64
	ports            []hostPort
	constraints      []expr
	affinities       []expr
	whitelists       []expr
	networks         []string // names or IDs, as given
	volumes          []string // names
	containers       []string // that it must be beside: --link, --volumes-from, --network container:…
	runtime          string
	driver           string // of a network or volume
	swarm            bool   // a network that all nodes of a swarm share
	group            string // label=value of the group it belongs to
	version          apiVersion
	labels           map[string]string
	exclude          []int64 // nodes that were silent when asked
	// A create that may wait for room does so until then, or until its client has gone;
	// line is its row in waiting, 0 before and after.
	until time.Time
	gone  <-chan struct{}
	line  int64
}

// runtimes is the runtime that is asked for, if any.
func (w *workload) runtimes() []string {
	if w.runtime == "" {
		return nil
	}
	return []string{w.runtime}
}

// shape is what the ledger keeps of a request: what placement looked at, no environment.
func (w *workload) shape() string {
	shape := map[string]any{}
	put := func(key string, values []string) {
		if len(values) > 0 {
			shape[key] = values
		}
	}
	if w.nanoCPUs > 0 {
		shape["nano_cpus"] = w.nanoCPUs
	}
	if w.memory > 0 {
		shape["memory_bytes"] = w.memory
	}
	var ports []string
	for _, p := range w.ports {
		ports = append(ports, p.String())
	}
	put("ports", ports)
	put("constraints", exprTexts(w.constraints))
	put("affinities", exprTexts(w.affinities))
	put("whitelists", exprTexts(w.whitelists))
	put("networks", w.networks)
	put("volumes", w.volumes)
	put("beside", w.containers)
	if w.driver != "" {
		shape["driver"] = w.driver
	}
	if w.group != "" {
		shape["group"] = w.group
	}
	put("runtime", w.runtimes())
	return jsonText(shape)
}

func exprTexts(exprs []expr) (texts []string) {
	for _, e := range exprs {
		texts = append(texts, e.String())
	}
	return texts
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
	return hasImage, []any{imageName(w.image)}
}
