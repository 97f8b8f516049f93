# `make demo` and `make test` set everything up themselves; a second call reuses it.
PYTHON ?= python3
VENV ?= .venv
# Any torch >= 2.6 works; this is the one that the figures in benchmarks/LOG.md were made with.
TORCH ?= torch==2.13.0
RUN ?= runs/demo
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := $(VENV)/.model

.PHONY: demo test check format setup benchmark docs docs-output clean

demo: $(READY) $(MODEL)
	$(BIN)/transfuse run examples/orvessa/inject.yaml --out $(RUN)

# Two processes of one thread each: on tiny models a second thread only waits.
test: $(READY) $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pydoclint -q src
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/unit -q

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(READY) $(MODEL)
	$(BIN)/python benchmarks/training_speed.py

# The site, into site/; a broken link fails.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Runs every command that the pages show, and puts what it prints into them.
docs-output: $(READY) $(MODEL)
	$(BIN)/python docs/regenerate.py

setup: $(READY) $(MODEL)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name it with: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || (echo "python3 -m venv failed: install your system's venv package (Debian: python3-venv)"; exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks,docs,documents,endpoint,embeddings,index,serve,dev]'
	@touch $@

$(MODEL): $(READY)
	$(BIN)/transfuse models get smollm2-135m
	@touch $@

clean:
	rm -rf $(VENV) runs site
