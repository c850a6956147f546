package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sshConnect = 10 * time.Second // for ssh to reach the host and log in
	sshLook    = 20 * time.Millisecond
)

// tunnel is the one ssh process of a node (FAULTS S30). It forwards a socket here to the
// engine's socket there, a channel of its one connection for each connection of ours. So
// deadlines, half-closes and any number of streams work as they do on the engine's own
// socket, which "docker system dial-stdio" cannot give: pipes have neither of the first
// two, and sshd allows ten such sessions a connection. Only the node's watcher calls its
// methods; others dial the socket.
type tunnel struct {
	address sshAddress
	client  *sshClient
	socket  string // here
	process *sshProcess
}

// sshClient is what all tunnels share.
type sshClient struct {
	config string // for ssh -F; "" = the user's own

	mu   sync.Mutex
	dir  string   // private, for sockets
	lock *os.File // of dir, held while it is in use
}

// sshAddress is an address ssh://[user@]host[:port][/socket], taken apart.
type sshAddress struct{ target, port, socket string }

func parseSSH(addr string) (sshAddress, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return sshAddress{}, err
	}
	a := sshAddress{u.Hostname(), u.Port(), u.Path}
	if u.User != nil {
		a.target = u.User.Username() + "@" + a.target
	}
	if a.socket == "" {
		a.socket = engineSock
	}
	return a, nil
}

func (c *sshClient) tunnel(node int64, addr string) (*tunnel, error) {
	a, err := parseSSH(addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir == "" {
		if c.dir, c.lock, err = socketDir(); err != nil {
			return nil, fmt.Errorf("make a directory for the sockets of ssh: %w", err)
		}
	}
	return &tunnel{address: a, client: c, socket: filepath.Join(c.dir, strconv.FormatInt(node, 10))}, nil
}

// close removes what tunnels have left; they must be down.
func (c *sshClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir != "" {
		os.RemoveAll(c.dir)
		c.lock.Close()
		c.dir, c.lock = "", nil
	}
}

// socketDirs begins the names of directories for sockets. They are in the temporary
// directory, as the path of a socket must be short.
const socketDirs = "swarmlite-ssh-"

// socketDir makes a directory for sockets and locks it. It removes those of managers
// that were killed.
func socketDir() (dir string, lock *os.File, err error) {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), socketDirs+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, old := range left {
		if lock, err := lockDir(old, unix.LOCK_NB); err == nil {
			os.RemoveAll(old)
			lock.Close()
		}
	}
	for {
		if dir, err = os.MkdirTemp("", socketDirs); err != nil {
			return "", nil, err
		}
		// One that was swept away before it was locked is not there any more.
		if lock, err = lockDir(dir, 0); !errors.Is(err, fs.ErrNotExist) {
			return dir, lock, err
		}
	}
}

// lockDir locks a directory of ours, and tells if it is not there, or not ours.
func lockDir(dir string, flags int) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	opened, err := f.Stat()
	if err == nil {
		if st, ok := opened.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			err = fs.ErrPermission
		}
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|flags)
	}
	if err == nil {
		var now fs.FileInfo
		if now, err = os.Lstat(dir); err == nil && !os.SameFile(now, opened) {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// arguments for ssh, before those that say what to do.
func (t *tunnel) arguments(options ...string) []string {
	var args []string
	if t.client.config != "" {
		args = append(args, "-F", t.client.config)
	}
	if t.address.port != "" {
		args = append(args, "-p", t.address.port)
	}
	return append(append(args, options...), "--", t.address.target)
}

// up returns when connections to the socket reach the host. It starts ssh if that is
// not running, and waits for as long as logging in may take.
func (t *tunnel) up(ctx context.Context) error {
	if t.process == nil || t.process.ended() {
		t.down()
		p, err := startSSH(t.arguments("-N", "-T", "-L", t.socket+":"+t.address.socket,
			"-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes",
			"-o", "StreamLocalBindMask=0177", "-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "PermitLocalCommand=no",
			"-o", fmt.Sprint("ConnectTimeout=", int(sshConnect.Seconds())), "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2"))
		if err != nil {
			return err
		}
		t.process = p
	}
	ctx, cancel := context.WithTimeout(ctx, sshConnect+dialWait)
	defer cancel()
	look := time.NewTicker(sshLook)
	defer look.Stop()
	for {
		if conn, err := new(net.Dialer).DialContext(ctx, "unix", t.socket); err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-look.C:
		case <-t.process.done:
			return t.process.failure()
		case <-ctx.Done():
			return errNoAnswer
		}
	}
}

// down ends ssh. Whether ssh or the engine hangs cannot be told from here, so every
// session with the engine begins with a new one.
func (t *tunnel) down() {
	if t.process != nil {
		t.process.kill()
		t.process = nil
	}
	os.Remove(t.socket)
}

// explain adds what ssh has said to an error of a connection through it. It says that
// after it has closed the connection.
func (t *tunnel) explain(err error) error {
	select {
	case <-t.process.said.any:
	case <-time.After(10 * sshLook):
	}
	if said := t.process.said.last(); said != "" {
		return fmt.Errorf("%w (ssh: %s)", err, said)
	}
	return err
}

// hostName is the host that ssh connects to, which its configuration may call by another name.
func (t *tunnel) hostName(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "ssh", t.arguments("-G")...).Output()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(line, "hostname "); ok {
			return strings.TrimSpace(name)
		}
	}
	return ""
}

// sshProcess is an ssh that runs until it is killed, or ends by itself.
type sshProcess struct {
	pid  int
	said lastLine
	done chan struct{} // closed when it has ended
}

// startSSH runs ssh in a process group of its own: a Ctrl-C is for the manager, which
// still has calls to finish. The group also holds what a ProxyCommand starts.
func startSSH(args []string) (*sshProcess, error) {
	p := &sshProcess{done: make(chan struct{}), said: lastLine{any: make(chan struct{})}}
	cmd := exec.Command("ssh", args...)
	cmd.Stderr = &p.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread ends that made the child. So this one
		// stays until the child has ended, and goes with the goroutine.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		cmd.Wait() // why it ended is in what it has said
		close(p.done)
	}()
	err := <-started
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("there is no ssh command on the manager: install openssh-client")
	}
	return p, err
}

func (p *sshProcess) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *sshProcess) kill() {
	if !p.ended() {
		syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
	}
}

// failure is why it ended, in its own words.
func (p *sshProcess) failure() error {
	if said := p.said.last(); said != "" {
		return errors.New(said)
	}
	return errors.New("ssh has ended")
}

// lastLine keeps the last line that was written to it.
type lastLine struct {
	mu         sync.Mutex
	line, part []byte
	any        chan struct{} // closed when there is a line
}

const maxSaid = 500 // bytes of a line that are kept

func (l *lastLine) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(text)
	for {
		before, after, whole := bytes.Cut(text, []byte("\n"))
		l.part = append(l.part, before[:min(len(before), maxSaid-len(l.part))]...)
		if !whole {
			return n, nil
		}
		if line := bytes.TrimSpace(l.part); len(line) > 0 {
			if l.line == nil {
				close(l.any)
			}
			l.line = bytes.Clone(line)
		}
		l.part, text = l.part[:0], after
	}
}

func (l *lastLine) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.line)
}
