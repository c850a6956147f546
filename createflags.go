package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
	units "github.com/docker/go-units"
)

// createFlags reads the command line of docker create and docker run into the
// request that the CLI would send, as far as placement looks at it. Flags that
// placement does not read are known by their arity, so that the image is found
// behind them.
type createFlags struct {
	body  createRequest
	query url.Values
	own   []string // flags of the command itself: -db FILE, -json, …
}

// createRequest is the body of a create, in the API's spelling.
type createRequest struct {
	Image        string
	Env          []string            `json:",omitempty"`
	Labels       map[string]string   `json:",omitempty"`
	ExposedPorts map[string]struct{} `json:",omitempty"`
	HostConfig   struct {
		NanoCpus          int64                    `json:",omitempty"`
		CpuShares         int64                    `json:",omitempty"`
		CpuQuota          int64                    `json:",omitempty"`
		CpuPeriod         int64                    `json:",omitempty"`
		Memory            int64                    `json:",omitempty"`
		MemoryReservation int64                    `json:",omitempty"`
		PortBindings      map[string][]portBinding `json:",omitempty"`
		NetworkMode       string                   `json:",omitempty"`
		IpcMode           string                   `json:",omitempty"`
		PidMode           string                   `json:",omitempty"`
		VolumesFrom       []string                 `json:",omitempty"`
		Links             []string                 `json:",omitempty"`
		Binds             []string                 `json:",omitempty"`
		Mounts            []createMount            `json:",omitempty"`
		Runtime           string                   `json:",omitempty"`
		DeviceRequests    []map[string]any         `json:",omitempty"`
	}
	NetworkingConfig struct {
		EndpointsConfig map[string]struct{} `json:",omitempty"`
	}
}

type createMount struct{ Type, Source, Target string }

// shortFlags are the one-letter names of docker create and docker run.
var shortFlags = map[byte]string{
	'a': "attach", 'c': "cpu-shares", 'd': "detach", 'e': "env", 'h': "hostname", 'i': "interactive", 'l': "label",
	'm': "memory", 'p': "publish", 'P': "publish-all", 'q': "quiet", 't': "tty", 'u': "user", 'v': "volume", 'w': "workdir",
}

// switches take no value, or one after =.
var switches = strings.Fields(`detach disable-content-trust init interactive no-healthcheck oom-kill-disable
	privileged publish-all quiet read-only rm sig-proxy tty use-api-socket`)

// unread take a value that placement does not look at.
var unread = strings.Fields(`add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns
	cidfile cpu-count cpu-percent cpu-rt-period cpu-rt-runtime cpuset-cpus cpuset-mems detach-keys device-cgroup-rule
	device-read-bps device-read-iops device-write-bps device-write-iops dns dns-opt dns-option dns-search domainname entrypoint
	group-add health-cmd health-interval health-retries health-start-interval health-start-period health-timeout hostname
	io-maxbandwidth io-maxiops ip ip6 isolation kernel-memory link-local-ip log-driver log-opt mac-address memory-swap
	memory-swappiness net-alias network-alias oom-score-adj pids-limit pull restart security-opt shm-size stop-signal
	stop-timeout storage-opt sysctl tmpfs ulimit user userns uts volume-driver workdir`)

// readFlags are those that placement looks at.
var readFlags = map[string]func(c *createFlags, value string) error{
	"name":               func(c *createFlags, v string) error { c.query.Set("name", v); return nil },
	"platform":           func(c *createFlags, v string) error { c.query.Set("platform", v); return nil },
	"env":                (*createFlags).env,
	"env-file":           func(c *createFlags, v string) error { return eachLine(v, c.env) },
	"label":              (*createFlags).label,
	"label-file":         func(c *createFlags, v string) error { return eachLine(v, c.label) },
	"memory":             func(c *createFlags, v string) error { return bytesFlag(&c.body.HostConfig.Memory, v) },
	"memory-reservation": func(c *createFlags, v string) error { return bytesFlag(&c.body.HostConfig.MemoryReservation, v) },
	"cpus":               (*createFlags).cpus,
	"cpu-shares":         func(c *createFlags, v string) error { return numberFlag(&c.body.HostConfig.CpuShares, v) },
	"cpu-quota":          func(c *createFlags, v string) error { return numberFlag(&c.body.HostConfig.CpuQuota, v) },
	"cpu-period":         func(c *createFlags, v string) error { return numberFlag(&c.body.HostConfig.CpuPeriod, v) },
	"publish":            (*createFlags).publish,
	"expose":             (*createFlags).expose,
	"network":            (*createFlags).network,
	"net":                (*createFlags).network,
	"volume":             (*createFlags).volume,
	"mount":              (*createFlags).mount,
	"gpus":               (*createFlags).gpus,
	"device":             (*createFlags).device,
	"ipc":                func(c *createFlags, v string) error { c.body.HostConfig.IpcMode = v; return nil },
	"pid":                func(c *createFlags, v string) error { c.body.HostConfig.PidMode = v; return nil },
	"runtime":            func(c *createFlags, v string) error { c.body.HostConfig.Runtime = v; return nil },
	"link": func(c *createFlags, v string) error {
		c.body.HostConfig.Links = append(c.body.HostConfig.Links, v)
		return nil
	},
	"volumes-from": func(c *createFlags, v string) error {
		c.body.HostConfig.VolumesFrom = append(c.body.HostConfig.VolumesFrom, v)
		return nil
	},
}

