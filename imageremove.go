package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"
)

// imageTag gives an image a name on every node that has it. The first node judges
// the request; a node that fails later only lacks the tag, and gets it when the
// image is used there.
func imageTag(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := c.image(r.Context(), call.name)
	if errors.Is(err, errNotFound) {
		return toAny(c, w, r, call)
	}
	if err != nil {
		return err
	}
	engines := c.sources(f)
	if len(engines) == 0 {
		return c.outOfReach(f)
	}
	// From here on it is done to the end: half a tag is worse than a late one.
	ctx := context.WithoutCancel(r.Context())
	tag := func(e *engine) (*created, error) {
		path := "/images/" + escapeName(f.idOn(e.id)) + "/tag"
		return e.exchange(ctx, http.MethodPost, e.url(call.version, path, call.query.Encode()), r.Header, nil, change)
	}
	first, err := tag(engines[0])
	if err != nil {
		return asAnswer(err, true)
	}
	if first.refused() {
		return first.write(w)
	}
	replies, errs := askEach(engines[1:], tag)
	for i, reply := range replies {
		switch {
		case errs[i] != nil:
			c.log.Warn("image not tagged", "image", call.name, "node", engines[i+1].nodeName(), "err", oneLine(errs[i]))
		case reply.refused():
			c.log.Warn("image not tagged", "image", call.name, "node", engines[i+1].nodeName(), "err", reply.message())
		}
	}
	c.readImages(ctx, engines...)
	ref := call.query.Get("repo")
	if t := call.query.Get("tag"); t != "" {
		ref = joinTag(ref, t)
	}
	if err := c.store.tagsSet(ctx, engines[0].id, []string{imageName(ref)}); err != nil {
		return err
	}
	return first.write(w)
}

// removal is what decides about docker rmi: all that one engine would look at that
// had every node's containers and tags.
type removal struct {
	*foundImage
	ids         []string // the image's, on nodes of both kinds
	refs        []string // names that mean it, normalised
	running     []string // containers that use it, newest first
	stopped     []string
	hasChildren bool
	containerd  bool // judged by the rules of containerd's image store
}

// imageRemove answers docker rmi. It is refused exactly where one engine that had
// all the containers would refuse, before any node is asked; then each node that
// has the image, or something else under its name, removes it.
func imageRemove(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	if call.name == "" {
		return errorf(http.StatusBadRequest, "image name cannot be blank")
	}
	f, err := c.image(r.Context(), call.name)
	if errors.Is(err, errNotFound) {
		return toAny(c, w, r, call)
	}
	if err != nil {
		return err
	}
	c.nodes.settle(r.Context())
	m, err := c.removal(r.Context(), f)
	if err != nil {
		return err
	}
	force := isTrue(call.query, "force")
	if call.query.Get("platforms") == "" { // parts of images are the engines' to judge
		if err := m.refusal(force); err != nil {
			return err
		}
	}
	var engines []*engine
	var absent []string
	for _, h := range f.holders {
		e := c.nodes.get(h.node)
		if e == nil {
			continue
		}
		if err := usable(e); err != nil {
			absent = append(absent, err.Error())
			continue
		}
		engines = append(engines, e)
	}
	if len(engines) == 0 {
		return c.outOfReach(f)
	}
	ctx := context.WithoutCancel(r.Context())
	replies, errs := askEach(engines, func(e *engine) (*created, error) { return c.removeOn(ctx, m, e, r, call) })
	if f.name != "" && slices.ContainsFunc(replies, func(r *created) bool { return r != nil && !r.refused() }) {
		if err := c.store.tagGone(ctx, f.name); err != nil {
			return err
		}
	}
	c.readImages(ctx, engines...)
	for _, node := range absent {
		w.Header().Add("Warning", fmt.Sprintf("199 swarmlite %q", "left out: "+node))
	}
	return c.removed(ctx, w, m, engines, replies, errs)
}

