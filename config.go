package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"
)

// config is the command line, understood.
type config struct {
	addresses  []string // of engines, from the command line
	hosts      []string
	nodes      string
	sshConfig  string
	debug      string
	db         string
	strategy   string
	filters    []string
	overcommit float64
	names      string
	infoNodes  int
	images     string
	allowHosts []string
	insecure   bool

	wait         time.Duration
	countStopped bool
	cpuShares    string
	groupBy      []string
	relayPorts   bool

	rescheduleAfter time.Duration
	drain           string
	history         history

	tls, tlsVerify  bool
	client          certFiles
	engineTLSVerify bool
	engine          certFiles

	logLevel, logFormat string
}

// stringList is a flag that may be given again and again.
type stringList []string

func (l *stringList) String() string     { return strings.Join(*l, ",") }
func (l *stringList) Set(s string) error { *l = append(*l, s); return nil }

const usage = `swarmlite makes many Docker hosts one Docker endpoint.

Usage:
  swarmlite [flags] [ADDRESS ...]   run the manager over these engines
  swarmlite manage …                the same
  swarmlite explain [docker run flags] IMAGE
                                    show where a container would go, and why
  swarmlite simulate                show where containers would have gone under another
                                    strategy or set of nodes, or how many more would fit
  swarmlite drain -dry-run NODE     show what a drain would move, and what would stay
  swarmlite sql 'select …'          query the database, read-only
  swarmlite list                    list the nodes, from the database
  swarmlite node add ADDRESS        add a node to the cluster; node rm takes one out
  swarmlite token                   make a token with which hosts join
  swarmlite join                    run on a host: register it and keep it registered
  swarmlite version                 print the version

ADDRESS is tcp://host:port, host:port, unix:///path, ssh://user@host:port/socket, or
dns://name:port (every host of that name; dns://name by SRV records); host[1:9]:2375 is
a range. Options may follow it: name=NAME, label=KEY:VALUE, tls=DIR (ca.pem, cert.pem,
key.pem) or tls=off, skip-verify.
With no address and no -nodes file it is the local engine: DOCKER_HOST, else
unix:///var/run/docker.sock.

Flags:
`

