package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// message is what an error answer says; "" if it is not Docker's JSON.
func message(answer string) string {
	var m map[string]any
	if json.Unmarshal([]byte(answer), &m) != nil || len(m) != 1 {
		return ""
	}
	text, _ := m["message"].(string)
	return text
}

// raw sends a request line and a header as they are and returns the first answer.
func (f *front) raw(t testing.TB, head, body string) (status int, answer string) {
	t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	go io.WriteString(c, head+body) // a server that refuses may not read to the end
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, err.Error()
	}
	return resp.StatusCode, string(data)
}

// S5, S6
func TestOddPathsAndQueriesReachNoEngine(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "web", sleepBody)
	f.oracle(t)
	e.forget()
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /containers/../info", 400},
		{"GET /containers/./json", 400},
		{"GET /containers/web/../../info", 400},
		{"DELETE /containers/..", 400},
		{"DELETE /containers/%2e%2e", 400},
		{"DELETE /containers/%2E/web", 400},
		{"DELETE /containers/web/..", 400},
		{"DELETE /containers/web%2f..%2fweb", 400},
		{"GET /images/a/../b/json", 400},
		{"GET /images/%2e%2e/json", 400},
		{"DELETE //containers/web", 404},
		{"DELETE /containers//web", 404},
		{"DELETE /containers/web//", 404},
		{"GET /images//json", 301}, // to itself, clean; see below
		{"DELETE /containers/%2fweb", 404},
		{"DELETE /containers/web%00", 400},
		{"DELETE /containers/%00", 400},
		{"DELETE /containers/web%0d%0aX-Evil:%20yes", 400},
		{"DELETE /containers/web%0a", 400},
		{"DELETE /containers/web%1b[2J", 400},
		{"DELETE /containers/web%7f", 400},
		{"DELETE /containers/..;", 404},
		{"DELETE /containers/web;v=1", 404},
		{"DELETE /containers/web%3bv=1", 404},
		{"DELETE /containers/web#x", 404},
		{"DELETE /containers/web%23", 404},
		{"DELETE /containers/web%3Fforce=1", 404},
		{"DELETE /containers/", 400},
		{"DELETE /containers", 404},
		{"DELETE /containers/%zz", 400},
		{"DELETE /containers/web%", 400},
		{"DELETE /containers/web?force=%zz", 400},
		{"DELETE /containers/web?force=1;v=1", 400},
		{"DELETE /containers/web?v=1&force=1;x", 400},
		{"GET /containers/json?filters=%", 400},
		// S25: wildcards of SQL are letters
		{"DELETE /containers/%25?force=1", 404},
		{"DELETE /containers/%25%25?force=1", 404},
		{"DELETE /containers/_?force=1", 404},
		{"DELETE /containers/we_?force=1", 404},
		{"DELETE /containers/*?force=1", 404},
		{"DELETE /containers/[a-z]*?force=1", 404},
		{"DELETE /containers/web'--?force=1", 404},
		{"DELETE /containers/x'%20OR%20'1'='1?force=1", 404},
		{"DELETE /containers/" + strings.ToUpper(id) + "?force=1", 404},
		{"DELETE /containers/" + strings.Repeat("a", 100_000), 404},
		// version prefixes
		{"DELETE /v1.41/v1.41/containers/web", 404},
		{"DELETE /v1/containers/web", 400},
		{"DELETE /v1.41.0/containers/web", 404},
		{"DELETE /v01.41/containers/web", 404},
		{"DELETE /v1.041/containers/web", 404},
		{"DELETE /v+1.41/containers/web", 404},
		{"DELETE /v-1.41/containers/web", 404},
		{"DELETE /v1.41x/containers/web", 404},
		{"DELETE /v1.4%31/../containers/web", 400},
		{"DELETE /V1.41/containers/web", 404},
		{"DELETE /v/containers/web", 404},
		{"DELETE /v1./containers/web", 400},
		{"DELETE /v.41/containers/web", 400},
		{"DELETE /v1.99999999999999999999/containers/web", 400},
		{"DELETE /v1.41", 404},
		{"DELETE /v1.41/", 404},
		{"DELETE /v9.99/containers/web", 400},
		{"DELETE /v1.0/containers/web", 400},
		// methods and paths that are nobody's
		{"POST /info", 404},
		{"PUT /containers/json", 404},
		{"PATCH /containers/web", 404},
		{"FROBNICATE /containers/web", 404},
		{"OPTIONS /containers/json", 200}, // of its own kind: it allows nothing
		{"OPTIONS *", 400},
		{"TRACE /containers/web", 404},
		{"CONNECT /containers/web", 404},
		{"GET /nosuch", 404},
		{"GET /", 404},
		{"GET /containers/web", 404},
		{"GET /containers/json/", 404},
		{"GET /info/", 404},
		{"DELETE http://docker/containers/web", 400},
		{"DELETE containers/web", 400},
		{"GET /containers/web/frobnicate", 404},
	} {
		status, answer := f.raw(t, c.request+" HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n", "")
		if status != c.status || status == 404 && message(answer) == "" {
			t.Errorf("%.80s = %d %.200s, want %d", c.request, status, answer, c.status)
		}
	}
	for _, r := range e.requests() {
		if bare, _ := fakeSplitVersion(r.path); bare != "/_ping" && bare != "/containers/json" && bare != "/images/json" {
			t.Errorf("%s %.80s reached the engine", r.method, r.path)
		}
	}
	if got := e.containerNames(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("containers = %q, want web", got)
	}
	// S6: a slash in an image's name may be encoded.
	e.addImage("lib/tool:1", "")
	eventually(t, 20*time.Second, func() error {
		for _, path := range []string{"lib/tool:1", "lib%2Ftool:1", "lib%2ftool%3A1"} {
			if status, answer := f.raw(t, "GET /images/"+path+"/json HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n", ""); status != 200 {
				return fmt.Errorf("inspect of %s = %d %s", path, status, answer)
			}
		}
		return nil
	})
}

