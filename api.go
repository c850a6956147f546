package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	pathpkg "path"
	"runtime/debug"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/julienschmidt/httprouter"
)

// route is one row of the route table, in Docker's notation.
type route struct {
	method, path string
	handle       handler
}

// routes is the whole Engine API: what swarmlite does with each operation.
// A name in braces may hold slashes.
var routes = []route{
	// system
	{"GET", "/_ping", ping},
	{"HEAD", "/_ping", ping},
	{"GET", "/info", info},
	{"GET", "/version", versionInfo},
	{"GET", "/events", events},
	{"GET", "/system/df", systemDF},
	{"POST", "/auth", toAny},
	{"OPTIONS", "/{path}", options},

	// containers
	{"GET", "/containers/json", containerList},
	{"POST", "/containers/create", containerCreate},
	{"POST", "/containers/prune", containerPrune},
	{"GET", "/containers/{id}/json", containerInspect},
	{"GET", "/containers/{id}/top", pass(read)},
	{"GET", "/containers/{id}/logs", pass(forever)},
	{"GET", "/containers/{id}/changes", pass(read)},
	{"GET", "/containers/{id}/export", pass(forever)},
	{"GET", "/containers/{id}/stats", pass(forever)},
	{"POST", "/containers/{id}/resize", pass(read)},
	{"POST", "/containers/{id}/start", passChange(change)},
	{"POST", "/containers/{id}/stop", passChange(slow)},
	{"POST", "/containers/{id}/restart", passChange(slow)},
	{"POST", "/containers/{id}/kill", containerKill},
	{"POST", "/containers/{id}/update", containerUpdate},
	{"POST", "/containers/{id}/rename", containerRename},
	{"POST", "/containers/{id}/pause", passChange(change)},
	{"POST", "/containers/{id}/unpause", passChange(change)},
	{"POST", "/containers/{id}/attach", containerAttach},
	{"GET", "/containers/{id}/attach/ws", containerAttachWebsocket},
	{"POST", "/containers/{id}/wait", containerWait},
	{"DELETE", "/containers/{id}", containerRemove},
	{"HEAD", "/containers/{id}/archive", pass(read)},
	{"GET", "/containers/{id}/archive", pass(forever)},
	{"PUT", "/containers/{id}/archive", pass(forever)},
	{"POST", "/commit", containerCommit},

	// exec
	{"POST", "/containers/{id}/exec", execCreate},
	{"POST", "/exec/{id}/start", execStart},
	{"POST", "/exec/{id}/resize", execPass},
	{"GET", "/exec/{id}/json", execPass},

	// images
	{"GET", "/images/json", imageList},
	{"POST", "/images/create", imageCreate},
	{"GET", "/images/{name}/json", imagePass},
	{"GET", "/images/{name}/history", imagePass},
	{"GET", "/images/{name}/attestations", imagePass},
	{"POST", "/images/{name}/push", imagePush},
	{"POST", "/images/{name}/tag", imageTag},
	{"DELETE", "/images/{name}", imageRemove},
	{"GET", "/images/search", toAny},
	{"POST", "/images/prune", imagePrune},
	{"GET", "/images/{name}/get", imageSave},
	{"GET", "/images/get", imageSave},
	{"POST", "/images/load", imageLoad},
	{"GET", "/distribution/{name}/json", toAny},
	{"POST", "/build", build},
	{"POST", "/build/prune", buildPrune},
	{"POST", "/build/cancel", buildCancel},
	{"POST", "/session", buildSession},
	{"POST", "/grpc", buildGRPC},

	// networks
	{"GET", "/networks", networkList},
	{"GET", "/networks/", networkList},
	{"POST", "/networks/create", networkCreate},
	{"POST", "/networks/prune", networkPrune},
	{"GET", "/networks/{id}", networkInspect},
	{"DELETE", "/networks/{id}", networkRemove},
	{"POST", "/networks/{id}/connect", networkConnect},
	{"POST", "/networks/{id}/disconnect", networkConnect},

	// volumes
	{"GET", "/volumes", volumeList},
	{"POST", "/volumes/create", volumeCreate},
	{"POST", "/volumes/prune", volumePrune},
	{"GET", "/volumes/{name}", volumeInspect},
	{"PUT", "/volumes/{name}", noSwarm},
	{"DELETE", "/volumes/{name}", volumeRemove},

	// nodes, and the Swarm-mode families that are refused on purpose
	{"GET", "/nodes", nodeList},
	{"GET", "/nodes/{id}", nodeInspect},
	{"POST", "/nodes/{id}/update", nodeUpdate},
	{"DELETE", "/nodes/{id}", nodeRemove},
	{"POST", "/swarmlite/nodes", nodeAdd},
	{"POST", "/swarmlite/join", nodeJoin},
	{"POST", "/swarmlite/tokens", tokenMake},
	{"GET", "/swarm", noSwarm},
	{"POST", "/swarm/init", noSwarm},
	{"POST", "/swarm/join", noSwarm},
	{"POST", "/swarm/leave", noSwarmToLeave},
	{"POST", "/swarm/update", noSwarm},
	{"GET", "/swarm/unlockkey", noSwarm},
	{"POST", "/swarm/unlock", noSwarm},
	{"GET", "/services", noSwarm},
	{"POST", "/services/create", noSwarm},
	{"GET", "/services/{id}", noSwarm},
	{"DELETE", "/services/{id}", noSwarm},
	{"POST", "/services/{id}/update", noSwarm},
	{"GET", "/services/{id}/logs", noSwarm},
	{"GET", "/tasks", taskList},
	{"GET", "/tasks/{id}", noSwarm},
	{"GET", "/tasks/{id}/logs", noSwarm},
	{"GET", "/secrets", noSwarm},
	{"POST", "/secrets/create", noSwarm},
	{"GET", "/secrets/{id}", noSwarm},
	{"DELETE", "/secrets/{id}", noSwarm},
	{"POST", "/secrets/{id}/update", noSwarm},
	{"GET", "/configs", noSwarm},
	{"POST", "/configs/create", noSwarm},
	{"GET", "/configs/{id}", noSwarm},
	{"DELETE", "/configs/{id}", noSwarm},
	{"POST", "/configs/{id}/update", noSwarm},

	// plugins belong to one engine
	{"GET", "/plugins", pluginList},
	{"GET", "/plugins/privileges", noPlugins},
	{"POST", "/plugins/pull", noPlugins},
	{"POST", "/plugins/create", noPlugins},
	{"GET", "/plugins/{name}/json", pluginInspect},
	{"DELETE", "/plugins/{name}", noPlugins},
	{"POST", "/plugins/{name}/enable", noPlugins},
	{"POST", "/plugins/{name}/disable", noPlugins},
	{"POST", "/plugins/{name}/upgrade", noPlugins},
	{"POST", "/plugins/{name}/push", noPlugins},
	{"POST", "/plugins/{name}/set", noPlugins},
}

