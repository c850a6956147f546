package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// withContainer finds the container of a call and runs do under the lock.
func (e *fakeEngine) withContainer(c *fakeCall, do func(*fakeContainer) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	found, err := e.find(c.id)
	if err != nil {
		return err
	}
	return do(found)
}

// change runs do on the container of a call and answers 204.
func (e *fakeEngine) change(c *fakeCall, do func(*fakeContainer) error) error {
	if err := e.withContainer(c, do); err != nil {
		return err
	}
	return c.writeStatus(http.StatusNoContent)
}

// notRunning is the refusal of what needs a process.
func (c *fakeContainer) notRunning() error {
	return fakeErrorf(http.StatusConflict, "Container %s is not running", c.id)
}

// containerStart is POST /containers/{id}/start.
func (e *fakeEngine) containerStart(c *fakeCall) error {
	return e.change(c, func(found *fakeContainer) error {
		if found.status == "paused" {
			return fakeErrorf(http.StatusConflict, "cannot start a paused container, try unpause instead")
		}
		if found.running() {
			return fakeErrorf(http.StatusNotModified, "")
		}
		return e.startNow(found)
	})
}

// stopNow stops a container as `docker stop` does, with its events.
func (e *fakeEngine) stopNow(c *fakeContainer) {
	e.tell(c, "kill", "signal", "15")
	e.die(c, 143)
	e.tell(c, "stop")
}

// containerStop is POST /containers/{id}/stop.
func (e *fakeEngine) containerStop(c *fakeCall) error {
	return e.change(c, func(found *fakeContainer) error {
		if !found.running() {
			return fakeErrorf(http.StatusNotModified, "")
		}
		e.stopNow(found)
		return nil
	})
}

// containerRestart is POST /containers/{id}/restart.
func (e *fakeEngine) containerRestart(c *fakeCall) error {
	return e.change(c, func(found *fakeContainer) error {
		if found.running() {
			found.restarting = true
			e.stopNow(found)
			found.restarting = false
		}
		if err := e.startNow(found); err != nil {
			return err
		}
		e.tell(found, "restart")
		return nil
	})
}

// fakeSignals are the signals with names, as far as anybody uses them.
var fakeSignals = map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15, "WINCH": 28}

// containerKill is POST /containers/{id}/kill.
func (e *fakeEngine) containerKill(c *fakeCall) error {
	signal := 9
	if text := strings.TrimPrefix(strings.ToUpper(c.query.Get("signal")), "SIG"); text != "" {
		number, err := strconv.Atoi(text)
		if signal = fakeSignals[text]; err == nil {
			signal = number
		}
		if signal < 1 || signal > 64 {
			return fakeErrorf(http.StatusBadRequest, "Invalid signal: %s", c.query.Get("signal"))
		}
	}
	return e.change(c, func(found *fakeContainer) error {
		if !found.running() {
			return fakeErrorf(http.StatusConflict, "Cannot kill container: %s: Container %s is not running", c.id, found.id)
		}
		e.tell(found, "kill", "signal", strconv.Itoa(signal))
		if slices.Contains([]int{2, 3, 9, 15}, signal) {
			e.die(found, 128+signal)
		}
		return nil
	})
}

// containerPause is POST /containers/{id}/pause.
func (e *fakeEngine) containerPause(c *fakeCall) error {
	return e.change(c, func(found *fakeContainer) error {
		if !found.running() {
			return found.notRunning()
		}
		if found.status == "paused" {
			return fakeErrorf(http.StatusConflict, "Container %s is already paused", found.id)
		}
		found.status = "paused"
		e.tell(found, "pause")
		return nil
	})
}

// containerUnpause is POST /containers/{id}/unpause.
func (e *fakeEngine) containerUnpause(c *fakeCall) error {
	return e.change(c, func(found *fakeContainer) error {
		if found.status != "paused" {
			return fakeErrorf(http.StatusInternalServerError, "Container %s is not paused", found.id)
		}
		found.status = "running"
		e.tell(found, "unpause")
		return nil
	})
}

// containerRename is POST /containers/{id}/rename.
func (e *fakeEngine) containerRename(c *fakeCall) error {
	name := strings.TrimPrefix(c.query.Get("name"), "/")
	return e.change(c, func(found *fakeContainer) error {
		if name == "" {
			return fakeErrorf(http.StatusBadRequest, "Neither old nor new names may be empty")
		}
		if name == found.name {
			return fakeErrorf(http.StatusBadRequest, "Renaming a container with the same name as its current name")
		}
		if err := e.checkName(name); err != nil {
			status := err.(*fakeError).status
			return fakeErrorf(status, "Error when allocating new name: %v", err)
		}
		old := found.name
		delete(e.byName, old)
		found.name, e.byName[name] = name, found
		e.tell(found, "rename", "oldName", "/"+old)
		return nil
	})
}

