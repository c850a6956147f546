package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/hex"
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
)

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
	sent := data
	load, data, err := readCreate(data, call)
	if err != nil {
		return err
	}
	if load.image == "" && onlyHost(sent) {
		return errorf(http.StatusBadRequest, "config cannot be empty in order to create a container")
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

// onlyHost tells that a create says nothing about the container itself. With our labels
// behind it an engine would take it for one that lacks a command.
func onlyHost(body []byte) bool {
	o, err := parseObject(body)
	return err == nil && len(o.without("HostConfig").without("NetworkingConfig")) == 0
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
	w.namespaces = h.namespaces()
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
			if err := c.passOver(ctx, load, p, "no answer to a ping", 0); err != nil {
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
		if err != nil {
			if err := c.notAnswered(ctx, load, p, err, took); err != nil {
				return nil, err
			}
			continue
		}
		if resp.status != http.StatusCreated {
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

// notAnswered settles what was placed on an engine whose answer did not come, for cause.
// It returns what the client hears; nil: nothing was sent, so the next node is asked.
func (c *cluster) notAnswered(ctx context.Context, load *workload, p *placement, cause error, took time.Duration) error {
	var ee *engineError
	switch {
	case !errors.As(cause, &ee):
		c.release(ctx, p, "failed", cause.Error(), took) // the client hears why it failed
	case ee.sent:
		c.unknown(p, asAnswer(cause, true), took)
	default:
		return c.passOver(ctx, load, p, ee.Error(), took)
	}
	return cause
}

// passOver has the next node asked for load: nothing was sent to p's.
func (c *cluster) passOver(ctx context.Context, load *workload, p *placement, why string, took time.Duration) error {
	load.exclude = append(load.exclude, p.node)
	return c.release(ctx, p, "moved", why, took)
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

const (
	awaitMost    = 16               // engines that were silent to others, which a create waits for
	awaitLongest = 10 * time.Second // that it waits for engines in all, from the first time on
)

// awaitSilent is for a create that no node fits but those that were silent, to it or to
// another: they may only be slow. It waits longer for them, and tells whether one has
// answered; on a machine that is busy with other things one may be silent again.
func (c *cluster) awaitSilent(ctx context.Context, load *workload, refused error) bool {
	if !errors.As(refused, new(*noNodeError)) {
		return false
	}
	if load.awaited.IsZero() {
		load.awaited = time.Now()
	}
	left := awaitLongest - time.Since(load.awaited)
	if left <= 0 {
		return false
	}
	silent := slices.Clone(load.silent)
	others, err := column[int64](c.store.query(ctx, "SELECT id FROM nodes WHERE answers = 0 AND state = 'healthy' LIMIT ?", awaitMost))
	if err != nil {
		c.log.Warn("silent nodes not read", "err", err)
	}
	for _, id := range others {
		if e := c.nodes.get(id); e != nil && !slices.Contains(silent, e) {
			silent = append(silent, e)
		}
	}
	heard := make(chan *engine, len(silent))
	for _, e := range silent {
		go func() {
			if e.ping(ctx, min(dialWait, left)) != nil || c.store.nodeSilent(ctx, e.id, false) != nil {
				heard <- nil
				return
			}
			heard <- e
		}()
	}
	any := false
	for range silent {
		if e := <-heard; e != nil {
			any = true
			load.exclude = slices.DeleteFunc(load.exclude, func(id int64) bool { return id == e.id })
			load.silent = slices.DeleteFunc(load.silent, func(s *engine) bool { return s == e })
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
		status: statusWords{head: "Created"}, labels: w.labels, namespaces: w.namespaces, counted: true,
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
