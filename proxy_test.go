package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// hooked has the engine answer path with hook, as a raw connection: what came with
// the request's header and body was read, the rest is in.
func hooked(e *fakeEngine, path string, hook func(conn *net.TCPConn, in io.Reader)) {
	e.override("POST", path, func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Minute))
		early, _ := buffered.Peek(buffered.Reader.Buffered())
		counted, _ := fakeConnOf(conn)
		hook(counted.Conn.(*net.TCPConn), io.MultiReader(bytes.NewReader(early), conn))
	})
}

const (
	switching = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	rawStream = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
)

// --- joining -----------------------------------------------------------------

func TestAttachAndExecJoinBothEnds(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "term", ttyBody)
	bodies := map[string]string{
		"no body":    "\r\n",
		"empty body": "Content-Length: 0\r\n\r\n",
		"JSON body":  "Content-Type: application/json\r\nContent-Length: 28\r\n\r\n" + `{"Detach":false,"Tty": true}`,
		"chunked":    "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n" + `{"Detach":fals` + "\r\ne\r\n" + `e,"Tty": true}` + "\r\n0\r\n\r\n",
	}
	for _, call := range []string{"attach", "exec"} {
		for _, upgrade := range []bool{true, false} {
			for kind, body := range bodies {
				t.Run(fmt.Sprintf("%s, upgrade %v, %s", call, upgrade, kind), func(t *testing.T) {
					t.Parallel()
					path := "/containers/" + id + "/attach?stream=1&stdin=1&stdout=1"
					if call == "exec" {
						if kind == "no body" || kind == "empty body" {
							body = bodies["JSON body"] // an exec start without one is not a terminal's
						}
						path = "/exec/" + f.exec(t, id, `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["cat"]}`) + "/start"
					}
					w := f.wire(t)
					header, status := "", http.StatusOK
					if upgrade {
						header, status = "Connection: Upgrade\r\nUpgrade: tcp\r\n", http.StatusSwitchingProtocols
					}
					// The first input comes in one packet with the request.
					w.send("POST " + path + " HTTP/1.1\r\nHost: docker\r\n" + header + body + "early ")
					resp := w.answer()
					if resp.StatusCode != status || resp.Header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
						t.Fatalf("answer = %s %v, want %d and a raw stream", resp.Status, resp.Header, status)
					}
					if got := resp.Header.Get("Upgrade"); upgrade && got != "tcp" || !upgrade && got != "" {
						t.Errorf("Upgrade in the answer = %q", got)
					}
					w.send("late")
					if err := w.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					if got := w.rest(); got != "early late" {
						t.Errorf("stream = %q, want what was typed and nothing else", got)
					}
				})
			}
		}
	}
}

func TestBytesThatComeWithTheHeaderAreNotLost(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{"101": switching, "200": rawStream} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newFakeEngine(t)
			f := newFront(t, e)
			id := f.make(t, "box", ttyBody)
			got := make(chan string, 1)
			hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
				io.WriteString(conn, head+"engine's first")
				data, _ := io.ReadAll(in)
				got <- string(data)
			})
			w := f.wire(t)
			upgrade := ""
			if name == "101" {
				upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
			}
			w.send("POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\n" + upgrade + "\r\nclient's first")
			w.answer()
			first := make([]byte, len("engine's first"))
			if _, err := io.ReadFull(w.in, first); err != nil || string(first) != "engine's first" {
				t.Errorf("stream begins %q, %v", first, err)
			}
			w.CloseWrite()
			if in := within(t, got, 20*time.Second); in != "client's first" {
				t.Errorf("the engine got %q, want %q", in, "client's first")
			}
		})
	}
}

func TestAnAttachWhoseClientHasHalfClosedBeforehandIsJoined(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		io.WriteString(conn, switching)
		data, _ := io.ReadAll(in)
		io.WriteString(conn, "heard "+string(data))
	})
	w := f.wire(t)
	w.send("POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	w.CloseWrite() // as a shell does with printf and nc -N
	if resp := w.answer(); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answer = %s", resp.Status)
	}
	if got := w.rest(); got != "heard " {
		t.Errorf("stream = %q", got)
	}
}

func TestHalfCloseGoesBothWays(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	attach := "POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	t.Run("the client's, and output goes on", func(t *testing.T) {
		hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
			io.WriteString(conn, switching)
			data, err := io.ReadAll(in) // answers only when the client has said all
			for range 100 {
				fmt.Fprintf(conn, "%s %v\n", data, err)
			}
		})
		w := f.wire(t)
		w.send(attach)
		w.answer()
		w.send("all")
		w.CloseWrite()
		if got := w.rest(); got != strings.Repeat("all <nil>\n", 100) {
			t.Errorf("output after the half-close = %q", got)
		}
	})
	t.Run("the engine's, and input goes on", func(t *testing.T) {
		got := make(chan string, 1)
		hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
			io.WriteString(conn, switching+"bye")
			conn.CloseWrite()
			data, _ := io.ReadAll(in)
			got <- string(data)
		})
		w := f.wire(t)
		w.send(attach)
		w.answer()
		if out := w.rest(); out != "bye" {
			t.Errorf("output = %q, want bye", out)
		}
		w.send("still here")
		w.CloseWrite()
		if in := within(t, got, 20*time.Second); in != "still here" {
			t.Errorf("the engine got %q after its half-close, want %q", in, "still here")
		}
	})
}

// noise is n random bytes, again and again the same megabyte, with the hash of all.
func noise(w io.Writer, n int) hash.Hash {
	block := make([]byte, 1<<20)
	rand.Read(block)
	h := sha256.New()
	for n > 0 {
		piece := block[:min(n, len(block)-n%7)] // odd lengths, too
		h.Write(piece)
		if _, err := w.Write(piece); err != nil {
			break
		}
		n -= len(piece)
	}
	return h
}

func TestF34AttachIsByteExactFor100MiBEachWay(t *testing.T) {
	t.Parallel()
	const size = 100 << 20
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	sent, got := make(chan string, 1), make(chan string, 1)
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		io.WriteString(conn, switching)
		out := make(chan string)
		go func() {
			h := noise(conn, size)
			conn.CloseWrite()
			out <- fmt.Sprintf("%x", h.Sum(nil))
		}()
		h := sha256.New()
		n, _ := io.Copy(h, in)
		got <- fmt.Sprintf("%d %x", n, h.Sum(nil))
		sent <- fmt.Sprintf("%d %s", size, <-out)
	})
	w := f.wire(t)
	w.send("POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	w.answer()
	began := time.Now()
	input := make(chan string)
	go func() {
		h := noise(w.TCPConn, size)
		w.CloseWrite()
		input <- fmt.Sprintf("%d %x", size, h.Sum(nil))
	}()
	h := sha256.New()
	n, err := io.Copy(h, w.in)
	if err != nil {
		t.Fatalf("output: %v", err)
	}
	if out, want := fmt.Sprintf("%d %x", n, h.Sum(nil)), within(t, sent, time.Minute); out != want {
		t.Errorf("output arrived as %s, want %s", out, want)
	}
	if in, want := within(t, got, time.Minute), within(t, input, time.Minute); in != want {
		t.Errorf("input arrived as %s, want %s", in, want)
	}
	faultHeld(t, 34, fmt.Sprintf("100 MiB each way equal by hash, in %v", time.Since(began).Round(time.Millisecond)))
}

// --- refusals ----------------------------------------------------------------

