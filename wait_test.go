package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestWaitAnswersEveryCondition: the header comes at once, the body when the condition
// is met, and a list after that shows it. docker run --rm depends on both.
func TestWaitAnswersEveryCondition(t *testing.T) {
	t.Parallel()
	e := named(t, "a")
	f := newFront(t, e)
	for _, tt := range []struct {
		condition string
		before    []string // calls before the wait
		after     []string // calls that do not meet the condition
		meet      string   // the call that does; "": it is met from the start
		listed    string   // the state that a list shows then
	}{
		{"", nil, nil, "", "created"},
		{"not-running", nil, nil, "", "created"},
		{"", []string{"POST /start"}, nil, "POST /kill", "exited"},
		{"not-running", []string{"POST /start"}, []string{"POST /pause", "POST /unpause"}, "POST /stop?t=0", "exited"},
		{"next-exit", nil, []string{"POST /start"}, "POST /kill", "exited"},
		{"next-exit", []string{"POST /start", "POST /kill"}, []string{"POST /start"}, "POST /kill", "exited"},
		{"removed", nil, []string{"POST /start", "POST /kill"}, "DELETE ", ""},
		{"removed", []string{"POST /start"}, nil, "DELETE ?force=1", ""},
	} {
		name := strings.Join(append([]string{"condition", tt.condition}, tt.before...), " ")
		t.Run(name, func(t *testing.T) {
			status, answer := f.call(t, "POST", "/containers/create", sleepBody)
			if status != http.StatusCreated {
				t.Fatalf("create = %d %s", status, answer)
			}
			id := answer[strings.Index(answer, `"Id":"`)+6:][:64]
			act := func(call string) {
				t.Helper()
				method, suffix, _ := strings.Cut(call, " ")
				if status, answer := f.call(t, method, "/containers/"+id+suffix, ""); status != http.StatusNoContent {
					t.Fatalf("%s = %d %s", call, status, answer)
				}
			}
			for _, call := range tt.before {
				act(call)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "POST", "http://"+f.addr+"/v1.41/containers/"+id+"/wait?condition="+tt.condition, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := loneClient.Do(req) // returns with the header, when nothing has met the condition yet
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body := make(chan string, 1)
			go func() {
				data, err := io.ReadAll(bufio.NewReader(resp.Body))
				if err != nil {
					data = []byte(err.Error())
				}
				body <- string(data)
			}()
			for _, call := range tt.after {
				act(call)
			}
			if tt.meet != "" {
				select {
				case got := <-body:
					t.Fatalf("wait ended before the condition was met: %s", got)
				default:
				}
				act(tt.meet)
			}
			if got := within(t, body, 30*time.Second); resp.StatusCode != http.StatusOK || !strings.Contains(got, `"StatusCode":`) {
				t.Errorf("wait = %s %s", resp.Status, got)
			}
			var list []struct{ State string }
			_, answer = f.call(t, "GET", "/containers/json?all=1&filters="+url.QueryEscape(`{"id":["`+id+`"]}`), "")
			if err := json.Unmarshal([]byte(answer), &list); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, c := range list {
				got += c.State
			}
			if got != tt.listed {
				t.Errorf("a list after the wait shows %q, want %q", got, tt.listed)
			}
		})
	}
	if status, answer := f.call(t, "POST", "/containers/nosuch/wait", ""); status != http.StatusNotFound {
		t.Errorf("wait for nobody = %d %s", status, answer)
	}
	id := f.make(t, "odd", sleepBody)
	if status, answer := f.call(t, "POST", "/containers/"+id+"/wait?condition=bored", ""); status != http.StatusBadRequest || !strings.Contains(answer, "invalid condition") {
		t.Errorf("wait for a condition that there is not = %d %s, want the engine's 400", status, answer)
	}
}
