package main

import (
	"context"
	"encoding/json"
	"math"
)

// With -cpu-shares=cores a container's CpuShares are whole CPUs, as in classic Swarm.
// An engine knows weights only: it is sent the part of 1024 that these CPUs are of its
// node's, and what it tells of a container is read the same way.

// engineShares is the body of a create as the engine is to get it.
func (c *cluster) engineShares(ctx context.Context, e *engine, load *workload, body []byte) ([]byte, error) {
	if !c.scheduler.cores || load.shares <= 0 {
		return body, nil
	}
	cpus, err := c.store.nodeCPUs(ctx, e.id)
	if err != nil || cpus == 0 {
		return body, err
	}
	return withShares(body, int64(math.Ceil(float64(load.shares)*fullShares/float64(cpus))))
}

// askedCores is a body that was told by an engine, in the cluster's meaning again.
func (c *cluster) askedCores(ctx context.Context, e *engine, body []byte) ([]byte, error) {
	var told struct{ HostConfig hostConfig }
	if err := json.Unmarshal(body, &told); err != nil {
		return nil, err
	}
	if !c.scheduler.cores || told.HostConfig.CpuShares <= 0 {
		return body, nil
	}
	cpus, err := c.store.nodeCPUs(ctx, e.id)
	if err != nil || cpus == 0 {
		return body, err
	}
	return withShares(body, sharedCPUs(told.HostConfig.CpuShares, cpus))
}

func (s *store) nodeCPUs(ctx context.Context, id int64) (cpus int64, err error) {
	err = s.get(ctx, "SELECT cpus FROM nodes WHERE id = ?", []any{id}, &cpus)
	return cpus, err
}
