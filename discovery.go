package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

const (
	maxAddresses    = 10000                  // of one range, and of one node file
	maxAddressBytes = 512                    // as written, with its ranges
	maxSocketPath   = 107                    // sun_path, less its closing NUL
	engineSock      = "/var/run/docker.sock" // on an ssh host whose address names no other
)

// parseAddress reads the address of one engine: tcp://host:port, host:port, host,
// unix:///path, ssh://user@host:port/socket, or of many: dns://name:port, dns://name. Without a port it is 2375, or 2376 when secure (engines are
// spoken to in TLS). It returns one spelling for each address, so that equal
// addresses are equal strings.
func parseAddress(s string, secure bool) (string, error) {
	address, err := readAddress(strings.TrimSpace(s), defaultPort(secure), false)
	if err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return address, nil
}

// defaultPort is the port Docker registered: 2375, and 2376 for TLS.
func defaultPort(secure bool) string {
	if secure {
		return "2376"
	}
	return "2375"
}

// readAddress returns the canonical form of s. Only an address to listen on may
// lack a host (all of them) or have port 0 (any free one).
func readAddress(s, port string, listening bool) (string, error) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "tcp", s
	}
	known := "tcp://host:port, unix:///path, ssh://user@host or dns://name:port"
	if listening {
		known = "tcp://host:port or unix:///path"
	}
	switch {
	case strings.HasPrefix(s, "/"):
		return "", fmt.Errorf("a socket is written unix://%s", s)
	case scheme == "unix":
		return readSocketPath(rest)
	case scheme == "ssh" && !listening:
		return readSSH(rest)
	case scheme == "dns" && !listening:
		return readName(rest)
	case scheme != "tcp":
		return "", fmt.Errorf("scheme %q is unknown, expected %s", scheme, known)
	}
	host, port, err := splitHostPort(strings.TrimSuffix(rest, "/"), port)
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(port, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return "", fmt.Errorf("port %q is not a number", port)
	}
	if n > 65535 || n == 0 && !listening {
		return "", errors.New("port out of range")
	}
	if host != "" || !listening {
		if host, err = readHost(host); err != nil {
			return "", err
		}
	}
	return "tcp://" + net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// userPattern keeps what a shell or ssh itself would read as something else out of the
