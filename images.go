package main

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// foundImage is an image of the cluster, as a reference names it.
type foundImage struct {
	ref     string        // as given
	name    string        // normalised; "" if it was found by its ID
	id      string        // what the reference means
	holders []imageHolder // nodes that have it, or something else under its name; the node that set it first
}

// image finds what a reference names: by the whole ID, by name, by the beginning of
// an ID, in Docker's order. It returns errNotFound when no node has it, after the
// nodes that may have built it a moment ago have been asked.
func (c *cluster) image(ctx context.Context, ref string) (*foundImage, error) {
	f, err := c.lookUpImage(ctx, ref)
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, err
	}
	if c.askBuilders(ctx, ref, f) {
		return c.lookUpImage(ctx, ref)
	}
	if f == nil {
		// It may have come to its host a moment ago.
		c.nodes.settle(ctx)
		return c.lookUpImage(ctx, ref)
	}
	return f, nil
}

// freshImage brings the rows of an image up to date where it may just have been built.
func (c *cluster) freshImage(ctx context.Context, ref string) {
	if ref == "" || !c.nodes.builds.recent() {
		return
	}
	f, err := c.lookUpImage(ctx, ref)
	if err == nil || errors.Is(err, errNotFound) {
		c.askBuilders(ctx, ref, f)
	}
}

// lookUpImage is image, from rows alone.
func (c *cluster) lookUpImage(ctx context.Context, ref string) (*foundImage, error) {
	f := &foundImage{ref: ref}
	var err error
	bare := strings.TrimPrefix(ref, "sha256:")
	if whole := len(bare) == 64 && isHex(bare); !whole {
		if f.name = imageName(ref); f.name != "" {
			if f.id, f.holders, err = c.store.imageByName(ctx, f.name, c.alive); err != nil || len(f.holders) > 0 {
				return f, err
			}
		}
	}
	f.name = ""
	if f.id, f.holders, err = c.store.imageByID(ctx, ref); err != nil {
		return nil, err
	}
	if len(f.holders) == 0 {
		return nil, errNotFound
	}
	return f, nil
}

// alive tells whether a node can be asked.
func (c *cluster) alive(node int64) bool {
	e := c.nodes.get(node)
	return e != nil && e.healthy.Load()
}

// sources are the healthy engines that have what f means, the one that set it first.
func (c *cluster) sources(f *foundImage) []*engine {
	var list []*engine
	for _, h := range f.holders {
		if e := c.nodes.get(h.node); h.right && e != nil && e.healthy.Load() {
			list = append(list, e)
		}
	}
	return list
}

// idOn is the image's ID on a node that has it.
func (f *foundImage) idOn(node int64) string {
	for _, h := range f.holders {
		if h.node == node {
			return h.id
		}
	}
	return ""
}

// imageEngine picks the engine to ask about an image. When nobody has it that is
// any engine: it says so in its own words.
func (c *cluster) imageEngine(ctx context.Context, ref string) (*engine, error) {
	f, err := c.image(ctx, ref)
	if errors.Is(err, errNotFound) {
		return c.anyEngine(ctx)
	}
	if err != nil {
		return nil, err
	}
	if list := c.sources(f); len(list) > 0 {
		return list[0], nil
	}
	return nil, c.outOfReach(f)
}

// outOfReach refuses an image that only nodes have which do not answer.
func (c *cluster) outOfReach(f *foundImage) error {
	if e := c.nodes.get(f.holders[0].node); e != nil && usable(e) != nil {
		return errorf(http.StatusServiceUnavailable, "image %s: %v", f.ref, usable(e))
	}
	return errorf(http.StatusServiceUnavailable, "image %s: its node was taken out of the cluster", f.ref)
}

// anyEngine picks a healthy engine that answers: for what is the same on all of them.
func (c *cluster) anyEngine(ctx context.Context) (*engine, error) {
	list := c.healthyEngines()
	slices.SortFunc(list, func(a, b *engine) int { return int(a.id - b.id) })
	// A busy machine may be slower than a quick ping; a hung one stays silent.
	for _, wait := range []time.Duration{quickPing, dialWait} {
		for _, e := range list {
			if e.ping(ctx, wait) == nil {
				return e, nil
			}
		}
	}
	return nil, errorf(http.StatusServiceUnavailable, "no node is healthy")
}

// toAny relays a call that any engine answers alike: search, auth, distribution.
// Credentials pass through and are kept nowhere.
func toAny(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	e, err := c.anyEngine(r.Context())
	if err != nil {
		return err
	}
	// Registries take their time.
	return (&relay{engine: e, path: namedPath(r, call), patience: slow}).run(w, r, call)
}

