package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	askWait  = 5 * time.Second  // for an answer of the DNS
	askEvery = 30 * time.Second // dns:// addresses
	keepName = 5 * time.Minute  // the last good answer is used for so long while there is none (FAULTS F29)
)

// askName asks for the addresses of engines behind an address as readName returns it:
// A and AAAA records with its port, or SRV records.
func askName(ctx context.Context, r *net.Resolver, address string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	name := strings.TrimPrefix(address, "dns://")
	var found []string
	if host, port, err := net.SplitHostPort(name); err == nil {
		ips, err := lookUpIPs(ctx, r, host)
		if err != nil {
			return nil, err
		}
		for _, ip := range ips {
			found = append(found, "tcp://"+net.JoinHostPort(ip, port))
		}
		return found, nil
	}
	_, records, err := r.LookupSRV(ctx, "", "", name)
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		a, err := parseAddress(net.JoinHostPort(strings.TrimSuffix(record.Target, "."), strconv.Itoa(int(record.Port))), false)
		if err != nil {
			return nil, fmt.Errorf("SRV record of %s: %w", name, err)
		}
		found = append(found, a)
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) > maxAddresses {
		return nil, fmt.Errorf("more than %d addresses", maxAddresses)
	}
	return found, nil
}

// lookUpIPs returns the addresses of host, numeric, in one order always.
func lookUpIPs(ctx context.Context, r *net.Resolver, host string) ([]string, error) {
	ips, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	var list []string
	for _, ip := range ips {
		list = append(list, ip.Unmap().String())
	}
	return slices.Compact(list), nil
}

// location is where a host is on the network. A host that is given by name is looked up
// when its engine is connected to, and every connection goes to that one address while
// the engine lives: one name may lead to many hosts, and they are not the same node.
// Only the node's watcher calls find and stay.
type location struct {
	host     string // host:port, as the node is named
	named    bool   // host is no number
	resolver *net.Resolver
	numeric  atomic.Pointer[string] // host:port to dial; nil: host
	good     atomic.Int64           // monotonic, when the DNS last answered
}

// isName tells whether host:port holds no IP address.
func isName(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err != nil
}

// address is what to dial.
func (l *location) address() string {
	if a := l.numeric.Load(); a != nil {
		return *a
	}
	return l.host
}

// lookUp asks where the host is, and tells whether it still is where it was. Without an
// answer that is taken to be so for keepName.
func (l *location) lookUp(ctx context.Context) (addresses []string, still bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	host, port, err := net.SplitHostPort(l.host)
	if err != nil {
		return nil, false, err
	}
	was := l.numeric.Load()
	ips, err := lookUpIPs(ctx, l.resolver, host)
	if err != nil {
		if was != nil && time.Duration(monotonic()-l.good.Load()) < keepName {
			return []string{*was}, true, nil
		}
		return nil, false, err
	}
	for _, ip := range ips {
		addresses = append(addresses, net.JoinHostPort(ip, port))
	}
	l.good.Store(monotonic())
	return addresses, was != nil && slices.Contains(addresses, *was), nil
}

// find settles where the host is: where it was, if its name still leads there and a
// connection is taken, else at the first of its addresses that takes one.
func (l *location) find(ctx context.Context) error {
	if !l.named {
		return nil
	}
	addresses, still, err := l.lookUp(ctx)
	if err != nil {
		return err
	}
	if len(addresses) == 0 {
		return fmt.Errorf("%s has no address", l.host)
	}
	if still {
		addresses = append([]string{*l.numeric.Load()}, addresses...)
	}
	chosen := addresses[0]
	for _, a := range addresses[:min(len(addresses), maxTries)] {
		if len(addresses) == 1 {
			break
		}
		d := net.Dialer{Timeout: dialWait / maxTries}
		if conn, err := d.DialContext(ctx, "tcp", a); err == nil {
			conn.Close()
			chosen = a
			break
		}
	}
	l.numeric.Store(&chosen)
	return nil
}

// maxTries is how many addresses of a host are tried in one attempt to connect.
const maxTries = 6

// stay asks with every tick, and returns when the name does not lead any more to where
// the host is, or ctx ends.
func (l *location) stay(ctx context.Context, tick <-chan time.Time) error {
	for {
		select {
		case <-tick:
		case <-ctx.Done():
			return ctx.Err()
		}
		addresses, still, err := l.lookUp(ctx)
		switch {
		case still || ctx.Err() != nil:
		case err != nil:
			return fmt.Errorf("no answer about the host's name for %s: %w", keepName, err)
		default:
			return fmt.Errorf("the host's name leads to %s now", strings.Join(addresses, ", "))
		}
	}
}
