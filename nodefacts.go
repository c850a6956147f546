package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// nodeFacts is what an engine says of itself when it is connected to.
type nodeFacts struct {
	info     engineInfo
	rawInfo  json.RawMessage
	version  engineVersion
	rawVer   json.RawMessage
	api, min apiVersion
	clock    time.Time     // the engine's, from its Date header
	skew     time.Duration // of that, from ours
	ip       string
}

// engineInfo is what we read of /info.
type engineInfo struct {
	ID, Name        string
	NCPU            int64
	MemTotal        int64
	Driver          string
	KernelVersion   string
	OperatingSystem string
	OSType          string
	Architecture    string
	ServerVersion   string
	Labels          []string
	DriverStatus    json.RawMessage
	Swarm           engineSwarm
}

// engineSwarm is the part of /info that tells which swarm, in Docker's Swarm mode, the engine is in.
type engineSwarm struct {
	NodeID, LocalNodeState string
	ControlAvailable       bool
	RemoteManagers         []struct{ NodeID string }
	Cluster                struct{ ID string }
}

// imageStore is the kind of the engine's image store, graph (by storage driver) or
// containerd: they give one image different IDs.
func (i *engineInfo) imageStore() string {
	var pairs [][]string
	json.Unmarshal(i.DriverStatus, &pairs) // of an odd shape: no engine we know
	for _, p := range pairs {
		if len(p) == 2 && p[0] == "driver-type" && p[1] == "io.containerd.snapshotter.v1" {
			return "containerd"
		}
	}
	return "graph"
}

// engineVersion is what we read of /version.
type engineVersion struct {
	Version, APIVersion, MinAPIVersion string
}

// connect asks the engine who it is. Each step that fails is named.
func (ns *nodes) connect(ctx context.Context, e *engine) (*nodeFacts, error) {
	f := &nodeFacts{}
	if problem := e.disowned.Load(); problem != nil {
		return nil, &stepError{"dns", *problem}
	}
	if err := e.location.find(ctx); err != nil {
		return nil, &stepError{"dns", err}
	}
	if e.tunnel != nil {
		if err := e.tunnel.up(ctx); err != nil {
			return nil, &stepError{"ssh", err}
		}
	}
	before := e.speaks()
	asked := time.Now()
	ping, err := e.pingHeader(ctx, probeWait)
	if err != nil {
		if e.tunnel != nil {
			err = e.tunnel.explain(err)
		}
		return nil, &stepError{"ping", err}
	}
	e.said.Store(pingSaid{ping.Get("Builder-Version"), ping.Get("Swarm") != ""})
	// Until /version has told the range, requests go out at the version of the ping.
	if v, err := parseAPIVersion(ping.Get("Api-Version")); err == nil {
		e.highest.Store(int64(v))
		e.lowest.Store(0)
	}
	var date string
	if f.rawVer, date, err = e.getRaw(ctx, "/version"); err != nil {
		return nil, &stepError{"version", err}
	}
	if err := json.Unmarshal(f.rawVer, &f.version); err != nil {
		return nil, &stepError{"version", fmt.Errorf("bad answer: %w", err)}
	}
	if f.api, err = parseAPIVersion(f.version.APIVersion); err != nil {
		return nil, &stepError{"version", err}
	}
	if f.min, err = parseAPIVersion(f.version.MinAPIVersion); err != nil {
		f.min = f.api // engines before 1.24 do not say
	}
	pinged := e.speaks()
	e.highest.Store(int64(f.api))
	e.lowest.Store(int64(f.min))
	ns.noteVersions(before, pinged, versionRange{f.min, f.api})
	f.clock = time.Now()
	if t, err := http.ParseTime(date); err == nil {
		f.clock = t
		f.skew = t.Sub(asked)
	}
	if f.rawInfo, _, err = e.getRaw(ctx, "/info"); err != nil {
		return nil, &stepError{"info", err}
	}
	if err := json.Unmarshal(f.rawInfo, &f.info); err != nil {
		return nil, &stepError{"info", fmt.Errorf("bad answer: %w", err)}
	}
	if f.info.ID == "" || f.info.NCPU <= 0 || f.info.MemTotal <= 0 {
		return nil, &stepError{"info", errors.New("no ID, CPUs or memory in the answer: is this a Docker engine, and not a manager?")}
	}
	e.inSwarm.Store(f.info.Swarm.LocalNodeState == "active")
	f.ip = e.numericIP(ctx)
	return f, nil
}

// clockSkew is how far an engine's clock is taken to be off ours: its header counts whole
// seconds, and takes time to get here.
func clockSkew(d time.Duration) time.Duration {
	if d.Abs() < 2*time.Second {
		return 0
	}
	return d
}

// noteClock writes how far the engine's clock is off by now, if that has changed.
func (ns *nodes) noteClock(ctx context.Context, e *engine) error {
	off, told := time.Duration(e.clockOff.Load()), time.Duration(e.clockTold.Load())
	if clockSkew(off-told) == 0 {
		return nil
	}
	e.clockTold.Store(int64(off))
	if off = clockSkew(off); off == 0 {
		ns.log.Info("the engine's clock is right again", "node", e.nodeName())
	} else {
		ns.log.Warn(clockWords(off), "node", e.nodeName())
	}
	return ns.store.write(ctx, func(t *tx) error {
		_, err := t.exec("UPDATE nodes SET clock_skew_ms = ? WHERE id = ?", off.Milliseconds(), e.id)
		return err
	})
}

// noteCertificate tells, each day of its last 30, when the certificate ends that the engine
// shows: from then on the node is lost.
func (ns *nodes) noteCertificate(e *engine, now time.Time) {
	seconds := e.certEnds.Load()
	ends := time.Unix(seconds, 0).UTC()
	if seconds == 0 || !e.verified || now.Add(expiryWarning).Before(ends) || now.Sub(e.certWarned) < 24*time.Hour {
		return
	}
	e.certWarned = now
	ns.log.Warn("the engine's certificate expires soon", "node", e.nodeName(), "addr", e.addr, "expires", ends)
}

func clockWords(off time.Duration) string {
	where := "ahead of"
	if off < 0 {
		where = "behind"
	}
	return fmt.Sprintf("the engine's clock is %s %s the manager's", off.Abs().Round(time.Second), where)
}

// getRaw reads a JSON answer whole, with the engine's Date.
func (e *engine) getRaw(ctx context.Context, path string) (raw json.RawMessage, date string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(0, path, ""), nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := e.send(req, read)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s: %s", resp.Status, engineMessage(resp.Body))
	}
	raw, err = io.ReadAll(io.LimitReader(resp.Body, maxItem))
	return raw, resp.Header.Get("Date"), err
}

// numericIP is the address that published ports are shown with; a host name there
// makes newer docker commands fail. Empty for sockets of this machine.
func (e *engine) numericIP(ctx context.Context) string {
	host := ""
	switch {
	case e.tunnel != nil:
		host = e.tunnel.hostName(ctx)
	case e.network == "tcp":
		host, _, _ = net.SplitHostPort(e.location.address())
	}
	if host == "" {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil {
		return ip.String()
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	ips, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
	if err != nil || len(ips) == 0 {
		return ""
	}
	return ips[0].String()
}
