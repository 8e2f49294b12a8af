# Everything a checkout needs, on a machine that has python3 and make.
# uv makes the environment in .venv; where no working uv is found, pip puts one into .tools.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help setup demo toymodel test check smoke slurm lint format docs lock clean
.NOTPARALLEL:

BIN := .venv/bin
READY := .venv/.ready

# A uv that answers: a name on the PATH may be a shim without a program behind it.
define find_uv
uv=uv; \
if ! uv --version >/dev/null 2>&1; then \
	uv=.tools/bin/uv; \
	if ! $$uv --version >/dev/null 2>&1; then \
		python3 -m venv --clear .tools; \
		.tools/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	fi; \
fi
endef

help: ## show this
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /make \1\t/'

setup: $(READY) ## make the environment in .venv

$(READY): requirements.lock pyproject.toml
	@$(find_uv); \
	$$uv venv --quiet --python 3.12 --allow-existing .venv \
		|| $$uv venv --quiet --python '>=3.12' --no-python-downloads --allow-existing .venv; \
	$$uv pip install --python $(BIN)/python --require-hashes -r requirements.lock; \
	$$uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

# The toy preset with half the pictures and half the epochs: about five minutes on two cores, set-up not counted.
DEMO_IMAGES ?= 800
DEMO_EPOCHS ?= 2.2
DEMO_PRETRAINING_EPOCHS ?= 0.9

demo: $(READY) ## make a toy corpus, train two schedules, evaluate, write the report to out/demo
	@test -d out/demo/corpus || $(BIN)/vgsplus data toy out/demo/corpus --train-images $(DEMO_IMAGES)
	$(BIN)/vgsplus reproduce toy --out out/demo --corpus out/demo/corpus \
		--variants VGS --variants "(W2V2, VGS)" \
		--set schedule.epochs=$(DEMO_EPOCHS) \
		--set schedule.pretraining_epochs=$(DEMO_PRETRAINING_EPOCHS) \
		--set validate_every=1 --set evaluate_every=null

toymodel: $(READY) ## train the model that vgsplus.load("toy") returns, on data made here, and write its card
	@test -d out/toymodel/corpus || $(BIN)/vgsplus data toy out/toymodel/corpus
	$(BIN)/vgsplus train toy --out out/toymodel/run --set corpus=out/toymodel/corpus --set schedule.variant=vgs
	$(BIN)/python benchmarks/toy_model.py out/toymodel/run src/vgsplus/presets/toy

test: lint docs smoke check ## lint, types, the documentation, a smoke run of the whole pipeline, the test suite

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## the documentation site in out/docs/html; fails at broken links
	$(BIN)/python docs/site/build.py

smoke: $(READY) ## the whole pipeline at its smallest, in a temporary folder
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/vgsplus reproduce smoke --out "$$folder/run" \
		--variants VGS --variants W2V2 --variants "(W2V2, VGS)"

# What the tests compute is too small for threads, in the processes that they start as well.
check: $(READY) ## the test suite alone
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_cli.py
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/training tests/test_config.py
	OMP_NUM_THREADS=1 $(BIN)/pytest --ignore tests/test_cli.py --ignore tests/training --ignore tests/test_config.py

slurm: $(READY) ## --slurm on a SLURM of this machine alone; needs the Debian packages slurm-wlm and munge
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slurm -rs tests/slurm

lock: ## bring requirements.lock in line with pyproject.toml; add UPGRADE=1 for the newest versions
	@$(find_uv); \
	$$uv pip compile --quiet --universal --python-version 3.12 --extra dev --extra docs \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
		$(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.lock
	@if grep -n '://' requirements.lock; then echo "requirements.lock names a server" >&2; exit 1; fi

clean: ## remove the environment and what the tools cached, keep out/ and data/
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache
