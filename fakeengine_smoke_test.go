package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apicontainer "github.com/docker/docker/api/types/container"
	apievents "github.com/docker/docker/api/types/events"
	apifilters "github.com/docker/docker/api/types/filters"
	apiimage "github.com/docker/docker/api/types/image"
	apimount "github.com/docker/docker/api/types/mount"
	apinetwork "github.com/docker/docker/api/types/network"
	apivolume "github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
)

// newFakeClient is Docker's own client for a fakeEngine, with a version agreed on.
func newFakeClient(t *testing.T, e *fakeEngine) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.WithHost("tcp://"+e.addr()), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatalf("NewClientWithOpts(%s) = %v", e.addr(), err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// fakeContext ends a test that hangs.
func fakeContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // parallel subtests wait their turn
	t.Cleanup(cancel)
	return ctx
}

// fakeMust fails the test if a call did.
func fakeMust(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestFakeEngineServesDockersClient(t *testing.T) {
	t.Parallel()
	ctx, e := fakeContext(t), newFakeEngine(t, func(e *fakeEngine) { e.labels = []string{"storage=ssd"} })
	c := newFakeClient(t, e)

	ping, err := c.Ping(ctx)
	fakeMust(t, "Ping", err)
	if ping.APIVersion != "1.41" || ping.OSType != "linux" {
		t.Errorf("Ping = %+v, want 1.41, linux", ping)
	}
	stream, streamErrors := c.Events(ctx, apievents.ListOptions{Since: "1h"})

	made, err := c.ContainerCreate(ctx, &apicontainer.Config{Image: "busybox", Cmd: []string{"cat"}, OpenStdin: true, StdinOnce: true,
		Labels: map[string]string{"a": "b"}},
		&apicontainer.HostConfig{Resources: apicontainer.Resources{Memory: 64 << 20},
			Mounts: []apimount.Mount{{Type: apimount.TypeVolume, Source: "data", Target: "/data"}}}, nil, nil, "web")
	fakeMust(t, "ContainerCreate", err)
	if _, err := c.ContainerCreate(ctx, &apicontainer.Config{Image: "busybox"}, nil, nil, nil, "web"); err == nil || !strings.Contains(err.Error(), made.ID) {
		t.Errorf("ContainerCreate of a taken name = %v, want a conflict with %s", err, made.ID)
	}
	if _, err := c.ContainerCreate(ctx, &apicontainer.Config{Image: "nosuch"}, nil, nil, nil, ""); err == nil || !strings.Contains(err.Error(), "No such image: nosuch:latest") {
		t.Errorf("ContainerCreate of a missing image = %v, want No such image: nosuch:latest", err)
	}

	attached, err := c.ContainerAttach(ctx, made.ID, apicontainer.AttachOptions{Stream: true, Stdin: true, Stdout: true})
	fakeMust(t, "ContainerAttach", err)
	defer attached.Close()
	waited, waitErrors := c.ContainerWait(ctx, made.ID, apicontainer.WaitConditionNextExit)
	fakeMust(t, "ContainerStart", c.ContainerStart(ctx, "web", apicontainer.StartOptions{}))

	list, err := c.ContainerList(ctx, apicontainer.ListOptions{Filters: apifilters.NewArgs(apifilters.Arg("label", "a=b"), apifilters.Arg("name", "^/web$"))})
	fakeMust(t, "ContainerList", err)
	if len(list) != 1 || list[0].Names[0] != "/web" || list[0].State != "running" || !strings.HasPrefix(list[0].Status, "Up ") {
		t.Errorf("ContainerList = %+v, want web, up", list)
	}
	seen, err := c.ContainerInspect(ctx, made.ID[:12])
	fakeMust(t, "ContainerInspect", err)
	if seen.HostConfig.Memory != 64<<20 || seen.NetworkSettings.Networks["bridge"].IPAddress == "" || seen.Mounts[0].Name != "data" || seen.Config.Hostname != made.ID[:12] {
		t.Errorf("ContainerInspect = %+v, want memory, address, volume and host name", seen)
	}

	exec, err := c.ContainerExecCreate(ctx, "web", apicontainer.ExecOptions{Cmd: []string{"echo", "hi", "there"}, AttachStdout: true})
	fakeMust(t, "ContainerExecCreate", err)
	ran, err := c.ContainerExecAttach(ctx, exec.ID, apicontainer.ExecAttachOptions{})
	fakeMust(t, "ContainerExecAttach", err)
	if got := fakeStdout(t, ran.Reader); got != "hi there\n" {
		t.Errorf("exec echo = %q, want hi there", got)
	}
	ran.Close()
	if x, err := c.ContainerExecInspect(ctx, exec.ID); err != nil || x.Running || x.ExitCode != 0 || x.ContainerID != made.ID {
		t.Errorf("ContainerExecInspect = %+v, %v, want ended with 0", x, err)
	}

	_, err = io.WriteString(attached.Conn, "back to me")
	fakeMust(t, "write to attach", err)
	fakeMust(t, "CloseWrite", attached.CloseWrite())
	if got := fakeStdout(t, attached.Reader); got != "back to me" {
		t.Errorf("attach = %q, want what was written", got)
	}
	select {
	case status := <-waited:
		if status.StatusCode != 0 {
			t.Errorf("ContainerWait = %d, want 0", status.StatusCode)
		}
	case err := <-waitErrors:
		t.Errorf("ContainerWait = %v", err)
	}
	fakeMust(t, "ContainerRemove", c.ContainerRemove(ctx, "web", apicontainer.RemoveOptions{}))
	if _, err := c.ContainerInspect(ctx, "web"); err == nil || !strings.Contains(err.Error(), "No such container: web") {
		t.Errorf("ContainerInspect after rm = %v, want No such container", err)
	}

	var actions []string
	for !slices.Contains(actions, "container destroy") {
		select {
		case event := <-stream:
			actions = append(actions, string(event.Type)+" "+strings.TrimSpace(string(event.Action)))
		case err := <-streamErrors:
			t.Fatalf("Events after %q: %v", actions, err)
		}
	}
	want := []string{"volume create", "container create", "container attach", "network connect", "volume mount", "container start",
		"container exec_create: echo hi there", "container exec_start: echo hi there", "container exec_die",
		"container die", "network disconnect", "volume unmount", "container destroy"}
	if !slices.Equal(actions, want) {
		t.Errorf("Events = %q,\nwant %q", actions, want)
	}
	if n := e.count("POST", "^/containers/create$"); n != 3 {
		t.Errorf("count(POST create) = %d, want 3", n)
	}
}

// fakeStdout reads multiplexed output to its end.
func fakeStdout(t *testing.T, r io.Reader) string {
	t.Helper()
	var out, errs strings.Builder
	if _, err := stdcopy.StdCopy(&out, &errs, r); err != nil {
		t.Errorf("StdCopy = %v", err)
	}
	return out.String()
}

func TestFakeEngineServesEveryNoun(t *testing.T) {
	t.Parallel()
	ctx, e := fakeContext(t), newFakeEngine(t)
	c := newFakeClient(t, e)
	id := e.addContainer("behind", "alpine:edge", true, map[string]string{"who": "else"})
	calls := map[string]func() error{
		"info":    func() error { _, err := c.Info(ctx); return err },
		"version": func() error { _, err := c.ServerVersion(ctx); return err },
		"pause": func() error {
			other := e.addContainer("paused", "busybox", true, nil)
			return errors.Join(c.ContainerPause(ctx, other), c.ContainerUnpause(ctx, other))
		},
		"restart": func() error { return c.ContainerRestart(ctx, id, apicontainer.StopOptions{}) },
		"rename":  func() error { return c.ContainerRename(ctx, id, "renamed") },
		"update": func() error {
			_, err := c.ContainerUpdate(ctx, id, apicontainer.UpdateConfig{Resources: apicontainer.Resources{Memory: 1 << 30}})
			return err
		},
		"top":   func() error { _, err := c.ContainerTop(ctx, id, nil); return err },
		"diff":  func() error { _, err := c.ContainerDiff(ctx, id); return err },
		"stats": func() error { _, err := c.ContainerStatsOneShot(ctx, id); return err },
		"logs": func() error {
			_, err := c.ContainerLogs(ctx, id, apicontainer.LogsOptions{ShowStdout: true})
			return err
		},
		"export": func() error {
			r, err := c.ContainerExport(ctx, id)
			if err == nil {
				err = r.Close()
			}
			return err
		},
		"archive": func() error {
			err := c.CopyToContainer(ctx, id, "/tmp", strings.NewReader(string(fakeTar("note", []byte("x")))), apicontainer.CopyToContainerOptions{})
			stat, err2 := c.ContainerStatPath(ctx, id, "/tmp/note")
			r, _, err3 := c.CopyFromContainer(ctx, id, "/tmp/note")
			if stat.Name != "note" || err3 != nil {
				return errors.Join(errors.New("stat of a file that was put"), err, err2, err3)
			}
			return errors.Join(err, err2, r.Close())
		},
		"commit": func() error {
			_, err := c.ContainerCommit(ctx, id, apicontainer.CommitOptions{Reference: "saved:1"})
			return err
		},
		"pull": func() error {
			r, err := c.ImagePull(ctx, "redis", apiimage.PullOptions{})
			if err == nil {
				_, err = io.Copy(io.Discard, r)
			}
			return err
		},
		"images": func() error {
			list, err := c.ImageList(ctx, apiimage.ListOptions{})
			if len(list) < 2 {
				err = fmt.Errorf("%d images, %w", len(list), err)
			}
			return err
		},
		"tag and rmi": func() error {
			err := c.ImageTag(ctx, "busybox", "mine:2")
			_, err2 := c.ImageRemove(ctx, "mine:2", apiimage.RemoveOptions{})
			return errors.Join(err, err2)
		},
		"networks": func() error {
			made, err := c.NetworkCreate(ctx, "n1", apinetwork.CreateOptions{Labels: map[string]string{"a": "b"}})
			err2 := c.NetworkConnect(ctx, "n1", id, nil)
			seen, err3 := c.NetworkInspect(ctx, made.ID, apinetwork.InspectOptions{})
			if len(seen.Containers) != 1 {
				return errors.New("no container in the network")
			}
			refused := c.NetworkRemove(ctx, "n1")
			if refused == nil {
				return errors.New("a network in use was removed")
			}
			return errors.Join(err, err2, err3, c.NetworkDisconnect(ctx, "n1", id, true), c.NetworkRemove(ctx, "n1"))
		},
		"volumes": func() error {
			_, err := c.VolumeCreate(ctx, apivolume.CreateOptions{Name: "v1"})
			_, err2 := c.VolumeInspect(ctx, "v1")
			_, err3 := c.VolumeList(ctx, apivolume.ListOptions{})
			return errors.Join(err, err2, err3, c.VolumeRemove(ctx, "v1", false))
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := call(); err != nil {
				t.Errorf("%s = %v", name, err)
			}
		})
	}
}

