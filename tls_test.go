package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ca is a certificate authority of one test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func testCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(t), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &ca{cert: cert, key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newSerial(t *testing.T) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// server issues a certificate for hosts, which are names or IP addresses.
func (a *ca) server(t *testing.T, hosts ...string) certFiles {
	t.Helper()
	return a.issue(t, t.TempDir(), serverTemplate(hosts...))
}

// client issues a certificate with which cn may use a listener.
func (a *ca) client(t *testing.T, cn string) certFiles {
	t.Helper()
	return a.issue(t, t.TempDir(), clientTemplate(cn))
}

func clientTemplate(cn string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: cn}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

func serverTemplate(hosts ...string) x509.Certificate {
	template := x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, h)
	}
	return template
}

// issue signs template, valid for a year unless it says otherwise, into cert.pem
// and key.pem in dir.
func (a *ca) issue(t *testing.T, dir string, template x509.Certificate) certFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = newSerial(t)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().AddDate(1, 0, 0)
	}
	template.NotBefore = template.NotAfter.AddDate(-2, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, &template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := certFiles{ca: a.file, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	writePEM(t, f.cert, "CERTIFICATE", der)
	writePEM(t, f.key, "PRIVATE KEY", pkcs8)
	return f
}

// writePEM replaces path as a careful operator does, by a rename.
func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	writeFile(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// logText is a log that a test can read while others write.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logText) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logText) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), s)
}

func testLog() (*slog.Logger, *logText) {
	b := &logText{}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func certSourceOf(t *testing.T, f certFiles) *certSource {
	t.Helper()
	c, err := newCertSource(slog.New(slog.DiscardHandler), "client", f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// exchange sends one byte from a server to a client, and returns what either of
// them says of it, and the client's view of the connection.
func exchange(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	l, err := listen(t.Context(), "tcp://127.0.0.1:0", server, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		served <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	_, err = io.ReadFull(conn, make([]byte, 1))
	if err != nil {
		_ = raw.Close()
	}
	return conn.ConnectionState(), <-served, err
}

func TestServerConfigAdmitsOnlyClientCertificatesOfItsCA(t *testing.T) {
	t.Parallel()
	a, other := testCA(t), testCA(t)
	source := certSourceOf(t, a.server(t, "127.0.0.1"))
	tests := []struct {
		name   string
		client certFiles // its ca is what the client trusts
		want   bool
	}{
		{"a client certificate of the CA", a.client(t, "ann"), true},
		{"no certificate", certFiles{ca: a.file}, false},
		{"a certificate of another CA", func() certFiles { f := other.client(t, "eve"); f.ca = a.file; return f }(), false},
		{"a server's certificate", a.server(t, "127.0.0.1"), false},
		{"an expired certificate", a.issue(t, t.TempDir(), x509.Certificate{
			NotAfter: time.Now().Add(-time.Minute), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := certSourceOf(t, tt.client).clientConfig(true, "127.0.0.1")
			state, served, err := exchange(t, source.serverConfig(true), client)
			if got := served == nil && err == nil; got != tt.want {
				t.Errorf("served %v, client %v, want success %v", served, err, tt.want)
			}
			if tt.want && (state.NegotiatedProtocol != "http/1.1" || state.Version != tls.VersionTLS13) {
				t.Errorf("protocol %q, version %x, want http/1.1 over TLS 1.3", state.NegotiatedProtocol, state.Version)
			}
		})
	}
}

func TestServerConfigWithoutVerifyAdmitsAnybody(t *testing.T) {
	t.Parallel()
	a := testCA(t)
	_, served, err := exchange(t, certSourceOf(t, a.server(t, "localhost")).serverConfig(false),
		certSourceOf(t, certFiles{ca: a.file}).clientConfig(true, "localhost"))
	if served != nil || err != nil {
		t.Errorf("served %v, client %v, want no error", served, err)
	}
}

func TestServerConfigWithoutCAAdmitsNobody(t *testing.T) {
	t.Parallel()
	a := testCA(t)
	files := a.server(t, "localhost")
	files.ca = ""
	_, served, _ := exchange(t, certSourceOf(t, files).serverConfig(true), certSourceOf(t, a.client(t, "ann")).clientConfig(true, "localhost"))
	if served == nil {
		t.Error("a client was admitted though there is no CA to check it")
	}
}

func TestServerConfigRefusesOldTLSAndHTTP2(t *testing.T) {
	t.Parallel()
	a := testCA(t)
	source := certSourceOf(t, a.server(t, "localhost"))
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1":     func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"only HTTP/2": func(c *tls.Config) { c.NextProtos = []string{"h2"} },
	} {
		client := certSourceOf(t, a.client(t, "ann")).clientConfig(true, "localhost")
		change(client)
		if _, served, err := exchange(t, source.serverConfig(true), client); served == nil || err == nil {
			t.Errorf("%s: served %v, client %v, want a refusal", name, served, err)
		}
	}
}

func TestClientConfigChecksTheEngine(t *testing.T) {
	t.Parallel()
	a, other := testCA(t), testCA(t)
	client := certSourceOf(t, a.client(t, "swarmlite"))
	expired := serverTemplate("127.0.0.1")
	expired.NotAfter = time.Now().Add(-time.Minute)
	tests := []struct {
		name   string
		engine certFiles
		server string
		want   string // in the error
	}{
		{"the right IP address", a.server(t, "127.0.0.1"), "127.0.0.1", ""},
		{"the right IPv6 address, zone aside", a.server(t, "fe80::1"), "fe80::1%eth0", ""},
		{"the right name", a.server(t, "node-1.lan"), "node-1.lan", ""},
		{"another name", a.server(t, "node-2.lan"), "node-1.lan", "certificate is valid for node-2.lan, not node-1.lan"},
		{"another IP address", a.server(t, "10.0.0.1"), "127.0.0.1", "certificate is valid for 10.0.0.1, not 127.0.0.1"},
		{"a name in the common name only", a.server(t), "server", "doesn't contain any IP SANs"},
		{"no name to check", a.server(t, "127.0.0.1"), "", "without the engine's name"},
		{"another CA", other.server(t, "127.0.0.1"), "127.0.0.1", "certificate signed by unknown authority"},
		{"an expired certificate", a.issue(t, t.TempDir(), expired), "127.0.0.1", "certificate has expired"},
		{"a client's certificate", a.client(t, "eve"), "127.0.0.1", "certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := exchange(t, certSourceOf(t, tt.engine).serverConfig(false), client.clientConfig(true, tt.server))
			if tt.want == "" {
				if err != nil {
					t.Errorf("engine refused: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Fatalf("engine believed, or for another reason: %v, want %s", err, tt.want)
			}
			if tt.name != "a name in the common name only" && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want %q in it", err, tt.want)
			}
			var bad *tls.CertificateVerificationError
			if tt.server != "" && !errors.As(err, &bad) {
				t.Errorf("error is a %T, want a *tls.CertificateVerificationError", err)
			}
		})
	}
}

func TestCertSourceReadsChangedFilesForNewConnections(t *testing.T) {
	t.Parallel()
	a := testCA(t)
	files := a.server(t, "old.lan")
	log, logged := testLog()
	source, err := newCertSource(log, "client", files)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	tick, reload, done := make(chan time.Time), make(chan struct{}), make(chan struct{})
	go func() { source.follow(ctx, tick, reload); close(done) }()
	// A tick is taken when the one before is dealt with.
	look := func() {
		for range 3 {
			tick <- time.Now()
		}
	}
	server, client := source.serverConfig(true), certSourceOf(t, a.client(t, "ann"))
	reaches := func(name string) bool {
		_, served, err := exchange(t, server, client.clientConfig(true, name))
		return served == nil && err == nil
	}

	look()
	if !reaches("old.lan") || logged.count("certificates read") != 0 {
		t.Fatal("the first certificate is not in use, or was read twice")
	}
	a.issue(t, filepath.Dir(files.cert), serverTemplate("new.lan"))
	look()
	if !reaches("new.lan") || reaches("old.lan") {
		t.Error("the new certificate is not in use")
	}

	writeFile(t, files.cert, "garbage")
	look()
	look()
	if !reaches("new.lan") {
		t.Error("a bad file put the good certificate out of use")
	}
	if n := logged.count("certificates not used, the old ones stay"); n != 1 {
		t.Errorf("a bad file was logged %d times, want once", n)
	}
	reload <- struct{}{}
	look()
	if n := logged.count("certificates not used, the old ones stay"); n != 2 {
		t.Errorf("a bad file was logged %d times after a reload by hand, want 2", n)
	}

	expired := serverTemplate("expired.lan")
	expired.NotAfter = time.Now().Add(-time.Minute)
	a.issue(t, filepath.Dir(files.cert), expired)
	look()
	if !reaches("new.lan") || logged.count("renew it") != 1 {
		t.Error("an expired file put the good certificate out of use, or was not logged once")
	}

	// The clients' CA changes: yesterday's client is out.
	a.issue(t, filepath.Dir(files.cert), serverTemplate("newest.lan"))
	other := testCA(t)
	text, err := os.ReadFile(other.file)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, a.file, string(text))
	reload <- struct{}{}
	tick <- time.Now()
	tick <- time.Now()
	if reaches("newest.lan") {
		t.Error("a client of the old CA is still admitted")
	}
	cancel()
	<-done
}

func TestCertSourceClientReloadsItsCA(t *testing.T) {
	t.Parallel()
	old, next := testCA(t), testCA(t)
	client := certSourceOf(t, certFiles{ca: old.file})
	cfg := client.clientConfig(true, "node-1")
	engine := certSourceOf(t, next.server(t, "node-1")).serverConfig(false)
	if _, _, err := exchange(t, engine, cfg); err == nil {
		t.Fatal("an engine of an unknown CA is believed")
	}
	text, err := os.ReadFile(next.file)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, old.file, string(text))
	if err := client.reload(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := exchange(t, engine, cfg); err != nil {
		t.Errorf("engine of the new CA: %v", err)
	}
}

func TestCertSourceWarnsOfExpiryOnceADay(t *testing.T) {
	t.Parallel()
	a := testCA(t)
	end := time.Now().Add(31 * 24 * time.Hour)
	template := serverTemplate("localhost")
	template.NotAfter = end
	log, logged := testLog()
	source, err := newCertSource(log, "client", a.issue(t, t.TempDir(), template))
	if err != nil {
		t.Fatal(err)
	}
	if got := source.expires(); got.Sub(end).Abs() > time.Second {
		t.Errorf("expires() = %v, want %v", got, end)
	}
	steps := []struct {
		before     time.Duration
		soon, over int
	}{
		{31 * 24 * time.Hour, 0, 0},
		{30 * 24 * time.Hour, 1, 0},
		{30*24*time.Hour - time.Hour, 1, 0},
		{29 * 24 * time.Hour, 2, 0},
		{-time.Hour, 2, 1},
		{-2 * time.Hour, 2, 1},
	}
	for _, s := range steps {
		source.warnExpiry(end.Add(-s.before))
		soon, over := logged.count("certificate expires soon"), logged.count("certificate has expired")
		if soon != s.soon || over != s.over {
			t.Errorf("%v before its end: %d warnings and %d errors, want %d and %d", s.before, soon, over, s.soon, s.over)
		}
	}
}

func TestNewCertSourceNamesTheBadFile(t *testing.T) {
	t.Parallel()
	a := testCA(t)
	good, other, dir := a.server(t, "localhost"), a.server(t, "localhost"), t.TempDir()
	empty, locked := filepath.Join(dir, "empty.pem"), filepath.Join(dir, "locked.pem")
	writeFile(t, empty, "")
	writePEM(t, locked, "ENCRYPTED PRIVATE KEY", []byte("x"))
	missing := filepath.Join(dir, "missing.pem")
	tests := []struct {
		name  string
		files certFiles
		want  string
	}{
		{"a CA file that is not there", certFiles{ca: missing}, "client TLS: CA file " + missing + " does not exist, check the path"},
		{"an empty CA file", certFiles{ca: empty}, "client TLS: certificate file " + empty + " holds no certificate, expected PEM text with BEGIN CERTIFICATE"},
		{"a key without a certificate", certFiles{key: good.key}, `client TLS: certificate "" and key "` + good.key + `" go together, give both`},
		{"a key file that is not there", certFiles{cert: good.cert, key: missing}, "client TLS: key file " + missing + " does not exist, check the path"},
		{"an encrypted key", certFiles{cert: good.cert, key: locked}, "client TLS: key " + locked + " is encrypted, decrypt it with: openssl pkey -in " + locked},
		{"another certificate's key", certFiles{cert: good.cert, key: other.key}, "client TLS: certificate " + good.cert + " with key " + other.key + ": tls: private key does not match public key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := newCertSource(slog.New(slog.DiscardHandler), "client", tt.files)
			if err == nil || err.Error() != tt.want {
				t.Errorf("newCertSource = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestParseListen(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in     string
		secure bool
		want   string // an error starts with "listen address"
	}{
		{"tcp://127.0.0.1:2375", false, "tcp://127.0.0.1:2375"},
		{"127.0.0.1:4243", false, "tcp://127.0.0.1:4243"},
		{"127.0.0.1", true, "tcp://127.0.0.1:2376"},
		{":2375", false, "tcp://:2375"},
		{"tcp://", true, "tcp://:2376"},
		{"tcp://:0", false, "tcp://:0"},
		{"[::1]:2375", false, "tcp://[::1]:2375"},
		{"::1", false, "tcp://[::1]:2375"},
		{"localhost", false, "tcp://localhost:2375"},
		{"unix:///run/swarmlite.sock", true, "unix:///run/swarmlite.sock"},
		{"", false, `listen address "": expected tcp://host:port or unix:///path`},
		{"/run/s.sock", false, `listen address "/run/s.sock": a socket is written unix:///run/s.sock`},
		{"fd://3", false, `listen address "fd://3": scheme "fd" is unknown, expected tcp://host:port or unix:///path`},
		{":99999", false, `listen address ":99999": port out of range`},
		{"2375", false, `listen address "2375": "2375" is not an IP address`},
	}
	for _, tt := range tests {
		got, err := parseListen(tt.in, tt.secure)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("parseListen(%q, %v) = %s, want %s", tt.in, tt.secure, got, tt.want)
		}
	}
}

func TestCheckListenRefusesPlainTCPBeyondLoopback(t *testing.T) {
	t.Parallel()
	lookup := func(host string) ([]string, error) {
		addresses, ok := map[string][]string{
			"localhost": {"::1", "127.0.0.1"}, "box": {"127.0.1.1", "10.0.0.1"}, "none": {},
		}[host]
		if !ok {
			return nil, errors.New("no such host")
		}
		return addresses, nil
	}
	tests := []struct {
		addr            string
		local, resolves bool
	}{
		{"tcp://127.0.0.1:2375", true, true},
		{"tcp://127.8.9.1:2375", true, true},
		{"tcp://[::1]:2375", true, true},
		{"tcp://[::ffff:127.0.0.1]:2375", true, true},
		{"tcp://localhost:2375", true, true},
		{"unix:///run/s.sock", true, true},
		{"tcp://:2375", false, true},
		{"tcp://0.0.0.0:2375", false, true},
		{"tcp://[::]:2375", false, true},
		{"tcp://10.0.0.1:2375", false, true},
		{"tcp://box:2375", false, true},
		{"tcp://none:2375", false, true},
		{"tcp://nosuch:2375", false, false},
	}
	for _, tt := range tests {
		if warn, err := checkReach(tt.addr, false, false, lookup); warn || (err == nil) != tt.local {
			t.Errorf("checkListen(%s) = %v, %v, want an error: %v", tt.addr, warn, err, !tt.local)
		}
		if warn, err := checkReach(tt.addr, true, false, lookup); warn || err != nil {
			t.Errorf("checkListen(%s, verify) = %v, %v, want neither", tt.addr, warn, err)
		}
		if warn, err := checkReach(tt.addr, false, true, lookup); warn == (tt.local || !tt.resolves) || (err == nil) != tt.resolves {
			t.Errorf("checkListen(%s, insecure) = %v, %v, want warn %v", tt.addr, warn, err, !tt.local)
		}
	}
	want := "listen on tcp://:2375: whoever can reach it would be root on every node; use -tlsverify, a loopback address, or -insecure to allow it"
	if _, err := checkListen("tcp://:2375", false, false); err == nil || err.Error() != want {
		t.Errorf("checkListen = %v, want %s", err, want)
	}
}

func TestListenOnATakenPort(t *testing.T) {
	t.Parallel()
	l, err := listen(t.Context(), "tcp://127.0.0.1:0", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := "tcp://" + l.Addr().String()
	want := "listen on " + addr + ": address already in use; choose another with -H, or stop what listens there"
	if _, err := listen(t.Context(), addr, nil, nil); err == nil || err.Error() != want {
		t.Errorf("listen = %v, want %s", err, want)
	}
}

func TestListenOnASocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	l, err := listen(t.Context(), "unix://"+path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket is %v, %v, want it for its owner only", info.Mode(), err)
	}

	// In use: never stolen.
	want := "listen on unix://" + path + ": address already in use; choose another with -H, or stop what listens there"
	if _, err := listen(t.Context(), "unix://"+path, nil, nil); err == nil || err.Error() != want {
		t.Errorf("listen on a live socket = %v, want %s", err, want)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the live socket no longer answers: %v", err)
	}
	_ = conn.Close()

	// Left behind by a crash: replaced. A clean stop takes it away.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if l, err = listen(t.Context(), "unix://"+path, nil, nil); err != nil {
		t.Fatalf("listen on a dead socket: %v", err)
	}
	_ = l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after a clean stop: %v", err)
	}
}

func TestListenLeavesOtherFilesAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link, datagram := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "datagram")
	writeFile(t, file, "precious")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagram, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, path := range []string{file, link, datagram, dir} {
		if _, err := listen(t.Context(), "unix://"+path, nil, nil); err == nil {
			t.Errorf("listen on %s: no error", path)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("listen took %s away: %v", path, err)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	want := "listen on unix://" + dir + "/no/s.sock: its directory does not exist; make it first, or choose another path with -H"
	if _, err := listen(t.Context(), "unix://"+dir+"/no/s.sock", nil, nil); err == nil || err.Error() != want {
		t.Errorf("listen = %v, want %s", err, want)
	}
}

func TestBindGivesTheSocketTheModeOfItsDescriptor(t *testing.T) {
	t.Parallel()
	// What listen relies on: the chmod behind bind would come too late.
	path := filepath.Join(t.TempDir(), "s.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Fchmod(fd, 0o600); err != nil {
		t.Fatalf("no mode can be set on an unbound socket: %v", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("bind made %v, %v, want 0600", info.Mode(), err)
	}
}
