# The build entry points of Skerry; `make` alone lists them. scripts/README.md explains what needs explaining.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES  = $(shell go list -m -f '{{.Dir}}')
PROGRAMS = ./cluster-manager ./cluster-manager/cmd/skerry ./node-engine
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# The version is given by hand, so that a build needs no rights over .git and an export of the tree builds too.
BUILD    = go build -trimpath -buildvcs=false -ldflags "-X main.version=$(VERSION)"
# NVIDIA's library is bound by cgo, which only an amd64 host can build for amd64 without a second compiler.
CGO_AMD64 = $(if $(filter amd64,$(shell go env GOHOSTARCH)),1,0)
GOLANGCI ?= var/bin/golangci-lint
FUZZTIME ?= 1m
# simulated nodes of make profile
PROFILE_NODES ?= 2000
# Targets beside one another, with one worker each: each has its minute by the clock, and a share of the processors.
FUZZJOBS ?= 8
NODES    ?= lab-1
ROUNDS   ?= 30
DURATION ?= 1h
RATE     ?= 5
# What the race detector looks at; a list of packages makes it quicker.
RACE     ?= work
# Before what needs root: nothing where make runs as root already. PATH and the home directory are said, since sudo's own have no Go in them, and a
# cache of Go's where root has written is of no more use to its owner.
ROOT = $(if $(filter 0,$(shell id -u)),,sudo -E -H env "PATH=$$PATH")
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

.PHONY: help build cross deps docker test sim crash soak race fuzz bench bench-compare bench-network profile lint shellcheck alone tidy check up down clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the three programs into bin/
	$(BUILD) -o bin/ $(PROGRAMS)

cross: ## build for amd64, arm-7 and arm64 into bin/<arch>/
	GOOS=linux GOARCH=amd64 CGO_ENABLED=$(CGO_AMD64) $(BUILD) -o bin/amd64/ $(PROGRAMS)
	GOOS=linux GOARCH=arm GOARM=7 CGO_ENABLED=0 $(BUILD) -o bin/arm-7/ $(PROGRAMS)
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 $(BUILD) -o bin/arm64/ $(PROGRAMS)

deps: ## install what the tests need (Debian packages; root only where one is missing)
	@scripts/test-deps.sh --check || $(ROOT) scripts/test-deps.sh

docker: ## make sure that a Docker engine answers
	@mkdir -p var
	@$(ROOT) scripts/docker.sh

test: deps docker ## every test, on the real Docker engine; a skip fails (TESTFLAGS="-run=Move" for some)
	$(ROOT) env SKERRY_TEST_ALL=1 go test -count=1 -timeout 30m -p 2 $(TESTFLAGS) -json work | go run ./scripts/noskip

sim: ## stories of a manager and its nodes in virtual time, 500 seeds; SEED=17 tells that one
	go test -count=1 ./scripts/e2e/sim $(if $(SEED),-v -run '^TestSeeds$$' -args -seed $(SEED))

crash: deps ## kill manager, engine, dockerd and app at random, ROUNDS=30; SEED=17 tells that story again
	$(ROOT) env SKERRY_TEST_ALL=1 SKERRY_CRASH_ROUNDS=$(ROUNDS) SKERRY_CRASH_SEED=$(SEED) go test -count=1 -timeout 30m -v -run '^TestCrashRounds$$' ./scripts/e2e

soak: deps ## deploys, moves and deletes at RATE=5 a second for DURATION=1h on the real Docker; nothing may grow
	$(ROOT) env SKERRY_SOAK=$(DURATION) SKERRY_SOAK_RATE=$(RATE) go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./scripts/e2e

race: ## every test that can run here, with the race detector, without mere repetition (RACE="packages" for fewer)
	go test -race -short -timeout 30m -p 2 -parallel 4 $(RACE)

fuzz: ## every fuzz target, FUZZTIME each, FUZZJOBS at once (FUZZ="messages/" for some)
	go run ./scripts/fuzz -time $(FUZZTIME) -jobs $(FUZZJOBS) -only '$(FUZZ)'

bench: build docker ## every figure beside its floor, into scripts/bench/README.md (about 15 minutes; BENCH="-only deploy" for some)
	go build -o var/bench ./scripts/bench
	var/bench -readme scripts/bench/README.md -out scripts/bench/figures.json $(BENCH)

bench-network: ## the network beside the raw link, VXLAN and bare wireguard-go, into netmanager/README.md (about 10 minutes, as root; needs iperf3)
	@command -v iperf3 >/dev/null || { echo "iperf3 is missing: apt-get install iperf3"; exit 1; }
	go build -o var/bench-network ./netmanager/bench
	var/bench-network -readme netmanager/README.md $(BENCH)

bench-compare: build docker ## the same, printed as the change against the committed figures
	go build -o var/bench ./scripts/bench
	var/bench -compare scripts/bench/figures.json $(BENCH)

profile: build docker ## profiles of the daemons under a fleet and under deploys, with flame graphs, into var/profile/ (PROFILE_NODES=2000)
	go build -o var/bench ./scripts/bench
	var/bench -profiles var/profile -only fleet,deploy -runs 5 -fleet $(PROFILE_NODES)
	@ls var/profile/*.svg

lint: $(GOLANGCI) shellcheck ## gofmt, go vet, golangci-lint, shellcheck
	@unformatted=$$(gofmt -l $(MODULES)); [ -z "$$unformatted" ] || { echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; }
	go vet work
	@# a cache of its own, since the linter's names files of other checkouts
	GOLANGCI_LINT_CACHE=$(CURDIR)/var/lint $(GOLANGCI) run --allow-parallel-runners $(addsuffix /...,$(MODULES))

shellcheck:
	@if command -v shellcheck >/dev/null; then shellcheck -x -P scripts scripts/*.sh .ci/run; \
	else echo "shellcheck is not installed: the scripts were not looked at (make deps installs it)"; fi

var/bin/golangci-lint:
	GOWORK=off GOBIN=$(CURDIR)/var/bin CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2

alone: ## vet each module without the workspace, as another project would use it
	@for m in $(MODULES); do echo "$$m"; (cd "$$m" && GOWORK=off go vet ./...); done

tidy: ## bring go.work and every go.mod up to date
	go work sync
	@for m in $(MODULES); do echo "$$m"; (cd "$$m" && go mod tidy); done

check: lint race alone cross ## before every push

up: build ## a cluster on this machine, with a job running (NODES="lab-1 lab-2" for more nodes)
	@mkdir -p var
	@$(ROOT) scripts/up.sh $(NODES)

down: ## end what make up started, and leave nothing
	@$(ROOT) scripts/down.sh

clean: down ## remove everything that was built
	@$(ROOT) scripts/docker.sh --stop
	$(ROOT) rm -rf bin var
