# make demo | make test | make chaos | make lint | make benchmark: each creates the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := $(VENV)/bench
BENCH_PIP = PYTHONWARNINGS=ignore $(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: help demo test chaos lint links benchmark clean

help:
	@echo "make demo       set up everything and run the whole path on embedded photographs"
	@echo "make test       set up everything and run the tests"
	@echo "make chaos      kill a small precompute job 30 times, and change the machines of another"
	@echo "make lint       formatting, lint rules, types, spelling"
	@echo "make benchmark  samprior against its peers, one page of results; QUICK=1, DEVICE=cuda, CHECKPOINT=..."
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

# An environment on top of the other one: peers, and the older libraries that they ask for, stay in it.
$(BENCH)/.installed: $(STAMP)
	@echo "== installing what samprior is compared with into $(BENCH)"
	@test -x $(BENCH)/bin/python || $(BIN)/python -m venv --without-pip $(BENCH)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beneath.pth
	@if $(BENCH_PIP) --editable ".[bench]"; then touch $@; else \
		echo "== not all of them fit: one by one"; \
		for peer in $$($(BENCH)/bin/python -c 'import tomllib; \
			print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])'); \
		do $(BENCH_PIP) "$$peer" || echo "== without $$peer: its rows will say so"; done; fi

# QUICK=1 for minutes instead of an hour, DEVICE=cuda for a GPU, CHECKPOINT=sam_vit_h_4b8939.pth for SAM's weights.
benchmark: $(BENCH)/.installed
	@$(BENCH)/bin/python benchmarks/run_all.py $(if $(filter-out 0,$(QUICK)),--quick) $(if $(DEVICE),--device $(DEVICE)) \
		$(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

clean:
	rm -rf build demo-output *.egg-info .pytest_cache .mypy_cache .ruff_cache
