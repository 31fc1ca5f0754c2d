# `make up` from a fresh clone: installs into .venv what the lock names, then serves. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
UV := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
# Arguments for pytest: make test ARGS="-k calendar"
ARGS ?=
# How long make faults-long and make soak take, and what the first draws its faults by: make faults-long SEED=7 MINUTES=90
MINUTES ?=
SEED ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up test lint format faults faults-long faults-mutants bench bench-full search overload crowd outages reminders soak scale lock clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# exec: `zapis up` takes the place of the recipe's shell, so that Ctrl-C and SIGTERM reach it and it can drain.
up: $(VENV)/.installed ## Install, and serve the demo clinic on http://127.0.0.1:8000 until Ctrl-C
	@ZAPIS_DEMO=$${ZAPIS_DEMO-1} exec $(BIN)/zapis up

test: $(VENV)/.installed-dev ## Run the tests, on servers of their own
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/.installed-dev ## Check format, style, types and imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Format, and repair what can be
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

faults: $(VENV)/.installed-dev ## Break everything while clients go on, and check what is left (15 minutes)
	$(BIN)/python -m tests.faults

faults-long: $(VENV)/.installed-dev ## The same for longer: SEED=… MINUTES=…
	$(BIN)/python -m tests.faults --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

faults-mutants: $(VENV)/.installed-dev ## See that the harness catches what is broken on purpose (5 minutes)
	$(BIN)/python -m tests.faults --mutants

bench: $(VENV)/.installed-dev ## Compare bookings a second with hand-written services
	$(BIN)/python -m loadtests.bench

bench-full: $(VENV)/.installed-dev ## The same under all loads, with a plot, into loadtests/reports (25 minutes)
	$(BIN)/python -m loadtests.bench --loads distinct hot few --connections 16 64 256 --rounds 5 --seconds 4 \
		--report loadtests/reports

search: $(VENV)/.installed-dev ## Compare searches a second with the same bytes from memory (2 minutes)
	$(BIN)/python -m loadtests.search

overload: $(VENV)/.installed-dev ## Ask for more than can be served, see that it is served all the same (14 minutes)
	$(BIN)/python -m loadtests.overload

crowd: $(VENV)/.installed-dev ## Ten thousand people look at calendars while visits are booked (3 minutes)
	$(BIN)/python -m loadtests.crowd

outages: $(VENV)/.installed-dev ## Take Redis, the API, the calendars, PostgreSQL away before ten thousand readers (5 minutes)
	$(BIN)/python -m loadtests.outages

reminders: $(VENV)/.installed-dev ## Send 100,000 reminders at once, and 20,000 while things are killed (15 minutes)
	$(BIN)/python -m loadtests.reminders

soak: $(VENV)/.installed-dev ## Half load for long; memory and files have to stay as they are (30 minutes, or MINUTES=…)
	$(BIN)/python -m loadtests.soak --minutes $(or $(MINUTES),30)

scale: $(VENV)/.installed-dev ## Compare ten thousand doctors with ten (5 minutes)
	$(BIN)/python -m loadtests.scale

lock: $(VENV)/.installed-dev ## Resolve the dependencies anew and pin them by hash
	$(UV) --upgrade pyproject.toml --extra embedded --group build -o requirements.lock
	$(UV) --upgrade pyproject.toml --extra embedded --extra test --extra load --group build --group lock \
		-c requirements.lock -o requirements-dev.lock

clean: ## Remove what was installed and cached; data directories stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@touch $@

$(VENV)/.installed-dev: requirements.lock requirements-dev.lock pyproject.toml
	$(call install,requirements-dev.lock)
	@touch $(VENV)/.installed $@

define install
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
		echo "zapis needs Python 3.11 or 3.12, and $(PYTHON) is not one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "installing $(1) into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r $(1)
	@$(PIP) install --no-deps --no-build-isolation -e .
endef
