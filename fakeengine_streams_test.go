package main

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fakeExec is an exec of a fakeEngine. It is found by its full ID only.
type fakeExec struct {
	id        string
	container *fakeContainer
	want      struct {
		AttachStdin, AttachStdout, AttachStderr bool
		Tty, Privileged                         bool
		DetachKeys                              string
		Cmd                                     fakeWords
	}
	began, running bool
	exitCode       int
	pid            int
}

// fakeFrame is output as Docker multiplexes it; raw on a terminal.
func fakeFrame(stream byte, tty bool, text []byte) []byte {
	if tty {
		return text
	}
	head := [8]byte{0: stream}
	binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
	return append(head[:], text...)
}

// fakeOutput is what a command prints by itself, without input.
func fakeOutput(words []string) []byte {
	if words[0] == "echo" {
		return []byte(strings.Join(words[1:], " ") + "\n")
	}
	return nil
}

// streamType is the Content-Type of a stream of output.
func (c *fakeCall) streamType(tty bool) string {
	if tty || fakeOlder(c.version, "1.42") {
		return "application/vnd.docker.raw-stream"
	}
	return "application/vnd.docker.multiplexed-stream"
}

// fakeSession is an attached stream: what comes in goes out again.
type fakeSession struct {
	conn   net.Conn
	reader io.Reader
	stdin  bool
	stdout bool
	tty    bool
}

// run echoes until the process ends, the client is gone for good or, if the
// client's input is attached, that input ends. The last is told by its answer.
// The caller closes the connection, having told the state that clients look for
// when they see the end of the stream.
func (s *fakeSession) run(first []byte, exited <-chan struct{}) (inputEnded bool) {
	if s.stdout && len(first) > 0 {
		_, _ = s.conn.Write(fakeFrame(1, s.tty, first))
	}
	input := make(chan error, 1)
	go func() { input <- s.echo() }() // ends at the latest when the caller closes the connection
	for {
		select {
		case err := <-input:
			if err == nil && !s.stdin {
				input = nil // a half-close of a client that sends nothing; output may follow
				continue
			}
			return err == nil
		case <-exited:
			return false
		}
	}
}

// closed is closed when the engine has stopped. The request's context is of no
// use here: net/http cancels it at a half-close that came early.
func (s *fakeSession) closed() <-chan struct{} {
	conn, _ := fakeConnOf(s.conn)
	return conn.closed
}

