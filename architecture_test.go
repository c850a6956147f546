package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// uses tells which files use which: from file to file to the names used. Files are
// named without .go.
func uses(t *testing.T) map[string]map[string][]string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}
	// Our own package only: what others declare is left unknown, and the errors that
	// makes are ignored. The compiler judges the code, this test who uses whom.
	config := types.Config{Importer: emptyPackages{}, Error: func(error) {}}
	pkg, _ := config.Check("swarmlite", fset, files, info)
	file := func(pos token.Pos) string { return strings.TrimSuffix(fset.Position(pos).Filename, ".go") }
	found := map[string]map[string][]string{}
	for ident, obj := range info.Uses {
		if obj.Pkg() != pkg || !obj.Pos().IsValid() || obj.Parent() != nil && obj.Parent() != pkg.Scope() {
			continue
		}
		from, to := file(ident.Pos()), file(obj.Pos())
		if from == to {
			continue
		}
		if found[from] == nil {
			found[from] = map[string][]string{}
		}
		if !slices.Contains(found[from][to], obj.Name()) {
			found[from][to] = append(found[from][to], obj.Name())
		}
	}
	return found
}

// emptyPackages stands for every package that is imported.
type emptyPackages struct{}

func (emptyPackages) Import(path string) (*types.Package, error) {
	name := path[strings.LastIndexByte(path, '/')+1:]
	p := types.NewPackage(path, name)
	p.MarkComplete()
	return p, nil
}

// layers is the order in which files use each other: a file uses those of its own
// layer and of the layers below it, never of one above.
var layers = []struct{ why, files string }{
	{"the program: flags, wiring, signals, commands", "main config debug"},
	{"the route table, and its end", "api stopping"},
	{"what each noun of the API does that is more than a pass-through; commands that a person runs",
		"containers creates cpushares rename containerlist containerentries exec images imagelist imageremove imagetransfer imageeverynode imageprogress build networks networklist volumes things prune df events system nodeapi nodespec reschedule move leaving rebuild drain plugins explain createflags simulate scratch " +
			"nodeadd nodecommand join joincommand managerclient"},
	{"what handlers work on, and how a container is found", "cluster eventreads"},
	{"where things go: filters, strategies, groups, refusals", "scheduler decision plan workload filters ties groups strategyfile refusal waiting"},
	{"one request to one engine, streams, published ports", "proxy hijack portrelay portsonce"},
	{"what engines have, kept as rows: lists, events, health, creates without an answer", "sources heartbeat nodeset nodes follower fleetversions nodeline nodelost nodefile penalty pace nodefacts nodeevents mirror reread reservations enginetext knownlist statuswords containerrows newrows resourcerows imagerows networkrows noderows linerows eventrows moverows"},
	{"the live connection to the daemon on a node", "engine answers upstream gather marks ssh names containercalls"},
	{"which engines there are, and who they are", "tls clientcerts discovery"},
	{"questions to a database by people", "sqlcommand"},
	{"all state", "store storefile storecarry storewatch storescan storewriter history"},
	{"words, numbers and JSON: what knows of nothing else", "expr room platform resources body listfilters apiversion errors connlimits onepiece metrics"},
}

func TestUsesRunOneWay(t *testing.T) {
	t.Parallel()
	layer := map[string]int{}
	for i, l := range layers {
		for _, file := range strings.Fields(l.files) {
			layer[file] = i
		}
	}
	found := uses(t)
	for _, from := range slices.Sorted(maps.Keys(found)) {
		if _, ok := layer[from]; !ok {
			t.Errorf("%s.go has no place in layers: give it one", from)
			continue
		}
		for _, to := range slices.Sorted(maps.Keys(found[from])) {
			if layer[to] < layer[from] {
				t.Errorf("%s.go uses %s of %s.go, which is above it", from, strings.Join(found[from][to], ", "), to)
			}
		}
	}
	for file := range layer {
		if _, err := os.Stat(file + ".go"); err != nil {
			t.Errorf("layers: there is no %s.go", file)
		}
	}
}

// TestFilesKeepTheirSize: 700 lines are the hard limit, and a file of the program is
// named for a noun.
func TestFilesKeepTheirSize(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(string(data), "\n"); lines > 700 {
			t.Errorf("%s has %d lines, at most 700: split it by noun", name, lines)
		}
		switch strings.TrimSuffix(name, ".go") {
		case "utils", "util", "helpers", "types", "common", "misc":
			t.Errorf("%s: name the file for what it is about", name)
		}
	}
}

// TestReadmeNamesEveryFlagAndCommand: one that is not in README is not there for its users.
func TestReadmeNamesEveryFlagAndCommand(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var help bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, func(string) string { return "" }, io.Discard, &help); err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(help.String(), -1)
	if len(flags) < 20 {
		t.Fatalf("%d flags in the help:\n%s", len(flags), &help)
	}
	for _, f := range flags {
		if !regexp.MustCompile("`-" + f[1] + "[ `]").Match(readme) {
			t.Errorf("README.md does not name the flag -%s", f[1])
		}
	}
	for name := range commands {
		if !regexp.MustCompile("(?m)(^\\$ ([A-Z]\\S* )*|`)swarmlite " + name + "[ `]").Match(readme) {
			t.Errorf("README.md does not show swarmlite %s", name)
		}
		if !strings.Contains(help.String(), "\n  swarmlite "+name) {
			t.Errorf("swarmlite -h does not name swarmlite %s", name)
		}
	}
}
