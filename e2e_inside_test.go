package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestE2EInside(t *testing.T) {
	w := newTwin(t)
	w.ok(t, "run", "-d", "--name", "web", "-v", "/data", "busybox", "sleep", "1000")
	t.Run("answers", w.testAnswers)
	t.Run("logs", w.testLogs)
	t.Run("attach", w.testAttach)
	t.Run("exec", w.testExec)
	t.Run("exec survives a restart of the manager", w.testExecAfterRestart)
	t.Run("top and stats", func(t *testing.T) {
		w.sameWith(t, nil, func(s string) string { return regexp.MustCompile(`\d+`).ReplaceAllString(s, "N") }, "top", "web", "-o", "pid,comm,args")
		w.same(t, "top", "web", "-o", "comm")
		w.same(t, "top", "nosuch")
		if got := strings.Fields(w.docker(t, "top", "web")); !slices.Equal(got[:3], []string{"UID", "PID", "PPID"}) {
			t.Errorf("docker top: %v", got)
		}
		w.ok(t, "run", "-d", "--name", "side", "busybox", "sleep", "1000")
		w.ok(t, "create", "--name", "idle", "busybox", "true")
		// The docker command gives up what is not there after two seconds, and shows dashes.
		eventually(t, time.Minute, func() error {
			r, err := w.compare(t, nil, nil, "stats", "--no-stream", "-a", "--format", "{{.Name}} {{.PIDs}}")
			if err == nil && (r.exit != 0 || r.stdout != "idle 0\nside 1\nweb 1\n") {
				err = fmt.Errorf("docker stats: %v", r)
			}
			return err
		})
		w.same(t, "stats", "--no-stream", "nosuch")
		w.ok(t, "rm", "-f", "side", "idle")
	})
	t.Run("cp", w.testCopy)
	t.Run("diff and export", func(t *testing.T) {
		w.ok(t, "run", "--name", "changed", "-v", "/vol", "busybox", "sh", "-c", "echo new >/etc/made; rm /etc/group; echo more >>/etc/passwd; mkdir -p /a/b")
		w.sameSorted(t, "diff", "changed")
		w.same(t, "diff", "nosuch")
		names := func(host string) string {
			return strings.Join(tarNames(t, dockerOK(t, host, "export", "changed")), " ")
		}
		ours, theirs := names(w.addr), names(w.alone.addr)
		if ours != theirs || !strings.Contains(ours, "etc/made") {
			t.Errorf("docker export: %s, want %s", ours, theirs)
		}
		w.same(t, "export", "nosuch")
		w.ok(t, "rm", "changed")
	})
}

// testAnswers compares bare answers of the API: status, headers and words.
func (w *twin) testAnswers(t *testing.T) {
	w.ok(t, "create", "--name", "idle", "busybox", "true")
	for _, c := range []struct{ method, path string }{
		{"GET", "/containers/nosuch/json"}, {"GET", "/containers/web/top"}, {"GET", "/containers/idle/top"}, {"GET", "/containers/web/changes"},
		{"GET", "/containers/idle/stats?stream=0"}, {"GET", "/containers/web/logs"}, {"GET", "/containers/web/logs?stdout=1"}, {"GET", "/v1.24/containers/web/logs?stdout=1"},
		{"GET", "/containers/web/archive"}, {"GET", "/containers/web/archive?path=/nosuch"}, {"GET", "/containers/web/archive?path=/etc/passwd"},
		{"HEAD", "/containers/web/archive?path=/etc/passwd"}, {"HEAD", "/containers/web/archive?path=/nosuch"}, {"PUT", "/containers/web/archive?path=/nosuch"},
		{"GET", "/containers/idle/export"}, {"POST", "/containers/idle/attach?stream=1"}, {"POST", "/containers/idle/kill"}, {"POST", "/containers/web/kill?signal=NOPE"},
		{"POST", "/containers/web/start"}, {"POST", "/containers/idle/stop"}, {"POST", "/containers/idle/pause"}, {"POST", "/containers/web/resize"},
		{"POST", "/containers/idle/resize?h=1&w=1"}, {"POST", "/containers/nosuch/wait"}, {"POST", "/containers/web/rename"},
		{"POST", "/containers/web/update"}, {"POST", "/containers/web/exec"}, {"DELETE", "/containers/web"},
		{"DELETE", "/containers/nosuch?force=1"}, {"POST", "/exec/nosuch/resize?h=1&w=1"}, {"GET", "/exec/nosuch/json"}, {"POST", "/commit?container=nosuch"},
		{"GET", "/nosuch"}, {"PATCH", "/containers/web/json"}, {"GET", "/containers/"},
	} {
		ours, body := apiCall(t, c.method, w.addr, c.path)
		theirs, want := apiCall(t, c.method, w.alone.addr, c.path)
		about := c.method + " " + c.path
		if ours.StatusCode != theirs.StatusCode || ours.Header.Get("Content-Type") != theirs.Header.Get("Content-Type") {
			t.Errorf("%s: %s %s %s, want %s %s %s", about, ours.Status, ours.Header["Content-Type"], body, theirs.Status, theirs.Header["Content-Type"], want)
		}
		if strings.HasPrefix(body, "{") && !strings.Contains(body, "Processes") && normalText(body) != normalText(want) {
			t.Errorf("%s: %s, want %s", about, body, want)
		}
	}
	w.ok(t, "rm", "idle")
}

