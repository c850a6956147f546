//go:build bench

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// goalLoad is what a run of creates came to.
type goalLoad struct {
	n      int
	took   time.Duration
	each   []time.Duration // of a create with its start, sorted
	byName map[string]time.Duration
	errs   []string
}

func (l *goalLoad) rate() float64 { return float64(l.n) / l.took.Seconds() }
func (l *goalLoad) p(percent int) time.Duration {
	if len(l.each) == 0 {
		return 0
	}
	return l.each[min(len(l.each)*percent/100, len(l.each)-1)]
}

var loadRound atomic.Int64

// creates makes and starts containers, atOnce at a time, until n are made or the time is up.
func creates(url, body string, atOnce, n int, until time.Duration) *goalLoad {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: atOnce}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	l := &goalLoad{byName: map[string]time.Duration{}}
	round := loadRound.Add(1)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var next atomic.Int64
	began := time.Now()
	for range atOnce {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > n || time.Since(began) > until {
					return
				}
				name := fmt.Sprintf("load-%d-%d", round, i)
				from := time.Now()
				err := createStart(client, url, name, body)
				took := time.Since(from)
				mu.Lock()
				if err != nil {
					l.errs = append(l.errs, err.Error())
				} else {
					l.each = append(l.each, took)
					l.byName[name] = took
					l.n++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	l.took = time.Since(began)
	slices.Sort(l.each)
	return l
}

func createStart(client *http.Client, url, name, body string) error {
	var made struct{ Id string }
	if err := goalPost(client, url+"/v1.41/containers/create?name="+name, body, &made); err != nil {
		return err
	}
	return goalPost(client, url+"/v1.41/containers/"+made.Id+"/start", "", nil)
}

func goalPost(client *http.Client, url, body string, dest any) error {
	resp, err := client.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", resp.Status, data)
	}
	if err == nil && dest != nil {
		err = json.Unmarshal(data, dest)
	}
	return err
}

// goalAnswer is one timed GET.
type goalAnswer struct {
	took, first time.Duration
	body        []byte
}

// goalGet reads the answer into room, whose growing is not the manager's.
func goalGet(t *testing.T, client *http.Client, url string, room *bytes.Buffer) goalAnswer {
	t.Helper()
	began := time.Now()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	room.Reset()
	if _, err := io.CopyN(room, resp.Body, 1); err != nil {
		t.Fatal(url, resp.Status, err)
	}
	first := time.Since(began)
	if _, err := room.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %.200s %v", url, resp.Status, room.Bytes(), err)
	}
	return goalAnswer{time.Since(began), first, room.Bytes()}
}

// gets is the median of n of them.
func gets(t *testing.T, url string, n int) (took, first time.Duration, last []byte) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	var all, firsts []time.Duration
	var room bytes.Buffer
	for range n {
		a := goalGet(t, client, url, &room)
		all, firsts, last = append(all, a.took), append(firsts, a.first), a.body
	}
	return median(all), median(firsts), last
}

// getRate is how many GETs a second 8 at once get answered.
func getRate(t *testing.T, url string, until time.Duration) float64 {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	var n atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for time.Since(began) < until {
				resp, err := client.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / time.Since(began).Seconds()
}

// eventReader follows the manager's events and notes how late the starts come.
type eventReader struct {
	cancel context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex
	lags   []time.Duration
}

func followEvents(t *testing.T, url string) *eventReader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1.41/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r := &eventReader{cancel: cancel, done: make(chan struct{})}
	go func() { // end waits for it
		defer close(r.done)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, maxItem)
		for lines.Scan() {
			var ev engineEvent
			if json.Unmarshal(lines.Bytes(), &ev) == nil && ev.Type == "container" && ev.Action == "start" {
				r.mu.Lock()
				r.lags = append(r.lags, time.Duration(time.Now().UnixNano()-ev.TimeNano))
				r.mu.Unlock()
			}
		}
	}()
	return r
}

// end waits until want starts were told, at most 10 s, and returns the lags, sorted.
func (r *eventReader) end(want int) []time.Duration {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r.mu.Lock()
		n := len(r.lags)
		r.mu.Unlock()
		if n >= want {
			break
		}
	}
	r.cancel()
	<-r.done
	slices.Sort(r.lags)
	return r.lags
}
