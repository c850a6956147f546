package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// portRelay makes published ports reachable on the manager's own address, for
// clients that connect to the host of DOCKER_HOST and ignore what inspect says.
// Which port leads where is in the table relays; here are only the sockets.
type portRelay struct {
	log   *slog.Logger
	store *store
	host  string // to listen on; "" = every address
	shown string // the same, as lists and inspect show it

	mu   sync.Mutex // one sync at a time
	open map[relayKey]*relaySocket
}

type relayKey struct {
	protocol string
	port     int
}

// relaySocket is one open port of the manager's.
type relaySocket struct {
	target string // host:port on the node
	close  func()
}

// udpIdle ends a UDP conversation in which nothing was said for this long.
const udpIdle = 90 * time.Second

// newPortRelay takes the manager's first TCP listen address as its own.
func newPortRelay(log *slog.Logger, s *store, listening []string) (*portRelay, error) {
	for _, addr := range listening {
		host, ok := strings.CutPrefix(addr, "tcp://")
		if !ok {
			continue
		}
		host, _, err := net.SplitHostPort(host)
		if err != nil {
			return nil, err
		}
		p := &portRelay{log: log, store: s, host: host, shown: host, open: map[relayKey]*relaySocket{}}
		if host == "" || net.ParseIP(host) == nil || net.ParseIP(host).IsUnspecified() {
			p.shown = "0.0.0.0"
		}
		return p, nil
	}
	return nil, errNoRelayAddress
}

var errNoRelayAddress = errors.New("-relay-ports needs a tcp:// address to listen on: name one with -H")

