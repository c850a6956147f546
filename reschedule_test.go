package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// startMover moves containers of the front, in a hurry, until the test ends.
func (f *front) startMover(t testing.TB, after time.Duration, recreate bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(f.base)
	m := newMover(f.cluster, after, recreate)
	m.pace = movePace{10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, 100 * time.Millisecond, 10 * time.Second, 0}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// available sets a node's availability as docker node update does.
func (f *front) available(t testing.TB, node, availability string) {
	t.Helper()
	_, answer := f.call(t, "GET", "/nodes/"+node, "")
	var n swarmNode
	if err := json.Unmarshal([]byte(answer), &n); err != nil {
		t.Fatalf("node %s: %v in %s", node, err, answer)
	}
	n.Spec.Availability = availability
	body, _ := json.Marshal(n.Spec)
	if status, answer := f.call(t, "POST", fmt.Sprintf("/nodes/%s/update?version=%d", n.ID, n.Version.Index), string(body)); status != http.StatusOK {
		t.Fatalf("update of node %s = %d %s", node, status, answer)
	}
}

// only leaves one of the nodes a, b, c open to creates, then all of them.
func (f *front) only(t testing.TB, node string, do func()) {
	t.Helper()
	others := slices.DeleteFunc([]string{"a", "b", "c"}, func(n string) bool { return n == node })
	for _, n := range others {
		f.available(t, n, "pause")
	}
	do()
	f.nodes.settle(t.Context())
	for _, n := range others {
		f.available(t, n, "active")
	}
}

// abc is a front over nodes a, b and c.
func abc(t testing.TB) (f *front, a, b, c *fakeEngine) {
	t.Helper()
	a, b, c = newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b")), newFakeEngine(t, hostNamed("c"))
	return newFront(t, a, b, c), a, b, c
}

const movableBody = `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["TOKEN=secret","reschedule:on-node-failure"]}`

// awaitRows waits until a query gives what is wanted.
func (f *front) awaitRows(t testing.TB, want, query string, args ...any) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		if got := f.rows(t, query, args...); got != want {
			return fmt.Errorf("%s gives\n%s, want\n%s\nmoves: %s", query, got, want, f.rows(t, "SELECT name, why, from_node, to_node, step, outcome, error, old FROM moves"))
		}
		return nil
	})
}

const whereQuery = "SELECT c.name || '@' || n.name || '=' || c.state FROM containers c JOIN nodes n ON n.id = c.node_id ORDER BY c.name, n.name"

