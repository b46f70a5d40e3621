# make report   the main job on the embedded default: results/ab_report.html
# make test     the fast tests
# make check    everything: linters, types, all tests (the fast ones only if anything changed since they passed)
PYTHON ?= python3
CORES ?= 1
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: report test check

report: $(VENV)/.run
	$(BIN)/kava unlock
	$(BIN)/snakemake --cores $(CORES) --rerun-incomplete --show-failed-logs results/ab_report.html

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile
	touch $(VENV)/.passed

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(MAKE) $(VENV)/.passed
	$(BIN)/python -m pytest -m "slow and not recipe" --numprocesses 2 --dist loadfile

# The fast tests passed after the last change of any of these.
$(VENV)/.passed: $(shell find Snakefile config.yaml pyproject.toml constraints.txt README.md docs kava tests workflow \
		-type f -not -path '*/__pycache__/*')
	$(MAKE) test

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test,tensorboard]'
	touch $(VENV)/.run $@
