package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// Changed files count after two looks that agree, so within 8 s (FAULTS S4: 10 s).
	certInterval  = 4 * time.Second
	expiryWarning = 30 * 24 * time.Hour
)

// certFiles are paths of PEM files. ca may hold several certificates, cert a
// chain. An empty path means there is none; cert and key come together.
type certFiles struct{ ca, cert, key string }

// certSource serves what is in its files, and reads them again when they change.
type certSource struct {
	log     *slog.Logger
	what    string // "client" or "engine": whom it speaks TLS with, for the log
	files   certFiles
	current atomic.Pointer[certSet]
	changed func()               // called when other certificates are in use; nil: nobody cares
	read    [3]fileLook          // the files as first read
	warned  map[string]time.Time // by certificate: when its expiry was last logged
}

// certSet is one reading of the files; it never changes.
type certSet struct {
	pool *x509.CertPool   // never nil: an empty one trusts nobody, nil would trust the system's CAs
	pair *tls.Certificate // nil without a certificate
	all  []namedCert      // for expiry

	revoked map[revocation]bool // of clients
}

type namedCert struct {
	file string
	*x509.Certificate
}

// newCertSource reads f and fails with the name of a file that is no good.
// An expired certificate is logged, not refused: who listens on a socket as well
// still gets in, and a renewed file is picked up.
func newCertSource(log *slog.Logger, what string, f certFiles) (*certSource, error) {
	c := &certSource{log: log, what: what, files: f, read: f.look(), warned: map[string]time.Time{}}
	set, err := f.load()
	if err != nil {
		return nil, fmt.Errorf("%s TLS: %w", what, err)
	}
	c.current.Store(set)
	c.warnExpiry(time.Now())
	return c, nil
}

func (f certFiles) look() [3]fileLook {
	return [3]fileLook{lookAt(f.ca), lookAt(f.cert), lookAt(f.key)}
}

func (f certFiles) load() (*certSet, error) {
	set := &certSet{pool: x509.NewCertPool()}
	if f.ca != "" {
		text, err := readPEM("CA", f.ca)
		if err != nil {
			return nil, err
		}
		authorities, err := parseCertificates(f.ca, text)
		if err != nil {
			return nil, err
		}
		for _, a := range authorities {
			set.pool.AddCert(a.Certificate)
		}
		set.all = append(set.all, authorities...)
		if set.revoked, err = parseRevocations(f.ca, text, authorities); err != nil {
			return nil, err
		}
	}
	if f.cert == "" && f.key == "" {
		return set, nil
	}
	if f.cert == "" || f.key == "" {
		return nil, fmt.Errorf("certificate %q and key %q go together, give both", f.cert, f.key)
	}
	cert, err := readPEM("certificate", f.cert)
	if err != nil {
		return nil, err
	}
	chain, err := parseCertificates(f.cert, cert)
	if err != nil {
		return nil, err
	}
	key, err := readPEM("key", f.key)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(key), "ENCRYPTED") {
		return nil, fmt.Errorf("key %s is encrypted, decrypt it with: openssl pkey -in %s", f.key, f.key)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	set.pair, set.all = &pair, append(chain, set.all...)
	return set, nil
}

// readPEM reads the file at path; what it should hold is for the error.
func readPEM(what, path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s file %s does not exist, check the path", what, path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%s file %s: permission denied, let user %d read it", what, path, os.Geteuid())
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return text, nil
}

// parseCertificates reads every certificate in text, and refuses text with none.
// (x509.CertPool.AppendCertsFromPEM skips those it can not read.)
func parseCertificates(file string, text []byte) ([]namedCert, error) {
	var certs []namedCert
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate file %s: %w", file, err)
		}
		certs = append(certs, namedCert{file, cert})
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("certificate file %s holds no certificate, expected PEM text with BEGIN CERTIFICATE", file)
	}
	return certs, nil
}

// serverConfig is for a listener towards clients. With verify a client must show
// a certificate for client authentication, signed by the CA of these files.
func (c *certSource) serverConfig(verify bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// A fresh configuration each time, so that a reload counts for the next connection.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			set := c.current.Load()
			if set.pair == nil {
				return nil, errors.New("no certificate to listen with")
			}
			cfg := &tls.Config{
				MinVersion:   tls.VersionTLS12,
				NextProtos:   []string{"http/1.1"},
				Certificates: []tls.Certificate{*set.pair},
				// A resumed session would outlive the CA that admitted it.
				SessionTicketsDisabled: true,
			}
			if verify {
				cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, set.pool
				cfg.VerifyConnection = func(state tls.ConnectionState) error { return c.current.Load().accept(state.PeerCertificates) }
			}
			return cfg, nil
		},
	}
}

