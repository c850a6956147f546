package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fakeEvent is an event before it is written for an API version.
type fakeEvent struct {
	kind, action, id, from string
	attributes             map[string]string
	at                     time.Time
	raw                    string // a line given by emit; the rest is empty then
}

// fakeWatcher is a reader of /events.
type fakeWatcher struct {
	queue []fakeEvent   // not bounded: a storm must not lose events here
	woken chan struct{} // room for one
}

// emitNow tells watchers that something happened; the caller holds the lock.
func (e *fakeEngine) emitNow(kind, action, id, from string, attributes map[string]string) {
	at := e.now()
	if !at.After(e.lastTime) && e.lastTime.Sub(at) < time.Second {
		at = e.lastTime.Add(1) // timeNano tells events apart, as on a real engine
	}
	e.lastTime = at
	e.publishEvent(fakeEvent{kind: kind, action: action, id: id, from: from, attributes: attributes, at: at})
}

// publishEvent keeps an event and hands it to the watchers.
func (e *fakeEngine) publishEvent(event fakeEvent) {
	if e.muted.Load() {
		return
	}
	if e.recent = append(e.recent, event); len(e.recent) > 256 {
		e.recent = slices.Delete(e.recent, 0, len(e.recent)-256)
	}
	for w := range e.watchers {
		w.queue = append(w.queue, event)
		select {
		case w.woken <- struct{}{}:
		default:
		}
	}
}

// emit sends a line to the watchers as it is: unknown types, bad JSON, storms.
// A newline is put behind it.
func (e *fakeEngine) emit(line string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.publishEvent(fakeEvent{raw: line, at: e.now()})
}

// mute makes events happen unseen: neither watchers nor `since` get them.
func (e *fakeEngine) mute(on bool) { e.muted.Store(on) }

// watching is how many /events streams are open.
func (e *fakeEngine) watching() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.watchers)
}

// line is the event for a client of an API version: status, id and from are
// told below 1.52.
func (v *fakeEvent) line(version string) []byte {
	if v.kind == "" {
		return []byte(v.raw + "\n")
	}
	type actor struct {
		ID         string
		Attributes map[string]string
	}
	message := struct {
		Status   string `json:"status,omitempty"`
		ID       string `json:"id,omitempty"`
		From     string `json:"from,omitempty"`
		Type     string
		Action   string
		Actor    actor
		Scope    string `json:"scope"`
		Time     int64  `json:"time"`
		TimeNano int64  `json:"timeNano"`
	}{Type: v.kind, Action: v.action, Actor: actor{v.id, v.attributes}, Scope: "local", Time: v.at.Unix(), TimeNano: v.at.UnixNano()}
	if fakeOlder(version, "1.52") && (v.kind == "container" || v.kind == "image") {
		message.Status, message.ID, message.From = v.action, v.id, v.from
	}
	body, _ := json.Marshal(message)
	return append(body, '\n')
}

// passes tells whether the filters of a watcher let an event through.
func (v *fakeEvent) passes(f fakeFilters) bool {
	if v.kind == "" {
		return true
	}
	action := len(f["event"]) == 0 || slices.ContainsFunc(f["event"], func(want string) bool {
		return want == v.action || slices.Contains([]string{"exec_create", "exec_start", "health_status"}, want) && strings.HasPrefix(v.action, want)
	})
	of := func(kind string) bool {
		return len(f[kind]) == 0 || v.kind == kind && (f.exact(kind, v.id) || f.exact(kind, v.attributes["name"]) ||
			slices.ContainsFunc(f[kind], func(want string) bool { return want != "" && strings.HasPrefix(v.id, want) }))
	}
	image := len(f["image"]) == 0 || slices.ContainsFunc(f["image"], func(want string) bool {
		got := v.attributes["image"]
		if v.kind == "image" {
			got = v.id
		}
		return got != "" && (got == want || fakeFamiliar(got) == fakeFamiliar(want) || fakeRepository(fakeFamiliar(got)) == want)
	})
	return action && f.exact("type", v.kind) && f.exact("scope", "local") && f.labels("label", v.attributes) &&
		of("container") && of("network") && of("volume") && image
}

// fakeMoment reads since and until: unix seconds with a fraction, RFC 3339, or a
// duration before now.
func fakeMoment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at, nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, fakeErrorf(http.StatusBadRequest, "%v", err)
	}
	nanos, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	return time.Unix(seconds, nanos), nil
}

