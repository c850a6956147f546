package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// built is the node where POST /build with this query builds.
func (f *imageFleet) built(query string) string {
	f.t.Helper()
	for _, e := range f.engines {
		e.forget()
	}
	f.must(200, "POST", "/build?"+query, strings.NewReader("a context "+query), "Content-Type", "application/x-tar")
	return f.asked("POST", "^/build$")
}

// asked names the nodes whose engines got such a request.
func (f *imageFleet) asked(method, path string) string {
	var nodes []string
	for _, e := range f.engines {
		if e.count(method, path) > 0 {
			nodes = append(nodes, e.name)
		}
	}
	return strings.Join(nodes, " ")
}

// upgrade opens an h2c stream through the cluster, as docker does for /session and
// /grpc, and returns it when the engine has switched.
func (f *imageFleet) upgrade(path string, header ...string) net.Conn {
	f.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	head := "POST " + path + " HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
	for i := 0; i < len(header); i += 2 {
		head += header[i] + ": " + header[i+1] + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "h2c" {
		f.t.Fatalf("POST %s with an upgrade = %v (%v), want 101 h2c", path, resp, err)
	}
	return conn
}

func TestBuildsOfOneClientStickToOneNode(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, threeFakes(t)...)
	first := f.built("t=a:1")
	f.node(first).addContainer("load", "busybox", true, nil) // it has the least room now
	f.nodes.settle(t.Context())
	for i := range 5 {
		if got := f.built(fmt.Sprint("t=a:", i)); got != first {
			t.Fatalf("build %d went to %s, the first to %s", i, got, first)
		}
	}
	f.node(first).stop()
	eventually(t, 20*time.Second, func() error {
		if f.alive(f.nodeID(first)) {
			return fmt.Errorf("%s is healthy", first)
		}
		return nil
	})
	second := f.built("t=a:9")
	if second == first || second == "" {
		t.Fatalf("with %s down the build went to %q", first, second)
	}
	f.node(first).restart()
	eventually(t, 20*time.Second, func() error {
		if !f.alive(f.nodeID(first)) {
			return fmt.Errorf("%s is down", first)
		}
		return nil
	})
	if got := f.built("t=a:10"); got != second {
		t.Errorf("after %s came back builds went to %s, want %s as before", first, got, second)
	}
}

func TestClientsBuildOnNodesChosenByHash(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, threeFakes(t)...)
	used := map[string]int{}
	for i := range 60 {
		client := fmt.Sprint("address 10.0.0.", i)
		e, _, err := f.builder(t.Context(), client, &workload{})
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := f.builder(t.Context(), client, &workload{})
		if err != nil || again != e {
			t.Fatalf("%s builds on %s, then on %v (%v)", client, e.nodeName(), again, err)
		}
		used[e.nodeName()]++
	}
	for _, e := range f.engines {
		if used[e.name] < 8 {
			t.Errorf("60 clients are spread as %v", used)
		}
	}
}

func TestClientsAreToldApartByCertificate(t *testing.T) {
	t.Parallel()
	names := make(chan string, 2)
	a := testCA(t)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { names <- clientName(r) })}
	t.Cleanup(func() { server.Close() })
	go server.Serve(tls.NewListener(plain, certSourceOf(t, a.server(t, "127.0.0.1")).serverConfig(true)))
	for _, name := range []string{"alice", "bob"} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: certSourceOf(t, a.client(t, name)).clientConfig(true, "127.0.0.1")}}
		resp, err := client.Get("https://" + plain.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := <-names; got != "certificate "+name {
			t.Errorf("a client with the certificate of %s is %q", name, got)
		}
	}
}