func TestFakeEngineChangesBehindOurBack(t *testing.T) {
	t.Parallel()
	ctx, e := fakeContext(t), newFakeEngine(t)
	c := newFakeClient(t, e)
	body := []byte(`{"image":"busybox","Cmd":["httpd"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"NetworkMode":"none"}}`)
	id := e.addContainerBody("web", body, false)
	e.addContainer("gone", "busybox", true, nil)
	e.removeContainer("gone")
	e.startContainer("web")
	list, err := c.ContainerList(ctx, apicontainer.ListOptions{})
	fakeMust(t, "ContainerList", err)
	if len(list) != 1 || list[0].ID != id || len(list[0].Ports) != 2 || list[0].Ports[0].PublicPort != 8080 {
		t.Errorf("ContainerList = %+v, want web alone with its port twice", list)
	}
	e.exitContainer(id, 3)
	list, err = c.ContainerList(ctx, apicontainer.ListOptions{All: true})
	fakeMust(t, "ContainerList", err)
	if len(list) != 1 || !strings.HasPrefix(list[0].Status, "Exited (3) ") || len(list[0].Ports) != 0 {
		t.Errorf("ContainerList = %+v, want web exited with 3", list)
	}
	if got := e.createBody("web"); string(got) != string(body) {
		t.Errorf("createBody(web) = %s, want %s", got, body)
	}
	if got := e.containerNames(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("containerNames() = %q, want web", got)
	}
	e.addImage("more:1", "")
	e.removeImage("busybox")
	if got := e.imageTags(); !slices.Equal(got, []string{"more:1"}) {
		t.Errorf("imageTags() = %q, want more:1", got)
	}
	e.forget()
	if got := e.requests(); len(got) != 0 {
		t.Errorf("requests() after forget = %v, want none", got)
	}
}