// eventsWatch is GET /events. The header goes out at once; what happens after it
// is not lost. Old events come if since or until is given.
func (e *fakeEngine) eventsWatch(c *fakeCall) error {
	filters, err := c.filters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope",
		"secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	since, err := fakeMoment(c.query.Get("since"), e.now())
	if err != nil {
		return err
	}
	until, err := fakeMoment(c.query.Get("until"), e.now())
	if err != nil {
		return err
	}
	watcher := &fakeWatcher{woken: make(chan struct{}, 1)}
	e.mu.Lock()
	for _, event := range e.recent {
		if (!since.IsZero() || !until.IsZero()) && !event.at.Before(since) && (until.IsZero() || !event.at.After(until)) {
			watcher.queue = append(watcher.queue, event)
		}
	}
	e.watchers[watcher] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.watchers, watcher)
		e.mu.Unlock()
	}()
	watcher.woken <- struct{}{}
	var over <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(until.Sub(e.now()))
		defer timer.Stop()
		over = timer.C
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	c.flush()
	for {
		select {
		case <-watcher.woken:
			e.drain(c, watcher, filters)
		case <-over:
			e.drain(c, watcher, filters)
			return nil
		case <-c.r.Context().Done():
			return nil
		}
	}
}

// drain writes what a watcher has not seen yet.
func (e *fakeEngine) drain(c *fakeCall, w *fakeWatcher, filters fakeFilters) {
	e.mu.Lock()
	queue := w.queue
	w.queue = nil
	e.mu.Unlock()
	for _, event := range queue {
		if event.passes(filters) {
			_, _ = c.w.Write(event.line(c.version))
		}
	}
	c.flush()
}

// ping is HEAD and GET /_ping.
func (e *fakeEngine) ping(c *fakeCall) error {
	header := c.w.Header()
	header.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	header.Set("Pragma", "no-cache")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if !fakeOlder(e.apiVersion, "1.42") {
		header.Set("Builder-Version", "2")
		header.Set("Swarm", "inactive")
	}
	if c.r.Method == http.MethodHead {
		header.Set("Content-Length", "0")
		return c.writeStatus(http.StatusOK)
	}
	_, _ = c.w.Write([]byte("OK"))
	return nil
}

// versionShow is GET /version.
func (e *fakeEngine) versionShow(c *fakeCall) error {
	const built = "2024-04-01T00:00:00.000000000+00:00"
	return c.writeJSON(http.StatusOK, map[string]any{
		"Platform": map[string]string{"Name": ""},
		"Components": []any{map[string]any{"Name": "Engine", "Version": e.serverVersion, "Details": map[string]string{
			"ApiVersion": e.apiVersion, "Arch": e.arch, "BuildTime": built, "Experimental": "false", "GitCommit": "5d6db84",
			"GoVersion": "go1.19.8", "KernelVersion": "6.1.0", "MinAPIVersion": e.minAPIVersion, "Os": "linux"}}},
		"Version": e.serverVersion, "ApiVersion": e.apiVersion, "MinAPIVersion": e.minAPIVersion, "GitCommit": "5d6db84",
		"GoVersion": "go1.19.8", "Os": "linux", "Arch": e.arch, "KernelVersion": "6.1.0", "BuildTime": built,
	})
}

