package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/client"
)

// transfers are the copies of images between nodes that run now: one for each
// image and node, shared by all creates that wait for it.
type transfers struct {
	mu      sync.Mutex
	running map[transferKey]*transfer
}

type transferKey struct {
	image string
	node  int64
}

type transfer struct {
	done chan struct{}
	err  error
}

// transferStall ends a transfer in which no byte has moved for this long.
const transferStall = 5 * time.Minute

// createWithImage goes on after an engine has answered that it lacks the image:
// another node's copy is streamed over, and the create asked for again. If nobody
// has it the 404 stands; the client pulls then, and the pull lands on this node.
func (c *cluster) createWithImage(ctx context.Context, e *engine, header http.Header, call *call, p *placement, load *workload, data []byte, missing *created) (*created, error) {
	source, err := c.imageSource(ctx, load.image, e.id)
	if errors.Is(err, errNotFound) {
		return missing, c.store.expectPull(ctx, imageName(load.image), e.id)
	}
	if err != nil {
		return nil, err
	}
	if err := c.copyImage(ctx, load.image, source, e); err != nil {
		return nil, errorf(http.StatusBadGateway, "copy image %s from node %s to node %s: %s", load.image, source.nodeName(), e.nodeName(), oneLine(err))
	}
	return c.createOn(ctx, e, header, call, p, data)
}

// imageSource finds a healthy node other than not that has the image; errNotFound if none has.
func (c *cluster) imageSource(ctx context.Context, ref string, not int64) (*engine, error) {
	nodes, err := c.imageNodes(ctx, ref)
	if err != nil {
		return nil, err
	}
	for _, id := range nodes {
		if e := c.nodes.get(id); id != not && e != nil && e.healthy.Load() {
			return e, nil
		}
	}
	return nil, errNotFound
}

// imageNodes lists the nodes that have an image, named by reference, ID or short ID.
func (c *cluster) imageNodes(ctx context.Context, ref string) ([]int64, error) {
	bare := strings.TrimPrefix(ref, "sha256:")
	low, high := "sha256:"+bare, "sha256:"+bare+"g"
	if !isHex(bare) {
		low, high = "", ""
	}
	rows, err := c.store.query(ctx, `
		SELECT node_id FROM image_names WHERE name = ?1
		UNION SELECT node_id FROM images WHERE image_id >= ?2 AND image_id < ?3 ORDER BY 1`, imageName(ref), low, high)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var nodes []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		nodes = append(nodes, id)
	}
	return nodes, rows.Err()
}

