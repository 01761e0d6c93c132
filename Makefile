# Everything runs in .venv, which the first target that needs it sets up. `make help` lists what there is.

PYTHON ?= python3
# The versions that pip is held to. Empty takes the newest torch of PyPI, which on Linux is a CUDA build.
TORCH_CONSTRAINT ?= constraints/cpu.txt
PYTEST_ARGS ?=
# Processes that run the tests side by side, each with one thread of torch's; 0 runs them in one, as a debugger needs it.
TEST_PROCESSES ?= 2

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(if $(TORCH_CONSTRAINT),-c $(TORCH_CONSTRAINT))
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not slow"

.PHONY: help demo test goldens style check docs results notebooks

help:
	@echo "make demo     draw emoji from text in 2, 4 and 20 steps, stock Euler beside UCGM-S, and print where the picture is"
	@echo "make test     run the tests; PYTEST_ARGS='tests/test_loss.py -k golden' runs some of them"
	@echo "              TEST_PROCESSES=0 runs them in one process, TEST_PROCESSES=8 in eight, two where none is named"
	@echo "make goldens  run only the tests against the reference's values"
	@echo "make style    mend what ruff can mend"
	@echo "make check    ruff, pyright and the site, as the pre-commit hooks and CI run them"
	@echo "make docs     build the documentation as a site, into build/site"
	@echo "make notebooks  run the notebooks of examples/notebooks, and write them anew from their scripts"
	@echo "make results  put the tables of benchmarks/results into README and the pages"
	@echo
	@echo "PYTHON=python3.12 picks the interpreter, TORCH_CONSTRAINT= another torch than the CPU build. Both are read when"
	@echo ".venv is set up: remove .venv to change them."

demo: .venv/stamp
	$(BIN)/ucgm demo

test: .venv/test.stamp
	OMP_NUM_THREADS=1 $(PYTEST) -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

goldens: .venv/test.stamp
	$(PYTEST) -k "golden or reference" $(PYTEST_ARGS)

style: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: .venv/dev.stamp docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

results: .venv/test.stamp
	$(BIN)/python tools/results.py

notebooks: .venv/test.stamp
	$(BIN)/python tools/notebooks.py

.venv/stamp: pyproject.toml $(TORCH_CONSTRAINT)
	@echo "Setting up .venv; the first time takes some minutes."
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -e .
	@touch $@

.venv/test.stamp: .venv/stamp
	$(PIP_INSTALL) -e '.[test]'
	@touch $@

.venv/dev.stamp: .venv/test.stamp
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@
