package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// imageName is the normalised form of a reference: alpine is docker.io/library/alpine:latest.
// A digest makes a tag beside it meaningless, as engines have it. A digest without
// a name (sha256:…) and what does not parse have none.
func imageName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	if digested, ok := named.(reference.Digested); ok {
		return named.Name() + "@" + digested.Digest().String()
	}
	return reference.TagNameOnly(named).String()
}

// familiarName is a normalised reference as people write it: busybox:latest.
func familiarName(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// isDigestName tells name@sha256:… from name:tag, both normalised.
func isDigestName(name string) bool { return strings.Contains(name, "@") }

// repository is a normalised reference without tag and digest, as people write it: busybox.
func repository(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(named)
}

// tagsOf bounds the tags of a repository among normalised names; ref may have a tag itself.
func tagsOf(ref string) (from, to string) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", ""
	}
	return named.Name() + ":", named.Name() + ";" // the character after :
}

// idRange bounds the image IDs that begin with ref, with or without "sha256:", on
// the index; both are empty when ref is no ID.
func idRange(ref string) (low, high string) {
	bare := strings.TrimPrefix(ref, "sha256:")
	if !isHex(bare) || len(bare) > 64 {
		return "", ""
	}
	return "sha256:" + bare, "sha256:" + bare + "g"
}

// listedImage is what we read of an engine's list entry.
type listedImage struct {
	Id, ParentId          string
	Created, Size         int64
	RepoTags, RepoDigests []string
}

// shortID is an ID as people see it: twelve digits.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// expectedPull is how long a create's pick is remembered for the pull that follows, in seconds.
const expectedPull = 60

// putImages makes a node's image rows what its engine lists. While a build is open
// on the node, or was a moment ago, tags that moved are the build's: over gRPC
// nothing else tells which it sets. It returns the containers whose Image may
// read differently now: it is an ID once the tag they were made from has moved.
// Items of a wrong shape are counted and skipped; while there are any, no row is deleted.
func (t *tx) putImages(node int64, images []json.RawMessage, building bool) (bad int, reread []string, err error) {
	known, err := t.summaries("SELECT image_id, summary FROM images WHERE node_id = ?", node)
	if err != nil {
		return 0, nil, err
	}
	names, listed := map[string]string{}, map[string]bool{}
	for _, raw := range images {
		var im listedImage
		text := summaryText(raw)
		if json.Unmarshal(raw, &im) != nil || !validID(im.Id) || text == "" {
			bad++
			continue
		}
		listed[im.Id] = true
		tagged := false
		for _, ref := range slices.Concat(im.RepoTags, im.RepoDigests) {
			if name := imageName(ref); name != "" && !strings.HasPrefix(ref, "<none>") {
				names[bounded(name)] = im.Id
				tagged = tagged || !isDigestName(name)
			}
		}
		old, exists := known[im.Id]
		delete(known, im.Id)
		if exists && old == text {
			continue
		}
		if _, err := t.exec(`INSERT INTO images (node_id, image_id, parent_id, created_at, size_bytes, dangling, summary) VALUES (?,?,?,?,?,?,?)
			ON CONFLICT DO UPDATE SET parent_id = excluded.parent_id, created_at = excluded.created_at, size_bytes = excluded.size_bytes,
			dangling = excluded.dangling, summary = excluded.summary`,
			node, im.Id, bounded(im.ParentId), im.Created, im.Size, !tagged, text); err != nil {
			return bad, nil, err
		}
	}
	if bad > 0 {
		known = nil
	}
	for id := range known {
		if _, err := t.exec("DELETE FROM images WHERE node_id = ? AND image_id = ?", node, id); err != nil {
			return bad, nil, err
		}
		if _, err := t.exec("DELETE FROM image_copies WHERE node_id = ? AND image_id = ?", node, id); err != nil {
			return bad, nil, err
		}
	}
	reread, err = t.putImageNames(node, names, func(id string) bool { return bad == 0 || listed[id] }, building)
	return bad, reread, err
}

// putImageNames makes a node's names what they are now, and follows what changed.
// Images that were not listed keep theirs.
func (t *tx) putImageNames(node int64, names map[string]string, listed func(id string) bool, building bool) (reread []string, err error) {
	old, err := t.summaries("SELECT name, image_id FROM image_names WHERE node_id = ?", node)
	if err != nil {
		return nil, err
	}
	touched := map[string]bool{} // images that a name came to or left
	for name, id := range old {
		if names[name] == id || names[name] == "" && !listed(id) {
			continue
		}
		touched[id] = true
		if _, err := t.exec("DELETE FROM image_names WHERE node_id = ? AND name = ?", node, name); err != nil {
			return nil, err
		}
		if err := t.forgetTag(name); err != nil {
			return nil, err
		}
	}
	for name, id := range names {
		if old[name] == id {
			continue
		}
		touched[id] = true
		if _, err := t.exec("INSERT INTO image_names VALUES (?,?,?)", node, name, id); err != nil {
			return nil, err
		}
		if building {
			if err := t.setTag(name, id, node); err != nil {
				return nil, err
			}
		}
	}
	if len(touched) == 0 {
		return nil, nil
	}
	return t.containersOf(node, touched, names)
}