// parse reads args up to the image, as pflag does: --name value, --name=value,
// -it, -p80:80. What follows the image is the container's command. own are the
// command's own flags, and whether they take a value: with one dash or two, they are
// collected. -h alone asks for help; elsewhere it is docker's host name.
func (c *createFlags) parse(args []string, own map[string]bool) error {
	c.query = url.Values{}
	if len(args) == 1 && args[0] == "-h" {
		c.own = args
		return nil
	}
	for len(args) > 0 {
		arg := args[0]
		name, _, valued := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		takes, mine := own[name]
		switch {
		case mine && arg[0] == '-':
			n := 1
			if takes && !valued {
				n = min(2, len(args)) // what is missing is told when the command reads its flags
			}
			c.own, args = append(c.own, args[:n]...), args[n:]
			continue
		case arg == "--":
			args = args[1:]
		case strings.HasPrefix(arg, "--"):
			used, err := c.long(arg[2:], args[1:])
			if err != nil {
				return err
			}
			args = args[1+used:]
			continue
		case len(arg) > 1 && arg[0] == '-':
			used, err := c.short(arg[1:], args[1:])
			if err != nil {
				return err
			}
			args = args[1+used:]
			continue
		}
		break
	}
	if len(args) == 0 {
		return errors.New("expected an image behind the flags")
	}
	c.body.Image = args[0]
	return nil
}

// long sets one flag and tells how many of the arguments behind it were used.
func (c *createFlags) long(flag string, rest []string) (used int, err error) {
	name, value, valued := strings.Cut(flag, "=")
	if slices.Contains(switches, name) {
		return 0, nil
	}
	if readFlags[name] == nil && !slices.Contains(unread, name) {
		return 0, fmt.Errorf("unknown flag: --%s", name)
	}
	if !valued {
		if len(rest) == 0 {
			return 0, fmt.Errorf("flag needs an argument: --%s", name)
		}
		value, used = rest[0], 1
	}
	return used, c.set(name, value)
}

// short sets a bundle of one-letter flags, of which the last may take a value.
func (c *createFlags) short(bundle string, rest []string) (used int, err error) {
	for i := range len(bundle) {
		name := shortFlags[bundle[i]]
		if name == "" {
			return 0, fmt.Errorf("unknown shorthand flag: %q in -%s", bundle[i], bundle)
		}
		value := bundle[i+1:]
		if slices.Contains(switches, name) {
			if strings.HasPrefix(value, "=") {
				return 0, nil
			}
			continue
		}
		if value == "" {
			if len(rest) == 0 {
				return 0, fmt.Errorf("flag needs an argument: %q in -%s", bundle[i], bundle)
			}
			value, used = rest[0], 1
		}
		return used, c.set(name, strings.TrimPrefix(value, "="))
	}
	return 0, nil
}

func (c *createFlags) set(name, value string) error {
	read := readFlags[name]
	if read == nil {
		return nil
	}
	if err := read(c, value); err != nil {
		return fmt.Errorf("invalid argument %q for --%s: %w", value, name, err)
	}
	return nil
}

