package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// askContainer sends a call about a container to its engine; an answer that is not
// among those wanted is an error in the engine's words, or errNotFound.
func (e *engine) askContainer(ctx context.Context, method, path, query string, body []byte, p patience, wanted ...int) error {
	req, err := http.NewRequestWithContext(ctx, method, e.url(0, "/containers/"+path, query), bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.do(req, p)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case slices.Contains(wanted, resp.StatusCode):
		return nil
	case resp.StatusCode == http.StatusNotFound:
		return errNotFound
	}
	return errors.New(engineMessage(resp.Body))
}

// renameContainer gives a container a name, unless it has it already.
func (e *engine) renameContainer(ctx context.Context, id, name string) error {
	err := e.askContainer(ctx, http.MethodPost, id+"/rename", url.Values{"name": {name}}.Encode(), nil, change, http.StatusNoContent)
	if err == nil || errors.Is(err, errNotFound) || errors.As(err, new(*engineError)) {
		return err
	}
	var in struct{ Name string }
	if look := e.getJSON(ctx, "/containers/"+id+"/json", "", &in); look != nil {
		return look
	}
	if strings.TrimPrefix(in.Name, "/") == name {
		return nil
	}
	return err
}

// renameStopped is renameContainer for a container that may be stopped for it: engines do not
// rename one that runs in a network of a swarm (moby issue 42351). It is started
// again if that is asked for.
func (e *engine) renameStopped(ctx context.Context, id, name string, start bool) (renamed bool, err error) {
	var in struct {
		NetworkSettings struct {
			Networks map[string]struct{ NetworkID string }
		}
	}
	if err := e.getJSON(ctx, "/containers/"+id+"/json", "", &in); err != nil {
		return false, err
	}
	stop := false
	for _, n := range in.NetworkSettings.Networks {
		stop = stop || ofSwarm(n.NetworkID)
	}
	if stop {
		if err := e.askContainer(ctx, http.MethodPost, id+"/stop", "", nil, slow, http.StatusNoContent, http.StatusNotModified); err != nil {
			return false, err
		}
	}
	if err := e.renameContainer(ctx, id, name); err != nil || !stop || !start {
		return err == nil, err
	}
	return true, e.askContainer(ctx, http.MethodPost, id+"/start", "", nil, change, http.StatusNoContent, http.StatusNotModified)
}

// ofSwarm tells the ID of a network that a swarm (Docker's Swarm mode) has made: it has 25
// digits, where an engine's own has 64.
func ofSwarm(network string) bool { return len(network) == 25 }

// noRestart keeps a stopped container stopped: "always" means from the next start of
// its engine, too. What an engine refuses to change (--rm) has no restart policy.
func (e *engine) noRestart(ctx context.Context, id string) error {
	err := e.askContainer(ctx, http.MethodPost, id+"/update", "", []byte(`{"RestartPolicy":{"Name":"no"}}`), change, http.StatusOK)
	if errors.As(err, new(*engineError)) || errors.Is(err, errNotFound) {
		return err
	}
	return nil
}
