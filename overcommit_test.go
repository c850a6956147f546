package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// mixedBody is a create that asks for a little of everything.
func mixedBody(r *rand.Rand) string {
	host := map[string]any{}
	if r.IntN(3) > 0 {
		host["NanoCpus"] = (1 + r.Int64N(4)) * 250_000_000
	}
	if r.IntN(3) > 0 {
		host["Memory"] = (1 + r.Int64N(8)) << 28
	}
	if r.IntN(3) == 0 {
		host["PortBindings"] = map[string]any{"80/tcp": []portBinding{{"", strconv.Itoa(8000 + r.IntN(4))}},
			"53/udp": []portBinding{{"", strconv.Itoa(8000 + r.IntN(4))}}}
	}
	body := map[string]any{"Image": "busybox", "Cmd": []string{"sleep", "inf"}, "HostConfig": host}
	switch r.IntN(6) {
	case 0, 1:
		host["DeviceRequests"] = []deviceRequest{{Count: 1 + r.Int64N(2), Capabilities: [][]string{{"gpu"}}}}
	case 2:
		host["DeviceRequests"] = []deviceRequest{{DeviceIDs: []string{"GPU-" + strconv.Itoa(r.IntN(8))}, Capabilities: [][]string{{"gpu"}}}}
	case 3:
		body["Labels"] = map[string]string{resourcesLabel: "fpga=1"}
	case 4:
		host["DeviceRequests"] = []deviceRequest{{Count: everything, Capabilities: [][]string{{"gpu"}}}}
	}
	return jsonText(body)
}

// TestMixedCreatesAtOnceNeverOvercommit creates, starts, stops and removes containers of
// all shapes over four engines of different sizes, by eight clients at once. No node may
// ever promise more than it has, by the database at any moment, and by what the engines
// were asked for in the end.
func TestMixedCreatesAtOnceNeverOvercommit(t *testing.T) {
	t.Parallel()
	var engines []*fakeEngine
	for i, labels := range [][]string{
		{"resource.gpu=GPU-0,GPU-1,GPU-2,GPU-3", "resource.fpga=2"}, {"resource.gpu=GPU-4,GPU-5,GPU-6,GPU-7", "containerslots=9"},
		{"resource.gpu=3"}, {"resource.fpga=1", "containerslots=5"}} {
		engines = append(engines, newFakeEngine(t, func(e *fakeEngine) {
			e.name, e.labels, e.cpus, e.memory = "node-"+strconv.Itoa(i+1), labels, 2+2*i, int64(4+2*i)<<30
		}))
	}
	c, url := testCluster(t, engines...)
	stop := make(chan struct{})
	var watch sync.WaitGroup
	looks := 0
	watch.Go(func() {
		for {
			// An event may be faster than the answer: name and ports are there twice then, for a moment.
			if got := c.store.all(t, "SELECT * FROM ("+overcommitted+") WHERE what NOT IN ('name', 'port')"); got != "" {
				t.Errorf("overcommitted while creates are under way: %s", got)
				return
			}
			looks++
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	send := func(method, path, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(answer)
	}
	var created, refused atomic.Int32
	atOnce(8, func(client int) {
		r := rand.New(rand.NewPCG(7, uint64(client)))
		var mine []string
		for range 30 {
			status, answer := send("POST", "/v1.41/containers/create", mixedBody(r))
			switch status {
			case http.StatusCreated:
				created.Add(1)
				var made struct{ Id string }
				if err := json.Unmarshal([]byte(answer), &made); err != nil {
					t.Error(err)
				}
				mine = append(mine, made.Id)
				if r.IntN(2) == 0 {
					send("POST", "/v1.41/containers/"+made.Id+"/start", "")
				}
			case http.StatusServiceUnavailable:
				refused.Add(1)
			default:
				t.Errorf("create: %d %s", status, answer)
			}
			if len(mine) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(mine))
				if status, answer := send("DELETE", "/v1.41/containers/"+mine[i]+"?force=1", ""); status != http.StatusNoContent {
					t.Errorf("remove: %d %s", status, answer)
				}
				mine = slices.Delete(mine, i, i+1)
			}
		}
	})
	close(stop)
	watch.Wait()
	eventually(t, 20*time.Second, func() error {
		if got := c.store.one(t, "SELECT (SELECT count(*) FROM reservations) + (SELECT count(*) FROM containers WHERE counted AND NOT inspected)"); got != "0" {
			return fmt.Errorf("%s creates are under way or not read yet", got)
		}
		return nil
	})
	if got := c.store.all(t, overcommitted); got != "" {
		t.Errorf("overcommitted in the end: %s", got)
	}
	if created.Load() < 40 || refused.Load() < 20 || looks < 10 {
		t.Errorf("%d created, %d refused, %d looks: this shows little", created.Load(), refused.Load(), looks)
	}
	for _, e := range engines {
		e.checkPromises(t)
	}
}

// checkPromises adds up what the engine was asked for by the containers that it has.
func (e *fakeEngine) checkPromises(t *testing.T) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	var cpus, memory int64
	used := map[string]int{}
	for _, c := range e.containers {
		var body createBody
		if err := json.Unmarshal(c.body, &body); err != nil {
			t.Fatal(err)
		}
		cpus, memory = cpus+body.HostConfig.nanoCPUs(), memory+body.HostConfig.memoryBytes()
		for _, p := range body.HostConfig.ports() {
			used["port "+p.String()]++
		}
		for _, d := range body.HostConfig.DeviceRequests {
			for _, id := range d.DeviceIDs {
				used["device "+id]++
			}
		}
	}
	if cpus > int64(e.cpus)*1e9 || memory > e.memory {
		t.Errorf("%s of %d CPUs and %d bytes was asked for %s CPUs and %d bytes", e.name, e.cpus, e.memory, cpusText(cpus), memory)
	}
	for what, n := range used {
		if n > 1 {
			t.Errorf("%s was asked for %s %d times", e.name, what, n)
		}
	}
}
