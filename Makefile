# make report   the main job on the embedded default: results/ab_report.html
# make env      only its environment, .venv
# make test     the fast tests
# make mutants  faults put into the code one by one, to see that tests notice: see docs/mutations.md
# make check    linters, types and all tests (the fast ones only if anything changed since they passed) but one, the
#               teacher's recipe: `pytest -m recipe`, ten minutes
# Snakemake wants a home folder, which a container's user may lack.
export HOME ?= /tmp
PYTHON ?= python3
CORES ?= 1
VENV := .venv
BIN := $(VENV)/bin
# Not compiled: Python does that to the modules that it imports, and most are never imported.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

FILES := $(shell find Makefile Snakefile config.yaml README.md docs kava tests workflow -type f -not -name '*.pyc')
PASSED := $(VENV)/.passed-$(shell printf '%s\n' $(FILES) | sort | sha256sum | cut -c 1-16)

.PHONY: report env test check mutants

report: $(VENV)/.run
	$(BIN)/kava unlock
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete results/ab_report.html

env: $(VENV)/.run

test: $(VENV)/.test
	rm -f $(VENV)/.passed-*
	touch $(VENV)/.started
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile
	mv $(VENV)/.started $(PASSED)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site
	$(MAKE) $(PASSED)
	$(BIN)/python -m pytest -m "slow and not recipe" --numprocesses 2 --dist loadfile

mutants: $(VENV)/.test
	$(BIN)/python tests/mutations/run.py

# Fast tests that began after the last change of any file have passed; another list of files has another name.
$(PASSED): $(VENV)/.test $(FILES)
	$(MAKE) test

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test,tensorboard]'
	# Apart: Snakemake imports every plugin that it finds, and this one takes two seconds.
	$(PIP) --no-deps --upgrade --target $(VENV)/slurm snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep
	touch $(VENV)/.run $@
