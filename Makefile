# make quickstart   train, evaluate and use a small detector, from nothing, in minutes
# make setup        build the native ops (CUDA kernels too where nvcc is found)
# make test         build, lint and run the whole test suite
# make nightly      the same with the slow tests: hours
# VENV=path         run in an environment of yours (nothing is installed into it)

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RUN ?= output/quickstart

.PHONY: quickstart setup test nightly lint env clean

quickstart: env
	$(PY) train_net.py --config-file configs/quickstart.py --resume train.output_dir=$(RUN)
	$(PY) tools/predict.py --config-file $(RUN)/config.yaml --weights $(RUN)/model_final.pth \
		--input $${DETECTRON2_DATASETS:-datasets}/digits/*/val --limit 8 --output $(RUN)/predictions --overwrite
	@$(PY) tools/summary.py $(RUN)

# Quiet unless it fails. Only what changed is compiled again.
setup: env
	@if command -v $${CXX:-c++} >/dev/null; then \
		mkdir -p build && echo "building the native ops (log: build/setup.log)" && \
		{ $(PY) setup.py build_ext --inplace >build/setup.log 2>&1 || { tail -n 60 build/setup.log; exit 1; }; } && \
		tail -n 1 build/setup.log; \
	else echo "No C++ compiler: the native ops are not built, set SHARED_OPS=reference to do without"; fi

# Without a build the tests of the kernels are skipped and the rest runs in plain PyTorch.
test: lint setup
	@[ -e shared/ops/build.json ] || export SHARED_OPS=reference; \
	set -x; $(PY) -m pytest -n 2 -q $(PYTEST_ARGS)

nightly:
	$(MAKE) test PYTEST_ARGS="--slow $(PYTEST_ARGS)"

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# An environment that we made is kept up to date; one of yours is left alone.
env:
	@if [ ! -e $(PY) ]; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")' && \
		$(PYTHON) -m venv $(VENV) && touch $(VENV)/.managed; \
	fi
	@if [ -e $(VENV)/.managed ] && ! cmp -s requirements.txt $(VENV)/.installed; then \
		$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
		cp requirements.txt $(VENV)/.installed; \
	fi

clean:
	rm -rf output/quickstart datasets/digits