// removal reads from the rows what decides.
func (c *cluster) removal(ctx context.Context, f *foundImage) (*removal, error) {
	m := &removal{foundImage: f}
	var err error
	m.ids, err = c.store.strings(ctx, `SELECT ?1 UNION SELECT image_id FROM image_copies WHERE copy_of = ?1
		UNION SELECT copy_of FROM image_copies WHERE image_id = ?1`, f.id)
	if err != nil {
		return nil, err
	}
	ids := jsonText(m.ids)
	m.refs, err = c.store.strings(ctx, `
		SELECT DISTINCT i.name FROM image_names i LEFT JOIN image_tags t ON t.name = i.name
		 WHERE i.image_id IN (SELECT value FROM json_each(?1)) AND (t.name IS NULL OR t.image_id IN (SELECT value FROM json_each(?1)))
		 ORDER BY 1`, ids)
	if err != nil {
		return nil, err
	}
	const users = "SELECT container_id FROM containers WHERE image_id IN (SELECT value FROM json_each(?)) AND state"
	const running = " IN ('running', 'paused', 'restarting', 'stopping')"
	if m.running, err = c.store.strings(ctx, users+running+" ORDER BY created_at DESC", ids); err != nil {
		return nil, err
	}
	if m.stopped, err = c.store.strings(ctx, users+" NOT"+running+" ORDER BY created_at DESC", ids); err != nil {
		return nil, err
	}
	err = c.store.get(ctx, "SELECT EXISTS (SELECT 1 FROM images WHERE parent_id IN (SELECT value FROM json_each(?1))), "+
		"EXISTS (SELECT 1 FROM nodes WHERE id = ?2 AND image_store = 'containerd')", []any{ids, f.holders[0].node}, &m.hasChildren, &m.containerd)
	return m, err
}

// single tells whether all references are of one repository, with at most one tag
// among them: removing it would leave the image without a name.
func (m *removal) single() bool {
	tags, repos := 0, map[string]bool{}
	for _, ref := range m.refs {
		repos[repository(ref)] = true
		if !isDigestName(ref) {
			tags++
		}
	}
	return tags <= 1 && len(repos) == 1
}

// refusal is an engine's 409, in its words, or nil. By name only the last name of an
// image in use is refused; by ID running containers and children always are, and
// without force several names and stopped containers.
func (m *removal) refusal(force bool) error {
	conflict := func(what, how, why string) error {
		return errorf(http.StatusConflict, "conflict: unable to %s (%s) - %s", what, how, why)
	}
	id := shortID(m.id)
	users := slices.Concat(m.running, m.stopped)
	if m.name != "" {
		if force || !m.single() || len(users) == 0 {
			return nil
		}
		why := fmt.Sprintf("container %s is using its referenced image %s", shortID(users[0]), id)
		if m.containerd {
			return conflict("delete "+familiarName(m.name), "must be forced", why)
		}
		return conflict(fmt.Sprintf("remove repository reference %q", m.ref), "must force", why)
	}
	what := "delete " + id
	// The order is each store's own: it decides which of several reasons is told.
	inUse := func() error {
		if len(m.stopped) > 0 && !force {
			return conflict(what, "must be forced", "image is being used by stopped container "+shortID(m.stopped[0]))
		}
		return nil
	}
	switch {
	case m.hasChildren && !m.containerd:
		return conflict(what, "cannot be forced", "image has dependent child images")
	case len(m.running) > 0:
		return conflict(what, "cannot be forced", "image is being used by running container "+shortID(m.running[0]))
	case m.containerd && inUse() != nil:
		return inUse()
	case len(m.refs) > 1 && !m.single() && !force:
		return conflict(what, "must be forced", "image is referenced in multiple repositories")
	}
	return inUse()
}

// removeOn removes m on one node. The node sees only its own containers and names, so
// where it would refuse what the cluster allows it is helped: another name of the
// image is brought there, as one engine would have it; a name that means something
// else in the cluster is taken off an image in use without touching the image.
func (c *cluster) removeOn(ctx context.Context, m *removal, e *engine, r *http.Request, call *call) (*created, error) {
	query := cloneQuery(call.query)
	ref := m.idOn(e.id)
	if m.name != "" {
		ref = familiarName(m.name)
		running, stopped, err := c.users(ctx, e, m.idOn(e.id))
		if err != nil {
			return nil, err
		}
		stale := !slices.Contains(m.ids, m.idOn(e.id))
		switch {
		case stale && running > 0, stale && stopped > 0 && m.containerd:
			query.Set("force", "1") // takes off the name only
		case stale && stopped > 0:
			// Force would delete the image of stopped containers: the name is moved to an empty image first.
			if err := e.moveAway(ctx, m.name); err != nil {
				return nil, err
			}
		case running+stopped > 0 && !isTrue(query, "force"):
			for _, other := range m.refs {
				if other != m.name && !isDigestName(other) {
					if err := e.tagImage(ctx, m.idOn(e.id), other); err != nil {
						return nil, err
					}
					break
				}
			}
		}
	} else if c.hasStaleName(ctx, m, e) {
		query.Set("force", "1") // users were looked for already; this is about names
	}
	return e.exchange(ctx, http.MethodDelete, e.url(call.version, "/images/"+escapeName(ref), query.Encode()), r.Header, nil, change)
}

