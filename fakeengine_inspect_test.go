package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fakePath is the only variable of the simulated images.
const fakePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// fakeConfigDefaults is the Config of a container that was asked for with no key.
var fakeConfigDefaults = fakeKeys(`{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,
"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,
"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{}}`)

// fakeHostDefaults is the HostConfig of a container that was asked for with none (20.10).
var fakeHostDefaults = fakeKeys(`{"Binds":null,"ContainerIDFile":"","LogConfig":{"Type":"json-file","Config":{}},
"NetworkMode":"default","PortBindings":{},"RestartPolicy":{"Name":"","MaximumRetryCount":0},"AutoRemove":false,
"VolumeDriver":"","VolumesFrom":null,"CapAdd":null,"CapDrop":null,"CgroupnsMode":"host","Dns":null,"DnsOptions":null,
"DnsSearch":null,"ExtraHosts":null,"GroupAdd":null,"IpcMode":"private","Cgroup":"","Links":null,"OomScoreAdj":0,
"PidMode":"","Privileged":false,"PublishAllPorts":false,"ReadonlyRootfs":false,"SecurityOpt":null,"UTSMode":"",
"UsernsMode":"","ShmSize":67108864,"Runtime":"runc","ConsoleSize":[0,0],"Isolation":"","CpuShares":0,"Memory":0,
"NanoCpus":0,"CgroupParent":"","BlkioWeight":0,"BlkioWeightDevice":null,"BlkioDeviceReadBps":null,
"BlkioDeviceWriteBps":null,"BlkioDeviceReadIOps":null,"BlkioDeviceWriteIOps":null,"CpuPeriod":0,"CpuQuota":0,
"CpuRealtimePeriod":0,"CpuRealtimeRuntime":0,"CpusetCpus":"","CpusetMems":"","Devices":null,"DeviceCgroupRules":null,
"DeviceRequests":null,"KernelMemory":0,"KernelMemoryTCP":0,"MemoryReservation":0,"MemorySwap":0,"MemorySwappiness":null,
"OomKillDisable":false,"PidsLimit":null,"Ulimits":null,"CpuCount":0,"CpuPercent":0,"IOMaximumIOps":0,
"IOMaximumBandwidth":0,"MaskedPaths":["/proc/asound","/proc/acpi","/proc/kcore","/proc/keys","/sys/firmware"],
"ReadonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"]}`)

// fakeKeys decodes a constant object.
func fakeKeys(text string) map[string]json.RawMessage {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &keys); err != nil {
		panic(err)
	}
	return keys
}

// fakeRaw encodes a value that can be encoded.
func fakeRaw(v any) json.RawMessage {
	raw, _ := json.Marshal(v)
	return raw
}

// fakeOver lays keys over a copy of base; keys that base has are found in any
// letter case, as engines read them. A null leaves what base has.
func fakeOver(base, keys map[string]json.RawMessage) map[string]json.RawMessage {
	merged := maps.Clone(base)
	for key, value := range keys {
		if string(value) == "null" {
			continue
		}
		if _, known := base[key]; !known {
			for name := range base {
				if strings.EqualFold(name, key) {
					key = name
				}
			}
		}
		merged[key] = value
	}
	return merged
}

// fakeListFilters are the filters of GET /containers/json.
var fakeListFilters = []string{"ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label",
	"name", "network", "publish", "since", "status", "volume"}

// containerList is GET /containers/json; the newest comes first.
func (e *fakeEngine) containerList(c *fakeCall) error {
	filters, err := c.filters(fakeListFilters...)
	if err != nil {
		return err
	}
	for _, status := range filters["status"] {
		if !slices.Contains([]string{"created", "running", "paused", "restarting", "removing", "exited", "dead"}, status) {
			return fakeErrorf(http.StatusBadRequest, "Invalid filter 'status=%s'", status)
		}
	}
	limit, _ := strconv.Atoi(c.query.Get("limit"))
	all := c.flag("all") || limit > 0 || len(filters["status"]) > 0 || len(filters["exited"]) > 0
	entries := []*fakeEntry{}
	e.mu.Lock()
	for _, found := range slices.Backward(e.containers) {
		if (all || found.running()) && e.listed(found, filters) && (limit <= 0 || len(entries) < limit) {
			entries = append(entries, e.entry(found, c.flag("size")))
		}
	}
	body, err := json.Marshal(entries) // under the lock: entries share the endpoints
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, json.RawMessage(body))
}