// noPlugins: a plugin is installed on one engine, and no call says on which.
func noPlugins(*cluster, http.ResponseWriter, *http.Request, *call) error {
	return errorf(http.StatusNotImplemented, "swarmlite does not manage plugins: they belong to one engine, ask it directly")
}

// api serves the route table over a cluster.
type api struct {
	cluster *cluster
	log     *slog.Logger
	router  *httprouter.Router
	server  string   // Server header
	hosts   []string // names that a loopback listener answers to, beside IPs and localhost
	panics  atomic.Int64

	underway *underway
}

func newAPI(c *cluster, log *slog.Logger, version string, allowHosts []string) *api {
	a := &api{cluster: c, log: log, server: "swarmlite/" + version + " (linux)", hosts: allowHosts, underway: newUnderway()}
	if name, err := os.Hostname(); err == nil {
		a.hosts = append(a.hosts, name)
	}
	a.router = a.route(routes)
	return a
}

// route builds the routers. httprouter panics on /containers/json beside
// /containers/:id/json, and names hold slashes, so exact paths have a router of
// their own; what it does not find goes to one with a catch-all per method and
// first segment, and there the longest suffix wins.
func (a *api) route(table []route) *httprouter.Router {
	exact, named := &httprouter.Router{}, &httprouter.Router{}
	notFound := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.fail(w, r, errorf(http.StatusNotFound, "page not found"))
	})
	exact.NotFound, named.NotFound = named, notFound
	type suffixed struct {
		suffix, operation string
		handle            handler
	}
	groups := map[[2]string][]suffixed{} // method and first segment
	for _, rt := range table {
		prefix, suffix, ok := cutName(rt.path)
		if !ok {
			exact.Handle(rt.method, rt.path, a.serve(rt.method+" "+rt.path, rt.handle, nil))
			continue
		}
		key := [2]string{rt.method, prefix}
		groups[key] = append(groups[key], suffixed{suffix, rt.method + " " + rt.path, rt.handle})
	}
	for key, group := range groups {
		sort.Slice(group, func(i, j int) bool { return len(group[i].suffix) > len(group[j].suffix) })
		named.Handle(key[0], key[1]+"*rest", func(w http.ResponseWriter, r *http.Request, p httprouter.Params) {
			rest := strings.TrimPrefix(p.ByName("rest"), "/")
			for _, s := range group {
				if name, ok := strings.CutSuffix(rest, s.suffix); ok && (name != "" || s.suffix == "") {
					a.serve(s.operation, s.handle, &name)(w, r, nil)
					return
				}
			}
			notFound(w, r)
		})
	}
	return exact
}

