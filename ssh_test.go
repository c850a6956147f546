package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// sshServer is a real sshd on loopback with keys of its own; nobody's ~/.ssh is touched.
type sshServer struct {
	dir    string
	port   string
	config string // for ssh -F: knows the user's key and the host's
	sshd   *exec.Cmd
}

func newSSHServer(t *testing.T) *sshServer {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/sshd"); err != nil || os.Geteuid() != 0 {
		missing(t, "root and /usr/sbin/sshd, which make test installs for root")
	}
	s := &sshServer{dir: t.TempDir()}
	_, s.port, _ = net.SplitHostPort(freePort(t))
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	hostKey, err := os.ReadFile(filepath.Join(s.dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "known_hosts", fmt.Sprintf("[127.0.0.1]:%s %s", s.port, hostKey))
	s.write(t, "sshd_config", fmt.Sprintf("ListenAddress 127.0.0.1:%s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\n"+
		"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n", s.port, s.dir, s.dir))
	s.config = s.write(t, "ssh_config", fmt.Sprintf("Host docker-host\n  HostName 127.0.0.1\n  Port %s\n  User root\nHost *\n  IdentityFile %s/user\n"+
		"  IdentitiesOnly yes\n  UserKnownHostsFile %s/known_hosts\n  GlobalKnownHostsFile none\n", s.port, s.dir, s.dir))
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

func (s *sshServer) write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *sshServer) start(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	s.sshd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config"))
	s.sshd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.sshd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// stop ends sshd and, as a host that goes down does, the connections it serves.
func (s *sshServer) stop() {
	if s.sshd == nil {
		return
	}
	for _, pid := range childrenOf(s.sshd.Process.Pid) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	s.sshd.Process.Kill()
	s.sshd.Wait()
	s.sshd = nil
}

// childrenOf lists the processes that a process has started and that still run.
func childrenOf(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(text)) {
			var child int
			fmt.Sscan(field, &child)
			pids = append(pids, child)
		}
	}
	return pids
}

// socketOf gives a simulated engine a socket as well.
func socketOf(t *testing.T, s *sshServer, e *fakeEngine) (path string) {
	t.Helper()
	path = filepath.Join(s.dir, "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", e.addr())
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					io.Copy(out, in)
					out.(*net.TCPConn).CloseWrite()
				}()
				io.Copy(in, out)
				in.(*net.UnixConn).CloseWrite()
			}()
		}
	}()
	return path
}

// newSSHFront is swarmlite over one simulated engine that is reached through sshd.
func newSSHFront(t *testing.T, s *sshServer, e *fakeEngine) *front {
	t.Helper()
	f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), []string{"ssh://docker-host" + socketOf(t, s, e)},
		func(ns *nodes) { ns.ssh.config = s.config })
	f.fakes = []*fakeEngine{e}
	f.becomes(t, 20*time.Second, "healthy")
	return f
}

// becomes waits until the only node is in this state, and returns its error.
func (f *front) becomes(t *testing.T, d time.Duration, state string) (problem string) {
	t.Helper()
	eventually(t, d, func() error {
		var is string
		if err := f.store.get(t.Context(), "SELECT state, step || ': ' || error FROM nodes", nil, &is, &problem); err != nil || is != state {
			return fmt.Errorf("node is %s (%s), want %s: %v", is, problem, state, err)
		}
		return nil
	})
	return problem
}

func (f *front) tunnel() *tunnel { return f.nodes.all()[0].tunnel }