func TestDrainMovesWhatMayBeMovedAndTellsWhyTheRestStays(t *testing.T) {
	t.Parallel()
	f, a, b, c := abc(t)
	var old string
	f.only(t, "a", func() {
		old = f.make(t, "web", movableBody)
		f.make(t, "db", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"Binds":["data:/data"]}}`)
		f.make(t, "fixed", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`)
		f.make(t, "plain", sleepBody)
		f.make(t, "never", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:off"]}`)
		if status, answer := f.call(t, "POST", "/containers/create?name=idle", movableBody); status != http.StatusCreated {
			t.Fatalf("create = %d %s", status, answer)
		}
	})
	for _, e := range []*fakeEngine{b, c} {
		e.addContainerBody("on-"+e.name, []byte(`{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`), true)
	}
	f.awaitRows(t, "2", "SELECT count(*) FROM containers WHERE name LIKE 'on-%'")
	dry, err := swarmlite(t, "drain", "-db", f.store.path, "-dry-run", "a")
	wantDry := `CONTAINER   IMAGE     STATE     GOES TO   STAYS BECAUSE
web         busybox   running   b         
db          busybox   running   -         local volume data
fixed       busybox   running   -         no node fits: 2 of 3 have port 8080/tcp in use, 1 is paused or draining (b, c; a)
plain       busybox   running   -         no reschedule policy
never       busybox   running   -         its reschedule policy is off
idle        busybox   created   c         

2 of 6 containers would be moved
`
	if err != nil || dry != wantDry {
		t.Errorf("drain -dry-run: %v\n%s\nwant\n%s", err, dry, wantDry)
	}
	if got := f.rows(t, "SELECT count(*) FROM moves"); got != "0" || len(a.containerNames()) != 6 {
		t.Errorf("a dry run has moved something: %s", got)
	}
	f.startMover(t, time.Hour, false)
	f.available(t, "a", "drain")
	f.awaitRows(t, "db|local volume data\nfixed|no node fits: 2 of 3 have port 8080/tcp in use, 1 is paused or draining (b, c; a)\nnever|its reschedule policy is off\nplain|no reschedule policy",
		"SELECT container, \"stays because\" FROM drain ORDER BY container")
	if got := a.containerNames(); !slices.Equal(got, []string{"db", "fixed", "never", "plain"}) {
		t.Errorf("on a drained node: %q", got)
	}
	f.awaitRows(t, "idle|created\nweb|running", "SELECT name, state FROM containers WHERE name IN ('web', 'idle') ORDER BY name")
	status, answer := f.call(t, "GET", "/containers/web/json", "")
	var in struct {
		Id     string
		Config struct {
			Env    []string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal([]byte(answer), &in); status != http.StatusOK || err != nil {
		t.Fatalf("inspect web = %d %s", status, answer)
	}
	if in.Id == old || !slices.Contains(in.Config.Env, "TOKEN=secret") || in.Config.Labels[swarmIDLabel] != f.rows(t, "SELECT swarm_id FROM moves WHERE name = 'web'") {
		t.Errorf("web elsewhere is %+v", in)
	}
	f.awaitRows(t, "idle|drain|a|1|done|moved||removed|0\nweb|drain|a|1|done|moved||removed|1",
		"SELECT name, why, from_node, to_node <> 'a', step, outcome, error, old, running FROM moves WHERE name IN ('web', 'idle') ORDER BY name")
	_, answer = f.call(t, "GET", "/nodes/a", "")
	if !strings.Contains(answer, `"Message":"draining, 4 containers left: db: local volume data; fixed: no node fits: `) {
		t.Errorf("the drained node is shown as %s", answer)
	}
	_, answer = f.call(t, "GET", "/info", "")
	if !strings.Contains(answer, `["  └ Left","4 containers: db: local volume data; `) {
		t.Errorf("info shows %s", answer)
	}
	if got := f.rows(t, "SELECT count(*) FROM trouble WHERE what = 'left on a drained node' AND node = 'a'"); got != "4" {
		t.Errorf("trouble tells of %s containers, want 4", got)
	}
	if got := f.rows(t, "SELECT name, count(*) FROM placements WHERE container_id IN (SELECT copy_id FROM moves WHERE copy_id <> '') GROUP BY name"); got != "idle|1\nweb|1" {
		t.Errorf("the ledger knows the copies as %q", got)
	}
	_, answer = f.call(t, "GET", "/events?since=1&until="+fmt.Sprint(time.Now().Unix()+1)+`&filters={"event":["reschedule"],"container":["web"]}`, "")
	var event engineEvent
	if err := json.Unmarshal([]byte(answer), &event); err != nil || event.Actor.ID != in.Id || event.Actor.Attributes["from"] != "a" || event.Actor.Attributes["why"] != "drain" {
		t.Errorf("event of the move: %v in %s", err, answer)
	}
	b.removeContainer("on-b")
	f.awaitRows(t, "fixed@b=running", whereQuery[:strings.Index(whereQuery, " ORDER")]+" WHERE c.name = 'fixed'")
	f.available(t, "a", "active")
	f.awaitRows(t, "", "SELECT * FROM drain")
	f.oracle(t)
}

// A copy of a container whose namespaces or nameless volumes another shares would leave that
// one behind.
func TestDrainLeavesAContainerThatAnotherSharesWith(t *testing.T) {
	t.Parallel()
	f, a, b, _ := abc(t)
	f.only(t, "a", func() {
		for _, name := range []string{"net", "pid", "ipc", "pid-by-id", "pid-behind", "vol", "alone"} {
			body := movableBody
			if name == "vol" || name == "alone" {
				body = strings.Replace(body, "{", `{"Volumes":{"/x":{}},`, 1)
			}
			id := f.make(t, name, body)
			switch name {
			case "vol":
				f.make(t, "of-"+name, `{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"VolumesFrom":["vol:ro"]}}`)
			case "pid-by-id":
				f.make(t, "of-"+name, `{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"PidMode":"container:`+id[:12]+`"}}`)
			case "pid-behind":
				a.addContainerBody("of-"+name, []byte(`{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"PidMode":"container:`+name+`"}}`), true)
			case "net":
				f.make(t, "of-"+name, `{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"NetworkMode":"container:`+id+`"}}`)
			case "pid":
				f.make(t, "of-"+name, `{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"PidMode":"container:a/pid"}}`)
			case "ipc":
				f.make(t, "of-"+name, `{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"IpcMode":"container:ipc"}}`)
			}
		}
	})
	f.awaitRows(t, "1", "SELECT count(*) FROM containers WHERE name = 'of-pid-behind' AND inspected")
	f.startMover(t, time.Hour, false)
	f.available(t, "a", "drain")
	f.awaitRows(t, `ipc|container of-ipc shares its IPC namespace
net|container of-net shares its network
pid|container of-pid shares its PID namespace
pid-behind|container of-pid-behind shares its PID namespace
pid-by-id|container of-pid-by-id shares its PID namespace
vol|container of-vol shares its volume`, "SELECT container, \"stays because\" FROM drain WHERE container NOT LIKE 'of-%' AND container NOT LIKE 'alone-old-%' ORDER BY container")
	f.awaitRows(t, "running", "SELECT c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'alone' AND n.name <> 'a'")
	if status, answer := f.call(t, "DELETE", "/containers/of-pid?force=1", ""); status != http.StatusNoContent {
		t.Fatalf("rm of-pid = %d %s", status, answer)
	}
	f.awaitRows(t, "running", "SELECT c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'pid' AND n.name <> 'a'")
	if names := b.containerNames(); slices.Contains(names, "net") || slices.Contains(names, "ipc") {
		t.Errorf("moved away from those that share with them: %q", names)
	}
	f.oracle(t)
}

func TestDrainRecreatesWhatHasNothingOnItsHost(t *testing.T) {
	t.Parallel()
	f, a, _, _ := abc(t)
	f.only(t, "a", func() {
		f.make(t, "plain", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["A=1"],"HostConfig":{"Memory":67108864}}`)
		f.make(t, "bound", `{"Image":"busybox","Cmd":["sleep","inf"],"HostConfig":{"Binds":["/srv:/srv"]}}`)
		f.make(t, "unnamed", `{"Image":"busybox","Cmd":["sleep","inf"],"Volumes":{"/data":{}}}`)
		f.make(t, "unnamed-policy", `{"Image":"busybox","Cmd":["sleep","inf"],"Volumes":{"/data":{}},"Env":["reschedule:on-node-failure"]}`)
		f.make(t, "done", `{"Image":"busybox","Cmd":["true"]}`)
		a.addContainer("behind", "busybox", true, map[string]string{"app": "shop"})
	})
	f.awaitRows(t, "6", "SELECT count(*) FROM containers")
	f.startMover(t, time.Hour, true)
	f.available(t, "a", "drain")
	f.awaitRows(t, `bound|it mounts /srv of the host, and has no reschedule policy
done|it does not run, and has no reschedule policy
unnamed|it has a volume without a name, and no reschedule policy
unnamed-policy-old|it is what was left of a move`, `SELECT CASE WHEN container LIKE 'unnamed-policy-old-%' THEN substr(container, 1, 18) ELSE container END, "stays because" FROM drain ORDER BY container`)
	f.awaitRows(t, "behind|running\nplain|running\nunnamed-policy|running", "SELECT c.name, c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE n.name <> 'a' ORDER BY c.name")
	if got := f.rows(t, "SELECT memory_bytes FROM containers WHERE name = 'plain'"); got != "67108864" {
		t.Errorf("the copy reserves %s bytes", got)
	}
	f.awaitRows(t, "exited", "SELECT state FROM containers WHERE name LIKE 'unnamed-policy-old-%'")
	if got := f.rows(t, "SELECT value FROM container_labels l JOIN containers c ON c.id = l.container WHERE c.name = 'behind' AND key = 'app'"); got != "shop" {
		t.Errorf("label of the container made behind our back: %q", got)
	}
	f.oracle(t)
}

func TestDrainDryRunSaysWhatItCannotDo(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, standardCluster+`; UPDATE nodes SET state = 'unhealthy' WHERE id = 3;
		INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES (1, 2, 'c1', 'web', 'nginx', 'running', 1, '{}')`)
	for args, want := range map[string]string{
		"-dry-run":        "drain: name one node; swarmlite drain -h tells more",
		"node-1":          "drain: give -dry-run to see what would be moved; docker node update --availability drain node-1 drains the node",
		"-dry-run node-9": "drain: node node-9 not found",
		"-dry-run node-3": "drain: node node-3 is unhealthy: what is on it can be moved when it answers, or is made anew after -reschedule-after",
	} {
		if _, err := swarmlite(t, append([]string{"drain", "-db=" + path}, strings.Fields(args)...)...); err == nil || err.Error() != want {
			t.Errorf("drain %s: %v, want %s", args, err, want)
		}
	}
	if got, err := swarmlite(t, "drain", "-db="+path, "-dry-run", "-json", "node-1"); err != nil || got != "[]\n" {
		t.Errorf("drain -json of an empty node: %v %s", err, got)
	}
	if got, err := swarmlite(t, "drain", "-db="+path, "-dry-run", "node-2"); err != nil || !strings.HasSuffix(got, "\n0 of 1 container would be moved\n") {
		t.Errorf("drain of a node with one container: %v %s", err, got)
	}
}

func TestAMoveThatFailsLeavesTheOldContainerAsItWas(t *testing.T) {
	t.Parallel()
	f, a, b, c := abc(t)
	var old string
	f.only(t, "a", func() { old = f.make(t, "web", movableBody) })
	var undo []func()
	for _, e := range []*fakeEngine{b, c} {
		undo = append(undo, e.fail("POST", "^/containers/[^/]+/start$", http.StatusInternalServerError, `{"message":"no cgroups today"}`))
	}
	f.startMover(t, time.Hour, false)
	f.available(t, "a", "drain")
	f.awaitRows(t, "1", "SELECT count(*) >= 3 FROM moves WHERE outcome = 'failed'")
	f.awaitRows(t, "1", `SELECT "stays because" LIKE 'start on node _: no cgroups today' FROM drain WHERE container = 'web' AND "stays because" NOT LIKE 'is being moved%'`)
	f.available(t, "a", "active")
	f.awaitRows(t, "0", "SELECT count(*) FROM moves WHERE step <> 'done'")
	if got := f.rows(t, whereQuery); got != "web@a=running" {
		t.Errorf("containers: %s", got)
	}
	if status, answer := f.call(t, "GET", "/containers/"+old+"/json", ""); status != http.StatusOK {
		t.Errorf("the old container: %d %s", status, answer)
	}
	if len(b.containerNames())+len(c.containerNames()) > 0 || a.count("POST", "/stop$") > 0 {
		t.Errorf("copies are left: %q %q, or the old one was stopped", b.containerNames(), c.containerNames())
	}
	for _, u := range undo {
		u()
	}
	f.available(t, "a", "drain")
	f.awaitRows(t, "web|running", "SELECT c.name, c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE n.name <> 'a'")
	f.oracle(t)
}

func TestF28ANodeThatIsBackFindsItsContainersElsewhere(t *testing.T) {
	t.Parallel()
	f, a, b, c := abc(t)
	f.only(t, "a", func() {
		f.make(t, "web", `{"Image":"busybox","Cmd":["sleep","inf"],"Volumes":{"/data":{}},"Env":["reschedule:on-node-failure"],"HostConfig":{"RestartPolicy":{"Name":"always"}}}`)
		f.make(t, "plain", sleepBody)
	})
	f.startMover(t, 300*time.Millisecond, true)
	a.stop() // its containers go on, as in a partition
	f.awaitRows(t, "plain@a=running\nweb=running", "SELECT c.name || CASE n.name WHEN 'a' THEN '@a' ELSE '' END || '=' || c.state FROM containers c JOIN nodes n ON n.id = c.node_id ORDER BY c.name")
	f.awaitRows(t, "web|node failure|a|moved|to rename", "SELECT name, why, from_node, outcome, old FROM moves")
	if got := f.listed(t); got["plain"] != "Host Down" || !strings.HasPrefix(got["web"], "Up ") {
		t.Errorf("listed: %v", got)
	}
	began := time.Now()
	a.restart()
	f.awaitRows(t, "kept", "SELECT old FROM moves")
	faultTook(t, 28, "the old container gave way", time.Since(began), 10*time.Second)
	f.oracle(t)
	names := a.containerNames()
	if len(names) != 2 || names[0] != "plain" || !strings.HasPrefix(names[1], "web-old-") {
		t.Fatalf("containers of the node that is back: %q", names)
	}
	if got := slices.Concat(b.containerNames(), c.containerNames()); !slices.Equal(got, []string{"web"}) {
		t.Errorf("elsewhere: %q", got)
	}
	f.awaitRows(t, "exited", "SELECT state FROM containers WHERE name = ?", names[1])
	if got := f.rows(t, "SELECT count(*) FROM volumes v JOIN nodes n ON n.id = v.node_id WHERE n.name = 'a'"); got != "1" {
		t.Errorf("%s volumes on the node that is back, want its one", got)
	}
	if !strings.Contains(string(a.inspectBody(t, names[1])), `"RestartPolicy":{"Name":"no"}`) {
		t.Errorf("the old container would start again: %s", a.inspectBody(t, names[1]))
	}
	if got := f.rows(t, "SELECT count(*) FROM events WHERE action IN ('reschedule', 'reschedule_old')"); got != "2" {
		t.Errorf("%s events, want one of the move and one of the old container", got)
	}
	if !strings.Contains(f.logged(), "container is back with its node") {
		t.Errorf("the log does not tell of the old container:\n%s", f.logged())
	}
	for range 2 { // by its ID, by its swarm ID: there is one
		if status, answer := f.call(t, "GET", "/containers/"+f.rows(t, "SELECT swarm_id FROM moves")+"/json", ""); status != http.StatusOK || !strings.Contains(answer, `"Name":"/web"`) {
			t.Errorf("inspect by com.docker.swarm.id = %d %s", status, answer)
		}
	}
}

// A container in the namespaces of another, by its ID as Compose writes it, is in those of
// its copy when both have been moved.
func TestWhatSharesNamespacesByIDFollowsTheCopy(t *testing.T) {
	t.Parallel()
	f, a, b, c := abc(t)
	f.only(t, "a", func() {
		id := f.make(t, "vpn", movableBody)
		f.make(t, "app", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"NetworkMode":"container:`+id+`","PidMode":"container:`+id[:12]+`"}}`)
	})
	f.startMover(t, 300*time.Millisecond, true)
	a.stop()
	f.awaitRows(t, "app=running\nvpn=running", "SELECT c.name || '=' || c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE n.name <> 'a' ORDER BY c.name")
	on := b
	if len(c.containerNames()) > 0 {
		on = c
	}
	copied := f.rows(t, "SELECT container_id FROM containers WHERE name = 'vpn'")
	inspected := string(on.inspectBody(t, "app"))
	for _, want := range []string{`"NetworkMode":"container:` + copied + `"`, `"PidMode":"container:` + copied + `"`} {
		if !strings.Contains(inspected, want) {
			t.Errorf("app does not have %s: %s", want, inspected)
		}
	}
	a.restart()
	f.awaitRows(t, "kept", "SELECT DISTINCT old FROM moves WHERE outcome = 'moved'")
	f.oracle(t)
}

