package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
)

// imageBuild is POST /build: it reads the context to its end and makes an image
// of its bytes, as BuildKit with no events if version=2 is asked of a 20.10.
func (e *fakeEngine) imageBuild(c *fakeCall) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, c.r.Body); err != nil {
		return err
	}
	var labels map[string]string
	_ = json.Unmarshal([]byte(c.query.Get("labels")), &labels)
	silent := c.query.Get("version") == "2" && fakeOlder(e.apiVersion, "1.42")
	e.mu.Lock()
	config := fakeImageConfig("build "+hex.EncodeToString(sum.Sum(nil))+c.query.Get("remote"), labels)
	image := e.keepImage(config, "")
	for _, tag := range c.query["t"] {
		e.keepImage(config, fakeFamiliar(tag))
		if !silent {
			e.tellImage(image, "tag", fakeFamiliar(tag))
		}
	}
	id := image.id
	e.mu.Unlock()
	c.w.Header().Set("Content-Type", "application/json")
	c.writeLine(map[string]string{"stream": "Step 1/1 : FROM busybox"})
	c.writeLine(map[string]string{"stream": "\n"})
	c.writeLine(map[string]string{"stream": " ---> " + id[7:19] + "\n"})
	c.writeLine(map[string]any{"aux": map[string]string{"ID": id}})
	c.writeLine(map[string]string{"stream": "Successfully built " + id[7:19] + "\n"})
	for _, tag := range c.query["t"] {
		c.writeLine(map[string]string{"stream": "Successfully tagged " + fakeFamiliar(tag) + "\n"})
	}
	return nil
}

// buildPrune is POST /build/prune.
func (e *fakeEngine) buildPrune(c *fakeCall) error {
	return c.writeJSON(http.StatusOK, map[string]any{"CachesDeleted": nil, "SpaceReclaimed": 0})
}

// containerCommit is POST /commit.
func (e *fakeEngine) containerCommit(c *fakeCall) error {
	tag := ""
	if repo := c.query.Get("repo"); repo != "" {
		tag = repo
		if c.query.Get("tag") != "" {
			tag += ":" + c.query.Get("tag")
		}
		tag = fakeFamiliar(tag)
	}
	c.id = c.query.Get("container")
	var id string
	err := e.withContainer(c, func(found *fakeContainer) error {
		image := e.keepImage(fakeImageConfig("commit "+fakeID(), found.want.Labels), tag)
		image.parent = found.imageID
		id = image.id
		if tag != "" {
			e.tellImage(image, "tag", tag)
		}
		e.tell(found, "commit", "comment", c.query.Get("comment"), "imageID", id, "imageRef", tag)
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusCreated, map[string]string{"Id": id})
}
