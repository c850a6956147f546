package main

import (
	"net/http"
	"strings"
	"testing"
)

func TestPluginInspectAsksEveryNode(t *testing.T) {
	t.Parallel()
	engines, _, api := threeNodes(t)
	for _, e := range engines {
		e.fail("GET", "^/plugins/.*/json$", 404, `{"message":"plugin not found"}`)
	}
	engines[1].override("GET", "^/plugins/sshfs/json$", jsonAnswer(`{"Id":"2","Name":"sshfs:latest"}`))
	var plugin struct{ Id string }
	api.into("GET", "/v1.41/plugins/sshfs/json", "", &plugin)
	if plugin.Id != "2" {
		t.Errorf("plugin: %+v, want that of the second node", plugin)
	}
	status, body := api.do("GET", "/v1.41/plugins/vieux/nosuch/json", "")
	if status != http.StatusNotFound || !strings.Contains(body, `plugin \"vieux/nosuch\" not found`) {
		t.Errorf("a plugin that no node has: %d %s, want 404", status, body)
	}
}
