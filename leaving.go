package main

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// leaving is a container on a node that is drained or has failed.
type leaving struct {
	row, node      int64
	id, name       string
	swarmID, image string
	state, summary string
	stays          string // as written
	policies       string // as in the label
	service        bool   // of Docker's Swarm mode
	superseded     bool   // an old container, whose copy has its name
	moving         bool   // an attempt was under way
	attempt        int64  // the last one there was, 0: none
	volumes        string // named ones on this node only
	binds          string // paths of the host
	anonymous      bool   // has volumes without a name
	networks       string // on this node only
	mode           string // of its network
	joined         string // JSON: containers whose namespaces it is in, by kind
	sharedBy       string // the container that has one of its nameless volumes or is in one of its namespaces, in words
	asked          string // an address that its create asked for
	failed         int64  // attempts since the node is drained, or lost
	lastFailed     int64  // unix seconds
	lastError      string
	lacksImage     bool   // the last one failed for its image
	wanted         string // that image
	created        int64  // unix seconds, the engine's clock
	candidates     int64  // unix seconds, when a node last became one that may fit
}

// queryIn is query for who is given no context.
func (s *store) queryIn(ctx context.Context) queryFunc {
	return func(query string, args ...any) (*sql.Rows, error) { return s.query(ctx, query, args...) }
}

