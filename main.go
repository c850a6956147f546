// Swarmlite makes many Docker hosts one Docker endpoint. It places containers
// with SQL, passes every other call to the engine that has the thing, and keeps
// what it knows in one SQLite file.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/peterbourgon/ff/v3"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "swarmlite: "+err.Error())
		os.Exit(1)
	}
}

// run is the program: a command, or the manager until a signal ends it.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		if command := commands[args[0]]; command != nil {
			return command(ctx, args[1:], os.Stdin, stdout, stderr)
		}
		switch args[0] {
		case "version":
			fmt.Fprintln(stdout, "swarmlite "+version)
			return nil
		case "help":
			args = []string{"-h"}
		case "manage":
			args = args[1:]
		}
	}
	conf, err := readConfig(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return manage(ctx, conf, getenv, stderr)
}

// commands are what swarmlite does beside being the manager. They read the
// manager's database, whether it runs or not, and change nothing.
var commands = map[string]func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error{
	"explain": explainCommand,
	"sql":     sqlCommand,
}

// config is the command line, understood.
type config struct {
	addresses  []string // of engines, from the command line
	hosts      []string
	nodes      string
	db         string
	strategy   string
	filters    []string
	overcommit float64
	names      string
	images     string
	allowHosts []string
	insecure   bool

	wait         time.Duration
	countStopped bool
	groupBy      []string
	relayPorts   bool

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
  swarmlite sql 'select …'          query the database, read-only
  swarmlite version                 print the version

ADDRESS is tcp://host:port, host:port, or unix:///path; host[1:9]:2375 is a range.
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
	fs.StringVar(&c.nodes, "nodes", "", "`FILE` with one engine address a line, # comments; read again when it changes")
	fs.StringVar(&c.db, "db", "swarmlite.db", "the SQLite `FILE` that holds all state; one manager a file")
	fs.StringVar(&c.strategy, "strategy", "spread", "`NAME` of the order among nodes that fit: spread, binpack, random,\nor a file that ends in .sql: one SELECT of node and score, lowest first")
	fs.Var((*stringList)(&c.filters), "filter", "`NAME` of a filter to use instead of all; repeatable:\n"+strings.Join(filterList(filters), ", "))
	fs.Float64Var(&c.overcommit, "overcommit", 0.05, "`RATIO` of CPUs and memory to promise beyond what a node has")
	fs.DurationVar(&c.wait, "wait", 0, "`DURATION` that a create waits for room when no node fits, as in 10m;\nits label com.docker.swarm.wait comes first")
	fs.BoolVar(&c.countStopped, "count-stopped", false, "stopped containers take room, too")
	fs.BoolVar(&c.relayPorts, "relay-ports", false, "make published ports reachable on the manager's own address")
	fs.Var((*stringList)(&c.groupBy), "group-by", "`LABEL` whose value makes a group: containers, networks and volumes that belong on one node;\nrepeatable (default "+strings.Join(defaultGroupLabels, ", ")+")")
	fs.StringVar(&c.names, "names", "plain", "`FORM` of container names in lists: plain, both (name and node/name) or node (node/name)")
	fs.StringVar(&c.images, "images", "shared", "`WAY` of pull, load and import: shared (to one node, copied where it is needed)\nor every-node (to all healthy nodes at once)")
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
	case !slices.Contains([]string{"plain", "both", "node"}, c.names):
		return fmt.Errorf("-names %q: expected plain, both or node", c.names)
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
	return list, nil
}

// engineAddresses are the nodes of the command line and of the file, in canonical form.
func (c *config) engineAddresses(getenv func(string) string, listening []string) (fixed, fromFile []string, err error) {
	given := c.addresses
	if len(given) == 0 && c.nodes == "" {
		given = []string{localAddress(getenv)}
		if addrs, err := parseNodes(given[0], c.engineTLSVerify); err == nil && slices.Contains(listening, addrs[0]) {
			return nil, nil, fmt.Errorf("DOCKER_HOST (%s) is where swarmlite itself is to listen: unset it, or name the engines", given[0])
		}
	}
	for _, a := range given {
		addrs, err := parseNodes(a, c.engineTLSVerify)
		if err != nil {
			return nil, nil, err
		}
		fixed = append(fixed, addrs...)
	}
	if c.nodes != "" {
		if fromFile, err = readNodeFile(c.nodes, c.engineTLSVerify); err != nil {
			return nil, nil, err
		}
	}
	return fixed, fromFile, nil
}

