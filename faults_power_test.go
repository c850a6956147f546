package main

import (
	"bufio"
	"database/sql"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// writeForEver does what a busy manager writes, until the process is killed.
func writeForEver(t testing.TB, st *store) {
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				err := st.write(t.Context(), func(t *tx) error {
					res, err := t.exec("INSERT INTO placements (name, strategy, nodes, node_id, outcome) VALUES (?, 'spread', 2, 7, 'created')", fmt.Sprint("w", worker, "-", i))
					if err != nil {
						return err
					}
					id, _ := res.LastInsertId()
					_, err = t.exec("INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, nano_cpus, memory_bytes, summary) VALUES ((SELECT coalesce(max(id), 0) + 1 FROM containers), 7, ?, ?, 'busybox', 'running', 1, 5, 6, ?)",
						fmt.Sprint(worker, "-", i), fmt.Sprint("w", worker, "-", i), `{"Id":"`+strings.Repeat("x", 2000)+`"}`)
					if err == nil {
						_, err = t.exec(`INSERT INTO placement_looks VALUES (?, '[["one","a","",1]]')`, id)
					}
					if err == nil && i >= 50 {
						_, err = t.exec("DELETE FROM containers WHERE container_id = ?", fmt.Sprint(worker, "-", i-50))
					}
					if err == nil && i%100 == 99 {
						_, err = t.exec("DELETE FROM placements WHERE id BETWEEN 4 AND ?", id-200)
					}
					return err
				})
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

// F67: what a power cut leaves is what was written when it came, less what the disk had
// not got yet: of the WAL, that may be all that no fold has begun with.
func TestF67PowerLoss(t *testing.T) {
	t.Parallel()
	copies, limit := 200, 20*time.Second
	if allFaults() {
		copies, limit = 1000, time.Hour
	}
	path := filepath.Join(t.TempDir(), "swarmlite.db")
	st, err := openStore(t.Context(), slog.New(slog.DiscardHandler), path)
	if err != nil {
		t.Fatal(err)
	}
	st.sql(t, "PRAGMA foreign_keys = 0; DELETE FROM manager; "+strings.Replace(oldRows, "ROWS", "10", 1))
	st.close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpenStoreInAProcess$")
	cmd.Env = append(os.Environ(), "TEST_OPEN_STORE="+path, "TEST_WRITE=1")
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = startMortal(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stdout)
	defer func() {
		cmd.Process.Kill()
		rest, _ := io.ReadAll(said)
		cmd.Wait()
		if len(rest) > 0 {
			t.Errorf("the writer said %s", rest)
		}
	}()
	if line, err := said.ReadString('\n'); line != "opened\n" {
		t.Fatalf("the writer says %q, %v", line, err)
	}
	random := mrand.New(mrand.NewPCG(uint64(time.Now().UnixNano()), 1))
	dir := t.TempDir()
	cuts, folded := 0, 0
	began, i := time.Now(), 0
	for ; i < copies && (time.Since(began) < limit || i < 20); i++ {
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond) // the moment is what is random
		file, wal, shm := frozen(t, cmd.Process, path)
		// Frames that a fold has begun with were synced before; those behind may be lost.
		synced := 32
		if len(shm) >= 136 {
			synced += int(binary.NativeEndian.Uint32(shm[128:])) * (4096 + 24)
		}
		if synced > 32 {
			folded++
		}
		if i%2 == 1 && len(wal) > synced {
			at := synced + random.IntN(len(wal)-synced)
			for j := at; j < min(at+4096, len(wal)); j++ { // half a sector of something else
				wal[j] = byte(random.Uint32())
			}
			if i%4 == 1 {
				wal = wal[:at]
			}
			cuts++
		}
		copied := filepath.Join(dir, fmt.Sprint("copy", i, ".db"))
		for suffix, data := range map[string][]byte{"": file, "-wal": wal} {
			if err := os.WriteFile(copied+suffix, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		sound(t, copied)
		removeAll(copied, "", "-wal", "-shm")
		if t.Failed() {
			t.Fatalf("copy %d, %d bytes of log, %d of them synced", i, len(wal), synced)
		}
	}
	// The store itself takes such a copy for what it is: sound.
	file, wal, _ := frozen(t, cmd.Process, path)
	copied := filepath.Join(dir, "last.db")
	for suffix, data := range map[string][]byte{"": file, "-wal": wal} {
		if err := os.WriteFile(copied+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, logs := testLog()
	again, err := openStore(t.Context(), log, copied)
	if err != nil {
		t.Fatal(err)
	}
	again.close()
	if logs.text.Len() > 0 {
		t.Errorf("log: %s", logs.text.String())
	}
	faultHeld(t, 67, fmt.Sprintf("%d copies, %d of them with a log cut short or garbled, %d while it was folded: 0 bad", i, cuts, folded))
}

// frozen reads the files of a process at one moment.
func frozen(t testing.TB, p *os.Process, path string) (file, wal, shm []byte) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer p.Signal(syscall.SIGCONT)
	eventually(t, 20*time.Second, func() error {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		for _, task := range tasks {
			stat, err := os.ReadFile(task)
			if _, state, _ := strings.Cut(string(stat), ") "); err == nil && !strings.HasPrefix(state, "T") {
				return fmt.Errorf("a thread is not stopped: %s", stat)
			}
		}
		return err
	})
	for suffix, data := range map[string]*[]byte{"": &file, "-wal": &wal, "-shm": &shm} {
		var err error
		if *data, err = os.ReadFile(path + suffix); err != nil {
			t.Fatal(err)
		}
	}
	return file, wal, shm
}

// sound opens a copy as a manager does and has it checked whole.
func sound(t testing.TB, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "mode=rw&_pragma=wal_autocheckpoint(0)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var check string
	var orphans, sums int
	err = db.QueryRow("SELECT (SELECT group_concat(integrity_check) FROM pragma_integrity_check), (SELECT count(*) FROM pragma_foreign_key_check), "+
		"(SELECT count(*) FROM nodes n WHERE containers <> (SELECT count(*) FROM containers c WHERE c.node_id = n.id AND counted) + (SELECT count(*) FROM reservations r WHERE r.node_id = n.id AND kind = 'container'))").Scan(&check, &orphans, &sums)
	if err != nil || check != "ok" || orphans > 0 || sums > 0 {
		t.Errorf("integrity_check: %s; %d rows refer to nothing, %d sums are wrong; %v", check, orphans, sums, err)
	}
}
