package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// linesOf are nodes with these addresses and nothing else.
func linesOf(addresses ...string) []nodeLine {
	var lines []nodeLine
	for _, a := range addresses {
		lines = append(lines, nodeLine{address: a})
	}
	return lines
}

// lineText writes nodes as an operator would, blanks between.
func lineText(lines []nodeLine) string {
	var words []string
	for _, l := range lines {
		words = append(words, l.address)
		if l.name != "" {
			words = append(words, "name="+l.name)
		}
		for _, k := range slices.Sorted(maps.Keys(l.labels)) {
			words = append(words, "label="+k+":"+l.labels[k])
		}
		if l.tls != "" {
			words = append(words, "tls="+l.tls)
		}
		if l.noCheck {
			words = append(words, "skip-verify")
		}
	}
	return strings.Join(words, " ")
}

func TestParseNodesOfACommandLine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"a", "b"}, "tcp://a:2376 tcp://b:2376"},
		{[]string{"a", "label=k:v", "name=x", "b"}, "tcp://a:2376 name=x label=k:v tcp://b:2376"},
		{[]string{"a tls=off", "b skip-verify"}, "tcp://a:2375 tls=off tcp://b:2376 skip-verify"},
		{[]string{"a b"}, "tcp://a:2376 tcp://b:2376"},
		{[]string{"a", "b", "a"}, "tcp://a:2376 tcp://b:2376"},
		{[]string{"a", "a", "name=x"}, "a:2376 is named already, with other options: leave one of them"},
		{[]string{"a", "name=x", "b", "name=x"}, "name=x is another node's name already"},
		{[]string{"label=k:v", "a"}, `"label=k:v": port "v" is not a number`},
		{[]string{"a", "lable=k:v"}, "lable=k:v: unknown option, expected name, label, tls or skip-verify"},
		{[]string{""}, `"": host is missing, expected host:port`},
	} {
		lines, err := parseNodes(tt.args, true)
		got := lineText(lines)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("parseNodes(%q) = %s, want %s", tt.args, got, tt.want)
		}
	}
}

// Operator before line before engine, and each takes effect while the node runs.
func TestLinesNameAndLabelNodes(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("host"), func(e *fakeEngine) { e.labels = []string{"storage=disk", "zone=a"} })
	f := newFront(t, e)
	f.make(t, "box", sleepBody)
	labels := func() string {
		f.becomes(t, 20*time.Second, "healthy")
		return f.rows(t, `SELECT group_concat(key || '=' || value || ' ' || source, ', ' ORDER BY key) FROM node_labels WHERE source <> 'automatic'`)
	}
	line := nodeLine{address: "tcp://" + e.addr()}
	set := func(name string, labels map[string]string) {
		t.Helper()
		line.name, line.labels = name, labels
		if err := f.nodes.set(f.base, []nodeLine{line}); err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		what string
		do   func()
		want string
	}{
		{"as the engine says", func() {}, "storage=disk engine, zone=a engine"},
		{"a line covers the engine", func() { set("big", map[string]string{"storage": "ssd", "gpu": "yes"}) }, "gpu=yes line, storage=ssd line, zone=a engine"},
		{"docker node update covers the line", func() {
			var spec struct{ Version struct{ Index int } }
			if status, answer := f.call(t, "GET", "/nodes/big", ""); status != http.StatusOK || !strings.Contains(answer, `"gpu":"yes"`) {
				t.Fatalf("node inspect = %d %s, want the line's label", status, answer)
			}
			spec.Version.Index = 1
			if status, answer := f.call(t, "POST", fmt.Sprintf("/nodes/big/update?version=%d", spec.Version.Index),
				`{"Availability":"active","Labels":{"gpu":"no"}}`); status != http.StatusOK {
				t.Fatalf("node update = %d %s", status, answer)
			}
		}, "gpu=no operator, storage=ssd line, zone=a engine"},
		{"and stays when the line changes", func() { set("big", map[string]string{"gpu": "two", "zone": "b"}) }, "gpu=no operator, storage=disk engine, zone=b line"},
		{"the line comes through when it is taken back", func() {
			if status, answer := f.call(t, "POST", "/nodes/big/update?version=2", `{"Availability":"active","Labels":{}}`); status != http.StatusOK {
				t.Fatalf("node update = %d %s", status, answer)
			}
		}, "gpu=two line, storage=disk engine, zone=b line"},
		{"an engine that comes back changes nothing", func() {
			e.stop()
			f.becomes(t, 20*time.Second, "unhealthy")
			e.restart()
			f.becomes(t, 20*time.Second, "healthy")
		}, "gpu=two line, storage=disk engine, zone=b line"},
		{"the line is gone", func() { set("", nil) }, "storage=disk engine, zone=a engine"},
	}
	for i, step := range steps {
		step.do()
		if got := labels(); got != step.want {
			t.Errorf("%s: labels are %s, want %s", step.what, got, step.want)
		}
		name := "big"
		if i == 0 || i == len(steps)-1 {
			name = "host"
		}
		eventually(t, 20*time.Second, func() error { // a new name comes with a new connection
			if _, answer := f.call(t, "GET", "/containers/json", ""); !strings.Contains(answer, `"com.docker.swarm.node":"`+name+`"`) {
				return fmt.Errorf("%s: ps = %s, want node %s", step.what, answer, name)
			}
			return nil
		})
		if _, answer := f.call(t, "GET", "/containers/box/json", ""); !strings.Contains(answer, `"Name":"`+name+`"`) {
			t.Errorf("%s: inspect = %s, want node %s", step.what, answer, name)
		}
	}
}

