package main

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// F43: the manager is killed at any moment, again and again, while clients work.
func TestF43ManagerKilledUnderLoad(t *testing.T) {
	engines := labEngines(t)
	kills := 8
	if allFaults() {
		kills = 200
	}
	var addrs []string
	for _, e := range engines {
		addrs = append(addrs, e.addr)
	}
	m := startManager(t, addrs...)
	steady := []string{"steady-1", "steady-2", "steady-3"}
	for _, name := range steady {
		m.docker(t, "run", "-d", "--name", name, "busybox", "sleep", "100000")
	}
	inspect := append([]string{"inspect", "-f", "{{.Name}} {{.State.Running}} {{.State.StartedAt}} {{.State.Pid}}"}, steady...)
	before := m.docker(t, inspect...)
	l := startLoad(m.addr, 20)
	answers := int64(0)
	began, slowest := time.Now(), time.Duration(0)
	for i := range kills {
		// One kill in four comes while the manager is starting, wherever it has got to.
		if i%4 != 3 {
			enough := l.answers.Load() + rand.Int64N(40)
			eventually(t, time.Minute, func() error {
				if got := l.answers.Load(); got < enough {
					return fmt.Errorf("the load has %d answers, not %d", got, enough)
				}
				return nil
			})
		}
		time.Sleep(rand.N(200 * time.Millisecond)) // the moment is what is random
		m.kill9(t)
		m.start(t)
		if i%20 == 19 || i == kills-1 {
			again := time.Now()
			m.ready(t)
			slowest = max(slowest, time.Since(again))
		}
		if i%50 == 49 && i != kills-1 {
			answers += l.end(t)
			m.oracle(t, addrs...)
			l = startLoad(m.addr, 20)
		}
		if t.Failed() {
			break
		}
	}
	took := time.Since(began)
	answers += l.end(t)
	m.oracle(t, addrs...)
	if now := m.docker(t, inspect...); now != before {
		t.Errorf("containers that ran before the kills:\n%s\nafter them:\n%s", before, now)
	}
	t.Logf("%d kills in %v; ready again after at most %v", kills, took.Round(time.Second), slowest.Round(time.Millisecond))
	faultHeld(t, 43, fmt.Sprintf("%d kills over 3 real engines, %d answers: all right; nothing lost, doubled, stopped or left reserved", kills, answers))
}
