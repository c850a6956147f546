package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
)

// fakeNetwork is a network of a fakeEngine.
type fakeNetwork struct {
	id, name, driver, scope string
	created                 time.Time
	builtin                 bool
	internal, attachable    bool
	ipv6                    bool
	labels, options         map[string]string
	ipam                    json.RawMessage // as asked for; nil: a subnet of ours
	subnet                  int             // 172.subnet.0.0/16
	lastHost                int             // last address given
}

// fakeVolume is a volume of a fakeEngine.
type fakeVolume struct {
	name, driver    string
	created         time.Time
	labels, options map[string]string
	anonymous       bool
}

// findNetwork looks a network up: ID, name, unique prefix; nil if there is none.
func (e *fakeEngine) findNetwork(ref string) *fakeNetwork {
	if ref == "default" {
		ref = "bridge"
	}
	var prefixed []*fakeNetwork
	for _, n := range e.networks {
		if n.id == ref || n.name == ref {
			return n
		}
		if len(ref) > 3 && len(ref) < 64 && n.id[:min(len(ref), len(n.id))] == ref {
			prefixed = append(prefixed, n)
		}
	}
	if len(prefixed) == 1 {
		return prefixed[0]
	}
	return nil
}

// needNetwork is findNetwork with Docker's refusal. The name of several is ambiguous.
func (e *fakeEngine) needNetwork(ref string) (*fakeNetwork, error) {
	matches := 0
	for _, n := range e.networks {
		if n.id == ref {
			return n, nil
		}
		if n.name == ref {
			matches++
		}
	}
	if matches > 1 {
		return nil, fakeErrorf(http.StatusBadRequest, "network %s is ambiguous (%d matches found based on name)", ref, matches)
	}
	if n := e.findNetwork(ref); n != nil {
		return n, nil
	}
	return nil, fakeErrorf(http.StatusNotFound, "network %s not found", ref)
}

// join gives a container that runs its address in a network.
func (e *fakeEngine) join(c *fakeContainer, n *fakeNetwork) {
	endpoint := c.endpoints[n.name]
	endpoint.NetworkID, endpoint.EndpointID = n.id, fakeID()
	if n.driver != "host" && n.driver != "null" {
		n.lastHost++
		high, low := (n.lastHost+1)/256%256, (n.lastHost+1)%256
		endpoint.Gateway = fmt.Sprintf("172.%d.0.1", n.subnet)
		endpoint.IPAddress = fmt.Sprintf("172.%d.%d.%d", n.subnet, high, low)
		endpoint.IPPrefixLen = 16
		endpoint.MacAddress = fmt.Sprintf("02:42:ac:%02x:%02x:%02x", n.subnet, high, low)
	}
	e.emitNow("network", "connect", n.id, "", map[string]string{"container": c.id, "name": n.name, "type": n.driver})
}

// show is a network as inspect shows it; only running containers are in it.
func (e *fakeEngine) show(n *fakeNetwork) map[string]any {
	members := map[string]any{}
	for _, c := range e.containers {
		for _, endpoint := range c.endpoints {
			if c.running() && endpoint.NetworkID == n.id {
				address := ""
				if endpoint.IPAddress != "" {
					address = endpoint.IPAddress + "/16"
				}
				members[c.id] = map[string]any{"Name": c.name, "EndpointID": endpoint.EndpointID,
					"MacAddress": endpoint.MacAddress, "IPv4Address": address, "IPv6Address": ""}
			}
		}
	}
	ipam := n.ipam
	switch {
	case ipam != nil:
	case n.driver == "host" || n.driver == "null":
		ipam = json.RawMessage(`{"Driver":"default","Options":null,"Config":[]}`)
	default:
		ipam = json.RawMessage(fmt.Sprintf(`{"Driver":"default","Options":null,"Config":[{"Subnet":"172.%d.0.0/16","Gateway":"172.%d.0.1"}]}`, n.subnet, n.subnet))
	}
	return map[string]any{
		"Name": n.name, "Id": n.id, "Created": fakeTime(n.created), "Scope": n.scope, "Driver": n.driver, "EnableIPv6": n.ipv6,
		"IPAM": ipam, "Internal": n.internal, "Attachable": n.attachable, "Ingress": false,
		"ConfigFrom": map[string]any{"Network": ""}, "ConfigOnly": false, "Containers": members,
		"Options": fakeNotNil(n.options), "Labels": fakeNotNil(n.labels),
	}
}

