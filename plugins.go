package main

import (
	"net/http"

	"golang.org/x/sync/errgroup"
)

// pluginInspect answers from the first node, by id, that has the plugin. With none
// it must be an engine's 404: docker inspect of any unknown name comes here last.
func pluginInspect(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	engines, _, err := c.nodesAsked(call)
	if err != nil {
		return err
	}
	answers := make([]*created, len(engines))
	var g errgroup.Group
	g.SetLimit(64)
	for i, e := range engines {
		g.Go(func() error {
			resp, err := e.exchange(r.Context(), http.MethodGet, e.url(call.version, "/plugins/"+escapeName(call.name)+"/json", ""), r.Header, nil, read)
			if err != nil {
				c.log.Warn("plugin not looked for on one node", "node", e.nodeName(), "err", oneLine(err))
			} else if resp.status == http.StatusOK {
				answers[i] = resp
			}
			return nil
		})
	}
	g.Wait()
	for _, resp := range answers {
		if resp != nil {
			copyAnswerHeaders(w.Header(), resp.header)
			w.WriteHeader(resp.status)
			w.Write(resp.body)
			return nil
		}
	}
	return errorf(http.StatusNotFound, "plugin %q not found", call.name)
}
