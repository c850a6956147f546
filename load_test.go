package main

import (
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

// load is clients that work on an endpoint while faults are made: each creates, starts,
// inspects, reads logs of, execs in and removes a container of its own name, again and
// again, and judges every answer by what it knows (FAULTS 2.1). A connection that
// breaks leaves the outcome open; the client looks, as a person would.
type load struct {
	addr string // host:port
	stop atomic.Bool
	wg   sync.WaitGroup
	http *http.Client

	answers, broken, rounds atomic.Int64

	mu    sync.Mutex
	wrong []string
	ids   map[string]bool // every ID that a create answered: none may come twice
}

// startLoad begins; end must be called.
func startLoad(addr string, clients int) *load {
	l := &load{addr: addr, ids: map[string]bool{},
		http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}}
	for i := range clients {
		l.wg.Go(func() {
			c := loadClient{load: l, client: i}
			c.newName()
			for !l.stop.Load() {
				c.round()
			}
			c.remove()
		})
	}
	return l
}

// end lets every client remove what it has, and fails the test for each wrong answer.
// It returns how many answers there were.
func (l *load) end(t testing.TB) int64 {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	l.http.CloseIdleConnections()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wrong[:min(len(l.wrong), 20)] {
		t.Error(w)
	}
	if l.rounds.Load() == 0 {
		t.Error("the load did nothing")
	}
	t.Logf("load: %d rounds, %d answers, %d connections broke, %d wrong answers", l.rounds.Load(), l.answers.Load(), l.broken.Load(), len(l.wrong))
	return l.answers.Load()
}

func (l *load) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// loadClient knows what it was answered about its container.
type loadClient struct {
	*load
	client, names int
	name          string
	id            string // answered by a create, or found by a look; "": it has none
	open          bool   // the outcome of a create or removal is not known
}

func (c *loadClient) newName() {
	c.names++
	c.name, c.id, c.open = fmt.Sprintf("load-%d-%d", c.client, c.names), "", false
}

// ask is one call; ok is false if the connection broke, which leaves its outcome open.
func (c *loadClient) ask(method, path, body string) (status int, answer string, ok bool) {
	req, err := http.NewRequest(method, "http://"+c.addr+path, strings.NewReader(body))
	if err == nil {
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		var resp *http.Response
		if resp, err = c.http.Do(req); err == nil {
			var data []byte
			data, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			status, answer = resp.StatusCode, string(data)
		}
	}
	if err != nil {
		c.broken.Add(1)
		time.Sleep(20 * time.Millisecond) // the manager is being started again
		return 0, "", false
	}
	c.answers.Add(1)
	return status, answer, true
}

// expect is ask for an answer that must be one of want. Just after the start a node may
// not be healthy yet; what was refused for that is asked again.
func (c *loadClient) expect(method, path, body string, want ...int) (status int, answer string, ok bool) {
	for deadline := time.Now().Add(20 * time.Second); ; {
		status, answer, ok = c.ask(method, path, body)
		if ok && status == http.StatusServiceUnavailable && strings.Contains(answer, "not healthy") && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if ok && !slices.Contains(want, status) {
			_, state, _ := c.ask("GET", "/containers/"+c.name+"/json", "")
			if i := strings.Index(state, `"State":`); i >= 0 {
				answer += fmt.Sprintf(" %.300s", state[i:])
			}
			c.note("%s %s = %d %s, want %v", method, path, status, strings.TrimSpace(answer), want)
		}
		return status, answer, ok && slices.Contains(want, status)
	}
}

// round is the life of one container.
func (c *loadClient) round() {
	if !c.create() {
		return
	}
	path := "/containers/" + c.name
	// 304: a start whose answer was lost.
	started := false
	for deadline := time.Now().Add(30 * time.Second); !started && time.Now().Before(deadline); {
		var status int
		if status, _, started = c.expect("POST", path+"/start", "", 204, 304); status != 0 && !started {
			break
		}
	}
	if !started {
		c.remove()
		return
	}
	c.look(true)
	c.expect("GET", path+"/logs?stdout=1&stderr=1", "", 200)
	if _, answer, ok := c.expect("POST", path+"/exec", `{"Cmd":["true"],"AttachStdout":true}`, 201); ok {
		var made struct{ Id string }
		json.Unmarshal([]byte(answer), &made)
		if _, _, ok := c.expect("POST", "/exec/"+made.Id+"/start", `{"Detach":false}`, 200); ok {
			c.expect("GET", "/exec/"+made.Id+"/json", "", 200)
		}
	}
	c.look(true)
	c.remove()
	c.rounds.Add(1)
}

