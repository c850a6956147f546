package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRelayTCPPassesBytesBothWaysAfterHalfClose(t *testing.T) {
	t.Parallel()
	echo := listenLocal(t)
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, _ := io.ReadAll(c) // answers only when the client has said all
				c.Write(append([]byte("heard "), data...))
			}()
		}
	}()
	relay := listenLocal(t)
	go relayTCP(relay, echo.Addr().String())
	c, err := net.Dial("tcp", relay.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "everything")
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "heard everything" {
		t.Errorf("through the relay = %q, %v, want %q", got, err, "heard everything")
	}
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestRelayUDPBringsAnswersToTheClientThatAsked(t *testing.T) {
	t.Parallel()
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			echo.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go relayUDP(in, echo.LocalAddr().String())
	var clients []net.Conn
	for i := range 3 {
		c, err := net.Dial("udp", in.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "client %d", i)
		clients = append(clients, c)
	}
	for i, c := range clients {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if want := fmt.Sprintf("re: client %d", i); err != nil || string(buf[:n]) != want {
			t.Errorf("client %d reads %q, %v, want %q", i, buf[:n], err, want)
		}
	}
}

func TestPublishedPortsAreReachedOnTheManager(t *testing.T) {
	engines := labEngines(t)
	args := []string{"-relay-ports"}
	for _, e := range engines {
		args = append(args, e.addr)
	}
	m := startManager(t, args...)
	_, fixed, err := net.SplitHostPort(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(name, publish string) {
		m.docker(t, "run", "-d", "--name", name, "-p", publish, "busybox", "sh", "-c", "echo "+name+" >index.html; exec httpd -f")
	}
	serve("one", fixed+":80")
	serve("two", "80")
	serve("three", "80")
	get := func(addr string) error {
		resp, err := http.Get("http://" + addr)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != 200 {
			return fmt.Errorf("%s: %s", resp.Status, data)
		}
		return nil
	}
	ports := map[string]string{}
	check := func() {
		t.Helper()
		for _, name := range []string{"one", "two", "three"} {
			addr := strings.TrimSpace(m.docker(t, "port", name, "80"))
			if !strings.HasPrefix(addr, "127.0.0.1:") || strings.Contains(addr, "\n") {
				t.Errorf("docker port %s = %q, want one address of the manager's", name, addr)
			}
			if old := ports[name]; old != "" && old != addr {
				t.Errorf("docker port %s = %s, was %s before the restart", name, addr, old)
			}
			ports[name] = addr
			shown := m.docker(t, "ps", "--filter", "name="+name, "--format", "{{.Ports}}")
			if !strings.Contains(shown, addr+"->80/tcp") {
				t.Errorf("docker ps shows %s with %q, want %s", name, shown, addr)
			}
			eventually(t, 20*time.Second, func() error { return get(addr) })
		}
	}
	check()
	if ports["one"] != "127.0.0.1:"+fixed {
		t.Errorf("fixed port is shown as %s, want 127.0.0.1:%s", ports["one"], fixed)
	}
	_, refusal, code := dockerCLI(t, m.addr, "run", "-d", "--name", "four", "-p", fixed+":80", "busybox", "true")
	if code != 125 || !strings.Contains(refusal, "port "+fixed+"/tcp is already allocated to container one on node ") {
		t.Errorf("a second container on port %s: exit %d, %q, want a refusal that names the holder", fixed, code, refusal)
	}
	m.restart(t)
	check()
	m.docker(t, "rm", "-f", "one")
	eventually(t, 20*time.Second, func() error {
		if get("127.0.0.1:"+fixed) == nil {
			return fmt.Errorf("port %s is still relayed after its container has gone", fixed)
		}
		return nil
	})
	m.docker(t, "run", "-d", "--name", "four", "-p", fixed+":80", "busybox", "sleep", "60")
}

// relayedFront is a front that relays ports on an address of its own: its engines
// publish theirs on 127.0.0.1, and tests run side by side.
func relayedFront(t *testing.T, ip, db string, fakes ...*fakeEngine) *front {
	t.Helper()
	f := startFront(t, db, fakes...)
	f.relaysPorts(t, ip)
	return f
}

// relaysPorts has f relay ports on ip.
func (f *front) relaysPorts(t *testing.T, ip string) {
	t.Helper()
	p, err := newPortRelay(f.cluster.log, f.store, []string{"tcp://" + ip + ":0"})
	if err != nil {
		t.Fatal(err)
	}
	f.cluster.relay, f.scheduler.portsOnce = p, true
	ended := make(chan struct{})
	go func() { defer close(ended); p.run(f.base, f.nodes.changed) }()
	t.Cleanup(func() { f.end(); <-ended })
	f.settled(t)
}

// publish makes a container with published ports, and starts it. It returns its ID.
func (f *front) publish(t *testing.T, name, node, ports string) string {
	t.Helper()
	return f.make(t, name, fmt.Sprintf(`{"Image":"busybox","Cmd":["sleep","inf"],"Env":["constraint:node==%s"],"HostConfig":{"PortBindings":{%s}}}`, node, ports))
}

// shownPort is the one address that inspect and ps show for a port.
func (f *front) shownPort(t *testing.T, name, port string) string {
	t.Helper()
	var inspected struct {
		NetworkSettings struct {
			Ports map[string][]struct{ HostIP, HostPort string }
		}
	}
	_, answer := f.call(t, "GET", "/containers/"+name+"/json", "")
	if err := json.Unmarshal([]byte(answer), &inspected); err != nil {
		t.Fatal(err)
	}
	bindings := inspected.NetworkSettings.Ports[port]
	if len(bindings) != 1 {
		t.Fatalf("inspect shows %s's port %s as %v, want one address", name, port, bindings)
	}
	var list []struct {
		Ports []struct {
			IP, Type   string
			PublicPort int
		}
	}
	_, answer = f.call(t, "GET", "/containers/json?filters="+url.QueryEscape(`{"name":["^/`+name+`$"]}`), "")
	if err := json.Unmarshal([]byte(answer), &list); err != nil || len(list) != 1 {
		t.Fatalf("ps of %s = %s (%v)", name, answer, err)
	}
	addr := net.JoinHostPort(bindings[0].HostIP, bindings[0].HostPort)
	shown := 0
	for _, p := range list[0].Ports {
		if "/"+p.Type == port[strings.IndexByte(port, '/'):] && net.JoinHostPort(p.IP, fmt.Sprint(p.PublicPort)) == addr {
			shown++
		}
	}
	if shown == 0 {
		t.Errorf("ps shows %+v, inspect %s", list[0].Ports, addr)
	}
	return addr
}

// echoes is a container's server on both protocols: it says its name and what it is told.
func echoes(t *testing.T, name string) (port string) {
	t.Helper()
	for range 20 {
		l := listenLocal(t)
		packets, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			continue // another program has this number for UDP
		}
		t.Cleanup(func() { packets.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					data, _ := io.ReadAll(c)
					c.Write(append([]byte(name+" "), data...))
				}()
			}
		}()
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := packets.ReadFrom(buf)
				if err != nil {
					return
				}
				packets.WriteTo(append([]byte(name+" "), buf[:n]...), from)
			}
		}()
		_, port, _ = net.SplitHostPort(l.Addr().String())
		return port
	}
	t.Fatal("no port that is free for TCP and UDP")
	return ""
}

