package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// listFilters is the filters parameter of a list: values by key, any of which may match.
type listFilters map[string][]string

// maxFilters bounds the values of one request.
const maxFilters = 256

// parseFilters reads both encodings that clients use, {"k":{"v":true}} and
// {"k":["v"]}. A key that is not allowed is refused in an engine's words; if none
// is named, any key goes.
func parseFilters(q url.Values, allowed ...string) (listFilters, error) {
	raw := q.Get("filters")
	f := listFilters{}
	if raw == "" {
		return f, nil
	}
	var byKey map[string]json.RawMessage
	if err := json.Unmarshal([]byte(raw), &byKey); err != nil {
		return nil, errorf(http.StatusBadRequest, "invalid filters: %v", err)
	}
	total := 0
	for key, values := range byKey {
		if len(allowed) > 0 && !slices.Contains(allowed, key) {
			return nil, errorf(http.StatusBadRequest, "invalid filter '%s'", key)
		}
		var set map[string]bool
		var list []string
		if json.Unmarshal(values, &list) != nil {
			if err := json.Unmarshal(values, &set); err != nil {
				return nil, errorf(http.StatusBadRequest, "invalid filters: %v", err)
			}
			for v := range set { // true or false: engines look at the keys only
				list = append(list, v)
			}
		}
		slices.Sort(list)
		if total += len(list); total > maxFilters {
			return nil, errorf(http.StatusBadRequest, "invalid filters: over %d values", maxFilters)
		}
		if len(list) > 0 {
			f[key] = list
		}
	}
	return f, nil
}

// has tells whether key is filtered on.
func (f listFilters) has(key string) bool { return len(f[key]) > 0 }

// exact tells whether value passes key's filter literally.
func (f listFilters) exact(key, value string) bool {
	return !f.has(key) || slices.Contains(f[key], value)
}

// pattern tells whether any of the values passes key's filter, literally or as a
// regular expression, as engines match names and IDs.
func (f listFilters) pattern(key string, values ...string) bool {
	if !f.has(key) {
		return true
	}
	for _, want := range f[key] {
		if slices.Contains(values, want) {
			return true
		}
		re, err := compilePattern(want)
		if err == nil && slices.ContainsFunc(values, re.MatchString) {
			return true
		}
	}
	return false
}

// labels tells whether all label filters hold, each key or key=value.
func (f listFilters) labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		k, v, valued := strings.Cut(want, "=")
		got, ok := labels[k]
		if !ok || valued && got != v {
			return false
		}
	}
	return true
}

// boolean reads a filter that is true or false; set tells whether it is there.
func (f listFilters) boolean(key string) (value, set bool, err error) {
	if !f.has(key) {
		return false, false, nil
	}
	switch f[key][0] {
	case "1", "true", "True", "TRUE", "t", "T":
		return true, true, nil
	case "0", "false", "False", "FALSE", "f", "F":
		return false, true, nil
	}
	return false, false, errorf(http.StatusBadRequest, "invalid filter '%s=[%s]'", key, f[key][0])
}

// portSet reads filters like 80, 80/tcp, 8000-8010/udp.
func (f listFilters) portSet(key string) (map[string]bool, error) {
	set := map[string]bool{}
	for _, v := range f[key] {
		span, protocol, ok := strings.Cut(v, "/")
		if !ok {
			protocol = "tcp"
		}
		from, to, isRange := strings.Cut(span, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last < first {
			return nil, errorf(http.StatusBadRequest, "filter for '%s' should not contain ':' and should be a port, port/protocol or range, got %s", key, v)
		}
		for p := first; p <= last; p++ {
			set[strconv.FormatUint(p, 10)+"/"+protocol] = true
		}
	}
	return set, nil
}

// isTrue reads a boolean query parameter as engines do: anything but these is true.
func isTrue(q url.Values, key string) bool {
	switch strings.ToLower(strings.TrimSpace(q.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// isHex tells whether s can be an ID or the first digits of one.
func isHex(s string) bool {
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return s != ""
}