func (w *twin) testLogs(t *testing.T) {
	w.ok(t, "run", "-d", "--name", "log", "busybox", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.3; done; echo err >&2")
	w.ok(t, "logs", "-f", "log") // to its end
	for _, args := range [][]string{{}, {"-t"}, {"--tail", "2"}, {"--tail", "0"}, {"-n", "all"}, {"--since", "1h"}, {"--details"},
		{"--until", "1h"}, {"-f", "--tail", "1"}} {
		w.same(t, append(append([]string{"logs"}, args...), "log")...)
	}
	w.same(t, "logs", "nosuch")
	w.same(t, "logs", "--since", "nonsense", "log")
	third := strings.Fields(strings.Split(w.docker(t, "logs", "-t", "log"), "\n")[2])[0]
	if got := w.docker(t, "logs", "--since", third, "log"); !strings.HasPrefix(got, "line 3\nline 4\nline 5") {
		t.Errorf("docker logs --since %s: %q, want lines 3 to 5", third, got)
	}
	if got := w.docker(t, "logs", "--until", third, "log"); got != "line 1\nline 2" && got != "line 1\nline 2\nline 3" {
		t.Errorf("docker logs --until %s: %q, want lines 1 to 3", third, got)
	}
	// A line is there as soon as it is written, and the end is noticed.
	w.docker(t, "create", "-i", "--name", "talk", "busybox", "cat")
	w.docker(t, "start", "talk")
	follow := dockerCommand(t, w.addr, "logs", "-f", "talk")
	out := startDocker(t, follow)
	if got := runCommand(dockerCommand(t, w.addr, "attach", "talk"), []byte("said\n")); got.stdout != "said\n" {
		t.Errorf("docker attach: %v", got)
	}
	if err := follow.Wait(); err != nil || out.String() != "said\n" {
		t.Errorf("docker logs -f: %v, %q, want said and the end", err, out)
	}
	w.docker(t, "rm", "-f", "talk")
	w.ok(t, "rm", "log")
}

func (w *twin) testAttach(t *testing.T) {
	w.ok(t, "create", "-i", "--name", "echo", "busybox", "sh", "-c", "while read l; do echo got $l; done; echo end; exit 6")
	w.ok(t, "start", "echo")
	r := w.sameWith(t, []byte("a\nb\n"), nil, "attach", "echo")
	if r.stdout != "got a\ngot b\nend\n" || r.exit != 6 {
		t.Errorf("docker attach: %v, want the echo and exit code 6", r)
	}
	w.same(t, "attach", "echo") // has ended
	w.same(t, "attach", "nosuch")
	w.ok(t, "start", "echo")
	// Two at one container both see what it says; one that leaves does not end it.
	first := dockerCommand(t, w.addr, "attach", "--no-stdin", "--sig-proxy=false", "echo")
	seen := startDocker(t, first)
	stays := dockerCommand(t, w.addr, "attach", "--no-stdin", "echo")
	all := startDocker(t, stays)
	in := func(host, text string) {
		t.Helper()
		cmd := dockerCommand(t, host, "exec", "-i", "echo", "sh", "-c", "cat >/proc/1/fd/1")
		if got := runCommand(cmd, []byte(text)); got.exit != 0 {
			t.Fatalf("write to the container's output: %v", got)
		}
	}
	eventually(t, 20*time.Second, func() error {
		in(w.addr, "hello\n")
		if !strings.Contains(seen.String(), "hello") || !strings.Contains(all.String(), "hello") {
			return fmt.Errorf("attached: %q and %q, want hello in both", seen, all)
		}
		return nil
	})
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	in(w.addr, "after\n")
	outputHas(t, all, "after")
	w.ok(t, "kill", "echo")
	if err := stays.Wait(); stays.ProcessState.ExitCode() != 137 {
		t.Errorf("docker attach of a container that is killed: %v, exit code %d, want 137", err, stays.ProcessState.ExitCode())
	}
	w.ok(t, "rm", "echo")
}

func (w *twin) testExec(t *testing.T) {
	for _, args := range [][]string{
		{"web", "sh", "-c", "echo out; echo err >&2; exit 3"}, {"web", "true"}, {"web", "nosuchcommand"}, {"web", "/etc"}, {"nosuch", "true"},
		{"-e", "A=b", "-w", "/tmp", "-u", "1000", "web", "sh", "-c", "echo $A; pwd; id -u"}, {"--privileged", "web", "cat", "/proc/self/attr/current"},
		{"-d", "web", "touch", "/made"}, {"-d", "nosuch", "true"},
	} {
		w.same(t, append([]string{"exec"}, args...)...)
	}
	eventually(t, 20*time.Second, func() error {
		if r := w.ask(t, "exec", "web", "ls", "/made"); r.exit != 0 {
			return fmt.Errorf("docker exec -d made no file: %v", r)
		}
		return nil
	})
	if r := w.sameWith(t, []byte("one\ntwo\n"), nil, "exec", "-i", "web", "sh", "-c", "cat; exit 5"); r.stdout != "one\ntwo\n" || r.exit != 5 {
		t.Errorf("docker exec -i: %v", r)
	}
	big := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(big)
	if r := runCommand(dockerCommand(t, w.addr, "exec", "-i", "web", "cat"), big); sha256.Sum256([]byte(r.stdout)) != sha256.Sum256(big) {
		t.Errorf("8 MiB through docker exec -i: %d bytes came back, want the same %d", len(r.stdout), len(big))
	}
	term := openTerminal(t, dockerCommand(t, w.addr, "exec", "-it", "web", "sh"))
	term.shows(t, "/ # ")
	term.press(t, "echo $TERM\n")
	term.shows(t, "\r\nxterm\r\n")
	term.hasSize(t, "24 80")
	term.resize(t, 90, 20)
	term.hasSize(t, "20 90")
	term.press(t, "exit 7\n")
	if exit := term.ends(t); exit != 7 {
		t.Errorf("docker exec -it: exit code %d, want 7", exit)
	}
	if got := w.docker(t, "ps", "--format", "{{.Names}} {{.State}}"); got != "web running" {
		t.Errorf("docker ps after execs: %q", got)
	}
}

// testExecAfterRestart: an exec that was made before the manager died is found again,
// as is one that the manager never heard of.
func (w *twin) testExecAfterRestart(t *testing.T) {
	const body = `{"Cmd":["sh","-c","echo later; exit 4"],"AttachStdout":true}`
	ours := apiJSON(t, w.addr, "/containers/web/exec", body)["Id"].(string)
	foreign := ""
	for _, e := range w.engines {
		if strings.Contains(e.docker(t, "ps", "--format", "{{.Names}}"), "web") {
			foreign = apiJSON(t, e.addr, "/containers/web/exec", body)["Id"].(string)
		}
	}
	w.kill9(t)
	w.restart(t)
	for _, id := range []string{ours, foreign} {
		out := apiText(t, w.addr, "/exec/"+id+"/start", `{"Detach":false,"Tty":true}`)
		if !strings.Contains(out, "later") {
			t.Errorf("exec start after a restart of the manager: %q, want later", out)
		}
		eventually(t, 20*time.Second, func() error {
			_, answer := apiCall(t, "GET", w.addr, "/exec/"+id+"/json")
			if !strings.Contains(answer, `"ExitCode":4`) {
				return fmt.Errorf("exec inspect after a restart of the manager: %s, want exit code 4", answer)
			}
			return nil
		})
	}
	resp, answer := apiCall(t, "GET", w.addr, "/exec/"+strings.Repeat("0", 64)+"/json")
	_, want := apiCall(t, "GET", w.alone.addr, "/exec/"+strings.Repeat("0", 64)+"/json")
	if resp.StatusCode != 404 || answer != want {
		t.Errorf("inspect of an exec that never was: %s %s, want %s", resp.Status, answer, want)
	}
}

func (w *twin) testCopy(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for name, text := range map[string]string{"a": "first\n", "sub/b": "second\n", "sub/deep/c": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/b", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{tree, "web:/"}, {tree + "/.", "web:/merged"}, {tree + "/a", "web:/tmp"}, {tree + "/a", "web:/tmp/renamed"}, {"-a", tree, "web:/tmp/archive"},
		{"-L", tree + "/link", "web:/tmp/followed"}, {tree + "/a", "web:/data/"}, {tree + "/a", "web:/nosuch/x"}, {filepath.Join(dir, "nosuch"), "web:/"},
		{"web:/nosuch", dir}, {"nosuch:/etc", dir},
	} {
		w.same(t, append([]string{"cp"}, args...)...)
	}
	// Whether it also tells of the archive that it gave up on is chance.
	if r := w.ask(t, "cp", tree, "web:/etc/passwd"); r.exit != 1 || !strings.HasSuffix(r.stderr, "cannot copy directory\n") {
		t.Errorf("docker cp of a directory to a file: %v", r)
	}
	w.sameSorted(t, "exec", "web", "find", "/tree", "/merged", "/tmp", "/data")
	w.ok(t, "exec", "web", "sh", "-c", "cat /tree/sub/b /tree/link /merged/a /tmp/a /tmp/renamed /tmp/followed; ls -ln /tree")

	for i, host := range []string{w.addr, w.alone.addr} {
		out := filepath.Join(dir, fmt.Sprint("out", i))
		dockerOK(t, host, "cp", "web:/tree", out)
		dockerOK(t, host, "cp", "web:/tree/a", out+"/copy")
		for name, want := range map[string]string{"a": "first\n", "sub/b": "second\n", "link": "second\n", "copy": "first\n", "sub/deep/c": ""} {
			got, err := os.ReadFile(filepath.Join(out, name))
			if err != nil || string(got) != want {
				t.Errorf("%s after docker cp from %s: %q, %v, want %q", name, host, got, err, want)
			}
		}
	}
	// As a tar, both ways.
	got := w.ask(t, "cp", "web:/tree", "-")
	if names := tarNames(t, got.stdout); !slices.Equal(names, []string{"tree/", "tree/a", "tree/link", "tree/sub/", "tree/sub/b", "tree/sub/deep/", "tree/sub/deep/c"}) {
		t.Errorf("docker cp web:/tree -: %v", names)
	}
	w.sameWith(t, []byte(got.stdout), nil, "cp", "-", "web:/home")
	w.ok(t, "exec", "web", "cat", "/home/tree/sub/b")
	w.sameWith(t, []byte("no tar"), nil, "cp", "-", "web:/home")

	big := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{2}).Read(big)
	file, back := filepath.Join(dir, "big"), filepath.Join(dir, "back")
	if err := os.WriteFile(file, big, 0o600); err != nil {
		t.Fatal(err)
	}
	w.docker(t, "cp", file, "web:/big")
	w.docker(t, "cp", "web:/big", back)
	copied, err := os.ReadFile(back)
	if err != nil || !bytes.Equal(copied, big) {
		t.Errorf("20 MiB through docker cp: %d bytes came back, %v, want the same %d", len(copied), err, len(big))
	}
}

// tarNames lists what an archive holds, sorted.
func tarNames(t *testing.T, archive string) []string {
	t.Helper()
	var names []string
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // dockerOK trims the padding
			slices.Sort(names)
			return names
		}
		if err != nil {
			t.Fatalf("archive of %d bytes: %v", len(archive), err)
		}
		names = append(names, h.Name)
	}
}