func TestFakeEngineImageKeepsOrChangesItsIDAsStoresDo(t *testing.T) {
	t.Parallel()
	ctx := fakeContext(t)
	graph := newFakeEngine(t)
	other := newFakeEngine(t, func(e *fakeEngine) { e.preloaded = nil })
	containerd := newFakeEngine(t, func(e *fakeEngine) {
		e.apiVersion, e.minAPIVersion, e.driver, e.preloaded = "1.56", "1.40", "overlayfs", nil
	})
	id := graph.addImage("mine:1", "made here")
	for _, to := range []*fakeEngine{other, containerd} {
		saved, err := newFakeClient(t, graph).ImageSave(ctx, []string{"mine:1"})
		fakeMust(t, "ImageSave", err)
		loaded, err := newFakeClient(t, to).ImageLoad(ctx, saved)
		fakeMust(t, "ImageLoad", err)
		text, _ := io.ReadAll(loaded.Body)
		if !strings.Contains(string(text), `Loaded image: mine:1\n`) {
			t.Errorf("ImageLoad = %q, want Loaded image: mine:1", text)
		}
		seen, err := newFakeClient(t, to).ImageInspect(ctx, "mine:1")
		fakeMust(t, "ImageInspect", err)
		if same := seen.ID == id; same != (to == other) {
			t.Errorf("ID after a copy = %s, from %s, containerd store: %v", seen.ID, id, to == containerd)
		}
	}
}

