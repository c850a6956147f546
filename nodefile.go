package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	maxNodeFileBytes = 1 << 20 // a node file is typed by people; more is the wrong file
	nodeFileInterval = time.Second
)

// commentPattern finds a comment: # at the start of a line or behind a blank.
var commentPattern = regexp.MustCompile(`(^|[ \t])#.*`)

// readNodeFile returns the nodes in the file at path, each once, in their order. An error names the file and, where there is one, the line.
func readNodeFile(path string, secure bool) ([]nodeLine, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("node file: %w", err)
	}
	// A pipe would block here until somebody writes to it.
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("node file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxNodeFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("node file: %w", err)
	}
	if len(text) > maxNodeFileBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes, expected one engine address a line", path, maxNodeFileBytes)
	}
	return parseNodeFile(path, text, secure)
}

// parseNodeFile reads one address or range a line, with its options. # starts a comment, alone on
// its line or behind a blank. A file without an address is refused: it is far more often
// a slip than a wish.
func parseNodeFile(name string, text []byte, secure bool) ([]nodeLine, error) {
	var list distinctLines
	total := 0
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(commentPattern.ReplaceAllString(line, ""))
		if line == "" {
			continue
		}
		nodes, err := parseNode(strings.Fields(line), secure)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n+1, err)
		}
		// Doubles count as well: each line may be a range of thousands.
		if total += len(nodes); total > maxAddresses {
			return nil, fmt.Errorf("%s:%d: more than %d addresses", name, n+1, maxAddresses)
		}
		for _, l := range nodes {
			if err := list.add(l, fmt.Sprintf(" in line %d", n+1)); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, n+1, err)
			}
		}
	}
	if len(list.lines) == 0 {
		return nil, fmt.Errorf("%s: no address in it, expected one engine address a line", name)
	}
	return list.lines, nil
}

// watchNodeFile calls apply with the nodes in the file at path, at once and
// then each time they change, until ctx ends. It looks at the file every second,
// and reads it again when reload delivers. While the file is gone, empty or bad
// the last nodes stay, and the log says so once.
func watchNodeFile(ctx context.Context, log *slog.Logger, path string, secure bool, reload <-chan struct{}, apply func([]nodeLine)) {
	ticker := time.NewTicker(nodeFileInterval)
	defer ticker.Stop()
	followNodeFile(ctx, log, path, secure, ticker.C, reload, apply)
}

func followNodeFile(ctx context.Context, log *slog.Logger, path string, secure bool, tick <-chan time.Time, reload <-chan struct{}, apply func([]nodeLine)) {
	var nodes []nodeLine
	var failed string // the last error logged, while the file is bad
	var file settled[fileLook]

	read := func() {
		found, err := readNodeFile(path, secure)
		if err != nil {
			if err.Error() != failed {
				log.Warn("node file not used, the nodes stay as they are", "file", path, "err", err)
			}
			failed = err.Error()
			return
		}
		if failed != "" {
			log.Info("node file can be used again", "file", path)
		}
		failed = ""
		if slices.EqualFunc(found, nodes, nodeLine.equal) {
			return
		}
		nodes = found
		log.Info("node file read", "file", path, "nodes", len(nodes))
		apply(slices.Clone(nodes))
	}

	file.reset(lookAt(path))
	read()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			// A bad file is read each time: its cause may be gone without a trace in stat.
			if file.changed(lookAt(path)) || failed != "" && file.still() {
				read()
			}
		case _, open := <-reload:
			if !open {
				reload = nil
				continue
			}
			failed = ""
			file.reset(lookAt(path))
			read()
		}
	}
}
