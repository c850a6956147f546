package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pass relays a call to the engine that has the container.
func pass(p patience) handler {
	return func(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
		return c.toContainer(w, r, call, &relay{patience: p}, false)
	}
}

// passChange relays a call that changes the container, which is then read again:
// a list after the answer shows it.
func passChange(p patience) handler {
	return func(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
		return c.toContainer(w, r, call, &relay{patience: p}, true)
	}
}

// containerKill is passChange that says what it was asked to do, as an engine does.
func containerKill(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	err := passChange(change)(c, w, r, call)
	if statusOf(err) == http.StatusNotFound {
		return errorf(http.StatusNotFound, "cannot kill container: %s: %v", call.name, err)
	}
	return err
}

// containerRemove drops the row before the client hears that the container has
// gone: its name and its room are free at once.
func containerRemove(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	return (&relay{engine: at.engine, path: containerPath(r, call, at), patience: slow, answered: func(status int) {
		at.marks.add(mark{"container", at.id}) // first: an older read under way must not bring the row back
		if status == http.StatusNoContent {
			if err := c.store.dropContainer(c.base, at.engine.id, at.id); err != nil {
				c.log.Error("row of a removed container not deleted", "container", at.id, "err", err)
			}
			c.nodes.noteChange()
		}
	}}).run(w, r, call)
}

func (s *store) dropContainer(ctx context.Context, node int64, id string) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM containers WHERE node_id = ? AND container_id = ?", node, id)
		return err
	})
}

// containerUpdate changes what a container reserves. An engine that is older than the
// client's version would drop what it does not know without a word, so it is not asked.
func containerUpdate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	if lowest, highest := at.versions(); highest != 0 {
		if err := checkVersion(call.version.String(), max(call.version, lowest), lowest, highest); err != nil {
			return err
		}
	}
	return (&relay{engine: at.engine, path: containerPath(r, call, at), patience: change,
		answered: func(int) { at.marks.add(mark{"update", at.id}) }}).run(w, r, call)
}

// toContainer sends rl to the engine of the container that the path names.
func (c *cluster) toContainer(w http.ResponseWriter, r *http.Request, call *call, rl *relay, changes bool) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	rl.engine, rl.path = at.engine, containerPath(r, call, at)
	if changes {
		start := strings.HasSuffix(rl.path, "/start")
		if start && c.relay != nil {
			if err := c.portsForStart(r.Context(), at); err != nil {
				return err
			}
		}
		rl.answered = func(status int) {
			at.marks.add(mark{"container", at.id})
			if start {
				c.nodes.noteWork(c.base, at.engine, true, status)
			}
			c.relayPorts(r.Context(), at)
		}
	}
	return rl.run(w, r, call)
}

// relayPorts opens the manager's ports for a container that was just started,
// before the client hears that it runs.
func (c *cluster) relayPorts(ctx context.Context, at *located) {
	if c.relay == nil {
		return
	}
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	at.marks.wait(wait)
	if err := c.relay.sync(c.base); err != nil {
		c.log.Error("port relays not brought up to date", "container", at.id, "err", err)
	}
}

// portsForStart refuses the start of a container a fixed port of which was taken since it
// was made, with the status and words that one engine has for it. An engine that
// does not tell what it has is asked for the start all the same.
func (c *cluster) portsForStart(ctx context.Context, at *located) error {
	var in struct {
		State      struct{ Running bool }
		HostConfig hostConfig
	}
	if err := at.engine.getJSON(ctx, "/containers/"+at.id+"/json", "", &in); err != nil || in.State.Running {
		return nil
	}
	refused := func(port hostPort, format string, args ...any) error {
		return errorf(http.StatusInternalServerError, "driver failed programming external connectivity on endpoint %s: Bind for %s failed: port is already allocated%s",
			at.name, net.JoinHostPort(c.relay.host, strconv.Itoa(port.first)), fmt.Sprintf(format, args...))
	}
	ports := in.HostConfig.ports()
	for _, port := range ports {
		if port.first != port.last {
			continue
		}
		var holder, node string
		err := c.store.get(ctx, `SELECT c.name, n.name FROM relays r JOIN containers c ON c.id = r.container JOIN nodes n ON n.id = c.node_id
			WHERE r.protocol = ? AND r.listen_port = ? AND NOT (c.container_id = ? AND c.node_id = ?)`,
			[]any{port.protocol, port.first, at.id, at.engine.id}, &holder, &node)
		if err == nil {
			return refused(port, " to container %s on node %s", holder, node)
		}
		if !errors.Is(err, errNotFound) {
			return err
		}
	}
	if taken := c.relay.ofOthers(ctx, ports); taken != nil {
		return refused(*taken, " to another program on the manager's host, which is to relay it")
	}
	return nil
}

// containerPath is the request's path as the container's engine knows it.
func containerPath(r *http.Request, call *call, at *located) string {
	suffix := strings.TrimPrefix(r.URL.Path, "/containers/"+call.name)
	return "/containers/" + url.PathEscape(at.ref) + suffix
}

// containerInspect adds classic Swarm's Node object, and shows ports published on
// every address with the node's own.
func containerInspect(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	rl := &relay{engine: at.engine, path: "/containers/" + at.id + "/json", edit: func(data []byte) ([]byte, error) {
		return c.shownInspect(r.Context(), at, data)
	}}
	return rl.run(w, r, call)
}

