package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// joinHost runs swarmlite join as a host does, until stop; err is how it ended.
func (s *sourcedFront) joinHost(t *testing.T, token, advertise string, words ...string) (stop func(), ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		args := append([]string{"join", "-manager", s.addr, "-advertise", advertise, "-token", token, "-heartbeat", "2s", "-delay", "10ms"}, words...)
		done <- run(ctx, args, func(string) string { return "" }, &logText{}, &logText{})
	}()
	t.Cleanup(cancel)
	return cancel, done
}

// newTokenFront is a manager without nodes, and its token.
func newTokenFront(t *testing.T) (f *sourcedFront, token string) {
	t.Helper()
	f = newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t))
	token, err := command(t, "token", "-H", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	return f, token
}

func TestAHostThatJoinsIsANodeAsLongAsItIsHeardOf(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"))
	db, dns := filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t)
	var token string
	t.Run("joins, falls silent, is heard of again", func(t *testing.T) {
		f := newSourcedFront(t, db, dns)
		token, _ = command(t, "token", "-H", f.addr)
		if got := f.rows(t, "SELECT count(*), max(hash) FROM join_tokens"); !strings.HasPrefix(token, "swarmlite-join-") || got != "1|"+tokenHash(token) {
			t.Fatalf("token %q, and in the database %s", token, got)
		}
		stop, ended := f.joinHost(t, token, e.addr(), "label=zone:a")
		f.awaitStates(t, "a=healthy")
		if got := f.rows(t, "SELECT source, line_labels, lapsed FROM nodes"); got != `joined|{"zone":"a"}|0` {
			t.Errorf("node = %s", got)
		}
		f.make(t, "box", sleepBody)
		stop()
		if err := within(t, ended, 20*time.Second); err != nil {
			t.Errorf("join ended with %v", err)
		}
		eventually(t, 20*time.Second, func() error {
			if got := f.rows(t, "SELECT what FROM trouble"); got != "not registered" {
				return fmt.Errorf("trouble = %q", got)
			}
			return nil
		})
		if _, info := f.call(t, "GET", "/info", ""); !strings.Contains(info, `"Healthy (not registered)"`) {
			t.Errorf("docker info does not tell: %s", info)
		}
		if _, node := f.call(t, "GET", "/nodes/a", ""); !strings.Contains(node, `"not registered, its swarmlite join is silent: it takes no new containers"`) {
			t.Errorf("docker node inspect does not tell: %s", node)
		}
		// It takes nothing new, and nothing else changes: its engine answers.
		if status, answer := f.call(t, "POST", "/containers/create", sleepBody); status != http.StatusServiceUnavailable || !strings.Contains(answer, "1 has not renewed its registration") {
			t.Errorf("create = %d %s", status, answer)
		}
		if got := f.rows(t, "SELECT state FROM nodes"); got != "healthy" {
			t.Errorf("node is %s, want it healthy as its engine is", got)
		}
		if status, _ := f.call(t, "GET", "/containers/box/json", ""); status != http.StatusOK {
			t.Errorf("inspect on a silent host = %d", status)
		}
		f.joinHost(t, token, e.addr(), "label=zone:a")
		eventually(t, 20*time.Second, func() error {
			status, answer := f.call(t, "POST", "/containers/create", sleepBody)
			if status != http.StatusCreated {
				return fmt.Errorf("create = %d %s", status, answer)
			}
			return nil
		})
	})
	t.Run("after a restart of the manager", func(t *testing.T) {
		f := newSourcedFront(t, db, dns)
		f.awaitStates(t, "a=healthy")
		_, ended := f.joinHost(t, token, e.addr())
		eventually(t, 20*time.Second, func() error { // heard of: its labels are those of this join
			if got := f.rows(t, "SELECT line_labels FROM nodes"); got != "{}" {
				return errors.New(got)
			}
			return nil
		})
		if status, answer := f.call(t, "DELETE", "/nodes/a?force=1", ""); status != http.StatusOK {
			t.Fatalf("node rm = %d %s", status, answer)
		}
		if err := within(t, ended, 20*time.Second); err == nil || !strings.Contains(err.Error(), "was taken out of the cluster: start swarmlite join again") {
			t.Errorf("join of a node that was taken out ends with %v", err)
		}
		f.awaitStates(t, "<nil>")
		f.joinHost(t, token, e.addr())
		f.awaitStates(t, "a=healthy")
	})
}

// A node whose join fell silent, and that somebody else names from now on, is open.
func TestANodeThatFellSilentIsOpenWhenItIsNamedOtherwise(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"))
	f, token := newTokenFront(t)
	silent := func() {
		t.Helper()
		stop, ended := f.joinHost(t, token, e.addr())
		f.awaitStates(t, "a=healthy")
		stop()
		if err := within(t, ended, 20*time.Second); err != nil {
			t.Errorf("join ended with %v", err)
		}
		f.front.store.sql(t, "UPDATE nodes SET lapsed = 1")
		if status, answer := f.call(t, "POST", "/containers/create", sleepBody); status != http.StatusServiceUnavailable {
			t.Errorf("create on a silent host = %d %s", status, answer)
		}
	}
	open := func(how string) {
		t.Helper()
		f.awaitStates(t, "a=healthy")
		eventually(t, 20*time.Second, func() error {
			if status, answer := f.call(t, "POST", "/containers/create", sleepBody); status != http.StatusCreated {
				return fmt.Errorf("%s: create = %d %s", how, status, answer)
			}
			return nil
		})
	}
	silent()
	if status, answer := f.call(t, "DELETE", "/nodes/a?force=1", ""); status != http.StatusOK {
		t.Fatalf("node rm = %d %s", status, answer)
	}
	commandOK(t, "tcp://"+e.addr(), "node", "add", "-H", f.addr, e.addr())
	open("added")
	if status, answer := f.call(t, "DELETE", "/nodes/a?force=1", ""); status != http.StatusOK {
		t.Fatalf("node rm = %d %s", status, answer)
	}
	silent()
	f.setFile([]nodeLine{{address: "tcp://" + e.addr()}})
	open("in the node file")
}