// namedPath is the request's path with its name escaped anew.
func namedPath(r *http.Request, call *call) string {
	if call.name == "" {
		return r.URL.Path
	}
	before, after, _ := strings.Cut(r.URL.Path, call.name)
	return before + escapeName(call.name) + after
}

// escapeName makes an image name safe in a path; its slashes stay.
func escapeName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// imagePass relays a read to a node that has the image, the one that set its tag first.
func imagePass(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	e, err := c.imageEngine(r.Context(), call.name)
	if err != nil {
		return err
	}
	return (&relay{engine: e, path: namedPath(r, call)}).run(w, r, call)
}

// imagePush sends a push to the node that set the tag; one of a whole repository
// (no tag) to a node that all its tags are brought to first. Credentials pass
// through and are kept nowhere.
func imagePush(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	ref := call.name
	if tag := call.query.Get("tag"); tag != "" {
		ref = joinTag(call.name, tag)
	}
	var e *engine
	var err error
	if tags := c.repositoryTags(r.Context(), ref); len(tags) > 0 {
		e, err = c.gather(r.Context(), tags)
	} else {
		e, err = c.imageEngine(r.Context(), ref)
	}
	if err != nil {
		return err
	}
	release, err := e.heavyCall(call.client)
	if err != nil {
		return err
	}
	defer release()
	return (&relay{engine: e, path: namedPath(r, call), patience: forever}).run(w, r, call)
}

// repositoryTags are all tags of ref when it names a whole repository.
func (c *cluster) repositoryTags(ctx context.Context, ref string) []string {
	if name := imageName(ref); name == "" || !isBare(ref) {
		return nil
	}
	from, to := tagsOf(ref)
	tags, err := c.store.strings(ctx, "SELECT DISTINCT name FROM image_names WHERE name > ? AND name < ?", from, to)
	if err != nil {
		return nil
	}
	return tags
}

// isBare tells a reference without tag and digest.
func isBare(ref string) bool {
	return !strings.Contains(ref, "@") && strings.LastIndexByte(ref, ':') <= strings.LastIndexByte(ref, '/')
}

// joinTag adds a tag, which may be a digest, to a name.
func joinTag(name, tag string) string {
	if strings.Contains(tag, ":") {
		return name + "@" + tag
	}
	return name + ":" + tag
}

// pullReference is what a pull asks for: fromImage and tag, which may be a digest.
func pullReference(q url.Values) string {
	if tag := q.Get("tag"); tag != "" {
		return joinTag(q.Get("fromImage"), tag)
	}
	return strings.TrimSuffix(q.Get("fromImage"), ":")
}

func (s *store) expectPull(ctx context.Context, name string, node int64) error {
	if name == "" {
		return nil
	}
	return s.write(ctx, func(t *tx) error {
		if _, err := t.exec("DELETE FROM pulls WHERE until_at < CAST(strftime('%s','now') AS INTEGER)"); err != nil {
			return err
		}
		_, err := t.exec("INSERT OR REPLACE INTO pulls VALUES (?, ?, CAST(strftime('%s','now') AS INTEGER) + ?)", name, node, expectedPull)
		return err
	})
}

// imageCreate is docker pull and docker import.
func imageCreate(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	in := &incoming{call: call, path: "/images/create"}
	if from := call.query.Get("fromImage"); from != "" {
		ref := pullReference(call.query)
		in.verb, in.ref = "Pulling", ref
		if isBare(ref) && call.query.Get("tag") == "" {
			in.repo = ref
		} else {
			in.names = []string{imageName(ref)}
		}
	} else {
		in.verb, in.ref = "Importing", call.query.Get("repo")
		if in.ref != "" {
			if tag := call.query.Get("tag"); tag != "" {
				in.ref = joinTag(in.ref, tag)
			}
			in.names = []string{imageName(in.ref)}
		}
	}
	return c.bringIn(w, r, in)
}

// imageLoad is docker load.
func imageLoad(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return c.bringIn(w, r, &incoming{call: call, path: "/images/load", verb: "Loading"})
}

// incoming is an image on its way into the cluster.
type incoming struct {
	call  *call
	path  string
	verb  string   // Pulling, Importing, Loading
	ref   string   // as the client wrote it; "" where the body tells
	names []string // that it sets
	repo  string   // all of whose tags it may set

	placed *placement // nil: nothing had to be decided
}

// bringIn sends a pull, import or load to the node picked for it, or with
// -images=every-node to all of them.
func (c *cluster) bringIn(w http.ResponseWriter, r *http.Request, in *incoming) error {
	if c.everyNode {
		return c.bringEverywhere(w, r, in)
	}
	e, placed, err := c.imageTarget(r.Context(), in)
	in.placed = placed
	if err != nil {
		return err
	}
	return c.settingTags(e, in, func(watch *progressLines) error {
		release, err := e.heavyCall(in.call.client)
		if err != nil {
			return err
		}
		defer release()
		watch.ResponseWriter = w
		return (&relay{engine: e, path: in.path, patience: forever}).run(watch, r, in.call)
	})
}