// shownInspect changes an engine's answer where it stands: the rest is the engine's own.
func (c *cluster) shownInspect(ctx context.Context, at *located, data []byte) ([]byte, error) {
	known, empty := false, true // an engine's own Node; no member at all
	var settings, behind int    // where NetworkSettings begins, and ends
	closing, err := eachMember(data, func(spelt []byte, begin, end int) error {
		empty = false
		if string(spelt) == `"NetworkSettings"` {
			settings, behind = begin, end
		}
		known = known || len(spelt) == len(`"Node"`) && strings.EqualFold(string(spelt), `"Node"`)
		return nil
	})
	node := at.shown.Load()
	switch {
	case err != nil:
		return nil, err
	case empty:
		return object{{key: "Node", value: node.node}}.bytes(), nil
	case known:
		o, err := parseObject(data)
		if err != nil {
			return nil, err
		}
		return c.shownInspect(ctx, at, o.without("Node").bytes())
	}
	from, to := placeOf(data[settings:behind], "Ports")
	from, to = settings+from, settings+to
	ports, err := c.shownPorts(ctx, at, data[from:to])
	if err != nil {
		return nil, err
	}
	if ports != nil {
		data = slices.Concat(data[:from], ports, data[to:])
		closing += len(ports) - (to - from)
	}
	rest := string(data[closing:])
	data = append(data[:closing], `,"Node":`...)
	data = append(data, node.node...)
	return append(data, rest...), nil
}

// shownPorts shows the bindings in NetworkSettings.Ports as clients reach them,
// each once; nil when there is nothing to change.
func (c *cluster) shownPorts(ctx context.Context, at *located, raw []byte) ([]byte, error) {
	ports, err := parseObject(raw)
	if err != nil || !slices.ContainsFunc(ports, func(m member) bool { return m.value[0] == '[' }) {
		return nil, nil
	}
	relayed := map[relayedPort]int{}
	if c.relay != nil {
		if relayed, err = c.store.relayed(ctx, at.id); err != nil {
			return nil, err
		}
	}
	node := at.shown.Load()
	show := func(port string, b portBinding) portBinding {
		_, protocol, _ := strings.Cut(port, "/")
		number, _ := strconv.Atoi(b.HostPort)
		if listen, ok := relayed[relayedPort{protocol, everyIP(b.HostIp), number}]; ok {
			return portBinding{c.relay.shown, strconv.Itoa(listen)}
		}
		if everyIP(b.HostIp) == "" && node.ip != "" {
			b.HostIp = node.ip
		}
		return b
	}
	for i, m := range ports {
		var bindings []portBinding
		if json.Unmarshal(m.value, &bindings) != nil || bindings == nil {
			continue
		}
		seen := map[portBinding]bool{}
		kept := bindings[:0]
		for _, b := range bindings {
			if b = show(m.key, b); !seen[b] {
				seen[b] = true
				kept = append(kept, b)
			}
		}
		if ports[i].value, err = json.Marshal(kept); err != nil {
			return nil, err
		}
	}
	return ports.bytes(), nil
}

// containerWait holds until the container has stopped, or is gone; either way its
// row is read again before the client's next list.
func containerWait(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	again := func() { at.marks.add(mark{"container", at.id}) }
	resp := &endWatcher{ResponseWriter: w, last: again}
	return (&relay{engine: at.engine, path: containerPath(r, call, at), patience: forever}).run(resp, r, call)
}

// endWatcher calls last before the first byte of the body goes out: wait's header
// comes at once, its body is the news.
type endWatcher struct {
	http.ResponseWriter
	last func()
}

func (e *endWatcher) Write(p []byte) (int, error) {
	if e.last != nil {
		e.last()
		e.last = nil
	}
	return e.ResponseWriter.Write(p)
}

func (e *endWatcher) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// containerAttach joins the client and the container's streams. The body of an
// attach means nothing and is dropped: an engine would feed it to the container.
func containerAttach(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return c.attach(w, r, call, "tcp")
}

func containerAttachWebsocket(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return c.attach(w, r, call, "websocket")
}

func (c *cluster) attach(w http.ResponseWriter, r *http.Request, call *call, protocol string) error {
	closeAfter(w)
	at, err := c.container(r.Context(), call.name)
	if err != nil {
		return err
	}
	if _, err := readBody(r); err != nil {
		return err
	}
	return (&hijack{engine: at.engine, path: containerPath(r, call, at), protocol: protocol,
		ended: func() { at.marks.add(mark{"container", at.id}) }}).run(w, r, call)
}

// containerCommit makes an image of a container, on its node.
func containerCommit(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	at, err := c.container(r.Context(), call.query.Get("container"))
	if err != nil {
		return err
	}
	query := cloneQuery(call.query)
	query.Set("container", at.id)
	ref := query.Get("repo")
	if tag := query.Get("tag"); ref != "" && tag != "" {
		ref = joinTag(ref, tag)
	}
	return (&relay{engine: at.engine, path: "/commit", query: query, patience: forever,
		answered: func(status int) {
			if status == http.StatusCreated {
				c.tagsMoved(at.engine, "", []string{imageName(ref)})
			}
		}}).run(w, r, call)
}

func cloneQuery(q url.Values) url.Values {
	out := url.Values{}
	for k, v := range q {
		out[k] = append([]string(nil), v...)
	}
	return out
}
