package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// benchStream is how much one stream of the benchmarks carries.
const benchStream = 1 << 30

// BenchmarkLogsAndCopy streams 1 GiB out of a container of a real engine, as docker logs
// and docker cp ask for it, and 1 GiB into it, straight and through the real program, turn
// about. The goal is 0.9 of the direct throughput. Logs take an engine minutes: -benchtime=1x.
func BenchmarkLogsAndCopy(b *testing.B) {
	needLab(b)
	e := labStart(b, "bench")
	m := newManager(b, managerBinary(b), e.addr)
	m.start(b)
	m.ready(b)
	for _, bb := range []struct{ name, makes, method, path string }{
		{"logs", fmt.Sprintf("yes '%s' | head -c %d", strings.Repeat("a line of a log ", 12), benchStream), "GET", "/logs?stdout=1"},
		{"cp", fmt.Sprintf("head -c %d /dev/zero >/file", benchStream), "GET", "/archive?path=/file"},
		{"cp-into", "true", "PUT", "/archive?path=/tmp"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			e.docker(b, "run", "-d", "--name", bb.name, "busybox", "sh", "-c", bb.makes+"; echo; echo made; exec sleep 1d")
			defer e.docker(b, "rm", "-f", bb.name)
			eventually(b, 10*time.Minute, func() error {
				if !strings.Contains(e.docker(b, "logs", "--tail", "1", bb.name), "made") {
					return fmt.Errorf("the container still makes its gigabyte")
				}
				return nil
			})
			turnAbout(b, func(addr string) { streamOnce(b, addr, bb.method, "/v1.41/containers/"+bb.name+bb.path) }, e.addr, m.addr, func() time.Duration { return cpuTime(b, m) })
		})
	}
}

// BenchmarkStream does the same with an engine that does nothing but send, on the
// same cores: it shows what a relayed byte costs, not what a user sees.
func BenchmarkStream(b *testing.B) {
	e := newFakeEngine(b)
	f := newFront(b, e)
	id := f.make(b, "box", ttyBody)
	piece := make([]byte, 32<<10)
	for _, bb := range []struct {
		name string
		line int // bytes of a chunk
		once int // bytes that the engine writes at a time, whole chunks
		all  int
		pace time.Duration // what it does ahead of each write takes
	}{{"pieces=32KiB", 32 << 10, 64 << 10, benchStream / 4, 0}, {"lines=100B", 92, 64 << 10, benchStream / 4, 0},
		{"line-by-line=200B", 200, 1, benchStream / 16, 4 * time.Microsecond}} {
		b.Run(bb.name, func(b *testing.B) {
			var chunks []byte
			for len(chunks) < bb.once {
				chunks = fmt.Appendf(chunks, "%x\r\n%s\r\n", bb.line, piece[:bb.line])
			}
			e.override("GET", "/logs$", func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				defer conn.Close()
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
				for sent := 0; sent < bb.all; sent += len(chunks) {
					for began := time.Now(); time.Since(began) < bb.pace; {
					}
					if _, err := conn.Write(chunks); err != nil {
						return
					}
				}
				io.WriteString(conn, "0\r\n\r\n")
			})
			turnAbout(b, func(addr string) { streamOnce(b, addr, "GET", "/v1.41/containers/"+id+"/logs?stdout=1") }, e.addr(), f.addr, func() time.Duration { return processorTime(b) })
		})
	}
}

// BenchmarkLoneLine is how late a line of logs -f is that comes by itself, straight and
// through the manager, turn about.
func BenchmarkLoneLine(b *testing.B) {
	e := newFakeEngine(b)
	f := newFront(b, e)
	id := f.make(b, "box", ttyBody)
	e.override("GET", "/logs$", func(w http.ResponseWriter, r *http.Request) {
		for lines := http.NewResponseController(w); ; {
			if err := lines.Flush(); err != nil {
				return
			}
			select {
			case <-time.After(5 * time.Millisecond):
				fmt.Fprintf(w, "%d\n", time.Now().UnixNano())
			case <-r.Context().Done():
				return
			}
		}
	})
	var late [2][]time.Duration
	var lines [2]*bufio.Scanner
	for i, addr := range []string{e.addr(), f.addr} {
		resp, err := http.Get("http://" + addr + "/v1.41/containers/" + id + "/logs?stdout=1&follow=1")
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		lines[i] = bufio.NewScanner(resp.Body)
	}
	for b.Loop() {
		for i := range lines {
			for range 2 { // the first may have waited for the other stream's
				lines[i].Scan()
			}
			written, err := strconv.ParseInt(lines[i].Text(), 10, 64)
			if err != nil {
				b.Fatal(err, lines[i].Err())
			}
			late[i] = append(late[i], time.Since(time.Unix(0, written)))
		}
	}
	b.ReportMetric(float64(median(late[0]).Microseconds()), "us-direct")
	b.ReportMetric(float64(median(late[1]).Microseconds()), "us-through")
}

// turnAbout reports what stream takes straight and through the manager, and by how much
// more of the processor's time, as used tells, the second uses.
func turnAbout(b *testing.B, stream func(addr string), direct, through string, used func() time.Duration) {
	b.Helper()
	var took [2][]time.Duration
	var busy [2]time.Duration
	for b.Loop() {
		for i, addr := range []string{direct, through} {
			began, cpu := time.Now(), used()
			stream(addr)
			took[i] = append(took[i], time.Since(began))
			busy[i] += used() - cpu
		}
	}
	b.ReportMetric(median(took[0]).Seconds(), "s-direct")
	b.ReportMetric(median(took[1]).Seconds(), "s-through")
	b.ReportMetric(median(took[0]).Seconds()/median(took[1]).Seconds(), "×direct")
	b.ReportMetric(float64((busy[1]-busy[0]).Milliseconds())/float64(b.N), "ms-CPU-more")
}

// processorTime is what this process has used; a manager in a process of its own is not in it.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// streamOnce sends one request and drops the bytes of the answer as they come, with
// little work of its own. A PUT brings a file of benchStream bytes.
func streamOnce(b *testing.B, addr, method, path string) {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	req, err := http.NewRequest(method, "http://"+addr+path, nil)
	if err != nil {
		b.Fatal(err)
	}
	if method == "PUT" {
		head := fakeTar("into", nil)[:512]
		copy(head[124:], fmt.Sprintf("%011o", benchStream))
		tarChecksum(head)
		req.Body, req.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader(string(head)), zeroBytes(benchStream+1024))), 512+benchStream+1024
	}
	if err := req.Write(conn); err != nil {
		b.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		b.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b.Fatalf("%s %s = %s", method, path, resp.Status)
	}
	if method == "PUT" {
		return
	}
	buf := make([]byte, 256<<10)
	tail := ""
	for {
		n, err := conn.Read(buf)
		tail += string(buf[max(0, n-5):n])
		if tail = tail[max(0, len(tail)-5):]; tail == "0\r\n\r\n" {
			return
		}
		if err != nil {
			b.Fatalf("%s: %v after %q", path, err, tail)
		}
	}
}

// tarChecksum writes a header's checksum anew.
func tarChecksum(head []byte) {
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head[:512] {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
}
