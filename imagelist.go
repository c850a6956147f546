package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	timetypes "github.com/docker/docker/api/types/time"
	"golang.org/x/sync/errgroup"
)

// mergedImage is an image as one engine would list it that had all nodes' tags.
type mergedImage struct {
	id            string
	created       int64
	parent        bool // another image is built from it
	summary       string
	tags, digests []string
}

// imageList answers docker images: the images of all nodes, merged by ID.
func imageList(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	l, err := newImageLister(call)
	if err != nil {
		return err
	}
	c.nodes.settle(r.Context())
	entries, err := c.imageEntries(r.Context(), call)
	if err != nil {
		return err
	}
	meaning, err := c.tagMeanings(r.Context())
	if err != nil {
		return err
	}
	images, err := mergeImages(entries, meaning, l.filters["node"])
	if err != nil {
		return err
	}
	if err := l.bounds(images); err != nil {
		return err
	}
	v := call.version
	if v == 0 {
		v = c.nodes.fleet.Load().highest
	}
	used := map[string]int64{}
	if v >= 1051 {
		if used, err = c.imageUsers(r.Context()); err != nil {
			return err
		}
	}
	list := []json.RawMessage{}
	for _, im := range images {
		if !l.match(im) {
			continue
		}
		entry, labels, err := im.entry(v, used)
		if err != nil {
			return err
		}
		if l.filters.labels("label", labels) {
			list = append(list, entry)
		}
	}
	return writeJSON(w, list)
}

// imageLister is a list request, understood.
type imageLister struct {
	filters               listFilters
	all                   bool
	dangling, danglingSet bool
	before, since         *int64 // unix seconds, exclusive
}

// anyName is a valid name, to try patterns on.
var anyName, _ = reference.ParseNormalizedNamed("busybox")

func newImageLister(call *call) (*imageLister, error) {
	f, err := parseFilters(call.query, "before", "since", "dangling", "label", "reference", "until", "node")
	if err != nil {
		return nil, err
	}
	if old := call.query.Get("filter"); old != "" && call.version != 0 && call.version < 1041 {
		f["reference"] = append(f["reference"], old)
	}
	l := &imageLister{filters: f, all: isTrue(call.query, "all")}
	if l.dangling, l.danglingSet, err = f.boolean("dangling"); err != nil {
		return nil, err
	}
	for _, pattern := range f["reference"] {
		if _, err := reference.FamiliarMatch(pattern, anyName); err != nil {
			return nil, errorf(http.StatusBadRequest, "invalid filter 'reference=%s': %v", pattern, err)
		}
	}
	for _, until := range f["until"] {
		stamp, err := timetypes.GetTimestamp(until, time.Now())
		if err != nil {
			return nil, errorf(http.StatusBadRequest, "%v", err)
		}
		seconds, _, err := timetypes.ParseTimestamps(stamp, 0)
		if err != nil {
			return nil, errorf(http.StatusBadRequest, "%v", err)
		}
		if l.before == nil || seconds < *l.before {
			l.before = &seconds
		}
	}
	return l, nil
}

// bounds finds the images that before and since name: all of them hold.
func (l *imageLister) bounds(images []*mergedImage) error {
	for _, ref := range l.filters["before"] {
		im, err := findMerged(images, ref)
		if err != nil {
			return err
		}
		if l.before == nil || im.created < *l.before {
			l.before = &im.created
		}
	}
	for _, ref := range l.filters["since"] {
		im, err := findMerged(images, ref)
		if err != nil {
			return err
		}
		if l.since == nil || im.created > *l.since {
			l.since = &im.created
		}
	}
	return nil
}

// match tells whether an image passes every filter but label, and leaves it the
// names that pass; semantics are the engine's.
func (l *imageLister) match(im *mergedImage) bool {
	if l.before != nil && im.created >= *l.before || l.since != nil && im.created <= *l.since {
		return false
	}
	if l.danglingSet && l.dangling && (len(im.tags) > 0 || im.parent) {
		return false
	}
	if l.filters.given("reference") && !im.keepMatching(l.filters["reference"]) {
		return false
	}
	if len(im.tags)+len(im.digests) > 0 {
		return true
	}
	if im.parent && !l.all {
		return false
	}
	return !l.danglingSet || l.dangling
}

