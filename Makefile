# make notebooks | test | lab | bench | clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[dev]'

.PHONY: notebooks test lab bench clean

notebooks: $(INSTALLED)
	$(BIN)/python -m nbtools run --profile quick

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

bench: $(INSTALLED)
	$(BIN)/python -m nbtools bench

# Installs again only when one of the two files has changed; asks no index when everything is there already.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or later is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; \
		exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing nbtools and its packages into .venv; the first time this takes minutes."
	@$(PIP) --no-index --no-build-isolation >/dev/null 2>&1 || $(PIP)
	@touch $@

clean:
	rm -rf runs build .pytest_cache .ruff_cache *.egg-info
	find nbtools tests notebooks -name __pycache__ -prune -exec rm -rf {} +
