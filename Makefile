# The commands of this repository; `make` alone lists them.
# Everything is written below .venv/, build/, dist/ and demo/, except the package manager's own cache.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h')
EXTRAS_demo := lens,report
EXTRAS_dev := dev,lens,report

# Named, because setuptools would otherwise ask for the compiler that built Python, which need not be on this machine.
ifeq ($(origin CXX),default)
CXX := $(or $(shell command -v g++),$(shell command -v clang++),g++)
CC := $(if $(findstring clang,$(CXX)),clang,gcc)
endif
export CC CXX

# What other libraries would keep in the home folder.
export HF_HOME := $(CURDIR)/.venv/cache/huggingface
export MPLCONFIGDIR := $(CURDIR)/.venv/cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/.venv/cache/inductor
export TRITON_CACHE_DIR := $(CURDIR)/.venv/cache/triton
PYTEST := $(BIN)/pytest --basetemp=.venv/pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-lens test-peers test-slow test-install fuzz bench bench-gpu bench-peers bench-quick results build lint tidy format sdist wheel clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv/demo ## install, then run the quickstart study and write demo/report.html (3 minutes on 2 cores)
	$(BIN)/saekern study --preset quickstart --out demo
	@echo "The report: $(CURDIR)/demo/report.html"

# Two processes: most tests are Python on one core. Files stay whole, for their fixtures.
test: .venv/dev ## install, then run the tests (5 minutes on 2 cores)
	$(PYTEST) -n 2 --dist loadfile

test-slow: .venv/dev ## the tests marked slow: fuzz, sanitizers, install modes (about 10 minutes)
	$(PYTEST) -m slow

fuzz: .venv/dev ## random cases for every op, a minute each, other ones every day (10 minutes)
	$(PYTEST) -m slow tests/fuzz

test-install: .venv/dev ## pip install ., -e ., sdist and wheel, each in an environment of its own (3 minutes)
	$(PYTEST) -m slow tests/packaging

# 3.9 is laid over the packages of .venv, so that nothing heavy is installed twice.
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
test-lens: .venv/dev ## the tests that need TransformerLens, on the version of .venv and on 3.9 (2 minutes)
	$(PYTEST) -m lens tests/activations tests/evaluation
	$(PYTHON) -m venv .venv-tl39
	.venv-tl39/bin/python -m pip --disable-pip-version-check install --quiet --no-deps transformer-lens==3.9.0 better-abc
	echo 'import site; site.addsitedir("$(SITE)")' > "$$(.venv-tl39/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	.venv-tl39/bin/python -P -m pytest --basetemp=.venv-tl39/pytest -m lens tests/activations tests/evaluation

PEERS_TEST := -P -m pytest -m peers tests/peers -o junit_family=xunit1
test-peers: .venv-peers/ready .venv-saebench/ready ## the tests beside the real libraries, each environment its own, and docs/peers.md
	.venv-peers/bin/python $(PEERS_TEST) --basetemp=.venv-peers/pytest --junitxml=.venv-peers/report.xml
	.venv-saebench/bin/python $(PEERS_TEST) --basetemp=.venv-saebench/pytest --junitxml=.venv-saebench/report.xml
	$(BIN)/python tests/peers/table.py .venv-peers/report.xml .venv-saebench/report.xml

bench: .venv/dev ## every CPU benchmark, ours and peers interleaved, into bench/results/ (about 45 minutes, quiet machine)
	$(or $(wildcard .venv-peers/bin/python),$(BIN)/python) -m saekern.bench

bench-gpu: .venv/dev ## a GPU's answers checked, then its times, into bench/results/ (under 9 minutes, one GPU)
	$(BIN)/python -P -m saekern.bench.gpu

bench-peers: .venv/dev ## other SAE libraries and assignment solvers into .venv-peers/; `make bench` then has them
	$(BIN)/python -m saekern.bench.install_peers

results: .venv/dev ## the README's table and docs/results.md again from bench/results/*.csv
	$(BIN)/python -m saekern.bench.table

bench-quick: .venv/dev ## pytest-benchmark on small shapes, to notice regressions (1 minute)
	$(PYTEST) bench/quick.py --benchmark-only

build: .venv/build ## compile the C++ extension into .venv (again after a C++ edit)

lint: .venv/dev ## ruff, clang-format and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CSRC)
	$(BIN)/mypy

tidy: .venv/dev ## clang-tidy on the C++ (2 minutes)
	$(PIP) install --quiet --constraint constraints.txt clang-tidy
	$(BIN)/clang-tidy --quiet $(filter-out csrc/bindings.cpp,$(filter %.cpp,$(CSRC))) -- -std=c++17 -Icsrc

format: .venv/dev ## rewrite the files the way `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

sdist: .venv/dev ## the source distribution, into dist/
	$(BIN)/python -m build --sdist

wheel: .venv/dev ## the source distribution and, built from it, the wheel, into dist/
	$(BIN)/python -m build

clean: ## remove everything that these commands made
	rm -rf .venv .venv-peers .venv-saebench .venv-tl39 build dist demo saekern.egg-info saekern/_C*.so .ruff_cache .mypy_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps. .venv/ready holds the folder it was made in: a moved clone has wrong paths in .venv and makes it anew.
ifneq ($(shell cat .venv/ready 2>/dev/null),$(CURDIR))
.venv/ready: FORCE
endif

.venv/ready: .ci/make_venv.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.10 or newer (Debian, Ubuntu: apt install python3 python3-venv python3-dev)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "saekern needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Another one: make PYTHON=python3.12 demo" >&2; exit 1; }
	@$(PYTHON) .ci/make_venv.py
	@echo "$(CURDIR)" > $@

.venv/build: .venv/ready setup.py pyproject.toml $(CSRC)
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

# saekern itself is installed by then, so that pip only adds what the extras need.
.venv/demo .venv/dev: .venv/%: .venv/build pyproject.toml
	$(PIP) install --quiet --constraint .venv/constraints.txt 'saekern[$(EXTRAS_$*)]'
	@touch $@

.venv-peers/ready: .venv/dev bench/install_peers.py
	$(BIN)/python -m saekern.bench.install_peers
	@touch $@

.venv-saebench/ready: .venv-peers/ready tests/peers/install_saebench.py
	$(BIN)/python tests/peers/install_saebench.py
	@touch $@
