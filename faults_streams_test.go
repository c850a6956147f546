package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHalfAnAnswerNeverLooksWhole(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	whole := strings.Repeat("0123456789abcdef", 1<<16)
	for name, head := range map[string]string{
		"with its length": fmt.Sprintf("Content-Length: %d\r\n\r\n", len(whole)),
		"in chunks":       "Transfer-Encoding: chunked\r\n\r\n100000\r\n",
	} {
		for _, path := range []string{"/export", "/top", "/json", "/logs?stdout=1&follow=1"} {
			t.Run(path+" "+name, func(t *testing.T) {
				bare, _, _ := strings.Cut(path, "?")
				undo := e.override("GET", bare+"$", func(w http.ResponseWriter, _ *http.Request) {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						return
					}
					defer conn.Close()
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"+head+whole[:len(whole)/2])
				})
				defer undo()
				resp, err := loneClient.Get("http://" + f.addr + "/containers/" + id + path)
				if err != nil {
					return // broken before it began: as good
				}
				defer resp.Body.Close()
				data, err := io.ReadAll(resp.Body)
				if err == nil && resp.StatusCode == http.StatusOK {
					t.Errorf("half an answer (%d bytes) looks whole", len(data))
				}
			})
		}
	}
	t.Run("of our own", func(t *testing.T) {
		f.api.router = f.api.route(append(slices.Clone(routes), route{"GET", "/broken", func(_ *cluster, w http.ResponseWriter, _ *http.Request, _ *call) error {
			io.WriteString(w, "[1,")
			return errors.New("no more")
		}}))
		status, data, err := f.try("GET", "/broken", "")
		if err == nil {
			t.Errorf("half an answer looks whole: %d %q", status, data)
		}
	})
}

func TestF31AClientThatLeavesEndsTheEnginesCall(t *testing.T) { // alone: it counts goroutines
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	attach := "POST /containers/" + id + "/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	execStart := func() string {
		return "POST /exec/" + f.exec(t, id, `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["cat"]}`) + "/start HTTP/1.1\r\nHost: docker\r\n" +
			"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
	}
	plain := func(path string) func() string {
		return func() string { return "GET " + path + " HTTP/1.1\r\nHost: docker\r\n\r\n" }
	}
	streams, slowest := 0, time.Duration(0)
	for name, request := range map[string]func() string{
		"attach": func() string { return attach },
		"exec":   execStart,
		"logs":   plain("/containers/" + id + "/logs?stdout=1&follow=1"),
		"stats":  plain("/containers/" + id + "/stats"),
		"events": plain("/events"),
		"wait":   func() string { return "POST /containers/" + id + "/wait HTTP/1.1\r\nHost: docker\r\n\r\n" },
	} {
		for how, leave := range map[string]func(*wire){"closes": func(w *wire) { w.Close() }, "is killed": (*wire).reset} {
			t.Run(name+" "+how, func(t *testing.T) {
				clients := 20
				if allFaults() {
					clients = 170 // a thousand of each way to leave
				}
				f.quiet(t)
				goroutines := runtime.NumGoroutine()
				var open []*wire
				for range clients {
					w := f.wire(t)
					w.send(request())
					if resp := w.answer(); resp.StatusCode > 200 {
						t.Fatalf("answer = %s", resp.Status)
					}
					open = append(open, w)
				}
				if n := e.connections(); name != "events" && n < clients {
					t.Errorf("%d connections to the engine for %d streams", n, clients)
				}
				began := time.Now()
				for _, w := range open {
					leave(w)
				}
				var took time.Duration
				eventually(t, 20*time.Second, func() error {
					f.closeIdle()
					if n := e.connections(); n > 1 {
						return fmt.Errorf("%d connections to the engine are left", n-1)
					}
					if took == 0 {
						took = time.Since(began)
					}
					if n := runtime.NumGoroutine(); n > goroutines+10 {
						return fmt.Errorf("%d goroutines are left", n-goroutines)
					}
					return nil
				})
				t.Logf("engine's side of %d closed after %v", clients, took.Round(time.Millisecond))
				streams, slowest = streams+clients, max(slowest, took)
			})
		}
	}
	faultTook(t, 31, fmt.Sprintf("engine's side of %d streams of six kinds, closed or killed, none left: the slowest", streams), slowest, time.Second)
}

