package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	units "github.com/docker/go-units"
)

// version is set by the build.
var version = "dev"

// options allows nothing to nobody: an engine answers so whatever the path is.
func options(*cluster, http.ResponseWriter, *http.Request, *call) error { return nil }

// ping answers for the cluster as an engine does for itself, with all its headers.
func ping(c *cluster, w http.ResponseWriter, r *http.Request, _ *call) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	said := c.pingSaid()
	if said.builder != "" {
		h.Set("Builder-Version", said.builder)
	}
	if said.swarm {
		h.Set("Swarm", "inactive") // whatever the engines are in: the cluster is no swarm
	}
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	h.Set("Content-Length", "2")
	w.Write([]byte("OK"))
	return nil
}

// pingSaid is what every engine says; a client takes what is missing for an older engine.
func (c *cluster) pingSaid() pingSaid {
	var common pingSaid
	for i, e := range c.healthyEngines() {
		said, _ := e.said.Load().(pingSaid)
		if i == 0 {
			common = said
		}
		if said.builder != common.builder {
			common.builder = ""
		}
		common.swarm = common.swarm && said.swarm
	}
	return common
}

// versionInfo answers docker version. Clients parse Version, so it is that of the
// oldest engine; Platform and a component name us.
func versionInfo(c *cluster, w http.ResponseWriter, r *http.Request, _ *call) error {
	fleet := c.nodes.fleet.Load()
	lowest, highest := fleet.lowest, fleet.highest
	base := object{}
	var raw string
	err := c.store.get(r.Context(), "SELECT i.version FROM nodes JOIN node_info i ON i.node_id = nodes.id WHERE api_version = ? AND state = 'healthy' ORDER BY engine_version, id LIMIT 1",
		[]any{highest.String()}, &raw)
	if err == nil {
		base, err = parseObject([]byte(raw))
	}
	if err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	if base.get("Version") == nil {
		base = base.with("Version", version).with("Os", "linux").with("Arch", "amd64")
	}
	var components []json.RawMessage
	json.Unmarshal(base.get("Components"), &components) // engines before 1.35 have none
	us := jsonText(map[string]any{"Name": "swarmlite", "Version": version, "Details": map[string]string{"Nodes": fmt.Sprint(len(c.nodes.all()))}})
	components = append(components, json.RawMessage(us))
	return writeJSON(w, json.RawMessage(base.with("Platform", map[string]string{"Name": "swarmlite " + version}).
		with("Components", components).with("ApiVersion", highest.String()).with("MinAPIVersion", lowest.String()).bytes()))
}

// clusterSums are the numbers of /info that are sums over nodes.
type clusterSums struct {
	nodes, cpus, memory, containers, running, paused, images int64
}

// info answers docker info: the sums of the cluster, and its nodes in classic
// Swarm's layout as SystemStatus, which every docker command prints.
func info(c *cluster, w http.ResponseWriter, r *http.Request, _ *call) error {
	ctx := r.Context()
	c.nodes.settle(ctx)
	base, err := c.baseInfo(ctx)
	if err != nil {
		return err
	}
	var s clusterSums
	var id, strategy, filters string
	// Most containers are running: those that are passed over cost least.
	err = c.store.get(ctx, `SELECT m.cluster_id, m.strategy, m.filters,
		(SELECT count(*) FROM node_load), (SELECT coalesce(sum(cpus), 0) FROM nodes WHERE state = 'healthy'),
		(SELECT coalesce(sum(memory_bytes), 0) FROM nodes WHERE state = 'healthy'),
		t.n, t.n - c.n + c.up, c.paused, (SELECT count(DISTINCT image_id) FROM images)
		FROM manager m, (SELECT count(*) AS n FROM containers) t,
			(SELECT count(*) AS n, count(*) FILTER (WHERE state IN ('restarting', 'stopping')) AS up, count(*) FILTER (WHERE state = 'paused') AS paused
			   FROM containers WHERE state <> 'running') c`, nil,
		&id, &strategy, &filters, &s.nodes, &s.cpus, &s.memory, &s.containers, &s.running, &s.paused, &s.images)
	if err != nil {
		return err
	}
	status := [][2]string{{"Role", "primary"}, {"Strategy", strategy}, {"Filters", filters}, {"Nodes", fmt.Sprint(s.nodes)}}
	nodes, warnings, err := c.nodeStatus(ctx, int64(s.nodes))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "swarmlite"
	}
	for k, v := range map[string]any{
		"ID": id, "Name": host, "Containers": s.containers, "ContainersRunning": s.running, "ContainersPaused": s.paused,
		"ContainersStopped": s.containers - s.running - s.paused, "Images": s.images, "NCPU": s.cpus, "MemTotal": s.memory,
		"SystemStatus": append(status, nodes...), "Warnings": warnings, "SystemTime": time.Now().Format(time.RFC3339Nano),
		"Labels": []string{}, "Swarm": map[string]any{"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false,
			"Error": "", "RemoteManagers": nil},
	} {
		base = base.with(k, v)
	}
	return writeJSON(w, json.RawMessage(base.bytes()))
}

