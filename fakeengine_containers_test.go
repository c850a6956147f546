package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fakeContainer is a container of a fakeEngine; the engine's mutex guards it.
type fakeContainer struct {
	id, name   string
	created    time.Time
	body       []byte                     // of the create, as received
	config     map[string]json.RawMessage // its keys, over Docker's defaults
	host       map[string]json.RawMessage // HostConfig, likewise
	want       fakeCreate
	image      string // as asked for
	imageID    string
	words      []string // entrypoint and command
	status     string   // created, running, paused, exited
	startedAt  time.Time
	finishedAt time.Time
	exitCode   int
	pid        int
	restarting bool                     // its death is not its end, --rm or not
	endpoints  map[string]*fakeEndpoint // by network name
	mounts     []fakeMount
	ports      map[string][]fakeBinding // while it runs
	files      map[string][]byte        // put by archive
	started    chan struct{}            // closed when it starts
	exited     chan struct{}            // closed when it dies; a new one at each start
	gone       chan struct{}            // closed when it is removed
}

// fakeCreate is what the engine itself reads of a create.
type fakeCreate struct {
	Image        string
	Cmd          fakeWords
	Entrypoint   fakeWords
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	Env          []string
	Labels       map[string]string
	Volumes      map[string]struct{}
	ExposedPorts map[string]struct{}
	HostConfig   struct {
		NetworkMode     string
		Binds           []string
		Mounts          []struct{ Type, Source, Target string }
		PortBindings    map[string][]fakeBinding
		PublishAllPorts bool
		AutoRemove      bool
		VolumesFrom     []string
		Links           []string
		Runtime         string
		Memory          int64
	}
	NetworkingConfig struct {
		EndpointsConfig map[string]*fakeEndpoint
	}
}

// fakeWords is a command: a list or one string.
type fakeWords []string

