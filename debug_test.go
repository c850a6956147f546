package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestDebugListenerServesMetricsAndProfiles(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"))
	f := newFront(t, e)
	l, err := openDebug(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() { defer close(served); serveDebug(ctx, f.log, l, f.store) }()
	t.Cleanup(func() { cancel(); <-served })
	get := func(path, host string) (int, string) {
		t.Helper()
		req, err := http.NewRequest("GET", "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		resp, err := loneClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}

	id := f.make(t, "box", ttyBody)
	f.call(t, "GET", "/v1.41/containers/box/json", "")
	f.call(t, "GET", "/containers/nosuch/json", "")
	f.call(t, "GET", "/containers/json", "") // waits for what is owed: a refusal is looked at again while anything is
	f.call(t, "POST", "/containers/create", `{"Image":"busybox","Env":["constraint:nosuch==x"]}`)
	w := f.wire(t)
	w.send("POST /containers/" + id + "/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	w.answer()
	w.Close()
	f.quiet(t)
	wanted := []string{
		`swarmlite_requests_total{operation="GET /containers/{id}/json",status="200"} 1`,
		`swarmlite_requests_total{operation="GET /containers/{id}/json",status="404"} 1`,
		`swarmlite_requests_total{operation="POST /containers/create",status="201"} 1`,
		`swarmlite_requests_total{operation="POST /containers/create",status="503"} 1`,
		`swarmlite_requests_total{operation="POST /containers/{id}/attach",status="101"} 1`,
		`swarmlite_request_seconds_count{operation="POST /containers/{id}/start"} 1`,
		`swarmlite_engine_call_seconds_count{outcome="answered"} [1-9]`,
		`swarmlite_placements_total{outcome="reserved"} 1`,
		`swarmlite_placements_total{outcome="refused"} 1`,
		`swarmlite_decide_seconds_count [2-9]`, // a refusal is looked at again when an event comes late
		`swarmlite_database_commit_seconds_count [1-9]`,
		`swarmlite_database_writes_total [1-9]`,
		`swarmlite_wal_bytes [1-9]`,
		`swarmlite_nodes{availability="active",state="healthy"} 1`,
		`swarmlite_containers{state="running"} 1`,
		`go_goroutines [1-9]`,
	}
	eventually(t, 20*time.Second, func() error { // a stream is counted when its call has ended
		status, text := get("/metrics", "")
		if status != http.StatusOK {
			t.Fatalf("metrics = %d %s", status, text)
		}
		for _, want := range wanted {
			number := strings.LastIndexByte(want, ' ')
			pattern := "(?m)^" + regexp.QuoteMeta(want[:number]) + want[number:]
			if !strings.HasSuffix(want, "]") {
				pattern += "$"
			}
			if !regexp.MustCompile(pattern).MatchString(text) {
				return fmt.Errorf("no %s in\n%s", want, grepLines(text, strings.SplitN(want, "{", 2)[0]))
			}
		}
		return nil
	})
	if status, _ := get("/debug/pprof/goroutine?debug=1", "localhost:1"); status != http.StatusOK {
		t.Errorf("profile = %d", status)
	}
	for path, host := range map[string]string{"/metrics": "evil.example", "/debug/pprof/heap": "rebound.lan:9323"} {
		if status, _ := get(path, host); status != http.StatusForbidden {
			t.Errorf("%s for host %s = %d, want 403", path, host, status)
		}
	}
	if status, _ := get("/containers/json", ""); status != http.StatusNotFound {
		t.Errorf("the API on the debug listener = %d, want 404", status)
	}
	if status, _ := f.call(t, "GET", "/metrics", ""); status != http.StatusNotFound {
		t.Errorf("metrics on the API's listener = %d, want 404", status)
	}
}

func grepLines(text, word string) string {
	var found []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// S29
func TestDebugListenerIsNeverReachedByOthers(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:9323"} {
		if l, err := openDebug(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "expected a loopback address or unix:///path") {
			t.Errorf("openDebug(%s) = %v, %v", addr, l, err)
		}
	}
	l, err := openDebug(t.Context(), "unix://"+filepath.Join(t.TempDir(), "debug.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
