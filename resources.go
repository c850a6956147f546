package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Countable things: GPUs and whatever else a node has a number of. A node's come from
// its labels resource.NAME and from what its engine reports; a container asks for them
// by DeviceRequests (docker run --gpus, CDI devices) or by a label.

// resourcesLabel on a create says what the container takes, as in gpu=2,fpga=1.
const resourcesLabel = "com.docker.swarm.resources"

// resourceLabel begins the labels that say what a node has: resource.gpu=4.
const resourceLabel = "resource."

const (
	everything   = -1   // the amount of a demand for all that a node has
	maxResources = 64   // kinds of things that one create asks for, or one node has
	maxAmount    = 1e6  // of one thing
	maxDevices   = 1024 // of a node, or of one device request, by their IDs
	maxQuoted    = 256  // bytes of a label in an error
)

// validDevice tells whether id can be the ID of a device.
func validDevice(id string) bool { return id != "" && len(id) <= 256 && printable(id) }

// demand is how many of one thing a container asks for.
type demand struct {
	Name   string   `json:"name"`             // gpu
	Amount int64    `json:"amount"`           // 0: it shares what others hold; everything: all that the node has
	IDs    []string `json:"ids,omitempty"`    // those that it asks for by their ID
	Device int      `json:"device,omitempty"` // which of the DeviceRequests it is, from 1; 0: none
}

// deviceRequest is one of a create's HostConfig.DeviceRequests.
type deviceRequest struct {
	Driver       string
	Count        int64 // -1: all
	DeviceIDs    []string
	Capabilities [][]string
}

// demands reads what is asked for: what CDI devices (vendor.com/gpu=0) are of each class,
// of all else gpu if that is among the capabilities, else the first of them.
func (r *deviceRequest) demands() []demand {
	list := []demand{{Amount: r.Count}}
	for _, all := range r.Capabilities {
		if slices.Contains(all, "gpu") {
			list[0].Name = "gpu"
		} else if list[0].Name == "" && len(all) > 0 {
			list[0].Name = resourceName(all[0])
		}
	}
	for _, id := range r.DeviceIDs {
		at := 0
		if class, device, ok := cutCDI(id); ok {
			id = device
			if at = slices.IndexFunc(list, func(d demand) bool { return d.Name == class }); at < 0 {
				at, list = len(list), append(list, demand{Name: class})
			}
		}
		if d := &list[at]; !slices.Contains(d.IDs, id) {
			d.IDs = append(d.IDs, id)
		}
	}
	for i := range list {
		switch d := &list[i]; {
		case slices.Contains(d.IDs, "all"), r.Count < 0:
			d.Amount, d.IDs = everything, nil
		case len(d.IDs) > 0:
			d.Amount = int64(len(d.IDs))
		}
	}
	return slices.DeleteFunc(list, func(d demand) bool { return d.Name == "" || d.Amount == 0 || d.Amount > maxAmount })
}

// cutCDI splits a CDI device: nvidia.com/gpu=0 is device 0 of class gpu.
func cutCDI(id string) (class, device string, ok bool) {
	kind, device, ok := strings.Cut(id, "=")
	_, class, slash := strings.Cut(kind, "/")
	class = resourceName(class)
	return class, device, ok && slash && class != "" && device != ""
}

// resourceName is the one spelling of a thing's name, "" if it cannot be one. Docker's
// generic resources name GPUs NVIDIA-GPU and the like.
func resourceName(s string) string {
	s = strings.ToLower(s)
	if strings.HasSuffix(s, "-gpu") {
		return "gpu"
	}
	if len(s) > 64 {
		return ""
	}
	for i, c := range s {
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._-", c)) {
			return ""
		}
	}
	return s
}

// demands reads what a container asks for: one for each thing, or several whose
// amounts add up. What its label says of a thing comes before its device requests.
func (h *hostConfig) demands(labels map[string]string) ([]demand, error) {
	list, err := parseDemands(labels[resourcesLabel])
	if err != nil {
		return nil, err
	}
	named := func(name string) func(demand) bool { return func(d demand) bool { return d.Name == name } }
	labelled := len(list)
	for i := range h.DeviceRequests {
		if n := len(h.DeviceRequests[i].DeviceIDs); n > maxDevices {
			return nil, fmt.Errorf("device request for %d devices, at most %d are allowed", n, maxDevices)
		}
		for _, d := range h.DeviceRequests[i].demands() {
			if slices.ContainsFunc(list[:labelled], named(d.Name)) || len(list) >= maxResources {
				continue
			}
			d.Device = i + 1
			all := slices.ContainsFunc(list, func(o demand) bool { return o.Name == d.Name && o.Amount == everything })
			if d.Amount == everything {
				list = slices.DeleteFunc(list, named(d.Name))
			}
			if !all || d.Amount == everything {
				list = append(list, d)
			}
		}
	}
	// Those by ID come first, so that they are not picked for another.
	slices.SortStableFunc(list, func(a, b demand) int { return cmp.Compare(min(len(b.IDs), 1), min(len(a.IDs), 1)) })
	return list, nil
}

