package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

// errPortTaken refuses a fixed port that is in use somewhere in the cluster, or a range
// all of whose ports are: with -relay-ports the manager leads each to one container only.
type errPortTaken struct {
	port         hostPort
	holder, node string
}

func (e *errPortTaken) Error() string {
	if e.holder == "" {
		return fmt.Sprintf("all ports of %s are already allocated, and the manager relays each only once", e.port)
	}
	return fmt.Sprintf("port %s is already allocated to container %s on node %s, and the manager relays it only once", e.port, e.holder, e.node)
}

// portsFree finds out, in the transaction that places, whether fixed ports are
// free in the whole cluster, and one of each range; those of the container that is
// replaced are.
func (t *tx) portsFree(ports []hostPort, replaced string) error {
	for _, want := range ports {
		if want.ip == hostMode {
			continue
		}
		find := t.portHolder
		if want.first != want.last {
			find = t.rangeTaken
		}
		if err := find(want, replaced); err != nil {
			return err
		}
	}
	return nil
}

// portHolder returns an *errPortTaken that tells who has a fixed port.
func (t *tx) portHolder(want hostPort, replaced string) error {
	taken := &errPortTaken{port: want}
	err := t.get(`SELECT c.name, n.name FROM ports x JOIN containers c ON c.id = x.container JOIN nodes n ON n.id = c.node_id
		 WHERE x.protocol = ?1 AND x.host_port = ?2 AND x.host_ip <> 'host' AND c.container_id <> ?3
		UNION ALL SELECT c.name, n.name FROM relays r JOIN containers c ON c.id = r.container JOIN nodes n ON n.id = c.node_id
		 WHERE r.protocol = ?1 AND r.listen_port = ?2 AND c.container_id <> ?3
		UNION ALL SELECT r.name, n.name FROM ports x JOIN reservations r ON r.id = x.reservation JOIN nodes n ON n.id = r.node_id
		 WHERE x.protocol = ?1 AND x.host_port = ?2 AND x.host_ip <> 'host' LIMIT 1`, []any{want.protocol, want.first, replaced}, &taken.holder, &taken.node)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return taken
}

// rangeTaken returns an *errPortTaken if every port of a range is relayed, or promised
// to a container that is to be started; one with a range within this takes one of it.
func (t *tx) rangeTaken(want hostPort, replaced string) error {
	var taken int
	err := t.get(`SELECT count(DISTINCT taken) FROM (
		SELECT r.listen_port AS taken FROM relays r JOIN containers c ON c.id = r.container
		 WHERE r.protocol = ?1 AND r.listen_port BETWEEN ?2 AND ?3 AND c.container_id <> ?4
		UNION ALL SELECT iif(p.last_port = p.host_port, p.host_port, -p.id) FROM ports p LEFT JOIN containers c ON c.id = p.container
		 WHERE p.protocol = ?1 AND p.host_port >= ?2 AND p.last_port <= ?3 AND p.host_ip <> 'host'
		   AND coalesce(c.state, 'created') = 'created' AND coalesce(c.container_id, '') <> ?4)`,
		[]any{want.protocol, want.first, want.last, replaced}, &taken)
	if err == nil && taken > want.last-want.first {
		return &errPortTaken{port: want}
	}
	return err
}

// tryPorts refuses fixed ports that another program on the manager's host has.
func (p *portRelay) tryPorts(ctx context.Context, ports []hostPort) error {
	if taken := p.ofOthers(ctx, ports); taken != nil {
		return errorf(http.StatusConflict, "port %s is in use on the manager's host, which is to relay it: choose another", taken)
	}
	return nil
}

// ofOthers returns the first fixed port that another program on the manager's host has.
func (p *portRelay) ofOthers(ctx context.Context, ports []hostPort) *hostPort {
	for _, want := range ports {
		if want.first != want.last || want.ip == hostMode {
			continue
		}
		addr := net.JoinHostPort(p.host, strconv.Itoa(want.first))
		var in io.Closer
		var err error
		switch want.protocol {
		case "udp":
			in, err = new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
		case "tcp":
			in, err = new(net.ListenConfig).Listen(ctx, "tcp", addr)
		default:
			continue
		}
		p.mu.Lock()
		ours := p.open[relayKey{want.protocol, want.first}] != nil
		p.mu.Unlock()
		if err != nil && !ours { // ours: rows name the holder
			return &want
		}
		if err == nil {
			in.Close()
		}
	}
	return nil
}
