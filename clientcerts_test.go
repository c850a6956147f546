package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// crl is a list, signed by a, of the certificates in these files.
func (a *ca) crl(t *testing.T, revoked ...certFiles) string {
	t.Helper()
	list := x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, f := range revoked {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: pair.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, &list, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func (a *ca) pem(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// certClient is a client with a certificate: a connection that it keeps, and a raw
// stream to a container that repeats what it is sent.
type certClient struct {
	conf         *tls.Config
	addr         string
	kept, stream net.Conn
	in, echo     *bufio.Reader
}

func newCertClient(t *testing.T, addr string, authority *ca, f certFiles, container string) *certClient {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		t.Fatal(err)
	}
	c := &certClient{conf: clientTLS(authority, pair), addr: addr}
	c.kept, c.stream = c.dial(t), c.dial(t)
	c.in, c.echo = bufio.NewReader(c.kept), bufio.NewReader(c.stream)
	if err := c.pings(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c.stream, "POST /containers/%s/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", container)
	resp, err := http.ReadResponse(c.echo, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("attach: %v %v", resp, err)
	}
	if err := c.echoes(); err != nil {
		t.Fatal(err)
	}
	return c
}

// clientTLS is for a client that believes authority and shows these certificates.
func clientTLS(authority *ca, shown ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(authority.cert)
	return &tls.Config{RootCAs: pool, Certificates: shown}
}

func (c *certClient) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", c.addr, c.conf)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// pings asks on the connection that is kept.
func (c *certClient) pings() error {
	if _, err := io.WriteString(c.kept, "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (c *certClient) echoes() error {
	if _, err := io.WriteString(c.stream, "hello\n"); err != nil {
		return err
	}
	line, err := c.echo.ReadString('\n')
	if err == nil && line != "hello\n" {
		err = fmt.Errorf("echo %q", line)
	}
	return err
}

// connects opens a new connection. A client in TLS 1.3 is done before the server has
// judged it, so it has to ask for something.
func (c *certClient) connects() error {
	conn, err := tls.Dial("tcp", c.addr, c.conf)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	io.WriteString(conn, "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
	_, err = http.ReadResponse(bufio.NewReader(conn), nil)
	return err
}

// Row 73 by a revocation list: what a certificate has opened is closed with it, and
// nobody else's connection is.
func TestF73ARevokedCertificateLosesItsStreams(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	hooked(e, "/attach$", func(conn *net.TCPConn, in io.Reader) {
		io.WriteString(conn, switching)
		io.Copy(conn, in)
	})
	f := newFront(t, e)
	id := f.make(t, "box", ttyBody)
	authority, other := testCA(t), testCA(t)
	server := authority.server(t, "127.0.0.1")
	server.ca = filepath.Join(t.TempDir(), "clients.pem")
	writeFile(t, server.ca, authority.pem(t))
	log, logs := testLog()
	certs, err := newCertSource(log, "client", server)
	if err != nil {
		t.Fatal(err)
	}
	certs.changed = func() { f.limits.recheck(certs.admits) }
	reload := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() { defer close(watched); certs.watch(ctx, reload) }()
	l, err := listen(ctx, "tcp://127.0.0.1:0", certs.serverConfig(true), f.limits)
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(f.api, f.log)
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-served; cancel(); <-watched })

	alice, bob := authority.client(t, "alice"), authority.client(t, "bob")
	a := newCertClient(t, l.Addr().String(), authority, alice, id)
	b := newCertClient(t, l.Addr().String(), authority, bob, id)
	read := func(text string) {
		t.Helper()
		writeFile(t, server.ca, text)
		for range 2 { // the second is taken when the first is dealt with
			reload <- struct{}{}
		}
	}
	goesOn := func(name string, c *certClient) {
		t.Helper()
		if err := errors.Join(c.connects(), c.pings(), c.echoes()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	ends := func(name string, c *certClient) {
		t.Helper()
		for what, ask := range map[string]func() error{"a new connection": c.connects, "a connection that was kept": c.pings, "a stream": c.echoes} {
			eventually(t, 20*time.Second, func() error {
				if err := ask(); err == nil {
					return fmt.Errorf("%s: %s goes on", name, what)
				}
				return nil
			})
		}
	}

	read(authority.pem(t) + other.crl(t, alice)) // somebody else's list
	goesOn("a list that the CA has not signed", a)
	if logs.count("its CA is not in the file, or has not signed it") == 0 {
		t.Error("a list of somebody else is not told")
	}
	read(authority.pem(t) + authority.crl(t))
	goesOn("an empty list", a)
	began := time.Now()
	read(authority.pem(t) + authority.crl(t, alice))
	ends("alice, revoked", a)
	faultTook(t, 73, "streams of a revoked certificate closed", time.Since(began), time.Minute)
	goesOn("bob", b)

	carol := other.client(t, "carol")
	read(other.pem(t)) // another CA altogether
	ends("bob, whose CA has gone", b)
	c := newCertClient(t, l.Addr().String(), authority, carol, id)
	goesOn("carol", c)
	read("nonsense")
	goesOn("carol, while the file is bad", c)
	if strings.Contains(f.logged(), "panic") {
		t.Error(f.logged())
	}
}