// imageEntry is an image of one node, as its engine lists it.
type imageEntry struct {
	node, summary string
	id            string
	created       int64
	parent        bool
}

// imageEntries are the images of all nodes: from rows, or where the client wants
// more than those hold, from the healthy engines.
func (c *cluster) imageEntries(ctx context.Context, call *call) ([]imageEntry, error) {
	query := cloneQuery(call.query)
	query.Del("filters")
	query.Set("all", "1")
	for _, more := range []string{"manifests", "identity", "shared-size"} {
		if isTrue(call.query, more) {
			return c.askImages(ctx, query.Encode())
		}
	}
	rows, err := c.store.query(ctx, `
		SELECT n.name, i.image_id, i.created_at, i.summary,
		       EXISTS (SELECT 1 FROM images k WHERE k.parent_id = i.image_id AND k.node_id = i.node_id)
		  FROM images i JOIN nodes n ON n.id = i.node_id ORDER BY n.id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []imageEntry
	for rows.Next() {
		var e imageEntry
		if err := rows.Scan(&e.node, &e.id, &e.created, &e.summary, &e.parent); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, rows.Err()
}

// askImages reads the lists of all healthy engines, at their highest versions. One
// that does not answer leaves its images out.
func (c *cluster) askImages(ctx context.Context, query string) ([]imageEntry, error) {
	engines := c.healthyEngines()
	lists := make([][]json.RawMessage, len(engines))
	var g errgroup.Group
	g.SetLimit(maxCalls)
	for i, e := range engines {
		g.Go(func() error {
			if err := e.getWithin(ctx, "/images/json", query, &lists[i], newRoom(maxAnswer)); err != nil {
				c.log.Warn("images not listed", "node", e.nodeName(), "err", oneLine(err))
			}
			return nil
		})
	}
	g.Wait()
	var list []imageEntry
	for i, e := range engines {
		parents := map[string]bool{}
		first := len(list)
		for _, raw := range lists[i] {
			var im listedImage
			if text := summaryText(raw); json.Unmarshal(raw, &im) == nil && im.Id != "" && text != "" {
				list = append(list, imageEntry{node: e.nodeName(), summary: text, id: im.Id, created: im.Created})
				parents[im.ParentId] = true
			}
		}
		for k := first; k < len(list); k++ {
			list[k].parent = parents[list[k].id]
		}
	}
	return list, ctx.Err()
}

// tagMeanings is what tags mean in the cluster, for the names that nodes have
// different images under: normalised name → the IDs that are right.
func (c *cluster) tagMeanings(ctx context.Context) (map[string]map[string]bool, error) {
	rows, err := c.store.query(ctx, `
		SELECT DISTINCT i.name, i.image_id, i.node_id FROM image_names i JOIN image_tags t ON t.name = i.name
		 WHERE (i.image_id = t.image_id OR EXISTS (SELECT 1 FROM image_copies k
		        WHERE k.node_id = i.node_id AND k.image_id = i.image_id AND k.copy_of = t.image_id))
		   AND EXISTS (SELECT 1 FROM image_names o WHERE o.name = i.name AND o.image_id <> t.image_id)`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	right := map[string]map[string]bool{}
	for rows.Next() {
		var name, id string
		var node int64
		if err := rows.Scan(&name, &id, &node); err != nil {
			return nil, err
		}
		if !c.alive(node) {
			continue
		}
		if right[name] == nil {
			right[name] = map[string]bool{}
		}
		right[name][id] = true
	}
	return right, rows.Err()
}

// imageUsers counts the containers of each image.
func (c *cluster) imageUsers(ctx context.Context) (map[string]int64, error) {
	rows, err := c.store.query(ctx, "SELECT image_id, count(*) FROM containers GROUP BY image_id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	used := map[string]int64{}
	for rows.Next() {
		var id string
		var n int64
		if err := rows.Scan(&id, &n); err != nil {
			return nil, err
		}
		used[id] = n
	}
	return used, rows.Err()
}

// mergeImages makes one list of all nodes', newest first. A tag that a node has on
// another image than the cluster is not shown there: one engine would have moved it.
func mergeImages(entries []imageEntry, meaning map[string]map[string]bool, nodes []string) ([]*mergedImage, error) {
	byID := map[string]*mergedImage{}
	var list []*mergedImage
	for _, e := range entries {
		if len(nodes) > 0 && !slices.Contains(nodes, e.node) {
			continue
		}
		im := byID[e.id]
		if im == nil {
			im = &mergedImage{id: e.id, created: e.created, summary: e.summary}
			byID[e.id] = im
			list = append(list, im)
		}
		var names struct{ RepoTags, RepoDigests []string }
		if err := json.Unmarshal([]byte(e.summary), &names); err != nil {
			return nil, fmt.Errorf("image row %s: %w", e.id, err)
		}
		im.parent = im.parent || e.parent
		right := func(name string) bool {
			ids := meaning[imageName(name)]
			return len(meaning) == 0 || ids == nil || ids[e.id]
		}
		im.tags = addNames(im.tags, names.RepoTags, right)
		im.digests = addNames(im.digests, names.RepoDigests, right)
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].created > list[j].created })
	return list, nil
}

func addNames(to, names []string, right func(string) bool) []string {
	for _, n := range names {
		if !strings.HasPrefix(n, "<none>") && !slices.Contains(to, n) && right(n) {
			to = append(to, n)
		}
	}
	return to
}

// findMerged finds the image that a filter names.
func findMerged(images []*mergedImage, ref string) (*mergedImage, error) {
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return nil, errorf(http.StatusBadRequest, "%v", err)
	}
	want, bare := imageName(ref), strings.TrimPrefix(ref, "sha256:")
	for _, im := range images {
		for _, tag := range slices.Concat(im.tags, im.digests) {
			if imageName(tag) == want {
				return im, nil
			}
		}
	}
	for _, im := range images {
		if isHex(bare) && strings.HasPrefix(im.id, "sha256:"+bare) {
			return im, nil
		}
	}
	return nil, noSuchImage(ref)
}

// noSuchImage is an engine's 404, with the tag filled in.
func noSuchImage(ref string) error {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		ref = reference.FamiliarString(reference.TagNameOnly(named))
	}
	return errorf(http.StatusNotFound, "No such image: %s", ref)
}

// keepMatching leaves the names that match one of the patterns; false if none does.
func (im *mergedImage) keepMatching(patterns []string) bool {
	differs := func(name string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		return err != nil || !slices.ContainsFunc(patterns, func(p string) bool {
			ok, _ := reference.FamiliarMatch(p, ref)
			return ok
		})
	}
	im.tags = slices.DeleteFunc(im.tags, differs)
	im.digests = slices.DeleteFunc(im.digests, differs)
	return len(im.tags)+len(im.digests) > 0
}

// entry is the list entry for a client of version v, and the image's labels.
func (im *mergedImage) entry(v apiVersion, used map[string]int64) (json.RawMessage, map[string]string, error) {
	o, err := parseObject([]byte(im.summary))
	if err != nil {
		return nil, nil, fmt.Errorf("image row %s: %w", im.id, err)
	}
	var tags, digests any = im.tags, im.digests // nil is null, as engines have it before 1.43
	switch {
	case v < 1043 && len(im.tags)+len(im.digests) == 0:
		tags, digests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
	case v >= 1043:
		tags, digests = slices.Concat([]string{}, im.tags), slices.Concat([]string{}, im.digests)
	}
	o = o.replace("RepoTags", []byte(jsonText(tags))).replace("RepoDigests", []byte(jsonText(digests)))
	if v < 1044 && o.get("VirtualSize") == nil && o.get("Size") != nil {
		o = o.replace("VirtualSize", o.get("Size"))
	}
	if o.get("Containers") != nil {
		n := int64(-1) // not counted before 1.51
		if v >= 1051 {
			n = used[im.id]
		}
		o = o.replace("Containers", strconv.AppendInt(nil, n, 10))
	}
	for _, f := range imageFields {
		if v < f.from || f.last != 0 && v > f.last {
			o = o.without(f.key)
		}
	}
	var labels map[string]string
	json.Unmarshal(o.get("Labels"), &labels) // null, or of an odd shape: no labels
	return o.bytes(), labels, nil
}
