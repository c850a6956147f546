package main

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of its own with room for size bytes.
func smallDisk(t testing.TB, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root, to mount a small disk")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size)); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fillDisk leaves no room on a small disk.
func fillDisk(t testing.TB, dir string) (ballast string) {
	t.Helper()
	ballast = filepath.Join(dir, "ballast")
	f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return ballast
}

// F57: a full disk stops what has to be written, and nothing else.
func TestF57DiskFull(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 2<<20)
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := startFront(t, filepath.Join(dir, "swarmlite.db"), a, b)
	f.healthyAll(t)
	f.make(t, "web", ttyBody)
	w := f.wire(t)
	w.send("POST /containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
	if resp := w.answer(); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("attach = %s", resp.Status)
	}
	echo := func(when string) {
		t.Helper()
		w.send("hello\n")
		line, err := w.in.ReadString('\n')
		if err != nil || !strings.Contains(line, "hello") {
			t.Errorf("attached stream %s: %q, %v", when, line, err)
		}
	}
	f.make(t, "old", sleepBody)
	echo("before")
	ballast := fillDisk(t, dir)
	// What the log has room for is used up first.
	made, answer := []string{"old"}, ""
	for i := 0; answer == ""; i++ {
		name := fmt.Sprint("c", i)
		status, body := f.call(t, "POST", "/containers/create?name="+name, sleepBody)
		switch {
		case status == http.StatusCreated && i < 5000:
			made = append(made, name)
		case status == http.StatusServiceUnavailable:
			answer = message(body)
		default:
			t.Fatalf("create %d on a full disk = %d %s", i, status, body)
		}
	}
	if answer != "state database: disk full" {
		t.Errorf("create on a full disk: %s", answer)
	}
	// Reads, streams and calls to engines go on, also after the engines have told a lot.
	for round := range 3 {
		a.addContainer(fmt.Sprint("behind", round), "busybox", true, nil)
		for _, call := range [][2]string{{"GET", "/containers/json?all=1"}, {"GET", "/info"}, {"GET", "/containers/web/json"}, {"GET", "/images/json"},
			{"POST", "/containers/old/restart"}, {"GET", "/containers/old/logs?stdout=1"}, {"POST", "/containers/" + made[0] + "/start"}, {"POST", "/containers/" + made[0] + "/stop"}} {
			status, body := f.call(t, call[0], call[1], "")
			if status >= 300 && status != http.StatusNotModified {
				t.Errorf("%s %s on a full disk = %d %s", call[0], call[1], status, body)
			}
		}
		if status, body := f.call(t, "POST", "/containers/create?name=more", sleepBody); status != http.StatusServiceUnavailable || message(body) != "state database: disk full" {
			t.Errorf("create on a full disk = %d %s", status, body)
		}
	}
	if status, body := f.call(t, "DELETE", "/containers/"+made[0]+"?force=1", ""); status != http.StatusNoContent {
		t.Errorf("rm on a full disk = %d %s", status, body)
	}
	echo("on a full disk")
	for _, e := range f.nodes.all() {
		if !e.healthy.Load() {
			t.Errorf("node %s is given up because the disk is full", e.nodeName())
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, 15*time.Second, func() error {
		if status, body := f.call(t, "POST", "/containers/create?name=after", sleepBody); status != http.StatusCreated {
			return fmt.Errorf("create after there is room = %d %s", status, body)
		}
		return nil
	})
	took := time.Since(began)
	f.oracle(t)
	faultTook(t, 57, "creates again", took, 5*time.Second)
	faultTook(t, 57, "engines, lists and database agree again", time.Since(began), 10*time.Second)
}

// healthyAll waits until every node has been connected to.
func (f *front) healthyAll(t testing.TB) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		for _, e := range f.nodes.all() {
			if !e.healthy.Load() {
				return fmt.Errorf("node %s is not healthy", e.nodeName())
			}
		}
		return nil
	})
}

// lockDatabase is a person's shell that holds the lock until release.
func lockDatabase(t testing.TB, path string) (release func()) {
	t.Helper()
	shell, err := sql.Open("sqlite", dsn(path, "_pragma=busy_timeout(5000)"))
	if err != nil {
		t.Fatal(err)
	}
	shell.SetMaxOpenConns(1)
	if _, err := shell.Exec("BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	release = func() {
		once.Do(func() {
			if _, err := shell.Exec("ROLLBACK"); err != nil {
				t.Error(err)
			}
			shell.Close()
		})
	}
	t.Cleanup(release)
	return release
}

