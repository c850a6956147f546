package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer is a DNS server on loopback with answers of the test's own.
type dnsServer struct {
	*net.Resolver

	mu      sync.Mutex
	answers map[string][]string // "name." → IP addresses, or host:port for SRV
	broken  bool                // SERVFAIL to everything
}

func newDNSServer(t *testing.T) *dnsServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dnsServer{answers: map[string][]string{}}
	s.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := s.reply(buf[:n]); reply != nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return s
}

// say makes addresses the answer about name from now on.
func (s *dnsServer) say(name string, addresses ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[name+"."] = addresses
}

func (s *dnsServer) breakDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = down
}

func (s *dnsServer) reply(query []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	answers, known := s.answers[q.Name.String()]
	m.Response, m.Additionals = true, nil
	switch {
	case s.broken:
		m.RCode = dnsmessage.RCodeServerFailure
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range answers {
		header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, Type: q.Type}
		host, port, err := net.SplitHostPort(a)
		ip := net.ParseIP(a)
		var body dnsmessage.ResourceBody
		switch {
		case err == nil && q.Type == dnsmessage.TypeSRV:
			n, _ := strconv.Atoi(port)
			body = &dnsmessage.SRVResource{Port: uint16(n), Target: dnsmessage.MustNewName(host + ".")}
		case ip.To4() != nil && q.Type == dnsmessage.TypeA:
			body = &dnsmessage.AResource{A: [4]byte(ip.To4())}
		case ip != nil && ip.To4() == nil && q.Type == dnsmessage.TypeAAAA:
			body = &dnsmessage.AAAAResource{AAAA: [16]byte(ip)}
		default:
			continue
		}
		if !s.broken {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: body})
		}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}

func TestAskNameReadsAddressesAndSRVRecords(t *testing.T) {
	t.Parallel()
	dns := newDNSServer(t)
	dns.say("engines.lan", "10.0.0.9", "10.0.0.1", "fd00::7", "10.0.0.9")
	dns.say("_docker._tcp.lan", "b.lan:2376", "a.lan:4243")
	for name, want := range map[string]string{
		"dns://engines.lan:2375": "tcp://10.0.0.1:2375 tcp://10.0.0.9:2375 tcp://[fd00::7]:2375",
		"dns://_docker._tcp.lan": "tcp://a.lan:4243 tcp://b.lan:2376",
	} {
		got, err := askName(t.Context(), dns.Resolver, name)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("askName(%s) = %q, %v, want %s", name, got, err, want)
		}
	}
	var notFound *net.DNSError
	if got, err := askName(t.Context(), dns.Resolver, "dns://nowhere.lan:1"); !errors.As(err, &notFound) {
		t.Errorf("askName of an unknown name = %q, %v, want an error of the DNS", got, err)
	}
}

// sourcedFront is swarmlite whose nodes come from lines, with a DNS and a clock for it
// of the test's own.
type sourcedFront struct {
	*front
	*sources
	dns *dnsServer
	ask chan time.Time
}

func newSourcedFront(t *testing.T, db string, dns *dnsServer, lines ...nodeLine) *sourcedFront {
	t.Helper()
	s := &sourcedFront{dns: dns, ask: make(chan time.Time)}
	s.front = startFrontOver(t, db, nil, func(ns *nodes) { ns.resolver = dns.Resolver })
	s.sources = newSources(s.front.log, s.front.store, s.front.nodes, lines, nil)
	s.resolver = dns.Resolver
	s.named, s.joins = s.sources, newJoinLimits()
	if err := s.begin(s.base); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.run(s.base, s.ask) }()
	t.Cleanup(func() { s.end(); <-done })
	return s
}

// wants waits until these are the nodes' addresses and states.
func (s *sourcedFront) wants(t *testing.T, want string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		got := strings.ReplaceAll(s.rows(t, "SELECT replace(address, 'tcp://', '') || ' ' || state FROM nodes WHERE state <> 'removed' ORDER BY address"), "\n", ", ")
		if got != want {
			return fmt.Errorf("nodes are %q, want %q\n%s", got, want, s.rows(t, "SELECT address, step, error FROM nodes"))
		}
		return nil
	})
}

