package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// transferStall ends a transfer in which no byte has moved for this long.
const transferStall = 5 * time.Minute

// rightImage sees to it that the tag a create names means on the picked node what it
// means in the cluster: a node that has another image of this name is brought the
// right one first. A node that has none says so itself, as it does of one that is not
// for the platform that the create demands.
func (c *cluster) rightImage(ctx context.Context, load *workload, e *engine) error {
	ref := load.image
	name := load.imageName()
	if name == "" {
		return nil
	}
	var means string
	err := c.store.get(ctx, `
		SELECT t.image_id FROM image_tags t JOIN image_names i ON i.name = t.name AND i.node_id = ?2
		 WHERE t.name = ?1 AND i.image_id <> t.image_id
		   AND NOT EXISTS (SELECT 1 FROM image_copies k WHERE k.node_id = ?2 AND k.image_id = i.image_id AND k.copy_of = t.image_id)`,
		[]any{name, e.id}, &means)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if fits, err := c.store.imageIsFor(ctx, means, load.platform); !fits || err != nil {
		return err
	}
	f, err := c.lookUpImage(ctx, ref)
	if errors.Is(err, errNotFound) || err == nil && f.id != means {
		return nil // it has gone with its nodes: what is here is used
	}
	if err != nil {
		return err
	}
	return c.bring(ctx, f, e)
}

// createWithImage goes on after an engine has answered that it lacks the image:
// another node's copy is streamed over, and the create asked for again. If nobody
// has it the 404 stands; the client pulls then, and the pull lands on this node.
func (c *cluster) createWithImage(ctx context.Context, e *engine, header http.Header, call *call, p *placement, load *workload, data []byte, missing *created) (*created, error) {
	e.marks.add(mark{"images", ""}) // its row may have told otherwise
	f, err := c.image(ctx, load.image)
	if errors.Is(err, errNotFound) {
		return missing, c.store.expectPull(ctx, load.imageName(), e.id)
	}
	if err != nil {
		return nil, err
	}
	fits, err := c.store.imageIsFor(ctx, f.id, load.platform)
	if err != nil {
		return nil, err
	}
	others := slices.ContainsFunc(c.sources(f), func(s *engine) bool { return s != e })
	if !others || !fits || isDigestName(f.name) {
		// Graph drivers forget repository digests in a copy: only a pull brings name@sha256:….
		return missing, c.store.expectPull(ctx, load.imageName(), e.id)
	}
	if err := c.bring(ctx, f, e); err != nil {
		return nil, err
	}
	return c.createOn(ctx, e, header, call, p, data)
}

// bring copies an image to a node from one that has it, the next one if that fails.
func (c *cluster) bring(ctx context.Context, f *foundImage, to *engine) error {
	err := c.outOfReach(f)
	for _, from := range c.sources(f) {
		if from == to {
			continue
		}
		if err = c.copyImage(ctx, f, from, to); err == nil || ctx.Err() != nil {
			return err
		}
		c.log.Warn("image not copied", "image", f.ref, "node", to.nodeName(), "from", from.nodeName(), "err", oneLine(err))
		err = errorf(http.StatusBadGateway, "copy image %s from node %s to node %s: %s", f.ref, from.nodeName(), to.nodeName(), oneLine(err))
	}
	return err
}

