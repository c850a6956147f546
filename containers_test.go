package main

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// An inspect is the engine's own bytes, but for the node and published ports.
func TestInspectKeepsTheEnginesBytes(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	id := f.make(t, "box", sleepBody)
	var answer atomic.Pointer[string] // the engine's watcher asks too
	says := func(text string) { answer.Store(&text) }
	says("{}")
	e.override("GET", "/containers/[^/]+/json$", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, *answer.Load())
	})
	const bound = `"Ports": {"53/udp":null,  "80/tcp": [{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}]}`
	const shown = `"Ports": {"53/udp":null,"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]}`
	for _, tt := range []struct{ name, from, want string }{
		{"blanks, unknown fields and numbers stay", ` { "Id" : "a" ,"New":1.50e3, "NetworkSettings": {"Ports": {}, "X":[ ]}, "Z":null }` + "\n",
			` { "Id" : "a" ,"New":1.50e3, "NetworkSettings": {"Ports": {}, "X":[ ]}, "Z":null ,"Node":N}` + "\n"},
		{"no network settings", `{"Id":"a"}`, `{"Id":"a","Node":N}`},
		{"network settings of another kind", `{"NetworkSettings":null,"A":1}`, `{"NetworkSettings":null,"A":1,"Node":N}`},
		{"exposed ports stay", `{"NetworkSettings":{"Ports":{"80/tcp": null}}}`, `{"NetworkSettings":{"Ports":{"80/tcp": null}},"Node":N}`},
		{"published ports are the node's", `{"A":"NetworkSettings", "NetworkSettings":{"B":"}", ` + bound + ` ,"C":[]}, "D":{"Node":1}}`,
			`{"A":"NetworkSettings", "NetworkSettings":{"B":"}", ` + shown + ` ,"C":[]}, "D":{"Node":1},"Node":N}`},
		{"a node of the engine's is replaced", `{"A":1,"node":{"IP":"6.6.6.6"},"B":2}`, `{"A":1,"B":2,"Node":N}`},
		{"nothing in it", `{}`, `{"Node":N}`},
	} {
		says(tt.from)
		status, got := f.call(t, "GET", "/containers/"+id+"/json", "")
		want := strings.ReplaceAll(tt.want, "N}", string(f.nodes.all()[0].shown.Load().node)+"}")
		if status != http.StatusOK || got != want {
			t.Errorf("%s: inspect = %d\n%s\nwant\n%s", tt.name, status, got, want)
		}
	}
	says(`{"Id":"a","Cut":{`)
	if status, got := f.call(t, "GET", "/containers/"+id+"/json", ""); status != http.StatusBadGateway {
		t.Errorf("half an answer: inspect = %d %s, want 502", status, got)
	}
}
