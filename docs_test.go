package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAPIDocsNameEveryRoute holds docs/api.md against the route table, both ways: the
// operations, and which of them are refused.
func TestAPIDocsNameEveryRoute(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, routed []string
	says := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]+ /[^`]*)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
		says[m[1]] = m[2]
	}
	for _, r := range routes {
		op := r.method + " " + r.path
		routed = append(routed, op)
		for what, handle := range map[string]handler{"refused": noSwarm, "501": noPlugins} {
			refuses := reflect.ValueOf(r.handle).Pointer() == reflect.ValueOf(handle).Pointer()
			if documented := strings.HasPrefix(says[op], what); documented != refuses {
				t.Errorf("docs/api.md says of %s %q; %q there is %v in the route table", op, says[op], what, refuses)
			}
		}
	}
	for _, op := range documented {
		if !slices.Contains(routed, op) {
			t.Errorf("docs/api.md has %s, the route table has not", op)
		}
	}
	for _, op := range routed {
		if !slices.Contains(documented, op) {
			t.Errorf("the route table has %s, docs/api.md has not", op)
		}
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(documented)))); n != len(documented) {
		t.Errorf("docs/api.md has %d operations, %d of them different", len(documented), n)
	}
}

// TestReadmeUnitIsOneThatSystemdTakes holds the unit in README against systemd's own check,
// and the limits that it is to have (FAULTS S30).
func TestReadmeUnitIsOneThatSystemdTakes(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	unit := regexp.MustCompile("(?s)```ini\n(\\[Unit\\].*?)```").FindSubmatch(readme)
	if unit == nil {
		t.Fatal("README.md shows no unit")
	}
	for _, want := range []string{"NoNewPrivileges=true", "ProtectSystem=strict", "MemoryMax=", "Environment=GOMEMLIMIT=", "LimitNOFILE="} {
		if !strings.Contains(string(unit[1]), "\n"+want) {
			t.Errorf("the unit of README.md has no %s", want)
		}
	}
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	self, err := os.Executable() // the program has to be there
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "swarmlite.service")
	writeFile(t, path, strings.ReplaceAll(string(unit[1]), "/usr/local/bin/swarmlite", self))
	if out, err := exec.CommandContext(t.Context(), verify, "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestRouteTableHasEveryOperation holds the route table against Docker's own description
// of its API, every version of it that the module of Docker's client has.
func TestRouteTableHasEveryOperation(t *testing.T) {
	t.Parallel()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/docker/docker").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "docs/api/v1.*.yaml"))
	if err != nil || len(files) < 20 {
		t.Fatalf("descriptions of the API in %s: %q, %v", dir, files, err)
	}
	name := regexp.MustCompile(`\{[^}]*\}`)
	routed := map[string]bool{}
	for _, r := range routes {
		routed[r.method+" "+name.ReplaceAllString(r.path, "{}")] = true
	}
	line := regexp.MustCompile(`^  "?(/[^":]*)"?:|^    (get|head|post|put|delete|patch):`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, paths, _ := strings.Cut(string(text), "\npaths:\n")
		path, n := "", 0
		for l := range strings.Lines(paths) {
			m := line.FindStringSubmatch(l)
			if m == nil {
				continue
			}
			if m[1] != "" {
				path = name.ReplaceAllString(m[1], "{}")
				continue
			}
			n++
			if op := strings.ToUpper(m[2]) + " " + path; !routed[op] {
				t.Errorf("%s has %s, the route table has not", filepath.Base(file), op)
			}
		}
		if n < 90 {
			t.Errorf("%s: %d operations were read, want at least 90", filepath.Base(file), n)
		}
	}
}
