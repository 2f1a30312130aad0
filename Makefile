# Needs only Python >= 3.11, make and git. Everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := build/compiled
WORKERS ?= auto

.PHONY: help install run test test-compiled check wheel bench bench-quick bench-stages bench-growth proto lock fmt clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with the locked dependencies

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Ostiary needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP) ## start the demo: server, PostgreSQL and a fake provider on http://127.0.0.1:4000
	$(BIN)/ostiary server --demo

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(STAMP) ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(COMPILED)/.built ## dist/*.whl for production: its hot path is compiled (needs a C compiler)

$(COMPILED)/.built: $(STAMP) hatch_build.py $(shell find src/ostiary -name '*.py')
	rm -rf $(COMPILED) dist
	OSTIARY_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .
	$(BIN)/python -m pip install --quiet --no-deps --no-index --target $(COMPILED) dist/*.whl
	@touch $@

test-compiled: $(COMPILED)/.built ## the tests of what is compiled, on the compiled build
	PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
	  $(addprefix tests/,chaos core crash e2e gateway http1 journal standalone wire)

bench: $(COMPILED)/.built ## nginx and Ostiary side by side, written to docs/performance.md
	$(BIN)/python -m bench

bench-quick: $(COMPILED)/.built ## the same in about a minute, printed only
	$(BIN)/python -m bench --quick

bench-stages: $(COMPILED)/.built ## where the time of a call goes, written to docs/performance.md
	$(BIN)/python -m bench stages

bench-growth: $(COMPILED)/.built ## how cost grows with sizes, lengths and numbers, and with fewer cores
	$(BIN)/python -m bench growth

fmt: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP) ## regenerate src/ostiary/rpc from ostiary.proto
	cd src && PATH=$(CURDIR)/$(BIN):$$PATH $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. \
	  --python_out=. --pyi_out=. --connectrpc_out=. --connectrpc_opt=protobuf=google ostiary/rpc/ostiary.proto

lock: ## pin all dependencies with hashes (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate pyproject.toml -o requirements/base.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate --extra dev -c requirements/base.txt pyproject.toml -o requirements/dev.txt

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
