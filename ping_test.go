package main

import (
	"net/http"
	"testing"
)

// Clients take a missing header for an older engine, so what one engine does not
// send, the cluster does not send either.
func TestPingSaysOnlyWhatEveryEngineSays(t *testing.T) {
	t.Parallel()
	newer := func(e *fakeEngine) { e.apiVersion = "1.44" }
	for name, tc := range map[string]struct {
		engines        []*fakeEngine
		builder, swarm string
	}{
		"engines that send both headers": {[]*fakeEngine{newFakeEngine(t, newer), newFakeEngine(t, newer)}, "2", "inactive"},
		"one engine that sends neither":  {[]*fakeEngine{newFakeEngine(t, newer), newFakeEngine(t)}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, url := testCluster(t, tc.engines...)
			resp, err := http.Get(url + "/_ping")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if builder, swarm := resp.Header.Get("Builder-Version"), resp.Header.Get("Swarm"); builder != tc.builder || swarm != tc.swarm {
				t.Errorf("GET /_ping: Builder-Version %q, Swarm %q, want %q, %q", builder, swarm, tc.builder, tc.swarm)
			}
		})
	}
}