// containersOf finds the node's containers of these images whose Image is not what
// the names say: a name that has gone elsewhere, or an ID that may have a name again.
func (t *tx) containersOf(node int64, images map[string]bool, names map[string]string) (ids []string, err error) {
	rows, err := t.query("SELECT container_id, image, image_id FROM containers WHERE node_id = ?", node)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, image, imageID string
		if err := rows.Scan(&id, &image, &imageID); err != nil {
			return nil, err
		}
		if images[imageID] && names[imageName(image)] != imageID {
			ids = append(ids, id)
		}
	}
	return ids, rows.Err()
}

// setTag writes what a tag means in the cluster from now on.
func (t *tx) setTag(name, id string, node int64) error {
	_, err := t.exec("INSERT OR REPLACE INTO image_tags (name, image_id, node_id) VALUES (?,?,?)", name, id, node)
	return err
}

// forgetTag drops what a tag means when no node has it that way any more.
func (t *tx) forgetTag(name string) error {
	_, err := t.exec(`DELETE FROM image_tags WHERE name = ?1 AND NOT EXISTS
		(SELECT 1 FROM image_names i WHERE i.name = ?1 AND i.image_id = image_tags.image_id)`, name)
	return err
}

// tagsSet writes that names mean what they name on node: a pull, build, load,
// import, commit or tag there has set them. Its images were listed again before.
func (s *store) tagsSet(ctx context.Context, node int64, names []string) error {
	return s.write(ctx, func(t *tx) error {
		for _, name := range names {
			_, err := t.exec(`INSERT OR REPLACE INTO image_tags (name, image_id, node_id)
				SELECT name, image_id, node_id FROM image_names WHERE node_id = ? AND name = ?`, node, name)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// tagGone writes that a tag means nothing any more.
func (s *store) tagGone(ctx context.Context, name string) error {
	return s.write(ctx, func(t *tx) error {
		_, err := t.exec("DELETE FROM image_tags WHERE name = ?", name)
		return err
	})
}

// copied writes that a transfer has brought the image id, under name, to a node
// where it may have another ID: the two kinds of image store name images
// differently. What the tag means stays as it was, though a build under way on that
// node made it look as if the build had set it.
func (s *store) copied(ctx context.Context, name, id string, source, node int64) error {
	return s.write(ctx, func(t *tx) error {
		var there string
		if err := t.get("SELECT image_id FROM image_names WHERE node_id = ? AND name = ?", []any{node, name}, &there); err != nil {
			return err
		}
		if there != id {
			if _, err := t.exec("INSERT OR REPLACE INTO image_copies VALUES (?,?,?)", node, there, id); err != nil {
				return err
			}
		}
		_, err := t.exec("UPDATE image_tags SET image_id = ?, node_id = ? WHERE name = ? AND node_id = ? AND image_id = ?", id, source, name, node, there)
		return err
	})
}

// imageHolder is a node that has an image, or has something else under its name.
type imageHolder struct {
	node  int64
	id    string // what it has there
	right bool   // it is what the reference means in the cluster
}

// imageByName lists the nodes that have a normalised name, those that set it first,
// and what it means. Without a word of ours it means what the first node has that
// counts.
func (s *store) imageByName(ctx context.Context, name string, counts func(node int64) bool) (id string, holders []imageHolder, err error) {
	rows, err := s.query(ctx, `
		SELECT i.node_id, i.image_id, coalesce(t.image_id, ''), EXISTS (SELECT 1 FROM image_copies k
		        WHERE k.node_id = i.node_id AND k.image_id = i.image_id AND k.copy_of = t.image_id)
		  FROM image_names i LEFT JOIN image_tags t ON t.name = i.name
		 WHERE i.name = ? ORDER BY i.node_id = t.node_id DESC, i.node_id`, name)
	if err != nil {
		return "", nil, err
	}
	defer rows.Close()
	alive := false
	for rows.Next() {
		var h imageHolder
		var means string
		if err := rows.Scan(&h.node, &h.id, &means, &h.right); err != nil {
			return "", nil, err
		}
		h.right = h.right || h.id == means
		alive = alive || h.right && counts(h.node)
		id = means
		holders = append(holders, h)
	}
	if err := rows.Err(); err != nil || alive || len(holders) == 0 {
		return id, holders, err
	}
	// What it means has gone with its nodes, or nobody said: what there is, is used.
	first := max(0, slices.IndexFunc(holders, func(h imageHolder) bool { return counts(h.node) }))
	id = holders[first].id
	for i := range holders {
		holders[i].right = holders[i].id == id
	}
	return id, holders, nil
}

// imageByID lists the nodes that have the image with this ID or unique part of it.
// Two images that begin alike are none, as for an engine.
func (s *store) imageByID(ctx context.Context, ref string) (id string, holders []imageHolder, err error) {
	low, high := idRange(ref)
	rows, err := s.query(ctx, "SELECT node_id, image_id FROM images WHERE image_id >= ? AND image_id < ? ORDER BY node_id LIMIT 2000", low, high)
	if err != nil {
		return "", nil, err
	}
	defer rows.Close()
	for rows.Next() {
		h := imageHolder{right: true}
		if err := rows.Scan(&h.node, &h.id); err != nil {
			return "", nil, err
		}
		if id != "" && h.id != id {
			return "", nil, nil
		}
		id = h.id
		holders = append(holders, h)
	}
	return id, holders, rows.Err()
}

// imagePlatforms lists what the image that ref names, normalised name, is made for, as the nodes that
// have it say. It steps from value to value on the indexes: a thousand nodes may have it.
func (t *tx) imagePlatforms(ref, name string) ([]string, error) {
	low, high := idRange(ref)
	return t.strings(`
		WITH RECURSIVE meant (id) AS (
			SELECT t.image_id FROM image_tags t WHERE t.name = ?1 AND EXISTS (SELECT 1 FROM images i WHERE i.image_id = t.image_id)),
		named (id) AS (
			SELECT min(image_id) FROM image_names WHERE name = ?1 AND NOT EXISTS (SELECT 1 FROM meant)
			UNION ALL
			SELECT (SELECT min(image_id) FROM image_names WHERE name = ?1 AND image_id > named.id) FROM named WHERE id IS NOT NULL),
		ids (id) AS (
			SELECT id FROM meant UNION ALL SELECT id FROM named
			UNION ALL
			SELECT min(image_id) FROM images WHERE image_id >= ?2 AND image_id < ?3 AND NOT EXISTS (SELECT 1 FROM image_names WHERE name = ?1)),
		found (id, platform) AS (
			SELECT id, (SELECT min(platform) FROM images i WHERE i.image_id = ids.id AND i.platform > '') FROM ids WHERE id IS NOT NULL
			UNION ALL
			SELECT id, (SELECT min(platform) FROM images i WHERE i.image_id = found.id AND i.platform > found.platform) FROM found
			 WHERE platform IS NOT NULL)
		SELECT DISTINCT platform FROM found WHERE platform IS NOT NULL ORDER BY platform`, name, low, high)
}

// readPlatforms asks the engine what its images are made for: its list does not say.
// Each is asked about once; with a graph driver's store an ID means the same image
// on every node. Images without a name are left out: a create by ID stays where they are.
func (ns *nodes) readPlatforms(ctx context.Context, e *engine) error {
	const unknown = `SELECT DISTINCT i.image_id FROM images i JOIN image_names h ON h.node_id = i.node_id AND h.image_id = i.image_id
		WHERE i.node_id = ? AND i.platform IS NULL`
	ids, err := ns.store.strings(ctx, unknown, e.id)
	if err != nil || len(ids) == 0 {
		return err
	}
	err = ns.store.write(ctx, func(t *tx) error {
		return t.mostlyIdle(func() (err error) {
			_, err = t.exec(`UPDATE images SET platform = (SELECT min(o.platform) FROM images o WHERE o.image_id = images.image_id)
				WHERE node_id = ?1 AND platform IS NULL AND EXISTS (SELECT 1 FROM images o WHERE o.image_id = images.image_id AND o.platform IS NOT NULL)
				  AND EXISTS (SELECT 1 FROM nodes n WHERE n.id = ?1 AND n.image_store = 'graph')`, e.id)
			if err == nil {
				ids, err = t.strings(unknown, e.id)
			}
			return err
		})
	})
	found := map[string]string{}
	for _, id := range ids {
		if err != nil {
			break
		}
		var said struct{ Os, Architecture, Variant string }
		if err = e.getJSON(ctx, "/images/"+url.PathEscape(id)+"/json", "", &said); err == nil {
			found[id] = platformName(said.Os, said.Architecture, said.Variant)
		} else if errors.Is(err, errNotFound) {
			err = nil // gone meanwhile: its event follows
		}
	}
	if len(found) == 0 {
		return err
	}
	return errors.Join(err, ns.store.write(ctx, func(t *tx) error {
		for id, platform := range found {
			if _, err := t.exec("UPDATE images SET platform = ? WHERE node_id = ? AND image_id = ?", platform, e.id, id); err != nil {
				return err
			}
		}
		return nil
	}))
}

// imageIsFor tells whether an image is made for a platform, or may be: no node has
// told otherwise. A platform may be only an operating system, and "" is any.
func (s *store) imageIsFor(ctx context.Context, id, platform string) (bool, error) {
	if platform == "" {
		return true, nil
	}
	known, err := s.strings(ctx, "SELECT DISTINCT platform FROM images WHERE image_id = ? AND platform > ''", id)
	return len(known) == 0 || slices.ContainsFunc(known, func(p string) bool { return p == platform || strings.HasPrefix(p, platform+"/") }), err
}
