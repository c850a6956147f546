package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
)

// progressLine is one line of an engine's progress stream: pull, load, import, build, push.
type progressLine struct {
	Stream      string          `json:"stream,omitempty"`
	Status      string          `json:"status,omitempty"`
	ID          string          `json:"id,omitempty"`
	Error       string          `json:"error,omitempty"`
	ErrorDetail json.RawMessage `json:"errorDetail,omitempty"`
}

// failure is what the line says went wrong, or "".
func (l *progressLine) failure() string {
	var detail struct{ Message string }
	json.Unmarshal(l.ErrorDetail, &detail) // null, or of an odd shape: the other field tells
	if detail.Message != "" {
		return detail.Message
	}
	return l.Error
}

// loadedName is the tag that a line of a load names.
func (l *progressLine) loadedName() (string, bool) {
	return strings.CutPrefix(strings.TrimSpace(l.Stream+l.Status), "Loaded image: ")
}

// maxLine bounds a progress line that we read; longer ones pass unread.
const maxLine = 64 << 10

// progressLines passes a progress stream on and reads along: whether it failed, and
// which tags a load brought.
type progressLines struct {
	http.ResponseWriter
	failed bool
	why    string   // it failed, in the engine's words
	bare   bool     // the answer is an error, not a stream
	done   bool     // the last line of a pull or load has come
	loaded []string // normalised
	line   []byte
	long   bool
}

func (p *progressLines) WriteHeader(status int) {
	p.bare = status >= http.StatusMultipleChoices
	p.failed = p.failed || p.bare
	p.ResponseWriter.WriteHeader(status)
}

func (p *progressLines) Write(b []byte) (int, error) {
	p.feed(b)
	return p.ResponseWriter.Write(b)
}

func (p *progressLines) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// feed takes the next bytes of the stream.
func (p *progressLines) feed(b []byte) {
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		part := b
		if end >= 0 {
			part = b[:end]
		}
		if p.long = p.long || len(p.line)+len(part) > maxLine; !p.long {
			p.line = append(p.line, part...)
		}
		if end < 0 {
			return
		}
		if !p.long {
			p.read(p.line)
		}
		p.line, p.long = p.line[:0], false
		b = b[end+1:]
	}
}

// read looks at a whole line; only few of them are worth decoding.
func (p *progressLines) read(line []byte) {
	if p.bare {
		p.why = engineMessage(bytes.NewReader(line))
		return
	}
	if !bytes.Contains(line, []byte(`"error`)) && !bytes.Contains(line, []byte("Loaded image")) && !bytes.Contains(line, []byte(`"status":"Status: `)) {
		return
	}
	var l progressLine
	if json.Unmarshal(line, &l) != nil {
		return
	}
	if why := l.failure(); why != "" {
		p.failed, p.why = true, why
	}
	name, loaded := l.loadedName()
	if loaded {
		p.loaded = append(p.loaded, imageName(name))
	}
	p.done = p.done || loaded || strings.HasPrefix(l.Status, "Status: ")
}
