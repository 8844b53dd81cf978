# Two commands do everything: `make demo` and `make test`. Both make the environment first if it is not there.
PYTHON ?= python3

VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready
QUIET := TOKENIZERS_PARALLELISM=false PYDEVD_DISABLE_FILE_VALIDATION=1
# No hub is asked in a test. One thread keeps figures and sums reproducible; notebooks run as a user would run them,
# unless several share the processors.
OFFLINE := $(QUIET) HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 MPLBACKEND=agg
TEST    := $(OFFLINE) OMP_NUM_THREADS=1
# `make test JOBS=2` shares the tests out among two processes, file by file.
JOBS ?= 1
SHARED := $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadfile)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help env demo test lab bench claims papers pictures notebooks lint docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /|/' | column -t -s '|' 2>/dev/null || \
	  grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST)

env: $(READY)  ## make or refresh the environment in .venv

# torch goes first and alone: it is by far the largest, and a fault there should show before anything else
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "sparselens needs Python 3.11 to 3.13; name one: make env PYTHON=python3.12"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: env  ## compare two sets of texts, start to end; your own: make demo A=left.jsonl B=right.csv FIELD=text
	$(QUIET) $(PY) notebooks/run_demo.py $(if $(A),--a "$(A)") $(if $(B),--b "$(B)") $(if $(FIELD),--field "$(FIELD)")

# Notebooks are run as copies, in which each section that puts something on a model is run twice.
test: env  ## all tests, the notebooks included; JOBS=2 for two processes
	$(TEST) $(PY) -m pytest tests $(SHARED)
ifneq ($(NOTEBOOKS),)
	$(PY) -m tests.rerun --out out/twice $(NOTEBOOKS)
	$(if $(SHARED),$(TEST),$(OFFLINE)) $(PY) -m pytest --nbmake --nbmake-timeout=300 --nbmake-kernel=python3 out/twice $(SHARED)
endif

lab: env  ## JupyterLab in the environment
	$(QUIET) $(PY) -m jupyterlab notebooks

bench: env  ## speed and memory against baselines; writes out/bench.json
	$(TEST) $(PY) -m tests.bench --out out/bench.json

claims: env  ## what each paper claims, checked on data with a known truth; recorded in tests/claims/results
	$(TEST) $(PY) -m tests.claims.run --record --out out/claims.json

papers: env  ## the table of docs/papers.md, from docs/papers.toml
	$(PY) docs/papers.py

pictures: env  ## the pictures of the documentation, from a real model in a real browser; writes docs/assets
	$(TEST) SPARSELENS_PICTURES=1 SPARSELENS_REQUIRE_BROWSER=1 $(PY) -m pytest -q tests/browser/test_pictures.py

notebooks: env  ## run the notebooks and keep what they show; each becomes a page that opens offline too, in out/notebooks
	$(QUIET) $(PY) notebooks/make_pages.py --out out/notebooks $(NOTEBOOKS)

lint: env  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: env  ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

clean:  ## remove what was built; the environment and the model cache stay
	rm -rf build dist site out demo_out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sparselens tests docs notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