// clientConfig is for connections to the engine known as serverName, a host name
// or an IP address, which must be in the engine's certificate (SAN). The engine
// must be signed by the CA of these files; it is shown our certificate, if any.
// Without verify any engine is believed: only for a node whose line says so.
func (c *certSource) clientConfig(verify bool, serverName string) *tls.Config {
	serverName, _, _ = strings.Cut(serverName, "%") // certificates know no IPv6 zones
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		ServerName: serverName,
		// Go's own check has the CA pool fixed; verifyEngine does the same with the newest.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return cmp.Or(c.current.Load().pair, &tls.Certificate{}), nil
		},
	}
	if verify {
		cfg.VerifyConnection = func(state tls.ConnectionState) error { return c.verifyEngine(state, serverName) }
	}
	return cfg
}

// verifyEngine checks an engine's certificate as crypto/tls does by default, and
// answers with the same errors.
func (c *certSource) verifyEngine(state tls.ConnectionState, serverName string) error {
	// x509 takes an empty name for "any name".
	if serverName == "" {
		return errors.New("certificate can not be checked without the engine's name")
	}
	options := x509.VerifyOptions{
		Roots:         c.current.Load().pool,
		DNSName:       serverName,
		Intermediates: x509.NewCertPool(),
	}
	for _, cert := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(cert)
	}
	if _, err := state.PeerCertificates[0].Verify(options); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}

// watch reads the files again when they change or when reload delivers, until ctx
// ends. Bad new files leave the old certificates in use, and the log says so once.
// It also logs certificates near their end, each once a day.
func (c *certSource) watch(ctx context.Context, reload <-chan struct{}) {
	ticker := time.NewTicker(certInterval)
	defer ticker.Stop()
	c.follow(ctx, ticker.C, reload)
}

func (c *certSource) follow(ctx context.Context, tick <-chan time.Time, reload <-chan struct{}) {
	var failed string // the last error logged, while the files are bad
	var files settled[[3]fileLook]
	files.reset(c.read)

	read := func(now time.Time) {
		err := c.reload(now)
		if err == nil {
			failed = ""
			c.log.Info("certificates read", "for", c.what, "expires", c.expires())
			if c.changed != nil {
				c.changed()
			}
			return
		}
		if err.Error() != failed {
			c.log.Error("certificates not used, the old ones stay", "for", c.what, "err", err)
		}
		failed = err.Error()
	}

	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick:
			c.warnExpiry(now)
			// Bad files are read each time: the cause may be gone without a trace in stat.
			if files.changed(c.files.look()) || failed != "" && files.still() {
				read(now)
			}
		case _, open := <-reload:
			if !open {
				reload = nil
				continue
			}
			failed = ""
			files.reset(c.files.look())
			read(time.Now())
		}
	}
}

