package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fleetContainer is a container of a fleetNode; guarded by the node's lock.
type fleetContainer struct {
	id, name string
	want     *fleetCreate
	labels   []byte // JSON
	created  time.Time
	state    string // created, running, exited
	started  time.Time
	ended    time.Time
	inspect  []byte // as last rendered; nil after a change
}

// fleetCreate is what is read of a create's body.
type fleetCreate struct {
	Image      string
	Labels     map[string]string
	HostConfig map[string]json.RawMessage
}

type fleetEvent struct {
	at   time.Time
	line []byte
}

// fleetWatcher is a reader of /events.
type fleetWatcher struct {
	mu    sync.Mutex
	queue [][]byte
	woken chan struct{} // room for one
	ended chan struct{}
	once  sync.Once
}

func (w *fleetWatcher) end() { w.once.Do(func() { close(w.ended) }) }

// add makes a container; the caller holds the lock, or has the node for itself.
func (n *fleetNode) add(name string, want *fleetCreate) *fleetContainer {
	c := &fleetContainer{id: fakeID(), name: name, want: want, created: time.Now(), state: "created"}
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	c.labels, _ = json.Marshal(want.Labels)
	n.containers = append(n.containers, c)
	n.byRef[c.id], n.byRef[c.name] = c, c
	return c
}

// serve answers one request. What it does not know is 404, as an engine's own.
func (n *fleetNode) serve(w http.ResponseWriter, r *http.Request) {
	path, _ := fakeSplitVersion(r.URL.Path)
	parts := strings.Split(strings.Trim(path, "/"), "/")
	kind := parts[len(parts)-1]
	if len(parts) == 3 {
		kind = parts[0] + " " + parts[2]
	} else if len(parts) == 2 {
		kind = parts[0] + " " + strings.TrimSuffix(parts[1], n.refOf(parts))
	}
	if len(parts) == 2 && parts[1] == "json" {
		kind = parts[0] + " list"
	}
	if r.URL.Query().Has("filters") { // what is read again, not the whole list
		kind += " filtered"
	}
	n.fleet.count(strings.TrimSpace(r.Method + " " + kind))
	switch {
	case path == "/_ping":
		n.ping(w, r)
	case path == "/version":
		writeFleet(w, http.StatusOK, []byte(fleetVersion))
	case path == "/info":
		writeFleet(w, http.StatusOK, n.info())
	case path == "/events":
		n.events(w, r)
	case path == "/images/json":
		writeFleet(w, http.StatusOK, []byte(fleetImages))
	case path == "/images/"+fleetImageID+"/json":
		writeFleet(w, http.StatusOK, []byte(fleetImage))
	case path == "/networks":
		n.networks(w, r, "")
	case path == "/volumes":
		writeFleet(w, http.StatusOK, []byte(`{"Volumes":[],"Warnings":null}`))
	case path == "/containers/json":
		n.list(w, r)
	case path == "/containers/create" && r.Method == http.MethodPost:
		n.create(w, r)
	case parts[0] == "networks" && len(parts) == 2:
		n.networks(w, r, parts[1])
	case parts[0] == "containers" && len(parts) > 1:
		n.container(w, r, parts[1], strings.Join(parts[2:], "/"))
	default:
		fleetError(w, http.StatusNotFound, "page not found")
	}
}

// refOf is the last part of a path of two that names a thing, which is not counted by name.
func (n *fleetNode) refOf(parts []string) string {
	if parts[1] == "json" || parts[1] == "create" {
		return ""
	}
	return parts[1]
}

func writeFleet(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Api-Version", "1.41")
	h.Set("Content-Type", "application/json")
	h.Set("Server", "Docker/20.10.24 (linux)")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func fleetError(w http.ResponseWriter, status int, format string, args ...any) {
	writeFleet(w, status, fakeRaw(map[string]string{"message": fmt.Sprintf(format, args...)}))
}

func (n *fleetNode) ping(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", "1.41")
	h.Set("Ostype", "linux")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", "2")
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte("OK"))
	}
}

const fleetVersion = `{"Platform":{"Name":"Docker Engine - Community"},"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12",
"GitCommit":"5d6db84","GoVersion":"go1.19.7","Os":"linux","Arch":"amd64","KernelVersion":"6.1.0-18-amd64","BuildTime":"2023-04-04T18:18:43.000000000+00:00",
"Components":[{"Name":"Engine","Version":"20.10.24","Details":{"ApiVersion":"1.41","Arch":"amd64","MinAPIVersion":"1.12","Os":"linux"}}]}`

