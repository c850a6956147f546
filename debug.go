package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// openDebug opens the -debug listener, on loopback or a socket only (FAULTS S29): a
// profile of the memory holds what clients have sent.
func openDebug(ctx context.Context, addr string) (net.Listener, error) {
	address, err := parseListen(addr, false)
	if err != nil {
		return nil, fmt.Errorf("-debug: %w", err)
	}
	if reached, err := checkListen(address, false, true); err != nil || reached {
		return nil, errors.Join(err, fmt.Errorf("-debug %s: expected a loopback address or unix:///path", addr))
	}
	return listen(ctx, address, nil, nil)
}

// serveDebug serves metrics and profiles until ctx ends.
func serveDebug(ctx context.Context, log *slog.Logger, l net.Listener, s *store) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry(s), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: noPages(mux), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		log.Error("debug listener has ended", "err", err)
	}
}

// noPages refuses what a web page could ask for, by a name of its own too.
func noPages(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		host = strings.Trim(host, "[]")
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") == "cross-site" || host != "" && host != "localhost" && net.ParseIP(host) == nil {
			http.Error(w, "requests from web pages are refused", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// registry holds everything there is to measure.
func registry(s *store) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(s.metrics.collectors()...)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), stateCollector{s},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "swarmlite_wal_bytes", Help: "Size of the database's write-ahead log."}, func() float64 {
			info, err := os.Lstat(s.path + "-wal")
			if err != nil {
				return 0
			}
			return float64(info.Size())
		}))
	return r
}

// stateCollector reads from rows what is state, when somebody asks.
type stateCollector struct{ store *store }

var (
	nodesDesc      = prometheus.NewDesc("swarmlite_nodes", "Nodes by state and availability.", []string{"state", "availability"}, nil)
	containersDesc = prometheus.NewDesc("swarmlite_containers", "Containers by state.", []string{"state"}, nil)
)

func (c stateCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- nodesDesc
	ch <- containersDesc
}

func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c.count(ctx, ch, nodesDesc, "SELECT state, availability, count(*) FROM nodes WHERE state <> 'removed' GROUP BY 1, 2", 2)
	c.count(ctx, ch, containersDesc, "SELECT state, count(*) FROM containers GROUP BY 1", 1)
}

// count sends a metric for each row: its labels, then how many.
func (c stateCollector) count(ctx context.Context, ch chan<- prometheus.Metric, desc *prometheus.Desc, query string, labels int) {
	rows, err := c.store.query(ctx, query)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(desc, err)
		return
	}
	defer rows.Close()
	for rows.Next() {
		values, n := make([]string, labels), 0.0
		var dest []any
		for i := range values {
			dest = append(dest, &values[i])
		}
		if err := rows.Scan(append(dest, &n)...); err != nil {
			ch <- prometheus.NewInvalidMetric(desc, err)
			return
		}
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, n, values...)
	}
	if err := rows.Err(); err != nil {
		ch <- prometheus.NewInvalidMetric(desc, err)
	}
}