// An attempt is decided by what is known of those before: one that ended after the look may
// have moved the container, whose old one is there still, or have to wait for its image.
func TestAnAttemptIsDecidedByTheLastOne(t *testing.T) {
	t.Parallel()
	st := testStore(t)
	st.sql(t, standardCluster)
	st.sql(t, "INSERT INTO containers (node_id, id, container_id, name, image, state, created_at, counted, nano_cpus, memory_bytes, summary) VALUES (1, 1, 'c1', 'web', 'busybox', 'running', 0, 1, 0, 0, '{}')")
	for _, c := range []struct {
		step, outcome string
		known, again  bool
	}{
		{"make", "under way", true, false}, {"swap", "under way", true, false},
		{"done", "failed", true, true}, {"done", "failed", false, false}, {"done", "moved", false, false},
	} {
		err := st.write(t.Context(), func(tx *tx) error {
			if _, err := tx.exec("DELETE FROM moves"); err != nil {
				return err
			}
			mv := &move{why: whyDrain, container: "c1", from: 1, copyName: "web-new-c1"}
			if err := tx.beginMove(mv, 0); err != nil {
				return err
			}
			if _, err := tx.exec("UPDATE moves SET step = ?, outcome = ?", c.step, c.outcome); err != nil {
				return err
			}
			last := int64(0)
			if c.known {
				last = mv.id
			}
			return tx.beginMove(mv, last)
		})
		if c.again && err != nil || !c.again && !errors.Is(err, errNotFound) {
			t.Errorf("another attempt after %s, %s, known %t: %v", c.step, c.outcome, c.known, err)
		}
	}
}

