package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in     string
		secure bool
		want   string // an error starts with a quote
	}{
		{"tcp://node-1:2375", false, "tcp://node-1:2375"},
		{"node-1:4243", false, "tcp://node-1:4243"},
		{"node-1", false, "tcp://node-1:2375"},
		{"node-1", true, "tcp://node-1:2376"},
		{"tcp://node-1", true, "tcp://node-1:2376"},
		{" tcp://Node-1.LAN:02375/ ", false, "tcp://node-1.lan:2375"},
		{"10.0.0.1", false, "tcp://10.0.0.1:2375"},
		{"[::1]:2375", false, "tcp://[::1]:2375"},
		{"[0:0::1]", false, "tcp://[::1]:2375"},
		{"::1", true, "tcp://[::1]:2376"},
		{"::ffff:10.0.0.1", false, "tcp://10.0.0.1:2375"},
		{"[fe80::1%eth0]:2375", false, "tcp://[fe80::1%eth0]:2375"},
		{"unix:///var/run/docker.sock", true, "unix:///var/run/docker.sock"},
		{"unix:///var//run/./docker.sock", false, "unix:///var/run/docker.sock"},
		{"", false, `"": host is missing, expected host:port`},
		{":2375", false, `":2375": host is missing, expected host:port`},
		{"host:99999", false, `"host:99999": port out of range`},
		{"host:0", false, `"host:0": port out of range`},
		{"host:", false, `"host:": port "" is not a number`},
		{"host:http", false, `"host:http": port "http" is not a number`},
		{"host:-1", false, `"host:-1": port "-1" is not a number`},
		{"host:99999999999999999999999", false, `"host:99999999999999999999999": port out of range`},
		{"a:b:c", false, `"a:b:c": expected host:port, [IPv6]:port or a range as in host[1:9]:port`},
		{"10.0.0.256:2375", false, `"10.0.0.256:2375": "10.0.0.256" is not an IP address`},
		{"root@host", false, `"root@host": "root@host" is not a host name or IP address`},
		{"a b", false, `"a b": "a b" is not a host name or IP address`},
		{"a..b", false, `"a..b": "a..b" is not a host name`},
		{"-tlsverify", false, `"-tlsverify": "-tlsverify" is not a host name`},
		{"host[1-9]:2375", false, `"host[1-9]:2375": expected host:port, [IPv6]:port or a range as in host[1:9]:port`},
		{"host/v1.41", false, `"host/v1.41": "host/v1.41" is not a host name or IP address`},
		{"ssh://host", true, "ssh://host"},
		{"ssh://Host-1/", false, "ssh://Host-1"},
		{"ssh://root@host:022/run//user/1/docker.sock", false, "ssh://root@host:22/run/user/1/docker.sock"},
		{"ssh://a@b.c@[fe80::1]:22/var/run/docker.sock", false, "ssh://a@b.c@[fe80::1]:22"},
		{"ssh://-oProxyCommand=x@host", false, `"ssh://-oProxyCommand=x@host": user "-oProxyCommand=x": expected ssh://user@host, without a password`},
		{"ssh://root:secret@host", false, `"ssh://root:secret@host": user "root:secret": expected ssh://user@host, without a password`},
		{"ssh://-oProxyCommand=x", false, `"ssh://-oProxyCommand=x": "-oproxycommand=x" is not a host name or IP address`},
		{"ssh://-x", false, `"ssh://-x": "-x" is not a host name`},
		{"ssh://", false, `"ssh://": host is missing, expected host:port`},
		{"ssh://host:0", false, `"ssh://host:0": port "0" is not a port number`},
		{"ssh://host/a:b", false, `"ssh://host/a:b": socket /a:b holds a character that ssh would not take as it is`},
		{"http://host:2375", false, `"http://host:2375": scheme "http" is unknown, expected tcp://host:port, unix:///path or ssh://user@host`},
		{"consul://host/x", false, `"consul://host/x": scheme "consul" is unknown, expected tcp://host:port, unix:///path or ssh://user@host`},
		{"/var/run/docker.sock", false, `"/var/run/docker.sock": a socket is written unix:///var/run/docker.sock`},
		{"unix://docker.sock", false, `"unix://docker.sock": expected an absolute path, as in unix:///var/run/docker.sock`},
		{"unix:///" + strings.Repeat("a", 120), false, `"unix:///` + strings.Repeat("a", 120) + `": path is 121 bytes long, a socket's may have 107`},
	}
	for _, tt := range tests {
		got, err := parseAddress(tt.in, tt.secure)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("parseAddress(%q, %v) = %s, want %s", tt.in, tt.secure, got, tt.want)
		}
	}
}