func TestF32AClientThatLeavesATransferEndsTheEnginesCall(t *testing.T) {
	t.Parallel()
	var slowest atomic.Int64
	t.Cleanup(func() {
		faultTook(t, 32, "pull, build, load, import, push of a client that leaves: the slowest of the engine's calls ended", time.Duration(slowest.Load()), 2*time.Second)
	})
	for what, c := range map[string]struct{ path, request string }{
		"pull":   {"^/images/create$", "POST /images/create?fromImage=registry.example/app&tag=1 HTTP/1.1\r\nHost: docker\r\n\r\n"},
		"build":  {"^/build$", "POST /build?t=app HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"},
		"load":   {"^/images/load$", "POST /images/load HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\nsome"},
		"import": {"^/images/create$", "POST /images/create?fromSrc=-&repo=app HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\nsome"},
		"push":   {"/push$", "POST /images/busybox/push HTTP/1.1\r\nHost: docker\r\nX-Registry-Auth: e30=\r\n\r\n"},
	} {
		for how, leave := range map[string]func(*wire){"closes": func(w *wire) { w.Close() }, "is killed": (*wire).reset} {
			t.Run(what+" "+how, func(t *testing.T) {
				t.Parallel()
				e := newFakeEngine(t)
				f := newFront(t, e)
				begun, ended := make(chan struct{}), make(chan struct{})
				e.override("POST", c.path, func(w http.ResponseWriter, r *http.Request) {
					defer close(ended)
					close(begun)
					control := http.NewResponseController(w)
					control.EnableFullDuplex()
					io.WriteString(w, `{"status":"at work"}`+"\n")
					control.Flush()
					for { // until the connection ends
						if _, err := r.Body.Read(make([]byte, 1<<10)); err != nil {
							break
						}
					}
					<-r.Context().Done()
				})
				w := f.wire(t)
				w.send(c.request)
				within(t, begun, 20*time.Second)
				began := time.Now()
				leave(w)
				within(t, ended, 20*time.Second)
				took := time.Since(began)
				t.Logf("the engine's call ended after %v", took)
				raise(&slowest, took)
				f.quiet(t)
				f.oracle(t)
			})
		}
	}
}

// A half-closed client that goes cannot be told from one that waits, until its kernel
// gives the socket up; it does sooner here.
func TestAHalfClosedClientThatLeavesIsFound(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		io.WriteString(conn, switching)
		io.Copy(io.Discard, in)
		<-t.Context().Done() // says nothing, and would not notice that nobody is there
	})
	w := f.wire(t)
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_LINGER2, 1) })
	w.send("POST /containers/" + id + "/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	w.answer()
	w.CloseWrite()
	f.nodes.settle(t.Context())
	e.forget()
	began := time.Now()
	w.Close()
	eventually(t, 40*time.Second, func() error { // the end of an attach has the container read again
		if e.count("GET", "^/containers/json$") == 0 {
			return errors.New("the session goes on")
		}
		return nil
	})
	t.Logf("session ended after %v", time.Since(began).Round(time.Millisecond))
}

func TestF35AReaderThatNeverReadsHoldsUpItsOwnStreamOnly(t *testing.T) { // alone: it looks at the heap
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	var written atomic.Int64
	flood := func(w io.Writer) {
		block := bytes.Repeat([]byte("x"), 64<<10)
		for {
			n, err := w.Write(block)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
	e.override("GET", "/logs$", func(w http.ResponseWriter, _ *http.Request) { flood(w) })
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		io.WriteString(conn, switching)
		flood(conn)
	})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const readers = 40
	for i := range readers {
		w := f.wire(t)
		if i%2 == 0 {
			w.send("GET /containers/" + id + "/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: docker\r\n\r\n")
		} else {
			w.send("POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		}
	}
	var last int64
	settled := 0
	eventually(t, 20*time.Second, func() error { // the kernel's buffers are full when nothing more is written
		n := written.Load()
		if n == last && n > 0 {
			settled++
		} else {
			last, settled = n, 0
		}
		if settled < 25 {
			return fmt.Errorf("%d bytes, still going", n)
		}
		return nil
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / readers
	faultCount(t, 35, "heap for each of 40 readers that do not read", max(each, 0)>>10, 256, "KiB")
	if each > 256<<10 {
		t.Errorf("each stuck reader holds %d KiB, want 256", each>>10)
	}
	began := time.Now()
	if status, _ := f.call(t, "GET", "/containers/"+id+"/json", ""); status != http.StatusOK || time.Since(began) > readWait {
		t.Errorf("inspect beside stuck readers = %d after %v", status, time.Since(began))
	}
}

func TestAnEngineThatDoesNotReadForAWhileKeepsItsStream(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 70 seconds, left out by -short")
	}
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	const size = 16 << 20
	got := make(chan string, 1)
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		conn.SetDeadline(time.Time{})
		io.WriteString(conn, switching)
		<-time.After(deadAfter + deadLooks/2)
		h := sha256.New()
		n, err := io.Copy(h, in)
		got <- fmt.Sprintf("%d %x %v", n, h.Sum(nil), err)
	})
	w := f.wire(t)
	w.SetDeadline(time.Time{})
	w.send("POST /containers/" + id + "/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	w.answer()
	h := noise(w.TCPConn, size)
	w.CloseWrite()
	if in, want := within(t, got, time.Minute), fmt.Sprintf("%d %x <nil>", size, h.Sum(nil)); in != want {
		t.Errorf("input after a minute's pause = %s, want %s", in, want)
	}
}

func TestStreamsAreFlushedAtOnce(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	for _, c := range []struct{ method, path string }{
		{"GET", "/logs?stdout=1&follow=1"}, {"GET", "/stats"}, {"POST", "/wait"}, {"GET", "/export"}, {"GET", "/archive?path=/"},
	} {
		t.Run(c.path, func(t *testing.T) {
			t.Parallel()
			next := make(chan string)
			bare, _, _ := strings.Cut(c.path, "?")
			e.override(c.method, bare+"$", func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusOK)
				flush := http.NewResponseController(w)
				flush.Flush()
				for piece := range next {
					io.WriteString(w, piece)
					flush.Flush()
				}
			})
			w := f.wire(t)
			w.send(c.method + " /containers/" + id + c.path + " HTTP/1.1\r\nHost: docker\r\n\r\n")
			resp := w.answer() // before there is any body
			for _, piece := range []string{"one", "two", "three"} {
				next <- piece
				got := make([]byte, len(piece))
				if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
					t.Errorf("piece = %q, %v, want %q before the next is written", got, err, piece)
				}
			}
			close(next)
			if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
				t.Errorf("end = %q, %v", rest, err)
			}
		})
	}
}

