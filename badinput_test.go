package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// What is wrong with a request is told with an engine's status and in its words, compared
// with engines 20.10 and 28 (where they differ, 28's), but for the odd versions (S6).
func TestBadRequestsAreAnsweredInTheEnginesWords(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	f.make(t, "web", sleepBody)
	for _, c := range []struct {
		what, request string // {…} in a query are filters, to be escaped
		body          string
		status        int
		words         string // "" for those that are not refused
	}{
		{"filters that are no JSON", "GET /containers/json?filters=x", "", 400, "invalid filter"},
		{"filters that end too soon", "GET /images/json?filters={", "", 400, "invalid filter"},
		{"filters with something behind", `GET /networks?filters={"label":["a"]} x`, "", 400, "invalid filter"},
		{"filters of a wrong type", `GET /events?filters={"label":"a"}`, "", 400, "invalid filter"},
		{"filters in both encodings", `GET /containers/json?filters={"label":["a"],"name":{"b":true}}`, "", 400, "invalid filter"},
		{"filters of volumes", "GET /volumes?filters=x", "", 400, "error reading volume filters: invalid filter"},
		{"filters of a prune", "POST /containers/prune?filters=x", "", 400, "invalid filter"},
		{"filters of another prune", `POST /volumes/prune?filters=["a"]`, "", 400, "invalid filter"},
		{"filters of plugins", "GET /plugins?filters=x", "", 400, "invalid filter"},
		{"filters that are null", "GET /containers/json?filters=null", "", 200, ""},
		{"a filter without a value", `GET /containers/json?filters={"name":[]}`, "", 200, ""},
		{"a filter that is null", `GET /containers/json?filters={"name":null}`, "", 200, ""},

		{"is-task both ways", `GET /containers/json?filters={"is-task":["true","false"]}`, "", 400, "invalid filter 'is-task=[false true]'"},
		{"is-task in both words", `GET /containers/json?filters={"is-task":["true","1"]}`, "", 200, ""},
		{"is-task without a value", `GET /containers/json?filters={"is-task":[]}`, "", 400, "invalid filter 'is-task'"},
		{"is-task in capitals", `GET /containers/json?filters={"is-task":["TRUE"]}`, "", 400, "invalid filter 'is-task=[TRUE]'"},
		{"dangling images both ways", `GET /images/json?filters={"dangling":{"1":true,"0":true}}`, "", 400, "invalid filter 'dangling=[0 1]'"},
		{"dangling images and another word", `GET /images/json?filters={"dangling":["true","x"]}`, "", 200, ""},
		{"dangling volumes both ways", `GET /volumes?filters={"dangling":["true","false"]}`, "", 400, "invalid filter 'dangling=[false true]'"},
		{"dangling networks both ways", `GET /networks?filters={"dangling":["true","false"]}`, "", 400, `got more than one value for filter key "dangling"`},

		{"a limit out of range", "GET /containers/json?limit=99999999999999999999", "", 400, `strconv.Atoi: parsing "99999999999999999999": value out of range`},
		{"an image that cannot be", `GET /images/json?filters={"before":["T"]}`, "", 400, "invalid reference format: repository name (library/T) must be lowercase"},
		{"a time with a bad fraction", "GET /events?since=1.abc&until=2", "", 400, `strconv.ParseInt: parsing "abc": invalid syntax`},
		{"a time out of range", "GET /events?since=1&until=99999999999999999999", "", 400, `strconv.ParseInt: parsing "99999999999999999999": value out of range`},

		{"a create of nothing", "POST /containers/create", "{}", 400, "config cannot be empty in order to create a container"},
		{"a create of null", "POST /containers/create?name=web", "null", 400, "config cannot be empty in order to create a container"},
		{"a create of a host's part", "POST /containers/create", `{"hostconfig":{},"NetworkingConfig":{}}`, 400, "config cannot be empty in order to create a container"},
		{"a commit of nothing", "POST /commit", "", 400, `invalid name or ID supplied: ""`},
		{"a commit of an empty name", "POST /commit?container=&repo=a", "", 400, `invalid name or ID supplied: ""`},
		{"a container without a name", "DELETE /containers/", "", 400, `invalid name or ID supplied: ""`},
		{"an image without a name", "DELETE /images/?force=1", "", 400, "image name cannot be blank"},
		{"a volume without a name", "GET /volumes/", "", 404, "get : no such volume"},
		{"a network without a name", "DELETE /networks/", "", 404, "network  not found"},
		{"a node without a name", "DELETE /nodes/?force=1", "", 404, "node  not found"},
		{"a swarm to leave", "POST /swarm/leave", "", 503, "This node is not part of a swarm"},
		{"options", "OPTIONS /containers/json", "", 200, ""},
		{"options of what is not there", "OPTIONS /v1.41/nosuch", "", 200, ""},

		{"a version of one number", "GET /v1/_ping", "", 400, "client version 1 is too old. Minimum supported API version is 1.12, please upgrade your client to a newer version"},
		{"a version of dots", "POST /v./containers/create", "{}", 400, "client version . is too old. Minimum supported API version is 1.12, please upgrade your client to a newer version"},
		{"version nought", "GET /v0/info", "", 400, "client version 0 is too old. Minimum supported API version is 1.12, please upgrade your client to a newer version"},
		{"a version of the future", "GET /v40/info", "", 400, "client version 40 is too new. Maximum supported API version is 1.41"},
		{"a version out of range", "GET /v99999999999999999999.1/info", "", 400, "client version 99999999999999999999.1 is too new. Maximum supported API version is 1.41"},
		{"a version of three", "GET /v1.41.0/containers/json", "", 404, "page not found"},
		{"a version with noughts", "GET /v01.041/containers/web/json", "", 404, "page not found"},
		{"an unknown path of the future", "GET /v1.57/nosuch", "", 404, "page not found"},
		{"an unknown path of the past", "GET /v1.5/nosuch", "", 404, "page not found"},
		{"what is no version", "GET /vx/info", "", 404, "page not found"},
		{"a version and nothing else", "GET /v1.41", "", 404, "page not found"},
	} {
		t.Run(c.what, func(t *testing.T) {
			method, path, _ := strings.Cut(c.request, " ")
			path, query, _ := strings.Cut(path, "?")
			if filters, ok := strings.CutPrefix(query, "filters="); ok {
				query = url.Values{"filters": {filters}}.Encode()
			}
			status, answer := f.call(t, method, path+"?"+query, c.body)
			if status != c.status || c.words != "" && message(answer) != c.words {
				t.Errorf("%s = %d %s, want %d %s", c.request, status, answer, c.status, c.words)
			}
		})
	}
}

// A filter that is given without a value is not one that is not given.
func TestFiltersWithoutAValue(t *testing.T) {
	t.Parallel()
	f := newFront(t, newFakeEngine(t))
	f.make(t, "web", sleepBody)
	for request, found := range map[string]bool{
		`/containers/json?filters={"ancestor":[]}`:  false,
		`/containers/json?filters={"label":[]}`:     true,
		`/containers/json?filters={"status":{}}`:    true,
		`/containers/json?filters={"network":[""]}`: true, // the beginning of every network's ID
		`/images/json?filters={"reference":[]}`:     false,
		`/networks?filters={"type":null}`:           false,
		`/networks?filters={"driver":[]}`:           true,
	} {
		path, filters, _ := strings.Cut(request, "?filters=")
		status, answer := f.call(t, "GET", path+"?"+url.Values{"filters": {filters}}.Encode(), "")
		if got := strings.TrimSpace(answer) != "[]"; status != http.StatusOK || got != found {
			t.Errorf("GET %s = %d %s, want entries: %v", request, status, answer, found)
		}
	}
}
