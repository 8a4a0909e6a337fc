# triton-rerank: `make` lists the targets.
# PYTHON=...         the interpreter; by default the first of 3.10 to 3.12 that runs
# TORCH_VERSION=...  the version of PyTorch
# JOBS=...           processes that run the tests at the same time; by default 2, each with servers of its own
# GATEWAY=1          `make serve` serves HTTP on 8080, too

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
TORCH_VERSION ?= 2.13.0
JOBS ?= 2
# A file's tests run in one process. The order of the files puts the short unit tests last, which evens out the end.
PYTEST := pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

.PHONY: help demo serve test test-clients test-container check lint wheels site docs bench compare loadtest upgrade clean clean-models clean-cache

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Build the demo reranker, serve it, rerank examples in several languages, stop
	$(BIN)/triton-rerank-build demo

serve: $(VENV)/.installed ## Keep a server up on 8000 (HTTP), 8001 (gRPC), 8002 (metrics); GATEWAY=1; more: SERVE="--help"
	@test -f model_repository/cross_encoder/1/manifest.json || $(BIN)/triton-rerank-build export demo
	@if [ -n "$(GATEWAY)" ]; then $(BIN)/triton-rerank gateway & trap "kill $$!" EXIT; fi; $(BIN)/triton-rerank-build serve $(SERVE)

test: $(VENV)/.installed ## Install what the tests need, run all of them, and report the coverage
	@tests/prometheus.sh $(VENV)/prometheus
	PATH="$(abspath $(VENV)/prometheus/usr/bin):$$PATH" $(BIN)/python -m slipcover -m $(PYTEST)

test-clients: $(VENV)/.installed ## Run clients of Cohere, LangChain, LlamaIndex, Haystack, LiteLLM ... against the gateway
	PYTHON=$(BIN)/python tests/clients/environments.sh $(VENV)/clients
	TRITON_RERANK_CLIENTS=$(abspath $(VENV)/clients) $(BIN)/python -m pytest --log-cli-level=INFO tests/clients

# The tests of what a server serves, without those of the local server's runtime and processes.
CONTAINER_TESTS := $(addprefix tests/integration/,server/test_scores.py server/test_tokenizer.py client/test_calls.py)

test-container: $(VENV)/.installed ## Test a server that Docker starts: IMAGE=nvcr.io/nvidia/tritonserver:26.08-py3
	$(if $(IMAGE),,$(error say which image: make test-container IMAGE=nvcr.io/nvidia/tritonserver:26.08-py3))
	RERANK_TEST_IMAGE="$(IMAGE)" RERANK_TEST_DOCKER_OPTIONS="$${RERANK_TEST_DOCKER_OPTIONS---gpus=all}" \
	  $(BIN)/python -m pytest -k "not test_model_info" $(CONTAINER_TESTS)

check: $(VENV)/.installed ## Run the tests that need no server, in about a minute
	$(BIN)/python -m $(PYTEST) tests/unit -m "not slow"

lint: $(VENV)/.installed ## Check style (ruff), layers (import-linter) and types (mypy, pyright)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" basedpyright --ignoreexternal --verifytypes triton_rerank

wheels: $(VENV)/.installed ## Build the wheels of both distributions in dist/
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist ./client ./build

site: $(VENV)/.installed ## Build the site in dist/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs: site ## Build the site, then serve it on http://127.0.0.1:8003 and rebuild it at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8003 --watch client --watch build --watch deploy --watch README.md

bench: $(VENV)/.installed ## Measure throughput through Triton and the client against the same artefact in process
	PYTHONPATH=loadtest $(BIN)/python -m benchmarks.bench

compare: $(VENV)/.installed ## Measure against other rerankers, installed on first use; hours; more: COMPARE="--help"
	PYTHONPATH=loadtest $(BIN)/python -m comparison.compare $(COMPARE)

loadtest: $(VENV)/.installed ## Load the server with Locust for 60 s and write report.html; more: LOADTEST="--help"
	@test -f model_repository/cross_encoder/1/manifest.json || $(BIN)/triton-rerank-build export demo
	$(BIN)/python loadtest/run.py $(LOADTEST)

upgrade: ## Install the newest versions that fit, and write them to constraints.txt
	UPGRADE=1 PYTHON="$(PYTHON)" TORCH_VERSION="$(TORCH_VERSION)" build/venv.sh $(VENV)
	@touch $(VENV)/.installed

clean: ## Remove the virtual environment and files of the tools; installed models and the cache stay
	rm -rf $(VENV) .venv-gpu .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache report.html
	find client build tests loadtest -name __pycache__ -type d -prune -exec rm -rf {} +

clean-models: ## Remove what `export` and `engine` installed into model_repository
	rm -rf model_repository/late_* model_repository/cross_encoder/1/engine model_repository/reranker/[1-9][0-9]*
	rm -f $(addprefix model_repository/cross_encoder/1/,model.onnx model.onnx.data model.padded.onnx model.reference.onnx model.plan engine.onnx manifest.json)
	rm -f $(addprefix model_repository/tokenizer/1/,tokenizer.json manifest.json) model_repository/*/1/*.tmp

clean-cache: ## Remove downloads, converted checkpoints and compiled models (~/.cache/triton-rerank)
	rm -rf "$${TRITON_RERANK_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/triton-rerank}"

# Recreated when the requirements change.
$(VENV)/.installed: pyproject.toml client/pyproject.toml build/pyproject.toml constraints.txt build/venv.sh build/torch.sh
	PYTHON="$(PYTHON)" TORCH_VERSION="$(TORCH_VERSION)" build/venv.sh $(VENV)
	@touch $@
