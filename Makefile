# Every target makes what it needs on a fresh machine with Python 3.11 or later; see `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The lock is a list of constraints: torch and its companions take the build that fits this machine.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

RUN    := $(VENV)/.installed-to-run
DEV    := $(VENV)/.installed-to-develop

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs pytest lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(RUN) ## Scan, reconstruct, store and query a simulated crystal; writes demo_output/
	$(BIN)/cdinn demo

test: lint docs pytest ## Everything that must pass before a commit is merged

lint: $(DEV) ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(DEV) ## Build the documentation into docs/_build/html, a warning being an error
	$(BIN)/sphinx-build -W -n --keep-going -q -b html docs docs/_build/html

pytest: $(DEV) ## The test suite alone
	$(BIN)/python -m pytest

lock: | $(BIN)/python ## Bring requirements.lock in line with pyproject.toml (delete it first to renew all)
	.ci/lock $(BIN)

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist docs/_build docs/reference/generated demo_output *.egg-info
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "bluesky-cdinn needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	           "try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml requirements.lock | $(BIN)/python
	@echo "Installing bluesky-cdinn into $(VENV) (a few minutes the first time) ..."
	$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml requirements.lock $(RUN)
	@echo "Installing what tests, lint and docs need into $(VENV) ..."
	$(PIP) --editable ".[dev]"
	@touch $@