// copyImage streams an image from one engine to another, or waits for the
// transfer that does so already. It goes on when the client leaves.
func (c *cluster) copyImage(ctx context.Context, ref string, from, to *engine) error {
	key := transferKey{ref, to.id}
	if name := imageName(ref); name != "" {
		key.image = name
	}
	c.transfers.mu.Lock()
	t := c.transfers.running[key]
	if t == nil {
		t = &transfer{done: make(chan struct{})}
		if c.transfers.running == nil {
			c.transfers.running = map[transferKey]*transfer{}
		}
		c.transfers.running[key] = t
		go func() {
			t.err = stream(c.base, ref, from, to)
			c.transfers.mu.Lock()
			delete(c.transfers.running, key)
			c.transfers.mu.Unlock()
			to.marks.add(mark{"images", ""})
			close(t.done)
		}()
	}
	c.transfers.mu.Unlock()
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stream saves an image at one engine and loads it at another.
func stream(ctx context.Context, ref string, from, to *engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stalled := time.AfterFunc(transferStall, cancel)
	defer stalled.Stop()
	saved, err := from.docker.ImageSave(ctx, []string{ref})
	if err != nil {
		return err
	}
	defer saved.Close()
	loaded, err := to.docker.ImageLoad(ctx, &progress{saved, stalled}, client.ImageLoadWithQuiet(true))
	if err != nil {
		return err
	}
	defer loaded.Body.Close()
	for dec := json.NewDecoder(loaded.Body); ; {
		var line struct {
			ErrorDetail struct{ Message string }
		}
		if err := dec.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if line.ErrorDetail.Message != "" {
			return errors.New(line.ErrorDetail.Message)
		}
	}
}

// progress puts the stall timer off with every byte.
type progress struct {
	io.Reader
	stalled *time.Timer
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.stalled.Reset(transferStall)
	return n, err
}

// expectedPull is how long a create's pick is remembered for the pull that follows, in seconds.
const expectedPull = 60

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

// pullReference is what a pull asks for: fromImage and tag, which may be a digest.
func pullReference(q url.Values) string {
	image, tag := q.Get("fromImage"), q.Get("tag")
	switch {
	case tag == "":
		return image
	case strings.Contains(tag, ":"):
		return image + "@" + tag
	}
	return image + ":" + tag
}

// imagePull sends a pull to the node whose create found the image missing, else to
// the node with the most room. The registry is always asked; progress and
// credentials pass through.
func imagePull(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	ref := pullReference(call.query)
	name := imageName(ref)
	var node int64
	err := c.store.get(r.Context(), "SELECT p.node_id FROM pulls p JOIN nodes n ON n.id = p.node_id WHERE p.name = ? AND n.state = 'healthy' AND p.until_at >= CAST(strftime('%s','now') AS INTEGER)",
		[]any{name}, &node)
	if errors.Is(err, errNotFound) {
		var p *placement
		p, err = c.scheduler.place(r.Context(), &workload{kind: "image", name: ref, image: ref})
		if err == nil {
			node = p.node
		}
	}
	if err != nil {
		return asRefusal(err)
	}
	e, err := c.engine(r.Context(), node)
	if err != nil {
		return err
	}
	defer e.marks.add(mark{"images", ""})
	last := func() { e.marks.add(mark{"images", ""}) }
	return (&relay{engine: e, path: "/images/create", patience: forever}).run(&tailWatcher{ResponseWriter: w, each: last}, r, call)
}

// tailWatcher marks with every piece of a progress stream, so that the read that
// follows the last one is owed before the client sees the end.
type tailWatcher struct {
	http.ResponseWriter
	each func()
}

func (t *tailWatcher) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`"status":"Status: `)) || bytes.Contains(p, []byte(`"status":"Loaded image`)) {
		t.each()
	}
	return t.ResponseWriter.Write(p)
}

func (t *tailWatcher) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// imagePass relays a read to a node that has the image.
func imagePass(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	c.nodes.settle(r.Context())
	e, err := c.imageSource(r.Context(), call.name, 0)
	if errors.Is(err, errNotFound) {
		return noSuchImage(call.name)
	}
	if err != nil {
		return err
	}
	suffix := strings.TrimPrefix(r.URL.Path, "/images/"+call.name)
	return (&relay{engine: e, path: "/images/" + escapeName(call.name) + suffix}).run(w, r, call)
}

// noSuchImage is an engine's 404, with the tag filled in.
func noSuchImage(ref string) error {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		ref = reference.FamiliarString(reference.TagNameOnly(named))
	}
	return errorf(http.StatusNotFound, "No such image: %s", ref)
}

// escapeName makes an image name safe in a path; its slashes stay.
func escapeName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// mergedImage is an image as one engine would list it that had all nodes' tags.
type mergedImage struct {
	id            string
	created       int64
	dangling      bool
	parent        bool // another image is built from it
	summary       string
	tags, digests []string
}

// imageList answers docker images: the images of all nodes, merged by ID.
func imageList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	f, err := parseFilters(call.query, "before", "since", "dangling", "label", "reference", "until", "node")
	if err != nil {
		return err
	}
	if old := call.query.Get("filter"); old != "" { // before API 1.25
		f["reference"] = append(f["reference"], old)
	}
	dangling, danglingSet, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	for _, pattern := range f["reference"] {
		if _, err := reference.FamiliarMatch(pattern, reference.TrimNamed(busybox)); err != nil {
			return errorf(http.StatusBadRequest, "invalid filter 'reference=%s': %v", pattern, err)
		}
	}
	c.nodes.settle(r.Context())
	images, err := c.mergedImages(r.Context(), f["node"])
	if err != nil {
		return err
	}
	before, err := findMerged(images, f["before"])
	if err != nil {
		return err
	}
	since, err := findMerged(images, f["since"])
	if err != nil {
		return err
	}
	all := isTrue(call.query, "all")
	list := []json.RawMessage{}
	for _, im := range images {
		switch {
		case before != nil && im.created >= before.created, since != nil && im.created <= since.created:
			continue
		case danglingSet && dangling != (len(im.tags) == 0 && !im.parent):
			continue
		case !all && !(danglingSet && dangling) && len(im.tags) == 0 && len(im.digests) == 0 && im.parent:
			continue
		}
		if f.has("reference") && !im.keepMatching(f["reference"]) {
			continue
		}
		entry, labels, err := im.entry(call.version)
		if err != nil {
			return err
		}
		if f.labels("label", labels) {
			list = append(list, entry)
		}
	}
	return writeJSON(w, list)
}

