package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// An engine may refuse a long body before it has read it: a disk is full, a container
// has gone. The client gets its words, as straight from the engine.
func TestAnEnginesEarlyAnswerReachesAClientThatStillSends(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	const words = "no space left on device"
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	for kind, call := range map[string]string{
		"archive": "PUT /containers/" + id + "/archive?path=/tmp",
		"load":    "POST /images/load?quiet=1",
		"import":  "POST /images/create?fromSrc=-&repo=app",
		"build":   "POST /build?t=app",
		"push":    "POST /images/busybox/push?tag=latest",
	} {
		method, path, _ := strings.Cut(call, " ")
		operation, _, _ := strings.Cut(path, "?")
		e.override(method, operation+"$", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("part") != "" {
				io.CopyN(io.Discard, r.Body, 300<<10)
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInsufficientStorage)
			io.WriteString(w, `{"message":"`+words+`"}`)
		})
		for _, part := range []string{"", "&part=1"} {
			for _, framing := range []string{fmt.Sprintf("Content-Length: %d", size), "Transfer-Encoding: chunked", "Expect: 100-continue\r\nTransfer-Encoding: chunked"} {
				for _, pauses := range []bool{false, true} {
					for where, addr := range map[string]string{"direct": e.addr(), "through": f.addr} {
						t.Run(fmt.Sprintf("%s%s, %s, client pauses: %v, %s", kind, part, strings.ReplaceAll(framing, "\r\n", ", "), pauses, where), func(t *testing.T) {
							t.Parallel()
							conn, err := net.Dial("tcp", addr)
							if err != nil {
								t.Fatal(err)
							}
							defer conn.Close()
							conn.SetDeadline(time.Now().Add(2 * time.Minute))
							fmt.Fprintf(conn, "%s %s%s HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\n%s\r\n\r\n", method, path, part, framing)
							most := size
							if pauses {
								most = 1 << 20
							}
							go func() { // until the connection is closed
								piece := string(make([]byte, 32<<10))
								if !strings.HasPrefix(framing, "Content-Length") {
									piece = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
								}
								for sent := 0; sent < most; sent += 32 << 10 {
									if _, err := io.WriteString(conn, piece); err != nil {
										return
									}
								}
							}()
							in := bufio.NewReader(conn)
							resp, err := http.ReadResponse(in, nil)
							if err == nil && resp.StatusCode == http.StatusContinue {
								resp, err = http.ReadResponse(in, nil)
							}
							if err != nil {
								t.Fatalf("no answer: %v", err)
							}
							data, err := io.ReadAll(resp.Body)
							if resp.StatusCode != http.StatusInsufficientStorage || !strings.Contains(string(data), words) || err != nil {
								t.Errorf("answer = %s %s, %v, want the engine's", resp.Status, data, err)
							}
						})
					}
				}
			}
		}
	}
}