// fakeNotNil is an empty map instead of nil, for {} instead of null.
func fakeNotNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// networkList is GET /networks; Containers are not told there.
func (e *fakeEngine) networkList(c *fakeCall) error {
	filters, err := c.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	list := []any{}
	e.mu.Lock()
	for _, n := range e.networks {
		kind := "custom"
		if n.builtin {
			kind = "builtin"
		}
		if filters.match("id", n.id) && filters.match("name", n.name) && filters.exact("driver", n.driver) &&
			filters.exact("scope", n.scope) && filters.exact("type", kind) && filters.labels("label", n.labels) {
			shown := e.show(n)
			shown["Containers"] = map[string]any{}
			list = append(list, shown)
		}
	}
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, list)
}

// networkInspect is GET /networks/{id}.
func (e *fakeEngine) networkInspect(c *fakeCall) error {
	e.mu.Lock()
	n, err := e.needNetwork(c.id)
	var shown map[string]any
	if err == nil {
		shown = e.show(n)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, shown)
}

// networkCreate is POST /networks/create. As in 20.10 a name may be taken twice
// unless CheckDuplicate is set; from API 1.44 on never.
func (e *fakeEngine) networkCreate(c *fakeCall) error {
	var want struct {
		Name, Driver, Scope              string
		Internal, Attachable, EnableIPv6 bool
		CheckDuplicate                   bool
		IPAM                             json.RawMessage
		Labels, Options                  map[string]string
	}
	if _, err := c.readJSON(&want); err != nil {
		return err
	}
	if want.Driver == "" {
		want.Driver = "bridge"
	}
	e.mu.Lock()
	id, warning, err := func() (string, string, error) {
		if slices.Contains([]string{"bridge", "host", "none", "default"}, want.Name) {
			return "", "", fakeErrorf(http.StatusForbidden, "operation is not permitted on predefined %s network ", want.Name)
		}
		if want.Driver == "overlay" {
			return "", "", fakeErrorf(http.StatusForbidden,
				`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
		}
		if !slices.Contains([]string{"bridge", "host", "ipvlan", "macvlan", "null"}, want.Driver) {
			return "", "", fakeErrorf(http.StatusNotFound, "plugin %q not found", want.Driver)
		}
		warning := ""
		if slices.ContainsFunc(e.networks, func(n *fakeNetwork) bool { return n.name == want.Name }) {
			if want.CheckDuplicate || !fakeOlder(c.version, "1.44") {
				return "", "", fakeErrorf(http.StatusConflict, "network with name %s already exists", want.Name)
			}
			warning = "Network with name " + want.Name + " already exists"
		}
		n := &fakeNetwork{
			id: fakeID(), name: want.Name, driver: want.Driver, scope: "local", created: e.now(), internal: want.Internal,
			attachable: want.Attachable, ipv6: want.EnableIPv6, labels: want.Labels, options: want.Options, subnet: 18 + (len(e.networks)-3)%200,
		}
		if string(want.IPAM) != "null" && string(want.IPAM) != "{}" {
			n.ipam = want.IPAM
		}
		e.networks = append(e.networks, n)
		e.emitNow("network", "create", n.id, "", map[string]string{"name": n.name, "type": n.driver})
		return n.id, warning, nil
	}()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusCreated, map[string]any{"Id": id, "Warning": warning})
}

// dropNetwork removes a network that nobody uses.
func (e *fakeEngine) dropNetwork(n *fakeNetwork) {
	e.networks = slices.DeleteFunc(e.networks, func(other *fakeNetwork) bool { return other == n })
	e.emitNow("network", "destroy", n.id, "", map[string]string{"name": n.name, "type": n.driver})
}

// networkUsed tells whether a running container is in the network.
func (e *fakeEngine) networkUsed(n *fakeNetwork) bool {
	return len(e.show(n)["Containers"].(map[string]any)) > 0
}

// networkRemove is DELETE /networks/{id}.
func (e *fakeEngine) networkRemove(c *fakeCall) error {
	e.mu.Lock()
	err := func() error {
		n, err := e.needNetwork(c.id)
		if err != nil {
			return err
		}
		if n.builtin {
			return fakeErrorf(http.StatusForbidden, "%s is a pre-defined network and cannot be removed", n.name)
		}
		if e.networkUsed(n) {
			return fakeErrorf(http.StatusForbidden, "error while removing network: network %s id %s has active endpoints", n.name, n.id)
		}
		e.dropNetwork(n)
		return nil
	}()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeStatus(http.StatusNoContent)
}

// networkPrune is POST /networks/prune.
func (e *fakeEngine) networkPrune(c *fakeCall) error {
	filters, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	deleted := []string{}
	e.mu.Lock()
	for _, n := range slices.Clone(e.networks) {
		if !n.builtin && !e.networkUsed(n) && filters.labels("label", n.labels) {
			deleted = append(deleted, n.name)
			e.dropNetwork(n)
		}
	}
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, map[string]any{"NetworksDeleted": deleted})
}

// networkConnect is POST /networks/{id}/connect. A container that does not run
// gets no event, as on real engines.
func (e *fakeEngine) networkConnect(c *fakeCall) error {
	var want struct {
		Container      string
		EndpointConfig *fakeEndpoint
	}
	if _, err := c.readJSON(&want); err != nil {
		return err
	}
	return e.plug(c, want.Container, func(found *fakeContainer, n *fakeNetwork) error {
		if found.endpoints[n.name] != nil {
			return fakeErrorf(http.StatusForbidden, "endpoint with name %s already exists in network %s", found.name, n.name)
		}
		endpoint := &fakeEndpoint{}
		if given := want.EndpointConfig; given != nil {
			endpoint = &fakeEndpoint{IPAMConfig: given.IPAMConfig, Aliases: given.Aliases, Links: given.Links, DriverOpts: given.DriverOpts}
		}
		found.endpoints[n.name] = endpoint
		if found.running() {
			e.join(found, n)
		}
		return nil
	})
}

// networkDisconnect is POST /networks/{id}/disconnect.
func (e *fakeEngine) networkDisconnect(c *fakeCall) error {
	var want struct{ Container string }
	if _, err := c.readJSON(&want); err != nil {
		return err
	}
	return e.plug(c, want.Container, func(found *fakeContainer, n *fakeNetwork) error {
		if found.endpoints[n.name] == nil {
			return fakeErrorf(http.StatusInternalServerError, "container %s is not connected to network %s", found.id, n.name)
		}
		delete(found.endpoints, n.name)
		if found.running() {
			e.emitNow("network", "disconnect", n.id, "", map[string]string{"container": found.id, "name": n.name, "type": n.driver})
		}
		return nil
	})
}

// plug runs do with the network of the path and the container of the body.
func (e *fakeEngine) plug(c *fakeCall, ref string, do func(*fakeContainer, *fakeNetwork) error) error {
	e.mu.Lock()
	n, err := e.needNetwork(c.id)
	var found *fakeContainer
	if err == nil {
		found, err = e.find(ref)
	}
	if err == nil {
		err = do(found, n)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeStatus(http.StatusOK)
}

// mountpoint is where a volume is on the host.
func (v *fakeVolume) mountpoint() string { return "/var/lib/docker/volumes/" + v.name + "/_data" }

// show is a volume as lists and inspect show it.
func (v *fakeVolume) show() map[string]any {
	shown := map[string]any{"CreatedAt": v.created.Format(time.RFC3339), "Driver": v.driver, "Labels": nil,
		"Mountpoint": v.mountpoint(), "Name": v.name, "Options": nil, "Scope": "local"}
	if v.labels != nil {
		shown["Labels"] = maps.Clone(v.labels)
	}
	if v.options != nil {
		shown["Options"] = maps.Clone(v.options)
	}
	return shown
}

// findVolume looks a volume up by its name.
func (e *fakeEngine) findVolume(name string) *fakeVolume {
	for _, v := range e.volumes {
		if v.name == name {
			return v
		}
	}
	return nil
}

// makeVolume makes a volume; one without a name gets an ID for a name.
func (e *fakeEngine) makeVolume(name, driver string, labels, options map[string]string, anonymous bool) *fakeVolume {
	if name == "" {
		name = fakeID()
	}
	v := &fakeVolume{name: name, driver: driver, created: e.now(), labels: labels, options: options, anonymous: anonymous}
	e.volumes = append(e.volumes, v)
	e.emitNow("volume", "create", v.name, "", map[string]string{"driver": v.driver})
	return v
}

// volumeUsers are the IDs of the containers that mount the volume.
func (e *fakeEngine) volumeUsers(v *fakeVolume) []string {
	var users []string
	for _, c := range e.containers {
		if slices.ContainsFunc(c.mounts, func(m fakeMount) bool { return m.Name == v.name }) {
			users = append(users, c.id)
		}
	}
	return users
}

// dropVolume removes a volume that nobody uses.
func (e *fakeEngine) dropVolume(v *fakeVolume) {
	if len(e.volumeUsers(v)) > 0 {
		return
	}
	e.volumes = slices.DeleteFunc(e.volumes, func(other *fakeVolume) bool { return other == v })
	e.emitNow("volume", "destroy", v.name, "", map[string]string{"driver": v.driver})
}

// volumeList is GET /volumes.
func (e *fakeEngine) volumeList(c *fakeCall) error {
	filters, err := c.filters("dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	list := []any{}
	e.mu.Lock()
	for _, v := range e.volumes {
		dangling := len(e.volumeUsers(v)) == 0
		if filters.match("name", v.name) && filters.exact("driver", v.driver) && filters.labels("label", v.labels) &&
			(len(filters["dangling"]) == 0 || dangling == slices.ContainsFunc(filters["dangling"], func(s string) bool { return s == "true" || s == "1" })) {
			list = append(list, v.show())
		}
	}
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, map[string]any{"Volumes": list, "Warnings": nil})
}

// volumeCreate is POST /volumes/create; a name that is there is answered with
// the volume that has it.
func (e *fakeEngine) volumeCreate(c *fakeCall) error {
	var want struct {
		Name, Driver       string
		Labels, DriverOpts map[string]string
	}
	if _, err := c.readJSON(&want); err != nil {
		return err
	}
	if want.Driver == "" {
		want.Driver = "local"
	}
	if want.Driver != "local" {
		return fakeErrorf(http.StatusNotFound, "create %s: error looking up volume plugin %s: plugin %q not found", want.Name, want.Driver, want.Driver)
	}
	e.mu.Lock()
	v := e.findVolume(want.Name)
	if v == nil {
		v = e.makeVolume(want.Name, want.Driver, want.Labels, want.DriverOpts, want.Name == "")
	}
	shown := v.show()
	e.mu.Unlock()
	return c.writeJSON(http.StatusCreated, shown)
}

// volumeInspect is GET /volumes/{id}.
func (e *fakeEngine) volumeInspect(c *fakeCall) error {
	e.mu.Lock()
	v := e.findVolume(c.id)
	var shown map[string]any
	if v != nil {
		shown = v.show()
	}
	e.mu.Unlock()
	if v == nil {
		return fakeErrorf(http.StatusNotFound, "get %s: no such volume", c.id)
	}
	return c.writeJSON(http.StatusOK, shown)
}

// volumeRemove is DELETE /volumes/{id}.
func (e *fakeEngine) volumeRemove(c *fakeCall) error {
	e.mu.Lock()
	err := func() error {
		v := e.findVolume(c.id)
		if v == nil && c.flag("force") {
			return nil
		}
		if v == nil {
			return fakeErrorf(http.StatusNotFound, "get %s: no such volume", c.id)
		}
		if users := e.volumeUsers(v); len(users) > 0 {
			return fakeErrorf(http.StatusConflict, "remove %s: volume is in use - %v", c.id, users)
		}
		e.dropVolume(v)
		return nil
	}()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	return c.writeStatus(http.StatusNoContent)
}

// volumePrune is POST /volumes/prune: from API 1.42 on only those without a
// name of their own, unless all is asked for.
func (e *fakeEngine) volumePrune(c *fakeCall) error {
	filters, err := c.filters("label", "label!", "all")
	if err != nil {
		return err
	}
	all := fakeOlder(c.version, "1.42") || slices.Contains(filters["all"], "true") || slices.Contains(filters["all"], "1")
	deleted := []string{}
	e.mu.Lock()
	for _, v := range slices.Clone(e.volumes) {
		if len(e.volumeUsers(v)) == 0 && (all || v.anonymous) && filters.labels("label", v.labels) {
			deleted = append(deleted, v.name)
			e.dropVolume(v)
		}
	}
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, map[string]any{"VolumesDeleted": deleted, "SpaceReclaimed": 0})
}
