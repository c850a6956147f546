package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// An engine tells of a container's end before its own list does: engines before 25
// send "die", release the network, and only then change what /containers/json is made of.
func TestListShowsTheEndOfContainersThatEndByThemselves(t *testing.T) {
	engines := labEngines(t)
	m := startManager(t, engines[0].addr)
	m.docker(t, "network", "create", "net")
	for _, network := range []string{"bridge", "net"} {
		for i := range 3 {
			m.docker(t, "run", "-d", "--name", fmt.Sprint(network, i), "--network", network, "busybox", "true")
		}
	}
	eventually(t, 20*time.Second, func() error {
		for line := range strings.Lines(m.docker(t, "ps", "-a", "--format", "{{.Names}} {{.State}}") + "\n") {
			if !strings.HasSuffix(line, " exited\n") {
				return fmt.Errorf("a container that has ended is listed as %q", line)
			}
		}
		return nil
	})
}
