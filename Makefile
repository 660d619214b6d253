# `make` alone says what there is. Everything is done inside .venv; nothing else on the machine changes but the lab's cache.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test aside-lint tests-of-clusters tests-of-metrics tests-of-nodes tests-of-releases tests-of-the-rest test-faults faults-calls faults-nodes faults-once_only faults-releases test-peers test-real lint fix lab lab-down binaries bench schemas lock clean

help: ## Say what there is
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make .venv with the pinned packages; quick when nothing changed

	@:

$(VENV)/bin/python:
	@python=; for candidate in python3.11 python3 python3.12 python3.13 python3.14; do \
	  if $$candidate -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'Kreflex needs Python 3.11 or newer with its venv module, as python3.11 or python3 on PATH (Debian: apt install python3.11-venv).' >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)

# The environment is brought up to date in place, so that what runs from it goes on running.
$(STAMP): requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing the packages of requirements.lock (a minute the first time)"
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation --no-index --editable .
	@touch $@

demo: setup ## Boot a cluster, break a workload, watch it heal; then the refusal of a useless deletion
	@$(BIN)/python -m lab scenario crash-loop
	@$(BIN)/python -m lab scenario useless-deletion
	@$(BIN)/python -m lab down
	@echo 'To look around in such a cluster yourself: make lab, then source .lab/env'

test: setup binaries ## The tests that have to pass before a change is merged
	@$(MAKE) --jobs=3 --keep-going $(PARTS)

# They wait for clusters a part of the time, so three run side by side, on clusters of their own; who takes longest
# begins first, and what the linters use of one core, a cluster that boots does not miss. Of all but one the words come
# at the end, not to mix with the others'.
PARTS := aside-lint tests-of-the-rest tests-of-clusters tests-of-releases tests-of-nodes tests-of-metrics tests-of-values
OF = $(sort $(wildcard $(1:%=tests/cluster/test_%*.py)))
METRICS := $(call OF,anomaly budgets chaos engines error_budget slo)
NODES := $(call OF,fleet lab_nodes node_)
RELEASES := $(call OF,canary flagger git helm lab_jobs pipeline release rollback)
VALUES := tests/shared tests/functions tests/ingress
APART := $(patsubst %,--ignore=%,$(METRICS) $(NODES) $(RELEASES))

tests-of-clusters:
	@$(BIN)/pytest tests/cluster --ignore-glob='tests/cluster/test_[l-np-qs-z]*' $(APART)

aside = mkdir -p .pytest_cache; status=0; $(1) >.pytest_cache/$@.log 2>&1 || status=$$?; cat .pytest_cache/$@.log; exit $$status

tests-of-metrics: TESTS = $(METRICS)
tests-of-nodes: TESTS = $(NODES)
tests-of-releases: TESTS = $(RELEASES)
tests-of-the-rest: TESTS = --ignore-glob='tests/cluster/test_[a-kor]*' $(APART) $(VALUES:%=--ignore=%)
tests-of-values: TESTS = $(VALUES)

tests-of-metrics tests-of-nodes tests-of-releases tests-of-the-rest tests-of-values:
	@$(call aside,$(BIN)/pytest $(TESTS))

aside-lint:
	@$(call aside,$(MAKE) lint)

# A part of the matrix that `python -m bench faults` plays whole. Most of it is waiting, so three go side by side.
test-faults: setup binaries ## Kill, stop and trouble the functions at each of their calls, and compare the ends (minutes)
	@$(MAKE) --jobs=3 --keep-going faults-calls faults-nodes faults-once_only faults-releases

faults-calls faults-nodes faults-once_only faults-releases:
	@$(call aside,$(BIN)/pytest tests/faults/test_$(@:faults-%=%).py)

test-peers: setup ## Tests with the larger programs of others (builds Knative's Broker, Argo Events, NATS, Karpenter and others the first time)
	@$(BIN)/python -m lab build --peers
	@$(BIN)/pytest tests/peers

test-real: setup ## Tests on a real node
	@echo 'SKIPPED, LOUDLY: no test runs on a real node yet.'

lint: setup ## Check style, types and the direction of the imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

fix: setup ## Repair what ruff can repair
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

binaries: setup
	@$(BIN)/python -m lab build

lab: setup ## Boot the embedded cluster and leave it running
	@$(BIN)/python -m lab up

lab-down: setup ## Stop it
	@$(BIN)/python -m lab down

bench: setup ## Run a benchmark: make bench NAME=reflex
	@$(BIN)/python -m bench $(or $(NAME),$(error Name the benchmark, as in `make bench NAME=reflex`))

schemas: setup ## Write the CRDs anew from the models, and the rights and admission policies from the signatures
	@$(BIN)/python -m kreflex.schemas
	@$(BIN)/python -m kreflex.rights
	@$(BIN)/python -m kreflex.rights knative/variants/namespaced --namespaces shop
	@$(BIN)/python -m kreflex.admission

COMPILE = env -u PIP_FIND_LINKS -u PIP_INDEX_URL CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --generate-hashes \
  --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

lock: setup ## Pin the newest permitted versions of all packages
	@$(COMPILE) --upgrade --all-extras --output-file requirements.lock pyproject.toml
	@$(COMPILE) --extra otel --extra s3 --constraint requirements.lock --output-file requirements-image.lock pyproject.toml

clean: ## Remove what the tools made here; the lab's cache of binaries stays
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
