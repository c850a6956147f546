package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// classicNode is a node as classic Swarm's scheduler/strategy/weighted_node.go sees it.
type classicNode struct {
	name                                      string
	id                                        int
	totalCPUs, usedCPUs, totalMem, usedMemory int64
	containers, failures                      int
	weight                                    int64
}

// classicOrder ranks nodes by classic Swarm's formula, best first: the percentage in
// use of what is asked for, 100 for what is not, the sum plus or minus ten times the
// health indicator, and then the number of containers. Equal nodes are in the order of
// their ids, which classic leaves to chance.
func classicOrder(strategyName string, nodes []classicNode, cpus, memory int64) []classicNode {
	const engineFailureRetry = 3
	healthinessFactor := int64(-10)
	if strategyName == "binpack" {
		healthinessFactor = 10
	}
	var weighted []classicNode
	for _, n := range nodes {
		if n.totalMem < memory || n.totalCPUs < cpus {
			continue
		}
		cpuScore, memoryScore := int64(100), int64(100)
		if cpus > 0 {
			cpuScore = (n.usedCPUs + cpus) * 100 / n.totalCPUs
		}
		if memory > 0 {
			memoryScore = (n.usedMemory + memory) * 100 / n.totalMem
		}
		if cpuScore <= 100 && memoryScore <= 100 {
			indicator := int64(100 - n.failures*100/engineFailureRetry)
			n.weight = cpuScore + memoryScore + healthinessFactor*indicator
			weighted = append(weighted, n)
		}
	}
	slices.SortStableFunc(weighted, func(a, b classicNode) int {
		order := cmp.Or(cmp.Compare(a.weight, b.weight), cmp.Compare(a.containers, b.containers))
		if strategyName == "binpack" {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.id, b.id))
	})
	return weighted
}

// TestStrategiesAreClassicsFormula compares the node that is picked, and its score,
// with classic's on random clusters of mixed hardware. Room differs in one thing:
// classic's percentage is cut to a whole number, so that a node just over 100 % passes
// there; such nodes are kept out of the comparison.
func TestStrategiesAreClassicsFormula(t *testing.T) {
	t.Parallel()
	for _, strategyName := range []string{"spread", "binpack"} {
		t.Run(strategyName, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(3, 9))
			placed, refused := 0, 0
			for round := range 25 {
				st := testStore(t)
				st.sql(t, "UPDATE manager SET overcommit = 0")
				var nodes []classicNode
				for id := 1; id <= 1+rng.IntN(12); id++ {
					n := classicNode{name: fmt.Sprint("node-", id), id: id, totalCPUs: 1 + rng.Int64N(32), totalMem: (1 + rng.Int64N(64)) << 30,
						containers: rng.IntN(4), failures: max(0, rng.IntN(6)-3)}
					n.usedCPUs, n.usedMemory = rng.Int64N(n.totalCPUs+1), rng.Int64N(n.totalMem+1)
					nodes = append(nodes, n)
					st.sql(t, fmt.Sprintf(`INSERT INTO nodes (id, name, address, state, cpus, memory_bytes, used_nano_cpus, used_memory_bytes, containers, failures)
						VALUES (%d, '%s', 'tcp://10.0.0.%[1]d:2375', 'healthy', %[3]d, %d, %d, %d, %d, %d)`,
						id, n.name, n.totalCPUs, n.totalMem, n.usedCPUs*1e9, n.usedMemory, n.containers, n.failures))
				}
				sc := testScheduler(t, st, strategyName)
				for range 8 {
					cpus, memory := max(0, rng.Int64N(7)-2), max(0, rng.Int64N(8)-2)<<29
					candidates := slices.DeleteFunc(slices.Clone(nodes), func(n classicNode) bool {
						return cpus > 0 && n.usedCPUs+cpus > n.totalCPUs || memory > 0 && n.usedMemory+memory > n.totalMem
					})
					want := classicOrder(strategyName, candidates, cpus, memory)
					p, err := sc.placeBody(t.Context(), t, "", fmt.Sprintf(`{"Image": "busybox", "HostConfig": {"NanoCpus": %d, "Memory": %d}}`, cpus*1e9, memory))
					if len(want) == 0 {
						if err == nil {
							t.Errorf("round %d: %d CPUs, %d bytes went to %s, classic has no node", round, cpus, memory, p.nodeName)
						}
						refused++
						continue
					}
					if err != nil {
						t.Fatalf("round %d: %v, classic picks %s", round, err, want[0].name)
					}
					placed++
					health := int64(-10)
					if strategyName == "binpack" {
						health = 10
					}
					weight := want[0].weight - health*int64(100-want[0].failures*100/3)
					if got := st.one(t, "SELECT node || ' ' || score FROM placements WHERE id = ?", p.id); got != fmt.Sprint(want[0].name, " ", weight) {
						t.Errorf("round %d: %d CPUs, %d bytes went to %s, classic picks %s with %d; nodes %+v", round, cpus, memory, got, want[0].name, weight, nodes)
					}
					took := &nodes[want[0].id-1]
					took.usedCPUs, took.usedMemory, took.containers = took.usedCPUs+cpus, took.usedMemory+memory, took.containers+1
				}
			}
			if placed < 100 || refused < 5 {
				t.Errorf("%d placed, %d refused: too few of one kind to show anything", placed, refused)
			}
		})
	}
}
