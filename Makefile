# Every target does its own set-up. `make paper PROFILE=smoke` runs the small profile through the same machinery.
PYTHON ?= python3
PROFILE ?= scale
P ?=
# The CPU build of torch is smaller: make PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" test
PIP_FLAGS ?=
BIN := .venv/bin
POSTGRES := ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { echo "Servers run on Postgres: apt-get install postgresql"; exit 1; }
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help paper serve smoke test test-orchestration test-integration test-crash test-crash-once test-gpu check scale-model clean
.DEFAULT_GOAL := paper

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

paper: .venv/ready  ## every table of the paper: PROFILE=smoke, P='sparsity=0.8 seeds=[0,1]'; Ctrl-C stops the servers
	@echo "The whole paper, profile $(PROFILE): 6 to 12 minutes on 2 cores (smoke: 2), seconds where results are cached."
	$(BIN)/python -m flows.servers.stack paper --profile $(PROFILE) $(foreach parameter,$(P),-p '$(parameter)')

serve: .venv/ready  ## servers and workers until Ctrl-C; `make paper` then uses them
	$(BIN)/python -m flows.servers.stack serve

smoke: .venv/ready  ## every kind of stage, with no servers to start
	@echo "Every kind of stage once: about a minute."
	$(BIN)/python -m flows full-paper

test: .venv/ready  ## the unit tests
	@echo "The tests of the code: 4 minutes on 2 cores."
	$(BIN)/pytest $(IN_PARALLEL)

test-orchestration: .venv/ready  ## flows on a Prefect server, what they compute with, deployments
	@command -v systemd-analyze >/dev/null || { echo "Tests check systemd units: apt-get install systemd"; exit 1; }
	@echo "Tests of flows and processes: 4 minutes on 2 cores."
	$(BIN)/pytest tests/orchestration $(IN_PARALLEL)

test-crash: .venv/ready  ## everything that can be killed is killed; an installation on Postgres
	@$(POSTGRES)
	@echo "Crash tests, one after the other: up to an hour on 2 cores."
	$(BIN)/pytest tests/crash

test-crash-once: .venv/ready  ## each kind of crash once
	@$(POSTGRES)
	@echo "A test of each kind of crash: 8 minutes on 2 cores."
	$(BIN)/pytest tests/crash -m once $(IN_PARALLEL)

test-integration: .venv/ready  ## whole runs; MLflow on Postgres and an object store; its pages in a browser
	@$(POSTGRES)
	@command -v chromium >/dev/null || { echo "Pages are opened in a browser: apt-get install chromium"; exit 1; }
	@echo "Integration tests: 6 minutes on 2 cores."
	$(BIN)/pytest tests/integration $(IN_PARALLEL)

test-gpu: .venv/ready  ## what only a CUDA device can show
	$(BIN)/pytest tests/gpu

check: .venv/ready  ## formatting, lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

scale-model: .venv/ready  ## pretrain the embedded base model again: same seed, same weights
	@echo "Tokenizer, corpus and pretraining: up to 30 minutes on 2 cores."
	$(BIN)/python -m lori.scale_model.pretrain

# In an environment of its own: .venv cannot be made without the lock. Each build of torch names its own CUDA packages
.PHONY: lock
lock:  ## constraints.txt for pyproject.toml; versions stay unless UPGRADE is --upgrade or '-P package'
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet uv
	.venv/lock/bin/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --fork-strategy fewest --extra dev \
	  --no-annotate --custom-compile-command 'make lock' --output-file constraints.txt pyproject.toml
	sed --in-place --regexp-extended '/^(cuda|nvidia-[cn]|triton)/d' constraints.txt

clean:  ## the environment and all results of this checkout
	rm -rf .venv .lori

# torch by itself first: with everything at once pip weighs far more candidates
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
	  || { echo "$(PYTHON) is not Python 3.11 to 3.14: name one, as in make PYTHON=python3.13 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making the environment in .venv: about 3 minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@