func (w *fakeWords) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil && string(data) != "null" {
		*w = fakeWords{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// fakeBinding is a published port.
type fakeBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// fakeMount is a mount as lists and inspect show it.
type fakeMount struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

// fakeEndpoint is a container's place in a network.
type fakeEndpoint struct {
	IPAMConfig          json.RawMessage
	Links               []string
	Aliases             []string
	NetworkID           string
	EndpointID          string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
	DriverOpts          map[string]string
}

// fakeEntry is a container in a list.
type fakeEntry struct {
	ID              string `json:"Id"`
	Names           []string
	Image           string
	ImageID         string
	Command         string
	Created         int64
	Ports           []fakePort
	SizeRw          int64 `json:",omitempty"`
	SizeRootFs      int64 `json:",omitempty"`
	Labels          map[string]string
	State           string
	Status          string
	HostConfig      struct{ NetworkMode string }
	NetworkSettings struct{ Networks map[string]*fakeEndpoint }
	Mounts          []fakeMount
}

// fakePort is a port in a list.
type fakePort struct {
	IP          string `json:",omitempty"`
	PrivatePort int
	PublicPort  int `json:",omitempty"`
	Type        string
}

// running tells whether the container has a process; a paused one has.
func (c *fakeContainer) running() bool { return c.status == "running" || c.status == "paused" }

// find looks a container up: ID, name, unique prefix of an ID.
func (e *fakeEngine) find(ref string) (*fakeContainer, error) {
	if c := e.byID[ref]; c != nil {
		return c, nil
	}
	if c := e.byName[strings.TrimPrefix(ref, "/")]; c != nil {
		return c, nil
	}
	var found *fakeContainer
	for _, c := range e.containers {
		if ref == "" || !strings.HasPrefix(c.id, ref) {
			continue
		}
		if found != nil {
			return nil, fakeErrorf(http.StatusInternalServerError, "Multiple IDs found with provided prefix: %s", ref)
		}
		found = c
	}
	if found == nil {
		return nil, fakeErrorf(http.StatusNotFound, "No such container: %s", ref)
	}
	return found, nil
}

// fakeContainerName is what Docker accepts.
var fakeContainerName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// checkName refuses a name that is bad or taken.
func (e *fakeEngine) checkName(name string) error {
	if !fakeContainerName.MatchString(name) {
		return fakeErrorf(http.StatusBadRequest, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if holder := e.byName[strings.TrimPrefix(name, "/")]; holder != nil {
		return fakeErrorf(http.StatusConflict,
			`Conflict. The container name "/%s" is already in use by container "%s". You have to remove (or rename) that container to be able to reuse that name.`,
			strings.TrimPrefix(name, "/"), holder.id)
	}
	return nil
}

// checkPlatform refuses an image that is not for the platform asked for.
func (e *fakeEngine) checkPlatform(ref, platform string) error {
	image := e.findImage(ref)
	if image == nil || platform == "" || platform == "linux/"+image.arch() {
		return nil
	}
	return fakeErrorf(http.StatusNotFound, "image with reference %s was found but does not match the specified platform: wanted %s, actual: linux/%s",
		ref, platform, image.arch())
}

// containerCreate is POST /containers/create.
func (e *fakeEngine) containerCreate(c *fakeCall) error {
	var want fakeCreate
	body, err := c.readJSON(&want)
	if err != nil {
		return err
	}
	e.mu.Lock()
	var made *fakeContainer
	if err = e.checkPlatform(want.Image, c.query.Get("platform")); err == nil {
		made, err = e.create(c.query.Get("name"), body, want)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusCreated, map[string]any{"Id": made.id, "Warnings": []string{}})
}

// create makes a container from the body of a create, want being what was read of it.
func (e *fakeEngine) create(name string, body []byte, want fakeCreate) (*fakeContainer, error) {
	var config, host map[string]json.RawMessage
	if err := json.Unmarshal(body, &config); err != nil {
		return nil, fakeErrorf(http.StatusBadRequest, "%v", err)
	}
	if len(config) == 0 {
		return nil, fakeErrorf(http.StatusBadRequest, "Config cannot be empty in order to create a container")
	}
	if want.HostConfig.Memory > 0 && want.HostConfig.Memory < 6<<20 {
		return nil, fakeErrorf(http.StatusBadRequest, "Minimum memory limit allowed is 6MB")
	}
	if want.Image == "" {
		return nil, fakeErrorf(http.StatusBadRequest, "No command specified")
	}
	image := e.findImage(want.Image)
	if image == nil {
		return nil, fakeErrorf(http.StatusNotFound, "No such image: %s", fakeFamiliar(want.Image))
	}
	id := fakeID()
	if name == "" {
		name = "quirky_" + id[:8]
	}
	if err := e.checkName(name); err != nil {
		return nil, err
	}
	for _, from := range want.HostConfig.VolumesFrom {
		from, _, _ = strings.Cut(from, ":")
		if _, err := e.find(from); err != nil {
			return nil, fakeErrorf(http.StatusBadRequest, "%v", err)
		}
	}
	for _, link := range want.HostConfig.Links {
		link, _, _ = strings.Cut(link, ":")
		if _, err := e.find(link); err != nil {
			return nil, fakeErrorf(http.StatusBadRequest, "could not get container for %s: %v", link, err)
		}
	}
	if runtime := want.HostConfig.Runtime; !e.hasRuntime(runtime) {
		return nil, fakeErrorf(http.StatusBadRequest, "Unknown runtime specified %s", runtime)
	}
	for key, value := range config {
		if strings.EqualFold(key, "HostConfig") {
			_ = json.Unmarshal(value, &host) // it was read once already
		}
	}
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	if want.HostConfig.NetworkMode == "" {
		want.HostConfig.NetworkMode = "default"
	}
	made := &fakeContainer{
		id: id, name: strings.TrimPrefix(name, "/"), created: e.now(), body: body, want: want,
		config: fakeOver(fakeConfigDefaults, config), host: fakeOver(fakeHostDefaults, host),
		image: want.Image, imageID: image.id, words: slices.Concat(want.Entrypoint, want.Cmd),
		status: "created", endpoints: map[string]*fakeEndpoint{}, files: map[string][]byte{},
		started: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}),
	}
	for key := range made.config {
		if strings.EqualFold(key, "HostConfig") || strings.EqualFold(key, "NetworkingConfig") {
			delete(made.config, key)
		}
	}
	if len(made.words) == 0 {
		made.words = []string{"sh"}
	}
	made.host["NetworkMode"] = fakeRaw(want.HostConfig.NetworkMode)
	if string(made.config["Hostname"]) == `""` {
		made.config["Hostname"] = fakeRaw(id[:12])
	}
	if !slices.ContainsFunc(want.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		made.config["Env"] = fakeRaw(append(slices.Clone(want.Env), fakePath))
	}
	made.config["Labels"] = fakeRaw(want.Labels)
	e.mount(made)
	for network, endpoint := range want.NetworkingConfig.EndpointsConfig {
		if network == "default" {
			network = "bridge" // the docker command says default
		}
		made.endpoints[network] = &fakeEndpoint{}
		if endpoint != nil {
			made.endpoints[network] = &fakeEndpoint{IPAMConfig: endpoint.IPAMConfig, Aliases: endpoint.Aliases, Links: endpoint.Links}
		}
	}
	mode := want.HostConfig.NetworkMode
	if mode == "default" {
		mode = "bridge"
	}
	if !strings.HasPrefix(mode, "container:") && made.endpoints[mode] == nil {
		made.endpoints[mode] = &fakeEndpoint{}
	}
	e.containers = append(e.containers, made)
	e.byID[made.id], e.byName[made.name] = made, made
	e.tell(made, "create")
	return made, nil
}

// hasRuntime tells whether /info names a runtime; "" is the default one.
func (e *fakeEngine) hasRuntime(name string) bool {
	if extra, ok := e.info["Runtimes"].(map[string]any); ok && extra[name] != nil {
		return true
	}
	return slices.Contains([]string{"", "runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"}, name)
}

// mount reads what a create mounts and makes the volumes that are not there.
func (e *fakeEngine) mount(c *fakeContainer) {
	add := func(kind, source, target, mode string) {
		m := fakeMount{Type: kind, Source: source, Destination: target, Mode: mode, RW: !slices.Contains(strings.Split(mode, ","), "ro")}
		if kind == "volume" {
			v := e.findVolume(source)
			if v == nil {
				v = e.makeVolume(source, "local", nil, nil, source == "")
			}
			m.Name, m.Source, m.Driver = v.name, v.mountpoint(), v.driver
		}
		if kind == "bind" {
			m.Propagation = "rprivate"
		}
		c.mounts = append(c.mounts, m)
	}
	for _, bind := range c.want.HostConfig.Binds {
		part := append(strings.SplitN(bind, ":", 3), "", "")
		switch {
		case part[1] == "":
			add("volume", "", part[0], "z")
		case strings.HasPrefix(part[0], "/"):
			add("bind", part[0], part[1], part[2])
		default:
			add("volume", part[0], part[1], part[2])
		}
	}
	for _, m := range c.want.HostConfig.Mounts {
		add(m.Type, m.Source, m.Target, "")
	}
	mounted := func(target string) bool {
		return slices.ContainsFunc(c.mounts, func(m fakeMount) bool { return m.Destination == target })
	}
	for _, from := range c.want.HostConfig.VolumesFrom {
		from, _, _ = strings.Cut(from, ":")
		other, err := e.find(from)
		if err != nil {
			continue // it was found a moment ago
		}
		for _, m := range other.mounts {
			if !mounted(m.Destination) {
				c.mounts = append(c.mounts, m)
			}
		}
	}
	for _, target := range slices.Sorted(maps.Keys(c.want.Volumes)) {
		if !mounted(target) {
			add("volume", "", target, "")
		}
	}
}

// startNow starts a container, emits what an engine emits, and lets it exit at
// once if its command does.
func (e *fakeEngine) startNow(c *fakeContainer) error {
	if other, ok := strings.CutPrefix(c.want.HostConfig.NetworkMode, "container:"); ok {
		if _, err := e.find(other); err != nil {
			return err
		}
	}
	for name := range c.endpoints {
		if e.findNetwork(name) == nil {
			return fakeErrorf(http.StatusNotFound, "network %s not found", name)
		}
	}
	if err := e.publish(c); err != nil {
		return err
	}
	c.renewExited()
	c.status, c.startedAt, c.exitCode = "running", e.now(), 0
	e.lastPID++
	c.pid = 1000 + e.lastPID
	for _, name := range slices.Sorted(maps.Keys(c.endpoints)) {
		n := e.findNetwork(name)
		endpoint := c.endpoints[name] // the key may be an ID until now
		delete(c.endpoints, name)
		c.endpoints[n.name] = endpoint
		e.join(c, n)
	}
	for _, m := range c.mounts {
		if m.Type == "volume" {
			e.emitNow("volume", "mount", m.Name, "", map[string]string{"container": c.id, "destination": m.Destination,
				"driver": m.Driver, "propagation": m.Propagation, "read/write": strconv.FormatBool(m.RW)})
		}
	}
	e.tell(c, "start")
	select {
	case <-c.started:
	default:
		close(c.started)
	}
	if code, over := fakeExits(c.words); over {
		e.die(c, code)
	}
	return nil
}

// fakeExitWord is `exit N` of a shell.
var fakeExitWord = regexp.MustCompile(`^\s*exit (\d+)\s*$`)

// fakeExits tells whether a command ends at once, and with what.
func fakeExits(words []string) (code int, over bool) {
	switch words[0] {
	case "true", "echo":
		return 0, true
	case "false":
		return 1, true
	case "sh":
		if len(words) == 3 && words[1] == "-c" {
			if match := fakeExitWord.FindStringSubmatch(words[2]); match != nil {
				code, _ := strconv.Atoi(match[1])
				return code, true
			}
		}
	}
	return 0, false
}

// publish gives a container its host ports, or refuses if one is taken. In the host's
// network nothing is published.
func (e *fakeEngine) publish(c *fakeContainer) error {
	if c.want.HostConfig.NetworkMode == "host" {
		c.ports = nil
		return nil
	}
	taken := map[string]bool{}
	for _, other := range e.containers {
		for port, bindings := range other.ports {
			_, protocol, _ := strings.Cut(port, "/")
			for _, b := range bindings {
				taken[protocol+b.HostPort] = true
			}
		}
	}
	ports := map[string][]fakeBinding{}
	want := maps.Clone(c.want.HostConfig.PortBindings)
	for port := range c.want.ExposedPorts {
		if c.want.HostConfig.PublishAllPorts && len(want[port]) == 0 {
			if want == nil {
				want = map[string][]fakeBinding{}
			}
			want[port] = []fakeBinding{{}}
		}
	}
	for _, port := range slices.Sorted(maps.Keys(want)) {
		_, protocol, ok := strings.Cut(port, "/")
		if !ok {
			protocol = "tcp"
		}
		for _, b := range want[port] {
			first, last, ranged := strings.Cut(b.HostPort, "-")
			low, _ := strconv.Atoi(first)
			high, _ := strconv.Atoi(last)
			if !ranged {
				high = low
			}
			if low == 0 {
				low = 49153 + e.lastPort
				high = low + 1000
				e.lastPort++
			}
			for taken[protocol+strconv.Itoa(low)] && low < high {
				low++
			}
			got := strconv.Itoa(low)
			if taken[protocol+got] {
				ip := b.HostIP
				if ip == "" {
					ip = "0.0.0.0"
				}
				return fakeErrorf(http.StatusInternalServerError,
					"driver failed programming external connectivity on endpoint %s (%s): Bind for %s:%s failed: port is already allocated", c.name, fakeID(), ip, got)
			}
			taken[protocol+got] = true
			name := strings.TrimSuffix(port, "/"+protocol) + "/" + protocol
			if b.HostIP != "" {
				ports[name] = append(ports[name], fakeBinding{b.HostIP, got})
				continue
			}
			ports[name] = append(ports[name], fakeBinding{"0.0.0.0", got}, fakeBinding{"::", got})
		}
	}
	c.ports = ports
	return nil
}

// renewExited makes sure that exited is open, for the next death.
func (c *fakeContainer) renewExited() {
	select {
	case <-c.exited:
		c.exited = make(chan struct{})
	default:
	}
}

// end is the silent part of a death: no process, no ports, waiters woken.
func (c *fakeContainer) end() {
	if !c.running() {
		return
	}
	c.status, c.pid, c.ports = "exited", 0, nil
	close(c.exited)
	for _, endpoint := range c.endpoints {
		*endpoint = fakeEndpoint{NetworkID: endpoint.NetworkID, IPAMConfig: endpoint.IPAMConfig, Aliases: endpoint.Aliases, Links: endpoint.Links}
	}
}

// die ends a container's process, and the container too if it was made with --rm.
func (e *fakeEngine) die(c *fakeContainer, code int) {
	if !c.running() {
		return
	}
	c.exitCode, c.finishedAt = code, e.now()
	c.end()
	for id, x := range e.execs {
		if x.container == c && x.running {
			x.running, x.exitCode = false, 137
		} else if x.container == c {
			delete(e.execs, id) // 404 after its container's restart, as in 20.10
		}
	}
	e.tell(c, "die", "exitCode", strconv.Itoa(code))
	for _, name := range slices.Sorted(maps.Keys(c.endpoints)) {
		if n := e.findNetwork(name); n != nil {
			e.emitNow("network", "disconnect", n.id, "", map[string]string{"container": c.id, "name": n.name, "type": n.driver})
		}
	}
	for _, m := range c.mounts {
		if m.Type == "volume" {
			e.emitNow("volume", "unmount", m.Name, "", map[string]string{"container": c.id, "driver": m.Driver})
		}
	}
	if c.want.HostConfig.AutoRemove && !c.restarting {
		e.destroy(c, true)
	}
}

// destroy takes a container that does not run away; with volumes also those
// that have no name of their own.
func (e *fakeEngine) destroy(c *fakeContainer, volumes bool) {
	if e.byID[c.id] != c {
		return
	}
	delete(e.byID, c.id)
	delete(e.byName, c.name)
	e.containers = slices.DeleteFunc(e.containers, func(other *fakeContainer) bool { return other == c })
	close(c.gone)
	e.tell(c, "destroy")
	for _, m := range c.mounts {
		if v := e.findVolume(m.Name); volumes && v != nil && v.anonymous {
			e.dropVolume(v)
		}
	}
}

// tell emits an event of a container; more holds attribute names and values.
func (e *fakeEngine) tell(c *fakeContainer, action string, more ...string) {
	attributes := maps.Clone(c.want.Labels)
	attributes["image"], attributes["name"] = c.image, c.name
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	e.emitNow("container", action, c.id, c.image, attributes)
}