// cutName splits /containers/{id}/json into /containers/ and /json.
func cutName(path string) (prefix, suffix string, ok bool) {
	open, end := strings.IndexByte(path, '{'), strings.IndexByte(path, '}')
	if open < 0 {
		return path, "", false
	}
	return path[:open], path[end+1:], true
}

// callKey carries the call from ServeHTTP through httprouter to serve.
type callKey struct{}

// ServeHTTP takes the version off the path, sets what every answer carries, and routes.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w = &answerWriter{ResponseWriter: w}
	defer a.underway.begin()()
	defer a.survive(w, r)
	version, path := splitVersion(r.URL.Path)
	fleet := a.cluster.nodes.fleet.Load()
	h := w.Header()
	h.Set("Api-Version", fleet.highest.String())
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", a.server)
	if r.Header.Get("Upgrade") != "" {
		closeAfter(w)
	}
	if why, ok := r.Context().Value(refusedKey{}).(string); ok {
		closeAfter(w)
		a.fail(w, r, errorf(http.StatusServiceUnavailable, "%s: close some, or try again later", why))
		return
	}
	if a.underway.isStopping() {
		closeAfter(w)
		if path == "/_ping" {
			a.fail(w, r, errorf(http.StatusServiceUnavailable, "swarmlite is stopping"))
			return
		}
	}
	if err := a.admit(r, path); err != nil {
		a.fail(w, r, err)
		return
	}
	if strings.Contains(path, "//") { // a read: admit refuses the others
		sendToCleanPath(w, r)
		return
	}
	rc := &call{version: looseVersion(version), client: r.Context()}
	rc.refused = checkVersion(version, rc.version, fleet.lowest, fleet.newest)
	// The request's context ends at a half-close already, after which a client may well
	// wait for its answer. So only those look at it that would never end by themselves.
	r = r.WithContext(context.WithValue(context.WithoutCancel(r.Context()), callKey{}, rc))
	if r.Body != nil && r.Body != http.NoBody {
		// In this copy of the request only: what net/http does with an unread body
		// depends on its type there.
		rc.body = &clientBody{ReadCloser: r.Body, conn: http.NewResponseController(w)}
		r.Body = rc.body
		defer rc.body.drop()
	}
	r.URL.Path, r.URL.RawPath = path, ""
	a.router.ServeHTTP(w, r)
}

// survive turns a panic into one 500 for its client.
func (a *api) survive(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	a.panics.Add(1)
	a.log.Error("panic in a request", "method", r.Method, "path", r.URL.Path, "err", p, "stack", string(debug.Stack()))
	a.fail(w, r, errorf(http.StatusInternalServerError, "internal error"))
}