// listed tells whether a container passes the filters of a list.
func (e *fakeEngine) listed(c *fakeContainer, f fakeFilters) bool {
	var networks, volumes []string
	for name, endpoint := range c.endpoints {
		networks = append(networks, name, endpoint.NetworkID)
	}
	for _, m := range c.mounts {
		volumes = append(volumes, m.Name, m.Source, m.Destination)
	}
	anyOf := func(key string, values []string) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(v string) bool { return slices.Contains(values, v) })
	}
	ancestor := len(f["ancestor"]) == 0 || slices.ContainsFunc(f["ancestor"], func(ref string) bool {
		image := e.findImage(ref)
		return image != nil && image.id == c.imageID
	})
	return f.match("id", c.id) && (f.match("name", c.name) || f.match("name", "/"+c.name)) && f.labels("label", c.want.Labels) &&
		f.exact("status", c.status) && anyOf("network", networks) && anyOf("volume", volumes) && ancestor &&
		(len(f["exited"]) == 0 || c.status == "exited" && f.exact("exited", strconv.Itoa(c.exitCode))) &&
		f.exact("health", "none")
}

// entry is a container as lists show it.
func (e *fakeEngine) entry(c *fakeContainer, size bool) *fakeEntry {
	command := slices.Clone(c.words)
	for i, word := range command {
		if i > 0 && strings.Contains(word, " ") {
			command[i] = "'" + word + "'"
		}
	}
	entry := &fakeEntry{
		ID: c.id, Names: []string{"/" + c.name}, Image: c.image, ImageID: c.imageID, Command: strings.Join(command, " "),
		Created: c.created.Unix(), Ports: []fakePort{}, Labels: c.want.Labels, State: c.status, Status: e.status(c), Mounts: []fakeMount{},
	}
	// A tag that was moved or removed no longer names this container's image.
	if image := e.findImage(c.image); image == nil || image.id != c.imageID {
		entry.Image = c.imageID
	}
	entry.HostConfig.NetworkMode = c.want.HostConfig.NetworkMode
	entry.NetworkSettings.Networks = c.endpoints
	entry.Mounts = append(entry.Mounts, c.mounts...)
	if size {
		entry.SizeRw, entry.SizeRootFs = 12, 1984172
	}
	if !c.running() {
		return entry
	}
	for _, port := range slices.Sorted(maps.Keys(c.ports)) {
		for _, b := range c.ports[port] {
			entry.Ports = append(entry.Ports, fakeListPort(port, b))
		}
	}
	for _, port := range slices.Sorted(maps.Keys(c.want.ExposedPorts)) {
		if len(c.ports[port]) == 0 {
			entry.Ports = append(entry.Ports, fakeListPort(port, fakeBinding{}))
		}
	}
	return entry
}

// fakeListPort is a port as lists show it.
func fakeListPort(port string, b fakeBinding) fakePort {
	number, protocol, _ := strings.Cut(port, "/")
	private, _ := strconv.Atoi(number)
	public, _ := strconv.Atoi(b.HostPort)
	return fakePort{IP: b.HostIP, PrivatePort: private, PublicPort: public, Type: protocol}
}

// status is a container's state in words.
func (e *fakeEngine) status(c *fakeContainer) string {
	switch c.status {
	case "created":
		return "Created"
	case "exited":
		return fmt.Sprintf("Exited (%d) %s ago", c.exitCode, fakeAge(e.now().Sub(c.finishedAt)))
	case "paused":
		return "Up " + fakeAge(e.now().Sub(c.startedAt)) + " (Paused)"
	}
	return "Up " + fakeAge(e.now().Sub(c.startedAt))
}

// fakeAge is a duration in Docker's words.
func fakeAge(d time.Duration) string {
	seconds, minutes, hours := int(d.Seconds()), int(d.Minutes()), int(d.Hours()+0.5)
	switch {
	case seconds < 1:
		return "Less than a second"
	case seconds == 1:
		return "1 second"
	case seconds < 60:
		return strconv.Itoa(seconds) + " seconds"
	case minutes == 1:
		return "About a minute"
	case minutes < 60:
		return strconv.Itoa(minutes) + " minutes"
	case hours == 1:
		return "About an hour"
	case hours < 48:
		return strconv.Itoa(hours) + " hours"
	case hours < 24*7*2:
		return strconv.Itoa(hours/24) + " days"
	}
	return strconv.Itoa(hours/24/7) + " weeks"
}

// fakeTime is a moment as inspect shows it; the zero time is year 1.
func fakeTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// containerInspect is GET /containers/{id}/json.
func (e *fakeEngine) containerInspect(c *fakeCall) error {
	var body []byte
	err := e.withContainer(c, func(found *fakeContainer) error {
		var err error
		body, err = json.Marshal(e.inspect(found))
		return err
	})
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, json.RawMessage(body))
}

