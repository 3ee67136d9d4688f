# What a person types. `make test` and `make demo` start from a fresh clone; a second time they are quick.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CROSS  := $(VENV)/.cross
FUZZER := $(VENV)/.fuzzer
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 20
# How many tests at a time; those of one file stay together. Most of a test with an engine is waiting.
TEST_JOBS ?= 4
CODE   := autoforward tests scripts examples bench hatch_build.py

.DEFAULT_GOAL := help
# Some images set it: each command and supervisor of the tests would compile the program again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help check demo test unit fuzz soak nightly lint types format dist examples images engine clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

# Installed again when the metadata change; the package itself is editable.
$(STAMP): pyproject.toml hatch_build.py $(wildcard agent/*.[ch]) agent/Makefile
	@echo "venv: installing autoforward and what its tests need"
	@$(PYTHON) -c 'import sys; sys.exit("python 3.11 or newer is needed, this is %d.%d (make PYTHON=…)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(MAKE) --silent --no-print-directory venv-with-apt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

# What compiles the agent for arm64, unless there is something that does: zig, 80 MB. Not a dependency of `dev` therefore.
$(CROSS): $(STAMP)
	@command -v aarch64-linux-gnu-gcc >/dev/null || command -v aarch64-linux-musl-gcc >/dev/null || \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check ziglang
	@touch $@

# There are wheels of it for Linux on x86_64, and nothing else: where there is none, fuzzing goes on without.
$(FUZZER): $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --only-binary atheris --editable '.[fuzz]' 2>/dev/null || \
	  echo "fuzz: atheris cannot be had here, so that inputs are chosen by chance" >&2
	@touch $@

# Debian keeps venv in a package of its own.
.PHONY: venv-with-apt
venv-with-apt:
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "venv: $(PYTHON) -m venv fails; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; fi
	@echo "venv: installing python3-venv"
	@apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)

demo: ## a loopback server in a container, answered on this machine's localhost
	@PYTHON="$(PYTHON)" scripts/demo.sh

test: lint types engine images ## every promise once; ends 0 only if the tests with an engine ran too
	@$(BIN)/python -m scripts.engine compose
	@$(BIN)/python -m scripts.engine devcontainers-cli >/dev/null
	@$(BIN)/python -m scripts.neovim >/dev/null || echo "tests: no Neovim: what needs one says so"
	@$(BIN)/python -m scripts.ssh_server >/dev/null || echo "tests: no sshd: what needs one says so"
	@$(BIN)/python -m scripts.other_engines >/dev/null || echo "tests: not every other engine: what needs one says so"
	@$(BIN)/python -m scripts.chromium >/dev/null || echo "tests: no Chromium: what needs one says so"
	@$(MAKE) --silent --no-print-directory $(CROSS) || echo "tests: no cross compiler: what needs one says so"
	@echo "tests: $(if $(AUTOFORWARD_NIGHTLY),all cases,without those of tests/nightly.py)"
	@# exec: a signal to make has to reach pytest, which then cleans up.
	@exec env AUTOFORWARD_REQUIRE_ENGINE=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(if $(AUTOFORWARD_NIGHTLY),,-m 'not nightly') $(PYTEST_ARGS)

check: lint types ## what to run before a commit, in seconds: form, types, layers, documents against code
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/product/test_layers.py tests/docs/test_docs.py tests/docs/test_architecture_page.py \
	  tests/docs/test_spec.py tests/docs/test_spec_formats.py tests/docs/test_spec_protocol.py

unit: $(STAMP) ## the tests that need no engine
	@$(BIN)/python -m pytest -m 'unit or local' $(PYTEST_ARGS)

fuzz: $(STAMP) $(FUZZER) ## throws bytes at what reads a container's, the agent in C and Python's side: FUZZ_SECONDS=60 each
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

soak: engine images ## faults without end, every byte compared: SOAK_MINUTES=20
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.support.soak --minutes $(SOAK_MINUTES) $(SOAK_ARGS)

nightly: fuzz ## everything, long: a minute of fuzzing for each target, all cases (tests/nightly.py), 20 minutes of soak
	@$(MAKE) --silent --no-print-directory test AUTOFORWARD_NIGHTLY=1 AUTOFORWARD_SOAK_MINUTES=$(SOAK_MINUTES)

lint: $(STAMP) ## ruff
	@echo "lint: ruff"
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --quiet --check $(CODE) || { echo "lint: \`make format\` puts it right" >&2; exit 1; }

types: $(STAMP) ## mypy
	@echo "types: mypy"
	@$(BIN)/mypy --no-error-summary

format: $(STAMP) ## put the code into the house's form
	@$(BIN)/ruff check --quiet --fix $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

engine: $(STAMP)
	@$(BIN)/python -m scripts.engine ensure

images: engine
	@$(BIN)/python -m tests.images.build >/dev/null

dist: $(STAMP) ## a release in dist/: sdist, wheel with all agents, single file, SBOM, provenance, sums
	@$(BIN)/python -m scripts.dist

examples: engine ## each example runs and checks itself
	@$(BIN)/python -m scripts.engine compose
	@image=$${AUTOFORWARD_EXAMPLE_IMAGE:-$$($(BIN)/python -m tests.images.build full | cut -d' ' -f2)} && \
	for name in hello compose two-worktrees rules consumer; do \
	  AUTOFORWARD_EXAMPLE_IMAGE=$$image $(BIN)/python examples/check.py $$name || exit 1; \
	done

.PHONY: bench
bench: engine ## our lanes against the others' ways, in one run; writes docs/benchmarks.md (BENCH_ARGS="--quick --check")
	@exec $(BIN)/python -m bench $(or $(BENCH_ARGS),--memory)

.PHONY: pictures
pictures: images ## what people see, in docs/images: screens as SVG, the page of `autoforward ui` as PNG
	@$(BIN)/python -m scripts.pictures
	@$(BIN)/python -m scripts.page_pictures

clean: ## what these targets made here, the test images, and the engine if they started it
	@! docker info >/dev/null 2>&1 || docker image ls --format '{{.Repository}}:{{.Tag}}' 'autoforward-test/*' \
	  | xargs -r docker image rm >/dev/null
	@$(PYTHON) -m scripts.engine stop
	@rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
