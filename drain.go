package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
)

const drainUsage = `Usage: swarmlite drain -dry-run [flags] NODE

Shows which containers a drain of NODE would move, where to, and why the others would
stay. Decided as in a drain, in a copy of the manager's database, whether the manager
runs or not. The drain itself is docker node update --availability drain NODE.

Flags:
`

// drainCommand prints what a drain would come to.
func drainCommand(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("swarmlite drain", flag.ContinueOnError)
	path := dbFlag(fs)
	asJSON := fs.Bool("json", false, "print JSON")
	dry := fs.Bool("dry-run", false, "show what would be moved, move nothing")
	if help, err := parseCommand(fs, args, drainUsage, stderr); help || err != nil {
		return err
	}
	switch {
	case fs.NArg() != 1:
		return errors.New("drain: name one node; swarmlite drain -h tells more")
	case !*dry:
		return fmt.Errorf("drain: give -dry-run to see what would be moved; docker node update --availability drain %s drains the node", fs.Arg(0))
	}
	s, err := openScratch(ctx, *path, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.close()
	list, err := s.drain(ctx, fs.Arg(0))
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	if *asJSON {
		return json.NewEncoder(stdout).Encode(list)
	}
	moved := 0
	t := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "CONTAINER\tIMAGE\tSTATE\tGOES TO\tSTAYS BECAUSE")
	for _, d := range list {
		to := "-"
		if d.To != "" {
			to = d.To
			moved++
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", d.Container, d.Image, d.State, to, d.Stays)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "\n%d of %s would be moved\n", moved, counted(len(list), "container"))
	return err
}

// drained is a container of a node that is to be drained.
type drained struct {
	Container string `json:"container"`
	Image     string `json:"image"`
	State     string `json:"state"`
	To        string `json:"to"`            // node; "": it stays
	Stays     string `json:"stays_because"` // "" if it goes
}

// drain drains a node of the scratch database.
func (s *scratch) drain(ctx context.Context, ref string) ([]*drained, error) {
	var node int64
	var state, mode string
	err := s.get(ctx, "SELECT n.id, n.state, m.drain FROM node_load n, manager m WHERE ? IN (n.name, n.engine_id, n.address)", []any{ref}, &node, &state, &mode)
	if errors.Is(err, errNotFound) {
		return nil, fmt.Errorf("node %s not found", ref)
	}
	if err == nil && state != "healthy" {
		err = fmt.Errorf("node %s is %s: what is on it can be moved when it answers, or is made anew after -reschedule-after", ref, state)
	}
	if err == nil {
		err = s.write(ctx, func(t *tx) error {
			_, err := t.exec("UPDATE nodes SET availability = 'drain' WHERE id = ?", node)
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	left, err := allLeaving(s.queryIn(ctx), node)
	if err != nil {
		return nil, err
	}
	list := []*drained{}
	for _, k := range left {
		d := &drained{Container: k.name, Image: k.image, State: k.state, Stays: k.reason(whyDrain, mode == "recreate")}
		if d.Stays == "" {
			r := &trial{Kind: "container", Name: k.name}
			if r.w, err = s.copyOf(ctx, k); err == nil {
				err = s.place(ctx, r)
			}
			if err != nil {
				return nil, err
			}
			d.To, d.Stays = r.Now, r.Message
		}
		list = append(list, d)
	}
	return list, nil
}

// copyOf is what a drain would ask for: what the container was made from, if that is
// kept, else what the ledger or its row tells of it. The engine, which would tell all,
// is not asked.
func (s *scratch) copyOf(ctx context.Context, k *leaving) (w *workload, err error) {
	var body *keptBody
	var request string
	body, err = keptBodyOf(func(query string, args []any, dest ...any) error { return s.get(ctx, query, args, dest...) }, k, false)
	if err == nil {
		w, _, err = readCreateAs([]byte(body.text), &call{version: body.version}, newSwarmID())
	} else if errors.Is(err, errNotFound) {
		err = s.get(ctx, "SELECT request FROM placements WHERE container_id = ? AND container_id <> '' ORDER BY id DESC LIMIT 1", []any{k.id}, &request)
		if errors.Is(err, errNotFound) {
			request, err = "{}", nil
		}
		if err == nil {
			var sh shape
			if err = json.Unmarshal([]byte(request), &sh); err == nil {
				w, err = sh.workload()
			}
		}
		if err == nil && request == "{}" {
			err = s.get(ctx, "SELECT nano_cpus, memory_bytes FROM containers WHERE id = ?", []any{k.row}, &w.nanoCPUs, &w.memory)
		}
	}
	if err != nil {
		return nil, err
	}
	w.kind, w.image, w.name, w.leaves, w.replaces = "container", k.image, suffixed(k.name, "-new-"+shortID(k.id)), k.node, k.id
	return w, nil
}
