# From a fresh clone: `make demo` trains a small Mask R-CNN on the CPU, `make test` runs every check,
# `make test-fast` the quick ones, `make test-slow` those that train for minutes, `make coverage` measures what the tests run, `make docs` builds the site.
# Each makes the environment first, in .venv, and again when pyproject.toml or constraints.txt change.

# The first Python that is new enough; another: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
# Gigabytes: 6 stay, 5 are for what pip downloads and caches
DISK_NEEDED ?= 11

BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo docs lint test test-fast test-slow coverage

demo: $(INSTALLED)
	$(BIN)/maskrcnn-lit train experiment=demo

# Two processes with a thread each: threads that wait for one another would take the cores from the other process.
test test-fast test-slow coverage: export OMP_NUM_THREADS = 1
test test-fast test-slow coverage: export OMP_WAIT_POLICY = PASSIVE
test: lint
	$(BIN)/pytest -n 2 --dist worksteal

# Without the tests that start processes, that take over a second or two, or that need more than Python; of a
# test with several cases the first one alone. Every case: make test-fast CASES=
# More marks to leave out: make test-fast LEAVE_OUT='or data'
CASES ?= --one-each
test-fast: lint
	$(BIN)/pytest -n 2 --dist worksteal $(CASES) \
	-m 'not (process or long or slow or gpu or gpu_build or browser or official or tex or trackio $(LEAVE_OUT))'

# What neither of them runs: trainings of minutes, and more members of families of which one is in `make test`.
test-slow: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal -m 'slow and not (gpu or gpu_build or browser or official or tex or trackio $(LEAVE_OUT))'

# Also what commands run that tests start; not the ranks and loaders that these fork. Programs start cold then.
coverage: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal --ignore tests/test_warm_python.py --cov=maskrcnn_lit --cov-report=term --cov-report=html:build/coverage

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages that are made from the code, then the site; a broken link is an error.
docs: $(INSTALLED)
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean

# Written last, so that a broken installation is taken up again; pip repeats what it had not finished.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and \
	$(PYTHON) is %d.%d: install one, or name it with PYTHON=..." % sys.version_info[:2])'
	@ls -d .venv/lib/python3.*/site-packages/torch-*.dist-info > /dev/null 2>&1 || "$(PYTHON)" -c 'import shutil, sys; \
	free = shutil.disk_usage(".").free / 1e9; sys.exit(free < $(DISK_NEEDED) and "The disk is too full: the \
	environment needs $(DISK_NEEDED) GB, and %.1f GB are free here. Make room, then run it again." % free)'
	@echo "Making the environment in .venv: 6 GB and some minutes, once."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@$(BIN)/python -c 'import hydra, lightning, pycocotools, tensorboard, torch, torchvision' || \
	{ echo "The installation is broken: remove .venv and run it again."; exit 1; }
	@touch $@
