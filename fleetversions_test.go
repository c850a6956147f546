package main

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// What is skipped when an engine connects must not change what the cluster speaks.
func TestVersionsOfTheFleetAreThoseOfAFullCount(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	ranges := []versionRange{{ourLowest, defaultVersion}, {1012, defaultVersion}, {1024, 1047}, {1024, 1051}, {1044, 1051}, {1048, 1052}}
	skipped := 0
	for range 300 {
		ns := newNodes(nil, nil, nil)
		for id := range int64(6) {
			e, err := newEngine(id, fmt.Sprintf("tcp://10.0.0.%d:2375", id), nil, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			ns.engines[id] = &watched{engine: e}
		}
		for range 20 {
			e, says := ns.engines[random.Int64N(6)], ranges[random.IntN(len(ranges))]
			before := e.speaks()
			if random.IntN(2) == 0 && before.highest != 0 {
				says = before
			}
			pinged := versionRange{0, says.highest}
			if random.IntN(4) == 0 {
				pinged.highest = 1030
			}
			e.lowest.Store(int64(pinged.lowest))
			e.highest.Store(int64(pinged.highest))
			if random.IntN(2) == 0 {
				ns.countVersions() // another engine connects meanwhile
			}
			e.lowest.Store(int64(says.lowest))
			e.highest.Store(int64(says.highest))
			old := ns.fleet.Load()
			ns.noteVersions(before, pinged, says)
			got := ns.fleet.Load()
			if got == old {
				skipped++
			}
			ns.countVersions()
			if want := ns.fleet.Load(); *got != *want {
				t.Fatalf("noteVersions(%v, %v, %v) made %v, a full count %v", before, pinged, says, *got, *want)
			}
		}
	}
	if skipped == 0 {
		t.Error("nothing was skipped")
	}
}
