package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

// fakeImage is an image of a fakeEngine. What it is is its config; engines with
// equal configs give it the same ID, those with a containerd store another one.
type fakeImage struct {
	id      string
	config  []byte   // JSON; its digest is the ID in a graph driver's store
	tags    []string // familiar, with tag
	digests []string // familiar name@sha256:…, of pulled images
	created time.Time
	tagged  time.Time
	parent  string
}

// fakeDigest is the digest of data.
func fakeDigest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// fakeImageConfig is the config of the image that content names.
func fakeImageConfig(content string, labels map[string]string) []byte {
	config, _ := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "comment": content,
		"config": map[string]any{"Env": []string{fakePath}, "Cmd": []string{"sh"}, "Labels": labels},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fakeDigest([]byte("layer of " + content))}},
	})
	return config
}

// containerdStore tells which kind of image store the engine has.
func (e *fakeEngine) containerdStore() bool { return e.driver == "overlayfs" }

// imageID is the ID of an image on this engine.
func (e *fakeEngine) imageID(config []byte) string {
	if e.containerdStore() {
		return fakeDigest([]byte("manifest of " + fakeDigest(config)))
	}
	return fakeDigest(config)
}

// fakeImageFor makes the config of an image one for an architecture.
func fakeImageFor(config []byte, arch string) []byte {
	return bytes.Replace(config, []byte(`"architecture":"amd64"`), []byte(`"architecture":"`+arch+`"`), 1)
}

// arch is the architecture that the image is for.
func (i *fakeImage) arch() string {
	var config struct{ Architecture string }
	_ = json.Unmarshal(i.config, &config)
	return config.Architecture
}

// labels are those of the image's config.
func (i *fakeImage) labels() map[string]string {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	_ = json.Unmarshal(i.config, &config)
	return config.Config.Labels
}

// fakeFamiliar is a reference as people write it, with its tag: busybox:latest.
func fakeFamiliar(ref string) string {
	if strings.HasPrefix(ref, "sha256:") {
		return ref
	}
	ref = strings.TrimPrefix(strings.TrimPrefix(ref, "docker.io/"), "index.docker.io/")
	ref = strings.TrimPrefix(ref, "library/")
	if !strings.Contains(ref, "@") && !strings.Contains(path.Base(ref), ":") {
		ref += ":latest"
	}
	return ref
}

// fakeRepository is a familiar reference without tag and digest.
func fakeRepository(ref string) string {
	name, _, _ := strings.Cut(ref, "@")
	if slash := strings.LastIndex(name, "/"); strings.Contains(name[slash+1:], ":") {
		name = name[:strings.LastIndex(name, ":")]
	}
	return name
}

// findImage looks an image up: tag, name@digest, ID, prefix of an ID; nil if
// there is none.
func (e *fakeEngine) findImage(ref string) *fakeImage {
	if ref == "" {
		return nil
	}
	name := fakeFamiliar(ref)
	for _, i := range e.images {
		if slices.Contains(i.tags, name) || slices.Contains(i.digests, name) || i.id == ref {
			return i
		}
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	for _, i := range e.images {
		if len(prefix) >= 4 && strings.HasPrefix(strings.TrimPrefix(i.id, "sha256:"), prefix) {
			return i
		}
	}
	return nil
}

// needImage is findImage with Docker's refusal.
func (e *fakeEngine) needImage(ref string) (*fakeImage, error) {
	if i := e.findImage(ref); i != nil {
		return i, nil
	}
	return nil, fakeErrorf(http.StatusNotFound, "No such image: %s", fakeFamiliar(ref))
}

// keepImage adds an image, or finds the one with that config, and gives it a tag,
// which is taken from whatever had it. An empty tag gives none.
func (e *fakeEngine) keepImage(config []byte, tag string) *fakeImage {
	at := slices.IndexFunc(e.images, func(i *fakeImage) bool { return bytes.Equal(i.config, config) })
	if at < 0 {
		at = len(e.images)
		e.images = append(e.images, &fakeImage{id: e.imageID(config), config: config, created: e.now()})
	}
	image := e.images[at]
	if tag == "" || slices.Contains(image.tags, tag) {
		return image
	}
	for _, other := range e.images {
		other.tags = slices.DeleteFunc(other.tags, func(t string) bool { return t == tag })
	}
	image.tags, image.tagged = append(image.tags, tag), e.now()
	return image
}

// addImage puts an image there behind the manager's back, without an event, and
// returns its ID. Engines have equal images for equal content; empty content is
// what the reference has in the registry.
func (e *fakeEngine) addImage(ref, content string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.putImage(ref, content, "").id
}

// putImage is addImage under the lock, for a platform, "" for the engine's own.
func (e *fakeEngine) putImage(ref, content, platform string) *fakeImage {
	ref = fakeFamiliar(ref)
	if content == "" {
		content = ref
	}
	arch := e.arch
	if platform != "" {
		arch = path.Base(platform)
	}
	image := e.keepImage(fakeImageFor(fakeImageConfig(content, nil), arch), ref)
	if strings.Contains(ref, "@") {
		image.tags, image.digests = nil, append(image.digests, ref)
	}
	return image
}

// removeImage takes an image away behind the manager's back, without an event.
func (e *fakeEngine) removeImage(ref string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	found := e.findImage(ref)
	e.images = slices.DeleteFunc(e.images, func(i *fakeImage) bool { return i == found })
}

// imageTags are all tags, sorted.
func (e *fakeEngine) imageTags() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var tags []string
	for _, i := range e.images {
		tags = append(tags, i.tags...)
	}
	slices.Sort(tags)
	return tags
}

