package main

import (
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// askBuilders asks the nodes that build, or did a moment ago, what ref is there now,
// and has their images listed again where that is news; f is what rows say, or nil.
// It returns whether there was news.
func (c *cluster) askBuilders(ctx context.Context, ref string, f *foundImage) bool {
	var engines []*engine
	for _, e := range c.nodes.all() {
		if e.healthy.Load() && e.builds.recent() {
			engines = append(engines, e)
		}
	}
	if len(engines) == 0 {
		return false
	}
	// A builder under load may be slow; the others' images are not its business.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	news := make([]*engine, len(engines))
	var g errgroup.Group
	g.SetLimit(maxCalls)
	for i, e := range engines {
		g.Go(func() error {
			known := ""
			if f != nil {
				known = f.idOn(e.id)
			}
			var now struct{ Id string }
			err := e.getJSON(ctx, "/images/"+escapeName(ref)+"/json", "", &now)
			if (err == nil || errors.Is(err, errNotFound)) && now.Id != known {
				news[i] = e
			}
			return nil
		})
	}
	g.Wait()
	if news = slices.DeleteFunc(news, func(e *engine) bool { return e == nil }); len(news) == 0 {
		return false
	}
	c.readImages(ctx, news...)
	return true
}

// clientName tells clients apart that build: by their certificate, else by their
// address. Nothing else ties the connections of one build together.
func clientName(r *http.Request) string {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName != "" {
		return "certificate " + bounded(r.TLS.PeerCertificates[0].Subject.CommonName)
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "socket"
	}
	return "address " + host
}

// builder is the node where this client builds: the one it built on before, as long as that fits, else
// one chosen by hash among those that do.
func (c *cluster) builder(ctx context.Context, client string, w *workload) (*engine, *placement, error) {
	sum := fnv.New64a()
	sum.Write([]byte(client))
	w.kind, w.name, w.seed = "build", client, int64(sum.Sum64()>>33)+1
	var last int64
	err := c.store.get(ctx, `SELECT b.node_id FROM builders b JOIN node_load n ON n.id = b.node_id
		 WHERE b.client = ? AND n.state = 'healthy' AND n.availability = 'active' AND n.answers = 1`, []any{client}, &last)
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, nil, err
	}
	if last != 0 && !c.alive(last) {
		last = 0
	}
	if last != 0 && len(w.constraints)+len(w.affinities)+len(w.whitelists) == 0 && w.version == 0 && w.platform == "" {
		e, err := c.engine(ctx, last)
		return e, nil, err
	}
	w.prefer = last
	e, p, err := c.pick(ctx, w)
	if err == nil && last == 0 {
		err = c.store.putBuilder(ctx, client, e.id)
	}
	return e, p, err
}

// streamBuilder is builder for a stream of BuildKit's. What is built there cannot be
// seen, so all that comes of the decision is that the client builds on that node.
func (c *cluster) streamBuilder(ctx context.Context, client string) (*engine, error) {
	e, p, err := c.builder(ctx, client, &workload{})
	if err == nil {
		c.carriedOut(p, "created", "", 0)
	}
	return e, err
}

// keptBuilders is how long a client's node is remembered, in seconds.
const keptBuilders = 7 * 24 * 3600

func (s *store) putBuilder(ctx context.Context, client string, node int64) error {
	return s.write(ctx, func(t *tx) error {
		if _, err := t.exec("DELETE FROM builders WHERE set_at < CAST(strftime('%s','now') AS INTEGER) - ?", keptBuilders); err != nil {
			return err
		}
		_, err := t.exec("INSERT OR REPLACE INTO builders (client, node_id) VALUES (?,?)", client, node)
		return err
	})
}

// build is POST /build: the classic builder, and BuildKit as docker 20.10 speaks to
// it. Expressions among the build arguments choose the node and are cut.
func build(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	load := &workload{version: call.version, platform: requestedPlatform(call.query.Get("platform"))}
	load.memory, _ = strconv.ParseInt(call.query.Get("memory"), 10, 64) // what does not parse asks for nothing
	query, err := readBuildArgs(call.query, load)
	if err != nil {
		return err
	}
	e, placed, err := c.builder(r.Context(), clientName(r), load)
	if err != nil {
		return err
	}
	in := &incoming{call: call, placed: placed}
	for _, tag := range call.query["t"] {
		in.names = append(in.names, imageName(tag))
	}
	defer e.builds.begin("")()
	return c.settingTags(e, in, func(watch *progressLines) error {
		return c.buildOn(e, w, r, call, query, watch)
	})
}

// buildOn has the engine build, when its turn has come.
func (c *cluster) buildOn(e *engine, w http.ResponseWriter, r *http.Request, call *call, query url.Values, watch *progressLines) error {
	session := call.query.Get("session")
	if session != "" {
		if err := c.store.putBuilder(r.Context(), sessionName(session), e.id); err != nil {
			return err
		}
	} else {
		release, err := e.heavyCall(call.client)
		if err != nil {
			return err
		}
		defer release()
	}
	watch.ResponseWriter = w
	return (&relay{engine: e, path: "/build", query: query, patience: forever}).run(watch, r, call)
}