// echo copies what comes in to what goes out until the input ends (nil).
func (s *fakeSession) echo() error {
	chunk := make([]byte, 32<<10)
	for {
		n, err := s.reader.Read(chunk)
		if n > 0 && s.stdin && s.stdout {
			if _, err := s.conn.Write(fakeFrame(1, s.tty, chunk[:n])); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// containerAttach is POST /containers/{id}/attach. A container that was created
// and not started is waited for, as `docker run` needs it. When the input ends,
// so does the stream, and the process too if it was made with StdinOnce.
func (e *fakeEngine) containerAttach(c *fakeCall) error {
	var found *fakeContainer
	var status string
	var started, exited, gone <-chan struct{}
	err := e.withContainer(c, func(f *fakeContainer) error {
		if f.status == "paused" {
			return fakeErrorf(http.StatusConflict, "Container %s is paused, unpause the container before attach", f.id)
		}
		found, status, started, exited, gone = f, f.status, f.started, f.exited, f.gone
		e.tell(f, "attach")
		return nil
	})
	if err != nil {
		return err
	}
	want := found.want
	conn, reader, err := c.hijack(c.streamType(want.Tty))
	if err != nil {
		return nil // nobody is there to hear of it
	}
	session := &fakeSession{conn: conn, reader: reader, tty: want.Tty, stdout: c.flag("stdout"), stdin: c.flag("stdin") && want.OpenStdin}
	defer session.conn.Close()
	if status == "exited" || !c.flag("stream") {
		return nil
	}
	select {
	case <-started:
	case <-gone:
		return nil
	case <-session.closed():
		return nil
	}
	if session.run(fakeOutput(found.words), exited) && want.StdinOnce {
		e.mu.Lock()
		e.die(found, 0)
		e.mu.Unlock()
	}
	return nil
}

// execCreate is POST /containers/{id}/exec.
func (e *fakeEngine) execCreate(c *fakeCall) error {
	x := &fakeExec{id: fakeID()}
	if _, err := c.readJSON(&x.want); err != nil {
		return err
	}
	if len(x.want.Cmd) == 0 {
		return fakeErrorf(http.StatusBadRequest, "No exec command specified")
	}
	err := e.withContainer(c, func(found *fakeContainer) error {
		if !found.running() {
			return found.notRunning()
		}
		if found.status == "paused" {
			return fakeErrorf(http.StatusConflict, "Container %s is paused, unpause the container before exec", c.id)
		}
		x.container = found
		e.execs[x.id] = x
		e.tell(found, x.action("exec_create"), "execID", x.id)
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusCreated, map[string]string{"Id": x.id})
}

// action is an event's action with the command behind it, as engines have it.
func (x *fakeExec) action(what string) string {
	return what + ": " + x.want.Cmd[0] + " " + strings.Join(x.want.Cmd[1:], " ")
}

// execStart is POST /exec/{id}/start.
func (e *fakeEngine) execStart(c *fakeCall) error {
	var want struct{ Detach, Tty bool }
	if _, err := c.readJSON(&want); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var exited <-chan struct{}
	e.mu.Lock()
	x := e.execs[c.id]
	err := func() error {
		switch {
		case x == nil:
			return fakeErrorf(http.StatusNotFound, "No such exec instance: %s", c.id)
		case !x.container.running():
			return x.container.notRunning()
		case x.container.status == "paused":
			return fakeErrorf(http.StatusConflict, "Container %s is paused, unpause the container before exec", x.container.id)
		case x.began:
			return fakeErrorf(http.StatusConflict, "Error: Exec command %s has already run", x.id)
		}
		e.lastPID++
		x.began, x.running, x.pid = true, true, 1000+e.lastPID
		exited = x.container.exited
		e.tell(x.container, x.action("exec_start"), "execID", x.id)
		return nil
	}()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	_, over := fakeExits(x.want.Cmd)
	lasting := slices.Contains([]string{"sleep", "top", "tail"}, x.want.Cmd[0])
	if want.Detach {
		if !lasting {
			e.execEnd(x)
		}
		return c.writeStatus(http.StatusOK)
	}
	conn, reader, err := c.hijack(c.streamType(want.Tty))
	if err != nil {
		e.execEnd(x)
		return nil
	}
	defer conn.Close()
	defer e.execEnd(x) // first: clients inspect it when the stream ends
	session := &fakeSession{conn: conn, reader: reader, tty: want.Tty, stdin: x.want.AttachStdin, stdout: x.want.AttachStdout}
	if over || !session.stdin && !lasting {
		if output := fakeOutput(x.want.Cmd); session.stdout && output != nil {
			_, _ = conn.Write(fakeFrame(1, want.Tty, output))
		}
		return nil
	}
	session.run(nil, exited)
	return nil
}

// execEnd notes that an exec's command has ended.
func (e *fakeEngine) execEnd(x *fakeExec) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !x.running {
		return
	}
	x.running = false
	x.exitCode, _ = fakeExits(x.want.Cmd)
	e.tell(x.container, "exec_die", "execID", x.id, "exitCode", strconv.Itoa(x.exitCode))
}

// execInspect is GET /exec/{id}/json.
func (e *fakeEngine) execInspect(c *fakeCall) error {
	e.mu.Lock()
	x := e.execs[c.id]
	var shown map[string]any
	if x != nil {
		shown = map[string]any{
			"ID": x.id, "Running": x.running, "ExitCode": nil, "OpenStdin": x.want.AttachStdin, "OpenStdout": x.want.AttachStdout,
			"OpenStderr": x.want.AttachStderr, "CanRemove": false, "ContainerID": x.container.id, "DetachKeys": x.want.DetachKeys, "Pid": x.pid,
			"ProcessConfig": map[string]any{"tty": x.want.Tty, "entrypoint": x.want.Cmd[0], "arguments": append([]string{}, x.want.Cmd[1:]...), "privileged": x.want.Privileged},
		}
		if x.began && !x.running {
			shown["ExitCode"] = x.exitCode
		}
	}
	e.mu.Unlock()
	if x == nil {
		return fakeErrorf(http.StatusNotFound, "No such exec instance: %s", c.id)
	}
	return c.writeJSON(http.StatusOK, shown)
}

// execResize is POST /exec/{id}/resize.
func (e *fakeEngine) execResize(c *fakeCall) error {
	e.mu.Lock()
	x := e.execs[c.id]
	running := x != nil && x.running
	e.mu.Unlock()
	if !running {
		return fakeErrorf(http.StatusNotFound, "no such exec")
	}
	return c.writeStatus(http.StatusOK)
}

// sessionOpen is POST /session and /grpc: what an h2c client would find, save
// that it echoes.
func (e *fakeEngine) sessionOpen(c *fakeCall) error {
	if c.r.Header.Get("Upgrade") == "" {
		return fakeErrorf(http.StatusBadRequest, "no upgrade proto in request")
	}
	conn, reader, err := c.hijack("application/octet-stream")
	if err != nil {
		return nil
	}
	defer conn.Close()
	session := &fakeSession{conn: conn, reader: reader, tty: true, stdin: true, stdout: true}
	session.run(nil, nil)
	return nil
}

// containerLogs is GET /containers/{id}/logs: one line on each stream, and with
// follow nothing more until the container ends.
func (e *fakeEngine) containerLogs(c *fakeCall) error {
	stdout, stderr := c.flag("stdout"), c.flag("stderr")
	if !stdout && !stderr {
		return fakeErrorf(http.StatusBadRequest, "Bad parameters: you must choose at least one stream")
	}
	var found *fakeContainer
	var exited, gone <-chan struct{}
	var name string
	var ran, running bool
	var at time.Time
	err := e.withContainer(c, func(f *fakeContainer) error {
		found, exited, gone, name, at = f, f.exited, f.gone, f.name, f.startedAt
		ran, running = f.status != "created", f.running()
		return nil
	})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", c.streamType(found.want.Tty))
	c.w.WriteHeader(http.StatusOK)
	c.flush()
	stamp := ""
	if c.flag("timestamps") {
		stamp = at.Format("2006-01-02T15:04:05.000000000Z07:00") + " "
	}
	write := func(stream byte, text string) {
		_, _ = c.w.Write(fakeFrame(stream, found.want.Tty, []byte(stamp+text)))
	}
	own := fakeOutput(found.words)
	if ran && stdout && own != nil && c.query.Get("tail") != "0" {
		write(1, string(own))
	}
	if ran && own == nil && c.query.Get("tail") != "0" {
		if stdout {
			write(1, name+" says hello\n")
		}
		if stderr {
			write(2, name+" warns\n")
		}
	}
	c.flush()
	if !c.flag("follow") || !running {
		return nil
	}
	select {
	case <-exited:
	case <-gone:
	case <-c.r.Context().Done():
	}
	return nil
}

// fakeTar is a tar with one file.
func fakeTar(name string, content []byte) []byte {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
	_, _ = w.Write(content)
	_ = w.Close()
	return buffer.Bytes()
}

// containerExport is GET /containers/{id}/export: a file system of one file.
func (e *fakeEngine) containerExport(c *fakeCall) error {
	var content string
	err := e.withContainer(c, func(found *fakeContainer) error {
		content = found.id[:12] + "\n"
		e.tell(found, "export")
		return nil
	})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = c.w.Write(fakeTar("etc/hostname", []byte(content)))
	return nil
}

// archiveGet is GET and HEAD /containers/{id}/archive. There are /, /tmp,
// /etc/hostname and the files that were put.
func (e *fakeEngine) archiveGet(c *fakeCall) error {
	name := path.Clean("/" + c.query.Get("path"))
	var content []byte
	var directory bool
	var made time.Time
	err := e.withContainer(c, func(found *fakeContainer) error {
		made = found.created
		put, ok := found.files[name]
		switch {
		case ok:
			content = put
		case name == "/etc/hostname":
			content = []byte(found.id[:12] + "\n")
		case name == "/" || name == "/tmp" || name == "/etc":
			directory = true
		default:
			return fakeErrorf(http.StatusNotFound, "Could not find the file %s in container %s", c.query.Get("path"), c.id)
		}
		if c.r.Method == http.MethodGet {
			e.tell(found, "archive-path")
		}
		return nil
	})
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if directory {
		mode = fs.ModeDir | 0o755
	}
	stat, _ := json.Marshal(map[string]any{"name": path.Base(name), "size": len(content), "mode": uint32(mode), "mtime": fakeTime(made), "linkTarget": ""})
	c.w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(stat))
	if c.r.Method == http.MethodHead {
		return c.writeStatus(http.StatusOK)
	}
	c.w.Header().Set("Content-Type", "application/x-tar")
	_, _ = c.w.Write(fakeTar(path.Base(name), content))
	return nil
}

// archivePut is PUT /containers/{id}/archive; the files can be got again.
func (e *fakeEngine) archivePut(c *fakeCall) error {
	files := map[string][]byte{}
	reader := tar.NewReader(c.r.Body)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fakeErrorf(http.StatusBadRequest, "%v", err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			return fakeErrorf(http.StatusBadRequest, "%v", err)
		}
		if header.Typeflag == tar.TypeReg {
			files[path.Join("/", c.query.Get("path"), header.Name)] = content
		}
	}
	_, _ = io.Copy(io.Discard, c.r.Body) // the padding of the tar
	err := e.withContainer(c, func(found *fakeContainer) error {
		for name, content := range files {
			found.files[name] = content
		}
		e.tell(found, "extract-to-dir")
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeStatus(http.StatusOK)
}
