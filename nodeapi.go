package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"
)

// swarmNode is a node in the words of Docker's own Swarm mode, for docker node.
type swarmNode struct {
	ID                   string
	Version              struct{ Index int64 }
	CreatedAt, UpdatedAt time.Time
	Spec                 struct {
		Labels             map[string]string
		Role, Availability string
	}
	Description struct {
		Hostname  string
		Platform  struct{ Architecture, OS string }
		Resources struct{ NanoCPUs, MemoryBytes int64 }
		Engine    struct {
			EngineVersion string
			Labels        map[string]string
			Plugins       []swarmPlugin
		}
		TLSInfo struct{}
	}
	Status struct {
		State   string
		Message string `json:",omitempty"`
		Addr    string
	}
	ManagerStatus *struct{}

	row int64
}

type swarmPlugin struct{ Type, Name string }

const (
	// shortAddress is a node's address as it may stand in a path.
	shortAddress = "replace(replace(n.address, 'tcp://', ''), '://', ':')"
	nodeID       = "coalesce(n.engine_id, " + shortAddress + ")" // as docker node has it
)

// noNode is an engine's 404.
func noNode(ref string) error { return errorf(http.StatusNotFound, "node %s not found", ref) }

// swarmNodes reads the nodes that where picks, by name.
func (c *cluster) swarmNodes(ctx context.Context, where string, args ...any) ([]*swarmNode, error) {
	rows, err := c.store.query(ctx, `
		SELECT n.id, `+nodeID+`, n.name, n.spec_version, n.added_at, n.state_at, n.state, n.availability, n.lapsed, n.step, n.error, n.ip,
		       n.architecture, n.os_type, n.cpus, n.memory_bytes, n.engine_version, json_patch(n.engine_labels, n.line_labels),
		       coalesce((SELECT json_extract(i.info, '$.Plugins') FROM node_info i WHERE i.node_id = n.id AND json_valid(i.info)), '{}'),
		       (SELECT coalesce(json_group_object(key, value), '{}') FROM node_labels l WHERE l.node_id = n.id AND l.source = 'operator'), `+leftColumns+`
		  FROM nodes n WHERE n.state <> 'removed' AND (`+where+`) ORDER BY n.name, n.id`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []*swarmNode{}
	for rows.Next() {
		n := &swarmNode{}
		var added, since int64
		var state, step, problem, engineLabels, plugins, labels string
		var lapsed bool
		var left leftOnNode
		d, e := &n.Description, &n.Description.Engine
		if err := rows.Scan(&n.row, &n.ID, &d.Hostname, &n.Version.Index, &added, &since, &state, &n.Spec.Availability, &lapsed, &step, &problem, &n.Status.Addr,
			&d.Platform.Architecture, &d.Platform.OS, &d.Resources.NanoCPUs, &d.Resources.MemoryBytes, &e.EngineVersion, &engineLabels,
			&plugins, &labels, &left.containers, &left.why); err != nil {
			return nil, err
		}
		d.Resources.NanoCPUs *= 1e9
		n.CreatedAt, n.UpdatedAt = time.Unix(added, 0).UTC(), time.Unix(max(added, since), 0).UTC()
		n.Spec.Role = "worker"
		n.Status.State = map[string]string{"healthy": "ready", "pending": "unknown"}[state]
		if n.Status.State == "" {
			n.Status.State = "down"
		}
		switch {
		case state != "healthy":
			n.Status.Message = strings.Trim(step+": "+problem, ": ")
		case n.Spec.Availability == "drain":
			n.Status.Message = "draining, " + left.words(" left")
		case lapsed:
			n.Status.Message = "not registered, its swarmlite join is silent: it takes no new containers"
		}
		if err := errors.Join(json.Unmarshal([]byte(engineLabels), &e.Labels), json.Unmarshal([]byte(labels), &n.Spec.Labels)); err != nil {
			return nil, err
		}
		var byType map[string][]string
		if err := json.Unmarshal([]byte(plugins), &byType); err != nil {
			return nil, err
		}
		for _, kind := range []string{"Log", "Network", "Volume"} {
			for _, name := range byType[kind] {
				e.Plugins = append(e.Plugins, swarmPlugin{kind, name})
			}
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

// node finds one node as docker node does: by ID, by name, by the beginning of its ID.
// The address that an operator has added it by will do as well.
func (c *cluster) node(ctx context.Context, ref string) (*swarmNode, error) {
	if ref == "" { // every ID begins with it
		return nil, noNode(ref)
	}
	for _, where := range []string{nodeID + " = ?", "n.name = ?", shortAddress + " = ?", "substr(" + nodeID + ", 1, length(?1)) = ?1"} {
		found, err := c.swarmNodes(ctx, where, ref)
		switch {
		case err != nil:
			return nil, err
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return nil, errorf(http.StatusBadRequest, "node %s is ambiguous (%d matches found)", ref, len(found))
		}
	}
	return nil, noNode(ref)
}

// nodeList answers docker node ls from rows.
func nodeList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := parseFilters(call.query, "id", "label", "membership", "name", "node.label", "role")
	if err != nil {
		return err
	}
	for _, m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return errorf(http.StatusBadRequest, "Invalid membership filter: '%s'", m)
		}
	}
	for _, role := range f["role"] {
		if role != "manager" && role != "worker" {
			return errorf(http.StatusBadRequest, "Invalid role filter: '%s'", role)
		}
	}
	nodes, err := c.swarmNodes(r.Context(), "1")
	if err != nil {
		return err
	}
	nodes = slices.DeleteFunc(nodes, func(n *swarmNode) bool {
		return f.has("id") && !f.prefixed("id", n.ID) || f.has("name") && !f.prefixed("name", n.Description.Hostname) ||
			!f.exact("role", n.Spec.Role) || !f.exact("membership", "accepted") ||
			!f.labels("label", n.Description.Engine.Labels) || !f.labels("node.label", n.Spec.Labels)
	})
	return writeJSON(w, nodes)
}

// nodeInspect answers docker node inspect from rows.
func nodeInspect(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	n, err := c.node(r.Context(), call.name)
	if err != nil {
		return err
	}
	return writeJSON(w, n)
}

// nodeRemove answers docker node rm. The node stays away, whatever names it, until it
// is named anew; its containers are not touched.
func nodeRemove(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	n, err := c.node(r.Context(), call.name)
	if err != nil {
		return err
	}
	return c.nodes.remove(c.base, n.row, isTrue(call.query, "force"))
}

// swarmTask is a container in the words of Docker's own Swarm mode, for docker node ps.
type swarmTask struct {
	ID                      string
	Version                 struct{ Index int64 }
	CreatedAt, UpdatedAt    time.Time
	Spec                    swarmTaskSpec
	ServiceID, NodeID, Name string
	Slot                    int
	Status                  swarmTaskStatus
	DesiredState            string
}

type swarmTaskSpec struct{ ContainerSpec struct{ Image string } }

type swarmTaskStatus struct {
	Timestamp       time.Time
	State, Message  string
	ContainerStatus struct{ ContainerID string }
	PortStatus      struct{}
}

// taskStates maps a container's state to a task's, and to what it is meant to be.
var taskStates = map[string][2]string{
	"created": {"ready", "ready"}, "running": {"running", "running"}, "paused": {"running", "running"}, "stopping": {"running", "shutdown"},
	"restarting": {"starting", "running"}, "exited": {"complete", "shutdown"}, "dead": {"failed", "shutdown"},
	"removing": {"remove", "remove"}, "unknown": {"running", "running"},
}

// taskList answers docker node ps: the containers of nodes. Without a node to ask
// about it is a question about services, which there are none of.
func taskList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := parseFilters(call.query, "desired-state", "id", "label", "name", "node", "service", "_up-to-date")
	if err != nil {
		return err
	}
	if !f.has("node") {
		return noSwarm(c, w, r, call)
	}
	for _, s := range f["desired-state"] {
		if s != "running" && s != "shutdown" && s != "accepted" {
			return errorf(http.StatusBadRequest, "Invalid desired-state filter: '%s'", s)
		}
	}
	ids := map[string]bool{}
	for _, ref := range f["node"] {
		n, err := c.node(r.Context(), ref)
		if err != nil {
			return err
		}
		ids[n.ID] = true
	}
	c.nodes.settle(r.Context())
	rows, err := c.store.query(r.Context(), `
		SELECT c.container_id, c.name, c.image, c.state, c.created_at, coalesce(c.status_at, c.created_at), c.status_head,
		       `+nodeID+`, (SELECT coalesce(json_group_object(key, value), '{}') FROM container_labels l WHERE l.container = c.id)
		  FROM containers c JOIN nodes n ON n.id = c.node_id ORDER BY c.age DESC`)
	if err != nil {
		return err
	}
	defer rows.Close()
	list := []*swarmTask{}
	for rows.Next() {
		t := &swarmTask{Slot: 1}
		var created, since int64
		var state, head, labels string
		if err := rows.Scan(&t.ID, &t.Name, &t.Spec.ContainerSpec.Image, &state, &created, &since, &head, &t.NodeID, &labels); err != nil {
			return err
		}
		var byKey map[string]string
		if err := json.Unmarshal([]byte(labels), &byKey); err != nil {
			return err
		}
		states := taskStates[state]
		if code := exitCode(head); state == "exited" && code != "0" {
			states[0] = "failed"
		}
		t.ServiceID, t.Status.ContainerStatus.ContainerID = t.Name, t.ID
		t.Status.State, t.DesiredState, t.Status.Message = states[0], states[1], state
		t.CreatedAt, t.UpdatedAt = time.Unix(created, 0).UTC(), time.Unix(since, 0).UTC()
		t.Status.Timestamp = t.UpdatedAt
		t.Version.Index = 1
		if ids[t.NodeID] && (!f.has("id") || f.prefixed("id", t.ID)) && (!f.has("name") || f.prefixed("name", t.Name)) &&
			f.exact("desired-state", t.DesiredState) && f.exact("service", t.ServiceID) && f.labels("label", byKey) {
			list = append(list, t)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return writeJSON(w, list)
}

// An engine's own sentences for Swarm-mode calls outside a swarm; the second is for leaving it.
var (
	errNoSwarm    = errorf(http.StatusServiceUnavailable, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	errNotInSwarm = errorf(http.StatusServiceUnavailable, "This node is not part of a swarm")
)

func noSwarm(*cluster, http.ResponseWriter, *http.Request, *call) error { return errNoSwarm }

func noSwarmToLeave(*cluster, http.ResponseWriter, *http.Request, *call) error { return errNotInSwarm }
