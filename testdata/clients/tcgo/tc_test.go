// Package tcgo is a test suite on testcontainers-go, as a user of it writes one.
// REGISTRY is where busybox can be pulled. Lines that begin with "tc: " are what
// must be the same on one engine and on a cluster.
package tcgo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

var image = os.Getenv("REGISTRY") + "/busybox:latest"

func say(t *testing.T, what string, values ...any) {
	fmt.Printf("tc: %s: %s: %q\n", t.Name(), what, fmt.Sprint(values...))
}

func run(t *testing.T, image string, options ...testcontainers.ContainerCustomizer) testcontainers.Container {
	t.Helper()
	c, err := testcontainers.Run(t.Context(), image, options...)
	testcontainers.CleanupContainer(t, c, testcontainers.StopTimeout(0))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func get(t *testing.T, c testcontainers.Container) string {
	t.Helper()
	address, err := c.Endpoint(t.Context(), "http")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// execOutput runs a command in c and returns what it prints, and its exit code.
func execOutput(t *testing.T, c testcontainers.Container, command ...string) (string, int) {
	t.Helper()
	code, out, err := c.Exec(t.Context(), command, tcexec.Multiplexed())
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), code
}

func server(page string) []testcontainers.ContainerCustomizer {
	return []testcontainers.ContainerCustomizer{
		testcontainers.WithCmd("sh", "-c", "sleep 0.3; echo "+page+" >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"),
		testcontainers.WithExposedPorts("8080/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/").WithPort("8080/tcp").WithStartupTimeout(30 * time.Second)),
	}
}

func TestServer(t *testing.T) {
	ctx := t.Context()
	c := run(t, image, append(server("page"), testcontainers.WithEnv(map[string]string{"COLOUR": "blue"}),
		testcontainers.WithFiles(testcontainers.ContainerFile{Reader: strings.NewReader("copied"), ContainerFilePath: "/tmp/copied", FileMode: 0o600}))...)
	say(t, "http", get(t, c))
	host, err := c.Host(ctx)
	daemon, _ := url.Parse(os.Getenv("DOCKER_HOST"))
	say(t, "host is that of DOCKER_HOST", host == daemon.Hostname(), err)
	out, code := execOutput(t, c, "sh", "-c", "echo $COLOUR; cat /tmp/copied; echo bad >&2; exit 3")
	say(t, "exec", code, out)
	if err := c.CopyToContainer(ctx, []byte("later"), "/tmp/later", 0o644); err != nil {
		t.Error(err)
	}
	file, err := c.CopyFileFromContainer(ctx, "/tmp/later")
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(file)
	say(t, "copy", string(data), err)
	state, err := c.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	say(t, "state", state.Status, state.Running)
	none := time.Duration(0)
	if err := c.Stop(ctx, &none); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	say(t, "http after a start", get(t, c))
}

func TestWaits(t *testing.T) {
	c := run(t, image, testcontainers.WithCmd("sh", "-c", "echo starting; sleep 0.3; echo ready to serve; exec httpd -f -p 8080"),
		testcontainers.WithExposedPorts("8080/tcp"),
		testcontainers.WithWaitStrategy(wait.ForAll(wait.ForLog("ready to serve"), wait.ForListeningPort("8080/tcp"), wait.ForExec([]string{"true"}))))
	logs, err := c.Logs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(logs)
	say(t, "logs", strings.Fields(string(data)), err)
	once := run(t, image, testcontainers.WithCmd("sh", "-c", "exit 4"), testcontainers.WithWaitStrategy(wait.ForExit()))
	state, err := once.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say(t, "exit", state.ExitCode)
}

func TestNetwork(t *testing.T) {
	net, err := network.New(t.Context())
	testcontainers.CleanupNetwork(t, net)
	if err != nil {
		t.Fatal(err)
	}
	run(t, image, append(server("inside"), network.WithNetwork([]string{"server"}, net))...)
	client := run(t, image, testcontainers.WithCmd("sleep", "1000"), network.WithNetwork(nil, net))
	out, code := execOutput(t, client, "wget", "-qO-", "http://server:8080/")
	say(t, "by alias", code, out)
	names, err := client.Networks(t.Context())
	say(t, "networks", slices.Equal(names, []string{net.Name}), err)
}

func TestMany(t *testing.T) {
	for _, word := range strings.Split("abcdef", "") {
		t.Run(word, func(t *testing.T) {
			t.Parallel()
			say(t, "http", get(t, run(t, image, server(word)...)))
		})
	}
}

func TestBuild(t *testing.T) {
	c := run(t, "", testcontainers.WithDockerfile(testcontainers.FromDockerfile{
		Context: "../node/image", Repo: "tcgo", Tag: "x", BuildArgs: map[string]*string{"FROM": &image},
	}), testcontainers.WithWaitStrategy(wait.ForExit()))
	logs, err := c.Logs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(logs)
	say(t, "logs", string(bytes.TrimSpace(data)), err)
}

func TestFailures(t *testing.T) {
	_, err := testcontainers.Run(t.Context(), os.Getenv("REGISTRY")+"/nosuch:latest")
	say(t, "no such image", err)
	c, err := testcontainers.Run(t.Context(), image, testcontainers.WithCmd("sleep", "1000"),
		testcontainers.WithWaitStrategy(wait.ForLog("never").WithStartupTimeout(time.Second)))
	// What it was doing when its second was over is chance.
	say(t, "never ready", strings.Contains(fmt.Sprint(err), "wait until ready: "), strings.HasSuffix(fmt.Sprint(err), context.DeadlineExceeded.Error()))
	if err := testcontainers.TerminateContainer(c, testcontainers.StopTimeout(0)); err != nil {
		t.Error(err)
	}
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		t.Fatal(err)
	}
	defer provider.Close()
	say(t, "health", provider.Health(context.Background()))
}
