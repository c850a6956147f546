package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	crand "crypto/rand"
	"encoding/hex"
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
		if err := checkVersion(max(call.version, lowest), lowest, highest); err != nil {
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

func (c *cluster) shownInspect(ctx context.Context, at *located, data []byte) ([]byte, error) {
	o, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	node := at.shown.Load()
	o = append(o.without("Node"), member{key: "Node", value: node.node})
	relayed := map[relayedPort]int{}
	if c.relay != nil {
		if relayed, err = c.store.relayed(ctx, at.id); err != nil {
			return nil, err
		}
	}
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
	if settings := shownSettings(o.get("NetworkSettings"), show); settings != nil {
		o = o.replace("NetworkSettings", settings)
	}
	return o.bytes(), nil
}

// shownSettings shows the bindings in NetworkSettings.Ports as clients reach them,
// each once; nil when there is nothing to change.
func shownSettings(raw json.RawMessage, show func(port string, b portBinding) portBinding) json.RawMessage {
	settings, err := parseObject(raw)
	if err != nil {
		return nil
	}
	ports, err := parseObject(settings.get("Ports"))
	if err != nil || len(ports) == 0 {
		return nil
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
			return nil
		}
	}
	return settings.replace("Ports", ports.bytes()).bytes()
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

// createBody is what placement reads of a create; everything else passes unread.
type createBody struct {
	Image            string
	Env              []string
	Labels           map[string]string
	ExposedPorts     map[string]struct{}
	HostConfig       hostConfig
	NetworkingConfig struct {
		EndpointsConfig map[string]json.RawMessage
	}
}

// containerCreate places a container and has the picked engine create it. Once
// room is reserved the work goes on though the client leaves: an engine does the same.
func containerCreate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	load, data, err := readCreate(data, call)
	if err != nil {
		return err
	}
	if data, err = cutNodes(c.reader(r.Context()), load, data); err != nil {
		return err
	}
	if load.policy == policyMove {
		load.keepBody(data, call.query)
	}
	if c.relay != nil {
		if err := c.relay.tryPorts(r.Context(), load.ports); err != nil {
			return err
		}
	}
	if err := load.readWait(c.scheduler.wait, call.client.Done()); err != nil {
		return err
	}
	return c.detached(w, r, func(ctx context.Context) (*created, error) {
		return c.create(ctx, r.Header, call, load, data)
	})
}

// readCreate makes a workload of a create body. Expressions move from Env into
// labels, as classic Swarm has them; the rest of the body stays as it came.
func readCreate(data []byte, call *call) (*workload, []byte, error) {
	return readCreateAs(data, call, newSwarmID())
}

// newSwarmID is an identity for a container to be.
func newSwarmID() string {
	id := make([]byte, 32)
	crand.Read(id)
	return hex.EncodeToString(id)
}