// create makes the container. Only while the outcome of an earlier call is open may
// its name be taken, and then there is soon a container that holds it, or none.
func (c *loadClient) create() bool {
	for began := time.Now(); !c.stop.Load() || c.open; {
		status, answer, ok := c.ask("POST", "/containers/create?name="+c.name, `{"Image":"busybox","Cmd":["sleep","1000"],"HostConfig":{"Memory":67108864}}`)
		switch {
		case !ok:
			c.open = true
		case status == http.StatusCreated:
			var made struct{ Id string }
			json.Unmarshal([]byte(answer), &made)
			c.mu.Lock()
			twice := c.ids[made.Id]
			c.ids[made.Id] = true
			c.mu.Unlock()
			if made.Id == "" || twice {
				c.note("create of %s answers ID %q, which is no new one", c.name, made.Id)
			}
			c.id, c.open = made.Id, false
			return true
		case status == http.StatusConflict && c.open:
			if c.look(false) {
				c.open = false
				return true
			}
			// A manager that is killed every few seconds never has the time to settle what an
			// earlier one has left. The oracle sees to it that this is done at the end.
			if !c.stop.Load() && time.Since(began) > 3*time.Second {
				c.newName()
				began = time.Now()
			}
		case status == http.StatusServiceUnavailable && strings.Contains(answer, "not healthy"):
		default:
			c.note("create of %s = %d %s", c.name, status, strings.TrimSpace(answer))
			return false
		}
		if time.Since(began) > 30*time.Second {
			if ok {
				c.note("create of %s is still %d %s, and nothing holds the name", c.name, status, strings.TrimSpace(answer))
			}
			return false
		}
		if ok {
			time.Sleep(50 * time.Millisecond)
		}
	}
	return false
}

// look inspects the container; it must be there if the client knows so.
func (c *loadClient) look(known bool) bool {
	status, answer, ok := c.ask("GET", "/containers/"+c.name+"/json", "")
	if !ok || status == http.StatusServiceUnavailable && strings.Contains(answer, "not healthy") {
		return false
	}
	if status == http.StatusNotFound && !known {
		return false
	}
	var shown struct{ Id, Name string }
	json.Unmarshal([]byte(answer), &shown)
	if status != http.StatusOK || shown.Name != "/"+c.name || known && shown.Id != c.id {
		c.note("inspect of %s (%s) = %d %.300s", c.name, c.id, status, answer)
		return false
	}
	c.id = shown.Id
	return true
}

// remove takes the container away, until that is certain.
func (c *loadClient) remove() {
	if c.id == "" && !c.open {
		return
	}
	asked := c.open // 404 is right only if an earlier call may have removed it, or it was never made
	for deadline := time.Now().Add(30 * time.Second); ; {
		status, answer, ok := c.ask("DELETE", "/containers/"+c.name+"?force=1&v=1", "")
		switch {
		case ok && status == http.StatusNoContent, ok && status == http.StatusNotFound && asked:
			c.id = ""
			// A 404 is of now: a create without answer may still be settled.
			if status == http.StatusNoContent {
				c.open = false
			}
			return
		case !ok:
			asked, c.open = true, true
		case status == http.StatusServiceUnavailable && strings.Contains(answer, "not healthy"):
		case status == http.StatusConflict && asked && strings.Contains(answer, "already in progress"):
		default:
			c.note("rm of %s = %d %s", c.name, status, strings.TrimSpace(answer))
			return
		}
		if time.Now().After(deadline) {
			if ok {
				c.note("rm of %s is still %d %s", c.name, status, strings.TrimSpace(answer))
			}
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
