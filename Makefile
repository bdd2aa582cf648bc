# Each target makes the environment it needs if it is missing. Nothing is compiled, and no GPU is needed.

PYTHON ?= python3
NEWEST ?= python3.12
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
RUN := . $(BIN)/activate &&

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-slurm test-distributed test-newest check fmt clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo              train, resume, export and sample a small GPT, by the commands a user would type'
	@echo 'make test              the tests without those marked slow'
	@echo 'make test-slow         those: eight processes, kills at random moments, verification of whole configurations'
	@echo 'make test-slurm        a real Slurm, installed, started and broken here (root, Debian)'
	@echo 'make test-distributed  only those with several processes, the slow ones too'
	@echo 'make test-newest       those on Python 3.12 with the newest megatron-core'
	@echo 'make check             lint, format and types'
	@echo 'make fmt               format, and mend what can be mended'
	@echo 'make install           the environment alone, in $(VENV)'
	@echo 'make clean             remove environments, caches and what the demo wrote'

install: $(VENV)/installed

demo: $(VENV)/installed
	$(RUN) bash tools/demo.sh

# Those that start several processes want the cores for themselves.
test: $(VENV)/installed
	$(RUN) pytest -n $(WORKERS) -m 'not distributed and not slow and not slurm'
	$(RUN) pytest -m 'distributed and not slow and not slurm'

test-slow: $(VENV)/installed
	$(RUN) pytest -m 'slow and not slurm'

# As root, on Debian.
test-slurm: $(VENV)/installed
	$(RUN) python tests/slurm/slurm_cluster.py install
	$(RUN) pytest -m slurm

test-distributed: $(VENV)/installed
	$(RUN) pytest -m 'distributed and not slurm'

test-newest: $(VENV)-newest/installed
	. $(VENV)-newest/bin/activate && pytest -m 'distributed and not slurm'

check: $(VENV)/installed
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

fmt: $(VENV)/installed
	$(RUN) ruff check --fix
	$(RUN) ruff format

clean:
	rm -rf $(VENV) $(VENV)-newest demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -exec rm -rf {} +

# DS_*: DeepSpeed's set-up script compiles nothing and looks for no GPU.
# --no-compile: pip would write the bytecode on one core; compileall does on all of them. Of transformers' hundreds
# of models and of tests only what is imported is worth it. (It fails where a package ships a file that is no Python.)
define install
	@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'BigTrain needs Python 3.11 or newer; try: make PYTHON=python3.12' >&2; exit 1; }
	@$(1) -c 'import ensurepip, venv' || \
	  { echo '$(1) cannot make environments; on Debian: apt-get install -y python3-venv' >&2; exit 1; }
	$(1) -m venv $(2)
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(2)/bin/python -m pip install -q --no-compile -c $(3) -e '.[dev]'
	@$(2)/bin/python -W ignore -m compileall -qq -j 0 -x '/(tests?|transformers/models)/' $(2)/lib || true
	touch $@
endef

$(VENV)/installed: pyproject.toml constraints.txt
	$(call install,$(PYTHON),$(VENV),constraints.txt)

# The same pins, but for the one that Python 3.11 holds back.
$(VENV)-newest/installed: pyproject.toml constraints.txt
	@$(NEWEST) -c '' 2>/dev/null || { echo 'test-newest needs $(NEWEST), which is not here' >&2; exit 1; }
	mkdir -p $(VENV)-newest
	sed 's/^megatron-core==.*/megatron-core>=0.19/' constraints.txt > $(VENV)-newest/constraints.txt
	$(call install,$(NEWEST),$(VENV)-newest,$(VENV)-newest/constraints.txt)
