package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// hostConfig is what placement reads of a container's HostConfig, in a create
// body and in an inspect.
type hostConfig struct {
	NanoCpus          int64
	CpuQuota          int64
	CpuPeriod         int64
	CpuShares         int64
	Memory            int64
	MemoryReservation int64
	PortBindings      map[string][]portBinding
	NetworkMode       string
	IpcMode           string
	PidMode           string
	VolumesFrom       []string
	Links             []string
	Binds             []string
	Mounts            []struct{ Type, Source, Target string }
	Runtime           string
	DeviceRequests    []deviceRequest
}

type portBinding struct{ HostIp, HostPort string }

// defaultPeriod is the kernel's CPU period, in microseconds, where a quota comes without one.
const defaultPeriod = 100_000

// nanoCPUs is what a container reserves, in units of 1e-9 CPU: NanoCpus, else
// quota over period. CpuShares are weights and reserve nothing, but see cpushares.go.
func (h *hostConfig) nanoCPUs() int64 {
	if h.NanoCpus > 0 {
		return h.NanoCpus
	}
	if h.CpuQuota <= 0 {
		return 0
	}
	period := h.CpuPeriod
	if period <= 0 {
		period = defaultPeriod
	}
	return int64(min(float64(h.CpuQuota)/float64(period)*1e9, math.MaxInt64/2)) // an absurd quota fits nowhere
}

// fullShares is the weight of a container that has all CPUs of its node.
const fullShares = 1024

// wholeCPUs is a number of CPUs in units of 1e-9 CPU; an absurd one fits nowhere.
func wholeCPUs(n int64) int64 { return int64(min(float64(n)*1e9, math.MaxInt64/2)) }

// reservedCPUs is nanoCPUs of a container as its engine tells it. cpus are those of a
// node whose containers' shares are CPUs, else 0.
func (h *hostConfig) reservedCPUs(cpus int64) int64 {
	if asked := h.nanoCPUs(); asked > 0 || cpus == 0 {
		return asked
	}
	return wholeCPUs(sharedCPUs(h.CpuShares, cpus))
}

// sharedCPUs are the CPUs that shares stand for on a node with so many, rounded down.
func sharedCPUs(shares, cpus int64) int64 {
	return int64(max(float64(shares)*float64(cpus)/fullShares, 0))
}

// withShares writes other CpuShares into a create's body that has some.
func withShares(body []byte, shares int64) ([]byte, error) {
	return editWithin(body, "HostConfig", "CpuShares", func(json.RawMessage) (any, error) { return shares, nil })
}

// memoryBytes is what a container reserves: the reservation, else the limit.
func (h *hostConfig) memoryBytes() int64 {
	if h.MemoryReservation > 0 {
		return h.MemoryReservation
	}
	return max(h.Memory, 0)
}

// namespaces are the containers whose PID and IPC namespaces it joins, as named, by kind.
func (h *hostConfig) namespaces() map[string]string {
	joined := map[string]string{}
	for kind, mode := range map[string]string{"PID": h.PidMode, "IPC": h.IpcMode} {
		if owner, ok := strings.CutPrefix(mode, "container:"); ok && owner != "" {
			joined[kind] = owner
		}
	}
	return joined
}

// hostPort is a port, or a range to pick one from, on a node's address.
type hostPort struct {
	ip          string // "" = every address; hostMode
	first, last int
	protocol    string
}

func (p hostPort) String() string {
	s := strconv.Itoa(p.first)
	if p.last != p.first {
		s += "-" + strconv.Itoa(p.last)
	}
	if p.ip != "" {
		s = p.ip + ":" + s
	}
	return s + "/" + p.protocol
}

// parseHostPort is the inverse of String.
func parseHostPort(s string) (p hostPort, err error) {
	ports, protocol, ok := strings.Cut(s, "/")
	if at := strings.LastIndexByte(ports, ':'); at >= 0 {
		p.ip, ports = ports[:at], ports[at+1:]
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	var errFirst, errLast error
	p.first, errFirst = strconv.Atoi(first)
	p.last, errLast = strconv.Atoi(last)
	p.protocol = protocol
	if !ok || errFirst != nil || errLast != nil {
		return p, fmt.Errorf("port %q: expected one such as 80/tcp or 127.0.0.1:8000-8010/udp", s)
	}
	return p, nil
}

// hostMode stands for the address of a port that nobody publishes: it is exposed by a
// container in the host's network. Such ports are in conflict with their like only,
// as in classic Swarm: whether a container uses what it exposes is not known.
const hostMode = "host"

// exposed lists the ports that a container in the host's network exposes.
func (h *hostConfig) exposed(ports map[string]struct{}) []hostPort {
	if h.NetworkMode != "host" {
		return nil
	}
	var list []hostPort
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		number, protocol, ok := strings.Cut(port, "/")
		if !ok {
			protocol = "tcp"
		}
		if n, err := strconv.Atoi(number); err == nil && n >= 1 && n <= 65535 {
			list = append(list, hostPort{hostMode, n, n, strings.ToLower(protocol)})
		}
	}
	return list
}

// ports lists the host ports that are asked for by number; those left to the
// engine (empty or 0) cannot be in conflict. What does not parse is the engine's to
// refuse; in the host's network nothing is published, whatever is asked for.
func (h *hostConfig) ports() []hostPort {
	if h.NetworkMode == "host" {
		return nil
	}
	var list []hostPort
	for _, port := range slices.Sorted(maps.Keys(h.PortBindings)) {
		_, protocol, ok := strings.Cut(port, "/")
		if !ok {
			protocol = "tcp"
		}
		for _, b := range h.PortBindings[port] {
			from, to, isRange := strings.Cut(b.HostPort, "-")
			first, err := strconv.Atoi(from)
			if err != nil || first < 1 || first > 65535 {
				continue
			}
			last := first
			if isRange {
				if last, err = strconv.Atoi(to); err != nil || last < first || last > 65535 {
					continue
				}
			}
			list = append(list, hostPort{everyIP(b.HostIp), first, last, strings.ToLower(protocol)})
		}
	}
	return list
}

// everyIP makes the ways to say "every address" one.
func everyIP(ip string) string {
	if ip == "0.0.0.0" || ip == "::" {
		return ""
	}
	return ip
}