// tellImage emits an event of an image.
func (e *fakeEngine) tellImage(image *fakeImage, action, name string) {
	attributes := fakeNotNil(maps.Clone(image.labels()))
	attributes["name"] = name
	e.emitNow("image", action, image.id, "", attributes)
}

// imageEntry is an image as lists show it.
func (e *fakeEngine) imageEntry(i *fakeImage) map[string]any {
	return map[string]any{
		"Containers": -1, "Created": i.created.Unix(), "Id": i.id, "Labels": i.labels(), "ParentId": i.parent,
		"RepoDigests": slices.Clone(i.digests), "RepoTags": slices.Clone(i.tags), "SharedSize": -1, "Size": 1984172, "VirtualSize": 1984172,
	}
}

// imageList is GET /images/json; the newest comes first.
func (e *fakeEngine) imageList(c *fakeCall) error {
	filters, err := c.filters("before", "dangling", "label", "reference", "since", "until")
	if err != nil {
		return err
	}
	list := []any{}
	e.mu.Lock()
	for _, i := range slices.Backward(e.images) {
		reference := len(filters["reference"]) == 0 || slices.ContainsFunc(filters["reference"], func(pattern string) bool {
			return slices.ContainsFunc(i.tags, func(tag string) bool {
				whole, _ := path.Match(pattern, tag)
				name, _ := path.Match(pattern, fakeRepository(tag))
				return whole || name
			})
		})
		dangling := len(filters["dangling"]) == 0 || (len(i.tags) == 0) == (filters["dangling"][0] == "true" || filters["dangling"][0] == "1")
		if reference && dangling && filters.labels("label", i.labels()) {
			list = append(list, e.imageEntry(i))
		}
	}
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, list)
}

// imageInspect is GET /images/{id}/json.
func (e *fakeEngine) imageInspect(c *fakeCall) error {
	e.mu.Lock()
	i, err := e.needImage(c.id)
	var shown map[string]any
	if err == nil {
		config := fakeOver(fakeConfigDefaults, map[string]json.RawMessage{
			"Env": fakeRaw([]string{fakePath}), "Cmd": fakeRaw([]string{"sh"}), "Labels": fakeRaw(i.labels())})
		shown = map[string]any{
			"Id": i.id, "RepoTags": append([]string{}, i.tags...), "RepoDigests": append([]string{}, i.digests...),
			"Parent": i.parent, "Comment": "", "Created": fakeTime(i.created), "Container": "", "ContainerConfig": config,
			"DockerVersion": e.serverVersion, "Author": "", "Config": config, "Architecture": i.arch(), "Os": "linux",
			"Size": 1984172, "VirtualSize": 1984172, "GraphDriver": map[string]any{"Name": e.driver, "Data": map[string]string{}},
			"RootFS":   map[string]any{"Type": "layers", "Layers": []string{fakeDigest(i.config)}},
			"Metadata": map[string]any{"LastTagTime": fakeTime(i.tagged)},
		}
	}
	e.mu.Unlock()
	if err != nil {
		// The doubled words are 20.10's.
		return fakeErrorf(http.StatusNotFound, "no such image: %s: %v", c.id, err)
	}
	return c.writeJSON(http.StatusOK, shown)
}

// imageHistory is GET /images/{id}/history.
func (e *fakeEngine) imageHistory(c *fakeCall) error {
	e.mu.Lock()
	i, err := e.needImage(c.id)
	var layers []any
	if err == nil {
		layers = []any{map[string]any{"Comment": "", "Created": i.created.Unix(), "CreatedBy": `/bin/sh -c #(nop)  CMD ["sh"]`,
			"Id": i.id, "Size": 1984172, "Tags": slices.Clone(i.tags)}}
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, layers)
}

