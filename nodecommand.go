package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
)

const nodeUsage = `Usage: swarmlite node add [flags] ADDRESS [OPTION ...]
       swarmlite node rm [flags] NODE ...

Adds a node that lives in the database, beside those of the command line and of
the node file, or takes nodes out. ADDRESS and OPTION are as in a node file. A
node that is taken out stays away until it is added, or named anew. Where the
manager runs it is asked; where it is stopped, its database is written.

Flags:
`

// nodeCommand adds nodes to a cluster and takes them out.
func nodeCommand(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	fs := flag.NewFlagSet("swarmlite node "+verb, flag.ContinueOnError)
	db := fs.String("db", "", "the SQLite `FILE` of a manager that is stopped; also read from SWARMLITE_DB\n(default "+defaultDB+", unless a manager is named)")
	manager := addManagerFlags(fs, "H")
	force := fs.Bool("force", false, "take a node out although it has containers, which stay on the host")
	if verb != "add" && verb != "rm" {
		fs.Init("swarmlite node", flag.ContinueOnError)
		if help, err := parseCommand(fs, append([]string{verb}, args...), nodeUsage, stderr); help || err != nil {
			return err
		}
		return errors.New("node: expected add or rm; swarmlite node -h tells more")
	}
	if help, err := parseCommand(fs, args, nodeUsage, stderr); help || err != nil {
		return err
	}
	words := fs.Args()
	if len(words) == 0 {
		return fmt.Errorf("node %s: expected a node; swarmlite node -h tells more", verb)
	}
	if verb == "rm" {
		for _, node := range words {
			if err := removeNodeBy(ctx, *db, manager, node, *force); err != nil {
				return err
			}
			fmt.Fprintln(stdout, node)
		}
		return nil
	}
	// A directory is the manager's to read, and was typed here.
	for i, w := range words {
		if dir, ok := strings.CutPrefix(w, "tls="); ok && dir != "off" && dir != "" {
			abs, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			words[i] = "tls=" + abs
		}
	}
	added := []addedNode{}
	err := manager.through(ctx, *db, func(c *managerClient) error {
		return c.call(ctx, http.MethodPost, "/swarmlite/nodes", addedNode{words[0], words[1:]}, &added)
	}, func(s *store) error {
		lines, err := stoppedLines(words)
		if err != nil {
			return err
		}
		for _, l := range lines {
			added = append(added, addedNode{Address: l.address})
		}
		return s.addNodes(ctx, lines)
	})
	if err != nil {
		return err
	}
	for _, n := range added {
		fmt.Fprintln(stdout, n.Address)
	}
	return nil
}

// stoppedLines is addedLines where no manager says whether it talks TLS to its engines:
// that decides which port an address without one has, and may come with skip-verify.
func stoppedLines(words []string) ([]nodeLine, error) {
	lines, err := addedLines(words, true)
	if err != nil {
		return nil, err
	}
	if plain, err := addedLines(words, false); err == nil && plain[0].address != lines[0].address {
		return nil, fmt.Errorf("%q: the manager is stopped, so name the port as well: 2376 if it talks TLS to its engines, else 2375", words[0])
	}
	return lines, nil
}

func removeNodeBy(ctx context.Context, db string, manager *managerFlags, node string, force bool) error {
	return manager.through(ctx, db, func(c *managerClient) error {
		return c.call(ctx, http.MethodDelete, fmt.Sprintf("/nodes/%s?force=%t", url.PathEscape(shortened(node)), force), nil, nil)
	}, func(s *store) error {
		var id int64
		var n int
		err := s.get(ctx, "SELECT coalesce(min(id), 0), count(*) FROM nodes n WHERE state <> 'removed' AND (name = ?1 OR ?1 IN (engine_id, address, "+shortAddress+"))",
			[]any{node}, &id, &n)
		if err != nil {
			return err
		}
		if n == 0 {
			return noNode(node)
		}
		if n > 1 {
			return fmt.Errorf("node %s is ambiguous (%d matches found)", node, n)
		}
		_, err = s.keepOut(ctx, id, force)
		return err
	})
}

const listUsage = `Usage: swarmlite list [flags]

Lists the nodes as the manager's database has them, whether it runs or not.

Flags:
`

// listCommand prints the nodes.
func listCommand(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("swarmlite list", flag.ContinueOnError)
	path := dbFlag(fs)
	if help, err := parseCommand(fs, args, listUsage, stderr); help || err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("list: unexpected argument %q; swarmlite list -h tells more", fs.Arg(0))
	}
	db, err := openReader(ctx, *path)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = printStatement(ctx, db, `
		SELECT name AS NODE, address AS ADDRESS, state AS STATE, availability AS AVAILABILITY, source AS "NAMED BY",
		       trim(step || ': ' || error, ': ') AS PROBLEM
		  FROM nodes WHERE state <> 'removed' ORDER BY name, id`, stdout, "", printTable)
	if err != nil {
		return fmt.Errorf("list: %s", sqliteWords(err))
	}
	return nil
}
