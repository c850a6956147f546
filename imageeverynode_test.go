package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestEveryNodePullsAndLoads(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	f.everyNode = true
	got := f.must(200, "POST", "/images/create?fromImage=app&tag=1", nil)
	for _, e := range fakes {
		if imageOf(e, "app:1") == "" {
			t.Errorf("%s has not pulled", e.name)
		}
		for _, want := range []string{`{"status":"Pulling app:1...","id":"` + e.name + `"}`, `{"status":"Pulling app:1... : downloaded","id":"` + e.name + `"}`} {
			if strings.Count(got, want) != 1 {
				t.Errorf("pull has %d lines %s, want 1:\n%s", strings.Count(got, want), want, got)
			}
		}
	}
	if n := strings.Count(got, "Status: Downloaded newer image for app:1"); n != 1 {
		t.Errorf("%d final lines, want 1:\n%s", n, got)
	}
	got = f.must(200, "POST", "/images/load", bytes.NewReader(fakeImageTar(t, "content", "loaded:1")))
	for _, e := range fakes {
		if imageOf(e, "loaded:1") == "" {
			t.Errorf("%s has not loaded", e.name)
		}
	}
	if n := strings.Count(got, `Loaded image: loaded:1`); n != 1 {
		t.Errorf("%d lines Loaded image, want 1:\n%s", n, got)
	}
	if got := f.must(404, "POST", "/images/create?fromImage=nosuch&tag=1", nil); !strings.Contains(got, "pull access denied") {
		t.Errorf("pull of what nobody has = %s", got)
	}
	fakes[1].fail("POST", "/images/create", 500, `{"message":"disk full"}`)
	got = f.must(200, "POST", "/images/create?fromImage=app&tag=2", nil)
	if !strings.Contains(got, `"errorDetail":{"message":"node node-2: disk full"}`) || imageOf(fakes[2], "app:2") == "" {
		t.Errorf("pull when node-2 fails = %s, want its error, and the image on the others", got)
	}
	// An engine that breaks off does not stop the body for the others.
	fakes[0].override("POST", "/images/load", func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) })
	big := fakeImageTar(t, strings.Repeat("x", 1<<20), "big:1")
	got = f.must(200, "POST", "/images/load", bytes.NewReader(big))
	if !strings.Contains(got, "node node-1: ") || imageOf(fakes[1], "big:1") == "" || imageOf(fakes[2], "big:1") == "" {
		t.Errorf("load when node-1 breaks off = %s, want its error, and the image on the others", got)
	}
}

// TestLoadsOnEveryNodeDoNotWaitForEachOther: each load is read at the pace of the
// slowest node, so two that have places on different nodes must not wait for each other's.
func TestLoadsOnEveryNodeDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	f := newImageFleet(t, threeFakes(t)...)
	f.everyNode = true
	for _, e := range f.healthyEngines() {
		for range maxHeavy - 1 { // one place is left on each
			e.heavy <- struct{}{}
		}
	}
	const loads = 40
	answers := make(chan error, loads)
	for i := range loads {
		body := fakeImageTar(t, strings.Repeat("x", 100<<10), fmt.Sprintf("loaded:%d", i))
		go func() {
			resp, err := http.Post(f.url+"/images/load", "application/x-tar", bytes.NewReader(body))
			if err == nil {
				defer resp.Body.Close()
				var data []byte
				if data, err = io.ReadAll(resp.Body); err == nil && !strings.Contains(string(data), fmt.Sprintf("Loaded image: loaded:%d", i)) {
					err = fmt.Errorf("%s %s", resp.Status, data)
				}
			}
			answers <- err
		}()
	}
	timeout := time.After(2 * time.Minute)
	for i := range loads {
		select {
		case err := <-answers:
			if err != nil {
				t.Error(err)
			}
		case <-timeout:
			t.Fatalf("%d of %d loads have ended after two minutes", i, loads)
		}
	}
}
