package main

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// imageName is the normalised form of a reference: alpine is docker.io/library/alpine:latest.
// A digest without a name (sha256:…) and what does not parse have none.
func imageName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
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

// repository is a normalised reference without tag and digest, as people write it: busybox.
func repository(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(named)
}

// putImages makes a node's image rows what its engine lists. Items of a wrong
// shape are counted and skipped; while there are any, no row is deleted.
func (t *tx) putImages(node int64, images []json.RawMessage) (bad int, err error) {
	known, err := t.summaries("SELECT image_id, summary FROM images WHERE node_id = ?", node)
	if err != nil {
		return 0, err
	}
	for _, raw := range images {
		var im struct {
			Id, ParentId          string
			Created, Size         int64
			RepoTags, RepoDigests []string
		}
		text := summaryText(raw)
		if json.Unmarshal(raw, &im) != nil || !validID(im.Id) || text == "" {
			bad++
			continue
		}
		old, exists := known[im.Id]
		delete(known, im.Id)
		if exists && old == text {
			continue
		}
		names := map[string]bool{}
		tagged := false
		for _, ref := range slices.Concat(im.RepoTags, im.RepoDigests) {
			if name := imageName(ref); name != "" && !strings.HasPrefix(ref, "<none>") {
				names[name] = true
			}
		}
		for _, ref := range im.RepoTags {
			tagged = tagged || ref != "<none>:<none>"
		}
		if _, err := t.exec("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?)", node, im.Id, bounded(im.ParentId), im.Created, im.Size, !tagged, text); err != nil {
			return bad, err
		}
		if _, err := t.exec("DELETE FROM image_names WHERE node_id = ? AND image_id = ?", node, im.Id); err != nil {
			return bad, err
		}
		for name := range names {
			if _, err := t.exec("INSERT OR REPLACE INTO image_names VALUES (?,?,?)", node, bounded(name), im.Id); err != nil {
				return bad, err
			}
		}
	}
	if bad > 0 {
		return bad, nil
	}
	for id := range known {
		if _, err := t.exec("DELETE FROM images WHERE node_id = ? AND image_id = ?", node, id); err != nil {
			return bad, err
		}
		if _, err := t.exec("DELETE FROM image_names WHERE node_id = ? AND image_id = ?", node, id); err != nil {
			return bad, err
		}
	}
	return 0, nil
}
