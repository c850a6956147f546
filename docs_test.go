package main

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestAPIDocsNameEveryRoute holds docs/api.md against the route table, both ways.
func TestAPIDocsNameEveryRoute(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, routed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]+ /[^`]*)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	for _, r := range routes {
		routed = append(routed, r.method+" "+r.path)
	}
	for _, op := range documented {
		if !slices.Contains(routed, op) {
			t.Errorf("docs/api.md has %s, the route table has not", op)
		}
	}
	for _, op := range routed {
		if !slices.Contains(documented, op) {
			t.Errorf("the route table has %s, docs/api.md has not", op)
		}
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(documented)))); n != len(documented) {
		t.Errorf("docs/api.md has %d operations, %d of them different", len(documented), n)
	}
}