// F61: a shell that holds the lock.
func TestF61LockedByAShell(t *testing.T) {
	t.Parallel()
	a, b := newFakeEngine(t, hostNamed("a")), newFakeEngine(t, hostNamed("b"))
	f := newFront(t, a, b)
	f.make(t, "web", sleepBody)
	release := lockDatabase(t, f.store.path)
	held := time.Now()
	long := 8 * time.Second
	if allFaults() {
		long = 60 * time.Second
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var longest, slowRead time.Duration
	// Creates come while others wait already: each waits for its own 5 s.
	for i := range 5 {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 500 * time.Millisecond) // they come one after the other
			began := time.Now()
			status, body := f.call(t, "POST", fmt.Sprint("/containers/create?name=c", i), sleepBody)
			took := time.Since(began)
			if status != http.StatusServiceUnavailable || message(body) != "state database: locked by another program" {
				t.Errorf("create while a shell holds the lock = %d %s", status, body)
			}
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, took)
		})
	}
	for time.Since(held) < long {
		a.addContainer(fmt.Sprint("behind", time.Since(held).Nanoseconds()), "busybox", true, nil)
		for _, call := range [][2]string{{"GET", "/containers/json?all=1"}, {"GET", "/containers/web/json"}, {"POST", "/containers/web/restart"}} {
			began := time.Now()
			if status, body := f.call(t, call[0], call[1], ""); status >= 300 {
				t.Errorf("%s %s while a shell holds the lock = %d %s", call[0], call[1], status, body)
			}
			slowRead = max(slowRead, time.Since(began))
		}
		time.Sleep(50 * time.Millisecond) // between the calls of a client that works by hand
	}
	wg.Wait()
	release()
	if longest > 3*busyWait {
		t.Errorf("a create waited %v for the lock, want %v", longest, busyWait)
	}
	f.make(t, "after", sleepBody)
	f.oracle(t)
	faultTook(t, 61, "creates refused", longest, busyWait+time.Second)
	faultTook(t, 61, "the slowest read or call meanwhile", slowRead, 2*time.Second)
}

// Writes that come while others wait for the lock get it, too, if the shell lets go in time.
func TestWritesWaitForAShellEachForItsOwnTime(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	release := lockDatabase(t, st.path)
	first := make(chan error, 1)
	go func() { first <- st.write(t.Context(), func(t *tx) error { return put(t, "first") }) }()
	second := make(chan error, 1)
	time.AfterFunc(busyWait/2, func() {
		second <- st.write(t.Context(), func(t *tx) error { return put(t, "second") })
	})
	if err := <-first; err == nil || err.Error() != "state database: locked by another program" {
		t.Errorf("the first write = %v, want a refusal", err)
	}
	release()
	if err := <-second; err != nil {
		t.Errorf("a write whose time was not up = %v", err)
	}
	if got := st.all(t, "SELECT name FROM pulls"); got != "second" {
		t.Errorf("rows = %q, want that of the second", got)
	}
}