// baseInfo is the /info of one healthy engine, for all that is no sum; drivers
// that differ between nodes are named together.
func (c *cluster) baseInfo(ctx context.Context) (object, error) {
	var raw, drivers, engineVersion string
	err := c.store.get(ctx, `SELECT i.info, (SELECT group_concat(storage_driver, ', ') FROM (SELECT DISTINCT storage_driver FROM nodes WHERE state = 'healthy' ORDER BY 1)),
		engine_version FROM nodes JOIN node_info i ON i.node_id = nodes.id
		 WHERE nodes.id = (SELECT id FROM nodes WHERE state = 'healthy' ORDER BY length(api_version), api_version, engine_version, id LIMIT 1)`, nil, &raw, &drivers, &engineVersion)
	if errors.Is(err, errNotFound) {
		return object{}.with("ServerVersion", version).with("OSType", "linux").with("Driver", "").with("OperatingSystem", "swarmlite").
			with("Plugins", map[string]any{}).with("RegistryConfig", map[string]any{}), nil
	}
	if err != nil {
		return nil, err
	}
	base, err := parseObject([]byte(raw))
	if err != nil {
		return nil, err
	}
	kept := [][]string{}
	if !strings.Contains(drivers, ",") {
		var pairs [][]string
		json.Unmarshal(base.get("DriverStatus"), &pairs) // of an odd shape: none is shown
		for _, p := range pairs {
			if len(p) == 2 && p[0] == "driver-type" {
				kept = append(kept, p)
			}
		}
	}
	return base.with("Driver", drivers).with("DriverStatus", kept).with("ServerVersion", engineVersion), nil
}

// nodeStatus describes the first nodes for docker info, and those in trouble as warnings;
// all of them are in the database.
func (c *cluster) nodeStatus(ctx context.Context, nodes int64) (status [][2]string, warnings []string, err error) {
	rows, err := c.store.query(ctx, `
		SELECT l.name, l.address, coalesce(l.engine_id, ''), l.state, l.availability, l.lapsed, n.step, n.error, n.engine_version,
		       l.used_nano_cpus, l.nano_cpus, l.used_memory_bytes, l.memory_bytes,
		       (SELECT count(*) FROM containers c WHERE c.node_id = l.id),
		       (SELECT count(*) FROM containers c WHERE c.node_id = l.id AND c.state IN ('running', 'restarting', 'stopping')),
		       (SELECT count(*) FROM containers c WHERE c.node_id = l.id AND c.state = 'paused'),
		       coalesce((SELECT group_concat(key || '=' || value, ', ') FROM node_labels b WHERE b.node_id = l.id), ''),
		       coalesce((SELECT group_concat(r.name || ' ' || r.used || ' / ' || r.amount, ', ') FROM resource_load r WHERE r.node_id = l.id), ''), `+leftColumns+`
		  FROM node_load l JOIN nodes n ON n.id = l.id ORDER BY l.name LIMIT ?`, c.infoNodes)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	shown := int64(0)
	for rows.Next() {
		var name, addr, id, state, availability, step, problem, engineVersion, labels, resources string
		var lapsed bool
		var left leftOnNode
		var usedCPU, cpu, usedMemory, memory, all, running, paused int64
		if err := rows.Scan(&name, &addr, &id, &state, &availability, &lapsed, &step, &problem, &engineVersion,
			&usedCPU, &cpu, &usedMemory, &memory, &all, &running, &paused, &labels, &resources, &left.containers, &left.why); err != nil {
			return nil, nil, err
		}
		shown++
		word := strings.ToUpper(state[:1]) + state[1:]
		if availability != "active" {
			word += " (" + availability + ")"
		}
		if lapsed {
			word += " (not registered)"
		}
		status = append(status, [][2]string{
			{" " + name, strings.TrimPrefix(addr, "tcp://")},
			{"  └ ID", id},
			{"  └ Status", word},
			{"  └ Containers", fmt.Sprintf("%d (%d Running, %d Paused, %d Stopped)", all, running, paused, all-running-paused)},
			{"  └ Reserved CPUs", cpusText(usedCPU) + " / " + cpusText(cpu)},
			{"  └ Reserved Memory", units.BytesSize(float64(usedMemory)) + " / " + units.BytesSize(float64(memory))},
			{"  └ Labels", labels},
			{"  └ ServerVersion", engineVersion},
		}...)
		if resources != "" {
			status = append(status, [2]string{"  └ Reserved Resources", resources})
		}
		if availability == "drain" || left.why != "" {
			status = append(status, [2]string{"  └ Left", left.words("")})
		}
		if problem != "" {
			status = append(status, [2]string{"  └ Error", strings.TrimPrefix(step+": "+problem, ": ")})
		}
	}
	if err := rows.Err(); err != nil {
		return nil, nil, err
	}
	if more := nodes - shown; more > 0 {
		status = append(status, [2]string{fmt.Sprintf(" … and %d more", more), "see the view cluster in the database"})
	}
	warnings, err = c.nodeWarnings(ctx)
	return status, warnings, err
}

// nodeWarnings tells of the first nodes that are in trouble, and how many more are.
func (c *cluster) nodeWarnings(ctx context.Context) ([]string, error) {
	rows, err := c.store.query(ctx, `SELECT name, address, state, state_at, step, error, count(*) OVER () FROM nodes
		WHERE state NOT IN ('healthy', 'removed') ORDER BY name LIMIT ?`, max(c.infoNodes, 1))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	warnings := []string{}
	all := 0
	for rows.Next() {
		var name, addr, state, step, problem string
		var at int64
		if err := rows.Scan(&name, &addr, &state, &at, &step, &problem, &all); err != nil {
			return nil, err
		}
		warnings = append(warnings, strings.TrimSuffix(fmt.Sprintf("WARNING: node %s (%s) is %s since %s: %s: %s", name, addr, state,
			time.Unix(at, 0).UTC().Format(time.RFC3339), step, problem), ": : "))
	}
	if more := all - len(warnings); more > 0 {
		warnings = append(warnings, fmt.Sprintf("WARNING: %s not healthy: see the view trouble in the database", counted(more, "more node")))
	}
	return warnings, rows.Err()
}
