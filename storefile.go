package main

import (
	"context"
	crand "crypto/rand"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	sqlite3 "modernc.org/sqlite/lib"
)

// fileState is what a look at the database file tells.
type fileState int

const (
	fileAbsent  fileState = iota // not there, or empty
	fileSound                    // ours, of this schema or an older one
	fileDamaged                  // ours, and not to be read
)

// checkFile looks at path with lstat and reads its header, before SQLite has it
// open: closing any other handle later would drop SQLite's own locks. What is not
// surely ours is refused.
func checkFile(path string) (fileState, error) {
	refuse := func(format string, args ...any) (fileState, error) {
		return 0, fmt.Errorf("state database "+path+": "+format, args...)
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return refuse("%w; make the directory, or name another file with -db", plain(err))
	}
	if !dir.IsDir() {
		return refuse("%s is not a directory", filepath.Dir(path))
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileAbsent, nil
	}
	if err != nil {
		return refuse("%w", plain(err))
	}
	if !info.Mode().IsRegular() {
		return refuse("not a regular file; name another file with -db")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return refuse("belongs to user %d, not to user %d who runs swarmlite", st.Uid, os.Geteuid())
	}
	if info.Size() == 0 {
		return fileAbsent, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return refuse("%w; it must be readable and writable", plain(err))
	}
	defer f.Close()
	var head [100]byte // SQLite's file header: magic at 0, user_version at 60, application_id at 68
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[:16]) != "SQLite format 3\x00" {
		// A manager that had this file before has left its lock file.
		if lock, err := os.Lstat(path + ".lock"); err == nil && lock.Mode().IsRegular() && lock.Size() == 0 {
			return fileDamaged, nil
		}
		return refuse("not a SQLite database; name another file with -db, or move this one away")
	}
	if id := binary.BigEndian.Uint32(head[68:]); id != applicationID {
		return refuse("belongs to another program; name another file with -db")
	}
	if v := binary.BigEndian.Uint32(head[60:]); v > schemaVersion {
		return refuse("made by a newer swarmlite (schema %d, this one knows %d); run that version, or name another file with -db", v, schemaVersion)
	}
	return fileSound, nil
}

// plain strips the operation and path from a file error: our messages name the path already.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file %s: %w; the directory must be writable, or name another file with -db", path, plain(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errInUse
	}
	return f, nil
}

// makePrivate takes others' rights away from the files that are there: a copied
// database has whatever mode it was copied with, and SQLite gives its own to the
// files beside it.
func makePrivate(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Lstat(path + suffix)
		if err == nil && info.Mode().IsRegular() && info.Mode() != 0o600 {
			err = os.Chmod(path+suffix, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return plain(err)
		}
	}
	return nil
}

func dsn(path, pragmas string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas
}

// settleFile brings the file at path, whose lock we hold, into the state that open
// expects: whole, private, of this schema.
func settleFile(ctx context.Context, log *slog.Logger, path string, found fileState) error {
	if err := makePrivate(path); err != nil {
		return err
	}
	if found == fileAbsent {
		return makeFile(ctx, path, nil, nil)
	}
	version, reason := 0, "no header of a SQLite database"
	if found == fileSound {
		var err error
		if version, reason, err = examine(ctx, path); err != nil {
			return err
		}
	}
	switch {
	case reason != "":
		return rebuild(ctx, log, path, reason)
	case version == 0: // its making was broken off, and has been rolled back
		return makeFile(ctx, path, nil, nil)
	case version < schemaVersion:
		return upgrade(ctx, log, path, version)
	}
	same, err := sameSchema(ctx, path)
	if err != nil || same {
		return err
	}
	// Made by a build between two releases; or a text in the list of tables is damaged.
	if err := upgrade(ctx, log, path, version); err != nil {
		return rebuild(ctx, log, path, "the tables are not those of schema "+fmt.Sprint(version)+": "+err.Error())
	}
	return nil
}

// sameSchema tells whether the file has the tables, indexes, triggers and views of
// schema.sql, to the letter.
func sameSchema(ctx context.Context, path string) (bool, error) {
	var texts [2]string
	for i, name := range []string{dsn(path, "mode=rw"), ":memory:"} {
		db, err := sql.Open("sqlite", name)
		if err != nil {
			return false, err
		}
		defer db.Close()
		db.SetMaxOpenConns(1)
		if i == 1 {
			_, err = db.ExecContext(ctx, schema)
		}
		if err == nil {
			err = db.QueryRowContext(ctx, `SELECT group_concat(type || name || tbl_name || coalesce(sql, ''), char(10) ORDER BY type, name)
				FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%'`).Scan(&texts[i])
		}
		if err != nil {
			return false, err
		}
	}
	return texts[0] == texts[1], nil
}

// maxChecked is the size of a file that is read whole at the start, which takes about
// a tenth of a second for 30 MB; a bigger one is read while the manager runs already, and
// at the start only if it was found damaged before. Clients wait for the start.
const maxChecked = 16 << 20

// damageMark is the suffix of an empty file that a manager leaves beside its database
// when it ends because of damage there.
const damageMark = ".damaged"