// tell sends a word and returns the answer, "" if there is none.
func tell(protocol, addr, word string) string {
	c, err := net.DialTimeout(protocol, addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, word)
	if tc, ok := c.(*net.TCPConn); ok {
		tc.CloseWrite()
	}
	buf := make([]byte, 100)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

func TestRelayedPortsLeadToTheirContainers(t *testing.T) {
	t.Parallel()
	a, b := named(t, "a"), named(t, "b")
	db := filepath.Join(t.TempDir(), "swarmlite.db")
	one, two := echoes(t, "one"), echoes(t, "two")
	addrs := map[string]string{}
	check := func(t *testing.T, f *front) {
		t.Helper()
		for name, port := range map[string]string{"one": one, "two": two} {
			for _, protocol := range []string{"tcp", "udp"} {
				addr := f.shownPort(t, name, "7/"+protocol)
				if addr != "127.0.0.9:"+port {
					t.Errorf("%s's %s port is shown as %s, want 127.0.0.9:%s", name, protocol, addr, port)
				}
				eventually(t, 20*time.Second, func() error {
					if got := tell(protocol, addr, "hello"); got != name+" hello" {
						return fmt.Errorf("%s at %s says %q, want %q", protocol, addr, got, name+" hello")
					}
					return nil
				})
			}
		}
		// Both engines chose the same number; here each has one of its own.
		for _, name := range []string{"any-a", "any-b"} {
			addr := f.shownPort(t, name, "7/tcp")
			if old := addrs[name]; old != "" && old != addr {
				t.Errorf("%s is at %s, was at %s before the restart", name, addr, old)
			}
			addrs[name] = addr
		}
		if addrs["any-a"] == addrs["any-b"] || !strings.HasPrefix(addrs["any-a"], "127.0.0.9:") || !strings.HasPrefix(addrs["any-b"], "127.0.0.9:") {
			t.Errorf("published to any port: %v, want two different ones of the manager's", addrs)
		}
	}
	t.Run("before a restart", func(t *testing.T) {
		f := relayedFront(t, "127.0.0.9", db, a, b)
		f.publish(t, "any-a", "a", `"7/tcp":[{}]`)
		f.publish(t, "any-b", "b", `"7/tcp":[{"HostPort":"0"}]`)
		f.publish(t, "one", "a", fmt.Sprintf(`"7/tcp":[{"HostPort":%q}],"7/udp":[{"HostPort":%[1]q}]`, one))
		f.publish(t, "two", "b", fmt.Sprintf(`"7/tcp":[{"HostPort":%q}],"7/udp":[{"HostPort":%[1]q}]`, two))
		check(t, f)
		for _, node := range []string{"a", "b"} {
			status, answer := f.call(t, "POST", "/containers/create?name=late", fmt.Sprintf(
				`{"Image":"busybox","Env":["constraint:node==%s"],"HostConfig":{"PortBindings":{"9/udp":[{"HostPort":%q}]}}}`, node, one))
			if want := "port " + one + "/udp is already allocated to container one on node a, and the manager relays it only once"; status != http.StatusConflict || message(answer) != want {
				t.Errorf("a second container for a relayed port, on %s = %d %s, want 409 %s", node, status, answer, want)
			}
		}
	})
	f := relayedFront(t, "127.0.0.9", db, a, b)
	check(t, f)

	// With the container goes its port, and it comes back with it.
	if status, answer := f.call(t, "POST", "/containers/one/stop?t=0", ""); status != http.StatusNoContent {
		t.Fatalf("stop = %d %s", status, answer)
	}
	eventually(t, 20*time.Second, func() error {
		if tell("tcp", "127.0.0.9:"+one, "x") != "" {
			return errors.New("the port of a stopped container is still relayed")
		}
		return nil
	})
	if status, answer := f.call(t, "POST", "/containers/one/start", ""); status != http.StatusNoContent {
		t.Fatalf("start = %d %s", status, answer)
	}
	check(t, f)
}

func TestPortsOfTheManagersHostAreRefused(t *testing.T) {
	t.Parallel()
	f := relayedFront(t, "127.0.0.10", filepath.Join(t.TempDir(), "swarmlite.db"), named(t, "a"))
	l, err := net.Listen("tcp", "127.0.0.10:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	status, answer := f.call(t, "POST", "/containers/create", fmt.Sprintf(`{"Image":"busybox","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":%q}]}}}`, port))
	if want := "port " + port + "/tcp is in use on the manager's host, which is to relay it: choose another"; status != http.StatusConflict || message(answer) != want {
		t.Errorf("create = %d %s, want 409 %s", status, answer, want)
	}
}

// TestAStartWhosePortWasTakenIsRefused: as one engine does, with its status and in its words.
func TestAStartWhosePortWasTakenIsRefused(t *testing.T) {
	t.Parallel()
	f := relayedFront(t, "127.0.0.15", filepath.Join(t.TempDir(), "swarmlite.db"), named(t, "a"), named(t, "b"))
	_, port, _ := net.SplitHostPort(freePort(t))
	create := func(name, node string) {
		t.Helper()
		status, answer := f.call(t, "POST", "/containers/create?name="+name,
			fmt.Sprintf(`{"Image":"busybox","Env":["constraint:node==%s"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":%q}]}}}`, node, port))
		if status != http.StatusCreated {
			t.Fatalf("create %s = %d %s", name, status, answer)
		}
	}
	start := func(name string, want int, words string) {
		t.Helper()
		status, answer := f.call(t, "POST", "/containers/"+name+"/start", "")
		if status != want || words != "" && message(answer) != "driver failed programming external connectivity on endpoint "+name+": Bind for 127.0.0.15:"+port+" failed: port is already allocated "+words {
			t.Errorf("start %s = %d %s, want %d %s", name, status, answer, want, words)
		}
	}
	create("first", "a")
	l, err := net.Listen("tcp", "127.0.0.15:"+port)
	if err != nil {
		t.Fatal(err)
	}
	start("first", http.StatusInternalServerError, "to another program on the manager's host, which is to relay it")
	l.Close()
	start("first", http.StatusNoContent, "")
	start("first", http.StatusNotModified, "") // its own
	if addr := f.shownPort(t, "first", "80/tcp"); addr != "127.0.0.15:"+port {
		t.Errorf("first is at %s, want its port %s", addr, port)
	}
	if status, answer := f.call(t, "POST", "/containers/first/stop", ""); status != http.StatusNoContent {
		t.Fatalf("stop = %d %s", status, answer)
	}
	create("second", "b") // a stopped container holds no port
	start("second", http.StatusNoContent, "")
	start("first", http.StatusInternalServerError, "to container second on node b")
}

// TestAPromisedPortIsNotGivenAway: a container that was made and not started yet keeps
// its number, though an engine gives the same one to a container that takes any.
func TestAPromisedPortIsNotGivenAway(t *testing.T) {
	t.Parallel()
	a, b := named(t, "a"), named(t, "b")
	f := relayedFront(t, "127.0.0.11", filepath.Join(t.TempDir(), "swarmlite.db"), a, b)
	const next = "49153" // the first that a fake engine gives
	status, answer := f.call(t, "POST", "/containers/create?name=fixed", `{"Image":"busybox","Env":["constraint:node==a"],"HostConfig":{"PortBindings":{"7/tcp":[{"HostPort":"`+next+`"}]}}}`)
	if status != http.StatusCreated {
		t.Fatalf("create = %d %s", status, answer)
	}
	f.publish(t, "any", "b", `"7/tcp":[{}]`)
	if addr := f.shownPort(t, "any", "7/tcp"); addr == "127.0.0.11:"+next || !strings.HasPrefix(addr, "127.0.0.11:") {
		t.Errorf("any is at %s, want the manager's address and not the port that was promised", addr)
	}
	if status, answer := f.call(t, "POST", "/containers/fixed/start", ""); status != http.StatusNoContent {
		t.Fatalf("start = %d %s", status, answer)
	}
	if addr := f.shownPort(t, "fixed", "7/tcp"); addr != "127.0.0.11:"+next {
		t.Errorf("fixed is at %s, want 127.0.0.11:%s", addr, next)
	}
}

// TestARangeOfPortsIsKeptOnTheManager: engines pick the same numbers of a range, and
// here each container has one of its own, of the range too.
func TestARangeOfPortsIsKeptOnTheManager(t *testing.T) {
	t.Parallel()
	a, b := named(t, "a"), named(t, "b")
	db := filepath.Join(t.TempDir(), "swarmlite.db")
	const published = `"7/tcp":[{"HostPort":"18080-18083"}]`
	body := func(node, ports string) string {
		return fmt.Sprintf(`{"Image":"busybox","Cmd":["sleep","inf"],"Env":["constraint:node==%s"],"HostConfig":{"PortBindings":{%s}}}`, node, ports)
	}
	do := func(t *testing.T, f *front, method, path, body string, want int) (answer string) {
		t.Helper()
		status, answer := f.call(t, method, path, body)
		if status != want {
			t.Errorf("%s %s = %d %s, want %d", method, path, status, answer, want)
		}
		return answer
	}
	shown := func(t *testing.T, f *front, name, want string) {
		t.Helper()
		if got := f.shownPort(t, name, "7/tcp"); got != "127.0.0.12:"+want {
			t.Errorf("%s is at %s, want 127.0.0.12:%s", name, got, want)
		}
	}
	t.Run("before a restart", func(t *testing.T) {
		f := relayedFront(t, "127.0.0.12", db, a, b)
		f.publish(t, "one", "a", published)
		shown(t, f, "one", "18080")
		do(t, f, "POST", "/containers/create?name=fixed", body("a", `"7/tcp":[{"HostPort":"18081"}]`), http.StatusCreated)
		f.publish(t, "two", "b", published)
		shown(t, f, "two", "18082") // 18080 is relayed, 18081 promised
		do(t, f, "POST", "/containers/create?name=three", body("b", published), http.StatusCreated)
		answer := do(t, f, "POST", "/containers/create?name=four", body("b", published), http.StatusConflict)
		if want := "all ports of 18080-18083/tcp are already allocated, and the manager relays each only once"; message(answer) != want {
			t.Errorf("a fifth container for four ports: %s, want %s", answer, want)
		}
		do(t, f, "POST", "/containers/three/start", "", http.StatusNoContent)
		shown(t, f, "three", "18083")
		do(t, f, "POST", "/containers/fixed/start", "", http.StatusNoContent)
		shown(t, f, "fixed", "18081")
		do(t, f, "DELETE", "/containers/one?force=1", "", http.StatusNoContent)
		do(t, f, "POST", "/containers/two/stop?t=0", "", http.StatusNoContent)
		f.settled(t)
	})
	// The ranges outlast a stop and the manager, and are known of what was made on a host.
	f := relayedFront(t, "127.0.0.12", db, a, b)
	do(t, f, "POST", "/containers/two/start", "", http.StatusNoContent)
	two := f.shownPort(t, "two", "7/tcp")
	if two != "127.0.0.12:18080" && two != "127.0.0.12:18082" {
		t.Errorf("two is at %s after a restart, want what is free of its range", two)
	}
	shown(t, f, "three", "18083")
	apiClient{t, "http://" + b.addr()}.want("POST", "/v1.41/containers/create?name=behind", body("b", published), 201, "")
	eventually(t, 20*time.Second, func() error {
		if n := f.store.one(t, "SELECT count(*) FROM port_ranges r JOIN containers c ON c.id = r.container WHERE c.name = 'behind'"); n != "1" {
			return fmt.Errorf("ranges of behind: %s", n)
		}
		return nil
	})
	do(t, f, "POST", "/containers/behind/start", "", http.StatusNoContent)
	if got := f.shownPort(t, "behind", "7/tcp"); got == two || got != "127.0.0.12:18080" && got != "127.0.0.12:18082" {
		t.Errorf("behind is at %s beside two at %s, want what is left of its range", got, two)
	}
}

// TestAFixedPortGoesWithAContainerThatMoves: the copy runs before the old one is stopped.
func TestAFixedPortGoesWithAContainerThatMoves(t *testing.T) {
	t.Parallel()
	a := named(t, "a")
	f := relayedFront(t, "127.0.0.13", filepath.Join(t.TempDir(), "swarmlite.db"), a, named(t, "b"))
	a.override("POST", "/stop$", func(w http.ResponseWriter, r *http.Request) {
		f.awaitRows(t, "1", "SELECT count(*) FROM ports p JOIN containers c ON c.id = p.container WHERE c.name <> 'web' AND c.state = 'running'")
		if err := f.cluster.relay.sync(f.base); err != nil {
			t.Error(err)
		}
		f.awaitRows(t, "18090", "SELECT group_concat(listen_port) FROM relays") // the old one's alone
		a.answer(w, r)
	})
	f.startMover(t, time.Hour, false)
	f.available(t, "b", "pause")
	old := f.make(t, "web", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"PortBindings":{"7/tcp":[{"HostPort":"18090"}]}}}`)
	if got := f.shownPort(t, "web", "7/tcp"); got != "127.0.0.13:18090" {
		t.Fatalf("web is at %s before the move", got)
	}
	f.available(t, "b", "active")
	f.available(t, "a", "drain")
	f.awaitRows(t, "1", "SELECT count(*) FROM moves WHERE step = 'done' AND outcome = 'moved'")
	f.awaitRows(t, "18090", "SELECT group_concat(r.listen_port) FROM relays r JOIN containers c ON c.id = r.container WHERE c.name = 'web' AND c.container_id <> ?", old)
	if got := f.shownPort(t, "web", "7/tcp"); got != "127.0.0.13:18090" {
		t.Errorf("web is at %s after the move, want its fixed port", got)
	}
}

// TestARelayFollowsItsContainer: clients find a container at the manager's same port when
// its node was lost, when that is back, and when the other is drained.
func TestARelayFollowsItsContainer(t *testing.T) {
	t.Parallel()
	const port, shown = "18095", "127.0.0.14:18095"
	a, b := named(t, "a"), named(t, "b")
	var addrs []string
	for ip, e := range map[string]*fakeEngine{"127.0.0.21": a, "127.0.0.22": b} { // hosts with an address each
		engine, err := net.Listen("tcp", ip+":0")
		if err != nil {
			t.Fatal(err)
		}
		server, err := net.Listen("tcp", ip+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { engine.Close(); server.Close() })
		go relayTCP(engine, e.addr())
		go func() {
			for {
				c, err := server.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, e.name)
				c.Close()
			}
		}()
		addrs = append(addrs, "tcp://"+engine.Addr().String())
	}
	f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), addrs, func(*nodes) {})
	f.relaysPorts(t, "127.0.0.14")
	f.available(t, "b", "pause")
	old := f.make(t, "web", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["reschedule:on-node-failure"],"HostConfig":{"PortBindings":{"7/tcp":[{"HostPort":"`+port+`"}]}}}`)
	f.available(t, "b", "active")
	on := func(want, when string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if got := tell("tcp", shown, ""); got != want {
				return fmt.Errorf("%s %s answers as %q, want %q; moves: %s", when, shown, got, want, f.rows(t, "SELECT name, step, outcome, error FROM moves"))
			}
			return nil
		})
		if got := f.shownPort(t, "web", "7/tcp"); got != shown {
			t.Errorf("%s web is shown at %s, want %s", when, got, shown)
		}
	}
	on("a", "before")
	f.startMover(t, 0, false)
	a.stop()
	f.awaitRows(t, "moved", "SELECT group_concat(outcome) FROM moves WHERE step = 'done'")
	on("b", "when its node was lost,")
	a.restart()
	f.awaitRows(t, "exited", "SELECT state FROM containers WHERE container_id = ?", old)
	on("b", "when its node is back,")
	f.available(t, "b", "drain")
	f.awaitRows(t, "moved,moved", "SELECT group_concat(outcome) FROM moves WHERE step = 'done'")
	on("a", "after a drain")
}

func TestRelayPortsWithoutAnAddressOfTheirOwnAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	err := run(t.Context(), []string{"-relay-ports", "-H", "unix://" + dir + "/s", "-db", dir + "/s.db", "tcp://127.0.0.1:1"},
		func(string) string { return "" }, io.Discard, io.Discard)
	if !errors.Is(err, errNoRelayAddress) {
		t.Errorf("run = %v, want %v", err, errNoRelayAddress)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}
