# `make demo` trains ResNet-20 on images that come with the package; `make test` sets up and runs every check.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
COVERING := $(addprefix tests/,analysis checker diagnostics ir ops semantics syntax test_api.py)
READY  := $(VENV)/.ready

.PHONY: demo docs docs-setup coverage mutation soundness soundness-long test test-slow lint types format benchmark clean

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "cnnspec needs Python 3.11 or newer; set PYTHON=..." && false)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/cnnspec build resnet20 --train --data fashion_mini --epochs 8 --batch 64

test: $(READY) docs-setup lint types
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

coverage: $(READY)
	$(BIN)/python -m coverage run -m pytest $(COVERING)
	$(BIN)/python -m coverage report

# Takes hours; `make mutation WHAT='cnnspec.shapes.*'` tries the mutants of one module.
mutation: $(READY)
	$(BIN)/pip install --quiet 'mutmut>=3.8,<4'
	$(BIN)/mutmut run $(WHAT)
	$(BIN)/mutmut results

soundness: $(READY)
	$(BIN)/python -m cnnspec.testing all --processes 2

soundness-long: $(READY)
	$(BIN)/python -m cnnspec.testing all --long --processes 2

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/cnnspec fmt --check specs/*.cnn specs/blocks/*.cnn

types: $(READY)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/cnnspec fmt specs/*.cnn specs/blocks/*.cnn

benchmark: $(READY)
	$(BIN)/python benchmarks/module_speed.py
	for what in input step epoch; do $(BIN)/python benchmarks/training_speed.py $$what || exit 1; done

# The documentation is built offline into build/docs; open build/docs/index.html.
docs-setup: $(VENV)/.docs-ready

$(VENV)/.docs-ready: $(READY) pyproject.toml
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs-ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto -d build/doctrees docs build/docs

clean:
	rm -rf $(VENV)
