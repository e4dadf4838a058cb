# Everything a newcomer, a developer and CI need. `make run` and `make test` set themselves up.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Whole files to each process, and two processes more than there are cores: most tests wait for servers of their own.
CORES  := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
TESTS  := -n $(shell expr $(CORES) + 2) --maxprocesses 8 --dist loadfile

.PHONY: help run test check format bench loadtest knee examples lock clean

help:  ## List the commands.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.ready  ## Serve the demo tasks on http://127.0.0.1:8000 (ARGS="--port 9000" for other settings).
	$(BIN)/promptmux serve --store file://var/store --seed-dir examples/prompts $(ARGS)

test: $(VENV)/.ready-dev  ## Run the tests (ARGS="tests/server -k admin" for some of them).
	$(BIN)/python -m pytest -q $(TESTS) $(ARGS)

check: $(VENV)/.ready-dev  ## Lint, format, types, import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-dev  ## Measure against the machine's own rate and the peers (ARGS="--only forward --peers none").
	$(BIN)/python -m loadtest.bench $(ARGS)

loadtest: $(VENV)/.ready-dev  ## Load over HTTP with locust and an open loop (ARGS="--shape spike"), against its own server.
	$(BIN)/python -m loadtest.run $(ARGS)

knee: $(VENV)/.ready-dev  ## Find how many requests a second a server carries.
	$(BIN)/python -m loadtest.knee $(ARGS)

examples: $(VENV)/.ready  ## Train the demo tasks' prompt files again.
	BIN=$(BIN) examples/train.sh

lock: $(VENV)/.ready-dev  ## Write requirements.lock from what is installed here.
	$(BIN)/python scripts/lock.py

clean:  ## Remove the virtual environment and everything that was made.
	rm -rf $(VENV) var runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# torch comes first and with its dependencies, because they differ between its CPU and CUDA builds; the lock file
# pins everything else and is installed as it stands.
$(VENV)/.ready: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"promptmux needs Python 3.11 or newer, this is {v.major}.{v.minor}: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-dev.lock
	@touch $@
