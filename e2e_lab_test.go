package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The lab of the end-to-end tests (lab_test.go) does what they rely on.

func TestLabEngineSurvivesPowerCutWithItsData(t *testing.T) {
	t.Parallel()
	e := labStart(t, "lab-power", "--label", "storage=tape")
	e.docker(t, "run", "-d", "--name", "web", "-p", "8080:80", "busybox", "httpd", "-f", "-h", "/etc")
	host, _, _ := strings.Cut(e.addr, ":")
	eventually(t, 20*time.Second, func() error { // the server in it has to begin first
		page, err := http.Get("http://" + net.JoinHostPort(host, "8080") + "/passwd")
		if err != nil {
			return fmt.Errorf("published port: %w", err)
		}
		return page.Body.Close()
	})
	before := e.docker(t, "info", "-f", "{{.ID}} {{.Name}} {{.Labels}}")
	e.kill(t)
	if _, _, exit := dockerCLI(t, e.addr, "version"); exit == 0 {
		t.Error("a killed engine answers")
	}
	e.restart(t)
	if after := e.docker(t, "info", "-f", "{{.ID}} {{.Name}} {{.Labels}}"); after != before || !strings.Contains(after, "lab-power [storage=tape]") {
		t.Errorf("engine after a power cut: %s, want %s", after, before)
	}
	if got := e.docker(t, "ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "web exited" {
		t.Errorf("containers after a power cut: %s, want web exited", got)
	}
}

func TestLabEngineThatHangsOrIsUnpluggedComesBack(t *testing.T) {
	t.Parallel()
	e := labStart(t, "lab-hang")
	client := &http.Client{Timeout: 500 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	ping := func() error {
		resp, err := client.Get("http://" + e.addr + "/_ping")
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for name, act := range map[string][2]func(testing.TB){
		"pause":  {e.pause, e.resume},
		"unplug": {e.unplug, e.plug},
	} {
		act[0](t)
		if err := ping(); !os.IsTimeout(err) {
			t.Errorf("ping after %s = %v, want a timeout", name, err)
		}
		act[1](t)
		eventually(t, 30*time.Second, ping)
	}
	e.stop(t)
	if err := ping(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("ping after stop = %v, want connection refused", err)
	}
}

func TestLabRegistryServesBusybox(t *testing.T) {
	t.Parallel()
	e := labStart(t, "lab-pull")
	image := labRegistry(t) + "/busybox"
	e.docker(t, "pull", image)
	if got := e.docker(t, "run", "--rm", image, "echo", "pulled"); got != "pulled" {
		t.Errorf("run %s = %q, want pulled", image, got)
	}
}

func TestManagerStartsAgainOverTheSameNodes(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	m.docker(t, "run", "-d", "--name", "web", "-e", "constraint:storage==disk", "busybox", "sleep", "1000")
	if got := engines[1].docker(t, "ps", "--format", "{{.Names}}"); got != "web" {
		t.Errorf("containers on node-2: %q, want web", got)
	}
	m.kill9(t)
	m.restart(t)
	if got := m.docker(t, "ps", "--format", `{{.Names}} {{.Label "com.docker.swarm.node"}}`); got != "web node-2" {
		t.Errorf("ps after a restart: %q, want web node-2", got)
	}
	if got := m.sql(t, "SELECT count(*) FROM nodes WHERE state = 'healthy'"); got != "3" {
		t.Errorf("healthy nodes after a restart: %s, want 3", got)
	}
	if code := m.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
