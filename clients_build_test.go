package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// buildTiming is the clock in what BuildKit tells of a step.
var buildTiming = regexp.MustCompile(`(?m)^(#\d+ |> )?\d+\.\d+ `)

// clientBuildx builds as today's docker command does: over gRPC, in which nothing tells
// swarmlite what is built. What was built must be usable on every node at once.
func clientBuildx(t *testing.T) {
	w := newTwin(t)
	config := t.TempDir()
	if err := os.Mkdir(filepath.Join(config, "cli-plugins"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(needTool(t, "docker-buildx"), filepath.Join(config, "cli-plugins", "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	docker := func(args ...string) clientRun {
		return clientRun{program: needProgram(t, "docker", "docker.io"), args: args,
			env:    []string{"DOCKER_CONFIG=" + config, "BUILDX_NO_DEFAULT_ATTESTATIONS=1"},
			change: func(s string) string { return buildTiming.ReplaceAllString(s, "") }}
	}
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("Dockerfile", `FROM busybox:latest AS base
ARG WORD=none
COPY page /page
RUN --mount=type=secret,id=key cat /page /run/secrets/key >/word && echo $WORD >>/word
CMD ["cat", "/word"]

FROM base AS broken
RUN exit 7

FROM scratch AS file
COPY --from=base /word /
`)
	write("key", "secret\n")
	build := func(args ...string) clientRun {
		return docker(slices.Concat([]string{"buildx", "build", "--secret", "id=key,src=" + filepath.Join(dir, "key")}, args, []string{dir})...)
	}
	for _, word := range []string{"one", "two"} { // the second moves the tag
		write("page", word+"\n")
		w.clientOK(t, build("-q", "--load", "--target", "base", "--build-arg", "WORD="+word, "-t", "app:1"))
		w.ok(t, "run", "--rm", "app:1")
		for _, e := range w.engines {
			if got, want := w.docker(t, "run", "--rm", "-e", "constraint:node=="+e.name, "app:1"), fmt.Sprintf("%s\nsecret\n%[1]s", word); got != want {
				t.Errorf("run on %s says %q, want %q, which was built just now", e.name, got, want)
			}
		}
	}
	w.sameList(t, "images", "--format", "{{.Repository}}:{{.Tag}}")

	// Files come back over the session, and a base that was built here is found.
	out := t.TempDir()
	w.clientOK(t, build("-q", "--target", "file", "--output", "type=local,dest="+out))
	if got, err := os.ReadFile(filepath.Join(out, "word")); err != nil || string(got) != "two\nsecret\nnone\n" {
		t.Errorf("the built file is %q (%v)", got, err)
	}
	write("Dockerfile", "FROM app:1\nRUN echo more >>/word\n")
	w.clientOK(t, docker("buildx", "build", "-q", "--load", "-t", "more:1", dir))
	if got := w.ok(t, "run", "--rm", "more:1"); !strings.HasSuffix(got, "two\nmore") {
		t.Errorf("what was built on a base that was built says %q", got)
	}

	write("Dockerfile", "FROM busybox:latest\nRUN exit 7\n")
	if r := w.sameClient(t, docker("buildx", "build", "-q", "--load", dir)); r.exit == 0 || !strings.Contains(r.stderr, "exit code: 7") {
		t.Errorf("a build that fails: %v", r)
	}
	write("Dockerfile", "FROM busybox:latest\nCMD [\"echo\", \"plain\"]\n")
	w.clientOK(t, docker("build", "-q", "-t", "plain:1", dir)) // docker 23 and later: through buildx
	w.ok(t, "run", "--rm", "plain:1")
	w.clientOK(t, docker("buildx", "prune", "-f", "--filter", "until=1h"))
	w.clientOK(t, docker("buildx", "inspect", "default"))
}
