# Every command a person or CI needs. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo up fortnight chaos test test-postgres test-doors check format lint types contracts replay lock clean size wheels audit fuzz load

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP_LOG := $(VENV)/setup.log
PIP    := $(BIN)/python -m pip --disable-pip-version-check --require-virtualenv
CODE   := workflows activities rules schema starter simulation worker.py
ALL    := $(CODE) benchmarks tests

# An environment is stale when what it was built from has changed: the stamp's name carries the hash of the inputs.
RUN_STAMP := $(VENV)/.run-$(shell cat requirements.txt pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)
DEV_STAMP := $(VENV)/.dev-$(shell cat requirements-dev.txt pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(RUN_STAMP) ## build .venv from the hash-locked run-time requirements (about 0.7 GB)

setup-dev: $(DEV_STAMP) ## the same with the development requirements

demo: setup ## the whole story on this machine, in about a minute and a half
	@$(BIN)/nautilus demo $(ARGS)

up: setup ## the embedded platform: server, web UI, worker, agents
	@$(BIN)/nautilus up $(ARGS)

fortnight: setup ## the article's two weeks, simulated, beside the article's own figures: some minutes
	@$(BIN)/python -m benchmarks.fortnight $(ARGS)

chaos: setup-dev ## faults at random over whole cycles: about 15 minutes (full disks need root)
	@$(BIN)/python -m benchmarks.chaos $(ARGS)

load: setup-dev ## 1,000 open cycles, a million outcomes, CPU per cycle and at rest: 20 minutes
	@$(BIN)/python -m benchmarks.load $(ARGS)

fuzz: setup-dev ## hostile messages: 100,000 in process, 2,000 through each real door
	@$(BIN)/python -m benchmarks.fuzz $(ARGS)

test: setup-dev ## every test, on SQLite; the rules of the stores on PostgreSQL, too
	@$(BIN)/python -m pytest $(ARGS)

test-postgres: setup-dev ## every test that takes a database, on a private PostgreSQL server
	@$(BIN)/python -m pytest --database postgresql $(ARGS)

# The packages of npm are kept beside those of PyPI; a lock file would pin what other people's platforms do not.
test-doors: setup-dev ## the doors from outside: stock SDKs of npm and PyPI, some minutes (needs node and npm)
	@command -v npm >/dev/null || { echo "expected node and npm on the path, but there is no npm" >&2; exit 1; }
	@mkdir -p $(VENV)/doors && cp tests/doors/package.json $(VENV)/doors/
	@cd $(VENV)/doors && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error >npm.log 2>&1 || \
	  { tail -n 3 npm.log >&2; echo "expected npm to install tests/doors/package.json, but it failed; see $(VENV)/doors/npm.log" >&2; exit 1; }
	@$(BIN)/python -m pytest -n 0 tests/doors/test_doors.py tests/doors/test_examples.py $(ARGS)

check: setup-dev lint types contracts test size audit ## format, lint, types, import contracts, tests, replay, audit

format: setup-dev ## rewrite the code in its format
	@$(BIN)/ruff format $(ALL) && $(BIN)/ruff check --fix $(ALL)

lint: setup-dev
	@$(BIN)/ruff format --check $(ALL) && $(BIN)/ruff check $(ALL)

types: setup-dev
	@$(BIN)/mypy

contracts: setup-dev
	@$(BIN)/lint-imports

replay: setup-dev ## replay the recorded histories only
	@$(BIN)/python -m pytest tests/test_replay.py

size: setup-dev ## code lines, and whether a file or a function is too long to read
	@$(BIN)/python -m benchmarks.size

# Last in `make check`: where no advisories can be reached, the line that says so is the one that is seen.
audit: setup-dev ## dependencies with known vulnerabilities (ARGS=--strict: fail where that cannot be found out), and secrets in files
	@$(BIN)/python -m benchmarks.audit $(ARGS)

wheels: setup ## the two small wheels, for agents and for platforms elsewhere, into dist/
	@$(BIN)/python -m starter.wheels.build

lock: ## resolve the requirements anew (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header --extra setup --extra embedded --extra tasks --extra postgres --extra deliveries \
	  --extra door --extra operations --extra openfeature \
	  --upgrade -q -o requirements.txt
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header --all-extras -c requirements.txt --upgrade -q -o requirements-dev.txt

clean: ## remove the environment and local state
	rm -rf $(VENV) .nautilus dist

# Cleared: an environment without this stamp was interrupted while it was made, and may have half a pip.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) && touch $@

# Pip's output goes to a log: it is long, and what is wrong with the registry's own set-up is no news here. A terminal
# shows each package as it comes; elsewhere a line comes every ten seconds. Pip writes INSTALLER last: a package without
# it was being installed when a set-up was interrupted, and pip would take it for whole.
define install
	@find $(VENV)/lib/*/site-packages -maxdepth 1 -name '*.dist-info' \
	  -exec sh -c 'test -e "$$1/INSTALLER" || rm -rf "$$1"' sh {} \;
	@all=$$(grep -c == $(1)); echo "building .venv from $(1): $$all packages" >&2; \
	$(PIP) install --progress-bar off --no-deps --require-hashes -r $(1) >$(SETUP_LOG) 2>&1 & pid=$$!; \
	trap 'kill $$pid; exit 130' INT TERM; turn=0; \
	while kill -0 $$pid 2>/dev/null; do \
	  sleep 0.5; turn=$$((turn + 1)); \
	  come=$$(grep -cE '^(Collecting|Requirement already)' $(SETUP_LOG)); \
	  if grep -q ^Installing $(SETUP_LOG); then doing="installing $$all packages"; else doing="$$come of $$all packages are here"; fi; \
	  if [ -t 2 ]; then printf '\r\033[K  %s' "$$doing" >&2; \
	  elif [ $$((turn % 20)) = 0 ]; then echo "  $$((turn / 2)) s: $$doing" >&2; fi; \
	done; \
	if [ -t 2 ]; then printf '\r\033[K' >&2; fi; \
	wait $$pid || { grep ^ERROR $(SETUP_LOG) | tail -n 3 >&2; \
	  echo "expected pip to install $(1), but it failed; all it said is in $(SETUP_LOG). Run it again: it goes on where it was" >&2; exit 1; }
	@$(PIP) install --no-deps --no-build-isolation --no-index -q -e . >>$(SETUP_LOG) 2>&1 || \
	  { grep ^ERROR $(SETUP_LOG) >&2; echo "expected pip to install this checkout, but it failed; see $(SETUP_LOG)" >&2; exit 1; }
	@rm -f $(VENV)/.$(2)-* && touch $@
	@du -sh $(VENV) | awk '{print ".venv is ready: " $$1}' >&2
endef

$(RUN_STAMP): $(VENV)/.created
	$(call install,requirements.txt,run)

# The development requirements contain the run-time ones, so both stamps hold afterwards.
$(DEV_STAMP): $(VENV)/.created
	$(call install,requirements-dev.txt,dev)
	@rm -f $(VENV)/.run-* && touch $(RUN_STAMP)
