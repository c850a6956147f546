package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestE2ERun(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	w := newTwin(t, "-H", "tcp://"+freePort(t), "-H", "unix://"+socket)
	t.Run("exit codes are passed on", func(t *testing.T) {
		for _, c := range []struct {
			exit int
			args []string
		}{
			{0, []string{"busybox", "true"}},
			{3, []string{"busybox", "sh", "-c", "echo out; echo err >&2; exit 3"}},
			{125, []string{"--nosuchflag", "busybox"}},
			{125, []string{"--cpu-quota", "1", "busybox", "true"}},
			{126, []string{"busybox", "/etc"}},
			{127, []string{"busybox", "nosuchcommand"}},
			{125, []string{"-p", "1-2:80", "--network", "container:nosuch", "busybox"}},
			{125, []string{"--name", "no/slash", "busybox"}},
		} {
			if r := w.same(t, append([]string{"run", "--rm"}, c.args...)...); r.exit != c.exit {
				t.Errorf("docker run %v: %v, want exit code %d", c.args, r, c.exit)
			}
		}
		w.removed(t)
	})
	t.Run("rm", func(t *testing.T) {
		w.ok(t, "run", "--rm", "-v", "/anon", "busybox", "true")
		w.removed(t)
		for _, e := range w.engines {
			if left := e.docker(t, "volume", "ls", "-q"); left != "" {
				t.Errorf("run --rm left volumes on %s: %s", e.name, left)
			}
		}
	})
	t.Run("input", w.testRunInput)
	t.Run("terminal", w.testRunTerminal)
	t.Run("detach keys", func(t *testing.T) { w.testDetachKeys(t, "unix://"+socket) })
	t.Run("signals", w.testRunSignals)
	t.Run("ports", w.testRunPorts)
	t.Run("volumes", w.testRunVolumes)
	t.Run("settings", w.testRunSettings)
	t.Run("names", func(t *testing.T) {
		w.ok(t, "run", "-d", "--name", "taken", "busybox", "sleep", "1000")
		r := w.same(t, "run", "-d", "--name", "taken", "busybox", "true")
		holder := w.docker(t, "ps", "-q", "--no-trunc", "--filter", "name=taken")
		if r.exit != 125 || !strings.Contains(r.stderr, holder) || !strings.Contains(r.stderr, "on node node-") {
			t.Errorf("docker run with a taken name: %v, want the holder %s and its node", r, holder)
		}
		w.ok(t, "rm", "-f", "taken")
		if got := w.docker(t, "run", "--rm", "--name", "taken", "busybox", "hostname"); len(got) != 12 {
			t.Errorf("host name %q, want 12 digits of the ID", got)
		}
	})
	t.Run("places by constraint, and refuses with the reasons", func(t *testing.T) {
		w.docker(t, "run", "-d", "--name", "placed", "-e", "constraint:zone==b", "-e", "KEEP=1", "busybox", "sleep", "1000")
		if got := w.engines[2].docker(t, "ps", "--format", "{{.Names}}"); got != "placed" {
			t.Errorf("containers on node-3: %q, want placed", got)
		}
		if got := w.docker(t, "exec", "placed", "env"); strings.Contains(got, "constraint") || !strings.Contains(got, "KEEP=1") {
			t.Errorf("environment of a container with a constraint:\n%s", got)
		}
		r := w.ask(t, "run", "-e", "constraint:zone==c", "busybox", "true")
		if r.exit != 125 || !strings.Contains(r.stderr, "no node fits: 3 of 3 fail constraint zone==c") {
			t.Errorf("docker run that fits nowhere: %v", r)
		}
		w.docker(t, "rm", "-f", "placed")
	})
}

// removed checks that nothing is left on either side, as ps and as the engines see it.
func (w *twin) removed(t *testing.T) {
	t.Helper()
	if got := w.ok(t, "ps", "-aq"); got != "" {
		t.Errorf("containers left in docker ps -a: %s", got)
	}
	for _, e := range w.engines {
		if got := e.docker(t, "ps", "-aq"); got != "" {
			t.Errorf("containers left on %s: %s", e.name, got)
		}
	}
	if got := w.sql(t, "SELECT (SELECT count(*) FROM containers) + (SELECT count(*) FROM reservations) + (SELECT count(*) FROM ports)"); got != "0" {
		t.Errorf("rows left of containers, reservations and ports: %s", got)
	}
}