// inspectBody is what an engine says of a container.
func (e *fakeEngine) inspectBody(t testing.TB, name string) []byte {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(e.inspect(c))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAMoveJoinsTheNetworksThatTheContainerWasOn(t *testing.T) {
	t.Parallel()
	a := newFakeEngine(t, hostNamed("a"), inSwarm("m", "s1", "m"))
	b := newFakeEngine(t, hostNamed("b"), inSwarm("w", "", "m"))
	c := newFakeEngine(t, hostNamed("c"))
	for _, e := range []*fakeEngine{a, b} {
		e.list("ov0123456789ov0123456789o", "ov")
		e.list("in0123456789in0123456789i", "in")
	}
	f := newFront(t, a, b, c)
	f.only(t, "a", func() {
		f.make(t, "web", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"NetworkMode":"in0123456789in0123456789i"},
			"NetworkingConfig":{"EndpointsConfig":{"in0123456789in0123456789i":{"Aliases":["first"]}}}}`)
		f.make(t, "fixed", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"NetworkMode":"ov"},
			"NetworkingConfig":{"EndpointsConfig":{"ov":{"IPAMConfig":{"IPv4Address":"10.9.0.8"}}}}}`)
		if status, answer := f.call(t, "POST", "/networks/ov/connect", `{"Container":"web","EndpointConfig":{"Aliases":["www"],"IPAMConfig":{"IPv4Address":"10.9.0.9"}}}`); status != http.StatusOK {
			t.Fatalf("connect = %d %s", status, answer)
		}
	})
	for range 3 {
		c.addContainer("", "busybox", false, nil)
		b.addContainer("", "busybox", true, nil) // c would be chosen, were it in the swarm
	}
	f.startMover(t, 300*time.Millisecond, false)
	f.available(t, "a", "drain")
	f.awaitRows(t, "web|b|running", "SELECT c.name, n.name, c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'web'")
	var in struct {
		NetworkSettings struct {
			Networks map[string]struct {
				Aliases    []string
				IPAMConfig struct{ IPv4Address string }
			}
		}
	}
	if err := json.Unmarshal(b.inspectBody(t, "web"), &in); err != nil {
		t.Fatal(err)
	}
	if got := jsonText(in.NetworkSettings.Networks); got != `{"in":{"Aliases":["first"],"IPAMConfig":{"IPv4Address":""}},"ov":{"Aliases":["www"],"IPAMConfig":{"IPv4Address":""}}}` { // an address there is the swarm's to give
		t.Errorf("networks of the copy: %s", got)
	}
	f.awaitRows(t, "fixed|address 10.9.0.8 is its own: no copy can run beside it", `SELECT container, "stays because" FROM drain`)
	a.stop() // now it can
	f.awaitRows(t, "fixed|b|running", "SELECT c.name, n.name, c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'fixed'")
	if got := string(b.inspectBody(t, "fixed")); !strings.Contains(got, "10.9.0.8") {
		t.Errorf("the address that was asked for is not in %s", got)
	}
}

