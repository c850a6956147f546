package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// fakeCall is one request on its way through a handler.
type fakeCall struct {
	w       http.ResponseWriter
	r       *http.Request
	query   url.Values
	id      string // what stands for {id} in the route
	version string // the API version that is spoken
}

// fakeError is an answer other than success, in Docker's words.
type fakeError struct {
	status  int
	message string
}

func (e *fakeError) Error() string { return e.message }

// fakeErrorf makes an answer other than success.
func fakeErrorf(status int, format string, args ...any) error {
	return &fakeError{status, fmt.Sprintf(format, args...)}
}

// fakeRoute is one row of the route table.
type fakeRoute struct {
	method string
	path   *regexp.Regexp
	handle func(*fakeEngine, *fakeCall) error
}

// fakeRoutes is what the engine answers. The first row that matches counts.
var fakeRoutes = []fakeRoute{
	fakeRow("HEAD", "/_ping", (*fakeEngine).ping),
	fakeRow("GET", "/_ping", (*fakeEngine).ping),
	fakeRow("GET", "/version", (*fakeEngine).versionShow),
	fakeRow("GET", "/info", (*fakeEngine).infoShow),
	fakeRow("GET", "/events", (*fakeEngine).eventsWatch),
	fakeRow("GET", "/system/df", (*fakeEngine).systemDF),
	fakeRow("POST", "/auth", (*fakeEngine).authCheck),
	fakeRow("POST", "/build", (*fakeEngine).imageBuild),
	fakeRow("POST", "/build/prune", (*fakeEngine).buildPrune),
	fakeRow("POST", "/session", (*fakeEngine).sessionOpen),
	fakeRow("POST", "/grpc", (*fakeEngine).sessionOpen),
	fakeRow("POST", "/commit", (*fakeEngine).containerCommit),

	fakeRow("GET", "/containers/json", (*fakeEngine).containerList),
	fakeRow("POST", "/containers/create", (*fakeEngine).containerCreate),
	fakeRow("POST", "/containers/prune", (*fakeEngine).containerPrune),
	fakeRow("GET", "/containers/{id}/json", (*fakeEngine).containerInspect),
	fakeRow("POST", "/containers/{id}/start", (*fakeEngine).containerStart),
	fakeRow("POST", "/containers/{id}/stop", (*fakeEngine).containerStop),
	fakeRow("POST", "/containers/{id}/restart", (*fakeEngine).containerRestart),
	fakeRow("POST", "/containers/{id}/kill", (*fakeEngine).containerKill),
	fakeRow("POST", "/containers/{id}/pause", (*fakeEngine).containerPause),
	fakeRow("POST", "/containers/{id}/unpause", (*fakeEngine).containerUnpause),
	fakeRow("POST", "/containers/{id}/wait", (*fakeEngine).containerWait),
	fakeRow("POST", "/containers/{id}/rename", (*fakeEngine).containerRename),
	fakeRow("POST", "/containers/{id}/update", (*fakeEngine).containerUpdate),
	fakeRow("POST", "/containers/{id}/resize", (*fakeEngine).containerResize),
	fakeRow("POST", "/containers/{id}/attach", (*fakeEngine).containerAttach),
	fakeRow("POST", "/containers/{id}/exec", (*fakeEngine).execCreate),
	fakeRow("GET", "/containers/{id}/logs", (*fakeEngine).containerLogs),
	fakeRow("GET", "/containers/{id}/top", (*fakeEngine).containerTop),
	fakeRow("GET", "/containers/{id}/stats", (*fakeEngine).containerStats),
	fakeRow("GET", "/containers/{id}/changes", (*fakeEngine).containerChanges),
	fakeRow("GET", "/containers/{id}/export", (*fakeEngine).containerExport),
	fakeRow("HEAD", "/containers/{id}/archive", (*fakeEngine).archiveGet),
	fakeRow("GET", "/containers/{id}/archive", (*fakeEngine).archiveGet),
	fakeRow("PUT", "/containers/{id}/archive", (*fakeEngine).archivePut),
	fakeRow("DELETE", "/containers/{id}", (*fakeEngine).containerRemove),

	fakeRow("POST", "/exec/{id}/start", (*fakeEngine).execStart),
	fakeRow("POST", "/exec/{id}/resize", (*fakeEngine).execResize),
	fakeRow("GET", "/exec/{id}/json", (*fakeEngine).execInspect),

	fakeRow("GET", "/images/json", (*fakeEngine).imageList),
	fakeRow("POST", "/images/create", (*fakeEngine).imagePull),
	fakeRow("POST", "/images/load", (*fakeEngine).imageLoad),
	fakeRow("POST", "/images/prune", (*fakeEngine).imagePrune),
	fakeRow("GET", "/images/get", (*fakeEngine).imageSave),
	fakeRow("GET", "/images/{id}/get", (*fakeEngine).imageSave),
	fakeRow("GET", "/images/{id}/json", (*fakeEngine).imageInspect),
	fakeRow("GET", "/images/{id}/history", (*fakeEngine).imageHistory),
	fakeRow("POST", "/images/{id}/tag", (*fakeEngine).imageTag),
	fakeRow("POST", "/images/{id}/push", (*fakeEngine).imagePush),
	fakeRow("DELETE", "/images/{id}", (*fakeEngine).imageRemove),

	fakeRow("GET", "/networks", (*fakeEngine).networkList),
	fakeRow("POST", "/networks/create", (*fakeEngine).networkCreate),
	fakeRow("POST", "/networks/prune", (*fakeEngine).networkPrune),
	fakeRow("POST", "/networks/{id}/connect", (*fakeEngine).networkConnect),
	fakeRow("POST", "/networks/{id}/disconnect", (*fakeEngine).networkDisconnect),
	fakeRow("GET", "/networks/{id}", (*fakeEngine).networkInspect),
	fakeRow("DELETE", "/networks/{id}", (*fakeEngine).networkRemove),

	fakeRow("GET", "/volumes", (*fakeEngine).volumeList),
	fakeRow("POST", "/volumes/create", (*fakeEngine).volumeCreate),
	fakeRow("POST", "/volumes/prune", (*fakeEngine).volumePrune),
	fakeRow("GET", "/volumes/{id}", (*fakeEngine).volumeInspect),
	fakeRow("DELETE", "/volumes/{id}", (*fakeEngine).volumeRemove),

	fakeRow("GET", "/swarm", (*fakeEngine).swarmRefuse),
	fakeRow("GET", "/nodes", (*fakeEngine).swarmRefuse),
	fakeRow("GET", "/services", (*fakeEngine).swarmRefuse),
	fakeRow("GET", "/tasks", (*fakeEngine).swarmRefuse),
}

