# Needs Python 3.11 or later and nothing else; everything goes into .venv.
#   make reproduce            the notebooks, an hour or less; cotlib status shows what each took
#   make reproduce EFFORT=smoke
#   make test                 lint and tests, on up to four cores
#   make kill-test            kill -9 a small chain 50 times; CHAIN=real for the notebooks, hours;
#                             FINISHED=outputs spares one run, if they are of this commit and were empty before it
#   make showo-test           the notebooks on tiny weights in the layout of the published ones, eight minutes
#   make browser-test         pages and the explorer in a real browser; needs chromium and chromium-driver
#   make bench                how much faster decoding and PARM are than the plain loops, three minutes
#   make readme               bring the README up to date with docs/results, after: cotlib publish
#   make lab                  JupyterLab on the notebooks
#   make clean                caches; outputs/ and .venv stay

PYTHON ?= python3
SCALE ?= pocket
EFFORT ?= quick
SEED ?= 0
KILLS ?= 50
CHAIN ?= toy
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: reproduce test kill-test showo-test browser-test bench readme lab lint clean

reproduce: $(STAMP)
	$(BIN)/cotlib run --scale $(SCALE) --effort $(EFFORT) --seed $(SEED)
	$(BIN)/cotlib results --scale $(SCALE) --effort $(EFFORT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist worksteal

kill-test: $(STAMP)
	KILLS=$(KILLS) CHAIN=$(CHAIN) EFFORT=$(EFFORT) $(BIN)/python -m pytest -q -s -m slow tests/test_kills.py

showo-test: $(STAMP)
	$(BIN)/python -m pytest -q -s -m slow tests/test_showo_chain.py

browser-test: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-browser.lock
	$(BIN)/python -m pytest -q -s -m browser tests/test_browser.py

bench: $(STAMP)
	$(BIN)/python -m cotlib bench

readme: $(STAMP)
	$(BIN)/python -m cotlib.frontpage

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks/00_index.ipynb

clean:
	rm -rf .pytest_cache .ruff_cache build *.egg-info

.venv: $(STAMP)

# setuptools is pinned in the lock, so building cotlib itself fetches nothing.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@
