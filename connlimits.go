package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"syscall"
)

const (
	maxConns      = 10_000 // of all clients at once, if there are descriptors for so many
	maxClient     = 1_000  // of one client address
	maxRefusals   = 100    // over that, and being told so; beyond them a connection is just closed
	keptFiles     = 100    // descriptors for the database, its readers, and what the manager itself asks
	keptPerNode   = 3      // the stream of events, a ping, and a list
	fewestClients = 16
)

// connLimits counts clients' connections (S21). One more than allowed is answered
// 503 once and closed, so that a client knows why. A Unix socket counts as a whole
// only: all of its clients are this machine's.
type connLimits struct {
	each int

	mu       sync.Mutex
	total    int
	open     int
	refusals int
	by       map[string]int
	secure   map[*countedConn]*tls.Conn
}

func newConnLimits(nodes int) *connLimits {
	l := &connLimits{each: maxClient, by: map[string]int{}, secure: map[*countedConn]*tls.Conn{}}
	l.leaveTo(nodes)
	return l
}

// leaveTo leaves descriptors to the database and to the engines of so many nodes: a
// client's call may take one of each. Who is in when they become more stays.
func (l *connLimits) leaveTo(nodes int) {
	total := maxConns
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) == nil && files.Cur < 1<<30 {
		total = max(fewestClients, min(total, (int(files.Cur)-keptFiles-keptPerNode*nodes)/2))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total = total
}

// admit counts a connection of client in. why is not empty for one that is to be
// refused; ok is false for one that is not even to be told so.
func (l *connLimits) admit(client string) (why string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case client != "" && l.by[client] >= l.each:
		why = fmt.Sprintf("over %d connections from %s", l.each, client)
	case l.open >= l.total:
		why = fmt.Sprintf("over %d connections", l.total)
	default:
		l.open++
		l.by[client]++
		return "", true
	}
	if l.refusals >= maxRefusals {
		return why, false
	}
	l.refusals++
	return why, true
}

func (l *connLimits) leave(c *countedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.secure, c)
	if c.refused != "" {
		l.refusals--
		return
	}
	l.open--
	if l.by[c.client]--; l.by[c.client] == 0 {
		delete(l.by, c.client)
	}
}

// recheck closes the connections of clients that would not be let in any more, with
// whatever they carry. One in the middle of its handshake is looked at when that is over.
func (l *connLimits) recheck(admits func([]*x509.Certificate) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, secure := range l.secure {
		go func() {
			if state := secure.ConnectionState(); state.HandshakeComplete && !admits(state.PeerCertificates) {
				c.Close()
			}
		}()
	}
}

// listener counts the connections of l; nil counts nothing.
func (l *connLimits) listener(inner net.Listener) net.Listener {
	if l == nil {
		return inner
	}
	return countedListener{inner, l}
}

type countedListener struct {
	net.Listener
	limits *connLimits
}

func (l countedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := ""
		if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			client = tcp.IP.String()
		}
		why, ok := l.limits.admit(client)
		if !ok {
			conn.Close()
			continue
		}
		return &countedConn{heldConn: heldConn{Conn: conn}, limits: l.limits, client: client, refused: why}, nil
	}
}

// countedConn is a client's connection; refused says why it is one too many.
type countedConn struct {
	heldConn
	limits  *connLimits
	client  string
	refused string
	once    sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.limits.leave(c) })
	return c.Conn.Close()
}

// NetConn is the socket below, for whoever looks into it.
func (c *countedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction only.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// refusedKey holds in a request's context why its connection is one too many.
type refusedKey struct{}

// noteConn is http.Server's ConnContext.
func noteConn(ctx context.Context, conn net.Conn) context.Context {
	secure, ok := conn.(*tls.Conn)
	if ok {
		conn = secure.NetConn()
	}
	c, counted := conn.(*countedConn)
	if !counted {
		return ctx
	}
	if ok {
		c.limits.mu.Lock()
		c.limits.secure[c] = secure
		c.limits.mu.Unlock()
	}
	ctx = context.WithValue(ctx, heldKey{}, &c.heldConn)
	if c.refused != "" {
		ctx = context.WithValue(ctx, refusedKey{}, c.refused)
	}
	return ctx
}