func TestBuildArgumentsSteerABuild(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	fakes[1].labels = []string{"storage=ssd"}
	fakes[2].addImage("base:1", "")
	for _, e := range fakes { // labels are read when the engine is connected to
		e.stop()
		e.restart()
	}
	f := newImageFleet(t, fakes...)
	args := func(pairs string) string { return "t=a:1&buildargs=" + url.QueryEscape(pairs) }
	for pairs, want := range map[string]string{
		`{"constraint:storage":"=ssd"}`:                                  "node-2",
		`{"HTTP_PROXY":"http://p","constraint:node":"=node-3"}`:          "node-3",
		`{"affinity:image":"=base:1","UNSET":null}`:                      "node-3",
		`{"constraint:node!":"node-1","constraint:storage!":"ssd"}`:      "node-3",
		`{"constraint:node":"=/node-[12]/","constraint:storage!":"ssd"}`: "node-1",
	} {
		if got := f.built(args(pairs)); got != want {
			t.Errorf("build with %s went to %s, want %s", pairs, got, want)
		}
		for _, r := range f.node(want).requests() {
			q, err := url.ParseQuery(r.rawQuery)
			if err != nil || strings.Contains(q.Get("buildargs"), "constraint") || strings.Contains(q.Get("buildargs"), "affinity") {
				t.Errorf("the engine got the build arguments %s (%v)", q.Get("buildargs"), err)
			}
			if want := `{"HTTP_PROXY":"http://p"}`; strings.Contains(pairs, "PROXY") && q.Get("buildargs") != "" && q.Get("buildargs") != want {
				t.Errorf("the engine got the build arguments %s, want %s", q.Get("buildargs"), want)
			}
		}
	}
	status, answer, _ := f.call("POST", "/build?"+args(`{"constraint:storage":"=tape"}`), strings.NewReader("x"))
	if status != 503 || !strings.Contains(answer, "no node fits: 3 of 3 fail constraint storage==tape") {
		t.Errorf("build that fits nowhere = %d %s, want 503 with the reason", status, answer)
	}
	var many []string
	for i := range maxExprs + 1 {
		many = append(many, fmt.Sprintf(`"constraint:k%d":"=v"`, i))
	}
	status, answer, _ = f.call("POST", "/build?"+args("{"+strings.Join(many, ",")+"}"), strings.NewReader("x"))
	if status != 400 || !strings.Contains(answer, "over 256 expressions") {
		t.Errorf("build with 257 expressions: %d %s", status, answer)
	}
	status, answer, _ = f.call("POST", "/build?"+args(`{"constraint:storage":"ssd"}`), strings.NewReader("x"))
	if status != 400 || !strings.Contains(answer, "storage=ssd") {
		t.Errorf("build with a bad expression = %d %s, want 400 that quotes it", status, answer)
	}
	if got := f.built("buildargs=" + url.QueryEscape(`{"plain":"1"}`)); got == "" {
		t.Error("a build without expressions went nowhere")
	}
}

func TestSessionGoesWhereItsBuildGoes(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	sticky := f.built("t=a:1")
	other := fakes[slices.IndexFunc(fakes, func(e *fakeEngine) bool { return e.name != sticky })].name
	for _, order := range []string{"session first", "build first"} {
		for _, e := range fakes {
			e.forget()
		}
		id := strings.ReplaceAll(order, " ", "")
		build := func() {
			f.must(200, "POST", "/build?version=2&remote=client-session&session="+id+"&buildargs="+url.QueryEscape(`{"constraint:node":"=`+other+`"}`), nil)
		}
		session := func() { f.upgrade("/session", "X-Docker-Expose-Session-Uuid", id).Close() }
		if order == "session first" {
			done := make(chan struct{})
			go func() {
				defer close(done)
				eventually(t, 20*time.Second, func() error {
					e, _, err := f.builder(t.Context(), "address 127.0.0.1", &workload{})
					if err != nil || e.nodeName() != sticky {
						return fmt.Errorf("the client builds on %v (%v)", e, err)
					}
					return nil
				})
				build()
			}()
			session()
			<-done
		} else {
			build()
			session()
		}
		if got := f.asked("POST", "^/(session|build)$"); got != other {
			t.Errorf("%s: session and build went to %s, want both on %s", order, got, other)
		}
	}
}

func TestSessionOfBuildxWaitsForNoBuild(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, threeFakes(t)...)
	grpc := f.upgrade("/grpc")
	var took time.Duration
	for i := range 10 { // a machine that is busy may be slow too, but not every time
		began := time.Now()
		session := f.upgrade("/session", "X-Docker-Expose-Session-Uuid", fmt.Sprint("abc", i))
		if took = time.Since(began); took < sessionWait {
			break
		}
		session.Close()
	}
	if took >= sessionWait {
		t.Errorf("the session took %v beside an open gRPC connection: it waited for a POST /build that never comes", took)
	}
	if g, s := f.asked("POST", "^/grpc$"), f.asked("POST", "^/session$"); g != s || strings.Contains(g, " ") {
		t.Errorf("gRPC is on %s and the session on %s, want one node", g, s)
	}
	grpc.Close()
}

