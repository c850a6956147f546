package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// getJSON reads path, which is about one thing, into dest at the engine's highest
// version. It returns errNotFound for 404, and the engine's words for other refusals.
func (e *engine) getJSON(ctx context.Context, path, query string, dest any) error {
	return e.getWithin(ctx, path, query, dest, newRoom(maxItem))
}

// getWithin is getJSON for answers about all that an engine has, as long as there is room.
func (e *engine) getWithin(ctx context.Context, path, query string, dest any, room *answerRoom) error {
	body, err := e.get(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := decodeAnswer(roomReader{body, room}, dest); err != nil {
		return fmt.Errorf("bad answer to %s: %w", path, err)
	}
	return nil
}

// getWhole is getWithin for an answer as it is. It lies in buffer if it has room there, which
// it keeps for the next.
func (e *engine) getWhole(ctx context.Context, path, query string, buffer *[]byte, room *answerRoom) ([]byte, error) {
	body, err := e.get(ctx, path, query)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	whole, err := readWhole(roomReader{body, room}, *buffer)
	if err != nil {
		return nil, fmt.Errorf("bad answer to %s: %w", path, err)
	}
	if cap(whole) <= keptBuffer {
		*buffer = whole
	}
	return whole, nil
}

// keptBuffer is how large a buffer may be that is kept: a list of a few hundred containers.
const keptBuffer = 256 << 10

// answerRoom is how many bytes one answer may have, or several together: what an
// engine says is held in memory until it is known to be whole.
type answerRoom struct {
	most int64
	left atomic.Int64
}

func newRoom(most int64) *answerRoom {
	r := &answerRoom{most: most}
	r.left.Store(most)
	return r
}

type roomReader struct {
	io.Reader
	room *answerRoom
}

func (r roomReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.room.left.Add(-int64(n)) < 0 {
		return 0, fmt.Errorf("over %d MiB", r.room.most>>20)
	}
	return n, err
}

// decodeAnswer reads one JSON value. A list of raw items is only cut into them: they share
// the answer's bytes, and whether one is valid is for whoever takes it apart.
func decodeAnswer(r io.Reader, dest any) error {
	items, ok := dest.(*[]json.RawMessage)
	if !ok {
		return json.NewDecoder(r).Decode(dest)
	}
	whole, err := readWhole(r, nil)
	if err == nil {
		*items, err = arrayItems(whole)
	}
	return err
}

// readWhole reads r to its end, into buffer as far as that has room, and then piece by
// piece: one buffer that grows would have been copied, and its copies left behind, by the
// time an endless answer is given up.
func readWhole(r io.Reader, buffer []byte) ([]byte, error) {
	var pieces [][]byte
	piece := buffer[:0]
	if cap(piece) == 0 {
		piece = make([]byte, 0, 16<<10)
	}
	for {
		n, err := r.Read(piece[len(piece):cap(piece)])
		piece = piece[:len(piece)+n]
		if errors.Is(err, io.EOF) {
			if pieces == nil {
				return piece, nil
			}
			size := len(piece)
			for _, p := range pieces {
				size += len(p)
			}
			whole := make([]byte, 0, size+size/8+1) // room for a list that grows, and to see its end
			for _, p := range append(pieces, piece) {
				whole = append(whole, p...)
			}
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		if len(piece) == cap(piece) {
			pieces = append(pieces, piece)
			piece = make([]byte, 0, min(2*cap(piece), 1<<20))
		}
	}
}

func (e *engine) get(ctx context.Context, path, query string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(0, path, query), nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.send(req, read)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil, errNotFound
		}
		return nil, fmt.Errorf("GET %s: %s: %s", path, resp.Status, engineMessage(resp.Body))
	}
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		e.clockOff.Store(int64(time.Until(t)))
	}
	return resp.Body, nil
}

// engineMessage is what an engine's error body says.
func engineMessage(body io.Reader) string {
	data, _ := io.ReadAll(io.LimitReader(body, 64<<10))
	var m struct{ Message string }
	if json.Unmarshal(data, &m) == nil && m.Message != "" {
		return m.Message
	}
	return string(bytes.TrimSpace(data))
}