func TestJoinsAreRefused(t *testing.T) {
	t.Parallel()
	f := newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t))
	first, err := command(t, "token", "-H", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	join := func(token, address, words string, ttl time.Duration) string {
		t.Helper()
		status, answer := f.call(t, "POST", "/swarmlite/join",
			fmt.Sprintf(`{"Token":%q,"Address":%q,"Words":[%s],"TTL":%d,"First":true}`, token, address, words, ttl))
		return fmt.Sprint(status, " ", message(answer))
	}
	for _, tt := range []struct {
		token, address, words string
		ttl                   time.Duration
		want                  string
	}{
		{"", "10.0.0.1:2375", "", time.Minute, "403 wrong join token"},
		{tokenHash(first), "10.0.0.1:2375", "", time.Minute, "403 wrong join token"},
		{first, "unix:///var/run/docker.sock", "", time.Minute, "400 a host joins with one address"},
		{first, "ssh://10.0.0.1", "", time.Minute, "400 a host joins with one address"},
		{first, "n[1:9]", "", time.Minute, "400 a host joins with one address"},
		{first, "10.0.0.1:2375", `"tls=off"`, time.Minute, "400 a host that joins chooses its name and labels only"},
		{first, "10.0.0.1:2375", "", 0, "400 expected a TTL from 1 second to 24 hours"},
		{first, "10.0.0.1:x", "", time.Minute, `400 "10.0.0.1:x": port "x" is not a number`},
	} {
		if got := join(tt.token, tt.address, tt.words, tt.ttl); !strings.HasPrefix(got, tt.want) {
			t.Errorf("join(%q %s) = %s, want %s", tt.address, tt.words, got, tt.want)
		}
	}
	if got := f.rows(t, "SELECT count(*) FROM nodes"); got != "0" {
		t.Errorf("%s nodes, want none", got)
	}
	second, err := command(t, "token", "-H", f.addr, "-replace")
	if err != nil {
		t.Fatal(err)
	}
	if got := join(first, "127.0.0.1:1", "", time.Minute); !strings.HasPrefix(got, "403") {
		t.Errorf("join with a token that was replaced = %s", got)
	}
	if got := join(second, "127.0.0.1:1", "", time.Minute); !strings.HasPrefix(got, "200") {
		t.Errorf("join with the newest token = %s", got)
	}
	// Whoever tries tokens is slowed down, and hosts with the right one are not.
	var last string
	for range 30 {
		last = join("swarmlite-join-guess", "127.0.0.1:1", "", time.Minute)
	}
	if !strings.HasPrefix(last, "429") {
		t.Errorf("after 30 guesses: %s, want 429", last)
	}
	if got := join(second, "127.0.0.1:1", "", time.Minute); !strings.HasPrefix(got, "200") {
		t.Errorf("join with the right token meanwhile = %s", got)
	}
	if strings.Contains(f.logged(), first) || strings.Contains(f.logged(), "guess") {
		t.Error("a token is in the log")
	}
	commandFails(t, "join: -advertise is missing", "join", "-manager", f.addr, "-token", "x")
	commandFails(t, "join: -token is missing", "join", "-manager", f.addr, "-advertise", "a")
	commandFails(t, "join: -heartbeat 1ms: expected 1s to 8h", "join", "-manager", f.addr, "-advertise", "a", "-token", "x", "-heartbeat", "1ms")
}

// F48 and F49: a manager that was stopped for a while has heard nobody meanwhile.
func TestHeartbeatsThatNobodyCouldHearDoNotCount(t *testing.T) {
	t.Parallel()
	var h heartbeats
	h.heard(1, time.Hour)
	h.heard(2, time.Minute)
	h.until[2] -= int64(5 * time.Minute) // five minutes have gone by
	if late := h.late(5 * time.Minute); len(late) != 0 {
		t.Errorf("nodes %v are late after a pause of the manager", late)
	}
	h.until[2] -= int64(time.Minute + time.Second)
	if late := h.late(0); len(late) != 1 || late[0] != 2 {
		t.Errorf("nodes %v are late, want 2", late)
	}
	if late := h.late(0); len(late) != 0 {
		t.Errorf("nodes %v are late twice", late)
	}
}

// The manager is away: the host goes on trying.
func TestAJoinWaitsForItsManager(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, hostNamed("a"))
	f, token := newTokenFront(t)
	log, logs := testLog()
	client, err := (&managerFlags{host: freePort(t)}).client()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	j := joiner{log: log, client: client, heartbeat: time.Second, pause: 10 * time.Millisecond,
		request: joinRequest{Token: token, Address: e.addr(), TTL: 3 * time.Second}}
	done := make(chan error, 1)
	go func() { done <- j.run(ctx) }()
	eventually(t, 20*time.Second, func() error {
		if logs.count("not registered, trying again") < 2 {
			return errors.New("it does not try again")
		}
		return nil
	})
	cancel()
	if err := within(t, done, 20*time.Second); err != nil {
		t.Errorf("join ended with %v", err)
	}
	f.joinHost(t, token, e.addr())
	f.awaitStates(t, "a=healthy")
}
