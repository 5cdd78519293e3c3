# Everything runs in .venv, which is made anew when the pinned versions change.
#   make demo    the whole method on the embedded domain
#   make compare the baselines beside it, on the demo's targets
#   make sweep   a sweep over ω on the embedded domain
#   make chaos   a small training broken in many ways, resumed and compared
#   make test    the checks, then the test suite
#   make check   ruff, formatting, mypy
#   make audit   the pinned versions against published advisories
#   make ui      MLflow's pages of the demo, on this machine only

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo compare sweep chaos test tests-with-ray more-tests-with-ray tests-without-ray browser check audit ui
.DEFAULT_GOAL := demo

# torch is named with its version: pip then takes the build of the index in use and not the newest one with CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==$(TORCH) -e '.[test]'
	touch $@

TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

# On CPU, keeping freed memory instead of asking the kernel for it anew halves the time of a training step,
# and processes with one thread each beat one process with many.
demo compare sweep chaos test: export MALLOC_MMAP_MAX_ := 0
demo compare sweep chaos test: export MALLOC_TRIM_THRESHOLD_ := 2000000000
demo compare sweep chaos test: export MALLOC_TOP_PAD_ := 268435456
demo compare sweep chaos test: export OMP_NUM_THREADS := 1
demo: $(STAMP)
	$(BIN)/python jobs/train_cpo.py --resume

compare: $(STAMP)
	@echo "supervised training and plain CPO on the demo's pictures, then the evaluation again: about ten minutes on two idle cores"
	$(BIN)/python jobs/train_cpo.py --resume 'preference.baselines=["sft","cpo"]'

sweep: $(STAMP)
	$(BIN)/python tune/search_cpo.py --resume

chaos: $(STAMP)
	$(BIN)/python benchmarks/chaos.py

# Tests that start a Ray wait a lot, for processes to start and to be looked at, so the others run beside them.
# Each test has a limit, and so has the whole; a test whose process has to be ended is reported, and the others go on in a new one.
LIMIT := $(if $(shell command -v timeout),timeout --kill-after=30 3600)
PYTEST := -m pytest -n 1 --max-worker-restart 2

test: $(STAMP) check browser
	$(MAKE) --no-print-directory --jobs=2 --keep-going tests-with-ray tests-without-ray more-tests-with-ray
	$(BIN)/python -m slipcover --skip-covered --merge .coverage.json --out .coverage.json

# In two parts, of which the second begins when the tests without Ray have ended: so both cores have work to the end.
RAY_FIRST := annotation evaluation sweep targets test_pipeline.py training
tests-with-ray:
	$(LIMIT) $(BIN)/python $(PYTEST) -m ray $(addprefix tests/,$(RAY_FIRST))

more-tests-with-ray:
	$(LIMIT) $(BIN)/python $(PYTEST) -m ray $(addprefix --ignore=tests/,$(RAY_FIRST))

# Coverage is counted here alone, by probes in the package's own code: on Python 3.11 a tracer takes a half more of all time.
tests-without-ray:
	$(LIMIT) $(BIN)/python -m slipcover --source cpo_ray --json --out .coverage.json $(PYTEST) -m "not ray"

# The page of a review is tested in a real one.
browser:
	@if command -v chromedriver && { command -v chromium || command -v google-chrome; }; then :; \
	elif command -v apt-get && [ "$$(id -u)" = 0 ]; then \
	  apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; \
	else echo "the tests drive a browser: install chromium and chromedriver (on Debian: chromium chromium-driver)" >&2; fi >/dev/null

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own, since pip-audit is no part of the project.
audit: constraints.txt
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

ui: $(STAMP)
	$(BIN)/python -m mlflow ui --backend-store-uri "sqlite:///$(CURDIR)/runs/mlflow.db" --host 127.0.0.1
