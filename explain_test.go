package main

import (
	"encoding/json"
	"errors"
	"net/url"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Every scenario of testdata/placement is an oracle: explain must name the node, or
// the refusal, that place then comes to, and leave the database as it was.
func TestExplainDecidesAsPlaceDoes(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/placement/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			s := readScenario(t, file)
			u, err := url.Parse(s.path)
			if err != nil {
				t.Fatal(err)
			}
			version, _ := splitVersion(u.Path)
			for _, want := range s.want {
				if want[0] == "random" {
					continue // its seed is drawn anew
				}
				st := testStore(t)
				st.sql(t, standardCluster)
				st.sql(t, s.sql)
				w, _, err := readCreate([]byte(s.body), &call{version: looseVersion(version), query: u.Query()})
				if err != nil {
					continue // does not come as far as placement
				}
				sc := testScheduler(t, st, want[0])
				sc.cores = st.one(t, "SELECT cpu_shares FROM manager") == "cores"
				before := st.one(t, ledgerRows)
				db, err := openReader(t.Context(), st.path)
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				var x *explanation
				if err := readTx(t.Context(), db, func(t *tx) error { x, err = sc.explain(t, w); return err }); err != nil {
					t.Fatal(err)
				}
				if after := st.one(t, ledgerRows); after != before {
					t.Errorf("%s rows in the ledger after explain, %s before", after, before)
				}
				p, err := sc.place(t.Context(), w)
				if err != nil && (x.Node != "" || x.Message != asRefusal(err).Error()) {
					t.Errorf("%s: explain = %q %q, place = %v", want[0], x.Node, x.Message, err)
				}
				if err == nil && x.Node != p.nodeName {
					t.Errorf("%s: explain = %q %q, place chose %s", want[0], x.Node, x.Message, p.nodeName)
				}
				if errors.As(err, new(*errNameTaken)) {
					continue
				}
				ledger := st.all(t, "SELECT node, refused_by, coalesce(score, '') FROM placement_nodes ORDER BY address")
				got := map[string]string{}
				for _, n := range x.Nodes {
					score := ""
					if n.Score != nil {
						score = jsonText(*n.Score)
					}
					got[n.Node] = n.Node + "|" + n.RefusedBy + "|" + score
				}
				for _, line := range strings.Split(strings.TrimSpace(ledger), "\n") {
					node, _, _ := strings.Cut(line, "|")
					if line != "" && got[node] != line {
						t.Errorf("%s: explain has %q, the ledger %q", want[0], got[node], line)
					}
				}
			}
		})
	}
}

const ledgerRows = "SELECT (SELECT count(*) FROM placements) + (SELECT count(*) FROM placement_nodes) + (SELECT count(*) FROM reservations)"

const explainCluster = standardCluster + `;
	UPDATE nodes SET used_memory_bytes = 3221225472, containers = 2, slots = 5 WHERE id = 1;
	UPDATE nodes SET state = 'unhealthy' WHERE id = 3;
	INSERT INTO node_labels VALUES (1, 'storage', 'ssd', 'engine'), (2, 'storage', 'ssd', 'engine')`

