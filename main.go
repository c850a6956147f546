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
	"runtime/debug"
	"strings"
	"syscall"
	"time"
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

// commands are what swarmlite does beside being the manager.
var commands = map[string]func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error{
	"drain":    drainCommand,
	"explain":  explainCommand,
	"join":     joinCommand,
	"list":     listCommand,
	"node":     nodeCommand,
	"simulate": simulateCommand,
	"sql":      sqlCommand,
	"token":    tokenCommand,
}

// moveGrace is how long a call of a move under way may take to end when the manager stops.
const moveGrace = time.Second

// manage runs the manager until a signal. What can be wrong with the command line
// is found before the database is touched.
func manage(ctx context.Context, c *config, getenv func(string) string, stderr io.Writer) error {
	if getenv("GOGC") == "" {
		// Memory is what a thousand nodes cost first: a quarter less garbage for two percent of processor time.
		debug.SetGCPercent(75)
	}
	log := c.logger(stderr)
	listening, err := c.listenAddresses(log)
	if err != nil {
		return err
	}
	fixed, fromFile, err := c.engines(getenv, listening)
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
	limits := newConnLimits(len(fixed) + len(fromFile))
	if clientCerts != nil && c.tlsVerify {
		clientCerts.changed = func() { limits.recheck(clientCerts.admits) }
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
		l, err := listen(ctx, addr, conf, limits)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	var debug net.Listener
	if c.debug != "" {
		if debug, err = openDebug(ctx, c.debug); err != nil {
			return err
		}
		defer debug.Close()
	}
	store, err := openStore(ctx, log, c.db)
	if err != nil {
		return err
	}
	defer store.close()
	if debug != nil {
		debugging, end := context.WithCancel(ctx)
		served := make(chan struct{})
		go func() {
			defer close(served)
			serveDebug(debugging, log, debug, store)
		}()
		defer func() { end(); <-served }()
	}
	return serve(ctx, c, log, store, listening, listeners, limits, fixed, fromFile, clientCerts, engineCerts)
}

// serve wires the program and runs it.
func serve(ctx context.Context, c *config, log *slog.Logger, store *store, listening []string, listeners []net.Listener,
	limits *connLimits, fixed, fromFile []nodeLine, clientCerts, engineCerts *certSource) error {
	base, cancel := context.WithCancel(ctx)
	defer cancel()
	sched, err := newScheduler(log, store, c.strategy, c.filters)
	if err != nil {
		return err
	}
	sched.wait, sched.cores = c.wait, c.cpuShares == "cores"
	err = store.begin(base, managerRow{version, sched.strategy, strings.Join(filterList(sched.filters), ", "), c.overcommit, c.countStopped,
		c.groupBy, sched.file.sql(), c.relayPorts, c.drain, sched.cores, sched.wait})
	if err != nil {
		return err
	}
	trimmed := make(chan struct{})
	go func() {
		defer close(trimmed)
		store.trim(base, log, c.history)
	}()
	defer func() { cancel(); <-trimmed }()
	ns := newNodes(log, store, engineCerts)
	ns.ssh.config = c.sshConfig
	defer ns.wait()
	defer cancel()
	reloads := watchReload(base)
	ns.reloads = reloads
	if err := ns.hold(base); err != nil {
		return err
	}
	src := newSources(log, store, ns, fixed, fromFile)
	src.limits = limits
	if err := src.begin(base); err != nil {
		return err
	}
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		tick := time.NewTicker(askEvery)
		defer tick.Stop()
		src.run(base, tick.C)
	}()
	defer func() { cancel(); <-followed }()
	if c.nodes != "" {
		go watchNodeFile(base, log, c.nodes, c.engineTLSVerify, reloads(), src.setFile)
	}
	for _, certs := range []*certSource{clientCerts, engineCerts} {
		if certs != nil {
			go certs.watch(base, reloads())
		}
	}
	cl := &cluster{log: log, store: store, nodes: ns, scheduler: sched, names: c.names, infoNodes: c.infoNodes, everyNode: c.images == "every-node", engineTLS: c.engineTLSVerify, named: src, joins: newJoinLimits(), base: base}
	if c.relayPorts {
		if cl.relay, err = newPortRelay(log, store, listening); err != nil {
			return err
		}
		sched.portsOnce = true
		go cl.relay.run(base, ns.changed)
	}
	moving := make(chan struct{})
	go func() {
		defer close(moving)
		newMover(cl, c.rescheduleAfter, c.drain == "recreate").run(base)
	}()
	defer func() {
		cancel()
		select {
		case <-moving:
		case <-time.After(moveGrace): // the next start goes on from the rows
		}
	}()
	api := newAPI(cl, log, version, c.allowHosts)
	srv := newServer(api, log)
	failed := make(chan error, len(listeners))
	ns.releaseSoon()
	for _, l := range listeners {
		go func() { failed <- srv.Serve(l) }()
		log.Info("listening", "addr", l.Addr().Network()+"://"+l.Addr().String(), "db", c.db, "nodes", len(ns.all()))
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)
	select {
	case err := <-failed:
		return err
	case <-store.failed:
		srv.Close()
		return store.failure.Load()
	case <-ctx.Done():
	case sig := <-signals:
		log.Info("stopping", "signal", sig.String())
	}
	if cut := finish(ctx, srv, api.underway, listeners, signals); cut > 0 {
		log.Warn("stopped with calls under way", "calls", cut)
	}
	return nil
}

// newServer has the limits of S21; OPTIONS goes to the route table like all else (S12).
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            10 * time.Second,
		IdleTimeout:                  2 * time.Minute,
		ConnContext:                  noteConn,
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