// fakeRow makes a row; {id} may hold slashes, as names of images do.
func fakeRow(method, path string, handle func(*fakeEngine, *fakeCall) error) fakeRoute {
	return fakeRoute{method, regexp.MustCompile("^" + strings.Replace(path, "{id}", "(.+)", 1) + "$"), handle}
}

// answer is the engine without its switches: route, version, handler, error.
func (e *fakeEngine) answer(w http.ResponseWriter, r *http.Request) {
	path, version := fakeSplitVersion(r.URL.Path)
	c := &fakeCall{w: w, r: r, query: r.URL.Query(), version: version}
	header := w.Header()
	header.Set("Date", e.now().Format(http.TimeFormat))
	handle := e.route(c, path)
	if handle == nil {
		c.answerError(fakeErrorf(http.StatusNotFound, "page not found"))
		return
	}
	header.Set("Api-Version", e.apiVersion)
	header.Set("Ostype", "linux")
	header.Set("Server", "Docker/"+e.serverVersion+" (linux)")
	if version != "" && fakeOlder(e.apiVersion, version) {
		c.answerError(fakeErrorf(http.StatusBadRequest, "client version %s is too new. Maximum supported API version is %s", version, e.apiVersion))
		return
	}
	if version != "" && fakeOlder(version, e.minAPIVersion) {
		c.answerError(fakeErrorf(http.StatusBadRequest,
			"client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, e.minAPIVersion))
		return
	}
	header.Set("Docker-Experimental", "false")
	if version == "" {
		c.version = e.apiVersion
	}
	if err := handle(e, c); err != nil {
		c.answerError(err)
	}
}

// route finds the handler for a path without version, or nil.
func (e *fakeEngine) route(c *fakeCall, path string) func(*fakeEngine, *fakeCall) error {
	for _, row := range fakeRoutes {
		if row.method != c.r.Method {
			continue
		}
		if match := row.path.FindStringSubmatch(path); match != nil {
			if len(match) > 1 {
				c.id = match[1]
			}
			return row.handle
		}
	}
	return nil
}

// answerError writes an error as an engine does: JSON, plain text below 1.24.
func (c *fakeCall) answerError(err error) {
	status := http.StatusInternalServerError
	var known *fakeError
	if errors.As(err, &known) {
		status = known.status
	}
	if status == http.StatusNotModified {
		c.w.WriteHeader(status)
		return
	}
	if c.version != "" && fakeOlder(c.version, "1.24") {
		http.Error(c.w, err.Error(), status)
		return
	}
	_ = c.writeJSON(status, map[string]string{"message": err.Error()})
}

// writeJSON answers with a value.
func (c *fakeCall) writeJSON(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(append(body, '\n')) // the client may have gone
	return nil
}

// writeStatus answers without a body.
func (c *fakeCall) writeStatus(status int) error {
	c.w.WriteHeader(status)
	return nil
}

// writeLine sends one JSON line of a stream at once.
func (c *fakeCall) writeLine(v any) {
	body, _ := json.Marshal(v)
	_, _ = c.w.Write(append(body, '\r', '\n'))
	c.flush()
}

// flush sends what was written so far, the header included.
func (c *fakeCall) flush() { _ = http.NewResponseController(c.w).Flush() }

// readJSON reads a JSON body with the checks of an engine.
func (c *fakeCall) readJSON(v any) ([]byte, error) {
	if kind := c.r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/json") {
		return nil, fakeErrorf(http.StatusBadRequest, "Content-Type specified (%s) must be 'application/json'", kind)
	}
	body, err := io.ReadAll(c.r.Body)
	if err != nil {
		return nil, err
	}
	if err := json.NewDecoder(strings.NewReader(string(body))).Decode(v); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err // 500, as in 20.10
		}
		return nil, fakeErrorf(http.StatusBadRequest, "%v", err)
	}
	return body, nil
}

