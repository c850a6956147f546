package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseNodeFile(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"comments, blank lines and CRLF", "\ufeff# nodes\r\n\r\n  node-1:2375\t# first\r\nnode-2 #second\n   # end\nunix:///tmp/a#b\n", "tcp://node-1:2375 tcp://node-2:2375 unix:///tmp/a#b"},
		{"no newline at the end", "a", "tcp://a:2375"},
		{"ranges", "n[1:2]", "tcp://n1:2375 tcp://n2:2375"},
		{"equal addresses count once", "b\na label=k:v\nB:2375\ntcp://b\nA label=k:v", "tcp://b:2375 tcp://a:2375 label=k:v"},
		{"equal addresses with different options", "n[1:9]\na\nn7 label=k:v", "nodes.txt:3: n7:2375 is named already in line 1, with other options: leave one of them"},
		{"one name for two", "a name=x\n\nb name=x", "nodes.txt:3: name=x is another node's name already in line 1"},
		{"a bad port", "# x\na\nhost:99999\nb", `nodes.txt:3: "host:99999": port out of range`},
		{"a bad range", "n[2:1]", `nodes.txt:1: "n[2:1]": range runs backwards, expected [1:2]`},
		{"a bad address in a range", "10.0.0.[255:256]", `nodes.txt:1: "10.0.0.256": "10.0.0.256" is not an IP address`},
		{"two addresses on a line", "a b", `nodes.txt:1: "b": expected name=…, label=key:value, tls=… or skip-verify behind an address`},
		{"options", "a  name=big\tlabel=gpu:yes label=url:http://x # two labels\nb[1:2] tls=off label=k:", "tcp://a:2375 name=big label=gpu:yes label=url:http://x tcp://b1:2375 label=k: tls=off tcp://b2:2375 label=k: tls=off"},
		{"an unknown option", "a\nb colour=red", `nodes.txt:2: colour=red: unknown option, expected name, label, tls or skip-verify`},
		{"one name for many", "a[1:2] name=x", `nodes.txt:1: name=x: a range, or a name in the DNS, is many nodes, which cannot have one name`},
		{"a name that is none", "a name=a/b", `nodes.txt:1: name=a/b: expected letters, digits, _ . or -, at most 63`},
		{"a label without a value", "a label=gpu", `nodes.txt:1: label=gpu: expected label=key:value`},
		{"a label of swarmlite's own", "a label=ostype:x", `nodes.txt:1: label=ostype:x: label "ostype" is set by swarmlite, choose another key`},
		{"a resource that is none", "a\nb label=resource.gpu:0,0", `nodes.txt:2: label=resource.gpu:0,0: label "resource.gpu=0,0": expected resource.NAME=NUMBER, or device IDs with commas between, such as resource.gpu=2 or resource.gpu=GPU-1,GPU-2`},
		{"certificates that are not there", "a tls=/nowhere", `nodes.txt:1: tls=/nowhere: CA file /nowhere/ca.pem does not exist, check the path`},
		{"nothing to verify", "a skip-verify", `nodes.txt:1: skip-verify: without TLS there is nothing to verify; it goes with tls=DIR or -engine-tlsverify`},
		{"TLS for a socket", "ssh://a tls=off", `nodes.txt:1: "ssh://a": tls and skip-verify are for tcp://host:port`},
		{"an option alone", "name=x", `nodes.txt:1: "name=x": "name=x" is not a host name or IP address`},
		{"control characters", "\x1b[2J", `nodes.txt:1: "\x1b[2J": "\x1b[2j" is not a host name or IP address`},
		{"nothing", "", `nodes.txt: no address in it, expected one engine address a line`},
		{"only comments", "# a\n", `nodes.txt: no address in it, expected one engine address a line`},
		{"too many", "a[1:9999]\nb[1:2]", `nodes.txt:2: more than 10000 addresses`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseNodeFile("nodes.txt", []byte(tt.text), false)
			text := lineText(got)
			if err != nil {
				text = err.Error()
			}
			if text != tt.want {
				t.Errorf("parseNodeFile(%q) = %s, want %s", tt.text, text, tt.want)
			}
		})
	}
}

func TestF68FilesThatAreRefused(t *testing.T) {
	defer func() {
		faultHeld(t, 68, "bad, doubled, empty, huge, gone: refused with the line's number; on a reload the nodes stay")
	}()
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
	applied chan []nodeLine
	log     *logText
}

func followedNodeFile(t *testing.T, text string) *nodeFileTest {
	t.Helper()
	log, logged := testLog()
	f := &nodeFileTest{
		path: filepath.Join(t.TempDir(), "nodes.txt"),
		tick: make(chan time.Time), reload: make(chan struct{}), applied: make(chan []nodeLine, 10), log: logged,
	}
	writeFile(t, f.path, text)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		followNodeFile(ctx, log, f.path, false, f.tick, f.reload, func(nodes []nodeLine) { f.applied <- nodes })
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
		got = lineText(nodes)
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

func TestF68AFileThatIsNoGoodKeepsItsNodes(t *testing.T) {
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
		var text []string
		for _, l := range nodes {
			text = append(text, lineText([]nodeLine{l}))
		}
		again, err := parseNodeFile("again", []byte(strings.Join(text, "\n")), secure)
		if err != nil || !slices.EqualFunc(again, nodes, nodeLine.equal) {
			t.Errorf("parseNodeFile(%q) = %v, and from that %v, %v", s, nodes, again, err)
		}
	})
}