// command line of ssh.
var userPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]*$`)

// readSSH reads [user@]host[:port][/socket]. User, port and the host's real name may
// stand in the configuration of ssh, so they have no defaults here, and the host keeps
// its letters.
func readSSH(s string) (string, error) {
	s, socket, found := strings.Cut(strings.TrimSuffix(s, "/"), "/")
	if found {
		address, err := readSocketPath("/" + socket)
		if err != nil {
			return "", err
		}
		socket = strings.TrimPrefix(address, "unix://")
		if strings.ContainsAny(socket, ":%\\? #") {
			return "", fmt.Errorf("socket %s holds a character that ssh would not take as it is", socket)
		}
		if socket == engineSock {
			socket = ""
		}
	}
	user, at := "", strings.LastIndexByte(s, '@')
	if at >= 0 {
		if user = s[:at+1]; !userPattern.MatchString(s[:at]) {
			return "", fmt.Errorf("user %q: expected ssh://user@host, without a password", s[:at])
		}
	}
	host, port, err := splitHostPort(s[at+1:], "")
	if err != nil {
		return "", errors.New("expected ssh://user@host:port/socket")
	}
	if _, err := readHost(host); err != nil {
		return "", err
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", fmt.Errorf("port %q is not a port number", port)
		}
		host += ":" + strconv.FormatUint(n, 10)
	}
	return "ssh://" + user + host + socket, nil
}

// readName reads name:port or name behind dns://. Without a port the name is asked for
// its SRV records, which tell hosts and ports.
func readName(s string) (string, error) {
	s = strings.TrimSuffix(s, "/")
	host, port, err := splitHostPort(s, "")
	if err != nil {
		return "", errors.New("expected dns://name:port, or dns://name for its SRV records")
	}
	if host, err = readHost(host); err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", fmt.Errorf("%s is an IP address, expected a name", host)
	}
	if port == "" {
		return "dns://" + host, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("port %q is not a port number", port)
	}
	return "dns://" + host + ":" + strconv.FormatUint(n, 10), nil
}

func readSocketPath(p string) (string, error) {
	if !strings.HasPrefix(p, "/") || p == "/" {
		return "", errors.New("expected an absolute path, as in unix:///var/run/docker.sock")
	}
	if !printable(p) {
		return "", errors.New("path holds a character that can not be printed")
	}
	p = path.Clean(p)
	if len(p) > maxSocketPath {
		return "", fmt.Errorf("path is %d bytes long, a socket's may have %d", len(p), maxSocketPath)
	}
	return "unix://" + p, nil
}

// splitHostPort is net.SplitHostPort with a default port, and with IPv6
// addresses out of their brackets.
func splitHostPort(s, port string) (string, string, error) {
	if _, err := netip.ParseAddr(s); err == nil || !strings.Contains(s, ":") {
		return s, port, nil
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return s[1 : len(s)-1], port, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", "", errors.New("expected host:port, [IPv6]:port or a range as in host[1:9]:port")
	}
	return host, port, nil
}

// readHost returns the one spelling of an IP address or host name.
func readHost(s string) (string, error) {
	s = strings.ToLower(s)
	if s == "" {
		return "", errors.New("host is missing, expected host:port")
	}
	bad := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.", c)
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		if strings.ContainsFunc(ip.Zone(), bad) {
			return "", fmt.Errorf("zone %q is not the name of a network interface", ip.Zone())
		}
		return ip.Unmap().String(), nil
	}
	if strings.ContainsFunc(s, bad) || len(s) > 253 {
		return "", fmt.Errorf("%q is not a host name or IP address", s)
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return "", fmt.Errorf("%q is not a host name", s)
		}
	}
	// No top-level domain is a number: 10.0.0.256 is a mistyped address.
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return "", fmt.Errorf("%q is not an IP address", s)
	}
	return s, nil
}

// rangePattern finds [1:9]. An IPv6 address never looks so: between brackets it
// has two colons at least.
var rangePattern = regexp.MustCompile(`\[([0-9]{1,9}):([0-9]{1,9})\]`)

// expandRange turns host[1:9]:2375 into nine addresses and anything without a
// range into itself. The zeros of [01:10] are kept; several ranges multiply.
// More than 10000 addresses are refused.
func expandRange(s string) ([]string, error) {
	if len(s) > maxAddressBytes {
		return nil, fmt.Errorf("%q…: address is %d bytes long, at most %d are allowed", s[:32], len(s), maxAddressBytes)
	}
	at := rangePattern.FindStringSubmatchIndex(s)
	if at == nil {
		return []string{s}, nil
	}
	low, high := s[at[2]:at[3]], s[at[4]:at[5]]
	first, _ := strconv.Atoi(low) // nine digits at most
	last, _ := strconv.Atoi(high)
	if last-first >= maxAddresses {
		return nil, fmt.Errorf("%q: range of more than %d addresses", s, maxAddresses)
	}
	if last < first {
		return nil, fmt.Errorf("%q: range runs backwards, expected [%s:%s]", s, high, low)
	}
	width := 0
	if low[0] == '0' && len(low) > 1 {
		width = len(low)
	}
	ends, err := expandRange(s[at[1]:])
	if err != nil {
		return nil, err
	}
	if (last-first+1)*len(ends) > maxAddresses {
		return nil, fmt.Errorf("%q: range of more than %d addresses", s, maxAddresses)
	}
	var addresses []string
	for i := first; i <= last; i++ {
		for _, end := range ends {
			addresses = append(addresses, fmt.Sprintf("%s%0*d%s", s[:at[0]], width, i, end))
		}
	}
	return addresses, nil
}

// fileLook is what stat tells of a file, enough to see that it was changed or
// replaced. The zero value stands for a file that can not be seen.
type fileLook struct {
	modified int64 // unix nanoseconds
	size     int64
	inode    uint64
}

func lookAt(path string) fileLook {
	info, err := os.Stat(path)
	if err != nil {
		return fileLook{}
	}
	look := fileLook{modified: info.ModTime().UnixNano(), size: info.Size()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		look.inode = stat.Ino
	}
	return look
}

// settled tells when files are worth reading again: they differ from what was
// read, and two looks in a row agree, so that nobody is in the middle of writing.
// Half a node file would take the other half's nodes away.
type settled[T comparable] struct{ read, last, before T }

// changed takes the newest look and tells whether to read now.
func (s *settled[T]) changed(look T) bool {
	s.before, s.last = s.last, look
	if look == s.read || !s.still() {
		return false
	}
	s.read = look
	return true
}

// still tells whether the last two looks agree.
func (s *settled[T]) still() bool { return s.last == s.before }

// reset takes the look at what is about to be read anyway.
func (s *settled[T]) reset(look T) { s.read, s.last, s.before = look, look, look }

// localAddress is where the Docker engine of this machine listens, as the docker
// command finds it. What DOCKER_HOST says is returned as it is, not yet parsed.
func localAddress(getenv func(string) string) string {
	if host := getenv("DOCKER_HOST"); host != "" {
		return host
	}
	return "unix:///var/run/docker.sock"
}
