package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// rawInspect is what an engine says of a container or an image.
func rawInspect(t *testing.T, host, path string) []byte {
	t.Helper()
	resp, body := apiCall(t, http.MethodGet, host, path)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %s", path, resp.Status, body)
	}
	return []byte(body)
}

// comparableInspect is what must be the same of two containers that are made from one body:
// all but what an engine makes up for each.
func comparableInspect(t *testing.T, inspect []byte) map[string]any {
	t.Helper()
	var in map[string]any
	if err := json.Unmarshal(inspect, &in); err != nil {
		t.Fatal(err)
	}
	id := in["Id"].(string)
	config := in["Config"].(map[string]any)
	host := in["HostConfig"].(map[string]any)
	if name, _ := config["Hostname"].(string); name == id[:12] || host["NetworkMode"] == "host" {
		config["Hostname"] = "(ID, or the host's)"
	}
	networks := in["NetworkSettings"].(map[string]any)["Networks"].(map[string]any)
	for _, n := range networks {
		n := n.(map[string]any)
		for _, key := range []string{"NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "MacAddress"} {
			delete(n, key)
		}
		aliases, _ := n["Aliases"].([]any)
		n["Aliases"] = slices.DeleteFunc(aliases, func(a any) bool { return a == id[:12] })
	}
	mounts := map[string]any{}
	for _, m := range in["Mounts"].([]any) {
		m := m.(map[string]any)
		if name, _ := m["Name"].(string); len(name) == 64 {
			m["Name"] = "(unnamed)"
		}
		if m["Type"] == "volume" {
			delete(m, "Source")
		}
		mounts[m["Destination"].(string)] = m
	}
	delete(host, "ContainerIDFile")
	return map[string]any{"Config": config, "HostConfig": host, "Networks": networks, "Mounts": mounts, "Path": in["Path"], "Args": in["Args"],
		"Image": in["Image"], "Platform": in["Platform"]}
}

func TestE2EARebuiltBodyMakesTheSameContainer(t *testing.T) {
	engines := labEngines(t)
	from, to := engines[0], engines[1]
	build := dockerCommand(t, from.addr, "build", "-q", "-t", "rich", "-")
	build.Env = append(build.Env, "DOCKER_BUILDKIT=0")
	build.Stdin = strings.NewReader(`FROM busybox
ENV A=1 B=2
ENTRYPOINT ["/bin/sh","-c"]
CMD ["sleep 1000"]
WORKDIR /tmp
USER 1000
EXPOSE 80/tcp
VOLUME /data
LABEL x=y empty=
STOPSIGNAL SIGINT
HEALTHCHECK --interval=7s CMD true
`)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v %s", err, out)
	}
	save := dockerCommand(t, from.addr, "save", "rich")
	load := dockerCommand(t, to.addr, "load", "-q")
	load.Stdin, _ = save.StdoutPipe()
	if err := errors.Join(load.Start(), save.Run(), load.Wait()); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*labEngine{from, to} {
		e.docker(t, "network", "create", "--subnet", "10.99.0.0/24", "netx")
	}
	for i, args := range []string{
		"busybox sleep 1000",
		"busybox",
		"-e A=1 -e PATH=/bin -w /srv -u 1000 -h custom --domainname d.lan -l a=b -l empty= --entrypoint /bin/sleep busybox 5",
		"rich",
		"rich exit",
		"-e A=3 -e C= -l x=z -l empty=full -w / -u root --no-healthcheck --stop-signal KILL rich",
		"--entrypoint sleep rich",
		"--entrypoint /bin/sh rich -c true",
		"-m 64m --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 --pids-limit 50 --ulimit nofile=100:200 --cap-add NET_ADMIN --cap-drop MKNOD --security-opt no-new-privileges --oom-score-adj 10 busybox",
		"--read-only --tmpfs /t:size=1m --shm-size 32m --restart on-failure:3 --log-opt max-size=1m --init --ipc shareable --pid host --uts host --device /dev/null:/dev/nothing:r --sysctl net.ipv4.ip_forward=1 busybox",
		"--add-host a:1.2.3.4 --dns 9.9.9.9 --dns-search lan --dns-opt ndots:2 --group-add 5 -p 8081:80 -p 127.0.0.1::90/udp -P --expose 7000-7002 busybox",
		"-v /srv:/srv:ro -v /unnamed --mount type=tmpfs,dst=/x,tmpfs-size=1m --mount type=volume,src=named,dst=/n -v other:/o:ro rich",
		"--network host busybox", "--network none busybox", "--privileged busybox",
		"--network netx --ip 10.99.0.9 --network-alias al --network-alias bl busybox",
		"-it --rm --stop-timeout 3 --health-cmd true --health-interval 5s --health-retries 2 busybox",
	} {
		name := fmt.Sprint("c", i)
		id := from.docker(t, append([]string{"create", "--name", name}, strings.Fields(args)...)...)
		in := rawInspect(t, from.addr, "/containers/"+id+"/json")
		var of struct{ Image string }
		if err := json.Unmarshal(in, &of); err != nil {
			t.Fatal(err)
		}
		body, err := rebuildBody(in, rawInspect(t, from.addr, "/images/"+of.Image+"/json"))
		if err != nil {
			t.Fatalf("%s: %v", args, err)
		}
		apiJSON(t, to.addr, "/containers/create?name="+name, string(body))
		got, want := comparableInspect(t, rawInspect(t, to.addr, "/containers/"+name+"/json")), comparableInspect(t, in)
		for part := range want {
			if g, w := jsonText(got[part]), jsonText(want[part]); g != w {
				t.Errorf("docker create %s: %s made from the rebuilt body\n%s, want\n%s", args, part, g, w)
			}
		}
		if args == "rich" {
			var asked struct {
				Env, Cmd, Entrypoint                            []string
				User, WorkingDir, StopSignal                    string
				Healthcheck                                     any
				Labels, ExposedPorts, Volumes, NetworkingConfig map[string]any
			}
			if err := json.Unmarshal(body, &asked); err != nil || len(asked.Env) > 0 || asked.Cmd != nil || asked.Entrypoint != nil || asked.User != "" || asked.WorkingDir != "" ||
				asked.StopSignal != "" || asked.Healthcheck != nil || len(asked.Labels)+len(asked.ExposedPorts)+len(asked.Volumes) > 0 {
				t.Errorf("what the image gives is in the body: %s", body)
			}
		}
	}
}

