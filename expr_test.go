package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestParseExpr(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in, key, value string
		not, soft, exact     bool
		canonical            string // in, if empty
	}{
		{name: "equal", in: "storage==ssd", key: "storage", value: "ssd", exact: true},
		{name: "not equal", in: "storage!=ssd", key: "storage", value: "ssd", not: true, exact: true},
		{name: "soft", in: "storage==~ssd", key: "storage", value: "ssd", soft: true, exact: true},
		{name: "soft regex", in: "node!=~/^ci-/", key: "node", value: "/^ci-/", not: true, soft: true},
		{name: "key of one character", in: "a==b", key: "a", value: "b", exact: true},
		{name: "key with dots, dashes and slashes", in: "example.com/disk-type_2==x", key: "example.com/disk-type_2", value: "x", exact: true},
		{name: "blanks are trimmed", in: " storage == ~ ssd drive ", key: "storage", value: "ssd drive", soft: true, exact: true, canonical: "storage==~ssd drive"},
		{name: "a value may hold !=", in: "a==b!=c", key: "a", value: "b!=c", exact: true},
		{name: "a value may hold ==", in: "a!=b==c", key: "a", value: "b==c", not: true, exact: true},
		{name: "a value may start with =", in: "a===b", key: "a", value: "=b", exact: true},
		{name: "!== is != and a value", in: "a!==b", key: "a", value: "=b", not: true, exact: true},
		{name: "a value may hold commas and @", in: "image==redis@sha256:ab,cd", key: "image", value: "redis@sha256:ab,cd", exact: true},
		{name: "a second ~ belongs to the value", in: "a==~~b", key: "a", value: "~b", soft: true, exact: true},
		{name: "glob", in: "node==web*", key: "node", value: "web*"},
		{name: "a lone slash is plain", in: "path==/", key: "path", value: "/", exact: true},
		{name: "a path is plain", in: "path==/data", key: "path", value: "/data", exact: true},
		{name: "a whitelist", in: "node==n1|n2", key: "node", value: "n1|n2", exact: true},
		{name: "letters of any language in values", in: "stadt==Zürich", key: "stadt", value: "Zürich", exact: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, err := parseExpr("constraint", tt.in)
			if err != nil {
				t.Fatalf("parseExpr(%q): %v", tt.in, err)
			}
			if e.key != tt.key || e.value != tt.value || e.not != tt.not || e.soft != tt.soft || e.exact() != tt.exact {
				t.Errorf("parseExpr(%q) = %+v, exact %v, want %+v", tt.in, e, e.exact(), tt)
			}
			want := tt.canonical
			if want == "" {
				want = tt.in
			}
			if got := e.String(); got != want {
				t.Errorf("parseExpr(%q).String() = %q, want %q", tt.in, got, want)
			}
		})
	}
}

func TestParseExprRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, in, want string }{
		{"one =", "storage=ssd", `constraint "storage=ssd": expected == or !=`},
		{"nothing", "", `constraint "": expected == or !=`},
		{"one character", "=", `constraint "=": expected == or !=`},
		{"no value", "a==", `constraint "a==": value is missing`},
		{"no value behind ~", "a==~ ", `constraint "a==~ ": value is missing`},
		{"no key", "==b", `constraint "==b": key is missing`},
		{"key starts with a digit", "1a==b", `constraint "1a==b": key "1a" is invalid, expected a letter or _, then letters, digits, and any of _ . - /`},
		{"key with a blank", "a b==c", `constraint "a b==c": key "a b" is invalid, expected a letter or _, then letters, digits, and any of _ . - /`},
		{"control character", "a==b\x1b[1m", `constraint "a==b\x1b[1m": value holds a character that can not be printed`},
		{"not UTF-8", "a==\xff", `constraint "a==\xff": value holds a character that can not be printed`},
		{"bad regex", "node==/(/", `constraint "node==/(/": regular expression "(": missing closing )`},
		{"no lookahead", "node==/(?=a)/", `constraint "node==/(?=a)/": regular expression "(?=a)": invalid or unsupported Perl syntax`},
		{"regex that compiles to a large program", "node==/(a{50}){19}(b{50}){19}(c{50}){19}(d{50}){19}(e{50}){19}/",
			`constraint "node==/(a{50}){19}(b{50}){19}(c{50}){19}(d{50}){19}(e{50}){19}/": regular expression "(a{50}){19}(b{50}){19}(c{50}){19}(d{50}){19}(e{50}){19}": too large, use smaller repeat counts`},
		{"long", "a==" + strings.Repeat("b", 5000), `constraint "a==bbbbbbbbbbbbbbbbbbbbbbbbbbbbb"…: 5003 bytes long, at most 4096 are allowed`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, err := parseExpr("constraint", tt.in)
			if err == nil || err.Error() != tt.want {
				t.Errorf("parseExpr(%q) = %v, %v, want error %s", tt.in, e, err, tt.want)
			}
		})
	}
	long := "a==/" + strings.Repeat("b", 1025) + "/"
	if _, err := parseExpr("affinity", long); err == nil || !strings.HasSuffix(err.Error(), "regular expression is 1025 bytes long, at most 1024 are allowed") {
		t.Errorf("parseExpr of a regex of 1025 bytes: %v, want a refusal", err)
	}
	if _, err := parseExpr("affinity", "a==/^[a-f0-9]{64}$|^.{1,255}$/"); err != nil {
		t.Errorf("parseExpr of an ordinary regex: %v", err)
	}
}

func TestExprMatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in, value string
		want      bool
	}{
		{"a==ssd", "ssd", true},
		{"a==ssd", "SSD", false},
		{"a==ssd", "ssds", false},
		{"a!=ssd", "ssd", true}, // the operator is not match's business
		{"a==web*", "web", true},
		{"a==web*", "web-1", true},
		{"a==web*", "my-web", false},
		{"a==*web", "my-web", true},
		{"a==*web", "web-1", false},
		{"a==*", "", true},
		{"a==a*b*c", "axxbxxc", true},
		{"a==a*b*c", "axxcxxb", false},
		{"a==a*a", "a", false},
		{"a==ab*ab", "abab", true},
		{"a==**x", "x", true},
		{"a==*aab", "aaab", true},
		{"a==*a*b", "ab", true},
		{"a==3.1", "3x1", false}, // classic took the dot for any character
		{"a==n[1]", "n[1]", true},
		{"a==/ci-/", "my-ci-1", true},
		{"a==/^ci-/", "my-ci-1", false},
		{"a==/(?i)SSD/", "ssd", true},
		{"a==/^(a|b)$/", "b", true},
		{"a==//", "anything", true},
	}
	for _, tt := range tests {
		e, err := parseExpr("constraint", tt.in)
		if err != nil {
			t.Errorf("parseExpr(%q): %v", tt.in, err)
			continue
		}
		if got := e.match(tt.value); got != tt.want {
			t.Errorf("%s match(%q) = %v, want %v", tt.in, tt.value, got, tt.want)
		}
	}
}

func TestCutExpressions(t *testing.T) {
	t.Parallel()
	kept, found := cutExpressions([]string{
		"PATH=/bin", "constraint:storage==ssd", "A=constraint:x==y", "affinity:container!=~web",
		"Constraint:a==b", "constraint:zone==a", "whitelist:node==n1|n2", "reschedule:on-node-failure",
		" constraint:a==b", "constraint", "http://x=y",
	})
	if want := []string{"PATH=/bin", "A=constraint:x==y", "Constraint:a==b", " constraint:a==b", "constraint", "http://x=y"}; !slices.Equal(kept, want) {
		t.Errorf("cutExpressions kept %q, want %q", kept, want)
	}
	want := map[string][]string{
		"constraint": {"storage==ssd", "zone==a"},
		"affinity":   {"container!=~web"},
		"whitelist":  {"node==n1|n2"},
		"reschedule": {"on-node-failure"},
	}
	if !maps.EqualFunc(found, want, slices.Equal) {
		t.Errorf("cutExpressions found %q, want %q", found, want)
	}
}

func TestLabelExpressions(t *testing.T) {
	t.Parallel()
	found, err := labelExpressions(map[string]string{
		expressionLabel("constraint"): ` ["storage==ssd","zone==a"]`,
		expressionLabel("affinity"):   "container==web*",
		expressionLabel("whitelist"):  "[]",
		expressionLabel("reschedule"): " ",
		"other":                       "[",
	})
	want := map[string][]string{"constraint": {"storage==ssd", "zone==a"}, "affinity": {"container==web*"}}
	if err != nil || !maps.EqualFunc(found, want, slices.Equal) {
		t.Errorf("labelExpressions = %q, %v, want %q", found, err, want)
	}
	for _, bad := range []string{`["a==b"`, `[1]`, `["a==b"] x`, `[["a==b"]]`, "[" + strings.Repeat(`"a==b",`, 256) + `"a==b"]`} {
		_, err := labelExpressions(map[string]string{"com.docker.swarm.affinities": bad})
		if err == nil || !strings.HasPrefix(err.Error(), "label com.docker.swarm.affinities: ") {
			t.Errorf("labelExpressions(%.40s) = %v, want an error that names the label", bad, err)
		}
	}
}

func FuzzParseExpr(f *testing.F) {
	for _, s := range []string{"storage==ssd", "node!=~/^ci-/", "a === b", "a!==~~b*", "a==//", "x/y.z-1!=\u2028", "a==/((a{9}){9}){9}/"} {
		f.Add(s, "ssd")
	}
	f.Fuzz(func(t *testing.T, s, value string) {
		e, err := parseExpr("constraint", s)
		if err != nil {
			return
		}
		again, err := parseExpr("constraint", e.String())
		if err != nil {
			t.Fatalf("parseExpr(%q) = %s, which does not parse: %v", s, e, err)
		}
		if again.key != e.key || again.not != e.not || again.soft != e.soft || again.value != e.value || again.exact() != e.exact() {
			t.Errorf("parseExpr(%q) = %+v, and from its text %+v", s, e, again)
		}
		if e.match(value) != again.match(value) {
			t.Errorf("%s and its text disagree on %q", e, value)
		}
		if e.exact() && e.match(value) != (e.value == value) {
			t.Errorf("%s is exact, match(%q) = %v", e, value, e.match(value))
		}
	})
}