func TestNodesOfANameComeAndGoWithItsAnswers(t *testing.T) {
	t.Parallel()
	dns, e := newDNSServer(t), newFakeEngine(t, hostNamed("a"))
	port := strconv.Itoa(e.port)
	dns.say("engines.lan", "127.0.0.1", "127.0.0.3")
	db := filepath.Join(t.TempDir(), "swarmlite.db")
	line := nodeLine{address: "dns://engines.lan:" + port, labels: map[string]string{"zone": "a"}}
	t.Run("first run", func(t *testing.T) {
		f := newSourcedFront(t, db, dns, line)
		f.wants(t, "127.0.0.1:"+port+" healthy, 127.0.0.3:"+port+" unhealthy")
		if got := f.rows(t, "SELECT value, source FROM node_labels WHERE key = 'zone'"); !strings.Contains(got, "a|line") {
			t.Errorf("label of the line: %q", got)
		}
		if got := f.rows(t, "SELECT DISTINCT source FROM nodes"); got != line.address {
			t.Errorf("source = %q, want %s", got, line.address)
		}

		// An address has to be missing twice: an answer may have been cut short.
		dns.say("engines.lan", "127.0.0.1", "127.0.0.4")
		f.ask <- time.Time{}
		f.wants(t, "127.0.0.1:"+port+" healthy, 127.0.0.3:"+port+" unhealthy, 127.0.0.4:"+port+" unhealthy")
		f.ask <- time.Time{}
		f.wants(t, "127.0.0.1:"+port+" healthy, 127.0.0.4:"+port+" unhealthy")

		// F29: no answer changes nothing for five minutes, also over a restart.
		dns.breakDown(true)
		for range 2 { // the second is taken when the first is dealt with
			f.ask <- time.Time{}
		}
		f.wants(t, "127.0.0.1:"+port+" healthy, 127.0.0.4:"+port+" unhealthy")
	})
	f := newSourcedFront(t, db, dns, line)
	f.wants(t, "127.0.0.1:"+port+" healthy, 127.0.0.4:"+port+" unhealthy")
}

// F29, of a name that leads to many.
func TestNodesOfANameWithoutAnswerGoUnhealthyAfterFiveMinutes(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a probe")
	}
	t.Parallel()
	dns, e := newDNSServer(t), newFakeEngine(t)
	dns.say("engines.lan", "127.0.0.1")
	f := newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), dns, nodeLine{address: "dns://engines.lan:" + strconv.Itoa(e.port)})
	f.wants(t, "127.0.0.1:"+strconv.Itoa(e.port)+" healthy")
	dns.breakDown(true)
	f.front.nodes.disown("dns://engines.lan:"+strconv.Itoa(e.port), errors.New("server misbehaving")) // as vouch does when the time is up
	if problem := f.becomes(t, 20*time.Second, "unhealthy"); problem != "dns: server misbehaving" {
		t.Errorf("problem = %q", problem)
	}
	dns.breakDown(false)
	f.ask <- time.Time{}
	f.becomes(t, 20*time.Second, "healthy")
}

func TestVouchForANameEndsFiveMinutesAfterItsLastAnswer(t *testing.T) {
	t.Parallel()
	dns, e := newDNSServer(t), newFakeEngine(t)
	dns.say("engines.lan", "127.0.0.1")
	name := "dns://engines.lan:" + strconv.Itoa(e.port)
	f := startFrontOver(t, filepath.Join(t.TempDir(), "swarmlite.db"), nil, func(*nodes) {})
	s := newSources(f.log, f.store, f.nodes, []nodeLine{{address: name}}, nil)
	s.resolver = dns.Resolver
	if err := s.begin(f.base); err != nil {
		t.Fatal(err)
	}
	disowned := func() bool { return f.nodes.all()[0].disowned.Load() != nil }
	broken := map[string]found{name: {err: errors.New("no answer")}}
	s.heard(f.base, broken)
	s.names[name].good -= int64(keepName - time.Minute)
	if s.heard(f.base, broken); disowned() {
		t.Error("disowned after four minutes")
	}
	s.names[name].good -= int64(time.Minute)
	if s.heard(f.base, broken); !disowned() {
		t.Error("not disowned after five minutes")
	}
	if s.heard(f.base, s.ask(f.base, s.dnsNames())); disowned() {
		t.Error("disowned although the DNS answers")
	}
}

