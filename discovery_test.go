package main

import (
	"strings"
	"testing"
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
		{"dns://Engines.lan:02375", true, "dns://engines.lan:2375"},
		{"dns://_docker._tcp.lan", false, "dns://_docker._tcp.lan"},
		{"dns://10.0.0.1:2375", false, `"dns://10.0.0.1:2375": 10.0.0.1 is an IP address, expected a name`},
		{"dns://a:0", false, `"dns://a:0": port "0" is not a port number`},
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
		{"http://host:2375", false, `"http://host:2375": scheme "http" is unknown, expected tcp://host:port, unix:///path, ssh://user@host or dns://name:port`},
		{"consul://host/x", false, `"consul://host/x": scheme "consul" is unknown, expected tcp://host:port, unix:///path, ssh://user@host or dns://name:port`},
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
