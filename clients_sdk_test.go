package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Programs on Docker's libraries. Each prints what it got, part by part, and goes on
// with the next part when one has ended early.

// byApp: these programs make a network and a volume on their own before they use
// them together. A label that both have is what keeps them together.
const byApp = "-group-by=app"

// testProgram compares a program's two runs, both of which must have got to their end.
func (w *twin) testProgram(t *testing.T, run clientRun) {
	t.Helper()
	if out := w.clientOK(t, run); strings.Contains(out, "ENDED EARLY") || strings.Contains(out, "never came true") {
		t.Errorf("%s did not do all of its work:\n%s", filepath.Base(run.program), out)
	}
}

func clientGoSDK(t *testing.T) {
	program := filepath.Join(t.TempDir(), "gosdk")
	goBuild(t, ".", "build", "-o", program, "./testdata/clients/gosdk")
	w := newTwin(t, byApp)
	w.testProgram(t, clientRun{program: program, args: []string{labRegistry(t)}})
}

func clientDockerPy(t *testing.T) {
	python := needFile(t, "/usr/bin/python3", "make test installs it (Debian package python3-docker)")
	needFile(t, "/usr/lib/python3/dist-packages/docker", "make test installs it (Debian package python3-docker)")
	w := newTwin(t, byApp)
	w.testProgram(t, clientRun{program: python, args: []string{"testdata/clients/dockerpy.py", labRegistry(t)}})
}

func clientDockerode(t *testing.T) {
	node := needNode(t)
	w := newTwin(t, byApp)
	w.testProgram(t, clientRun{program: node, args: []string{"testdata/clients/node/dockerode.js", labRegistry(t)}})
}

// Testcontainers connects to published ports on the host of DOCKER_HOST, so swarmlite
// relays them.

func clientTestcontainersNode(t *testing.T) {
	node := needNode(t)
	w := newTwin(t, "-relay-ports")
	w.testProgram(t, clientRun{program: node, args: []string{"testdata/clients/node/testcontainers.js", labRegistry(t)}, env: testcontainersEnv})
}

func clientTestcontainersGo(t *testing.T) {
	dir, program := "testdata/clients/tcgo", filepath.Join(t.TempDir(), "tcgo")
	goBuild(t, dir, "test", "-c", "-o", program)
	w := newTwin(t, "-relay-ports")
	told := regexp.MustCompile(`(?m)^tc: .*\n|^ *--- (PASS|FAIL): \S+|^(PASS|FAIL)$`) // all but the library's own log
	w.testProgram(t, clientRun{program: program, args: []string{"-test.v"}, dir: dir,
		env:    append([]string{"REGISTRY=" + labRegistry(t)}, testcontainersEnv...),
		change: func(s string) string { return sortedLines(strings.Join(told.FindAllString(s, -1), "\n")) }})
}

// testcontainersEnv: Ryuk, which cleans up after suites that crash, has a test of its own.
var testcontainersEnv = []string{"TESTCONTAINERS_RYUK_DISABLED=true"}

// clientTestcontainersCrash is a suite that dies in the middle. Ryuk runs on the
// node of its session, with that engine's socket, and removes what the suite has made.
func clientTestcontainersCrash(t *testing.T) {
	node := needNode(t)
	w := newTwin(t, "-relay-ports")
	ryuk := w.pushRyuk(t, labRegistry(t))
	r := w.sameClient(t, clientRun{program: node, args: []string{"testdata/clients/node/crash.js", labRegistry(t)},
		env: []string{"RYUK_CONTAINER_IMAGE=" + ryuk, "TESTCONTAINERS_RYUK_DISABLED=false"}})
	if want := (cliResult{stdout: "running: 3\n", exit: -1}); r != want { // -1: it has killed itself
		t.Fatalf("crash.js: %v, want %v", r, want)
	}
	for _, host := range []string{w.addr, w.alone.addr} {
		eventually(t, time.Minute, func() error {
			if left := dockerOK(t, host, "ps", "-aq") + dockerOK(t, host, "network", "ls", "-q", "--filter", "type=custom"); left != "" {
				return fmt.Errorf("Ryuk has left on %s: %s", host, left)
			}
			return nil
		})
	}
	w.docker(t, "run", "--rm", "-p", "8080", "busybox", "true") // the cluster is as it was
}

// pushRyuk makes the stand-in for Ryuk's image and returns its name.
func (w *twin) pushRyuk(t *testing.T, registry string) string {
	t.Helper()
	dir, image := t.TempDir(), registry+"/ryuk:latest"
	goBuild(t, ".", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "ryuk"), "./testdata/clients/ryuk")
	archive := filepath.Join(dir, "ryuk.tar")
	if out, err := exec.Command("tar", "-C", dir, "-cf", archive, "ryuk").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	w.alone.docker(t, "import", "-c", `ENTRYPOINT ["/ryuk"]`, "-c", "EXPOSE 8080", archive, image)
	w.alone.docker(t, "push", "-q", image)
	w.alone.docker(t, "rmi", image)
	return image
}

func needNode(t *testing.T) string {
	t.Helper()
	needFile(t, "testdata/clients/node/node_modules/testcontainers", "make test gets it (npm ci)")
	return needProgram(t, "node", "nodejs")
}