// fakeGet is one request on a connection of its own.
func fakeGet(ctx context.Context, e *fakeEngine, path string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.addr()+path, nil)
	if err != nil {
		return nil, "", err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

func TestFakeEngineRefusesVersionsInDockersWords(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t, func(e *fakeEngine) { e.apiVersion, e.minAPIVersion = "1.56", "1.40" })
	for path, want := range map[string]string{
		"/v1.57/_ping":           `400 {"message":"client version 1.57 is too new. Maximum supported API version is 1.56"}`,
		"/v1.39/containers/json": `400 {"message":"client version 1.39 is too old. Minimum supported API version is 1.40, please upgrade your client to a newer version"}`,
		"/v1.40/containers/json": `200 []`,
		"/containers/json":       `200 []`,
		"/nowhere":               `404 {"message":"page not found"}`,
	} {
		res, body, err := fakeGet(fakeContext(t), e, path)
		fakeMust(t, path, err)
		if got := fmt.Sprint(res.StatusCode, " ", strings.TrimSpace(body)); got != want {
			t.Errorf("GET %s = %s, want %s", path, got, want)
		}
	}
}

func TestFakeEngineSwitches(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	id := e.addContainer("web", "busybox", true, nil)
	ctx := fakeContext(t)

	undo := e.fail("GET", "^/info$", http.StatusTeapot, "not today")
	if res, body, err := fakeGet(ctx, e, "/v1.41/info"); err != nil || res.StatusCode != http.StatusTeapot || body != "not today" {
		t.Errorf("GET of a failing path = %v, %q, %v, want 418, not today", res, body, err)
	}
	undo()
	if res, _, err := fakeGet(ctx, e, "/info"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("GET after undo = %v, %v, want 200", res, err)
	}

	e.override("", "^/info$", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Hook", "yes")
		e.answer(w, r)
	})
	if res, _, err := fakeGet(ctx, e, "/info"); err != nil || res.Header.Get("X-Hook") != "yes" || res.Header.Get("Api-Version") != "1.41" {
		t.Errorf("GET of an overridden path = %v, %v, want the hook's header and the engine's", res, err)
	}

	e.cutAfter("^/containers/json$", 10)
	if _, body, err := fakeGet(ctx, e, "/containers/json"); err == nil || len(body) != 10 {
		t.Errorf("GET of a path that is cut = %q, %v, want 10 bytes and an error", body, err)
	}
	e.dropAnswer("^/containers/[^/]*/stop$")
	c := newFakeClient(t, e)
	if err := c.ContainerStop(ctx, id, apicontainer.StopOptions{}); err == nil {
		t.Error("ContainerStop with its answer dropped = nil, want an error")
	}
	e.skew(48 * time.Hour)
	if seen, err := c.ContainerInspect(ctx, id); err != nil || seen.State.Running {
		t.Errorf("ContainerInspect after a dropped stop = %+v, %v, want it stopped", seen.State, err)
	}
	if res, _, err := fakeGet(ctx, e, "/_ping"); err != nil || !strings.Contains(res.Header.Get("Date"), time.Now().UTC().Add(48*time.Hour).Format("02 Jan 2006")) {
		t.Errorf("GET /_ping with a skewed clock = %v, %v, want the date two days ahead", res, err)
	}
	e.heal()

	e.delay("/version", time.Hour)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, _, err := fakeGet(short, e, "/version"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("GET of a delayed path = %v, want the deadline", err)
	}
	if _, _, err := fakeGet(ctx, e, "/_ping"); err != nil {
		t.Errorf("GET of a path without delay = %v", err)
	}
}