// containerUpdate is POST /containers/{id}/update.
func (e *fakeEngine) containerUpdate(c *fakeCall) error {
	var keys map[string]json.RawMessage
	if _, err := c.readJSON(&keys); err != nil {
		return err
	}
	err := e.withContainer(c, func(found *fakeContainer) error {
		found.host = fakeOver(found.host, keys)
		e.tell(found, "update")
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, map[string]any{"Warnings": nil})
}

// containerResize is POST /containers/{id}/resize.
func (e *fakeEngine) containerResize(c *fakeCall) error {
	err := e.withContainer(c, func(found *fakeContainer) error {
		if !found.running() {
			return found.notRunning()
		}
		e.tell(found, "resize", "height", c.query.Get("h"), "width", c.query.Get("w"))
		return nil
	})
	if err != nil {
		return err
	}
	return c.writeStatus(http.StatusOK)
}

// containerRemove is DELETE /containers/{id}.
func (e *fakeEngine) containerRemove(c *fakeCall) error {
	return e.change(c, func(found *fakeContainer) error {
		if found.running() && !c.flag("force") {
			return fakeErrorf(http.StatusConflict,
				"You cannot remove a running container %s. Stop the container before attempting removal or force remove", found.id)
		}
		e.remove(found, c.flag("v"))
		return nil
	})
}

// remove kills a container if need be and destroys it.
func (e *fakeEngine) remove(c *fakeContainer, volumes bool) {
	if c.running() {
		e.tell(c, "kill", "signal", "9")
		e.die(c, 137)
	}
	e.destroy(c, volumes)
}

// containerPrune is POST /containers/prune.
func (e *fakeEngine) containerPrune(c *fakeCall) error {
	filters, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	deleted := []string{}
	e.mu.Lock()
	for _, found := range slices.Clone(e.containers) {
		if !found.running() && filters.labels("label", found.want.Labels) {
			deleted = append(deleted, found.id)
			e.destroy(found, false)
		}
	}
	e.emitNow("container", "prune", "", "", map[string]string{"reclaimed": "0"})
	e.mu.Unlock()
	return c.writeJSON(http.StatusOK, map[string]any{"ContainersDeleted": deleted, "SpaceReclaimed": 0})
}

// containerWait is POST /containers/{id}/wait: the header at once, the body when
// the condition is met.
func (e *fakeEngine) containerWait(c *fakeCall) error {
	condition := c.query.Get("condition")
	if !slices.Contains([]string{"", "not-running", "next-exit", "removed"}, condition) {
		return fakeErrorf(http.StatusBadRequest, "invalid condition: %q", condition)
	}
	var met <-chan struct{}
	var found *fakeContainer
	err := e.withContainer(c, func(f *fakeContainer) error {
		found = f
		switch {
		case condition == "removed":
			met = f.gone
		case condition == "next-exit" && !f.running():
			f.renewExited() // startNow finds it open and keeps it
			met = f.exited
		case f.running():
			met = f.exited
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	if !fakeOlder(c.version, "1.30") {
		c.w.WriteHeader(http.StatusOK)
		c.flush()
	}
	if met != nil {
		select {
		case <-met:
		case <-c.r.Context().Done():
			return nil
		}
	}
	e.mu.Lock()
	code := found.exitCode
	e.mu.Unlock()
	body := fmt.Sprintf(`{"Error":null,"StatusCode":%d}`+"\n", code)
	_, _ = c.w.Write([]byte(body))
	return nil
}

// addContainer makes a container behind the manager's back, as somebody on the
// host would, image included. It returns the ID.
func (e *fakeEngine) addContainer(name, image string, running bool, labels map[string]string) string {
	e.t.Helper()
	body, _ := json.Marshal(map[string]any{"Image": image, "Cmd": []string{"sleep", "inf"}, "Labels": labels})
	return e.addContainerBody(name, body, running)
}

// addContainerBody is addContainer with a whole create body.
func (e *fakeEngine) addContainerBody(name string, body []byte, running bool) string {
	e.t.Helper()
	var want fakeCreate
	err := json.NewDecoder(bytes.NewReader(body)).Decode(&want)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.findImage(want.Image) == nil {
		e.putImage(want.Image, "", "")
	}
	var made *fakeContainer
	if err == nil {
		made, err = e.create(name, body, want)
	}
	if err == nil && running {
		err = e.startNow(made)
	}
	if err != nil {
		e.t.Errorf("addContainer(%q): %v", name, err)
		return ""
	}
	return made.id
}

// removeContainer removes a container behind the manager's back, running or not.
func (e *fakeEngine) removeContainer(ref string) {
	e.t.Helper()
	e.behindBack("removeContainer", ref, func(c *fakeContainer) error { e.remove(c, false); return nil })
}

// startContainer starts a container behind the manager's back.
func (e *fakeEngine) startContainer(ref string) {
	e.t.Helper()
	e.behindBack("startContainer", ref, e.startNow)
}

// exitContainer lets a container's process end by itself.
func (e *fakeEngine) exitContainer(ref string, code int) {
	e.t.Helper()
	e.behindBack("exitContainer", ref, func(c *fakeContainer) error { e.die(c, code); return nil })
}

// behindBack runs do on a container; a refusal fails the test.
func (e *fakeEngine) behindBack(what, ref string, do func(*fakeContainer) error) {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(ref)
	if err == nil {
		err = do(c)
	}
	if err != nil {
		e.t.Errorf("%s(%q): %v", what, ref, err)
	}
}

// containerNames are the names of all containers, sorted.
func (e *fakeEngine) containerNames() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.byName))
}

// containerIDs are all containers, "ID name" of each.
func (e *fakeEngine) containerIDs() (list []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		list = append(list, c.id+" "+c.name)
	}
	return list
}

// createBody is the body that a container was created with, as received; nil if
// there is no such container.
func (e *fakeEngine) createBody(ref string) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.find(ref)
	if err != nil {
		return nil
	}
	return bytes.Clone(c.body)
}