// A container comes back to a node where what was left of its first move still is: the
// two have one com.docker.swarm.id, and only one is what the create was about.
func TestAMoveBackIsNotTakenForWhatWasLeftThere(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	f.available(t, "b", "pause")
	f.make(t, "web", movableBody)
	f.nodes.settle(t.Context())
	f.available(t, "b", "active")
	f.startMover(t, 0, false)
	a.stop()
	f.awaitRows(t, "web@b=running", whereQuery)
	a.restart()
	f.awaitRows(t, "kept", "SELECT old FROM moves")
	left := a.containerNames()
	undo := a.override("POST", "^/containers/create$", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }) // nothing is made, and nobody knows
	f.available(t, "b", "drain")
	f.awaitRows(t, "1", "SELECT count(*) FROM reservations WHERE state = 'unknown'")
	undo()
	f.awaitRows(t, "web|a|running", "SELECT c.name, n.name, c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'web'")
	if got := a.containerNames(); len(got) != 2 || !slices.Contains(got, left[0]) || !slices.Contains(got, "web") {
		t.Errorf("on a: %q, want web and %s", got, left[0])
	}
	if got := f.rows(t, "SELECT count(*) FROM placements WHERE container_id = (SELECT container_id FROM containers WHERE name = ?)", left[0]); got != "1" {
		t.Errorf("%s placements made %s, want its own: what was left was taken for the copy", got, left[0])
	}
	f.oracle(t)
}

