package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// scanConn is a connection to the database for long lists. It calls the translated
// library itself: database/sql takes four locks for each column and copies each text
// twice, which is more than half of what a list of 30,000 containers costs.
type scanConn struct {
	tls  *libc.TLS
	db   uintptr // sqlite3 *
	out  uintptr // room for a pointer that a call returns
	used bool    // since the last giveBack
}

const (
	// scanCache is what a scan in the order of age needs: of each of 1,000 nodes, whose
	// containers lie together, a page. It is given back when no scan comes after: see giveBack.
	scanCache = 8 << 20
	idleScans = 2 // connections that are kept open
)

// scanConns are the connections for scans that are idle.
type scanConns struct {
	mu     sync.Mutex
	idle   []*scanConn
	closed bool
}

// scanError is what SQLite says to a scan.
type scanError struct {
	code int
	msg  string
}

func (e *scanError) Error() string { return e.msg }
func (e *scanError) Code() int     { return e.code }

func openScan(path string) (*scanConn, error) {
	c := &scanConn{tls: libc.NewTLS()}
	c.out = libc.Xmalloc(c.tls, 8)
	name, err := libc.CString(dsn(path, "mode=rw"))
	if err != nil || c.out == 0 {
		c.close()
		return nil, errors.New("out of memory")
	}
	defer libc.Xfree(c.tls, name)
	// One goroutine at a time has the connection, so SQLite need not lock it for each call.
	rc := sqlite3.Xsqlite3_open_v2(c.tls, name, c.out, sqlite3.SQLITE_OPEN_READWRITE|sqlite3.SQLITE_OPEN_URI|sqlite3.SQLITE_OPEN_NOMUTEX, 0)
	c.db = c.returned()
	if rc == sqlite3.SQLITE_OK {
		sqlite3.Xsqlite3_extended_result_codes(c.tls, c.db, 1)
		rc = sqlite3.Xsqlite3_busy_timeout(c.tls, c.db, int32(busyWait.Milliseconds()))
	}
	for _, pragma := range []string{"query_only(1)", "temp_store(2)", fmt.Sprintf("cache_size(-%d)", scanCache>>10)} {
		if rc == sqlite3.SQLITE_OK {
			rc = c.exec("PRAGMA " + pragma)
		}
	}
	if rc != sqlite3.SQLITE_OK {
		err := c.error(rc)
		c.close()
		return nil, err
	}
	return c, nil
}

// returned is the pointer that the last call has put into out.
func (c *scanConn) returned() uintptr {
	if bits.UintSize == 32 {
		return uintptr(binary.NativeEndian.Uint32(libc.GoBytes(c.out, 4)))
	}
	return uintptr(binary.NativeEndian.Uint64(libc.GoBytes(c.out, 8)))
}

func (c *scanConn) exec(query string) int32 {
	text, err := libc.CString(query)
	if err != nil {
		return sqlite3.SQLITE_NOMEM
	}
	defer libc.Xfree(c.tls, text)
	return sqlite3.Xsqlite3_exec(c.tls, c.db, text, 0, 0, 0)
}

func (c *scanConn) error(rc int32) error {
	if c.db == 0 {
		return &scanError{int(rc), libc.GoString(sqlite3.Xsqlite3_errstr(c.tls, rc))}
	}
	return &scanError{int(rc), libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db))}
}

func (c *scanConn) close() {
	if c.db != 0 {
		sqlite3.Xsqlite3_close_v2(c.tls, c.db)
	}
	libc.Xfree(c.tls, c.out)
	c.tls.Close()
}

// scan is a query under way. Its rows are looked at where SQLite has them.
type scan struct {
	store *store
	conn  *scanConn
	stmt  uintptr // sqlite3_stmt *
	ctx   context.Context
	steps int
	err   error
}

// scan begins a query whose rows are many; close it. Only texts fixed in the program come here.
func (s *store) scan(ctx context.Context, query string) (*scan, error) {
	conn := s.scans.take()
	if conn == nil {
		var err error
		if conn, err = openScan(s.path); err != nil {
			s.note(err)
			return nil, err
		}
	}
	r := &scan{store: s, conn: conn, ctx: ctx}
	text, err := libc.CString(query)
	if err != nil {
		r.close()
		return nil, err
	}
	defer libc.Xfree(conn.tls, text)
	if rc := sqlite3.Xsqlite3_prepare_v2(conn.tls, conn.db, text, -1, conn.out, 0); rc != sqlite3.SQLITE_OK {
		err := conn.error(rc)
		r.close()
		s.note(err)
		return nil, err
	}
	r.stmt = conn.returned()
	return r, nil
}

// next steps to the next row. After false, err tells whether that was the last one.
func (r *scan) next() bool {
	if r.err != nil {
		return false
	}
	if r.steps++; r.steps%256 == 0 {
		if r.err = r.ctx.Err(); r.err != nil {
			return false
		}
	}
	switch rc := sqlite3.Xsqlite3_step(r.conn.tls, r.stmt); rc {
	case sqlite3.SQLITE_ROW:
		return true
	case sqlite3.SQLITE_DONE:
	default:
		r.err = r.conn.error(rc)
		r.store.note(r.err)
	}
	return false
}

// text is a column of the row, valid until the next step.
func (r *scan) text(column int) []byte {
	p := sqlite3.Xsqlite3_column_text(r.conn.tls, r.stmt, int32(column))
	n := sqlite3.Xsqlite3_column_bytes(r.conn.tls, r.stmt, int32(column))
	if p == 0 || n == 0 {
		return nil
	}
	return libc.GoBytes(p, int(n)) // no copy, in spite of its name
}

func (r *scan) int(column int) int64 {
	return sqlite3.Xsqlite3_column_int64(r.conn.tls, r.stmt, int32(column))
}

func (r *scan) null(column int) bool {
	return sqlite3.Xsqlite3_column_type(r.conn.tls, r.stmt, int32(column)) == sqlite3.SQLITE_NULL
}

// close ends the query and gives its connection back.
func (r *scan) close() {
	sqlite3.Xsqlite3_finalize(r.conn.tls, r.stmt)
	r.conn.used = true
	r.store.scans.put(r.conn)
}

func (s *scanConns) take() *scanConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == 0 {
		return nil
	}
	c := s.idle[len(s.idle)-1]
	s.idle = s.idle[:len(s.idle)-1]
	return c
}

func (s *scanConns) put(c *scanConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.idle) == idleScans {
		c.close()
		return
	}
	s.idle = append(s.idle, c)
}

// giveBack frees the caches of connections that nobody has used since the last call. Not
// when a scan ends: a call of the system for each page that is freed is a quarter of a
// list's time, and one list is three scans.
func (s *scanConns) giveBack() {
	var quiet []*scanConn
	s.mu.Lock()
	s.idle = slices.DeleteFunc(s.idle, func(c *scanConn) bool {
		if c.used {
			c.used = false
			return false
		}
		quiet = append(quiet, c)
		return true
	})
	s.mu.Unlock()
	for _, c := range quiet {
		sqlite3.Xsqlite3_db_release_memory(c.tls, c.db)
		s.put(c)
	}
}

// close closes the idle ones; one that is in use is closed when it is put back.
func (s *scanConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.idle {
		c.close()
	}
	s.idle, s.closed = nil, true
}
