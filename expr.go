package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of one request's expressions. Nested repeats make a large program of a
// short pattern, so its compiled size is bounded too.
const (
	maxExprs        = 256
	maxExprBytes    = 4 << 10
	maxPatternBytes = 1 << 10
	maxPatternSize  = 4096
)

// expressionLabels maps a kind of expression to the label that carries it on a
// container, as a JSON array of strings. The same names are in use since
// classic Swarm.
var expressionLabels = map[string]string{
	"constraint": "com.docker.swarm.constraints",
	"affinity":   "com.docker.swarm.affinities",
	"whitelist":  "com.docker.swarm.whitelists",
	"reschedule": "com.docker.swarm.reschedule-policies",
}

// expr is one parsed placement expression such as storage==ssd or node!=~/^ci-/.
type expr struct {
	key     string
	not     bool           // != instead of ==
	soft    bool           // ~: preferred, not demanded
	value   string         // as written, without the ~
	pattern *regexp.Regexp // nil unless value is /regex/
}

// parseExpr reads key OP [~]value, where OP is == or != and the first of them
// in s splits it, so that a value may hold the other. kind (constraint,
// affinity, …) is for the error, which quotes s. Unlike classic Swarm it takes
// keys of one character and any printable character in values.
func parseExpr(kind, s string) (expr, error) {
	if len(s) > maxExprBytes {
		return expr{}, fmt.Errorf("%s %q…: %d bytes long, at most %d are allowed", kind, s[:32], len(s), maxExprBytes)
	}
	e, err := readExpr(s)
	if err != nil {
		return expr{}, fmt.Errorf("%s %q: %w", kind, s, err)
	}
	return e, nil
}

func readExpr(s string) (expr, error) {
	at := firstOperator(s)
	if at < 0 {
		return expr{}, errors.New("expected == or !=")
	}
	e := expr{
		key:   strings.TrimSpace(s[:at]),
		not:   s[at] == '!',
		value: strings.TrimSpace(s[at+2:]),
	}
	if e.key == "" {
		return expr{}, errors.New("key is missing")
	}
	if !validKey(e.key) {
		return expr{}, fmt.Errorf("key %q is invalid, expected a letter or _, then letters, digits, and any of _ . - /", e.key)
	}
	if soft, ok := strings.CutPrefix(e.value, "~"); ok {
		e.soft, e.value = true, strings.TrimSpace(soft)
	}
	if e.value == "" {
		return expr{}, errors.New("value is missing")
	}
	if !printable(e.value) {
		return expr{}, errors.New("value holds a character that can not be printed")
	}
	if len(e.value) < 2 || e.value[0] != '/' || e.value[len(e.value)-1] != '/' {
		return e, nil
	}
	pattern, err := compilePattern(e.value[1 : len(e.value)-1])
	if err != nil {
		return expr{}, err
	}
	e.pattern = pattern
	return e, nil
}

// firstOperator returns where the first == or != of s starts, or -1.
func firstOperator(s string) int {
	for i := range len(s) - 1 {
		if s[i+1] == '=' && (s[i] == '=' || s[i] == '!') {
			return i
		}
	}
	return -1
}

// validKey tells whether key is [A-Za-z_][A-Za-z0-9_.\-/]*.
func validKey(key string) bool {
	for i, c := range key {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
		case i > 0 && (c >= '0' && c <= '9' || c == '.' || c == '-' || c == '/'):
		default:
			return false
		}
	}
	return key != ""
}

// printable tells whether s is UTF-8 without control characters, so that it can
// be shown in logs and terminals as it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}

// compilePattern compiles a client's regular expression, RE2 syntax, within
// bounds on its length and on the size of its program.
func compilePattern(s string) (*regexp.Regexp, error) {
	if len(s) > maxPatternBytes {
		return nil, fmt.Errorf("regular expression is %d bytes long, at most %d are allowed", len(s), maxPatternBytes)
	}
	tree, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		var bad *syntax.Error
		if errors.As(err, &bad) {
			return nil, fmt.Errorf("regular expression %q: %s", s, bad.Code)
		}
		return nil, fmt.Errorf("regular expression %q: %w", s, err)
	}
	// Measured before it is compiled: compiling is what takes the memory.
	if patternSize(tree) > maxPatternSize {
		return nil, fmt.Errorf("regular expression %q: too large, use smaller repeat counts", s)
	}
	return regexp.Compile(s)
}

// patternSize estimates how many instructions a regular expression compiles to.
// It can not overflow: the parser allows 1 KiB of text and repeats up to 1000.
func patternSize(re *syntax.Regexp) int {
	size := 1
	if re.Op == syntax.OpLiteral {
		size = len(re.Rune)
	}
	for _, sub := range re.Sub {
		size += patternSize(sub)
	}
	if re.Op == syntax.OpRepeat {
		size *= max(re.Min+1, re.Max)
	}
	return size
}

// match tells whether value fits the pattern of e, whatever its operator: equal,
// or a glob in which only * is special and which spans the whole value, or an
// unanchored /regex/.
func (e expr) match(value string) bool {
	if e.pattern != nil {
		return e.pattern.MatchString(value)
	}
	return matchGlob(e.value, value)
}

func matchGlob(glob, s string) bool {
	head, rest, found := strings.Cut(glob, "*")
	if !found {
		return glob == s
	}
	s, ok := strings.CutPrefix(s, head)
	if !ok {
		return false
	}
	for {
		part, next, found := strings.Cut(rest, "*")
		if !found {
			return strings.HasSuffix(s, part)
		}
		at := strings.Index(s, part)
		if at < 0 {
			return false
		}
		s, rest = s[at+len(part):], next
	}
}

// exact tells whether e names one plain value: no glob, no regular expression.
func (e expr) exact() bool {
	return e.pattern == nil && !strings.Contains(e.value, "*")
}

// String is the canonical text of e, which parses to e again.
func (e expr) String() string {
	op := "=="
	if e.not {
		op = "!="
	}
	if e.soft {
		op += "~"
	}
	return e.key + op + e.value
}

// expressionLabel names the label that carries expressions of kind.
func expressionLabel(kind string) string { return expressionLabels[kind] }

// cutExpressions takes the entries constraint:, affinity:, whitelist: and
// reschedule: out of a container's environment. It returns the others in their
// order, and the expressions by kind, without their prefix and not yet parsed.
func cutExpressions(env []string) (kept []string, found map[string][]string) {
	kept, found = make([]string, 0, len(env)), map[string][]string{}
	for _, entry := range env {
		kind, text, ok := strings.Cut(entry, ":")
		if !ok || expressionLabels[kind] == "" {
			kept = append(kept, entry)
			continue
		}
		found[kind] = append(found[kind], text)
	}
	return kept, found
}

// labelExpressions reads the expressions, by kind, from the com.docker.swarm.*
// labels of a container. A value that is not an array counts as one expression;
// a blank one as none.
func labelExpressions(labels map[string]string) (map[string][]string, error) {
	found := map[string][]string{}
	for kind, label := range expressionLabels {
		value := strings.TrimSpace(labels[label])
		if value == "" {
			continue
		}
		if value[0] != '[' {
			found[kind] = []string{value}
			continue
		}
		var list []string
		if err := json.Unmarshal([]byte(value), &list); err != nil {
			return nil, fmt.Errorf(`label %s: expected a JSON array of strings such as ["storage==ssd"]: %w`, label, err)
		}
		if len(list) > maxExprs {
			return nil, fmt.Errorf("label %s: %d expressions, at most %d are allowed", label, len(list), maxExprs)
		}
		if len(list) > 0 {
			found[kind] = list
		}
	}
	return found, nil
}
