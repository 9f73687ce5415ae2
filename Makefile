# `make help` lists the targets.

# dev serves the build, the tests and the checks, so that RocksDB is compiled
# once; PROFILE=release is for run, cluster, build and bench.
PROFILE ?= dev
PROFILE_DIR := $(if $(filter dev test,$(PROFILE)),debug,$(PROFILE))
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BINARY := $(TARGET_DIR)/$(PROFILE_DIR)/metastore
PROOF := $(TARGET_DIR)/$(PROFILE_DIR)/metastore-proof
COMPARE := $(TARGET_DIR)/$(PROFILE_DIR)/metastore-compare
FUZZ := $(TARGET_DIR)/$(PROFILE_DIR)/metastore-fuzz
SEEDS ?= 500
MINUTES ?= 1
CUTS ?= 10
ROUNDS ?= 20
UPGRADES ?= 3
INPUTS ?= 100000
RUNS ?= 3
CLIENTS := $(abspath $(TARGET_DIR))/clients
# Where `make upgrade` keeps the version that it built to upgrade from.
PREVIOUS_DIR := $(abspath $(TARGET_DIR))/previous
# Where `make fuzz GUIDED=1` builds, and keeps what it found.
GUIDED_DIR := $(abspath $(TARGET_DIR))/guided
export PROFILE_DIR

# ccache is looked up when a recipe runs, since `deps` may just have installed
# it. A compiler that was chosen by the caller stays. Without ccache neither
# variable is set, and a plain `cargo build` shares its output with `make`.
unset_by_caller = $(filter default undefined,$(origin $(1)))
with_ccache = $(if $(shell command -v ccache),env \
	$(if $(call unset_by_caller,CC),CC="ccache cc") \
	$(if $(call unset_by_caller,CXX),CXX="ccache c++"))
CARGO = $(with_ccache) cargo

# macOS, untested: fsync must reach the platter there, and raft's messages need
# a protoc 3 of their own on Apple Silicon.
ifeq ($(shell uname -s),Darwin)
export CXXFLAGS += -DHAVE_FULLFSYNC
ifeq ($(shell uname -m),arm64)
export PROTOC ?= /opt/homebrew/opt/protobuf@21/bin/protoc
endif
endif

.PHONY: help run cluster build test clients verify fix sim mutants bench chaos powercut diskfaults upgrade fixtures abuse fuzz clean deps

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /	/' | expand -t 10

run: build ## build and run one node on its defaults (options: ARGS="...")
	exec "$(BINARY)" $(ARGS)

cluster: build ## build and run the three nodes of the Procfile
	@if command -v goreman >/dev/null; then exec goreman start; else exec scripts/cluster.sh; fi

# With one of the tests, so that the dependencies have the same features as for
# all of them: otherwise cargo would build RocksDB once for each.
build: deps ## build the program (PROFILE=release for an optimised one)
	$(CARGO) build --profile $(PROFILE) --workspace --bins --test tidy

test: deps ## run all tests; those with clients of others once `make clients` was run
	METASTORE_TEST_CLIENTS="$(CLIENTS)" METASTORE_PREVIOUS="$(wildcard $(PREVIOUS_DIR)/metastore)" \
		$(CARGO) test --workspace
	$(MAKE) --no-print-directory mutants

clients: ## install the clients of others that tests use (etcdctl, Python, Node)
	@scripts/deps.sh clients
	tests/clients/install.sh "$(CLIENTS)"

verify: deps ## check formatting, lints and documentation
	@scripts/deps.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features metastore-fuzz/guided -- -D warnings
	$(CARGO) clippy --features mutants --example mutants --tests -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --workspace --lib --examples

fix: deps ## format, and apply what clippy can fix by itself
	@scripts/deps.sh lint
	$(CARGO) clippy --fix --workspace --allow-dirty --allow-staged --all-targets
	$(CARGO) fmt --all

sim: deps ## simulate clusters: SEEDS=n of them, or the one of SEED=x
	SIM_SEEDS=$(SEEDS) $(if $(SEED),SIM_SEED=$(SEED)) $(CARGO) test --test sim -- --nocapture

mutants: deps ## seed each known bug and see that the tests find it (MUTANTS=Name,... for some)
	$(CARGO) test --features mutants --example mutants -- \
		the_tests_find_every_mutant --exact --nocapture

# What runs real processes is a program of its own beside metastore.
chaos: build ## kill, freeze and separate members under load for MINUTES=m (SEED=x repeats a schedule)
	@scripts/deps.sh proof
	"$(PROOF)" chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

powercut: build ## cut the power of members' disks under load, CUTS=n times (needs root; SEED=x)
	@scripts/deps.sh proof
	"$(PROOF)" powercut --cuts $(CUTS) $(if $(SEED),--seed $(SEED))

diskfaults: build ## full, failing, slow and rotting disks, ROUNDS=n of them (SEED=x)
	"$(PROOF)" diskfaults --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

upgrade: build ## upgrade clusters under load, UPGRADES=n of them (PREVIOUS=revision; SEED=x)
	previous=$$($(with_ccache) scripts/previous.sh "$(PREVIOUS_DIR)" $(PREVIOUS)) && \
	"$(PROOF)" upgrade --previous "$$previous" --rounds $(UPGRADES) $(if $(SEED),--seed $(SEED))

fixtures: deps ## write what today's versions of the formats look like, for all later ones to read
	$(CARGO) test --test formats write_fixtures -- --ignored --exact

abuse: build ## idle, slow, greedy and rude clients for MINUTES=m (TIMING=1 judges latencies)
	"$(PROOF)" abuse --minutes $(MINUTES) $(if $(TIMING),--timing)

fuzz: $(if $(GUIDED),deps,build) ## give whatever reads bytes INPUTS=n that nobody should send (TARGETS="frames http"; SEED=x; GUIDED=1: cargo-fuzz)
ifdef GUIDED
	@scripts/deps.sh guided
	$(with_ccache) scripts/guided.sh "$(GUIDED_DIR)" $(INPUTS) $(or $(SEED),1) \
		$(or $(TARGETS),frames messages commands records logs transfers backups http gateway grpc wire)
else
	"$(FUZZ)" --inputs $(INPUTS) $(foreach target,$(TARGETS),--target $(target)) \
		$(if $(SEED),--seed $(SEED))
endif

bench: build ## measure three nodes beside three of etcd, RUNS=n times each (use PROFILE=release; SIZES=1)
	"$(COMPARE)" --metastore "$(BINARY)" --rounds $(RUNS) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(SIZES),--sizes)

clean: ## remove what was built, but neither RocksDB's objects nor any data
	$(CARGO) clean -p metastore -p metastore-bench -p metastore-proto -p metastore-proof -p metastore-fuzz

deps: # install what the build lacks; announce the long first build
	@scripts/deps.sh
	@ls "$(TARGET_DIR)/$(PROFILE_DIR)"/build/librocksdb-sys-*/out/librocksdb.a >/dev/null 2>&1 || \
		echo "First build: RocksDB compiles for about 16 minutes on two cores, once."
