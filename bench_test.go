package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// benchNodes is a store of n very large nodes of four sizes, no two with the same memory:
// one in four has storage=ssd, one in three zone=a.
func benchNodes(b *testing.B, n int) *store {
	b.Helper()
	st := testStore(b)
	st.sql(b, standardCluster)
	manyNodes(b, st, n)
	st.sql(b, `UPDATE nodes SET cpus = 1000000 << (id % 4), memory_bytes = (1 << (55 + id % 4)) - id * 4096;
		INSERT INTO node_labels SELECT id, 'storage', iif(id % 4 = 0, 'ssd', 'disk'), 'engine' FROM nodes;
		INSERT INTO node_labels SELECT id, 'zone', substr('abc', id % 3 + 1, 1), 'engine' FROM nodes`)
	return st
}

// constrained is a create with two constraints, one of them a glob, one a regular expression.
const constrained = `{"Image": "busybox", "Env": ["constraint:storage!=tape*", "constraint:zone==/^[abc]$/"]}`

// BenchmarkPlace is a decision with its durable reservation and its rows in the
// ledger, one after the other and eight at once, which share commits.
func BenchmarkPlace(b *testing.B) {
	for _, n := range []int{3, 100, 1000, 5000, 10000} {
		for _, shape := range []struct{ name, body string }{
			{"plain", `{"Image": "busybox"}`},
			{"memory", `{"Image": "busybox", "HostConfig": {"Memory": 67108864}}`},
			{"constraints", constrained},
		} {
			b.Run(fmt.Sprintf("nodes=%d/%s", n, shape.name), func(b *testing.B) { benchmarkPlace(b, n, shape.body, false) })
			b.Run(fmt.Sprintf("nodes=%d/%s/at-once=8", n, shape.name), func(b *testing.B) { benchmarkPlace(b, n, shape.body, true) })
		}
	}
}

// reportCPU adds the processor time of this process per operation, which moves less with
// what else the machine does than the time that has passed. Call what it returns at the end.
func reportCPU(b *testing.B) func() {
	before := usedCPU()
	return func() { b.ReportMetric(float64((usedCPU()-before).Nanoseconds())/1000/float64(b.N), "us-cpu/op") }
}