// allLeaving reads what is on a node, and what speaks against moving it.
func allLeaving(query queryFunc, node int64) ([]*leaving, error) {
	rows, err := query(`
		SELECT c.id, c.node_id, c.container_id, c.name, c.swarm_id, c.image, c.state, c.summary, c.stays,
		       coalesce((SELECT value FROM container_labels l WHERE l.container = c.id AND l.key = ?2), ''),
		       EXISTS (SELECT 1 FROM container_labels l WHERE l.container = c.id AND l.key = 'com.docker.swarm.task.id'),
		       EXISTS (SELECT 1 FROM moves m WHERE m.container_id = c.container_id AND m.outcome = 'moved'),
		       EXISTS (SELECT 1 FROM moves m WHERE m.container_id = c.container_id AND m.step <> 'done'),
		       coalesce((SELECT max(m.id) FROM moves m WHERE m.container_id = c.container_id), 0),
		       coalesce((SELECT group_concat(m.name, ', ') FROM mounts m LEFT JOIN volumes v ON v.node_id = c.node_id AND v.name = m.name
		                  WHERE m.container = c.id AND m.name <> '' AND NOT `+unnamed+` AND coalesce(v.scope, 'local') = 'local'), ''),
		       coalesce((SELECT group_concat(m.source, ', ') FROM mounts m WHERE m.container = c.id AND m.type = 'bind'), ''),
		       EXISTS (SELECT 1 FROM mounts m WHERE m.container = c.id AND `+unnamed+`),
		       coalesce((SELECT k.name FROM mounts m JOIN mounts o ON o.name = m.name AND o.container <> c.id JOIN containers k ON k.id = o.container AND k.node_id = c.node_id
		                  WHERE m.container = c.id AND `+unnamed+` ORDER BY k.id LIMIT 1), ''),
		       coalesce((SELECT group_concat(a.name, ', ') FROM container_networks a JOIN networks x ON x.node_id = c.node_id AND x.name = a.name
		                  WHERE a.container = c.id AND x.scope = 'local' AND x.name NOT IN ('bridge', 'host', 'none')), ''),
		       coalesce(json_extract(c.summary, '$.HostConfig.NetworkMode'), ''),
		       (SELECT json_group_object(s.kind, s.owner) FROM namespaces s WHERE s.container = c.id),
		       coalesce((SELECT j.value FROM create_bodies b, json_tree(b.body, '$.NetworkingConfig') j
		                  WHERE b.key = CASE c.swarm_id WHEN '' THEN c.container_id ELSE c.swarm_id END
		                    AND j.key IN ('IPv4Address', 'IPv6Address') AND j.value <> ''), ''),
		       (SELECT count(*) FROM moves m WHERE m.container_id = c.container_id AND m.outcome = 'failed' AND m.began_at >= `+leftSince+`),
		       coalesce(f.ended_at, 0), coalesce(f.error, ''), coalesce(f.lacks_image, 0), coalesce(f.image, ''), c.created_at,
		       coalesce((SELECT max(max(k.state_at, k.availability_at)) FROM nodes k WHERE k.state = 'healthy' AND k.availability = 'active'), 0)
		  FROM containers c JOIN nodes n ON n.id = c.node_id
		  LEFT JOIN moves f ON f.id = (SELECT max(id) FROM moves m WHERE m.container_id = c.container_id AND m.outcome = 'failed' AND m.began_at >= `+leftSince+`)
		 WHERE c.node_id = ?1 ORDER BY c.created_at, c.id`, node, expressionLabel("reschedule"))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []*leaving
	for rows.Next() {
		k := &leaving{}
		if err := rows.Scan(&k.row, &k.node, &k.id, &k.name, &k.swarmID, &k.image, &k.state, &k.summary, &k.stays, &k.policies, &k.service, &k.superseded, &k.moving, &k.attempt,
			&k.volumes, &k.binds, &k.anonymous, &k.sharedBy, &k.networks, &k.mode, &k.joined, &k.asked, &k.failed, &k.lastFailed, &k.lastError, &k.lacksImage, &k.wanted, &k.created, &k.candidates); err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return list, tellSharers(list)
}

// tellSharers writes at the containers of one node which other is in a namespace of theirs,
// or has a volume of theirs, whose name is there already.
func tellSharers(list []*leaving) error {
	named := map[string]*leaving{} // by name, and by ID
	for _, k := range list {
		named[k.name] = k
	}
	for _, k := range list {
		named[k.id] = k
		if k.sharedBy != "" {
			k.sharedBy = "container " + k.sharedBy + " shares its volume"
		}
	}
	for _, k := range list {
		joined := map[string]string{}
		if err := json.Unmarshal([]byte(k.joined), &joined); err != nil {
			return fmt.Errorf("namespaces of %s: %w", k.name, err)
		}
		network, ok := strings.CutPrefix(k.mode, "container:")
		if !ok {
			network = ""
		}
		for _, j := range []struct{ owner, what string }{{network, "network"}, {joined["PID"], "PID namespace"}, {joined["IPC"], "IPC namespace"}} {
			owner := strings.TrimPrefix(j.owner, "/")
			other := named[owner]
			if owner == "" {
				continue
			}
			if other == nil && isHex(owner) { // a short ID
				at := slices.IndexFunc(list, func(o *leaving) bool { return strings.HasPrefix(o.id, owner) })
				if at >= 0 {
					other = list[at]
				}
			}
			if other != nil && other.sharedBy == "" {
				other.sharedBy = "container " + k.name + " shares its " + j.what
			}
		}
	}
	return nil
}

const (
	// unnamed tells a volume that an engine named: nobody can ask for it by that name.
	unnamed = "(length(m.name) = 64 AND m.name NOT GLOB '*[^0-9a-f]*')"
	// leftSince is when a node was lost, or drained: attempts before that do not count.
	leftSince = "CASE n.state WHEN 'healthy' THEN n.availability_at ELSE n.state_at END"
)

// policy is the container's reschedule policy, "" if it has none that is known.
func (k *leaving) policy() string {
	texts, err := labelExpressions(map[string]string{expressionLabel("reschedule"): k.policies})
	var w workload
	if err != nil || w.readPolicy(texts["reschedule"]) != nil {
		return "" // made behind our back, or before policies were looked at
	}
	return w.policy
}

// reason tells why a container is not to be moved, "" if it may be. A policy allows it,
// or recreate the drain of what can lose nothing by it.
func (k *leaving) reason(why string, recreate bool) string {
	policy := k.policy()
	switch {
	case k.superseded:
		return "it is what was left of a move"
	case k.service:
		return "it belongs to a service of Docker's Swarm mode"
	case policy == policyOff:
		return "its reschedule policy is off"
	case policy == "" && (why != whyDrain || !recreate):
		return "no reschedule policy"
	case k.volumes != "" || k.networks != "" || why == whyDrain && k.sharedBy != "":
		return k.tie()
	case why == whyDrain && k.address() != "":
		return "address " + k.address() + " is its own: no copy can run beside it"
	case policy == policyMove:
		return ""
	case !runs(k.state):
		return "it does not run, and has no reschedule policy"
	case k.anonymous:
		return "it has a volume without a name, and no reschedule policy"
	case k.binds != "":
		return "it mounts " + k.binds + " of the host, and has no reschedule policy"
	}
	return ""
}

// tie is what holds it to its node while that lives, in words; "" for nothing.
func (k *leaving) tie() string {
	switch {
	case k.volumes != "":
		return "local volume " + k.volumes
	case k.networks != "":
		return "local network " + k.networks
	}
	return k.sharedBy
}

// address is one that was asked for in a network, as with docker run --ip; "" for none.
// In a network of a swarm only the create tells what was asked for.
func (k *leaving) address() string {
	list, err := attachments([]byte(k.summary), k.id)
	for _, a := range list {
		var settings struct {
			IPAMConfig struct{ IPv4Address, IPv6Address string }
		}
		if err == nil && json.Unmarshal(a.settings, &settings) == nil {
			if ip := cmp.Or(settings.IPAMConfig.IPv4Address, settings.IPAMConfig.IPv6Address); ip != "" {
				return ip
			}
		}
	}
	return k.asked
}

// due tells whether it is time for an attempt. One that failed is made again after a
// pause that doubles, or when another node has come that may fit.
func (k *leaving) due(now time.Time, p movePace) bool {
	if k.state == "created" && now.Sub(time.Unix(k.created, 0)).Abs() < p.fresh {
		return false // whoever made it is about to start it, by its ID
	}
	if k.failed == 0 || k.candidates > k.lastFailed {
		return true
	}
	pause := p.first
	for range min(k.failed-1, 20) {
		pause = min(2*pause, p.last)
	}
	ended := time.Unix(k.lastFailed, 0)
	return now.Sub(ended) >= pause || now.Before(ended.Add(-time.Second)) // the clock was set back
}

// keptBody is what a container is made from.
type keptBody struct {
	text, query string
	version     apiVersion
}

// keptBodyOf reads what is kept of a container's create. It returns errNotFound if
// there is nothing, or only what was true before an update and fresh is asked for.
func keptBodyOf(get func(query string, args []any, dest ...any) error, k *leaving, fresh bool) (*keptBody, error) {
	b := &keptBody{}
	var version string
	err := get("SELECT body, query, version FROM create_bodies WHERE key = ? AND (stale = 0 OR NOT ?)", []any{k.key(), fresh}, &b.text, &b.query, &version)
	if err != nil {
		return nil, err
	}
	if version != "" {
		b.version, err = parseAPIVersion(version)
	}
	return b, err
}

// key is the key of its create body.
func (k *leaving) key() string {
	if k.swarmID == "" {
		return k.id
	}
	return k.swarmID
}

// attachment is a network that a container is on, as it was connected to it.
type attachment struct {
	network, id string
	settings    json.RawMessage
}

// attachments are the networks of a list entry or an inspect, with what of their
// settings a connect may be given: addresses that were asked for, aliases.
func attachments(data []byte, id string) ([]attachment, error) {
	var entry struct {
		NetworkSettings struct {
			Networks map[string]struct {
				NetworkID  string
				IPAMConfig json.RawMessage
				Aliases    []string
				DriverOpts json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(data, &entry); err != nil {
		return nil, err
	}
	var list []attachment
	for name, n := range entry.NetworkSettings.Networks {
		settings := object{}
		if ofSwarm(n.NetworkID) {
			n.IPAMConfig = nil // it holds the address that the swarm gave, asked for or not
		}
		for _, m := range []member{{key: "IPAMConfig", value: n.IPAMConfig}, {key: "DriverOpts", value: n.DriverOpts}} {
			if m.value != nil && string(m.value) != "null" {
				settings = append(settings, m)
			}
		}
		aliases := []string{}
		for _, a := range n.Aliases {
			if !strings.HasPrefix(id, a) || len(a) < 12 {
				aliases = append(aliases, a)
			}
		}
		if len(aliases) > 0 {
			settings = settings.with("Aliases", aliases)
		}
		list = append(list, attachment{name, n.NetworkID, settings.bytes()})
	}
	return list, nil
}

var errNoBody = errors.New("what it was made from is not known: it was made on its host, and was not inspected before the node was lost")

// leftColumns are what is left on a node (n) that containers are to leave.
const leftColumns = `(SELECT count(*) FROM containers c WHERE c.node_id = n.id),
	coalesce((SELECT group_concat(words, '; ') FROM (SELECT c.name || ': ' || c.stays AS words FROM containers c
	           WHERE c.node_id = n.id AND c.stays <> '' ORDER BY c.name LIMIT 5)), '')`

type leftOnNode struct {
	containers int
	why        string // of the first ones, in words
}

// words tells what is left; end comes behind how many.
func (l *leftOnNode) words(end string) string {
	words := counted(l.containers, "container") + end
	if l.why != "" {
		words += ": " + l.why
	}
	return words
}