// page reads what a container's web server says, at its published port.
func page(t *testing.T, m *manager, container string) (string, error) {
	t.Helper()
	resp, err := http.Get("http://" + m.docker(t, "port", container, "80") + "/index.html")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

const siteScript = `echo "I am $WHO" > /index.html; exec httpd -f -p 80 -h /`

func TestE2EDrainMovesAServiceAndLeavesData(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr, engines[1].addr, engines[2].addr)
	m.docker(t, "run", "-d", "--name", "site", "--stop-signal", "KILL", "-p", "80", "-e", "WHO=site", "-e", "reschedule:on-node-failure", "--health-cmd", "wget -q -O /dev/null http://127.0.0.1/index.html",
		"--health-interval", "1s", "busybox", "sh", "-c", siteScript)
	var node string
	eventually(t, 20*time.Second, func() error {
		node = m.docker(t, "ps", "--filter", "health=healthy", "--format", `{{.Label "com.docker.swarm.node"}}`)
		if node == "" {
			return errors.New("site is not healthy")
		}
		return nil
	})
	m.docker(t, "run", "-d", "--name", "db", "-v", "data:/data", "-e", "reschedule:on-node-failure", "-e", "constraint:node=="+node, "busybox", "sleep", "1000")
	m.docker(t, "run", "-d", "--name", "plain", "-e", "constraint:node=="+node, "busybox", "sleep", "1000")
	if got, err := page(t, m, "site"); err != nil || got != "I am site\n" {
		t.Fatalf("site says %q, %v", got, err)
	}
	out, err := swarmlite(t, "drain", "-db", m.db, "-dry-run", node)
	if err != nil || !strings.Contains(out, "1 of 3 containers would be moved") {
		t.Errorf("drain -dry-run: %v\n%s", err, out)
	}
	m.docker(t, "node", "update", "--availability", "drain", node)
	eventually(t, 60*time.Second, func() error {
		if now := m.docker(t, "ps", "--filter", "name=^site$", "--format", `{{.Label "com.docker.swarm.node"}} {{.Status}}`); strings.HasPrefix(now, node) || !strings.Contains(now, "(healthy)") {
			return fmt.Errorf("site is on %s; moves: %s", now, m.sql(t, "SELECT name, step, outcome, error FROM moves"))
		}
		return nil
	})
	if got, err := page(t, m, "site"); err != nil || got != "I am site\n" {
		t.Errorf("site says %q, %v after the move", got, err)
	}
	eventually(t, 20*time.Second, func() error {
		for _, docker := range everyDocker(t) {
			if got := m.with(t, docker, "node", "ls", "--filter", "name="+node, "--format", "{{.Status}} {{.Availability}}"); got != "Ready Drain" {
				return fmt.Errorf("%s node ls: %s", docker, got)
			}
			if got := m.with(t, docker, "node", "inspect", "--pretty", node); !strings.Contains(got, "raining, 2 containers left: db: local volume data; plain: no reschedule policy") {
				return fmt.Errorf("%s node inspect --pretty: %s", docker, got)
			}
			if got := m.with(t, docker, "node", "ps", "--format", "{{.Name}}", node); got != "plain.1\ndb.1" && got != "db.1\nplain.1" {
				return fmt.Errorf("%s node ps: %s", docker, got)
			}
		}
		if got := m.docker(t, "info"); !strings.Contains(got, "└ Left: 2 containers: db: local volume data; plain: no reschedule policy") {
			return fmt.Errorf("docker info: %s", got)
		}
		return nil
	})
	if got := m.docker(t, "ps", "-a", "--format", "{{.Names}}"); got != "site\nplain\ndb" && got != "plain\ndb\nsite" {
		t.Errorf("containers: %s", got)
	}
	stdout, stderr, exit := dockerCLI(t, m.addr, "node", "rm", node)
	if exit == 0 || !strings.Contains(stderr, "has 2 containers") {
		t.Errorf("node rm = %d %s%s", exit, stdout, stderr)
	}
	m.docker(t, "node", "update", "--availability", "active", node)
	eventually(t, 20*time.Second, func() error {
		if got := m.sql(t, "SELECT * FROM drain"); got != "" {
			return errors.New(got)
		}
		return nil
	})
	// docker cuts a duration to whole seconds: 0s would leave out what this second brought.
	if got := m.docker(t, "events", "--since", "5m", "--until", "-1s", "--filter", "type=swarm", "--filter", "event=reschedule", "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.from}}"); got != "reschedule site "+node {
		t.Errorf("events: %q", got)
	}
}

