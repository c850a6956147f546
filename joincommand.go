package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const tokenUsage = `Usage: swarmlite token [flags]

Makes a token with which hosts join the cluster, and prints it. Its hash alone is
kept. Where the manager runs it is asked; where it is stopped, its database is
written.

Flags:
`

// tokenCommand makes a join token.
func tokenCommand(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("swarmlite token", flag.ContinueOnError)
	db := fs.String("db", "", "the SQLite `FILE` of a manager that is stopped; also read from SWARMLITE_DB\n(default "+defaultDB+", unless a manager is named)")
	manager := addManagerFlags(fs, "H")
	replace := fs.Bool("replace", false, "end all earlier tokens")
	if help, err := parseCommand(fs, args, tokenUsage, stderr); help || err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("token: unexpected argument %q; swarmlite token -h tells more", fs.Arg(0))
	}
	var made joinRequest
	err := manager.through(ctx, *db, func(c *managerClient) error {
		return c.call(ctx, http.MethodPost, fmt.Sprintf("/swarmlite/tokens?replace=%t", *replace), nil, &made)
	}, func(s *store) (err error) {
		made.Token, err = s.newToken(ctx, *replace)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, made.Token)
	return nil
}

const joinUsage = `Usage: swarmlite join -manager ADDR -advertise HOST:PORT -token TOKEN [flags] [OPTION ...]

Runs on a Docker host: registers its engine with the manager and keeps it
registered. HOST:PORT is where the manager reaches the engine; OPTION is
name=NAME or label=KEY:VALUE. If it is silent for three heartbeats, the node takes
no new containers until it is heard of again.

Flags:
`

// joinCommand registers this host with a manager until a signal ends it.
func joinCommand(ctx context.Context, args []string, _ io.Reader, _, stderr io.Writer) error {
	fs := flag.NewFlagSet("swarmlite join", flag.ContinueOnError)
	manager := addManagerFlags(fs, "manager")
	j := joiner{log: slog.New(slog.NewTextHandler(stderr, nil)), pause: time.Second}
	fs.StringVar(&j.request.Address, "advertise", "", "`HOST:PORT` where the manager reaches this host's engine")
	fs.StringVar(&j.request.Token, "token", "", "`TOKEN` that swarmlite token has made; SWARMLITE_TOKEN keeps it out of the list of processes")
	fs.DurationVar(&j.heartbeat, "heartbeat", 20*time.Second, "`DURATION` between two signs of life")
	fs.DurationVar(&j.delay, "delay", 0, "`DURATION` up to which a random wait comes first: for a thousand hosts that start at once")
	if help, err := parseCommand(fs, args, joinUsage, stderr); help || err != nil {
		return err
	}
	j.request.Words = fs.Args()
	switch {
	case j.request.Address == "":
		return errors.New("join: -advertise is missing: where does the manager reach this host's engine?")
	case j.request.Token == "":
		return errors.New("join: -token is missing: swarmlite token makes one")
	case j.heartbeat < time.Second || j.heartbeat > longestTTL/3:
		return fmt.Errorf("join: -heartbeat %s: expected 1s to %s", j.heartbeat, longestTTL/3)
	case j.delay < 0:
		return fmt.Errorf("join: -delay %s: expected a duration such as 30s", j.delay)
	}
	j.request.TTL = 3 * j.heartbeat
	var err error
	if j.client, err = manager.client(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return j.run(ctx)
}

// joiner keeps a host registered.
type joiner struct {
	log              *slog.Logger
	client           *managerClient
	request          joinRequest
	heartbeat, delay time.Duration
	pause            time.Duration // after a call that was not answered; grows
}

// run registers until ctx ends. It gives up when the manager refuses: what an operator
// has to mend does not mend itself.
func (j *joiner) run(ctx context.Context) error {
	wait := time.Duration(0)
	if j.delay > 0 {
		wait = rand.N(j.delay)
	}
	j.request.First = true
	pause, joined := j.pause, false
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		err := j.client.call(ctx, http.MethodPost, "/swarmlite/join", j.request, nil)
		var refused *statusError
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if !joined {
				j.log.Info("joined", "manager", j.client.addr, "advertise", j.request.Address)
			}
			joined, j.request.First, pause = true, false, j.pause
			// Up to a tenth off, so that hosts which started together drift apart.
			wait = j.heartbeat - rand.N(j.heartbeat/10)
			continue
		case errors.As(err, &refused) && refused.status >= 400 && refused.status < 500 && refused.status != http.StatusTooManyRequests:
			return fmt.Errorf("join: %s", strings.TrimSuffix(refused.message, "\n"))
		}
		j.log.Warn("not registered, trying again", "manager", j.client.addr, "err", err)
		joined = false
		wait = pause/2 + rand.N(pause/2)
		pause = min(2*pause, j.heartbeat)
	}
}