// readBuildArgs moves the expressions among the build arguments, constraint:key==value
// and affinity:…, into load and returns the query without them. All else stays as it came.
func readBuildArgs(q url.Values, load *workload) (url.Values, error) {
	raw := q.Get("buildargs")
	if !strings.Contains(raw, ":") {
		return q, nil
	}
	args, err := parseObject([]byte(raw))
	if err != nil {
		return q, nil // the engine's to refuse
	}
	var env []string
	kept := slices.DeleteFunc(slices.Clone(args), func(m member) bool {
		kind, _, _ := strings.Cut(m.key, ":")
		if kind != "constraint" && kind != "affinity" && kind != "whitelist" || !strings.Contains(m.key, ":") {
			return false
		}
		var value string
		json.Unmarshal(m.value, &value) // null: --build-arg without a value
		// The command line splits --build-arg at the first "=": constraint:zone==a comes as
		// "constraint:zone" with the value "=a".
		env = append(env, m.key+"="+value)
		return true
	})
	if len(env) == 0 {
		return q, nil
	}
	if len(env) > maxExprs {
		return nil, errorf(http.StatusBadRequest, "over %d expressions", maxExprs)
	}
	_, found := cutExpressions(env)
	for kind, texts := range found {
		if err := load.addExpressions(kind, texts); err != nil {
			return nil, errorf(http.StatusBadRequest, "%v", err)
		}
	}
	q = cloneQuery(q)
	q.Set("buildargs", string(kept.bytes()))
	return q, nil
}

func sessionName(id string) string { return "session " + bounded(id) }

// buildSession is POST /session, the back channel of a BuildKit build.
func buildSession(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	e, err := c.sessionBuilder(r.Context(), r)
	if err != nil {
		return err
	}
	return c.buildStream(w, r, call, e, "/session", "")
}

// sessionWait is how long a session waits for the POST /build that it belongs to:
// docker 20.10 opens both at the same moment.
const sessionWait = time.Second

// sessionBuilder picks the node for a session. With docker 20.10 that is where its
// POST /build goes, which may be steered; with buildx, which opens /grpc first and
// never sends POST /build, where the client builds.
func (c *cluster) sessionBuilder(ctx context.Context, r *http.Request) (*engine, error) {
	client, id := clientName(r), r.Header.Get("X-Docker-Expose-Session-Uuid")
	sticky, err := c.streamBuilder(ctx, client)
	if err != nil || id == "" || sticky.builds.hasGRPC(client) {
		return sticky, err
	}
	wait, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		var node int64
		err := c.store.get(ctx, "SELECT node_id FROM builders WHERE client = ?", []any{sessionName(id)}, &node)
		if err == nil {
			return c.engine(ctx, node)
		}
		if !errors.Is(err, errNotFound) {
			return nil, err
		}
		select {
		case <-look.C:
		case <-wait.Done():
			return sticky, ctx.Err()
		}
	}
}

// buildGRPC is POST /grpc: all that today's buildx says to the engine.
func buildGRPC(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	client := clientName(r)
	e, err := c.streamBuilder(r.Context(), client)
	if err != nil {
		return err
	}
	return c.buildStream(w, r, call, e, "/grpc", client)
}

// buildStream joins the client and an engine's BuildKit. When it ends the engine's
// images are listed again: whatever tags moved meanwhile, the build has set.
func (c *cluster) buildStream(w http.ResponseWriter, r *http.Request, call *call, e *engine, path, grpc string) error {
	end := e.builds.begin(grpc)
	defer func() {
		end()
		e.marks.add(mark{"images", ""})
	}()
	return (&hijack{engine: e, path: path, protocol: "h2c"}).run(w, r, call)
}

// buildPrune answers docker builder prune where that is POST /build/prune: every
// node's cache.
func buildPrune(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return (&toAll{path: "/build/prune", query: sameQuery(call)}).run(c, w, r, call)
}

// buildCancel stops a BuildKit build by its ID, which only the engine that runs it
// knows; the others take no notice.
func buildCancel(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	engines := slices.DeleteFunc(c.healthyEngines(), func(e *engine) bool { return !e.builds.recent() })
	if len(engines) == 0 {
		return toAny(c, w, r, call)
	}
	replies, errs := askEach(engines, func(e *engine) (*created, error) {
		return e.exchange(r.Context(), http.MethodPost, e.url(call.version, "/build/cancel", call.query.Encode()), r.Header, nil, change)
	})
	for i, reply := range replies {
		if errs[i] == nil {
			return reply.write(w)
		}
	}
	return asAnswer(errs[0], true)
}
