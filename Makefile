# Nothing is needed but make and Python >= 3.11: each target sets itself up in .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Made again only when the project's needs have changed.
SETUP := .venv/setup-done
PEERS := .venv/peers-done
BEAM := .venv/beam-done
DOCS := .venv/docs-done
TPU := .venv-tpu/setup-done
NOTEBOOK := docs/notebook/from-text-to-sentence.ipynb
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
INSTALL := $(BIN)/python $(PIP)

.PHONY: setup demo test test-beam parity chaos test-tpu check docs bench clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tsuzuri needs Python 3.11 or newer; give one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	@touch $@

# Text to a model on the embedded corpus, with a plot and tales at the end.
demo: $(SETUP)
	$(BIN)/tsuzuri demo

test: $(SETUP)
	$(BIN)/python -m pytest

# Apache Beam is large, so its tests are a suite of their own.
test-beam: $(BEAM)
	$(BIN)/python -m pytest tests/test_beam.py

# Each preset against an independent model of the same weights, and the table of the differences.
parity: $(PEERS)
	$(BIN)/python -m pytest -v tests/parity
	$(BIN)/python -m pytest tests/test_hf.py tests/test_gguf.py

# Kills, hangs, bit flips, full disks: each done for real, and counted.
chaos: $(SETUP)
	$(BIN)/python -m pytest tests/chaos

# The training step, compiled for TPU pods by TPUs' own compiler; which lives in an environment of
# its own, since it complains wherever it finds no TPU.
test-tpu: $(TPU)
	.venv-tpu/bin/python -m pytest tests/test_pod.py

$(TPU): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python $(PIP) '.[dev,tpu]'
	@touch $@

$(BEAM): $(SETUP)
	$(INSTALL) '.[dev,beam]'
	@touch $@

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The site in both languages, in site/; the notebook is executed, and a warning is an error.
docs: $(DOCS)
	rm -rf docs/notebook site && mkdir docs/notebook
	$(BIN)/jupytext --quiet --to ipynb docs/from-text-to-sentence.py --output $(NOTEBOOK)
	$(BIN)/jupyter-nbconvert --log-level ERROR --to markdown --execute \
	  --ExecutePreprocessor.extra_arguments=--log-level=ERROR $(NOTEBOOK)
	$(BIN)/zensical build --clean --strict
	cp -r recipes site/  # which scale.md links to
	@echo "open site/index.html"

$(DOCS): $(SETUP)
	$(INSTALL) '.[dev,docs]'
	@touch $@

# The peers (PyTorch, transformers) are large, and only needed here and for parity.
bench: $(PEERS)
	for file in benchmarks/[a-z]*.py; do echo; $(BIN)/python $$file || exit 1; done

$(PEERS): $(SETUP)
	$(INSTALL) '.[dev,peers,beam]'
	@touch $@

clean:
	rm -rf .venv .venv-tpu runs/demo site docs/notebook .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
