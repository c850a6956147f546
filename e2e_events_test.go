package main

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestE2EEvents(t *testing.T) {
	w := newTwin(t)
	stamp := func() string {
		now := time.Now()
		return fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())
	}
	since := stamp()
	// From then on, however late it begins to watch.
	watching := dockerCommand(t, w.addr, "events", "--since", since, "--filter", "type=container", "--filter", "event=start", "--filter", "event=die", "--filter", "event=destroy", "--format", "{{.Action}} {{.Actor.Attributes.name}}")
	live := startDocker(t, watching)
	w.ok(t, "run", "-d", "--name", "web", "-l", "tier=front", "-v", "data:/d", "busybox", "sleep", "1000")
	w.ok(t, "exec", "web", "true")
	w.ok(t, "pause", "web")
	w.ok(t, "unpause", "web")
	w.ok(t, "rename", "web", "site")
	w.ok(t, "update", "-m", "100m", "--memory-swap", "-1", "site")
	w.ok(t, "kill", "-s", "CONT", "site")
	w.ok(t, "cp", "/etc/hostname", "site:/tmp")
	w.ok(t, "commit", "site", "site-image:1")
	w.ok(t, "restart", "-t", "0", "site")
	w.same(t, "run", "--rm", "--name", "failing", "busybox", "false")
	w.ok(t, "rm", "-f", "site")
	outputHas(t, live, "destroy site\n") // the last one is here: what is asked for below has come
	if got := strings.ReplaceAll(live.String(), "destroy failing\n", ""); got != "start web\ndie site\nstart site\nstart failing\ndie failing\ndie site\ndestroy site\n" {
		t.Errorf("docker events, live:\n%s", got)
	}
	if err := watching.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = watching.Wait()
	until := stamp()

	// A container's events come in one order; those of networks and volumes beside them in any.
	numbers := regexp.MustCompile(`"(time|timeNano)":\d+|"(execID|container|imageID)":"[^"]*"`)
	for _, filters := range []string{
		"type=container", "type=volume", "type=network", "type=image", "type=daemon", "event=start", "event=exec_create", "event=exec_create event=exec_start", "event=exec_die", "event=st",
		"event=die event=start", "container=web", "container=site", "container=nosuch", "container=web container=failing", "image=busybox", "image=busybox:latest", "image=nosuch",
		"label=tier", "label=tier=front", "label=tier=back", "volume=data", "network=bridge", "network=nosuch", "type=container type=volume", "scope=local", "scope=swarm",
		"daemon=x", "bogus=1", "type=container event=start label=tier",
	} {
		args := []string{"events", "--since", since, "--until", until, "--format", "{{json .}}"}
		for f := range strings.FieldsSeq(filters) {
			args = append(args, "--filter", f)
		}
		w.sameWith(t, nil, func(s string) string {
			lines := strings.Split(numbers.ReplaceAllString(s, `"$1$2":0`), "\n")
			if !strings.HasPrefix(filters, "type=container") || strings.Contains(filters, "type=volume") {
				slices.Sort(lines)
			}
			return strings.Join(lines, "\n")
		}, args...)
	}
	t.Run("by node", func(t *testing.T) {
		total := 0
		for _, e := range w.engines {
			out := w.docker(t, "events", "--since", since, "--until", until, "--filter", "node="+e.name, "--format", `{{.Type}} {{index .Actor.Attributes "node.name"}}`)
			for line := range strings.FieldsFuncSeq(out, func(r rune) bool { return r == '\n' }) {
				total++
				if !strings.HasSuffix(line, " "+e.name) {
					t.Errorf("docker events --filter node=%s: %q", e.name, line)
				}
			}
		}
		if all := len(strings.Split(w.docker(t, "events", "--since", since, "--until", until, "--format", "x"), "\n")); total != all {
			t.Errorf("events by node: %d, of all nodes: %d", total, all)
		}
	})
	t.Run("words and times", func(t *testing.T) {
		w.same(t, "events", "--since", "nonsense")
		w.same(t, "events", "--since", "1700000001", "--until", "1700000000")
		path := "/v1.41/events?since=" + since + "&until=" + until + "&filters=" + url.QueryEscape(`{"type":["container"],"event":["create"]}`)
		_, ours := apiCall(t, "GET", w.addr, path)
		_, theirs := apiCall(t, "GET", w.alone.addr, path)
		first, _, _ := strings.Cut(ours, "\n")
		want, _, _ := strings.Cut(theirs, "\n")
		sameShape(t, "/events", first, want, ".Actor.Attributes.com.docker.swarm.", ".Actor.Attributes.node.name")
		began := time.Now()
		if r := w.ask(t, "events", "--until", "1s"); r.exit != 0 {
			t.Errorf("docker events --until a second ago: %v", r)
		}
		soon := time.Now().Add(time.Second)
		if r := w.ask(t, "events", "--until", fmt.Sprintf("%d.%09d", soon.Unix(), soon.Nanosecond())); r.exit != 0 || time.Since(began) < time.Second {
			t.Errorf("docker events --until a second ahead ended after %v: %v", time.Since(began), r)
		}
	})
	w.alone.docker(t, "rmi", "site-image:1")
}
