# Two commands for everybody: `make demo` and `make test`. Each makes its own virtual environment on first use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BROWSABLE := demo

# One thread of LAPACK for each of the two workers: more of them wait for one another. Most of the time goes into
# compiling small programs that run once: LLVM leaves them as they are.
TESTS = OPENBLAS_NUM_THREADS=1 XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/pytest -q -n 2 --dist loadfile

.PHONY: demo test quick lint types floors docs pytest benchmark clean

demo: $(VENV)/.demo
	$(BIN)/fibration demo --out $(BROWSABLE)

test: lint types floors docs pytest

# The tests without the slow ones, for while you work.
quick: $(VENV)/.dev
	$(TESTS) -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.dev
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python
	$(BIN)/python tools/public_types.py

floors: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site
	$(BIN)/python tools/public_symbols.py site

pytest: $(VENV)/.dev
	$(TESTS)

# Beside its rivals in one run; writes benchmarks/results/*.json with the machine's description.
benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/gradient_flow.py

$(VENV)/.demo: constraints.txt pyproject.toml tools/install.sh
	bash tools/install.sh "$(PYTHON)" "$(VENV)" report
	touch $@

$(VENV)/.dev: constraints.txt pyproject.toml tools/install.sh
	bash tools/install.sh "$(PYTHON)" "$(VENV)" dev
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) site $(BROWSABLE)