const fleetImageID = "sha256:9d5226e6ce3fb6aee2822206a5ef85f38c303d2b37bfc894b419fca2c0501269"

const fleetImages = `[{"Containers":-1,"Created":1700000000,"Id":"` + fleetImageID + `","Labels":null,"ParentId":"",
"RepoDigests":["busybox@sha256:560af6915bfc8d7630e50e212e08242d37b63bd5c1ccf9bd4acccf116e262d5b"],"RepoTags":["busybox:latest"],"SharedSize":-1,"Size":4260000,"VirtualSize":4260000}]`

// fleetImage is what an inspect tells of it: without a platform it would be asked again each time.
const fleetImage = `{"Id":"` + fleetImageID + `","RepoTags":["busybox:latest"],"RepoDigests":["busybox@sha256:560af6915bfc8d7630e50e212e08242d37b63bd5c1ccf9bd4acccf116e262d5b"],
"Parent":"","Created":"2023-11-14T22:13:20Z","Config":{"Cmd":["sh"],"Labels":null},"Architecture":"amd64","Os":"linux","Size":4260000,"VirtualSize":4260000,
"RootFS":{"Type":"layers","Layers":["sha256:65014c70e84b6817fac42bb201ec5c1ea460a8da246cac0e481f5c9a9491eac0"]},"Metadata":{"LastTagTime":"0001-01-01T00:00:00Z"}}`

// info is about 2.5 KB, as an engine's: one host in eight is a large one, and half have an SSD.
func (n *fleetNode) info() []byte {
	n.mu.Lock()
	all, running := len(n.containers), 0
	for _, c := range n.containers {
		if c.state == "running" {
			running++
		}
	}
	n.mu.Unlock()
	size := 1
	if n.index%8 == 7 {
		size = 4
	}
	storage := []string{"ssd", "disk"}[n.index%2]
	return fmt.Appendf(nil, `{"ID":%q,"Name":%q,"Containers":%d,"ContainersRunning":%d,"ContainersPaused":0,"ContainersStopped":%d,"Images":1,
"Driver":"overlay2","DriverStatus":[["Backing Filesystem","extfs"],["Supports d_type","true"],["Native Overlay Diff","true"],["userxattr","false"]],
"Plugins":{"Volume":["local"],"Network":["bridge","host","ipvlan","macvlan","null","overlay"],"Authorization":null,"Log":["awslogs","fluentd","gcplogs","gelf","journald","json-file","local","logentries","splunk","syslog"]},
"MemoryLimit":true,"SwapLimit":true,"KernelMemory":true,"CpuCfsPeriod":true,"CpuCfsQuota":true,"CPUShares":true,"CPUSet":true,"PidsLimit":true,"IPv4Forwarding":true,
"BridgeNfIptables":true,"BridgeNfIp6tables":true,"Debug":false,"NFd":32,"OomKillDisable":true,"NGoroutines":42,"SystemTime":%q,"LoggingDriver":"json-file","CgroupDriver":"systemd","CgroupVersion":"2",
"NEventsListener":1,"KernelVersion":"6.1.0-18-amd64","OperatingSystem":"Debian GNU/Linux 12 (bookworm)","OSVersion":"12","OSType":"linux","Architecture":"x86_64",
"IndexServerAddress":"https://index.docker.io/v1/","RegistryConfig":{"AllowNondistributableArtifactsCIDRs":[],"AllowNondistributableArtifactsHostnames":[],"InsecureRegistryCIDRs":["127.0.0.0/8"],"IndexConfigs":{"docker.io":{"Name":"docker.io","Mirrors":[],"Secure":true,"Official":true}},"Mirrors":[]},
"NCPU":%d,"MemTotal":%d,"GenericResources":null,"DockerRootDir":"/var/lib/docker","HttpProxy":"","HttpsProxy":"","NoProxy":"","Labels":["storage=%s","zone=%c","rack=r%d"],
"ExperimentalBuild":false,"ServerVersion":"20.10.24","Runtimes":{"io.containerd.runc.v2":{"path":"runc"},"io.containerd.runtime.v1.linux":{"path":"runc"},"runc":{"path":"runc"}},"DefaultRuntime":"runc",
"Swarm":{"NodeID":"","NodeAddr":"","LocalNodeState":"inactive","ControlAvailable":false,"Error":"","RemoteManagers":null},"LiveRestoreEnabled":false,"Isolation":"","InitBinary":"docker-init",
"ContainerdCommit":{"ID":"3dce8eb055cbb6872793272b4f20ed16117344f8","Expected":"3dce8eb055cbb6872793272b4f20ed16117344f8"},"RuncCommit":{"ID":"v1.1.7-0-g860f061","Expected":"v1.1.7-0-g860f061"},"InitCommit":{"ID":"de40ad0","Expected":"de40ad0"},
"SecurityOptions":["name=apparmor","name=seccomp,profile=default","name=cgroupns"],"Warnings":null}`,
		n.id, n.name, all, running, all-running, fakeTime(time.Now()), fleetCPUs*size, int64(fleetMemory)*int64(size)-int64(n.index)<<12, storage, 'a'+n.index%3, n.index%40)
}

