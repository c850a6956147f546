package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What is exposed in the host's network is in no list of an engine's: it is known from
// the create, and from an inspect when the rows are made again.
func TestPortsOfTheHostsNetwork(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newImageFleet(t, e)
	const body = `{"Image": "busybox", "ExposedPorts": {"80/tcp": {}}, "HostConfig": {"NetworkMode": "host", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}}}`
	create := func(f *imageFleet, name string) int {
		status, _, _ := f.call("POST", "/v1.41/containers/create?name="+name, strings.NewReader(body), "Content-Type", "application/json")
		return status
	}
	if got := create(f, "web-1"); got != http.StatusCreated {
		t.Fatalf("create: %d", got)
	}
	f.must(http.StatusNoContent, "POST", "/v1.41/containers/web-1/start", nil)
	for _, fleet := range []*imageFleet{f, newImageFleet(t, e)} {
		eventually(t, 20*time.Second, func() error {
			if got := fleet.store.all(t, "SELECT c.name, c.state, p.host_ip, p.host_port, p.protocol FROM ports p JOIN containers c ON c.id = p.container"); got != "web-1|running|host|80|tcp" {
				return fmt.Errorf("ports: %s", got)
			}
			return nil
		})
		if got := create(fleet, "web-2"); got != http.StatusServiceUnavailable {
			t.Errorf("a second container of the host's network that exposes port 80: %d, want 503", got)
		}
		if got := fleet.store.one(t, "SELECT '[' || ports || ']' FROM ps"); got != "[]" {
			t.Errorf("ps shows %q, want nothing: it is not published", got)
		}
	}
	f.must(http.StatusNoContent, "POST", "/v1.41/containers/web-1/stop?t=0", nil)
	eventually(t, 20*time.Second, func() error {
		if got := create(f, "web-2"); got != http.StatusCreated {
			return fmt.Errorf("create when the first has stopped: %d", got)
		}
		return nil
	})
}