func TestFakeEngineAnswersLateAfterAHang(t *testing.T) {
	t.Parallel()
	ctx, e := fakeContext(t), newFakeEngine(t)
	stream, streamErrors := newFakeClient(t, e).Events(ctx, apievents.ListOptions{})
	for e.watching() == 0 && ctx.Err() == nil { // the header is on its way
		_, _, _ = fakeGet(ctx, e, "/_ping")
	}
	e.hang(true)
	e.addContainer("quiet", "busybox", false, nil)
	answered := make(chan error, 1)
	go func() {
		_, _, err := fakeGet(ctx, e, "/_ping")
		answered <- err
	}()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	select {
	case <-stream:
		t.Error("an event came out of an engine that hangs")
	case err := <-streamErrors:
		t.Errorf("Events of an engine that hangs = %v", err)
	case <-answered:
		t.Error("an engine that hangs answered")
	case <-short.Done():
	}
	e.hang(false)
	if err := <-answered; err != nil {
		t.Errorf("GET after the hang = %v, want a late answer", err)
	}
	if event := <-stream; event.Actor.Attributes["name"] != "quiet" {
		t.Errorf("event after the hang = %+v, want the create of quiet", event)
	}
	e.hang(true) // an engine that hangs must be able to stop
	e.stop()
}

func TestFakeEngineRestartsOnItsPort(t *testing.T) {
	t.Parallel()
	ctx, e := fakeContext(t), newFakeEngine(t)
	e.addContainer("web", "busybox", true, nil)
	c := newFakeClient(t, e)
	attached, err := c.ContainerAttach(ctx, "web", apicontainer.AttachOptions{Stream: true, Stdout: true})
	fakeMust(t, "ContainerAttach", err)
	defer attached.Close()
	for range 3 {
		e.stop()
		if _, err := net.Dial("tcp", e.addr()); err == nil {
			t.Error("Dial of a stopped engine worked")
		}
		if n := e.connections(); n != 0 {
			t.Errorf("connections() of a stopped engine = %d, want 0", n)
		}
		e.restart()
	}
	if _, err := attached.Reader.ReadByte(); err == nil {
		t.Error("an attached stream outlived its engine")
	}
	if list, err := c.ContainerList(ctx, apicontainer.ListOptions{}); err != nil || len(list) != 1 {
		t.Errorf("ContainerList after restart = %v, %v, want web", list, err)
	}
	e.wipe()
	if list, err := c.ContainerList(ctx, apicontainer.ListOptions{All: true}); err != nil || len(list) != 0 {
		t.Errorf("ContainerList after wipe = %v, %v, want none", list, err)
	}
}