// Once with the cable out, so that the containers run on; once without power.
func TestF28ARealNodeIsLostAndComesBack(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, "-reschedule-after", "2s", engines[0].addr, engines[1].addr, engines[2].addr)
	m.docker(t, "run", "-d", "--name", "site", "--stop-signal", "KILL", "-p", "80", "-e", "WHO=site", "--restart", "always", "-v", "/keep", "-e", "reschedule:on-node-failure", "busybox", "sh", "-c", siteScript)
	m.docker(t, "exec", "site", "touch", "/keep/mine")
	for _, lose := range []struct {
		how        string
		lost, back func(*labEngine)
	}{
		{"unplugged", func(e *labEngine) { e.unplug(t) }, func(e *labEngine) { e.plug(t) }},
		{"without power", func(e *labEngine) { e.kill(t) }, func(e *labEngine) { e.restart(t) }},
	} {
		node := m.docker(t, "ps", "--filter", "name=^site$", "--format", `{{.Label "com.docker.swarm.node"}}`)
		old := m.docker(t, "inspect", "-f", "{{.Id}}", "site")
		e := engines[slices.IndexFunc(engines, func(e *labEngine) bool { return e.name == node })]
		lose.lost(e)
		eventually(t, 90*time.Second, func() error {
			if now := m.docker(t, "ps", "--filter", "name=^site$", "--format", `{{.Label "com.docker.swarm.node"}} {{.State}}`); strings.HasPrefix(now, node) || !strings.HasSuffix(now, " running") {
				return fmt.Errorf("%s: site is on %s; moves: %s", lose.how, now, m.sql(t, "SELECT name, step, outcome, error FROM moves"))
			}
			return nil
		})
		eventually(t, 20*time.Second, func() error {
			if got, err := page(t, m, "site"); err != nil || got != "I am site\n" {
				return fmt.Errorf("%s: site says %q, %v elsewhere", lose.how, got, err)
			}
			return nil
		})
		lose.back(e)
		began := time.Now()
		eventually(t, 60*time.Second, func() error {
			got := m.docker(t, "ps", "-a", "--no-trunc", "--filter", "name=site", "--filter", "node="+node, "--format", "{{.ID}} {{.Names}} {{.State}}")
			if got != old+" site-old-"+old[:12]+" exited" {
				return fmt.Errorf("%s: on the node that is back: %q", lose.how, got)
			}
			return nil
		})
		faultTook(t, 28, "real engine, "+lose.how+": the old container gave way", time.Since(began), 10*time.Second)
		if got := m.docker(t, "ps", "--filter", "name=^site$", "--format", "{{.Names}}"); got != "site" {
			t.Errorf("%s: containers of the name: %q", lose.how, got)
		}
		if got := m.sql(t, "SELECT why, from_node, outcome, old FROM moves ORDER BY id DESC LIMIT 1"); got != "node failure|"+node+"|moved|kept" {
			t.Errorf("%s: moves: %s", lose.how, got)
		}
		if lose.how == "unplugged" {
			e.docker(t, "start", "site-old-"+old[:12])
			e.docker(t, "exec", "site-old-"+old[:12], "ls", "/keep/mine") // its volume is as it was
			e.docker(t, "stop", "-t", "0", "site-old-"+old[:12])
		}
	}
}
