package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// What tests of the fault matrix measure (TestF01… to TestF73…, docs/faults.md) goes
// out as lines that "make faults" makes a table of:
//
//	FAULT 03 ok unhealthy after 14.2s (goal ≤ 20s)
//
// Whether a figure meets its goal is for the table to say. The tests themselves only
// have limits that a busy machine keeps.

// allFaults tells whether this is make faults.
func allFaults() bool { return os.Getenv("FAULTS") == "1" }

// slowFault leaves out what takes longer than "make test" can wait for.
func slowFault(t testing.TB, why string) {
	t.Helper()
	if !allFaults() {
		t.Skipf("%s: only in make faults", why)
	}
}

// faultTook reports how long something took.
func faultTook(t testing.TB, row int, what string, took, goal time.Duration) {
	t.Helper()
	faultLine(t, row, took <= goal, fmt.Sprintf("%s after %v (goal ≤ %v)", what, took.Round(time.Millisecond), goal))
}

// faultCount reports how many of something there were; unit may be empty.
func faultCount[N int | int64](t testing.TB, row int, what string, n, goal N, unit string) {
	t.Helper()
	if unit != "" {
		unit = " " + unit
	}
	faultLine(t, row, n <= goal, fmt.Sprintf("%s: %d%s (goal ≤ %d)", what, n, unit, goal))
}

// faultHeld reports a row that has no figure: what was seen to hold.
func faultHeld(t testing.TB, row int, what string) {
	t.Helper()
	faultLine(t, row, !t.Failed(), what)
}

// raise makes most the longer of two times.
func raise(most *atomic.Int64, took time.Duration) {
	for old := most.Load(); int64(took) > old && !most.CompareAndSwap(old, int64(took)); old = most.Load() {
	}
}

func faultLine(t testing.TB, row int, ok bool, text string) {
	t.Helper()
	verdict := "ok"
	if !ok {
		verdict = "NOT"
	}
	t.Logf("FAULT %02d %s %s", row, verdict, text)
}