func TestExpandRange(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		want string // joined by blanks
	}{
		{"host:2375", "host:2375"},
		{"host[1:3]:2375", "host1:2375 host2:2375 host3:2375"},
		{"10.0.0.[9:11]", "10.0.0.9 10.0.0.10 10.0.0.11"},
		{"n[08:10]", "n08 n09 n10"},
		{"n[0:2]", "n0 n1 n2"},
		{"n[5:5]", "n5"},
		{"r[1:2]n[1:2]", "r1n1 r1n2 r2n1 r2n2"},
		{"localhost:[2375:2376]", "localhost:2375 localhost:2376"},
		{"[::1]:2375", "[::1]:2375"},
		{"[1::9]:2375", "[1::9]:2375"},
		{"[1:2:3:4:5:6:7:8]:2375", "[1:2:3:4:5:6:7:8]:2375"},
		{"[fe80::[1:2]]:2375", "[fe80::1]:2375 [fe80::2]:2375"},
		{"host[1-9]", "host[1-9]"},
		{"host[1:]", "host[1:]"},
		{"host[3:1]", `"host[3:1]": range runs backwards, expected [1:3]`},
		{"host[1:10001]", `"host[1:10001]": range of more than 10000 addresses`},
		{"a[1:101]b[1:100]", `"a[1:101]b[1:100]": range of more than 10000 addresses`},
		{"a[1:100]b[1:100]c[1:100]", `"a[1:100]b[1:100]c[1:100]": range of more than 10000 addresses`},
	}
	for _, tt := range tests {
		got, err := expandRange(tt.in)
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if text != tt.want {
			t.Errorf("expandRange(%q) = %s, want %s", tt.in, text, tt.want)
		}
	}
	if got, err := expandRange("h[1:10000]"); err != nil || len(got) != 10000 || got[9999] != "h10000" {
		t.Errorf("expandRange of the largest range = %d addresses, %v, want 10000", len(got), err)
	}
}

func TestParseNodeFile(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"comments, blank lines and CRLF", "\ufeff# nodes\r\n\r\n  node-1:2375\t# first\r\nnode-2 #second\n   # end\nunix:///tmp/a#b\n", "tcp://node-1:2375 tcp://node-2:2375 unix:///tmp/a#b"},
		{"no newline at the end", "a", "tcp://a:2375"},
		{"ranges", "n[1:2]", "tcp://n1:2375 tcp://n2:2375"},
		{"equal addresses count once, the first", "b\na\nB:2375\ntcp://b", "tcp://b:2375 tcp://a:2375"},
		{"a bad port", "# x\na\nhost:99999\nb", `nodes.txt:3: "host:99999": port out of range`},
		{"a bad range", "n[2:1]", `nodes.txt:1: "n[2:1]": range runs backwards, expected [1:2]`},
		{"a bad address in a range", "10.0.0.[255:256]", `nodes.txt:1: "10.0.0.256": "10.0.0.256" is not an IP address`},
		{"two addresses on a line", "a b", `nodes.txt:1: "a b": "a b" is not a host name or IP address`},
		{"control characters", "\x1b[2J", `nodes.txt:1: "\x1b[2J": "\x1b[2j" is not a host name or IP address`},
		{"nothing", "", `nodes.txt: no address in it, expected one engine address a line`},
		{"only comments", "# a\n", `nodes.txt: no address in it, expected one engine address a line`},
		{"too many", "a[1:9999]\nb[1:2]", `nodes.txt:2: more than 10000 addresses`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseNodeFile("nodes.txt", []byte(tt.text), false)
			text := strings.Join(got, " ")
			if err != nil {
				text = err.Error()
			}
			if text != tt.want {
				t.Errorf("parseNodeFile(%q) = %s, want %s", tt.text, text, tt.want)
			}
		})
	}
}

func TestReadNodeFileRefusesWhatIsNoNodeFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	huge, pipe, missing := filepath.Join(dir, "huge"), filepath.Join(dir, "pipe"), filepath.Join(dir, "missing")
	writeFile(t, huge, strings.Repeat("#", 1<<20)+"\na")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		huge:    huge + ": larger than 1048576 bytes, expected one engine address a line",
		pipe:    pipe + ": not a regular file",
		dir:     dir + ": not a regular file",
		missing: "node file: stat " + missing + ": no such file or directory",
	} {
		if got, err := readNodeFile(path, false); err == nil || err.Error() != want {
			t.Errorf("readNodeFile(%s) = %v, %v, want %s", path, got, err, want)
		}
	}
}

// nodeFileTest follows a node file by ticks of the test's own.
type nodeFileTest struct {
	path    string
	tick    chan time.Time
	reload  chan struct{}
	applied chan []string
	log     *logText
}