func TestFakeEngineStreamsRawWithoutUpgrade(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	e.addContainerBody("tty", []byte(`{"Image":"busybox","Cmd":"cat","OpenStdin":true,"Tty":true}`), true)
	conn, err := net.Dial("tcp", e.addr())
	fakeMust(t, "Dial", err)
	defer conn.Close()
	// Input that comes in one piece with the request must not be lost.
	_, err = io.WriteString(conn, "POST /containers/tty/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\nearly")
	fakeMust(t, "write", err)
	fakeMust(t, "CloseWrite", conn.(*net.TCPConn).CloseWrite())
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	fakeMust(t, "ReadResponse", err)
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK || string(body) != "early" {
		t.Errorf("attach without Upgrade = %d, %q, want 200, early", res.StatusCode, body)
	}
}

// fakeUnix is a moment as since and until take it.
func fakeUnix(at time.Time) string { return fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()) }

func TestFakeEngineKeeps256EventsInBothForms(t *testing.T) {
	t.Parallel()
	ctx := fakeContext(t)
	e := newFakeEngine(t, func(e *fakeEngine) { e.apiVersion = "1.56" })
	e.emit(`{"Type":"unheard-of"`)
	for i := range 300 {
		e.addContainer(fmt.Sprintf("c%d", i), "busybox", false, nil)
	}
	for version, old := range map[string]bool{"1.51": true, "1.52": false} {
		_, body, err := fakeGet(ctx, e, "/v"+version+"/events?since=1&until="+fakeUnix(e.now()))
		fakeMust(t, "GET events", err)
		lines := strings.Split(strings.TrimSpace(body), "\n")
		var first map[string]any
		fakeMust(t, "Unmarshal", json.Unmarshal([]byte(lines[0]), &first))
		if _, got := first["status"]; len(lines) != 256 || got != old {
			t.Errorf("events at %s = %d lines, status %v, want 256, %v", version, len(lines), got, old)
		}
	}
	since := fakeUnix(e.now())
	e.emit(`{"Type":"unheard-of"`)
	if _, body, err := fakeGet(ctx, e, "/events?since="+since+"&until="+fakeUnix(e.now())); !strings.HasSuffix(body, "{\"Type\":\"unheard-of\"\n") {
		t.Errorf("events after emit = …%q, %v, want the line as it was given", body[max(0, len(body)-60):], err)
	}
}

func TestFakeEngineCommandsThatEnd(t *testing.T) {
	t.Parallel()
	ctx, e := fakeContext(t), newFakeEngine(t)
	c := newFakeClient(t, e)
	for command, want := range map[string]int64{"true": 0, "false": 1, "exit 7": 7} {
		words := []string{command}
		if strings.HasPrefix(command, "exit") {
			words = []string{"sh", "-c", command}
		}
		made, err := c.ContainerCreate(ctx, &apicontainer.Config{Image: "busybox", Cmd: words}, &apicontainer.HostConfig{AutoRemove: true}, nil, nil, "")
		fakeMust(t, "ContainerCreate", err)
		waited, failed := c.ContainerWait(ctx, made.ID, apicontainer.WaitConditionRemoved)
		fakeMust(t, "ContainerStart", c.ContainerStart(ctx, made.ID, apicontainer.StartOptions{}))
		select {
		case got := <-waited:
			if got.StatusCode != want {
				t.Errorf("wait for %s = %d, want %d", command, got.StatusCode, want)
			}
		case err := <-failed:
			t.Errorf("wait for %s = %v", command, err)
		}
	}
}
