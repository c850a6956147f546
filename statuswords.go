package main

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	units "github.com/docker/go-units"
)

// statusWords is the Status of a list entry, taken apart around its time, so
// that "Up 5 minutes" can be told anew whenever it is shown.
type statusWords struct {
	head, words, tail string
	age               time.Duration
	timed             bool // there is a time between head and tail
}

var statusShape = regexp.MustCompile(`^(Up |Exited \(-?\d+\) |Restarting \(-?\d+\) )(Less than a second|About a minute|About an hour|(\d+) (second|minute|hour|day|week|month|year)s?)((?: ago)?(?: \(.*\))?)$`)

func splitStatus(status string) statusWords {
	m := statusShape.FindStringSubmatch(status)
	if m == nil {
		return statusWords{head: bounded(status)}
	}
	s := statusWords{head: m[1], words: m[2], tail: m[5], timed: true}
	switch {
	case m[2] == "About a minute":
		s.age = time.Minute
	case m[2] == "About an hour":
		s.age = time.Hour
	case m[3] != "":
		n, _ := strconv.Atoi(m[3])
		s.age = time.Duration(n) * map[string]time.Duration{"second": time.Second, "minute": time.Minute, "hour": time.Hour,
			"day": 24 * time.Hour, "week": 7 * 24 * time.Hour, "month": 30 * 24 * time.Hour, "year": 365 * 24 * time.Hour}[m[4]]
	}
	return s
}

// exact tells whether the words give the time to the second.
func (s statusWords) exact() bool { return !s.timed || s.age < time.Minute }

// statusText puts the words together again for now.
func statusText(head string, at *int64, tail string, now time.Time) string {
	if at == nil {
		return head
	}
	return head + units.HumanDuration(max(now.Sub(time.Unix(*at, 0)), 0)) + tail
}

// sameWords tells whether a container that is in its state since at would be
// described with these words. A second to either side counts: the engine counted at another moment.
func sameWords(now time.Time, at int64, words string) bool {
	d := now.Sub(time.Unix(at, 0))
	for _, off := range []time.Duration{0, -time.Second, time.Second, -2 * time.Second} {
		if units.HumanDuration(max(d+off, 0)) == words {
			return true
		}
	}
	return false
}

// stateOfStatus reads the state out of the words, for engines whose list has no State.
func stateOfStatus(status string) string {
	for prefix, state := range map[string]string{"Up": "running", "Exited": "exited", "Created": "created",
		"Restarting": "restarting", "Dead": "dead", "Removal": "removing"} {
		if strings.HasPrefix(status, prefix) {
			if strings.HasSuffix(status, "(Paused)") {
				return "paused"
			}
			return state
		}
	}
	return "unknown"
}
