package main

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The ledger's request must hold all that placement looks at: a field that is added
// to workload and forgotten in shape could not be placed again.
func TestShapeHoldsTheWholeRequest(t *testing.T) {
	t.Parallel()
	w, _, err := readCreate([]byte(`{"Image": "busybox", "Env": ["constraint:zone==/^[ab]$/", "constraint:disk!=~hdd*", "affinity:container==db", "whitelist:node==n1|n2", "TOKEN=secret"],
		"Labels": {"com.docker.compose.project": "shop", "tier": "front"},
		"HostConfig": {"Memory": 1073741824, "NanoCpus": 1500000000, "Runtime": "nvidia", "DeviceRequests": [{"Count": 2, "Capabilities": [["gpu"]]}], "Binds": ["data:/data"], "NetworkMode": "demo", "Links": ["db:db"],
			"PortBindings": {"80/tcp": [{"HostPort": "80"}, {"HostIp": "::1", "HostPort": "8000-8010"}], "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}]}}}`), &call{version: 1041})
	if err != nil {
		t.Fatal(err)
	}
	w.group, w.driver, w.swarm = "com.docker.compose.project=shop", "overlay", true // of networks
	w.platform = "linux/arm64"                                                      // a parameter of the request
	var s shape
	if err := json.Unmarshal([]byte(jsonText(w.shape())), &s); err != nil {
		t.Fatal(err)
	}
	again, err := s.workload()
	if err != nil {
		t.Fatal(err)
	}
	// Columns of the ledger, what a create comes to while it is under way, and what placement does not look at.
	// Shares are in nanoCPUs by then, if they count.
	others := []string{"shares", "kind", "name", "image", "named", "swarmID", "prefer", "seed", "drawn", "silent", "awaited", "exclude", "until", "gone", "line", "refused", "policy", "keep", "query", "leaves", "replaces", "namespaces"}
	before, after := reflect.ValueOf(*w), reflect.ValueOf(*again)
	for i := range before.NumField() {
		if name := before.Type().Field(i).Name; slices.Contains(others, name) {
			continue
		} else if before.Field(i).IsZero() {
			t.Errorf("workload.%s is not set here: say what it is in this test, and keep it in shape", name)
		} else if after.Field(i).IsZero() {
			t.Errorf("workload.%s is lost in the ledger", name)
		}
	}
	if got, want := jsonText(again.shape()), jsonText(w.shape()); got != want {
		t.Errorf("shape of what was read from it:\n%s\nwant\n%s", got, want)
	}
	if !reflect.DeepEqual(again.constraints, w.constraints) || !reflect.DeepEqual(again.ports, w.ports) {
		t.Errorf("constraints %v, ports %v, want %v, %v", again.constraints, again.ports, w.constraints, w.ports)
	}
	if text := jsonText(s); strings.Contains(text, "secret") || strings.Contains(text, w.swarmID) {
		t.Errorf("shape holds an environment value, or our own ID: %s", text)
	}
}

func TestShapeOfHugeLabelsIsBounded(t *testing.T) {
	t.Parallel()
	w := &workload{group: "z=kept", labels: map[string]string{"a": strings.Repeat("x", 4000), "b": strings.Repeat("x", 4000), "z": "kept"}}
	text := jsonText(w.shape())
	if len(text) > 5000 {
		t.Errorf("shape of %d bytes", len(text))
	}
	again, err := w.shape().workload()
	if err != nil || again.labels["z"] != "kept" || again.labels["a"] == "" {
		t.Errorf("labels %.60v, %v: want a, and z that makes the group", again.labels, err)
	}
}

func TestShapeThatIsBrokenIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		s    shape
		want string
	}{
		{shape{Ports: []string{"eighty/tcp"}}, `port "eighty/tcp": expected one such as 80/tcp or 127.0.0.1:8000-8010/udp`},
		{shape{Constraints: []string{"storage=ssd"}}, `constraint "storage=ssd": expected == or !=`},
		{shape{API: "newest"}, `API version "newest": expected two numbers with a dot, as in 1.41`},
	} {
		if _, err := c.s.workload(); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", jsonText(c.s), err, c.want)
		}
	}
}

func TestExpressionsAreBounded(t *testing.T) {
	t.Parallel()
	env := func(expressions ...string) string {
		return jsonText(map[string]any{"Image": "busybox", "Env": expressions})
	}
	many := func(n int) (list []string) {
		for i := range n {
			list = append(list, "constraint:k"+strconv.Itoa(i)+"==v")
		}
		return list
	}
	half := jsonText(map[string]any{"Image": "busybox", "Env": many(200), "Labels": map[string]string{
		expressionLabel("affinity"): jsonText(slices.Repeat([]string{"container==db"}, 57))}})
	for _, tt := range []struct{ name, body, want string }{
		{"256 expressions", env(many(256)...), ""},
		{"257 expressions", env(many(257)...), "over 256 expressions"},
		{"257 in all, of environment and labels", half, "over 256 expressions"},
		{"4 KiB", env("constraint:a==" + strings.Repeat("b", 4093)), ""},
		{"over 4 KiB", env("constraint:a==" + strings.Repeat("b", 4094)), `constraint "a==bbbbbbbbbbbbbbbbbbbbbbbbbbbbb"…: 4097 bytes long, at most 4096 are allowed`},
		{"a regex of 1 KiB", env("constraint:a==/" + strings.Repeat("b", 1024) + "/"), ""},
		{"a regex of over 1 KiB", env("affinity:a==/" + strings.Repeat("b", 1025) + "/"),
			`affinity "a==/` + strings.Repeat("b", 1025) + `/": regular expression is 1025 bytes long, at most 1024 are allowed`},
	} {
		_, _, err := readCreate([]byte(tt.body), &call{})
		if err == nil && tt.want != "" || err != nil && (err.Error() != tt.want || statusOf(err) != http.StatusBadRequest) {
			t.Errorf("create with %s: %v, want 400 %s", tt.name, err, tt.want)
		}
	}
}