// Names that are exchanged, taken over or set free by one edit are as the lines say when
// it has taken effect, of nodes that answer and of those that have answered once.
func TestLinesExchangeNames(t *testing.T) {
	t.Parallel()
	a, b, c := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b")), newFakeEngine(t, hostNamed("c"))
	f := newFront(t)
	a.addContainer("on-a", "busybox", true, nil)
	b.addContainer("on-b", "busybox", true, nil)
	lines := []nodeLine{{address: "tcp://" + a.addr()}, {address: "tcp://" + b.addr()}, {address: "tcp://" + c.addr()}}
	where := func() string {
		_, answer := f.call(t, "GET", "/containers/json?all=1", "")
		var list []struct {
			Names  []string
			Labels map[string]string
		}
		if err := json.Unmarshal([]byte(answer), &list); err != nil {
			t.Fatal(err)
		}
		var on []string
		for _, k := range list {
			on = append(on, k.Names[0]+"="+k.Labels[nodeLabel])
		}
		slices.Sort(on)
		return strings.Join(on, " ")
	}
	steps := []struct {
		what       string
		names      []string
		states, on string
	}{
		{"host names", []string{"", "", ""}, "a=healthy b=healthy c=healthy", "/on-a=a /on-b=b"},
		{"names", []string{"x", "y", ""}, "c=healthy x=healthy y=healthy", "/on-a=x /on-b=y"},
		{"exchanged", []string{"y", "x", ""}, "c=healthy x=healthy y=healthy", "/on-a=y /on-b=x"},
		{"round", []string{"x", "z", "y"}, "x=healthy y=healthy z=healthy", "/on-a=x /on-b=z"},
		{"a host's name", []string{"", "x", "b"}, "a=healthy b=healthy x=healthy", "/on-a=a /on-b=x"},
		{"as the hosts are called", []string{"", "", ""}, "a=healthy b=healthy c=healthy", "/on-a=a /on-b=b"},
	}
	check := func(what, states, on string) {
		t.Helper()
		f.awaitStates(t, states)
		eventually(t, 20*time.Second, func() error {
			if got := where(); got != on {
				return fmt.Errorf("%s: containers are %s, want %s", what, got, on)
			}
			return nil
		})
	}
	for _, step := range steps {
		for i := range lines {
			lines[i].name = step.names[i]
		}
		if err := f.nodes.set(f.base, lines); err != nil {
			t.Fatal(err)
		}
		check(step.what, step.states, step.on)
	}
	// The name goes over to a node whose line is new, in the edit that takes the first one out.
	lines[0].name = "web"
	if err := f.nodes.set(f.base, lines[:2]); err != nil {
		t.Fatal(err)
	}
	check("before the host is replaced", "b=healthy web=healthy", "/on-a=web /on-b=b")
	lines[2].name = "web"
	if err := f.nodes.set(f.base, lines[1:]); err != nil {
		t.Fatal(err)
	}
	check("the host is replaced", "b=healthy web=healthy", "/on-b=b")
	// A node that does not answer has its new name as well, and so have its containers.
	b.stop()
	f.awaitStates(t, "b=unhealthy web=healthy")
	lines[1].name, lines[2].name = "web", "b"
	if err := f.nodes.set(f.base, lines[1:]); err != nil {
		t.Fatal(err)
	}
	check("a node that is lost", "b=healthy web=unhealthy", "/on-b=web")
	if status, answer := f.call(t, "GET", "/containers/on-b/json", ""); status != http.StatusServiceUnavailable || !strings.Contains(answer, "node web ") {
		t.Errorf("inspect on a lost node = %d %s, want 503 that names it", status, answer)
	}
}