// F71: classic Swarm joined the connections before it had read the engine's answer,
// so that after a refusal the client talked to the engine.
func TestF71AfterARefusedUpgradeNothingReachesAnEngine(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() {
		faultHeld(t, 71, "35 refused upgrades, each with a second request before and after: 0 reached an engine")
	})
	for _, status := range []int{400, 403, 404, 409, 500, 503, 0} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			e := newFakeEngine(t)
			f := newFront(t, e)
			id := f.make(t, "box", ttyBody)
			exec := f.exec(t, id, `{"Cmd":["cat"]}`)
			if status == 0 { // a container that no engine has: the refusal is ours
				id, exec = "nosuch", "nosuch"
			} else {
				e.fail("POST", "/(attach|start)$", status, "")
				e.fail("GET", "/attach/ws$", status, "")
			}
			for _, head := range []string{
				"POST /containers/" + id + "/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
				"POST /containers/" + id + "/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\n\r\n",
				"POST /exec/" + exec + "/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}",
				"POST /exec/" + exec + "/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 2\r\n\r\n{}",
				"GET /containers/" + id + "/attach/ws?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
			} {
				w := f.wire(t)
				// The second request comes once early and once after the refusal.
				second := "GET /smuggled?through=the-pipe HTTP/1.1\r\nHost: docker\r\n\r\n"
				w.send(head + second)
				resp := w.answer()
				data, err := io.ReadAll(resp.Body)
				want := status
				if want == 0 {
					want = http.StatusNotFound
				}
				if resp.StatusCode != want || err != nil || !json.Valid(data) {
					t.Errorf("%.40s: answer = %s %s %v, want %d as JSON", head, resp.Status, data, err, want)
				}
				io.WriteString(w.TCPConn, second) // may fail: the connection is closed
				if more, _ := io.ReadAll(w.in); len(more) > 0 {
					t.Errorf("%.40s: after the refusal came %q, want the end of the connection", head, more)
				}
			}
			if n := e.count("", "smuggled"); n > 0 {
				t.Errorf("%d requests reached the engine through a refused upgrade", n)
			}
		})
	}
}

func TestAnUpgradeIsPassedOnlyWhereItBelongs(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	for _, c := range []struct {
		method, path, protocol string
		passed                 string
	}{
		{"POST", "/containers/" + id + "/attach?stream=1", "tcp", "tcp"},
		{"POST", "/containers/" + id + "/attach?stream=1", "TCP", "tcp"},
		{"POST", "/containers/" + id + "/attach?stream=1", "h2c", ""},
		{"POST", "/containers/" + id + "/attach?stream=1", "websocket", ""},
		{"GET", "/containers/" + id + "/attach/ws?stream=1", "websocket", "websocket"},
		{"GET", "/containers/" + id + "/attach/ws?stream=1", "tcp", ""},
		{"POST", "/exec/" + f.exec(t, id, `{"Cmd":["cat"]}`) + "/start", "tcp", "tcp"},
		{"POST", "/exec/" + f.exec(t, id, `{"Cmd":["cat"]}`) + "/start", "h2c", ""},
		{"GET", "/containers/" + id + "/json", "tcp", ""},
		{"GET", "/containers/" + id + "/json", "h2c", ""},
		{"GET", "/containers/" + id + "/logs?stdout=1", "tcp", ""},
		{"POST", "/containers/" + id + "/wait", "h2c", ""},
		{"POST", "/containers/create", "h2c", ""},
		{"POST", "/containers/" + id + "/kill", "websocket", ""},
	} {
		t.Run(c.method+" "+strings.Replace(c.path, id, "ID", 1)+" "+c.protocol, func(t *testing.T) {
			e.forget()
			w := f.wire(t)
			w.send(c.method + " " + c.path + " HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " + c.protocol +
				"\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Type: application/json\r\nContent-Length: " + fmt.Sprint(len(sleepBody)) + "\r\n\r\n" + sleepBody)
			bare, _, _ := strings.Cut(c.path, "?")
			var got *fakeRequest
			eventually(t, 20*time.Second, func() error {
				for _, r := range e.requests() {
					if r.method == c.method && strings.HasSuffix(r.path, bare) {
						got = &r
						return nil
					}
				}
				return errors.New("the engine was not asked")
			})
			if v := got.header.Get("Upgrade"); v != c.passed {
				t.Errorf("Upgrade at the engine = %q, want %q", v, c.passed)
			}
			want := ""
			if c.passed != "" {
				want = "Upgrade"
			}
			if v := got.header.Get("Connection"); v != want {
				t.Errorf("Connection at the engine = %q, want %q", v, want)
			}
			if v := got.header.Get("Http2-Settings"); v != "" {
				t.Errorf("HTTP2-Settings = %q reached the engine", v)
			}
		})
	}
}