// docker-py asks for /containers//web/json when it is given the name that inspect tells, /web.
// An engine sends such a read to the clean path. A write goes nowhere (S6).
func TestReadsWithADoubledSlashAreSentToTheCleanPath(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	f.make(t, "web", sleepBody)
	client := &http.Client{Timeout: 2 * time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, c := range []struct {
		method, path, host string
		status             int
		location           string
	}{
		{"GET", "/v1.41/containers//web/json?size=1&x=a%20b", "docker", 301, "/v1.41/containers/web/json?size=1&x=a%20b"},
		{"HEAD", "/containers//web/archive?path=/etc", "docker", 301, "/containers/web/archive?path=/etc"},
		{"GET", "/containers/%2Fweb/json", "docker", 301, "/containers/web/json"},
		{"GET", "//docker.example/info", "docker", 301, "/docker.example/info"},
		{"GET", "/v1.41//info//", "docker", 301, "/v1.41/info/"},
		{"GET", "/containers//web/json", "docker.example", 403, ""},
		{"GET", "/containers//../json", "docker", 400, ""},
		{"POST", "/containers//web/stop", "docker", 404, ""},
		{"DELETE", "/containers//web", "docker", 404, ""},
	} {
		req, err := http.NewRequest(c.method, "http://"+f.addr+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != c.status || got != c.location {
			t.Errorf("%s %s of %s = %d, Location %q, want %d, %q", c.method, c.path, c.host, resp.StatusCode, got, c.status, c.location)
		}
	}
}

func TestAnUnknownPathIsAnsweredInDockersWords(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	for _, c := range [][2]string{{"GET", "/nosuch"}, {"POST", "/info"}, {"PUT", "/v1.41/images/json"}, {"GET", "/v1.41/nosuch"}} {
		status, answer := f.call(t, c[0], c[1], "")
		if status != 404 || strings.TrimSpace(answer) != `{"message":"page not found"}` {
			t.Errorf("%s %s = %d %s, want 404 page not found", c[0], c[1], status, answer)
		}
	}
}

func TestWhatNeverWorksIsNotToBeTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	for path, want := range map[string]string{"/services/create": "", "/swarm/leave": "", "/containers/create": "5"} {
		resp, err := http.Post("http://"+f.addr+path, "application/json", strings.NewReader(`{"Image":"busybox","Env":["constraint:storage==tape"]}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Retry-After"); resp.StatusCode != 503 || got != want {
			t.Errorf("POST %s = %d, Retry-After %q, want 503, %q", path, resp.StatusCode, got, want)
		}
	}
}

// S12
func TestWebPagesAreRefused(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	for _, c := range []struct {
		host, header string
		status       int
	}{
		{"docker", "", 200},
		{"localhost", "", 200},
		{"localhost:2375", "", 200},
		{"LOCALHOST", "", 200},
		{"127.0.0.1:2375", "", 200},
		{"[::1]:2375", "", 200},
		{"", "", 200},
		{"192.168.1.5", "", 200},
		{"evil.example", "", 403},
		{"evil.example:2375", "", 403},
		{"127.0.0.1.evil.example", "", 403},
		{"localhost.evil.example", "", 403},
		{"docker.evil.example", "", 403},
		{"docker", "Origin: http://evil.example\r\n", 403},
		{"docker", "Origin: null\r\n", 403},
		{"127.0.0.1:2375", "Origin: http://127.0.0.1:2375\r\n", 403},
		{"docker", "Sec-Fetch-Site: cross-site\r\n", 403},
		{"docker", "Sec-Fetch-Site: none\r\n", 200},
	} {
		for _, line := range []string{"GET /info", "POST /containers/prune", "DELETE /containers/web", "OPTIONS /info"} {
			w := f.wire(t)
			w.send(line + " HTTP/1.1\r\nHost: " + c.host + "\r\n" + c.header + "Content-Length: 0\r\nConnection: close\r\n\r\n")
			resp := w.answer()
			if refused := resp.StatusCode == 403; refused != (c.status == 403) {
				t.Errorf("%s for host %q with %q = %s, want %d", line, c.host, c.header, resp.Status, c.status)
			}
			for k := range resp.Header {
				if strings.HasPrefix(k, "Access-Control-") {
					t.Errorf("%s with %q is answered with %s", line, c.header, k)
				}
			}
		}
	}
}

// S21
func TestRequestsOverALimitAreRefused(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	f.make(t, "web", sleepBody)
	deep := func(n int) string {
		return `{"Image":"busybox","X":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
	}
	values := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprint("l", i))
		}
		return url.QueryEscape(jsonText(map[string][]string{"label": list}))
	}
	exprs := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("constraint:l%d!=x", i))
		}
		return jsonText(map[string]any{"Image": "busybox", "Env": list})
	}
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		words              string
	}{
		"a body of 17 MiB":      {"POST", "/containers/create", `{"Image":"busybox","X":"` + strings.Repeat("x", 17<<20) + `"}`, 413, "16 MiB"},
		"a body of 15 MiB":      {"POST", "/containers/create", `{"Image":"busybox","X":"` + strings.Repeat("x", 15<<20) + `"}`, 201, ""},
		"an exec's body":        {"POST", "/exec/x/start", `{"X":"` + strings.Repeat("x", 17<<20) + `"}`, 404, ""},
		"201 levels":            {"POST", "/containers/create", deep(201), 400, "200"},
		"200 levels":            {"POST", "/containers/create", deep(200), 201, ""},
		"a million levels":      {"POST", "/containers/create", strings.Repeat(`{"a":`, 1_000_000), 400, "200"},
		"256 filter values":     {"GET", "/containers/json?filters=" + values(256), "", 200, ""},
		"257 filter values":     {"GET", "/containers/json?filters=" + values(257), "", 400, "256"},
		"a filter's deep JSON":  {"GET", "/containers/json?filters=" + strings.Repeat("[", 20_000), "", 400, "invalid filter"},
		"a pattern over 1 KiB":  {"GET", "/containers/json?filters=" + url.QueryEscape(`{"name":["`+strings.Repeat("a", 1025)+`"]}`), "", 200, ""}, // as engines: it matches nothing
		"a pattern that is bad": {"GET", "/containers/json?filters=" + url.QueryEscape(`{"name":["a("]}`), "", 200, ""},
		"a pattern that grows":  {"GET", "/containers/json?filters=" + url.QueryEscape(`{"name":["((a{500}){500}){500}"]}`), "", 200, ""},
		"256 expressions":       {"POST", "/containers/create", exprs(256), 201, ""},
		"257 expressions":       {"POST", "/containers/create", exprs(257), 400, "256 expressions"},
		"an expression of 5 KiB": {"POST", "/containers/create",
			jsonText(map[string]any{"Image": "busybox", "Env": []string{"constraint:a!=" + strings.Repeat("x", 5<<10)}}), 400, "constraint"},
		"a name of 255 bytes":     {"POST", "/containers/create?name=" + strings.Repeat("n", 255), sleepBody, 201, ""},
		"a name of 256 bytes":     {"POST", "/containers/create?name=" + strings.Repeat("n", 256), sleepBody, 400, "255"},
		"a new name of 256 bytes": {"POST", "/containers/web/rename?name=" + strings.Repeat("n", 256), "", 400, "255"},
	} {
		t.Run(name, func(t *testing.T) {
			status, answer := f.raw(t, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
				c.method, c.path, len(c.body)), c.body)
			if status != c.status || !strings.Contains(message(answer), c.words) {
				t.Errorf("= %d %.300s, want %d that says %q", status, answer, c.status, c.words)
			}
		})
	}
	t.Run("a header over 1 MiB", func(t *testing.T) {
		status, _ := f.raw(t, "GET /info HTTP/1.1\r\nHost: docker\r\nX: "+strings.Repeat("x", 2<<20)+"\r\n\r\n", "")
		if status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("= %d, want 431", status)
		}
	})
	f.oracle(t)
}

