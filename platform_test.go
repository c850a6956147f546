package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestPlatformNames(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"linux x86_64": "linux/amd64", "linux amd64 v3": "linux/amd64", "linux aarch64": "linux/arm64", "linux arm64 v8": "linux/arm64",
		"linux armv7l": "linux/arm/v7", "linux arm": "linux/arm/v7", "linux arm v6": "linux/arm/v6", "linux armhf": "linux/arm/v7",
		"linux i686": "linux/386", "linux riscv64": "linux/riscv64", "linux loongarch64": "linux/loong64", "windows x86_64": "windows/amd64",
		"Linux X86_64": "linux/amd64", "linux ": "", " amd64": "", "linux a\x00b": "",
	} {
		f := append(strings.Split(in, " "), "")
		if got := platformName(f[0], f[1], f[2]); got != want {
			t.Errorf("platformName(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRequestedPlatform(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "arm64": "linux/arm64", "aarch64": "linux/arm64", "linux/arm/v7": "linux/arm/v7",
		"linux/arm": "linux/arm/v7", "linux": "linux", "Windows": "windows", "windows/amd64": "windows/amd64", "linux/arm64/v8": "linux/arm64",
		"": "", "nonsense": "", "a/b/c/d": "", "linux/amd64;": "",
	} {
		if got := requestedPlatform(in); got != want {
			t.Errorf("requestedPlatform(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRunnablePlatforms(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ os, architecture, label, want string }{
		{"linux", "x86_64", "", "linux/amd64 linux/386"},
		{"linux", "aarch64", "", "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"},
		{"linux", "armv7l", "", "linux/arm/v7 linux/arm/v6 linux/arm/v5"},
		{"linux", "s390x", "", "linux/s390x"},
		{"windows", "x86_64", "", "windows/amd64 windows/386"},
		{"linux", "x86_64", " linux/aarch64, riscv64,linux,nonsense,linux/amd64", "linux/amd64 linux/386 linux/arm64 linux/riscv64"},
		{"", "", "linux/arm64", ""},
	} {
		if got := strings.Join(runnable(tt.os, tt.architecture, tt.label), " "); got != tt.want {
			t.Errorf("runnable(%s, %s, %q) = %s, want %s", tt.os, tt.architecture, tt.label, got, tt.want)
		}
	}
}

// mixedFleet is two amd64 nodes and two arm64 nodes; nobody has an image.
func mixedFleet(t *testing.T) *imageFleet {
	t.Helper()
	var list []*fakeEngine
	for i, arch := range []string{"amd64", "amd64", "arm64", "arm64"} {
		list = append(list, newFakeEngine(t, func(e *fakeEngine) { e.name, e.arch, e.preloaded = arch+"-"+strconv.Itoa(i+1), arch, nil }))
	}
	return newImageFleet(t, list...)
}

// pull is docker pull, which must end well.
func (f *imageFleet) pull(query string) {
	f.t.Helper()
	if status, body, _ := f.call("POST", "/v1.41/images/create?"+query, nil); status != http.StatusOK || strings.Contains(body, "errorDetail") {
		f.t.Fatalf("pull %s: %d %s", query, status, body)
	}
}

// placed makes a container and returns its node, or the refusal.
func (f *imageFleet) placed(query, body string) string {
	f.t.Helper()
	status, answer, _ := f.call("POST", "/v1.41/containers/create?"+query, strings.NewReader(body), "Content-Type", "application/json")
	var said struct{ Id, Message string }
	if err := json.Unmarshal([]byte(answer), &said); err != nil {
		f.t.Fatalf("create: %d %s", status, answer)
	}
	if status != http.StatusCreated {
		return fmt.Sprint(status, " ", said.Message)
	}
	return f.store.one(f.t, "SELECT n.name FROM containers c JOIN nodes n ON n.id = c.node_id WHERE c.container_id = ?", said.Id)
}

func TestContainersGoWhereTheirImageRuns(t *testing.T) {
	t.Parallel()
	f := mixedFleet(t)
	for _, platform := range []string{"arm64", "amd64"} {
		image := "for-" + platform
		f.pull("fromImage=" + image + "&tag=latest&platform=linux/" + platform)
		for range 6 { // more than there are nodes of the kind: copies are made, or not
			if got := f.placed("", `{"Image": "`+image+`"}`); !strings.HasPrefix(got, platform) {
				t.Errorf("a container of an image for %s is on %s", platform, got)
			}
		}
		if got := f.placed("", `{"Image": "`+image+`", "Env": ["constraint:node!=`+platform+`-*"]}`); !strings.Contains(got, "cannot run an image for linux/"+platform) {
			t.Errorf("a container of an image for %s that may not go there: %s", platform, got)
		}
	}
	want := "amd64 linux/amd64 2, arm64 linux/arm64 2"
	if got := f.store.one(t, `SELECT group_concat(s, ', ') FROM (SELECT substr(n.name, 1, 5) || ' ' || i.platform || ' ' || count(*) AS s
		FROM images i JOIN nodes n ON n.id = i.node_id GROUP BY substr(n.name, 1, 5), i.platform ORDER BY 1)`); got != want {
		t.Errorf("images: %s, want %s", got, want)
	}
}

func TestRequestedPlatformIsKept(t *testing.T) {
	t.Parallel()
	f := mixedFleet(t)
	f.pull("fromImage=web&tag=latest&platform=linux/amd64")
	// The nodes that could run it have none for arm64: the client hears so and pulls.
	if got := f.placed("platform=linux/arm64", `{"Image": "web"}`); got != "404 No such image: web:latest" {
		t.Errorf("create for arm64 of an image for amd64: %s", got)
	}
	f.pull("fromImage=web&tag=latest&platform=linux/arm64")
	for query, want := range map[string]string{"platform=linux/arm64": "arm64", "": "arm64", "platform=linux/amd64": "amd64"} {
		if got := f.placed(query, `{"Image": "web"}`); !strings.HasPrefix(got, want) {
			t.Errorf("create with %q: %s, want a node for %s", query, got, want)
		}
	}
	if got := f.store.one(t, "SELECT count(*) FROM images i JOIN nodes n ON n.id = i.node_id WHERE instr(i.platform, substr(n.name, 1, 5)) = 0"); got != "0" {
		t.Errorf("%s images are on nodes that cannot run them", got)
	}
	if got := f.placed("platform=linux/s390x", `{"Image": "web"}`); got !=
		"503 no node fits: 4 of 4 cannot run linux/s390x; a node that emulates it says so by its label platforms=linux/s390x" {
		t.Errorf("create for a platform that no node runs: %s", got)
	}
}

func TestPullForAPlatformThatNoNodeRunsGoesAnywhere(t *testing.T) {
	t.Parallel()
	f := mixedFleet(t)
	f.pull("fromImage=other&tag=latest&platform=linux/s390x") // to be pushed elsewhere, say
	if got := f.placed("", `{"Image": "other"}`); !strings.HasPrefix(got, "503 no node fits: 4 of 4 cannot run an image for linux/s390x") {
		t.Errorf("create of an image for s390x: %s", got)
	}
	// An operator says that a node emulates it.
	f.store.sql(t, "INSERT INTO node_labels SELECT id, 'platforms', 'linux/s390x', 'operator' FROM nodes WHERE name = 'amd64-2'")
	if err := f.store.write(t.Context(), func(tx *tx) error { return tx.coverLabels(f.nodeID("amd64-2"), nil) }); err != nil {
		t.Fatal(err)
	}
	if got := f.placed("", `{"Image": "other"}`); got != "amd64-2" {
		t.Errorf("create of an image for s390x where one node emulates it: %s", got)
	}
}

func TestAnEngineIsAskedOnceWhatAnImageIsFor(t *testing.T) {
	t.Parallel()
	fakes := threeFakes(t)
	f := newImageFleet(t, fakes...)
	eventually(t, 20*time.Second, func() error {
		if got := f.store.one(t, "SELECT count(*) FROM images WHERE platform = 'linux/amd64'"); got != "3" {
			return fmt.Errorf("%s of 3 images have their platform", got)
		}
		return nil
	})
	before := inspects(fakes)
	for range 3 {
		f.readImages(t.Context(), f.healthyEngines()...)
	}
	if after := inspects(fakes); after != before || before > 3 {
		t.Errorf("%d inspects of one image on three nodes, %d after its nodes were listed again", before, after)
	}
}

func inspects(fakes []*fakeEngine) (n int) {
	for _, e := range fakes {
		for _, r := range e.requests() {
			if strings.Contains(r.path, "/images/sha256:") {
				n++
			}
		}
	}
	return n
}