func TestF21AnswersThatNoEngineGivesAre502(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	attach := "POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	plainAttach := "POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\n\r\n"
	inspect := "GET /containers/" + id + "/top HTTP/1.1\r\nHost: docker\r\n\r\n"
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a redirect was followed")
	}))
	defer elsewhere.Close()
	for _, c := range []struct{ name, request, path, answer string }{
		{"301", inspect, "/top$", "HTTP/1.1 301 Moved Permanently\r\nLocation: " + elsewhere.URL + "\r\nContent-Length: 0\r\n\r\n"},
		{"307 with a body", inspect, "/top$", "HTTP/1.1 307 Temporary Redirect\r\nLocation: " + elsewhere.URL + "/x\r\nContent-Length: 3\r\n\r\nbye"},
		{"101 that nobody asked for", inspect, "/top$", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello"},
		{"no HTTP", inspect, "/top$", "\x00\x01\x02 garbage\r\n\r\n"},
		{"no answer", inspect, "/top$", ""},
		{"half a header", inspect, "/top$", "HTTP/1.1 200 OK\r\nContent-Le"},
		{"200 to an upgrade", attach, "/attach$", rawStream + "hello"},
		{"101 to another protocol", attach, "/attach$", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nhello"},
		{"301 to an upgrade", attach, "/attach$", "HTTP/1.1 302 Found\r\nLocation: " + elsewhere.URL + "\r\n\r\n"},
		{"101 to an attach that asked for none", plainAttach, "/attach$", switching + "hello"},
		{"no HTTP to an upgrade", attach, "/attach$", "\x16\x03\x01 garbage"},
		{"an endless header to an upgrade", attach, "/attach$", "HTTP/1.1 101 X\r\nX-Long: " + strings.Repeat("a", 2<<20)},
		{"no answer to an upgrade", attach, "/attach$", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, _, _ := strings.Cut(c.request, " ")
			undo := e.override(method, c.path, func(w http.ResponseWriter, r *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer conn.Close()
				io.WriteString(conn, c.answer)
			})
			defer undo()
			w := f.wire(t)
			w.send(c.request)
			resp := w.answer()
			body, err := io.ReadAll(resp.Body)
			var m struct{ Message string }
			if resp.StatusCode != http.StatusBadGateway || err != nil || json.Unmarshal(body, &m) != nil || !strings.Contains(m.Message, e.name) {
				t.Errorf("answer = %s %s, want 502 that names node %s", resp.Status, body, e.name)
			}
			if strings.HasPrefix(c.request, "POST") && c.answer == "" && !strings.Contains(m.Message, "outcome unknown") {
				t.Errorf("message = %q, want it to say that the outcome is unknown", m.Message)
			}
		})
	}
	faultHeld(t, 21, "13 odd answers are 502, none was followed")
}

// --- headers, queries and bodies ---------------------------------------------