// usedCPU is the processor time of this process so far.
func usedCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkPlace(b *testing.B, nodes int, body string, atOnce bool) {
	sc := testScheduler(b, benchNodes(b, nodes), "spread")
	defer reportCPU(b)()
	if !atOnce {
		for b.Loop() {
			if _, err := sc.placeBody(b.Context(), b, "", body); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.SetParallelism(4) // × 2 processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := sc.placeBody(b.Context(), b, "", body); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkCreateRows writes what a create and a start leave in the database: the decision,
// the container, its three events, and its row as it is listed when it runs.
func BenchmarkCreateRows(b *testing.B) {
	for _, n := range []int{3, 1000} {
		b.Run("nodes="+strconv.Itoa(n), func(b *testing.B) {
			st := benchNodes(b, n)
			sc := testScheduler(b, st, "spread")
			var made atomic.Int64
			defer reportCPU(b)()
			for b.Loop() {
				id := fmt.Sprintf("%064x", made.Add(1))
				w, _, err := readCreate([]byte(`{"Image": "busybox", "HostConfig": {"Memory": 1048576}}`), &call{query: url.Values{}})
				if err != nil {
					b.Fatal(err)
				}
				p, err := sc.place(b.Context(), w)
				if err != nil {
					b.Fatal(err)
				}
				if err := st.created(b.Context(), p, w.row(id, p.name, p.nodeName), time.Millisecond); err != nil {
					b.Fatal(err)
				}
				for i, action := range []string{"create", "connect", "start"} {
					ev := engineEvent{Type: "container", Action: action, TimeNano: made.Load()*3 + int64(i)}
					ev.Actor.ID = id
					ev.raw = json.RawMessage(`{"status":"` + action + `","id":"` + id + `","from":"busybox","Type":"container","Action":"` + action +
						`","Actor":{"ID":"` + id + `","Attributes":{"image":"busybox","name":"` + p.name + `"}},"scope":"local","time":1700000000,"timeNano":1700000000000000000}`)
					if err := st.putEvents(b.Context(), p.node, p.nodeName, []engineEvent{ev}, func(engineEvent) {}); err != nil {
						b.Fatal(err)
					}
				}
				err = st.write(b.Context(), func(t *tx) error {
					n, err := t.nodeFace(p.node)
					if err != nil {
						return err
					}
					row, err := n.container(entry(id, p.name, map[string]any{"Status": "Up Less than a second", "Created": time.Now().Unix(), "Labels": map[string]string{swarmIDLabel: w.swarmID},
						"NetworkSettings": map[string]any{"Networks": map[string]any{"bridge": map[string]any{"NetworkID": "abc", "IPAddress": "172.17.0.2"}}}}))
					if err != nil {
						return err
					}
					_, err = t.putContainer(n, row)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// nowhere is a client that reads as fast as it is written to, and notes the first byte.
type nowhere struct {
	header http.Header
	began  time.Time
	first  time.Duration
	bytes  int64
}

func (w *nowhere) Header() http.Header { return w.header }
func (w *nowhere) WriteHeader(int)     {}
func (w *nowhere) Write(p []byte) (int, error) {
	if w.bytes == 0 {
		w.first = time.Since(w.began)
	}
	w.bytes += int64(len(p))
	return len(p), nil
}

// benchLists is what one of many nodes lists: 30 containers, the oldest half an hour old.
func benchLists(node int) lists {
	bridge := fmt.Sprintf("%064x", node)
	var l lists
	for i := range 30 {
		id := fmt.Sprintf("%032x%032x", node, i)
		l.containers = append(l.containers, entry(id, fmt.Sprintf("web-%d-%d", node, i), map[string]any{"Created": 1_700_000_000 - 60*i, "Labels": map[string]string{"com.docker.compose.project": "shop", "com.docker.compose.service": "web"},
			"Ports":           []any{map[string]any{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8000 + i%1000, "Type": "tcp"}},
			"NetworkSettings": map[string]any{"Networks": map[string]any{"bridge": map[string]any{"NetworkID": bridge, "EndpointID": id, "Gateway": "172.17.0.1", "IPAddress": "172.17.0.2", "MacAddress": "02:42:ac:11:00:02"}}}}))
	}
	for _, name := range []string{"bridge", "host", "none"} {
		l.networks = append(l.networks, json.RawMessage(fmt.Sprintf(`{"Name":%q,"Id":"%064x","Created":"2026-01-05T08:00:00Z","Scope":"local","Driver":"bridge"}`, name, node<<8|int(name[0]))))
	}
	l.networks[0] = json.RawMessage(strings.Replace(string(l.networks[0]), fmt.Sprintf("%064x", node<<8|'b'), bridge, 1))
	return l
}

// BenchmarkStartRows writes what 1,000 nodes list, 64 at once, as at the start of a manager.
func BenchmarkStartRows(b *testing.B) {
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		st := benchNodes(b, 1000)
		var all []lists
		for node := range 1000 {
			all = append(all, benchLists(node))
		}
		b.StartTimer()
		used -= usedCPU()
		var g errgroup.Group
		g.SetLimit(64)
		for node, l := range all {
			g.Go(func() error {
				_, err := st.putLists(b.Context(), int64(node+1), l, 0)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
		used += usedCPU()
	}
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "us-cpu/op")
}

// BenchmarkContainerList is docker ps -a of nodes with 30 containers each, without the network.
func BenchmarkContainerList(b *testing.B) {
	for _, n := range []int{1000, 30000} {
		b.Run("containers="+strconv.Itoa(n), func(b *testing.B) {
			st := benchNodes(b, n/30)
			for node := range n / 30 {
				if _, err := st.putLists(b.Context(), int64(node+1), benchLists(node), 0); err != nil {
					b.Fatal(err)
				}
			}
			c := &cluster{store: st, nodes: newNodes(nil, st, nil), infoNodes: 50, names: "plain"}
			req, err := http.NewRequest(http.MethodGet, "/containers/json?all=1", nil)
			if err != nil {
				b.Fatal(err)
			}
			var first []time.Duration
			w := &nowhere{}
			defer reportCPU(b)()
			for b.Loop() {
				w = &nowhere{header: http.Header{}, began: time.Now()}
				if err := containerList(c, w, req, &call{version: 1041, query: req.URL.Query()}); err != nil {
					b.Fatal(err)
				}
				first = append(first, w.first)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "us/container")
			b.ReportMetric(float64(w.bytes)/(1<<20), "MiB")
			b.ReportMetric(float64(median(first).Microseconds()), "us-first-byte")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkInspect asks one simulated engine straight and through the manager, turn
// about. The quotient of the medians is what the goals are about: at most 2.1.
func BenchmarkInspect(b *testing.B) {
	e := newFakeEngine(b)
	id := e.addContainer("web", "busybox", true, nil)
	_, url := testCluster(b, e)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	get := func(base string) time.Duration {
		began := time.Now()
		resp, err := client.Get(base + "/v1.41/containers/" + id + "/json")
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp.Status, err)
		}
		return time.Since(began)
	}
	var direct, through []time.Duration
	for b.Loop() {
		direct = append(direct, get("http://"+e.addr()))
		through = append(through, get(url))
	}
	b.ReportMetric(float64(median(direct).Microseconds()), "us-direct")
	b.ReportMetric(float64(median(through).Microseconds()), "us-through")
	b.ReportMetric(float64(median(through))/float64(median(direct)), "×direct")
}

// BenchmarkWrite is the smallest write there is: what a commit costs, alone and shared.
func BenchmarkWrite(b *testing.B) {
	st := benchNodes(b, 3)
	var n atomic.Int64
	write := func(b *testing.B) {
		err := st.write(b.Context(), func(t *tx) error {
			_, err := t.exec("INSERT OR REPLACE INTO execs (exec_id, node_id, container_id) VALUES (?, 1, 'c')", n.Add(1)%10000)
			return err
		})
		if err != nil {
			b.Error(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			write(b)
		}
	})
	b.Run("at-once=64", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				write(b)
			}
		})
	})
}
