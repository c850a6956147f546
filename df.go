package main

import (
	"context"
	"encoding/json"
	"net/http"
)

// newUsage is the first version of system/df with a sum and a list for each kind of thing.
const newUsage = apiVersion(1052)

// systemDF adds up what the nodes use. An image that several nodes have takes room
// on each and is listed for each.
func systemDF(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	c.nodes.settle(r.Context())
	names, err := c.shownVolumes(r.Context())
	if err != nil {
		return err
	}
	return (&toAll{path: "/system/df", query: sameQuery(call), shape: func(e *engine, o object) (object, error) {
		if _, highest := e.versions(); call.version >= newUsage && highest < newUsage {
			var err error
			if o, err = usageOf(o, isTrue(call.query, "verbose")); err != nil {
				return nil, err
			}
		}
		return renameVolumes(o, e.id, names), nil
	}}).run(c, w, r, call)
}

// usageOf gives an old engine's answer the new shape: sums of the lists, counted as
// the docker command counts the old shape.
func usageOf(o object, verbose bool) (object, error) {
	var old struct {
		LayersSize int64
		Images     []struct{ Containers, Size, SharedSize int64 }
		Containers []struct {
			State  string
			SizeRw int64
		}
		Volumes []struct {
			UsageData *struct{ RefCount, Size int64 }
		}
		BuildCache []struct {
			InUse, Shared bool
			Size          int64
		}
	}
	if err := json.Unmarshal(o.bytes(), &old); err != nil {
		return nil, err
	}
	type usage struct{ ActiveCount, TotalCount, TotalSize, Reclaimable int64 }
	images := usage{TotalCount: int64(len(old.Images)), TotalSize: old.LayersSize, Reclaimable: old.LayersSize}
	for _, i := range old.Images {
		if i.Containers > 0 {
			images.ActiveCount++
			images.Reclaimable -= i.Size - max(i.SharedSize, 0)
		}
	}
	containers := usage{TotalCount: int64(len(old.Containers))}
	for _, ct := range old.Containers {
		containers.TotalSize += ct.SizeRw
		if counts(ct.State) && ct.State != "created" {
			containers.ActiveCount++
		} else {
			containers.Reclaimable += ct.SizeRw
		}
	}
	volumes := usage{TotalCount: int64(len(old.Volumes))}
	for _, v := range old.Volumes {
		switch {
		case v.UsageData == nil:
		case v.UsageData.RefCount > 0:
			volumes.ActiveCount++
			volumes.TotalSize += max(v.UsageData.Size, 0)
		default:
			volumes.TotalSize += max(v.UsageData.Size, 0)
			volumes.Reclaimable += max(v.UsageData.Size, 0)
		}
	}
	cache := usage{TotalCount: int64(len(old.BuildCache))}
	for _, b := range old.BuildCache {
		if b.InUse {
			cache.ActiveCount++
		}
		if !b.Shared {
			cache.TotalSize += b.Size
			if !b.InUse {
				cache.Reclaimable += b.Size
			}
		}
	}
	if verbose {
		o = o.without("LayersSize").without("BuilderSize")
	}
	for key, u := range map[string]usage{"Image": images, "Container": containers, "Volume": volumes, "BuildCache": cache} {
		list := map[string]string{"Image": "Images", "Container": "Containers", "Volume": "Volumes", "BuildCache": "BuildCache"}[key]
		items := o.get(list)
		uo, err := parseObject([]byte(jsonText(u)))
		if err != nil {
			return nil, err
		}
		if verbose {
			o = o.without(list)
			if items != nil {
				uo = uo.replace("Items", items)
			}
		}
		o = o.replace(key+"Usage", uo.bytes())
	}
	return o, nil
}

// volumeKey is a volume as its node knows it.
type volumeKey struct {
	node int64
	name string
}

// shownVolumes are the names under which lists show volumes whose name an older one has.
func (c *cluster) shownVolumes(ctx context.Context) (map[volumeKey]string, error) {
	rows, err := c.store.query(ctx, `
		SELECT v.node_id, n.name, v.name FROM volumes v JOIN nodes n ON n.id = v.node_id
		 WHERE v.scope = 'local' AND EXISTS (SELECT 1 FROM volumes o WHERE o.name = v.name AND o.node_id <> v.node_id)
		 ORDER BY v.name, `+oldestFirst)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names := map[volumeKey]string{}
	last := ""
	for rows.Next() {
		var k volumeKey
		var node string
		if err := rows.Scan(&k.node, &node, &k.name); err != nil {
			return nil, err
		}
		if k.name == last {
			names[k] = node + "/" + k.name
		}
		last = k.name
	}
	return names, rows.Err()
}

// renameVolumes shows a node's volumes in a df answer as lists show them.
func renameVolumes(o object, node int64, names map[volumeKey]string) object {
	rename := func(raw json.RawMessage) json.RawMessage {
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil || list == nil {
			return raw
		}
		for i := range list {
			var v struct{ Name string }
			json.Unmarshal(list[i], &v) // of an odd shape: no name of ours
			if shown, ok := names[volumeKey{node, v.Name}]; ok {
				if vo, err := parseObject(list[i]); err == nil {
					list[i] = vo.replace("Name", []byte(jsonText(shown))).bytes()
				}
			}
		}
		return json.RawMessage(jsonText(list))
	}
	if len(names) == 0 {
		return o
	}
	if raw := o.get("Volumes"); raw != nil {
		o = o.replace("Volumes", rename(raw))
	}
	if usage, err := parseObject(o.get("VolumeUsage")); err == nil && usage.get("Items") != nil {
		o = o.replace("VolumeUsage", usage.replace("Items", rename(usage.get("Items"))).bytes())
	}
	return o
}