// readConfig reads flags, then SWARMLITE_* for those not given, then the -config file.
func readConfig(args []string, stderr io.Writer) (*config, error) {
	c := &config{}
	fs := flag.NewFlagSet("swarmlite", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Var((*stringList)(&c.hosts), "host", "where to listen: `ADDR` is tcp://host:port or unix:///path; repeatable, -H for short\n(default tcp://127.0.0.1:2375, or tcp://:2376 with -tlsverify)")
	fs.StringVar(&c.nodes, "nodes", "", "`FILE` with one engine address a line and its options, # comments;\nread again when it changes")
	fs.StringVar(&c.sshConfig, "ssh-config", "", "`FILE` for ssh to nodes with an ssh:// address, instead of ~/.ssh/config")
	fs.StringVar(&c.debug, "debug", "", "`ADDR`, on loopback or unix:///path, for /metrics (Prometheus) and /debug/pprof/; off by default")
	fs.StringVar(&c.db, "db", defaultDB, "the SQLite `FILE` that holds all state; one manager a file")
	fs.StringVar(&c.strategy, "strategy", "spread", "`NAME` of the order among nodes that fit: spread, binpack, random,\nor a file that ends in .sql: one SELECT of node and score, lowest first")
	fs.Var((*stringList)(&c.filters), "filter", "`NAME` of a filter to use instead of all; repeatable:\n"+strings.Join(filterList(filters), ", "))
	fs.Float64Var(&c.overcommit, "overcommit", 0.05, "`RATIO` of CPUs and memory to promise beyond what a node has")
	fs.DurationVar(&c.wait, "wait", 0, "`DURATION` that a create waits for room when no node fits, as in 10m;\nits label com.docker.swarm.wait comes first")
	fs.BoolVar(&c.countStopped, "count-stopped", false, "stopped containers take room, too")
	fs.StringVar(&c.cpuShares, "cpu-shares", "weights", "`MEANING` of docker run --cpu-shares: weights (which reserve nothing)\nor cores (whole CPUs, as in classic Swarm)")
	fs.BoolVar(&c.relayPorts, "relay-ports", false, "make published ports reachable on the manager's own address")
	c.history = history{90 * day, 1_000_000}
	fs.Var(&c.history, "history", "`AGE/ROWS` of past placements to keep, 0 for no limit")
	fs.Var((*stringList)(&c.groupBy), "group-by", "`LABEL` whose value makes a group: containers, networks and volumes that belong on one node;\nrepeatable (default "+strings.Join(defaultGroupLabels, ", ")+")")
	fs.StringVar(&c.names, "names", "plain", "`FORM` of container names in lists: plain, both (name and node/name) or node (node/name)")
	fs.IntVar(&c.infoNodes, "info-nodes", 50, "`NUMBER` of nodes that docker info shows; the view cluster has all")
	fs.StringVar(&c.images, "images", "shared", "`WAY` of pull, load and import: shared (to one node, copied where it is needed)\nor every-node (to all healthy nodes at once)")
	fs.DurationVar(&c.rescheduleAfter, "reschedule-after", 30*time.Second, "`DURATION` that a node must have been lost for before its containers with the policy\non-node-failure are made anew elsewhere")
	fs.StringVar(&c.drain, "drain", "policy", "`WHICH` containers a drain moves: policy (those with a reschedule policy)\nor recreate (all that have nothing on their host)")
	fs.BoolVar(&c.tls, "tls", false, "serve clients over TLS")
	fs.BoolVar(&c.tlsVerify, "tlsverify", false, "serve clients over TLS and demand certificates of them")
	fs.StringVar(&c.client.ca, "tlscacert", "", "`FILE` with the CA that signed the clients' certificates")
	fs.StringVar(&c.client.cert, "tlscert", "", "`FILE` with the certificate shown to clients")
	fs.StringVar(&c.client.key, "tlskey", "", "`FILE` with its key")
	fs.BoolVar(&c.engineTLSVerify, "engine-tlsverify", false, "talk to engines over TLS and check their certificates")
	fs.StringVar(&c.engine.ca, "engine-tlscacert", "", "`FILE` with the CA that signed the engines' certificates")
	fs.StringVar(&c.engine.cert, "engine-tlscert", "", "`FILE` with the certificate shown to engines")
	fs.StringVar(&c.engine.key, "engine-tlskey", "", "`FILE` with its key")
	fs.BoolVar(&c.insecure, "insecure", false, "allow plain TCP on an address that other hosts can reach")
	fs.Var((*stringList)(&c.allowHosts), "allow-host", "host `NAME` that clients may call a loopback listener by; repeatable")
	fs.StringVar(&c.logLevel, "log-level", "info", "`LEVEL`: debug, info, warn or error")
	fs.StringVar(&c.logFormat, "log-format", "text", "`FORMAT`: text or json")
	fs.String("config", "", "`FILE` with flags, one a line: name value")
	fs.Usage = func() {}
	err := ff.Parse(fs, longHost(args), ff.WithEnvVarPrefix("SWARMLITE"), ff.WithEnvVarSplit(","),
		ff.WithConfigFileFlag("config"), ff.WithConfigFileParser(ff.PlainParser))
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(stderr)
		fmt.Fprint(stderr, usage)
		fs.PrintDefaults()
		fmt.Fprintln(stderr, "\nEvery flag is also read from SWARMLITE_NAME, with _ for -.")
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%s; swarmlite -h lists the flags", strings.TrimPrefix(err.Error(), "error parsing commandline arguments: "))
	}
	c.addresses = fs.Args()
	if len(c.groupBy) == 0 {
		c.groupBy = defaultGroupLabels
	}
	return c, c.check()
}

// longHost makes -H the short form of -host.
func longHost(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		if a == "--" {
			break
		}
		name, value, valued := strings.Cut(a, "=")
		if name == "-H" || name == "--H" {
			out[i] = "-host"
			if valued {
				out[i] += "=" + value
			}
		}
	}
	return out
}

