package main

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what the manager does, for /metrics on the -debug listener. What is
// state is not here: it is read from the rows when somebody asks. A nil one counts nothing.
type metrics struct {
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	calls    *prometheus.HistogramVec
	placed   *prometheus.CounterVec
	decide   prometheus.Histogram
	commits  prometheus.Histogram
	writes   prometheus.Counter
}

func newMetrics() *metrics {
	quick := []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "swarmlite_requests_total",
			Help: "Requests of clients, by operation and status; 101 is a raw stream."}, []string{"operation", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "swarmlite_request_seconds",
			Help: "How long requests took until their answer had ended.", Buckets: []float64{.001, .005, .025, .1, .5, 2, 10, 60}}, []string{"operation"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "swarmlite_engine_call_seconds",
			Help: "How long engines took until the header of their answer.", Buckets: []float64{.001, .005, .025, .1, .5, 2, 10, 60}}, []string{"outcome"}),
		placed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "swarmlite_placements_total",
			Help: "Decisions where a thing goes, by outcome."}, []string{"outcome"}),
		decide: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "swarmlite_decide_seconds",
			Help: "How long a decision took, its place in the database included.", Buckets: quick}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "swarmlite_database_commit_seconds",
			Help: "How long transactions took that write.", Buckets: quick}),
		writes: prometheus.NewCounter(prometheus.CounterOpts{Name: "swarmlite_database_writes_total",
			Help: "Writes to the database; several share a transaction."}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.latency, m.calls, m.placed, m.decide, m.commits, m.writes}
}

func (m *metrics) request(operation string, status int, began time.Time) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(operation, strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(operation).Observe(time.Since(began).Seconds())
}

func (m *metrics) call(err error, began time.Time) {
	if m == nil {
		return
	}
	outcome := "answered"
	if err != nil {
		outcome = "failed"
	}
	m.calls.WithLabelValues(outcome).Observe(time.Since(began).Seconds())
}

func (m *metrics) decided(outcome string, took time.Duration) {
	if m == nil {
		return
	}
	m.placed.WithLabelValues(outcome).Inc()
	m.decide.Observe(took.Seconds())
}

func (m *metrics) commit(writes int, began time.Time) {
	if m == nil {
		return
	}
	m.commits.Observe(time.Since(began).Seconds())
	m.writes.Add(float64(writes))
}