func TestALostNodeIsGivenItsTime(t *testing.T) {
	t.Parallel()
	f, a, _, _ := abc(t)
	f.only(t, "a", func() { f.make(t, "web", movableBody) })
	f.startMover(t, time.Hour, false)
	a.stop()
	f.awaitStates(t, "a=unhealthy b=healthy c=healthy")
	a.restart()
	f.awaitStates(t, "a=healthy b=healthy c=healthy")
	if got := f.rows(t, "SELECT count(*) FROM moves"); got != "0" {
		t.Errorf("%s moves of a node that was back in time", got)
	}
	f.oracle(t)
}

// A node that is taken out is not a dead one.
func TestF69ANodeThatIsTakenOutIsNotRescheduled(t *testing.T) {
	t.Parallel()
	f, a, b, c := abc(t)
	f.only(t, "a", func() { f.make(t, "web", movableBody) })
	f.startMover(t, 0, true)
	if err := f.nodes.set(f.base, linesOf(addresses(b, c)...)); err != nil {
		t.Fatal(err)
	}
	f.awaitRows(t, "0", "SELECT count(*) FROM containers")
	f.make(t, "other", movableBody) // by then the mover has looked more than once
	if got := f.rows(t, "SELECT count(*) FROM moves"); got != "0" {
		t.Errorf("%s moves, want none", got)
	}
	if got := a.containerNames(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("containers on the host: %q", got)
	}
	faultHeld(t, 69, "its containers are left alone, and not made anew elsewhere")
}