// copyImage streams an image from one engine to another, or waits for the
// transfer that does so already. It goes on when the client leaves.
func (c *cluster) copyImage(ctx context.Context, f *foundImage, from, to *engine) error {
	key := transferKey{f.id, to.id}
	if f.name != "" {
		key.image = f.name
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
			t.err = c.transfer(c.base, f, from, to)
			c.transfers.mu.Lock()
			delete(c.transfers.running, key)
			c.transfers.mu.Unlock()
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

// transfer makes f on to what it is on from. Where the node has the image already,
// under another name, it only lacks the tag. Its rows are right before it returns.
func (c *cluster) transfer(ctx context.Context, f *foundImage, from, to *engine) error {
	began := time.Now()
	id := f.idOn(from.id)
	var there string
	err := c.store.get(ctx, `SELECT image_id FROM images WHERE node_id = ?1 AND image_id = ?2
		UNION ALL SELECT image_id FROM image_copies WHERE node_id = ?1 AND copy_of = ?3 LIMIT 1`, []any{to.id, id, f.id}, &there)
	if err != nil || f.name == "" || to.tagImage(ctx, there, f.name) != nil {
		ref := id
		if f.name != "" {
			ref = familiarName(f.name)
		}
		if err := c.stream(ctx, ref, from, to); err != nil {
			return err
		}
	}
	c.readImages(ctx, to)
	if f.name == "" {
		return c.tagAsSource(ctx, id, from, to)
	}
	c.log.Info("image copied", "image", f.ref, "node", to.nodeName(), "from", from.nodeName(), "took", time.Since(began).Round(time.Millisecond))
	if err := c.store.copied(ctx, f.name, f.id, f.holders[0].node, to.id); err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	return nil
}

// tagAsSource gives an image that was copied by its ID the tags it has where it came
// from: untagged it would be the next prune's. A tag that means another image, or that
// the node has, stays as it is.
func (c *cluster) tagAsSource(ctx context.Context, id string, from, to *engine) error {
	names, err := c.store.strings(ctx, `
		SELECT i.name FROM image_names i LEFT JOIN image_tags t ON t.name = i.name
		 WHERE i.node_id = ?1 AND i.image_id = ?2 AND coalesce(t.image_id, ?2) = ?2 AND instr(i.name, '@') = 0
		   AND NOT EXISTS (SELECT 1 FROM image_names h WHERE h.node_id = ?3 AND h.name = i.name)`, from.id, id, to.id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := to.tagImage(ctx, id, name); err != nil {
			c.log.Warn("copied image not tagged", "image", name, "node", to.nodeName(), "err", oneLine(err))
		}
	}
	if len(names) > 0 {
		c.readImages(ctx, to)
	}
	return nil
}

// tagImage gives an image a name on this engine.
func (e *engine) tagImage(ctx context.Context, id, name string) error {
	repo, tag := splitTag(name)
	query := url.Values{"repo": {repo}, "tag": {tag}}
	resp, err := e.exchange(ctx, http.MethodPost, e.url(0, "/images/"+escapeName(id)+"/tag", query.Encode()), nil, nil, change)
	if err == nil && resp.status != http.StatusCreated {
		err = errors.New(resp.message())
	}
	return err
}

// splitTag takes a normalised reference apart, as people write it: busybox, latest.
func splitTag(name string) (repo, tag string) {
	short := familiarName(name)
	i := strings.LastIndexByte(short, ':')
	return short[:i], short[i+1:]
}

// stream saves an image at one engine and loads it at another, in small pieces. It
// ends when no byte has moved for transferStall; the target's progress counts too:
// it unpacks after the last byte has come.
func (c *cluster) stream(ctx context.Context, ref string, from, to *engine) error {
	release, err := to.heavyCall(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(transferStall, func() { cancel(errStalled) })
	defer stalled.Stop()
	// Both may be busy for long before they answer; a hung one fails its ping.
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, from.url(0, "/images/get", url.Values{"names": {ref}}.Encode()), nil)
	if err != nil {
		return err
	}
	saved, err := from.do(get, slow)
	if err != nil {
		return because(ctx, err)
	}
	defer saved.Body.Close()
	if saved.StatusCode != http.StatusOK {
		return errors.New(engineMessage(saved.Body))
	}
	put, err := http.NewRequestWithContext(ctx, http.MethodPost, to.url(0, "/images/load", "quiet=0"), &steadyReader{saved.Body, stalled})
	if err != nil {
		return err
	}
	put.Header.Set("Content-Type", "application/x-tar")
	loaded, err := to.do(put, slow)
	if err != nil {
		return because(ctx, err)
	}
	defer loaded.Body.Close()
	if loaded.StatusCode != http.StatusOK {
		return errors.New(engineMessage(loaded.Body))
	}
	for dec := json.NewDecoder(&steadyReader{loaded.Body, stalled}); ; {
		var line progressLine
		if err := dec.Decode(&line); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return because(ctx, err)
		}
		if msg := line.failure(); msg != "" {
			return errors.New(msg)
		}
	}
}

var errStalled = fmt.Errorf("no byte moved for %v", transferStall)

// because is why ctx ended, if that is what err is about.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// steadyReader puts the stall timer off with every byte.
type steadyReader struct {
	io.Reader
	stalled *time.Timer
}

func (s *steadyReader) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if n > 0 {
		s.stalled.Reset(transferStall)
	}
	return n, err
}

// gather picks the engine that has most of these images and brings it the others.
func (c *cluster) gather(ctx context.Context, refs []string) (*engine, error) {
	var found []*foundImage
	has := map[*engine]int{}
	var best *engine
	for _, ref := range refs {
		f, err := c.image(ctx, ref)
		if errors.Is(err, errNotFound) {
			return c.anyEngine(ctx) // to say so in its own words
		}
		if err != nil {
			return nil, err
		}
		sources := c.sources(f)
		if len(sources) == 0 {
			return nil, c.outOfReach(f)
		}
		for _, e := range sources {
			if has[e]++; best == nil || has[e] > has[best] {
				best = e
			}
		}
		found = append(found, f)
	}
	for _, f := range found {
		if slices.Contains(c.sources(f), best) {
			continue
		}
		if err := c.bring(ctx, f, best); err != nil {
			return nil, err
		}
	}
	return best, nil
}

// imageSave answers docker save. Images on different nodes are brought to one first,
// for an engine saves only what it has.
func imageSave(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	refs := call.query["names"]
	if call.name != "" {
		refs = []string{call.name}
	}
	var e *engine
	var err error
	if len(refs) == 0 {
		e, err = c.anyEngine(r.Context())
	} else {
		e, err = c.gather(r.Context(), refs)
	}
	if err != nil {
		return err
	}
	return (&relay{engine: e, path: namedPath(r, call), patience: forever}).run(w, r, call)
}
