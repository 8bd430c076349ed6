# `make help` lists what there is. Everything is installed into a virtual environment; nothing outside this folder changes.

PYTHON ?= python3
VENV ?= .venv
# Passed to `pip install`. A CPU-only torch on Linux, which saves gigabytes:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Passed to train_lpm.py by the demo, and to benchmarks/story.py by the story, after their own options.
ARGS ?=
# Passed to pytest, e.g. PYTEST_ARGS="tests/noisy_tv -x".
PYTEST_ARGS ?=
# Processes that share the tests.
JOBS ?= 2

BIN := $(VENV)/bin
# A stamp is newer than pyproject.toml once that extra is installed.
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# pip-tools and the like need packages of their own, which nothing else here should meet.
TOOLS := $(VENV)/tools
LOCKED := --no-deps --require-hashes -r requirements

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo story test slow lint install dev locked lock audit sbom clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(BASE) ## install, then learn the pixel Pendulum in front of a Noisy TV (10,000 steps)
	$(BIN)/python3 train_lpm.py --steps 10000 --noisy-tv $(ARGS)

story: $(BASE) ## install, then film two curious agents before one TV (about 5 minutes on two cores)
	$(BIN)/python3 benchmarks/story.py $(ARGS)

test: $(DEV) ## install, then run the tests
	$(BIN)/python3 -m pytest -n $(JOBS) $(PYTEST_ARGS)

# pytest leaves with 5 when it found no test, which is no failure here.
slow: $(DEV) ## install, then run the tests that take minutes
	$(BIN)/python3 -m pytest -m slow $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: $(DEV) ## style, format, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

install: $(BASE) ## only install
dev: $(DEV) ## only install, with the tools for developers

# Torch is the CPU build where pip is told of it (see PIP_ARGS) or finds it lying about, else PyPI's.
# The last call finds everything there but this package itself, and the CUDA libraries, where torch is PyPI's.
locked: | $(BIN)/pip ## as dev, but exactly the files whose hashes are in requirements/: what CI does
	$(BIN)/python3 -m pip install $(PIP_ARGS) $(LOCKED)/ci.lock
	$(BIN)/python3 -m pip install $(PIP_ARGS) $(LOCKED)/torch-cpu.lock || \
		$(BIN)/python3 -m pip install $(PIP_ARGS) $(LOCKED)/torch-pypi.lock
	$(BIN)/python3 -m pip install $(PIP_ARGS) --no-build-isolation -e '.[dev]'
	@touch $(BASE) $(DEV)

# Keeps the locked versions that still fit; for the newest of everything, delete requirements/ci.lock first.
lock: $(TOOLS)/bin/pip-compile ## bring requirements/ci.lock up to date with pyproject.toml
	$(TOOLS)/bin/python3 -m piptools compile --quiet --extra dev --all-build-deps --generate-hashes --strip-extras \
		--no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--unsafe-package torch --unsafe-package dreamer-lpm --output-file requirements/ci.lock pyproject.toml
	sed -i.old -e '/^# WARNING/,$$d' -e '/^$$/d' -e '1i\
	# What CI installs, to the byte: all of `dreamer-lpm[dev]` and what builds it, but for torch (torch-*.lock).\
	# Written by `make lock` with Python 3.11; do not edit.' requirements/ci.lock && rm requirements/ci.lock.old

# --strict: what could not be looked up counts as a finding.
audit: $(TOOLS)/bin/pip-compile ## look up known vulnerabilities of what is locked (needs PyPI's advisory service)
	cat requirements/ci.lock requirements/torch-pypi.lock > $(TOOLS)/all.lock
	$(TOOLS)/bin/python3 -m pip_audit --strict --disable-pip --require-hashes -r $(TOOLS)/all.lock

sbom: $(TOOLS)/bin/pip-compile ## write dist/sbom.cdx.json (CycloneDX), the bill of materials of a release
	mkdir -p dist
	cat requirements/ci.lock requirements/torch-pypi.lock | $(TOOLS)/bin/python3 -m cyclonedx_py requirements \
		--pyproject pyproject.toml --mc-type library --output-reproducible --output-format JSON --output-file dist/sbom.cdx.json -

$(TOOLS)/bin/pip-compile: | $(BIN)/pip
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python3 -m pip install $(PIP_ARGS) 'pip-tools>=7.6' 'pip-audit>=2.10' 'cyclonedx-bom>=7.5'

clean: ## remove the virtual environment and the caches (runs, videos and data stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("Dreamer-LPM needs Python 3.11 or newer, and this is %d.%d: install a newer one and name it, "
             "e.g. make demo PYTHON=python3.12" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("This Python has no venv module: install it (Debian and Ubuntu: sudo apt install python3-venv) and try again")
endef
export CHECK_PYTHON

# A new environment each time pyproject.toml changes would cost minutes, so an old one is brought up to date instead.
$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo "No $(PYTHON) here: install Python 3.11 or newer, or name yours with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml | $(BIN)/pip
	$(BIN)/python3 -m pip install $(PIP_ARGS) -e .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/pip
	$(BIN)/python3 -m pip install $(PIP_ARGS) -e '.[dev]'
	@touch $(BASE) $@
