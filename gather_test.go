package main

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TLS reads one record at a time, and an engine writes a line of a log as one: what is
// there already must still be one piece.
func TestWhatIsThereIsOnePiece(t *testing.T) {
	t.Parallel()
	const lines = 100
	line := []byte(strings.Repeat("x", 99) + "\n")
	files := testCA(t).server(t, "127.0.0.1")
	server, err := tls.LoadX509KeyPair(files.cert, files.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{false, true} {
		name := "plain"
		if secure {
			name = "TLS"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := listenLocal(t)
			written := make(chan struct{})
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if secure {
					conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{server}})
				}
				for range lines {
					conn.Write(line)
				}
				close(written)
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
			plain, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			gathers := &gatherConn{Conn: plain}
			var conn net.Conn = gathers
			if secure {
				conn = tls.Client(gathers, &tls.Config{InsecureSkipVerify: true})
			}
			conn.SetDeadline(time.Now().Add(5 * time.Minute))
			got := make([]byte, lines*len(line))
			if _, err := io.ReadFull(conn, got[:len(line)]); err != nil {
				t.Fatal(err)
			}
			within(t, written, time.Minute)
			waits := 0
			gathers.ahead = func() error { waits++; return nil }
			if _, err := io.ReadFull(conn, got[len(line):]); err != nil || waits > 0 {
				t.Errorf("reading what was there: %v, passed on %d times before it was read to the end", err, waits)
			}
			plain.(*net.TCPConn).CloseWrite()
			if _, err := conn.Read(got); err == nil || waits > 1 {
				t.Errorf("end = %v, after %d waits", err, waits)
			}
		})
	}
}

// trickle is a connection that has n bytes for each read, at once.
type trickle struct {
	net.Conn
	n int
}

func (c trickle) Read(p []byte) (int, error) { return min(c.n, len(p)), nil }

func TestSmallPiecesInQuickSuccessionAreLeftToGather(t *testing.T) {
	t.Parallel()
	read := func(size, times int) (*gatherConn, time.Duration) {
		c := &gatherConn{Conn: trickle{n: size}, ahead: func() error { return nil }}
		buf := make([]byte, 64<<10)
		began := time.Now()
		for range times {
			if n, err := c.Read(buf); n != size || err != nil {
				t.Fatalf("read %d bytes, %v, want %d", n, err, size)
			}
		}
		return c, time.Since(began)
	}
	// Either a read is put off by gatherLeast, or it came that late by itself. What came
	// meanwhile is little, so that a few after it are not.
	if _, took := read(200, 100); took < 100/(fewSmall+3)*gatherLeast {
		t.Errorf("100 small pieces took %v: none was left to gather", took)
	}
	if c, _ := read(smallPiece, 100); c.gathering || c.small > 0 {
		t.Errorf("after large pieces %d count as small", c.small)
	}
	if c, _ := read(200, fewSmall); c.gathering { // the first has none before it
		t.Errorf("a few small pieces were put off")
	}
}

// A pause follows how much came in the last one, so that few bytes are not waited for long
// in a stream that has become slow, nor read often in one that is fast.
func TestPausesFollowTheSpeedOfAStream(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		last     time.Duration
		gathered int
		want     time.Duration
	}{
		{"the first is the shortest", 0, smallPiece, gatherLeast},
		{"as long as the room takes to fill", gatherLeast, gatherRoom / 4, 4 * gatherLeast},
		{"shorter again when more comes", 4 * gatherLeast, 2 * gatherRoom, 2 * gatherLeast},
		{"never longer than a line may be late", gatherLeast, smallPiece, gatherMost},
		{"nor shorter than what a pause costs", gatherLeast, 10 * gatherRoom, gatherLeast},
	} {
		if got := nextPause(tt.last, tt.gathered); got != tt.want {
			t.Errorf("%s: nextPause(%v, %d) = %v, want %v", tt.name, tt.last, tt.gathered, got, tt.want)
		}
	}
}
