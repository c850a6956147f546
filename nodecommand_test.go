package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// command runs swarmlite with these arguments, in this process.
func command(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), args, func(string) string { return "" }, &out, &errs)
	return strings.TrimSpace(out.String()), err
}

func commandOK(t *testing.T, want string, args ...string) {
	t.Helper()
	if got, err := command(t, args...); err != nil || got != want {
		t.Errorf("swarmlite %s = %q, %v, want %q", strings.Join(args, " "), got, err, want)
	}
}

func commandFails(t *testing.T, want string, args ...string) {
	t.Helper()
	if got, err := command(t, args...); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("swarmlite %s = %q, %v, want an error with %q", strings.Join(args, " "), got, err, want)
	}
}

func TestNodesAreAddedToARunningManagerAndStay(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	db, dns := filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t)
	line := nodeLine{address: "tcp://" + a.addr()}
	t.Run("first run", func(t *testing.T) {
		f := newSourcedFront(t, db, dns, line)
		f.awaitStates(t, "a=healthy")
		at := []string{"-H", f.addr}
		node := func(verb string, words ...string) []string {
			return append(append([]string{"node", verb}, at...), words...)
		}
		commandOK(t, "tcp://"+b.addr(), node("add", b.addr(), "label=gpu:yes", "name=big")...)
		f.awaitStates(t, "a=healthy big=healthy")
		if got := f.rows(t, "SELECT source, (SELECT value FROM node_labels l WHERE l.node_id = n.id AND key = 'gpu') FROM nodes n WHERE name = 'big'"); got != "added|yes" {
			t.Errorf("source and label = %q", got)
		}
		commandFails(t, b.addr()+" is in the cluster already, as node big (added)", node("add", b.addr())...)
		commandFails(t, a.addr()+" is in the cluster already, as node a (arguments)", node("add", a.addr())...)
		commandFails(t, `lable=x:y: unknown option`, node("add", "10.0.0.1", "lable=x:y")...)
		commandFails(t, "put it into the node file", node("add", "dns://x:1")...)
		commandFails(t, "node nowhere not found", node("rm", "nowhere")...)
		for _, words := range [][]string{{b.addr()}, {"tcp://" + b.addr()}} { // by what it was added as
			commandOK(t, words[0], node("rm", words...)...)
			f.awaitStates(t, "a=healthy")
			commandOK(t, "tcp://"+b.addr(), node("add", b.addr(), "label=gpu:yes", "name=big")...)
			f.awaitStates(t, "a=healthy big=healthy")
		}
		f.make(t, "box", sleepBody) // on a or b: one of them is refused below
		holder := f.rows(t, "SELECT n.name FROM containers c JOIN nodes n ON n.id = c.node_id")
		commandFails(t, "has 1 container:", node("rm", holder)...)
		// While the manager runs, its database is its own: -db asks it too.
		commandOK(t, holder, node("rm", "-force", "-db", db, holder)...)
		other := map[string]string{"a": "big", "big": "a"}[holder]
		f.awaitStates(t, other+"=healthy")
		if holder == "a" { // bring it back as it was, for the next run
			commandOK(t, "tcp://"+a.addr(), node("add", a.addr())...)
		} else {
			commandOK(t, "tcp://"+b.addr(), node("add", b.addr(), "name=big", "label=gpu:yes")...)
		}
		f.awaitStates(t, "a=healthy big=healthy")
		if got, err := command(t, "list", "-db", db); err != nil || !strings.HasPrefix(got, "NODE ") || !strings.Contains(got, "big") || !strings.Contains(got, "added") {
			t.Errorf("swarmlite list = %s, %v", got, err)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		f := newSourcedFront(t, db, dns, line)
		f.awaitStates(t, "a=healthy big=healthy")
		commandOK(t, "big", "node", "rm", "-H", f.addr, "-force", "big")
		f.awaitStates(t, "a=healthy")
	})
	t.Run("after its removal", func(t *testing.T) {
		f := newSourcedFront(t, db, dns, line)
		f.awaitStates(t, "a=healthy")
	})
	t.Run("with the manager stopped", func(t *testing.T) {
		commandOK(t, "tcp://"+b.addr(), "node", "add", "-db", db, b.addr(), "label=gpu:two")
		commandOK(t, "a", "node", "rm", "-db", db, "-force", "a")
		commandFails(t, "node a not found", "node", "rm", "-db", db, "a")
		f := newSourcedFront(t, db, dns, line)
		f.awaitStates(t, "b=healthy") // a is named by the command line, and was taken out all the same
	})
}

