package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// past asks for the events since a time, as a client of a version, and returns them as they came.
func (f *front) past(t *testing.T, version string, since time.Time, filters string) []map[string]any {
	t.Helper()
	stamp := func(at time.Time) []string { return []string{fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond())} }
	query := url.Values{"since": stamp(since), "until": stamp(time.Now())}
	if filters != "" {
		query.Set("filters", filters)
	}
	status, answer := f.call(t, "GET", version+"/events?"+query.Encode(), "")
	if status != http.StatusOK {
		t.Fatalf("events = %d %s", status, answer)
	}
	var list []map[string]any
	for dec := json.NewDecoder(strings.NewReader(answer)); dec.More(); {
		var ev map[string]any
		if err := dec.Decode(&ev); err != nil {
			t.Fatalf("events = %s: %v", answer, err)
		}
		list = append(list, ev)
	}
	return list
}

// TestEventsHaveTheFieldsOfTheClientsVersion: API 1.52 dropped status, id and from. An
// old client hears them of a new engine, and a new client not of an old one.
func TestEventsHaveTheFieldsOfTheClientsVersion(t *testing.T) {
	t.Parallel()
	old, newest := named(t, "old"), named(t, "newest", speaking("1.40", "1.56"))
	f := newFront(t, old, newest)
	began := time.Now()
	for _, e := range f.fakes {
		e.addContainer("on-"+e.name, "busybox", true, map[string]string{"tier": e.name})
	}
	f.awaitListed(t, 20*time.Second, "on-old", "on-newest")
	eventually(t, 20*time.Second, func() error {
		if n := len(f.past(t, "", began, `{"type":["container"],"event":["start"]}`)); n != 2 {
			return fmt.Errorf("%d of 2 starts have come", n)
		}
		return nil
	})
	for version, wanted := range map[string]bool{"/v1.40": true, "/v1.41": true, "/v1.51": true, "/v1.52": false, "/v1.56": false} {
		list := f.past(t, version, began, `{"type":{"container":true},"event":{"start":true}}`)
		if len(list) != 2 {
			t.Errorf("%s: %d starts, want 2", version, len(list))
		}
		for _, ev := range list {
			actor := ev["Actor"].(map[string]any)
			for key, value := range map[string]any{"status": "start", "id": actor["ID"], "from": "busybox"} {
				got, has := ev[key]
				if has != wanted || wanted && got != value {
					t.Errorf("%s: an event of %v has %s %v (%t), want %v (%t)", version, actor["Attributes"].(map[string]any)["node.name"], key, got, has, value, wanted)
				}
			}
			for _, key := range []string{"Type", "Action", "Actor", "scope", "time", "timeNano"} {
				if _, has := ev[key]; !has {
					t.Errorf("%s: an event lacks %s: %v", version, key, ev)
				}
			}
		}
	}
}

func TestEventsSinceUntilAndFilters(t *testing.T) {
	t.Parallel()
	a, b := named(t, "a"), named(t, "b")
	f := newFront(t, a, b)
	began := time.Now()
	first := f.make(t, "first", `{"Image":"busybox","Cmd":["sleep","inf"],"Labels":{"tier":"front"},"Env":["constraint:node==a"]}`)
	eventually(t, 20*time.Second, func() error {
		if len(f.past(t, "", began, `{"event":["start"]}`)) != 1 {
			return fmt.Errorf("the start of the first container has not come")
		}
		return nil
	})
	between := time.Now()
	f.make(t, "second", `{"Image":"busybox","Cmd":["sleep","inf"],"Labels":{"tier":"back"},"Env":["constraint:node==b"]}`)
	eventually(t, 20*time.Second, func() error {
		if len(f.past(t, "", between, `{"event":["start"]}`)) != 1 {
			return fmt.Errorf("the start of the second container has not come")
		}
		return nil
	})
	seen := func(since time.Time, filters string) string {
		var words []string
		for _, ev := range f.past(t, "", since, filters) {
			words = append(words, fmt.Sprint(ev["Action"], " ", ev["Actor"].(map[string]any)["Attributes"].(map[string]any)["name"]))
		}
		slices.Sort(words)
		return strings.Join(words, ", ")
	}
	for _, tt := range []struct {
		since         time.Time
		filters, want string
	}{
		{began, `{"type":["container"]}`, "create first, create second, start first, start second"},
		{between, `{"type":["container"]}`, "create second, start second"},
		{began, `{"type":["container"],"node":["b"]}`, "create second, start second"},
		{began, `{"type":["container"],"label":["tier=front"]}`, "create first, start first"},
		{began, `{"container":["second"],"event":["start","die"]}`, "start second"},
		{began, `{"container":["` + first[:12] + `"],"event":["create"]}`, "create first"},
		{began, `{"type":["container"],"image":["busybox"],"event":["start"]}`, "start first, start second"},
		{began, `{"type":["container"],"image":["nosuch"]}`, ""},
		{began, `{"type":["volume"]}`, ""},
		{began, `{"scope":["swarm"]}`, ""},
	} {
		if got := seen(tt.since, tt.filters); got != tt.want {
			t.Errorf("events with %s = %q, want %q", tt.filters, got, tt.want)
		}
	}
	// Those that are still to come end at until.
	query := fmt.Sprintf("/events?until=%d", time.Now().Add(time.Second).Unix())
	if status, answer := f.call(t, "GET", query, ""); status != http.StatusOK {
		t.Errorf("events until soon = %d %s", status, answer)
	}
	for query, want := range map[string]string{
		"/events?since=nonsense":                         `strconv.ParseInt: parsing "nonsense": invalid syntax`,
		"/events?since=1700000001&until=1700000000":      "`since` time (1700000001) cannot be after `until` time (1700000000)",
		"/events?filters=" + url.QueryEscape(`{"type":`): "invalid filter",
	} {
		if status, answer := f.call(t, "GET", query, ""); status != http.StatusBadRequest || !strings.Contains(message(answer), want) {
			t.Errorf("GET %s = %d %s, want 400 %s", query, status, answer, want)
		}
	}
}

// Events that a client waits for are not kept back for others to share their commit.
func TestEventsThatAreFollowedDoNotWaitForCompany(t *testing.T) {
	t.Parallel()
	c, url := testCluster(t)
	waits := func(want time.Duration) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if got := c.store.eventWait(); got != want {
				return fmt.Errorf("events wait for %v, want %v", got, want)
			}
			return nil
		})
	}
	waits(waitOfEvents)
	resp, err := http.Get(url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	waits(0)
	resp.Body.Close()
	waits(waitOfEvents)
}

// longLines is an endless stream of lines of 1 MiB each.
type longLines struct{ read int }

func (l *longLines) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
		if l.read++; l.read%(1<<20) == 0 {
			p[i] = '\n'
		}
	}
	return len(p), nil
}

func TestLinesThatNobodyTakesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stream := &longLines{}
		q := readEvents(ctx, stream)
		before := 0
		for range 2 { // and it goes on when they are taken
			synctest.Wait()
			n := stream.read - before
			if before = stream.read; n < maxItem-2<<20 || n > maxItem+2<<20 {
				t.Errorf("%d bytes are read ahead, want about %d", n, maxItem)
			}
			if events, err := q.take(); len(events) != 0 || err != nil {
				t.Errorf("%d events in nonsense, %v", len(events), err)
			}
		}
		cancel()
	})
}