func TestImageOfABuildThatIsNotAnnouncedIsFound(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	for _, e := range fakes {
		e.addImage("app:1", "old")
	}
	f.readImages(t.Context(), f.healthyEngines()...)
	stream := f.upgrade("/grpc")
	builder := f.node(f.asked("POST", "^/grpc$"))
	other := fakes[slices.IndexFunc(fakes, func(e *fakeEngine) bool { return e != builder })]

	// What BuildKit tags while the stream is open, no event tells on 20.10.
	fresh := builder.addImage("fresh:1", "")
	if got := f.inspectID("fresh:1"); got != fresh {
		t.Errorf("fresh:1 while the build's stream is open = %s, want %s", got, fresh)
	}
	rebuilt := builder.addImage("app:1", "new")
	if status, answer := f.create("app:1", other.name); status != 201 {
		t.Fatalf("create = %d %s", status, answer)
	}
	if got := imageOf(other, "app:1"); got != rebuilt {
		t.Errorf("app:1 on %s = %s, want what was built just now, %s", other.name, got, rebuilt)
	}

	// And what it tagged last, before it hung up.
	late := builder.addImage("late:1", "")
	stream.Close()
	if status, answer := f.create("late:1", other.name); status != 201 {
		t.Errorf("create of what was built a moment ago = %d %s, want 201", status, answer)
	}
	if got := imageOf(other, "late:1"); got != late {
		t.Errorf("late:1 on %s = %s, want %s", other.name, got, late)
	}
	if status, _ := f.create("nosuch:1", other.name); status != 404 {
		t.Errorf("create of what nobody has = %d, want 404", status)
	}
}

func TestTagsOfABuildMeanItsImage(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	for _, version := range []string{"1", "2"} {
		for _, e := range fakes {
			e.addImage("one:1", "old"+version)
			e.addImage("two:1", "old"+version)
		}
		f.readImages(t.Context(), f.healthyEngines()...)
		node := f.built("t=one:1&t=two:1&version=" + version)
		for _, tag := range []string{"one:1", "two:1"} {
			if got, want := f.inspectID(tag), imageOf(f.node(node), tag); got != want {
				t.Errorf("%s after a build with version=%s = %s, want %s", tag, version, got, want)
			}
		}
	}
}

func TestFailedBuildSetsNoTag(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	e, _, err := f.builder(t.Context(), "address 127.0.0.1", &workload{})
	if err != nil {
		t.Fatal(err)
	}
	builder := f.node(e.nodeName())
	setter := fakes[slices.IndexFunc(fakes, func(e *fakeEngine) bool { return e != builder })]
	f.pullOn(setter.name, "app:1")
	want := f.inspectID("app:1")
	builder.addImage("app:1", "stale")
	f.readImages(t.Context(), f.healthyEngines()...)
	if got := f.inspectID("app:1"); got != want {
		t.Fatalf("app:1 before the build = %s, want %s", got, want)
	}
	builder.override("POST", "^/build$", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, `{"stream":"Step 1/2 : FROM busybox\n"}`)
		fmt.Fprintln(w, `{"errorDetail":{"code":1,"message":"The command '/bin/sh -c false' returned a non-zero code: 1"},"error":"The command '/bin/sh -c false' returned a non-zero code: 1"}`)
	})
	f.must(200, "POST", "/build?t=app:1", strings.NewReader("x"))
	if got := f.inspectID("app:1"); got != want {
		t.Errorf("app:1 after a build that failed = %s, want %s as before", got, want)
	}
}

func TestBuildPruneAndCancelReachAllBuilders(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	for _, e := range fakes {
		e.override("POST", "^/build/prune$", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"CachesDeleted":["%s"],"SpaceReclaimed":7}`, e.name)
		})
		e.override("POST", "^/build/cancel$", func(http.ResponseWriter, *http.Request) {})
	}
	f := newImageFleet(t, fakes...)
	var pruned struct {
		CachesDeleted  []string
		SpaceReclaimed int
	}
	if err := json.Unmarshal([]byte(f.must(200, "POST", "/build/prune", nil)), &pruned); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(pruned.CachesDeleted, []string{"node-1", "node-2", "node-3"}) || pruned.SpaceReclaimed != 21 {
		t.Errorf("build prune = %+v, want all three nodes' caches and 21 bytes", pruned)
	}
	node := f.built("t=a:1")
	f.must(200, "POST", "/build/cancel?id=abc", nil)
	if got := f.asked("POST", "^/build/cancel$"); got != node {
		t.Errorf("cancel reached %q, want %s, which builds", got, node)
	}
}

func TestBuildPassesCredentialsAndKeepsNone(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, threeFakes(t)...)
	secret := "eyJyZWcudGVzdCI6eyJwYXNzd29yZCI6Imh1bnRlcjIifX0="
	f.must(200, "POST", "/build?t=a:1", strings.NewReader("x"), "X-Registry-Config", secret)
	found := false
	for _, e := range f.engines {
		for _, r := range e.requests() {
			found = found || r.header.Get("X-Registry-Config") == secret
		}
	}
	if !found {
		t.Error("the engine did not get the credentials")
	}
	if strings.Contains(f.log.String(), secret) || strings.Contains(f.log.String(), "hunter2") {
		t.Error("the log holds credentials")
	}
}