// tlsDir is a directory as DOCKER_CERT_PATH names it.
func (a *ca) tlsDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	a.issue(t, dir, clientTemplate("swarmlite"))
	text, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "ca.pem"), string(text))
	return dir
}

// tlsEngine is a simulated engine that demands certificates of a.
func (a *ca) tlsEngine(t *testing.T, name string, hosts ...string) *fakeEngine {
	t.Helper()
	certs := certSourceOf(t, a.server(t, hosts...))
	return newFakeEngine(t, hostNamed(name), func(e *fakeEngine) { e.tlsConfig = certs.serverConfig(true) })
}

// Three engines, three ways: their own certificates, others', none.
func TestLinesHaveCertificatesOfTheirOwn(t *testing.T) {
	t.Parallel()
	east, west := testCA(t), testCA(t)
	a, b, c := east.tlsEngine(t, "a", "127.0.0.1"), west.tlsEngine(t, "b", "10.1.1.1"), newFakeEngine(t, hostNamed("c"))
	// What the flags would say: east, for every node that does not speak for itself.
	f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), nil, func(ns *nodes) { ns.certs = certSourceOf(t, east.client(t, "swarmlite")) })
	westDir := west.tlsDir(t)
	la, lb, lc := nodeLine{address: "tcp://" + a.addr()}, nodeLine{address: "tcp://" + b.addr()}, nodeLine{address: "tcp://" + c.addr()}
	set := func(lines ...nodeLine) {
		t.Helper()
		if err := f.nodes.set(f.base, lines); err != nil {
			t.Fatal(err)
		}
	}
	problems := func(want ...string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			got := strings.Split(f.rows(t, "SELECT CASE state WHEN 'healthy' THEN state ELSE error END FROM nodes WHERE state <> 'removed' ORDER BY id"), "\n")
			for i, w := range want {
				if i >= len(got) || !strings.Contains(got[i], w) {
					return fmt.Errorf("nodes are %q, want %q", got, want)
				}
			}
			return nil
		})
	}
	set(la, lb, lc)
	problems("healthy", "failed to verify certificate", "does not speak TLS there: write tls=off behind its address")
	lb.tls, lc.tls = westDir, "off"
	set(la, lb, lc)
	problems("healthy", "not 127.0.0.1", "healthy")
	lb.noCheck = true
	set(la, lb, lc)
	problems("healthy", "healthy", "healthy")
	if f.logs.count("its line says skip-verify") != 1 {
		t.Errorf("skip-verify is not told in the log:\n%s", f.logged())
	}
	lb.noCheck = false // back to a check, at once
	set(la, lb, lc)
	problems("healthy", "not 127.0.0.1", "healthy")

	// A directory that has gone bad while the manager was down stops one node only.
	lb.tls = filepath.Join(t.TempDir(), "gone")
	if err := f.nodes.set(f.base, []nodeLine{la, lb, lc}); err == nil || !strings.Contains(err.Error(), "gone/ca.pem does not exist") {
		t.Errorf("set with certificates that are gone: %v", err)
	}
	problems("healthy", "gone/ca.pem does not exist", "healthy")
}