func (w *twin) testRunInput(t *testing.T) {
	r := w.sameWith(t, []byte("one\ntwo\n"), nil, "run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo done; exit 4")
	if want := "one\ntwo\ndone\n"; r.stdout != want || r.exit != 4 {
		t.Errorf("docker run -i: %v, want %q and exit code 4", r, want)
	}
	// A container that ends before its input does.
	w.sameWith(t, bytes.Repeat([]byte("more\n"), 100_000), nil, "run", "--rm", "-i", "busybox", "head", "-n", "1")
	// Without -i the input is not read.
	w.sameWith(t, []byte("unread"), nil, "run", "--rm", "busybox", "cat")

	big := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{}).Read(big)
	for _, args := range [][]string{{"cat"}, {"sh", "-c", "cat >&2"}} {
		got := runCommand(dockerCommand(t, w.addr, append([]string{"run", "--rm", "-i", "busybox"}, args...)...), big)
		out := got.stdout + got.stderr
		if got.exit != 0 || sha256.Sum256([]byte(out)) != sha256.Sum256(big) {
			t.Errorf("20 MiB through docker run -i %v: %d bytes came back, exit code %d, want the same %d", args, len(out), got.exit, len(big))
		}
	}
	w.removed(t)
}

func (w *twin) testRunTerminal(t *testing.T) {
	term := openTerminal(t, dockerCommand(t, w.addr, "run", "--rm", "-it", "--name", "term", "busybox", "sh"))
	term.shows(t, "/ # ")
	term.press(t, "tty\n")
	term.shows(t, "/dev/pts/0\r\n")
	term.hasSize(t, "24 80")
	term.resize(t, 100, 30)
	eventually(t, 20*time.Second, func() error {
		if got := w.docker(t, "exec", "term", "stty", "-F", "/dev/pts/0", "size"); got != "30 100" {
			return fmt.Errorf("size of the terminal after a resize: %q, want 30 100", got)
		}
		return nil
	})
	term.press(t, "sleep 1000\n")
	eventually(t, 20*time.Second, func() error {
		if got := w.docker(t, "top", "term", "-o", "pid,args"); !strings.Contains(got, "sleep 1000") {
			return fmt.Errorf("docker top lacks the sleep:\n%s", got)
		}
		return nil
	})
	term.press(t, "\x03") // Ctrl-C ends the sleep, not the shell
	term.press(t, "echo code $?\n")
	term.shows(t, "code 130")
	term.press(t, "exit 6\n")
	if exit := term.ends(t); exit != 6 {
		t.Errorf("docker run -it: exit code %d, want 6\n%s", exit, term.screen)
	}
	w.removed(t)
}

// testDetachKeys leaves a container with Ctrl-P Ctrl-Q; it goes on, and attach comes
// back to it. Over TCP the docker command does not notice that it was asked to leave,
// on an engine either, so this goes over the manager's socket.
func (w *twin) testDetachKeys(t *testing.T, socket string) {
	term := openTerminal(t, dockerCommand(t, socket, "run", "-it", "--name", "left", "busybox", "sh"))
	term.shows(t, "/ # ")
	term.press(t, "echo one$((1 + 1))\n")
	term.shows(t, "one2")
	term.pressEach(t, "\x10\x11")
	if exit := term.ends(t); exit != 0 {
		t.Errorf("detached docker run -it: exit code %d", exit)
	}
	term = openTerminal(t, dockerCommand(t, socket, "attach", "left"))
	term.press(t, "echo two$((1 + 2))\n")
	term.shows(t, "two3")
	term.press(t, "exit 9\n")
	if exit := term.ends(t); exit != 9 {
		t.Errorf("docker attach: exit code %d, want 9\n%s", exit, term.screen)
	}
	if got := w.docker(t, "ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "left exited" {
		t.Errorf("docker ps -a after the shell has ended: %q, want left exited", got)
	}
	w.docker(t, "rm", "left")
}

func (w *twin) testRunSignals(t *testing.T) {
	const script = `trap "echo int; exit 7" INT; trap "echo term; exit 8" TERM; trap "echo usr1" USR1; echo ready; while :; do sleep 0.05; done`
	for name, c := range map[string]struct {
		signal syscall.Signal
		exit   int
	}{"int": {syscall.SIGINT, 7}, "term": {syscall.SIGTERM, 8}} {
		cmd := dockerCommand(t, w.addr, "run", "--rm", "busybox", "sh", "-c", script)
		out := startDocker(t, cmd)
		outputHas(t, out, "ready")
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		outputHas(t, out, "usr1")
		if err := cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // its end is in ProcessState
		if got := cmd.ProcessState.ExitCode(); got != c.exit || !strings.Contains(out.String(), name+"\n") {
			t.Errorf("docker run after SIG%s: exit code %d, want %d, and %q", strings.ToUpper(name), got, c.exit, out)
		}
	}
	// Ctrl-C at a terminal, with no terminal in the container.
	term := openTerminal(t, dockerCommand(t, w.addr, "run", "--rm", "busybox", "sh", "-c", script))
	term.shows(t, "ready")
	term.press(t, "\x03")
	if exit := term.ends(t); exit != 7 {
		t.Errorf("docker run after Ctrl-C: exit code %d, want 7\n%s", exit, term.screen)
	}
	w.removed(t)
}

