# Two commands: `make run` does the main job, `make test` proves it. Both need Python 3.11 or newer, make, and nothing else.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCE := $(shell find gatewayd twisted -type f -not -name '*.pyc' -not -name dropin.cache) setup.cfg pyproject.toml
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test test-simulation test-system test-unit test-wire lint types test-full compiled bench bench-push lock docs install-host remove-host clean

run: $(VENV)/installed
	@$(BIN)/twistd -n --pidfile= gatewayd $(ARGS)

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gatewayd needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/locked: $(VENV)/created requirements.txt
	@echo "installing what gatewayd needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.txt
	@touch $@

$(VENV)/installed: $(VENV)/locked $(SOURCE)
	@$(BIN)/python -P -m gatewayd.compilation --remove > /dev/null 2>&1 || true
	@$(BIN)/python -m pip install --quiet --no-deps --force-reinstall .
	@$(BIN)/python -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
	@touch $@

$(VENV)/testable: $(VENV)/installed tests/requirements.txt
	@echo "installing what the tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r tests/requirements.txt
	@touch $@

# Four parts beside each other: most of them wait most of the time, and those that compute stand back. What a part says
# is shown when it has ended.
test: lint types $(VENV)/testable
	@$(MAKE) --no-print-directory --output-sync=target -j 4 test-system test-wire test-unit test-simulation

test-system: $(VENV)/testable
	@$(BIN)/python -m pytest -q tests/system

test-wire: $(VENV)/testable
	@nice -n 5 $(BIN)/python -m pytest -q tests/wire

test-unit: $(VENV)/testable
	@nice -n 15 $(BIN)/python -m pytest -q --ignore=tests/simulation --ignore=tests/system --ignore=tests/wire

test-simulation: $(VENV)/testable
	@nice -n 19 $(BIN)/python -m pytest -q tests/simulation

lint: $(VENV)/testable
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/codespell gatewayd tests docs etc systemd README.md Makefile
	$(BIN)/lint-imports --no-cache

types: $(VENV)/testable
	$(BIN)/mypy

# The long forms of the same promises.
test-full: lint types $(VENV)/testable
	GATEWAYD_TEST_FULL=1 $(BIN)/python -m pytest

# Machine code for the modules of a webhook's way, in this venv's copy; needs a C compiler and Python's headers.
compiled: $(VENV)/testable
	@$(BIN)/python -P -m gatewayd.compilation

# gatewayd beside FastAPI and Go (tests/bench/peers), which are fetched once into ~/.cache/gatewayd-bench. ARGS=--quick:
# a minute; ARGS=--write: into docs/benchmarks.md.
bench: $(VENV)/testable
	$(BIN)/python -m tests.bench $(ARGS)

# Streams of the edge beside Node's ws and nchan, and what the edge costs webhooks: two to three minutes, or --quick.
# ARGS="--soak 600": memory, while streams come and go. The same of `make bench`: memory under 1,000 webhooks a second.
bench-push: $(VENV)/testable
	$(BIN)/python -m tests.bench --push $(ARGS)

# A systemd unit on this host (as root), or an image of it under DESTDIR; again to upgrade. UNIT=at-gateway names it,
# NATS=yes brings a nats-server along, COMPILED=yes makes machine code of what a webhook passes through.
UNIT ?= gatewayd

install-host:
	@PYTHON="$(PYTHON)" systemd/install --unit "$(UNIT)" --destdir "$(DESTDIR)" $(if $(NATS),--with-nats) \
	    $(if $(COMPILED),--compiled)

# Leaves configuration and state, unless PURGE=yes.
remove-host:
	@systemd/install --remove --unit "$(UNIT)" --destdir "$(DESTDIR)" $(if $(PURGE),--purge)

# What is generated from the tables of the code; a test compares it.
docs: $(VENV)/testable
	$(BIN)/python -m tests.generated

# Exact versions with hashes, for every platform, from the ranges in setup.cfg. Needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra embedded --extra speed --output-file requirements.txt setup.cfg
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra test --constraint requirements.txt --output-file tests/requirements.txt setup.cfg
	printf 'mypy\nmypy-zope\nsetuptools\n' | uv pip compile --quiet --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate --constraint tests/requirements.txt \
	    --output-file requirements-compiled.txt -

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .ruff_cache
