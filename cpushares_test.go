package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// sharesOf is the weight that an engine was asked for.
func (e *fakeEngine) sharesOf(t *testing.T, name string) int64 {
	t.Helper()
	resp, err := http.Get("http://" + e.addr() + "/containers/" + name + "/json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var in struct{ HostConfig hostConfig }
	if err := json.NewDecoder(resp.Body).Decode(&in); err != nil {
		t.Fatal(err)
	}
	return in.HostConfig.CpuShares
}

func TestCPUSharesAreWholeCPUsIfTheManagerSaysSo(t *testing.T) {
	t.Parallel()
	const three = 3
	e := newFakeEngine(t, hostNamed("a"), func(e *fakeEngine) { e.cpus = three })
	f := newFront(t, e)
	f.make(t, "before", `{"Image":"busybox","HostConfig":{"CpuShares":683}}`)
	room := func(name string) string { return f.rows(t, "SELECT nano_cpus FROM containers WHERE name = ?", name) }
	if got, sent := room("before"), e.sharesOf(t, "before"); got != "0" || sent != 683 {
		t.Errorf("as weights: %s reserved, %d sent, want 0 and 683", got, sent)
	}
	// The next start is with -cpu-shares=cores.
	if err := f.store.begin(t.Context(), managerRow{strategy: "spread", overcommit: 0.05, groupBy: defaultGroupLabels, cores: true}); err != nil {
		t.Fatal(err)
	}
	f.scheduler.cores = true
	if got := f.rows(t, "SELECT inspected FROM containers WHERE name = 'before'"); got != "0" {
		t.Error("what is there already is not asked again for what it reserves")
	}
	if err := f.store.write(t.Context(), func(t *tx) error {
		_, err := t.exec("UPDATE nodes SET state = 'healthy'")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if status, answer := f.call(t, "DELETE", "/containers/before?force=1", ""); status != http.StatusNoContent {
		t.Fatalf("rm before: %d %s", status, answer)
	}
	if status, answer := f.call(t, "POST", "/containers/create?name=big", `{"Image":"busybox","HostConfig":{"CpuShares":4}}`); status != http.StatusServiceUnavailable ||
		!strings.Contains(answer, "less than 4 CPUs free") {
		t.Errorf("4 CPUs on a node of 3: %d %s", status, answer)
	}
	f.make(t, "two", `{"Image":"busybox","hostconfig":{"CpuShares":9,"cpushares":2}}`) // of doubles the last counts
	if got, sent := room("two"), e.sharesOf(t, "two"); got != "2000000000" || sent != 683 {
		t.Errorf("2 CPUs of %d: %s reserved, weight %d, want 2000000000 and 683", three, got, sent)
	}
	f.make(t, "half", `{"Image":"busybox","HostConfig":{"CpuShares":1000,"NanoCpus":500000000}}`) // --cpus says it better
	if got := room("half"); got != "500000000" {
		t.Errorf("--cpus 0.5 and shares: %s reserved, want 500000000", got)
	}
	// What its engine tells is read the same way, for rows and for a copy elsewhere.
	id := f.rows(t, "SELECT container_id FROM containers WHERE name = 'two'")
	at := f.nodes.all()[0]
	eventually(t, 20*time.Second, func() error {
		if err := f.store.write(t.Context(), func(t *tx) error {
			_, err := t.exec("UPDATE containers SET nano_cpus = 1 WHERE container_id = ?", id)
			return err
		}); err != nil {
			return err
		}
		at.marks.add(mark{"update", id})
		at.marks.wait(t.Context())
		if got := room("two"); got != "2000000000" {
			return fmt.Errorf("read from the engine: %s reserved, want 2000000000", got)
		}
		return nil
	})
	body, _, err := newMover(f.cluster, 0, true).tellBody(t.Context(), at, &leaving{id: id})
	if err != nil || !strings.Contains(body.text, `"CpuShares":2`) {
		t.Errorf("body of a copy: %v, %v, want 2 CPUs in it", body, err)
	}
}

func TestExplainAndSimulateCountCPUSharesAsTheManagerDoes(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"weights": "spread would choose node-1: 3 of 3 fit",
		"cores":   "no node fits: 3 of 3 have less than 5 CPUs free",
	} {
		_, path := clusterFile(t, standardCluster+"; UPDATE manager SET cpu_shares = '"+setting+"'")
		got, err := swarmlite(t, "explain", "-db", path, "-c", "5", "nginx")
		if got = fmt.Sprint(got, err); !strings.Contains(got, want) {
			t.Errorf("explain -c 5 of a manager with -cpu-shares=%s: %s, want %q", setting, got, want)
		}
	}
	_, path := clusterFile(t, standardCluster+"; UPDATE manager SET cpu_shares = 'cores'")
	if got, err := swarmlite(t, "simulate", "-db", path, "-fill", "-c", "2", "nginx"); err != nil || !strings.Contains(got, "6 more fit") {
		t.Errorf("simulate -fill -c 2: %s, %v, want 6", got, err)
	}
}
