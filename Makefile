# Everything from a fresh clone, with only python3.11 and make.
PY    ?= python3.11
VENV  ?= .venv
BIN   := $(VENV)/bin

.PHONY: setup demo demo-detect demo-segment test test-full lint bench docs clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt hatch_build.py $(wildcard csrc/* csrc/kernels/*)
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q "uv==0.13.8"
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[train]" --group dev
	touch $@

demo: setup
	$(BIN)/python -m vssm demo

demo-detect: setup
	$(BIN)/python -m vssm demo detect

demo-segment: setup
	$(BIN)/python -m vssm demo segment

# Two processes, which take files in the order of tests/conftest.py.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(BIN)/python -m pytest -q $(TWO)

test-full: setup
	$(BIN)/python -m pytest -q $(TWO) --full

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/runtimes.py

docs: setup
	rm -rf build/site-source build/site
	$(BIN)/python docs/site.py build/site-source
	$(BIN)/zensical build --strict --clean
	@echo "open build/site/index.html"

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache vssm/lib