func TestExplainCommand(t *testing.T) {
	t.Parallel()
	st, path := clusterFile(t, explainCluster)
	got, err := swarmlite(t, "explain", "-db", path, "-it", "--rm", "-m", "512m", "-e", "constraint:storage==ssd", "-e", "affinity:image==~redis", "nginx", "-m", "9g")
	want := `NODE     FITS   SCORE   WISHES   CONTAINERS   FREE CPUS   FREE MEMORY   FREE SLOTS   REFUSED BECAUSE IT
node-2   yes    112     0 of 1   0            4.00        4GiB          -            
node-1   yes    187     0 of 1   2            4.00        1GiB          3            
node-3   no     -       0 of 1   0            4.00        4GiB          -            is not healthy

spread would choose node-2: 2 of 3 fit
`
	if err != nil || got != want {
		t.Errorf("explain: %v\n%s\nwant\n%s", err, got, want)
	}
	got, err = swarmlite(t, "explain", "--memory=8g", "--db="+path, "nginx")
	if want := "no node fits: 2 of 3 have less than 8GiB of memory free, 1 is not healthy (node-1, node-2; node-3); the largest node that qualifies is node-1 with 4GiB of memory in all"; err == nil || err.Error() != want {
		t.Errorf("explain of too much memory: %v\n%s", err, got)
	}
	if _, err := swarmlite(t, "explain", "-db", path, "-m", "3500m", "--cpus=4", "-e", "constraint:node==node-1", "-l", "com.docker.swarm.wait=10m", "nginx"); err == nil || !strings.HasPrefix(err.Error(), "would wait in line for 10m; no node fits: 1 of 3 is not healthy, 1 fails constraint node==node-1, 1 has less than 3.418GiB of memory free") {
		t.Errorf("explain of what would wait: %v", err)
	}
	// -wait is in the manager's row; the create's own label comes first.
	if err := st.begin(t.Context(), managerRow{strategy: "spread", wait: 90 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	st.sql(t, "UPDATE nodes SET state = iif(id = 3, 'unhealthy', 'healthy')")
	for label, want := range map[string]string{
		"tier=front":                 "would wait in line for 1h30m (-wait); no node fits: ",
		"com.docker.swarm.wait=10m":  "would wait in line for 10m; no node fits: ",
		"com.docker.swarm.wait=0":    "no node fits: ",
		"com.docker.swarm.wait=long": `explain: label com.docker.swarm.wait "long": expected a duration such as 10m`,
	} {
		if _, err := swarmlite(t, "explain", "-db", path, "-m", "3500m", "--cpus=4", "-e", "constraint:node==node-1", "-l", label, "nginx"); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("explain with -wait and label %s: %v, want %s", label, err, want)
		}
	}
	if _, err := swarmlite(t, "explain", "-db", path, "-m", "5g", "-l", "com.docker.swarm.wait=10m", "nginx"); err == nil || !strings.HasPrefix(err.Error(), "no node fits: ") {
		t.Errorf("explain of what can never fit: %v", err)
	}
	got, err = swarmlite(t, "explain", "-db", path, "-m2g", "-json", "nginx")
	var x explanation
	if e := json.Unmarshal([]byte(got), &x); e != nil || err != nil {
		t.Fatal(got, e, err)
	}
	if x.Node != "node-2" || x.Fitting != 1 || len(x.Nodes) != 3 || x.Nodes[1].Filter == "" || x.Nodes[0].Rank != 1 || x.Nodes[1].Rank != 0 {
		t.Errorf("explain -json = %s", got)
	}
}

func TestExplainShowsWhatIsFreeOfTheThingsAskedFor(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, explainCluster+`;
		INSERT INTO node_resources VALUES (1, 'gpu', 4, '[]'), (2, 'gpu', 2, '["0","1"]'), (2, 'fpga', 1, '[]');
		INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES (1, 1, 'cc', 'db', '', 'running', 1, '{}');
		INSERT INTO resources (node_id, container, name, amount, device) VALUES (1, 1, 'gpu', 3, '')`)
	got, err := swarmlite(t, "explain", "--db", path, "--gpus", "2", "nginx")
	want := `NODE     FITS   SCORE   CONTAINERS   FREE CPUS   FREE MEMORY   FREE GPU   FREE SLOTS   REFUSED BECAUSE IT
node-2   yes    200     0            4.00        4GiB          2          -            
node-3   no     -       0            4.00        4GiB          0          -            is not healthy
node-1   no     -       3            4.00        1GiB          1          2            has less than 2 gpu free

spread would choose node-2, the only one of 3 that fits
`
	if err != nil || got != want {
		t.Errorf("explain --gpus 2: %v\n%s\nwant\n%s", err, got, want)
	}
	got, err = swarmlite(t, "explain", "--db", path, "--json", "nginx")
	if err != nil || !strings.Contains(got, `"free_resources":{"fpga":1,"gpu":2}`) {
		t.Errorf("explain --json: %v\n%s", err, got)
	}
}

// node/name names what several nodes have, as in a create.
func TestExplainResolvesNodeSlashName(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, standardCluster+`;
		INSERT INTO volumes (node_id, name, driver, scope, created_at, summary) VALUES (1, 'data', 'local', 'local', '2026-01-01', '{}'), (2, 'data', 'local', 'local', '2026-01-02', '{}');
		INSERT INTO networks (node_id, network_id, name, driver, scope, created_at, summary) VALUES (1, 'aa', 'front', 'bridge', 'local', '', '{}'), (3, 'bb', 'front', 'bridge', 'local', '', '{}');
		INSERT INTO containers (id, node_id, container_id, name, image, state, created_at, summary) VALUES (1, 2, 'cc', 'db', '', 'running', 1, '{}')`)
	for _, c := range []struct{ flags, want string }{
		{"-v data:/data", "node-1"}, // the oldest
		{"-v node-2/data:/data", "node-2"},
		{"--mount src=node-2/data,dst=/data", "node-2"},
		{"--network node-3/front", "node-3"},
		{"--network container:node-2/db", "node-2"},
		{"--link node-2/db:db --json", `"node":"node-2"`},
		{"--volumes-from node-2/db:ro", "node-2"},
	} {
		got, err := swarmlite(t, append(append([]string{"explain", "--db", path}, strings.Fields(c.flags)...), "nginx")...)
		if !strings.Contains(c.want, `"`) {
			c.want = "spread would choose " + c.want
		}
		if err != nil || !strings.Contains(got, c.want) {
			t.Errorf("explain %s: %v\n%s\nwant %s", c.flags, err, got, c.want)
		}
	}
	_, err := swarmlite(t, "explain", "--db", path, "-v", "node-3/data:/data", "nginx")
	if err == nil || !strings.HasPrefix(err.Error(), "no node fits: volume data is on node-1, which fails constraint node==node-3, and on node-2") {
		t.Errorf("explain of a volume that the node does not have: %v", err)
	}
}

func TestExplainCommandRefusals(t *testing.T) {
	t.Parallel()
	_, path := clusterFile(t, explainCluster)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--memroy", "1g", "nginx"}, "explain: unknown flag: --memroy; swarmlite explain -h tells more"},
		{[]string{"-itx", "nginx"}, "explain: unknown shorthand flag: 'x' in -itx; swarmlite explain -h tells more"},
		{[]string{"--name"}, "explain: flag needs an argument: --name; swarmlite explain -h tells more"},
		{[]string{"-m", "1g"}, "explain: expected an image behind the flags; swarmlite explain -h tells more"},
		{[]string{"-m", "much", "nginx"}, `explain: invalid argument "much" for --memory: invalid size: 'much'; swarmlite explain -h tells more`},
		{[]string{"-e", "constraint:storage=ssd", "nginx"}, `explain: constraint "storage=ssd": expected == or !=`},
		{[]string{"-l", "com.docker.swarm.wait=soon", "nginx"}, `explain: label com.docker.swarm.wait "soon": expected a duration such as 10m`},
	} {
		if _, err := swarmlite(t, append([]string{"explain", "-db", path}, c.args...)...); err == nil || err.Error() != c.want {
			t.Errorf("explain %q: %v\nwant %s", c.args, err, c.want)
		}
	}
}

