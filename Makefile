# ringred: `make train` and `make test` on a fresh Linux machine with Python 3.10+, make and a C++ compiler.
#
# Variables: PYTHON (the interpreter .venv is made from; a torch that it has is used), CXX, PIP_* (read by pip),
# CMAKE_BUILD_PARALLEL_LEVEL (default: 2 at most), TEST_OPTIONS (of tools/test.py), TEST_GPU_OPTIONS (test_gpu.py),
# BENCH_GPU_OPTIONS (bench_gpu.py).

ifneq ($(shell uname -s),Linux)
$(error ringred needs Linux (memfd, futex), this is $(shell uname -s); use a container or a virtual machine)
endif

PYTHON ?= python3
VENV := .venv
CMAKE_FLAGS ?=

# Prints where pip builds the Python module (build-dir in pyproject.toml).
BUILD := $(VENV)/bin/python tools/build_directory.py

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell cores=$$(nproc); echo $$((cores < 2 ? cores : 2)))

# PYTHON is looked up before .venv/bin comes first on PATH: .venv cannot be made from itself.
BASE_PYTHON := $(shell PATH="$$(echo "$$PATH" | sed 's|^$(CURDIR)/$(VENV)/bin:||')" command -v $(PYTHON))
GET_PYTHON := apt-get install python3-dev python3-venv (Debian, Ubuntu) or dnf install python3-devel (Fedora)
SOURCES := $(shell find csrc ringred -type f -not -name '*.pyc' 2>/dev/null) pyproject.toml CMakeLists.txt

.DEFAULT_GOAL := help
.PHONY: help train test test-gpu nightly bench bench-gpu dev lint format clean environment environment-dev install cpp-tests cpp-configure
.PHONY: lint-ruff lint-format lint-mypy lint-clang lint-shell lint-docker lint-yaml

help:
	@echo "make train    train the digits example on four ranks (installs into .venv first)"
	@echo "make test     all tests: C++, pytest on 1 rank, then under mpirun with 2, 3 and 4"
	@echo "make nightly  what takes minutes: schedules of up to 1,024 ranks, arrays of over 2 GB, all of CUDA"
	@echo "make test-gpu builds the tests of kernels for the GPU (9.0) and runs them; needs nvcc, no network"
	@echo "make bench    time allreduce on two ranks"
	@echo "make bench-gpu times the kernels on the GPU, beside their floors, and training steps; needs nvcc, no network"
	@echo "make dev      the developer's environment: the above plus linters and formatters"
	@echo "make lint     ruff, mypy, clang-format, shellcheck, hadolint, yamllint"
	@echo "make format   let ruff and clang-format rewrite the sources"
	@echo "make clean    remove build, reports and .venv"
	@echo "PYTHON=/path/to/python chooses the interpreter; if it has a torch, that one is used."

train: install
	$(VENV)/bin/ringred run -np 4 examples/digits.py

test: install cpp-tests
	$(VENV)/bin/python tools/test.py --cpp "$$($(BUILD))" $(TEST_OPTIONS)

# What takes minutes: schedules of up to 1,024 ranks, arrays of over 2 GB (in 16 GB of memory), kernels for all
# architectures, if there is nvcc, and the host's side of them under ThreadSanitizer.
nightly: install cpp-configure
	@cmake --build "$$($(BUILD))" --target schedule_nightly_test
	"$$($(BUILD))/tests/schedule_nightly_test"
	$(VENV)/bin/python -m pytest tests/nightly
	cmake -S . -B build/cuda -DRINGRED_TESTS=ON -DRINGRED_WERROR=ON
	cmake --build build/cuda --target gpu_tests gpu_bench_emulated
	ctest --test-dir build/cuda -L 'gpu|nightly' --output-on-failure --timeout 300
	bash .ci/sanitize cuda

# Without .venv: PYTHON itself, and what is here of CMake, nvcc and a C++ compiler. Where there is no GPU nothing is built.
test-gpu:
	@$(or $(BASE_PYTHON),$(PYTHON)) tools/test_gpu.py $(TEST_GPU_OPTIONS)

bench-gpu:
	@$(or $(BASE_PYTHON),$(PYTHON)) tools/bench_gpu.py $(BENCH_GPU_OPTIONS)

bench: install
	$(VENV)/bin/ringred bench allreduce -np 2

dev: environment-dev install
	@echo "ready: make test, make lint, make format"

environment environment-dev:
	@test -n "$(BASE_PYTHON)" || { echo "ringred: there is no $(PYTHON); install Python 3.10 or newer: $(GET_PYTHON)" >&2; exit 1; }
	@$(BASE_PYTHON) tools/setup_environment.py $(if $(filter %-dev,$@),--dev)

# A make of its own: whether the stamp is there is only known once .venv is up to date.
install: environment
	@$(MAKE) -s --no-print-directory $(VENV)/ringred-installed

$(VENV)/ringred-installed: $(SOURCES)
	@echo "building ringred"
	@$(VENV)/bin/python -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@

# In the build of the Python module, whose core they share.
cpp-tests: install cpp-configure
	@cmake --build "$$($(BUILD))"

cpp-configure: install
	@cmake -S . -B "$$($(BUILD))" -DRINGRED_TESTS=ON $(CMAKE_FLAGS) > build/tests-configure.log 2>&1 \
	  || { cat build/tests-configure.log; exit 1; }

# One target a tool, so that make --keep-going runs them all.
lint: lint-ruff lint-format lint-mypy lint-clang lint-shell lint-docker lint-yaml

lint-ruff: environment-dev
	ruff check .

lint-format: environment-dev
	ruff format --check .

lint-mypy: environment-dev
	mypy --strict ringred

lint-clang: environment-dev
	find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs -r clang-format --dry-run -Werror

lint-shell: environment-dev
	shellcheck .ci/run .ci/sanitize examples/slurm/*.sbatch

lint-docker: environment-dev
	hadolint docker/*.Dockerfile

lint-yaml: environment-dev
	yamllint --strict examples

format: environment-dev
	ruff check --fix .
	ruff format .
	find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs -r clang-format -i

clean:
	rm -rf build reports $(VENV)