func followedNodeFile(t *testing.T, text string) *nodeFileTest {
	t.Helper()
	log, logged := testLog()
	f := &nodeFileTest{
		path: filepath.Join(t.TempDir(), "nodes.txt"),
		tick: make(chan time.Time), reload: make(chan struct{}), applied: make(chan []string, 10), log: logged,
	}
	writeFile(t, f.path, text)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		followNodeFile(ctx, log, f.path, false, f.tick, f.reload, func(nodes []string) { f.applied <- nodes })
		close(done)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

// want lets the follower look until it has seen a change, and compares what it
// applied: nothing for "".
func (f *nodeFileTest) want(t *testing.T, want string) {
	t.Helper()
	for range 3 { // change seen, change settled; the third is taken when the second is dealt with
		f.tick <- time.Time{}
	}
	f.wantNow(t, want)
}

func (f *nodeFileTest) wantNow(t *testing.T, want string) {
	t.Helper()
	got := ""
	select {
	case nodes := <-f.applied:
		got = strings.Join(nodes, " ")
	default:
	}
	if got != want {
		t.Errorf("applied %q, want %q", got, want)
	}
}

func TestWatchNodeFileAppliesChanges(t *testing.T) {
	t.Parallel()
	f := followedNodeFile(t, "a\nb\n")
	f.want(t, "tcp://a:2375 tcp://b:2375")
	f.want(t, "")
	writeFile(t, f.path, "a\nb\nc\n")
	f.want(t, "tcp://a:2375 tcp://b:2375 tcp://c:2375")
	writeFile(t, f.path, "# only a comment\na\nb\nc\n")
	f.want(t, "")
	writeFile(t, f.path, "c\n")
	f.want(t, "tcp://c:2375")
	// In place, as an editor may.
	if err := os.WriteFile(f.path, []byte("c\nd # new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.want(t, "tcp://c:2375 tcp://d:2375")
}

func TestWatchNodeFileReadsAtOnceOnReload(t *testing.T) {
	t.Parallel()
	f := followedNodeFile(t, "a\n")
	f.want(t, "tcp://a:2375")
	writeFile(t, f.path, "b\n")
	f.reload <- struct{}{}
	f.reload <- struct{}{} // taken when the first is dealt with
	f.wantNow(t, "tcp://b:2375")
}

func TestSettledWaitsUntilTheFileIsWhole(t *testing.T) {
	t.Parallel()
	var file settled[int]
	file.reset(1)
	for i, step := range []struct {
		look int
		want bool
	}{
		{1, false}, {2, false}, {3, false}, {3, true}, {3, false}, // grows, stands still, is read
		{4, false}, {3, false}, {3, false}, // was another for a moment
		{5, false}, {5, true},
	} {
		if got := file.changed(step.look); got != step.want {
			t.Errorf("step %d: changed(%d) = %v, want %v", i, step.look, got, step.want)
		}
	}
}

func TestWatchNodeFileKeepsNodesWhenTheFileIsNoGood(t *testing.T) {
	t.Parallel()
	const warning = "node file not used, the nodes stay as they are"
	tests := []struct {
		name  string
		spoil func(t *testing.T, path string)
		cause string
	}{
		{"gone", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		{"empty", func(t *testing.T, path string) { writeFile(t, path, "") }, "no address in it"},
		{"bad line", func(t *testing.T, path string) { writeFile(t, path, "a\nb:x\n") }, "nodes.txt:2: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := followedNodeFile(t, "a\n")
			f.want(t, "tcp://a:2375")
			tt.spoil(t, f.path)
			for range 4 {
				f.want(t, "")
			}
			if f.log.count(warning) != 1 || f.log.count(tt.cause) != 1 {
				t.Errorf("warned %d times, want once, with %q", f.log.count(warning), tt.cause)
			}
			f.reload <- struct{}{}
			f.want(t, "")
			if n := f.log.count(warning); n != 2 {
				t.Errorf("warned %d times after a reload by hand, want 2", n)
			}
			writeFile(t, f.path, "a\nb\n")
			f.want(t, "tcp://a:2375 tcp://b:2375")
		})
	}
}

func TestLocalAddress(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{"": "unix:///var/run/docker.sock", "tcp://x:1": "tcp://x:1"} {
		got := localAddress(func(name string) string {
			if name != "DOCKER_HOST" {
				return "wrong variable"
			}
			return host
		})
		if got != want {
			t.Errorf("localAddress with DOCKER_HOST=%q = %s, want %s", host, got, want)
		}
	}
}

func FuzzParseNodeFile(f *testing.F) {
	for _, s := range []string{"a\nb # c\n", "n[1:9]:2375", "[::1]:2375", "fe80::1%eth0", "unix:///a#b", "\ufefftcp://A/\r\n", "r[01:02]n[1:2]"} {
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, secure bool) {
		nodes, err := parseNodeFile("nodes.txt", []byte(s), secure)
		if err != nil {
			return
		}
		if len(nodes) == 0 || len(nodes) > maxAddresses {
			t.Fatalf("parseNodeFile(%q) = %d addresses", s, len(nodes))
		}
		again, err := parseNodeFile("again", fmt.Append(nil, strings.Join(nodes, "\n")), !secure)
		if err != nil || !slices.Equal(again, nodes) {
			t.Errorf("parseNodeFile(%q) = %q, and from that %q, %v", s, nodes, again, err)
		}
	})
}