func (c *certSource) reload(now time.Time) error {
	set, err := c.files.load()
	if err != nil {
		return err
	}
	if set.pair != nil && now.After(set.pair.Leaf.NotAfter) {
		return fmt.Errorf("certificate %s expired on %s, renew it", c.files.cert, set.pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	c.current.Store(set)
	return nil
}

// expires is when our own certificate ends; zero if there is none.
func (c *certSource) expires() time.Time {
	if pair := c.current.Load().pair; pair != nil {
		return pair.Leaf.NotAfter
	}
	return time.Time{}
}

func (c *certSource) warnExpiry(now time.Time) {
	for _, cert := range c.current.Load().all {
		last, known := c.warned[string(cert.Raw)]
		if now.Add(expiryWarning).Before(cert.NotAfter) || known && now.Sub(last) < 24*time.Hour {
			continue
		}
		c.warned[string(cert.Raw)] = now
		log, message := c.log.Warn, "certificate expires soon"
		if now.After(cert.NotAfter) {
			log, message = c.log.Error, "certificate has expired"
		}
		log(message, "for", c.what, "file", cert.file, "subject", cert.Subject.String(), "expires", cert.NotAfter)
	}
}

// parseListen reads an address to listen on: tcp://host:port, host:port, :port or
// unix:///path. Without a port it is 2375, or 2376 when secure. It returns
// tcp://host:port, with an empty host for every interface, or unix:///path.
func parseListen(s string, secure bool) (string, error) {
	trimmed := strings.TrimSpace(s)
	if trimmed == "" {
		return "", errors.New(`listen address "": expected tcp://host:port or unix:///path`)
	}
	address, err := readAddress(trimmed, defaultPort(secure), true)
	if err != nil {
		return "", fmt.Errorf("listen address %q: %w", s, err)
	}
	return address, nil
}

// checkListen refuses an address, as parseListen returns it, that other hosts can
// reach without a client certificate: who reaches it is root on every node
// (FAULTS S1). With insecure that is allowed, and warn tells the caller to say so.
func checkListen(addr string, tlsVerify, insecure bool) (warn bool, err error) {
	return checkReach(addr, tlsVerify, insecure, net.LookupHost)
}

func checkReach(addr string, tlsVerify, insecure bool, lookup func(string) ([]string, error)) (warn bool, err error) {
	hostPort, tcp := strings.CutPrefix(addr, "tcp://")
	if !tcp || tlsVerify {
		return false, nil
	}
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return false, fmt.Errorf("listen on %s: %w", addr, err)
	}
	local, err := isLoopback(host, lookup)
	if err != nil {
		return false, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if local {
		return false, nil
	}
	if !insecure {
		return false, fmt.Errorf("listen on %s: whoever can reach it would be root on every node; use -tlsverify, a loopback address, or -insecure to allow it", addr)
	}
	return true, nil
}

// isLoopback tells whether every address of host stays on this machine. An empty
// host means all interfaces.
func isLoopback(host string, lookup func(string) ([]string, error)) (bool, error) {
	if host == "" {
		return false, nil
	}
	addresses := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		if addresses, err = lookup(host); err != nil {
			return false, err
		}
	}
	for _, a := range addresses {
		ip, err := netip.ParseAddr(a)
		if err != nil {
			return false, err
		}
		if !ip.Unmap().IsLoopback() {
			return false, nil
		}
	}
	return len(addresses) > 0, nil
}

// listen opens an address as parseListen returns it, under TLS when cfg is given.
// A socket file is for its owner only. Of what is at its path only a socket that
// nobody answers on is removed, never another file or a socket in use.
func listen(ctx context.Context, addr string, cfg *tls.Config, limits *connLimits) (net.Listener, error) {
	l, err := openListener(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, listenCause(err))
	}
	l = limits.listener(l)
	if cfg != nil {
		return tls.NewListener(l, cfg), nil
	}
	return l, nil
}

func openListener(ctx context.Context, addr string) (net.Listener, error) {
	if hostPort, ok := strings.CutPrefix(addr, "tcp://"); ok {
		return new(net.ListenConfig).Listen(ctx, "tcp", hostPort)
	}
	path, ok := strings.CutPrefix(addr, "unix://")
	if !ok {
		return nil, errors.New("expected tcp://host:port or unix:///path")
	}
	if err := removeDeadSocket(ctx, path); err != nil {
		return nil, err
	}
	// On Linux bind gives the file the mode of the descriptor. So it is never open
	// to others, not even for a moment, without a change of the whole process's umask.
	private := func(_, _ string, conn syscall.RawConn) error {
		return conn.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
	}
	l, err := (&net.ListenConfig{Control: private}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil { // where Fchmod does nothing
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeDeadSocket makes room at path if a process left its socket there. It
// answers EADDRINUSE if somebody listens, or may be listening.
func removeDeadSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is not a socket is there; remove it, or choose another path with -H")
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return syscall.EADDRINUSE
	}
	// Only a refusal proves it dead. A full queue or missing rights do not.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w (%w)", syscall.EADDRINUSE, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// listenCause puts the usual reasons in words, with the next step.
func listenCause(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errors.New("address already in use; choose another with -H, or stop what listens there")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return errors.New("not an address of this machine; choose another with -H")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("permission denied; choose another address with -H, or run as a user who may")
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("its directory does not exist; make it first, or choose another path with -H")
	}
	return err
}