// users counts a node's containers of an image.
func (c *cluster) users(ctx context.Context, e *engine, id string) (running, stopped int, err error) {
	err = c.store.get(ctx, `SELECT count(*) FILTER (WHERE state IN ('running', 'paused', 'restarting', 'stopping')),
		count(*) FILTER (WHERE state NOT IN ('running', 'paused', 'restarting', 'stopping'))
		FROM containers WHERE node_id = ? AND image_id = ?`, []any{e.id, id}, &running, &stopped)
	return running, stopped, err
}

// hasStaleName tells whether m has a name on this node that means something else in the cluster.
func (c *cluster) hasStaleName(ctx context.Context, m *removal, e *engine) bool {
	names, err := c.store.strings(ctx, "SELECT name FROM image_names WHERE node_id = ? AND image_id = ?", e.id, m.idOn(e.id))
	return err == nil && slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(m.refs, n) })
}

// moveAway gives a name to an empty image, so that removing it touches no other.
func (e *engine) moveAway(ctx context.Context, name string) error {
	repo, tag := splitTag(name)
	query := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url(0, "/images/create", query.Encode()), bytes.NewReader(make([]byte, 1024)))
	if err != nil {
		return err
	}
	resp, err := e.do(req, change)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(engineMessage(resp.Body))
	}
	return nil
}

// removed merges what the nodes removed: each name and each ID once. While a node
// keeps the image, because a container uses it there, one engine would have kept it.
func (c *cluster) removed(ctx context.Context, w http.ResponseWriter, m *removal, engines []*engine, replies []*created, errs []error) error {
	var untagged, deleted []json.RawMessage
	seen := map[string]bool{}
	var missing, refused *created
	var refusedOn string
	var failed error
	done := false
	for i, reply := range replies {
		switch {
		case errs[i] != nil:
			failed = errs[i]
			continue
		case reply.status == http.StatusNotFound:
			missing = reply
			continue
		case reply.refused():
			refused, refusedOn = reply, engines[i].nodeName()
			continue
		}
		done = true
		var items []struct{ Untagged, Deleted string }
		var raw []json.RawMessage
		if json.Unmarshal(reply.body, &items) != nil || json.Unmarshal(reply.body, &raw) != nil {
			continue
		}
		right := slices.Contains(m.ids, m.idOn(engines[i].id))
		for k, item := range items {
			switch {
			case seen[string(raw[k])]:
			case item.Untagged != "":
				untagged = append(untagged, raw[k])
			case right: // what another image under this name took with it, one engine would have kept or lost long ago
				deleted = append(deleted, raw[k])
			}
			seen[string(raw[k])] = true
		}
	}
	switch {
	case refused != nil && len(replies) == 1:
		return refused.write(w)
	case refused != nil:
		return errorf(refused.status, "%s (on node %s)", refused.message(), refusedOn)
	case failed != nil:
		return asAnswer(failed, true)
	case !done:
		return missing.write(w)
	}
	var kept bool
	err := c.store.get(ctx, "SELECT EXISTS (SELECT 1 FROM images WHERE image_id IN (SELECT value FROM json_each(?)))", []any{jsonText(m.ids)}, &kept)
	if err != nil {
		return err
	}
	if kept {
		deleted = nil
	}
	list := slices.Concat(untagged, deleted)
	if list == nil {
		list = []json.RawMessage{}
	}
	return writeJSON(w, list)
}

// imagePrune answers docker image prune: every node removes what nothing uses there.
func imagePrune(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	return (&toAll{path: "/images/prune", query: sameQuery(call), once: "ImagesDeleted",
		changed: func(e *engine, _ []byte) { e.marks.add(mark{"images", ""}) }}).run(c, w, r, call)
}

// message is what an answer that refuses says.
func (a *created) message() string { return engineMessage(bytes.NewReader(a.body)) }

// refused tells an answer that is no success.
func (a *created) refused() bool { return a.status >= http.StatusMultipleChoices }

// write passes the answer on as it came.
func (a *created) write(w http.ResponseWriter) error {
	copyAnswerHeaders(w.Header(), a.header)
	w.WriteHeader(a.status)
	w.Write(a.body)
	return nil
}

// askEach asks several engines at once. Answers and errors stand in the order of the
// engines; each has one of the two.
func askEach(engines []*engine, ask func(*engine) (*created, error)) (answers []*created, errs []error) {
	answers, errs = make([]*created, len(engines)), make([]error, len(engines))
	var g errgroup.Group
	g.SetLimit(maxCalls)
	for i, e := range engines {
		g.Go(func() error {
			answers[i], errs[i] = ask(e)
			return nil
		})
	}
	g.Wait()
	return answers, errs
}