// F62: an old snapshot keeps the log from being folded; that is told, and made good.
func TestF62OldSnapshotReader(t *testing.T) {
	t.Parallel()
	slowFault(t, "it writes 300 MiB")
	log, logs := testLog()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	st, err := openStore(t.Context(), log, path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	st.sql(t, standardCluster)
	shell, err := sql.Open("sqlite", dsn(path, "mode=ro"))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	reading, err := shell.BeginTx(t.Context(), nil)
	if err == nil {
		err = reading.QueryRow("SELECT count(*) FROM nodes").Scan(new(int))
	}
	if err != nil {
		t.Fatal(err)
	}
	logged := func(words string) error {
		logs.mu.Lock()
		defer logs.mu.Unlock()
		if n := strings.Count(logs.text.String(), words); n != 1 {
			return fmt.Errorf("%q is %d times in the log %s", words, n, logs.text.String())
		}
		return nil
	}
	block := strings.Repeat("x", 1<<20)
	for i := range 300 {
		err := st.write(t.Context(), func(t *tx) error {
			_, err := t.exec("INSERT OR REPLACE INTO node_info VALUES (1, ?, '')", fmt.Sprint(i, block))
			return err
		})
		if err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	eventually(t, 20*time.Second, func() error { return logged("the write-ahead log is over 256 MiB") })
	if err := reading.Rollback(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, 20*time.Second, func() error {
		// A log that is folded is begun anew by the next write.
		if err := st.write(t.Context(), func(t *tx) error {
			_, err := t.exec("UPDATE manager SET version = version || 'x'")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(path + "-wal"); err != nil || info.Size() > 2*bigLog {
			return fmt.Errorf("the log has %d bytes, %v", info.Size(), err)
		}
		return logged("the write-ahead log is folded again")
	})
	faultTook(t, 62, "300 MiB of log folded and cut when the reader ended", time.Since(began), 10*time.Second)
}

// F63: a place that cannot be written is named at the start.
func TestF63ReadOnlyAtStart(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 4<<20)
	path := filepath.Join(dir, "swarmlite.db")
	log, _ := testLog()
	st, err := openStore(t.Context(), log, path)
	if err != nil {
		t.Fatal(err)
	}
	st.close()
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	_, err = openStore(t.Context(), log, path)
	if want := "state database " + path + ": read-only file system; it must be readable and writable"; err == nil || err.Error() != want {
		t.Errorf("openStore on a read-only file system = %v\nwant %s", err, want)
	}
	remount(0)
	if st, err = openStore(t.Context(), log, path); err != nil {
		t.Fatal(err)
	}
	st.close()
	faultHeld(t, 63, "refused at the start with the path; a file system cannot be made read-only here under an open file")
}

// F64: what an old shell does to the live file is found by the check of each hour.
func TestF64DamageIsFoundByTheCheck(t *testing.T) {
	t.Parallel()
	log, logs := testLog()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	st, err := openStore(t.Context(), log, path)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			st.close()
		}
	}()
	st.sql(t, strings.Replace("PRAGMA foreign_keys = 0; DELETE FROM manager; "+oldRows, "ROWS", "3000", 1))
	db, err := sql.Open("sqlite", dsn(path, "mode=ro"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	st.check(t.Context(), db)
	if err := st.broken(); err != nil {
		t.Fatalf("a sound database: %v", err)
	}
	fold(t, st)
	overwrite(t, path, 4096*8)
	db2, err := sql.Open("sqlite", dsn(path, "mode=ro"))
	if err != nil {
		t.Fatal(err)
	}
	defer db2.Close()
	st.check(t.Context(), db2)
	within(t, st.failed, 20*time.Second)
	err = st.write(t.Context(), func(t *tx) error { return nil })
	if err == nil || !strings.HasPrefix(err.Error(), "state database: damaged (") || statusOf(err) != http.StatusServiceUnavailable {
		t.Errorf("a write after damage was found = %v, want 503", err)
	}
	st.close()
	closed = true
	again, err := openStore(t.Context(), log, path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if aside, _ := filepath.Glob(path + ".corrupt-*"); len(aside) == 0 {
		t.Error("the damaged file was not set aside")
	}
	if _, err := os.Lstat(path + damageMark); err == nil {
		t.Error("the mark of the damage is left")
	}
	logs.mu.Lock()
	defer logs.mu.Unlock()
	if !strings.Contains(logs.text.String(), "state database was damaged") {
		t.Errorf("log: %s", logs.text.String())
	}
	faultHeld(t, 64, "damage found by the hourly check stops the manager; the next start sets the file aside")
}

// fold has everything in the file itself.
func fold(t testing.TB, st *store) {
	t.Helper()
	done := make(chan error, 1)
	st.ops <- func(t *tx) {
		_, err := t.exec("PRAGMA wal_checkpoint(TRUNCATE)")
		done <- err
	}
	if err := within(t, done, 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

// overwrite destroys a file from offset on, as a disk or another program may.
func overwrite(t testing.TB, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.WriteAt([]byte(strings.Repeat("x", int(size-offset))), offset)
	}
	if err != nil {
		t.Fatal(err)
	}
}
