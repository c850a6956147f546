package main

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// snapshot is all that a refusal must leave as it was: names, modes, sizes, times, contents.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x\n", sha256.Sum256(data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestOpenStoreRefusesFilesItMustNotTouch(t *testing.T) {
	t.Parallel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	database := func(path, statements string) {
		db, err := sql.Open("sqlite", dsn(path, ""))
		must(err)
		_, err = db.Exec(statements)
		must(err)
		must(db.Close())
	}
	for _, tt := range []struct {
		name string
		make func(path string)
		want string // after "state database PATH: "
	}{
		{"another program's database", func(p string) { database(p, "CREATE TABLE bookmarks (url TEXT)") },
			"belongs to another program; name another file with -db"},
		{"another program's database with an ID", func(p string) { database(p, "PRAGMA application_id = 7; CREATE TABLE t (a)") },
			"belongs to another program; name another file with -db"},
		{"a newer swarmlite's", func(p string) {
			database(p, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; CREATE TABLE t (a)", applicationID, schemaVersion+1))
		}, fmt.Sprintf("made by a newer swarmlite (schema %d, this one knows %d); run that version, or name another file with -db", schemaVersion+1, schemaVersion)},
		{"a text", func(p string) { must(os.WriteFile(p, []byte(strings.Repeat("no database\n", 100)), 0o644)) },
			"not a SQLite database; name another file with -db, or move this one away"},
		{"a short text", func(p string) { must(os.WriteFile(p, []byte("SQLite format 3\x00"), 0o644)) },
			"not a SQLite database; name another file with -db, or move this one away"},
		{"a directory", func(p string) { must(os.Mkdir(p, 0o755)) }, "not a regular file; name another file with -db"},
		{"a symbolic link to a database", func(p string) { database(p+".real", "CREATE TABLE t (a)"); must(os.Symlink(p+".real", p)) },
			"not a regular file; name another file with -db"},
		{"a symbolic link to nothing", func(p string) { must(os.Symlink(p+".nothing", p)) }, "not a regular file; name another file with -db"},
		{"a pipe", func(p string) { must(syscall.Mkfifo(p, 0o600)) }, "not a regular file; name another file with -db"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "swarmlite.db")
			tt.make(path)
			before := snapshot(t, filepath.Dir(path))
			s, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
			if err == nil {
				s.close()
			}
			if want := "state database " + path + ": " + tt.want; err == nil || err.Error() != want {
				t.Errorf("openStore = %v\nwant %s", err, want)
			}
			if after := snapshot(t, filepath.Dir(path)); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
		})
	}
}

func TestOpenStoreRefusesPlacesItCannotUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"none/swarmlite.db":                  "no such file or directory; make the directory, or name another file with -db",
		"file/swarmlite.db":                  "not a directory",
		strings.Repeat("x", 300):             "file name too long",
		"none/" + strings.Repeat("x/", 3000): "file name too long; make the directory, or name another file with -db",
	} {
		path = filepath.Join(dir, path)
		before := snapshot(t, dir)
		if s, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path); err == nil || !strings.HasPrefix(err.Error(), "state database "+path+": ") || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("openStore(%.60s) = %v, want … %s", path, err, want)
			if err == nil {
				s.close()
			}
		}
		if after := snapshot(t, dir); after != before {
			t.Errorf("before:\n%safter:\n%s", before, after)
		}
	}
}

// TestOpenStoreRefusesWhatAnotherUserHas runs as root with another user's rights.
func TestOpenStoreRefusesWhatAnotherUserHas(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		missing(t, "root, to act as another user")
	}
	dir := t.TempDir()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir = filepath.Join(t.TempDir(), "home")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.db")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(other, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret.db")
	if err := os.WriteFile(secret, []byte("SQLite format 3"), 0o000); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	check := func(path, want string) {
		s, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
		if err == nil {
			s.close()
		}
		if want = "state database " + path + ": " + want; err == nil || err.Error() != want {
			t.Errorf("openStore = %v\nwant %s", err, want)
		}
	}
	check(other, "belongs to user 65534, not to user 0 who runs swarmlite")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its rights with it
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		check(secret, "permission denied; it must be readable and writable")
		check(filepath.Join(dir, "new.db"), "lock file "+filepath.Join(dir, "new.db.lock")+": permission denied; the directory must be writable, or name another file with -db")
	}()
	<-done
	if after := snapshot(t, dir); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// F47