// busybox is any valid name, to try patterns on.
var busybox, _ = reference.ParseNormalizedNamed("busybox")

// mergedImages reads the image rows, newest first.
func (c *cluster) mergedImages(ctx context.Context, nodes []string) ([]*mergedImage, error) {
	rows, err := c.store.query(ctx, `
		SELECT i.image_id, i.created_at, i.summary, n.name,
		       EXISTS (SELECT 1 FROM images k WHERE k.parent_id = i.image_id AND k.node_id = i.node_id)
		  FROM images i JOIN nodes n ON n.id = i.node_id ORDER BY n.id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	byID := map[string]*mergedImage{}
	var list []*mergedImage
	for rows.Next() {
		var id, summary, node string
		var created int64
		var parent bool
		if err := rows.Scan(&id, &created, &summary, &node, &parent); err != nil {
			return nil, err
		}
		if len(nodes) > 0 && !slices.Contains(nodes, node) {
			continue
		}
		im := byID[id]
		if im == nil {
			im = &mergedImage{id: id, created: created, summary: summary}
			byID[id] = im
			list = append(list, im)
		}
		var names struct{ RepoTags, RepoDigests []string }
		if err := json.Unmarshal([]byte(summary), &names); err != nil {
			return nil, fmt.Errorf("image row %s: %w", id, err)
		}
		im.parent = im.parent || parent
		im.tags = addNames(im.tags, names.RepoTags)
		im.digests = addNames(im.digests, names.RepoDigests)
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].created > list[j].created })
	return list, rows.Err()
}

func addNames(to, names []string) []string {
	for _, n := range names {
		if !strings.HasPrefix(n, "<none>") && !slices.Contains(to, n) {
			to = append(to, n)
		}
	}
	return to
}

// findMerged finds the image that a filter names.
func findMerged(images []*mergedImage, refs []string) (*mergedImage, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	want, bare := imageName(refs[0]), strings.TrimPrefix(refs[0], "sha256:")
	for _, im := range images {
		if isHex(bare) && strings.HasPrefix(im.id, "sha256:"+bare) {
			return im, nil
		}
		for _, tag := range slices.Concat(im.tags, im.digests) {
			if imageName(tag) == want {
				return im, nil
			}
		}
	}
	return nil, noSuchImage(refs[0])
}

// keepMatching leaves the names that match one of the patterns; false if none does.
func (im *mergedImage) keepMatching(patterns []string) bool {
	matches := func(name string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		return err != nil || !slices.ContainsFunc(patterns, func(p string) bool {
			ok, _ := reference.FamiliarMatch(p, ref)
			return ok
		})
	}
	im.tags = slices.DeleteFunc(im.tags, matches)
	im.digests = slices.DeleteFunc(im.digests, matches)
	return len(im.tags)+len(im.digests) > 0
}

// entry is the list entry for a client of version v, and the image's labels.
func (im *mergedImage) entry(v apiVersion) (json.RawMessage, map[string]string, error) {
	o, err := parseObject([]byte(im.summary))
	if err != nil {
		return nil, nil, fmt.Errorf("image row %s: %w", im.id, err)
	}
	tags, digests := im.tags, im.digests
	if tags == nil {
		tags = []string{}
	}
	if digests == nil {
		digests = []string{}
	}
	if v != 0 && v < 1043 && len(tags) == 0 {
		tags = []string{"<none>:<none>"}
		if len(digests) == 0 {
			digests = []string{"<none>@<none>"}
		}
	}
	o = o.with("RepoTags", tags).with("RepoDigests", digests)
	for _, f := range imageFields {
		if v != 0 && (v < f.from || f.last != 0 && v > f.last) {
			o = o.without(f.key)
		}
	}
	var labels map[string]string
	json.Unmarshal(o.get("Labels"), &labels) // null, or of an odd shape: no labels
	return o.bytes(), labels, nil
}