// imageTarget picks the node for an image that comes in: the one whose create found
// it missing, else one that has an older one, else the node with the most room.
func (c *cluster) imageTarget(ctx context.Context, in *incoming) (*engine, *placement, error) {
	var node int64
	err := errNotFound
	if in.verb == "Pulling" && len(in.names) == 1 {
		err = c.store.get(ctx, "SELECT p.node_id FROM pulls p JOIN nodes n ON n.id = p.node_id WHERE p.name = ? AND n.state = 'healthy' AND p.until_at >= CAST(strftime('%s','now') AS INTEGER)",
			[]any{in.names[0]}, &node)
	}
	if err != nil && !errors.Is(err, errNotFound) {
		return nil, nil, err
	}
	platform := requestedPlatform(in.call.query.Get("platform"))
	if err == nil && platform == "" && c.alive(node) {
		return c.nodes.get(node), nil, nil
	}
	return c.pick(ctx, &workload{kind: "image", name: in.ref, image: in.ref, platform: platform, prefer: node})
}

// pick places what reserves no room, an image or a build, on a node that answers. What
// came of it is for the caller to write: see carriedOut.
func (c *cluster) pick(ctx context.Context, w *workload) (*engine, *placement, error) {
	c.nodes.firstTries(ctx)
	for {
		p, err := c.scheduler.place(ctx, w)
		if err != nil {
			return nil, nil, asRefusal(err)
		}
		if e := c.nodes.get(p.node); e != nil && c.answers(ctx, e, w) {
			return e, p, nil
		}
		w.exclude = append(w.exclude, p.node)
		if err := c.store.release(ctx, p, "moved", "no answer to a ping", 0); err != nil {
			return nil, nil, err
		}
	}
}

// settingTags runs a call that sets tags on e, and sees to it that they mean in the
// whole cluster what they name there before the client hears the end. The call ends
// in a panic when the client leaves in the middle; what was done counts all the same.
func (c *cluster) settingTags(e *engine, in *incoming, run func(*progressLines) error) error {
	watch := &progressLines{}
	done, began := false, time.Now()
	var err error
	defer func() {
		outcome, why := "created", ""
		switch {
		case watch.failed:
			outcome, why = "failed", watch.why
		case !done && !watch.done:
			outcome, why = "unknown", oneLine(cmp.Or(err, errHungUp))
		}
		c.carriedOut(in.placed, outcome, why, time.Since(began))
		if outcome != "created" {
			e.marks.add(mark{"images", ""})
			return
		}
		c.tagsMoved(e, in.repo, slices.Concat(in.names, watch.loaded))
	}()
	err = run(watch)
	done = err == nil
	return err
}

// carriedOut writes into the ledger what came of a placement that reserved no room.
func (c *cluster) carriedOut(p *placement, outcome, why string, took time.Duration) {
	if p == nil {
		return
	}
	if err := c.store.outcome(c.base, p, outcome, why, took); err != nil {
		c.log.Warn("outcome of a placement not written", "node", p.nodeName, "err", err)
	}
}

// tagsMoved lists a node's images again and writes that these names, and those of
// repo, mean from now on what they name there. It works to its end though the client leaves.
func (c *cluster) tagsMoved(e *engine, repo string, names []string) {
	c.readImages(c.base, e)
	if repo != "" {
		from, to := tagsOf(repo)
		all, err := c.store.strings(c.base, "SELECT name FROM image_names WHERE node_id = ? AND name > ? AND name < ?", e.id, from, to)
		if err != nil {
			c.log.Warn("tags not noted", "node", e.nodeName(), "image", repo, "err", err)
		}
		names = append(names, all...)
	}
	if err := c.store.tagsSet(c.base, e.id, names); err != nil {
		c.log.Warn("tags not noted", "node", e.nodeName(), "image", strings.Join(names, " "), "err", err)
	}
}

// readImages has the images of these nodes listed again, and waits for it.
func (c *cluster) readImages(ctx context.Context, engines ...*engine) {
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	var g errgroup.Group
	for _, e := range engines {
		e.marks.add(mark{"images", ""})
		g.Go(func() error { e.marks.wait(ctx); return nil })
	}
	g.Wait()
}

// heavyCall takes one of the engine's places for image work; the queue lasts as
// long as the client waits and the node is healthy.
func (e *engine) heavyCall(ctx context.Context) (release func(), err error) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case e.heavy <- struct{}{}:
			return func() { <-e.heavy }, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-look.C:
			if err := usable(e); err != nil {
				return nil, err
			}
		}
	}
}