// The end of a certificate that an engine shows is the end of its node.
func TestTheEndOfAnEnginesCertificateIsToldBefore(t *testing.T) {
	t.Parallel()
	authority := testCA(t)
	soon := serverTemplate("127.0.0.1")
	soon.NotAfter = time.Now().Add(20 * 24 * time.Hour)
	certs := certSourceOf(t, authority.issue(t, t.TempDir(), soon))
	e := newFakeEngine(t, hostNamed("soon"), func(e *fakeEngine) { e.tlsConfig = certs.serverConfig(false) })
	fresh := authority.tlsEngine(t, "fresh", "127.0.0.1")
	dir := authority.tlsDir(t)
	f := newFront(t)
	if err := f.nodes.set(f.base, []nodeLine{{address: "tcp://" + e.addr(), tls: dir}, {address: "tcp://" + fresh.addr(), tls: dir}}); err != nil {
		t.Fatal(err)
	}
	f.awaitStates(t, "fresh=healthy soon=healthy")
	const words = "the engine's certificate expires soon"
	if got := f.logs.count(words); got != 1 || !strings.Contains(f.logged(), words+`" node=soon`) {
		t.Errorf("told %d times, want once of soon:\n%s", got, f.logged())
	}
	// A log of its own from here on: the watcher is not disturbed.
	log, logs := testLog()
	ns, late := &nodes{log: log}, &engine{verified: true}
	late.setName("late")
	now := time.Now()
	late.certEnds.Store(now.Add(40 * 24 * time.Hour).Unix())
	for _, at := range []struct{ days, want int }{{0, 0}, {9, 0}, {11, 1}, {11, 1}, {12, 2}, {39, 3}} {
		ns.noteCertificate(late, now.Add(time.Duration(at.days)*24*time.Hour))
		if got := logs.count(words); got != at.want {
			t.Errorf("told %d times after %d days, want %d", got, at.days, at.want)
		}
	}
}

// A certificate in a line's directory is read again by itself.
func TestCertificatesOfALineAreReloaded(t *testing.T) {
	t.Parallel()
	old, now := testCA(t), testCA(t)
	serverCerts := certSourceOf(t, now.server(t, "127.0.0.1"))
	e := newFakeEngine(t, func(e *fakeEngine) {
		e.tlsConfig = &tls.Config{GetConfigForClient: serverCerts.serverConfig(true).GetConfigForClient}
	})
	dir := old.tlsDir(t)
	f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), nil, func(*nodes) {})
	if err := f.nodes.set(f.base, []nodeLine{{address: "tcp://" + e.addr(), tls: dir}}); err != nil {
		t.Fatal(err)
	}
	if problem := f.becomes(t, 20*time.Second, "unhealthy"); !strings.Contains(problem, "unknown authority") {
		t.Fatalf("node is unhealthy because %s, want its CA", problem)
	}
	fresh := now.tlsDir(t)
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		text, err := os.ReadFile(filepath.Join(fresh, name))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name), string(text))
	}
	began := time.Now()
	f.becomes(t, 30*time.Second, "healthy")
	t.Logf("new certificates in use after %v", time.Since(began).Round(time.Millisecond))
}

// A reload hands new lines to running nodes: the file is what an operator edits.
func TestAnEditedNodeFileRelabelsItsNodes(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("host"))
	f := newFront(t, e)
	path := filepath.Join(t.TempDir(), "nodes")
	writeFile(t, path, e.addr()+" label=rack:1\n")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchNodeFile(ctx, f.log, path, false, nil, func(lines []nodeLine) {
			if err := f.nodes.set(f.base, lines); err != nil {
				t.Error(err)
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	wants := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			if got := f.rows(t, "SELECT coalesce((SELECT value FROM node_labels WHERE key = 'rack'), '') || ' ' || name FROM nodes"); got != want {
				return fmt.Errorf("rack and name are %q, want %q", got, want)
			}
			return nil
		})
	}
	wants("1 host")
	writeFile(t, path, e.addr()+" label=rack:2 name=big\n")
	wants("2 big")
	writeFile(t, path, e.addr()+" label=rack\n") // bad: what was stays
	eventually(t, 20*time.Second, func() error {
		if f.logs.count(":1: label=rack: expected label=key:value") != 1 {
			return fmt.Errorf("the line is not told:\n%s", f.logged())
		}
		return nil
	})
	wants("2 big")
}