// eachLine reads an --env-file or --label-file: a line each, # comments.
func eachLine(path string, do func(string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return plain(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := do(line); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (c *createFlags) env(v string) error {
	c.body.Env = append(c.body.Env, v)
	return nil
}

func (c *createFlags) label(v string) error {
	if c.body.Labels == nil {
		c.body.Labels = map[string]string{}
	}
	key, value, _ := strings.Cut(v, "=")
	c.body.Labels[key] = value
	return nil
}

func bytesFlag(into *int64, v string) (err error) {
	*into, err = units.RAMInBytes(v)
	return err
}

func numberFlag(into *int64, v string) (err error) {
	*into, err = strconv.ParseInt(v, 0, 64)
	return err
}

func (c *createFlags) cpus(v string) error {
	cpus, ok := new(big.Rat).SetString(v)
	if !ok {
		return errors.New("expected a number such as 1.5")
	}
	nano := cpus.Mul(cpus, big.NewRat(1e9, 1))
	if !nano.IsInt() || !nano.Num().IsInt64() {
		return errors.New("expected a number with up to nine decimals")
	}
	c.body.HostConfig.NanoCpus = nano.Num().Int64()
	return nil
}

// publish reads 8080:80/tcp in all its forms, and published=8080,target=80.
func (c *createFlags) publish(v string) error {
	if strings.Contains(v, "=") {
		fields, err := csvFields(v)
		if err != nil {
			return err
		}
		v = fields["published"] + ":" + fields["target"]
		if fields["protocol"] != "" {
			v += "/" + fields["protocol"]
		}
	}
	exposed, bindings, err := nat.ParsePortSpecs([]string{v})
	if err != nil {
		return err
	}
	for port := range exposed {
		c.exposePort(string(port))
	}
	if c.body.HostConfig.PortBindings == nil {
		c.body.HostConfig.PortBindings = map[string][]portBinding{}
	}
	for port, list := range bindings {
		for _, b := range list {
			c.body.HostConfig.PortBindings[string(port)] = append(c.body.HostConfig.PortBindings[string(port)], portBinding{b.HostIP, b.HostPort})
		}
	}
	return nil
}

// expose reads 80, 80-90 and 53/udp.
func (c *createFlags) expose(v string) error {
	protocol, ports := nat.SplitProtoPort(v)
	first, last, err := nat.ParsePortRange(ports)
	if err != nil {
		return err
	}
	for port := first; port <= last; port++ {
		c.exposePort(fmt.Sprintf("%d/%s", port, protocol))
	}
	return nil
}

func (c *createFlags) exposePort(port string) {
	if c.body.ExposedPorts == nil {
		c.body.ExposedPorts = map[string]struct{}{}
	}
	c.body.ExposedPorts[port] = struct{}{}
}

// network reads NAME, and name=NAME,alias=…; the first is the mode, more are joined as well.
func (c *createFlags) network(v string) error {
	if strings.Contains(v, "=") {
		fields, err := csvFields(v)
		if err != nil {
			return err
		}
		if v = fields["name"]; v == "" {
			return errors.New("expected name=NETWORK")
		}
	}
	if c.body.HostConfig.NetworkMode == "" {
		c.body.HostConfig.NetworkMode = v
	}
	if strings.HasPrefix(v, "container:") {
		return nil
	}
	if c.body.NetworkingConfig.EndpointsConfig == nil {
		c.body.NetworkingConfig.EndpointsConfig = map[string]struct{}{}
	}
	c.body.NetworkingConfig.EndpointsConfig[v] = struct{}{}
	return nil
}

func (c *createFlags) volume(v string) error {
	if strings.Contains(v, ":") { // else it is a new one without a name
		if strings.HasPrefix(v, ".") { // a path of the host where the command runs, not a volume's name
			at, err := filepath.Abs(".")
			if err != nil {
				return err
			}
			v = at + "/" + v
		}
		c.body.HostConfig.Binds = append(c.body.HostConfig.Binds, v)
	}
	return nil
}

func (c *createFlags) mount(v string) error {
	fields, err := csvFields(v)
	if err != nil {
		return err
	}
	pick := func(names ...string) string {
		for _, name := range names {
			if fields[name] != "" {
				return fields[name]
			}
		}
		return ""
	}
	m := createMount{pick("type"), pick("source", "src"), pick("target", "destination", "dst")}
	if m.Type == "" {
		m.Type = "volume"
	}
	if m.Target == "" {
		return errors.New("expected target=PATH")
	}
	c.body.HostConfig.Mounts = append(c.body.HostConfig.Mounts, m)
	return nil
}

// gpus reads all, 2, and count=2,device=…,driver=…,capabilities=….
func (c *createFlags) gpus(v string) error {
	request := map[string]any{"Capabilities": [][]string{{"gpu"}}}
	record, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		return err
	}
	for _, field := range record {
		key, value, valued := strings.Cut(field, "=")
		if !valued {
			key, value = "count", key
		}
		switch key {
		case "count":
			count := -1
			if value != "all" {
				if count, err = strconv.Atoi(value); err != nil {
					return fmt.Errorf("count %q: expected a number, or all", value)
				}
			}
			request["Count"] = count
		case "device":
			request["DeviceIDs"] = strings.Split(value, ",")
		case "driver":
			request["Driver"] = value
		case "capabilities":
			request["Capabilities"] = [][]string{append(strings.Split(value, ","), "gpu")}
		case "options":
		default:
			return fmt.Errorf("unexpected key %q", key)
		}
	}
	if request["Count"] == nil && request["DeviceIDs"] == nil {
		request["Count"] = 1
	}
	c.body.HostConfig.DeviceRequests = append(c.body.HostConfig.DeviceRequests, request)
	return nil
}

// device reads a CDI device, vendor.com/class=name; others are files of the host. All of
// them are one request.
func (c *createFlags) device(v string) error {
	if _, _, ok := cutCDI(v); !ok {
		return nil
	}
	requests := &c.body.HostConfig.DeviceRequests
	for _, r := range *requests {
		if ids, ok := r["DeviceIDs"].([]string); ok && r["Driver"] == "cdi" {
			r["DeviceIDs"] = append(ids, v)
			return nil
		}
	}
	*requests = append(*requests, map[string]any{"Driver": "cdi", "DeviceIDs": []string{v}})
	return nil
}

// csvFields reads a=b,c=d as the CLI does, quotes included; a key alone has no value.
func csvFields(v string) (map[string]string, error) {
	record, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for _, field := range record {
		key, value, _ := strings.Cut(field, "=")
		fields[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return fields, nil
}