// parseDemands reads the label resourcesLabel: NAME=NUMBER, with commas between.
func parseDemands(text string) ([]demand, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var list []demand
	for _, part := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		name := resourceName(strings.TrimSpace(key))
		amount, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if name == "" || err != nil || amount < 0 || amount > maxAmount {
			return nil, fmt.Errorf("label %s %q: expected NAME=NUMBER, with commas between, such as gpu=2,fpga=1", resourcesLabel, text[:min(len(text), maxQuoted)])
		}
		if slices.ContainsFunc(list, func(d demand) bool { return d.Name == name }) || len(list) == maxResources {
			return nil, fmt.Errorf("label %s %q: each name may be there once, and %d in all", resourcesLabel, text[:min(len(text), maxQuoted)], maxResources)
		}
		list = append(list, demand{Name: name, Amount: amount})
	}
	return list, nil
}

// supply is how many of one thing a node has; devices are their IDs, if these are known.
type supply struct {
	amount  int64
	devices []string
}

// parseSupply reads the value of a node's label resource.NAME: a number, or the IDs of
// the devices with commas between.
func parseSupply(key, value string) (name string, s supply, err error) {
	name = resourceName(strings.TrimPrefix(key, resourceLabel))
	value = strings.TrimSpace(value)
	whole := key + "=" + value
	wrong := fmt.Errorf("label %q: expected resource.NAME=NUMBER, or device IDs with commas between, such as resource.gpu=2 or resource.gpu=GPU-1,GPU-2", whole[:min(len(whole), maxQuoted)])
	if name == "" || value == "" {
		return "", s, wrong
	}
	if s.amount, err = strconv.ParseInt(value, 10, 64); err == nil {
		if s.amount < 0 || s.amount > maxAmount {
			return "", s, wrong
		}
		return name, s, nil
	}
	for _, id := range strings.Split(value, ",") {
		id = strings.TrimSpace(id)
		if !validDevice(id) || slices.Contains(s.devices, id) || len(s.devices) == maxDevices {
			return "", s, wrong
		}
		s.devices = append(s.devices, id)
	}
	s.amount = int64(len(s.devices))
	return name, s, nil
}

// checkResourceLabel refuses a label of a node that is to say what the node has, and does not.
func checkResourceLabel(key, value string) error {
	if !strings.HasPrefix(key, resourceLabel) {
		return nil
	}
	_, _, err := parseSupply(key, value)
	return err
}

// engineResources is what an engine reports of countable things in /info: what its
// operator gave it as generic resources, and the CDI devices it found (API 1.50).
type engineResources struct {
	GenericResources []struct {
		NamedResourceSpec    *struct{ Kind, Value string }
		DiscreteResourceSpec *struct {
			Kind  string
			Value int64
		}
	}
	DiscoveredDevices []struct{ Source, ID string }
}

// supplies adds up what an engine reports, by name. Generic resources, which a person
// wrote down, come before what was found.
func (r *engineResources) supplies() map[string]supply {
	found := map[string]supply{}
	for name, byVendor := range r.cdiDevices() {
		var s supply
		for _, devices := range byVendor {
			s.amount += int64(len(devices))
			s.devices = devices
		}
		if len(byVendor) > 1 {
			s.devices = nil // 0 of the one is not 0 of the other
		}
		found[name] = s
	}
	generic := map[string]supply{}
	for _, g := range r.GenericResources {
		switch named, discrete := g.NamedResourceSpec, g.DiscreteResourceSpec; {
		case named != nil && resourceName(named.Kind) != "" && validDevice(named.Value):
			s := generic[resourceName(named.Kind)]
			if !slices.Contains(s.devices, named.Value) && len(s.devices) < maxDevices {
				s.devices = append(s.devices, named.Value)
				s.amount++
			}
			generic[resourceName(named.Kind)] = s
		case discrete != nil && resourceName(discrete.Kind) != "":
			generic[resourceName(discrete.Kind)] = supply{amount: min(max(discrete.Value, 0), maxAmount)}
		}
	}
	for name, s := range generic {
		found[name] = s
	}
	return found
}

// cdiDevices sorts CDI devices by class and vendor. One device may be there under its
// number, under its UUID and within "all": the numbers count if there are any.
func (r *engineResources) cdiDevices() map[string]map[string][]string {
	found := map[string]map[string][]string{}
	for _, d := range r.DiscoveredDevices {
		class, device, ok := cutCDI(d.ID)
		if !ok || device == "all" || !validDevice(device) {
			continue
		}
		vendor, _, _ := strings.Cut(d.ID, "/")
		if found[class] == nil {
			found[class] = map[string][]string{}
		}
		if list := found[class][vendor]; len(list) < maxDevices && !slices.Contains(list, device) {
			found[class][vendor] = append(list, device)
		}
	}
	for _, byVendor := range found {
		for vendor, list := range byVendor {
			isNumber := func(id string) bool { _, err := strconv.ParseUint(id, 10, 32); return err == nil }
			if slices.ContainsFunc(list, isNumber) {
				byVendor[vendor] = slices.DeleteFunc(list, func(id string) bool { return !isNumber(id) })
			}
		}
	}
	return found
}

// handOut writes into a create's body the devices that were picked for its device
// requests, by their number: IDs in place of a count, of which an engine gives
// everyone the first ones. All else stays as it came.
func handOut(body []byte, picked map[int][]string) ([]byte, error) {
	if len(picked) == 0 {
		return body, nil
	}
	return editWithin(body, "HostConfig", "DeviceRequests", func(value json.RawMessage) (any, error) {
		var list []json.RawMessage
		if err := json.Unmarshal(value, &list); err != nil {
			return nil, err
		}
		for at, ids := range picked {
			request, err := parseObject(list[at-1])
			if err != nil {
				return nil, err
			}
			list[at-1] = request.without("Count").with("DeviceIDs", ids).bytes()
		}
		return list, nil
	})
}