// S7
func TestHeadersThatBelongToOneConnectionStayThere(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	e.override("GET", "/top$", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: X-Engine-Hop, keep-alive\r\n"+
			"X-Engine-Hop: a\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: b\r\nUpgrade: h2c\r\nTrailer: X-T\r\n"+
			"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: *\r\nServer: Docker/99\r\nApi-Version: 9.99\r\n"+
			"X-Unheard-Of: from the engine\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n{}")
	})
	w := f.wire(t)
	dropped := map[string]string{"Connection": "X-Client-Hop, close", "X-Client-Hop": "a", "Keep-Alive": "b", "Proxy-Authorization": "c",
		"Proxy-Connection": "d", "Proxy-Whatever": "e", "TE": "trailers", "Trailer": "X-T", "Cookie": "f", "Authorization": "Basic Zzpn",
		"Forwarded": "for=1.2.3.4", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Whatever": "h", "Sec-Fetch-Mode": "cors", "Sec-Whatever": "i",
		"HTTP2-Settings": "AAMAAABk", "Expect": "100-continue", "Upgrade": "h2c"}
	kept := map[string]string{"X-Registry-Auth": "eyJhIjoiYiJ9", "X-Unheard-Of": "from the client", "Traceparent": "00-0af7-b7ad-01",
		"User-Agent": "Docker-Client/99 (plan9)", "Accept": "application/unheard-of", "X-Meta-Group": "admins"}
	head := "GET /containers/" + id + "/top?unheard=of&unheard=twice HTTP/1.1\r\nHost: localhost\r\n"
	for _, set := range []map[string]string{dropped, kept} {
		for k, v := range set {
			head += k + ": " + v + "\r\n"
		}
	}
	w.send(head + "\r\n")
	resp := w.answer()
	var got fakeRequest
	for _, r := range e.requests() {
		if strings.HasSuffix(r.path, "/top") {
			got = r
		}
	}
	for k := range dropped {
		if v := got.header.Values(k); len(v) > 0 && k != "Connection" {
			t.Errorf("%s: %q reached the engine", k, v)
		}
	}
	for k, v := range kept {
		if got.header.Get(k) != v {
			t.Errorf("%s at the engine = %q, want %q", k, got.header.Get(k), v)
		}
	}
	if got.host != e.addr() {
		t.Errorf("Host at the engine = %q, want its own, %q", got.host, e.addr())
	}
	if got.rawQuery != "unheard=of&unheard=twice" {
		t.Errorf("query at the engine = %q", got.rawQuery)
	}
	for _, k := range []string{"X-Engine-Hop", "Keep-Alive", "Proxy-Authenticate", "Upgrade", "Trailer", "Access-Control-Allow-Origin", "Access-Control-Allow-Headers"} {
		if v := resp.Header.Get(k); v != "" {
			t.Errorf("%s: %q reached the client", k, v)
		}
	}
	if resp.Header.Get("X-Unheard-Of") != "from the engine" || !slices.Equal(resp.Header.Values("X-Twice"), []string{"1", "2"}) {
		t.Errorf("header of the answer = %v, want what nobody has heard of in it", resp.Header)
	}
	if resp.Header.Get("Api-Version") != "1.41" || !strings.HasPrefix(resp.Header.Get("Server"), "swarmlite/") {
		t.Errorf("Api-Version %q, Server %q: want the cluster's own", resp.Header.Get("Api-Version"), resp.Header.Get("Server"))
	}
}

func TestFieldsThatNobodyHasHeardOfPass(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	body := `{"Image":"busybox","Frobnicate":{"Deep":[1,2.50,1e400,{"x":null}]},"Cmd":["sleep","inf"],"HostConfig":{"Unheard":"of","Memory":67108864},` +
		`"zebra":"\u003ckept\u003e","Number":12345678901234567890}`
	status, answer := f.call(t, "POST", "/v1.41/containers/create?name=odd&unheard=of&unheard=%26", body)
	if status != http.StatusCreated {
		t.Fatalf("create = %d %s", status, answer)
	}
	got := string(e.createBody("odd"))
	for _, part := range []string{`"Frobnicate":{"Deep":[1,2.50,1e400,{"x":null}]}`, `"HostConfig":{"Unheard":"of","Memory":67108864}`,
		`"zebra":"\u003ckept\u003e"`, `"Number":12345678901234567890`} {
		if !strings.Contains(got, part) {
			t.Errorf("the engine was sent %s, which lacks %s", got, part)
		}
	}
	for _, r := range e.requests() {
		if strings.HasSuffix(r.path, "/containers/create") && r.rawQuery != "name=odd&unheard=of&unheard=%26" {
			t.Errorf("query at the engine = %q", r.rawQuery)
		}
	}
	e.override("GET", "/json$", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"Id":"x","Unheard":{"Of":[1.0,2e400]},"NetworkSettings":{"New":1,"Ports":{}},"Last":12345678901234567890}`)
	})
	_, answer = f.call(t, "GET", "/containers/odd/json", "")
	for _, part := range []string{`"Unheard":{"Of":[1.0,2e400]}`, `"New":1`, `"Last":12345678901234567890`} {
		if !strings.Contains(answer, part) {
			t.Errorf("inspect = %s, which lacks %s", answer, part)
		}
	}
}
