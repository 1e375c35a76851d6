# make notebooks | book | slides | test | test-lowest | test-newest | lab | bench | clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BOOK_INSTALLED := .venv/.book
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Asks no index when everything is there already.
install = $(PIP) --no-index --no-build-isolation $(1) >/dev/null 2>&1 || $(PIP) $(1)

.PHONY: notebooks book slides test test-lowest test-newest lab bench clean

notebooks: $(INSTALLED)
	$(BIN)/python -m nbtools run --profile quick

book: $(BOOK_INSTALLED)
	$(BIN)/python book/build.py book/_build
	@echo "The book lies in book/_build/html: open index.html."

slides: $(BOOK_INSTALLED)
	$(BIN)/python book/slides.py book/_build/slides 00 06
	@echo "The slides lie in book/_build/slides."

test: $(INSTALLED) $(BOOK_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

# In environments of their own: the lowest versions that pyproject.toml promises, and the newest of everything.
test-lowest:
	PYTHON=$(PYTHON) .ci/versions lowest-direct

test-newest:
	PYTHON=$(PYTHON) .ci/versions highest

lab: $(INSTALLED)
	$(BIN)/jupyter lab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

bench: $(INSTALLED)
	$(BIN)/python -m nbtools bench

# Installs again only when one of the two files has changed.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing nbtools and its packages into .venv; the first time this takes minutes."
	@$(call install,-e '.[dev]')
	@touch $@

# Building the book runs no notebook, so it needs neither nbtools nor torch: of pyproject.toml only the extra "book".
BOOK_NEEDS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["book"])
$(BOOK_INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(call install,$$($(BIN)/python -c '$(BOOK_NEEDS)'))
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or later is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; \
		exit 1; }
	@$(PYTHON) -m venv .venv

clean:
	rm -rf runs build book/_build .pytest_cache .ruff_cache *.egg-info
	find nbtools tests notebooks -name __pycache__ -prune -exec rm -rf {} +