// What a line calls a node is its name before its engine has ever answered: in list, to
// docker node and to node rm.
func TestNodesHaveTheNamesOfTheirLinesBeforeTheyAnswer(t *testing.T) {
	t.Parallel()
	db, dns := filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t)
	dead := func(n int) string { return fmt.Sprintf("127.0.0.1:%d", n) } // nobody listens below 1024
	names := func(f *sourcedFront, want string) {
		t.Helper()
		if got := f.rows(t, "SELECT group_concat(name, ' ' ORDER BY address) FROM nodes WHERE state <> 'removed'"); got != want {
			t.Errorf("nodes are %s, want %s", got, want)
		}
	}
	t.Run("with the manager running", func(t *testing.T) {
		f := newSourcedFront(t, db, dns, nodeLine{address: "tcp://" + dead(1), name: "one"})
		at := []string{"-H", f.addr}
		commandOK(t, "tcp://"+dead(2), append(append([]string{"node", "add"}, at...), dead(2), "name=two")...)
		commandOK(t, "tcp://"+dead(3), append(append([]string{"node", "add"}, at...), dead(3))...)
		commandOK(t, "tcp://"+dead(4), append(append([]string{"node", "add"}, at...), dead(4), "name=one")...) // taken
		names(f, "one two ("+dead(3)+") one-"+dead(4))
		if got, err := command(t, "list", "-db", db); err != nil || !strings.Contains(got, "\ntwo ") {
			t.Errorf("swarmlite list = %s, %v, want a node two", got, err)
		}
		if status, answer := f.call(t, "GET", "/nodes/two", ""); status != http.StatusOK {
			t.Errorf("docker node inspect two = %d %s", status, answer)
		}
		commandOK(t, "one", append(append([]string{"node", "rm"}, at...), "one")...)
		commandOK(t, "tcp://"+dead(5), append(append([]string{"node", "add"}, at...), dead(5), "name=one")...) // free again
		names(f, "two ("+dead(3)+") one-"+dead(4)+" one")
		// A socket that is not there is a node all the same, and can be taken out by all its names.
		for _, name := range []string{"unix:///nowhere/docker.sock", "unix:/nowhere/docker.sock", "(unix:/nowhere/docker.sock)"} {
			commandOK(t, "unix:///nowhere/docker.sock", append(append([]string{"node", "add"}, at...), "unix:///nowhere/docker.sock")...)
			if status, answer := f.call(t, "GET", "/nodes/(unix:%2Fnowhere%2Fdocker.sock)", ""); status != http.StatusOK || !strings.Contains(answer, `"ID":"unix:/nowhere/docker.sock"`) {
				t.Errorf("docker node inspect of a socket = %d %s", status, answer)
			}
			commandOK(t, name, append(append([]string{"node", "rm"}, at...), name)...)
		}
		names(f, "two ("+dead(3)+") one-"+dead(4)+" one")
	})
	t.Run("when a line changes", func(t *testing.T) {
		f := newSourcedFront(t, db, dns)
		set := func(lines ...nodeLine) {
			t.Helper()
			if err := f.nodes.set(f.base, lines); err != nil {
				t.Fatal(err)
			}
		}
		a, b := nodeLine{address: "tcp://" + dead(6), name: "six"}, nodeLine{address: "tcp://" + dead(7)}
		set(a, b)
		names(f, "six ("+dead(7)+")")
		a.name, b.name = "", "six" // it had been written behind the wrong one
		set(a, b)
		names(f, "("+dead(6)+") six")
		a.name, b.name = "six", "seven"
		set(a, b)
		names(f, "six seven")
		a.name, b.name = "seven", "six" // exchanged in one edit
		set(a, b)
		names(f, "seven six")
		c := nodeLine{address: "tcp://" + dead(9), name: "nine"}
		set(a, b, c)
		a.name, b.name, c.name = "six", "nine", "seven"
		set(a, b, c)
		names(f, "six nine seven")
		c = nodeLine{address: "tcp://" + dead(10), name: "seven"} // the host behind a name is another
		set(a, b, c)
		f.awaitStates(t, "nine=unhealthy seven=unhealthy six=unhealthy")
		a.name, c.name = "both", "both"
		set(a, b, c)
		f.awaitStates(t, "both=unhealthy both-"+dead(10)+"=unhealthy nine=unhealthy")
		set(b, c) // free by now
		f.awaitStates(t, "both=unhealthy nine=unhealthy")
	})
	t.Run("with the manager stopped", func(t *testing.T) {
		commandOK(t, "tcp://"+dead(8), "node", "add", "-db", db, dead(8), "name=eight")
		commandFails(t, `"10.0.0.1": the manager is stopped, so name the port as well`, "node", "add", "-db", db, "10.0.0.1")
		commandOK(t, "tcp://10.0.0.1:2376", "node", "add", "-db", db, "10.0.0.1", "skip-verify") // if it does not talk TLS there is nothing to skip
		commandOK(t, "10.0.0.1:2376", "node", "rm", "-db", db, "10.0.0.1:2376")
		commandOK(t, "eight", "node", "rm", "-db", db, "eight")
	})
}

