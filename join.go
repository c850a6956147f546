package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"time"
)

// joinRequest is what swarmlite join sends: at first, and as its heartbeat.
type joinRequest struct {
	Token   string
	Address string        // of the host's engine, as the manager reaches it
	Words   []string      `json:",omitempty"` // name=… and label=…
	TTL     time.Duration // nanoseconds; after this long without a heartbeat the node takes no new containers
	First   bool          // a host that an operator has just told to join
}

// nodeJoin answers swarmlite join: it registers the host's engine, or hears that it is
// still there. Only name and labels are a host's to choose: certificates are the manager's.
func nodeJoin(c *cluster, w http.ResponseWriter, r *http.Request, _ *call) error {
	if !c.joins.all.Allow() {
		return errorf(http.StatusTooManyRequests, "too many hosts ask to join at once, try again")
	}
	data, err := readBody(r)
	if err != nil {
		return err
	}
	var req joinRequest
	if err := decodeBody(data, &req); err != nil {
		return err
	}
	known, err := c.store.knowsToken(r.Context(), req.Token)
	if err != nil {
		return err
	}
	if !known {
		if !c.joins.wrong.Allow() {
			return errorf(http.StatusTooManyRequests, "too many wrong join tokens, try again")
		}
		c.log.Warn("join refused: wrong token", "addr", r.RemoteAddr)
		return errorf(http.StatusForbidden, "wrong join token: swarmlite token makes one")
	}
	line, err := req.line(c.engineTLS)
	if err != nil {
		return errorf(http.StatusBadRequest, "%v", err)
	}
	id, changed, err := c.store.join(r.Context(), line, req.First)
	if err != nil {
		return err
	}
	c.named.beats.heard(id, req.TTL)
	if changed {
		c.log.Info("node joined", "addr", line.address)
		if err := c.named.changed(c.base); err != nil && !errors.As(err, new(*unusableError)) {
			return err
		}
	}
	return writeJSON(w, addedNode{Address: line.address})
}

func (q *joinRequest) line(secure bool) (nodeLine, error) {
	lines, err := parseNode(append([]string{q.Address}, q.Words...), secure)
	if err != nil {
		return nodeLine{}, err
	}
	l := lines[0]
	switch {
	case len(lines) > 1 || !strings.HasPrefix(l.address, "tcp://"):
		return l, errors.New("a host joins with one address, host:port")
	case l.tls != "" || l.noCheck:
		return l, errors.New("a host that joins chooses its name and labels only; add it with swarmlite node add for tls=… or skip-verify")
	case q.TTL < time.Second || q.TTL > longestTTL:
		return l, errors.New("expected a TTL from 1 second to 24 hours")
	}
	l.source = fromJoin
	return l, nil
}

// join registers a node, and tells whether that changes anything. One that was taken out
// comes back only when it is told to join anew; one that others name as well is theirs.
func (s *store) join(ctx context.Context, l nodeLine, first bool) (id int64, changed bool, err error) {
	var source, name, labels, state string
	var lapsed bool
	const look = "SELECT id, source, line_name, line_labels, state, lapsed FROM nodes WHERE address = ?"
	err = s.get(ctx, look, []any{l.address}, &id, &source, &name, &labels, &state, &lapsed)
	if err != nil && !errors.Is(err, errNotFound) {
		return 0, false, err
	}
	same := source != fromJoin || name == l.name && labels == labelText(l.labels) && !lapsed
	if err == nil && state != "removed" && same {
		return id, false, nil // the usual heartbeat writes nothing
	}
	err = s.write(ctx, func(t *tx) error {
		err := t.get(look, []any{l.address}, &id, &source, &name, &labels, &state, &lapsed)
		switch {
		case err != nil && !errors.Is(err, errNotFound):
			return err
		case err == nil && state != "removed":
			if source != fromJoin {
				return nil
			}
			if _, err := t.exec("UPDATE nodes SET lapsed = 0 WHERE id = ?", id); err != nil {
				return err
			}
			return t.setLine(id, l)
		case err == nil && !first:
			return errorf(http.StatusConflict, "node %s was taken out of the cluster: start swarmlite join again to bring it back", l.address)
		}
		if err := t.addNode(l); err != nil {
			return err
		}
		return t.get("UPDATE nodes SET lapsed = 0 WHERE address = ? RETURNING id", []any{l.address}, &id)
	})
	return id, err == nil, err
}

// newToken makes a join token; the database keeps its hash only. With replace all
// earlier ones end.
func (s *store) newToken(ctx context.Context, replace bool) (token string, err error) {
	token = "swarmlite-join-" + strings.ToLower(rand.Text())
	return token, s.write(ctx, func(t *tx) error {
		if replace {
			if _, err := t.exec("DELETE FROM join_tokens"); err != nil {
				return err
			}
		}
		_, err := t.exec("INSERT INTO join_tokens (hash) VALUES (?)", tokenHash(token))
		return err
	})
}

// tokenHash needs no salt: a token is random, not chosen by a person.
func tokenHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// knowsToken tells whether token is one of ours, in the same time for all that are not.
func (s *store) knowsToken(ctx context.Context, token string) (known bool, err error) {
	rows, err := s.query(ctx, "SELECT hash FROM join_tokens")
	if err != nil {
		return false, err
	}
	defer rows.Close()
	given := tokenHash(token)
	for rows.Next() {
		var hash string
		if err := rows.Scan(&hash); err != nil {
			return false, err
		}
		if subtle.ConstantTimeCompare([]byte(hash), []byte(given)) == 1 {
			known = true
		}
	}
	return known, rows.Err()
}

// tokenMake answers swarmlite token.
func tokenMake(c *cluster, w http.ResponseWriter, r *http.Request, call *call) error {
	token, err := c.store.newToken(r.Context(), isTrue(call.query, "replace"))
	if err != nil {
		return err
	}
	c.log.Info("join token made", "replace", isTrue(call.query, "replace"))
	return writeJSON(w, joinRequest{Token: token})
}