// F29, of a host's name: it is where it was for five minutes without an answer, and
// then nowhere.
func TestALocationIsKeptForFiveMinutesWithoutTheDNS(t *testing.T) {
	t.Parallel()
	dns := newDNSServer(t)
	dns.say("host.lan", "10.0.0.7")
	l := &location{host: "host.lan:2375", named: true, resolver: dns.Resolver}
	find := func(want string) {
		t.Helper()
		got := "error"
		if err := l.find(t.Context()); err == nil {
			got = l.address()
		}
		if got != want {
			t.Errorf("the host is at %s, want %s", got, want)
		}
	}
	stays := func(want string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tick, ended := make(chan time.Time), make(chan error, 1)
		go func() { ended <- l.stay(ctx, tick) }()
		got := "stays"
		for range 2 { // the second is taken when the first is dealt with
			select {
			case tick <- time.Time{}:
			case err := <-ended:
				got = err.Error()
				ended <- err
			}
		}
		if !strings.Contains(got, want) {
			t.Errorf("the host %s, want %s", got, want)
		}
	}
	find("10.0.0.7:2375")
	stays("stays")
	dns.say("host.lan", "10.0.0.6", "10.0.0.7")
	stays("stays") // one of several is enough
	dns.breakDown(true)
	l.good.Store(monotonic() - int64(keepName-time.Minute))
	find("10.0.0.7:2375")
	stays("stays")
	l.good.Store(monotonic() - int64(keepName))
	stays("no answer about the host's name")
	find("error")
	dns.breakDown(false)
	dns.say("host.lan", "10.0.0.8")
	stays("leads to 10.0.0.8:2375 now")
	find("10.0.0.8:2375")
}

// F29: where a name leads to another host, only the right certificate or the same
// engine ID makes that host the node.
func TestANameThatLeadsToAnotherHost(t *testing.T) {
	t.Parallel()
	dns, a, b := newDNSServer(t), newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	port := strconv.Itoa(a.port)
	dns.say("host.lan", "127.0.0.1")
	f := newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), dns, nodeLine{address: "tcp://host.lan:" + port})
	f.wants(t, "host.lan:"+port+" healthy")
	f.make(t, "box", sleepBody)
	if ip := f.rows(t, "SELECT ip FROM nodes"); ip != "127.0.0.1" {
		t.Errorf("ip = %s, want where the connection goes", ip)
	}

	// At another address, the same port: another engine.
	l, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	to := make(chan string, 1)
	to <- b.addr()
	t.Cleanup(relayTo(l, to))
	dns.say("host.lan", "127.0.0.2")
	a.stop()
	eventually(t, 20*time.Second, func() error {
		if problem := f.becomes(t, 20*time.Second, "unhealthy"); !strings.HasPrefix(problem, "identity: the name led to 127.0.0.1 and leads to 127.0.0.2 now, where another engine answers") {
			return errors.New(problem)
		}
		return nil
	})
	if got := f.rows(t, "SELECT name FROM containers"); got != "box" {
		t.Errorf("containers %q, want those of the host that was", got)
	}
	if n := b.count("POST", "."); n != 0 {
		t.Errorf("%d calls went to the other host", n)
	}

	// The host itself has moved there: same ID.
	a.restart()
	<-to
	to <- a.addr()
	f.wants(t, "host.lan:"+port+" healthy")
	if ip := f.rows(t, "SELECT ip FROM nodes"); ip != "127.0.0.2" {
		t.Errorf("ip = %s, want the new one", ip)
	}
}

// relayTo passes connections on to the address that is in to.
func relayTo(l net.Listener, to chan string) (stop func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			addr := <-to
			to <- addr
			out, err := net.Dial("tcp", addr)
			if err != nil {
				in.Close()
				continue
			}
			go func() { copyUntil(out, in, nil); out.Close() }()
			go func() { copyUntil(in, out, nil); in.Close() }()
		}
	})
	return func() { l.Close(); wg.Wait() }
}

func TestSourcesOfEqualAddressesCountInTheirOrder(t *testing.T) {
	t.Parallel()
	f := newSourcedFront(t, filepath.Join(t.TempDir(), "swarmlite.db"), newDNSServer(t), nodeLine{address: "tcp://127.0.0.1:1", name: "first"})
	f.setFile([]nodeLine{{address: "tcp://127.0.0.1:1", name: "second"}, {address: "tcp://127.0.0.1:2"}})
	f.wants(t, "127.0.0.1:1 unhealthy, 127.0.0.1:2 unhealthy")
	if got := strings.Split(f.rows(t, "SELECT line_name, source FROM nodes ORDER BY address"), "\n"); !slices.Equal(got, []string{"first|arguments", "|file"}) {
		t.Errorf("names and sources are %q", got)
	}
}