// fakeInfo is what a 20.10 says of itself; infoShow puts in what varies.
const fakeInfo = `{"Plugins":{"Volume":["local"],"Network":["bridge","host","ipvlan","macvlan","null","overlay"],"Authorization":null,
"Log":["awslogs","fluentd","gcplogs","gelf","journald","json-file","local","logentries","splunk","syslog"]},
"MemoryLimit":true,"SwapLimit":true,"KernelMemory":true,"KernelMemoryTCP":true,"CpuCfsPeriod":true,"CpuCfsQuota":true,"CPUShares":true,
"CPUSet":true,"PidsLimit":true,"IPv4Forwarding":true,"BridgeNfIptables":true,"BridgeNfIp6tables":true,"Debug":false,"NFd":26,
"OomKillDisable":true,"NGoroutines":41,"LoggingDriver":"json-file","CgroupDriver":"cgroupfs","CgroupVersion":"1","NEventsListener":0,
"KernelVersion":"6.1.0","OperatingSystem":"Debian GNU/Linux 12 (bookworm)","OSVersion":"12","OSType":"linux","Architecture":"x86_64",
"IndexServerAddress":"https://index.docker.io/v1/","RegistryConfig":{"AllowNondistributableArtifactsCIDRs":[],
"AllowNondistributableArtifactsHostnames":[],"InsecureRegistryCIDRs":["127.0.0.0/8"],
"IndexConfigs":{"docker.io":{"Name":"docker.io","Mirrors":[],"Secure":true,"Official":true}},"Mirrors":[]},
"GenericResources":null,"DockerRootDir":"/var/lib/docker","HttpProxy":"","HttpsProxy":"","NoProxy":"","ExperimentalBuild":false,
"Runtimes":{"io.containerd.runc.v2":{"path":"runc"},"io.containerd.runtime.v1.linux":{"path":"runc"},"runc":{"path":"runc"}},
"DefaultRuntime":"runc","Swarm":{"NodeID":"","NodeAddr":"","LocalNodeState":"inactive","ControlAvailable":false,"Error":"","RemoteManagers":null},
"LiveRestoreEnabled":false,"Isolation":"","InitBinary":"docker-init","ContainerdCommit":{"ID":"1.6.20","Expected":"1.6.20"},
"RuncCommit":{"ID":"1.1.5","Expected":"1.1.5"},"InitCommit":{"ID":"","Expected":""},"SecurityOptions":["name=seccomp,profile=default"],
"Warnings":null}`

// infoShow is GET /info.
func (e *fakeEngine) infoShow(c *fakeCall) error {
	var info map[string]any
	if err := json.Unmarshal([]byte(fakeInfo), &info); err != nil {
		return err
	}
	e.mu.Lock()
	states := map[string]int{}
	for _, found := range e.containers {
		states[found.status]++
	}
	containers, images, watchers := len(e.containers), len(e.images), len(e.watchers)
	e.mu.Unlock()
	store := [][]string{{"Backing Filesystem", "extfs"}, {"Supports d_type", "true"}, {"Native Overlay Diff", "true"}, {"userxattr", "false"}}
	if e.containerdStore() {
		store = [][]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	}
	kernel := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[e.arch]
	maps.Copy(info, map[string]any{
		"Architecture": kernel, "ID": e.id, "Name": e.name, "Containers": containers, "ContainersRunning": states["running"], "ContainersPaused": states["paused"],
		"ContainersStopped": states["created"] + states["exited"], "Images": images, "Driver": e.driver, "DriverStatus": store,
		"NEventsListener": watchers, "NCPU": e.cpus, "MemTotal": e.memory, "Labels": append([]string{}, e.labels...),
		"ServerVersion": e.serverVersion, "SystemTime": fakeTime(e.now()),
	})
	maps.Copy(info, e.info)
	return c.writeJSON(http.StatusOK, info)
}

// systemDF is GET /system/df.
func (e *fakeEngine) systemDF(c *fakeCall) error {
	e.mu.Lock()
	containers, images, volumes := []any{}, []any{}, []any{}
	for _, found := range slices.Backward(e.containers) {
		containers = append(containers, e.entry(found, true))
	}
	for _, i := range e.images {
		images = append(images, e.imageEntry(i))
	}
	for _, v := range e.volumes {
		shown := v.show()
		shown["UsageData"] = map[string]int{"RefCount": len(e.volumeUsers(v)), "Size": 0}
		volumes = append(volumes, shown)
	}
	answer := map[string]any{"LayersSize": 1984172 * len(images), "Images": images, "Containers": containers, "Volumes": volumes,
		"BuildCache": nil, "BuilderSize": 0}
	body, err := json.Marshal(answer) // under the lock: entries share the endpoints
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, json.RawMessage(body))
}

// authCheck is POST /auth; the password "wrong" is.
func (e *fakeEngine) authCheck(c *fakeCall) error {
	var given struct {
		Password string `json:"password"`
	}
	if _, err := c.readJSON(&given); err != nil {
		return err
	}
	if given.Password == "wrong" {
		return fakeErrorf(http.StatusUnauthorized, "Get \"https://registry-1.docker.io/v2/\": unauthorized: incorrect username or password")
	}
	return c.writeJSON(http.StatusOK, map[string]string{"IdentityToken": "", "Status": "Login Succeeded"})
}
