# make test and make demo install the Debian packages they miss, so they want root.

version     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
staticcheck := honnef.co/go/tools/cmd/staticcheck@v0.8.2
govulncheck := golang.org/x/vuln/cmd/govulncheck@v1.9.0
vulndb      := https://vuln.go.dev

# For a local test machine: command, or file, = the Debian package that has it.
engines  := dockerd=docker.io docker=docker.io ip=iproute2 iptables=iptables \
            busybox=busybox-static curl=curl sqlite3=sqlite3
compiler := gcc=gcc /usr/include/stdlib.h=libc6-dev
registry := docker-registry=docker-registry openssl=openssl
sshd     := /usr/sbin/sshd=openssh-server
clients  := docker-compose=docker-compose diff=diffutils node=nodejs npm=npm \
            /usr/bin/python3=python3 /usr/lib/python3/dist-packages/docker=python3-docker
modules  := testdata/clients/node/node_modules/.package-lock.json
tools    := testdata/clients/tools/bin/docker-compose testdata/clients/tools/bin/docker-buildx

.PHONY: build test bench bench-go faults vet vulncheck demo demo-down clean

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(version)' -o swarmlite .

# Everything: vet, unit tests, end-to-end tests against real engines, and Compose,
# docker-py, dockerode, Testcontainers, buildx and the Go SDK on a cluster and on one engine.
test:
	@testdata/lab need $(compiler) $(engines) $(registry) $(sshd) $(clients)
	@$(MAKE) --no-print-directory $(modules) $(tools)
	@$(MAKE) --no-print-directory vet
	CGO_ENABLED=1 go test -race -count=1 -timeout 60m ./...

# The fault matrix with its long rows too, in an hour; some by number: make faults rows="3 25".
faults:
	@testdata/lab need $(engines) $(registry)
	@testdata/faults $(rows)

# The goals for scale, measured on a simulated fleet, and the benchmarks in Go: about ten minutes on an
# idle machine, which should do nothing else meanwhile. Writes docs/bench.md.
bench:
	@$(MAKE) --no-print-directory bench-go | tee bench.txt
	BENCH_GO=bench.txt BENCH_OUT=docs/bench.md CGO_ENABLED=0 go test -tags bench -count=1 -timeout 20m -run '^TestGoals$$' -v .

# For benchstat, which compares two commits: make bench-go count=6 > new.txt
count := 1
bench-go:
	@CGO_ENABLED=0 go test -run '^$$' -bench '^Benchmark(Place|CreateRows|ContainerList|Inspect|Write)$$' -benchtime 0.3s -count $(count) .

# The JavaScript clients, as the lock file has them; none of their install scripts runs.
$(modules): testdata/clients/node/package-lock.json
	cd testdata/clients/node && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Compose and buildx of today, as the module file has them.
testdata/clients/tools/bin/docker-compose: package := github.com/docker/compose/v5/cmd
testdata/clients/tools/bin/docker-buildx: package := github.com/docker/buildx/cmd/buildx
$(tools): testdata/clients/tools/go.mod
	cd testdata/clients/tools && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/$(@F) $(package)
	@touch $@

vet: vulncheck
	go vet ./... ./testdata/clients/gosdk ./testdata/clients/ryuk
	cd testdata/clients/tcgo && go vet ./...
	go run $(staticcheck) ./... ./testdata/clients/gosdk ./testdata/clients/ryuk

vulncheck:
	@if curl -fs -m 5 -o /dev/null $(vulndb)/index/db.json; \
	then echo "go run $(govulncheck) ./..." && go run $(govulncheck) ./...; \
	else echo "govulncheck: NOT RUN, its database $(vulndb) cannot be reached from here"; \
	fi

# Three real engines on this machine, with swarmlite in front of them.
demo:
	@testdata/lab need $(engines)
	@testdata/demo up

demo-down:
	@testdata/demo down

clean:
	rm -f swarmlite faults.log