func TestNodeCommandTellsHowItIsUsed(t *testing.T) {
	t.Parallel()
	commandFails(t, "expected add or rm", "node")
	commandFails(t, "expected add or rm", "node", "drop", "x")
	commandFails(t, "expected a node", "node", "add")
	commandFails(t, "flag provided but not defined", "node", "add", "-nope", "x")
	for _, words := range [][]string{{"list"}, {"node", "add"}, {"node", "rm"}, {"token"}} {
		args := append(words, "-db", filepath.Join(t.TempDir(), "no.db"))
		if words[0] == "node" {
			args = append(args, "10.0.0.1:2375")
		}
		commandFails(t, "no.db: not there; name the manager's file with -db", args...)
	}
	commandFails(t, "ask the manager at tcp://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused", "node", "rm", "-H", "127.0.0.1:1", "x")
	commandFails(t, `list: unexpected argument "x"; swarmlite list -h tells more`, "list", "x")
	commandFails(t, `token: unexpected argument "x"; swarmlite token -h tells more`, "token", "x")
}

// The manager's TLS is spoken as the docker command speaks it.
func TestCommandsSpeakTLS(t *testing.T) {
	t.Parallel()
	authority := testCA(t)
	e, joins := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t))
	server := certSourceOf(t, authority.server(t, "127.0.0.1"))
	l, err := listen(t.Context(), "tcp://127.0.0.1:0", server.serverConfig(true), newConnLimits(1))
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(f.api, f.front.log)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Shutdown(context.WithoutCancel(t.Context())); <-done })
	certs := authority.client(t, "admin")
	shown := []string{"-tlscacert", certs.ca, "-tlscert", certs.cert, "-tlskey", certs.key}
	commandOK(t, "tcp://"+e.addr(), append(append([]string{"node", "add", "-H", l.Addr().String()}, shown...), e.addr())...)
	f.awaitStates(t, "a=healthy")
	token, err := command(t, append([]string{"token", "-H", l.Addr().String()}, shown...)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	joined := make(chan error, 1)
	go func() {
		joined <- run(ctx, append([]string{"join", "-manager", l.Addr().String(), "-advertise", joins.addr(), "-token", token}, shown...),
			func(string) string { return "" }, &logText{}, &logText{})
	}()
	f.awaitStates(t, "a=healthy b=healthy")
	stop()
	if err := within(t, joined, 20*time.Second); err != nil {
		t.Errorf("join ended with %v", err)
	}
	stranger := testCA(t).client(t, "stranger")
	commandFails(t, fmt.Sprintf("ask the manager at tcp://%s: ", l.Addr()), "node", "rm", "-H", l.Addr().String(),
		"-tlscacert", certs.ca, "-tlscert", stranger.cert, "-tlskey", stranger.key, "a")
}

// What is wrong with a node, and what was being done, is told wherever nodes are shown.
func TestNodesTellTheFailingStep(t *testing.T) {
	t.Parallel()
	c, url := testCluster(t)
	c.infoNodes = 1
	c.store.sql(t, standardCluster+`; UPDATE nodes SET state = 'unhealthy', step = 'ping', error = 'no answer in time' WHERE id < 3;
		UPDATE nodes SET error = 'bad answer: wrong shape of 1 of 2 images in the list' WHERE id = 3`)
	for table, got := range map[string]string{
		"list":    commandText(t, "list", "-db", c.store.path),
		"cluster": commandText(t, "sql", "-db", c.store.path, "SELECT * FROM cluster"),
	} {
		for node, want := range map[string]string{"node-1": "   ping: no answer in time\n", "node-3": "   bad answer: wrong shape of 1 of 2 images in the list"} {
			if _, row, _ := strings.Cut(got+"\n", "\n"+node); !strings.Contains(row, want) {
				t.Errorf("%s has no %q:\n%s", table, want, got)
			}
		}
	}
	resp, err := http.Get(url + "/v1.41/info")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	answer := string(body)
	for _, want := range []string{`["  └ Error","ping: no answer in time"]`, "is unhealthy since 1970-01-01T00:00:00Z: ping: no answer in time", `"WARNING: 1 more node not healthy: see the view trouble in the database"`} {
		if !strings.Contains(answer, want) {
			t.Errorf("info has no %s: %v %s", want, err, answer)
		}
	}
}

func commandText(t *testing.T, args ...string) string {
	t.Helper()
	got, err := command(t, args...)
	if err != nil {
		t.Errorf("swarmlite %s: %v", strings.Join(args, " "), err)
	}
	return got
}