func TestSSHCarriesEveryKindOfCall(t *testing.T) {
	t.Parallel()
	s, e := newSSHServer(t), newFakeEngine(t)
	f := newSSHFront(t, s, e)
	id := f.make(t, "box", ttyBody)
	if _, answer := f.call(t, "GET", "/containers/json", ""); !strings.Contains(answer, "/box") {
		t.Errorf("ps = %s, want box", answer)
	}
	var ip string
	if err := f.store.get(t.Context(), "SELECT ip FROM nodes", nil, &ip); err != nil || ip != "127.0.0.1" {
		t.Errorf("published ports are shown with %q (%v), want the HostName that ssh's configuration gives", ip, err)
	}

	// An attach: both directions, and the client's half-close reaches the engine.
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		io.WriteString(conn, switching)
		n, _ := io.Copy(io.Discard, in)
		fmt.Fprintf(conn, "got %d", n)
	})
	w := f.wire(t)
	w.send("POST /containers/" + id + "/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	if resp := w.answer(); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("attach = %s", resp.Status)
	}
	if _, err := w.Write(bytes.Repeat([]byte("x"), 3<<20)); err != nil {
		t.Fatal(err)
	}
	w.CloseWrite()
	if got, want := w.rest(), fmt.Sprint("got ", 3<<20); got != want {
		t.Errorf("attach over ssh: %q, want %q", got, want)
	}

	// More streams at once than sshd allows sessions, all through one ssh.
	const streams = 30
	var open sync.WaitGroup
	var waiting atomic.Int32
	open.Add(streams)
	e.override("GET", "/logs$", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		if waiting.Add(1) <= streams {
			open.Done()
		}
		open.Wait()
		io.WriteString(w, "all are open")
	})
	var clients sync.WaitGroup
	for range streams {
		clients.Go(func() {
			if _, answer, err := f.try("GET", "/containers/"+id+"/logs?stdout=1&follow=1", ""); err != nil || answer != "all are open" {
				t.Errorf("logs = %q, %v", answer, err)
			}
		})
	}
	clients.Wait()

	info, err := os.Stat(filepath.Dir(f.tunnel().socket))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the sockets of ssh are in a directory of mode %v (%v), want 0700", info.Mode(), err)
	}
}

// F1 and F2 over ssh: the host goes down with its connections, and comes back.
func TestAnSSHHostThatGoesDownIsFoundAndComesBack(t *testing.T) {
	t.Parallel()
	s, e := newSSHServer(t), newFakeEngine(t)
	f := newSSHFront(t, s, e)
	s.stop()
	began := time.Now()
	eventually(t, 20*time.Second, func() error {
		problem := f.becomes(t, 20*time.Second, "unhealthy")
		if !strings.Contains(problem, "ssh: ") || !strings.Contains(problem, "Connection refused") {
			return fmt.Errorf("node is unhealthy because %s, want ssh's own words", problem)
		}
		return nil
	})
	t.Logf("found, and a new ssh refused, after %v", time.Since(began).Round(time.Millisecond))
	s.start(t)
	f.becomes(t, 30*time.Second, "healthy")
	f.make(t, "again", sleepBody)
}

// A stopped ssh still accepts connections: only answer deadlines find it. The next
// session begins with a new one.
func TestAHungSSHIsFoundByAnswerDeadlines(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for deadlines")
	}
	t.Parallel()
	s, e := newSSHServer(t), newFakeEngine(t)
	f := newSSHFront(t, s, e)
	id := f.make(t, "box", sleepBody)
	hung := f.tunnel().process
	syscall.Kill(hung.pid, syscall.SIGSTOP)
	began := time.Now()
	if status, answer := f.call(t, "GET", "/containers/"+id+"/json", ""); status != http.StatusGatewayTimeout {
		t.Errorf("inspect over a hung ssh = %d %s, want 504", status, answer)
	}
	t.Logf("inspect ended after %v", time.Since(began).Round(time.Millisecond))
	within(t, hung.done, 30*time.Second) // killed with the session
	eventually(t, 30*time.Second, func() error {
		if status, answer := f.call(t, "GET", "/containers/"+id+"/json", ""); status != http.StatusOK {
			return fmt.Errorf("inspect after it = %d %s", status, answer)
		}
		return nil
	})
}

func TestWhatKeepsSSHFromConnectingIsTold(t *testing.T) {
	t.Parallel()
	s, e := newSSHServer(t), newFakeEngine(t)
	socket := socketOf(t, s, e)
	stranger := s.write(t, "known_nobody", "")
	for name, test := range map[string]struct{ options, addr, want string }{
		"unknown host key": {"UserKnownHostsFile " + stranger, "ssh://docker-host" + socket, "ssh: Host key verification failed."},
		"wrong user":       {"", "ssh://nobody@docker-host" + socket, "ssh: nobody@127.0.0.1: Permission denied (publickey"},
		"no such socket":   {"", "ssh://docker-host/nowhere.sock", "ping: "},
		"no such host":     {"", "ssh://nowhere.invalid", "ssh: ssh: Could not resolve hostname nowhere.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(s.config)
			if err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(config, append([]byte(test.options+"\n"), text...), 0o600); err != nil {
				t.Fatal(err)
			}
			f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), []string{test.addr}, func(ns *nodes) { ns.ssh.config = config })
			problem := f.becomes(t, 30*time.Second, "unhealthy")
			if !strings.HasPrefix(problem, test.want) {
				t.Errorf("error = %q, want %q", problem, test.want)
			}
			if name == "no such socket" && !strings.Contains(problem, "(ssh: channel") {
				t.Errorf("error = %q, want what ssh says of it", problem)
			}
		})
	}
}

