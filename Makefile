# Two commands do everything on a fresh machine with Python 3.11+, pip and make:
#   make simulate     make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: simulate test lint format benchmark clean

$(VENV)/.simulation: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[simulation]'
	@touch $@

$(VENV)/.dev: $(VENV)/.simulation
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

simulate: $(VENV)/.simulation ## run the default scenario and write results/care-and-bank
	$(BIN)/confed simulate $(ARGS)

lint: $(VENV)/.dev ## formatting, types, import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## the one gate
	$(BIN)/pytest $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.simulation ## every timing row beside its comparison
	$(BIN)/confed benchmark $(ARGS)

clean:
	rm -rf $(VENV) results