func (w *twin) testRunPorts(t *testing.T) {
	w.ok(t, "run", "-d", "--name", "site", "-e", "X=1", "-p", "8080:80", "-p", "127.0.0.1:8081:81/udp", "--expose", "90", "busybox", "httpd", "-f", "-h", "/etc")
	ip := w.nodeIP(t, "site")
	address := net.JoinHostPort(ip, "8080")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"ps", "--format", "{{.Ports}}"}, "90/tcp, " + address + "->80/tcp, 127.0.0.1:8081->81/udp"},
		{[]string{"port", "site", "80"}, address},
		{[]string{"port", "site", "80/tcp"}, address},
		{[]string{"port", "site"}, "80/tcp -> " + address + "\n81/udp -> 127.0.0.1:8081"},
		{[]string{"inspect", "-f", "{{json .NetworkSettings.Ports}}", "site"},
			fmt.Sprintf(`{"80/tcp":[{"HostIp":"%s","HostPort":"8080"}],"81/udp":[{"HostIp":"127.0.0.1","HostPort":"8081"}],"90/tcp":null}`, ip)},
	} {
		if got := w.docker(t, c.args...); got != c.want {
			t.Errorf("docker %v: %q, want %q", c.args, got, c.want)
		}
	}
	w.same(t, "port", "site", "99")
	eventually(t, 20*time.Second, func() error {
		page, err := http.Get("http://" + address + "/passwd")
		if err != nil {
			return err
		}
		defer page.Body.Close()
		if body, err := io.ReadAll(page.Body); err != nil || !strings.HasPrefix(string(body), "root:") {
			return fmt.Errorf("page from the published port: %q, %v", body, err)
		}
		return nil
	})
	// Any port: the engine picks, a start shows it.
	w.docker(t, "run", "-d", "--name", "any", "-P", "--expose", "80", "busybox", "httpd", "-f", "-h", "/etc")
	shown := w.docker(t, "port", "any", "80")
	if host, _, err := net.SplitHostPort(shown); err != nil || host != w.nodeIP(t, "any") {
		t.Errorf("docker port of a port that the engine picked: %q, want one on %s", shown, w.nodeIP(t, "any"))
	}
	if got := w.docker(t, "ps", "--filter", "name=any", "--format", "{{.Ports}}"); got != shown+"->80/tcp" {
		t.Errorf("ps of a port that the engine picked: %q, want %s->80/tcp", got, shown)
	}
	// The port is taken on one node and free on the others.
	for i, name := range []string{"second", "third"} {
		w.docker(t, "run", "-d", "--name", name, "-p", "8080:80", "busybox", "httpd", "-f", "-h", "/etc")
		if got := w.docker(t, "ps", "-q", "--filter", "publish=8080"); len(strings.Fields(got)) != i+2 {
			t.Errorf("containers that publish 8080: %q, want %d", got, i+2)
		}
	}
	r := w.ask(t, "run", "-d", "-p", "8080:80", "busybox", "true")
	if r.exit != 125 || !strings.Contains(r.stderr, "no node fits: 3 of 3 ") || !strings.Contains(r.stderr, "8080") {
		t.Errorf("docker run with a port that is taken on every node: %v", r)
	}
	w.docker(t, "rm", "-f", "site", "any", "second", "third")
	w.alone.docker(t, "rm", "-f", "site")
	w.removed(t)
}

// nodeIP is the address of the node that a container is on.
func (w *twin) nodeIP(t *testing.T, container string) string {
	t.Helper()
	node := w.docker(t, "ps", "-a", "--filter", "name=^"+container+"$", "--format", `{{.Label "com.docker.swarm.node"}}`)
	for _, e := range w.engines {
		if e.name == node {
			host, _, _ := net.SplitHostPort(e.addr)
			return host
		}
	}
	t.Fatalf("%s is on node %q, which is none", container, node)
	return ""
}

