package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// nodeLine is a node as an operator names it: an address, and what stands behind it.
type nodeLine struct {
	address string
	source  string            // which of the sources names it, as in nodes.source
	name    string            // instead of the engine's host name; "" = that
	labels  map[string]string // cover the engine's; docker node update covers these
	tls     string            // "" = as the flags say, "off", or a directory with ca.pem, cert.pem and key.pem
	noCheck bool              // skip-verify: any certificate of the engine will do
}

func (l nodeLine) equal(o nodeLine) bool {
	return l.address == o.address && l.source == o.source && l.name == o.name && maps.Equal(l.labels, o.labels) && l.sameTLS(o)
}

func (l nodeLine) sameTLS(o nodeLine) bool { return l.tls == o.tls && l.noCheck == o.noCheck }

var (
	optionPattern = regexp.MustCompile(`^[a-z-]+(=|$)`)
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
)

// isOption tells an option from an address, which may follow each other on a command line.
func isOption(word string) bool {
	return word == "skip-verify" || optionPattern.MatchString(word) && strings.Contains(word, "=")
}

// parseNodes reads the nodes of a command line: addresses or ranges, each with the
// options behind it, as words of their own or in quotes with it.
func parseNodes(args []string, secure bool) ([]nodeLine, error) {
	var nodes [][]string
	for _, arg := range args {
		words := strings.Fields(arg)
		if len(words) == 0 {
			words = []string{""}
		}
		for _, word := range words {
			if last := len(nodes) - 1; last >= 0 && isOption(word) {
				nodes[last] = append(nodes[last], word)
				continue
			}
			nodes = append(nodes, []string{word})
		}
	}
	var list distinctLines
	for _, words := range nodes {
		lines, err := parseNode(words, secure)
		if err != nil {
			return nil, err
		}
		for _, l := range lines {
			if err := list.add(l, ""); err != nil {
				return nil, err
			}
		}
	}
	return list.lines, nil
}

// distinctLines are the nodes of one list, each once.
type distinctLines struct {
	lines  []nodeLine
	index  map[string]int    // of an address, in lines
	places map[string]string // where addresses and names stand
}

// add takes in a node that stands at a place of the list, in words. One that is there
// already must say the same: whose options should count? So must a name be one node's.
func (d *distinctLines) add(l nodeLine, place string) error {
	if d.index == nil {
		d.index, d.places = map[string]int{}, map[string]string{}
	}
	if i, ok := d.index[l.address]; ok {
		if !d.lines[i].equal(l) {
			return fmt.Errorf("%s is named already%s, with other options: leave one of them", strings.TrimPrefix(l.address, "tcp://"), d.places[l.address])
		}
		return nil
	}
	if l.name != "" {
		name := "name=" + l.name
		if at, ok := d.places[name]; ok {
			return fmt.Errorf("%s is another node's name already%s", name, at)
		}
		d.places[name] = place
	}
	d.index[l.address], d.places[l.address] = len(d.lines), place
	d.lines = append(d.lines, l)
	return nil
}

// parseNode reads an address, or a range of them, and its options.
func parseNode(words []string, secure bool) ([]nodeLine, error) {
	var shared nodeLine
	for _, word := range words[1:] {
		if !isOption(word) {
			return nil, fmt.Errorf("%q: expected name=…, label=key:value, tls=… or skip-verify behind an address", word)
		}
		if err := shared.option(word); err != nil {
			return nil, fmt.Errorf("%s: %w", word, err)
		}
	}
	switch shared.tls {
	case "":
	case "off":
		secure = false
	default:
		secure = true
	}
	addresses, err := expandRange(words[0])
	if err != nil {
		return nil, err
	}
	if shared.name != "" && (len(addresses) > 1 || strings.HasPrefix(words[0], "dns://")) {
		return nil, fmt.Errorf("name=%s: a range, or a name in the DNS, is many nodes, which cannot have one name", shared.name)
	}
	lines := make([]nodeLine, len(addresses))
	for i, a := range addresses {
		l := shared
		if l.address, err = parseAddress(a, secure); err != nil {
			return nil, err
		}
		if tcp := strings.HasPrefix(l.address, "tcp://") || strings.HasPrefix(l.address, "dns://"); !tcp && (l.tls != "" || l.noCheck) {
			return nil, fmt.Errorf("%q: tls and skip-verify are for tcp://host:port", a)
		}
		lines[i] = l
	}
	if shared.noCheck && !secure {
		return nil, errors.New("skip-verify: without TLS there is nothing to verify; it goes with tls=DIR or -engine-tlsverify")
	}
	return lines, nil
}

// option reads one option into l.
func (l *nodeLine) option(word string) error {
	key, value, _ := strings.Cut(word, "=")
	switch key {
	case "skip-verify":
		if word != key {
			return errors.New("takes no value")
		}
		l.noCheck = true
	case "name":
		if !namePattern.MatchString(value) {
			return errors.New("expected letters, digits, _ . or -, at most 63")
		}
		l.name = value
	case "label":
		k, v, ok := strings.Cut(value, ":")
		switch {
		case !ok || k == "":
			return errors.New("expected label=key:value")
		case ownLabel(k):
			return fmt.Errorf("label %q is set by swarmlite, choose another key", k)
		}
		if err := checkResourceLabel(k, v); err != nil {
			return err
		}
		if l.labels == nil {
			l.labels = map[string]string{}
		}
		l.labels[k] = v
	case "tls":
		if value == "off" {
			l.tls = value
			return nil
		}
		if value == "" {
			return errors.New("expected off, or a directory with ca.pem, cert.pem and key.pem")
		}
		dir, err := filepath.Abs(value)
		if err != nil {
			return err
		}
		if _, err := engineCertFiles(dir).load(); err != nil {
			return err
		}
		l.tls = dir
	default:
		return errors.New("unknown option, expected name, label, tls or skip-verify")
	}
	return nil
}

// engineCertFiles are the files of a directory such as DOCKER_CERT_PATH names.
func engineCertFiles(dir string) certFiles {
	return certFiles{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

// union is both lists; of equal addresses the first counts.
func union(a, b []nodeLine) []nodeLine {
	var all []nodeLine
	seen := map[string]bool{}
	for _, l := range slices.Concat(a, b) {
		if !seen[l.address] {
			seen[l.address] = true
			all = append(all, l)
		}
	}
	return all
}