// readCreateAs is readCreate for a container that has its com.docker.swarm.id already.
func readCreateAs(data []byte, call *call, swarmID string) (*workload, []byte, error) {
	var body createBody
	if err := decodeBody(data, &body); err != nil {
		return nil, nil, err
	}
	o, err := parseObject(data)
	if err != nil {
		return nil, nil, errorf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	h := &body.HostConfig
	w := &workload{kind: "container", name: strings.TrimPrefix(call.query.Get("name"), "/"), image: body.Image,
		nanoCPUs: h.nanoCPUs(), shares: h.CpuShares, memory: h.memoryBytes(), ports: slices.Concat(h.ports(), h.exposed(body.ExposedPorts)),
		runtime: h.Runtime, version: call.version, swarmID: swarmID,
		platform: requestedPlatform(call.query.Get("platform"))}
	if err := w.readExpressions(&body, &o); err != nil {
		return nil, nil, errorf(http.StatusBadRequest, "%v", err)
	}
	if w.demands, err = h.demands(body.Labels); err != nil {
		return nil, nil, errorf(http.StatusBadRequest, "%v", err)
	}
	w.readTies(&body)
	return w, o.bytes(), nil
}

// keepBody has what the container is made from kept, with its environment.
func (w *workload) keepBody(body []byte, query url.Values) {
	query = cloneQuery(query)
	query.Del("name")
	w.keep, w.query = string(body), query.Encode()
}

// readExpressions parses the expressions of a create, from its environment and
// its labels, and writes both keys anew.
func (w *workload) readExpressions(body *createBody, o *object) error {
	env, found := cutExpressions(body.Env)
	fromLabels, err := labelExpressions(body.Labels)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	for k, v := range body.Labels {
		labels[k] = v
	}
	total := 0
	for kind := range expressionLabels {
		texts := append(fromLabels[kind], found[kind]...)
		if total += len(texts); total > maxExprs {
			return errors.New("over " + strconv.Itoa(maxExprs) + " expressions")
		}
		if len(found[kind]) > 0 {
			labels[expressionLabel(kind)] = jsonText(texts)
		}
		if err := w.addExpressions(kind, texts); err != nil {
			return err
		}
	}
	labels[swarmIDLabel] = w.swarmID
	w.labels = labels
	if len(env) != len(body.Env) {
		*o = o.with("Env", env)
	}
	*o = o.with("Labels", labels)
	return nil
}

// readTies collects what the container must be beside: networks, named volumes and
// other containers.
func (w *workload) readTies(body *createBody) {
	h := &body.HostConfig
	for _, mode := range []string{h.NetworkMode, h.IpcMode, h.PidMode} {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			w.containers = append(w.containers, ref)
		}
	}
	for _, ref := range h.VolumesFrom {
		ref, _, _ = strings.Cut(ref, ":")
		w.containers = append(w.containers, ref)
	}
	for _, link := range h.Links {
		ref, _, _ := strings.Cut(link, ":")
		w.containers = append(w.containers, strings.TrimPrefix(ref, "/"))
	}
	networks := map[string]bool{}
	if !strings.HasPrefix(h.NetworkMode, "container:") {
		networks[h.NetworkMode] = true
	}
	for name := range body.NetworkingConfig.EndpointsConfig {
		networks[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		switch name {
		case "", "default", "bridge", "host", "none", "nat":
		default:
			w.networks = append(w.networks, name)
		}
	}
	for _, bind := range h.Binds {
		if source, _, ok := strings.Cut(bind, ":"); ok && source != "" && !strings.HasPrefix(source, "/") {
			w.volumes = append(w.volumes, source)
		}
	}
	for _, m := range h.Mounts {
		if m.Type == "volume" && m.Source != "" {
			w.volumes = append(w.volumes, m.Source)
		}
	}
}

// created is an engine's answer to a create, read whole.
type created struct {
	status int
	header http.Header
	body   []byte
}

const (
	freshAnswer = time.Second            // an engine that answered this lately is asked at once
	quickPing   = 50 * time.Millisecond  // the others are pinged first,
	slowPing    = 200 * time.Millisecond // and again for longer: a busy machine is not a hung one
)

// create places load and asks the picked engine, again and again only while it is
// sure that nothing was sent.
func (c *cluster) create(ctx context.Context, header http.Header, call *call, load *workload, data []byte) (*created, error) {
	c.store.creates.Add(1)
	defer c.store.creates.Add(-1)
	c.nodes.firstTries(ctx)
	c.freshImage(ctx, load.image)
	settled := false
	for {
		p, err := c.scheduler.placeInTurn(ctx, load)
		if err != nil && !settled && statusOf(asRefusal(err)) != http.StatusInternalServerError {
			// A name or room may have become free by a call that has returned but was not read again yet.
			settled = true
			if c.nodes.settle(ctx) {
				continue
			}
		}
		if err != nil && c.awaitSilent(ctx, load, err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		e := c.nodes.get(p.node)
		if e == nil || !c.answers(ctx, e, load) {
			load.exclude = append(load.exclude, p.node)
			if err := c.release(ctx, p, "moved", "no answer to a ping", 0); err != nil {
				return nil, err
			}
			continue
		}
		began := time.Now()
		var resp *created
		body, err := c.engineShares(ctx, e, load, data)
		if err == nil {
			err = c.rightImage(ctx, load, e)
		}
		if err == nil {
			resp, err = c.createOn(ctx, e, header, call, p, body)
		}
		if err == nil && resp.status == http.StatusNotFound {
			resp, err = c.createWithImage(ctx, e, header, call, p, load, body, resp)
		}
		took := time.Since(began)
		var ee *engineError
		switch {
		case errors.As(err, &ee) && !ee.sent:
			load.exclude = append(load.exclude, p.node)
			if err := c.release(ctx, p, "moved", ee.Error(), took); err != nil {
				return nil, err
			}
			continue
		case errors.As(err, &ee):
			c.unknown(p, asAnswer(err, true), took)
			return nil, err
		case err != nil:
			c.release(ctx, p, "failed", err.Error(), took) // the client hears why it failed
			return nil, err
		case resp.status != http.StatusCreated:
			c.nodes.noteWork(ctx, e, false, resp.status)
			return resp, c.release(ctx, p, "failed", engineMessage(bytes.NewReader(resp.body)), took)
		}
		if err := c.createdRow(ctx, e, p, load, resp, took); err != nil {
			c.unknown(p, err, took)
			return nil, err
		}
		return resp, nil
	}
}

// release gives p's room back; if the database cannot, a look at the node will.
func (c *cluster) release(ctx context.Context, p *placement, outcome, message string, took time.Duration) error {
	err := c.store.release(ctx, p, outcome, message, took)
	if err != nil {
		c.unknown(p, err, took)
	}
	return err
}

// unknown leaves p's reservation to a look at the node. A database that is locked or
// full puts that off: forgotten, the reservation would hold its name until the next start.
func (c *cluster) unknown(p *placement, cause error, took time.Duration) {
	if c.store.unknown(c.base, p, cause.Error(), took) == nil {
		return
	}
	go func() {
		for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
			select {
			case <-time.After(pause):
			case <-c.base.Done():
				return // the next start looks at all
			}
			if c.store.unknown(c.base, p, cause.Error(), took) == nil {
				return
			}
		}
	}()
}

// answers tells whether the engine is alive, so that a create goes only where it
// will be heard. A silent one leaves the candidates until it answers.
func (c *cluster) answers(ctx context.Context, e *engine, load *workload) bool {
	if !e.healthy.Load() {
		return false
	}
	if e.quietFor() < freshAnswer || e.ping(ctx, quickPing) == nil || e.ping(ctx, slowPing) == nil {
		return true
	}
	load.silent = append(load.silent, e)
	if err := c.store.nodeSilent(ctx, e.id, true); err != nil {
		c.log.Warn("silent node not written", "node", e.nodeName(), "err", err)
	}
	e.doubt() // its watcher finds it unhealthy, or makes it a candidate again
	return false
}

// awaitSilent is for a create that no node fits but those that were silent: they may
// only be slow. It waits longer for them, once, and tells whether one has answered.
func (c *cluster) awaitSilent(ctx context.Context, load *workload, refused error) bool {
	if load.awaited || !errors.As(refused, new(*noNodeError)) {
		return false
	}
	load.awaited = true
	heard := make(chan *engine, len(load.silent))
	for _, e := range load.silent {
		go func() {
			if e.ping(ctx, dialWait) != nil || c.store.nodeSilent(ctx, e.id, false) != nil {
				heard <- nil
				return
			}
			heard <- e
		}()
	}
	any := false
	for range load.silent {
		if e := <-heard; e != nil {
			any = true
			load.exclude = slices.DeleteFunc(load.exclude, func(id int64) bool { return id == e.id })
		}
	}
	return any
}

// createOn asks one engine.
func (c *cluster) createOn(ctx context.Context, e *engine, header http.Header, call *call, p *placement, data []byte) (*created, error) {
	query := cloneQuery(call.query)
	query.Set("name", p.name)
	data, err := handOut(data, p.devices)
	if err != nil {
		return nil, errorf(http.StatusBadRequest, "invalid JSON: %v", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url(call.version, "/containers/create", query.Encode()), bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	copyHeaders(req.Header, header)
	resp, err := e.do(req, change)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJSON))
	if err != nil {
		return nil, &engineError{e.nodeName(), "POST /containers/create", true, false, err}
	}
	return &created{resp.StatusCode, resp.Header, body}, nil
}

// row is the container as its create described it, until it is read from its engine.
func (w *workload) row(id, name, node string) *containerRow {
	labels := map[string]string{nodeLabel: node}
	for k, v := range w.labels {
		labels[k] = v
	}
	r := &containerRow{id: id, name: name, image: bounded(w.image), state: "created", created: time.Now().Unix(),
		status: statusWords{head: "Created"}, labels: w.labels, counted: true,
		summary: []byte(jsonText(map[string]any{"Id": id, "Names": []string{"/" + name}, "Image": w.image, "ImageID": "",
			"Command": "", "Created": time.Now().Unix(), "Ports": []int{}, "Labels": labels, "State": "created",
			"HostConfig": map[string]string{}, "NetworkSettings": map[string]any{"Networks": map[string]string{}}, "Mounts": []int{}}))}
	for _, v := range w.volumes {
		r.mounts = append(r.mounts, entryMount{"volume", v, "", "(" + v + ")"})
	}
	return r
}

// createdRow writes the container's row before the client hears of it.
func (c *cluster) createdRow(ctx context.Context, e *engine, p *placement, load *workload, resp *created, took time.Duration) error {
	var answer struct{ Id string }
	if err := json.Unmarshal(resp.body, &answer); err != nil || answer.Id == "" {
		return &engineError{e.nodeName(), "POST /containers/create", true, false, errors.New("answer without an Id")}
	}
	for _, v := range load.volumes {
		e.marks.add(mark{"volume", v})
	}
	err := c.store.created(ctx, p, load.row(answer.Id, p.name, e.nodeName()), took)
	e.marks.add(mark{"container", answer.Id})
	if errors.Is(err, errNotFound) {
		return nil // its node was taken out of the cluster meanwhile
	}
	return err
}
