# make demo | make test | make chaos | make lint | make benchmark: each creates the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test chaos lint links benchmark clean

help:
	@echo "make demo       set up everything and run the whole path on embedded photographs"
	@echo "make test       set up everything and run the tests"
	@echo "make chaos      kill a small precompute job 30 times, and change the machines of another"
	@echo "make lint       formatting, lint rules, types, spelling"
	@echo "make benchmark  time samprior against named peers"
	@echo "make clean      remove what these made"

$(STAMP): pyproject.toml
	@echo "== creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "samprior needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing samprior and its libraries (some minutes and several GB, most of it torch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $(STAMP)
	@echo "== $(VENV) is ready"

demo: $(STAMP)
	@$(BIN)/samprior demo --out demo-output

test: $(STAMP)
	@$(BIN)/python -m pytest

chaos: $(STAMP)
	@$(BIN)/python tests/chaos.py

# Type checkers do not follow the editable install's import hook: give them a tree of links.
links:
	@mkdir -p build/links/samprior
	@for room in pipeline storage training cli; do ln -sfn ../../../$$room build/links/samprior/$$room; done

lint: $(STAMP) links
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/codespell

benchmark: $(STAMP)
	@$(BIN)/python benchmarks/storage.py
	@$(BIN)/python benchmarks/loader.py
	@$(BIN)/python benchmarks/distillation_cost.py
	@$(BIN)/python benchmarks/student.py
	@$(BIN)/python benchmarks/everything.py

clean:
	rm -rf build demo-output *.egg-info .pytest_cache .mypy_cache .ruff_cache