// admit refuses what no Docker client sends: odd paths, and browsers (S6, S12).
func (a *api) admit(r *http.Request, path string) error {
	if r.URL.IsAbs() || !strings.HasPrefix(path, "/") {
		return errorf(http.StatusBadRequest, "expected a path, got %q", r.RequestURI)
	}
	if strings.Contains(path, "//") && r.Method != http.MethodGet && r.Method != http.MethodHead {
		return errorf(http.StatusNotFound, "page not found")
	}
	for _, segment := range strings.Split(path, "/") {
		if segment == "." || segment == ".." || strings.ContainsFunc(segment, isControl) {
			return errorf(http.StatusBadRequest, "invalid path %q", path)
		}
	}
	if r.TLS != nil {
		return nil
	}
	if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") == "cross-site" {
		return errorf(http.StatusForbidden, "requests from web pages are refused")
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && local.IP.IsLoopback() && !a.knownHost(r.Host) {
		return errorf(http.StatusForbidden, "host %q is not one of this machine's: name it with -allow-host", r.Host)
	}
	return nil
}

// sendToCleanPath answers a read of /containers//web/json as an engine does: docker-py makes
// such paths of the name that inspect tells, which is /web.
func sendToCleanPath(w http.ResponseWriter, r *http.Request) {
	to := url.URL{Path: pathpkg.Clean(r.URL.Path), RawQuery: r.URL.RawQuery}
	if strings.HasSuffix(r.URL.Path, "/") {
		to.Path += "/"
	}
	w.Header().Set("Location", to.String())
	w.WriteHeader(http.StatusMovedPermanently)
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// knownHost keeps a web page from reaching a loopback listener through a DNS name of its own.
func (a *api) knownHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "docker" || net.ParseIP(host) != nil {
		return true
	}
	for _, h := range a.hosts {
		if strings.EqualFold(h, host) {
			return true
		}
	}
	return false
}

// serve adapts a handler to httprouter and answers its error, once.
func (a *api) serve(operation string, handle handler, name *string) httprouter.Handle {
	return func(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
		c := r.Context().Value(callKey{}).(*call)
		began := time.Now()
		defer func() { a.cluster.store.metrics.request(operation, statusSent(w, r), began) }()
		if name != nil {
			c.name = *name
		}
		err := c.refused
		if err == nil {
			if c.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
				err = errorf(http.StatusBadRequest, "%v", err)
			} else {
				err = handle(a.cluster, w, r, c)
			}
		}
		if err != nil {
			a.fail(w, r, err)
		}
	}
}

// answerWriter knows whether an answer has begun: what goes wrong after that can
// only break the connection, or half an answer would look whole.
type answerWriter struct {
	http.ResponseWriter
	begun  bool
	status int // 0: nothing was said about it
}

func (w *answerWriter) WriteHeader(status int) {
	w.begun = true
	if w.status < 200 { // one below is not the last word
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(p []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(p)
}

// statusSent is what the client was answered. A raw stream is not written through w.
func statusSent(w http.ResponseWriter, r *http.Request) int {
	aw, ok := w.(*answerWriter)
	switch {
	case ok && aw.status != 0:
		return aw.status
	case ok && !aw.begun && r.Header.Get("Upgrade") != "":
		return http.StatusSwitchingProtocols
	}
	return http.StatusOK
}

func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// fail answers err as Docker does. It does so although the client may have gone: one
// that has only closed its own direction looks the same and waits for the answer.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	a.cluster.store.note(err)
	err = storeError(err)
	if errors.Is(err, context.Canceled) {
		err = errBrokeOff
	}
	status := statusOf(err)
	msg := err.Error()
	if status == http.StatusInternalServerError && !errors.As(err, new(*apiError)) {
		a.log.Error("request not answered", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if aw, ok := w.(*answerWriter); ok && aw.begun {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	if status == http.StatusServiceUnavailable && !errors.Is(err, errNoSwarm) && !errors.Is(err, errNotInSwarm) || status == http.StatusTooManyRequests {
		h.Set("Retry-After", "5")
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		json.NewEncoder(w).Encode(map[string]string{"message": msg})
	}
}