// networks are the three that every engine has.
func (n *fleetNode) networks(w http.ResponseWriter, r *http.Request, ref string) {
	ids, _, _ := fleetFilters(r)
	list := []string{}
	for _, driver := range []string{"bridge", "host", "null"} {
		name := strings.Replace(driver, "null", "none", 1)
		id := n.networkID(name)
		if ref == id || ref == name || ref == "" && (ids == nil || slices.Contains(ids, id)) {
			list = append(list, fmt.Sprintf(`{"Name":%q,"Id":%q,"Created":"2026-01-05T08:00:00.123456789Z","Scope":"local","Driver":%q,"EnableIPv6":false,"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1"}]},"Internal":false,"Attachable":false,"Ingress":false,"ConfigFrom":{"Network":""},"ConfigOnly":false,"Containers":{},"Options":{"com.docker.network.bridge.default_bridge":"true","com.docker.network.bridge.enable_icc":"true","com.docker.network.bridge.name":"docker0","com.docker.network.driver.mtu":"1500"},"Labels":{}}`, name, id, driver))
		}
	}
	switch {
	case ref == "":
		writeFleet(w, http.StatusOK, []byte("["+strings.Join(list, ",")+"]"))
	case len(list) == 0:
		fleetError(w, http.StatusNotFound, "network %s not found", ref)
	default:
		writeFleet(w, http.StatusOK, []byte(list[0]))
	}
}

func (n *fleetNode) networkID(name string) string {
	return fmt.Sprintf("%x%052x%08x", name[:2], 0, n.index)
}

// fleetFilters reads the filters id and label of a list.
func fleetFilters(r *http.Request) (ids, labels []string, err error) {
	text := r.FormValue("filters")
	if text == "" {
		return nil, nil, nil
	}
	var f map[string]fakeFilterValues
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return nil, nil, err
	}
	return f["id"], f["label"], nil
}

// fakeFilterValues are written as a list or as an object of true.
type fakeFilterValues []string

func (v *fakeFilterValues) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, (*[]string)(v)) == nil {
		return nil
	}
	var set map[string]bool
	err := json.Unmarshal(data, &set)
	for k := range set {
		*v = append(*v, k)
	}
	return err
}

func (n *fleetNode) list(w http.ResponseWriter, r *http.Request) {
	ids, labels, err := fleetFilters(r)
	if err != nil {
		fleetError(w, http.StatusBadRequest, "%v", err)
		return
	}
	all := isTrue(r.URL.Query(), "all")
	body := []byte{'['}
	n.mu.Lock()
	for _, c := range slices.Backward(n.containers) {
		if !all && c.state != "running" || !matchesFleet(c, ids, labels) {
			continue
		}
		if len(body) > 1 {
			body = append(body, ',')
		}
		body = n.entry(body, c)
	}
	n.mu.Unlock()
	writeFleet(w, http.StatusOK, append(body, ']'))
}

func matchesFleet(c *fleetContainer, ids, labels []string) bool {
	for _, l := range labels {
		k, v, valued := strings.Cut(l, "=")
		if got, ok := c.want.Labels[k]; !ok || valued && got != v {
			return false
		}
	}
	return len(ids) == 0 || slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(c.id, id) })
}

// entry appends a list entry, about 1 KB.
func (n *fleetNode) entry(b []byte, c *fleetContainer) []byte {
	status := "Created"
	switch c.state {
	case "running":
		status = "Up " + fakeAge(time.Since(c.started))
	case "exited":
		status = "Exited (0) " + fakeAge(time.Since(c.ended)) + " ago"
	}
	return fmt.Appendf(b, `{"Id":%q,"Names":["/%s"],"Image":%q,"ImageID":%q,"Command":"sh -c 'while true; do sleep 3600; done'","Created":%d,"Ports":[{"PrivatePort":80,"Type":"tcp"}],"Labels":%s,"State":%q,"Status":%q,"HostConfig":{"NetworkMode":"default"},"NetworkSettings":{"Networks":{"bridge":{"IPAMConfig":null,"Links":null,"Aliases":null,"NetworkID":%q,"EndpointID":"%s","Gateway":"172.17.0.1","IPAddress":"172.17.0.2","IPPrefixLen":16,"IPv6Gateway":"","GlobalIPv6Address":"","GlobalIPv6PrefixLen":0,"MacAddress":"02:42:ac:11:00:02","DriverOpts":null}}},"Mounts":[]}`,
		c.id, c.name, c.want.Image, fleetImageID, c.created.Unix(), c.labels, c.state, status, n.networkID("bridge"), c.id)
}