// union is both lists, doubles dropped.
func union(a, b []string) []string {
	var out []string
	for _, s := range slices.Concat(a, b) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// graceTime is how long calls under way may take after SIGTERM.
const graceTime = 8 * time.Second

// manage runs the manager until a signal. What can be wrong with the command line
// is found before the database is touched.
func manage(ctx context.Context, c *config, getenv func(string) string, stderr io.Writer) error {
	log := c.logger(stderr)
	listening, err := c.listenAddresses(log)
	if err != nil {
		return err
	}
	fixed, fromFile, err := c.engineAddresses(getenv, listening)
	if err != nil {
		return err
	}
	var clientCerts, engineCerts *certSource
	var serverTLS *tls.Config
	if c.secure() {
		if clientCerts, err = newCertSource(log, "client", c.client); err != nil {
			return err
		}
		serverTLS = clientCerts.serverConfig(c.tlsVerify)
	}
	if c.engineTLSVerify {
		if engineCerts, err = newCertSource(log, "engine", c.engine); err != nil {
			return err
		}
	}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, addr := range listening {
		conf := serverTLS
		if strings.HasPrefix(addr, "unix://") {
			conf = nil // the file's mode guards it
		}
		l, err := listen(ctx, addr, conf)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	store, err := openStore(ctx, c.db)
	if err != nil {
		return err
	}
	defer store.close()
	return serve(ctx, c, log, store, listening, listeners, fixed, fromFile, clientCerts, engineCerts)
}

// serve wires the program and runs it.
func serve(ctx context.Context, c *config, log *slog.Logger, store *store, listening []string, listeners []net.Listener,
	fixed, fromFile []string, clientCerts, engineCerts *certSource) error {
	base, cancel := context.WithCancel(ctx)
	defer cancel()
	sched, err := newScheduler(log, store, c.strategy, c.filters)
	if err != nil {
		return err
	}
	sched.wait = c.wait
	err = store.begin(base, managerRow{version, sched.strategy, strings.Join(filterList(sched.filters), ", "), c.overcommit, c.countStopped,
		c.groupBy, sched.file.sql(), c.relayPorts})
	if err != nil {
		return err
	}
	addresses := union(fixed, fromFile)
	stray, err := store.strayNodes(base, addresses)
	if err != nil {
		return err
	}
	for _, id := range stray {
		if _, err := store.removeNode(base, id); err != nil {
			return err
		}
	}
	ns := newNodes(log, store, engineCerts)
	defer ns.wait()
	defer cancel()
	if err := ns.set(base, addresses); err != nil {
		return err
	}
	reloads := watchReload(base)
	if c.nodes != "" {
		go watchNodeFile(base, log, c.nodes, c.engineTLSVerify, reloads(), func(list []string) {
			if err := ns.set(base, union(fixed, list)); err != nil && base.Err() == nil {
				log.Error("nodes not changed", "err", err)
			}
		})
	}
	for _, certs := range []*certSource{clientCerts, engineCerts} {
		if certs != nil {
			go certs.watch(base, reloads())
		}
	}
	cl := &cluster{log: log, store: store, nodes: ns, scheduler: sched, names: c.names, everyNode: c.images == "every-node", base: base}
	if c.relayPorts {
		if cl.relay, err = newPortRelay(log, store, listening); err != nil {
			return err
		}
		sched.portsOnce = true
		go cl.relay.run(base, ns.changed)
	}
	srv := newServer(newAPI(cl, log, version, c.allowHosts), log)
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- srv.Serve(l) }()
		log.Info("listening", "addr", l.Addr().Network()+"://"+l.Addr().String(), "db", c.db, "nodes", len(addresses))
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	case sig := <-signals:
		log.Info("stopping", "signal", sig.String())
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), graceTime)
		defer done()
		srv.Shutdown(grace)
	}()
	select {
	case <-stopped:
	case <-signals:
	}
	srv.Close()
	return nil
}

// newServer has the limits of S21; OPTIONS goes to the route table like all else (S12).
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            10 * time.Second,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               1 << 20,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// watchReload hands out channels that receive on every SIGHUP.
func watchReload(ctx context.Context) func() <-chan struct{} {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	add := make(chan chan struct{})
	go func() {
		defer signal.Stop(hup)
		var all []chan struct{}
		for {
			select {
			case ch := <-add:
				all = append(all, ch)
			case <-hup:
				for _, ch := range all {
					select {
					case ch <- struct{}{}:
					default:
					}
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() <-chan struct{} {
		ch := make(chan struct{}, 1)
		select {
		case add <- ch:
		case <-ctx.Done():
		}
		return ch
	}
}