// F72: each request carries a number, and its answer must carry the same.
func TestF72NoAnswerReachesAnotherRequest(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) { e.keep = 100 })
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	e.override("", "/containers/[0-9a-f]{64}/(top|logs|kill|archive|export|update|attach)$", func(w http.ResponseWriter, r *http.Request) {
		nonce := r.URL.Query().Get("nonce")
		switch r.URL.Query().Get("how") {
		case "early": // answers before it has read the body
			w.Header().Set("Content-Length", fmt.Sprint(len(nonce)))
			io.WriteString(w, nonce)
		case "unread": // and leaves a tail that nobody waits for
			http.NewResponseController(w).EnableFullDuplex()
			io.WriteString(w, nonce)
		case "none":
			panic(http.ErrAbortHandler)
		case "half":
			w.Header().Set("Content-Length", "1000000")
			io.WriteString(w, nonce)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "hints":
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, nonce)
		case "empty":
			w.Header().Set("X-Nonce", nonce)
			w.WriteHeader(http.StatusNoContent)
		default:
			io.Copy(io.Discard, r.Body)
			w.Header().Set("X-Nonce", nonce)
			io.WriteString(w, nonce)
		}
	})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	calls := []struct{ method, path string }{{"GET", "/top"}, {"GET", "/logs"}, {"POST", "/kill"}, {"PUT", "/archive"}, {"GET", "/export"}, {"POST", "/update"}}
	hows := []string{"", "early", "unread", "none", "half", "empty", "hints", ""}
	const workers = 20
	each := 150
	if allFaults() {
		each = 500
	}
	var wg sync.WaitGroup
	var whole, broken, crossed atomic.Int64
	for worker := range workers {
		wg.Go(func() {
			for i := range each {
				nonce := fmt.Sprintf("nonce-%d-%d.", worker, i)
				c, how := calls[(worker+i)%len(calls)], hows[(worker*7+i)%len(hows)]
				var body io.Reader
				if c.method != "GET" {
					body = strings.NewReader(strings.Repeat(nonce, 1+i%7*2000))
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				req, err := http.NewRequestWithContext(ctx, c.method, "http://"+f.addr+"/containers/"+id+c.path+"?nonce="+nonce+"&how="+how, body)
				if err != nil {
					t.Error(err)
				}
				if i%11 == 0 {
					req.Header.Set("Expect", "100-continue")
				}
				if i%13 == 0 {
					cancel() // a client that leaves at once
				}
				resp, err := client.Do(req)
				if err != nil {
					broken.Add(1)
					cancel()
					continue
				}
				data, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				cancel()
				switch {
				case resp.StatusCode == http.StatusBadGateway && strings.HasPrefix(string(data), `{"message":`):
					broken.Add(1)
				case resp.StatusCode == http.StatusNoContent && resp.Header.Get("X-Nonce") == nonce:
					whole.Add(1)
				case err != nil && strings.HasPrefix(nonce, string(data)):
					broken.Add(1)
				case err == nil && string(data) == nonce && resp.StatusCode == http.StatusOK:
					whole.Add(1)
				default:
					crossed.Add(1)
					t.Errorf("%s %s %q of %q: %s %q %v", c.method, c.path, how, nonce, resp.Status, data, err)
				}
			}
		})
	}
	wg.Wait()
	faultCount(t, 72, fmt.Sprintf("answers that reached another request, in %d mixed calls (%d whole, %d broken)", workers*each, whole.Load(), broken.Load()), crossed.Load(), 0, "")
	if whole.Load() < int64(workers*each/2) {
		t.Errorf("only %d of %d answers were whole", whole.Load(), workers*each)
	}
}