// Nothing is left of ssh when the watchers have ended.
func TestSSHEndsWithItsNode(t *testing.T) {
	t.Parallel()
	s, e := newSSHServer(t), newFakeEngine(t)
	f := newSSHFront(t, s, e)
	process, dir := f.tunnel().process, filepath.Dir(f.tunnel().socket)
	if err := f.nodes.set(context.WithoutCancel(t.Context()), nil); err != nil {
		t.Fatal(err)
	}
	within(t, process.done, 20*time.Second)
	f.end()
	f.nodes.wait()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left (%v)", dir, err)
	}
}

// A manager that is killed cannot remove its sockets: the next one does.
func TestSocketDirectoriesOfKilledManagersAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	mine, lock, err := socketDir()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	killed, itsLock, err := socketDir()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(killed, "1"), "")
	itsLock.Close()
	precious := t.TempDir()
	writeFile(t, filepath.Join(precious, "file"), "")
	link := filepath.Join(os.TempDir(), socketDirs+"link")
	if err := os.Symlink(precious, link); err != nil {
		t.Fatal(err)
	}
	others := filepath.Join(os.TempDir(), socketDirs+"others")
	if err := os.Mkdir(others, 0o700); err != nil {
		t.Fatal(err)
	}
	there := []string{mine, filepath.Join(precious, "file"), link}
	if os.Geteuid() == 0 {
		if err := os.Chown(others, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		there = append(there, others)
	}
	// Managers that start at once do not sweep each other's away.
	var mu sync.Mutex
	atOnce(30, func(int) {
		dir, lock, err := socketDir()
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		t.Cleanup(func() { lock.Close() })
		there = append(there, dir)
	})
	for _, path := range there {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s was in use, or not ours: %v", path, err)
		}
	}
	if _, err := os.Lstat(killed); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of a manager that was killed is still there: %v", err)
	}
}

// A real engine behind a real sshd, and the real docker command.
func TestE2ESSH(t *testing.T) {
	engine := labEngines(t)[0]
	s := newSSHServer(t)
	socket := filepath.Join(s.dir, "engine.sock") // a path without /proc: the engine's process has another number after a restart
	if err := os.Symlink(strings.TrimSpace(lab(t, "socket", engine.name)), socket); err != nil {
		t.Fatal(err)
	}
	m := startManager(t, "-ssh-config", s.config, "ssh://docker-host"+socket)
	if got := m.docker(t, "run", "--rm", "busybox", "echo", "over ssh"); got != "over ssh" {
		t.Errorf("docker run = %q", got)
	}
	m.docker(t, "run", "-d", "--name", "box", "-p", "80", "busybox", "sleep", "1d")
	if got := m.docker(t, "port", "box"); !strings.Contains(got, "127.0.0.1:") {
		t.Errorf("docker port = %q, want the ssh host's address", got)
	}
	cmd := dockerCommand(t, m.addr, "exec", "-i", "box", "wc", "-c")
	cmd.Stdin = bytes.NewReader(bytes.Repeat([]byte("x"), 10<<20))
	if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(10<<20) {
		t.Errorf("docker exec -i wc = %q, %v", out, err)
	}
	children := childrenOf(m.cmd.Process.Pid)
	if len(children) != 1 {
		t.Fatalf("%d children, want one ssh", len(children))
	}
	m.kill9(t) // the kernel ends ssh with it
	eventually(t, 20*time.Second, func() error {
		if err := syscall.Kill(children[0], 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ssh outlived the manager: %v", err)
		}
		return nil
	})
	m.restart(t)
	children = childrenOf(m.cmd.Process.Pid)
	if code := m.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	eventually(t, 20*time.Second, func() error {
		for _, pid := range children {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("ssh outlived the manager: %v", err)
			}
		}
		return nil
	})
}