// run keeps the sockets as the rows say, until ctx ends.
func (p *portRelay) run(ctx context.Context, changed <-chan struct{}) {
	for {
		if err := p.sync(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("port relays not brought up to date", "err", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, s := range p.open {
				s.close()
			}
			return
		}
	}
}

// wantedRelay is a published port of a running container.
type wantedRelay struct {
	container    int64
	protocol, ip string
	port         int // on the node
	node         string
	listen       int // its row's number; 0: none yet
	target       string
}

// sync gives every published port of a running container a port of the manager's:
// its own number if that is free, else another. Numbers last as long as the container runs.
func (p *portRelay) sync(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted, err := p.store.wantedRelays(ctx)
	if err != nil {
		return err
	}
	keep := map[relayKey]bool{}
	var fresh []*wantedRelay
	for _, w := range wanted {
		if w.listen == 0 {
			fresh = append(fresh, w)
			continue
		}
		keep[relayKey{w.protocol, w.listen}] = true
	}
	for key, s := range p.open {
		if !keep[key] {
			s.close()
			delete(p.open, key)
		}
	}
	for _, w := range wanted {
		key := relayKey{w.protocol, w.listen}
		if s := p.open[key]; w.listen == 0 || s != nil && s.target == w.target {
			continue
		} else if s != nil {
			s.close()
			delete(p.open, key)
		}
		if err := p.listen(ctx, w, w.listen); err != nil {
			p.log.Error("port not relayed", "port", w.listen, "protocol", w.protocol, "node", w.node, "err", err)
		}
	}
	for _, w := range fresh {
		if err := p.start(ctx, w); err != nil {
			p.log.Error("port not relayed", "port", w.port, "protocol", w.protocol, "node", w.node, "err", err)
		}
	}
	return nil
}

// start opens a port for w, writes its row, and closes it again if that fails.
func (p *portRelay) start(ctx context.Context, w *wantedRelay) error {
	if err := p.choose(ctx, w); err != nil {
		return err
	}
	err := p.store.write(ctx, func(t *tx) error {
		_, err := t.exec("INSERT OR REPLACE INTO relays (protocol, listen_port, container, host_ip, host_port) VALUES (?,?,?,?,?)",
			w.protocol, w.listen, w.container, w.ip, w.port)
		return err
	})
	if err != nil {
		key := relayKey{w.protocol, w.listen}
		p.open[key].close()
		delete(p.open, key)
	}
	return err
}

// choose opens w's own number, else another of the range that was asked for, or any if
// none was: one that was not promised to a container that has not been started yet.
// Where all are promised that does not count.
func (p *portRelay) choose(ctx context.Context, w *wantedRelay) error {
	ports, err := p.store.askedPorts(ctx, w)
	if err != nil {
		return err
	}
	var passed []relayKey // kept open meanwhile, or the kernel might give them again
	closePassed := func() {
		for _, key := range passed {
			p.open[key].close()
			delete(p.open, key)
		}
		passed = nil
	}
	defer closePassed()
	for _, kept := range []bool{true, false} {
		for _, port := range ports {
			if err = p.listen(ctx, w, port); err != nil {
				continue
			}
			if !kept || !p.promised(ctx, w) {
				return nil
			}
			passed = append(passed, relayKey{w.protocol, w.listen})
		}
		closePassed()
	}
	return err
}

// askedPorts are the numbers that w may have on the manager, its node's first; 0 stands
// for any that is free.
func (s *store) askedPorts(ctx context.Context, w *wantedRelay) (ports []int, err error) {
	ports = []int{w.port}
	var first, last int
	err = s.get(ctx, "SELECT first_port, last_port FROM port_ranges WHERE container = ?1 AND protocol = ?2 AND ?3 BETWEEN first_port AND last_port",
		[]any{w.container, w.protocol, w.port}, &first, &last)
	if errors.Is(err, errNotFound) {
		return append(ports, make([]int, 20)...), nil
	}
	for port := first; port <= last && err == nil; port++ {
		if port != w.port {
			ports = append(ports, port)
		}
	}
	return ports, err
}

// promised tells whether w's number is to be another container's: one that was made and
// not started yet, or whose create is under way.
func (p *portRelay) promised(ctx context.Context, w *wantedRelay) (found bool) {
	err := p.store.get(ctx, `SELECT EXISTS (SELECT 1 FROM ports p LEFT JOIN containers c ON c.id = p.container
		WHERE p.protocol = ?1 AND p.host_port = ?2 AND p.last_port = ?2 AND p.container IS NOT ?3 AND coalesce(c.state, 'created') = 'created')`,
		[]any{w.protocol, w.listen, w.container}, &found)
	if err != nil {
		p.log.Warn("promised ports not read", "err", err)
	}
	return found
}

// listen opens port, or any when it is 0, and notes its number in w.
func (p *portRelay) listen(ctx context.Context, w *wantedRelay, port int) error {
	if p.open[relayKey{w.protocol, port}] != nil {
		return fmt.Errorf("port %d is relayed already", port)
	}
	addr := net.JoinHostPort(p.host, strconv.Itoa(port))
	s := &relaySocket{target: w.target}
	if w.protocol == "udp" {
		conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
		if err != nil {
			return err
		}
		w.listen = conn.LocalAddr().(*net.UDPAddr).Port
		s.close = func() { conn.Close() }
		go relayUDP(conn, w.target)
	} else {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		w.listen = l.Addr().(*net.TCPAddr).Port
		s.close = func() { l.Close() }
		go relayTCP(l, w.target)
	}
	p.open[relayKey{w.protocol, w.listen}] = s
	return nil
}

// relayTCP serves connections until l is closed; those that are open go on.
func relayTCP(l net.Listener, target string) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond) // out of descriptors: give connections time to end
			continue
		}
		go func() {
			defer client.Close()
			server, err := net.DialTimeout("tcp", target, dialWait)
			if err != nil {
				return
			}
			defer server.Close()
			up := make(chan struct{})
			go func() {
				defer close(up)
				io.Copy(server, client)
				closeWrite(server)
			}()
			io.Copy(client, server)
			closeWrite(client)
			<-up
		}()
	}
}

// relayUDP passes datagrams, with one socket towards the node for each client, so
// that answers find their way back.
func relayUDP(in net.PacketConn, target string) {
	var mu sync.Mutex
	talks := map[string]net.Conn{}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := in.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			mu.Lock()
			defer mu.Unlock()
			for _, t := range talks {
				t.Close()
			}
			return
		}
		if err != nil {
			continue // an earlier datagram was refused by its receiver
		}
		mu.Lock()
		talk := talks[from.String()]
		if talk == nil {
			if talk, err = net.Dial("udp", target); err != nil {
				mu.Unlock()
				continue
			}
			talks[from.String()] = talk
			go func() {
				answers(in, talk, from)
				mu.Lock()
				delete(talks, from.String())
				mu.Unlock()
				talk.Close()
			}()
		}
		mu.Unlock()
		talk.SetReadDeadline(time.Now().Add(udpIdle))
		talk.Write(buf[:n])
	}
}

// answers passes datagrams back until the conversation is idle.
func answers(to net.PacketConn, talk net.Conn, client net.Addr) {
	buf := make([]byte, 64<<10)
	for {
		n, err := talk.Read(buf)
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			to.WriteTo(buf[:n], client)
		}
	}
}

