# Everything below needs python3 (3.11 or newer, with venv) and make alone; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
TYPED := build/typed

.PHONY: demo test lint format codegen bench readme report wheelhouse gpu clean

demo: .venv/.installed
	$(BIN)/python -m jepa_fast.bench.demo --output report.html

# Files are not split over processes: what a file builds once (wheels, process groups, compilations) stays built once.
test: .venv/.installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy does not follow an editable installation's map, so it reads a copy laid out as the wheel is.
	@rm -rf $(TYPED) && mkdir -p $(TYPED) && cp -r jepa_fast $(TYPED)/ && cp -r kernels bench $(TYPED)/jepa_fast/
	cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p jepa_fast

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compile every Triton kernel for sm_80 to sm_120, without a GPU, and compare with the stored record.
codegen: .venv/.installed
	$(BIN)/jepa-fast codegen --check

bench: .venv/.installed
	$(BIN)/jepa-fast bench

# The README's tables of figures, from the records in bench/results/.
readme: .venv/.installed
	$(BIN)/python -m jepa_fast.bench.report.readme README.md

# All records as one page, report.html.
report: .venv/.installed
	$(BIN)/jepa-fast report

# Wheels for an offline CUDA host (CPython 3.12, Linux x86_64) that has torch and triton.
wheelhouse: .venv/.installed
	rm -rf wheelhouse && mkdir wheelhouse
	$(BIN)/python .ci/wheelhouse.py wheelhouse

# On such a host, after `make wheelhouse` elsewhere: GPU tests, benches, records. OUT is where the records go.
gpu:
	sh .ci/gpu.sh "$(or $(OUT),bench/results)"

clean:
	rm -rf .venv build dist wheelhouse

.venv/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/*/*.cpp kernels/*/*.h)
	$(PYTHON) -c 'import sys; sys.exit("python3: expected 3.11 or newer, got " + sys.version if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0" -e ".[dev]"
	touch $@
