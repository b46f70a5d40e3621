# make report   the main job on the embedded default: results/ab_report.html
# make test     the fast tests
# make check    everything: linters, types, all tests; what CI runs
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

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable '.[test,tensorboard]'
	# Apart: Snakemake imports every plugin that it finds, and this one takes two seconds.
	$(PIP) --no-deps --upgrade --target $(VENV)/slurm snakemake-executor-plugin-slurm snakemake-executor-plugin-slurm-jobstep
	touch $@