// examine opens the file as SQLite does, with its WAL or journal, and tells its schema
// version and what is wrong with it; "" is nothing.
func examine(ctx context.Context, path string) (version int, reason string, err error) {
	db, err := sql.Open("sqlite", dsn(path, fmt.Sprintf("mode=rw&_pragma=busy_timeout(%d)", busyWait.Milliseconds())))
	if err != nil {
		return 0, "", err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	check := "ok"
	err = db.QueryRowContext(ctx, "SELECT user_version FROM pragma_user_version").Scan(&version)
	if err == nil && version > 0 {
		err = db.QueryRowContext(ctx, "SELECT 'ok' FROM manager WHERE id = 1").Scan(&check)
	}
	info, lstatErr := os.Lstat(path)
	_, markErr := os.Lstat(path + damageMark)
	if err == nil && lstatErr == nil && (info.Size() <= maxChecked || markErr == nil) {
		err = db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&check)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return version, "the row of the manager is not there", nil
	case isDamage(err), sqliteCode(err) == sqlite3.SQLITE_ERROR: // a table is not there
		return version, sqliteWords(err), nil
	case err != nil:
		return 0, "", storeReason(err)
	case check != "ok":
		return version, check, nil
	}
	return version, "", nil
}

// isDamage tells whether SQLite has found the file itself to be wrong.
func isDamage(err error) bool {
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}

// sqliteError is what SQLite says: the driver's *sqlite.Error, or a *scanError.
type sqliteError interface {
	error
	Code() int
}

// sqliteCode is SQLite's extended result code, 0 of other errors.
func sqliteCode(err error) int {
	var se sqliteError
	if !errors.As(err, &se) {
		return 0
	}
	return se.Code()
}

// sqliteWords is an error as SQLite words it, without the driver's frame.
func sqliteWords(err error) string {
	words := err.Error()
	var se sqliteError
	if errors.As(err, &se) {
		words = strings.TrimPrefix(words, "SQL logic error: ")
		words = strings.TrimSuffix(words, fmt.Sprintf(" (%d)", se.Code()))
	}
	return words
}

// source is a database that rows are carried over from.
type source struct {
	attach string // path of a database that carry finds as schema old; "": carry opens what it reads
	carry  func(ctx context.Context, conn *sql.Conn) error
}

// makeFile builds a whole database beside path and puts it in its place with one
// rename, so that a crash at any moment leaves the old file or the new one. Nil for from
// is an empty cluster with a new ID. ready is called before the rename.
func makeFile(ctx context.Context, path string, from *source, ready func() error) error {
	building := path + ".new"
	if err := removeAll(building, "", "-journal", "-wal", "-shm"); err != nil {
		return err
	}
	if err := emptyFile(building); err != nil {
		return err
	}
	if err := fillFile(ctx, building, from); err != nil {
		removeAll(building, "", "-journal")
		return err
	}
	if ready != nil {
		if err := ready(); err != nil {
			removeAll(building, "")
			return err
		}
	}
	// What is left beside a file that is not there would be taken for the new one's.
	if err := removeAll(path, "-journal", "-wal", "-shm", damageMark); err != nil {
		return err
	}
	if err := os.Rename(building, path); err != nil {
		return plain(err)
	}
	return syncDir(path)
}

// putBack gives the copy of a database that was deleted its place. Where another file is
// now, it is left alone.
func (s *store) putBack() {
	if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	err := removeAll(s.path, "-wal", "-shm")
	if err == nil {
		err = os.Rename(s.rescued, s.path)
	}
	if err != nil {
		s.log.Error("state database not put back", "db", s.path, "rescued", s.rescued, "err", err)
	}
}

// emptyFile makes a file that only we may read.
func emptyFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", path, plain(err))
	}
	return f.Close()
}

func removeAll(path string, suffixes ...string) error {
	for _, suffix := range suffixes {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return plain(err)
		}
	}
	return nil
}

// syncDir has the names in path's directory written to the disk.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return plain(err)
	}
	defer dir.Close()
	return plain(dir.Sync())
}

// fillFile writes the schema into the empty file at path, and what from has.
func fillFile(ctx context.Context, path string, from *source) error {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw&_pragma=foreign_keys(0)&_pragma=synchronous(full)&_pragma=temp_store(2)"))
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if from != nil && from.attach != "" {
		if _, err := conn.ExecContext(ctx, "ATTACH ? AS old", dsn(from.attach, "mode=ro")); err != nil {
			return err
		}
	}
	_, err = conn.ExecContext(ctx, fmt.Sprintf("BEGIN EXCLUSIVE; PRAGMA main.application_id = %d; PRAGMA main.user_version = %d;\n%s", applicationID, schemaVersion, schema))
	if err == nil && from != nil {
		err = from.carry(ctx, conn)
	}
	if err == nil {
		id := make([]byte, 16)
		crand.Read(id)
		_, err = conn.ExecContext(ctx, "INSERT OR IGNORE INTO main.manager (id, cluster_id) VALUES (1, ?)", hex.EncodeToString(id))
	}
	if err == nil {
		_, err = conn.ExecContext(ctx, "COMMIT")
	}
	return err
}

// timeSuffix is for the names of files that are kept.
func timeSuffix() string { return time.Now().UTC().Format("20060102T150405.000Z") }
