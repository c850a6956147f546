package main

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAPIDocsNameEveryRoute holds docs/api.md against the route table, both ways: the
// operations, and which of them are refused.
func TestAPIDocsNameEveryRoute(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, routed []string
	says := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]+ /[^`]*)` \\| ([^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
		says[m[1]] = m[2]
	}
	for _, r := range routes {
		op := r.method + " " + r.path
		routed = append(routed, op)
		for what, handle := range map[string]handler{"refused": noSwarm, "501": noPlugins} {
			refuses := reflect.ValueOf(r.handle).Pointer() == reflect.ValueOf(handle).Pointer()
			if documented := strings.HasPrefix(says[op], what); documented != refuses {
				t.Errorf("docs/api.md says of %s %q; %q there is %v in the route table", op, says[op], what, refuses)
			}
		}
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