// S28, F50
func TestF50APanicIsOne500(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	f.api.router = f.api.route(append(slices.Clone(routes), route{"GET", "/panic", func(*cluster, http.ResponseWriter, *http.Request, *call) error {
		panic("panic of the test: secret /etc/path")
	}}))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			path, want := "/panic", 500
			if i%2 == 0 {
				path, want = "/info", 200
			}
			if status, answer := f.call(t, "GET", path, ""); status != want || want == 500 && message(answer) != "internal error" {
				t.Errorf("%s = %d %s, want %d", path, status, answer, want)
			}
		})
	}
	wg.Wait()
	if n := f.api.panics.Load(); n != 10 {
		t.Errorf("%d panics counted, want 10", n)
	}
	if !strings.Contains(f.logged(), "panic of the test") {
		t.Error("the panic is not in the log")
	}
	faultHeld(t, 50, "10 panics among 20 requests: 10 times 500, counted, the others answered")
}

func TestF40MalformedRequestsNeverMakeUsFail(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) { e.keep = 50 })
	f := newFront(t, e)
	id := f.make(t, "web", sleepBody)
	seeds := []string{
		"POST /v1.41/containers/create?name=n HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n" +
			`{"Image":"busybox","Env":["constraint:a==b"],"Labels":{"a":"b"},"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"1"}]},"Memory":1}}`,
		"POST /containers/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n{\"Image\":\"busybox\"}\r\n0\r\n\r\n",
		"GET /containers/json?all=1&limit=3&filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%2C%22before%22%3A%7B%22web%22%3Atrue%7D%7D HTTP/1.1\r\nHost: docker\r\n\r\n",
		"GET /events?since=1&until=2.5&filters=%7B%22type%22%3A%5B%22container%22%5D%7D HTTP/1.1\r\nHost: docker\r\n\r\n",
		"POST /containers/web/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello",
		"POST /containers/web/exec HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n" + `{"Cmd":["true"]}`,
		"POST /exec/" + strings.Repeat("a", 64) + "/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 2\r\n\r\n{}",
		"POST /containers/" + id + "/rename?name=web2 HTTP/1.1\r\nHost: docker\r\n\r\n",
		"POST /containers/" + id + "/update HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"Memory\":1024}",
		"GET /containers/web/logs?stdout=1&tail=all HTTP/1.1\r\nHost: docker\r\n\r\n",
		"GET /images/json?filters=%7B%22reference%22%3A%7B%22b*%22%3Atrue%7D%7D HTTP/1.1\r\nHost: docker\r\n\r\n",
		"POST /images/create?fromImage=busybox&tag=latest HTTP/1.1\r\nHost: docker\r\nX-Registry-Auth: e30=\r\n\r\n",
		"POST /networks/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n" + `{"Name":"n"}`,
		"POST /volumes/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n" + `{"Name":"v"}`,
		"GET /containers/web/archive?path=/tmp HTTP/1.1\r\nHost: docker\r\n\r\n",
		"POST /build?t=x&buildargs=%7B%22a%22%3A%22b%22%7D HTTP/1.1\r\nHost: docker\r\nContent-Length: 4\r\n\r\ntar!",
		"POST /commit?container=web&repo=r HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n",
		"GET /nodes?filters=%7B%7D HTTP/1.1\r\nHost: docker\r\n\r\n",
		"POST /containers/prune?filters=%7B%22label%22%3A%5B%22x%22%5D%7D HTTP/1.1\r\nHost: docker\r\n\r\n",
	}
	tokens := []string{"{", "}", "[", "]", "\"", "null", "true", "-1", "1e999", "\\u0000", "\\ud800", "%00", "%2f", "%", "&", "=", ";", "\r\n", "\x00", "\xff", "/", "..", "//",
		"99999999999999999999", "HTTP/1.0", "HTTP/2.0", "Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\n", "Content-Length: -1\r\n", "Expect: 100-continue\r\n",
		"Upgrade: h2c\r\n", "\"Labels\":[]", "\"HostConfig\":null", "\"hostconfig\":{}", "\"Env\":[null]", "\"Mounts\":[{}]", "\"PortBindings\":{\"x\":null}", "container:", "constraint:"}
	random := mrand.New(mrand.NewPCG(1, 2))
	mutate := func(s string) string {
		b := []byte(s)
		for range 1 + random.IntN(4) {
			at := random.IntN(len(b) + 1)
			switch random.IntN(6) {
			case 0: // cut
				b = b[:at]
			case 1: // change a byte
				if at < len(b) {
					b[at] = byte(random.IntN(256))
				}
			case 2: // put a token in
				b = slices.Insert(b, at, []byte(tokens[random.IntN(len(tokens))])...)
			case 3: // leave some out
				b = slices.Delete(b, at, min(len(b), at+random.IntN(20)))
			case 4: // double some
				b = slices.Insert(b, at, b[at:min(len(b), at+random.IntN(40))]...)
			case 5: // replace by a token
				b = slices.Replace(b, at, min(len(b), at+random.IntN(8)), []byte(tokens[random.IntN(len(tokens))])...)
			}
		}
		return string(b)
	}
	ask := func(addr, request string) (status int, answer string) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(c, request)
		c.(*net.TCPConn).CloseWrite()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, ""
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return resp.StatusCode, string(data)
	}
	requests := make(chan string)
	var wg sync.WaitGroup
	seen, ours := [6]atomic.Int64{}, atomic.Int64{}
	for range 8 {
		wg.Go(func() {
			for request := range requests {
				status, answer := ask(f.addr, request)
				seen[min(status/100, 5)].Add(1)
				if status < 500 || status == http.StatusNotImplemented {
					continue
				}
				// What an engine fails at, we may pass on.
				if direct, _ := ask(e.addr(), request); direct != status {
					ours.Add(1)
					t.Errorf("%q\n = %d %s; of an engine %d", request, status, answer, direct)
				}
			}
		})
	}
	for range 3000 {
		requests <- mutate(seeds[random.IntN(len(seeds))])
	}
	close(requests)
	wg.Wait()
	faultCount(t, 40, "5xx of ours in 3,000 malformed requests", ours.Load(), 0, "")
	t.Logf("connection closed %d, 1xx %d, 2xx %d, 3xx %d, 4xx %d, 5xx %d", seen[0].Load(), seen[1].Load(), seen[2].Load(), seen[3].Load(), seen[4].Load(), seen[5].Load())
	if status, _ := f.call(t, "GET", "/info", ""); status != 200 {
		t.Errorf("info afterwards = %d", status)
	}
}
