package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestE2EPlacement places by things that need real engines to show: a platform, device
// requests, ports of the host's network.
func TestE2EPlacement(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	refused := func(want string, args ...string) {
		t.Helper()
		_, stderr, exit := dockerCLI(t, m.addr, args...)
		if exit == 0 || !strings.Contains(stderr, want) {
			t.Errorf("docker %s: exit %d, %s, want %s", strings.Join(args, " "), exit, stderr, want)
		}
	}
	explain := func(want string, args ...string) {
		t.Helper()
		out, _ := exec.Command(m.binary, append([]string{"explain", "-db", m.db}, args...)...).CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("explain %s:\n%s\nwant %s", strings.Join(args, " "), out, want)
		}
	}

	t.Run("platform", func(t *testing.T) {
		own := strings.TrimPrefix(m.docker(t, "image", "inspect", "-f", "{{.Os}}/{{.Architecture}}", "busybox"), "/")
		eventually(t, 20*time.Second, func() error {
			if got := m.sql(t, "SELECT DISTINCT platform FROM images JOIN image_names USING (node_id, image_id) WHERE name = 'docker.io/library/busybox:latest'"); got != own {
				return errNotFound
			}
			return nil
		})
		m.docker(t, "run", "--rm", "--platform", own, "busybox", "true")
		refused("no node fits: 3 of 3 cannot run linux/s390x; a node that emulates it says so by its label platforms=linux/s390x",
			"create", "--platform", "linux/s390x", "busybox", "true")
	})
	t.Run("GPUs", func(t *testing.T) {
		m.docker(t, "node", "update", "--label-add", "resource.gpu=GPU-8a3f,GPU-91c2", engines[2].name)
		m.docker(t, "create", "--name", "train-1", "--gpus", "1", "busybox")
		if got := m.docker(t, "inspect", "-f", "{{.Node.Name}} {{(index .HostConfig.DeviceRequests 0).Count}} {{(index .HostConfig.DeviceRequests 0).DeviceIDs}}", "train-1"); got != engines[2].name+" 0 [GPU-8a3f]" {
			t.Errorf("train-1 was given %s", got)
		}
		explain("FREE GPU", "--gpus", "2", "busybox")
		refused("3 of 3 have less than 2 gpu free; the most free is on "+engines[2].name+": 1 gpu", "create", "--gpus", "2", "busybox")
		if got := m.sql(t, `SELECT group_concat("reserved resources", '') FROM cluster`); got != "gpu 1 / 2" {
			t.Errorf("cluster shows %s", got)
		}
		m.docker(t, "rm", "train-1")
		m.docker(t, "create", "--name", "train-2", "--gpus", "all", "busybox")
		refused("2 of 3 do not have gpu GPU-91c2, 1 has no gpu free", "create", "--gpus", "device=GPU-91c2", "busybox")
		// Without the database the engine tells what its containers hold.
		again := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
		again.docker(t, "node", "update", "--label-add", "resource.gpu=GPU-8a3f,GPU-91c2", engines[2].name)
		eventually(t, 20*time.Second, func() error {
			if got := again.sql(t, `SELECT group_concat("reserved resources", '') FROM cluster`); got != "gpu 2 / 2" {
				return errNotFound
			}
			return nil
		})
		again.kill9(t)
	})
	t.Run("host network", func(t *testing.T) {
		for range engines {
			m.docker(t, "run", "-d", "--network", "host", "--expose", "7001", "busybox", "sleep", "1000")
		}
		refused("3 of 3 have port 7001/tcp of the host's network in use", "create", "--network", "host", "--expose", "7001", "busybox")
	})
	t.Run("room", func(t *testing.T) {
		refused("no node fits: 3 of 3 have less than 1TiB of memory free; the largest node that qualifies is", "create", "-m", "1t", "busybox")
		explain("fails constraint zone==b", "-m", "1g", "-e", "constraint:zone==b", "busybox")
	})
}
