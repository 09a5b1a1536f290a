# `make` or `make help` lists the commands. Every one of them works on a machine with Python and a C compiler: it installs
# what else it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
PYTHON := $(BIN)/python
CODE := llmrouter router_grpc operator/llmrouter_operator tests bench
TYPED := llmrouter router_grpc operator/llmrouter_operator tests
NATIVE := tools/build_native.py tools/formulas.py llmrouter/routing/rules.py llmrouter/routing/inflight.py \
	$(shell find llmrouter router_grpc -name '*.pyx' -o -name '*.pxd')
PROTO := router_grpc/v1/router.proto router_grpc/v1/ext_proc.proto
HELM := from llmrouter.testbed.cluster.binaries import Binaries; print(Binaries().provide(["helm"])["helm"])
export PYTHONPATH := $(CURDIR):$(CURDIR)/operator

.PHONY: help
help: ## list the commands
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 25
	@echo
	@echo '  CONTEXT=NAME uses an existing cluster in make demo; DEMO_KEEP=1 leaves the demo up.'

.PHONY: demo
demo: .venv/.synced ## a real Kubernetes on this machine, routers, engines, a real trace, two policies (root)
	$(PYTHON) -m llmrouter.testbed.demo $(if $(CONTEXT),--context '$(CONTEXT)') $(DEMO_ARGS)

.PHONY: demo-down
demo-down: .venv/.synced ## take everything of the demo's cluster away
	$(PYTHON) -m llmrouter.testbed.cluster down

.PHONY: demo-canary
demo-canary: .venv/.synced ## a policy's life there: shadow, canary, rolled back; another one, promoted (root)
	$(PYTHON) -m llmrouter.testbed.demo_canary $(if $(CONTEXT),--context '$(CONTEXT)') $(DEMO_ARGS)

.PHONY: demo-rebalance
demo-rebalance: .venv/.synced ## replicas that follow the traffic there, within a budget of GPUs (root)
	$(PYTHON) -m llmrouter.testbed.demo_rebalance $(if $(CONTEXT),--context '$(CONTEXT)') $(DEMO_ARGS)

.PHONY: demo-standalone
demo-standalone: .venv/.synced ## the same comparison without Kubernetes, in about a minute
	$(PYTHON) -m llmrouter.testbed.demo_standalone

.PHONY: test
test: .venv/.synced binaries kernel ## all tests that need no special rights
	$(BIN)/pytest tests -m 'not e2e' -n auto --maxprocesses 4 --dist loadfile

# The cluster's programs outlive the objects that started them, which Python warns of.
.PHONY: e2e
e2e: .venv/.synced ## tests on a real node: image, chart, traffic (root)
	$(BIN)/pytest tests/e2e -m e2e -W 'ignore::pytest.PytestUnraisableExceptionWarning'

.PHONY: check
check: .venv/.synced ## format, lint, types, import contracts, drift of stubs, CRDs and chart
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit/test_drift.py
	diff -r crds charts/llmrouter/crds
	"$$($(PYTHON) -c '$(HELM)')" lint --strict charts/llmrouter

.PHONY: models
models: .venv/.synced ## rebuild models/ from the data in it, to the same bytes
	$(PYTHON) -m llmrouter.training models

.PHONY: stubs
stubs: .venv/.synced ## generate the Python code of router.proto
	$(PYTHON) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

.PHONY: bench
bench: .venv/.synced binaries ## all benchmarks, each writing JSON to build/bench/ (about an hour)
	for script in burst models length_models length_service prompt_tokens kv_reserve batch_hold decisions engine_server capacity simulator_speed prefix_index prefix_sharing router_death outliers epp_conformance canaries canary_interference acknowledgement scale prefill_decode rebalancing; do $(PYTHON) -m bench.$$script; done
	$(PYTHON) -m bench.paper
	$(BIN)/llmrouter bench

.PHONY: bench-data-plane
bench-data-plane: .venv/.synced ## the endpoint picker beside its peers, behind a real Envoy (DATA_PLANE_ARGS=--quick)
	$(PYTHON) -m bench.data_plane $(DATA_PLANE_ARGS)

.PHONY: bench-burst
bench-burst: .venv/.synced binaries ## how bursts spread over idle instances, with and without reserve
	$(PYTHON) bench/burst.py

.PHONY: kernel
kernel: .venv/.synced ## compile the simulator, once for every state of its sources
	@$(PYTHON) -m llmrouter.sim

.PHONY: binaries
binaries: .venv/.synced
	@$(PYTHON) -m llmrouter.testbed.cluster build --control-plane >/dev/null

.venv/.synced: pyproject.toml uv.lock $(NATIVE)
	"$$(tools/ensure-uv)" sync --frozen --all-extras
	$(PYTHON) tools/build_native.py
	@touch $@
