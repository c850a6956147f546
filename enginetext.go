package main

import (
	"encoding/json"
	"strings"
	"unicode"
)

const (
	maxText    = 64 << 10 // of one string from an engine
	maxID      = 512      // of an ID, or the name of a volume
	maxSummary = 4 << 20  // of one list entry
)

// bounded makes hostile text fit for the database.
func bounded(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD")
}

// plainLine makes hostile text fit for a terminal as well: one line, no escapes.
func plainLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, bounded(s))
}

// hostName is an engine's host name as the name of a node: node/name must stay readable.
func hostName(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '-'
		}
		return r
	}, plainLine(s))
}

// validID tells whether an engine's ID, or name of a volume, can be one.
func validID(id string) bool { return id != "" && len(id) <= maxID }

// summaryText is a list entry as it is stored; "" if it is too large to be one.
func summaryText(raw json.RawMessage) string {
	if len(raw) > maxSummary {
		return ""
	}
	return strings.ToValidUTF8(string(raw), "\uFFFD")
}
