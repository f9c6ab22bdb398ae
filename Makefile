# Everything on a fresh machine with Python >= 3.11 and a C++ compiler; nothing needs root.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-out

.PHONY: help demo test test-full test-all check docs format simd gpu-check clean

SIMD := 12.1.1.post0

# Tools that know no symbolic links turn them into files; every import would then fail in its own way.
LINKS := shards curation pipeline train examples
MENDED := $(shell cd src/headrace && for name in $(LINKS); do \
	test -L $$name || { rm -f $$name && ln -s ../../$$name $$name && echo $$name; }; done)
ifneq ($(MENDED),)
$(info src/headrace: made the symbolic links again that this checkout had lost: $(MENDED))
endif

help:
	@echo "make demo      curate a small web with a known truth and train on it (under 5 minutes after set-up)"
	@echo "make test      the fast tests (20 minutes on two cores)"
	@echo "make test-full the others: servers, Ray, browser, kill suites, README commands"
	@echo "make test-all  all tests: servers, Ray, browser, kill suites, README commands (needs Debian's chromium, nginx)"
	@echo "make check     format, lint, types, import contract"
	@echo "make docs      the documents as a site in build/site, every link checked"
	@echo "make gpu-check every CUDA test and benchmark in under 9 minutes; PHOTOS=TAR for photographs of your own"
	@echo "make simd      pillow-simd instead of pillow in .venv (docs/dependencies.md says when)"

.venv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "headrace needs Python 3.11 or newer; run: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

NO_COMPILER := headrace: no C++ compiler was found, and pdqhash comes as source: install g++ (Debian: apt install g++), then run make again

# One stamp an extra, so that `make demo` installs only what it uses.
.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$*]' || { \
		command -v $${CXX:-g++} > /dev/null || echo "$(NO_COMPILER)" >&2; exit 1; }
	@touch $@

demo: .venv/installed-demo
	$(BIN)/headrace demo --out $(OUT)

test: .venv/installed-all
	$(BIN)/python -m pytest -n 2 -m "not full"

.venv/swift/installed: tests/pipeline/servers/swift-requirements.txt | .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/swift
	$(BIN)/uv pip install --quiet --python .venv/swift/bin/python -r $<
	@touch $@

test-full: .venv/installed-all .venv/swift/installed
	$(BIN)/python -m pytest -n 2 -m full

test-all: .venv/installed-all .venv/swift/installed
	$(BIN)/python -m pytest -n 2

check: .venv/installed-all
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-all
	$(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "open build/site/index.html"

format: .venv/installed-all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# pillow-simd as PIL's provider: a wheel named pillow that holds nothing and requires pillow-simd keeps every resolver
# content. --no-cache-dir, because pip's wheel cache does not look at CC and would hand out a build without AVX2.
simd: .venv/installed-all
	mkdir -p build/simd/shim
	printf '%s\n' '[build-system]' 'requires = ["setuptools>=77"]' 'build-backend = "setuptools.build_meta"' \
		'[project]' 'name = "pillow"' 'version = "$(SIMD)"' 'dependencies = ["pillow-simd==$(SIMD)"]' \
		'[tool.setuptools]' 'packages = []' > build/simd/shim/pyproject.toml
	$(BIN)/uv build --quiet --wheel build/simd/shim --out-dir build/simd
	CC="cc -mavx2" $(BIN)/python -m pip wheel --quiet --no-cache-dir --no-deps --no-binary :all: \
		pillow-simd==$(SIMD) --wheel-dir build/simd
	$(BIN)/uv pip install --quiet --python $(BIN)/python --find-links build/simd pillow==$(SIMD)
	$(BIN)/python -c 'import PIL; print("PIL is now provided by pillow-simd", PIL.__version__)'

# A machine with a GPU often has its own torch and no way to a package registry: .venv is used only where there is one.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py $(if $(PHOTOS),--photos $(PHOTOS))

clean:
	rm -rf .venv $(OUT) gpu-check build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