func TestF47ASecondManagerIsRefused(t *testing.T) {
	t.Parallel()
	st := testNode(t)
	began := time.Now()
	_, err := openStore(t.Context(), slog.New(slog.DiscardHandler), st.path)
	if want := "state database " + st.path + ": in use by another swarmlite manager; stop that one, or name another file with -db"; err == nil || err.Error() != want {
		t.Errorf("openStore of a file in use = %v\nwant %s", err, want)
	}
	faultTook(t, 47, "a second manager of one file refused", time.Since(began), time.Second)
	if err := st.write(t.Context(), func(t *tx) error { return put(t, "a") }); err != nil {
		t.Errorf("the first manager is disturbed: %v", err)
	}
}

func TestStateIsPrivate(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(path string) error{
		"a new file":        func(string) error { return nil },
		"an empty file":     func(path string) error { return os.WriteFile(path, nil, 0o644) },
		"a copied database": func(path string) error { return copyOfStore(t, path, 0o644) },
		"a file left behind": func(path string) error {
			return errors.Join(copyOfStore(t, path, 0o640), os.WriteFile(path+".lock", nil, 0o644))
		},
	} {
		path := filepath.Join(t.TempDir(), "swarmlite.db")
		if err := before(path); err != nil {
			t.Fatal(err)
		}
		st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
		if err != nil {
			t.Fatal(err)
		}
		st.sql(t, "UPDATE manager SET version = 'x'")
		for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
			info, err := os.Lstat(path + suffix)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if info.Mode() != 0o600 {
				t.Errorf("%s: %s has mode %v, want 0600", name, info.Name(), info.Mode())
			}
		}
		st.close()
	}
}

// copyOfStore writes a whole, closed database to path.
func copyOfStore(t *testing.T, path string, mode os.FileMode) error {
	t.Helper()
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), filepath.Join(t.TempDir(), "swarmlite.db"))
	if err != nil {
		return err
	}
	st.close()
	data, err := os.ReadFile(st.path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, mode)
}

// TestCrashWhileTheFileIsMade: a manager that was killed while it wrote the schema
// leaves a file beside the one it was to be. The next one starts afresh.
func TestCrashWhileTheFileIsMade(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	for _, suffix := range []string{".new", ".new-journal", "-journal", "-wal"} {
		if err := os.WriteFile(path+suffix, []byte(strings.Repeat("half of it", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatalf("openStore after a crash = %v", err)
	}
	defer st.close()
	if got := st.one(t, "SELECT length(cluster_id), (SELECT count(*) FROM why) FROM manager"); got != "32|0" {
		t.Errorf("length of cluster ID|placements = %s, want 32|0", got)
	}
	if left, _ := filepath.Glob(path + ".new*"); left != nil {
		t.Errorf("%q are left", left)
	}
}

// S15, S16: neither environment values nor credentials get into the files.
func TestSecretsAreNotInTheDatabase(t *testing.T) {
	t.Parallel()
	e := newFakeEngine(t)
	f := newFront(t, e)
	const secret = "xyzzy-42-secret"
	f.make(t, "web", `{"Image":"busybox","Cmd":["sleep","inf"],"Env":["PASSWORD=`+secret+`"]}`)
	f.exec(t, "web", `{"Cmd":["true"],"Env":["PASSWORD=`+secret+`"]}`)
	req, err := http.NewRequest("POST", "http://"+f.addr+"/images/create?fromImage=busybox&tag=latest", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Registry-Auth", secret)
	resp, err := loneClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if status, answer := f.call(t, "GET", "/containers/web/json", ""); status != http.StatusOK || !strings.Contains(answer, secret) {
		t.Fatalf("inspect = %d %s, want the environment: the test looks for the wrong thing", status, answer)
	}
	f.oracle(t)
	for _, suffix := range []string{"", "-wal"} {
		// By another process: closing the file in this one would drop SQLite's locks.
		data, err := exec.Command("cat", f.store.path+suffix).Output()
		if err != nil || len(data) == 0 {
			t.Fatalf("cat %s: %d bytes, %v", f.store.path+suffix, len(data), err)
		}
		if strings.Contains(string(data), secret) {
			t.Errorf("%s holds the secret", f.store.path+suffix)
		}
	}
	if strings.Contains(f.logged(), secret) {
		t.Error("the log holds the secret")
	}
}
