package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestRelayTCPPassesBytesBothWaysAfterHalfClose(t *testing.T) {
	t.Parallel()
	echo := listenLocal(t)
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, _ := io.ReadAll(c) // answers only when the client has said all
				c.Write(append([]byte("heard "), data...))
			}()
		}
	}()
	relay := listenLocal(t)
	go relayTCP(relay, echo.Addr().String())
	c, err := net.Dial("tcp", relay.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "everything")
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "heard everything" {
		t.Errorf("through the relay = %q, %v, want %q", got, err, "heard everything")
	}
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestRelayUDPBringsAnswersToTheClientThatAsked(t *testing.T) {
	t.Parallel()
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			echo.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go relayUDP(in, echo.LocalAddr().String())
	var clients []net.Conn
	for i := range 3 {
		c, err := net.Dial("udp", in.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "client %d", i)
		clients = append(clients, c)
	}
	for i, c := range clients {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if want := fmt.Sprintf("re: client %d", i); err != nil || string(buf[:n]) != want {
			t.Errorf("client %d reads %q, %v, want %q", i, buf[:n], err, want)
		}
	}
}

func TestPublishedPortsAreReachedOnTheManager(t *testing.T) {
	engines := labEngines(t)
	args := []string{"-relay-ports"}
	for _, e := range engines {
		args = append(args, e.addr)
	}
	m := startManager(t, args...)
	_, fixed, err := net.SplitHostPort(freePort(t))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(name, publish string) {
		m.docker(t, "run", "-d", "--name", name, "-p", publish, "busybox", "sh", "-c", "echo "+name+" >index.html; exec httpd -f")
	}
	serve("one", fixed+":80")
	serve("two", "80")
	serve("three", "80")
	get := func(addr string) error {
		resp, err := http.Get("http://" + addr)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != 200 {
			return fmt.Errorf("%s: %s", resp.Status, data)
		}
		return nil
	}
	ports := map[string]string{}
	check := func() {
		t.Helper()
		for _, name := range []string{"one", "two", "three"} {
			addr := strings.TrimSpace(m.docker(t, "port", name, "80"))
			if !strings.HasPrefix(addr, "127.0.0.1:") || strings.Contains(addr, "\n") {
				t.Errorf("docker port %s = %q, want one address of the manager's", name, addr)
			}
			if old := ports[name]; old != "" && old != addr {
				t.Errorf("docker port %s = %s, was %s before the restart", name, addr, old)
			}
			ports[name] = addr
			shown := m.docker(t, "ps", "--filter", "name="+name, "--format", "{{.Ports}}")
			if !strings.Contains(shown, addr+"->80/tcp") {
				t.Errorf("docker ps shows %s with %q, want %s", name, shown, addr)
			}
			eventually(t, 10*time.Second, func() error { return get(addr) })
		}
	}
	check()
	if ports["one"] != "127.0.0.1:"+fixed {
		t.Errorf("fixed port is shown as %s, want 127.0.0.1:%s", ports["one"], fixed)
	}
	_, refusal, code := dockerCLI(t, m.addr, "run", "-d", "--name", "four", "-p", fixed+":80", "busybox", "true")
	if code != 125 || !strings.Contains(refusal, "port "+fixed+"/tcp is already allocated to container one on node ") {
		t.Errorf("a second container on port %s: exit %d, %q, want a refusal that names the holder", fixed, code, refusal)
	}
	m.restart(t)
	check()
	m.docker(t, "rm", "-f", "one")
	eventually(t, 10*time.Second, func() error {
		if get("127.0.0.1:"+fixed) == nil {
			return fmt.Errorf("port %s is still relayed after its container has gone", fixed)
		}
		return nil
	})
	m.docker(t, "run", "-d", "--name", "four", "-p", fixed+":80", "busybox", "sleep", "60")
}