// inspect is a container in full.
func (e *fakeEngine) inspect(c *fakeContainer) map[string]any {
	root := "/var/lib/docker/containers/" + c.id
	ports := map[string]any{}
	for port := range c.want.ExposedPorts {
		if c.running() {
			ports[port] = nil
		}
	}
	for port, bindings := range c.ports {
		ports[port] = bindings
	}
	settings := map[string]any{
		"Bridge": "", "SandboxID": "", "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
		"Ports": ports, "SandboxKey": "", "SecondaryIPAddresses": nil, "SecondaryIPv6Addresses": nil, "Networks": c.endpoints,
		"EndpointID": "", "Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "IPAddress": "", "IPPrefixLen": 0,
		"IPv6Gateway": "", "MacAddress": "",
	}
	if c.running() {
		settings["SandboxID"], settings["SandboxKey"] = c.id, "/var/run/docker/netns/"+c.id[:12]
	}
	if b := c.endpoints["bridge"]; b != nil {
		settings["EndpointID"], settings["Gateway"], settings["IPAddress"] = b.EndpointID, b.Gateway, b.IPAddress
		settings["IPPrefixLen"], settings["MacAddress"] = b.IPPrefixLen, b.MacAddress
	}
	var execs []string
	for id, x := range e.execs {
		if x.container == c && x.running {
			execs = append(execs, id)
		}
	}
	return map[string]any{
		"Id": c.id, "Created": fakeTime(c.created), "Path": c.words[0], "Args": append([]string{}, c.words[1:]...),
		"State": map[string]any{
			"Status": c.status, "Running": c.running(), "Paused": c.status == "paused", "Restarting": false, "OOMKilled": false,
			"Dead": false, "Pid": c.pid, "ExitCode": c.exitCode, "Error": "",
			"StartedAt": fakeTime(c.startedAt), "FinishedAt": fakeTime(c.finishedAt),
		},
		"Image": c.imageID, "ResolvConfPath": root + "/resolv.conf", "HostnamePath": root + "/hostname",
		"HostsPath": root + "/hosts", "LogPath": root + "/" + c.id + "-json.log", "Name": "/" + c.name,
		"RestartCount": 0, "Driver": e.driver, "Platform": "linux", "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "",
		"ExecIDs": execs, "HostConfig": c.host,
		"GraphDriver": map[string]any{"Name": e.driver, "Data": map[string]string{}},
		"Mounts":      append([]fakeMount{}, c.mounts...), "Config": c.config, "NetworkSettings": settings,
	}
}

// containerTop is GET /containers/{id}/top.
func (e *fakeEngine) containerTop(c *fakeCall) error {
	var answer map[string]any
	err := e.withContainer(c, func(found *fakeContainer) error {
		if !found.running() {
			return found.notRunning()
		}
		e.tell(found, "top")
		answer = map[string]any{
			"Titles": []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"},
			"Processes": [][]string{{"root", strconv.Itoa(found.pid), "1", "0", found.startedAt.Format("15:04"), "?", "00:00:00",
				strings.Join(found.words, " ")}},
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, answer)
}

// containerChanges is GET /containers/{id}/changes.
func (e *fakeEngine) containerChanges(c *fakeCall) error {
	var changes []map[string]any
	err := e.withContainer(c, func(found *fakeContainer) error {
		for _, path := range slices.Sorted(maps.Keys(found.files)) {
			changes = append(changes, map[string]any{"Path": path, "Kind": 1})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, changes)
}

// containerStats is GET /containers/{id}/stats: one reading, or one a second
// until the client goes, the container ends or the engine stops.
func (e *fakeEngine) containerStats(c *fakeCall) error {
	var found *fakeContainer
	var exited <-chan struct{}
	err := e.withContainer(c, func(f *fakeContainer) error {
		found, exited = f, f.exited
		return nil
	})
	if err != nil {
		return err
	}
	if stream := c.query.Get("stream"); stream != "" && !c.flag("stream") || c.flag("one-shot") {
		return c.writeJSON(http.StatusOK, e.stats(found))
	}
	c.w.Header().Set("Content-Type", "application/json")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		c.writeLine(e.stats(found))
		select {
		case <-tick.C:
		case <-exited:
			return nil
		case <-c.r.Context().Done():
			return nil
		}
	}
}

// stats is one reading of a container's use.
func (e *fakeEngine) stats(c *fakeContainer) map[string]any {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	cpu := map[string]any{
		"cpu_usage": map[string]any{"total_usage": 29162023, "percpu_usage": []int{20109934, 9052089},
			"usage_in_kernelmode": 10000000, "usage_in_usermode": 10000000},
		"system_cpu_usage": 1479660000000, "online_cpus": e.cpus,
		"throttling_data": map[string]any{"periods": 0, "throttled_periods": 0, "throttled_time": 0},
	}
	return map[string]any{
		"read": fakeTime(now), "preread": fakeTime(now.Add(-time.Second)), "name": "/" + c.name, "id": c.id, "num_procs": 0,
		"pids_stats": map[string]any{"current": 1}, "storage_stats": map[string]any{}, "cpu_stats": cpu, "precpu_stats": cpu,
		"blkio_stats":  map[string]any{"io_service_bytes_recursive": []any{}},
		"memory_stats": map[string]any{"usage": 2641920, "max_usage": 4083712, "limit": e.memory, "stats": map[string]any{"cache": 1966080, "rss": 49152}},
		"networks":     map[string]any{"eth0": map[string]any{"rx_bytes": 486, "rx_packets": 5, "tx_bytes": 0, "tx_packets": 0}},
	}
}