// The bodies wanted here are what docker 28.2 was seen to send.
func TestCreateFlagsReadAsDockerDoes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, want string }{
		{"nginx -m 1g", `{"Image":"nginx"}`},
		{"-dit --rm --init=false -c 512 nginx", `{"Image":"nginx","HostConfig":{"CpuShares":512}}`},
		{"--cpus 1.5 --memory=512m --memory-reservation 256m nginx", `{"Image":"nginx","HostConfig":{"NanoCpus":1500000000,"Memory":536870912,"MemoryReservation":268435456}}`},
		{"--cpu-quota 50000 --cpu-period 100000 nginx", `{"Image":"nginx","HostConfig":{"CpuQuota":50000,"CpuPeriod":100000}}`},
		{"-p 8080:80 -p127.0.0.1:53:53/udp --publish=90 nginx", `{"Image":"nginx","ExposedPorts":{"80/tcp":{},"53/udp":{},"90/tcp":{}},"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}],"53/udp":[{"HostIp":"127.0.0.1","HostPort":"53"}],"90/tcp":[{"HostIp":"","HostPort":""}]}}}`},
		{"-p published=8080,target=80,protocol=udp nginx", `{"Image":"nginx","ExposedPorts":{"80/udp":{}},"HostConfig":{"PortBindings":{"80/udp":[{"HostIp":"","HostPort":"8080"}]}}}`},
		{"-p 8000-8001:80-81 nginx", `{"Image":"nginx","ExposedPorts":{"80/tcp":{},"81/tcp":{}},"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8000"}],"81/tcp":[{"HostIp":"","HostPort":"8001"}]}}}`},
		{"--network host --expose 80-81 --expose=53/udp nginx", `{"Image":"nginx","ExposedPorts":{"80/tcp":{},"81/tcp":{},"53/udp":{}},"HostConfig":{"NetworkMode":"host"},"NetworkingConfig":{"EndpointsConfig":{"host":{}}}}`},
		{"-e A=1 -eB=2 -l k=v --label empty nginx", `{"Image":"nginx","Env":["A=1","B=2"],"Labels":{"k":"v","empty":""}}`},
		{"--network one --net name=two,alias=x nginx", `{"Image":"nginx","HostConfig":{"NetworkMode":"one"},"NetworkingConfig":{"EndpointsConfig":{"one":{},"two":{}}}}`},
		{"--network container:db --ipc container:a --pid container:b --link c:d --volumes-from e:ro nginx", `{"Image":"nginx","HostConfig":{"NetworkMode":"container:db","IpcMode":"container:a","PidMode":"container:b","Links":["c:d"],"VolumesFrom":["e:ro"]}}`},
		{"-v data:/data -v /anonymous --mount src=vol,dst=/x --mount type=bind,source=/a,target=/b,readonly nginx", `{"Image":"nginx","HostConfig":{"Binds":["data:/data"],"Mounts":[{"Type":"volume","Source":"vol","Target":"/x"},{"Type":"bind","Source":"/a","Target":"/b"}]}}`},
		{"--gpus all nginx", `{"Image":"nginx","HostConfig":{"DeviceRequests":[{"Capabilities":[["gpu"]],"Count":-1}]}}`},
		{"--gpus 2 --runtime nvidia nginx", `{"Image":"nginx","HostConfig":{"DeviceRequests":[{"Capabilities":[["gpu"]],"Count":2}],"Runtime":"nvidia"}}`},
		{`--gpus "device=0,1" nginx`, `{"Image":"nginx","HostConfig":{"DeviceRequests":[{"Capabilities":[["gpu"]],"DeviceIDs":["0","1"]}]}}`},
		{"--device /dev/fuse --device nvidia.com/gpu=0 nginx", `{"Image":"nginx","HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0"]}]}}`},
		{"--sig-proxy=false --detach-keys ctrl-a --ulimit nofile=1 -h host -u 0 -w / -a stdout -- nginx sh -c true", `{"Image":"nginx"}`},
	} {
		args := strings.Fields(c.line)
		var f createFlags
		if err := f.parse(args, nil); err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		var got, want createRequest
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(c.want, err)
		}
		if err := json.Unmarshal([]byte(jsonText(f.body)), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", c.line, jsonText(f.body), jsonText(want))
		}
	}
}

// The CLI's own help is the list: a flag that it has and we do not know would be refused.
func TestCreateFlagsKnowsEveryFlagOfTheCLI(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("docker"); err != nil {
		missing(t, "the docker command")
	}
	for _, command := range []string{"create", "run"} {
		help := dockerOK(t, "unix:///nowhere", command, "--help")
		_, help, _ = strings.Cut(help, "Options:")
		found := 0
		for _, line := range strings.Split(help, "\n") {
			fields := strings.Fields(line)
			if len(fields) > 0 && len(fields[0]) == 3 && fields[0][0] == '-' && fields[0][2] == ',' {
				fields = fields[1:]
			}
			if len(fields) == 0 || !strings.HasPrefix(fields[0], "--") || fields[0] == "--help" || !strings.HasPrefix(strings.TrimLeft(line, " "), "-") {
				continue
			}
			found++
			// A switch is followed by its description, which begins with a capital and has blanks before it.
			value := !strings.Contains(line, fields[0]+"  ")
			var f createFlags
			args := []string{fields[0], "x", "image"}
			if !value {
				args = []string{fields[0], "image"}
			}
			err := f.parse(args, nil)
			if err != nil && !strings.HasPrefix(err.Error(), "invalid argument") || err == nil && f.body.Image != "image" {
				t.Errorf("docker %s %s: %v, image %q", command, fields[0], err, f.body.Image)
			}
		}
		if found < 90 {
			t.Errorf("%d flags in docker %s --help, want more than 90", found, command)
		}
	}
}