func (n *fleetNode) create(w http.ResponseWriter, r *http.Request) {
	want := &fleetCreate{}
	if err := json.NewDecoder(r.Body).Decode(want); err != nil {
		fleetError(w, http.StatusBadRequest, "%v", err)
		return
	}
	if ref, _, _ := strings.Cut(want.Image, ":"); ref != "busybox" && want.Image != fleetImageID {
		fleetError(w, http.StatusNotFound, "No such image: %s", want.Image)
		return
	}
	name := r.URL.Query().Get("name")
	if name == "" {
		name = "made-" + fakeID()[:12]
	}
	n.mu.Lock()
	if old := n.byRef[name]; old != nil {
		n.mu.Unlock()
		fleetError(w, http.StatusConflict, "Conflict. The container name \"/%s\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", name, old.id)
		return
	}
	c := n.add(name, want)
	n.tell("container", "create", c.id, c.attributes())
	n.mu.Unlock()
	writeFleet(w, http.StatusCreated, fmt.Appendf(nil, `{"Id":%q,"Warnings":[]}`, c.id))
}

// container answers for one container: by ID, name or prefix.
func (n *fleetNode) container(w http.ResponseWriter, r *http.Request, ref, what string) {
	status, body := n.containerCall(r, ref, what)
	switch {
	case what == "logs" && status == http.StatusOK:
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(body)
	case body == nil:
		w.WriteHeader(status)
	default:
		writeFleet(w, status, body)
	}
}

