package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-connections/tlsconfig"
)

// managerFlags say where a running manager listens, for commands that change the cluster.
type managerFlags struct {
	host  string
	certs certFiles
}

// addManagerFlags gives a command the flags by which it finds a manager. What they do
// not say is read from the environment, as the docker command reads it.
func addManagerFlags(fs *flag.FlagSet, host string) *managerFlags {
	m := &managerFlags{}
	fs.StringVar(&m.host, host, "", "`ADDR` of the manager (default: DOCKER_HOST, else tcp://127.0.0.1:2375)")
	fs.StringVar(&m.certs.ca, "tlscacert", "", "`FILE` with the CA of the manager (default: ca.pem in DOCKER_CERT_PATH, with DOCKER_TLS_VERIFY)")
	fs.StringVar(&m.certs.cert, "tlscert", "", "`FILE` with the certificate shown to the manager (default: cert.pem there)")
	fs.StringVar(&m.certs.key, "tlskey", "", "`FILE` with its key (default: key.pem there)")
	return m
}

// managerClient calls a manager.
type managerClient struct {
	http       *http.Client
	base, addr string
}

// statusError is an answer of the manager's that is no success.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string { return e.message }

func (m *managerFlags) client() (*managerClient, error) {
	certs := m.certs
	if dir := os.Getenv("DOCKER_CERT_PATH"); certs == (certFiles{}) && os.Getenv("DOCKER_TLS_VERIFY") != "" {
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, err
			}
			dir = filepath.Join(home, ".docker")
		}
		certs = engineCertFiles(dir)
	}
	secure := certs != certFiles{}
	addr, err := parseAddress(cmp.Or(m.host, os.Getenv("DOCKER_HOST"), "tcp://127.0.0.1"), secure)
	if err != nil {
		return nil, fmt.Errorf("manager address %w", err)
	}
	scheme, host, _ := strings.Cut(addr, "://")
	network := scheme
	if scheme != "tcp" && scheme != "unix" {
		return nil, fmt.Errorf("manager address %q: expected tcp://host:port or unix:///path", addr)
	}
	c := &managerClient{addr: addr, base: "http://" + host}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialWait}).DialContext(ctx, network, host)
	}}
	switch {
	case scheme == "unix":
		c.base = "http://docker"
	case secure:
		c.base = "https://" + host
		transport.TLSClientConfig, err = tlsconfig.Client(tlsconfig.Options{CAFile: certs.ca, CertFile: certs.cert, KeyFile: certs.key, ExclusiveRootPools: true})
		if err != nil {
			return nil, err
		}
	}
	c.http = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return c, nil
}

// call sends in as JSON and reads the answer into out; both may be nil.
func (c *managerClient) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		body = bytes.NewReader([]byte(jsonText(in)))
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err // without our own path
		}
		return fmt.Errorf("ask the manager at %s: %w", c.addr, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return &statusError{resp.StatusCode, engineMessage(resp.Body)}
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("answer of the manager at %s: %w", c.addr, err)
	}
	return nil
}

// through calls with a running manager, or with the database of one that is stopped:
// where -db names it, or it lies here and nothing says where a manager listens.
func (m *managerFlags) through(ctx context.Context, db string, manager func(*managerClient) error, stopped func(*store) error) error {
	_, absent := os.Stat(cmp.Or(db, defaultDB))
	if db != "" && errors.Is(absent, fs.ErrNotExist) { // a slip: nobody would find there what is written
		return fmt.Errorf("state database %s: not there; name the manager's file with -db, or where it listens", db)
	}
	if db != "" || m.host == "" && os.Getenv("DOCKER_HOST") == "" && absent == nil {
		s, err := openStore(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)), cmp.Or(db, defaultDB))
		if err == nil {
			defer s.close()
			return stopped(s)
		}
		if !errors.Is(err, errInUse) {
			return err
		}
	}
	c, err := m.client()
	if err != nil {
		return err
	}
	return manager(c)
}
