package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
)

// listFilters is the filters parameter of a list: values by key, any of which may match.
type listFilters map[string][]string

// maxFilters bounds the values of one request.
const maxFilters = 256

// parseFilters reads both encodings that clients use, {"k":{"v":true}} and
// {"k":["v"]}, but no mixture of them. A key that is not allowed is refused in an
// engine's words; if none is named, any key goes.
func parseFilters(q url.Values, allowed ...string) (listFilters, error) {
	raw := []byte(q.Get("filters"))
	if len(raw) == 0 {
		return listFilters{}, nil
	}
	var sets map[string]map[string]bool
	f := listFilters{}
	if json.Unmarshal(raw, &sets) == nil {
		for key, set := range sets { // true or false: engines look at the keys only
			f[key] = slices.Collect(maps.Keys(set))
		}
	} else if json.Unmarshal(raw, &f) != nil {
		return nil, errorf(http.StatusBadRequest, "invalid filter")
	}
	total := 0
	for key, values := range f {
		if total += len(values); total > maxFilters {
			return nil, errorf(http.StatusBadRequest, "invalid filters: over %d values", maxFilters)
		}
		slices.Sort(values)
		f[key] = slices.Compact(values)
	}
	if len(allowed) > 0 {
		return f, f.only(allowed)
	}
	return f, nil
}

// only refuses keys that are not among those allowed.
func (f listFilters) only(allowed []string) error {
	for key := range f {
		if !slices.Contains(allowed, key) {
			return errorf(http.StatusBadRequest, "invalid filter '%s'", key)
		}
	}
	return nil
}

// given tells whether key is there, be it without a value.
func (f listFilters) given(key string) bool {
	_, ok := f[key]
	return ok
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

// boolean reads a filter that is true or false; set tells whether it is there. Both, or
// neither, are refused.
func (f listFilters) boolean(key string) (value, set bool, err error) {
	values := f[key]
	yes := slices.Contains(values, "true") || slices.Contains(values, "1")
	no := slices.Contains(values, "false") || slices.Contains(values, "0")
	switch {
	case !f.given(key):
		return false, false, nil
	case len(values) == 0:
		return false, false, errorf(http.StatusBadRequest, "invalid filter '%s'", key)
	case yes == no:
		return false, false, errorf(http.StatusBadRequest, "invalid filter '%s=%s'", key, values)
	}
	return yes, true, nil
}

// portSet reads filters like 80, 80/tcp, 8000-8010/udp.
func (f listFilters) portSet(key string) (map[string]bool, error) {
	set := map[string]bool{}
	for _, v := range f[key] {
		if strings.Contains(v, ":") {
			return nil, errorf(http.StatusBadRequest, "filter for '%s' should not contain ':': %s", key, v)
		}
		protocol, ports := nat.SplitProtoPort(v)
		port, err := nat.NewPort(protocol, ports)
		if err != nil {
			return nil, errorf(http.StatusBadRequest, "error while looking up for %s %s: %v", key, v, err)
		}
		first, last, _ := port.Range() // it is one that NewPort has made
		for p := first; p <= last; p++ {
			set[strconv.Itoa(p)+"/"+protocol] = true
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