func (n *fleetNode) containerCall(r *http.Request, ref, what string) (status int, body []byte) {
	refuse := func(status int, format string, args ...any) (int, []byte) {
		return status, fakeRaw(map[string]string{"message": fmt.Sprintf(format, args...)})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.byRef[ref]
	if c == nil {
		for _, other := range n.containers {
			if strings.HasPrefix(other.id, ref) {
				c = other
			}
		}
	}
	if c == nil {
		return refuse(http.StatusNotFound, "No such container: %s", ref)
	}
	switch r.Method + " " + what {
	case "GET json":
		if c.inspect == nil {
			c.inspect = n.inspect(c)
		}
		return http.StatusOK, c.inspect
	case "GET logs":
		return http.StatusOK, append([]byte{1, 0, 0, 0, 0, 0, 0, 6}, "hello\n"...)
	case "POST start":
		if c.state == "running" {
			return http.StatusNotModified, nil
		}
		c.state, c.started, c.inspect = "running", time.Now(), nil
		n.tell("network", "connect", n.networkID("bridge"), map[string]string{"container": c.id, "name": "bridge", "type": "bridge"})
		n.tell("container", "start", c.id, c.attributes())
	case "POST stop", "POST kill":
		if c.state != "running" {
			return http.StatusNotModified, nil
		}
		n.stop(c)
		n.tell("container", "stop", c.id, c.attributes())
	case "DELETE ":
		if c.state == "running" && !isTrue(r.URL.Query(), "force") {
			return refuse(http.StatusConflict, "You cannot remove a running container %s. Stop the container before attempting removal or force remove", c.id)
		}
		n.stop(c)
		n.containers = slices.DeleteFunc(n.containers, func(other *fleetContainer) bool { return other == c })
		delete(n.byRef, c.id)
		delete(n.byRef, c.name)
		n.tell("container", "destroy", c.id, c.attributes())
	default:
		return refuse(http.StatusNotFound, "page not found")
	}
	return http.StatusNoContent, nil
}

func (n *fleetNode) stop(c *fleetContainer) {
	if c.state != "running" {
		return
	}
	c.state, c.ended, c.inspect = "exited", time.Now(), nil
	n.tell("container", "die", c.id, c.attributes())
	n.tell("network", "disconnect", n.networkID("bridge"), map[string]string{"container": c.id, "name": "bridge", "type": "bridge"})
}

func (c *fleetContainer) attributes() map[string]string {
	a := map[string]string{"image": c.want.Image, "name": c.name}
	for k, v := range c.want.Labels {
		a[k] = v
	}
	return a
}

// inspect is about 5 KB.
func (n *fleetNode) inspect(c *fleetContainer) []byte {
	env := make([]string, 24)
	for i := range env {
		env[i] = fmt.Sprintf("SETTING_%02d=a value of some length, as people have them", i)
	}
	config := fakeOver(fakeConfigDefaults, map[string]json.RawMessage{"Image": fakeRaw(c.want.Image), "Labels": c.labels, "Env": fakeRaw(env)})
	pid := 0
	if c.state == "running" {
		pid = 4711
	}
	return fakeRaw(map[string]any{
		"Id": c.id, "Name": "/" + c.name, "Created": fakeTime(c.created), "Path": "sh", "Args": []string{"-c", "while true; do sleep 3600; done"},
		"State": map[string]any{"Status": c.state, "Running": c.state == "running", "Paused": false, "Restarting": false, "OOMKilled": false, "Dead": false,
			"Pid": pid, "ExitCode": 0, "Error": "", "StartedAt": fakeTime(c.started), "FinishedAt": fakeTime(c.ended)},
		"Image": fleetImageID, "ResolvConfPath": "/var/lib/docker/containers/" + c.id + "/resolv.conf", "HostnamePath": "/var/lib/docker/containers/" + c.id + "/hostname",
		"HostsPath": "/var/lib/docker/containers/" + c.id + "/hosts", "LogPath": "/var/lib/docker/containers/" + c.id + "/" + c.id + "-json.log", "RestartCount": 0,
		"Driver": "overlay2", "Platform": "linux", "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "docker-default", "ExecIDs": nil,
		"HostConfig": fakeOver(fakeHostDefaults, c.want.HostConfig), "Mounts": []int{}, "Config": config,
		"NetworkSettings": map[string]any{"Bridge": "", "SandboxID": c.id, "HairpinMode": false, "LinkLocalIPv6Address": "", "Ports": map[string]any{"80/tcp": nil},
			"SandboxKey": "/var/run/docker/netns/" + c.id[:12], "EndpointID": c.id, "Gateway": "172.17.0.1", "IPAddress": "172.17.0.2", "IPPrefixLen": 16, "MacAddress": "02:42:ac:11:00:02",
			"Networks": map[string]any{"bridge": map[string]any{"NetworkID": n.networkID("bridge"), "EndpointID": c.id, "Gateway": "172.17.0.1", "IPAddress": "172.17.0.2", "IPPrefixLen": 16}}},
	})
}

// tell stores an event and hands it to the watchers; the caller holds the lock.
func (n *fleetNode) tell(kind, action, id string, attributes map[string]string) {
	at := time.Now()
	if !at.After(n.lastTime) {
		at = n.lastTime.Add(1)
	}
	n.lastTime = at
	event := map[string]any{"Type": kind, "Action": action, "Actor": map[string]any{"ID": id, "Attributes": attributes},
		"scope": "local", "time": at.Unix(), "timeNano": at.UnixNano()}
	if kind == "container" {
		event["status"], event["id"], event["from"] = action, id, attributes["image"]
	}
	line := append(fakeRaw(event), '\n')
	if n.recent = append(n.recent, fleetEvent{at, line}); len(n.recent) > fleetRecent {
		n.recent = slices.Delete(n.recent, 0, len(n.recent)-fleetRecent)
	}
	for w := range n.watchers {
		w.put(line)
	}
}

func (w *fleetWatcher) put(line []byte) {
	w.mu.Lock()
	w.queue = append(w.queue, line)
	w.mu.Unlock()
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// events streams what happens, from `since` on.
func (n *fleetNode) events(w http.ResponseWriter, r *http.Request) {
	watcher := &fleetWatcher{woken: make(chan struct{}, 1), ended: make(chan struct{})}
	since, _ := strconv.ParseInt(r.FormValue("since"), 10, 64)
	n.mu.Lock()
	n.watchers[watcher] = true
	for _, ev := range n.recent {
		if since > 0 && ev.at.Unix() >= since {
			watcher.put(ev.line)
		}
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.watchers, watcher)
		n.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for {
		select {
		case <-watcher.woken:
		case <-watcher.ended:
			panic(http.ErrAbortHandler)
		case <-r.Context().Done():
			return
		}
		if gate := n.hung.Load(); gate != nil {
			select {
			case <-gate.open:
			case <-r.Context().Done():
				return
			}
		}
		watcher.mu.Lock()
		lines := watcher.queue
		watcher.queue = nil
		watcher.mu.Unlock()
		for _, line := range lines {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
		if flush.Flush() != nil {
			return
		}
	}
}