// check finds contradictions before anything is touched.
func (c *config) check() error {
	for _, a := range c.addresses {
		if strings.HasPrefix(a, "-") {
			return fmt.Errorf("flag %s after an address: flags go before addresses", a)
		}
	}
	pairs := []struct {
		name  string
		given bool
		needs string
		there bool
	}{
		{"-tlscert", c.client.cert != "", "-tlskey", c.client.key != ""},
		{"-tlskey", c.client.key != "", "-tlscert", c.client.cert != ""},
		{"-tlscert", c.client.cert != "", "-tls or -tlsverify", c.tls || c.tlsVerify},
		{"-tlscacert", c.client.ca != "", "-tlsverify", c.tlsVerify},
		{"-tls", c.tls, "-tlscert", c.client.cert != ""},
		{"-tlsverify", c.tlsVerify, "-tlscert", c.client.cert != ""},
		{"-tlsverify", c.tlsVerify, "-tlscacert", c.client.ca != ""},
		{"-engine-tlscert", c.engine.cert != "", "-engine-tlskey", c.engine.key != ""},
		{"-engine-tlskey", c.engine.key != "", "-engine-tlscert", c.engine.cert != ""},
		{"-engine-tlscert", c.engine.cert != "", "-engine-tlsverify", c.engineTLSVerify},
		{"-engine-tlscacert", c.engine.ca != "", "-engine-tlsverify", c.engineTLSVerify},
		{"-engine-tlsverify", c.engineTLSVerify, "-engine-tlscacert", c.engine.ca != ""},
	}
	for _, p := range pairs {
		if p.given && !p.there {
			return fmt.Errorf("%s needs %s as well", p.name, p.needs)
		}
	}
	switch {
	case c.overcommit <= -1:
		return fmt.Errorf("-overcommit %g: expected more than -1; 0.05 promises 105 %% of a node", c.overcommit)
	case c.overcommit != c.overcommit || c.overcommit > 1000:
		return fmt.Errorf("-overcommit %g: expected a ratio such as 0.05", c.overcommit)
	case c.wait < 0:
		return fmt.Errorf("-wait %s: expected a duration such as 10m, or 0", c.wait)
	case !slices.Contains([]string{"weights", "cores"}, c.cpuShares):
		return fmt.Errorf("-cpu-shares %q: expected weights or cores", c.cpuShares)
	case c.rescheduleAfter < 0:
		return fmt.Errorf("-reschedule-after %s: expected a duration such as 30s", c.rescheduleAfter)
	case !slices.Contains([]string{"policy", "recreate"}, c.drain):
		return fmt.Errorf("-drain %q: expected policy or recreate", c.drain)
	case !slices.Contains([]string{"plain", "both", "node"}, c.names):
		return fmt.Errorf("-names %q: expected plain, both or node", c.names)
	case c.infoNodes < 0:
		return fmt.Errorf("-info-nodes %d: expected a number of nodes", c.infoNodes)
	case !slices.Contains([]string{"shared", "every-node"}, c.images):
		return fmt.Errorf("-images %q: expected shared or every-node", c.images)
	case !slices.Contains([]string{"text", "json"}, c.logFormat):
		return fmt.Errorf("-log-format %q: expected text or json", c.logFormat)
	case c.db == "":
		return errors.New("-db is empty: name a file")
	}
	if err := new(slog.Level).UnmarshalText([]byte(c.logLevel)); err != nil {
		return fmt.Errorf("-log-level %q: expected debug, info, warn or error", c.logLevel)
	}
	if _, err := newScheduler(nil, nil, c.strategy, c.filters); err != nil {
		return fmt.Errorf("-%w", err)
	}
	return nil
}

func (c *config) logger(stderr io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(c.logLevel)) // checked before
	opts := &slog.HandlerOptions{Level: level}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(stderr, opts))
	}
	return slog.New(slog.NewTextHandler(stderr, opts))
}

// secure tells whether clients are served over TLS.
func (c *config) secure() bool { return c.tls || c.tlsVerify }

// listenAddresses are where to listen, in canonical form, checked against S1.
func (c *config) listenAddresses(log *slog.Logger) ([]string, error) {
	hosts := c.hosts
	switch {
	case len(hosts) == 0 && c.tlsVerify:
		hosts = []string{"tcp://:2376"}
	case len(hosts) == 0 && c.tls:
		hosts = []string{"tcp://127.0.0.1:2376"}
	case len(hosts) == 0:
		hosts = []string{"tcp://127.0.0.1:2375"}
	}
	var list []string
	for _, h := range hosts {
		addr, err := parseListen(h, c.secure())
		if err != nil {
			return nil, err
		}
		warn, err := checkListen(addr, c.tlsVerify, c.insecure)
		if err != nil {
			return nil, err
		}
		if warn {
			log.Warn("anyone who reaches this address is root on every node: it has no client certificates", "addr", addr)
		}
		list = append(list, addr)
	}
	if c.relayPorts && !slices.ContainsFunc(list, func(addr string) bool { return strings.HasPrefix(addr, "tcp://") }) {
		return nil, errNoRelayAddress
	}
	return list, nil
}

// engines are the nodes of the command line and of the file.
func (c *config) engines(getenv func(string) string, listening []string) (fixed, fromFile []nodeLine, err error) {
	given := c.addresses
	if len(given) == 0 && c.nodes == "" {
		given = []string{localAddress(getenv)}
		if l, err := parseNodes(given, c.engineTLSVerify); err == nil && slices.Contains(listening, l[0].address) {
			return nil, nil, fmt.Errorf("DOCKER_HOST (%s) is where swarmlite itself is to listen: unset it, or name the engines", given[0])
		}
	}
	if fixed, err = parseNodes(given, c.engineTLSVerify); err != nil {
		return nil, nil, err
	}
	if c.nodes != "" {
		if fromFile, err = readNodeFile(c.nodes, c.engineTLSVerify); err != nil {
			return nil, nil, err
		}
	}
	return fixed, fromFile, nil
}