// flag is a query parameter read as Docker does: given, and not 0, no, false, none.
func (c *fakeCall) flag(key string) bool {
	value := strings.ToLower(strings.TrimSpace(c.query.Get(key)))
	return !slices.Contains([]string{"", "0", "no", "false", "none"}, value)
}

// hijack turns the connection into a raw stream: 101 if the client asked for an
// upgrade, else Docker's old 200. The reader holds bytes that came early.
func (c *fakeCall) hijack(contentType string) (net.Conn, io.Reader, error) {
	answer, _ := c.w.(*fakeAnswer)
	conn, buffered, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if answer != nil && answer.drop {
		_ = conn.Close()
		return nil, nil, net.ErrClosed
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if protocol := c.r.Header.Get("Upgrade"); protocol != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	if counted, ok := fakeConnOf(conn); ok && answer != nil {
		counted.left.Store(answer.left)
	}
	// Past the early bytes the connection itself is read: net/http's own reader
	// has a mind of its own about a half-close.
	early, _ := buffered.Peek(buffered.Reader.Buffered())
	return conn, io.MultiReader(bytes.NewReader(early), conn), nil
}

// fakeFilters are the filters of a list: key to values.
type fakeFilters map[string][]string

// filters reads both encodings, {"k":{"v":true}} and {"k":["v"]}, and refuses
// keys that this list does not have.
func (c *fakeCall) filters(allowed ...string) (fakeFilters, error) {
	text := c.query.Get("filters")
	if text == "" {
		return nil, nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	filters := fakeFilters{}
	for key, value := range raw {
		if !slices.Contains(allowed, key) {
			word := "Invalid"
			if !fakeOlder(c.version, "1.42") {
				word = "invalid"
			}
			return nil, fakeErrorf(http.StatusBadRequest, "%s filter '%s'", word, key)
		}
		var list []string
		var set map[string]bool
		if err := json.Unmarshal(value, &set); err == nil {
			for v, on := range set {
				if on {
					list = append(list, v)
				}
			}
		} else if err := json.Unmarshal(value, &list); err != nil {
			return nil, err
		}
		filters[key] = list
	}
	return filters, nil
}

// exact tells whether one of the key's values is value; true if there are none.
func (f fakeFilters) exact(key, value string) bool {
	return len(f[key]) == 0 || slices.Contains(f[key], value)
}

// match tells whether one of the key's values, an expression, is found in value.
func (f fakeFilters) match(key, value string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(pattern string) bool {
		if pattern == value {
			return true
		}
		found, err := regexp.MatchString(pattern, value)
		return err == nil && found
	})
}

// labels tells whether all values of the key, "k" or "k=v", are among the labels.
func (f fakeFilters) labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		name, value, exact := strings.Cut(want, "=")
		if got, ok := labels[name]; !ok || exact && got != value {
			return false
		}
	}
	return true
}

// fakeVersioned takes a path apart.
var fakeVersioned = regexp.MustCompile(`^/v([0-9.]+)(/.*)$`)

// fakeSplitVersion takes the version prefix off a path.
func fakeSplitVersion(path string) (bare, version string) {
	if match := fakeVersioned.FindStringSubmatch(path); match != nil {
		return match[2], match[1]
	}
	return path, ""
}

// fakeOlder tells whether API version a is before b.
func fakeOlder(a, b string) bool {
	number := func(version string) int {
		major, minor, _ := strings.Cut(version, ".")
		x, _ := strconv.Atoi(major)
		y, _ := strconv.Atoi(minor)
		return x*1000 + y
	}
	return number(a) < number(b)
}

// swarmRefuse is what an engine outside a swarm says.
func (e *fakeEngine) swarmRefuse(*fakeCall) error {
	return fakeErrorf(http.StatusServiceUnavailable,
		`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
}