func TestAnImageThatOnlyTheLostNodeHadIsWaitedFor(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a"), func(e *fakeEngine) { e.preloaded = []string{"mine:1"} }), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b, newFakeEngine(t, hostNamed("c")))
	f.only(t, "a", func() {
		f.make(t, "web", `{"Image":"mine:1","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"]}`)
	})
	f.startMover(t, 0, false)
	a.stop()
	f.awaitRows(t, "web|failed|image mine:1: only node a has it, which does not answer; pull it, or load it|1", "SELECT name, outcome, error, count(*) FROM moves WHERE step = 'done'")
	f.awaitRows(t, "web|image mine:1: only node a has it, which does not answer; pull it, or load it", `SELECT container, "stays because" FROM drain`)
	if status, answer := f.call(t, "POST", "/images/create?fromImage=mine&tag=1", ""); status != http.StatusOK {
		t.Fatalf("pull = %d %s", status, answer)
	}
	f.awaitRows(t, "1|running", "SELECT n.name <> 'a', c.state FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.name = 'web'")
	f.awaitRows(t, "failed moved", "SELECT group_concat(outcome, ' ') FROM (SELECT outcome FROM moves ORDER BY id)")
}

func TestACopyIsProvenByItsHealthCheck(t *testing.T) {
	t.Parallel()
	f, a, b, c := abc(t)
	var old string
	f.only(t, "a", func() { old = f.make(t, "web", movableBody) })
	f.available(t, "c", "pause")
	health := make(chan string, 1)
	health <- "starting"
	asked := make(chan string, 100)
	b.override("GET", "^/containers/[0-9a-f]{64}/json$", func(w http.ResponseWriter, r *http.Request) {
		now := <-health
		health <- now
		select {
		case asked <- now:
		default:
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"State":{"Status":"running","Running":true,"Health":{"Status":%q,"Log":[{"Output":"refused"}]}}}`, now)
	})
	f.startMover(t, time.Hour, false)
	f.available(t, "a", "drain")
	for range 5 {
		within(t, asked, 20*time.Second)
	}
	if status, _ := f.call(t, "GET", "/containers/"+old+"/json", ""); status != http.StatusOK || a.count("POST", "/stop$") != 0 {
		t.Error("the old container was stopped before its copy was healthy")
	}
	<-health
	health <- "unhealthy"
	f.awaitRows(t, "failed|the copy on node b is unhealthy: refused", "SELECT outcome, error FROM moves WHERE id = (SELECT min(id) FROM moves WHERE step = 'done')")
	<-health
	health <- "healthy"
	f.awaitRows(t, "web@b=running", whereQuery)
	_ = c
	f.oracle(t)
}

// The manager dies in the middle of a move, at each call to an engine, before the
// engine has done what it was asked and after. The next one settles it: there is one
// container of the name, it runs, and nothing else is left.
func TestAMoveIsSettledAfterTheManagerDied(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ on, method, path string }{
		{"b", "POST", "^/containers/create$"},
		{"b", "POST", "^/containers/[^/]+/start$"},
		{"b", "GET", "^/containers/[0-9a-f]{64}/json$"},
		{"a", "POST", "^/containers/[^/]+/stop$"},
		{"a", "DELETE", "^/containers/[^/]+$"},
		{"b", "POST", "^/containers/[^/]+/rename$"},
	} {
		for _, done := range []bool{false, true} {
			for _, why := range []string{whyDrain, whyFailure} {
				if why == whyFailure && (tt.on == "a" || tt.method == "GET") {
					continue // a lost node is not called, a copy not proven
				}
				t.Run(fmt.Sprintf("%s %s %s done=%v", why, tt.method, tt.path, done), func(t *testing.T) {
					t.Parallel()
					testMoveInterrupted(t, why, tt.on, tt.method, tt.path, done)
				})
			}
		}
	}
}

func testMoveInterrupted(t *testing.T, why, on, method, path string, done bool) {
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	db := t.TempDir() + "/swarmlite.db"
	t.Run("first", func(t *testing.T) {
		f := startFront(t, db, a, b)
		f.awaitStates(t, "a=healthy b=healthy")
		f.available(t, "b", "pause")
		f.make(t, "web", movableBody)
		f.nodes.settle(t.Context())
		f.available(t, "b", "active")
		e := map[string]*fakeEngine{"a": a, "b": b}[on]
		reached, release := make(chan struct{}, 16), make(chan struct{})
		undo := e.override(method, path, func(w http.ResponseWriter, r *http.Request) {
			if done {
				e.answer(discarded{}, r)
			}
			reached <- struct{}{}
			<-release
			panic(http.ErrAbortHandler)
		})
		f.startMover(t, 0, false)
		if why == whyDrain {
			f.available(t, "a", "drain")
		} else {
			a.stop()
		}
		within(t, reached, 20*time.Second)
		f.end()
		close(release)
		undo()
	})
	f := startFront(t, db, a, b)
	f.startMover(t, 0, false)
	f.awaitRows(t, "web@b=running", whereQuery)
	f.awaitRows(t, "0", "SELECT count(*) FROM moves WHERE step <> 'done'")
	if why == whyFailure {
		a.restart()
		f.awaitRows(t, "0", "SELECT count(*) FROM moves WHERE old IN ('to rename', 'to stop')")
		f.oracle(t)
		if got := a.containerNames(); len(got) != 1 || !strings.HasPrefix(got[0], "web-old-") {
			t.Errorf("on the node that is back: %q", got)
		}
	} else if got := a.containerNames(); len(got) != 0 {
		t.Errorf("on the drained node: %q", got)
	}
	if got := b.containerNames(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("on the other node: %q", got)
	}
	if got := f.rows(t, "SELECT count(*) FROM moves WHERE outcome = 'moved'"); got != "1" {
		t.Errorf("%s moves, want 1: %s", got, f.rows(t, "SELECT step, outcome, error, old FROM moves"))
	}
	f.oracle(t)
	if got := f.rows(t, "SELECT count(*) FROM create_bodies"); got != "1" {
		t.Errorf("%s create bodies are kept, want 1", got)
	}
	if got := f.rows(t, "SELECT count(*) FROM renames"); got != "0" {
		eventually(t, 20*time.Second, func() error {
			if f.rows(t, "SELECT count(*) FROM renames") != "0" {
				return errors.New("a name is still held")
			}
			return nil
		})
	}
}

// discarded is an answer that nobody hears.
type discarded struct{}

func (discarded) Header() http.Header         { return http.Header{} }
func (discarded) Write(p []byte) (int, error) { return len(p), nil }
func (discarded) WriteHeader(int)             {}