// imagePull is POST /images/create: a pull, or an import with fromSrc. The
// registry has everything but names with "nosuch" in them.
func (e *fakeEngine) imagePull(c *fakeCall) error {
	body, err := io.ReadAll(c.r.Body)
	if err != nil {
		return err
	}
	tag := c.query.Get("tag")
	if c.query.Get("fromSrc") != "" {
		return e.imageImport(c, body)
	}
	name := c.query.Get("fromImage")
	if name == "" {
		return fakeErrorf(http.StatusBadRequest, "invalid reference format")
	}
	if strings.Contains(tag, ":") {
		name += "@" + tag
	} else if tag != "" {
		name += ":" + tag
	}
	ref := fakeFamiliar(name)
	repository := fakeRepository(ref)
	if strings.Contains(ref, "nosuch") {
		return fakeErrorf(http.StatusNotFound,
			"pull access denied for %s, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", repository)
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.writeLine(map[string]string{"status": "Pulling from library/" + repository, "id": strings.TrimPrefix(ref, repository+":")})
	e.mu.Lock()
	was := e.findImage(ref)
	image := e.putImage(ref, "", c.query.Get("platform"))
	digest := fakeDigest([]byte("manifest of " + fakeDigest(image.config)))
	if !strings.Contains(ref, "@") && !slices.Contains(image.digests, repository+"@"+digest) {
		image.digests = append(image.digests, repository+"@"+digest)
	}
	e.emitNow("image", "pull", ref, "", map[string]string{"name": repository})
	e.mu.Unlock()
	layer := fakeDigest([]byte(ref))[7:19]
	c.writeLine(map[string]any{"status": "Downloading", "progressDetail": map[string]int{"current": 1, "total": 2}, "progress": "[=>  ] 1B/2B", "id": layer})
	c.writeLine(map[string]any{"status": "Pull complete", "progressDetail": map[string]int{}, "id": layer})
	c.writeLine(map[string]string{"status": "Digest: " + digest})
	word := "Downloaded newer image for "
	if was == image {
		word = "Image is up to date for "
	}
	c.writeLine(map[string]string{"status": "Status: " + word + ref})
	return nil
}

// imageImport makes an image of a file system.
func (e *fakeEngine) imageImport(c *fakeCall, body []byte) error {
	tag := ""
	if repo := c.query.Get("repo"); repo != "" {
		tag = repo
		if c.query.Get("tag") != "" {
			tag += ":" + c.query.Get("tag")
		}
		tag = fakeFamiliar(tag)
	}
	e.mu.Lock()
	image := e.keepImage(fakeImageConfig("import "+fakeDigest(body), nil), tag)
	id := image.id
	e.tellImage(image, "import", id)
	e.mu.Unlock()
	c.w.Header().Set("Content-Type", "application/json")
	c.writeLine(map[string]string{"status": id})
	return nil
}

// imagePush is POST /images/{id}/push.
func (e *fakeEngine) imagePush(c *fakeCall) error {
	e.mu.Lock()
	ref := fakeFamiliar(c.id)
	if tag := c.query.Get("tag"); tag != "" {
		ref = fakeRepository(ref) + ":" + tag
	}
	image := e.findImage(ref)
	if image != nil {
		e.emitNow("image", "push", ref, "", map[string]string{"name": fakeRepository(ref)})
	}
	e.mu.Unlock()
	c.w.Header().Set("Content-Type", "application/json")
	c.writeLine(map[string]string{"status": "The push refers to repository [docker.io/library/" + fakeRepository(ref) + "]"})
	if image == nil {
		text := "An image does not exist locally with the tag: " + fakeRepository(ref)
		c.writeLine(map[string]any{"errorDetail": map[string]string{"message": text}, "error": text})
		return nil
	}
	c.writeLine(map[string]string{"status": ref + ": digest: " + fakeDigest(image.config) + " size: 527"})
	return nil
}

// imageTag is POST /images/{id}/tag.
func (e *fakeEngine) imageTag(c *fakeCall) error {
	name := c.query.Get("repo")
	if tag := c.query.Get("tag"); tag != "" {
		name += ":" + tag
	}
	name = fakeFamiliar(name)
	e.mu.Lock()
	image, err := e.needImage(c.id)
	if err == nil {
		e.keepImage(image.config, name)
		e.tellImage(image, "tag", name)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeStatus(http.StatusCreated)
}

// imageRemove is DELETE /images/{id} with the conflicts of 20.10.
func (e *fakeEngine) imageRemove(c *fakeCall) error {
	e.mu.Lock()
	done, err := e.untag(c.id, c.flag("force"))
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, done)
}

// untag removes a tag, or an image by its ID, and tells what it did.
func (e *fakeEngine) untag(ref string, force bool) ([]map[string]string, error) {
	image, err := e.needImage(ref)
	if err != nil {
		return nil, err
	}
	id := image.id
	short := id[7:19]
	var user *fakeContainer
	for _, c := range e.containers {
		if c.imageID == id && (user == nil || c.running()) {
			user = c
		}
	}
	name := fakeFamiliar(ref)
	byTag := slices.Contains(image.tags, name) || slices.Contains(image.digests, name)
	if byTag && len(image.tags) <= 1 && user != nil && !force {
		return nil, fakeErrorf(http.StatusConflict,
			`conflict: unable to remove repository reference "%s" (must force) - container %s is using its referenced image %s`, ref, user.id[:12], short)
	}
	done := []map[string]string{}
	drop := func(tag string) {
		image.tags = slices.DeleteFunc(image.tags, func(t string) bool { return t == tag })
		image.digests = slices.DeleteFunc(image.digests, func(d string) bool {
			return d == tag || len(image.tags) == 0 && fakeRepository(d) == fakeRepository(tag)
		})
		done = append(done, map[string]string{"Untagged": tag})
		e.tellImage(image, "untag", id)
	}
	if byTag {
		drop(name)
		if len(image.tags) > 0 || user != nil {
			return done, nil
		}
	} else {
		if len(image.tags) > 1 && !force {
			return nil, fakeErrorf(http.StatusConflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
		}
		if user != nil && user.running() {
			return nil, fakeErrorf(http.StatusConflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, user.id[:12])
		}
		if user != nil && !force {
			return nil, fakeErrorf(http.StatusConflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, user.id[:12])
		}
		for _, tag := range slices.Clone(image.tags) {
			drop(tag)
		}
	}
	e.images = slices.DeleteFunc(e.images, func(i *fakeImage) bool { return i == image })
	e.tellImage(image, "delete", id)
	return append(done, map[string]string{"Deleted": id}), nil
}

// imagePrune is POST /images/prune.
func (e *fakeEngine) imagePrune(c *fakeCall) error {
	filters, err := c.filters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	all := slices.Contains(filters["dangling"], "false") || slices.Contains(filters["dangling"], "0")
	deleted := []map[string]string{}
	e.mu.Lock()
	for _, i := range slices.Clone(e.images) {
		used := slices.ContainsFunc(e.containers, func(c *fakeContainer) bool { return c.imageID == i.id })
		if !used && (all || len(i.tags) == 0) && filters.labels("label", i.labels()) {
			done, _ := e.untag(i.id, true)
			deleted = append(deleted, done...)
		}
	}
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, map[string]any{"ImagesDeleted": deleted, "SpaceReclaimed": 0})
}

// fakeManifest is an entry of manifest.json in a saved image.
type fakeManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// imageSave is GET /images/get and /images/{id}/get: a tar that imageLoad of any
// fakeEngine reads. An image asked for by its ID goes without tags.
func (e *fakeEngine) imageSave(c *fakeCall) error {
	names := c.query["names"]
	if c.id != "" {
		names = []string{c.id}
	}
	var manifests []fakeManifest
	files := map[string][]byte{}
	e.mu.Lock()
	err := func() error {
		for _, name := range names {
			image, err := e.needImage(name)
			if err != nil {
				return err
			}
			file := strings.TrimPrefix(fakeDigest(image.config), "sha256:") + ".json"
			files[file] = image.config
			manifest := fakeManifest{Config: file, Layers: []string{}}
			if tag := fakeFamiliar(name); slices.Contains(image.tags, tag) {
				manifest.RepoTags = []string{tag}
			}
			manifests = append(manifests, manifest)
			e.tellImage(image, "save", image.id)
		}
		return nil
	}()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	files["manifest.json"], _ = json.Marshal(manifests)
	c.w.Header().Set("Content-Type", "application/x-tar")
	w := tar.NewWriter(c.w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg})
		_, _ = w.Write(files[name])
	}
	_ = w.Close()
	return nil
}

// imageLoad is POST /images/load. A tar that ends early loads nothing.
func (e *fakeEngine) imageLoad(c *fakeCall) error {
	files := map[string][]byte{}
	reader := tar.NewReader(c.r.Body)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, c.r.Body); err != nil {
		return err
	}
	var manifests []fakeManifest
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		return fmt.Errorf("open manifest.json: %w", err)
	}
	var lines []string
	e.mu.Lock()
	for _, m := range manifests {
		image := e.keepImage(files[m.Config], "")
		for _, tag := range m.RepoTags {
			e.keepImage(files[m.Config], tag)
			lines = append(lines, "Loaded image: "+tag+"\n")
		}
		if len(m.RepoTags) == 0 {
			lines = append(lines, "Loaded image ID: "+image.id+"\n")
		}
		e.tellImage(image, "load", image.id)
	}
	e.mu.Unlock()
	c.w.Header().Set("Content-Type", "application/json")
	for _, line := range lines {
		c.writeLine(map[string]string{"stream": line})
	}
	return nil
}
