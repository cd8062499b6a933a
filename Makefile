# Two commands do everything on a fresh clone: `make experiment` and `make test`.
PYTHON ?= python3.11
# The CPU build of torch, which the whole project is developed against. On a machine where this name
# fetches the CUDA build: make TORCH="torch==2.13.0 --index-url <PyTorch's CPU wheel index>".
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/* csrc/ops/* csrc/cuda/* kernels/cpu/* kernels/cuda/*)

.PHONY: setup experiment test lint format bench clean

setup: $(VENV)/ready

$(VENV)/ready: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check numpy "setuptools>=77" wheel pybind11 ninja cmake
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[experiments,reports,dev]"
	touch $@

experiment: setup
	$(BIN)/dynprune experiment mnist-cnn --epochs 4

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu')

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu')

# BENCH: more options of benchmarks.run, such as --no-compile.
bench: setup
	for threads in 1 2; do \
	  $(BIN)/python -m benchmarks.run --threads $$threads $(BENCH) && \
	  $(BIN)/python -m benchmarks.plot "$$(ls -t benchmarks/results/*.json | head -n 1)" || exit 1; \
	done

clean:
	rm -rf build $(VENV) dynprune/_C*.so *.egg-info