func (w *twin) testRunVolumes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.ok(t, "run", "--rm", "-v", dir+":/host", "busybox", "sh", "-c", "cat /host/file; echo new >/host/made")
	w.ok(t, "run", "--rm", "-v", dir+":/host:ro", "busybox", "cat", "/host/made")
	w.same(t, "run", "--rm", "-v", dir+":/host:ro", "busybox", "touch", "/host/made")
	w.same(t, "run", "--rm", "--mount", "type=bind,src=/nosuch,dst=/x", "busybox", "true")
	w.ok(t, "run", "--name", "writer", "-v", "named:/data", "-v", "/anon", "--tmpfs", "/scratch", "busybox", "sh", "-c", "echo kept >/data/f")
	// The volume is on one node: what mounts it goes there, time after time.
	node := w.docker(t, "ps", "-a", "--format", `{{.Label "com.docker.swarm.node"}}`)
	for range 2 {
		w.ok(t, "run", "--rm", "-v", "named:/data:ro", "busybox", "cat", "/data/f")
		w.ok(t, "run", "--rm", "--volumes-from", "writer", "busybox", "cat", "/data/f")
	}
	w.ok(t, "ps", "-a", "--filter", "volume=named", "--format", "{{.Names}} {{.LocalVolumes}}")
	// An engine tells the mounts of a container in any order.
	w.sameSorted(t, "inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Destination}} {{.Driver}} {{.RW}}\n{{end}}", "writer")
	if r := w.ask(t, "run", "--rm", "-v", "named:/data", "-e", "constraint:node!="+node, "busybox", "true"); !strings.Contains(r.stderr, "no node fits") || !strings.Contains(r.stderr, "volume named") {
		t.Errorf("docker run of a volume against its node: %v", r)
	}
	// rm -v takes the anonymous one along, and only that.
	w.ok(t, "rm", "-v", "writer")
	w.removed(t)
	var left []string
	for _, e := range append([]*labEngine{w.alone}, w.engines...) {
		left = append(left, strings.Fields(e.docker(t, "volume", "ls", "-q"))...)
	}
	if got := strings.Join(left, " "); got != "named named" {
		t.Errorf("volumes left: %q, want named on either side", got)
	}
}

func (w *twin) testRunSettings(t *testing.T) {
	// Apart from the container below: newer docker commands send two variables in any order.
	w.ok(t, "run", "--rm", "-e", "A=b", "-e", "EMPTY=", "busybox", "sh", "-c", "echo $A; env | grep EMPTY")
	w.ok(t, "run", "-d", "--name", "set", "-e", "A=b", "-m", "64m", "--cpus", "0.5", "--label", "x=y", "-l", "bare",
		"-w", "/tmp", "-u", "1000:1000", "-h", "myhost", "--restart", "on-failure:3", "--read-only", "--cap-add", "NET_ADMIN", "--init",
		"--add-host", "db:10.0.0.1", "--dns", "10.0.0.2", "--ulimit", "nofile=100:200", "--stop-signal", "USR1", "--shm-size", "16m",
		"--log-opt", "max-size=1m", "--sysctl", "net.ipv4.ip_unprivileged_port_start=0", "--pids-limit", "50", "--oom-score-adj", "5",
		"--entrypoint", "sleep", "busybox", "1000")
	w.ok(t, "exec", "set", "sh", "-c", "echo $A; pwd; id; hostname; cat /proc/1/cmdline /proc/sys/net/ipv4/ip_unprivileged_port_start | tr '\\0' ' '; grep db /etc/hosts; cat /etc/resolv.conf")
	for _, part := range []string{".Config", ".HostConfig", ".Args", ".RestartCount", ".Driver", ".AppArmorProfile"} {
		w.ok(t, "inspect", "-f", "{{json "+part+"}}", "set")
	}
	if got := w.sql(t, "SELECT nano_cpus, memory_bytes FROM containers WHERE name = 'set'"); got != "500000000|67108864" {
		t.Errorf("reserved: %s, want half a CPU and 64 MiB", got)
	}
	ours, theirs := w.docker(t, "inspect", "set"), w.alone.docker(t, "inspect", "set")
	sameShape(t, "docker inspect", ours, theirs, "[].Node.", "[].Config.Labels.com.docker.swarm.")
	var inspect []struct {
		Node struct {
			ID, IP, Addr, Name string
			Cpus, Memory       int64
			Labels             map[string]string
		}
	}
	if err := json.Unmarshal([]byte(ours), &inspect); err != nil {
		t.Fatal(err)
	}
	n := inspect[0].Node
	if n.IP != w.nodeIP(t, "set") || n.Addr != n.IP+":2375" || !strings.HasPrefix(n.Name, "node-") || n.ID == "" || n.Cpus == 0 || n.Memory == 0 || n.Labels["storage"] == "" {
		t.Errorf("Node object: %+v", n)
	}
	w.ok(t, "rm", "-f", "set")
	w.removed(t)
}