// wantedRelays lists the published ports of running containers, with their rows'
// numbers, after dropping the rows of those that run no more. Ports of an engine on
// a local socket need no relay, they are here already; those on a node's loopback
// can have none. A copy that is to take a container's place waits for its numbers.
func (s *store) wantedRelays(ctx context.Context) (list []*wantedRelay, err error) {
	err = s.write(ctx, func(t *tx) error {
		list = nil
		if _, err := t.exec(`DELETE FROM relays WHERE NOT EXISTS (SELECT 1 FROM ports p JOIN containers c ON c.id = p.container
			WHERE p.container = relays.container AND p.protocol = relays.protocol AND p.host_port = relays.host_port
			  AND p.host_ip = relays.host_ip AND c.state <> 'created')`); err != nil {
			return err
		}
		rows, err := t.query(`SELECT p.container, p.protocol, p.host_ip, p.host_port, n.name, n.ip, coalesce(r.listen_port, 0)
			  FROM ports p JOIN containers c ON c.id = p.container JOIN nodes n ON n.id = p.node_id
			  LEFT JOIN relays r ON r.container = p.container AND r.protocol = p.protocol AND r.host_port = p.host_port AND r.host_ip = p.host_ip
			 WHERE p.protocol IN ('tcp', 'udp') AND c.state <> 'created' AND n.ip <> ''
			   AND p.host_ip NOT LIKE '127.%' AND p.host_ip NOT IN ('::1', 'host')
			   AND NOT EXISTS (SELECT 1 FROM moves m WHERE m.copy_id = c.container_id AND m.step <> 'done')
			 ORDER BY p.id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			w := &wantedRelay{}
			var nodeIP string
			if err := rows.Scan(&w.container, &w.protocol, &w.ip, &w.port, &w.node, &nodeIP, &w.listen); err != nil {
				return err
			}
			host := w.ip
			if host == "" {
				host = nodeIP
			}
			w.target = net.JoinHostPort(host, strconv.Itoa(w.port))
			list = append(list, w)
		}
		return rows.Err()
	})
	return list, err
}

// relayedPort is where a container's published port is reached on the manager.
type relayedPort struct {
	protocol, ip string
	port         int
}

// relayed reads a container's relays: port on the node → port of the manager.
func (s *store) relayed(ctx context.Context, containerID string) (map[relayedPort]int, error) {
	rows, err := s.query(ctx, "SELECT r.protocol, r.host_ip, r.host_port, r.listen_port FROM relays r JOIN containers c ON c.id = r.container WHERE c.container_id = ?", containerID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	ports := map[relayedPort]int{}
	for rows.Next() {
		var k relayedPort
		var listen int
		if err := rows.Scan(&k.protocol, &k.ip, &k.port, &listen); err != nil {
			return nil, err
		}
		ports[k] = listen
	}
	return ports, rows.Err()
}

// shownEntryPorts rewrites a list entry's Ports to the manager's.
func (p *portRelay) shownEntryPorts(raw json.RawMessage, nodeIP string, relayed map[relayedPort]int) json.RawMessage {
	var ports []json.RawMessage
	if json.Unmarshal(raw, &ports) != nil {
		return raw
	}
	for i := range ports {
		var e entryPort
		o, err := parseObject(ports[i])
		if err != nil || json.Unmarshal(ports[i], &e) != nil {
			return raw
		}
		if listen, ok := relayed[relayedPort{e.Type, plainIP(e.IP, nodeIP), int(e.PublicPort)}]; ok {
			ports[i] = o.with("IP", p.shown).with("PublicPort", listen).bytes()
		}
	}
	return json.RawMessage(jsonText(ports))
}

// plainIP undoes the node's address that a shown port has for "every address".
func plainIP(ip, nodeIP string) string {
	if ip == nodeIP {
		return ""
	}
	return everyIP(ip)
}

// allRelayed reads every container's relays, by container ID.
func (s *store) allRelayed(ctx context.Context) (map[string]map[relayedPort]int, error) {
	rows, err := s.query(ctx, "SELECT c.container_id, r.protocol, r.host_ip, r.host_port, r.listen_port FROM relays r JOIN containers c ON c.id = r.container")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]map[relayedPort]int{}
	for rows.Next() {
		var id string
		var k relayedPort
		var listen int
		if err := rows.Scan(&id, &k.protocol, &k.ip, &k.port, &listen); err != nil {
			return nil, err
		}
		if all[id] == nil {
			all[id] = map[relayedPort]int{}
		}
		all[id][k] = listen
	}
	return all, rows.Err()
}
