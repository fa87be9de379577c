# `make demo` trains ResNet-20 on images that come with the package; `make test` sets up and runs every check.
# CONTRIBUTING.md explains the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
NEWEST := $(VENV)-newest
PINS   := $(wildcard constraints.txt)
PIP    := -m pip install --quiet $(addprefix --constraint ,$(PINS))
SPECS  := specs/*.cnn specs/blocks/*.cnn
FRONT  := $(addprefix tests/,analysis checker diagnostics ir ops semantics syntax test_api.py)
# The part of the front tests that is quick enough to run once more on another Python.
QUICK  := $(addprefix tests/,checker cli/test_commands.py diagnostics/test_cases.py rewrite semantics \
	syntax/test_formatter.py test_api.py test_architecture.py)

.PHONY: benchmark clean coverage demo docs docs-setup format lint mutation soundness soundness-long test test-pythons test-random \
	test-cluster test-slow types

$(READY): pyproject.toml $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "cnnspec needs Python 3.11 or newer; set PYTHON=..." && false)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --editable '.[train,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/cnnspec build resnet20 --train --data fashion_mini --epochs 8 --batch 64

test: $(READY) docs-setup lint types
	$(BIN)/python -m pytest -n 2

# Looks for failures with examples that differ in each run; `make test` draws the same ones every time.
test-random: $(READY)
	$(BIN)/python -m pytest -n 2 --hypothesis-profile=random

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Starts a PostgreSQL server (Debian: postgresql) and clusters of Ray on this machine.
test-cluster: $(READY)
	$(BIN)/python $(PIP) 'ray>=2.40'
	$(BIN)/python -m pytest -m cluster

# Installs a wheel of the package, without torch, on the newest Python of this machine.
test-pythons:
	$$(tools/newest_python.sh) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python $(PIP) . pytest hypothesis
	$(NEWEST)/bin/python --version
	$(NEWEST)/bin/pytest -p no:cacheprovider $(QUICK)

coverage: $(READY)
	$(BIN)/python -m coverage run -m pytest $(FRONT)
	$(BIN)/python -m coverage report

# Takes hours; `make mutation WHAT='cnnspec.shapes.*'` tries the mutants of one package.
mutation: $(READY)
	$(BIN)/python $(PIP) 'mutmut>=3.8'
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
	$(BIN)/cnnspec fmt --check $(SPECS)

types: $(READY)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/cnnspec fmt $(SPECS)

benchmark: $(READY)
	$(BIN)/python benchmarks/module_speed.py
	for what in input step epoch; do $(BIN)/python benchmarks/training_speed.py $$what || exit 1; done

# The documentation is built offline into build/docs; open build/docs/index.html.
docs-setup: $(VENV)/.docs-ready build/playground/fetched.txt

$(VENV)/.docs-ready: $(READY) pyproject.toml
	$(BIN)/python $(PIP) --editable '.[docs]'
	@touch $@

build/playground/fetched.txt: $(READY) $(wildcard docs/playground/*.json docs/playground/*.txt)
	$(BIN)/python docs/_ext/playground.py

docs: $(VENV)/.docs-ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto -d build/doctrees docs build/docs

# Packages the extension for VS Code into editors/vscode/cnnspec.vsix, and compares its grammar with all specs. Needs Node.
vscode: $(READY)
	cp LICENSE editors/vscode
	cd editors/vscode && npm ci --silent && npm test --silent && npm run --silent package
	$(BIN)/python -m pytest tests/editors/test_vscode.py

clean:
	rm -rf $(VENV) $(NEWEST)
