package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

// What explain makes of a command line must be what the create asks for that docker makes
// of it, as far as placement looks at it.
func TestExplainAsksForWhatDockerAsksFor(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("docker"); err != nil {
		missing(t, "the docker command")
	}
	var mu sync.Mutex
	var body []byte
	var query url.Values
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.50")
		w.Header().Set("Ostype", "linux")
		if !strings.HasSuffix(r.URL.Path, "/containers/create") {
			return
		}
		data, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		body, query = data, r.URL.Query()
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"Id":"c0ffee"}`)
	}))
	t.Cleanup(engine.Close)
	for _, line := range []string{
		"--name web -m 1g --cpus .5 --memory-reservation 100m",
		"-p 80 -p 8080:80 -p 127.0.0.1:53:53/udp -p [::1]:81:81 -p 9000-9001:9000-9001 -p 7000-7010:70 -p 5000:5000/sctp",
		"-p published=8080,target=80 -p target=90,published=91,protocol=udp",
		"-P --expose 70-72 --expose 73/udp",
		"--network host --expose 80 --expose 90-91/udp -p 81:82",
		"--network none -p 80:80",
		"--network front --network name=back,alias=db --network-alias x",
		"--network container:db --pid container:p --ipc container:i --link l:alias --volumes-from v:ro --volumes-from w",
		"-v data:/data -v /host:/x:ro -v /anonymous -v ./here:/y -v .:/z -v other:/o:nocopy",
		"--mount src=vol,dst=/a --mount type=bind,src=/tmp,dst=/b --mount type=tmpfs,dst=/c --mount type=volume,dst=/d --mount type=volume,source=n,target=/e,volume-subpath=s",
		"--gpus all", "--gpus 2", "--gpus device=1", `--gpus "device=0,1"`, "--gpus count=2,capabilities=utility,driver=nvidia",
		"--device /dev/null --device nvidia.com/gpu=0 --device vendor.com/fpga=all",
		"--runtime runc --platform linux/arm64",
		"-c 512 --cpu-quota 50000 --cpu-period 20000 --cpuset-cpus 0",
		"-e constraint:a==b -e affinity:image!=~x -l com.docker.swarm.wait=1m -l k -e TOKEN=x -l com.docker.swarm.resources=fpga=1",
		"--env=whitelist:node==a|b --label=com.docker.swarm.constraints=[\"x==y\"]",
	} {
		args := strings.Fields(strings.ReplaceAll(line, `"`, "\x00"))
		for i, arg := range args {
			args[i] = strings.ReplaceAll(arg, "\x00", `"`)
		}
		args = append(args, "nginx")
		mu.Lock()
		body = nil
		mu.Unlock()
		dockerOK(t, engine.Listener.Addr().String(), append([]string{"create"}, args...)...)
		var flags createFlags
		if err := flags.parse(args, nil); err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		asked, _, err := readCreate(body, &call{query: query})
		if err != nil {
			t.Fatal(line, err)
		}
		read, _, err := readCreate([]byte(jsonText(flags.body)), &call{query: flags.query})
		if err != nil {
			t.Fatal(line, err)
		}
		slices.Sort(asked.volumes) // docker sends them in any order
		slices.Sort(read.volumes)
		want, got := jsonText(asked.shape())+asked.name, jsonText(read.shape())+read.name
		if got != want {
			t.Errorf("%s:\nexplain reads %s\ndocker asks   %s", line, got, want)
		}
	}
}
