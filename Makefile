# make demo [ARGS=--exit] · make test · make lint · make bench · make lock · make clean
# Needs Python 3.11 or later with venv and pip, and make. Everything else comes from requirements/, by hash.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/'

# python-olm publishes wheels for Python 3.11 and 3.12 only, but they hold a module of the stable ABI that later versions
# load as well. So on a later Python the wheel is put in place by itself, still checked by its hash; no compiler is needed.
$(READY): requirements/all.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (once; downloads some 150 MB)"
	@$(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then \
		awk '/^[^ ]/ { keep = /^python-olm==/ } keep' requirements/all.txt > $(VENV)/olm.txt && \
		$(PIP) install --require-hashes --no-deps --only-binary :all: --python-version 3.12 --upgrade \
			--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" -r $(VENV)/olm.txt; \
	fi
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/all.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## play three calls on a real homeserver and print what was found; ARGS=--exit ends after the report
	@$(BIN)/rtc-appservice demo $(ARGS)

test: $(READY) ## all tests; ARGS goes to pytest
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## ruff, mypy strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(READY) ## intake against its baselines, on this machine, in one run
	@$(BIN)/python -m bench $(ARGS)

# Names, versions and hashes only: no address of an index, and the public index alone is asked.
UV := $(BIN)/uv --no-config --quiet pip compile --no-emit-index-url --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-header $(ARGS)

lock: $(READY) ## requirements/*.txt anew from pyproject.toml; ARGS=--upgrade takes newer versions
	@$(PIP) install 'uv==0.13.9'
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) pyproject.toml --all-extras --group test --group lint --group build -o requirements/all.txt
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) -c requirements/all.txt pyproject.toml -o requirements/run.txt
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) -c requirements/all.txt pyproject.toml --extra encryption -o requirements/encryption.txt
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(UV) -c requirements/all.txt --group build -o requirements/build.txt

clean: ## remove what was made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
